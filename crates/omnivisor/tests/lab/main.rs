//! The program from end to end, on a real KVM: in the lab of tests/labs.

mod guests;
#[path = "../guests/harness.rs"]
mod harness;
#[path = "../guests/packages.rs"]
mod packages;
mod platforms;
#[path = "../scenarios/mod.rs"]
mod scenarios;
#[path = "../scenarios/tiny.rs"]
mod tiny;
mod xen;

use std::path::{Path, PathBuf};
use std::process::Command;

use scenarios::harness::{Place, Scenarios, cache};
use scenarios::{console, errors, moving, network, storage};

/// Seconds that a whole lab may take on a machine that is busy with much else.
const DEADLINE: u32 = 480;

/// A lab that is still to be booted.
#[derive(Default)]
struct Lab {
    /// In MiB.
    memory: u32,
    cpus: u32,
    /// A variable more for the scripts.
    variable: Option<(&'static str, String)>,
    /// Folders more in which it may write.
    writable: Vec<PathBuf>,
}

impl Place for Lab {
    fn engine(&self) -> &'static str {
        "kvm"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["qemu-system-x86_64"]
    }

    fn driver(&self, folder: &Path, variables: &[(&'static str, String)]) -> Command {
        let mut command = Command::new(repository().join("tests/labs/kvm-lab"));
        command
            .args(["-v", "-m", &self.memory.to_string(), "-s", &self.cpus.to_string()])
            .args(["-t", &DEADLINE.to_string(), "-C", "/", "-w"])
            .arg(folder)
            .args(self.writable.iter().flat_map(|folder| [Path::new("-w"), folder]))
            .env("KVM_LAB_CACHE", cache().join("kvm-lab"));
        for (name, value) in variables.iter().chain(&self.variable) {
            command.args(["-e", &format!("{name}={value}")]);
        }
        command.arg("--");
        command
    }
}

fn lab(memory: u32) -> Lab {
    Lab { memory, cpus: 1, ..Lab::default() }
}

#[test]
fn commands_stream_and_their_exit_codes_become_ours() {
    console::commands()
        .scenario(
            "the lab's own kernel and files, which the guest cannot change",
            r#"echo original >/etc/mark
               code 0 run host -- sh -c 'uname -r; cat /etc/mark; echo changed >/etc/mark; cat /etc/mark' >output
               same "$(cat output)" "$(uname -r; echo original; echo changed)"
               same "$(cat /etc/mark)" original"#,
        )
        .run(&lab(900));
}

#[test]
fn debians_kernels_boot_with_one_and_two_processors() {
    console::kernels().run(&Lab { cpus: 2, ..lab(1300) });
}

#[test]
fn a_console_reboots_powers_off_and_gives_the_terminal_back() {
    console::console().run(&lab(900));
}

#[test]
fn disks_are_read_written_discarded_and_locked() {
    storage::disks().run(&lab(1100));
}

#[test]
fn disks_of_every_format_run_with_overlays() {
    storage::overlays().run(&lab(1100));
}

#[test]
fn folders_are_shared_and_sockets_reach_the_guest() {
    storage::folders().run(&lab(1300));
}

#[test]
fn networks_carry_data_both_ways() {
    network::tap().run(&lab(1300));
}

#[test]
fn passt_carries_data_both_ways_and_ends_with_the_machine() {
    network::passt().run(&lab(1300));
}

#[test]
fn a_suspended_linux_goes_on_where_it_is_taken() {
    moving::moving("2").run(&Lab { cpus: 2, ..lab(1500) });
}

#[test]
fn mistakes_are_told_in_a_sentence_and_have_their_exit_codes() {
    errors::mistakes()
        .scenario(
            "no permission for /dev/kvm",
            r#"chmod 600 /dev/kvm; chmod 755 .
               as_nobody() {
                   setpriv --reuid 65534 --regid 65534 --clear-groups timeout 60 "$OMNIVISOR" "$@"
               }
               run debian --dry-run | sed '/^\[\[nics/,$d' >vm.toml; chmod 644 vm.toml
               code 126 as_nobody run --engine kvm --net none --config vm.toml
               says 'may open /dev/kvm' err; says usermod err
               chmod 666 /dev/kvm"#,
        )
        .scenario(
            "no KVM at all",
            r#"mv /dev/kvm /dev/hidden
               code 126 run debian; says 'There is no /dev/kvm' err
               mv /dev/hidden /dev/kvm"#,
        )
        .run(&lab(700));
}

#[test]
fn network_cards_pass_their_tests_where_the_kernel_carries_frames() {
    Scenarios::default()
        .scenario(
            "on real taps with vhost-net, and with passt",
            r#"busybox modprobe veth
               "$TESTS" --nocapture --test-threads 1 virtio::net::tests::host >output 2>&1 || fail "$(cat output)"
               says 'the_kernel_carries_the_frames_of_a_tap ... ok' output
               ! grep 'skipped: this kernel has no vhost-net' output || fail 'vhost-net is not there'
               grep 'test result' output"#,
        )
        .run(&Lab { cpus: 2, variable: Some(("TESTS", unit_tests("devices"))), ..lab(700) });
}

#[test]
fn the_kvm_engine_passes_the_conformance_tests() {
    let program =
        Path::new(env!("CARGO_BIN_EXE_omnivisor")).with_file_name("examples").join("conformance");
    assert!(program.exists(), "cargo build -p omnivisor-engine-kvm --example conformance");
    let program = program.to_str().unwrap();
    // The processor that QEMU emulates goes on with code that it has translated already, forgets a translation before
    // the write to its code and makes it again of the old code if another processor is quick enough, looks for another
    // kind of TSS when a ring changes in 32-bit code than it loads with a guest, and lets XSETBV pass KVM by.
    Scenarios::default()
        .scenario(
            "every test passes that QEMU's processor can",
            r#""$CONFORMANCE" --but 'changed right before' 'left for the new' 'copies operands' 'XCR0 takes what there is' >output 2>&1 ||
                   fail "$(grep -v '^ok' output; tail -n 1 output)"
               tail -n 1 output"#,
        )
        .scenario(
            "guests move between KVM and the software processor",
            r#""$CONFORMANCE" --both move survive 'keep their' >output 2>&1 ||
                   fail "$(grep -v '^ok' output; tail -n 1 output)"
               tail -n 1 output"#,
        )
        .run(&Lab { cpus: 2, variable: Some(("CONFORMANCE", program.to_owned())), ..lab(700) });
}

/// The program of the unit tests of a library: the newest, since cargo keeps those of earlier builds.
pub fn unit_tests(library: &str) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_omnivisor")).with_file_name("deps");
    let programs = std::fs::read_dir(folder).unwrap().flatten().filter(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        let hash = name.strip_prefix(library).and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|hash| hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
    });
    let newest = programs.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    let newest = newest.unwrap_or_else(|| panic!("cargo test --no-run -p omnivisor-{library}"));
    newest.path().into_os_string().into_string().unwrap()
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}
