//! GRUB legacy's menu.lst, which Xen's and EC2's `pygrub` read as well.

use super::{BootEntry, Device, FileRef, Menu};

const CONFIGURATIONS: [&str; 4] =
    ["/boot/grub/menu.lst", "/boot/grub/grub.conf", "/grub/menu.lst", "/grub/grub.conf"];
const MAX_TEXT: u64 = 1 << 20;
const MAX_ENTRIES: usize = 1000;

/// Its menu; `None` where there is none.
pub fn menu(devices: &[Device]) -> Option<Menu> {
    let found = devices.iter().enumerate().find_map(|(index, device)| {
        let path = CONFIGURATIONS.iter().find(|path| device.tree.is_file(path))?;
        Some((index, *path, device.tree.read_text(path, MAX_TEXT).ok()?))
    });
    let (device, path, text) = found?;
    let mut menu = Menu {
        loader: "GRUB legacy",
        configuration: Some(FileRef::new(device, path)),
        ..Menu::default()
    };
    let mut default = "0".to_owned();
    let mut root = device;
    for line in text.lines() {
        let line = line.trim();
        let (key, value) = line.split_once([' ', '\t', '=']).unwrap_or((line, ""));
        let value = value.trim_start_matches([' ', '\t', '=']).trim();
        let is_full = menu.entries.len() >= MAX_ENTRIES;
        match (key, menu.entries.last_mut()) {
            ("default", None) => default = value.to_owned(),
            ("title", _) if !is_full => {
                root = device;
                menu.entries.push(BootEntry {
                    title: value.to_owned(),
                    id: None,
                    kernel: None,
                    initrds: Vec::new(),
                    cmdline: String::new(),
                    note: None,
                });
            }
            ("root" | "rootnoverify", Some(_)) => root = find(devices, value).unwrap_or(device),
            ("uuid", Some(_)) => {
                let is_it = |device: &Device| device.uuid.as_deref() == Some(value);
                root = devices.iter().position(is_it).unwrap_or(device);
            }
            ("kernel", Some(entry)) => {
                let mut words = value.split_whitespace().skip_while(|word| word.starts_with("--"));
                entry.kernel = words.next().map(|path| file(devices, root, path));
                entry.cmdline = words.collect::<Vec<_>>().join(" ");
            }
            ("initrd" | "modulenounzip", Some(entry)) => {
                entry.initrds =
                    value.split_whitespace().map(|path| file(devices, root, path)).collect();
            }
            // Xen's own kernel comes first, the guest's is its first module.
            ("module", Some(entry)) => {
                let mut words = value.split_whitespace();
                let Some(path) = words.next().map(|path| file(devices, root, path)) else {
                    continue;
                };
                if path.path.contains("vmlinu") {
                    entry.kernel = Some(path);
                    entry.cmdline = words.collect::<Vec<_>>().join(" ");
                } else {
                    entry.initrds.push(path);
                }
            }
            ("chainloader", Some(entry)) => entry.note = Some(format!("it is started by {line}")),
            _ => {}
        }
    }
    let last = menu.entries.len().checked_sub(1)?;
    let saved = || {
        let folder = path.rsplit_once('/')?.0;
        devices[device].tree.read_text(&format!("{folder}/default"), 4096).ok()
    };
    let number = if default == "saved" { saved().unwrap_or_default() } else { default };
    let number = number.split_whitespace().next().unwrap_or("").parse().unwrap_or(0);
    menu.default = Some(if number > last { 0 } else { number });
    Some(menu)
}

/// The device of `(hd0,0)`: GRUB legacy counts partitions from 0.
fn find(devices: &[Device], name: &str) -> Option<usize> {
    let (disk, partition) = name.trim_matches(['(', ')']).split_once(',')?;
    let number = partition.parse::<u32>().ok()?.checked_add(1)?;
    let name = format!("{disk},{number}");
    devices.iter().position(|device| device.is_named(&name))
}

fn file(devices: &[Device], root: usize, path: &str) -> FileRef {
    match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((name, path)) => FileRef::new(find(devices, name).unwrap_or(root), path),
        None => FileRef::new(root, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn the_entry_of_the_default_number_is_chosen() {
        let text = "default 1\ntimeout=3\ntitle One\nroot (hd0,1)\nkernel /vmlinuz-1 root=/dev/sda1\n\n\
                    title Two\nroot (hd0,0)\nkernel --no-mem-option (hd0,0)/vmlinuz-2 root=/dev/hda1 ro\ninitrd /initrd-2\n";
        let device = |name: &str, files| Device::of(name, Files::tree(files));
        let devices = [
            device("hd0,msdos2", &[("/boot/grub/menu.lst", text)]),
            device("hd0,msdos1", &[("/vmlinuz-2", "")]),
        ];
        let menu = menu(&devices).unwrap();
        assert_eq!(menu.default, Some(1));
        assert_eq!(menu.entries[0].kernel, Some(FileRef::new(0, "/vmlinuz-1")));
        assert_eq!(menu.entries[1].kernel, Some(FileRef::new(1, "/vmlinuz-2")));
        assert_eq!(menu.entries[1].initrds, [FileRef::new(1, "/initrd-2")]);
        assert_eq!(menu.entries[1].cmdline, "root=/dev/hda1 ro");
    }
}
