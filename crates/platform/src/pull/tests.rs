use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A file in memory whose connections are lost after some bytes.
struct Memory {
    name: String,
    content: Vec<u8>,
    stamp: String,
    /// Each connection ends after so many bytes.
    lost_after: usize,
    /// From this offset on nothing comes.
    broken_from: Mutex<u64>,
    asked: AtomicU64,
}

impl Memory {
    fn new(length: usize, lost_after: usize) -> Self {
        let mut content: Vec<u8> = (0..length).map(|at| (at / 1000 + at % 251) as u8).collect();
        let hole = length.min(1 << 20)..length.min(2 << 20);
        content[hole].fill(0);
        Self {
            name: "web-flat.vmdk".into(),
            content,
            stamp: "monday".into(),
            lost_after,
            broken_from: Mutex::new(u64::MAX),
            asked: AtomicU64::new(0),
        }
    }
}

impl RemoteFile for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.content.len() as u64
    }

    fn stamp(&self) -> &str {
        &self.stamp
    }

    fn read(&self, range: Range<u64>, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let end = range.end.min(*self.broken_from.lock().unwrap());
        if range.start >= end {
            let (place, message) = (self.name.clone(), "gone".into());
            return Err(Error::Unreachable { place, message, repair: None });
        }
        let bytes = &self.content[range.start as usize..end as usize];
        let bytes = &bytes[..bytes.len().min(self.lost_after)];
        self.asked.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        bytes.chunks(60_000).try_for_each(take)
    }
}

fn options() -> PullOptions {
    PullOptions { attempts: 2, pause: Duration::from_millis(1), ..PullOptions::default() }
}

fn pull(file: &Arc<Memory>, folder: &Path) -> Result<PullReport> {
    let vm = Pullable {
        files: vec![file.clone() as Arc<dyn RemoteFile>],
        streams: Vec::new(),
        documents: vec![("web.vmx".into(), b"displayName = \"web\"\n".to_vec())],
        undo: None,
    };
    vm.pull(folder, &options(), &mut |_| {})
}

#[test]
fn connections_that_break_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(Memory::new((5 << 20) + 777, 300_000));
    let report = pull(&file, folder.path()).unwrap();
    assert_eq!(fs::read(folder.path().join("web-flat.vmdk")).unwrap(), file.content);
    assert_eq!((report.copied, report.kept), (file.len(), 0));
    assert_eq!(file.asked.load(Ordering::Relaxed), file.len());
    assert!(!folder.path().join("web-flat.vmdk.part").exists());
    let mut check = std::process::Command::new("sha256sum");
    let checked = check.args(["--quiet", "-c", SUMS]).current_dir(folder.path()).status();
    assert!(checked.unwrap().success());
}

#[test]
fn zeroes_take_no_space() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let mut file = Memory::new(4 << 20, usize::MAX);
    file.content.fill(0);
    pull(&Arc::new(file), folder.path()).unwrap();
    let metadata = fs::metadata(folder.path().join("web-flat.vmdk")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (4 << 20, 0));
}

#[test]
fn a_pull_goes_on_where_the_last_one_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(Memory::new(5 << 20, usize::MAX));
    *file.broken_from.lock().unwrap() = (3 << 20) + 5;
    let error = pull(&file, folder.path()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(!folder.path().join("web-flat.vmdk").exists());
    *file.broken_from.lock().unwrap() = u64::MAX;
    let report = pull(&file, folder.path()).unwrap();
    assert_eq!((report.kept, report.copied), ((3 << 20) + 5, (2 << 20) - 5));
    assert_eq!(fs::read(folder.path().join("web-flat.vmdk")).unwrap(), file.content);
    // And a third one has nothing to do.
    assert_eq!(pull(&file, folder.path()).unwrap().copied, 0);
}

#[test]
fn what_was_spoilt_here_or_changed_there_is_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = Memory::new(3 << 20, usize::MAX);
    *file.broken_from.get_mut().unwrap() = (2 << 20) + 9;
    let mut file = Arc::new(file);
    pull(&file, folder.path()).unwrap_err();
    let part = folder.path().join("web-flat.vmdk.part");
    let mut bytes = fs::read(&part).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&part, bytes).unwrap();
    *Arc::get_mut(&mut file).unwrap().broken_from.get_mut().unwrap() = u64::MAX;
    assert_eq!(pull(&file, folder.path()).unwrap().kept, 0);
    let changed = Arc::get_mut(&mut file).unwrap();
    changed.stamp = "tuesday".into();
    changed.content[1] ^= 1;
    assert_eq!(pull(&file, folder.path()).unwrap().kept, 0);
    assert_eq!(fs::read(folder.path().join("web-flat.vmdk")).unwrap(), file.content);
}

#[test]
fn a_file_of_somebody_else_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web-flat.vmdk"), "mine").unwrap();
    let error = pull(&Arc::new(Memory::new(100, 100)), folder.path()).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    assert_eq!(fs::read(folder.path().join("web-flat.vmdk")).unwrap(), b"mine");
}

#[test]
fn names_of_a_server_stay_in_the_folder() {
    for name in
        ["", "..", "../x", "/etc/passwd", "a//b", "a/../b", "a\0", "x.part", "x.pull", SUMS, "a\\b"]
    {
        assert!(local(Path::new("/vm"), name).is_err(), "{name}");
    }
    assert_eq!(local(Path::new("/vm"), "2/web.vmdk").unwrap(), Path::new("/vm/2/web.vmdk"));
}

#[test]
fn what_was_done_to_the_vm_is_undone_in_any_case() {
    for broken in [0, u64::MAX] {
        let folder = tempfile::tempdir().unwrap();
        let mut file = Memory::new(100, 100);
        *file.broken_from.get_mut().unwrap() = broken;
        let (tell, told) = std::sync::mpsc::channel();
        let undo: Undo = Box::new(move |complete| {
            tell.send(complete).unwrap();
            Ok(())
        });
        let vm = Pullable {
            files: vec![Arc::new(file)],
            streams: Vec::new(),
            documents: Vec::new(),
            undo: Some(undo),
        };
        assert_eq!(vm.pull(folder.path(), &options(), &mut |_| {}).is_ok(), broken == u64::MAX);
        assert_eq!(told.recv().unwrap(), broken == u64::MAX);
    }
}
