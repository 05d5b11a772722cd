//! VMs of XenServer, run at once, against the lab's server and QEMU's of NBD.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{OMNIVISOR, tiny};

/// The lab's server; it ends with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vm_of_xenserver_runs_at_once_and_its_snapshot_stays_until_all_is_here() {
    let (folder, tiny) = (tempfile::tempdir().unwrap(), tiny::kernel());
    let path = folder.path().join("disk");
    let content: Vec<u8> = (0..24_u32 << 20).map(|at| (at / 4096) as u8 ^ at as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/labs/xapi-lab");
    let mut command = Command::new(lab);
    command.args(["--nbd", "tls", "--disk"]).arg(&path).stdout(Stdio::piped());
    let mut server = Server(command.spawn().unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let mut line = |begin: &str| lines.next().unwrap().unwrap().replace(begin, "");
    let (thumbprint, host) = (line("thumbprint "), line("ready https://"));
    let vm = format!("xapi://root@{host}/db");
    let omnivisor = |arguments: &[&str]| {
        let arguments: Vec<_> =
            arguments.iter().map(|&word| if word == "VM" { &vm } else { word }).collect();
        let output = Command::new(OMNIVISOR)
            .args(arguments)
            .args(["--timeout", "120", "--tls-thumbprint", &thumbprint])
            .env("OMNIVISOR_PASSWORD", "secret")
            .env("XDG_STATE_HOME", folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let kernel = tiny.path().join("kernel");
    let kernel = kernel.to_str().unwrap();
    let run = ["run", "VM", "--engine", "soft", "--net", "none", "--kernel", kernel];
    let list = ["snapshot", "list", "VM"];
    // The guest is off again before more than the first of it is here.
    let said = omnivisor(&[&run[..], &["--rate", "1M", "--connections", "1"]].concat());
    assert!(said.contains("the tiny guest is up") && said.contains("goes on with"), "{said}");
    assert!(omnivisor(&list).contains("omnivisor run"));
    let notes = folder.path().join("omnivisor/held");
    let note = std::fs::read_dir(&notes).unwrap().next().unwrap().unwrap().path();
    let noted = std::fs::read(&note).unwrap();
    // How much comes while a guest of some instructions runs is not said.
    let is_all = |_| omnivisor(&run).contains("All of xapi://");
    assert!((0..20).any(is_all));
    assert!(!omnivisor(&list).contains("omnivisor run"));
    let name = format!("omnivisor/{}/remote-0.raw", vm.replace([':', '/', '@'], "_"));
    assert!(std::fs::read(folder.path().join(name)).unwrap() == content);

    // As after a run that was killed when all was here: the snapshot and the note of it are left.
    assert_eq!(std::fs::read_dir(&notes).unwrap().count(), 0);
    omnivisor(&["snapshot", "create", "VM", "omnivisor run"]);
    std::fs::write(&note, &noted).unwrap();
    let said = omnivisor(&run);
    assert!(said.contains("the tiny guest is up") && said.contains("was broken off"), "{said}");
    assert!(!omnivisor(&list).contains("omnivisor run"));
    assert!(!note.exists());
    // Without the server the VM runs all the same, and it is said what may be left.
    std::fs::write(&note, &noted).unwrap();
    drop(server);
    let said = omnivisor(&run);
    assert!(said.contains("the tiny guest is up"), "{said}");
    assert!(said.contains("Cannot talk to") && said.contains("snapshot delete"), "{said}");
}
