//! How far a file is: kept beside it while it is pulled.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{hexadecimal, write_whole};
use crate::Result;

const VERSION: u32 = 1;
/// Longest of these files.
const LONGEST: u64 = 64 << 10;

/// So much of a file is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Bytes from its beginning.
    pub done: u64,
    /// Their hash.
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Note {
    version: u32,
    length: u64,
    stamp: String,
    #[serde(flatten)]
    kept: Kept,
}

impl Kept {
    /// What is noted of the file of that length in that state; `None` if nothing, or of another state.
    pub fn read(path: &Path, length: u64, stamp: &str) -> Option<Self> {
        if std::fs::metadata(path).ok()?.len() > LONGEST {
            return None;
        }
        let text = std::fs::read_to_string(path).ok()?;
        let (body, sum) = text.trim_end().rsplit_once('\n')?;
        let note: Note = serde_json::from_str(body).ok()?;
        let is_whole = sum == hexadecimal(&Sha256::digest(body));
        let fits = note.version == VERSION && note.length == length && note.stamp == stamp;
        (is_whole && fits && note.kept.done <= length).then_some(note.kept)
    }

    /// Notes it.
    pub fn write(self, path: &Path, length: u64, stamp: &str) -> Result<()> {
        let note = Note { version: VERSION, length, stamp: stamp.into(), kept: self };
        let body = serde_json::to_string(&note).unwrap_or_default();
        let sum = hexadecimal(&Sha256::digest(&body));
        write_whole(path, format!("{body}\n{sum}\n").as_bytes())
    }
}
