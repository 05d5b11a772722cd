use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn state(folder: &Path) -> State {
    State { folder: folder.join("state"), vm: "vm".into(), cache: None }
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
fn what_is_kept_is_neither_seen_nor_lost_by_a_run_that_keeps_nothing() {
    let folder = folder_with_disk();
    let kept = open(folder.path(), "").unwrap();
    kept.disk.write_at(&[2; 512], 0).unwrap();
    let Writes::Overlay { path, .. } = &kept.writes else { panic!("{:?}", kept.writes) };
    let discarding = open(folder.path(), ",discard").unwrap();
    assert_eq!(discarding.writes, Writes::Discarded { kept: Some(path.clone()) });
    assert_eq!(first_bytes(&discarding), [1; 4]);
    drop((kept, discarding));
    assert_eq!(first_bytes(&open(folder.path(), "").unwrap()), [2; 4]);
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

/// Serves 1 MiB of ones, of which it says the version that is counted; returns its address.
fn serve(version: Arc<AtomicU32>) -> String {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let range = head.iter().find_map(|line| {
                let line = line.to_ascii_lowercase();
                let (first, last) = line.strip_prefix("range: bytes=")?.split_once('-')?;
                Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
            });
            let (first, last) = range.unwrap();
            let version = version.load(Ordering::Relaxed);
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/1048576\r\n\
                 Content-Length: {}\r\nConnection: close\r\nETag: \"{version}\"\r\n\r\n",
                last + 1 - first
            );
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&vec![1; last + 1 - first]);
        }
    });
    format!("http://{address}/disk.raw")
}

#[test]
fn an_overlay_lies_over_a_disk_of_a_server_until_that_changes() {
    let folder = tempfile::tempdir().unwrap();
    let version = Arc::new(AtomicU32::new(1));
    let url = serve(version.clone());
    let open = |options: &str| {
        let disks = [disk(&format!("{url}{options}"))];
        open_disks(&disks, &state(folder.path())).map(|mut disks| disks.remove(0))
    };
    let first = open("").unwrap();
    assert_eq!(first_bytes(&first), [1; 4]);
    first.disk.write_at(&[2; 512], 0).unwrap();
    drop(first);
    assert_eq!(first_bytes(&open("").unwrap()), [2; 4]);
    assert!(matches!(open(",in-place"), Err(Error::NotInPlace { .. })));
    assert_eq!(open(",readonly").unwrap().writes, Writes::Nowhere);
    version.store(2, Ordering::Relaxed);
    assert!(matches!(open(""), Err(Error::BaseChanged { .. })));
}

#[test]
fn the_disk_of_an_archive_keeps_its_overlay() {
    let folder = folder_with_disk();
    let raw = ImageOptions { read_only: true, ..ImageOptions::default() };
    let raw = disk::open(folder.path().join("disk"), &raw).unwrap();
    let image = folder.path().join("web.vmdk");
    disk::convert(&*raw, &image, &disk::ConvertOptions::new(Format::Vmdk), |_| {}).unwrap();
    drop(raw);
    let tar = ["-C", folder.path().to_str().unwrap(), "-cf"];
    let path = folder.path().join("disk");
    let done = std::process::Command::new("tar").args(tar).arg(&path).arg("web.vmdk").status();
    assert!(done.unwrap().success());
    let first = open(folder.path(), "").unwrap();
    assert_eq!((first_bytes(&first), first.format), ([1; 4], Format::Vmdk));
    first.disk.write_at(&[2; 512], 0).unwrap();
    drop(first);
    assert_eq!(first_bytes(&open(folder.path(), "").unwrap()), [2; 4]);
}
