//! A real Debian 12 with GRUB on a GPT, made by mmdebstrap and Debian's own tools, and looked into. It takes minutes
//! and root's rights: `cargo test -p omnivisor-guest --test debian -- --ignored`. The tree is kept between runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use disk::{Disk, OpenOptions, RawDisk};
use guest::{BootPlan, Guest, LinuxBoot, PlanOptions};

const SIZE: u64 = 2 << 30;
/// Start and length of the root's partition, in sectors.
const ROOT: (u64, u64) = (135_168, 4_000_000);
const PACKAGES: &str = "systemd-sysv,udev,kmod,linux-image-amd64,initramfs-tools,grub-pc-bin,grub2-common,zstd,busybox";
/// Stands in for grub-probe, which cannot look through a loop device.
const GRUB_PROBE: &str = "#!/bin/sh
for a; do case $a in --target=*) t=${a#--target=};; -t) n=1;; *) [ \"$n\" = 1 ] && t=$a; n=0;; esac; done
case $t in
device) echo /dev/sda3;;
fs_uuid) sed -n 's/^UUID=\\([^ ]*\\) .*/\\1/p' /etc/fstab;;
fs) echo ext2;;
partmap) echo gpt;;
abstraction) ;;
hints_string) echo '--hint-bios=hd0,gpt3';;
compatibility_hint) echo hd0,gpt3;;
*) exit 1;;
esac
";

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C.UTF-8").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Debian's tree, made once.
fn tree() -> PathBuf {
    let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian-12");
    if !tree.join("complete").exists() {
        let _ = fs::remove_dir_all(&tree);
        let include = format!("--include={PACKAGES}");
        let path = tree.to_str().unwrap();
        run(
            "mmdebstrap",
            &["--quiet", "--mode=root", "--variant=minbase", &include, "bookworm", path],
        );
        fs::write(tree.join("etc/hostname"), "bookworm\n").unwrap();
        fs::write(tree.join("complete"), "").unwrap();
    }
    tree
}

/// What is undone in the opposite order, whatever happens.
#[derive(Default)]
struct Undo(Vec<(&'static str, Vec<String>)>);

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some((program, arguments)) = self.0.pop() {
            let _ = Command::new(program).args(arguments).status();
        }
    }
}

/// A disk with that tree, changed by a script that runs in it.
fn image(path: &Path, script: &str) {
    fs::File::create(path).unwrap().set_len(SIZE).unwrap();
    let table = format!(
        "label: gpt\nstart=2048,size=2048,type=21686148-6449-6E6F-744E-656564454649\n\
         start=4096,size=131072,type=U\nstart={},size={},type=L,name=root\n",
        ROOT.0, ROOT.1
    );
    let sfdisk = format!("sfdisk -q {} <<END\n{table}END\n", path.display());
    run("sh", &["-c", &sfdisk]);
    let (offset, length) = ((ROOT.0 * 512).to_string(), (ROOT.1 * 512).to_string());
    let image = path.to_str().unwrap();
    let device = run("losetup", &["-f", "--show", "-o", &offset, "--sizelimit", &length, image]);
    let mut undo = Undo(vec![("losetup", vec!["-d".into(), device.clone()])]);
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree().to_str().unwrap(), &device]);
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut mount = |arguments: &[&str], target: PathBuf| {
        run("mount", &[arguments, &[target.to_str().unwrap()]].concat());
        undo.0.push(("umount", vec![target.to_str().unwrap().into()]));
    };
    mount(&[&device], root.to_owned());
    for name in ["dev", "proc", "sys"] {
        mount(&["--bind", &format!("/{name}")], root.join(name));
    }
    let probe = tempfile::NamedTempFile::new().unwrap();
    fs::write(probe.path(), GRUB_PROBE).unwrap();
    fs::set_permissions(probe.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("usr/sbin/grub-probe"), "").unwrap();
    mount(&["--bind", probe.path().to_str().unwrap()], root.join("usr/sbin/grub-probe"));
    let uuid = run("blkid", &["-s", "UUID", "-o", "value", &device]);
    let fstab = format!("UUID={uuid} / ext4 errors=remount-ro 0 1\n/dev/sda5 none swap sw 0 0\n");
    fs::write(root.join("etc/fstab"), fstab).unwrap();
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    let settings = "GRUB_DEFAULT=saved\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n";
    fs::create_dir_all(root.join("etc/default")).unwrap();
    fs::write(root.join("etc/default/grub"), settings).unwrap();
    let script = format!("set -e\n{script}\nupdate-grub\ngrub-editenv /boot/grub/grubenv create\n");
    run("chroot", &[root.to_str().unwrap(), "sh", "-c", &script]);
}

fn open(path: &Path) -> Guest {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    Guest::open(&[Arc::new(RawDisk::open(path, &options).unwrap()) as Arc<dyn Disk>])
}

fn plan(guest: &Guest) -> LinuxBoot {
    let options = PlanOptions { console: Some("ttyS0".into()), ..PlanOptions::default() };
    match guest.plan(&options).unwrap() {
        BootPlan::Linux(boot) => *boot,
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "makes a whole Debian, with root's rights and in minutes"]
fn grubs_default_entry_of_a_real_debian_is_planned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path, "");
    let before = run("sha256sum", &[path.to_str().unwrap()]);
    let guest = open(&path);
    let report = guest.report();
    let os = report.os.as_ref().unwrap();
    assert_eq!((os.id.as_deref(), os.version.as_deref()), (Some("debian"), Some("12")));
    assert_eq!((os.architecture, os.hostname.as_deref()), (Some("x86_64"), Some("bookworm")));
    assert_eq!(report.root.as_deref(), Some("vda3"));
    let menu = report.boot.as_ref().unwrap();
    assert_eq!(menu.notes, Vec::<String>::new());
    assert_eq!(menu.entries.len(), 3, "{menu:?}");
    let boot = plan(&guest);
    assert_eq!(boot.title, "Debian GNU/Linux");
    assert_eq!(boot.release.as_deref(), os.kernels.first().map(String::as_str));
    // Debian's initrd has the drivers of every hypervisor, so that it is passed on as it is.
    assert_eq!(boot.cmdline, "root=/dev/vda3 ro quiet console=ttyS0");
    let kernel = tree().join("boot").join(format!("vmlinuz-{}", os.kernels[0]));
    assert!(boot.kernel == fs::read(kernel).unwrap());
    assert!(boot.notes.iter().any(|note| note.contains("/dev/sda5")), "{:?}", boot.notes);
    drop(guest);
    assert_eq!(run("sha256sum", &[path.to_str().unwrap()]), before);
}

#[test]
#[ignore = "makes a whole Debian, with root's rights and in minutes"]
fn an_initrd_without_virtio_gets_the_guests_own_modules() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(
        &path,
        "echo ext4 >> /etc/initramfs-tools/modules\n\
         sed -i 's/^MODULES=.*/MODULES=list/' /etc/initramfs-tools/initramfs.conf\nupdate-initramfs -u",
    );
    let guest = open(&path);
    let boot = plan(&guest);
    assert!(boot.cmdline.ends_with(" rdinit=/omnivisor/init"), "{}", boot.cmdline);
    let contents = guest::Contents::of(boot.initrd.as_ref().unwrap()).unwrap();
    for module in ["virtio_blk", "virtio_pci", "virtio_ring", "virtio", "ext4"] {
        assert!(contents.modules.contains(module), "{module}");
    }
}
