//! Images, mounted by Linux and opened by us.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use disk::{OpenOptions, RawDisk};
use guest::Tree;
use guest::fs::{Content, FileSystem};
use guest::volume::Whole;
use tempfile::TempDir;

use crate::files::{fill, of_guest, of_host};

pub const MIB: u64 = 1 << 20;

/// A file system in an image.
pub struct Image {
    pub folder: TempDir,
}

/// A mounted image, unmounted when it is dropped.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, since whatever looks at new mounts may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// An image behind a loop device.
pub struct Device {
    pub image: PathBuf,
    pub path: String,
}

impl Device {
    /// A new image of `size`; `None` where there are no loop devices.
    pub fn new(image: PathBuf, size: u64) -> Option<Self> {
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        Self::of(image)
    }

    /// One that is there.
    pub fn of(image: PathBuf) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(&image).output().ok()?;
        let path = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
        output.status.success().then_some(Self { image, path })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
    }
}

pub fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{program}: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(_) => false,
    }
}

impl Image {
    /// An image of `size`, made by this program; `None` if that, or mounting, is not possible here.
    pub fn new(size: u64, mkfs: &[&str]) -> Option<Self> {
        let image = Self { folder: tempfile::tempdir().unwrap() };
        fs::File::create(image.path()).unwrap().set_len(size).unwrap();
        let path = image.path();
        let path = path.to_str().unwrap();
        if !run(mkfs[0], &[&mkfs[1..], &[path]].concat()) {
            eprintln!("skipped: {} does not run here", mkfs[0]);
            return None;
        }
        if image.mount("").is_none() {
            eprintln!("skipped: loop mounts do not work here");
            return None;
        }
        Some(image)
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub fn mount(&self, options: &str) -> Option<Mounted> {
        let point = self.folder.path().join("mounted");
        fs::create_dir_all(&point).unwrap();
        let options = format!("loop{options}");
        let (image, target) = (self.path(), point.to_str()?.to_owned());
        run("mount", &["-o", &options, image.to_str()?, &target]).then(|| Mounted(point))
    }

    /// A copy of the image as it is now.
    pub fn copy(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        assert!(run(
            "cp",
            &[
                "--sparse=always",
                self.path().to_str().unwrap(),
                folder.path().join("image").to_str().unwrap(),
            ]
        ));
        Self { folder }
    }

    pub fn open(&self) -> Rc<dyn FileSystem> {
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let disk = RawDisk::open(self.path(), &options).unwrap();
        match guest::fs::open(Arc::new(Whole(Arc::new(disk)))) {
            Content::FileSystem(fs) => fs,
            Content::Other(other) | Content::Part(other) => panic!("{other:?}"),
            Content::Unknown => panic!("nothing was recognised"),
        }
    }

    /// What we read is what Linux reads.
    pub fn check(&self) {
        let ours = of_guest(&Tree::new(self.open(), "/"));
        let mounted = self.mount(",ro").unwrap();
        let theirs = of_host(&mounted.0);
        for (path, theirs) in &theirs {
            assert_eq!(ours.get(path), Some(theirs), "{path}");
        }
        assert_eq!(ours.len(), theirs.len());
        assert!(theirs.len() > 10, "{theirs:?}");
    }
}

/// Fills a new file system, and reads it as Linux does.
pub fn check(size: u64, mkfs: &[&str], options: &str, many: usize) {
    let Some(image) = Image::new(size, mkfs) else { return };
    {
        let mounted = image.mount(options).unwrap();
        fill(&mounted.0, many);
    }
    image.check();
}
