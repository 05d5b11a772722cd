use std::fmt;
use std::str::FromStr;

use crate::{Compression, Error, Format, MAX_LENGTH, Result, SECTOR_SIZE};

/// What a new image is like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Its format.
    pub format: Format,
    /// Length of its disk in bytes.
    pub length: u64,
    /// How the disk lies in its files.
    pub layout: Layout,
    /// Bytes of a block, cluster or grain; the format's usual size otherwise.
    pub block_size: Option<u64>,
    /// How blocks are compressed, if they are; qcow2 only.
    pub compression: Option<Compression>,
    /// What is taken from the file system in advance; raw and qcow2 only.
    pub preallocation: Preallocation,
    /// What the image says of its parent: a path, and its format; qcow2 only.
    pub backing: Option<(String, Format)>,
    /// Name of the file beside the image that has the guest's bytes; qcow2 only.
    pub data_file: Option<String>,
    /// Clusters are divided into 32 parts that are kept one by one; qcow2 only.
    pub extended_l2: bool,
}

/// How a disk lies in its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// One file that grows: dynamic, expanding.
    #[default]
    Sparse,
    /// All of it from the start: fixed, static; for VMDK a descriptor and one flat file.
    Fixed,
    /// Compressed and written once: VMDK's streamOptimized.
    Stream,
    /// VMDK in files of 2 GiB that grow.
    SplitSparse,
    /// VMDK in flat files of 2 GiB.
    SplitFixed,
}

/// What is taken from the file system in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The tables.
    Metadata,
    /// Space that is not written to.
    Falloc,
    /// Space that is written full of zeroes.
    Full,
}

/// An option that does not exist, or a value that it cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A new image cannot have \"{0}\": {1}")]
pub struct WrongOption(pub String, pub &'static str);

impl CreateOptions {
    /// The usual image of a format.
    pub fn new(format: Format, length: u64) -> Self {
        Self {
            format,
            length,
            layout: Layout::Sparse,
            block_size: None,
            compression: None,
            preallocation: Preallocation::Off,
            backing: None,
            data_file: None,
            extended_l2: false,
        }
    }

    /// Sets an option by its name: layout (subformat), block-size (cluster-size), compression,
    /// preallocation, data-file, extended-l2.
    pub fn set(&mut self, name: &str, value: &str) -> std::result::Result<(), WrongOption> {
        let wrong = |reason| WrongOption(format!("{name}={value}"), reason);
        match name.replace('_', "-").as_str() {
            "layout" | "subformat" => {
                self.layout = value.parse().map_err(|()| {
                    wrong("the layouts are sparse, fixed, stream, split-sparse and split-fixed")
                })?;
            }
            "block-size" | "cluster-size" => {
                let size = parse_size(value).ok_or_else(|| wrong("it is no size"))?;
                self.block_size = Some(size);
            }
            "compression" => {
                let known = value.parse().map_err(|_| wrong("there are zlib and zstd"))?;
                self.compression = Some(known);
            }
            "preallocation" => {
                self.preallocation = value
                    .parse()
                    .map_err(|()| wrong("the ways are off, metadata, falloc and full"))?;
            }
            "data-file" => self.data_file = Some(value.to_owned()),
            "extended-l2" => {
                self.extended_l2 = match value {
                    "on" | "yes" | "true" => true,
                    "off" | "no" | "false" => false,
                    _ => return Err(wrong("it is on or off")),
                };
            }
            _ => return Err(wrong("there is no such option")),
        }
        Ok(())
    }

    /// Refuses what the format cannot have.
    pub(super) fn check(&self) -> Result<()> {
        let format = self.format;
        let refuse = |what: &str| Err(Error::Unsupported { format, what: what.to_owned() });
        if self.length > MAX_LENGTH || !self.length.is_multiple_of(SECTOR_SIZE) {
            return refuse("its disk would have a wrong length");
        }
        let is_qcow2 = format == Format::Qcow2;
        let has_layout = match self.layout {
            Layout::Sparse => true,
            Layout::Fixed => {
                matches!(format, Format::Raw | Format::Vmdk | Format::Vdi | Format::Vhd)
                    || format == Format::Vhdx
            }
            Layout::Stream | Layout::SplitSparse | Layout::SplitFixed => format == Format::Vmdk,
        };
        if !has_layout {
            return refuse("the format does not have this layout");
        }
        let is_plain = self.compression.is_none()
            && self.backing.is_none()
            && self.data_file.is_none()
            && !self.extended_l2;
        if !is_qcow2 && !is_plain {
            let what = "compression, parents, data files and extended tables are qcow2's";
            return refuse(what);
        }
        if !is_qcow2 && format != Format::Raw && self.preallocation != Preallocation::Off {
            return refuse("only raw disks and qcow2 can be allocated in advance");
        }
        if self.compression.is_some() && (self.data_file.is_some() || self.extended_l2) {
            return refuse("compressed clusters need neither a data file nor extended tables");
        }
        if let Some(name) = &self.data_file
            && (name.is_empty() || name.contains(['/', '\0']))
        {
            return refuse("its data file must lie beside it");
        }
        Ok(())
    }

    /// The size of blocks: a power of two within `range`, or the usual one.
    pub(crate) fn block_size(
        &self,
        usual: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64> {
        let size = self.block_size.unwrap_or(usual);
        if size.is_power_of_two() && range.contains(&size) {
            return Ok(size);
        }
        let what = format!(
            "its blocks must have from {} to {} bytes, a power of two",
            range.start(),
            range.end()
        );
        Err(Error::Unsupported { format: self.format, what })
    }
}

/// A format and options: `vmdk,layout=stream`.
impl FromStr for CreateOptions {
    type Err = WrongOption;

    fn from_str(text: &str) -> std::result::Result<Self, WrongOption> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let format: Format =
            name.parse().map_err(|_| WrongOption(name.to_owned(), "there is no such format"))?;
        let mut options = Self::new(format, 0);
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| WrongOption(word.to_owned(), "an option is name=value"))?;
            options.set(name, value)?;
        }
        Ok(options)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sparse => "sparse",
            Self::Fixed => "fixed",
            Self::Stream => "stream",
            Self::SplitSparse => "split-sparse",
            Self::SplitFixed => "split-fixed",
        })
    }
}

/// Its own names and those of the products.
impl FromStr for Layout {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<Self, ()> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "sparse" | "dynamic" | "expanding" | "monolithicsparse" => Self::Sparse,
            "fixed" | "static" | "flat" | "monolithicflat" => Self::Fixed,
            "stream" | "streamoptimized" => Self::Stream,
            "split-sparse" | "twogbmaxextentsparse" => Self::SplitSparse,
            "split-fixed" | "twogbmaxextentflat" => Self::SplitFixed,
            _ => return Err(()),
        })
    }
}

impl FromStr for Preallocation {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<Self, ()> {
        Ok(match name {
            "off" => Self::Off,
            "metadata" => Self::Metadata,
            "falloc" => Self::Falloc,
            "full" => Self::Full,
            _ => return Err(()),
        })
    }
}

/// A number of bytes, with K, M or G after it for powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
