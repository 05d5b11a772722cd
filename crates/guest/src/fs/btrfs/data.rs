//! The content of files: extents, packed or not.

use std::io::Read;

use super::tree::Key;
use super::{Btrfs, Id, damaged};
use crate::volume::at;
use crate::{Result, lzo};

const EXTENT_DATA: u8 = 108;
const INLINE: u8 = 0;
const PREALLOCATED: u8 = 2;
/// Longest packed extent: btrfs packs 128 KiB at a time.
const MAX_PACKED: u64 = 1 << 20;

impl Btrfs {
    /// The first `length` bytes of a file, zeroes where it has holes.
    pub(super) fn content_of(&self, (tree, inode): Id, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).map_err(|_| damaged("a length"))?;
        let mut content = vec![0; length];
        if let Some(extents) =
            self.changes.get(&tree).and_then(|changes| changes.extents.get(&inode))
        {
            for (&start, item) in extents.range(..length as u64) {
                self.extent(item, &mut content[start as usize..])?;
            }
            return Ok(content);
        }
        let root = self.subvolume(tree)?;
        self.each_item(root, Key::new(inode, EXTENT_DATA, 0), &mut |key, item| {
            if (key.object, key.kind) != (inode, EXTENT_DATA) {
                return Ok(false);
            }
            let Some(start) = usize::try_from(key.offset).ok().filter(|&start| start < length)
            else {
                return Ok(false);
            };
            self.extent(item, &mut content[start..]).map(|()| true)
        })?;
        Ok(content)
    }

    /// Puts one extent at the start of `target`, as far as that goes.
    fn extent(&self, item: &[u8], target: &mut [u8]) -> Result<()> {
        let bad = || damaged("an extent");
        let word = |offset| at::le64(item, offset).ok_or_else(bad);
        let (packing, kind) = at::u8(item, 16).zip(at::u8(item, 20)).ok_or_else(bad)?;
        let unpacked = word(8)?;
        if kind == INLINE {
            let bytes = item.get(21..).ok_or_else(bad)?;
            let bytes = self.unpack(packing, bytes, unpacked)?;
            let count = bytes.len().min(target.len());
            target[..count].copy_from_slice(&bytes[..count]);
            return Ok(());
        }
        let (address, on_disk, skip, count) = (word(21)?, word(29)?, word(37)?, word(45)?);
        // A hole, or space that was only set aside.
        if address == 0 || kind == PREALLOCATED {
            return Ok(());
        }
        let count = count.min(target.len() as u64) as usize;
        if packing == 0 {
            let from = address.checked_add(skip).ok_or_else(bad)?;
            return self.read_at(&mut target[..count], from);
        }
        if on_disk > MAX_PACKED {
            return Err(bad());
        }
        let mut packed = vec![0; on_disk as usize];
        self.read_at(&mut packed, address)?;
        let bytes = self.unpack(packing, &packed, unpacked)?;
        let from = usize::try_from(skip).ok().and_then(|skip| bytes.get(skip..));
        let bytes = from.and_then(|from| from.get(..count)).ok_or_else(bad)?;
        target[..count].copy_from_slice(bytes);
        Ok(())
    }

    fn unpack(&self, packing: u8, packed: &[u8], length: u64) -> Result<Vec<u8>> {
        let bad = || damaged("a packed extent");
        if length > MAX_PACKED {
            return Err(bad());
        }
        let mut bytes = match packing {
            0 => packed.to_vec(),
            1 => {
                let mut bytes = Vec::new();
                let reader = flate2::read::ZlibDecoder::new(packed);
                reader.take(length).read_to_end(&mut bytes).map_err(|_| bad())?;
                bytes
            }
            2 => self.unpack_lzo(packed, length as usize).ok_or_else(bad)?,
            3 => {
                // What is behind the frame fills up the sector.
                let frame =
                    zstd::zstd_safe::find_frame_compressed_size(packed).map_err(|_| bad())?;
                let mut bytes = Vec::new();
                let frame = packed.get(..frame).ok_or_else(bad)?;
                let reader = zstd::stream::read::Decoder::new(frame).map_err(|_| bad())?;
                reader.take(length).read_to_end(&mut bytes).map_err(|_| bad())?;
                bytes
            }
            _ => return Err(bad()),
        };
        // The end of a file is cut off at its last byte, the extent at its last sector.
        if bytes.len() as u64 > length {
            return Err(bad());
        }
        bytes.resize(length as usize, 0);
        Ok(bytes)
    }

    /// Segments of a sector each behind their lengths, which do not cross the sectors of the packed bytes.
    fn unpack_lzo(&self, packed: &[u8], length: usize) -> Option<Vec<u8>> {
        let total = (at::le32(packed, 0)? as usize).min(packed.len());
        let mut bytes = Vec::new();
        let mut place = 4;
        while place + 4 <= total && bytes.len() < length {
            if self.sector - place % self.sector < 4 {
                place = place.next_multiple_of(self.sector);
                continue;
            }
            let size = at::le32(packed, place)? as usize;
            let segment = packed.get(place + 4..)?.get(..size)?;
            bytes.extend(lzo::unpack(segment, self.sector)?);
            place += 4 + size;
        }
        Some(bytes)
    }
}
