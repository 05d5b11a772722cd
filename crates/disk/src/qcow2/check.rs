//! Whether each cluster is counted as often as it is used, and setting the counts right.

use std::sync::Arc;

use super::header::{Checked, incompatible, unsupported};
use super::map::{COMPRESSED, COPIED, Map, OFFSET, ZERO};
use super::refcount::Refcounts;
use super::snapshot;
use crate::Result;
use crate::check::Checkup;
use crate::create::writable;
use crate::source::{Source, read_vec};

/// Most clusters of a file that is checked: their counts take 3 bytes each.
const MAX_CLUSTERS: u64 = 1 << 28;
/// Bits of entries that must be zero.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// The header's field with incompatible features, of which these two are about us.
const FEATURES_FIELD: u64 = 72;
/// Where the header says where the table of counts lies.
const TABLE_FIELD: u64 = 48;
/// An autoclear feature: bitmaps of changes are as they should be.
const BITMAPS: u64 = 1;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Use {
    Nothing,
    Header,
    Counts,
    Table,
    Snapshots,
    Bitmaps,
    Data,
    Compressed,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Header => "the header",
            Self::Counts => "counts of references",
            Self::Table => "a table",
            Self::Snapshots => "the list of snapshots",
            Self::Bitmaps => "a bitmap of changes",
            Self::Data => "data",
            Self::Compressed => "compressed data",
        }
    }
}

/// Checks an image's structures; sets its counts and flags right if `repair`.
pub(crate) fn check(source: Arc<dyn Source>, repair: bool) -> Result<Checkup> {
    let mut checkup = Checkup::default();
    let checked = Checked::read(&*source)?;
    let mut walk = Walk::new(&checked, source.clone())?;
    walk.all(&checked, &mut checkup)?;
    let wrong = walk.compare(&mut checkup)?;
    let has_flag = checked.has(incompatible::DIRTY) || checked.has(incompatible::CORRUPT);
    if checked.has(incompatible::CORRUPT) {
        checkup.error("it is marked as damaged".to_owned(), true);
    } else if checked.has(incompatible::DIRTY) {
        checkup.error("it was not closed in order".to_owned(), true);
    }
    if repair && (wrong || has_flag || !walk.flags.is_empty()) {
        walk.repair(&checked, &mut checkup)?;
    }
    Ok(checkup)
}

struct Walk {
    source: Arc<dyn Source>,
    map: Map,
    refcounts: Refcounts,
    cluster_bits: u32,
    /// References that were found to each cluster of the file, and what it is used for.
    counts: Vec<u16>,
    uses: Vec<Use>,
    /// Where the counts themselves are.
    count_clusters: Vec<u64>,
    /// Entries of the present state whose flag says wrongly whether they are the only reference, with what they should be.
    flags: Vec<(u64, u64)>,
    /// The table of counts can be read.
    has_counts: bool,
    /// The guest's clusters are elsewhere, without counts.
    has_data_file: bool,
}

impl Walk {
    fn new(checked: &Checked, source: Arc<dyn Source>) -> Result<Self> {
        let clusters = source.len().div_ceil(checked.cluster_size());
        if clusters > MAX_CLUSTERS {
            return Err(unsupported("it has too many clusters to be checked"));
        }
        // Its data file has no counts and is not opened: nothing is read through the map.
        let map = Map::new(checked, source.clone(), None);
        Ok(Self {
            map,
            refcounts: Refcounts::new(checked, source.len()),
            cluster_bits: checked.header.cluster_bits.get(),
            counts: vec![0; clusters as usize],
            uses: vec![Use::Nothing; clusters as usize],
            count_clusters: Vec::new(),
            flags: Vec::new(),
            has_counts: true,
            has_data_file: checked.has(incompatible::EXTERNAL_DATA),
            source,
        })
    }

    fn size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Counts a reference to whatever lies at `offset`.
    fn refer(&mut self, offset: u64, length: u64, kind: Use, checkup: &mut Checkup) {
        let first = offset >> self.cluster_bits;
        let end = offset.saturating_add(length).div_ceil(self.size());
        for cluster in first..end {
            let Some(count) = self.counts.get_mut(cluster as usize) else {
                let what =
                    format!("{} should lie at {offset}, past the end of the file", kind.name());
                return checkup.error(what, false);
            };
            *count = count.saturating_add(1);
            if kind == Use::Counts {
                self.count_clusters.push(cluster);
            }
            let found = &mut self.uses[cluster as usize];
            match *found {
                Use::Nothing => *found = kind,
                // Snapshots share tables and data with the present state.
                other
                    if other == kind
                        && matches!(kind, Use::Table | Use::Data | Use::Compressed) => {}
                other => {
                    let what = format!(
                        "the cluster at {} is used for {} and for {}",
                        cluster << self.cluster_bits,
                        other.name(),
                        kind.name()
                    );
                    checkup.error(what, false);
                }
            }
        }
    }

    /// References that were found so far to the cluster at `offset`.
    fn count(&self, offset: u64) -> u16 {
        self.counts.get((offset >> self.cluster_bits) as usize).copied().unwrap_or_default()
    }

    /// All references.
    fn all(&mut self, checked: &Checked, checkup: &mut Checkup) -> Result<()> {
        let header = &checked.header;
        let size = self.size();
        self.refer(0, 1, Use::Header, checkup);
        self.count_blocks(checked, checkup)?;
        let saved = snapshot::read(checked, &*self.source)?;
        let length = snapshot::table_length(&saved);
        self.refer(header.snapshots_offset.get(), length, Use::Snapshots, checkup);
        if header.autoclear_features.get() & BITMAPS != 0 {
            self.bitmaps(checked, checkup)?;
        }
        let present = (header.l1_table_offset.get(), u64::from(header.l1_size.get()));
        let tables = saved.iter().map(|saved| (saved.l1_offset, u64::from(saved.l1_size)));
        let tables: Vec<_> = std::iter::once(present).chain(tables).collect();
        for &(offset, entries) in &tables {
            self.refer(offset, entries * 8, Use::Table, checkup);
            if entries != 0 && self.count(offset) > 1 {
                checkup.error(format!("two first tables lie at {offset}"), false);
                continue;
            }
            let l1 = read_vec(&*self.source, offset, (entries * 8) as usize)?;
            for (index, entry) in entries_of(&l1).enumerate() {
                if entry & L1_RESERVED != 0 {
                    checkup.error(
                        format!("entry {index} of a first table has bits that none may have"),
                        false,
                    );
                }
                let table = entry & OFFSET;
                if table == 0 {
                    continue;
                }
                if !table.is_multiple_of(size) || table >= self.source.len() {
                    checkup.error(format!("a second table cannot lie at {table}"), false);
                    continue;
                }
                self.refer(table, size, Use::Table, checkup);
                // Once in the present state and in each snapshot, or nobody would come to an end.
                if usize::from(self.count(table)) > tables.len() {
                    checkup.error(format!("the table at {table} is used too often"), false);
                    continue;
                }
                self.second(table, checkup)?;
            }
        }
        Ok(())
    }

    /// What a table of the second level refers to.
    fn second(&mut self, table: u64, checkup: &mut Checkup) -> Result<()> {
        let size = self.size();
        let there = (self.source.len() - table).min(size);
        let l2 = read_vec(&*self.source, table, there as usize)?;
        let step = (self.map.entry_size() / 8) as usize;
        for (index, entry) in entries_of(&l2).step_by(step).enumerate() {
            if entry & COMPRESSED != 0 {
                let grain = self.map.grain(entry, 0);
                // A stream that shares a cluster with others counts it once for itself.
                self.refer(grain.offset, grain.length.into(), Use::Compressed, checkup);
                continue;
            }
            let reserved = if self.map.extended { L2_RESERVED | ZERO } else { L2_RESERVED };
            if entry & reserved != 0 {
                checkup.error(
                    format!("entry {index} of the table at {table} has bits that none may have"),
                    false,
                );
            }
            let host = entry & OFFSET;
            if self.has_data_file || host == 0 {
                continue;
            }
            if !host.is_multiple_of(size) {
                checkup.error(format!("a cluster cannot lie at {host}"), false);
                continue;
            }
            self.refer(host, size, Use::Data, checkup);
        }
        Ok(())
    }

    /// The counts' own table and blocks. Without them all counts are made anew.
    fn count_blocks(&mut self, checked: &Checked, checkup: &mut Checkup) -> Result<()> {
        let header = &checked.header;
        let size = self.size();
        let (table, clusters) =
            (header.refcount_table_offset.get(), u64::from(header.refcount_table_clusters.get()));
        if table == 0 || clusters == 0 {
            checkup.error("it has no counts of references".to_owned(), true);
            self.has_counts = false;
            return Ok(());
        }
        self.refer(table, clusters * size, Use::Counts, checkup);
        let content = read_vec(&*self.source, table, (clusters * size) as usize)?;
        let mut blocks = Vec::new();
        for entry in entries_of(&content) {
            let block = entry & OFFSET;
            if block == 0 {
                continue;
            }
            if entry != block || !block.is_multiple_of(size) || block >= self.source.len() {
                checkup.error(format!("a block of counts cannot lie at {block}"), true);
                self.has_counts = false;
                continue;
            }
            blocks.push(block);
        }
        blocks.sort_unstable();
        if blocks.windows(2).any(|pair| pair[0] == pair[1]) {
            checkup.error("two blocks of counts lie at one place".to_owned(), true);
            self.has_counts = false;
            blocks.dedup();
        }
        for block in blocks {
            self.refer(block, size, Use::Counts, checkup);
        }
        Ok(())
    }

    /// The clusters of persistent bitmaps, which QEMU keeps.
    fn bitmaps(&mut self, checked: &Checked, checkup: &mut Checkup) -> Result<()> {
        let extensions = checked.extensions(&*self.source)?;
        let found = extensions.iter().find(|(kind, ..)| *kind == EXTENSION_BITMAPS);
        let Some(&(_, offset, length)) = found else { return Ok(()) };
        // No longer than a cluster.
        let content = read_vec(&*self.source, offset, length as usize)?;
        let word = |bytes: &[u8], at: usize| -> u64 {
            let found = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_be_bytes(found.unwrap_or_default())
        };
        let (length, offset) = (word(&content, 8), word(&content, 16));
        if length > 64 << 20 {
            checkup.error("its list of bitmaps is too long".to_owned(), false);
            return Ok(());
        }
        self.refer(offset, length, Use::Bitmaps, checkup);
        let list = read_vec(&*self.source, offset, length as usize)?;
        let mut at = 0;
        while at + 24 <= list.len() {
            let table = word(&list, at);
            let sizes = word(&list, at + 8);
            let entries = sizes >> 32;
            let tail = word(&list, at + 16);
            let (name, extra) = ((tail >> 32) & 0xffff, tail & 0xffff_ffff);
            if entries > 1 << 23 {
                checkup.error("a bitmap's table is too long".to_owned(), false);
                return Ok(());
            }
            self.refer(table, entries * 8, Use::Bitmaps, checkup);
            let content = read_vec(&*self.source, table, (entries * 8) as usize)?;
            for entry in
                entries_of(&content).map(|entry| entry & OFFSET).filter(|&entry| entry != 0)
            {
                self.refer(entry, self.size(), Use::Bitmaps, checkup);
            }
            at += (24 + name + extra).next_multiple_of(8) as usize;
        }
        Ok(())
    }

    /// What the file's counts say against what was found; whether any is wrong.
    fn compare(&mut self, checkup: &mut Checkup) -> Result<bool> {
        let mut wrong = !self.has_counts;
        let countable = if self.has_counts { self.counts.len() } else { 0 };
        for cluster in 0..countable {
            let found = u64::from(self.counts[cluster]);
            let stated = self.refcounts.get(&self.map.tables, cluster as u64)?;
            let at = (cluster as u64) << self.cluster_bits;
            if stated > found {
                checkup.leak(
                    format!("the cluster at {at} is counted {stated} times and used {found} times"),
                    self.size(),
                );
            } else if stated < found {
                let what =
                    format!("the cluster at {at} is counted {stated} times and used {found} times");
                checkup.error(what, true);
            }
            wrong |= stated != found;
        }
        let (offset, entries) = (self.map.l1_offset, self.map.l1_size);
        let l1 = read_vec(&*self.source, offset, (entries * 8) as usize)?;
        for (index, entry) in entries_of(&l1).enumerate() {
            let table = entry & OFFSET;
            if table == 0 || !table.is_multiple_of(self.size()) || table >= self.source.len() {
                continue;
            }
            self.flag(offset + index as u64 * 8, entry, table, checkup);
            let there = (self.source.len() - table).min(self.size());
            let l2 = read_vec(&*self.source, table, there as usize)?;
            let step = (self.map.entry_size() / 8) as usize;
            for (index, entry) in entries_of(&l2).step_by(step).enumerate() {
                let host = entry & OFFSET;
                let at = table + index as u64 * self.map.entry_size();
                if entry & COMPRESSED != 0 {
                    if entry & COPIED != 0 {
                        self.wrong_flag(at, entry & !COPIED, checkup);
                    }
                } else if host != 0 && !self.has_data_file {
                    self.flag(at, entry, host, checkup);
                }
            }
        }
        Ok(wrong)
    }

    /// Whether an entry of the present state says rightly that it is the only reference.
    fn flag(&mut self, at: u64, entry: u64, host: u64, checkup: &mut Checkup) {
        let Some(&count) = self.counts.get((host >> self.cluster_bits) as usize) else { return };
        let wanted = if count == 1 { entry | COPIED } else { entry & !COPIED };
        if wanted != entry {
            self.wrong_flag(at, wanted, checkup);
        }
    }

    fn wrong_flag(&mut self, at: u64, wanted: u64, checkup: &mut Checkup) {
        checkup.error(format!("the entry at {at} is wrong about being the only reference"), true);
        self.flags.push((at, wanted));
    }

    /// New counts at the end of the file, to which the header leads at once; then the entries' flags, then the header's.
    fn repair(&mut self, checked: &Checked, checkup: &mut Checkup) -> Result<()> {
        let size = self.size();
        let source = Arc::clone(&self.source);
        let target = writable(&*source)?;
        // What holds the old counts is free then, unless something else is there, too.
        for cluster in std::mem::take(&mut self.count_clusters) {
            self.counts[cluster as usize] = self.counts[cluster as usize].saturating_sub(1);
        }
        let order = checked.header.refcount_order.get();
        if let Some(most) = self.counts.iter().max()
            && order < 4
            && u64::from(*most) >= 1 << (1 << order)
        {
            return Err(unsupported("a cluster has more references than can be counted"));
        }
        let first = self.counts.len() as u64;
        let per_block = (size * 8) >> order;
        let (mut blocks, mut table) = (1, 1);
        loop {
            let total = first + blocks + table;
            let needed = total.div_ceil(per_block);
            let room = (needed * 8).div_ceil(size);
            if needed <= blocks && room <= table {
                break;
            }
            (blocks, table) = (needed.max(blocks), room.max(table));
        }
        if table * size > 8 << 20 {
            return Err(unsupported("its counts would need too long a table"));
        }
        let used = self.counts.len();
        self.counts.resize(used + (blocks + table) as usize, 1);
        let mut block = vec![0; size as usize];
        for number in 0..blocks {
            block.fill(0);
            let begin = (number * per_block) as usize;
            let end = (begin + per_block as usize).min(self.counts.len());
            for (index, &count) in
                self.counts.get(begin..end).unwrap_or_default().iter().enumerate()
            {
                put(&mut block, index, order, count);
            }
            target.write_at(&block, (first + number) * size)?;
        }
        let mut entries: Vec<u8> =
            (0..blocks).flat_map(|number| ((first + number) * size).to_be_bytes()).collect();
        entries.resize((table * size) as usize, 0);
        target.write_at(&entries, (first + blocks) * size)?;
        target.flush()?;
        let mut field = ((first + blocks) * size).to_be_bytes().to_vec();
        field.extend_from_slice(&(table as u32).to_be_bytes());
        target.write_at(&field, TABLE_FIELD)?;
        target.flush()?;
        for (at, entry) in std::mem::take(&mut self.flags) {
            target.write_at(&entry.to_be_bytes(), at)?;
        }
        target.flush()?;
        if checkup.beyond_repair == 0 && checked.header.version.get() >= 3 {
            let features = checked.header.incompatible_features.get()
                & !(incompatible::DIRTY | incompatible::CORRUPT);
            target.write_at(&features.to_be_bytes(), FEATURES_FIELD)?;
            target.flush()?;
        }
        for cluster in (0..used as u64).filter(|&cluster| self.counts[cluster as usize] == 0) {
            target.punch(cluster * size..(cluster + 1) * size)?;
        }
        checkup.is_repaired = true;
        Ok(())
    }
}

/// Sets a count in a block that is zeroes there.
fn put(block: &mut [u8], index: usize, order: u32, count: u16) {
    match order {
        0..3 => {
            let bit = index << order;
            block[bit / 8] |= (count << (bit % 8)) as u8;
        }
        3 => block[index] = count as u8,
        _ => {
            let width = 1 << (order - 3);
            let end = (index + 1) * width;
            block[end - 2..end].copy_from_slice(&count.to_be_bytes());
        }
    }
}

fn entries_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}
