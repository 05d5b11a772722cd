//! `xl.cfg` and `xm`'s files.

use std::path::Path;

use super::super::description::{
    Description, FirmwareKind, Level, Platform, SerialPort, Virtualization,
};
use super::super::folder::Folder;
use super::devices;
use super::syntax::Config;
use crate::Result;

/// Reads a file.
pub(crate) fn read(text: &str, path: &Path, folder: &Folder) -> Result<Description> {
    let config = Config::parse(text, &path.display().to_string())?;
    let mut vm = Description::new(Platform::Xen, "xl.cfg", path);
    vm.name = config.text("name")?;
    vm.uuid = config.text("uuid")?;
    vm.smbios = super::smbios(&vm);
    virtualization(&config, &mut vm)?;
    let mebibytes = |key: &str| {
        Ok::<_, crate::Error>(config.number(key)?.map(|count| count.saturating_mul(1 << 20)))
    };
    vm.memory.size = mebibytes("memory")?;
    vm.memory.maximum = mebibytes("maxmem")?;
    let count = |key: &str| {
        let number = config.number(key)?;
        Ok::<_, crate::Error>(number.map(|count| u32::try_from(count).unwrap_or(u32::MAX)))
    };
    vm.cpus.count = Some(count("vcpus")?.unwrap_or(1));
    vm.cpus.maximum = count("maxvcpus")?;
    vm.cpus.nested = config.number("nestedhvm")?.map(|flag| flag != 0);
    boot(&config, folder, &mut vm)?;
    for text in config.list("disk")? {
        let drive =
            devices::disk(&text, folder).map_err(|message| config.wrong("disk", message))?;
        vm.controller(drive.bus, drive.controller, None);
        vm.drives.push(drive);
    }
    for (index, text) in config.list("vif")?.iter().enumerate() {
        let card = devices::network_card(text, index, &mut vm)
            .map_err(|message| config.wrong("vif", message))?;
        vm.nics.push(card);
    }
    for (index, text) in
        config.list("serial")?.into_iter().filter(|text| text != "none").enumerate()
    {
        let (backend, target) = text
            .split_once(':')
            .map_or((text.clone(), None), |(kind, to)| (kind.into(), Some(to.into())));
        vm.serials.push(SerialPort {
            index: u32::try_from(index).unwrap_or(0),
            backend: Some(backend),
            target,
        });
    }
    if config.get("vtpm").is_some() {
        vm.tpm = Some(String::new());
    }
    for (key, kind) in [
        ("soundhw", "sound"),
        ("usbdevice", "usb"),
        ("usbctrl", "usb"),
        ("pci", "pci"),
        ("vfb", "display"),
        ("p9", "share"),
    ] {
        for text in config.list(key)? {
            vm.device(kind, Some(text));
        }
    }
    config.skip(&KNOWN);
    vm.unread = config.unread();
    if vm.unread.iter().any(|one| one.key == "statement") {
        vm.note(
            Level::Warning,
            "The file computes with Python, which is not run: look at what was not understood",
        );
    }
    vm.checked()
}

/// What happens at the end, how the screen is shown, and what every machine here has.
const KNOWN: [&str; 27] = [
    "acpi",
    "apic",
    "device_model",
    "device_model_override",
    "device_model_version",
    "hap",
    "hpet",
    "keymap",
    "localtime",
    "on_crash",
    "on_poweroff",
    "on_reboot",
    "on_shutdown",
    "on_watchdog",
    "pae",
    "parallel",
    "rtc_timeoffset",
    "sdl",
    "serial",
    "stdvga",
    "usb",
    "vga",
    "vnc",
    "vncconsole",
    "vnclisten",
    "vncunused",
    "xen_platform_pci",
];

fn virtualization(config: &Config, vm: &mut Description) -> Result<()> {
    let (kind, builder) = (config.text("type")?, config.text("builder")?);
    let word = kind.or(builder.clone());
    vm.virtualization = match word.as_deref() {
        Some("hvm") => Virtualization::Full,
        Some("pvh") => Virtualization::Pvh,
        Some("pv" | "linux" | "generic") => Virtualization::Pv,
        Some(other) => {
            return Err(config.wrong(
                if builder.is_some() { "builder" } else { "type" },
                format!("A guest of type `{other}` is not known: expected pv, pvh or hvm"),
            ));
        }
        None if config.number("pvh")?.is_some_and(|flag| flag != 0) => Virtualization::Pvh,
        None if config.text("kernel")?.is_some_and(|kernel| kernel.ends_with("hvmloader")) => {
            Virtualization::Full
        }
        None => Virtualization::Pv,
    };
    Ok(())
}

fn boot(config: &Config, folder: &Folder, vm: &mut Description) -> Result<()> {
    let file =
        |key: &str| Ok::<_, crate::Error>(config.text(key)?.map(|path| folder.locate(&path, &[])));
    let kernel = config.text("kernel")?;
    // Xen's own firmware was named as the kernel of HVM guests by `xm`.
    if kernel.is_some_and(|kernel| !kernel.ends_with("hvmloader")) {
        vm.boot.kernel = file("kernel")?;
        vm.boot.initrd = file("ramdisk")?;
    }
    let words = match config.text("cmdline")? {
        Some(words) => {
            if config.get("root").is_some() || config.get("extra").is_some() {
                vm.note(
                    Level::Info,
                    "`cmdline` is given: `root` and `extra` do not count, as with xl",
                );
            }
            Some(words)
        }
        None => {
            let root = config.text("root")?.map(|root| format!("root={root}"));
            let words: Vec<_> = root.into_iter().chain(config.text("extra")?).collect();
            (!words.is_empty()).then(|| words.join(" "))
        }
    };
    vm.boot.cmdline = words;
    vm.boot.bootloader = config.text("bootloader")?;
    if let Some(program) = &vm.boot.bootloader {
        let message = format!(
            "Xen takes the kernel out of the guest's disk by `{program}`; so is it done here"
        );
        vm.note(Level::Info, message);
    }
    if vm.virtualization == Virtualization::Full {
        let word = config.text("firmware")?.or(config.text("bios")?);
        vm.firmware.kind = Some(match word.as_deref() {
            Some("ovmf" | "uefi") => FirmwareKind::Uefi,
            _ => FirmwareKind::Bios,
        });
    }
    // `c` is the first disk, `d` the CD-ROM, `n` the network.
    vm.boot.order = config.text("boot")?.unwrap_or_default().chars().map(String::from).collect();
    Ok(())
}
