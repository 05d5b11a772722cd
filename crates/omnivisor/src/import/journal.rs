//! What of an import is done, so that it goes on where it was interrupted.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::write_whole;
use crate::failure::{FAILED, Failure, USAGE};

/// Version of the file.
const VERSION: u64 = 1;
/// Its name in the new VM's folder.
const NAME: &str = ".import.json";

/// The steps that are done.
pub struct Journal {
    path: PathBuf,
    identity: Value,
    done: Vec<String>,
}

impl Journal {
    /// That of an earlier run on the same VM, or a new one in a folder that holds nothing yet.
    pub fn open(folder: &Path, identity: &Value) -> Result<Self, Failure> {
        let path = folder.join(NAME);
        let mut journal = Self { path, identity: identity.clone(), done: Vec::new() };
        let text = match std::fs::read_to_string(&journal.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let is_empty =
                    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
                if !is_empty {
                    return Err(Failure::new(
                        USAGE,
                        format!("The folder {} is not empty", folder.display()),
                    )
                    .help("name one that does not exist yet"));
                }
                journal.write()?;
                return Ok(journal);
            }
            Err(error) => {
                return Err(Failure::new(
                    FAILED,
                    format!("Cannot read {}: {error}", journal.path.display()),
                ));
            }
        };
        let damaged = || {
            Failure::new(FAILED, format!("{} is damaged", journal.path.display()))
                .help("remove the folder, and import again")
        };
        let found: Value = serde_json::from_str(&text).map_err(|_| damaged())?;
        if found["version"] != VERSION || found["checksum"] != checksum(&found["content"]) {
            return Err(damaged());
        }
        if found["content"]["identity"] != *identity {
            let text = format!(
                "{} holds an import of something else, or what it was made of was changed",
                folder.display()
            );
            return Err(Failure::new(USAGE, text).help("name another folder, or remove this one"));
        }
        let done = found["content"]["done"].as_array().ok_or_else(damaged)?;
        journal.done = done.iter().filter_map(|step| Some(step.as_str()?.to_owned())).collect();
        if !journal.done.is_empty() {
            tell!("Going on: {} is done.", journal.done.join(", "));
        }
        Ok(journal)
    }

    /// Whether a step was done, by this run or an earlier one.
    pub fn is_done(&self, step: &str) -> bool {
        self.done.iter().any(|done| done == step)
    }

    /// Notes that a step is done.
    pub fn done(&mut self, step: &str) -> Result<(), Failure> {
        self.done.push(step.to_owned());
        self.write()
    }

    fn write(&self) -> Result<(), Failure> {
        let content = json!({ "identity": self.identity, "done": self.done });
        let all = json!({ "version": VERSION, "checksum": checksum(&content), "content": content });
        write_whole(&self.path, all.to_string().as_bytes()).map_err(|error| {
            Failure::new(FAILED, format!("Cannot write {}: {error}", self.path.display()))
        })
    }
}

/// FNV-1a, 64 bits: against accidents, not against people.
fn checksum(content: &Value) -> String {
    let text = content.to_string();
    let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{sum:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_known_again_for_the_same_vm_only() {
        let folder = tempfile::tempdir().unwrap();
        let identity = json!({ "a": 1 });
        let Ok(mut journal) = Journal::open(folder.path(), &identity) else { panic!("new") };
        assert!(journal.done("disk a.qcow2").is_ok());
        let Ok(again) = Journal::open(folder.path(), &identity) else { panic!("again") };
        assert!(again.is_done("disk a.qcow2") && !again.is_done("changes"));
        assert!(Journal::open(folder.path(), &json!({ "a": 2 })).is_err());
        let path = folder.path().join(NAME);
        let text = std::fs::read_to_string(&path).unwrap().replace("a.qcow2", "b.qcow2");
        std::fs::write(path, text).unwrap();
        assert!(Journal::open(folder.path(), &identity).is_err());
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine"), "").unwrap();
        assert!(Journal::open(folder.path(), &json!({})).is_err());
    }
}
