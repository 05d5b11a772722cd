//! OVF packages: `.ovf` with its files in a folder, or `.ova`, all of them in a tar archive.
//!
//! Sources: DMTF DSP0243 (OVF 1.1.1 and 2.1.1), DSP0004 appendix C (units), and for 0.9 the files that ESX 3 and VirtualBox 2
//! wrote. VMware's and VirtualBox's own elements are read as their products write them.

mod environment;
mod hardware;
mod package;

use std::collections::HashMap;
use std::path::Path;

use super::description::{
    Bus, Configuration, Description, FileRef, Level, MOST_UNREAD, Platform, Property,
};
use super::folder::Folder;
use super::read::ReadOptions;
use super::tar::Archive;
use super::xml::{self, Element};
use super::{text, virtualbox};
use crate::Result;
pub(crate) use package::Package;

/// Reads an `.ovf` with its files in `folder`.
pub(crate) fn read(
    root: &Element,
    path: &Path,
    folder: &Folder,
    options: &ReadOptions,
) -> Result<Vec<Description>> {
    let package = Package::Folder(folder);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let notes = package.check(&name, options.verify)?;
    let mut vms = envelope(root, path, "ovf", &package, options)?;
    vms.iter_mut().for_each(|vm| vm.notes.splice(0..0, notes.clone()).for_each(drop));
    Ok(vms)
}

/// Reads an `.ova`, or what has the form of one.
pub(crate) fn read_archive(
    archive: Archive,
    path: &Path,
    form: &str,
    options: &ReadOptions,
) -> Result<Vec<Description>> {
    let descriptors: Vec<_> = archive
        .names()
        .filter(|name| name.to_ascii_lowercase().ends_with(".ovf"))
        .map(str::to_owned)
        .collect();
    let [descriptor] = &descriptors[..] else {
        let message = format!(
            "Expected one description (.ovf) in the archive; there are {}",
            descriptors.len()
        );
        return Err(text::error(path, message));
    };
    let bytes = archive.read(descriptor)?;
    let root = xml::parse(&bytes, &format!("{}/{descriptor}", path.display()))?;
    let package = Package::Archive(archive);
    let notes = package.check(descriptor, options.verify)?;
    let mut vms = envelope(&root, path, form, &package, options)?;
    vms.iter_mut().for_each(|vm| vm.notes.splice(0..0, notes.clone()).for_each(drop));
    Ok(vms)
}

/// A package with more files is not one.
pub(crate) const MOST_MEMBERS: usize = 10_000;
/// More VMs are not read from one package.
const MOST_VMS: usize = 100;
/// More disks and deployment options are not read from one package.
const MOST_PARTS: usize = 1000;

/// A disk of the package.
pub(crate) struct Image {
    pub id: String,
    pub file: Option<FileRef>,
    pub format: Option<String>,
    pub capacity: Option<u64>,
    pub compressed: bool,
    pub parent: Option<String>,
    /// What oVirt says of how it is connected.
    pub bus: Option<Bus>,
    /// oVirt's system starts from it.
    pub is_boot: bool,
}

/// What all VMs of a package share.
pub(crate) struct Shared<'a> {
    pub package: &'a Package<'a>,
    pub images: Vec<Image>,
    /// By their identity.
    pub files: Vec<(String, FileRef)>,
    /// Identities by what the package calls the file.
    pub names: HashMap<String, String>,
    pub configuration: Option<String>,
}

/// Reads an envelope.
pub(crate) fn envelope(
    root: &Element,
    path: &Path,
    form: &str,
    package: &Package<'_>,
    options: &ReadOptions,
) -> Result<Vec<Description>> {
    let mut vm = Description::new(Platform::Ovf, form, path);
    vm.version = root.string("version");
    root.skip_attributes(&["buildId"]);
    configurations(root, options, &mut vm)?;
    let chosen = vm.configurations.iter().find(|one| one.chosen).map(|one| one.id.clone());
    let mut shared = Shared {
        package,
        images: Vec::new(),
        files: Vec::new(),
        names: HashMap::new(),
        configuration: chosen,
    };
    let mut compressed = Vec::new();
    for file in root.child("References").into_iter().flat_map(|list| list.children("File")) {
        let (Some(id), Some(href)) = (file.string("id"), file.attribute("href")) else {
            return Err(file.error("Expected `id` and `href` in <File>"));
        };
        let mut found = package.locate(href);
        if file.attribute("chunkSize").is_some() && !found.is_usable() {
            vm.note(
                Level::Obstacle,
                format!("The file `{href}` is cut into chunks, which cannot be read"),
            );
        }
        if let Some(kind) =
            file.attribute("compression").filter(|kind| !["", "identity"].contains(kind))
        {
            if kind != "gzip" {
                return Err(file.error(format!("The compression `{kind}` is not known")));
            }
            compressed.push(id.clone());
        }
        file.skip_attributes(&["size", "description"]);
        shared.names.insert(href.to_owned(), id.clone());
        if found.written.is_empty() {
            found.written = id.clone();
        }
        shared.files.push((id, found));
        if shared.files.len() > MOST_MEMBERS {
            return Err(file.error(format!("More than {MOST_MEMBERS} files are absurd")));
        }
    }
    for section in sections(root, "DiskSection") {
        for disk in section.children("Disk") {
            let image = image(disk, &shared, &compressed)?;
            shared.images.push(image);
            if shared.images.len() > MOST_PARTS {
                return Err(disk.error(format!("More than {MOST_PARTS} disks are absurd")));
            }
        }
        section.skip_children(&["Info"]);
    }
    for section in sections(root, "NetworkSection") {
        section.skip();
    }
    root.skip_children(&["Strings", "Info"]);
    let mut systems = Vec::new();
    virtual_systems(root, &mut systems);
    if systems.is_empty() {
        return Err(root.error("Expected <VirtualSystem> in <Envelope>"));
    }
    if systems.len() > MOST_VMS {
        return Err(root.error(format!("More than {MOST_VMS} VMs are absurd")));
    }
    let mut vms = Vec::new();
    for system in systems {
        vms.push(virtual_system(system, vm.clone(), &shared)?);
    }
    let mut unread = root.unread();
    unread.truncate(MOST_UNREAD);
    for vm in &mut vms {
        vm.unread.extend_from_slice(&unread);
    }
    vms.into_iter().map(Description::checked).collect()
}

/// Sections by their names of OVF 1 or by their types of OVF 0.9.
pub(crate) fn sections<'a>(of: &'a Element, name: &'a str) -> impl Iterator<Item = &'a Element> {
    let kind = format!("{name}_Type");
    let old = of
        .rest()
        .filter(|one| one.name == "Section")
        .filter(move |one| one.attribute("type").is_some_and(|one| one.ends_with(&kind)))
        .inspect(|one| one.see());
    let old: Vec<_> = old.collect();
    of.children(name).chain(old).inspect(|one| one.skip_attributes(&["required"]))
}

fn virtual_systems<'a>(of: &'a Element, found: &mut Vec<&'a Element>) {
    let old = |one: &Element| {
        one.attribute("type").is_some_and(|kind| kind.ends_with("VirtualSystem_Type"))
    };
    found.extend(of.children("VirtualSystem"));
    found
        .extend(of.rest().filter(|one| one.name == "Content" && old(one)).inspect(|one| one.see()));
    for collection in
        of.children("VirtualSystemCollection").chain(of.children("Content").filter(|one| !old(one)))
    {
        collection.skip_attributes(&["id"]);
        collection.skip_children(&["Info", "StartupSection", "Name"]);
        virtual_systems(collection, found);
    }
}

fn configurations(root: &Element, options: &ReadOptions, vm: &mut Description) -> Result<()> {
    let mut default = None;
    for section in sections(root, "DeploymentOptionSection") {
        section.skip_children(&["Info"]);
        for one in section.children("Configuration") {
            let id =
                one.string("id").ok_or_else(|| one.error("Expected `id` in <Configuration>"))?;
            if one.attribute("default") == Some("true") {
                default.get_or_insert_with(|| id.clone());
            }
            let label = one.child_text("Label").map(str::to_owned);
            one.skip_children(&["Description"]);
            if vm.configurations.len() >= MOST_PARTS {
                return Err(
                    one.error(format!("More than {MOST_PARTS} deployment options are absurd"))
                );
            }
            vm.configurations.push(Configuration { id, label, chosen: false });
        }
    }
    let first = vm.configurations.first().map(|one| one.id.clone());
    let Some(first) = first else { return Ok(()) };
    let chosen = options.configuration.clone().or(default).unwrap_or(first);
    match vm.configurations.iter_mut().find(|one| one.id == chosen) {
        Some(one) => one.chosen = true,
        None => {
            let names: Vec<_> = vm.configurations.iter().map(|one| one.id.as_str()).collect();
            return Err(root.error(format!(
                "There is no deployment option `{chosen}`; there is {}",
                names.join(", ")
            )));
        }
    }
    Ok(())
}

fn image(disk: &Element, shared: &Shared<'_>, compressed: &[String]) -> Result<Image> {
    let id = disk.string("diskId").ok_or_else(|| disk.error("Expected `diskId` in <Disk>"))?;
    let reference = disk.string("fileRef");
    let file = match &reference {
        Some(name) => {
            // oVirt refers to files by their names.
            let name = shared.names.get(name).unwrap_or(name);
            let found =
                shared.files.iter().find(|(id, _)| id == name).map(|(_, file)| file.clone());
            Some(found.ok_or_else(|| {
                disk.error(format!(
                    "The disk `{id}` is in the file `{name}`, which no <File> names"
                ))
            })?)
        }
        None => None,
    };
    let unit = hardware::unit(disk.attribute("capacityAllocationUnits").unwrap_or("byte"));
    let unit = unit.ok_or_else(|| {
        disk.error("The attribute `capacityAllocationUnits` of <Disk> is no unit")
    })?;
    let capacity = match disk.attribute("capacity") {
        // A property's value, which whoever deploys the VM chooses.
        Some(text) if text.starts_with('$') => None,
        Some(_) => disk.number::<u64>("capacity")?,
        // oVirt counts GiB.
        None if disk.attribute("volume-format").is_some() => {
            disk.number::<u64>("size")?.map(|size| size.saturating_mul(1 << 30))
        }
        None => None,
    };
    let format = disk.attribute("format").unwrap_or_default().to_ascii_lowercase();
    let known = ["vmdk", "vhdx", "vhd", "qcow2", "vdi", "raw"]
        .into_iter()
        .find(|name| format.contains(name));
    let known = match disk.attribute("volume-format") {
        Some("COW") => Some("qcow2"),
        Some("RAW") => Some("raw"),
        _ => known,
    };
    let bus = disk.attribute("disk-interface").and_then(|word| match word {
        "VirtIO" => Some(Bus::Virtio),
        "IDE" => Some(Bus::Ide),
        "SATA" => Some(Bus::Sata),
        "VirtIO_SCSI" | "SPAPR_VSCSI" => Some(Bus::Scsi),
        _ => None,
    });
    let is_boot = disk.attribute("boot").is_some_and(|word| word.eq_ignore_ascii_case("true"));
    disk.skip_attributes(&[
        "actual_size",
        "disk-alias",
        "disk-description",
        "disk-type",
        "populatedSize",
        "size",
        "uuid",
        "vm_snapshot_id",
        "volume-type",
    ]);
    Ok(Image {
        id,
        compressed: reference.is_some_and(|name| compressed.contains(&name)),
        file,
        format: known.map(str::to_owned),
        capacity: capacity.map(|count| count.saturating_mul(unit)),
        parent: disk.string("parentRef").filter(|parent| !parent.is_empty()),
        bus,
        is_boot,
    })
}

fn virtual_system(
    system: &Element,
    mut vm: Description,
    shared: &Shared<'_>,
) -> Result<Description> {
    vm.name = system.child_text("Name").map(str::to_owned).or_else(|| system.string("id"));
    system.skip_attributes(&["id", "type"]);
    system.skip_children(&["Info"]);
    for section in sections(system, "OperatingSystemSection") {
        let own =
            section.string("osType").or_else(|| section.child_text("OSType").map(str::to_owned));
        vm.guest_os = own.or_else(|| section.child_text("Description").map(str::to_owned));
        section.skip();
    }
    for section in sections(system, "AnnotationSection") {
        vm.annotation = section.child_text("Annotation").map(str::to_owned);
        section.skip_children(&["Info"]);
    }
    for section in sections(system, "EulaSection") {
        vm.note(Level::Info, "It has a licence that whoever deploys it is asked to accept");
        section.skip();
    }
    for section in sections(system, "ProductSection") {
        product(section, &mut vm);
    }
    let hardware: Vec<_> = sections(system, "VirtualHardwareSection").collect();
    let Some(first) = hardware.first() else {
        return Err(system.error("Expected <VirtualHardwareSection> in <VirtualSystem>"));
    };
    if hardware.len() > 1 {
        vm.note(
            Level::Info,
            "It describes its hardware for several platforms; the first one is taken",
        );
        hardware[1..].iter().for_each(|one| one.skip());
    }
    hardware::read(first, shared, &mut vm)?;
    for machine in system.children("Machine").filter(|one| one.prefix == "vbox") {
        virtualbox_machine(machine, &mut vm)?;
    }
    if vm.name.as_deref().unwrap_or_default().is_empty() {
        vm.name = None;
    }
    Ok(vm)
}

/// VirtualBox writes its own description into the package: it knows what OVF has no words for.
fn virtualbox_machine(machine: &Element, vm: &mut Description) -> Result<()> {
    let mut own = Description::new(Platform::Virtualbox, "vbox", &vm.file);
    let folder = Folder::nowhere();
    virtualbox::machine(machine, &virtualbox::Media::none(), &folder, &mut own)?;
    // Its packages of version 0.9 call the hardware VMware's.
    vm.platform = Platform::Virtualbox;
    vm.uuid = own.uuid;
    vm.smbios = own.smbios;
    vm.guest_os = own.guest_os.or(vm.guest_os.take());
    vm.architecture = own.architecture;
    vm.machine = own.machine;
    vm.firmware.kind = own.firmware.kind;
    vm.tpm = own.tpm;
    vm.cpus.nested = own.cpus.nested;
    vm.serials = own.serials;
    if own.nics.len() == vm.nics.len() {
        vm.nics = own.nics;
    }
    Ok(())
}

fn product(section: &Element, vm: &mut Description) {
    let words: Vec<_> = ["Vendor", "Product", "Version"]
        .iter()
        .filter_map(|name| section.child_text(name))
        .collect();
    if !words.is_empty() && vm.product.is_none() {
        vm.product = Some(words.join(" "));
    }
    let (class, instance) = (section.string("class"), section.string("instance"));
    for property in section.children("Property") {
        let key = property.attribute("key").unwrap_or_default();
        let full = [class.as_deref(), Some(key), instance.as_deref()];
        vm.properties.push(Property {
            key: full.into_iter().flatten().collect::<Vec<_>>().join("."),
            kind: property.string("type"),
            value: property.string("value"),
            label: property
                .child_text("Label")
                .or_else(|| property.child_text("Description"))
                .map(str::to_owned),
            user_configurable: property.attribute("userConfigurable") == Some("true"),
        });
        property.skip_attributes(&["password", "qualifiers"]);
        property.skip_children(&["Description", "Label"]);
    }
    section.skip_children(&[
        "Info",
        "FullVersion",
        "ProductUrl",
        "VendorUrl",
        "AppUrl",
        "Icon",
        "Category",
    ]);
    section.skip_attributes(&["required"]);
}

/// For the fuzzer.
pub(crate) fn fuzz_manifest(bytes: &[u8]) {
    package::fuzz(bytes);
}

#[cfg(test)]
mod tests;
