//! Programs that are killed while they write to an image: it opens afterwards, and what was flushed is there.
//!
//! The killed program is this one: it calls itself with the image in its environment. Losses of power, which take what was
//! not flushed as well, are tried in the library at hundreds of points (`src/crash.rs`, `src/qcow2/tests.rs`).

mod ways;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use disk::{ConvertOptions, CreateOptions, Disk, Format, ImageOptions};

use ways::WAYS;

const LENGTH: u64 = 16 << 20;
/// The disk is written in strips of this many bytes, each twice.
const STRIP: u64 = 96 << 10;
const IMAGE: &str = "OMNIVISOR_TEST_IMAGE";

/// What a strip holds after so many times.
fn strip(number: u64, time: u64) -> Vec<u8> {
    let start = number * STRIP;
    let value = |at: u64| ((at / 512 * 7 + time * 101) % 251) as u8 + 1;
    (start..(start + STRIP).min(LENGTH)).map(value).collect()
}

/// Order of the strips: all over the disk.
fn order() -> impl Iterator<Item = u64> {
    let count = LENGTH / STRIP;
    (0..count).map(move |turn| turn * 131 % count)
}

/// The killed program: writes strips and says each time how many are flushed.
#[test]
#[ignore = "the other tests start it"]
fn writer() {
    let path = std::env::var_os(IMAGE).unwrap();
    let disk = disk::open(&path, &ImageOptions::default()).unwrap();
    let mut flushed = 0;
    for time in 0..2 {
        for number in order() {
            disk.write_at(&strip(number, time), number * STRIP).unwrap();
            if number % 3 == 0 {
                disk.flush().unwrap();
                println!("flushed {}", flushed + 1);
            }
            flushed += 1;
        }
    }
    // Nothing is closed in order.
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "writer", "--nocapture"])
        .env(IMAGE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills the writer once it has flushed about so often, and returns how many strips it said were flushed.
fn kill_after(path: &Path, flushes: u32) -> u64 {
    let mut child = start(path);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut flushed = 0;
    let mut count = 0;
    while count < flushes {
        let line = lines.next().expect("the writer has ended").unwrap();
        if let Some(number) = line.split("flushed ").nth(1) {
            flushed = number.parse().unwrap();
            count += 1;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it still said before it was killed counts.
    let last = lines
        .map_while(Result::ok)
        .filter_map(|line| line.split("flushed ").nth(1).and_then(|number| number.parse().ok()));
    last.last().unwrap_or(flushed)
}

/// Every strip is what was flushed last, or what was written to it since.
fn assert_flushed(disk: &dyn Disk, flushed: u64, base: u8, what: &str) {
    let count = LENGTH / STRIP;
    let mut found = vec![0; STRIP as usize];
    for (turn, number) in order().enumerate() {
        let turn = turn as u64;
        disk.read_at(&mut found, number * STRIP).unwrap();
        // Before the first time it is the parent's, or zeroes; each sector may be older or newer if it was not flushed.
        let states = [vec![base; STRIP as usize], strip(number, 0), strip(number, 1)];
        let least = usize::from(turn < flushed) + usize::from(turn + count < flushed);
        for (index, sector) in found.chunks(512).enumerate() {
            let range = index * 512..index * 512 + 512;
            assert!(
                states[least..].iter().any(|state| &state[range.clone()] == sector),
                "{what}: sector {index} of strip {number}, {flushed} were flushed"
            );
        }
    }
}

/// An empty image in its own folder, and the file to open.
fn make(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("image");
    let mut options: CreateOptions = text.parse().unwrap();
    options.length = LENGTH;
    disk::create(&path, &options).unwrap();
    path
}

#[test]
fn an_image_of_any_format_survives_who_is_killed_while_writing() {
    for text in WAYS {
        for flushes in [1, 40] {
            let folder = tempfile::tempdir().unwrap();
            let path = make(folder.path(), text);
            let flushed = kill_after(&path, flushes);
            let read_only =
                ImageOptions { read_only: true, whole: true, ..ImageOptions::default() };
            let what = format!("{text}, {flushes}");
            let state = disk::open(&path, &read_only).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_flushed(&*state, flushed, 0, &what);
            drop(state);
            // And whoever comes next goes on.
            let disk = disk::open(&path, &ImageOptions::default()).unwrap();
            assert_flushed(&*disk, flushed, 0, &what);
            disk.write_at(&strip(1, 5), STRIP).unwrap();
            drop(disk);
            let found = disk::check(&path, &read_only, false).unwrap();
            assert_eq!(found.errors, 0, "{what}: {:?}", found.findings);
            let disk = disk::open(&path, &read_only).unwrap();
            let mut written = vec![0; STRIP as usize];
            disk.read_at(&mut written, STRIP).unwrap();
            assert!(written == strip(1, 5), "{what}");
        }
    }
}

#[test]
fn an_overlay_survives_who_is_killed_while_writing_and_so_does_what_is_below() {
    for flushes in [1, 40] {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base.raw");
        std::fs::write(&base, vec![0xb5; LENGTH as usize]).unwrap();
        let path = folder.path().join("over.qcow2");
        let mut options = ConvertOptions::new(Format::Qcow2).image;
        options.length = LENGTH;
        options.backing = Some(("base.raw".to_owned(), Format::Raw));
        disk::create(&path, &options).unwrap();
        let flushed = kill_after(&path, flushes);
        let disk = disk::open(&path, &ImageOptions::default()).unwrap();
        assert_flushed(&*disk, flushed, 0xb5, "overlay");
        assert!(std::fs::read(&base).unwrap().iter().all(|&byte| byte == 0xb5));
    }
}
