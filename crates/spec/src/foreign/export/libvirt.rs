//! libvirt's domain XML.

use std::fmt::Write;
use std::path::Path;

use super::super::description::{
    Bus, Controller, Description, Drive, DriveKind, FirmwareKind, NetworkCard, Platform,
    Virtualization,
};
use super::places::{Place, Room, places};
use super::{Export, boot_devices, has_boot_places, most_memory, name, nic_word, path, uuid, xml};
use crate::{Smbios, Topology};

/// More controllers than any platform has.
const MOST_CONTROLLERS: u32 = 16;

pub(super) fn write(vm: &Description) -> Export {
    let mut lost = Vec::new();
    let mut text = String::from("<domain type='kvm'>\n");
    let mut line = |content: String| writeln!(text, "  {content}").unwrap_or(());
    // libvirt takes names as files'.
    line(format!("<name>{}</name>", xml(&name(vm).replace('/', "-"))));
    if let Some(uuid) = uuid(vm) {
        line(format!("<uuid>{uuid}</uuid>"));
    }
    if let Some(annotation) = &vm.annotation {
        line(format!("<description>{}</description>", xml(annotation)));
    }
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0);
    line(format!("<memory unit='KiB'>{}</memory>", most_memory(vm).unwrap_or(size) >> 10));
    if most_memory(vm).is_some() {
        line(format!("<currentMemory unit='KiB'>{}</currentMemory>", size >> 10));
    }
    let count = vm.cpus.count.unwrap_or(1);
    match vm.cpus.maximum.filter(|most| *most > count) {
        Some(most) => line(format!("<vcpu current='{count}'>{most}</vcpu>")),
        None => line(format!("<vcpu>{count}</vcpu>")),
    }
    let chipset = Chipset::of(vm);
    os(vm, chipset, &mut line);
    sysinfo(&vm.smbios, &mut line);
    line("<features><acpi/><apic/></features>".into());
    // Whatever the host has, which is the only way to its virtualization whoever made its processor.
    let mode = if vm.cpus.nested == Some(true) { "host-passthrough" } else { "host-model" };
    // libvirt refuses a topology that does not give the number of processors.
    match vm.cpus.divided(vm.cpus.maximum.unwrap_or(count)).topology() {
        Some(Topology { sockets, cores, threads }) if vm.cpus.is_divided() => line(format!(
            "<cpu mode='{mode}'><topology sockets='{sockets}' cores='{cores}' threads='{threads}'/></cpu>"
        )),
        _ => line(format!("<cpu mode='{mode}'/>")),
    }
    line("<devices>".into());
    let models: Vec<_> = vm
        .controllers
        .iter()
        .filter(|one| one.bus == Bus::Scsi)
        .map(|one| (one.index, scsi_model(one, &mut lost)))
        .collect();
    for (index, model) in &models {
        line(format!("  <controller type='scsi' index='{index}' model='{model}'/>"));
    }
    let is_narrow = models.iter().any(|(_, model)| *model == "lsilogic");
    let room = |bus| match bus {
        Bus::Ide | Bus::Floppy => Room::of(if bus == Bus::Ide { 2 } else { 1 }, 2),
        Bus::Sata => Room::of(MOST_CONTROLLERS, 6),
        // The last one is the controller itself.
        Bus::Scsi if is_narrow => Room::of(MOST_CONTROLLERS, 7),
        Bus::Scsi => Room { reserved: Some(7), ..Room::of(MOST_CONTROLLERS, 64) },
        // Without addresses: the names count.
        _ => Room::of(1, u32::MAX),
    };
    let places = places(&vm.drives, |drive| Some(chipset.place(drive)), room);
    let mut names = Names::default();
    let folder = vm.file.parent().unwrap_or(Path::new(""));
    let folder = std::path::absolute(folder).unwrap_or_else(|_| Path::new("/").join(folder));
    for (drive, place) in vm.drives.iter().zip(places) {
        let Some(place) = place.filter(|_| drive.kind != DriveKind::Passthrough) else {
            lost.push(format!("The drive {} is left out", drive.address()));
            continue;
        };
        let file = drive.file.as_ref();
        if drive.kind == DriveKind::Disk && file.is_none() {
            lost.push(format!("The disk {} has no content and is left out", drive.address()));
            continue;
        }
        // Of the buses that QEMU's machines do not have, drives move to others.
        let is_other = place.0 != drive.bus && matches!(drive.bus, Bus::Ide | Bus::Nvme);
        if is_other && drive.kind == DriveKind::Disk {
            let (address, bus) = (drive.address(), place.0.name());
            lost.push(format!("The disk {address} is on {bus}, which its guest may not expect"));
        }
        let model = models.iter().find(|(index, _)| *index == place.1).map(|(_, model)| *model);
        line(disk(drive, place, &names.next(place), model, &folder, &mut lost));
    }
    for nic in &vm.nics {
        line(card(nic, vm.platform, &mut lost));
    }
    for serial in &vm.serials {
        line(format!("  <serial type='pty'><target port='{}'/></serial>", serial.index));
    }
    if vm.serials.is_empty() {
        line("  <serial type='pty'><target port='0'/></serial>".into());
    }
    if let Some(version) = &vm.tpm {
        let version = if version.is_empty() { "2.0" } else { version };
        line(format!(
            "  <tpm model='tpm-crb'><backend type='emulator' version='{}'/></tpm>",
            xml(version)
        ));
    }
    for share in &vm.shares {
        let readonly = if share.writable { "" } else { "<readonly/>" };
        line(format!(
            "  <filesystem type='mount'><source dir='{}'/><target dir='{}'/>{readonly}</filesystem>",
            xml(&share.path),
            xml(&share.name)
        ));
    }
    line("</devices>".into());
    text.push_str("</domain>\n");
    if matches!(vm.virtualization, Virtualization::Pv | Virtualization::Pvh) {
        lost.push(
            "A guest of Xen's PV or PVH needs a kernel that runs on an ordinary machine".into(),
        );
    }
    Export { text, lost }
}

/// The two that QEMU has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chipset {
    /// i440FX with IDE.
    Pc,
    /// Q35 without it; Secure Boot wants it.
    Q35,
}

impl Chipset {
    /// What was on IDE finds its disks on the older one only.
    fn of(vm: &Description) -> Self {
        let is_ide = |drive: &Drive| drive.bus == Bus::Ide && drive.kind == DriveKind::Disk;
        let is_old = vm.drives.iter().any(is_ide) && vm.firmware.secure_boot != Some(true);
        if is_old { Self::Pc } else { Self::Q35 }
    }

    /// Where a drive belongs. libvirt's NVMe disks are devices of the host, and Q35 has no IDE.
    fn place(self, drive: &Drive) -> Place {
        let (controller, unit) = (drive.controller, drive.unit);
        match drive.bus {
            Bus::Ide if self == Self::Q35 => {
                (Bus::Sata, 0, controller.saturating_mul(2).saturating_add(unit))
            }
            Bus::Nvme => (Bus::Sata, 0, unit),
            Bus::Xen | Bus::Pmem => (Bus::Virtio, 0, unit),
            bus => (bus, controller, unit),
        }
    }
}

fn os(vm: &Description, chipset: Chipset, line: &mut impl FnMut(String)) {
    let uefi = vm.firmware.kind == Some(FirmwareKind::Uefi);
    line(format!("<os{}>", if uefi { " firmware='efi'" } else { "" }));
    let machine = if chipset == Chipset::Pc { "pc" } else { "q35" };
    line(format!("  <type arch='{}' machine='{machine}'>hvm</type>", xml(vm.architecture.name())));
    if let (true, Some(secure)) = (uefi, vm.firmware.secure_boot) {
        let word = if secure { "yes" } else { "no" };
        line(format!("  <firmware><feature enabled='{word}' name='secure-boot'/></firmware>"));
    }
    if let Some(kernel) = &vm.boot.kernel {
        let path = |file: &super::FileRef| {
            xml(&file
                .path
                .as_ref()
                .map_or_else(|| file.written.clone(), |path| path.display().to_string()))
        };
        line(format!("  <kernel>{}</kernel>", path(kernel)));
        if let Some(initrd) = &vm.boot.initrd {
            line(format!("  <initrd>{}</initrd>", path(initrd)));
        }
        if let Some(words) = &vm.boot.cmdline {
            line(format!("  <cmdline>{}</cmdline>", xml(words)));
        }
    }
    // libvirt refuses the one where there is the other.
    for device in boot_devices(vm).filter(|_| !has_boot_places(vm)).unwrap_or_default() {
        line(format!("  <boot dev='{device}'/>"));
    }
    if has_sysinfo(&vm.smbios) {
        line("  <smbios mode='sysinfo'/>".into());
    }
    line("</os>".into());
}

/// Whether there is more to tell than the UUID, which libvirt tells anyway.
fn has_sysinfo(smbios: &Smbios) -> bool {
    smbios.serial.is_some() || !smbios.oem_strings.is_empty()
}

fn sysinfo(smbios: &Smbios, line: &mut impl FnMut(String)) {
    if !has_sysinfo(smbios) {
        return;
    }
    line("<sysinfo type='smbios'>".into());
    if let Some(serial) = &smbios.serial {
        line(format!("  <system><entry name='serial'>{}</entry></system>", xml(serial)));
    }
    if !smbios.oem_strings.is_empty() {
        let entries = smbios.oem_strings.iter().map(|text| format!("<entry>{}</entry>", xml(text)));
        line(format!("  <oemStrings>{}</oemStrings>", entries.collect::<String>()));
    }
    line("</sysinfo>".into());
}

/// The names of devices, which must differ.
#[derive(Default)]
struct Names {
    sd: usize,
    vd: usize,
}

impl Names {
    fn next(&mut self, (bus, controller, unit): Place) -> String {
        let place = controller as usize * 2 + unit as usize;
        let (prefix, index) = match bus {
            Bus::Ide => ("hd", place),
            Bus::Floppy => ("fd", place),
            Bus::Virtio => ("vd", self.vd),
            _ => ("sd", self.sd),
        };
        match prefix {
            "vd" => self.vd += 1,
            "sd" => self.sd += 1,
            _ => {}
        }
        format!("{prefix}{}", letters(index))
    }
}

fn disk(
    drive: &Drive,
    (bus, controller, unit): Place,
    name: &str,
    model: Option<&str>,
    folder: &Path,
    lost: &mut Vec<String>,
) -> String {
    let device = match drive.kind {
        DriveKind::Cdrom => "cdrom",
        DriveKind::Floppy => "floppy",
        _ => "disk",
    };
    let word = if bus == Bus::Floppy { "fdc" } else { bus.name() };
    let mut parts = format!("  <disk type='file' device='{device}'>");
    let format = match drive.format.as_deref() {
        Some("vhd") => Some("vpc"),
        Some(format @ ("vhdx" | "hdd" | "parallels")) => {
            let address = drive.address();
            lost.push(format!("libvirt does not know {format}: convert the disk {address} first"));
            None
        }
        other => other,
    };
    if let Some(format) = format {
        parts.push_str(&format!("<driver name='qemu' type='{}'/>", xml(format)));
    }
    // libvirt wants absolute paths, even of what is still in an archive.
    if let Some(path) = path(drive) {
        let path = folder.join(path);
        parts.push_str(&format!("<source file='{}'/>", xml(&path.to_string_lossy())));
    }
    parts.push_str(&format!("<target dev='{name}' bus='{word}'/>"));
    if drive.readonly {
        parts.push_str("<readonly/>");
    }
    match format {
        _ if !drive.shared => {}
        Some("raw") => parts.push_str("<shareable/>"),
        _ => lost.push(format!("The disk {} is not shared: only raw ones can be", drive.address())),
    }
    if drive.volatile {
        parts.push_str("<transient/>");
    }
    if let Some(serial) = &drive.serial {
        parts.push_str(&format!("<serial>{}</serial>", xml(serial)));
    }
    if let Some(order) = drive.boot_order {
        parts.push_str(&format!("<boot order='{order}'/>"));
    }
    // Of IDE there is one controller, whose buses ours are; wide SCSI has one unit at each target.
    let address = match bus {
        Bus::Ide => Some((0, controller, 0, unit)),
        Bus::Scsi if model != Some("lsilogic") => Some((controller, 0, unit, 0)),
        Bus::Scsi | Bus::Sata | Bus::Floppy => Some((controller, 0, 0, unit)),
        _ => None,
    };
    if let Some((controller, bus, target, unit)) = address {
        parts.push_str(&format!(
            "<address type='drive' controller='{controller}' bus='{bus}' target='{target}' unit='{unit}'/>"
        ));
    }
    parts.push_str("</disk>");
    parts
}

fn card(nic: &NetworkCard, platform: Platform, lost: &mut Vec<String>) -> String {
    let (kind, source) = match (nic.connection.as_deref(), &nic.network) {
        (Some("bridge"), Some(bridge)) => ("bridge", format!("<source bridge='{}'/>", xml(bridge))),
        (Some("user"), _) => ("user", String::new()),
        (Some("network"), Some(network)) if platform == Platform::Qemu => {
            ("network", format!("<source network='{}'/>", xml(network)))
        }
        (connection, network) => {
            let name = network.as_deref().or(connection).filter(|name| *name != "nat");
            if let Some(name) = name {
                let index = nic.index;
                lost.push(format!(
                    "The network card {index} is on libvirt's network default instead of {name}"
                ));
            }
            ("network", "<source network='default'/>".into())
        }
    };
    let mac = nic.mac.map(|mac| format!("<mac address='{mac}'/>")).unwrap_or_default();
    let words = ["e1000", "e1000e", "vmxnet3", "pcnet", "rtl8139", "virtio"];
    let model = nic_word(nic, &words.map(|word| (word, word)), "virtio", lost);
    let link = if nic.connected { "" } else { "<link state='down'/>" };
    format!("  <interface type='{kind}'>{mac}{source}<model type='{model}'/>{link}</interface>")
}

/// A package may name several models to choose from.
fn scsi_model(controller: &Controller, lost: &mut Vec<String>) -> &'static str {
    let words = controller.model.as_deref().unwrap_or_default().split([' ', ',']);
    let known = words.map(str::to_ascii_lowercase).find_map(|word| match word.as_str() {
        "pvscsi" | "virtualscsi" | "vmpvscsi" => Some("vmpvscsi"),
        "lsilogic" => Some("lsilogic"),
        "lsisas1068" | "lsilogicsas" => Some("lsisas1068"),
        "virtio" | "virtio-scsi" | "virtioscsi" => Some("virtio-scsi"),
        "buslogic" => Some("buslogic"),
        _ => None,
    });
    match known {
        Some("buslogic") => {
            let index = controller.index;
            lost.push(format!("QEMU has no BusLogic: the controller scsi{index} is lsilogic"));
            "lsilogic"
        }
        other => other.unwrap_or("virtio-scsi"),
    }
}

/// 0 is `a`, 26 is `aa`.
pub(super) fn letters(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        letters.push(char::from(b'a' + u8::try_from((rest - 1) % 26).unwrap_or(0)));
        rest = (rest - 1) / 26;
    }
    letters.into_iter().rev().collect()
}
