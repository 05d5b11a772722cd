//! Descriptions written for other programs.

mod libvirt;
mod ovf;
mod places;
mod vmx;
mod xl;

use std::fmt;
use std::str::FromStr;

use super::description::{
    Description, Drive, FileRef, FileState, FirmwareKind, NetworkCard, Platform,
};
use crate::{Result, Uuid};

/// A form that descriptions are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// libvirt's domain XML, for QEMU and KVM.
    Libvirt,
    /// An OVF 1.0 envelope.
    Ovf,
    /// Xen's `xl.cfg`.
    Xl,
    /// VMware's `.vmx`.
    Vmx,
    /// Our own, see [`VmSpec`](crate::VmSpec).
    Toml,
}

/// A description in another form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The file's text.
    pub text: String,
    /// Sentences about what the form has no words for.
    pub lost: Vec<String>,
}

/// There is no such form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of libvirt, ovf, xl, vmx and toml")]
pub struct UnknownForm(String);

/// Writes a description in another form.
///
/// # Errors
/// For [`Form::Toml`]: a disk cannot be used here.
pub fn export(vm: &Description, form: Form) -> Result<Export> {
    // Each platform has words of its own for what another computer keeps.
    let is_remote =
        |drive: &&Drive| drive.file.as_ref().is_some_and(|file| file.state == FileState::Remote);
    let (remote, drives): (Vec<_>, Vec<_>) = vm.drives.iter().partition(is_remote);
    let local = Description { drives: drives.into_iter().cloned().collect(), ..vm.clone() };
    let mut export = match form {
        Form::Libvirt => libvirt::write(&local),
        Form::Ovf => ovf::write(&local),
        Form::Xl => xl::write(&local),
        Form::Vmx => vmx::write(&local),
        Form::Toml => {
            let lost = vm.differences().into_iter().map(|note| note.message).collect();
            Export { text: vm.to_spec()?.to_toml()?, lost }
        }
    };
    // We read disks in archives.
    if form != Form::Toml {
        for drive in &vm.drives {
            if let Some(file) = drive.file.as_ref().filter(|file| file.state == FileState::Member) {
                export.lost.push(format!(
                    "The disk `{}` is inside an archive: convert it first",
                    file.written
                ));
            }
        }
        for drive in remote {
            let place = drive.file.as_ref().map_or("", |file| &file.written);
            export.lost.push(format!("The drive {} at `{place}` is left out", drive.address()));
        }
        for device in &vm.devices {
            let model =
                device.model.as_deref().map(|model| format!(" ({model})")).unwrap_or_default();
            export.lost.push(format!("The device {}{model} is left out", device.kind));
        }
        if !vm.boot.order.is_empty() && !boot_order_is_told(vm, form) {
            export.lost.push(format!("The boot order ({}) is left out", vm.boot.order.join(", ")));
        }
        if vm.nics.iter().any(|nic| nic.slot.is_some()) && !matches!(form, Form::Ovf | Form::Vmx) {
            let message =
                "The slots of network cards are left out: the guest may give them other names";
            export.lost.push(message.into());
        }
        let serial = vm.smbios.serial.as_ref().filter(|serial| match form {
            Form::Libvirt => false,
            // They make it of the UUID.
            Form::Xl => uuid(vm).is_none_or(|uuid| **serial != uuid.to_string()),
            Form::Vmx => !serial.starts_with("VMware-"),
            _ => true,
        });
        export.lost.extend(serial.map(|serial| format!("The serial number {serial} is left out")));
        if form == Form::Ovf && vm.smbios.uuid.is_some() {
            export.lost.push("The UUID is left out: who deploys the package makes another".into());
        }
        if form != Form::Libvirt && !vm.smbios.oem_strings.is_empty() {
            export.lost.push("The OEM strings of SMBIOS are left out".into());
        }
        if !vm.properties.is_empty() {
            let keys: Vec<_> = vm.properties.iter().map(|one| one.key.as_str()).collect();
            export
                .lost
                .push(format!("The package's properties ({}) are left out", keys.join(", ")));
        }
        match form {
            Form::Xl if vm.cpus.is_divided() => {
                export.lost.push("How its processors are divided is left out".into());
            }
            Form::Ovf | Form::Vmx if vm.cpus.threads.is_some_and(|threads| threads > 1) => {
                export.lost.push("The threads of its cores are left out: each is a core".into());
            }
            _ => {}
        }
        if vm.saved_state.is_some() {
            export.lost.push("It is suspended: what its memory holds is left out".into());
        }
        if form != Form::Libvirt {
            for share in &vm.shares {
                export.lost.push(format!("The shared folder {} is left out", share.name));
            }
        }
        if vm.nics.iter().any(|nic| !nic.forwards.is_empty()) {
            export.lost.push("The forwarded ports are left out".into());
        }
        if !vm.snapshots.is_empty() {
            export.lost.push("The snapshots are left out; the present state is described".into());
        }
    }
    export.lost.sort();
    export.lost.dedup();
    Ok(export)
}

/// What the guest is to read as its UUID: what it read, or what its platform calls the VM.
fn uuid(vm: &Description) -> Option<Uuid> {
    vm.smbios.uuid.or_else(|| vm.uuid.as_ref()?.parse().ok())
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Libvirt, Self::Ovf, Self::Xl, Self::Vmx, Self::Toml];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::Ovf => "ovf",
            Self::Xl => "xl",
            Self::Vmx => "vmx",
            Self::Toml => "toml",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Form {
    type Err = UnknownForm;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownForm> {
        Self::ALL
            .into_iter()
            .find(|form| form.name() == text)
            .ok_or_else(|| UnknownForm(text.chars().take(40).collect()))
    }
}

/// The file of a drive as other programs are told of it.
fn path(drive: &Drive) -> Option<String> {
    let FileRef { written, path, state, .. } = drive.file.as_ref()?;
    let found = path.as_ref().filter(|_| !matches!(state, FileState::Member | FileState::Remote));
    Some(found.map_or_else(|| written.clone(), |path| path.display().to_string()))
}

/// The models of network cards that more than one platform has, by one name.
fn nic_model(nic: &NetworkCard) -> Option<&'static str> {
    // Packages may name several to choose from.
    let words = nic.model.as_deref().unwrap_or_default().split([' ', ',']);
    words.map(str::to_ascii_lowercase).find_map(|word| match word.as_str() {
        "e1000" | "82540em" | "82545em" | "82543gc" => Some("e1000"),
        "e1000e" => Some("e1000e"),
        "vmxnet3" => Some("vmxnet3"),
        "am79c970a" | "am79c973" | "pcnet" | "pcnet32" | "vlance" | "flexible" => Some("pcnet"),
        "rtl8139" => Some("rtl8139"),
        word if word.starts_with("virtio") => Some("virtio"),
        _ => None,
    })
}

/// The model of a network card in a form's own words; tells what becomes another one.
fn nic_word(
    nic: &NetworkCard,
    words: &[(&str, &'static str)],
    default: &'static str,
    lost: &mut Vec<String>,
) -> &'static str {
    let known = nic_model(nic).and_then(|model| words.iter().find(|(one, _)| *one == model));
    if let Some((_, word)) = known {
        return word;
    }
    if let Some(model) = nic.model.as_deref().filter(|model| !model.is_empty()) {
        lost.push(format!("The network card {} is {default} instead of {model}", nic.index));
    }
    default
}

/// Memory that a guest may get while it runs. What other platforms than these call so is no promise, but a limit that
/// may be larger than any host.
fn most_memory(vm: &Description) -> Option<u64> {
    let is_promised = matches!(vm.platform, Platform::Xen | Platform::Qemu);
    vm.memory.maximum.filter(|most| is_promised && vm.memory.size.is_some_and(|size| *most > size))
}

/// What is tried in turn, in libvirt's words; nothing if a platform's word is not known.
fn boot_devices(vm: &Description) -> Option<Vec<&'static str>> {
    let device = |word: &String| match word.to_ascii_lowercase().as_str() {
        "c" | "hd" | "hdd" | "harddisk" | "harddrive" => Some("hd"),
        "d" | "cdrom" | "dvd" | "optical" => Some("cdrom"),
        "n" | "network" | "ethernet0" => Some("network"),
        "a" | "fd" | "floppy" => Some("fd"),
        _ => None,
    };
    vm.boot.order.iter().map(device).collect()
}

/// Drives have places in the boot order.
fn has_boot_places(vm: &Description) -> bool {
    vm.drives.iter().any(|drive| drive.boot_order.is_some())
}

/// The boot order is in what is written.
fn boot_order_is_told(vm: &Description, form: Form) -> bool {
    let has_words = match form {
        Form::Libvirt => !has_boot_places(vm),
        Form::Xl => true,
        Form::Vmx => vm.firmware.kind != Some(FirmwareKind::Uefi),
        Form::Ovf | Form::Toml => false,
    };
    has_words && boot_devices(vm).is_some()
}

/// Text between tags or in an attribute; what XML cannot hold becomes a question mark.
pub(crate) fn xml(text: &str) -> String {
    let allowed = |letter: char| !letter.is_control() || matches!(letter, '\t' | '\n' | '\r');
    let text: String =
        text.chars().map(|letter| if allowed(letter) { letter } else { '?' }).collect();
    quick_xml::escape::escape(text.as_str()).into_owned()
}

/// A name that is there.
fn name(vm: &Description) -> &str {
    vm.name.as_deref().filter(|name| !name.trim().is_empty()).unwrap_or("vm")
}

#[cfg(test)]
mod tests;
