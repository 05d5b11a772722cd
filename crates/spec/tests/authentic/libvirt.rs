//! libvirt's own domains: hundreds of files of its tests, for all of its hypervisors.

use spec::foreign::{Level, ReadOptions, read};

use crate::data;

#[test]
fn nearly_every_domain_of_libvirt_is_read() {
    let Some(tests) = data::debian_source("libvirt", "tests") else { return };
    let mut read_files = 0;
    let mut wrong = Vec::new();
    for folder in [
        "qemuxml2argvdata",
        "genericxml2xmlindata",
        "vmx2xmldata",
        "xlconfigdata",
        "xmconfigdata",
        "lxcxml2xmldata",
    ] {
        for path in data::files(&tests.join(folder), ".xml") {
            let text = std::fs::read_to_string(&path).unwrap();
            if !text.contains("<domain ") || path.is_symlink() {
                continue;
            }
            match read(&path, &ReadOptions::default()) {
                Ok(vms) => {
                    assert_eq!(vms.len(), 1);
                    let vm = &vms[0];
                    let disks = text.matches("<disk ").count();
                    assert_eq!(vm.drives.len(), disks, "{}", path.display());
                    let cards = text.matches("<interface ").count();
                    assert_eq!(vm.nics.len(), cards, "{}", path.display());
                    let is_whole = !text.contains("<slices>");
                    assert!(vm.notes.iter().all(|note| note.level != Level::Obstacle) || !is_whole);
                    read_files += 1;
                }
                Err(error) => wrong.push(error.to_string()),
            }
        }
    }
    println!("{read_files} domains; refused: {wrong:#?}");
    assert!(read_files > 800, "{read_files}");
    assert!(wrong.len() * 100 < read_files, "{wrong:#?}");
}
