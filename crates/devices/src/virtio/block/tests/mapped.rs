//! Disks whose bytes lie in several files.

use super::*;

const CLUSTER: usize = 64 << 10;

/// An overlay over a read-only raw disk.
fn overlay(folder: &std::path::Path) -> Arc<dyn Disk> {
    let base = folder.join("base");
    std::fs::write(&base, pattern(DISK, 1)).unwrap();
    let options = OpenOptions { read_only: true, direct: false };
    let base = Arc::new(RawDisk::open(&base, &options).unwrap());
    disk::overlay(folder.join("overlay"), base, None).unwrap()
}

#[test]
fn an_overlay_is_read_from_both_its_files_and_written_to_its_own() {
    both(|synchronous| {
        let folder = tempfile::tempdir().unwrap();
        let disk = overlay(folder.path());
        let device = Block::new("test", config(Arc::clone(&disk), synchronous)).unwrap();
        let mut driver = TestDriver::new(1);
        device.activate(driver.activation(device.features())).unwrap();
        let mut request = |kind, offset: usize, out: &[u8], room: usize| {
            let sector = (offset / SECTOR) as u64;
            let pending = begin(&mut driver, 0, kind, sector, out, room as u32);
            driver.kick(0);
            let done = finish(&mut driver, &pending);
            assert_eq!(done.status, OK);
            done.data
        };
        let mut expected = pattern(DISK, 1);
        assert!(request(IN, 0, &[], 8192) == expected[..8192]);
        let new = pattern(CLUSTER, 2);
        // Within a cluster, so that the rest of it is copied.
        let at = 3 * CLUSTER + 1024;
        request(OUT, at, &new, 0);
        expected[at..at + CLUSTER].copy_from_slice(&new);
        request(WRITE_ZEROES, 0, &range((5 * CLUSTER / SECTOR) as u64, 128, 1), 0);
        expected[5 * CLUSTER..6 * CLUSTER].fill(0);
        request(FLUSH, 0, &[], 0);
        for start in (0..DISK).step_by(CLUSTER / 2) {
            let end = (start + CLUSTER + SECTOR).min(DISK);
            assert!(request(IN, start, &[], end - start) == expected[start..end], "{start}");
        }
        device.deactivate();
        assert!(std::fs::read(folder.path().join("base")).unwrap() == pattern(DISK, 1));
    });
}

#[test]
fn many_reads_of_a_base_end_while_others_are_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let disk = overlay(folder.path());
    let device = Block::new("test", config(disk, false)).unwrap();
    let mut driver = TestDriver::new(1);
    device.activate(driver.activation(device.features())).unwrap();
    let expected = pattern(DISK, 1);
    let pending: Vec<_> = (0..16)
        .map(|number| {
            let sector = (number * 7 % 16) * 128;
            (sector as usize * SECTOR, begin(&mut driver, 0, IN, sector, &[], 4096))
        })
        .collect();
    driver.kick(0);
    for _ in 0..pending.len() {
        let (head, used) = driver.wait_used(0);
        let (at, request) = pending.iter().find(|(_, request)| request.head == head).unwrap();
        let done = done(&driver, request, used);
        assert!(done.status == OK && done.data == expected[*at..at + 4096]);
    }
}
