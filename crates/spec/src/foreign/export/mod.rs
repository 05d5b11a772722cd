//! Descriptions written for other programs.

mod libvirt;
mod ovf;
mod vmx;
mod xl;

use std::fmt;
use std::str::FromStr;

use super::description::{Description, Drive, FileRef, FileState};
use crate::Result;

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
    let mut export = match form {
        Form::Libvirt => libvirt::write(vm),
        Form::Ovf => ovf::write(vm),
        Form::Xl => xl::write(vm),
        Form::Vmx => vmx::write(vm),
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
        for device in &vm.devices {
            let model =
                device.model.as_deref().map(|model| format!(" ({model})")).unwrap_or_default();
            export.lost.push(format!("The device {}{model} is left out", device.kind));
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

/// Text between tags or in an attribute; what XML cannot hold becomes a question mark.
fn xml(text: &str) -> String {
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
