//! A boot loader's entry as the kernel, initial RAM disk and command line of a machine with virtio devices.

use super::{LinuxBoot, PlanOptions};
use crate::guest::Guest;
use crate::loader::BootEntry;
use crate::volume::{at, text_of};
use crate::{Error, Result, names};

/// Largest kernel.
const MAX_KERNEL: u64 = 512 << 20;
/// Largest initial RAM disk.
const MAX_INITRD: u64 = 1 << 30;

impl Guest {
    /// What the entry starts, with what it is given.
    pub(super) fn linux(&self, entry: &BootEntry, options: &PlanOptions) -> Result<LinuxBoot> {
        let missing = || Error::NotFound("kernel".into());
        let kernel = entry.kernel.as_ref().ok_or_else(missing)?.read(&self.devices, MAX_KERNEL)?;
        let mut initrd = Vec::new();
        for file in &entry.initrds {
            pad(&mut initrd, 4);
            initrd.extend(file.read(&self.devices, MAX_INITRD)?);
        }
        let mut boot = LinuxBoot {
            title: entry.title.clone(),
            release: release_of(&kernel),
            kernel,
            initrd: None,
            cmdline: entry.cmdline.clone(),
            added_modules: Vec::new(),
            notes: Vec::new(),
        };
        if let Some(name) = self.sealed().filter(|_| self.root.is_none()) {
            boot.notes.push(format!(
                "{name} is encrypted: no driver that the guest's initial RAM disk lacks can be taken from it."
            ));
        }
        self.rewrite_root(&mut boot);
        add_console(&mut boot, options.console.as_deref());
        if !initrd.is_empty() {
            self.append(&mut boot, &mut initrd, &options.nics)?;
            boot.initrd = Some(initrd);
        }
        Ok(boot)
    }

    /// Devices that are named by their controller have other names on virtio.
    fn rewrite_root(&self, boot: &mut LinuxBoot) {
        let report = self.report();
        let words = boot.cmdline.split_whitespace().map(|word| {
            let Some((key, value)) = word.split_once('=') else { return word.to_owned() };
            if !matches!(key, "root" | "resume" | "rd.luks.name" | "real_root") {
                return word.to_owned();
            }
            let Some(name) = names::on_virtio(value) else { return word.to_owned() };
            let volume = report.volume_of_word(key, value);
            let name = volume.map_or(name, |volume| volume.name.clone());
            let new = format!("{key}=/dev/{name}");
            if new != word {
                boot.notes.push(format!("{word} of the command line becomes {new}."));
            }
            new
        });
        boot.cmdline = words.collect::<Vec<_>>().join(" ");
    }
}

/// Appends the machine's console if the command line does not name it; the last one is where init speaks.
fn add_console(boot: &mut LinuxBoot, console: Option<&str>) {
    let Some(console) = console else { return };
    let is_last = |word: &str| {
        word.strip_prefix("console=").map(|value| value.split(',').next() == Some(console))
    };
    if boot.cmdline.split_whitespace().filter_map(is_last).next_back() != Some(true) {
        boot.cmdline = format!("{} console={console}", boot.cmdline).trim_start().to_owned();
        boot.notes.push(format!("The guest's console is {console}."));
    }
}

pub(super) fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

/// The release of a bzImage (Linux x86 boot protocol, `kernel_version`).
fn release_of(kernel: &[u8]) -> Option<String> {
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let start = usize::from(at::le16(kernel, 0x20e)?) + 0x200;
    let text = text_of(kernel.get(start..)?.get(..256)?);
    text.split_whitespace().next().map(str::to_owned)
}
