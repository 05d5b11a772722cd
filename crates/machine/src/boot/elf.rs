//! ELF64 kernels (System V ABI, chapter 4 and 5; PVH note: xen/include/public/elfnote.h).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use engine::{GuestMemory, PAGE_SIZE};
use rustix::fs::seek;
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Entry, KernelError, Loaded, check_room};

pub(super) const MAGIC: &[u8; 4] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
/// More program headers than any kernel has.
const MAX_SEGMENTS: u16 = 64;
/// Longest note segment that is searched.
const MAX_NOTES: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

const _: () = assert!(size_of::<FileHeader>() == 64 && size_of::<ProgramHeader>() == 56);

/// Loads the segments of `image` at their physical addresses.
pub(super) fn load<R>(memory: &GuestMemory, image: &mut R) -> Result<Loaded, KernelError>
where
    R: Read + Seek + ReadVolatile,
{
    load_with(memory, image, &mut read_segment)
}

/// Like [`load`], but maps the pages of a file that never changes instead of reading them, where the guest's
/// memory allows it. Holes of the file stay anonymous memory, which is cheaper to write to.
pub(super) fn map(memory: &GuestMemory, image: &mut File) -> Result<Loaded, KernelError> {
    load_with(memory, image, &mut map_segment)
}

/// Puts what the image holds of a segment at its address of guest memory; both are known to be there.
type Put<'p, R> =
    &'p mut dyn FnMut(&GuestMemory, &mut R, &ProgramHeader) -> Result<(), KernelError>;

fn load_with<R: Read + Seek>(
    memory: &GuestMemory,
    image: &mut R,
    put: Put<'_, R>,
) -> Result<Loaded, KernelError> {
    let length = image.seek(SeekFrom::End(0))?;
    let header: FileHeader = read_at(image, 0, length)?;
    check_header(&header)?;
    let mut end = 0;
    let mut pvh = None;
    let mut loaded = 0;
    let mut segments = Vec::new();
    for index in 0..u64::from(header.phnum.get()) {
        let offset = header.phoff.get().checked_add(index * size_of::<ProgramHeader>() as u64);
        let offset =
            offset.ok_or(KernelError::Damaged("the program headers lie outside of the file"))?;
        segments.push(read_at::<ProgramHeader, R>(image, offset, length)?);
    }
    for segment in &segments {
        match segment.kind.get() {
            PT_LOAD => {
                end = end.max(load_segment(memory, image, length, segment, put)?);
                loaded += 1;
            }
            PT_NOTE => pvh = pvh.or(pvh_entry(image, length, segment)?),
            _ => {}
        }
    }
    if loaded == 0 {
        return Err(KernelError::Damaged("it has no segment to load"));
    }
    let entry = match pvh {
        Some(address) => Entry::Pvh { address },
        None => Entry::Linux64 { address: header.entry.get() },
    };
    Ok(Loaded { entry, end, header: None })
}

fn check_header(header: &FileHeader) -> Result<(), KernelError> {
    if header.ident[4] != CLASS_64 {
        return Err(KernelError::Architecture("it is a 32-bit ELF file, x86-64 is needed"));
    }
    if header.ident[5] != LITTLE_ENDIAN || header.machine.get() != MACHINE_X86_64 {
        return Err(KernelError::Architecture(
            "it is an ELF file for another processor, x86-64 is needed",
        ));
    }
    if usize::from(header.phentsize.get()) != size_of::<ProgramHeader>()
        || header.phnum.get() > MAX_SEGMENTS
    {
        return Err(KernelError::Damaged("its program headers have another size or are too many"));
    }
    Ok(())
}

/// Loads one segment; returns the byte after it. Guest memory is fresh, so what the file does not hold
/// is zero already.
fn load_segment<R: Read + Seek>(
    memory: &GuestMemory,
    image: &mut R,
    length: u64,
    segment: &ProgramHeader,
    put: Put<'_, R>,
) -> Result<u64, KernelError> {
    let (start, file_size) = (segment.paddr.get(), segment.filesz.get());
    let in_file = segment.offset.get().checked_add(file_size).is_some_and(|end| end <= length);
    if !in_file || file_size > segment.memsz.get() {
        return Err(KernelError::Damaged("a segment lies outside of the file"));
    }
    let end = start
        .checked_add(segment.memsz.get())
        .ok_or(KernelError::Damaged("a segment lies outside of memory"))?;
    check_room(memory, start, end)?;
    put(memory, image, segment)?;
    Ok(end)
}

fn read_segment<R>(
    memory: &GuestMemory,
    image: &mut R,
    segment: &ProgramHeader,
) -> Result<(), KernelError>
where
    R: Read + Seek + ReadVolatile,
{
    read(memory, image, segment.offset.get(), segment.paddr.get(), segment.filesz.get())
}

fn read<R>(
    memory: &GuestMemory,
    image: &mut R,
    offset: u64,
    start: u64,
    length: u64,
) -> Result<(), KernelError>
where
    R: Read + Seek + ReadVolatile,
{
    image.seek(SeekFrom::Start(offset))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), image, length as usize)
        .map_err(|error| KernelError::Read(io::Error::other(error)))
}

/// Maps the whole pages that hold data, and reads what is left over at the ends, and the code: what a segment that
/// can be executed has before its first hole.
fn map_segment(
    memory: &GuestMemory,
    image: &mut File,
    segment: &ProgramHeader,
) -> Result<(), KernelError> {
    let (offset, start) = (segment.offset.get(), segment.paddr.get());
    let congruent = offset % PAGE_SIZE == start % PAGE_SIZE;
    let Some(region) = memory.find_region(GuestAddress(start)).filter(|_| congruent) else {
        return read_segment(memory, image, segment);
    };
    let end = offset + segment.filesz.get();
    // Linux rewrites nearly all of its code while it boots (alternatives, ftrace): each page would be mapped, then
    // copied, with two or three faults of the guest. Read, it can be in huge pages.
    let mut is_code = segment.flags.get() & PF_X != 0;
    let mut at = offset;
    while at < end {
        let data = match seek(&*image, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // Nothing but a hole is left.
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        let hole = seek(&*image, rustix::fs::SeekFrom::Hole(data)).unwrap_or(end).min(end);
        let pages = data.next_multiple_of(PAGE_SIZE)..hole & !(PAGE_SIZE - 1);
        let guest = |at: u64| start + (at - offset);
        let in_region = |at: u64| guest(at) - region.start_addr().0;
        let mapped = !std::mem::take(&mut is_code)
            && pages.start < pages.end
            && devices::memory::map_file(
                region,
                in_region(pages.start)..in_region(pages.end),
                image,
                pages.start,
            )
            .is_ok();
        if mapped {
            read(memory, image, data, guest(data), pages.start - data)?;
            read(memory, image, pages.end, guest(pages.end), hole - pages.end)?;
        } else {
            read(memory, image, data, guest(data), hole - data)?;
        }
        at = hole;
    }
    Ok(())
}

/// The 32-bit entry of the PVH boot ABI, if a note names one.
fn pvh_entry<R: Read + Seek>(
    image: &mut R,
    length: u64,
    segment: &ProgramHeader,
) -> Result<Option<u64>, KernelError> {
    let (offset, size) = (segment.offset.get(), segment.filesz.get());
    if size > MAX_NOTES || offset.checked_add(size).is_none_or(|end| end > length) {
        return Ok(None);
    }
    let mut notes = vec![0; size as usize];
    image.seek(SeekFrom::Start(offset))?;
    image.read_exact(&mut notes)?;
    Ok(find_pvh_note(&notes))
}

fn find_pvh_note(mut notes: &[u8]) -> Option<u64> {
    while let [a, b, c, d, e, f, g, h, i, j, k, l, rest @ ..] = notes {
        let name_size = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let value_size = u32::from_le_bytes([*e, *f, *g, *h]) as usize;
        let kind = u32::from_le_bytes([*i, *j, *k, *l]);
        let name = rest.get(..name_size)?;
        let value_at = name_size.checked_next_multiple_of(4)?;
        let value_end = value_at.checked_add(value_size)?;
        let value = rest.get(value_at..value_end)?;
        if name == b"Xen\0" && kind == PHYS32_ENTRY {
            let mut address = [0; 8];
            let count = value.len().min(8);
            address[..count].copy_from_slice(&value[..count]);
            // A 32-bit entry, whatever the width of the note.
            return Some(u64::from_le_bytes(address) & 0xffff_ffff);
        }
        notes = rest.get(value_end.checked_next_multiple_of(4)?..)?;
    }
    None
}

fn read_at<T, R>(image: &mut R, offset: u64, length: u64) -> Result<T, KernelError>
where
    T: FromBytes + IntoBytes,
    R: Read + Seek,
{
    if offset.checked_add(size_of::<T>() as u64).is_none_or(|end| end > length) {
        return Err(KernelError::Damaged("a header lies outside of the file"));
    }
    image.seek(SeekFrom::Start(offset))?;
    let mut value = T::new_zeroed();
    image.read_exact(value.as_mut_bytes())?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap()
    }

    /// An ELF file with one loaded segment and, if wanted, a PVH note.
    fn kernel(paddr: u64, code: &[u8], note: bool) -> Vec<u8> {
        let notes = [
            &4_u32.to_le_bytes()[..],
            &8_u32.to_le_bytes(),
            &18_u32.to_le_bytes(),
            b"Xen\0",
            &0x100_1000_u64.to_le_bytes(),
        ]
        .concat();
        let count: u16 = if note { 2 } else { 1 };
        let data = 64 + 56 * u64::from(count);
        let header = FileHeader {
            ident: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
            kind: 2.into(),
            machine: MACHINE_X86_64.into(),
            version: 1.into(),
            entry: paddr.into(),
            phoff: 64.into(),
            shoff: 0.into(),
            flags: 0.into(),
            ehsize: 64.into(),
            phentsize: 56.into(),
            phnum: count.into(),
            shentsize: 0.into(),
            shnum: 0.into(),
            shstrndx: 0.into(),
        };
        let segment = |kind: u32, offset: u64, size: usize, memory: u64| ProgramHeader {
            kind: kind.into(),
            flags: 7.into(),
            offset: offset.into(),
            vaddr: paddr.into(),
            paddr: paddr.into(),
            filesz: (size as u64).into(),
            memsz: memory.into(),
            align: 4096.into(),
        };
        let mut file = header.as_bytes().to_vec();
        file.extend_from_slice(segment(PT_LOAD, data, code.len(), 0x10_0000).as_bytes());
        if note {
            file.extend_from_slice(
                segment(PT_NOTE, data + code.len() as u64, notes.len(), 0).as_bytes(),
            );
        }
        file.extend_from_slice(code);
        file.extend_from_slice(&notes);
        file
    }

    #[test]
    fn segments_go_to_their_physical_addresses() {
        let memory = memory();
        let loaded = load(&memory, &mut Cursor::new(kernel(16 << 20, b"code", false))).unwrap();
        assert_eq!(loaded.entry, Entry::Linux64 { address: 16 << 20 });
        assert_eq!(loaded.end, (16 << 20) + 0x10_0000);
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(16 << 20)).unwrap(), *b"code");
    }

    #[test]
    fn a_mapped_kernel_is_the_same_as_one_that_was_read() {
        let code: Vec<u8> = (0..0x5123_u32).map(|at| (at % 251) as u8).collect();
        let bytes = kernel(16 << 20, &code, true);
        // The code starts at page offset 0xb0 of the file: once congruent with its address, once not.
        for start in [(16 << 20) + 176, 16 << 20] {
            let mut bytes = bytes.clone();
            bytes[64 + 24..64 + 32].copy_from_slice(&u64::to_le_bytes(start));
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let (read, mapped) = (memory(), memory());
            assert_eq!(
                load(&read, &mut Cursor::new(bytes)).unwrap().end,
                map(&mapped, &mut file).unwrap().end
            );
            let content = |memory: &GuestMemory| {
                let mut content = vec![0; 0x8000];
                memory.read_slice(&mut content, GuestAddress(start & !0xfff)).unwrap();
                content
            };
            assert!(content(&read) == content(&mapped));
            assert_eq!(content(&mapped)[(start & 0xfff) as usize..][..code.len()], code);
        }
    }

    #[test]
    fn a_pvh_note_decides_the_entry() {
        let loaded = load(&memory(), &mut Cursor::new(kernel(16 << 20, b"code", true))).unwrap();
        assert_eq!(loaded.entry, Entry::Pvh { address: 0x100_1000 });
    }

    #[test]
    fn a_kernel_that_does_not_fit_says_what_it_needs() {
        let result = load(&memory(), &mut Cursor::new(kernel(512 << 20, b"code", false)));
        assert!(
            matches!(result, Err(KernelError::OutOfMemory { start, .. }) if start == 512 << 20)
        );
        let result = load(&memory(), &mut Cursor::new(kernel(0x1000, b"code", false)));
        assert!(
            matches!(result, Err(KernelError::OutOfMemory { .. })),
            "the first MiB is not for kernels"
        );
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_survived() {
        let file = kernel(16 << 20, b"code", true);
        let memory = memory();
        for length in 0..file.len() - 1 {
            let _ = load(&memory, &mut Cursor::new(&file[..length]));
        }
        assert!(load(&memory, &mut Cursor::new(&file[..60])).is_err());
        for position in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[position] ^= 1 << bit;
                let _ = load(&memory, &mut Cursor::new(damaged));
            }
        }
    }

    #[test]
    fn a_kernel_for_another_processor_is_named() {
        let mut file = kernel(16 << 20, b"code", false);
        file[18] = 183;
        assert!(matches!(
            load(&memory(), &mut Cursor::new(file)),
            Err(KernelError::Architecture(_))
        ));
    }
}
