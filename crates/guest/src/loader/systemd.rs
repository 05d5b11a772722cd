//! systemd-boot: entries of the Boot Loader Specification and unified kernel images on the EFI system partition.

use super::bls::Type1;
use super::{BootEntry, Device, FileRef, Menu, bls, pe};
use crate::volume::text_of;

const CONFIGURATION: &str = "/loader/loader.conf";
const IMAGES: &str = "/EFI/Linux";
const MAX_TEXT: u64 = 64 << 10;

/// systemd-boot itself is there, on the disk that is started from.
pub fn is_installed(devices: &[Device]) -> bool {
    let disk = |device: &Device| device.name.split(',').next().map(str::to_owned);
    let first = devices.first().and_then(disk);
    let mut devices = devices.iter().filter(|device| disk(device) == first);
    devices.any(|device| device.tree.is_file("/EFI/systemd/systemd-bootx64.efi"))
}

/// Its menu; `None` where nothing of it is.
pub fn menu(devices: &[Device]) -> Option<Menu> {
    let mut entries: Vec<(Type1, BootEntry)> = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        // The ESP, and the extended boot loader partition, which has no other mark than these folders.
        let found = bls::read_folder(&device.tree, "/loader/entries").into_iter();
        entries.extend(found.filter(|entry| is_listed(entry, device)).map(|entry| {
            let boots = entry.boot_entry(index, &|name| format!("${name}"));
            (entry, boots)
        }));
        if device.is_esp || device.tree.is_folder(IMAGES) {
            entries.extend(unified_images(index, device));
        }
    }
    if entries.is_empty() {
        return None;
    }
    entries.sort_by(|(left, _), (right, _)| left.compare(right));
    let mut menu = Menu { loader: "systemd-boot", ..Menu::default() };
    menu.entries = entries.into_iter().map(|(_, entry)| entry).collect();
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

/// What is made for other processors, or is not there, is left out of the menu.
fn is_listed(entry: &Type1, device: &Device) -> bool {
    let is_ours = entry.architecture.as_ref().is_none_or(|name| ["x64", "ia32"].contains(&&**name));
    let program = entry.linux.as_ref().or(entry.efi.as_ref());
    is_ours && program.is_some_and(|path| device.tree.is_file(&bls::absolute(path)))
}

fn unified_images(index: usize, device: &Device) -> Vec<(Type1, BootEntry)> {
    let names = device.tree.names(IMAGES);
    let is_image = |name: &&String| {
        name.rsplit_once('.').is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("efi"))
    };
    let images = names.iter().filter(is_image);
    images.take(64).filter_map(|name| unified_image(index, device, name)).collect()
}

/// What a unified kernel image boots, and where its `.osrel` puts it in the menu.
fn unified_image(index: usize, device: &Device, name: &str) -> Option<(Type1, BootEntry)> {
    let file = FileRef::new(index, format!("{IMAGES}/{name}"));
    let image = device.tree.open(&file.path).ok()?;
    let has = |section| pe::has_section(&*image, section);
    has(".linux").then_some(())?;
    let text = |section| {
        let bytes = pe::section(&*image, section, MAX_TEXT).unwrap_or_default();
        text_of(&bytes)
    };
    let release = text(".osrel");
    let field = |names: &[&str]| {
        let value = |name: &&str| {
            let lines = release.lines().filter_map(|line| line.trim().split_once('='));
            let value = lines.filter(|(key, _)| key == name).map(|(_, value)| value).next_back()?;
            Some(value.trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
        };
        names.iter().find_map(value)
    };
    let initrd = has(".initrd").then(|| file.section(".initrd"));
    // What addons and microcode sections would add is left out.
    let microcode = has(".ucode").then(|| file.section(".ucode"));
    let (stem, ending) = name.rsplit_once('.')?;
    let (stem, is_bad) = bls::without_count(stem);
    let id = format!("{stem}.{ending}");
    let order = Type1 {
        id: id.clone(),
        version: field(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"]).unwrap_or_default(),
        sort_key: field(&["IMAGE_ID", "ID"]),
        is_bad,
        ..Type1::default()
    };
    let entry = BootEntry {
        title: field(&["PRETTY_NAME", "IMAGE_ID", "NAME"]).unwrap_or_else(|| name.to_owned()),
        id: Some(id),
        kernel: Some(file.section(".linux")),
        initrds: microcode.into_iter().chain(initrd).collect(),
        cmdline: text(".cmdline").trim().to_owned(),
        note: None,
    };
    Some((order, entry))
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
            ("/l-6.1.0-9", "kernel"),
            ("/l-6.1.0-13", "kernel"),
        ];
        let devices = |files: &[(&str, &str)]| {
            [Device { is_esp: true, ..Device::of("hd0,gpt1", Files::tree(files)) }]
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

    #[test]
    fn what_is_on_another_disk_does_not_come_first() {
        let device = |name: &str, files: &[(&str, &str)]| Device::of(name, Files::tree(files));
        let grub = [("/boot/grub/grub.cfg", "menuentry A { linux /a }")];
        let systemd = [
            ("/EFI/systemd/systemd-bootx64.efi", ""),
            ("/loader/entries/b.conf", "linux /b\n"),
            ("/b", "kernel"),
        ];
        let loader = |devices: &[Device]| crate::loader::menu(devices).unwrap().loader;
        let (first, second) = (device("hd0,gpt1", &grub), device("hd1,gpt1", &systemd));
        assert_eq!(loader(&[first, second.clone()]), "GRUB 2");
        assert_eq!(loader(&[second.clone(), device("hd1,gpt2", &grub)]), "systemd-boot");
        assert_eq!(loader(&[device("hd0,gpt1", &[]), second]), "systemd-boot");
    }

    #[test]
    fn unified_images_are_among_the_entries_and_what_cannot_start_is_not() {
        let image = |version: &str| {
            let release =
                format!("ID=\"fedora\"\nVERSION_ID={version}\nPRETTY_NAME=\"F {version}\"\n");
            pe::tests::image(&[(".osrel", release.as_bytes()), (".linux", b"kernel")])
        };
        let entry = "sort-key fedora\nversion 41\nlinux /k\n";
        let other = "sort-key a\nversion 1\nlinux /k\narchitecture aa64\n";
        let (old, new, bad) = (image("40"), image("42"), image("43"));
        let files = Files::of_bytes(&[
            ("/EFI/Linux/old.efi", &old),
            ("/EFI/Linux/new+2-1.efi", &new),
            ("/EFI/Linux/bad+0-3.EFI", &bad),
            ("/loader/entries/middle.conf", entry.as_bytes()),
            ("/loader/entries/arm.conf", other.as_bytes()),
            ("/loader/entries/gone.conf", b"sort-key a\nlinux /gone\n"),
            ("/loader/entries/arch.conf", b"linux /k\n"),
            ("/loader/entries/arch-lts.conf", b"linux /k\n"),
            ("/k", b"kernel"),
        ]);
        let device = Device {
            is_esp: true,
            ..Device::of("hd0,gpt1", crate::Tree::new(std::rc::Rc::new(files), "/"))
        };
        let found = menu(&[device]).unwrap();
        let ids: Vec<_> = found.entries.iter().map(id_of).collect();
        assert_eq!(ids, ["new.efi", "middle", "old.efi", "arch", "arch-lts", "bad.EFI"]);
        assert_eq!((found.entries[0].title.as_str(), found.default), ("F 42", Some(0)));
    }
}
