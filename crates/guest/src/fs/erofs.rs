//! EROFS, by the crate erofs-rs, with all packings that mkfs.erofs knows. It reads through futures or from memory that holds
//! all of the image; ours are always ready at once, so that a future of it is polled one time.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use erofs_rs::r#async::EroFS;
use erofs_rs::backend::AsyncImage;
use erofs_rs::types::Inode;

use super::walk::{Nodes, Walk};
use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Metadata};
use crate::volume::{Volume, at, read, text_of, uuid_of};
use crate::{Error, Result};

/// Largest block, of which buffers are made.
const MAX_BLOCK_BITS: u8 = 16;
/// Names that are remembered, of all folders together.
const MAX_REMEMBERED: usize = 1 << 18;

struct Image(Arc<dyn Volume>);

impl AsyncImage for Image {
    async fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> erofs_rs::Result<()> {
        self.0.read_at(buffer, offset).map_err(|error| io::Error::other(error).into())
    }
}

/// The names in a folder, with what they stand for.
type Names = Rc<BTreeMap<String, Inode>>;

struct Erofs {
    inner: EroFS<Image>,
    root: File,
    folders: RefCell<HashMap<u64, Names>>,
}

/// A file, and where it is: the crate finds folders by path.
#[derive(Clone)]
struct File {
    path: String,
    inode: Inode,
}

/// Opens the file system on `volume`.
pub fn open(volume: Arc<dyn Volume>) -> Result<Rc<dyn FileSystem>> {
    let superblock = read(&*volume, 1024, 128)?;
    if at::u8(&superblock, 12).is_none_or(|bits| bits > MAX_BLOCK_BITS) {
        return Err(Error::unsupported("erofs file system", "its blocks are larger than 64 KiB"));
    }
    let inner = now(EroFS::new(Image(volume)))?;
    let inode = now(inner.get_inode(inner.super_block().root_inode_id()))?;
    let root = File { path: String::new(), inode };
    Ok(Rc::new(Walk::new(Erofs { inner, root, folders: RefCell::default() })))
}

/// What a future of ours returns, which never waits.
fn now<T>(future: impl Future<Output = erofs_rs::Result<T>>) -> Result<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result.map_err(explain),
        Poll::Pending => Err(Error::damaged("erofs file system", "it would have to be waited for")),
    }
}

impl Erofs {
    fn names(&self, folder: &File) -> Result<Names> {
        if let Some(known) = self.folders.borrow().get(&folder.inode.id()) {
            return Ok(Rc::clone(known));
        }
        let mut names = BTreeMap::new();
        let mut entries = now(self.inner.read_dir(format!("/{}", folder.path)))?;
        while let Some(entry) = now(async { entries.next_entry().await.transpose() })? {
            let name = String::from_utf8_lossy(entry.dir_entry.file_name()).into_owned();
            if name == "." || name == ".." {
                continue;
            }
            if names.len() == MAX_ENTRIES {
                return Err(Error::damaged("erofs file system", "a folder has no end"));
            }
            names.insert(name, entry.inode);
        }
        let names = Rc::new(names);
        let mut folders = self.folders.borrow_mut();
        let remembered: usize = folders.values().map(|names| names.len()).sum();
        if remembered + names.len() > MAX_REMEMBERED {
            folders.clear();
        }
        folders.insert(folder.inode.id(), Rc::clone(&names));
        Ok(names)
    }
}

impl Nodes for Erofs {
    type Id = File;

    fn kind(&self) -> &'static str {
        "erofs"
    }

    fn uuid(&self) -> Option<String> {
        Some(uuid_of(&self.inner.super_block().uuid))
    }

    fn label(&self) -> Option<String> {
        Some(text_of(&self.inner.super_block().volume_name))
    }

    fn root(&self) -> File {
        self.root.clone()
    }

    fn child(&self, folder: &File, name: &str) -> Result<Option<File>> {
        if !folder.inode.is_dir() {
            return Ok(None);
        }
        let inode = self.names(folder)?.get(name).copied();
        Ok(inode.map(|inode| File { path: format!("{}/{name}", folder.path), inode }))
    }

    fn list(&self, folder: &File) -> Result<Vec<Entry>> {
        let names = self.names(folder)?;
        Ok(names
            .iter()
            .map(|(name, inode)| Entry { name: name.clone(), kind: kind(inode) })
            .collect())
    }

    fn stat(&self, file: &File) -> Result<Metadata> {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.inode.permissions().mode() & 0o7777;
        let length = match kind(&file.inode) {
            Kind::Other => 0,
            _ => file.inode.data_size(),
        };
        Ok(Metadata { kind: kind(&file.inode), length, mode: mode as u16 })
    }

    fn content(&self, file: &File, length: u64) -> Result<Vec<u8>> {
        let mut opened = self.inner.open_inode_file(file.inode).map_err(explain)?;
        let mut content = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while (content.len() as u64) < length {
            let count = now(opened.read(&mut buffer))?;
            if count == 0 {
                return Err(Error::damaged("erofs file system", "a file ends early"));
            }
            content.extend_from_slice(&buffer[..count]);
        }
        Ok(content)
    }

    fn target(&self, link: &File, _: u64) -> Result<Vec<u8>> {
        Ok(now(self.inner.read_link_inode(link.inode))?.into_vec())
    }
}

fn kind(inode: &Inode) -> Kind {
    if inode.is_dir() {
        Kind::Folder
    } else if inode.is_file() {
        Kind::File
    } else if inode.is_symlink() {
        Kind::Link
    } else {
        Kind::Other
    }
}

fn explain(error: erofs_rs::Error) -> Error {
    match error {
        erofs_rs::Error::Io(error) => match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::damaged("erofs file system", error.to_string()),
        },
        erofs_rs::Error::NotSupported(what) => Error::unsupported("erofs file system", what),
        erofs_rs::Error::PathNotFound(path) => Error::NotFound(path),
        other => Error::damaged("erofs file system", other.to_string()),
    }
}
