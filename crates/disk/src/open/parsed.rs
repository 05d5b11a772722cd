//! What each format finds in an image: its layer, its identity, and its parent.

use std::sync::Arc;

use super::{Neighbours, Snapshot};
use crate::layer::Layer;
use crate::source::Source;
use crate::{Error, Format, Result, SECTOR_SIZE};
use crate::{asif, dmg, parallels, qcow, qcow2, qed, vdi, vhd, vhdx, vma, vmdk};

/// Longest disk: offsets within it can be rounded up and added without overflow.
pub const MAX_LENGTH: u64 = 1 << 62;

/// What a format found in an image.
pub(crate) struct Parsed {
    pub layer: Box<dyn Layer>,
    pub length: u64,
    pub parent: Option<ParentLink>,
    /// By which children know it.
    pub identity: Option<Identity>,
    pub details: Vec<(&'static str, String)>,
    pub snapshots: Vec<Snapshot>,
}

impl Parsed {
    pub fn new(layer: impl Layer + 'static, length: u64) -> Self {
        Self {
            layer: Box::new(layer),
            // The formats that count in bytes may end within a sector.
            length: length.checked_next_multiple_of(SECTOR_SIZE).unwrap_or(u64::MAX),
            parent: None,
            identity: None,
            details: Vec::new(),
            snapshots: Vec::new(),
        }
    }
}

/// What tells an image's state from every other one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Uuid([u8; 16]),
    /// Which image it is, and what changes with each use that writes to it.
    State {
        uuid: [u8; 16],
        state: [u8; 16],
    },
    ContentId(u32),
}

impl Identity {
    pub fn uuid(self) -> Option<[u8; 16]> {
        match self {
            Self::Uuid(uuid) | Self::State { uuid, .. } => Some(uuid),
            Self::ContentId(_) => None,
        }
    }
}

/// How an image names its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParentLink {
    /// Paths to try, in this order.
    pub names: Vec<String>,
    pub format: Option<Format>,
    /// What the parent must be.
    pub identity: Option<Identity>,
}

/// Reads an image's own structures.
pub(crate) fn parse(
    source: Arc<dyn Source>,
    format: Format,
    neighbours: &Neighbours<'_>,
    snapshot: Option<&str>,
) -> Result<Parsed> {
    if snapshot.is_some() && !has_several(format) {
        let what = "the format has no internal snapshots".to_owned();
        return Err(Error::Unsupported { format, what });
    }
    let parsed = match format {
        Format::Raw => {
            let what = "a raw disk has no structures".to_owned();
            Err(Error::Unsupported { format, what })
        }
        Format::Qcow2 => qcow2::parse(source, neighbours, snapshot),
        Format::Qcow => qcow::parse(source),
        Format::Qed => qed::parse(source),
        Format::Vmdk => vmdk::parse(source, neighbours),
        Format::Vhd => vhd::parse(source),
        Format::Vhdx => vhdx::parse(source),
        Format::Vdi => vdi::parse(source),
        Format::Parallels => parallels::parse(source, neighbours, snapshot),
        Format::Dmg => dmg::parse(source),
        Format::Asif => asif::parse(source),
        Format::Vma => vma::parse(source, snapshot),
    }?;
    if parsed.length > MAX_LENGTH {
        let what = "its disk is longer than any can be".to_owned();
        return Err(Error::Damaged { format, what });
    }
    Ok(parsed)
}

/// Whether images of this format hold snapshots, or several disks.
fn has_several(format: Format) -> bool {
    matches!(format, Format::Qcow2 | Format::Parallels | Format::Vma)
}

/// Whether a path has one of the forms by which QEMU names what is not a file.
pub(crate) fn is_protocol(name: &str) -> bool {
    let colon = name.find(':');
    // A colon after a slash is part of a file's name, as in QEMU.
    colon.is_some_and(|colon| !name[..colon].contains('/'))
}

/// The forms of a path that a program on Windows wrote: as it is, with this system's separators, and its
/// last part alone, since images that were copied elsewhere usually stay together.
pub(crate) fn portable_names(name: &str) -> Vec<String> {
    let slashes = name.replace('\\', "/");
    let last = slashes.rsplit('/').next().unwrap_or_default().to_owned();
    let mut names = vec![name.to_owned(), slashes, last];
    names.dedup();
    names
}

/// A UUID as text.
pub(crate) fn hyphenated(uuid: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
