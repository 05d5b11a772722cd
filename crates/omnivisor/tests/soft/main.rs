//! The program from end to end on the software processor, in a network of its own.

#[path = "../scenarios/mod.rs"]
mod scenarios;

use std::path::Path;
use std::process::Command;

use scenarios::harness::{Place, Scenarios};
use scenarios::{console, errors, moving, network, storage};

/// This computer, where nobody listens and nothing runs but a scenario.
struct Here {
    engine: &'static str,
}

impl Place for Here {
    fn engine(&self) -> &'static str {
        self.engine
    }

    fn needs(&self) -> &'static [&'static str] {
        &["unshare"]
    }

    fn driver(&self, _: &Path, variables: &[(&'static str, String)]) -> Command {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--net", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.args([
            "sh",
            "-c",
            "ip link set lo up; mount -t tmpfs none /run; exec \"$@\"",
            "sh",
        ]);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command
    }
}

const HERE: &Here = &Here { engine: "soft" };

#[test]
fn commands_stream_and_their_exit_codes_become_ours() {
    console::commands().run(HERE);
}

#[test]
fn a_console_reboots_powers_off_and_gives_the_terminal_back() {
    console::console().run(HERE);
}

#[test]
fn disks_are_read_written_discarded_and_locked() {
    storage::disks().run(HERE);
}

#[test]
fn disks_of_every_format_run_with_overlays() {
    storage::overlays().run(HERE);
}

#[test]
fn folders_are_shared_and_sockets_reach_the_guest() {
    storage::folders().run(HERE);
}

#[test]
fn networks_carry_data_both_ways() {
    network::tap().run(HERE);
}

#[test]
fn passt_carries_data_both_ways_and_ends_with_the_machine() {
    network::passt().run(HERE);
}

#[test]
fn a_suspended_linux_goes_on_where_it_is_taken() {
    moving::moving("6,sockets=2").run(HERE);
}

#[test]
fn mistakes_are_told_in_a_sentence_and_have_their_exit_codes() {
    errors::mistakes().run(HERE);
}

#[test]
fn debians_kernels_boot_with_one_two_and_four_processors() {
    console::kernels()
        .scenario(
            "four processors",
            r#"code 0 run --cpus 4 debian -- nproc >output; same "$(cat output)" 4
               code 0 run --cpus 4 debian:6.12 -- nproc >output; same "$(cat output)" 4"#,
        )
        .run(HERE);
}

#[test]
fn processors_are_divided_into_sockets_cores_and_threads() {
    Scenarios::default()
        .prepare(&["--net", "none", "debian", "--", "true"])
        .prepare(&["--net", "none", "debian:6.12", "--", "true"])
        .scenario(
            "two sockets of three cores of two threads, whose APIC IDs have gaps",
            r#"topology='cd /sys/devices/system/cpu
               for cpu in 0 1 2 3 4 5 6 7 8 9 10 11; do
                   cd cpu$cpu/topology
                   echo $cpu: $(cat physical_package_id core_id thread_siblings_list core_siblings_list)
                   cd ../..
               done
               grep -E "^(siblings|cpu cores|apicid)" /proc/cpuinfo | cut -d : -f 2 | tr -d "\n"'
               for image in debian debian:6.12; do
                   code 0 run --cpus sockets=2,cores=3,threads=2 $image -- sh -c "$topology" >output
                   same "$(cat output)" "0: 0 0 0-1 0-5
1: 0 0 0-1 0-5
2: 0 1 2-3 0-5
3: 0 1 2-3 0-5
4: 0 2 4-5 0-5
5: 0 2 4-5 0-5
6: 1 0 6-7 6-11
7: 1 0 6-7 6-11
8: 1 1 8-9 6-11
9: 1 1 8-9 6-11
10: 1 2 10-11 6-11
11: 1 2 10-11 6-11
 6 3 0 6 3 1 6 3 2 6 3 3 6 3 4 6 3 5 6 3 8 6 3 9 6 3 10 6 3 11 6 3 12 6 3 13"
               done"#,
        )
        .scenario(
            "numbers that do not fit",
            r#"code 2 run --cpus 8,sockets=3 debian -- true; says '8 processors cannot be 3 sockets' err
               code 2 run --cpus sockets=9,cores=8 debian -- true; says 'not 72' err"#,
        )
        .run(HERE);
}

#[test]
fn the_translator_does_what_the_interpreter_does_through_a_whole_boot() {
    Scenarios::default()
        .prepare(&["--net", "none", "debian", "--", "true"])
        .scenario(
            "a boot, and programs",
            r#"code 0 run debian -- sh -c 'uname -s; seq 3000 | sort -r | md5sum; seq 3000 | sha512sum' >output
               same "$(sed -n 1p output)" Linux
               same "$(sed -n 2p output)" "$(seq 3000 | LC_ALL=C sort -r | md5sum)"
               same "$(sed -n 3p output)" "$(seq 3000 | sha512sum)""#,
        )
        .run(&Here { engine: "soft,verify" });
}
