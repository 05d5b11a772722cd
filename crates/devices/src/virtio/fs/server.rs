//! Requests of the guest, and their answers.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::GuestMemory;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use virtio_queue::DescriptorChain;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::folder::{Answer, Creation, Folder, SavedFolder};
use super::wire::{self, InHeader, OutHeader, init, opcode};
use crate::virtio::buffer::GuestBuffer;

/// Bytes of one WRITE or READ at most; [`MOST_PAGES`] as bytes.
const MOST_DATA: usize = 1 << 20;
const MOST_PAGES: u16 = 256;
/// Bytes of names and values of one request at most: two paths, or a value of 64 KiB with its name.
const MOST_TEXT: usize = (64 << 10) + 4096;

/// Features of the protocol that are used where the guest has them too.
const FEATURES: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS;

/// Serves the FUSE protocol from a shared folder.
pub(super) struct Server {
    folder: Folder,
    /// INIT was served; nothing else comes before it.
    mounted: AtomicBool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedServer {
    mounted: bool,
    folder: SavedFolder,
}

/// A request without its header, and the room for its answer.
struct Request<'m> {
    header: InHeader,
    body: GuestBuffer<'m>,
    room: GuestBuffer<'m>,
}

/// What a request is answered with, besides an error.
enum Reply {
    /// Nothing at all: the guest does not wait.
    None,
    Bytes(Vec<u8>),
    /// So many bytes lie in the room already.
    InPlace(usize),
}

impl Server {
    pub(super) fn new(folder: Folder) -> Self {
        Self { folder, mounted: AtomicBool::new(false) }
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Forgets the guest.
    pub(super) fn reset(&self) {
        self.mounted.store(false, Ordering::Release);
        self.folder.clear();
    }

    pub(super) fn save(&self) -> SavedServer {
        SavedServer { mounted: self.mounted.load(Ordering::Acquire), folder: self.folder.save() }
    }

    pub(super) fn restore(&self, saved: SavedServer) -> Result<(), &'static str> {
        self.folder.restore(saved.folder)?;
        self.mounted.store(saved.mounted, Ordering::Release);
        Ok(())
    }

    /// Serves the request in `chain` and returns how many bytes its answer has.
    pub(super) fn serve<'m>(
        &self,
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
    ) -> u32 {
        let Some(body) = GuestBuffer::readable(chain.clone(), memory) else { return 0 };
        let Some(room) = GuestBuffer::writable(chain, memory) else { return 0 };
        self.answer(body, room)
    }

    pub(super) fn answer<'m>(&self, mut body: GuestBuffer<'m>, mut room: GuestBuffer<'m>) -> u32 {
        let Some(header) = body.take_array().map(|bytes: [u8; 40]| zerocopy::transmute!(bytes))
        else {
            return 0;
        };
        let header: InHeader = header;
        let head = room.take(size_of::<OutHeader>());
        let rest = (header.len.get() as usize).saturating_sub(size_of::<InHeader>());
        let mut request = Request { header, body: body.take(rest), room };
        let reply = self.dispatch(&mut request).and_then(|reply| match reply {
            Reply::Bytes(bytes) if request.room.copy_from(&bytes) < bytes.len() => {
                Err(Errno::RANGE)
            }
            reply => Ok(reply),
        });
        let (length, error) = match reply {
            Ok(Reply::None) => return 0,
            Ok(Reply::Bytes(bytes)) => (bytes.len(), 0),
            Ok(Reply::InPlace(length)) => (length, 0),
            Err(error) => (0, error.raw_os_error()),
        };
        let length = size_of::<OutHeader>() + length;
        let out = OutHeader {
            len: (length as u32).into(),
            error: (-error as u32).into(),
            unique: header.unique,
        };
        // Without room for it nobody waits for an answer.
        if head.copy_from(out.as_bytes()) < size_of::<OutHeader>() { 0 } else { length as u32 }
    }

    fn dispatch(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let operation = request.header.opcode.get();
        match operation {
            opcode::INIT => return self.init(request),
            // These have no answer, not even an error.
            opcode::FORGET => {
                let forget: wire::ForgetIn = request.take()?;
                self.folder.forget(request.node(), forget.nlookup.get());
                return Ok(Reply::None);
            }
            opcode::BATCH_FORGET => return self.batch_forget(request),
            opcode::INTERRUPT => return Ok(Reply::None),
            _ => {}
        }
        if !self.mounted.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        if self.folder.config().readonly && changes(operation) {
            return Err(Errno::ROFS);
        }
        match operation {
            opcode::LOOKUP
            | opcode::GETATTR
            | opcode::SETATTR
            | opcode::READLINK
            | opcode::ACCESS
            | opcode::STATFS => self.look(request),
            opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK
            | opcode::CREATE => self.name(request),
            opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
                self.xattr(request)
            }
            _ => self.use_file(request),
        }
    }

    fn init(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let asked: wire::InitIn = request.take()?;
        let mut out = wire::InitOut {
            major: wire::MAJOR.into(),
            minor: wire::MINOR.min(asked.minor.get()).into(),
            ..wire::InitOut::default()
        };
        match asked.major.get() {
            // It asks again in our version.
            major if major > wire::MAJOR => {
                out.minor = wire::MINOR.into();
                return Ok(bytes(&out));
            }
            wire::MAJOR if asked.minor.get() >= wire::OLDEST_MINOR => {}
            _ => return Err(Errno::PROTO),
        }
        // A mount begins with nothing known, whatever a driver did before.
        self.folder.clear();
        out.max_readahead = asked.max_readahead;
        out.flags = (FEATURES & asked.flags.get()).into();
        out.max_background = 64.into();
        out.congestion_threshold = 48.into();
        out.max_write = (MOST_DATA as u32).into();
        out.time_gran = 1.into();
        out.max_pages = MOST_PAGES.into();
        self.mounted.store(true, Ordering::Release);
        Ok(bytes(&out))
    }

    fn batch_forget(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let batch: wire::BatchForgetIn = request.take()?;
        for _ in 0..batch.count.get() {
            // It ends with the request, whatever its count says.
            let one: wire::ForgetOne = request.take()?;
            self.folder.forget(one.nodeid.get(), one.nlookup.get());
        }
        Ok(Reply::None)
    }

    /// Requests about names and attributes that are there.
    fn look(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let folder = &self.folder;
        let node = request.node();
        Ok(match request.header.opcode.get() {
            opcode::LOOKUP => {
                let text = request.text();
                bytes(&folder.lookup(node, first_name(&text)?)?)
            }
            opcode::GETATTR => {
                let asked: wire::GetattrIn = request.take()?;
                let by_handle = asked.getattr_flags.get() & wire::GETATTR_FH != 0;
                bytes(&folder.attributes(node, by_handle.then(|| asked.fh.get()))?)
            }
            opcode::SETATTR => bytes(&folder.set_attributes(node, &request.take()?)?),
            opcode::READLINK => Reply::Bytes(folder.read_link(node)?),
            opcode::ACCESS => {
                let asked: wire::AccessIn = request.take()?;
                done(folder.access(node, asked.mask.get())?)
            }
            _ => bytes(&folder.statistics(node)?),
        })
    }

    /// Requests that make, move and remove names.
    fn name(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let folder = &self.folder;
        let node = request.node();
        Ok(match request.header.opcode.get() {
            opcode::SYMLINK => {
                let text = request.text();
                let (name, target) = two_names(&text)?;
                bytes(&folder.symlink(request.creation(0), name, target)?)
            }
            opcode::MKNOD => {
                let asked: wire::MknodIn = request.take()?;
                let at = request.creation(asked.mode.get());
                let text = request.text();
                bytes(&folder.make_node(at, first_name(&text)?, asked.rdev.get())?)
            }
            opcode::MKDIR => {
                let asked: wire::MkdirIn = request.take()?;
                let at = request.creation(asked.mode.get());
                let text = request.text();
                bytes(&folder.make_folder(at, first_name(&text)?)?)
            }
            opcode::UNLINK => done(folder.unlink(node, first_name(&request.text())?, false)?),
            opcode::RMDIR => done(folder.unlink(node, first_name(&request.text())?, true)?),
            opcode::RENAME => {
                let asked: wire::RenameIn = request.take()?;
                let text = request.text();
                let (name, new_name) = two_names(&text)?;
                done(folder.rename((node, name), (asked.newdir.get(), new_name), 0)?)
            }
            opcode::RENAME2 => {
                let asked: wire::Rename2In = request.take()?;
                let text = request.text();
                let (name, new_name) = two_names(&text)?;
                let to = (asked.newdir.get(), new_name);
                done(folder.rename((node, name), to, asked.flags.get())?)
            }
            opcode::LINK => {
                let asked: wire::LinkIn = request.take()?;
                let text = request.text();
                bytes(&folder.link(asked.oldnodeid.get(), node, first_name(&text)?)?)
            }
            _ => {
                let asked: wire::CreateIn = request.take()?;
                let at = request.creation(asked.mode.get());
                let text = request.text();
                let (entry, open) = folder.create(at, first_name(&text)?, asked.flags.get())?;
                Reply::Bytes([entry.as_bytes(), open.as_bytes()].concat())
            }
        })
    }

    fn xattr(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let folder = &self.folder;
        let node = request.node();
        match request.header.opcode.get() {
            opcode::GETXATTR => {
                let asked: wire::GetxattrIn = request.take()?;
                let value = folder.xattr(node, first_name(&request.text())?)?;
                sized(value, asked.size.get())
            }
            opcode::LISTXATTR => {
                let asked: wire::GetxattrIn = request.take()?;
                sized(folder.xattrs(node)?, asked.size.get())
            }
            opcode::SETXATTR => {
                let asked: wire::SetxattrIn = request.take()?;
                let text = request.text();
                let name = first_name(&text)?;
                let value = text[name.len() + 1..].get(..asked.size.get() as usize);
                folder.set_xattr(node, name, value.ok_or(Errno::INVAL)?, asked.flags.get())?;
                Ok(done(()))
            }
            _ => Ok(done(folder.remove_xattr(node, first_name(&request.text())?)?)),
        }
    }

    /// Requests about what the guest has open.
    fn use_file(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let folder = &self.folder;
        let node = request.node();
        Ok(match request.header.opcode.get() {
            opcode::OPEN => {
                let asked: wire::OpenIn = request.take()?;
                bytes(&folder.open_file(node, asked.flags.get())?)
            }
            opcode::OPENDIR => bytes(&folder.open_folder(node)?),
            opcode::READ => return self.read(request),
            opcode::WRITE => return self.write(request),
            opcode::READDIR | opcode::READDIRPLUS => {
                let plus = request.header.opcode.get() == opcode::READDIRPLUS;
                let asked: wire::ReadIn = request.take()?;
                let size = (asked.size.get() as usize).min(request.room.len());
                Reply::Bytes(folder.entries(asked.fh.get(), asked.offset.get(), size, plus)?)
            }
            opcode::RELEASE | opcode::RELEASEDIR => {
                let asked: wire::ReleaseIn = request.take()?;
                folder.close(asked.fh.get());
                done(())
            }
            // Nothing is held back between a write and the host.
            opcode::FLUSH => done(()),
            opcode::FSYNC | opcode::FSYNCDIR => {
                let asked: wire::FsyncIn = request.take()?;
                let data_only = asked.fsync_flags.get() & wire::FSYNC_DATA != 0;
                done(folder.handle(asked.fh.get())?.synchronise(data_only)?)
            }
            opcode::SYNCFS => done(folder.sync_all()?),
            opcode::FALLOCATE => {
                let asked: wire::FallocateIn = request.take()?;
                let handle = folder.handle(asked.fh.get())?;
                done(handle.allocate(asked.mode.get(), asked.offset.get(), asked.length.get())?)
            }
            opcode::LSEEK => {
                let asked: wire::LseekIn = request.take()?;
                let handle = folder.handle(asked.fh.get())?;
                let offset = handle.seek(asked.offset.get(), asked.whence.get())?;
                bytes(&wire::LseekOut { offset: offset.into() })
            }
            opcode::COPY_FILE_RANGE => {
                let asked: wire::CopyFileRangeIn = request.take()?;
                let from = folder.handle(asked.fh_in.get())?;
                let to = folder.handle(asked.fh_out.get())?;
                let (at, length) = (asked.off_out.get(), asked.len.get());
                let copied = from.copy_to(asked.off_in.get(), &to, at, length)?;
                bytes(&wire::WriteOut { size: (copied as u32).into(), padding: 0.into() })
            }
            opcode::DESTROY => {
                self.reset();
                done(())
            }
            // Linux does these by itself then: locks, ioctl, poll, ...
            _ => return Err(Errno::NOSYS),
        })
    }

    /// Reads from a file into the guest's memory.
    fn read(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let asked: wire::ReadIn = request.take()?;
        let handle = self.folder.handle(asked.fh.get())?;
        let file = handle.content()?.as_fd();
        let mut room = request.room.first((asked.size.get() as usize).min(MOST_DATA));
        let mut read = 0;
        // To the guest, less than it asked for is the end of the file.
        while room.len() > 0 {
            let Some(offset) = asked.offset.get().checked_add(read as u64) else { break };
            match room.read_at(file, offset) {
                Ok(0) => break,
                Ok(count) => {
                    room.take(count);
                    read += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(Reply::InPlace(read))
    }

    /// Writes from the guest's memory to a file.
    fn write(&self, request: &mut Request<'_>) -> Answer<Reply> {
        let asked: wire::WriteIn = request.take()?;
        let handle = self.folder.handle(asked.fh.get())?;
        let file = handle.content()?.as_fd();
        let size = asked.size.get() as usize;
        if size > request.body.len() || size > MOST_DATA {
            return Err(Errno::INVAL);
        }
        let mut data = request.body.take(size);
        let mut written = 0;
        while data.len() > 0 {
            let offset = asked.offset.get().checked_add(written as u64).ok_or(Errno::FBIG)?;
            match data.write_at(file, offset) {
                Ok(0) => break,
                Ok(count) => {
                    data.take(count);
                    written += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(bytes(&wire::WriteOut { size: (written as u32).into(), padding: 0.into() }))
    }
}

impl Request<'_> {
    fn node(&self) -> u64 {
        self.header.nodeid.get()
    }

    fn creation(&self, mode: u32) -> Creation {
        let (uid, gid) = (self.header.uid.get(), self.header.gid.get());
        Creation { parent: self.node(), mode, uid, gid }
    }

    /// The next structure of the body.
    fn take<T: FromZeros + IntoBytes + zerocopy::FromBytes>(&mut self) -> Answer<T> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let taken = self.body.take(bytes.len()).copy_to(bytes);
        if taken < bytes.len() { Err(Errno::INVAL) } else { Ok(value) }
    }

    /// What is left of the body.
    fn text(&mut self) -> Vec<u8> {
        let mut text = vec![0; self.body.len().min(MOST_TEXT)];
        self.body.copy_to(&mut text);
        text
    }
}

/// Whether requests of this number change files.
fn changes(operation: u32) -> bool {
    matches!(
        operation,
        opcode::SETATTR
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::LINK
            | opcode::WRITE
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
            | opcode::CREATE
            | opcode::FALLOCATE
            | opcode::RENAME2
            | opcode::COPY_FILE_RANGE
    )
}

fn bytes<T: IntoBytes + Immutable>(value: &T) -> Reply {
    Reply::Bytes(value.as_bytes().to_vec())
}

fn done((): ()) -> Reply {
    Reply::Bytes(Vec::new())
}

/// A value of which only the size is wanted where `room` is 0, and an error where it is too small.
fn sized(value: Vec<u8>, room: u32) -> Answer<Reply> {
    match room as usize {
        0 => {
            let size = (value.len() as u32).into();
            Ok(bytes(&wire::GetxattrOut { size, padding: 0.into() }))
        }
        room if value.len() > room => Err(Errno::RANGE),
        _ => Ok(Reply::Bytes(value)),
    }
}

fn first_name(text: &[u8]) -> Answer<&[u8]> {
    let end = text.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
    Ok(&text[..end])
}

fn two_names(text: &[u8]) -> Answer<(&[u8], &[u8])> {
    let first = first_name(text)?;
    let second = first_name(&text[first.len() + 1..])?;
    Ok((first, second))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// For fuzzing: serves `bytes` as a mounted guest's request for the folder `root`, read-only.
#[doc(hidden)]
pub fn fuzz(root: &std::path::Path, request: &[u8]) {
    use vm_memory::{Bytes, GuestAddress};

    let config = super::FsConfig { readonly: true, ..super::FsConfig::new("fuzz", root) };
    let Ok(folder) = Folder::open(config) else { return };
    let server = Server::new(folder);
    server.mounted.store(true, Ordering::Release);
    let half = 1 << 17;
    let Ok(memory) = GuestMemory::from_ranges(&[(GuestAddress(0), 2 * half)]) else { return };
    let length = request.len().min(half);
    if memory.write_slice(&request[..length], GuestAddress(0)).is_err() {
        return;
    }
    let body = GuestBuffer::of_range(&memory, 0, length as u32);
    let room = GuestBuffer::of_range(&memory, half as u64, half as u32);
    if let (Some(body), Some(room)) = (body, room) {
        assert!(server.answer(body, room) as usize <= half);
    }
}
