//! Where the members of a tar archive lie: nothing is unpacked to anywhere.
//!
//! POSIX.1-1988 (ustar), its pax extension, and GNU's long names and binary sizes; as a whole it may be compressed by gzip.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{FileSource, GzipSource, Source};

use super::description::{FileRef, FileState};
use super::text;
use crate::{Error, Result};

/// An archive's members by name.
pub(crate) struct Archive {
    path: PathBuf,
    bytes: Box<dyn Bytes>,
    /// Where each begins, and its length.
    members: Members,
}

const BLOCK: usize = 512;
/// XenServer's exports have a member for each MiB of disk: this allows 64 TiB with checksums.
const MOST_MEMBERS: usize = 128 << 20;
/// The longest header that says more about a member.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// What an archive is read from.
pub(crate) trait Bytes: Read + Seek {}

impl<T: Read + Seek> Bytes for T {}

/// Whether these are the first bytes of what gzip has compressed.
pub(crate) fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b, 8])
}

/// The bytes of an archive and how many they are; [`ReadOptions::cache`](super::ReadOptions::cache).
fn open(path: &Path, cache: Option<&Path>) -> io::Result<(Box<dyn Bytes>, u64)> {
    let mut file = File::open(path)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(3).read_to_end(&mut head)?;
    if is_gzip(&head) {
        let packed = FileSource::open(path, true).map_err(io::Error::other)?;
        let source = GzipSource::open(Arc::new(packed), cache).map_err(io::Error::other)?;
        let length = source.len();
        return Ok((Box::new(Unpacked { source, at: 0 }), length));
    }
    file.rewind()?;
    let length = file.metadata()?.len();
    Ok((Box::new(file), length))
}

/// What gzip has compressed.
struct Unpacked {
    source: GzipSource,
    at: u64,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.source.len().saturating_sub(self.at);
        let count = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        self.source.read_at(&mut buffer[..count], self.at).map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Unpacked {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(distance) => self.at.checked_add_signed(distance),
            SeekFrom::End(distance) => self.source.len().checked_add_signed(distance),
        };
        self.at = at.filter(|at| *at <= self.source.len()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Whether these are the first bytes of an archive.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    head.len() >= BLOCK
        && (head[257..262] == *b"ustar" || head[0] != 0)
        && checksum_is_right(&head[..BLOCK])
}

/// The name and the bytes of the first member, if it is no larger than a description.
pub(crate) fn first_member(path: &Path) -> Result<(String, Vec<u8>)> {
    let reading = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(reading)?;
    let mut header = [0; BLOCK];
    file.read_exact(&mut header).map_err(reading)?;
    let name = name_of(&header);
    let size = number(&header[124..136]).filter(|size| *size <= text::LARGEST);
    let Some(size) = size else { return Ok((name, Vec::new())) };
    let length = file.metadata().map_err(reading)?.len();
    if length < BLOCK as u64 + size {
        let message = format!(
            "The archive ends at byte {length}, within its member `{name}`: expected {size} bytes of it from byte {BLOCK} on"
        );
        return Err(text::error(path, message));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact(&mut bytes).map_err(reading)?;
    Ok((name, bytes))
}

impl Archive {
    /// Reads the headers of all members; `most` of them at most.
    pub fn open(path: &Path, most: usize, cache: Option<&Path>) -> Result<Self> {
        let reading = |source| Error::Read { path: path.to_owned(), source };
        let (mut bytes, length) = open(path, cache).map_err(reading)?;
        let members =
            index(&mut bytes, length, most.min(MOST_MEMBERS)).map_err(|wrong| match wrong {
                Wrong::Io(source) => reading(source),
                Wrong::Form(offset, message) => {
                    text::error(path, format!("{message} (at offset {offset})"))
                }
            })?;
        let path = std::fs::canonicalize(path).map_err(reading)?;
        Ok(Self { path, bytes, members })
    }

    /// The archive's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all members.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// A member that a description names.
    pub fn locate(&self, name: &str) -> FileRef {
        match self.members.get(name.trim_start_matches("./")) {
            Some((offset, length)) => FileRef {
                offset: Some(*offset),
                length: Some(*length),
                ..FileRef::new(name, Some(self.path.clone()), FileState::Member)
            },
            None => FileRef::new(name, None, FileState::Missing),
        }
    }

    /// The bytes of a member that is no larger than a description.
    pub fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let Some((offset, length)) = self.members.get(name).copied() else {
            return Err(text::error(&self.path, format!("There is no member `{name}`")));
        };
        if length > text::LARGEST {
            return Err(text::error(
                &self.path,
                format!("The member `{name}` is too large for a description"),
            ));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = self
            .bytes
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.bytes.read_exact(&mut bytes));
        read.map_err(|source| Error::Read { path: self.path.clone(), source })?;
        Ok(bytes)
    }

    /// The bytes of a member one after another.
    pub fn stream(&mut self, name: &str) -> Result<impl Read> {
        let (offset, length) = self.members.get(name).copied().unwrap_or((0, 0));
        let sought = self.bytes.seek(SeekFrom::Start(offset));
        sought.map_err(|source| Error::Read { path: self.path.clone(), source })?;
        Ok(Read::by_ref(&mut self.bytes).take(length))
    }
}

/// Offsets and lengths by name.
type Members = BTreeMap<String, (u64, u64)>;

enum Wrong {
    Io(io::Error),
    Form(u64, String),
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn index<R: Read + Seek>(
    file: &mut R,
    length: u64,
    most: usize,
) -> std::result::Result<Members, Wrong> {
    let mut members = BTreeMap::new();
    let mut offset = 0;
    // What extensions say about the next member.
    let (mut next_name, mut next_size) = (None::<String>, None::<u64>);
    loop {
        let wrong = |message: &str| Wrong::Form(offset, message.to_owned());
        if length.saturating_sub(offset) < BLOCK as u64 {
            // Some writers leave out the blocks of zeros at the end.
            if offset == length && !members.is_empty() {
                return Ok(members);
            }
            return Err(wrong("The archive ends within a header"));
        }
        let mut header = [0; BLOCK];
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut header)?;
        if header == [0; BLOCK] {
            return Ok(members);
        }
        if !checksum_is_right(&header) {
            return Err(wrong("Expected the header of a member: its checksum is wrong"));
        }
        let kind = header[156];
        let own_size =
            number(&header[124..136]).ok_or_else(|| wrong("The size of a member is no number"))?;
        let is_extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
        let size = if is_extension { own_size } else { next_size.unwrap_or(own_size) };
        let data = offset + BLOCK as u64;
        let end =
            size.checked_next_multiple_of(BLOCK as u64).and_then(|size| data.checked_add(size));
        let end = match end {
            Some(end) if data.saturating_add(size) <= length => end,
            _ => return Err(wrong("A member is longer than the archive")),
        };
        if is_extension {
            if size > LONGEST_EXTENSION {
                return Err(wrong("A header about a member is too long"));
            }
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            file.read_exact(&mut bytes)?;
            match kind {
                b'L' => next_name = Some(until_zero(&bytes)),
                b'x' => {
                    for (key, value) in pax_records(&bytes) {
                        match key {
                            "path" => next_name = Some(value.into()),
                            "size" => next_size = value.parse().ok(),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        } else {
            let name = next_name.take().unwrap_or_else(|| name_of(&header));
            next_size = None;
            match kind {
                b'0' | 0 | b'7' => {
                    let name = safe(&name).ok_or_else(|| {
                        let name: String = name.chars().take(80).collect();
                        wrong(&format!("The member `{name}` leads out of the archive"))
                    })?;
                    members.insert(name, (data, size));
                    if members.len() > most {
                        return Err(wrong("There are too many members"));
                    }
                }
                // Folders carry nothing; links and devices could lead anywhere, and no package needs them.
                b'5' => {}
                _ => {
                    let name: String = name.chars().take(80).collect();
                    return Err(wrong(&format!(
                        "The member `{name}` is neither a file nor a folder"
                    )));
                }
            }
        }
        offset = end.min(length);
    }
}

/// The name without a leading `./`; `None` if it leads out.
fn safe(name: &str) -> Option<String> {
    let name = name.trim_start_matches("./");
    let leads_out =
        name.is_empty() || name.starts_with('/') || name.split('/').any(|part| part == "..");
    (!leads_out && !name.contains('\0')).then(|| name.to_owned())
}

fn name_of(header: &[u8; BLOCK]) -> String {
    let name = until_zero(&header[..100]);
    let prefix = until_zero(&header[345..500]);
    // GNU's old form has other things there.
    if header[257..263] == *b"ustar\0" && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
}

fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An octal number, or one of 63 bits after a byte of 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn checksum_is_right(header: &[u8]) -> bool {
    let sum = |from: &dyn Fn(u8) -> i64| -> i64 {
        header
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { from(*byte) })
            .sum()
    };
    let Some(said) = number(&header[148..156]).and_then(|said| i64::try_from(said).ok()) else {
        return false;
    };
    // Some old writers counted signed bytes.
    said == sum(&|byte| i64::from(byte)) || said == sum(&|byte| i64::from(byte.cast_signed()))
}

/// `LENGTH KEY=VALUE\n`, where the length counts all of it.
fn pax_records(mut bytes: &[u8]) -> Vec<(&str, &str)> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
        let length =
            std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| bytes.get(space + 1..length)) else { break };
        let text = std::str::from_utf8(record).unwrap_or_default().trim_end_matches('\n');
        records.extend(text.split_once('='));
        bytes = &bytes[length.unwrap_or(bytes.len())..];
    }
    records
}

/// For the fuzzer: any bytes as an archive.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = index(&mut io::Cursor::new(bytes), bytes.len() as u64, 1000);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn header(name: &str, kind: u8, size: usize) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[156] = kind;
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    /// An archive of these files.
    pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files {
            bytes.extend(header(name, b'0', content.len()));
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }

    fn message(bytes: &[u8]) -> String {
        match index(&mut Cursor::new(bytes), bytes.len() as u64, 1000) {
            Err(Wrong::Form(offset, message)) => format!("{message} (at offset {offset})"),
            _ => String::new(),
        }
    }

    #[test]
    fn archives_of_tar_itself_are_indexed_in_all_its_forms() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}.vmdk", "ü".repeat(90));
        std::fs::write(folder.path().join("a.ovf"), "descriptor").unwrap();
        std::fs::write(folder.path().join(&long), vec![7; 1000]).unwrap();
        for format in ["gnu", "pax", "oldgnu"] {
            let archive = folder.path().join(format!("{format}.ova"));
            let output = Command::new("tar")
                .args(["--format", format, "-cf"])
                .arg(&archive)
                .arg("-C")
                .arg(folder.path())
                .args(["a.ovf", &long])
                .output();
            let Ok(output) = output else {
                eprintln!("skipped: there is no tar");
                return;
            };
            assert!(output.status.success(), "{output:?}");
            let mut archive = Archive::open(&archive, 10, None).unwrap();
            assert_eq!(archive.names().collect::<Vec<_>>(), ["a.ovf", &long]);
            assert_eq!(archive.read("a.ovf").unwrap(), b"descriptor");
            assert_eq!(archive.read(&long).unwrap(), vec![7; 1000]);
            assert_eq!(archive.locate(&long).length, Some(1000));
        }
    }

    #[test]
    fn what_leads_out_or_ends_early_is_refused() {
        let absolute = [header("/etc/passwd", b'0', 0), vec![0; 1024]].concat();
        assert_eq!(
            message(&absolute),
            "The member `/etc/passwd` leads out of the archive (at offset 0)"
        );
        let up = [header("a", b'0', 0), header("b/../../c", b'0', 0)].concat();
        assert_eq!(message(&up), "The member `b/../../c` leads out of the archive (at offset 512)");
        let link = header("a", b'2', 0);
        assert_eq!(message(&link), "The member `a` is neither a file nor a folder (at offset 0)");
        assert_eq!(
            message(&header("a", b'0', 1)),
            "A member is longer than the archive (at offset 0)"
        );
        let early = [header("a", b'0', 0), vec![1; 100]].concat();
        assert_eq!(message(&early), "The archive ends within a header (at offset 512)");
        let mut broken = header("a", b'0', 0);
        broken[0] = b'b';
        assert_eq!(
            message(&broken),
            "Expected the header of a member: its checksum is wrong (at offset 0)"
        );
    }

    #[test]
    fn an_archive_that_was_cut_off_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.ova");
        std::fs::write(&path, &archive(&[("web.ovf", &[b'x'; 700])])[..1000]).unwrap();
        let message = first_member(&path).unwrap_err().to_string();
        let end = "The archive ends at byte 1000, within its member `web.ovf`: expected 700 bytes of it from byte 512 on";
        assert!(message.ends_with(end), "{message}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            fuzz(&bytes);
            is_tar(&bytes);
        }
    }
}
