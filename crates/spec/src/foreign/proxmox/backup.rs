//! The archives of `vzdump`, `NAME.vma` and `NAME.vma.gz`: the configuration, and the disks under the names that it gives them.

use std::path::Path;

use super::super::description::{Description, DriveKind, FileRef, FileState, Level};
use super::super::{tar, text};
use super::of_text;
use crate::Result;

/// What the configuration is called.
const CONFIGURATION: &str = "qemu-server.conf";

/// Whether a file of this name, which begins so, is an archive.
pub(crate) fn is_backup(head: &[u8], path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    head.starts_with(b"VMA\0") || tar::is_gzip(head) && name.ends_with(".vma.gz")
}

/// Reads the VM in an archive; `cache` as in [`ReadOptions::cache`](super::super::ReadOptions::cache).
pub(crate) fn read_backup(path: &Path, cache: Option<&Path>) -> Result<Description> {
    let wrong = |error: disk::Error| {
        let causes = std::iter::successors(std::error::Error::source(&error), |one| one.source());
        let causes: String = causes.map(|cause| format!(": {cause}")).collect();
        text::error(path, format!("{error}{causes}"))
    };
    let source = tar::open_unpacked(path, cache).map_err(wrong)?;
    let contents = disk::vma_contents(&*source).map_err(wrong)?.unwrap_or_default();
    let configuration = contents.configurations.iter().find(|(name, _)| name == CONFIGURATION);
    let missing = || text::error(path, format!("There is no {CONFIGURATION} in this archive"));
    let (_, configuration) = configuration.ok_or_else(missing)?;
    let mut vm =
        of_text(&text::decode_named(configuration, None), path, &|volume| FileRef::remote(volume))?;
    vm.format = "vma".into();
    vm.drives.retain(|drive| drive.kind != DriveKind::Cdrom);
    let mut missing = Vec::new();
    vm.drives.retain_mut(|drive| {
        let name = format!("drive-{}", drive.target.as_deref().unwrap_or_default());
        let is_there = contents.disks.contains(&name);
        if is_there {
            // Whatever format it had there.
            drive.format = None;
            drive.file = Some(FileRef {
                path: Some(path.to_owned()),
                ..FileRef::new(&name, None, FileState::Member)
            });
        } else {
            missing.extend(drive.target.clone());
        }
        is_there
    });
    for name in missing {
        vm.note(Level::Warning, format!("The disk {name} is not in this backup"));
    }
    Ok(vm)
}
