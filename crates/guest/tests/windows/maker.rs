//! Windows systems whose registry is written by hivex and whose file system by ntfs-3g, which need root.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::ntfs_3g::Ntfs3g;

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
[\ControlSet002]
[\ControlSet002\Services]
[\ControlSet002\Services\StorAHCI]
"Start"=dword:00000003
"#;

/// Runs a program; whether it succeeded.
pub fn run(program: &str, arguments: &[&str]) -> bool {
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

/// What else a system has.
#[derive(Clone, Copy, Default)]
pub struct State {
    /// Its hives are compressed by NTFS.
    pub compressed: bool,
    /// Its memory is in `hiberfil.sys`.
    pub hibernated: bool,
    /// Its registry was not written to its end.
    pub dirty_registry: bool,
    /// Its file system was not unmounted.
    pub dirty_volume: bool,
}

/// Makes an NTFS with a system on it at `image`; `false` where the programs do not run, which is said.
pub fn system(folder: &Path, image: &Path, state: State) -> bool {
    if !write_hive(folder, "SOFTWARE", SOFTWARE, 0) || !write_hive(folder, "SYSTEM", SYSTEM, 300) {
        eprintln!("skipped: hivexregedit does not run here");
        return false;
    }
    let mounted = folder.join("mounted");
    fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
    let image = image.to_str().unwrap();
    let server = run("mkntfs", &["-q", "-F", image]).then(|| Ntfs3g::mount(image, &mounted));
    let Some(server) = server.flatten() else {
        eprintln!("skipped: ntfs-3g does not run here");
        return false;
    };
    let config = mounted.join("Windows/System32/config");
    fs::create_dir_all(&config).unwrap();
    if state.compressed {
        let attribute = ["-n", "system.ntfs_attrib_be", "-v", "0x00000810"];
        assert!(run("setfattr", &[&attribute[..], &[config.to_str().unwrap()]].concat()));
    }
    if state.dirty_registry {
        // The second number of its header lags behind.
        let mut hive = fs::read(folder.join("SYSTEM")).unwrap();
        hive[4] = hive[4].wrapping_add(1);
        fs::write(folder.join("SYSTEM"), hive).unwrap();
    }
    for name in ["SOFTWARE", "SYSTEM"] {
        fs::copy(folder.join(name), config.join(name)).unwrap();
    }
    if state.hibernated {
        fs::write(mounted.join("hiberfil.sys"), [&b"HIBR"[..], &[0; 8192]].concat()).unwrap();
    }
    server.unmount();
    if state.dirty_volume {
        assert!(run("ntfslabel", &["-q", image, "dirty"]));
        set_dirty(Path::new(image));
    }
    true
}

/// Sets the flag of the volume that says so (`$VOLUME_INFORMATION`: version 3.1, then the flags).
fn set_dirty(image: &Path) {
    let mut bytes = fs::read(image).unwrap();
    let word = |place: usize| u16::from_le_bytes(bytes[place..place + 2].try_into().unwrap());
    let cluster = usize::from(word(11)) * usize::from(bytes[13]);
    let table = u64::from_le_bytes(bytes[48..56].try_into().unwrap()) as usize * cluster;
    let record = table + 3 * 1024;
    let mut attribute = record + usize::from(word(record + 20));
    while word(attribute) != 0x70 {
        attribute += usize::from(word(attribute + 4));
    }
    let content = attribute + usize::from(word(attribute + 20));
    assert_eq!(bytes[content + 8..content + 10], [3, 1]);
    bytes[content + 10] |= 1;
    fs::write(image, bytes).unwrap();
}

/// A key of the hive `SYSTEM` on an NTFS, by ntfscat and hivex.
pub fn key_of(image: &Path, folder: &Path, key: &str) -> String {
    let system = Command::new("ntfscat")
        .args([image.to_str().unwrap(), "Windows/System32/config/SYSTEM"])
        .output();
    let hive = folder.join("changed");
    fs::write(&hive, system.unwrap().stdout).unwrap();
    let text = Command::new("hivexregedit")
        .args(["--export", hive.to_str().unwrap(), &format!("\\{key}")])
        .output();
    String::from_utf8(text.unwrap().stdout).unwrap()
}
