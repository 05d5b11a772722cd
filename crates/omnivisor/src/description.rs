//! What a VM is, on one page: its description, its disks as they are, and what will differ here.

use std::path::Path;
use std::sync::Arc;

use disk::{Disk, FilePolicy, Format, ImageInfo, ImageOptions};
use guest::{Guest, Report};
use serde_json::{Value, json};
use spec::VmSpec;
use spec::foreign::{
    Bus, Description, Drive, DriveKind, FileRef, FileState, Level, ReadOptions, Virtualization,
};

use crate::disk::{cache_folder, human, reading, root};
use crate::failure::{Failure, USAGE};
use crate::guest_page;
use crate::inspect::{allocated, image_json};
use crate::platforms::plain;

/// A VM with what is known of its disks.
pub struct Vm {
    /// What its platform says.
    pub description: Description,
    /// For each drive the images of its chain, or why it cannot be opened; nothing for drives without a disk.
    pub disks: Vec<Option<Result<Vec<ImageInfo>, String>>>,
    /// What is in them, if all of them can be opened.
    pub guest: Option<Report>,
}

impl Vm {
    /// A VM whose disks nobody looked at.
    pub fn unopened(description: Description) -> Self {
        let disks = description.drives.iter().map(|_| None).collect();
        Self { description, disks, guest: None }
    }
}

/// A disk with the images of its chain, or why it cannot be opened.
type Opened = Result<(Arc<dyn Disk>, Vec<ImageInfo>), String>;

/// How a description is read: with files outside of the VM's folder if they may be `anywhere`, and as this deployment option
/// of a package.
pub fn options(anywhere: bool, configuration: Option<&String>) -> ReadOptions {
    ReadOptions {
        anywhere,
        configuration: configuration.cloned(),
        verify: false,
        cache: cache_folder(),
    }
}

/// Reads a description and looks at the disks that it names.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Vm>, Failure> {
    let vms = spec::foreign::read(path, options)?;
    let vms = vms.into_iter().map(|mut description| {
        let files = match &description.folder {
            _ if options.anywhere => FilePolicy::Anywhere,
            Some(folder) => FilePolicy::Within(folder.clone()),
            None => FilePolicy::SameFolder,
        };
        let opened: Vec<_> = description.drives.iter().map(|drive| look(drive, &files)).collect();
        let there = opened.iter().flatten().map(|found| found.as_ref().ok());
        let there: Option<Vec<_>> = there.map(|found| Some(Arc::clone(&found?.0))).collect();
        let guest = there.filter(|disks| !disks.is_empty());
        let guest = guest.map(|disks| Guest::open(&disks).report());
        let chain = |found: Option<Opened>| found.map(|found| found.map(|(_, chain)| chain));
        let disks: Vec<_> = opened.into_iter().map(chain).collect();
        for (drive, found) in description.drives.iter_mut().zip(&disks) {
            if let Some(Ok(chain)) = found {
                drive.capacity = drive.capacity.or(chain.first().map(|image| image.length));
            }
        }
        Vm { description, disks, guest }
    });
    Ok(vms.collect())
}

/// The one VM, or the one of this name.
pub fn choose(vms: Vec<Description>, name: Option<&str>) -> Result<Description, Failure> {
    let names: Vec<_> = vms.iter().filter_map(|vm| vm.name.clone()).collect();
    let mut chosen = vms.into_iter().filter(|vm| name.is_none() || vm.name.as_deref() == name);
    match (chosen.next(), chosen.next()) {
        (Some(vm), None) => Ok(vm),
        _ => Err(Failure::new(USAGE, format!("Expected one VM; there are: {}", names.join(", ")))
            .help("say which one with --vm NAME")),
    }
}

/// The VM that is made of this disk alone: a file, a device, a bundle of Parallels or an address. `None` if nothing is there.
///
/// It is called as the file is; addresses may hold secrets, and name nothing.
pub fn of_disk(path: &Path, anywhere: bool) -> Option<VmSpec> {
    let is_url = disk::is_url(path);
    let is_other_folder = path.is_dir() && disk::bundle_descriptor(path).is_none();
    if !is_url && (!path.exists() || is_other_folder) {
        return None;
    }
    let name = path.file_stem().filter(|_| !is_url);
    let name = name.map(|name| name.to_string_lossy().trim_start_matches('.').to_owned());
    let disk = spec::Disk { path: path.to_owned(), outside: anywhere, ..spec::Disk::default() };
    let name = name.filter(|name| !name.is_empty());
    Some(VmSpec { name, disks: vec![disk], ..VmSpec::default() })
}

/// The VM as it is run here.
pub fn to_spec(vm: &Description) -> Result<VmSpec, Failure> {
    let mut files = vm.drives.iter().filter_map(|drive| drive.file.as_ref()).chain(&vm.boot.kernel);
    let is_outside = files.any(|file| file.state == FileState::Refused);
    vm.to_spec().map_err(|error| match Failure::from(error) {
        failure if is_outside => failure.help("if you trust the VM, say --allow-outside"),
        failure => failure,
    })
}

/// Tells on standard error what will not be as it was, and what should be known of it.
pub fn tell_differences(vm: &Description) {
    let warnings = vm.notes.iter().filter(|note| note.level == Level::Warning);
    for note in warnings.chain(&vm.differences()) {
        tell!("{}.", plain(&note.message));
    }
}

/// The VMs in the form that does not change.
pub fn json(vms: &[Vm]) -> Value {
    let vms = vms.iter().map(|vm| {
        let disks = vm.description.drives.iter().zip(&vm.disks).filter_map(|(drive, found)| {
            let (chain, problem) = match found.as_ref()? {
                Ok(chain) => (chain.iter().map(image_json).collect::<Vec<_>>(), None),
                Err(problem) => (Vec::new(), Some(problem)),
            };
            Some(json!({ "address": drive.address(), "chain": chain, "problem": problem }))
        });
        json!({
            "description": vm.description,
            "disks": disks.collect::<Vec<_>>(),
            "guest": vm.guest,
            "differences": vm.description.differences(),
        })
    });
    json!({ "vms": vms.collect::<Vec<_>>() })
}

/// The VM on one page.
pub fn page(vm: &Vm) -> String {
    let description = &vm.description;
    let mut page = Page::default();
    let version =
        description.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
    let name = description.name.as_deref().unwrap_or("(without a name)");
    page.line(
        "VM",
        format!("{name}, of {} ({}{version})", description.platform.title(), description.format),
    );
    page.line("file", description.file.display());
    if let Some(product) = &description.product {
        page.line("product", product);
    }
    if let Some(text) = &description.annotation {
        page.line("said", text.lines().next().unwrap_or_default());
    }
    let guest = description.guest_os.as_deref().unwrap_or("not said");
    page.line("guest", format!("{guest}, {}", description.architecture.name()));
    page.line("machine", hardware(description));
    let identity = &description.smbios;
    let uuid = identity.uuid.map(|uuid| format!("UUID {uuid}"));
    let serial = identity.serial.as_ref().map(|serial| format!("serial {serial}"));
    let words: Vec<_> = uuid.into_iter().chain(serial).collect();
    if !words.is_empty() {
        page.line("identity", words.join(", "));
    }
    boot(description, &mut page);
    for (drive, found) in description.drives.iter().zip(&vm.disks) {
        add_drive(description, drive, found.as_ref(), &mut page);
    }
    if let Some(guest) = vm.guest.as_ref().filter(|guest| guest_page::is_worth_telling(guest)) {
        for (about, line) in guest_page::lines(guest) {
            page.line(about, line);
        }
    }
    for nic in &description.nics {
        let words = [
            nic.model.clone(),
            nic.mac.map(|mac| mac.to_string()),
            nic.connection.clone(),
            nic.network.clone(),
            nic.slot.map(|slot| format!("slot {slot}")),
            (!nic.connected).then(|| "not connected".into()),
        ];
        page.line("network", words.into_iter().flatten().collect::<Vec<_>>().join(", "));
        for forward in &nic.forwards {
            page.line("", format!("port {forward}"));
        }
    }
    for serial in &description.serials {
        let words = [serial.backend.as_deref(), serial.target.as_deref()];
        let words = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
        page.line("serial", format!("COM{} {words}", u64::from(serial.index) + 1));
    }
    for share in &description.shares {
        page.line("share", format!("{} as {}", share.path, share.name));
    }
    for one in &description.configurations {
        let chosen = if one.chosen { " (taken)" } else { "" };
        page.line("option", format!("{}{chosen}", one.id));
    }
    for property in &description.properties {
        page.line(
            "property",
            format!("{}={}", property.key, property.value.as_deref().unwrap_or_default()),
        );
    }
    for snapshot in &description.snapshots {
        let words = [
            Some(snapshot.name.clone()),
            snapshot.created.clone(),
            snapshot.current.then(|| "the present state came from it".into()),
        ];
        page.line("snapshot", words.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    for note in &description.notes {
        page.line("note", &note.message);
    }
    for note in description.differences() {
        page.line("differs", &note.message);
    }
    if !description.unread.is_empty() {
        let mut keys: Vec<_> = description.unread.iter().map(|one| one.key.as_str()).collect();
        keys.dedup();
        let more = keys.len().saturating_sub(MOST_KEYS);
        keys.truncate(MOST_KEYS);
        let more =
            if more > 0 { format!(" and {more} more (--format json)") } else { String::new() };
        page.line("unknown", format!("{}{more}", keys.join(", ")));
    }
    page.text
}

/// So many keys that are not understood are named.
const MOST_KEYS: usize = 12;

/// Lines with what they are about in front.
#[derive(Default)]
pub struct Page {
    /// All of them.
    pub text: String,
    last: &'static str,
}

impl Page {
    /// Adds a line; what is about the same as the one before does not say it again.
    pub fn line(&mut self, about: &'static str, text: impl std::fmt::Display) {
        let shown = if about == self.last { "" } else { about };
        if !about.is_empty() {
            self.last = about;
        }
        // What others wrote must not steer the terminal.
        let text = text.to_string().replace(char::is_control, " ");
        self.text.push_str(&format!("{shown:<9} {text}\n"));
    }
}

fn hardware(description: &Description) -> String {
    let mut words = Vec::new();
    let cpus = &description.cpus;
    let count = cpus.count.unwrap_or(1);
    let topology = match (cpus.sockets, cpus.cores) {
        (Some(sockets), Some(cores)) => {
            let threads = cpus.threads.filter(|threads| *threads > 1);
            let threads = threads.map(|threads| format!(" of {}", counted(threads, "thread")));
            let (sockets, cores) = (counted(sockets, "socket"), counted(cores, "core"));
            format!(" ({sockets} of {cores}{})", threads.unwrap_or_default())
        }
        _ => String::new(),
    };
    words.push(format!("{}{topology}", counted(count, "processor")));
    let memory = &description.memory;
    let range = match (memory.minimum, memory.maximum) {
        (Some(least), Some(most)) => format!(" ({} to {})", human(least), human(most)),
        (Some(least), None) => format!(" (at least {})", human(least)),
        (None, Some(most)) => format!(" (at most {})", human(most)),
        (None, None) => String::new(),
    };
    words.push(match memory.size {
        Some(size) => format!("{} of memory{range}", human(size)),
        None => "memory not said".into(),
    });
    match description.virtualization {
        Virtualization::Full => {}
        Virtualization::Pv => words.push("Xen PV".into()),
        Virtualization::Pvh => words.push("Xen PVH".into()),
        Virtualization::Container => words.push("a container".into()),
    }
    if let Some(kind) = description.firmware.kind {
        words.push(kind.title().into());
    }
    if description.firmware.secure_boot == Some(true) {
        words.push("Secure Boot".into());
    }
    if let Some(version) = &description.tpm {
        words.push(format!("TPM {version}").trim_end().to_owned());
    }
    words.extend(description.machine.clone());
    words.join(", ")
}

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn boot(description: &Description, page: &mut Page) {
    let boot = &description.boot;
    if let Some(kernel) = &boot.kernel {
        page.line("kernel", file(kernel));
    }
    if let Some(initrd) = &boot.initrd {
        page.line("initrd", file(initrd));
    }
    if let Some(words) = &boot.cmdline {
        page.line("cmdline", words);
    }
    if let Some(program) = &boot.bootloader {
        page.line("boot", program);
    }
    if let Some(state) = &description.saved_state {
        page.line("state", format!("suspended, {}", file(state)));
    }
}

fn add_drive(
    description: &Description,
    drive: &Drive,
    found: Option<&Result<Vec<ImageInfo>, String>>,
    page: &mut Page,
) {
    let about = match drive.kind {
        DriveKind::Disk => "disk",
        DriveKind::Cdrom => "cdrom",
        DriveKind::Floppy => "floppy",
        DriveKind::Passthrough => "device",
    };
    let controllers = &description.controllers;
    let model =
        controllers.iter().find(|one| one.bus == drive.bus && one.index == drive.controller);
    let model = model
        .and_then(|one| one.model.as_deref())
        .map(|model| format!(" ({model})"))
        .unwrap_or_default();
    // A PV guest's disk may be one partition, which only Xen's own name tells from others.
    let address = match &drive.target {
        Some(name) if drive.bus == Bus::Xen => name.clone(),
        _ => drive.address(),
    };
    let mut words = vec![format!("{address}{model}")];
    words.push(drive.file.as_ref().map_or_else(|| "empty".into(), file));
    words.extend(drive.format.clone().filter(|_| found.is_none()));
    words.extend(drive.capacity.map(human));
    let flags = [
        (drive.readonly && drive.kind == DriveKind::Disk, "read-only"),
        (drive.volatile, "forgets its changes"),
        (drive.shared, "shared"),
        (drive.encrypted, "encrypted"),
        (drive.compressed, "gzip"),
        (!drive.connected, "not connected"),
    ];
    words.extend(flags.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.to_owned()));
    page.line(about, words.join(", "));
    match found {
        Some(Ok(chain)) => {
            for image in chain {
                let allocated = allocated(image)
                    .map(|size| format!(", {} allocated", human(size)))
                    .unwrap_or_default();
                page.line("", format!("  {} {}{allocated}", image.format, image.path.display()));
                page.last = about;
            }
        }
        Some(Err(problem)) => page.line("", format!("  cannot be opened: {problem}")),
        None => {}
    }
    page.last = about;
}

fn file(file: &FileRef) -> String {
    let state = match file.state {
        FileState::Present => "",
        FileState::Moved => " (found beside the description)",
        FileState::Member => " (in the archive)",
        FileState::Missing => " (missing)",
        FileState::Refused => " (outside of the VM's folder: --allow-outside)",
        FileState::Remote => " (not of this computer)",
    };
    format!("{}{state}", file.written)
}

/// Opens a disk read-only, as the description says what it is.
fn look(drive: &Drive, files: &FilePolicy) -> Option<Opened> {
    let path = drive.disk_path()?;
    if drive.kind != DriveKind::Disk || drive.encrypted {
        return None;
    }
    let format = drive.format.as_deref().and_then(|name| name.parse::<Format>().ok());
    let options = ImageOptions { format, files: files.clone(), ..reading() };
    let opened = disk::open_chain(path, &options);
    Some(opened.map_err(|error| {
        let way_out = if matches!(root(&error), disk::Error::OutsideFolder { .. }) {
            " (--allow-outside)"
        } else {
            ""
        };
        format!("{}{way_out}", machine::chain(&error))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_disks_cards_and_what_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let text = "displayName = \"web\\u001b\"\nmemsize = \"512\"\nnumvcpus = \"2\"\n\
                    cpuid.coresPerSocket = \"2\"\nscsi0.present = \"TRUE\"\nscsi0.virtualDev = \"pvscsi\"\n\
                    scsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"gone.vmdk\"\nscsi0:1.present = \"TRUE\"\n\
                    scsi0:1.fileName = \"/etc/passwd\"\nstrange.key = \"1\"\n";
        let path = folder.path().join("web.vmx");
        std::fs::write(&path, text).unwrap();
        let Ok(vms) = read(&path, &ReadOptions::default()) else { panic!("it can be read") };
        let page = page(&vms[0]);
        for part in [
            "VM        web",
            "machine   2 processors (1 socket of 2 cores), 512 MiB of memory, BIOS",
            "disk      scsi0:0 (pvscsi), gone.vmdk (missing), vmdk",
            "          scsi0:1 (pvscsi), /etc/passwd (outside of the VM's folder: --allow-outside), vmdk",
            "unknown   strange.key",
        ] {
            assert!(page.contains(part), "{part}:\n{page}");
        }
        assert!(!page.contains('\u{1b}'));
        let json = json(&vms);
        assert_eq!(json["vms"][0]["description"]["memory"]["size"], 512 << 20);
        assert_eq!(json["vms"][0]["description"]["drives"][1]["file"]["state"], "refused");
    }
}
