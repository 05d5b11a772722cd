//! Disks of VMs on another computer, by ssh and nothing that is installed there.

use std::path::Path;
use std::process::Command;

use crate::session::Session;
use crate::sshd::Sshd;

/// A computer with a real libvirt, that ssh leads to.
fn computer(session: &Session) -> Sshd {
    let sshd = Sshd::new();
    let path = std::env::var("PATH").unwrap();
    let home = session.folder.path().display();
    let user = match rustix::process::geteuid().is_root() {
        true => "setpriv --reuid 65534 --regid 65534 --clear-groups",
        false => "",
    };
    let virsh = format!(
        "exec {user} env -i PATH={path} HOME={home} XDG_RUNTIME_DIR={home}/run /usr/bin/virsh \"$@\"\n"
    );
    sshd.add_program("virsh", &virsh);
    sshd
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Fills a disk with what compresses badly, and an image over it with a little more.
fn fill(session: &Session) {
    let (base, disk) = (session.path("base.raw"), session.path("disk.qcow2"));
    let mut state = 1_u64;
    let mut bytes = vec![0; 8 << 20];
    for chunk in bytes[1 << 20..6 << 20].chunks_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    std::fs::write(&base, bytes).unwrap();
    let (base, disk) = (base.to_str().unwrap(), disk.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk]);
    let write = "write -P 7 7M 100k";
    assert!(Command::new("qemu-io").args(["-c", write, disk]).status().unwrap().success());
}

#[test]
fn a_vm_of_libvirt_is_copied_over_a_line_that_breaks() {
    let session = Session::new();
    session.define();
    fill(&session);
    let sshd = computer(&session);
    let vm = format!("libvirt+ssh://127.0.0.1:{}/session/web 1", sshd.port);
    let folder = sshd.folder.path().join("pulled");
    let copied = folder.to_str().unwrap();
    let (code, _, talk) = sshd.run_by("breaking-ssh", &["pull", "--connections", "2", &vm, copied]);
    assert_eq!(code, 0, "{talk}");
    // The image calls its parent by a path that is not here, but beside it.
    let image = folder.join("disk.qcow2");
    let info = Command::new("qemu-img").args(["info"]).arg(&image).output().unwrap();
    let info = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(info.contains("backing file: base.raw"), "{info}");
    let there = session.path("disk.qcow2");
    qemu_img(&["compare", "-q", image.to_str().unwrap(), there.to_str().unwrap()]);
    let sums = Command::new("sha256sum")
        .args(["-c", "--quiet", "SHA256SUMS"])
        .current_dir(&folder)
        .status();
    assert!(sums.unwrap().success());
    // And is a VM that is read here.
    let (code, page, talk) = sshd.run(&["inspect", folder.join("web 1.xml").to_str().unwrap()]);
    assert!(code == 0 && page.contains("8 MiB"), "{page}{talk}");
    let (code, _, talk) = sshd.run(&["pull", &vm, copied]);
    assert!(code == 0 && talk.contains("0 bytes copied"), "{talk}");
}

#[test]
fn a_running_vm_is_not_copied_and_the_way_out_is_said() {
    let session = Session::new();
    session.define();
    session.expect(&["start", "qemu:///session/web 1"]);
    let sshd = computer(&session);
    let vm = format!("libvirt+ssh://127.0.0.1:{}/session/web 1", sshd.port);
    let folder = sshd.folder.path().join("pulled");
    let (code, _, talk) = sshd.run(&["pull", &vm, folder.to_str().unwrap()]);
    assert!(
        code == 125 && talk.contains("is running") && talk.contains("omnivisor stop"),
        "{talk}"
    );
    assert!(!folder.exists());
    session.expect(&["stop", "--force", "--yes", "qemu:///session/web 1"]);
    // On the computer itself it is the same.
    let here = session.path("here");
    session.expect(&["pull", "qemu:///session/web 1", here.to_str().unwrap()]);
    assert!(here.join("disk.qcow2").exists() && here.join("web 1.xml").exists());
}

#[test]
fn a_disk_that_cannot_be_read_is_said_by_name() {
    let session = Session::new();
    session.define();
    let sshd = computer(&session);
    let vm = format!("libvirt+ssh://127.0.0.1:{}/session/web 1", sshd.port);
    std::fs::remove_file(session.path("disk.qcow2")).unwrap();
    let (code, _, talk) = sshd.run(&["pull", &vm, sshd.folder.path().join("x").to_str().unwrap()]);
    assert!(code == 127 && talk.contains("disk.qcow2"), "{talk}");
    // A server without SFTP.
    let config = sshd.folder.path().join("sshd");
    let text =
        std::fs::read_to_string(&config).unwrap().replace("Subsystem sftp internal-sftp\n", "");
    std::fs::write(&config, text).unwrap();
    sshd.read_configuration_again();
    let (code, _, talk) = sshd.run(&["pull", &vm, sshd.folder.path().join("x").to_str().unwrap()]);
    assert!(code == 125 && talk.contains("Subsystem sftp"), "{talk}");
}

#[test]
fn a_full_disk_is_said_and_the_copy_goes_on_when_there_is_space() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let session = Session::new();
    session.define();
    fill(&session);
    let sshd = computer(&session);
    let vm = format!("libvirt+ssh://127.0.0.1:{}/session/web 1", sshd.port);
    let small = Small::mount(&sshd.folder.path().join("small"), "3m");
    let copied = small.0.join("pulled");
    let (code, _, talk) = sshd.run(&["pull", &vm, copied.to_str().unwrap()]);
    assert!(code == 125 && talk.contains("No space left"), "{talk}");
    small.grow("40m");
    let (code, _, talk) = sshd.run(&["pull", &vm, copied.to_str().unwrap()]);
    assert_eq!(code, 0, "{talk}");
    let image = copied.join("disk.qcow2");
    let there = session.path("disk.qcow2");
    qemu_img(&["compare", "-q", image.to_str().unwrap(), there.to_str().unwrap()]);
}

/// A file system with little space.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir(at).unwrap();
        let small = Self(at.to_owned());
        small.call("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        small
    }

    fn grow(&self, size: &str) {
        self.call("mount", &["-o", &format!("remount,size={size}")]);
    }

    fn call(&self, program: &str, arguments: &[&str]) {
        assert!(Command::new(program).args(arguments).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
