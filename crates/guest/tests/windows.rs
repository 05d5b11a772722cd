//! A Windows system whose registry was written by hivex and whose file system by ntfs-3g. Needs root; without those
//! programs, or without FUSE, the test says so and does nothing.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use disk::{Disk, OpenOptions, RawDisk};
use guest::Guest;

const SOFTWARE: &str = r#"Windows Registry Editor Version 5.00

[\Microsoft]
[\Microsoft\Windows NT]
[\Microsoft\Windows NT\CurrentVersion]
"ProductName"="Windows 10 Pro"
"EditionID"="Professional"
"InstallationType"="Client"
"CurrentVersion"="6.3"
"CurrentBuildNumber"="22631"
"DisplayVersion"="23H2"
"CurrentMajorVersionNumber"=dword:0000000a
"CurrentMinorVersionNumber"=dword:00000000
"UBR"=dword:00000b2d
"#;

const SYSTEM: &str = r#"Windows Registry Editor Version 5.00

[\Select]
"Current"=dword:00000001
"Default"=dword:00000001
[\ControlSet001]
[\ControlSet001\Control]
[\ControlSet001\Control\Session Manager]
[\ControlSet001\Control\Session Manager\Environment]
"PROCESSOR_ARCHITECTURE"="AMD64"
[\ControlSet001\Services]
[\ControlSet001\Services\Tcpip]
[\ControlSet001\Services\Tcpip\Parameters]
"Hostname"=hex(1):42,00,fc,00,72,00,6f,00,2d,00,50,00,43,00,00,00
[\ControlSet001\Services\VMTools]
"Start"=dword:00000002
[\ControlSet001\Services\storahci]
"ImagePath"=hex(2):53,00,79,00,00,00
"Start"=dword:00000003
[\ControlSet001\Services\storahci\StartOverride]
"0"=dword:00000003
[\ControlSet001\Services\stornvme]
"Start"=dword:00000000
[\ControlSet001\Services\intelide]
"Start"=dword:00000003
"#;

fn run(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    let status = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A hive with nothing but its root, as hivex wants it before it adds to it.
fn empty_hive() -> Vec<u8> {
    let mut hive = vec![0_u8; 8192];
    let mut put =
        |place: usize, bytes: &[u8]| hive[place..place + bytes.len()].copy_from_slice(bytes);
    put(0, b"regf");
    for (place, number) in
        [(4, 1_u32), (8, 1), (20, 1), (24, 3), (32, 1), (36, 32), (40, 4096), (44, 1)]
    {
        put(place, &number.to_le_bytes());
    }
    put(4096, b"hbin");
    put(4096 + 8, &4096_u32.to_le_bytes());
    put(4096 + 32, &(-96_i32).to_le_bytes());
    // The root, without keys, values and class.
    put(4096 + 36, b"nk\x2c\0");
    for place in [28, 32, 40, 44, 48] {
        put(4096 + 36 + place, &u32::MAX.to_le_bytes());
    }
    put(4096 + 36 + 72, b"\x04\0\0\0ROOT");
    // A security descriptor, which new keys share with the root.
    put(4096 + 36 + 44, &128_u32.to_le_bytes());
    put(4096 + 128, &(-48_i32).to_le_bytes());
    put(4096 + 132, b"sk\0\0");
    for (place, number) in [(4, 128_u32), (8, 128), (12, 1), (16, 20)] {
        put(4096 + 132 + place, &number.to_le_bytes());
    }
    put(4096 + 132 + 20, &[1, 0, 0, 0x80]);
    put(4096 + 176, &(4096_i32 - 176).to_le_bytes());
    let words = hive[..508].chunks_exact(4);
    let checksum = words.fold(0, |sum, word| sum ^ u32::from_le_bytes(word.try_into().unwrap()));
    hive[508..512].copy_from_slice(&checksum.to_le_bytes());
    hive
}

fn write_hive(folder: &Path, name: &str, registry: &str, more: usize) -> bool {
    let path = folder.join(name);
    fs::write(&path, empty_hive()).unwrap();
    // It wants an empty line before each key.
    let mut text = registry.replace("\n[", "\n\n[");
    // Many keys, whose list becomes long.
    for index in 0..more {
        text.push_str(&format!(
            "\n[\\ControlSet001\\Services\\service{index}]\n\"Start\"=dword:00000004\n"
        ));
    }
    let merge = Command::new("hivexregedit")
        .args(["--merge", "--encoding", "UTF-16LE", path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut merge) = merge else { return false };
    merge.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    merge.wait().unwrap().success()
}

#[test]
fn windows_is_known_by_its_registry_and_prepared_for_other_storage() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    if !write_hive(folder.path(), "SOFTWARE", SOFTWARE, 0)
        || !write_hive(folder.path(), "SYSTEM", SYSTEM, 300)
    {
        eprintln!("skipped: hivexregedit does not run here");
        return;
    }
    fs::File::create(at("image")).unwrap().set_len(64 << 20).unwrap();
    fs::create_dir(at("mounted")).unwrap();
    if !run("mkntfs", &["-q", "-F", &at("image")])
        || !run("ntfs-3g", &[&at("image"), &at("mounted")])
    {
        eprintln!("skipped: ntfs-3g does not run here");
        return;
    }
    let config = folder.path().join("mounted/Windows/System32/config");
    fs::create_dir_all(&config).unwrap();
    for name in ["SOFTWARE", "SYSTEM"] {
        fs::copy(at(name), config.join(name)).unwrap();
    }
    assert!(run("umount", &[&at("mounted")]));

    let open = || -> Vec<Arc<dyn Disk>> {
        vec![Arc::new(RawDisk::open(at("image"), &OpenOptions::default()).unwrap())]
    };
    let disks = open();
    let guest = Guest::open(&disks);
    let os = guest.report().os.unwrap();
    assert_eq!(os.name.as_deref(), Some("Windows 11 Pro 23H2"));
    assert_eq!(os.edition.as_deref(), Some("Professional"));
    assert_eq!((os.version.as_deref(), os.build.as_deref()), (Some("10.0"), Some("22631.2861")));
    assert_eq!((os.hostname.as_deref(), os.architecture), (Some("Büro-PC"), Some("x86_64")));
    assert_eq!(os.tools, ["VMware tools"]);

    let plan = guest.registry_plan().unwrap();
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
    let services = "ControlSet001\\Services\\";
    let what: Vec<_> = plan
        .changes
        .iter()
        .map(|change| (change.key.strip_prefix(services).unwrap(), &*change.value))
        .collect();
    assert_eq!(
        what,
        [("storahci", "Start"), ("storahci\\StartOverride", "0"), ("intelide", "Start")]
    );
    for change in &plan.changes {
        change.apply(&disks).unwrap();
        change.apply(&disks).unwrap();
    }
    disks[0].flush().unwrap();
    drop((guest, disks));
    // Nothing is left to be done, and others read the same.
    let disks = open();
    assert!(Guest::open(&disks).registry_plan().unwrap().changes.is_empty());
    drop(disks);
    let system =
        Command::new("ntfscat").args([&at("image"), "Windows/System32/config/SYSTEM"]).output();
    fs::write(at("changed"), system.unwrap().stdout).unwrap();
    let key = format!("{services}storahci");
    let text = Command::new("hivexregedit")
        .args(["--export", &at("changed"), &format!("\\{key}")])
        .output();
    let text = String::from_utf8(text.unwrap().stdout).unwrap();
    assert!(
        text.contains("\"Start\"=dword:00000000") && text.contains("\"0\"=dword:00000000"),
        "{text}"
    );
    // A value that is not what it was is left alone.
    let disks = open();
    disks[0].write_at(&[7], plan.changes[0].offset).unwrap();
    assert!(plan.changes[0].apply(&disks).is_err());
}
