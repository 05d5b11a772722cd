//! Descriptions in tar archives: their members by name, and where each lies. As a whole an archive may be compressed by gzip.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use disk::is_tar;
use disk::{FileSource, GzipSource, MemberKind, MemorySource, Source};

use super::description::{FileRef, FileState};
use super::text;
use crate::{Error, Result};

/// An archive's members by name.
pub(crate) struct Archive {
    path: PathBuf,
    source: Arc<dyn Source>,
    members: Members,
}

/// Where the bytes of files are, by name.
type Members = BTreeMap<Box<str>, Range<u64>>;

/// Whether these are the first bytes of what gzip has compressed.
pub(crate) fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b, 8])
}

/// The name and the bytes of the first member, if it is no larger than a description.
pub(crate) fn first_member(path: &Path) -> Result<(Box<str>, Vec<u8>)> {
    let failed = |error| failed(path, error);
    let source = FileSource::open(path, true).map_err(failed)?;
    let Some(first) = disk::Members::of(&source).next().transpose().map_err(failed)? else {
        return Ok(Default::default());
    };
    let length = if first.length <= text::LARGEST { first.length } else { 0 };
    let mut bytes = vec![0; length as usize];
    source.read_at(&mut bytes, first.offset).map_err(failed)?;
    Ok((first.name, bytes))
}

/// What is in a file, or in what gzip has compressed into it; `cache` as in [`ReadOptions::cache`](super::ReadOptions::cache).
pub(crate) fn open_unpacked(path: &Path, cache: Option<&Path>) -> disk::Result<Arc<dyn Source>> {
    let source: Arc<dyn Source> = Arc::new(FileSource::open(path, true)?);
    match GzipSource::is_gzip(&*source)? {
        true => Ok(Arc::new(GzipSource::open(source, cache)?)),
        false => Ok(source),
    }
}

impl Archive {
    /// Reads the headers of all members, which may be `most`; [`ReadOptions::cache`](super::ReadOptions::cache).
    pub fn open(path: &Path, most: usize, cache: Option<&Path>) -> Result<Self> {
        let failed = |error| failed(path, error);
        let source = open_unpacked(path, cache).map_err(failed)?;
        let members = index(&*source, path, most)?;
        let path = std::fs::canonicalize(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Ok(Self { path, source, members })
    }

    /// The archive's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all members.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(|name| &**name)
    }

    /// A member that a description names.
    pub fn locate(&self, name: &str) -> FileRef {
        match self.members.get(name.trim_start_matches("./")) {
            Some(range) => FileRef {
                offset: Some(range.start),
                length: Some(range.end - range.start),
                ..FileRef::new(name, Some(self.path.clone()), FileState::Member)
            },
            None => FileRef::new(name, None, FileState::Missing),
        }
    }

    /// The bytes of a member that is no larger than a description.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let wrong = |what| Err(text::error(&self.path, what));
        let Some(range) = self.members.get(name) else {
            return wrong(format!("There is no member `{name}`"));
        };
        let length = range.end - range.start;
        if length > text::LARGEST {
            return wrong(format!("The member `{name}` is too large for a description"));
        }
        let mut bytes = vec![0; length as usize];
        let read = self.source.read_at(&mut bytes, range.start);
        read.map_err(|error| failed(&self.path, error))?;
        Ok(bytes)
    }

    /// The bytes of a member one after another.
    pub fn stream(&self, name: &str) -> impl Read {
        let rest = self.members.get(name).cloned().unwrap_or_default();
        Stream { source: &*self.source, rest }
    }
}

/// What is left of a member.
struct Stream<'a> {
    source: &'a dyn Source,
    rest: Range<u64>,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.rest.end - self.rest.start;
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.source.read_at(&mut buffer[..count], self.rest.start).map_err(io::Error::other)?;
        self.rest.start += count as u64;
        Ok(count)
    }
}

fn index(source: &dyn Source, path: &Path, most: usize) -> Result<Members> {
    let mut members = Members::new();
    for member in disk::Members::of(source) {
        let member = member.map_err(|error| failed(path, error))?;
        let (name, header) = (&member.name, member.header());
        let wrong = |what| {
            text::error(path, format!("The member `{name:.80}` {what} (at offset {header})"))
        };
        match member.kind {
            MemberKind::File if leads_out(name) => return Err(wrong("leads out of the archive")),
            MemberKind::File if members.len() == most => return Err(wrong("is one too many")),
            MemberKind::File => {
                let end = member.offset + member.length;
                members.insert(member.name, member.offset..end);
            }
            MemberKind::Folder => {}
            // Links and devices could lead anywhere, and no package needs them.
            MemberKind::Other => return Err(wrong("is neither a file nor a folder")),
        }
    }
    Ok(members)
}

fn leads_out(name: &str) -> bool {
    name.is_empty()
        || name.starts_with('/')
        || name.contains('\0')
        || name.split('/').any(|part| part == "..")
}

/// What the archive itself is wrong with, and what the system refuses.
fn failed(path: &Path, error: disk::Error) -> Error {
    match error {
        disk::Error::Tar { .. } => text::error(path, error.to_string()),
        disk::Error::Open { source, .. } | disk::Error::Io { source, .. } => {
            Error::Read { path: path.to_owned(), source }
        }
        _ => Error::Read { path: path.to_owned(), source: io::Error::other(error) },
    }
}

/// For the fuzzer: any bytes as an archive.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = index(&MemorySource::read_only(bytes.to_vec()), Path::new("fuzz"), 1000);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 512;

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
        let source = MemorySource::read_only(bytes.to_vec());
        let error = index(&source, Path::new("a.ova"), 1000).unwrap_err().to_string();
        error.trim_start_matches("a.ova: ").to_owned()
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
            let archive = Archive::open(&archive, 10, None).unwrap();
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
            "The archive ends at byte 512, within the 1 bytes of its member `a` (at offset 512)"
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
        let end = "The archive ends at byte 1000, within the 700 bytes of its member `web.ovf` (at offset 512)";
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
