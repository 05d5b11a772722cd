//! Paths of the files that a VM is made of, there and here.

use std::collections::BTreeMap;

/// The file that an image at `path` calls `name`: in the image's folder or below, unless it may be `anywhere`.
pub(super) fn beside(path: &str, name: &str, anywhere: bool) -> Option<String> {
    if name.is_empty() || name.contains('\0') {
        return None;
    }
    if name.starts_with('/') {
        return anywhere.then(|| name.to_owned());
    }
    let is_plain = |part: &str| !matches!(part, "" | "..");
    if !anywhere && !name.split('/').all(is_plain) {
        return None;
    }
    Some(format!("{}/{name}", folder(path)))
}

/// The folder of a path.
pub(super) fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(folder, _)| folder)
}

/// Names within one folder here for files of several folders there.
#[derive(Default)]
pub(super) struct Names {
    /// The VM's own folder, whose paths are kept.
    pub home: Option<String>,
    /// Paths by their names here.
    given: BTreeMap<String, String>,
}

impl Names {
    /// Those of a VM with this folder.
    pub fn of(home: Option<String>) -> Self {
        Self { home, given: BTreeMap::new() }
    }

    /// The name here of the file at `path`; a device gets the ending of a disk.
    pub fn add(&mut self, path: &str, is_device: bool) -> String {
        if let Some((name, _)) = self.given.iter().find(|(_, known)| *known == path) {
            return name.clone();
        }
        let within =
            self.home.as_deref().and_then(|home| path.strip_prefix(home)?.strip_prefix('/'));
        let plain =
            within.filter(|name| name.split('/').all(|part| !matches!(part, "" | "." | "..")));
        let last = path.rsplit('/').next().unwrap_or(path);
        let mut name = plain.unwrap_or(last).to_owned();
        if is_device {
            name.push_str(".raw");
        }
        let mut number = 1;
        let first = name.clone();
        while self.given.contains_key(&name) {
            name = format!("{number}/{first}");
            number += 1;
        }
        self.given.insert(name.clone(), path.to_owned());
        name
    }
}

/// `text` with other words for these paths, wherever one stands as a whole; as it is and as XML writes it.
pub(super) fn replaced(text: &[u8], paths: &[(String, String)]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(text) else { return text.to_vec() };
    let mut pairs: Vec<(String, String)> = paths.to_vec();
    let escape = |text: &str| quick_xml::escape::escape(text).into_owned();
    pairs.extend(paths.iter().map(|(path, name)| (escape(path), escape(name))));
    pairs.retain(|(path, name)| !path.is_empty() && path != name);
    // The longest first, or a part of it would be taken for the whole.
    pairs.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    let is_of_path = |letter: char| letter.is_alphanumeric() || "_.-/".contains(letter);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let before = out.chars().next_back().is_some_and(is_of_path);
        let found = pairs.iter().find(|(path, _)| {
            !before
                && rest
                    .strip_prefix(path.as_str())
                    .is_some_and(|after| !after.starts_with(is_of_path))
        });
        match found {
            Some((path, name)) => {
                out.push_str(name);
                rest = &rest[path.len()..];
            }
            None => {
                let letter = rest.chars().next().map_or(1, char::len_utf8);
                out.push_str(&rest[..letter]);
                rest = &rest[letter..];
            }
        }
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_name_files_of_their_folder_and_no_others() {
        let named = |name| beside("/vms/a.qcow2", name, false);
        assert_eq!(named("b.raw").as_deref(), Some("/vms/b.raw"));
        assert_eq!(named("x/b.raw").as_deref(), Some("/vms/x/b.raw"));
        for wrong in ["", "../b", "/etc/shadow", "x/../../b", "a\0"] {
            assert_eq!(named(wrong), None, "{wrong}");
        }
        assert_eq!(beside("/vms/a", "/base/b", true).as_deref(), Some("/base/b"));
    }

    #[test]
    fn files_of_several_folders_get_names_of_their_own() {
        let mut names = Names::of(Some("/vms/web".into()));
        assert_eq!(names.add("/vms/web/Snapshots/{1}.vdi", false), "Snapshots/{1}.vdi");
        assert_eq!(names.add("/base/disk.vdi", false), "disk.vdi");
        assert_eq!(names.add("/other/disk.vdi", false), "1/disk.vdi");
        assert_eq!(names.add("/base/disk.vdi", false), "disk.vdi");
        assert_eq!(names.add("/dev/vg/root", true), "root.raw");
    }

    #[test]
    fn a_description_names_the_files_that_were_copied() {
        let text = "disk=['phy:/dev/vg/web,xvda,w', '/dev/vg/web2,raw,xvdb'] <a f='/v/a&amp;b'/>";
        let paths = [("/dev/vg/web", "web.raw"), ("/v/a&b", "a&b"), ("web2", "no")];
        let paths = paths.map(|(path, name)| (path.to_owned(), name.to_owned()));
        let text = String::from_utf8(replaced(text.as_bytes(), &paths)).unwrap();
        assert_eq!(text, "disk=['phy:web.raw,xvda,w', '/dev/vg/web2,raw,xvdb'] <a f='a&amp;b'/>");
    }
}
