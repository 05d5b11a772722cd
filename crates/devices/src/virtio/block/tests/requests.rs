//! Each request, right and wrong.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::disks::MemoryDisk;
use super::*;
use crate::virtio::testing::{INDIRECT, NEXT, RawDescriptor, WRITE};

#[test]
fn what_is_written_is_read_and_lies_in_the_file() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        let bytes = pattern(3 * SECTOR, 7);
        let written = setup.request(OUT, 5, &bytes, 0);
        assert_eq!(written, Done { status: OK, data: vec![], used: 1 });
        let read = setup.request(IN, 5, &[], 3 * SECTOR as u32);
        assert_eq!(read, Done { status: OK, data: bytes.clone(), used: 3 * SECTOR as u32 + 1 });
        assert_eq!(setup.request(FLUSH, 0, &[], 0).status, OK);
        let mut expected = pattern(DISK, 1);
        expected[5 * SECTOR..8 * SECTOR].copy_from_slice(&bytes);
        assert!(setup.content() == expected);
        assert!(setup.driver.queues[0].interrupt.0.load(Ordering::SeqCst) >= 3);
    });
}

#[test]
fn what_lies_outside_of_the_disk_is_refused() {
    let last = (DISK / SECTOR) as u64 - 1;
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        let two = vec![0; 2 * SECTOR];
        for sector in [last, last + 1, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
            assert_eq!(setup.request(OUT, sector, &two, 0).status, IO_ERROR, "{sector}");
            assert_eq!(setup.request(IN, sector, &[], 1024).status, IO_ERROR, "{sector}");
        }
        assert_eq!(setup.request(OUT, 0, &[0; 100], 0).status, IO_ERROR);
        assert_eq!(setup.request(IN, 0, &[], 513).status, IO_ERROR);
        assert_eq!(setup.request(IN, last, &[], 512).status, OK);
        assert!(setup.content() == pattern(DISK, 1));
    });
}

#[test]
fn empty_transfers_and_unknown_types_are_answered() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        assert_eq!(setup.request(IN, 0, &[], 0).status, OK);
        assert_eq!(setup.request(OUT, 0, &[], 0).status, OK);
        for kind in [2, 3, 7, 14, u32::MAX] {
            let refused = setup.request(kind, 0, &[1; 512], 512);
            assert_eq!((refused.status, refused.used), (UNSUPPORTED, 1));
        }
    });
}

#[test]
fn a_read_only_disk_cannot_be_changed() {
    both(|synchronous| {
        let mut setup = Setup::with(synchronous, false, |config| config.read_only = true);
        assert_eq!(setup.request(OUT, 0, &[9; 512], 0).status, IO_ERROR);
        assert_eq!(setup.request(DISCARD, 0, &range(0, 8, 0), 0).status, IO_ERROR);
        assert_eq!(setup.request(WRITE_ZEROES, 0, &range(0, 8, 0), 0).status, IO_ERROR);
        assert_eq!(setup.request(IN, 0, &[], 512).data, pattern(DISK, 1)[..512]);
        assert_eq!(setup.request(FLUSH, 0, &[], 0).status, OK);
        assert!(setup.content() == pattern(DISK, 1));
        assert_ne!(setup.device.features() & 1 << 5, 0);
    });
}

#[test]
fn the_name_is_told_as_far_as_there_is_room() {
    both(|synchronous| {
        let mut setup = Setup::with(synchronous, false, |config| {
            config.serial = Some("omni-0001".to_owned());
        });
        let told = setup.request(GET_ID, 0, &[], 20);
        assert_eq!(told.data, b"omni-0001\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!((told.status, told.used), (OK, 21));
        assert_eq!(setup.request(GET_ID, 0, &[], 4).data, b"omni");
        assert_eq!(&setup.request(GET_ID, 0, &[], 64).data[..9], b"omni-0001");
        assert_eq!(setup.request(GET_ID, 0, &[], 0).status, OK);
    });
}

#[test]
fn zeroes_and_discards_reach_their_ranges_only() {
    both(|synchronous| {
        for unmap in [0, 1] {
            let mut setup = Setup::new(synchronous);
            for range in [range(8, 16, unmap), range(0, 0, unmap), range(1024, 1, unmap)] {
                assert_eq!(setup.request(WRITE_ZEROES, 0, &range, 0).status, OK);
            }
            let mut expected = pattern(DISK, 1);
            expected[8 * SECTOR..24 * SECTOR].fill(0);
            expected[1024 * SECTOR..1025 * SECTOR].fill(0);
            assert!(setup.content() == expected);
        }
        let mut setup = Setup::new(synchronous);
        let ranges = [range(128, 100, 0), range(9, 0, 0), range(228, 156, 0)].concat();
        assert_eq!(setup.request(DISCARD, 0, &ranges, 0).status, OK);
        let (content, before) = (setup.content(), pattern(DISK, 1));
        assert!(content[..128 * SECTOR] == before[..128 * SECTOR]);
        assert!(content[384 * SECTOR..] == before[384 * SECTOR..]);
        let discarded = &content[128 * SECTOR..384 * SECTOR];
        assert!(
            discarded.iter().all(|&byte| byte == 0)
                || discarded == &before[128 * SECTOR..384 * SECTOR]
        );
    });
}

#[test]
fn wrong_ranges_are_refused_and_change_nothing() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        let mut refuse = |kind, ranges: &[u8], status| {
            assert_eq!(setup.request(kind, 0, ranges, 0).status, status, "{kind} {ranges:?}");
        };
        for kind in [DISCARD, WRITE_ZEROES] {
            refuse(kind, &[], IO_ERROR);
            refuse(kind, &range(0, 1, 0)[..15], IO_ERROR);
            refuse(kind, &range(0, 1, 0).repeat(33), IO_ERROR);
            refuse(kind, &range(0, 4096, 0), IO_ERROR);
            refuse(kind, &range(u64::MAX, 1, 0), IO_ERROR);
            refuse(kind, &range(0, u32::MAX, 0), IO_ERROR);
            refuse(kind, &range(0, 1, 2), UNSUPPORTED);
            refuse(kind, &[range(0, 1, 0), range(5000, 1, 0)].concat(), IO_ERROR);
        }
        refuse(DISCARD, &range(0, 1, 1), UNSUPPORTED);
        refuse(WRITE_ZEROES, &range(0, 1, 0).repeat(2), IO_ERROR);
        assert!(setup.content() == pattern(DISK, 1));
    });
}

#[test]
fn buffers_may_be_cut_anywhere() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        let bytes = pattern(2 * SECTOR, 3);
        let sent = [header(OUT, 9), bytes.clone()].concat();
        let pieces = [&sent[..3], &sent[3..3], &sent[3..15], &sent[15..700], &sent[700..]];
        let chain = setup.driver.push(0, &pieces, &[1]);
        let request = pending(&setup.driver, 0, chain);
        setup.driver.kick(0);
        assert_eq!(finish(&mut setup.driver, &request).status, OK);
        // The status is the last byte of the same buffer as the data.
        let chain = setup.driver.push(0, &[&header(IN, 9)], &[1, 700, 324]);
        let request = pending(&setup.driver, 0, chain);
        setup.driver.kick(0);
        let read = finish(&mut setup.driver, &request);
        assert_eq!((read.status, read.used), (OK, 1025));
        assert!(read.data == bytes);
    });
}

#[test]
fn what_cannot_be_answered_is_given_back_empty() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        let header = header(OUT, 0);
        // No room for a status; half a header; no header at all.
        setup.driver.push(0, &[&header, &[1; 512]], &[]);
        setup.driver.push(0, &[&header[..8]], &[1]);
        setup.driver.push(0, &[], &[513]);
        // A chain that says that it goes on into nothing, and one that goes around.
        let address = setup.driver.allocate(64);
        let readable = RawDescriptor { address, length: 16, flags: NEXT, next: 999 };
        setup.driver.push_raw(0, &[readable]);
        let itself = RawDescriptor { address, length: 16, flags: NEXT, next: 6 };
        assert_eq!(setup.driver.push_raw(0, &[itself]), 6);
        // A status outside of memory; a readable buffer behind a writable one.
        let outside = RawDescriptor { address: u64::MAX - 1, length: 1, flags: WRITE, next: 0 };
        setup.driver.push_raw(0, &[RawDescriptor { flags: 0, ..readable }, outside]);
        let status = RawDescriptor { address: address + 32, length: 1, flags: WRITE, next: 0 };
        setup.driver.push_raw(0, &[status, RawDescriptor { flags: 0, ..readable }]);
        setup.driver.kick(0);
        for _ in 0..7 {
            assert_eq!(setup.driver.wait_used(0).1, 0);
        }
        assert_eq!(setup.driver.signal.resets_needed.load(Ordering::SeqCst), 0);
        assert!(setup.content() == pattern(DISK, 1));
        assert_eq!(setup.request(IN, 0, &[], 512).status, OK);
    });
}

#[test]
fn data_outside_of_memory_is_an_error() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        for (kind, flags) in [(IN, WRITE), (OUT, 0)] {
            let address = setup.driver.allocate(16);
            setup.driver.memory.write_slice(&header(kind, 0), GuestAddress(address)).unwrap();
            let status = setup.driver.allocate(1);
            let data = RawDescriptor { address: 1 << 40, length: 512, flags, next: 0 };
            let first = RawDescriptor { address, length: 16, flags: 0, next: 0 };
            let last = RawDescriptor { address: status, length: 1, flags: WRITE, next: 0 };
            setup.driver.push_raw(0, &[first, data, last]);
            setup.driver.kick(0);
            setup.driver.wait_used(0);
            assert_eq!(setup.driver.read(status, 1), [IO_ERROR]);
        }
        assert!(setup.content() == pattern(DISK, 1));
    });
}

#[test]
fn long_indirect_tables_are_served_or_refused_but_never_kept() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        for (pieces, expected) in [(512, OK), (1024, OK), (1026, IO_ERROR), (4000, IO_ERROR)] {
            let table = setup.driver.allocate((pieces + 2) * 16);
            let first = setup.driver.allocate(16);
            let data = setup.driver.allocate(pieces * 512);
            let status = setup.driver.allocate(1);
            setup.driver.memory.write_slice(&header(IN, 0), GuestAddress(first)).unwrap();
            let entry = |index: u32, address: u64, length: u32, flags: u16| {
                let at = GuestAddress(table + 16 * u64::from(index));
                let mut bytes = address.to_le_bytes().to_vec();
                bytes.extend(length.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
                bytes.extend((index as u16 + 1).to_le_bytes());
                setup.driver.memory.write_slice(&bytes, at).unwrap();
            };
            entry(0, first, 16, NEXT);
            for piece in 0..pieces {
                entry(piece + 1, data + 512 * u64::from(piece), 512, NEXT | WRITE);
            }
            entry(pieces + 1, status, 1, WRITE);
            let length = (pieces + 2) * 16;
            let indirect = RawDescriptor { address: table, length, flags: INDIRECT, next: 0 };
            setup.driver.push_raw(0, &[indirect]);
            setup.driver.kick(0);
            setup.driver.wait_used(0);
            assert_eq!(setup.driver.read(status, 1), [expected], "{pieces}");
            if expected == OK {
                let length = pieces as usize * 512;
                assert!(setup.driver.read(data, length) == pattern(DISK, 1)[..length]);
            }
        }
    });
}

#[test]
fn a_file_that_became_shorter_gives_errors() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        setup.file.as_file().set_len(DISK as u64 / 2 + 512).unwrap();
        let half = (DISK / SECTOR / 2) as u64;
        assert_eq!(setup.request(IN, half, &[], 1024).status, IO_ERROR);
        assert_eq!(setup.request(IN, half, &[], 512).status, OK);
    });
}

#[test]
fn pages_that_a_read_filled_are_recorded_as_written() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        // The first and the last page are also the driver's.
        let request = begin(&mut setup.driver, 0, IN, 0, &[], 4 * 4096);
        let is_dirty = |driver: &TestDriver, offset| {
            let region = driver.memory.iter().next().unwrap();
            region.bitmap().dirty_at((request.data[0].0 + offset) as usize)
        };
        assert!(!is_dirty(&setup.driver, 4096) && !is_dirty(&setup.driver, 2 * 4096));
        setup.driver.kick(0);
        assert_eq!(finish(&mut setup.driver, &request).status, OK);
        assert!(is_dirty(&setup.driver, 4096) && is_dirty(&setup.driver, 2 * 4096));
        assert!(!is_dirty(&setup.driver, 8 * 4096));
    });
}

#[test]
fn direct_disks_take_buffers_of_any_alignment() {
    both(|synchronous| {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pattern(DISK, 1)).unwrap();
        let options = OpenOptions { read_only: false, direct: true };
        if RawDisk::open(file.path(), &options).is_err() {
            eprintln!("skipped: the temporary folder's file system has no O_DIRECT");
            return;
        }
        let mut setup = Setup::with(synchronous, true, |_| {});
        let mut model = pattern(DISK, 1);
        // Lengths up to more than what is bounced at once; buffers are aligned and not.
        for (round, sectors) in [1, 8, 16, 600, 1024].into_iter().enumerate() {
            for (turn, misalignment) in [0, 1, 4080].into_iter().enumerate() {
                let length = sectors * SECTOR;
                let sector = 8 * round + turn;
                let bytes = pattern(length, length as u64 + misalignment as u64);
                let aligned = setup.driver.allocate(length as u32 + 8192).next_multiple_of(4096);
                let address = aligned + misalignment as u64;
                let ends = setup.driver.allocate(32);
                let run = |setup: &mut Setup, kind, flags| {
                    let memory = &setup.driver.memory;
                    memory.write_slice(&header(kind, sector as u64), GuestAddress(ends)).unwrap();
                    let first = RawDescriptor { address: ends, length: 16, flags: 0, next: 0 };
                    let data = RawDescriptor { address, length: length as u32, flags, next: 0 };
                    let last =
                        RawDescriptor { address: ends + 16, length: 1, flags: WRITE, next: 0 };
                    setup.driver.push_raw(0, &[first, data, last]);
                    setup.driver.kick(0);
                    setup.driver.wait_used(0);
                    assert_eq!(setup.driver.read(ends + 16, 1), [OK]);
                };
                setup.driver.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
                run(&mut setup, OUT, 0);
                model[sector * SECTOR..sector * SECTOR + length].copy_from_slice(&bytes);
                setup.driver.memory.write_slice(&vec![0; length], GuestAddress(address)).unwrap();
                run(&mut setup, IN, WRITE);
                assert!(setup.driver.read(address, length) == bytes, "{sectors} {misalignment}");
            }
        }
        assert!(setup.content() == model);
    });
}

#[test]
fn an_error_of_the_disk_is_told_and_the_next_request_works() {
    let disk = Arc::new(MemoryDisk::new(DISK));
    let device = Block::new("test", config(Arc::clone(&disk) as _, false)).unwrap();
    let mut driver = TestDriver::new(1);
    device.activate(driver.activation(device.features())).unwrap();
    for (broken, status) in [(false, OK), (true, IO_ERROR), (false, OK)] {
        *disk.broken.lock().unwrap() = broken;
        let request = begin(&mut driver, 0, OUT, 0, &[5; 512], 0);
        driver.kick(0);
        assert_eq!(finish(&mut driver, &request).status, status);
    }
}

#[test]
fn without_a_cache_each_write_is_durable_before_it_is_answered() {
    const FLUSH_FEATURE: u64 = 1 << 9;
    let disk = Arc::new(MemoryDisk::new(DISK));
    let device = Block::new("test", config(Arc::clone(&disk) as _, false)).unwrap();
    let mut driver = TestDriver::new(1);
    let write = |driver: &mut TestDriver| {
        let request = begin(driver, 0, OUT, 0, &[5; 512], 0);
        driver.kick(0);
        assert_eq!(finish(driver, &request).status, OK);
        disk.flushes.swap(0, Ordering::SeqCst)
    };
    device.activate(driver.activation(device.features())).unwrap();
    assert_eq!(write(&mut driver), 0);
    // The driver switches the cache off, and on.
    device.write_config(32, &[0]);
    let mut config = [0; 64];
    device.read_config(0, &mut config);
    assert_eq!(config[32], 0);
    assert_eq!(write(&mut driver), 1);
    device.write_config(32, &[1]);
    assert_eq!(write(&mut driver), 0);
    // A driver that cannot flush gets no cache.
    device.deactivate();
    let mut driver = TestDriver::new(1);
    device.activate(driver.activation(device.features() & !FLUSH_FEATURE)).unwrap();
    disk.flushes.store(0, Ordering::SeqCst);
    let request = begin(&mut driver, 0, OUT, 0, &[5; 512], 0);
    driver.kick(0);
    assert_eq!(finish(&mut driver, &request).status, OK);
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn write_through_works_on_files_too() {
    let mut setup = Setup::new(false);
    setup.device.write_config(32, &[0]);
    assert_eq!(setup.request(OUT, 3, &[8; 512], 0).status, OK);
    assert_eq!(setup.request(WRITE_ZEROES, 0, &range(9, 1, 1), 0).status, OK);
    assert_eq!(setup.content()[3 * SECTOR..4 * SECTOR], [8; 512]);
    assert_eq!(setup.content()[9 * SECTOR..10 * SECTOR], [0; 512]);
}

#[test]
fn the_configuration_tells_what_the_disk_is() {
    let setup = Setup::with(false, false, |config| config.queues = 3);
    let mut config = [0xff; 64];
    setup.device.read_config(0, &mut config);
    assert_eq!(config[..8], ((DISK / SECTOR) as u64).to_le_bytes());
    assert_eq!(config[12..16], 62_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[34..36], 3_u16.to_le_bytes());
    assert_eq!(config[60..], [0; 4]);
    assert_ne!(setup.device.features() & 1 << 12, 0);
    assert_eq!(setup.device.queue_sizes(), [64; 3]);
}

#[test]
fn impossible_configurations_are_refused() {
    let refused = |change: fn(&mut BlockConfig)| {
        let mut config = config(Arc::new(MemoryDisk::new(DISK)), false);
        change(&mut config);
        assert!(matches!(Block::new("x", config), Err(crate::Error::Configuration(_))));
    };
    refused(|config| config.queues = 0);
    refused(|config| config.queues = 1000);
    refused(|config| config.queue_size = 2);
    refused(|config| config.queue_size = 100);
    refused(|config| config.queue_size = 2048);
    refused(|config| config.serial = Some("x".repeat(21)));
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Read { queue: usize, sector: u64, sectors: u32 },
    Write { queue: usize, sector: u64, sectors: u32, seed: u64 },
    Zero { queue: usize, sector: u64, sectors: u32, unmap: bool },
    Flush { queue: usize },
}

fn action() -> impl Strategy<Value = Action> {
    let place = || (0..2_usize, 0..2000_u64, 1..48_u32);
    prop_oneof![
        place().prop_map(|(queue, sector, sectors)| Action::Read { queue, sector, sectors }),
        (place(), any::<u64>()).prop_map(|((queue, sector, sectors), seed)| Action::Write {
            queue,
            sector,
            sectors,
            seed
        }),
        (place(), any::<bool>()).prop_map(|((queue, sector, sectors), unmap)| Action::Zero {
            queue,
            sector,
            sectors,
            unmap
        }),
        (0..2_usize).prop_map(|queue| Action::Flush { queue }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_disk_behaves_like_a_vector(
        actions in prop::collection::vec(action(), 1..60),
        synchronous in any::<bool>(),
        event_index in any::<bool>(),
    ) {
        let mut setup = Setup::with(synchronous, false, |config| config.queues = 2);
        for queue in &setup.driver.queues {
            virtio_queue::QueueT::set_event_idx(&mut *queue.queue.lock(), event_index);
        }
        let mut model = pattern(DISK, 1);
        for action in actions {
            let (queue, kind, sector, out, room) = match action {
                Action::Read { queue, sector, sectors } => {
                    (queue, IN, sector, vec![], sectors * 512)
                }
                Action::Write { queue, sector, sectors, seed } => {
                    (queue, OUT, sector, pattern(sectors as usize * 512, seed), 0)
                }
                Action::Zero { queue, sector, sectors, unmap } => {
                    (queue, WRITE_ZEROES, 0, range(sector, sectors, unmap.into()), 0)
                }
                Action::Flush { queue } => (queue, FLUSH, 0, vec![], 0),
            };
            let request = begin(&mut setup.driver, queue, kind, sector, &out, room);
            setup.driver.kick(queue);
            let done = finish(&mut setup.driver, &request);
            prop_assert_eq!(done.status, OK);
            match action {
                Action::Read { sector, sectors, .. } => {
                    let at = sector as usize * SECTOR;
                    prop_assert!(done.data == model[at..at + sectors as usize * SECTOR]);
                }
                Action::Write { sector, .. } => {
                    let at = sector as usize * SECTOR;
                    model[at..at + out.len()].copy_from_slice(&out);
                }
                Action::Zero { sector, sectors, .. } => {
                    let at = sector as usize * SECTOR;
                    model[at..at + sectors as usize * SECTOR].fill(0);
                }
                Action::Flush { .. } => {}
            }
        }
        prop_assert!(setup.content() == model);
    }
}
