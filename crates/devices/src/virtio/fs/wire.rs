//! Messages of the FUSE protocol, as `include/uapi/linux/fuse.h` of Linux names them; version 7.38.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 38;
/// The oldest version spoken: the first of virtio-fs.
pub const OLDEST_MINOR: u32 = 31;

/// Node of the shared folder itself.
pub const ROOT_ID: u64 = 1;

/// Declares wire structures: plain bytes without padding.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire! {
    /// `struct fuse_in_header`
    InHeader = 40 { len: U32, opcode: U32, unique: U64, nodeid: U64, uid: U32, gid: U32, pid: U32,
        total_extlen: U16, padding: U16 }
    /// `struct fuse_out_header`
    OutHeader = 16 { len: U32, error: U32, unique: U64 }
    /// `struct fuse_attr`
    Attr = 88 { ino: U64, size: U64, blocks: U64, atime: U64, mtime: U64, ctime: U64,
        atimensec: U32, mtimensec: U32, ctimensec: U32, mode: U32, nlink: U32, uid: U32, gid: U32,
        rdev: U32, blksize: U32, flags: U32 }
    /// `struct fuse_entry_out`
    EntryOut = 128 { nodeid: U64, generation: U64, entry_valid: U64, attr_valid: U64,
        entry_valid_nsec: U32, attr_valid_nsec: U32, attr: Attr }
    /// `struct fuse_attr_out`
    AttrOut = 104 { attr_valid: U64, attr_valid_nsec: U32, dummy: U32, attr: Attr }
    /// The part of `struct fuse_init_in` that every version has
    InitIn = 16 { major: U32, minor: U32, max_readahead: U32, flags: U32 }
    /// `struct fuse_init_out`
    InitOut = 64 { major: U32, minor: U32, max_readahead: U32, flags: U32, max_background: U16,
        congestion_threshold: U16, max_write: U32, time_gran: U32, max_pages: U16, map_alignment: U16,
        flags2: U32, unused: [U32; 7] }
    /// `struct fuse_forget_in`
    ForgetIn = 8 { nlookup: U64 }
    /// `struct fuse_batch_forget_in`
    BatchForgetIn = 8 { count: U32, dummy: U32 }
    /// `struct fuse_forget_one`
    ForgetOne = 16 { nodeid: U64, nlookup: U64 }
    /// `struct fuse_getattr_in`
    GetattrIn = 16 { getattr_flags: U32, dummy: U32, fh: U64 }
    /// `struct fuse_setattr_in`
    SetattrIn = 88 { valid: U32, padding: U32, fh: U64, size: U64, lock_owner: U64, atime: U64,
        mtime: U64, ctime: U64, atimensec: U32, mtimensec: U32, ctimensec: U32, mode: U32,
        unused4: U32, uid: U32, gid: U32, unused5: U32 }
    /// `struct fuse_mknod_in`
    MknodIn = 16 { mode: U32, rdev: U32, umask: U32, padding: U32 }
    /// `struct fuse_mkdir_in`
    MkdirIn = 8 { mode: U32, umask: U32 }
    /// `struct fuse_rename_in`
    RenameIn = 8 { newdir: U64 }
    /// `struct fuse_rename2_in`
    Rename2In = 16 { newdir: U64, flags: U32, padding: U32 }
    /// `struct fuse_link_in`
    LinkIn = 8 { oldnodeid: U64 }
    /// `struct fuse_open_in`
    OpenIn = 8 { flags: U32, open_flags: U32 }
    /// `struct fuse_open_out`
    OpenOut = 16 { fh: U64, open_flags: U32, padding: U32 }
    /// `struct fuse_create_in`
    CreateIn = 16 { flags: U32, mode: U32, umask: U32, open_flags: U32 }
    /// `struct fuse_read_in`
    ReadIn = 40 { fh: U64, offset: U64, size: U32, read_flags: U32, lock_owner: U64, flags: U32,
        padding: U32 }
    /// `struct fuse_write_in`
    WriteIn = 40 { fh: U64, offset: U64, size: U32, write_flags: U32, lock_owner: U64, flags: U32,
        padding: U32 }
    /// `struct fuse_write_out`
    WriteOut = 8 { size: U32, padding: U32 }
    /// `struct fuse_kstatfs`
    StatfsOut = 80 { blocks: U64, bfree: U64, bavail: U64, files: U64, ffree: U64, bsize: U32,
        namelen: U32, frsize: U32, padding: U32, spare: [U32; 6] }
    /// `struct fuse_release_in`
    ReleaseIn = 24 { fh: U64, flags: U32, release_flags: U32, lock_owner: U64 }
    /// `struct fuse_fsync_in`
    FsyncIn = 16 { fh: U64, fsync_flags: U32, padding: U32 }
    /// `struct fuse_setxattr_in` without FUSE_SETXATTR_EXT
    SetxattrIn = 8 { size: U32, flags: U32 }
    /// `struct fuse_getxattr_in`
    GetxattrIn = 8 { size: U32, padding: U32 }
    /// `struct fuse_getxattr_out`
    GetxattrOut = 8 { size: U32, padding: U32 }
    /// `struct fuse_access_in`
    AccessIn = 8 { mask: U32, padding: U32 }
    /// `struct fuse_fallocate_in`
    FallocateIn = 32 { fh: U64, offset: U64, length: U64, mode: U32, padding: U32 }
    /// `struct fuse_lseek_in`
    LseekIn = 24 { fh: U64, offset: U64, whence: U32, padding: U32 }
    /// `struct fuse_lseek_out`
    LseekOut = 8 { offset: U64 }
    /// `struct fuse_copy_file_range_in`
    CopyFileRangeIn = 56 { fh_in: U64, off_in: U64, nodeid_out: U64, fh_out: U64, off_out: U64,
        len: U64, flags: U64 }
    /// `struct fuse_dirent` without the name
    Dirent = 24 { ino: U64, off: U64, namelen: U32, kind: U32 }
}

/// Numbers of requests, `enum fuse_opcode`.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
}

/// Flags of INIT.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
}

/// Flags of OPEN's answer.
pub mod open {
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
}

/// Which fields of SETATTR are meant.
pub mod setattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// Flag of GETATTR: `fh` is meant, not the node.
pub const GETATTR_FH: u32 = 1;
/// Flag of FSYNC: the data, not the attributes.
pub const FSYNC_DATA: u32 = 1;
