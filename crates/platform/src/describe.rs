//! Descriptions that a platform prints instead of having them in a file here.

use std::io::Write;
use std::path::{Path, PathBuf};

use spec::foreign::{Description, FileState, ReadOptions};

use crate::{Error, Result};

/// Longest description that is taken.
pub(crate) const LONGEST: usize = 16 << 20;

/// Reads one VM's description. Its files are looked for if the platform is `here`; `label` is shown as its file.
pub(crate) fn read(bytes: &[u8], ending: &str, label: &str, here: bool) -> Result<Description> {
    let mut vms = if here {
        let wrong = |source| Error::File { path: std::env::temp_dir(), source };
        let mut file =
            tempfile::Builder::new().suffix(&format!(".{ending}")).tempfile().map_err(wrong)?;
        file.write_all(bytes).and_then(|()| file.flush()).map_err(wrong)?;
        // The platform would open them, wherever they are.
        let options = ReadOptions { anywhere: true, ..ReadOptions::default() };
        spec::foreign::read(file.path(), &options)?
    } else {
        spec::foreign::parse(bytes, Path::new(&format!("{label}.{ending}")))?
    };
    if vms.len() != 1 {
        return Err(Error::reply(label, format!("it describes {} VMs", vms.len())));
    }
    let mut vm = vms.remove(0);
    vm.file = PathBuf::from(label);
    vm.folder = None;
    if !here {
        for_another_computer(&mut vm);
    }
    Ok(vm)
}

/// Says of all files that they are not of this computer.
pub(crate) fn for_another_computer(vm: &mut Description) {
    let drives = vm.drives.iter_mut();
    let files = drives.flat_map(|drive| drive.file.iter_mut().chain(&mut drive.parents));
    let boot = &mut vm.boot;
    let others = [&mut boot.kernel, &mut boot.initrd, &mut vm.firmware.nvram, &mut vm.saved_state];
    for file in files.chain(others.into_iter().flatten()) {
        file.path = None;
        file.state = FileState::Remote;
    }
}

/// The last part of a path.
pub(crate) fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// The folder of a path.
pub(crate) fn folder(path: &str) -> Option<String> {
    path.rsplit_once('/').map(|(folder, _)| folder.to_owned())
}

/// The end of the file that a VM's first serial port writes to, by its description.
pub(crate) fn serial_log(
    runner: &crate::Runner,
    vm: &Description,
    platform: &str,
    limit: usize,
) -> Result<Vec<u8>> {
    let is_file = |port: &&spec::foreign::SerialPort| {
        port.backend.as_deref().is_some_and(|backend| backend.contains("file"))
    };
    let path = vm.serials.iter().filter(is_file).find_map(|port| port.target.as_deref());
    let path = path.ok_or_else(|| Error::Lacks {
        platform: platform.into(),
        verb: crate::Verb::ConsoleLog,
        reason: "no serial port of the VM writes to a file".into(),
    })?;
    runner.clone().output_limit(limit).expect("tail", &["-c", &limit.to_string(), "--", path])
}
