//! libvirt's domain XML, of all the hypervisors that libvirt drives.
//!
//! Source: libvirt's documentation, "Domain XML format".

mod devices;

pub(crate) use devices::letters_to_index;

use std::path::Path;

use super::description::{
    Architecture, Description, Firmware, FirmwareKind, Level, Platform, Snapshot, Virtualization,
};
use super::folder::Folder;
use super::xml::Element;
use crate::Result;

/// Reads a `domain`, or the one in a `domstatus` or `domainsnapshot`.
pub(crate) fn read(root: &Element, path: &Path, folder: &Folder) -> Result<Description> {
    let domain = if root.name == "domain" { root } else { domain_in(root)? };
    let kind = domain.attribute("type").unwrap_or_default();
    let platform = match kind {
        "xen" => Platform::Xen,
        "vbox" => Platform::Virtualbox,
        "vmware" => Platform::Vmware,
        "hyperv" => Platform::Hyperv,
        "parallels" | "vz" => Platform::Parallels,
        "qemu" | "kvm" | "kqemu" | "hvf" | "test" | "bhyve" | "lxc" | "uml" | "openvz" => {
            Platform::Qemu
        }
        "" => return Err(domain.error("Expected a `type` in <domain>, such as kvm")),
        other => return Err(domain.error(format!("The hypervisor `{other}` is not known"))),
    };
    let mut vm = Description::new(platform, "libvirt", path);
    vm.version = Some(kind.to_owned());
    if matches!(kind, "lxc" | "uml" | "openvz") {
        vm.virtualization = Virtualization::Container;
    }
    domain.skip_attributes(&["id"]);
    vm.name = domain.child_text("name").map(str::to_owned);
    vm.uuid = domain.child_text("uuid").map(str::to_owned);
    smbios(domain, &mut vm);
    vm.annotation =
        ["description", "title"].iter().find_map(|name| domain.child_text(name)).map(str::to_owned);
    vm.guest_os = guest_os(domain);
    memory(domain, &mut vm)?;
    processors(domain, &mut vm)?;
    boot(domain, folder, &mut vm);
    if let Some(devices) = domain.child("devices") {
        devices::read(devices, folder, &mut vm)?;
    }
    for name in ["on_poweroff", "on_reboot", "on_crash", "on_lockfailure", "genid"] {
        domain.skip_children(&[name]);
    }
    if root.name == "domainsnapshot" {
        vm.snapshots.push(snapshot(root));
    }
    // Every machine has these, or does without and no guest needs them.
    domain
        .children("features")
        .for_each(|one| one.skip_children(&["acpi", "apic", "pae", "smm", "vmport"]));
    domain.skip_children(&["pm"]);
    domain
        .children("clock")
        .filter(|clock| clock.attribute("offset") == Some("utc"))
        .for_each(|clock| clock.skip());
    vm.unread = domain.unread();
    vm.checked()
}

/// libvirt's UUID is the guest's; other fields come from `sysinfo`.
fn smbios(domain: &Element, vm: &mut Description) {
    // Of VMware's domains the version of the hardware is not told, on which the order of the bytes depends.
    if vm.platform != Platform::Vmware {
        vm.smbios = vm.smbios_of_uuid();
    }
    let smbios = |info: &&Element| info.attribute("type") == Some("smbios");
    let Some(info) = domain.children("sysinfo").find(smbios) else { return };
    for entry in info.child("system").into_iter().flat_map(|system| system.children("entry")) {
        match entry.attribute("name") {
            Some("serial") => vm.smbios.serial = Some(entry.text().to_owned()),
            // libvirt demands that it is the domain's.
            Some("uuid") => entry.skip(),
            _ => {}
        }
    }
    let strings = info.child("oemStrings").into_iter().flat_map(|list| list.children("entry"));
    vm.smbios.oem_strings = strings.map(|entry| entry.text().to_owned()).collect();
}

/// What a `domainsnapshot` says of itself; libvirt knows it by its name.
fn snapshot(root: &Element) -> Snapshot {
    let text =
        |name: &str| root.child_text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let name = text("name").unwrap_or_default();
    Snapshot {
        id: name.clone(),
        name,
        description: text("description"),
        created: text("creationTime"),
        parent: root.at(&["parent", "name"]).map(|parent| parent.text().to_owned()),
        current: false,
    }
}

fn domain_in(root: &Element) -> Result<&Element> {
    root.child("domain").ok_or_else(|| root.error(format!("Expected <domain> in <{}>", root.name)))
}

/// The identity that libosinfo gives to the guest's system, such as `http://debian.org/debian/12`.
fn guest_os(domain: &Element) -> Option<String> {
    let os = domain.at(&["metadata", "libosinfo", "os"])?;
    os.string("id")
}

fn memory(domain: &Element, vm: &mut Description) -> Result<()> {
    let size = |name: &str| match domain.child(name) {
        Some(element) => amount(element),
        None => Ok(None),
    };
    let (current, all, most) = (size("currentMemory")?, size("memory")?, size("maxMemory")?);
    if let Some(most) = domain.child("maxMemory") {
        most.skip_attributes(&["slots"]);
    }
    vm.memory.size = current.filter(|size| *size > 0).or(all);
    vm.memory.maximum =
        most.or(all.filter(|_| current.is_some_and(|current| Some(current) != all)));
    if let Some(pages) = domain.at(&["memoryBacking", "hugepages"]) {
        vm.memory.hugepages = true;
        pages.skip();
    }
    Ok(())
}

/// An amount of memory with its unit, in bytes.
fn amount(element: &Element) -> Result<Option<u64>> {
    let unit = element.attribute("unit").unwrap_or("KiB");
    element.skip_attributes(&["dumpCore"]);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "b" | "bytes" => 1,
        "kb" => 1000,
        "k" | "kib" => 1 << 10,
        "mb" => 1_000_000,
        "m" | "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "g" | "gib" => 1 << 30,
        "tb" => 1_000_000_000_000,
        "t" | "tib" => 1 << 40,
        _ => return Err(element.error(format!("The unit `{unit}` is not one of memory"))),
    };
    let number: u64 = match element.text() {
        "" => return Ok(None),
        text => text.parse().map_err(|_| {
            let text: String = text.chars().take(40).collect();
            element.error(format!("<{}> is `{text}` instead of a number", element.name))
        })?,
    };
    Ok(Some(number.saturating_mul(factor)))
}

fn processors(domain: &Element, vm: &mut Description) -> Result<()> {
    vm.cpus.count = Some(1);
    if let Some(count) = domain.child_number::<u32>("vcpu")? {
        let current: Option<u32> =
            domain.child("vcpu").map_or(Ok(None), |vcpu| vcpu.number("current"))?;
        vm.cpus.count = Some(current.unwrap_or(count));
        vm.cpus.maximum = current.map(|_| count);
    }
    if let Some(vcpu) = domain.child("vcpu") {
        vcpu.skip_attributes(&["placement", "cpuset"]);
    }
    if let Some(cpu) = domain.child("cpu") {
        if let Some(topology) = cpu.child("topology") {
            vm.cpus.sockets = topology.number("sockets")?;
            vm.cpus.cores = topology.number("cores")?;
            vm.cpus.threads = topology.number("threads")?;
            if let Some(dies) = topology.number::<u32>("dies")?.filter(|dies| *dies > 1) {
                vm.cpus.cores = vm.cpus.cores.map(|cores| cores.saturating_mul(dies));
            }
        }
        let features = ["vmx", "svm"];
        let mut given = cpu.children("feature").filter(|one| {
            one.attribute("name").is_some_and(|name| features.contains(&name))
                && one
                    .attribute("policy")
                    .is_none_or(|policy| policy == "require" || policy == "force")
        });
        vm.cpus.nested = given.next().map(|_| true);
        vm.cpus.model = cpu.child_text("model").map(str::to_owned).or_else(|| cpu.string("mode"));
        cpu.skip_attributes(&["mode", "match", "check", "migratable"]);
        cpu.skip_children(&["model", "vendor"]);
    }
    Ok(())
}

fn boot(domain: &Element, folder: &Folder, vm: &mut Description) {
    vm.boot.bootloader = domain.child_text("bootloader").map(str::to_owned);
    let Some(os) = domain.child("os") else {
        // A boot loader is only for Xen's PV.
        if vm.boot.bootloader.is_some() {
            vm.virtualization = Virtualization::Pv;
        }
        return;
    };
    if let Some(kind) = os.child("type") {
        match kind.text() {
            "linux" | "xen" => vm.virtualization = Virtualization::Pv,
            "xenpvh" => vm.virtualization = Virtualization::Pvh,
            "exe" => vm.virtualization = Virtualization::Container,
            _ => {}
        }
        if let Some(name) = kind.attribute("arch") {
            vm.architecture = Architecture::named(name);
        }
        vm.machine = kind.string("machine");
    }
    let file = |name: &str| os.child_text(name).map(|path| folder.locate(path, &[]));
    vm.boot.kernel = file("kernel");
    vm.boot.initrd = file("initrd");
    vm.boot.cmdline = os.child_text("cmdline").map(str::to_owned);
    vm.boot.order = os.children("boot").filter_map(|boot| boot.string("dev")).collect();
    vm.firmware = firmware(os, folder);
    if let Some(loader) =
        vm.firmware.loader.clone().filter(|_| vm.virtualization == Virtualization::Pv)
    {
        vm.note(Level::Info, format!("Xen would start it through {loader}"));
    }
    os.skip_children(&["bios", "bootmenu", "smbios"]);
}

fn firmware(os: &Element, folder: &Folder) -> Firmware {
    let mut firmware = Firmware { kind: Some(FirmwareKind::Bios), ..Firmware::default() };
    match os.attribute("firmware") {
        Some("efi") => firmware.kind = Some(FirmwareKind::Uefi),
        Some("bios") => firmware.kind = Some(FirmwareKind::Bios),
        _ => {}
    }
    for feature in os.child("firmware").into_iter().flat_map(|list| list.children("feature")) {
        if feature.attribute("name") == Some("secure-boot") {
            firmware.secure_boot = Some(feature.attribute("enabled") == Some("yes"));
        }
    }
    if let Some(loader) = os.child("loader") {
        let name = loader.text().to_ascii_lowercase();
        let flash = loader.attribute("type") == Some("pflash");
        if flash || name.contains("ovmf") || name.contains("efi") || name.contains("aavmf") {
            firmware.kind = Some(FirmwareKind::Uefi);
        }
        if loader.attribute("secure") == Some("yes") {
            firmware.secure_boot.get_or_insert(true);
        }
        firmware.loader = Some(loader.text().to_owned()).filter(|text| !text.is_empty());
        loader.skip_attributes(&["readonly", "stateless", "format"]);
    }
    if let Some(nvram) = os.child("nvram") {
        nvram.skip_attributes(&["template", "templateFormat", "format", "type"]);
        let named = nvram.child("source").and_then(|source| source.attribute("file"));
        let named = named.unwrap_or(nvram.text());
        firmware.nvram = (!named.is_empty()).then(|| folder.locate(named, &[]));
    }
    firmware
}

#[cfg(test)]
mod tests;
