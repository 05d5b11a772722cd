//! systemd-boot: entries of the Boot Loader Specification and unified kernel images on the EFI system partition.

use super::{BootEntry, Device, FileRef, Menu, bls, pe, version};
use crate::volume::text_of;

const CONFIGURATION: &str = "/loader/loader.conf";
const IMAGES: &str = "/EFI/Linux";
/// Largest unified kernel image.
const MAX_IMAGE: u64 = 1 << 30;
const MAX_TEXT: u64 = 64 << 10;

/// systemd-boot itself is there.
pub fn is_installed(devices: &[Device]) -> bool {
    devices.iter().any(|device| device.tree.is_file("/EFI/systemd/systemd-bootx64.efi"))
}

/// Its menu; `None` where nothing of it is.
pub fn menu(devices: &[Device]) -> Option<Menu> {
    let mut entries = Vec::new();
    let mut images = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        // The ESP, and the extended boot loader partition, which has no other mark than these folders.
        for entry in bls::read_folder(&device.tree, "/loader/entries") {
            entries.push((index, entry));
        }
        if device.is_esp || device.tree.is_folder(IMAGES) {
            images.extend(unified_images(index, device));
        }
    }
    if entries.is_empty() && images.is_empty() {
        return None;
    }
    entries.sort_by(|(_, left), (_, right)| left.compare(right));
    images.sort_by(|left, right| version::compare(id_of(right), id_of(left)));
    let mut menu = Menu { loader: "systemd-boot", ..Menu::default() };
    menu.entries = entries
        .iter()
        .map(|(device, entry)| entry.boot_entry(*device, &|name| format!("${name}")))
        .chain(images)
        .collect();
    menu.default = Some(0);
    for (index, device) in devices.iter().enumerate() {
        let Ok(text) = device.tree.read_text(CONFIGURATION, MAX_TEXT) else { continue };
        menu.configuration = Some(FileRef::new(index, CONFIGURATION));
        let pattern = text.lines().rev().find_map(|line| line.trim().strip_prefix("default"));
        if let Some(pattern) = pattern.filter(|pattern| pattern.starts_with([' ', '\t'])) {
            let pattern = pattern.trim().to_lowercase();
            let is_it = |entry: &BootEntry| {
                let id = id_of(entry).to_lowercase();
                // Older versions of systemd-boot left out the extension.
                matches(&pattern, &id) || matches(&pattern, &format!("{id}.conf"))
            };
            menu.default = menu.entries.iter().position(is_it).or(menu.default);
        }
        break;
    }
    Some(menu)
}

fn id_of(entry: &BootEntry) -> &str {
    entry.id.as_deref().unwrap_or("")
}

fn unified_images(index: usize, device: &Device) -> Vec<BootEntry> {
    let names = device.tree.names(IMAGES);
    let images = names.into_iter().filter(|name| name.to_lowercase().ends_with(".efi"));
    images.take(64).filter_map(|name| unified_image(index, device, &name)).collect()
}

fn unified_image(index: usize, device: &Device, name: &str) -> Option<BootEntry> {
    let file = FileRef::new(index, format!("{IMAGES}/{name}"));
    let bytes = device.tree.read(&file.path, MAX_IMAGE).ok()?;
    pe::section(&bytes, ".linux")?;
    let text = |section| pe::section(&bytes, section).map(text_of).unwrap_or_default();
    let release = text(".osrel");
    let title = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let initrd = pe::section(&bytes, ".initrd").map(|_| file.section(".initrd"));
    // What addons and microcode sections would add is left out.
    let microcode = pe::section(&bytes, ".ucode").map(|_| file.section(".ucode"));
    Some(BootEntry {
        title: title.map_or_else(|| name.to_owned(), |title| title.trim_matches('"').to_owned()),
        id: Some(name.to_owned()),
        kernel: Some(file.section(".linux")),
        initrds: microcode.into_iter().chain(initrd).collect(),
        cmdline: text(".cmdline").trim().to_owned(),
        note: None,
    })
}

/// A shell pattern with `*` and `?` matches the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn the_default_is_a_pattern_or_the_newest() {
        let entry = |version: &str| {
            format!(
                "title Debian\nversion {version}\nsort-key debian\nlinux /l-{version}\noptions a=b\n"
            )
        };
        let (old, new) = (entry("6.1.0-9"), entry("6.1.0-13"));
        let mut files = vec![
            ("/loader/entries/m-6.1.0-9.conf", old.as_str()),
            ("/loader/entries/m-6.1.0-13+3.conf", &new),
        ];
        let devices = |files: &[(&str, &str)]| {
            [Device {
                name: "hd0,gpt1".into(),
                tree: Files::tree(files),
                uuid: None,
                label: None,
                part_uuid: None,
                is_esp: true,
            }]
        };
        let menu = |files: &[(&str, &str)]| menu(&devices(files)).unwrap();
        let found = menu(&files);
        assert_eq!(
            found.entries[found.default.unwrap()].kernel,
            Some(FileRef::new(0, "/l-6.1.0-13"))
        );
        files.push(("/loader/loader.conf", "timeout 3\ndefault m-*-9.conf\n"));
        let found = menu(&files);
        assert_eq!(
            found.entries[found.default.unwrap()].kernel,
            Some(FileRef::new(0, "/l-6.1.0-9"))
        );
        assert!(matches("a*c?", "abbcd") && !matches("a*c", "abcd") && matches("*", ""));
    }
}
