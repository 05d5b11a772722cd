//! RAID of LVM: images, and superblocks beside them that tell which of those can be read.

use std::sync::Arc;

use super::text::Section;
use super::{Group, Opened, SECTOR};
use crate::layers::raid::{Layout, Raid};
use crate::volume::{Volume, at, read_up_to};

/// Most images of a volume.
const MAX_IMAGES: usize = 1024;

/// What a superblock says (drivers/md/dm-raid.c, `struct dm_raid_superblock`).
struct Superblock {
    events: u64,
    /// Bits of images that fell out, by their numbers.
    failed: Vec<u64>,
    /// The image has all of its data.
    is_recovered: bool,
    /// All images have been made alike once.
    is_synced: bool,
}

impl Superblock {
    fn of(volume: &dyn Volume) -> Option<Self> {
        const MAGIC: &[u8] = b"DmRd";
        /// Bits of images behind the 64th.
        const MORE_FAILED: std::ops::Range<usize> = 120..144;
        let bytes = read_up_to(volume, 0, SECTOR as usize).ok()?;
        let word = |offset| at::le64(&bytes, offset);
        let more = MORE_FAILED.step_by(8).map(|offset| word(offset).unwrap_or(0));
        bytes.starts_with(MAGIC).then_some(())?;
        Some(Self {
            events: word(16)?,
            failed: std::iter::once(word(24)?).chain(more).collect(),
            is_recovered: word(32)? == u64::MAX,
            is_synced: word(40)? == u64::MAX,
        })
    }

    fn has_failed(&self, image: usize) -> bool {
        self.failed.get(image / 64).is_some_and(|bits| bits >> (image % 64) & 1 != 0)
    }
}

impl Group<'_> {
    /// A volume each of whose images is all of it: the first that can be read.
    pub(super) fn mirror(&self, volumes: &Section, segment: &Section, depth: u32) -> Opened {
        first_of(self.images(volumes, segment, depth).into_iter())
    }

    /// A volume with parity or copies in stripes. A missing image may do no harm.
    pub(super) fn raid(
        &self,
        volumes: &Section,
        segment: &Section,
        layout: Layout,
        depth: u32,
    ) -> Opened {
        let bad = || "its metadata is damaged".to_owned();
        if segment.number("reshape_count").is_some_and(|count| count > 0) {
            return Err("it is being given another shape".into());
        }
        let images = self.images(volumes, segment, depth).into_iter();
        let images: Vec<_> = images.map(Result::ok).collect();
        let size = images.iter().flatten().map(|image| image.len()).min().unwrap_or(0);
        let stripe = segment.number("stripe_size").and_then(|size| size.checked_mul(SECTOR));
        Ok(Arc::new(Raid::new(images, layout, stripe.ok_or_else(bad)?, size)?))
    }

    /// The images of a segment, or why they cannot be read.
    fn images(&self, volumes: &Section, segment: &Section, depth: u32) -> Vec<Opened> {
        let mut images = Vec::new();
        let mut superblock = None;
        // Each has a volume with its superblock before it.
        for name in segment.texts("raids").take(2 * MAX_IMAGES) {
            let volume = self.named(volumes, name, depth);
            if name.contains("_rmeta_") {
                superblock = volume.ok().and_then(|volume| Superblock::of(&*volume));
            } else {
                images.push((name, superblock.take(), volume));
            }
        }
        let superblocks = || images.iter().map(|(_, superblock, _)| superblock);
        // One that fell out does not know it.
        let newest = superblocks().flatten().max_by_key(|superblock| superblock.events);
        let is_current: Vec<bool> = superblocks()
            .enumerate()
            .map(|(image, superblock)| match (superblock, newest) {
                (Some(own), Some(newest)) => own.is_recovered && !newest.has_failed(image),
                (_, newest) => newest.is_none(),
            })
            .collect();
        if newest.is_some_and(|newest| !newest.is_synced) {
            self.notes.borrow_mut().push("it was not synchronised yet".into());
        }
        let checked = |((name, _, volume), is_current): ((&str, _, Opened), bool)| {
            if volume.is_err() || is_current {
                return volume;
            }
            let note = format!("its part {name} is not up to date and is not read");
            self.notes.borrow_mut().push(note);
            Err("no part that is there is up to date".into())
        };
        images.into_iter().zip(is_current).map(checked).collect()
    }
}

/// The first of these that can be read.
pub fn first_of(images: impl Iterator<Item = Opened>) -> Opened {
    images.reduce(Result::or).unwrap_or_else(|| Err("none of its mirrors is there".into()))
}

/// How a type of segments lays data out (drivers/md/dm-raid.c, `raid_types`).
pub fn layout_of(kind: &str) -> Option<Layout> {
    const NEAR_2: u32 = 0x102;
    let (level, layout) = match kind {
        // Unlike that of arrays, it has its parity first.
        "raid4" => (5, 4),
        "raid5_la" => (5, 0),
        "raid5_ra" => (5, 1),
        "raid5" | "raid5_ls" => (5, 2),
        "raid5_rs" => (5, 3),
        "raid5_n" => (5, 5),
        "raid6" | "raid6_zr" => (6, 8),
        "raid6_nr" => (6, 9),
        "raid6_nc" => (6, 10),
        "raid6_n_6" => (6, 5),
        "raid6_la_6" => (6, 16),
        "raid6_ra_6" => (6, 17),
        "raid6_ls_6" => (6, 18),
        "raid6_rs_6" => (6, 19),
        "raid10" | "raid10_near" => (10, NEAR_2),
        _ => return None,
    };
    Layout::of_number(level, layout)
}
