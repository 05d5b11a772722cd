//! Drivers that obey no rule.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::virtio::block::fuzz_requests;
use crate::virtio::hostile::{HostileChain, chain};

/// Bytes that are often a request.
fn request_bytes() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        6 => prop::sample::select(vec![IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES]),
        1 => any::<u32>(),
    ];
    let sector = prop_oneof![4 => 0..2048_u64, 1 => any::<u64>()];
    (kind, sector, 0..64_u32, 0..4_u32, any::<u16>()).prop_map(
        |(kind, sector, count, flags, extra)| {
            let range = range(sector, count, flags);
            [header(kind, sector), range, vec![extra as u8; usize::from(extra % 64)]].concat()
        },
    )
}

fn place(driver: &mut TestDriver, chains: &[HostileChain]) -> Vec<usize> {
    let mut offered = vec![0; driver.queues.len()];
    for chain in chains {
        for descriptor in &chain.descriptors {
            // Where it does not fit, there is nothing to place.
            let _ = driver.memory.write(&chain.bytes, GuestAddress(descriptor.address));
        }
        driver.push_raw(chain.queue, &chain.descriptors);
        driver.kick(chain.queue);
        offered[chain.queue] += 1;
    }
    offered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_chain_is_given_back_or_a_reset_is_needed(
        chains in prop::collection::vec(chain(2, request_bytes()), 1..12),
        synchronous in any::<bool>(),
    ) {
        let mut setup = Setup::with(synchronous, false, |config| config.queues = 2);
        let mut offered = place(&mut setup.driver, &chains);
        let deadline = Instant::now() + Duration::from_secs(60);
        for (queue, left) in offered.iter_mut().enumerate() {
            while *left > 0 && setup.driver.signal.resets_needed.load(Ordering::SeqCst) == 0 {
                match setup.driver.used(queue) {
                    Some(_) => *left -= 1,
                    None => std::thread::sleep(Duration::from_micros(100)),
                }
                prop_assert!(Instant::now() < deadline, "queue {queue} has {left} left");
            }
        }
        prop_assert_eq!(std::fs::metadata(setup.file.path()).unwrap().len(), DISK as u64);
        setup.device.pause().unwrap();
        setup.device.save().unwrap();
        setup.device.resume().unwrap();
        setup.device.deactivate();
    }

    #[test]
    fn a_read_only_disk_survives_every_driver(
        chains in prop::collection::vec(chain(1, request_bytes()), 1..12),
        synchronous in any::<bool>(),
    ) {
        let mut setup = Setup::with(synchronous, false, |config| config.read_only = true);
        place(&mut setup.driver, &chains);
        setup.device.pause().unwrap();
        setup.device.deactivate();
        prop_assert!(setup.content() == pattern(DISK, 1));
    }

    #[test]
    fn the_parser_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz_requests(&bytes);
    }

    #[test]
    fn the_parser_takes_any_ring(
        descriptors in prop::collection::vec((0..0x1000_u64, 0..600_u32, 0..8_u16, 0..18_u16), 16),
        heads in prop::collection::vec(0..18_u16, 16),
        content in prop::collection::vec(request_bytes(), 40),
    ) {
        let mut bytes = Vec::new();
        for (address, length, flags, next) in descriptors {
            bytes.extend(address.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
        }
        bytes.extend([0, 0, 16, 0]);
        heads.iter().for_each(|head| bytes.extend(head.to_le_bytes()));
        bytes.extend(content.concat());
        fuzz_requests(&bytes);
    }
}

#[test]
fn a_ring_that_contradicts_itself_needs_a_reset() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        setup.driver.break_ring(0);
        setup.driver.kick(0);
        let deadline = Instant::now() + Duration::from_secs(60);
        while setup.driver.signal.resets_needed.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "no reset was asked for");
            std::thread::sleep(Duration::from_micros(100));
        }
        setup.device.pause().unwrap();
        setup.device.resume().unwrap();
        setup.device.deactivate();
        // After the reset it works as before.
        setup.driver = TestDriver::new(1);
        setup.device.activate(setup.driver.activation(setup.device.features())).unwrap();
        assert_eq!(setup.request(IN, 0, &[], 512).status, OK);
    });
}
