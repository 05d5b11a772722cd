//! Linux bzImage files (Documentation/arch/x86/boot.rst of the kernel).

use std::io::{Read, Seek, SeekFrom};

use engine::GuestMemory;
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use super::payload::{self, Compression};
use super::{Entry, KernelError, Loaded, check_room};
use crate::layout::HIGH_MEMORY;

/// Offset of the setup header, in the file and in `boot_params`.
pub(super) const HEADER: usize = 0x1f1;
/// Where the setup header ends: one past the longest known.
const HEADER_READ: usize = 0x2d0;
/// From this version on the payload's place is told.
const VERSION_PAYLOAD: u16 = 0x0208;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry lies here in the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// Larger than any kernel, packed or not.
const MAX_SIZE: u64 = 512 << 20;

/// The setup header of a bzImage.
#[derive(Clone, Debug)]
pub struct BzImage {
    /// The first bytes of the file, with the setup header in them.
    head: Vec<u8>,
    protected_mode: u64,
    length: u64,
}

impl BzImage {
    /// Reads and checks the setup header.
    pub fn read<R: Read + Seek>(file: &mut R) -> Result<Self, KernelError> {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let mut head = Vec::with_capacity(HEADER_READ);
        file.take(HEADER_READ as u64).read_to_end(&mut head)?;
        if head.len() < HEADER_READ
            || head[0x1fe..0x200] != [0x55, 0xaa]
            || &head[0x202..0x206] != b"HdrS"
        {
            head.truncate(8);
            return Err(KernelError::NotAKernel { start: head });
        }
        // 0 means 4, for the sake of very old kernels.
        let sectors = match head[HEADER] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let image = Self { head, protected_mode: (sectors + 1) * 512, length };
        if length > MAX_SIZE || image.protected_mode >= length {
            return Err(KernelError::Damaged("the protected-mode part lies outside of the file"));
        }
        Ok(image)
    }

    /// Whether the kernel can be entered in 64-bit mode without being unpacked here.
    pub fn has_64_bit_entry(&self) -> bool {
        self.u16(0x206) >= 0x020c && self.u16(0x236) & XLF_KERNEL_64 != 0
    }

    /// The unpacked kernel, which is an ELF file.
    pub fn unpack<R: Read + Seek>(&self, file: &mut R) -> Result<Vec<u8>, KernelError> {
        if self.u16(0x206) < VERSION_PAYLOAD {
            return Err(KernelError::Damaged(
                "its boot protocol is older than 2.08 and does not tell where the payload is",
            ));
        }
        let start = self.protected_mode + u64::from(self.u32(0x248));
        let size = u64::from(self.u32(0x24c));
        if size < 8 || start.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(KernelError::Damaged("the payload lies outside of the file"));
        }
        file.seek(SeekFrom::Start(start))?;
        let mut packed = vec![0; size as usize];
        file.read_exact(&mut packed)?;
        // The build appends the unpacked size to what the compressor wrote.
        let tail = packed.split_off(packed.len() - 4);
        let unpacked = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
        if u64::from(unpacked) > MAX_SIZE {
            return Err(KernelError::Damaged("the unpacked kernel would be larger than 512 MiB"));
        }
        let compression = Compression::of(&packed)
            .ok_or(KernelError::Damaged("the payload's compression is not known"))?;
        if compression == Compression::Gzip {
            // Its own trailer is the size that the others have appended.
            packed.extend_from_slice(&tail);
        }
        payload::unpack(compression, &packed, unpacked as usize)
            .map_err(|source| KernelError::Payload { compression, source })
    }

    /// Loads the protected-mode part as it is, to be entered at its 64-bit entry.
    pub(super) fn load<R>(&self, memory: &GuestMemory, file: &mut R) -> Result<Loaded, KernelError>
    where
        R: Read + Seek + ReadVolatile,
    {
        if !self.has_64_bit_entry() {
            return Err(KernelError::Architecture("it has no 64-bit entry"));
        }
        let size = self.length - self.protected_mode;
        let preferred = self.u64(0x258).max(HIGH_MEMORY);
        let needed = u64::from(self.u32(0x260)).max(size);
        let end = preferred
            .checked_add(needed)
            .ok_or(KernelError::Damaged("it lies outside of memory"))?;
        check_room(memory, preferred, end)?;
        file.seek(SeekFrom::Start(self.protected_mode))?;
        memory
            .read_exact_volatile_from(GuestAddress(preferred), file, size as usize)
            .map_err(|error| KernelError::Read(std::io::Error::other(error)))?;
        // The header ends where the jump at 0x200 says (byte 0x201 counts from 0x202).
        let header_end = (0x202 + usize::from(self.head[0x201])).min(HEADER_READ);
        Ok(Loaded {
            entry: Entry::Linux64 { address: preferred + ENTRY_64 },
            end,
            header: Some(self.head[HEADER..header_end.max(HEADER)].to_vec()),
        })
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.head[at], self.head[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}
