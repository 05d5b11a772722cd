//! NTFS as ntfs-3g writes it, which needs root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// A mounted NTFS.
pub struct Ntfs3g {
    server: Child,
    point: PathBuf,
}

impl Ntfs3g {
    /// Mounts an image at a folder, which is made; `None` where the program does not run.
    pub fn mount(image: &str, point: &Path) -> Option<Self> {
        fs::create_dir_all(point).unwrap();
        let before = fs::metadata(point).unwrap().dev();
        let mut command = Command::new("ntfs-3g");
        command.args(["-o", "compression,no_detach", image]).arg(point).stderr(Stdio::null());
        let mut server = command.stdin(Stdio::null()).spawn().ok()?;
        while fs::metadata(point).unwrap().dev() == before {
            if server.try_wait().unwrap().is_some() {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
        Some(Self { server, point: point.to_owned() })
    }

    /// Returns when all is written and the image closed, which is later than `umount` does.
    pub fn unmount(mut self) {
        assert!(Command::new("umount").arg(&self.point).status().unwrap().success());
        assert!(self.server.wait().unwrap().success());
    }
}
