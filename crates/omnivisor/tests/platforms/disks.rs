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
fn a_disk_with_external_snapshots_comes_with_all_that_it_is_based_on() {
    let session = Session::new();
    session.define();
    fill(&session);
    let mut virsh = session.command("virsh");
    virsh.args(["-q", "-c", "qemu:///session", "snapshot-create-as", "web 1", "s1", "--disk-only"]);
    assert!(virsh.status().unwrap().success());
    let list = session.json(&["snapshot", "list", "qemu:///session/web 1"]);
    assert_eq!(list["snapshots"][0]["name"], "s1");
    let copied = session.path("copied");
    session.expect(&["pull", "qemu:///session/web 1", copied.to_str().unwrap()]);
    for file in ["disk.s1", "disk.qcow2", "base.raw", "web 1.xml"] {
        assert!(copied.join(file).exists(), "{file}");
    }
    let (here, there) = (copied.join("disk.s1"), session.path("disk.s1"));
    qemu_img(&["compare", "-q", here.to_str().unwrap(), there.to_str().unwrap()]);
    // What undoes such a snapshot is not in this libvirt, which says so.
    let (code, _, talk) =
        session.run(&["snapshot", "revert", "--yes", "qemu:///session/web 1", "s1"]);
    assert!(code == 125 && talk.contains("external"), "{talk}");
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

#[test]
fn a_bundle_of_parallels_is_copied_as_it_is() {
    let sshd = Sshd::new();
    let bundle = sshd.folder.path().join("there/web.pvm");
    let disk = bundle.join("harddisk.hdd");
    std::fs::create_dir_all(&disk).unwrap();
    let raw = sshd.folder.path().join("raw");
    std::fs::write(&raw, [vec![0; 1 << 20], b"guest".repeat(400_000)].concat()).unwrap();
    let (raw, image) = (raw.to_str().unwrap(), disk.join("0.hds"));
    qemu_img(&["resize", "-q", "-f", "raw", raw, "4M"]);
    qemu_img(&["convert", "-q", "-f", "raw", "-O", "parallels", raw, image.to_str().unwrap()]);
    let descriptor = "<?xml version='1.0' encoding='UTF-8'?><Parallels_disk_image Version=\"1.0\"><Disk_Parameters>\
        <Disk_size>8192</Disk_size><Padding>0</Padding></Disk_Parameters><StorageData><Storage><Start>0</Start>\
        <End>8192</End><Blocksize>2048</Blocksize><Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>\
        <Type>Compressed</Type><File>0.hds</File></Image></Storage></StorageData><Snapshots><Shot>\
        <GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>\
        <ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots></Parallels_disk_image>";
    std::fs::write(disk.join("DiskDescriptor.xml"), descriptor).unwrap();
    let config = "<?xml version='1.0' encoding='UTF-8'?><ParallelsVirtualMachine schemaVersion='1.0'>\
        <Identification><VmName>web</VmName></Identification><Hardware><Cpu><Number>1</Number></Cpu>\
        <Memory><RAM>256</RAM></Memory><Hdd id='0'><Index>0</Index><Enabled>1</Enabled><Connected>1</Connected>\
        <EmulatedType>1</EmulatedType><SystemName>harddisk.hdd</SystemName><InterfaceType>2</InterfaceType>\
        <StackIndex>0</StackIndex></Hdd></Hardware></ParallelsVirtualMachine>";
    std::fs::write(bundle.join("config.pvs"), config).unwrap();
    let list = format!(
        "[{{\"ID\": \"5f3c1a52-0f0e-4d61-9d3c-3f0a6b1f2c11\", \"Name\": \"web\", \"State\": \"stopped\",\
         \"Home path\": \"{}/config.pvs\"}}]",
        bundle.display()
    );
    sshd.add_program("prlctl", &format!("cat <<'END'\n{list}\nEND\n"));
    let copied = sshd.folder.path().join("copied");
    let vm = format!("parallels+ssh://127.0.0.1:{}/web", sshd.port);
    let (code, _, talk) = sshd.run(&["pull", &vm, copied.to_str().unwrap()]);
    assert_eq!(code, 0, "{talk}");
    for file in ["config.pvs", "harddisk.hdd/DiskDescriptor.xml", "harddisk.hdd/0.hds"] {
        assert!(
            std::fs::read(copied.join(file)).unwrap() == std::fs::read(bundle.join(file)).unwrap()
        );
    }
    let (code, page, talk) = sshd.run(&["inspect", copied.join("config.pvs").to_str().unwrap()]);
    assert!(code == 0 && page.contains("harddisk.hdd") && page.contains("4 MiB"), "{page}{talk}");
}
