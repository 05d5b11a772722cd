//! Entries of the Boot Loader Specification, type 1 (UAPI.1).

use std::cmp::Ordering;

use super::{BootEntry, FileRef, version};
use crate::tree::Tree;

/// Largest entry.
const MAX_ENTRY: u64 = 64 << 10;
/// Most entries in one folder.
const MAX_ENTRIES: usize = 1000;

/// What an entry's file says.
#[derive(Clone, Debug, Default)]
pub struct Type1 {
    pub id: String,
    /// What its file's name has behind that.
    pub ending: &'static str,
    pub title: Option<String>,
    pub version: String,
    pub machine_id: String,
    pub sort_key: Option<String>,
    pub linux: Option<String>,
    pub initrds: Vec<String>,
    pub options: Vec<String>,
    pub efi: Option<String>,
    pub architecture: Option<String>,
    /// It was started in vain as often as it may be.
    pub is_bad: bool,
}

/// The entries in a folder as GRUB's `blscfg` shows them, the newest version first. `variable` replaces `$name`.
pub fn entries(
    device: usize,
    tree: &Tree,
    folder: &str,
    variable: &dyn Fn(&str) -> String,
) -> Vec<BootEntry> {
    let mut found = read_folder(tree, folder);
    for entry in found.iter_mut().filter(|entry| entry.options.is_empty()) {
        entry.options.push(variable("default_kernelopts"));
    }
    found.sort_by(|left, right| version::compare(&right.id, &left.id));
    found.iter().map(|entry| entry.boot_entry(device, variable)).collect()
}

/// The entries in a folder, in no order.
pub fn read_folder(tree: &Tree, folder: &str) -> Vec<Type1> {
    let names = tree.names(folder).into_iter().take(MAX_ENTRIES);
    names
        .filter_map(|name| {
            let stem = name.strip_suffix(".conf")?;
            let text = tree.read_text(&format!("{folder}/{name}"), MAX_ENTRY).ok()?;
            Some(Type1::parse(stem, &text))
        })
        .collect()
}

impl Type1 {
    fn parse(stem: &str, text: &str) -> Self {
        let (id, is_bad) = without_count(stem);
        let mut entry = Self { id: id.to_owned(), ending: ".conf", is_bad, ..Self::default() };
        for line in text.lines() {
            let line = line.trim();
            let Some((key, value)) = line.split_once([' ', '\t']) else { continue };
            let value = value.trim().to_owned();
            match key {
                "title" => entry.title = Some(value),
                "version" => entry.version = value,
                "machine-id" => entry.machine_id = value,
                "sort-key" => entry.sort_key = Some(value),
                "linux" => entry.linux = Some(value),
                "initrd" => entry.initrds.push(value),
                "options" => entry.options.push(value),
                "efi" | "uki" => entry.efi = Some(value),
                "architecture" => entry.architecture = Some(value.to_lowercase()),
                _ => {}
            }
        }
        entry
    }

    /// What it boots.
    pub fn boot_entry(&self, device: usize, variable: &dyn Fn(&str) -> String) -> BootEntry {
        let expand = |text: &str| replace_variables(text, variable);
        let file = |path: &str| FileRef::new(device, absolute(&expand(path)));
        // Fedora writes "initrd /initramfs.img $tuned_initrd" into one line.
        let initrds = self.initrds.iter().flat_map(|line| {
            let paths: Vec<String> = expand(line).split_whitespace().map(str::to_owned).collect();
            paths
        });
        BootEntry {
            title: self.title.clone().unwrap_or_else(|| self.id.clone()),
            id: Some(self.id.clone()),
            kernel: self.linux.as_deref().map(file),
            initrds: initrds.map(|path| FileRef::new(device, absolute(&path))).collect(),
            cmdline: expand(&self.options.join(" ")).trim().to_owned(),
            note: self.efi.as_ref().map(|path| format!("it starts the EFI program {path}")),
        }
    }

    /// Order in systemd-boot's menu (UAPI.1, "Sorting").
    pub fn compare(&self, other: &Self) -> Ordering {
        let bad = self.is_bad.cmp(&other.is_bad);
        let keys = match (&self.sort_key, &other.sort_key) {
            (Some(left), Some(right)) => left
                .cmp(right)
                .then_with(|| self.machine_id.cmp(&other.machine_id))
                .then_with(|| version::compare(&other.version, &self.version)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        let name = |entry: &Self| format!("{}{}", entry.id, entry.ending);
        bad.then(keys).then_with(|| version::compare(&name(other), &name(self)))
    }
}

/// A name without what counts its starts behind it (`+3`, or `+2-1` after one in vain), and whether none is left.
pub fn without_count(stem: &str) -> (&str, bool) {
    let counted = stem.rsplit_once('+').and_then(|(id, count)| {
        let (left, done) = count.split_once('-').unwrap_or((count, "0"));
        let is_number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
        Some((id, left.parse::<u32>().ok().filter(|_| is_number(left) && is_number(done))?))
    });
    counted.map_or((stem, false), |(id, left)| (id, left == 0))
}

pub fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn replace_variables(text: &str, variable: &dyn Fn(&str) -> String) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        done.push_str(before);
        let (name, behind) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(found) => found,
            None => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
                after.split_at(end)
            }
        };
        done.push_str(&variable(name));
        rest = behind;
    }
    done.push_str(rest);
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn only_what_counts_starts_is_no_part_of_a_name() {
        for (stem, expected) in [
            ("m-6.1", ("m-6.1", false)),
            ("m-6.1+3", ("m-6.1", false)),
            ("m-6.1+0-3", ("m-6.1", true)),
            ("m-6.1.0+1-amd64", ("m-6.1.0+1-amd64", false)),
            ("m-6.1+debug", ("m-6.1+debug", false)),
            ("m-6.1++3", ("m-6.1+", false)),
            ("m+", ("m+", false)),
        ] {
            assert_eq!(without_count(stem), expected, "{stem}");
        }
    }

    #[test]
    fn fedoras_entries_are_read() {
        let tree = Files::tree(&[
            (
                "/loader/entries/abc-5.14.0-70.el9.x86_64.conf",
                "title Alma (5.14.0-70)\nversion 5.14.0-70\nlinux /vmlinuz-70\ninitrd /initramfs-70.img $tuned_initrd\n\
                 options root=/dev/mapper/al-root ro $kernelopts\ngrub_users $grub_users\n",
            ),
            (
                "/loader/entries/abc-5.14.0-427.el9.x86_64.conf",
                "title Alma (427)\nlinux vmlinuz-427\n",
            ),
            ("/loader/entries/README", "no entry"),
        ]);
        let variable = |name: &str| match name {
            "kernelopts" => "quiet".into(),
            "default_kernelopts" => "root=/dev/sda1 ro".into(),
            _ => String::new(),
        };
        let entries = entries(0, &tree, "/loader/entries", &variable);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].kernel, Some(FileRef::new(0, "/vmlinuz-427")));
        assert_eq!(entries[0].cmdline, "root=/dev/sda1 ro");
        assert_eq!(entries[1].initrds, [FileRef::new(0, "/initramfs-70.img")]);
        assert_eq!(entries[1].cmdline, "root=/dev/mapper/al-root ro quiet");
        assert_eq!(entries[1].id.as_deref(), Some("abc-5.14.0-70.el9.x86_64"));
    }
}
