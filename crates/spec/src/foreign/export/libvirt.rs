//! libvirt's domain XML.

use std::fmt::Write;

use super::super::description::{
    Bus, Description, Drive, DriveKind, FirmwareKind, NetworkCard, Virtualization,
};
use super::{Export, name, path, xml};

pub(super) fn write(vm: &Description) -> Export {
    let mut lost = Vec::new();
    let mut text = String::from("<domain type='kvm'>\n");
    let mut line = |content: String| writeln!(text, "  {content}").unwrap_or(());
    // libvirt takes names as files'.
    line(format!("<name>{}</name>", xml(&name(vm).replace('/', "-"))));
    if let Some(uuid) = vm.uuid.as_ref().filter(|uuid| is_uuid(uuid)) {
        line(format!("<uuid>{uuid}</uuid>"));
    }
    if let Some(annotation) = &vm.annotation {
        line(format!("<description>{}</description>", xml(annotation)));
    }
    let size = vm.memory.size.unwrap_or(crate::Memory::DEFAULT_SIZE.0);
    line(format!("<memory unit='KiB'>{}</memory>", size >> 10));
    let count = vm.cpus.count.unwrap_or(1);
    match vm.cpus.maximum.filter(|most| *most > count) {
        Some(most) => line(format!("<vcpu current='{count}'>{most}</vcpu>")),
        None => line(format!("<vcpu>{count}</vcpu>")),
    }
    os(vm, &mut line);
    line("<features><acpi/><apic/></features>".into());
    let threads = vm.cpus.threads.unwrap_or(1);
    match (vm.cpus.sockets, vm.cpus.cores) {
        // libvirt refuses a topology that does not give the number of processors.
        (Some(sockets), Some(cores))
            if sockets.checked_mul(cores).and_then(|all| all.checked_mul(threads))
                == Some(vm.cpus.maximum.unwrap_or(count)) =>
        {
            line(format!(
                "<cpu mode='host-model'><topology sockets='{sockets}' cores='{cores}' threads='{threads}'/></cpu>"
            ));
        }
        _ => line("<cpu mode='host-model'/>".into()),
    }
    line("<devices>".into());
    for controller in vm.controllers.iter().filter(|one| one.bus == Bus::Scsi) {
        let model = scsi_model(controller.model.as_deref());
        line(format!("  <controller type='scsi' index='{}' model='{model}'/>", controller.index));
    }
    for (index, drive) in vm.drives.iter().enumerate() {
        match disk(drive, index) {
            Some(content) => line(content),
            None => lost.push(format!("The drive {} is the host's own device", drive.address())),
        }
    }
    for nic in &vm.nics {
        line(card(nic));
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
    if vm.virtualization == Virtualization::Pv {
        lost.push("A guest of Xen's PV needs a kernel that runs on an ordinary machine".into());
    }
    Export { text, lost }
}

fn os(vm: &Description, line: &mut impl FnMut(String)) {
    let uefi = vm.firmware.kind == Some(FirmwareKind::Uefi);
    // UEFI, SATA and NVMe belong to the newer chipset; what was IDE finds its disks on the older one only.
    let old = !uefi
        && vm.drives.iter().any(|drive| drive.bus == Bus::Ide && drive.kind == DriveKind::Disk);
    line(format!("<os{}>", if uefi { " firmware='efi'" } else { "" }));
    let machine = if old { "pc" } else { "q35" };
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
    line("</os>".into());
}

fn disk(drive: &Drive, index: usize) -> Option<String> {
    let device = match drive.kind {
        DriveKind::Disk => "disk",
        DriveKind::Cdrom => "cdrom",
        DriveKind::Floppy => "floppy",
        DriveKind::Passthrough => return None,
    };
    let (bus, prefix) = match drive.bus {
        Bus::Scsi => ("scsi", "sd"),
        Bus::Sata | Bus::Nvme if drive.kind == DriveKind::Cdrom => ("sata", "sd"),
        // libvirt's NVMe disks are devices of the host.
        Bus::Sata | Bus::Nvme => ("sata", "sd"),
        Bus::Ide => ("ide", "hd"),
        Bus::Usb => ("usb", "sd"),
        Bus::Floppy => ("fdc", "fd"),
        Bus::Sd => ("sd", "sd"),
        Bus::Virtio | Bus::Xen | Bus::Pmem => ("virtio", "vd"),
    };
    let mut parts = format!("  <disk type='file' device='{device}'>");
    let format = match drive.format.as_deref() {
        Some("vhd") => Some("vpc"),
        other => other,
    };
    if let Some(format) = format {
        parts.push_str(&format!("<driver name='qemu' type='{}'/>", xml(format)));
    }
    if let Some(path) = path(drive) {
        parts.push_str(&format!("<source file='{}'/>", xml(&path)));
    }
    parts.push_str(&format!("<target dev='{prefix}{}' bus='{bus}'/>", letters(index)));
    if drive.readonly {
        parts.push_str("<readonly/>");
    }
    if drive.shared {
        parts.push_str("<shareable/>");
    }
    if let Some(serial) = &drive.serial {
        parts.push_str(&format!("<serial>{}</serial>", xml(serial)));
    }
    if let Some(order) = drive.boot_order {
        parts.push_str(&format!("<boot order='{order}'/>"));
    }
    if matches!(drive.bus, Bus::Scsi | Bus::Sata) {
        let (controller, unit) = (drive.controller, drive.unit);
        parts.push_str(&format!(
            "<address type='drive' controller='{controller}' bus='0' target='0' unit='{unit}'/>"
        ));
    }
    parts.push_str("</disk>");
    Some(parts)
}

fn card(nic: &NetworkCard) -> String {
    let (kind, source) = match (nic.connection.as_deref(), &nic.network) {
        (Some("bridge"), Some(bridge)) => ("bridge", format!("<source bridge='{}'/>", xml(bridge))),
        (Some("user"), _) => ("user", String::new()),
        _ => ("network", "<source network='default'/>".into()),
    };
    let mac = nic.mac.map(|mac| format!("<mac address='{mac}'/>")).unwrap_or_default();
    let model = match nic.model.as_deref().unwrap_or_default().to_ascii_lowercase().as_str() {
        "e1000" | "82540em" | "82545em" | "82543gc" => "e1000",
        "e1000e" => "e1000e",
        "vmxnet3" => "vmxnet3",
        "am79c970a" | "am79c973" | "pcnet32" | "vlance" | "flexible" => "pcnet",
        "rtl8139" => "rtl8139",
        _ => "virtio",
    };
    let link = if nic.connected { "" } else { "<link state='down'/>" };
    format!("  <interface type='{kind}'>{mac}{source}<model type='{model}'/>{link}</interface>")
}

fn scsi_model(model: Option<&str>) -> &'static str {
    match model.unwrap_or_default().to_ascii_lowercase().as_str() {
        "pvscsi" | "virtualscsi" | "vmpvscsi" => "vmpvscsi",
        "lsilogic" => "lsilogic",
        "lsisas1068" | "lsilogicsas" => "lsisas1068",
        "buslogic" => "buslogic",
        _ => "virtio-scsi",
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

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<_> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}
