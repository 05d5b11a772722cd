//! SYSLINUX, EXTLINUX and ISOLINUX, whose configuration U-Boot and petitboot read as well.

use super::{BootEntry, Device, FileRef, Menu};

const CONFIGURATIONS: [&str; 9] = [
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
    "/isolinux/isolinux.cfg",
    "/boot/isolinux/isolinux.cfg",
];
const MAX_TEXT: u64 = 1 << 20;
const MAX_ENTRIES: usize = 1000;
/// Most files that a configuration includes.
const MAX_FILES: u32 = 64;

/// Its menu; `None` where there is none.
pub fn menu(devices: &[Device]) -> Option<Menu> {
    let (device, path) = devices.iter().enumerate().find_map(|(index, device)| {
        let path = CONFIGURATIONS.iter().find(|path| device.tree.is_file(path))?;
        Some((index, *path))
    })?;
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    let mut reader = Reader {
        devices,
        device,
        folder,
        files: MAX_FILES,
        menu: Menu {
            loader: "SYSLINUX",
            configuration: Some(FileRef::new(device, path)),
            ..Menu::default()
        },
        default: None,
        on_timeout: None,
        marked: None,
        append: String::new(),
        labels: Vec::new(),
    };
    reader.file(path);
    reader.finish()
}

struct Reader<'a> {
    devices: &'a [Device],
    device: usize,
    folder: String,
    files: u32,
    menu: Menu,
    /// The label that the last DEFAULT names.
    default: Option<String>,
    /// The label that ONTIMEOUT names, which counts before it.
    on_timeout: Option<String>,
    /// The one with MENU DEFAULT.
    marked: Option<usize>,
    /// APPEND before the first label holds for all.
    append: String,
    labels: Vec<String>,
}

impl Reader<'_> {
    fn file(&mut self, path: &str) {
        let Some(files) = self.files.checked_sub(1) else { return };
        self.files = files;
        let Ok(text) = self.devices[self.device].tree.read_text(path, MAX_TEXT) else { return };
        for line in text.lines() {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            self.line(&key.to_lowercase(), value.trim());
        }
    }

    fn line(&mut self, key: &str, value: &str) {
        let (device, folder) = (self.device, self.folder.clone());
        let path = |word: &str| FileRef::new(device, absolute(&folder, word));
        match (key, self.menu.entries.last_mut()) {
            ("label", _) if self.labels.len() < MAX_ENTRIES => {
                self.labels.push(value.to_owned());
                self.menu.entries.push(BootEntry {
                    title: value.to_owned(),
                    id: Some(value.to_owned()),
                    kernel: None,
                    initrds: Vec::new(),
                    cmdline: self.append.clone(),
                    note: None,
                });
            }
            ("default", _) => self.default = Some(value.to_owned()),
            ("ontimeout", _) => self.on_timeout = Some(value.to_owned()),
            ("include", _) => {
                let path = self.absolute(value);
                self.file(&path);
            }
            ("menu", last) => {
                let (word, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
                match (word.to_lowercase().as_str(), last) {
                    ("label", Some(entry)) => entry.title = rest.trim().replace('^', ""),
                    ("default", Some(_)) => self.marked = Some(self.labels.len() - 1),
                    ("include", _) => {
                        let path = self.absolute(rest.trim());
                        self.file(&path);
                    }
                    _ => {}
                }
            }
            ("append", None) => self.append = value.to_owned(),
            ("append", Some(entry)) if value == "-" => entry.cmdline.clear(),
            ("append", Some(entry)) => entry.cmdline = value.to_owned(),
            ("initrd", Some(entry)) => {
                entry.initrds = value.split(',').map(path).collect();
            }
            ("kernel" | "linux", Some(entry)) => {
                // KERNEL also starts modules of SYSLINUX.
                let is_module = [".c32", ".com", ".bin", ".0", ".bs", ".bss", ".img"]
                    .iter()
                    .any(|end| key == "kernel" && value.ends_with(end));
                if is_module {
                    entry.note = Some(format!("it is started by {value}"));
                } else {
                    entry.kernel = Some(path(value));
                }
            }
            ("localboot" | "com32" | "boot" | "config", Some(entry)) => {
                entry.note = Some(format!("it is started by {key} {value}"));
            }
            _ => {}
        }
    }

    fn absolute(&self, path: &str) -> String {
        absolute(&self.folder, path)
    }

    fn finish(mut self) -> Option<Menu> {
        for index in 0..self.menu.entries.len() {
            // An initrd may be a word of the command line.
            let cmdline = std::mem::take(&mut self.menu.entries[index].cmdline);
            let (files, words): (Vec<&str>, Vec<&str>) =
                cmdline.split_whitespace().partition(|word| word.starts_with("initrd="));
            if let Some(list) = files.last() {
                let paths = list["initrd=".len()..].split(',');
                let files = paths.map(|path| FileRef::new(self.device, self.absolute(path)));
                self.menu.entries[index].initrds = files.collect();
            }
            self.menu.entries[index].cmdline = words.join(" ");
        }
        // Words behind the label are more of the command line.
        let named = |line: &Option<String>| {
            let name = line.as_deref()?.split_whitespace().next()?;
            self.labels.iter().position(|label| label == name)
        };
        let chosen = named(&self.on_timeout).or_else(|| named(&self.default));
        self.menu.default = chosen.or(self.marked).or(Some(0));
        Some(self.menu)
    }
}

/// Relative paths begin at the folder of the configuration.
fn absolute(folder: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn an_extlinux_configuration_with_an_include() {
        let tree = Files::tree(&[
            ("/boot/extlinux/extlinux.conf", "DEFAULT l0\nPROMPT 0\ninclude linux.cfg\n"),
            (
                "/boot/extlinux/linux.cfg",
                "label l0\n menu label Debian ^GNU\n linux /boot/vmlinuz\n append initrd=/boot/initrd root=/dev/sda1 ro\n\
                 label mem\n kernel memdisk.c32\n",
            ),
        ]);
        let devices = [Device::of("hd0", tree)];
        let menu = menu(&devices).unwrap();
        assert_eq!((menu.entries.len(), menu.default), (2, Some(0)));
        let entry = &menu.entries[0];
        assert_eq!(entry.title, "Debian GNU");
        assert_eq!(entry.initrds, [FileRef::new(0, "/boot/initrd")]);
        assert_eq!(entry.cmdline, "root=/dev/sda1 ro");
        assert!(menu.entries[1].kernel.is_none() && menu.entries[1].note.is_some());
    }

    #[test]
    fn the_last_default_counts_and_a_menu_is_no_label() {
        let default = |head: &str| {
            let text = format!(
                "{head}\nLABEL lts\n LINUX vmlinuz-lts\n INITRD initramfs-lts\nLABEL virt\n MENU DEFAULT\n \
                 MENU LABEL Linux virt\n LINUX vmlinuz-virt\n INITRD initramfs-virt\n APPEND root=UUID=1 quiet\n"
            );
            let device = Device::of("hd0,msdos1", Files::tree(&[("/boot/extlinux.conf", &text)]));
            let found = menu(&[device]).unwrap();
            found.entries[found.default.unwrap()].kernel.clone().unwrap().path
        };
        // As Alpine's update-extlinux writes it.
        let alpine = "DEFAULT menu.c32\nPROMPT 0\nMENU TITLE Alpine/Linux Boot Menu\nMENU HIDDEN\nTIMEOUT 10";
        assert_eq!(default(alpine), "/boot/vmlinuz-virt");
        assert_eq!(default("DEFAULT virt\nDEFAULT lts single"), "/boot/vmlinuz-lts");
        assert_eq!(default("ONTIMEOUT lts\nDEFAULT virt"), "/boot/vmlinuz-lts");
    }
}
