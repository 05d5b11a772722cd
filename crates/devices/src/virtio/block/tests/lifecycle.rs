//! Pausing, saving and stopping in the middle of work.

use std::io::Write;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::disks::MemoryDisk;
use super::*;
use crate::rate_limiter::RateLimit;
use crate::virtio::VirtQueue;

const REQUESTS: usize = 16;

/// Puts writes of different sectors into the queue.
fn begin_writes(driver: &mut TestDriver, queue: usize) -> Vec<Pending> {
    let write = |number| pattern(SECTOR, 100 + number);
    let first = REQUESTS * queue;
    (first..first + REQUESTS)
        .map(|number| begin(driver, queue, OUT, number as u64, &write(number as u64), 0))
        .collect()
}

fn written(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| pattern(SECTOR, 100 + number as u64)).collect()
}

/// Takes what was used, and checks that it succeeded.
fn take_done(driver: &mut TestDriver, pending: &mut Vec<Pending>) {
    let queue = pending[0].queue;
    while let Some((head, _)) = driver.used(queue) {
        let at = pending.iter().position(|request| request.head == head).expect("used twice");
        let request = pending.remove(at);
        assert_eq!(driver.read(request.status, 1), [OK]);
        if pending.is_empty() {
            return;
        }
    }
}

fn wait_all(driver: &mut TestDriver, pending: &mut Vec<Pending>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !pending.is_empty() {
        take_done(driver, pending);
        assert!(Instant::now() < deadline, "{} requests are left", pending.len());
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn requests_of_several_queues_are_carried_out_at_the_same_time() {
    both(|synchronous| {
        let mut setup = Setup::with(synchronous, false, |config| config.queues = 4);
        let mut all: Vec<_> = (0..4).map(|queue| begin_writes(&mut setup.driver, queue)).collect();
        (0..4).for_each(|queue| setup.driver.kick(queue));
        all.iter_mut().for_each(|pending| wait_all(&mut setup.driver, pending));
        let count = 4 * REQUESTS;
        assert!(setup.content()[..count * SECTOR] == written(count));
    });
}

#[test]
fn a_snapshot_in_the_middle_of_work_loses_and_repeats_nothing() {
    both(|synchronous| {
        // So slow that most requests still wait in the queue.
        let mut setup = Setup::with(synchronous, false, |config| {
            config.rate.operations_per_second = NonZeroU64::new(1);
            config.rate.burst = Some(3000);
        });
        let mut pending = begin_writes(&mut setup.driver, 0);
        setup.driver.kick(0);
        std::thread::sleep(Duration::from_millis(20));
        setup.device.pause().unwrap();
        take_done(&mut setup.driver, &mut pending);
        assert!(pending.len() > REQUESTS / 2, "{} are left", pending.len());
        let state = setup.device.save().unwrap();
        let queue = setup.driver.queues[0].queue.save();
        setup.device.deactivate();

        // As the snapshot's files keep them.
        let state = crate::State(serde_json::from_str(&state.0.to_string()).unwrap());
        let queue = serde_json::to_string(&queue).unwrap();
        let queue: crate::virtio::SavedQueue = serde_json::from_str(&queue).unwrap();
        let Setup { file, device, mut driver } = setup;
        drop(device);
        let disk = RawDisk::open(file.path(), &OpenOptions::default()).unwrap();
        let device = Block::new("test", config(Arc::new(disk), synchronous)).unwrap();
        device.restore(&state).unwrap();
        let interrupt = Arc::clone(&driver.queues[0].interrupt) as crate::virtio::QueueInterrupt;
        let queue = VirtQueue::new(0, queue.queue().unwrap(), interrupt).unwrap();
        driver.queues[0].queue = Arc::new(queue);
        // Nobody rings: the device must look by itself.
        device.activate(driver.activation(device.features())).unwrap();
        wait_all(&mut driver, &mut pending);
        assert!(std::fs::read(file.path()).unwrap()[..REQUESTS * SECTOR] == written(REQUESTS));
        assert_eq!(driver.used(0), None);
    });
}

#[test]
fn a_paused_device_takes_nothing_and_then_goes_on() {
    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        assert_eq!(setup.request(IN, 0, &[], 512).status, OK);
        setup.device.pause().unwrap();
        let mut pending = begin_writes(&mut setup.driver, 0);
        setup.driver.kick(0);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(setup.driver.used(0), None);
        assert!(setup.content() == pattern(DISK, 1));
        setup.device.pause().unwrap();
        setup.device.resume().unwrap();
        wait_all(&mut setup.driver, &mut pending);
        assert!(setup.content()[..REQUESTS * SECTOR] == written(REQUESTS));
    });
}

#[test]
fn pausing_waits_for_what_was_begun() {
    let disk = Arc::new(MemoryDisk::new(DISK));
    let device = Block::new("test", config(Arc::clone(&disk) as _, false)).unwrap();
    let mut driver = TestDriver::new(1);
    device.activate(driver.activation(device.features())).unwrap();
    disk.set_gate(true);
    let request = begin(&mut driver, 0, OUT, 0, &[5; 512], 0);
    driver.kick(0);
    while disk.writes.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| device.pause().unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!pausing.is_finished());
        disk.set_gate(false);
    });
    // It was answered before the device was paused.
    assert_eq!(driver.used(0).map(|used| used.0), Some(request.head));
}

#[test]
fn pausing_waits_for_the_ring_which_reads_piece_by_piece() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let disk = MemoryDisk { pipe: Some(reader.into()), ..MemoryDisk::new(DISK) };
    let device = Block::new("test", config(Arc::new(disk), false)).unwrap();
    let mut driver = TestDriver::new(1);
    if io_uring::IoUring::new(4).is_err() {
        eprintln!("skipped: there is no io_uring");
        return;
    }
    device.activate(driver.activation(device.features())).unwrap();
    let chain = driver.push(0, &[&header(IN, 0)], &[100, 300, 600, 24, 1]);
    let request = pending(&driver, 0, chain);
    driver.kick(0);
    let bytes = pattern(1024, 4);
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(10));
            device.pause().unwrap();
        });
        for piece in [&bytes[..50], &bytes[50..400], &bytes[400..401], &bytes[401..]] {
            std::thread::sleep(Duration::from_millis(20));
            assert!(!pausing.is_finished());
            writer.write_all(piece).unwrap();
        }
    });
    let (head, used) = driver.used(0).expect("it was answered before the device was paused");
    assert_eq!(head, request.head);
    assert_eq!(done(&driver, &request, used), Done { status: OK, data: bytes, used: 1025 });
}

#[test]
fn a_reset_in_the_middle_of_work_ends_it() {
    both(|synchronous| {
        for delay in [0, 50, 500] {
            let mut setup = Setup::new(synchronous);
            let mut pending = begin_writes(&mut setup.driver, 0);
            setup.driver.kick(0);
            std::thread::sleep(Duration::from_micros(delay));
            setup.device.deactivate();
            take_done(&mut setup.driver, &mut pending);
            let before = setup.content();
            setup.driver.kick(0);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(setup.driver.used(0), None);
            assert!(setup.content() == before);
            setup.device.deactivate();
            setup.driver = TestDriver::new(1);
            setup.device.activate(setup.driver.activation(setup.device.features())).unwrap();
            assert_eq!(setup.request(IN, 0, &[], 512).status, OK);
        }
    });
}

#[test]
fn stopping_flushes_and_lets_go_of_the_disk() {
    let disk = Arc::new(MemoryDisk::new(DISK));
    let device = Block::new("test", config(Arc::clone(&disk) as _, false)).unwrap();
    let mut driver = TestDriver::new(1);
    device.activate(driver.activation(device.features())).unwrap();
    let request = begin(&mut driver, 0, OUT, 0, &[5; 512], 0);
    driver.kick(0);
    assert_eq!(finish(&mut driver, &request).status, OK);
    device.deactivate();
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
    device.deactivate();
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
    drop(device);
    assert_eq!(Arc::strong_count(&disk), 1);

    both(|synchronous| {
        let mut setup = Setup::new(synchronous);
        assert_eq!(setup.request(IN, 0, &[], 512).status, OK);
        let Setup { file, device, .. } = setup;
        drop(device);
        // No lock is left behind.
        RawDisk::open(file.path(), &OpenOptions::default()).unwrap();
    });
}

#[test]
fn limited_requests_wait_and_are_then_carried_out() {
    both(|synchronous| {
        let rate = RateLimit {
            operations_per_second: NonZeroU64::new(200),
            burst: Some(10),
            ..Default::default()
        };
        let mut setup = Setup::with(synchronous, false, |config| config.rate = rate);
        let started = Instant::now();
        let mut pending = begin_writes(&mut setup.driver, 0);
        setup.driver.kick(0);
        wait_all(&mut setup.driver, &mut pending);
        // Two at once and fourteen at 5 ms each.
        assert!(started.elapsed() >= Duration::from_millis(65), "{:?}", started.elapsed());
        assert!(setup.content()[..REQUESTS * SECTOR] == written(REQUESTS));
    });
}

#[test]
fn a_state_of_another_disk_is_refused() {
    let setup = Setup::new(false);
    let state = setup.device.save().unwrap();
    let other = Block::new("test", config(Arc::new(MemoryDisk::new(512)), false)).unwrap();
    assert!(matches!(other.restore(&state), Err(crate::Error::InvalidState(_))));
    assert!(other.restore(&crate::State::default()).is_err());

    setup.device.write_config(32, &[0]);
    let state = setup.device.save().unwrap();
    let other = Block::new("test", config(Arc::new(MemoryDisk::new(DISK)), false)).unwrap();
    other.restore(&state).unwrap();
    let mut write_back = [7];
    other.read_config(32, &mut write_back);
    assert_eq!(write_back, [0]);
}
