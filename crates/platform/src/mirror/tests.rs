use std::sync::atomic::AtomicU64;

use super::*;

/// A disk on another host that can go away.
struct Remote {
    content: Vec<u8>,
    hole: Range<u64>,
    read: AtomicU64,
    gone: AtomicBool,
}

impl Remote {
    fn new(chunks: u64) -> Arc<Self> {
        let length = chunks * CHUNK;
        let mut content: Vec<u8> = (0..length).map(|at| (at / 512) as u8 ^ at as u8).collect();
        let hole = 3 * CHUNK..5 * CHUNK + 512;
        content[hole.start as usize..hole.end as usize].fill(0);
        Arc::new(Self { content, hole, read: AtomicU64::new(0), gone: AtomicBool::new(false) })
    }
}

impl Disk for Remote {
    fn len(&self) -> u64 {
        self.content.len() as u64
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> disk::Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            let (path, source) = ("remote".into(), std::io::Error::other("gone"));
            return Err(disk::Error::Io { action: "read", path, source });
        }
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        buffer.copy_from_slice(&self.content[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> disk::Result<()> {
        Err(disk::Error::ReadOnly)
    }

    fn flush(&self) -> disk::Result<()> {
        Ok(())
    }

    fn discard(&self, _: Range<u64>) -> disk::Result<()> {
        Err(disk::Error::ReadOnly)
    }

    fn write_zeroes(&self, _: Range<u64>, _: bool) -> disk::Result<()> {
        Err(disk::Error::ReadOnly)
    }

    fn map(&self, range: Range<u64>) -> disk::Result<Extent<'_>> {
        let (end, content) = match range.start {
            start if start < self.hole.start => (self.hole.start, Content::Data(None)),
            start if start < self.hole.end => (self.hole.end, Content::Hole),
            _ => (self.len(), Content::Data(None)),
        };
        Ok(Extent { range: range.start..end.min(range.end), content })
    }
}

fn options() -> PullOptions {
    PullOptions { connections: 2, pause: Duration::from_millis(1), ..PullOptions::default() }
}

fn open(folder: &Path, remote: &Arc<Remote>) -> Mirror {
    Mirror::open(&folder.join("disk.raw"), remote.clone(), "monday", &options()).unwrap()
}

fn bytes(disk: &Mirror, offset: u64, length: usize) -> Vec<u8> {
    let mut read = vec![0; length];
    disk.read_at(&mut read, offset).unwrap();
    read
}

#[test]
fn what_was_read_once_is_not_asked_for_again() {
    let (folder, remote) = (tempfile::tempdir().unwrap(), Remote::new(8));
    let mirror = open(folder.path(), &remote);
    let at = CHUNK - 700;
    assert!(bytes(&mirror, at, 2000) == remote.content[at as usize..][..2000]);
    assert_eq!((remote.read.load(Ordering::Relaxed), mirror.here()), (2 * CHUNK, 2 * CHUNK));
    drop(mirror);
    remote.gone.store(true, Ordering::Relaxed);
    let mirror = open(folder.path(), &remote);
    assert!(bytes(&mirror, at, 2000) == remote.content[at as usize..][..2000]);
    assert!(mirror.read_at(&mut [0; 512], 7 * CHUNK).is_err());
}

#[test]
fn when_all_is_here_the_source_is_not_needed() {
    let (folder, remote) = (tempfile::tempdir().unwrap(), Remote::new(40));
    let mirror = open(folder.path(), &remote);
    assert!(Mirror::open_whole(&folder.path().join("disk.raw")).unwrap().is_none());
    let (tell, told) = std::sync::mpsc::channel();
    mirror.copy_behind(Box::new(move || tell.send(()).unwrap()));
    told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(mirror.is_whole());
    // Holes are not read.
    let read = remote.read.load(Ordering::Relaxed);
    assert_eq!(read, remote.len() - (remote.hole.end - remote.hole.start));
    drop(mirror);
    assert_eq!(Arc::strong_count(&remote), 1);
    let mirror = Mirror::open_whole(&folder.path().join("disk.raw")).unwrap().unwrap();
    assert!(bytes(&mirror, 0, remote.content.len()) == remote.content);
}

#[test]
fn a_source_that_comes_back_is_copied_to_the_end() {
    let (folder, remote) = (tempfile::tempdir().unwrap(), Remote::new(40));
    remote.gone.store(true, Ordering::Relaxed);
    let mirror = open(folder.path(), &remote);
    let (tell, told) = std::sync::mpsc::channel();
    mirror.copy_behind(Box::new(move || tell.send(()).unwrap()));
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
    remote.gone.store(false, Ordering::Relaxed);
    told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(bytes(&mirror, 0, remote.content.len()) == remote.content);
}

#[test]
fn who_reads_the_last_of_it_lets_the_source_go() {
    let (folder, remote) = (tempfile::tempdir().unwrap(), Remote::new(8));
    remote.gone.store(true, Ordering::Relaxed);
    let options = PullOptions { pause: Duration::from_secs(20), ..options() };
    let path = folder.path().join("disk.raw");
    let mirror = Mirror::open(&path, remote.clone(), "monday", &options).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    mirror.copy_behind(Box::new(move || tell.send(()).unwrap()));
    // Whoever copies has failed, and pauses.
    std::thread::sleep(Duration::from_millis(100));
    remote.gone.store(false, Ordering::Relaxed);
    bytes(&mirror, 0, remote.content.len());
    mirror.close().unwrap();
    told.try_recv().unwrap();
}

#[test]
fn whoever_copies_slowly_ends_at_once() {
    let (folder, remote) = (tempfile::tempdir().unwrap(), Remote::new(8));
    // Half an hour for what is copied at once.
    let options = PullOptions { rate: Some(1 << 10), ..options() };
    let path = folder.path().join("disk.raw");
    let mirror = Mirror::open(&path, remote.clone(), "monday", &options).unwrap();
    mirror.copy_behind(Box::new(|| {}));
    std::thread::sleep(Duration::from_millis(50));
    mirror.close().unwrap();
    assert_eq!(remote.read.load(Ordering::Relaxed), 0);
}

#[test]
fn a_disk_that_changed_at_its_source_is_not_mixed() {
    let (folder, remote) = (tempfile::tempdir().unwrap(), Remote::new(8));
    let mirror = open(folder.path(), &remote);
    bytes(&mirror, 0, 512);
    drop(mirror);
    let path = folder.path().join("disk.raw");
    let error = Mirror::open(&path, remote, "tuesday", &options()).err().unwrap();
    assert!(error.to_string().contains("was changed since"), "{error}");
}

#[test]
fn many_readers_see_the_same() {
    let (folder, remote) = (tempfile::tempdir().unwrap(), Remote::new(40));
    let mirror = open(folder.path(), &remote);
    mirror.copy_behind(Box::new(|| {}));
    std::thread::scope(|scope| {
        for reader in 0..4_u64 {
            let (mirror, remote) = (&mirror, &remote);
            scope.spawn(move || {
                for step in 0..200 {
                    let at = (reader * 7919 + step * 104_729) * 512 % (remote.len() - 8192);
                    assert!(bytes(mirror, at, 8192) == remote.content[at as usize..][..8192]);
                }
            });
        }
    });
    // Nothing came twice.
    mirror.close().unwrap();
    assert!(remote.read.load(Ordering::Relaxed) <= remote.len());
}
