//! The shared folder under the FUSE client of Linux itself: mounted on this computer instead of in a guest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use engine::GuestMemory;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use vm_memory::{Bytes, GuestAddress};

use super::folder::Folder;
use super::server::Server;
use super::{Cache, FsConfig};
use crate::virtio::buffer::GuestBuffer;

/// More than the largest request, and the largest answer.
const ROOM: usize = 2 << 20;

/// A folder, and the mount through which it is seen.
struct Mounted {
    folder: tempfile::TempDir,
    server: Option<std::thread::JoinHandle<()>>,
}

impl Mounted {
    /// `None` where this user may not mount.
    fn new(change: impl FnOnce(FsConfig) -> FsConfig, fill: impl FnOnce(&Path)) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (shared, seen) = (folder.path().join("shared"), folder.path().join("seen"));
        fs::create_dir(&shared).unwrap();
        fs::create_dir(&seen).unwrap();
        fill(&shared);
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount("shared", &seen, "fuse", MountFlags::NODEV, Some(options.as_c_str())).ok()?;
        let config = change(FsConfig::new("shared", &shared));
        let server = Server::new(Folder::open(config).unwrap());
        let thread = std::thread::spawn(move || serve(device, &server));
        Some(Self { folder, server: Some(thread) })
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.folder.path().join("shared").join(name)
    }

    fn seen(&self, name: &str) -> PathBuf {
        self.folder.path().join("seen").join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.folder.path().join("seen"), UnmountFlags::DETACH);
        if let Some(server) = self.server.take() {
            let served = server.join();
            assert!(served.is_ok() || std::thread::panicking());
        }
    }
}

/// Serves requests from `device` as if they came in a queue, until it is unmounted.
fn serve(mut device: File, server: &Server) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 * ROOM)]).unwrap();
    let mut bytes = vec![0; ROOM];
    while let Ok(length) = device.read(&mut bytes) {
        memory.write_slice(&bytes[..length], GuestAddress(0)).unwrap();
        let body = GuestBuffer::of_range(&memory, 0, length as u32).unwrap();
        let room = GuestBuffer::of_range(&memory, ROOM as u64, ROOM as u32).unwrap();
        let length = server.answer(body, room) as usize;
        if length > 0 {
            memory.read_slice(&mut bytes[..length], GuestAddress(ROOM as u64)).unwrap();
            // It fails where the request was interrupted meanwhile.
            let _ = device.write(&bytes[..length]);
        }
    }
}

/// Everything below `path` with its kind, mode and content.
fn content(path: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = path.join(&relative);
        let metadata = path.symlink_metadata().unwrap();
        let bytes = if metadata.is_dir() {
            todo.extend(
                fs::read_dir(&path).unwrap().map(|entry| relative.join(entry.unwrap().file_name())),
            );
            Vec::new()
        } else if metadata.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(relative, (metadata.mode(), bytes));
    }
    found
}

#[test]
fn linux_works_in_the_folder() {
    let Some(mounted) = Mounted::new(|config| config, |_| {}) else { return };
    let (shared, seen) = (|name: &str| mounted.shared(name), |name: &str| mounted.seen(name));
    // Files and folders, large and small.
    fs::create_dir_all(seen("a/b/c")).unwrap();
    let large: Vec<u8> = (0..5_000_000u32).map(|index| (index % 253) as u8).collect();
    fs::write(seen("a/large"), &large).unwrap();
    for index in 0..500 {
        fs::write(seen(&format!("a/b/{index}")), format!("content {index}")).unwrap();
    }
    symlink("../a/large", seen("a/link")).unwrap();
    fs::hard_link(seen("a/large"), seen("a/b/c/hard")).unwrap();
    fs::set_permissions(seen("a/b/7"), fs::Permissions::from_mode(0o751)).unwrap();
    assert_eq!(content(&seen("a")), content(&shared("a")));
    assert_eq!(fs::read(seen("a/link")).unwrap(), large);
    assert_eq!(fs::metadata(seen("a/large")).unwrap().nlink(), 2);

    // One file in many ways.
    let mut file = File::options().read(true).append(true).create(true).open(seen("log")).unwrap();
    file.write_all(b"one ").unwrap();
    fs::rename(seen("log"), seen("a/log")).unwrap();
    file.write_all(b"two ").unwrap();
    fs::remove_file(seen("a/log")).unwrap();
    file.write_all(b"three").unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two three");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.set_len(3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);

    // A moved folder, and one that the host changes.
    fs::rename(seen("a/b"), seen("moved")).unwrap();
    assert_eq!(fs::read(seen("moved/13")).unwrap(), b"content 13");
    assert_eq!(fs::read_dir(seen("moved")).unwrap().count(), 501);
    fs::write(shared("from-host"), "hello").unwrap();
    assert_eq!(fs::read(seen("from-host")).unwrap(), b"hello");
    fs::remove_dir_all(seen("moved")).unwrap();
    assert!(!shared("moved").exists());
    assert_eq!(fs::read(seen("none")).unwrap_err().kind(), std::io::ErrorKind::NotFound);

    // Programs: written, run, and used on the files.
    fs::copy("/bin/true", seen("true")).unwrap();
    assert!(Command::new(seen("true")).status().unwrap().success());
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let script = "tar -C \"$0\" -cf - . | tar -C sources -xf - && mkdir d && mv a d/ && \
                  find sources -name '*.rs' | xargs cat | grep -c fn >count && rm -r d";
    fs::create_dir(seen("sources")).unwrap();
    let status =
        Command::new("sh").args(["-c", script]).arg(&sources).current_dir(seen("")).status();
    assert!(status.unwrap().success());
    assert_eq!(content(&seen("sources")), content(&sources));
    assert_eq!(content(&seen("")), content(&shared("")));
}

#[test]
fn linux_reads_a_folder_that_does_not_change() {
    let bytes: Vec<u8> = (0..300_000u32).map(|index| (index % 241) as u8).collect();
    let change =
        |config| FsConfig { readonly: true, cache: Cache::Always, xattrs: false, ..config };
    let fill = |shared: &Path| {
        fs::create_dir(shared.join("dir")).unwrap();
        fs::write(shared.join("dir/file"), &bytes).unwrap();
        fs::copy("/bin/true", shared.join("true")).unwrap();
    };
    let Some(mounted) = Mounted::new(change, fill) else { return };
    for _ in 0..2 {
        assert_eq!(content(&mounted.seen("")), content(&mounted.shared("")));
        assert!(Command::new(mounted.seen("true")).status().unwrap().success());
        assert!(!mounted.seen("none").exists());
    }
    let denied = fs::write(mounted.seen("dir/file"), "x").unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(fs::create_dir(mounted.seen("new")).is_err());
    assert!(fs::remove_file(mounted.seen("true")).is_err());
}
