//! What a conversion takes of memory, whatever the length of the disk and however many threads. Each is done by a program
//! of its own, which is this one: it calls itself with the conversion in its environment.

use std::path::Path;
use std::process::Command;

use disk::{ConvertOptions, CreateOptions, Format, ImageOptions};

/// Of a disk that is far longer than any memory.
const LENGTH: u64 = 4 << 40;
/// The most that a conversion may take.
const LIMIT: u64 = 64 << 20;
const CASE: &str = "OMNIVISOR_TEST_CONVERSION";

fn read_only() -> ImageOptions {
    ImageOptions { read_only: true, ..ImageOptions::default() }
}

/// The most memory that this program has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

/// The program of its own.
#[test]
#[ignore = "the other test starts it"]
fn conversion() {
    let case = std::env::var(CASE).unwrap();
    let [from, to, image, level, jobs] = case.split('|').collect::<Vec<_>>()[..] else {
        panic!("{case}")
    };
    let mut options = ConvertOptions::new(Format::Raw);
    options.image = image.parse().unwrap();
    (options.level, options.jobs) = (level.parse().ok(), jobs.parse().ok());
    let disk = disk::open(from, &read_only()).unwrap();
    disk::convert(&*disk, to, &options, |_| {}).unwrap();
    let peak = peak();
    assert!(peak < LIMIT, "{case}: {} MiB", peak >> 20);
}

fn convert(from: &Path, to: &Path, image: &str, level: &str, jobs: u32) {
    let case = format!("{}|{}|{image}|{level}|{jobs}", from.display(), to.display());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "conversion"])
        .env(CASE, case)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn conversions_stay_within_64_mib_whatever_the_disk_and_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.qcow2");
    let mut options: CreateOptions = "qcow2".parse().unwrap();
    options.length = LENGTH;
    disk::create(&source, &options).unwrap();
    let disk = disk::open(&source, &ImageOptions::default()).unwrap();
    let mut state = 1_u64;
    let mut piece = vec![0; 1 << 20];
    // 24 MiB of bytes that compress by half, here and there.
    for index in 0..24 {
        for part in piece.chunks_exact_mut(16) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            part[..8].copy_from_slice(&state.to_le_bytes());
        }
        disk.write_at(&piece, index * (LENGTH / 24)).unwrap();
    }
    drop(disk);
    let (target, back) = (folder.path().join("target"), folder.path().join("back"));
    for (image, level) in [
        ("raw", ""),
        ("vhdx", ""),
        ("qcow2,compression=zstd", ""),
        ("qcow2,compression=zlib,cluster-size=2M", ""),
        ("qcow2,compression=zstd,cluster-size=2M", ""),
        ("qcow2,compression=zstd,cluster-size=2M", "12"),
    ] {
        for jobs in [2, 64] {
            convert(&source, &target, image, level, jobs);
            convert(&target, &back, "raw", "", jobs);
            std::fs::remove_file(&target).unwrap();
            std::fs::remove_file(&back).unwrap();
        }
    }
}
