//! Reading a machine: from a root folder, or from a [`Capture`]. Whatever is read from a folder is
//! written down on the way, so that a capture has exactly what a replay asks for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, OFlags};
use rustix::io::Errno;

use crate::capture::Capture;
use crate::facts::{Caller, Msr, Node};

/// Where a machine is read from.
pub(crate) struct Root<'a> {
    origin: Origin<'a>,
    record: RefCell<Capture>,
}

enum Origin<'a> {
    Folder(&'a Path),
    Capture(&'a Capture),
}

/// Files of `/proc` and `/sys` are short; a longer one is not what we look for.
const LONGEST_FILE: u64 = 256 << 10;
/// Folders with more entries than this are cut.
const LARGEST_FOLDER: usize = 4096;

impl<'a> Root<'a> {
    pub(crate) fn folder(path: &'a Path) -> Self {
        Self { origin: Origin::Folder(path), record: RefCell::default() }
    }

    pub(crate) fn capture(capture: &'a Capture) -> Self {
        Self { origin: Origin::Capture(capture), record: RefCell::default() }
    }

    /// What has been read so far.
    pub(crate) fn into_record(self) -> Capture {
        self.record.into_inner()
    }

    /// A file's text, cut down by `keep`; absent if it is not there or may not be read.
    pub(crate) fn read_part(&self, path: &str, keep: impl Fn(&str) -> String) -> Option<String> {
        let result = match &self.origin {
            Origin::Folder(root) => read_text(&inside(root, path)),
            Origin::Capture(capture) if capture.denied.contains(path) => Err(Errno::ACCESS.into()),
            Origin::Capture(capture) => capture.files.get(path).cloned().ok_or(Errno::NOENT.into()),
        };
        let mut record = self.record.borrow_mut();
        match result {
            Ok(text) => {
                let text = keep(&text);
                if !text.is_empty() {
                    record.files.insert(path.to_owned(), text.clone());
                }
                Some(text)
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    record.denied.insert(path.to_owned());
                }
                None
            }
        }
    }

    /// A file's text without blanks at its ends.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        self.read_part(path, |text| text.trim().to_owned())
    }

    /// Whether the file is there, readable or not. Its contents are not recorded.
    pub(crate) fn has_file(&self, path: &str) -> bool {
        let there = match &self.origin {
            Origin::Folder(root) => inside(root, path).exists(),
            Origin::Capture(capture) => capture.present.contains(path),
        };
        if there {
            self.record.borrow_mut().present.insert(path.to_owned());
        }
        there
    }

    /// The names in a folder that `keep` wants; absent if there is no such folder.
    pub(crate) fn list(&self, path: &str, keep: impl Fn(&str) -> bool) -> Option<BTreeSet<String>> {
        let names: BTreeSet<String> = match &self.origin {
            Origin::Folder(root) => fs::read_dir(inside(root, path))
                .ok()?
                .take(LARGEST_FOLDER)
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| keep(name))
                .collect(),
            Origin::Capture(capture) => {
                capture.folders.get(path)?.iter().filter(|name| keep(name)).cloned().collect()
            }
        };
        self.record.borrow_mut().folders.insert(path.to_owned(), names.clone());
        Some(names)
    }

    /// A device node or socket, and whether it can be opened. With `open` it is really opened,
    /// which tells more than the permission bits: a container's device rules, or a node without a
    /// driver behind it.
    pub(crate) fn node(&self, path: &str, open: bool) -> Option<Node> {
        let node = match &self.origin {
            Origin::Folder(root) => self.live_node(&inside(root, path), open)?,
            Origin::Capture(capture) => capture.nodes.get(path)?.clone(),
        };
        self.record.borrow_mut().nodes.insert(path.to_owned(), node.clone());
        Some(node)
    }

    fn live_node(&self, path: &Path, open: bool) -> Option<Node> {
        let metadata = fs::metadata(path).ok()?;
        let outcome = if open && metadata.file_type().is_char_device() {
            OpenOptions::new().read(true).write(true).open(path).map(drop)
        } else {
            let wanted = Access::READ_OK | Access::WRITE_OK;
            rustix::fs::accessat(CWD, path, wanted, AtFlags::EACCESS).map_err(io::Error::from)
        };
        Some(Node {
            mode: metadata.mode() & 0o7777,
            owner: metadata.uid(),
            group: self.group_name(metadata.gid()),
            errno: outcome
                .err()
                .map(|error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())),
        })
    }

    fn group_name(&self, number: u32) -> String {
        let text = match &self.origin {
            Origin::Folder(root) => read_text(&inside(root, "/etc/group")).unwrap_or_default(),
            Origin::Capture(_) => String::new(),
        };
        groups(&text)
            .find(|group| group.number == number)
            .map_or_else(|| number.to_string(), |group| group.name.to_owned())
    }

    /// The first folder of PATH that has the program, as a path.
    pub(crate) fn program(&self, name: &str) -> Option<String> {
        let found = match &self.origin {
            Origin::Folder(root) => {
                search_path().into_iter().map(|folder| folder.join(name)).find(|path| {
                    let file = inside(root, &path.to_string_lossy());
                    fs::metadata(&file)
                        .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
                })?
            }
            Origin::Capture(capture) => PathBuf::from(capture.programs.get(name)?),
        };
        let found = found.to_string_lossy().into_owned();
        self.record.borrow_mut().programs.insert(name.to_owned(), found.clone());
        Some(found)
    }

    /// A model-specific register of processor 0 through the `msr` driver; absent if that is not
    /// loaded.
    pub(crate) fn msr(&self, number: u32) -> Option<Msr> {
        let key = format!("{number:#x}");
        let reading = match &self.origin {
            Origin::Folder(root) => live_msr(&inside(root, "/dev/cpu/0/msr"), number)?,
            Origin::Capture(capture) => parse_msr(capture.msrs.get(&key)?)?,
        };
        let value = match reading {
            Msr::Value(value) => format!("{value:#x}"),
            Msr::Errno(number) => format!("errno {number}"),
        };
        self.record.borrow_mut().msrs.insert(key, value);
        Some(reading)
    }

    /// The kernel log's lines that `keep` wants, from the kernel itself or from where the
    /// distribution wrote it at boot.
    pub(crate) fn kernel_log(&self, keep: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let lines = match &self.origin {
            Origin::Folder(root) => read_kernel_messages(&inside(root, "/dev/kmsg"))
                .or_else(|_| read_text(&inside(root, "/var/log/dmesg")).map(last_boot)),
            Origin::Capture(capture) => capture.log.clone().ok_or(Errno::ACCESS.into()),
        };
        let Ok(lines) = lines else {
            self.record.borrow_mut().denied.insert("/dev/kmsg".to_owned());
            return None;
        };
        let kept: Vec<String> = lines
            .into_iter()
            .filter(|line| keep(line))
            .map(|line| line.chars().take(LONGEST_LINE).collect())
            .take(MOST_LINES)
            .collect();
        self.record.borrow_mut().log = Some(kept.clone());
        Some(kept)
    }

    /// The user of this process, or the one who captured.
    pub(crate) fn caller(&self) -> Caller {
        let caller = match &self.origin {
            Origin::Folder(root) => live_caller(root),
            Origin::Capture(capture) => capture.caller.clone(),
        };
        self.record.borrow_mut().caller = caller.clone();
        caller
    }

    /// What was there but could not be read for lack of permission.
    pub(crate) fn denied(&self) -> BTreeSet<String> {
        self.record.borrow().denied.clone()
    }
}

/// Kernel log lines kept, and characters of each.
const MOST_LINES: usize = 64;
const LONGEST_LINE: usize = 240;
/// The kernel's log buffer holds at most a few ten thousand records.
const MOST_RECORDS: usize = 200_000;

fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    // A pipe or a device in the place of a file must not block us.
    let file =
        OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    file.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// PATH, and the folders of administrators' programs that an ordinary user's PATH lacks.
fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    folders.extend(
        ["/usr/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/lib/xen/bin"].map(PathBuf::from),
    );
    folders
}

fn live_msr(path: &Path, number: u32) -> Option<Msr> {
    let attempt = || {
        let file = File::open(path)?;
        let mut value = [0; 8];
        // An ordinary file in its place would be read at a byte offset and give nonsense.
        if !file.metadata()?.file_type().is_char_device() {
            return Err(io::Error::from(Errno::NODEV));
        }
        file.read_exact_at(&mut value, number.into())?;
        Ok(u64::from_le_bytes(value))
    };
    match attempt() {
        Ok(value) => Some(Msr::Value(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Msr::Errno(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()))),
    }
}

fn parse_msr(text: &str) -> Option<Msr> {
    if let Some(number) = text.strip_prefix("errno ") {
        return number.parse().ok().map(Msr::Errno);
    }
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(Msr::Value)
}

/// One `read` of `/dev/kmsg` returns one record, `priority,sequence,time,flags;text`, followed by
/// lines of details.
fn read_kernel_messages(path: &Path) -> io::Result<Vec<String>> {
    let mut file =
        OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    if !file.metadata()?.file_type().is_char_device() {
        return Err(Errno::NODEV.into());
    }
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    for _ in 0..MOST_RECORDS {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                let text = text.split_once(';').map_or(&*text, |(_, text)| text);
                lines.push(text.lines().next().unwrap_or_default().to_owned());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // The record was overwritten while we came to it; the next read is at the oldest that
            // is left.
            Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}

/// A log file may hold several boots; what an older kernel said is not true any more.
fn last_boot(text: String) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.iter().rposition(|line| line.contains("Linux version ")).unwrap_or(0);
    lines[start..].iter().map(|line| (*line).to_owned()).collect()
}

struct Group<'t> {
    name: &'t str,
    number: u32,
    members: &'t str,
}

/// The lines of `/etc/group`: name, password, number, members.
fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?.parse().ok()?;
        Some(Group { name, number, members: fields.next().unwrap_or_default() })
    })
}

fn live_caller(root: &Path) -> Caller {
    let euid = rustix::process::geteuid().as_raw();
    let mut numbers: Vec<u32> =
        rustix::process::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect();
    numbers.push(rustix::process::getegid().as_raw());
    let group_file = read_text(&inside(root, "/etc/group")).unwrap_or_default();
    let passwd = read_text(&inside(root, "/etc/passwd")).unwrap_or_default();
    let user = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(euid)).then_some(name)
    });
    let of_this_process = groups(&group_file).filter(|group| numbers.contains(&group.number));
    let of_the_user = groups(&group_file).filter(|group| {
        user.is_some_and(|user| group.members.split(',').any(|member| member == user))
    });
    Caller {
        euid,
        groups: of_this_process.map(|group| group.name.to_owned()).collect(),
        assigned_groups: of_the_user.map(|group| group.name.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_by_name_number_and_members() {
        let text = "root:x:0:\nkvm:x:104:ann,bob\nbroken\nhuge:x:99999999999:\n";
        let found: Vec<_> =
            groups(text).map(|group| (group.name, group.number, group.members)).collect();
        assert_eq!(found, [("root", 0, ""), ("kvm", 104, "ann,bob")]);
    }

    #[test]
    fn only_the_last_boot_of_a_log_file_counts() {
        let log = "Linux version 5\nkvm: disabled by bios\nLinux version 6\nall well\n";
        assert_eq!(last_boot(log.into()), ["Linux version 6", "all well"]);
    }

    #[test]
    fn a_register_is_a_value_or_an_error() {
        assert_eq!(parse_msr("0x5"), Some(Msr::Value(5)));
        assert_eq!(parse_msr("errno 13"), Some(Msr::Errno(13)));
        assert_eq!(parse_msr("five"), None);
    }
}
