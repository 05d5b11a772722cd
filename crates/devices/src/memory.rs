//! Parts of guest memory that are files of the host.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use engine::{GuestRegion, PAGE_SIZE};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use vm_memory::GuestMemoryRegion;

/// Replaces `range` of an anonymous `region`, in bytes from its start, by the file's content from `offset` on:
/// nothing is read before the guest touches it, and what it does not write is shared by all guests. What the guest
/// writes stays its own.
///
/// The file must not change as long as the guest lives: it would see that, and a file cut short would end the
/// process.
///
/// # Errors
///
/// The range or the offset is not made of whole pages or lies outside, the region is not anonymous, or the host
/// refuses.
pub fn map_file(
    region: &GuestRegion,
    range: Range<u64>,
    file: &File,
    offset: u64,
) -> io::Result<()> {
    let whole_pages =
        [range.start, range.end, offset].iter().all(|at| at.is_multiple_of(PAGE_SIZE));
    let inside = range.start < range.end && range.end <= region.len();
    let in_file = offset.checked_add(range.end.saturating_sub(range.start)).is_some_and(|end| {
        file.metadata().is_ok_and(|metadata| end <= metadata.len().next_multiple_of(PAGE_SIZE))
    });
    if !whole_pages || !inside || !in_file || region.file_offset().is_some() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let at = region.as_ptr().wrapping_add(range.start as usize);
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the pages from `at` on lie within the region's own mapping, as checked above, and stay mapped,
    // readable and writable. Guest memory is accessed by volatile operations only, so that nobody relies on its
    // content, and the region unmaps them together with its others.
    unsafe {
        mmap(at.cast(), (range.end - range.start) as usize, protection, flags, file, offset)
    }?;
    Ok(())
}

/// Gives back the pages of the program's own code that were only needed to get here. They are the file's, so that what
/// is needed again comes back from the host's page cache.
///
/// # Errors
///
/// `/proc/self/maps` cannot be read, or the host refuses.
pub fn forget_code() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for line in maps.lines() {
        // proc_pid_maps(5): the range, its rights, offset, device, inode, name.
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[range, rights, offset, _, _, name] = &fields[..] else { continue };
        // The segment with the file's own header holds constants. Other read-only ones may have been relocated.
        if rights != "r-xp" && (rights, offset) != ("r--p", "00000000") {
            continue;
        }
        let bounds = range.split_once('-').and_then(|(start, end)| {
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        });
        if let Some((start, end)) = bounds
            && Path::new(name) == program
        {
            let at = std::ptr::without_provenance_mut(start);
            // SAFETY: what was never writable is the same in memory as in the file, from which it is read again.
            unsafe { madvise(at, end - start, Advice::LinuxDontNeed) }?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

    use super::*;

    #[test]
    fn the_guest_sees_the_file_and_writes_for_itself_only() {
        let region = GuestRegion::from_range(GuestAddress(0), 0x10000, None).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 0x3000]).unwrap();
        map_file(&region, 0x2000..0x4000, &file, 0x1000).unwrap();
        let at = |address| region.read_obj::<u8>(MemoryRegionAddress(address)).unwrap();
        assert_eq!([at(0x1fff), at(0x2000), at(0x3fff), at(0x4000)], [0, 7, 7, 0]);
        region.write_obj(9_u8, MemoryRegionAddress(0x2000)).unwrap();
        assert_eq!(at(0x2000), 9);
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0x1000).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn the_program_goes_on_after_it_gave_its_code_back() {
        forget_code().unwrap();
        let text = std::hint::black_box("12").parse::<u32>().map(|number| format!("{number:>4}"));
        assert_eq!(text.as_deref(), Ok("  12"));
    }

    #[test]
    fn crooked_ranges_are_refused() {
        let region = GuestRegion::from_range(GuestAddress(0), 0x10000, None).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 0x3000]).unwrap();
        for (range, offset) in [
            (0x2001..0x4000, 0),
            (0x2000..0x2000, 0),
            (0xf000..0x11000, 0),
            (0x2000..0x4000, 1),
            (0x2000..0x4000, 0x2000),
            (0x2000..0x4000, u64::MAX - 0xfff),
        ] {
            assert!(
                map_file(&region, range.clone(), &file, offset).is_err(),
                "{range:x?} {offset:x}"
            );
        }
    }
}
