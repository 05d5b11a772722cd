//! Any bytes as disks, for fuzzing.

use std::rc::Rc;
use std::sync::Arc;

use crate::fs::{self, FileSystem};
use crate::storage::Storage;
use crate::tree::Tree;
use crate::volume::Volume;

/// Looks into a disk that repeats these bytes and reads what it finds; must return whatever they are.
pub fn fuzz_storage(bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let volume = disk_of(bytes);
    let storage = Storage::of_volumes(vec![Arc::clone(&volume)]);
    for fs in storage.volumes.iter().filter_map(|found| found.fs.as_ref()) {
        read_some(fs);
    }
    // Partition tables and signatures lie far apart: each kind is tried on its own as well.
    for fs in fs::open_as_any(&volume) {
        read_some(&fs);
    }
    if let Ok(fs) = fs::ext::open_with_fast_commits(volume, bytes) {
        read_some(&fs);
    }
}

fn read_some(fs: &Rc<dyn FileSystem>) {
    let tree = Tree::new(Rc::clone(fs), "/");
    for folder in ["/".to_owned(), fs.default_folder()] {
        for entry in tree.read_dir(&folder).unwrap_or_default().into_iter().take(16) {
            let path = format!("{folder}/{}", entry.name);
            let _ = tree.metadata(&path);
            let _ = tree.read(&path, 1 << 20);
            let _ = tree.read_link(&path);
            let _ = tree.read_dir(&path);
        }
    }
}

/// A disk that repeats these bytes, which are not none.
pub fn disk_of(bytes: &[u8]) -> Arc<dyn Volume> {
    Arc::new(Cyclic(bytes.to_vec()))
}

/// A disk on which every address leads to bytes that were given.
struct Cyclic(Vec<u8>);

impl Volume for Cyclic {
    fn len(&self) -> u64 {
        16 << 20
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> crate::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(crate::Error::damaged("volume", "something leads behind its end"));
        }
        let start = (offset % self.0.len() as u64) as usize;
        let bytes = self.0[start..].iter().chain(self.0.iter().cycle());
        buffer.iter_mut().zip(bytes).for_each(|(target, byte)| *target = *byte);
        Ok(())
    }
}
