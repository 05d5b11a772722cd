//! What is remembered of disks: what an overlay lies over, and which files are raw disks.

use std::fs::{File, Metadata};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use disk::{Format, ImageInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;

const VERSION: u32 = 1;

/// A file that says what an overlay lies over, beside it.
pub(super) struct Record {
    path: PathBuf,
}

/// What an overlay lies over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    path: PathBuf,
    chain: Vec<Image>,
}

/// An image as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Image {
    path: PathBuf,
    format: String,
    length: u64,
    /// In nanoseconds since 1970; 0 for block devices, which do not tell.
    modified: u128,
    /// What a server tells versions of the file apart by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

/// Remembers that a file is a raw disk.
pub(super) struct RawRecord {
    path: PathBuf,
}

/// What tells a file from one that was put in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// In nanoseconds since 1970, where the file system knows.
    created: u128,
}

/// Any of them in a file.
#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    /// CRC-32 of the content.
    checksum: u32,
    content: serde_json::Value,
}

impl Record {
    pub fn of(overlay: &Path) -> Self {
        Self { path: overlay.with_extension("json") }
    }

    pub fn read(&self) -> Result<Base, Error> {
        read(&self.path)
    }

    pub fn write(&self, base: &Base) -> Result<(), Error> {
        write(&self.path, base)
    }
}

impl Base {
    pub fn new(path: &Path, chain: &[ImageInfo]) -> Self {
        let image = |image: &ImageInfo| Image {
            path: image.path.clone(),
            format: image.format.name().to_owned(),
            length: image.file_length,
            modified: holder(&image.path).map_or(0, |found| modified(&found)),
            version: image.detail("version").map(str::to_owned),
        };
        Self { path: path.to_owned(), chain: chain.iter().map(image).collect() }
    }

    /// The format of the file itself; nothing if the image is a part of it.
    pub fn format(&self) -> Option<Format> {
        let image = self.chain.first().filter(|image| image.path == self.path);
        image.and_then(|image| image.format.parse().ok())
    }

    /// A sentence on how what is there now differs.
    pub fn difference(&self, now: &Self) -> Option<String> {
        if self.chain.len() != now.chain.len() {
            let (then, now) = (self.chain.len(), now.chain.len());
            return Some(format!("its base had {then} images and has {now}"));
        }
        let pairs = self.chain.iter().zip(&now.chain);
        let (then, now) = pairs.into_iter().find(|(then, now)| then != now)?;
        let path = now.path.display();
        Some(if then.path != now.path {
            format!("it was made over {}, not {path}", then.path.display())
        } else if then.format != now.format {
            format!("{path} was {}, and is now {}", then.format, now.format)
        } else {
            format!("{path} was changed after it was made")
        })
    }
}

impl RawRecord {
    pub fn new(folder: &Path, disk: &Path) -> Self {
        Self { path: folder.join(".raw").join(format!("{}.json", stamp(disk))) }
    }

    /// Whether `disk` is the file that was remembered.
    pub fn is_raw(&self, disk: &Path) -> Result<bool, Error> {
        if !self.path.exists() {
            return Ok(false);
        }
        let kept: Identity = read(&self.path)?;
        Ok(Identity::of(disk).is_some_and(|found| found == kept))
    }

    pub fn remember(&self, disk: &Path) -> Result<(), Error> {
        let Some(identity) = Identity::of(disk) else { return Ok(()) };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let create = |source| Error::State { action: "create", path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(create)?;
        write(&self.path, &identity)
    }
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let found = path.metadata().ok()?;
        let created = found.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        // The number of a block device's node may change with every start of the host.
        let is_device = found.file_type().is_block_device();
        Some(Self {
            path: path.to_owned(),
            device: if is_device { 0 } else { found.dev() },
            inode: if is_device { 0 } else { found.ino() },
            created: created.filter(|_| !is_device).map_or(0, |time| time.as_nanos()),
        })
    }
}

/// A name for what belongs to the file at `path`: the file's own, and a hash of the whole path.
pub(super) fn stamp(path: &Path) -> String {
    // FNV-1a: names need not withstand an attacker, who could not choose more than a name that is refused.
    let hash = path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    format!("{}-{hash:016x}", name.trim_start_matches('.'))
}

/// The file at `path`, or the archive that it leads into.
fn holder(path: &Path) -> Option<Metadata> {
    path.ancestors().find_map(|path| path.metadata().ok().filter(|found| !found.is_dir()))
}

fn modified(metadata: &Metadata) -> u128 {
    if metadata.file_type().is_block_device() {
        return 0;
    }
    let time = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.map_or(0, |time| time.as_nanos())
}

fn checksum(content: &serde_json::Value) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(content.to_string().as_bytes());
    sum.sum()
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let bytes = std::fs::read(path).map_err(|source| Error::State {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let envelope: Envelope =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if envelope.version != VERSION {
        return Err(damaged(format!("it has version {}, not {VERSION}", envelope.version)));
    }
    if envelope.checksum != checksum(&envelope.content) {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    serde_json::from_value(envelope.content).map_err(|error| damaged(error.to_string()))
}

fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), Error> {
    let failed = |source| Error::State { action: "write", path: path.to_owned(), source };
    let content = serde_json::to_value(content).map_err(|error| failed(error.into()))?;
    let envelope = Envelope { version: VERSION, checksum: checksum(&content), content };
    let bytes = serde_json::to_vec(&envelope).map_err(|error| failed(error.into()))?;
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let put = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    put().map_err(failed)
}
