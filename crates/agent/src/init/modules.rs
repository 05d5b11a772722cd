//! Kernel modules, listed by the builder of the initramfs in the order of their dependencies.

use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;

/// One module on each line: its path, and after a space its parameters.
const LIST: &str = "/etc/omnivisor/modules";

/// Loads what the list names. Their files are removed: loaded, they would only take up the guest's memory.
pub fn load_listed() {
    let Ok(list) = std::fs::read_to_string(LIST) else { return };
    for line in list.lines().filter(|line| !line.is_empty()) {
        let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
        match load(path, parameters) {
            Ok(()) | Err(Errno::EXIST) => {
                let _ = std::fs::remove_file(path);
            }
            Err(error) => eprintln!("omnivisor: Module {path} could not be loaded: {error}"),
        }
    }
}

fn load(path: &str, parameters: &str) -> Result<(), Errno> {
    let file =
        File::open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let parameters = CString::new(parameters).map_err(|_| Errno::INVAL)?;
    rustix::system::finit_module(file, &parameters, 0)
}
