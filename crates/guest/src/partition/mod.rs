//! Partition tables.

mod gpt;
mod mbr;

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::Result;
use crate::volume::{Part, Volume};

/// A partition table that was found.
pub struct Table {
    /// Which kind.
    pub kind: TableKind,
    /// What should be known about its state, such as that only its backup is whole.
    pub notes: Vec<String>,
    /// Its partitions, in the table's order.
    pub partitions: Vec<Partition>,
}

/// Kinds of partition tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Linux's number: the slot of a GPT, 5 and up for logical ones of an MBR.
    pub number: u32,
    /// Where it lies on the disk, in bytes.
    pub range: Range<u64>,
    /// Its type: a GUID, or two hexadecimal digits.
    pub kind: String,
    /// What Linux calls PARTUUID.
    pub uuid: Option<String>,
    /// Its name, if the table has names.
    pub name: Option<String>,
    /// A BIOS starts from it.
    pub is_active: bool,
}

/// Type of an EFI system partition in a GPT.
pub const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

impl Partition {
    /// It is where UEFI firmware looks for boot loaders.
    pub fn is_esp(&self) -> bool {
        self.kind == ESP || self.kind == "ef"
    }

    /// Its bytes on the disk.
    pub fn on(&self, disk: &Arc<dyn Volume>) -> Part {
        Part::new(Arc::clone(disk), self.range.clone())
    }
}

/// Reads the partition table of `disk`; `None` if it has none, and one without partitions if it cannot be read.
pub fn read(disk: &dyn Volume) -> Result<Option<Table>> {
    let mbr = mbr::read(disk)?;
    // A hybrid or damaged protective MBR does not matter where there is a GPT.
    let protective = mbr.as_ref().is_some_and(|table| table.is_protective);
    if let Some(table) = gpt::read(disk, protective)? {
        return Ok(Some(table));
    }
    Ok(mbr.map(|table| match table.is_protective {
        true => Table {
            kind: TableKind::Gpt,
            notes: vec!["the partition table is damaged, and so is its backup".into()],
            partitions: Vec::new(),
        },
        false => Table { kind: TableKind::Mbr, notes: table.notes, partitions: table.partitions },
    }))
}
