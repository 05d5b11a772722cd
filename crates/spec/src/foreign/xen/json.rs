//! libxl's JSON, as `xl list -l` prints it and as libxl keeps it with each domain.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::description::{
    Description, Drive, DriveKind, FirmwareKind, NetworkCard, Platform, Unread, Virtualization, mac,
};
use super::super::folder::Folder;
use super::super::text;
use super::devices;
use crate::{Error, Place, Result};

/// Reads one domain's configuration or a list of domains.
pub(crate) fn read(bytes: &[u8], path: &Path, folder: &Folder) -> Result<Vec<Description>> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| Error::File {
        place: Place {
            file: path.display().to_string(),
            position: Some((error.line(), error.column())),
        },
        message: format!("This is not JSON: {error}"),
    })?;
    let domains = match value {
        Value::Array(domains) => domains,
        one => vec![one],
    };
    if domains.len() > MOST_DOMAINS {
        return Err(text::error(path, format!("More than {MOST_DOMAINS} VMs are absurd")));
    }
    let mut vms = Vec::new();
    for domain in domains {
        let Value::Object(mut domain) = domain else {
            return Err(text::error(path, "Expected an object for each domain"));
        };
        let config = match domain.remove("config") {
            Some(Value::Object(config)) => config,
            _ => domain,
        };
        // The host's own domain has no kind.
        if !config.contains_key("c_info") {
            return Err(text::error(path, "Expected `c_info`: this is no configuration of libxl"));
        }
        vms.push(domain_of(config, path, folder)?.checked()?);
    }
    Ok(vms)
}

const MOST_DOMAINS: usize = 1000;

type Object = Map<String, Value>;

fn domain_of(mut config: Object, path: &Path, folder: &Folder) -> Result<Description> {
    let mut vm = Description::new(Platform::Xen, "libxl-json", path);
    let mut create = object(&mut config, "c_info");
    let mut build = object(&mut config, "b_info");
    vm.name = string(&mut create, "name");
    vm.uuid = string(&mut create, "uuid");
    vm.smbios = super::smbios(&vm);
    let kind = string(&mut create, "type").or_else(|| string(&mut build, "type"));
    build.remove("type");
    vm.virtualization = match kind.as_deref() {
        Some("pv") => Virtualization::Pv,
        Some("pvh") => Virtualization::Pvh,
        _ => Virtualization::Full,
    };
    let maximum =
        number(&mut build, "max_vcpus").map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let online = match build.remove("avail_vcpus") {
        Some(Value::Array(list)) if !list.is_empty() => u32::try_from(list.len()).ok(),
        _ => None,
    };
    vm.cpus.count = online.or(maximum);
    vm.cpus.maximum = maximum.filter(|_| online != maximum);
    let kibibytes = |number: Option<u64>| number.map(|count| count.saturating_mul(1 << 10));
    let most = kibibytes(number(&mut build, "max_memkb"));
    vm.memory.size = kibibytes(number(&mut build, "target_memkb")).or(most);
    vm.memory.maximum = most.filter(|_| most != vm.memory.size);
    // Before Xen 4.10 these stood with the kind of guest.
    let mut by_kind = Object::new();
    for name in ["type.hvm", "type.pv", "type.pvh", "u"] {
        by_kind.append(&mut object(&mut build, name));
    }
    let mut either = |key: &str| string(&mut build, key).or_else(|| string(&mut by_kind, key));
    let kernel = either("kernel");
    let hvm = vm.virtualization == Virtualization::Full;
    vm.boot.kernel = kernel
        .filter(|kernel| !kernel.ends_with("hvmloader"))
        .map(|path| folder.locate(&path, &[]));
    vm.boot.initrd = either("ramdisk").map(|path| folder.locate(&path, &[]));
    vm.boot.cmdline = either("cmdline");
    vm.boot.bootloader = either("bootloader");
    vm.boot.order = either("boot").unwrap_or_default().chars().map(String::from).collect();
    let bios = either("bios");
    if hvm {
        let uefi = bios.as_deref() == Some("ovmf");
        vm.firmware.kind = Some(if uefi { FirmwareKind::Uefi } else { FirmwareKind::Bios });
    }
    vm.cpus.nested = either("nested_hvm").map(|flag| flag == "True");
    for disk in list(&mut config, "disks") {
        let drive = drive(disk, folder, &mut vm).map_err(|message| text::error(path, message))?;
        vm.controller(drive.bus, drive.controller, None);
        vm.drives.push(drive);
    }
    for (index, nic) in list(&mut config, "nics").into_iter().enumerate() {
        let card = card(nic, index, &mut vm);
        vm.nics.push(card);
    }
    for name in ["vfbs", "pcidevs", "usbdevs", "p9s", "vtpms"] {
        for _ in list(&mut config, name) {
            match name {
                "vtpms" => vm.tpm = Some(String::new()),
                _ => vm.device(name.trim_end_matches('s'), None),
            }
        }
    }
    config.remove("vkbs");
    for key in [
        "device_model_version",
        "device_model",
        "apic",
        "acpi",
        "sched_params",
        "arch_arm",
        "arch_x86",
        "arch",
    ] {
        build.remove(key);
    }
    for name in ["on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"] {
        config.remove(name);
    }
    for name in [
        "vga",
        "vnc",
        "sdl",
        "spice",
        "rdm",
        "pae",
        "apic",
        "acpi",
        "serial_list",
        "xen_platform_pci",
        "usbdevice_list",
    ] {
        by_kind.remove(name);
    }
    rest("", config, &mut vm);
    rest("c_info.", create, &mut vm);
    rest("b_info.", build, &mut vm);
    rest("b_info.type.", by_kind, &mut vm);
    Ok(vm)
}

fn drive(
    mut disk: Object,
    folder: &Folder,
    vm: &mut Description,
) -> std::result::Result<Drive, String> {
    let mut drive = Drive { connected: true, ..Drive::default() };
    let name = string(&mut disk, "vdev").ok_or("Expected `vdev` in a disk")?;
    devices::place(&mut drive, &name)?;
    if number(&mut disk, "is_cdrom").is_some_and(|flag| flag != 0) {
        drive.kind = DriveKind::Cdrom;
    }
    drive.readonly = number(&mut disk, "readwrite") == Some(0) || drive.kind == DriveKind::Cdrom;
    drive.file = string(&mut disk, "pdev_path").map(|target| devices::file(&target, folder));
    drive.format = match string(&mut disk, "format").as_deref() {
        Some("vhd") => Some("vhd".into()),
        Some(format @ ("raw" | "qcow" | "qcow2" | "qed")) => Some(format.into()),
        _ => None,
    };
    for key in ["backend", "removable", "backend_domid", "discard_enable", "script", "colo_enable"]
    {
        disk.remove(key);
    }
    rest(&format!("disks.{name}."), disk, vm);
    Ok(drive)
}

fn card(mut nic: Object, index: usize, vm: &mut Description) -> NetworkCard {
    let kind = string(&mut nic, "nictype");
    let card = NetworkCard {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        model: string(&mut nic, "model")
            .or_else(|| (kind.as_deref() == Some("vif")).then(|| "netfront".into())),
        mac: string(&mut nic, "mac").as_deref().and_then(mac),
        connection: Some("bridge".into()),
        network: string(&mut nic, "bridge"),
        mtu: number(&mut nic, "mtu").and_then(|mtu| u16::try_from(mtu).ok()),
        connected: true,
        ..NetworkCard::default()
    };
    for key in ["devid", "script", "backend_domid", "ifname"] {
        nic.remove(key);
    }
    rest(&format!("nics.{index}."), nic, vm);
    card
}

/// What was not taken out by then is not understood.
fn rest(prefix: &str, object: Object, vm: &mut Description) {
    for (key, value) in object {
        let empty = matches!(&value, Value::Object(map) if map.is_empty())
            || matches!(&value, Value::Array(list) if list.is_empty());
        if !empty && !value.is_null() {
            let value = value.to_string().chars().take(200).collect();
            vm.unread.push(Unread { line: None, key: format!("{prefix}{key}"), value });
        }
    }
}

fn object(of: &mut Object, key: &str) -> Object {
    match of.remove(key) {
        Some(Value::Object(object)) => object,
        _ => Object::new(),
    }
}

fn list(of: &mut Object, key: &str) -> Vec<Object> {
    let Some(Value::Array(items)) = of.remove(key) else { return Vec::new() };
    items
        .into_iter()
        .filter_map(|item| if let Value::Object(object) = item { Some(object) } else { None })
        .collect()
}

fn string(of: &mut Object, key: &str) -> Option<String> {
    match of.remove(key) {
        Some(Value::String(text)) => Some(text).filter(|text| !text.is_empty()),
        _ => None,
    }
}

fn number(of: &mut Object, key: &str) -> Option<u64> {
    match of.remove(key) {
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::Bool(flag)) => Some(u64::from(flag)),
        _ => None,
    }
}
