use std::fmt;
use std::str::FromStr;

use crate::source::{Source, read_struct};
use crate::{Result, dmg, vhd};

/// How a disk lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The guest's bytes one by one.
    Raw,
    /// QEMU's format, versions 2 and 3.
    Qcow2,
    /// QEMU's first copy-on-write format.
    Qcow,
    /// QEMU's enhanced disk.
    Qed,
    /// VMware's formats.
    Vmdk,
    /// Virtual PC's and early Hyper-V's format.
    Vhd,
    /// Hyper-V's format.
    Vhdx,
    /// VirtualBox's format.
    Vdi,
    /// Parallels' format: one image of it, or a bundle by its descriptor.
    Parallels,
    /// Apple's disk images.
    Dmg,
    /// Apple's sparse images of macOS 26.
    Asif,
    /// A disk of one of Proxmox's archives.
    Vma,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Raw,
        Self::Qcow2,
        Self::Qcow,
        Self::Qed,
        Self::Vmdk,
        Self::Vhd,
        Self::Vhdx,
        Self::Vdi,
        Self::Parallels,
        Self::Dmg,
        Self::Asif,
        Self::Vma,
    ];

    /// Its name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Parallels => "parallels",
            Self::Dmg => "dmg",
            Self::Asif => "asif",
            Self::Vma => "vma",
        }
    }

    /// Finds out a format by its content: [`Format::Raw`] is what no other format claims. Only for images
    /// that come from outside: whoever can write the first or last bytes of a raw disk, such as its guest,
    /// decides what this answers.
    pub fn detect(source: &dyn Source) -> Result<Self> {
        let length = source.len();
        let mut head = [0; 512];
        let count = length.min(head.len() as u64) as usize;
        source.read_at(&mut head[..count], 0)?;
        let head = &head[..count];
        let found = match head {
            [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1, ..] => Self::Qcow,
            [b'Q', b'F', b'I', 0xfb, ..] => Self::Qcow2,
            [b'Q', b'E', b'D', 0, ..] => Self::Qed,
            [b'K', b'D', b'M', b'V', ..] | [b'C', b'O', b'W', b'D', ..] => Self::Vmdk,
            _ if head.starts_with(b"vhdxfile") => Self::Vhdx,
            _ if head.starts_with(b"conectix") => Self::Vhd,
            _ if head.starts_with(b"WithoutFreeSpace") => Self::Parallels,
            _ if head.starts_with(b"WithouFreSpacExt") => Self::Parallels,
            _ if head.get(64..68) == Some(&0xbeda_107f_u32.to_le_bytes()) => Self::Vdi,
            _ if head.starts_with(&0xcafe_babe_u64.to_le_bytes()) => Self::Vmdk,
            _ if is_vmdk_descriptor(head) => Self::Vmdk,
            _ if is_parallels_descriptor(head) => Self::Parallels,
            [b's', b'h', b'd', b'w', ..] => Self::Asif,
            [b'V', b'M', b'A', 0, ..] => Self::Vma,
            _ if has_vhd_footer(source, length) => Self::Vhd,
            _ if dmg::is_dmg(source) => Self::Dmg,
            _ => Self::Raw,
        };
        Ok(found)
    }
}

/// "# Disk DescriptorFile", before which some programs leave blank lines.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    text.len() >= 21 && text[..21].eq_ignore_ascii_case(b"# Disk DescriptorFile")
}

/// XML whose first element is that of DiskDescriptor.xml.
fn is_parallels_descriptor(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    text.starts_with(b"<")
        && text[..text.len().min(128)].windows(20).any(|part| part == b"Parallels_disk_image")
}

/// A fixed disk, or a dynamic one whose copy of the footer at the start is lost.
fn has_vhd_footer(source: &dyn Source, length: u64) -> bool {
    length.checked_sub(512).is_some_and(|offset| {
        read_struct::<vhd::Footer>(source, offset).is_ok_and(|footer| footer.is_valid())
    })
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Format`]'s.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("There is no disk format \"{0}\"")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownFormat> {
        let wanted = name.to_ascii_lowercase();
        let wanted = match wanted.as_str() {
            "vpc" => "vhd",
            "qcow1" => "qcow",
            "hdd" | "hds" => "parallels",
            "img" => "raw",
            other => other,
        };
        let found = Self::ALL.into_iter().find(|format| format.name() == wanted);
        found.ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}
