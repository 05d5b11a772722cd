//! Boots a guest from its own disks, without firmware: by the plan that [`guest`] makes of its boot loader's menu.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guest::{BootPlan, Firmware, Guest, LinuxBoot, PlanOptions};
use image::Cache;
use machine::boot;
use machine::disks::OpenDisk;
use spec::VmSpec;

use crate::failure::{FAILED, Failure, NOT_STARTED};
use crate::run::scratch::Scratch;
use crate::run::{kernel, names};

/// What a machine boots, with the folder of the files that it needs for that.
pub struct Prepared {
    /// For the machine.
    pub boot: boot::BootPlan,
    /// What differs from how the guest was started elsewhere.
    pub notes: Vec<String>,
    /// The guest's name for the entry.
    pub title: String,
    _folder: Scratch,
}

/// Looks into the disks of `spec` for what to boot: this entry of the menu, or its default one. `words` are added to the
/// command line.
pub fn prepare(
    spec: &VmSpec,
    disks: &[OpenDisk],
    entry: Option<&str>,
    console: &str,
    words: &str,
) -> Result<Prepared, Failure> {
    let disks: Vec<_> = disks.iter().map(|disk| Arc::clone(&disk.disk)).collect();
    let guest = Guest::open(&disks);
    let nics = names::of_nics(spec, guest.os());
    let options =
        PlanOptions { console: Some(console.to_owned()), nics, entry: entry.map(str::to_owned) };
    let plan = guest.plan(&options).map_err(|error| match error {
        guest::Error::NotFound(_) if entry.is_some() => Failure::from_error(NOT_STARTED, error)
            .help("`omnivisor inspect` lists the entries of the menu"),
        _ => Failure::from_error(NOT_STARTED, error),
    })?;
    let linux = match plan {
        BootPlan::Linux(linux) => *linux,
        BootPlan::Firmware { kind, reason } => return Err(needs_firmware(kind, &reason)),
    };
    let folder = Scratch::new().map_err(|error| Failure::from_error(FAILED, error))?;
    let LinuxBoot { title, kernel, initrd, cmdline, notes, .. } = linux;
    let (kernel, kernel_is_immutable) = kernel::keep(&keep_file(folder.path(), &kernel)?)?;
    let initrd = initrd.map(|bytes| write(folder.path().join("initrd"), &bytes)).transpose()?;
    let cmdline = format!("{cmdline} {words}").trim().to_owned();
    let boot = boot::BootPlan { kernel, kernel_is_immutable, initrd, cmdline };
    Ok(Prepared { boot, notes, title, _folder: folder })
}

fn needs_firmware(kind: Firmware, reason: &str) -> Failure {
    let kind = match kind {
        Firmware::Bios => "a BIOS",
        Firmware::Uefi => "UEFI firmware",
    };
    let text = format!("This guest can only be started by {kind}, which is not here yet: {reason}");
    Failure::new(NOT_STARTED, text)
        .help("give its kernel with `--kernel FILE --initrd FILE --cmdline WORDS`")
}

/// The kernel in the cache under a name that stays, so that it is unpacked once; in `folder` if that fails.
fn keep_file(folder: &Path, bytes: &[u8]) -> Result<PathBuf, Failure> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let name = format!("guest-kernel-{:016x}", hasher.finish());
    let kept = Cache::open().and_then(|cache| {
        cache.entry(&name, |path| {
            std::fs::write(path, bytes).map_err(|source| image::Error::File {
                action: "written",
                path: path.to_owned(),
                source,
            })
        })
    });
    match kept {
        // The hash is no cryptographic one, and a guest may choose its kernel's bytes.
        Ok(path) if std::fs::read(&path).is_ok_and(|kept| kept == bytes) => Ok(path),
        _ => write(folder.join("kernel"), bytes),
    }
}

fn write(path: PathBuf, bytes: &[u8]) -> Result<PathBuf, Failure> {
    std::fs::write(&path, bytes).map_err(|error| {
        Failure::new(FAILED, format!("Cannot write {}: {error}", path.display()))
    })?;
    Ok(path)
}
