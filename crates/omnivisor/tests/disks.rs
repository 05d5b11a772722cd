//! Disks of every format in a guest on the software processor, which runs everywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// What qemu-img calls a format, and how a disk of it may be made.
const FORMATS: [(&str, &[&str]); 7] = [
    ("raw", &[]),
    ("qcow2", &["-c"]),
    ("vmdk", &[]),
    ("vpc", &["-o", "subformat=dynamic,force_size"]),
    ("vhdx", &[]),
    ("vdi", &[]),
    ("parallels", &[]),
];

#[test]
fn a_guest_reads_and_writes_a_disk_of_each_format_and_no_image_changes() {
    let Some(folder) = Folder::new() else { return };
    let content = folder.content();
    let mut arguments = Vec::new();
    for (format, options) in FORMATS {
        let image = folder.image(format, options, "content");
        arguments.extend(["--disk".to_owned(), image.display().to_string()]);
    }
    let before = folder.sums();
    let script = "set -e; cd /dev
        for d in vd?; do dd if=$d bs=64k count=64 2>/dev/null | md5sum; done
        for d in vd?; do echo $d-was-here | dd of=$d bs=1k seek=100 conv=notrunc 2>/dev/null; done
        sync";
    let output = folder.run(&arguments, script);
    let sums = text(&output.stdout);
    assert_eq!(sums.lines().count(), FORMATS.len(), "{sums}\n{}", text(&output.stderr));
    assert!(sums.lines().all(|line| line.starts_with(&md5(&content))), "{sums}");
    assert_eq!(text(&output.stderr).matches("the next run goes on with it").count(), FORMATS.len());

    let script =
        "cd /dev; for d in vd?; do dd if=$d bs=1k skip=100 count=1 2>/dev/null | head -n 1; done";
    let written = text(&folder.run(&arguments, script).stdout);
    let expected: String =
        ('a'..).take(FORMATS.len()).map(|letter| format!("vd{letter}-was-here\n")).collect();
    assert_eq!(written, expected, "the next run goes on");

    let thrown_away = folder.run(&[&["--discard".to_owned()], &arguments[..]].concat(), script);
    assert!(!text(&thrown_away.stdout).contains("was-here"));
    assert_eq!(folder.sums(), before, "an image was changed");
}

#[test]
fn in_place_writes_to_an_image_of_each_format() {
    let Some(folder) = Folder::new() else { return };
    folder.content();
    let mut arguments = Vec::new();
    for (format, options) in FORMATS {
        let image = folder.image(format, options, "content");
        arguments.extend(["--disk".to_owned(), format!("{},in-place", image.display())]);
    }
    let script =
        "for d in /dev/vd?; do echo changed | dd of=$d bs=1k seek=100 conv=notrunc; done; sync";
    folder.run(&arguments, script);
    for (format, _) in FORMATS {
        let back = folder.path().join(format!("{format}-back"));
        let image = folder.path().join(format!("image.{format}"));
        qemu_img(&["convert", "-f", format, "-O", "raw", path(&image), path(&back)]);
        assert_eq!(&fs::read(back).unwrap()[100 << 10..][..7], b"changed", "{format}");
    }
    assert!(!folder.path().join("state/omnivisor/vm").exists());
}

#[test]
fn a_root_boots_from_each_format_over_an_overlay_and_in_place() {
    let Some(folder) = Folder::new() else { return };
    let files = folder.path().join("files");
    fs::create_dir_all(files.join("bin")).unwrap();
    ["dev", "proc", "sys", "run", "tmp"]
        .iter()
        .for_each(|dir| fs::create_dir(files.join(dir)).unwrap());
    let Ok(_) = fs::copy("/bin/busybox", files.join("bin/busybox")) else {
        eprintln!("skipped: there is no busybox to make a root of");
        return;
    };
    let init = "#!/bin/busybox sh
/bin/busybox touch /booted || echo 'cannot write'
echo root-$((40 + 2))-on-$(/bin/busybox sed -n 's|^/dev/\\(vd.\\) / .*|\\1|p' /proc/mounts)
/bin/busybox sync
exec /bin/busybox poweroff -f\n";
    fs::write(files.join("init"), init).unwrap();
    let made = Command::new("chmod").args(["+x", path(&files.join("init"))]).status().unwrap();
    assert!(made.success());
    let root = folder.path().join("content");
    let mut mke2fs = Command::new("/sbin/mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d", path(&files), path(&root), "16M"]);
    assert!(mke2fs.status().unwrap().success());
    let dry =
        folder.omnivisor(&["run", "--dry-run", "--net", "none", "--disk", "/dev/null", "debian"]);
    let description = text(&dry.stdout);
    let (kernel, initrd) = (value(&description, "kernel"), value(&description, "initrd"));
    for (format, options) in FORMATS {
        let image = folder.image(format, options, "content");
        let before = fs::read(&image).unwrap();
        for how in ["", ",in-place"] {
            let disk = format!("{}{how}", image.display());
            let run = ["run", "--engine", "soft", "--net", "none", "--no-reboot", "--disk", &disk];
            let boot = ["--kernel", &kernel, "--initrd", &initrd];
            let line = ["--cmdline", "console=ttyS0 quiet root=/dev/vda rw init=/init"];
            let output = folder.omnivisor(&[&run[..], &boot, &line].concat());
            let (console, error) = (text(&output.stdout), text(&output.stderr));
            assert!(console.contains("root-42-on-vda"), "{disk}: {console}\n{error}");
            assert!(!console.contains("cannot write"), "{disk}: {console}");
            assert_eq!(fs::read(&image).unwrap() == before, how.is_empty(), "{disk}");
        }
        // The guest's file is in the image itself, as another program reads it.
        let back = folder.path().join("back");
        qemu_img(&["convert", "-f", format, "-O", "raw", path(&image), path(&back)]);
        let stat = Command::new("/sbin/debugfs").args(["-R", "stat /booted", path(&back)]).output();
        let stat = text(&stat.unwrap().stdout);
        assert!(stat.contains("Type: regular"), "{format}: {stat}");
    }
}

/// Where the images of a test lie.
struct Folder(TempDir);

impl Folder {
    /// None where the programs that make images and guests are not installed, which is said.
    fn new() -> Option<Self> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let has = |name: &str| std::env::split_paths(&paths).any(|path| path.join(name).is_file());
        for program in ["qemu-img", "apt-get", "dpkg-deb", "busybox", "cpio"] {
            if !has(program) {
                assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// 4 MiB of which a part is zeroes, in the file `content`.
    fn content(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0_u32..1 << 20).flat_map(|n| (n / 3).to_le_bytes()).collect();
        bytes[1 << 20..2 << 20].fill(0);
        fs::write(self.path().join("content"), &bytes).unwrap();
        bytes
    }

    fn image(&self, format: &str, options: &[&str], content: &str) -> PathBuf {
        let image = self.path().join(format!("image.{format}"));
        let content = self.path().join(content);
        let arguments = ["convert", "-f", "raw", "-O", format];
        qemu_img(&[&arguments, options, &[path(&content), path(&image)]].concat());
        image
    }

    /// Of all images.
    fn sums(&self) -> Vec<(PathBuf, String)> {
        let files = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        let images = files.filter(|path| path.is_file());
        let mut sums: Vec<_> =
            images.map(|path| (path.clone(), md5(&fs::read(path).unwrap()))).collect();
        sums.sort();
        sums
    }

    /// Runs a script in a guest on the software processor.
    fn run(&self, arguments: &[String], script: &str) -> Output {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let run = ["run", "--engine", "soft", "--net", "none"];
        let guest = ["debian", "--", "sh", "-c", script];
        self.omnivisor(&[&run[..], &arguments, &guest].concat())
    }

    fn omnivisor(&self, arguments: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_omnivisor"))
            .args(arguments)
            .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
            .env("XDG_STATE_HOME", self.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        output
    }
}

/// The value of a key of a TOML file.
fn value(description: &str, key: &str) -> String {
    let line = description.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
    line.unwrap_or_else(|| panic!("{key}: {description}")).trim_matches('"').to_owned()
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

fn md5(bytes: &[u8]) -> String {
    use std::io::Write;
    let mut md5 = Command::new("md5sum");
    let mut md5 = md5.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    md5.stdin.take().unwrap().write_all(bytes).unwrap();
    text(&md5.wait_with_output().unwrap().stdout)[..32].to_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
