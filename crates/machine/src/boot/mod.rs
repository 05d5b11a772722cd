//! Boot protocols: puts a kernel, its initrd and its command line into guest memory and says how the first
//! processor enters it.

mod bzimage;
mod elf;
mod linux;
mod payload;
mod pvh;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use engine::{GuestMemory, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

pub use self::bzimage::BzImage;
pub use self::payload::Compression;
use crate::layout::{COMMAND_LINE, COMMAND_LINE_SIZE};
use crate::{Error, Result};

/// A kernel with what it is given.
#[derive(Clone, Debug)]
pub struct BootPlan {
    /// An ELF vmlinux or a bzImage.
    pub kernel: PathBuf,
    /// The kernel's file never changes as long as it exists: its pages are mapped instead of read, and shared
    /// by all guests.
    pub kernel_is_immutable: bool,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub cmdline: String,
}

/// How the first processor enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, EBX pointing to `hvm_start_info` (Xen's PVH boot ABI).
    Pvh {
        /// First instruction.
        address: u64,
    },
    /// 64-bit mode with identity paging, RSI pointing to `boot_params` (Linux x86 boot protocol).
    Linux64 {
        /// First instruction.
        address: u64,
    },
}

/// Why a file cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither ELF nor bzImage.
    #[error(
        "It is not a kernel: neither an ELF vmlinux nor a bzImage (it starts with {start:02x?})"
    )]
    NotAKernel {
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// A kernel, but not for this machine.
    #[error("It is a kernel for another architecture: {0}")]
    Architecture(&'static str),
    /// Headers that contradict themselves or the file.
    #[error("The file is damaged: {0}")]
    Damaged(&'static str),
    /// The kernel's payload cannot be unpacked.
    #[error("Its {compression} payload cannot be unpacked")]
    Payload {
        /// How it is compressed.
        compression: Compression,
        /// What the decompressor said.
        #[source]
        source: io::Error,
    },
    /// A segment lies where the guest has no memory.
    #[error(
        "It needs memory from {start:#x} to {end:#x}, which the guest does not have: give it more memory"
    )]
    OutOfMemory {
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
    },
    /// The file cannot be read.
    #[error("It cannot be read")]
    Read(#[from] io::Error),
}

/// Loads everything that `plan` names and returns the entry. `rsdp` is the address of the ACPI root.
pub fn load(memory: &GuestMemory, plan: &BootPlan, rsdp: u64) -> Result<Entry> {
    let loaded = load_kernel(memory, &plan.kernel, plan.kernel_is_immutable)
        .map_err(|source| Error::Kernel { path: plan.kernel.clone(), source })?;
    load_command_line(memory, &plan.cmdline)?;
    let initrd =
        plan.initrd.as_deref().map(|path| load_initrd(memory, path, loaded.end)).transpose()?;
    match loaded.entry {
        Entry::Pvh { .. } => pvh::write_start_info(memory, rsdp, initrd)?,
        Entry::Linux64 { .. } => {
            linux::write_boot_params(memory, rsdp, initrd, loaded.header.as_deref())?
        }
    }
    Ok(loaded.entry)
}

/// Unpacks the kernel at `path` if it is a bzImage, so that it can be kept and loaded without this work;
/// `None` where it is an ELF file already, or cannot be unpacked here.
pub fn unpack(path: &Path) -> std::result::Result<Option<Vec<u8>>, KernelError> {
    let mut file = File::open(path)?;
    if is_elf(&mut file)? {
        return Ok(None);
    }
    let image = BzImage::read(&mut file)?;
    Ok(image.unpack(&mut file).ok().filter(|bytes| bytes.starts_with(elf::MAGIC)))
}

/// A kernel in guest memory.
struct Loaded {
    entry: Entry,
    /// Byte after the memory that it needs.
    end: u64,
    /// Setup header of a bzImage that is entered itself.
    header: Option<Vec<u8>>,
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug)]
struct Initrd {
    address: u64,
    size: u64,
}

fn load_kernel(
    memory: &GuestMemory,
    path: &Path,
    immutable: bool,
) -> std::result::Result<Loaded, KernelError> {
    let mut file = File::open(path)?;
    if is_elf(&mut file)? {
        return if immutable { elf::map(memory, &mut file) } else { elf::load(memory, &mut file) };
    }
    let image = BzImage::read(&mut file)?;
    match image.unpack(&mut file) {
        Ok(bytes) if bytes.starts_with(elf::MAGIC) => elf::load(memory, &mut Cursor::new(bytes)),
        // A payload that only the kernel itself understands: let it.
        Ok(_) | Err(KernelError::Payload { .. }) if image.has_64_bit_entry() => {
            image.load(memory, &mut file)
        }
        Ok(_) => Err(KernelError::Damaged("the payload is not an ELF file")),
        Err(error) => Err(error),
    }
}

/// Loads a kernel from bytes as they may come from anywhere: for fuzzing.
pub fn load_kernel_bytes(
    memory: &GuestMemory,
    bytes: &[u8],
) -> std::result::Result<Entry, KernelError> {
    if bytes.starts_with(elf::MAGIC) {
        return elf::load(memory, &mut Cursor::new(bytes)).map(|loaded| loaded.entry);
    }
    let mut cursor = Cursor::new(bytes);
    let image = BzImage::read(&mut cursor)?;
    match image.unpack(&mut cursor) {
        Ok(unpacked) => elf::load(memory, &mut Cursor::new(unpacked)).map(|loaded| loaded.entry),
        Err(_) => image.load(memory, &mut cursor).map(|loaded| loaded.entry),
    }
}

fn is_elf(file: &mut File) -> io::Result<bool> {
    let mut magic = [0; 4];
    let is_elf = match file.read_exact(&mut magic) {
        Ok(()) => magic == *elf::MAGIC,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(0))?;
    Ok(is_elf)
}

fn load_command_line(memory: &GuestMemory, cmdline: &str) -> Result<()> {
    // A zero byte would end it early; nobody means that.
    let text = CString::new(cmdline.replace('\0', " ")).unwrap_or_default();
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > COMMAND_LINE_SIZE {
        return Err(Error::CommandLineTooLong {
            length: bytes.len() - 1,
            maximum: COMMAND_LINE_SIZE - 1,
        });
    }
    memory.write_slice(bytes, GuestAddress(COMMAND_LINE))?;
    Ok(())
}

/// Puts the initrd at the end of low memory, as far from the kernel as it can be.
fn load_initrd(memory: &GuestMemory, path: &Path, kernel_end: u64) -> Result<Initrd> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let low_end = memory.iter().next().map_or(0, |region| region.start_addr().0 + region.len());
    let room = low_end.saturating_sub(kernel_end.next_multiple_of(PAGE_SIZE));
    let Some(address) =
        low_end.checked_sub(size).filter(|_| size <= room).map(|start| start & !(PAGE_SIZE - 1))
    else {
        return Err(Error::InitrdTooLarge { size, room });
    };
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| read(io::Error::other(error)))?;
    Ok(Initrd { address, size })
}

/// Whether the guest has RAM from `start` to `end`, above the first MiB.
fn check_room(memory: &GuestMemory, start: u64, end: u64) -> std::result::Result<(), KernelError> {
    let size =
        end.checked_sub(start).ok_or(KernelError::Damaged("a segment ends before it starts"))?;
    let has_room = start >= crate::layout::HIGH_MEMORY
        && usize::try_from(size).is_ok_and(|size| memory.check_range(GuestAddress(start), size));
    if has_room { Ok(()) } else { Err(KernelError::OutOfMemory { start, end }) }
}
