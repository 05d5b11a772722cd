use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use engine::{DeviceWrites, GuestMemory, GuestRegion, PAGE_SIZE};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::{Balloon, BalloonConfig, Statistics};
use crate::virtio::VirtioDevice;
use crate::virtio::hostile::{self, Loop};
use crate::virtio::testing::{MEMORY_SIZE, RawDescriptor, TestDriver, WRITE};

const PAGE: usize = PAGE_SIZE as usize;

fn balloon(events: &Loop) -> Balloon {
    Balloon::new("balloon", BalloonConfig::default(), events.handle())
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// Guest memory in a memfd, mapped with `flags`.
fn file_memory(flags: i32) -> (GuestMemory, File) {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY_SIZE).unwrap();
    let region = MmapRegionBuilder::new_with_bitmap(
        MEMORY_SIZE as usize,
        DeviceWrites::with_len(MEMORY_SIZE as usize),
    )
    .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0))
    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
    .with_mmap_flags(flags)
    .build()
    .unwrap();
    let region = GuestRegion::new(region, GuestAddress(0)).unwrap();
    (GuestMemory::from_regions(vec![region]).unwrap(), file)
}

fn fill(memory: &GuestMemory, page: u64) {
    memory.write_slice(&[0xaa; PAGE], GuestAddress(page * PAGE_SIZE)).unwrap();
}

fn is_empty(memory: &GuestMemory, page: u64) -> bool {
    let mut bytes = [0; PAGE];
    memory.read_slice(&mut bytes, GuestAddress(page * PAGE_SIZE)).unwrap();
    bytes == [0; PAGE]
}

#[test]
fn pages_in_the_balloon_are_given_back() {
    let events = Loop::start();
    let balloon = balloon(&events);
    let mut driver = TestDriver::new(5);
    balloon.activate(driver.activation(balloon.features())).unwrap();
    (0x800..0x808).for_each(|page| fill(&driver.memory, page));
    // In no order, twice, and outside of memory.
    let pages = numbers(&[0x803, 0x801, u32::MAX, 0x802, 0x801, 0x806, (MEMORY_SIZE >> 12) as u32]);
    let chain = driver.push(0, &[&pages[..6], &pages[6..]], &[]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (chain.head, 0));
    let given: Vec<_> = (0x800..0x808).filter(|page| is_empty(&driver.memory, *page)).collect();
    assert_eq!(given, [0x801, 0x802, 0x803, 0x806]);
    let chain = driver.push(1, &[&pages], &[]);
    driver.kick(1);
    assert_eq!(driver.wait_used(1), (chain.head, 0));
}

#[test]
fn pages_of_a_shared_file_are_punched_out_of_it() {
    let events = Loop::start();
    let balloon = balloon(&events);
    let mut driver = TestDriver::new(5);
    let (memory, file) = file_memory(libc::MAP_SHARED);
    driver.memory = memory;
    balloon.activate(driver.activation(balloon.features())).unwrap();
    (0x800..0xa00).for_each(|page| fill(&driver.memory, page));
    let before = file.metadata().unwrap().blocks();
    let range = RawDescriptor {
        address: 0x800 * PAGE_SIZE,
        length: 0x200 * PAGE as u32,
        flags: WRITE,
        next: 0,
    };
    driver.push_raw(4, &[range]);
    driver.kick(4);
    driver.wait_used(4);
    let after = file.metadata().unwrap().blocks();
    // What is left are the rings.
    let blocks = |pages| pages * PAGE_SIZE / 512;
    assert!(before >= blocks(0x200) && after < blocks(0x20), "{before} and then {after}");
    assert!(is_empty(&driver.memory, 0x8ff));
}

#[test]
fn pages_of_a_private_file_mapping_leave_the_file_alone() {
    let events = Loop::start();
    let balloon = balloon(&events);
    let mut driver = TestDriver::new(5);
    let (memory, file) = file_memory(libc::MAP_PRIVATE);
    driver.memory = memory;
    std::os::unix::fs::FileExt::write_at(&file, b"snapshot", 0x800 * PAGE_SIZE).unwrap();
    balloon.activate(driver.activation(balloon.features())).unwrap();
    fill(&driver.memory, 0x800);
    driver.push(0, &[&numbers(&[0x800])], &[]);
    driver.kick(0);
    driver.wait_used(0);
    assert_eq!(driver.read(0x800 * PAGE_SIZE, 8), b"snapshot");
}

#[test]
fn only_whole_reported_pages_are_given_back() {
    let events = Loop::start();
    let balloon = balloon(&events);
    let mut driver = TestDriver::new(5);
    balloon.activate(driver.activation(balloon.features())).unwrap();
    (0x800..0x804).for_each(|page| fill(&driver.memory, page));
    let range = RawDescriptor {
        address: 0x800 * PAGE_SIZE + 1,
        length: 3 * PAGE as u32,
        flags: WRITE,
        next: 0,
    };
    // Linux of before 6.11 reports in the queue before.
    for queue in [3, 4] {
        driver.push_raw(queue, &[range]);
        driver.kick(queue);
        driver.wait_used(queue);
        let given: Vec<_> = (0x800..0x804).filter(|page| is_empty(&driver.memory, *page)).collect();
        assert_eq!(given, [0x801, 0x802]);
        (0x800..0x804).for_each(|page| fill(&driver.memory, page));
    }
}

#[test]
fn the_guest_learns_the_target_and_tells_what_it_did() {
    let events = Loop::start();
    let balloon = balloon(&events);
    let driver = TestDriver::new(5);
    balloon.activate(driver.activation(balloon.features())).unwrap();
    balloon.set_target(64 << 20);
    assert_eq!(driver.signal.config_changes.load(Ordering::SeqCst), 1);
    let mut target = [0; 4];
    balloon.read_config(0, &mut target);
    assert_eq!(u32::from_le_bytes(target), (64 << 20) / 4096);
    balloon.write_config(4, &100u32.to_le_bytes());
    balloon.write_config(0, &7u32.to_le_bytes());
    balloon.write_config(4, &[1]);
    assert_eq!(balloon.actual(), 100 * PAGE_SIZE);
    assert_eq!(balloon.target(), 64 << 20);
    balloon.set_target(u64::MAX);
    assert_eq!(balloon.target(), u64::from(u32::MAX) * PAGE_SIZE);
}

#[test]
fn statistics_are_asked_for_anew() {
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let events = Loop::start();
    let balloon = balloon(&events);
    let mut driver = TestDriver::new(5);
    balloon.activate(driver.activation(balloon.features())).unwrap();
    let first = [entry(4, 1000), entry(99, 1), entry(5, 5000)].concat();
    let chain = driver.push(2, &[&first], &[]);
    driver.kick(2);
    events.settle();
    assert_eq!(driver.used(2), None);
    let statistics = balloon.statistics().unwrap();
    let expected = Statistics { free: Some(1000), total: Some(5000), ..Statistics::default() };
    assert_eq!(statistics, expected);
    // The guest has its buffer back, and answers with another.
    assert_eq!(driver.wait_used(2), (chain.head, 0));
    driver.push(2, &[&entry(4, 2000)], &[]);
    driver.kick(2);
    events.settle();
    assert_eq!(balloon.statistics().unwrap().free, Some(2000));
}

#[test]
fn a_request_that_waits_while_paused_is_served_after_a_restore() {
    let events = Loop::start();
    let old = balloon(&events);
    let mut driver = TestDriver::new(5);
    old.activate(driver.activation(old.features())).unwrap();
    old.set_target(8 << 20);
    old.write_config(4, &3u32.to_le_bytes());
    fill(&driver.memory, 0x800);
    old.pause().unwrap();
    let chain = driver.push(0, &[&numbers(&[0x800])], &[]);
    driver.kick(0);
    events.settle();
    assert_eq!(driver.used(0), None);
    let state = old.save().unwrap();
    old.deactivate();

    let restored = balloon(&events);
    restored.restore(&state).unwrap();
    restored.activate(driver.activation(restored.features())).unwrap();
    restored.resume().unwrap();
    assert_eq!(driver.wait_used(0), (chain.head, 0));
    assert!(is_empty(&driver.memory, 0x800));
    assert_eq!(restored.target(), 8 << 20);
    assert_eq!(restored.actual(), 3 * PAGE_SIZE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_chain_is_survived(chains in hostile::chains(5)) {
        let events = Loop::start();
        let balloon = balloon(&events);
        let _ = balloon.statistics();
        // The rings themselves may be reported and vanish: that is the guest's own mistake.
        hostile::attack(&balloon, &events, chains);
    }

    #[test]
    fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        super::fuzz(&bytes);
    }
}
