//! The verbs that deal with disks and need no guest.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

struct Here(tempfile::TempDir);

impl Here {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, code: i32, arguments: &[&str]) -> (String, String) {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_omnivisor"))
            .args(arguments)
            .current_dir(self.path())
            .env("XDG_STATE_HOME", self.path().join("state"))
            .output()
            .unwrap();
        let (stdout, stderr) = (text(&stdout), text(&stderr));
        assert_eq!(status.code(), Some(code), "{arguments:?}: {stdout}{stderr}");
        (stdout, stderr)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (stdout, _) = self.run(0, arguments);
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// 8 MiB with data in the first and zeroes written in the second.
fn disk_in(here: &Here) {
    let mut bytes: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 253) as u8 + 1).collect();
    bytes.resize(2 << 20, 0);
    let path = here.path().join("disk.raw");
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8 << 20).unwrap();
}

#[test]
fn a_disk_goes_through_the_formats_and_comes_back_the_same() {
    let here = Here::new();
    disk_in(&here);
    let chain = ["a.qcow2", "b.vmdk", "c.vhd", "d.vhdx", "e.vdi", "f.hds", "g.qcow2", "h.raw"];
    let mut source = "disk.raw";
    for target in chain {
        let (stdout, stderr) = here.run(0, &["convert", source, target, "--verify"]);
        assert!(stdout.is_empty() && stderr.contains("verified"), "{target}: {stderr}");
        source = target;
    }
    here.run(0, &["convert", "a.qcow2", "s.vmdk", "--to", "vmdk,layout=stream", "--verify"]);
    here.run(
        0,
        &["convert", "a.qcow2", "z.qcow2", "--compress", "zstd", "--level", "1", "--jobs", "2"],
    );
    for other in ["h.raw", "s.vmdk", "z.qcow2"] {
        let (stdout, _) = here.run(0, &["disk", "compare", "disk.raw", other, "--strict"]);
        assert_eq!(stdout, "They hold the same\n");
    }
    let inspected = here.json(&["inspect", "s.vmdk", "--format", "json"]);
    assert_eq!(inspected["length"], 8 << 20);
    assert_eq!(inspected["chain"][0]["format"], "vmdk");
    let (_, stderr) = here.run(125, &["convert", "disk.raw", "a.qcow2"]);
    assert!(stderr.contains("exists"), "{stderr}");
    here.run(0, &["convert", "disk.raw", "a.qcow2", "--force"]);
    let (_, stderr) = here.run(2, &["convert", "disk.raw", "x", "--to", "vmdk,layout=round"]);
    assert!(stderr.contains("split-sparse"), "{stderr}");
    let left = std::fs::read_dir(here.path()).unwrap().flatten();
    let partial = left.map(|entry| text(entry.file_name().as_encoded_bytes()));
    assert_eq!(partial.filter(|name| name.contains("partial")).count(), 0);
}

#[test]
fn a_map_tells_data_from_zeroes() {
    let here = Here::new();
    disk_in(&here);
    // On some file systems the image shares what the source has, with the zeroes that were written to it.
    let disk = std::fs::File::options().write(true).open(here.path().join("disk.raw")).unwrap();
    disk.set_len(1 << 20).unwrap();
    disk.set_len(8 << 20).unwrap();
    drop(disk);
    here.run(0, &["convert", "disk.raw", "a.qcow2"]);
    let (stdout, _) = here.run(0, &["disk", "map", "a.qcow2", "--format", "json"]);
    let rows: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let data: Vec<_> = rows.iter().filter(|row| row["kind"] == "data").collect();
    let length: u64 = data.iter().map(|row| row["length"].as_u64().unwrap()).sum();
    assert_eq!((length, &data[0]["start"]), (1 << 20, &0.into()));
    let file = data[0]["file"].as_str().unwrap();
    let offset = data[0]["offset"].as_u64().unwrap();
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(bytes[offset as usize..][..4], [1, 2, 3, 4]);
    let total: u64 = rows.iter().map(|row| row["length"].as_u64().unwrap()).sum();
    assert_eq!(total, 8 << 20);
    let (stdout, _) = here.run(0, &["disk", "map", "a.qcow2"]);
    assert!(stdout.contains("a.qcow2 at "), "{stdout}");
}

#[test]
fn an_overlay_is_made_inspected_and_committed() {
    let here = Here::new();
    disk_in(&here);
    here.run(0, &["convert", "disk.raw", "base.vmdk"]);
    here.run(0, &["disk", "create", "over.qcow2", "--parent", "base.vmdk"]);
    let chain = here.json(&["inspect", "over.qcow2", "--format", "json"]);
    assert_eq!(chain["chain"].as_array().unwrap().len(), 2);
    assert_eq!(chain["chain"][1]["format"], "vmdk");
    let (table, _) = here.run(0, &["inspect", "over.qcow2"]);
    assert!(table.contains("parent") && table.contains("base.vmdk"), "{table}");
    let (stdout, _) = here.run(0, &["disk", "compare", "disk.raw", "over.qcow2"]);
    assert_eq!(stdout, "They hold the same\n");

    here.run(0, &["convert", "disk.raw", "base.qcow2"]);
    here.run(0, &["disk", "create", "second.qcow2", "--parent", "base.qcow2"]);
    here.run(0, &["disk", "check", "second.qcow2"]);
    here.run(0, &["disk", "commit", "second.qcow2"]);
    assert!(!here.path().join("second.qcow2").exists());
}

#[test]
fn different_disks_end_with_1() {
    let here = Here::new();
    disk_in(&here);
    here.run(0, &["disk", "create", "empty.qcow2", "8M"]);
    let (stdout, _) = here.run(1, &["disk", "compare", "disk.raw", "empty.qcow2"]);
    assert_eq!(stdout, "They differ at byte 0\n");
    here.run(127, &["disk", "compare", "disk.raw", "missing"]);
    // The end of its name says what it is.
    here.run(0, &["disk", "create", "empty.vdi", "8M"]);
    here.run(0, &["disk", "resize", "empty.vdi", "+8M"]);
    let grown = here.json(&["inspect", "empty.vdi", "--format", "json"]);
    assert_eq!(
        (&grown["length"], &grown["chain"][0]["format"]),
        (&(16 << 20).into(), &"vdi".into())
    );
    let (_, stderr) = here.run(125, &["convert", "disk.raw", "empty.vdi"]);
    assert!(stderr.contains("--force replaces it"), "{stderr}");
    here.run(0, &["disk", "resize", "empty.qcow2", "+8M"]);
    assert_eq!(here.json(&["inspect", "empty.qcow2", "--format", "json"])["length"], 16 << 20);
    here.run(125, &["disk", "resize", "empty.qcow2", "8M"]);
    here.run(2, &["disk", "resize", "empty.qcow2", "much"]);
    here.run(2, &["disk", "create", "sizeless.qcow2"]);
}

/// Serves ranges of a file until the test ends, with a pause after each 64 KiB; returns its address.
fn serve(file: Vec<u8>, pause: Duration) -> String {
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
            // Who was killed before it asked.
            let Some((first, last)) = range else { continue };
            let last = last.min(file.len() - 1);
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{}\r\n\
                 Content-Length: {}\r\nConnection: close\r\nETag: \"7\"\r\n\r\n",
                file.len(),
                last + 1 - first
            );
            let _ = stream.write_all(head.as_bytes());
            for part in file[first..=last].chunks(64 << 10) {
                if stream.write_all(part).is_err() {
                    break;
                }
                std::thread::sleep(pause);
            }
        }
    });
    format!("http://{address}")
}

#[test]
fn disks_of_a_server_are_inspected_and_converted() {
    let here = Here::new();
    disk_in(&here);
    here.run(0, &["convert", "disk.raw", "disk.vmdk", "--to", "vmdk,layout=stream"]);
    let file = std::fs::read(here.path().join("disk.vmdk")).unwrap();
    let server = serve(file, Duration::ZERO);
    let url = format!("{server}/web.vmdk");
    let found = here.json(&["inspect", &url, "--format", "json"]);
    assert_eq!(found["length"], 8 << 20);
    assert_eq!(found["chain"][0]["path"], url.as_str());
    assert_eq!(found["chain"][0]["details"]["version"], "\"7\"");
    here.run(0, &["convert", &url, "copy.qcow2", "--verify"]);
    here.run(0, &["disk", "compare", "disk.raw", "copy.qcow2"]);
    let (_, stderr) = here.run(125, &["inspect", "http://127.0.0.1:1/x", "--format", "json"]);
    assert!(stderr.contains("Cannot read http://127.0.0.1:1/x"), "{stderr}");
}

#[test]
fn a_conversion_that_was_killed_goes_on() {
    let here = Here::new();
    let bytes: Vec<u8> = (0..16 << 20).map(|index: u32| (index % 253) as u8 + 1).collect();
    std::fs::write(here.path().join("disk.raw"), &bytes).unwrap();
    let url = format!("{}/disk.raw", serve(bytes, Duration::from_millis(15)));
    let arguments = ["convert", "--from", "raw", &url, "copy.qcow2"];
    let mut killed = Command::new(env!("CARGO_BIN_EXE_omnivisor"))
        .args(arguments)
        .current_dir(here.path())
        .env("XDG_STATE_HOME", here.path().join("state"))
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let notes = here.path().join("copy.qcow2.partial.journal");
    while !std::fs::read_to_string(&notes).is_ok_and(|text| text.contains("\ndone ")) {
        assert!(Instant::now() < deadline && killed.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!here.path().join("copy.qcow2").exists());
    let (_, stderr) = here.run(0, &arguments);
    assert!(stderr.contains("went on with the"), "{stderr}");
    here.run(0, &["disk", "compare", "disk.raw", "copy.qcow2"]);
    here.run(0, &["disk", "check", "copy.qcow2"]);
    let left = std::fs::read_dir(here.path()).unwrap();
    let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.contains("partial")));
}

#[test]
fn images_are_checked_and_have_snapshots_and_other_parents() {
    let here = Here::new();
    disk_in(&here);
    here.run(0, &["convert", "disk.raw", "base.qcow2"]);
    let (stdout, _) = here.run(0, &["disk", "check", "base.qcow2"]);
    assert!(stdout.contains("in order"), "{stdout}");
    // It says that it was not closed in order.
    let path = here.path().join("base.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[79] |= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (stdout, _) = here.run(1, &["disk", "check", "base.qcow2"]);
    assert!(stdout.contains("\n1 error\n"), "{stdout}");
    here.run(0, &["disk", "check", "base.qcow2", "--repair"]);
    here.run(0, &["disk", "check", "base.qcow2"]);

    here.run(0, &["disk", "snapshot", "create", "base.qcow2", "before"]);
    let list = here.json(&["disk", "snapshot", "list", "base.qcow2", "--format", "json"]);
    assert_eq!((&list[0]["name"], &list[0]["id"]), (&"before".into(), &"1".into()));
    let (table, _) = here.run(0, &["disk", "snapshot", "list", "base.qcow2"]);
    assert!(table.contains("before") && table.contains("  20") && table.contains("Z\n"), "{table}");
    here.run(0, &["disk", "snapshot", "revert", "base.qcow2", "before"]);
    here.run(0, &["disk", "snapshot", "delete", "base.qcow2", "1"]);
    here.run(125, &["disk", "snapshot", "delete", "base.qcow2", "1"]);

    here.run(0, &["disk", "create", "over.qcow2", "--parent", "base.qcow2"]);
    here.run(0, &["disk", "rebase", "over.qcow2", "--parent", "disk.raw"]);
    std::fs::remove_file(&path).unwrap();
    here.run(0, &["disk", "compare", "over.qcow2", "disk.raw"]);
    here.run(0, &["disk", "rebase", "over.qcow2", "--flatten"]);
    here.run(2, &["disk", "rebase", "over.qcow2", "--unsafe", "--parent", "disk.raw"]);
    std::fs::rename(here.path().join("disk.raw"), here.path().join("moved.raw")).unwrap();
    here.run(0, &["disk", "compare", "over.qcow2", "moved.raw"]);
}

#[test]
fn an_image_that_was_cut_short_is_neither_run_nor_imported() {
    let here = Here::new();
    disk_in(&here);
    here.run(0, &["convert", "disk.raw", "disk.qcow2"]);
    let image = std::fs::File::options().write(true).open(here.path().join("disk.qcow2")).unwrap();
    image.set_len(600 << 10).unwrap();
    drop(image);
    let run = ["run", "--disk", "disk.qcow2"];
    let import = ["import", "disk.qcow2", "new"];
    for (code, arguments) in [(126, run), (125, import)] {
        let (_, error) = here.run(code, &arguments);
        let sentence = "disk.qcow2 was cut short: it ends at byte 614400, and at least ";
        assert!(error.contains(sentence), "{error}");
        assert!(error.contains("copy the file again from where it came"), "{error}");
    }
    assert!(!here.path().join("new").exists());
}
