//! The files of an OVF package: a folder, or the members of an `.ova`, and what its manifest says of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::super::description::{FileRef, Level, Note};
use super::super::folder::Folder;
use super::super::tar::Archive;
use super::super::text;
use crate::{Error, Result};

/// Where the files of a package are.
pub(crate) enum Package<'a> {
    /// In a folder.
    Folder(&'a Folder),
    /// In an archive.
    Archive(Archive),
}

/// A line of a manifest.
struct Entry {
    algorithm: Algorithm,
    name: String,
    digest: String,
}

#[derive(Clone, Copy)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

impl Package<'_> {
    /// A file that the description names.
    pub fn locate(&self, href: &str) -> FileRef {
        if href.contains("://") {
            return FileRef::remote(href);
        }
        match self {
            Self::Folder(folder) => match folder.locate(href, &[]) {
                found if found.is_usable() => found,
                // A reference is a URI: names with spaces and umlauts are written with per cents by some.
                missing => match text::percent_decoded(href) {
                    Some(decoded) => {
                        FileRef { written: href.into(), ..folder.locate(&decoded, &[]) }
                    }
                    None => missing,
                },
            },
            Self::Archive(archive) => {
                let decoded = text::percent_decoded(href).map(|name| archive.locate(&name));
                let found = archive.locate(href);
                if found.is_usable() { found } else { decoded.unwrap_or(found) }
            }
        }
    }

    /// Checks the description, and if `all`, every file, against the manifest; tells what was found.
    ///
    /// # Errors
    /// A digest is wrong.
    pub fn check(&self, descriptor: &str, all: bool) -> Result<Vec<Note>> {
        let stem = descriptor.strip_suffix(".ovf").unwrap_or(descriptor);
        let mut notes = Vec::new();
        let mut note = |level, message: String| notes.push(Note { level, message });
        let certificate = format!("{stem}.cert");
        if self.locate(&certificate).is_usable() {
            note(
                Level::Info,
                format!("It is signed ({certificate}); the signature is not checked"),
            );
        }
        let manifest = format!("{stem}.mf");
        let Some(bytes) = self.read_if_there(&manifest)? else {
            note(Level::Info, "It has no manifest: its files cannot be checked".into());
            return Ok(notes);
        };
        let entries = parse_manifest(&bytes, &manifest)?;
        let mut unchecked = 0;
        for entry in &entries {
            let file = self.locate(&entry.name);
            if !file.is_usable() {
                note(
                    Level::Warning,
                    format!("The manifest names `{}`, which is not there", entry.name),
                );
                continue;
            }
            if !all && entry.name != descriptor {
                unchecked += 1;
                continue;
            }
            let found = self.digest(&file, entry.algorithm)?;
            if found != entry.digest {
                return Err(text::error(
                    Path::new(&manifest),
                    format!(
                        "`{}` is not what the manifest says: it was damaged or changed",
                        entry.name
                    ),
                ));
            }
        }
        if !entries.iter().any(|entry| entry.name == descriptor) {
            note(Level::Warning, "The manifest does not speak of the description itself".into());
        }
        if unchecked > 0 {
            note(
                Level::Info,
                format!(
                    "The manifest fits the description; {unchecked} of its files {} not checked (--verify)",
                    if unchecked == 1 { "was" } else { "were" }
                ),
            );
        } else {
            note(Level::Info, "All files are as the manifest says".into());
        }
        Ok(notes)
    }

    fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let file = self.locate(name);
        if !file.is_usable() {
            return Ok(None);
        }
        match self {
            Self::Archive(archive) => archive.read(name).map(Some),
            Self::Folder(_) => {
                text::read_file(file.path.as_deref().unwrap_or(Path::new(name))).map(Some)
            }
        }
    }

    fn digest(&self, file: &FileRef, algorithm: Algorithm) -> Result<String> {
        match self {
            Self::Archive(archive) => {
                let path = archive.path().to_owned();
                digest(archive.stream(&file.written), algorithm)
                    .map_err(|source| Error::Read { path, source })
            }
            Self::Folder(_) => {
                let path = file.path.clone().unwrap_or_default();
                let result = File::open(&path).and_then(|file| digest(file, algorithm));
                result.map_err(|source| Error::Read { path, source })
            }
        }
    }
}

fn digest(mut from: impl Read, algorithm: Algorithm) -> io::Result<String> {
    let mut buffer = vec![0; 256 << 10];
    let mut run = |update: &mut dyn FnMut(&[u8])| -> io::Result<()> {
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                count => update(&buffer[..count]),
            }
        }
    };
    Ok(match algorithm {
        Algorithm::Sha1 => {
            let mut state = Sha1::new();
            run(&mut |bytes| state.update(bytes))?;
            hexadecimal(&state.finalize())
        }
        Algorithm::Sha256 => {
            let mut state = Sha256::new();
            run(&mut |bytes| state.update(bytes))?;
            hexadecimal(&state.finalize())
        }
        Algorithm::Sha512 => {
            let mut state = Sha512::new();
            run(&mut |bytes| state.update(bytes))?;
            hexadecimal(&state.finalize())
        }
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `SHA256(name)= digest`, with or without spaces.
fn parse_manifest(bytes: &[u8], name: &str) -> Result<Vec<Entry>> {
    let text = text::decode_named(bytes, None);
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let entry = parse_entry(line).ok_or_else(|| Error::File {
            place: crate::Place { file: name.into(), position: Some((index + 1, 1)) },
            message: "Expected `SHA256(name)= digest`".into(),
        })?;
        entries.push(entry);
    }
    Ok(entries)
}

fn parse_entry(line: &str) -> Option<Entry> {
    let (algorithm, rest) = line.split_once('(')?;
    let (name, digest) = rest.rsplit_once(')')?;
    let digest = digest.trim().strip_prefix('=')?.trim().to_ascii_lowercase();
    let (algorithm, length) = match algorithm.trim().to_ascii_uppercase().as_str() {
        "SHA1" => (Algorithm::Sha1, 40),
        "SHA256" => (Algorithm::Sha256, 64),
        "SHA512" => (Algorithm::Sha512, 128),
        _ => return None,
    };
    (digest.len() == length).then(|| Entry { algorithm, name: name.to_owned(), digest })
}

/// For the fuzzer: any bytes as a manifest.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = parse_manifest(bytes, "x.mf");
}
