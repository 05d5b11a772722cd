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
    moving::moving().run(HERE);
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
