use std::fs;
use std::path::Path;

use super::*;

fn state(folder: &Path) -> State {
    State { folder: folder.join("state"), vm: "vm".into() }
}

fn disk(text: &str) -> spec::Disk {
    text.parse().unwrap()
}

fn open(folder: &Path, options: &str) -> Result<OpenDisk, Error> {
    let text = format!("{}{options}", folder.join("disk").display());
    open_disks(&[disk(&text)], &state(folder)).map(|mut disks| disks.remove(0))
}

fn first_bytes(disk: &OpenDisk) -> [u8; 4] {
    let mut bytes = [0; 4];
    disk.disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn folder_with_disk() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk"), vec![1; 1 << 20]).unwrap();
    folder
}

#[test]
fn what_a_guest_writes_is_there_in_the_next_run_and_not_in_the_image() {
    let folder = folder_with_disk();
    let first = open(folder.path(), "").unwrap();
    assert!(matches!(first.writes, Writes::Overlay { is_new: true, .. }));
    first.disk.write_at(&[2; 512], 0).unwrap();
    drop(first);
    let second = open(folder.path(), "").unwrap();
    assert!(matches!(second.writes, Writes::Overlay { is_new: false, .. }));
    assert_eq!(first_bytes(&second), [2; 4]);
    assert_eq!(fs::read(folder.path().join("disk")).unwrap(), vec![1; 1 << 20]);
}

#[test]
fn what_is_discarded_is_gone_and_leaves_no_file() {
    let folder = folder_with_disk();
    let first = open(folder.path(), ",discard").unwrap();
    first.disk.write_at(&[2; 512], 0).unwrap();
    assert_eq!(first_bytes(&first), [2; 4]);
    drop(first);
    assert_eq!(first_bytes(&open(folder.path(), ",discard").unwrap()), [1; 4]);
    assert_eq!(fs::read_dir(folder.path().join("state/vm")).unwrap().count(), 0);
}

#[test]
fn a_raw_disk_that_its_guest_made_look_like_qcow2_stays_raw() {
    let folder = folder_with_disk();
    let header = [b"QFI\xfb".as_slice(), &[0, 0, 0, 3], &[0; 504]].concat();
    let opened = open(folder.path(), ",in-place").unwrap();
    opened.disk.write_at(&header, 0).unwrap();
    opened.disk.flush().unwrap();
    drop(opened);
    for options in [",in-place", "", ",readonly", ",discard"] {
        let opened = open(folder.path(), options).unwrap();
        assert_eq!((opened.format, first_bytes(&opened)), (Format::Raw, *b"QFI\xfb"));
    }
    // Another file in its place is looked at afresh.
    fs::write(folder.path().join("other"), &header).unwrap();
    fs::rename(folder.path().join("other"), folder.path().join("disk")).unwrap();
    assert!(open(folder.path(), ",in-place").is_err());
}

#[test]
fn an_overlay_remembers_its_base_and_refuses_another() {
    let folder = folder_with_disk();
    drop(open(folder.path(), ",format=raw").unwrap());
    let other = open(folder.path(), ",format=vmdk").err().unwrap();
    assert!(matches!(other, Error::Disk(_)), "{other}");
    fs::write(folder.path().join("disk"), vec![3; 1 << 20]).unwrap();
    let changed = open(folder.path(), "").err().unwrap();
    assert!(matches!(changed, Error::BaseChanged { .. }), "{changed}");
    assert!(changed.to_string().contains("was changed after it was made"), "{changed}");
}

#[test]
fn a_damaged_record_is_told_of() {
    let folder = folder_with_disk();
    drop(open(folder.path(), "").unwrap());
    let records = fs::read_dir(folder.path().join("state/vm")).unwrap().flatten();
    let record =
        records.map(|entry| entry.path()).find(|path| path.extension().unwrap() == "json").unwrap();
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("raw", "vmd")).unwrap();
    let error = open(folder.path(), "").err().unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn two_machines_cannot_have_one_overlay_at_a_time() {
    let folder = folder_with_disk();
    let first = open(folder.path(), "").unwrap();
    assert!(matches!(open(folder.path(), ""), Err(Error::Disk(disk::Error::InUse { .. }))));
    assert!(open(folder.path(), ",in-place").is_err(), "the base is being read");
    let state = State { vm: "other".into(), ..state(folder.path()) };
    let path = folder.path().join("disk");
    open_disks(&[disk(path.to_str().unwrap())], &state).unwrap();
    drop(first);
    open(folder.path(), ",in-place").unwrap();
}

#[test]
fn names_that_lead_elsewhere_are_no_folders() {
    let folder = folder_with_disk();
    for vm in ["", "..", "a/b", ".hidden"] {
        let state = State { vm: vm.into(), ..state(folder.path()) };
        assert!(matches!(state.vm_folder(), Err(Error::Name(_))), "{vm}");
    }
}
