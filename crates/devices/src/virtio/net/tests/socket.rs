//! Frames over a socket: everything but the kernel's own network.

use std::num::NonZeroU64;

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::Error;
use crate::rate_limiter::RateLimit;
use crate::virtio::hostile;
use crate::virtio::testing::{NEXT, RawDescriptor, WRITE};

const CONTROL: usize = 2;

#[test]
fn the_card_says_what_it_is() {
    let events = Loop::start();
    let (net, _ends) = card(&events, 2, |config| config.mtu = Some(9000));
    assert_eq!(net.device_type(), 1);
    assert_eq!(net.queue_sizes(), [64; 5]);
    let wanted = feature::MAC | feature::STATUS | feature::MTU | feature::MQ | feature::MRG_RXBUF;
    assert_eq!(net.features() & wanted, wanted);
    assert_eq!(config::<6>(&net, 0), GUEST_MAC);
    assert_eq!(config::<6>(&net, 6), [1, 0, 2, 0, 0x28, 0x23]);
    assert_eq!(config::<4>(&net, 11), [0x23, 0, 0, 0]);
    assert_eq!(config::<4>(&net, u64::MAX), [0; 4]);
}

#[test]
fn frames_go_both_ways() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    let chain = send(&mut driver, TX, &frame(1, 60));
    assert_eq!(driver.wait_used(TX), (chain.head, 0));
    assert_eq!(ends[0].receive(), frame(1, 60));
    let chains = [driver.push(RX, &[], &[12, 2000]), driver.push(RX, &[], &[5, 700, 1000])];
    driver.kick(RX);
    ends[0].send(&frame(2, 1514));
    assert_eq!(received(&mut driver, RX, &chains), (frame(2, 1514), 1));
    ends[0].send(&frame(3, 14));
    assert_eq!(received(&mut driver, RX, &chains), (frame(3, 14), 1));
    events.settle();
    assert_eq!(interrupts(&driver, RX), 2);
    assert_eq!(interrupts(&driver, TX), 1);
    let statistics = net.statistics();
    assert_eq!((statistics.sent_frames, statistics.sent_bytes), (1, 60));
    assert_eq!((statistics.received_frames, statistics.received_bytes), (2, 1528));
    assert_eq!((statistics.receive_dropped, statistics.send_dropped), (0, 0));
    net.deactivate();
}

#[test]
fn a_header_in_pieces_and_within_the_frames_own_buffer_is_understood() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    let sent = frame(4, 100);
    let mut whole = vec![0; 9];
    whole.extend(&sent[..30]);
    driver.push(TX, &[&[0; 3], &[], &whole, &sent[30..]], &[16]);
    driver.kick(TX);
    assert_eq!(ends[0].receive(), sent);
    net.deactivate();
}

#[test]
fn a_large_frame_spans_the_buffers_it_needs() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    let chains: Vec<_> = (0..60).map(|_| driver.push(RX, &[], &[1512])).collect();
    driver.kick(RX);
    ends[0].send(&frame(5, 65535));
    ends[0].send(&frame(6, 1500));
    ends[0].send(&frame(7, 1501));
    assert!(received(&mut driver, RX, &chains) == (frame(5, 65535), 44));
    assert_eq!(received(&mut driver, RX, &chains), (frame(6, 1500), 1));
    assert_eq!(received(&mut driver, RX, &chains), (frame(7, 1501), 2));
    net.deactivate();
}

#[test]
fn without_merged_buffers_a_frame_that_does_not_fit_is_dropped() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features() & !feature::MRG_RXBUF)).unwrap();
    let chains: Vec<_> = (0..3).map(|_| driver.push(RX, &[], &[12, 1514])).collect();
    driver.kick(RX);
    ends[0].send(&frame(8, 1515));
    ends[0].send(&frame(9, 1514));
    assert_eq!(received(&mut driver, RX, &chains), (frame(9, 1514), 1));
    assert_eq!(net.statistics().receive_dropped, 1);
    net.deactivate();
}

#[test]
fn frames_wait_for_buffers() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    for seed in 0..20 {
        ends[0].send(&frame(seed, 3000));
    }
    events.settle();
    assert_eq!(driver.used(RX), None);
    for seed in 0..20 {
        // Half of what it takes, and then the other half.
        let mut chains = vec![driver.push(RX, &[], &[1600])];
        driver.kick(RX);
        events.settle();
        assert_eq!(driver.used(RX), None);
        chains.push(driver.push(RX, &[], &[1600]));
        driver.kick(RX);
        assert_eq!(received(&mut driver, RX, &chains), (frame(seed, 3000), 2));
    }
    assert_eq!(net.statistics().receive_dropped, 0);
    net.deactivate();
}

#[test]
fn a_frame_larger_than_all_buffers_of_the_queue_is_dropped() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    let chains: Vec<_> = (0..64).map(|_| driver.push(RX, &[], &[100])).collect();
    driver.kick(RX);
    ends[0].send(&frame(1, 6400));
    ends[0].send(&frame(2, 6388));
    assert_eq!(received(&mut driver, RX, &chains), (frame(2, 6388), 64));
    assert_eq!(net.statistics().receive_dropped, 1);
    net.deactivate();
}

#[test]
fn what_the_other_end_does_not_read_waits_in_the_queue() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    // More than a socket holds.
    let mut sent = Vec::new();
    for seed in 0..60 {
        let size = 60_000 - seed * 100;
        let mut with_header = vec![0; HEADER_SIZE];
        with_header.extend(frame(seed, size));
        driver.push(TX, &[&with_header], &[]);
        driver.kick(TX);
        sent.push(frame(seed, size));
    }
    events.settle();
    let before = std::iter::from_fn(|| driver.used(TX)).count();
    assert!(before < 60);
    for frame in &sent {
        assert!(ends[0].receive() == *frame, "the frame of {} bytes changed", frame.len());
    }
    for _ in before..60 {
        driver.wait_used(TX);
    }
    assert_eq!(net.statistics().send_dropped, 0);
    net.deactivate();
}

#[test]
fn one_interrupt_tells_of_a_batch() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    for seed in 0..30 {
        driver.push(TX, &[&[0; HEADER_SIZE], &frame(seed, 64)], &[]);
    }
    let chains: Vec<_> = (0..30).map(|_| driver.push(RX, &[], &[2048])).collect();
    for seed in 0..30 {
        ends[0].send(&frame(seed, 64));
    }
    net.activate(driver.activation(net.features())).unwrap();
    for seed in 0..30 {
        assert_eq!(received(&mut driver, RX, &chains).0, frame(seed, 64));
        driver.wait_used(TX);
        assert_eq!(ends[0].receive(), frame(seed, 64));
    }
    events.settle();
    assert_eq!(interrupts(&driver, RX), 1);
    assert_eq!(interrupts(&driver, TX), 1);
    net.deactivate();
}

#[test]
fn the_driver_is_interrupted_where_it_asked_for_it() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    driver.queues[TX].queue.lock().set_event_idx(true);
    // `used_event` of the available ring: at the third chain.
    let ring = driver.queues[TX].queue.lock().avail_ring();
    driver.memory.write_obj(2_u16, GuestAddress(ring + 4 + 2 * 64)).unwrap();
    net.activate(driver.activation(net.features())).unwrap();
    for (seed, expected) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        send(&mut driver, TX, &frame(seed, 64));
        driver.wait_used(TX);
        events.settle();
        assert_eq!(interrupts(&driver, TX), expected);
        ends[0].receive();
    }
    net.deactivate();
}

#[test]
fn frames_of_impossible_sizes_are_dropped() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    driver.push(TX, &[&[0; HEADER_SIZE]], &[]);
    driver.push(TX, &[&[0; HEADER_SIZE], &frame(0, 13)], &[]);
    driver.push(TX, &[], &[100]);
    driver.push(TX, &[&[0; HEADER_SIZE], &frame(0, 70_000)], &[]);
    driver.push(TX, &[&[0; HEADER_SIZE], &frame(0, 65_536)], &[]);
    let huge = RawDescriptor { address: 0x20_0000, length: u32::MAX, flags: 0, next: 0 };
    driver.push_raw(TX, &[huge]);
    let looped = RawDescriptor { address: 0x20_0000, length: 1000, flags: NEXT, next: 6 };
    driver.push_raw(TX, &[looped]);
    send(&mut driver, TX, &frame(1, 14));
    for _ in 0..8 {
        assert_eq!(driver.wait_used(TX).1, 0);
    }
    assert_eq!(ends[0].receive(), frame(1, 14));
    assert!(ends[0].is_empty());
    assert_eq!(net.statistics().send_dropped, 7);
    net.deactivate();
}

#[test]
fn receive_buffers_that_cannot_hold_a_frame_are_given_back() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    let small = driver.push(RX, &[], &[11]);
    let readable = driver.push(RX, &[&[0; 100]], &[]);
    let outside = driver
        .push_raw(RX, &[RawDescriptor { address: 1 << 40, length: 2000, flags: WRITE, next: 0 }]);
    let good = driver.push(RX, &[], &[2000]);
    driver.kick(RX);
    ends[0].send(&frame(1, 600));
    for head in [small.head, readable.head, outside] {
        assert_eq!(driver.wait_used(RX), (head, 0));
    }
    assert_eq!(received(&mut driver, RX, &[good]), (frame(1, 600), 1));
    net.deactivate();
}

#[test]
fn an_announcement_of_an_impossible_frame_takes_the_link_down() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    driver.push(RX, &[], &[2000]);
    driver.kick(RX);
    ends[0].0.write_all(&u32::MAX.to_be_bytes()).unwrap();
    wait_until("the link goes down", || config::<1>(&net, 6) == [0]);
    net.deactivate();
}

#[test]
fn when_the_other_end_hangs_up_the_link_is_down_and_frames_are_dropped() {
    for buffers in [false, true] {
        let events = Loop::start();
        let (net, ends) = card(&events, 1, |_| {});
        let mut driver = TestDriver::new(3);
        net.activate(driver.activation(net.features())).unwrap();
        if buffers {
            driver.push(RX, &[], &[2000]);
            driver.kick(RX);
            events.settle();
        }
        drop(ends);
        wait_until("the link goes down", || config::<1>(&net, 6) == [0]);
        wait_until("the driver is told", || {
            driver.signal.config_changes.load(Ordering::SeqCst) == 1
        });
        send(&mut driver, TX, &frame(1, 64));
        driver.wait_used(TX);
        assert_eq!(net.statistics().send_dropped, 1);
        net.pause().unwrap();
        net.resume().unwrap();
        events.settle();
        assert_eq!(config::<1>(&net, 6), [0]);
        net.deactivate();
    }
}

#[test]
fn a_ring_that_claims_too_much_makes_the_device_need_a_reset() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    for index in [RX, TX] {
        let mut driver = TestDriver::new(3);
        net.activate(driver.activation(net.features())).unwrap();
        driver.break_ring(index);
        driver.kick(index);
        ends[0].send(&frame(0, 64));
        let resets = Arc::clone(&driver.signal);
        wait_until("a reset is needed", || resets.resets_needed.load(Ordering::SeqCst) == 1);
        driver.kick(RX);
        driver.kick(TX);
        events.settle();
        assert_eq!(resets.resets_needed.load(Ordering::SeqCst), 1);
        net.deactivate();
    }
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    send(&mut driver, TX, &frame(3, 64));
    assert_eq!(ends[0].receive(), frame(3, 64));
    net.deactivate();
}

/// Sends a command on queue `index` and returns the acknowledgement.
fn command(driver: &mut TestDriver, index: usize, bytes: &[&[u8]]) -> u8 {
    let chain = driver.push(index, bytes, &[1]);
    driver.kick(index);
    assert_eq!(driver.wait_used(index), (chain.head, 1));
    driver.read(chain.writable[0].0, 1)[0]
}

#[test]
fn the_driver_chooses_how_many_pairs_it_uses() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 2, |_| {});
    let mut driver = TestDriver::new(5);
    net.activate(driver.activation(net.features())).unwrap();
    let chains = [driver.push(2, &[], &[2000]), driver.push(2, &[], &[2000])];
    driver.kick(2);
    ends[1].send(&frame(1, 64));
    events.settle();
    assert_eq!(driver.used(2), None);
    for refused in [0_u16, 3, u16::MAX] {
        assert_eq!(command(&mut driver, 4, &[&[4, 0], &refused.to_le_bytes()]), 1);
    }
    assert_eq!(command(&mut driver, 4, &[&[4, 0], &2_u16.to_le_bytes()]), 0);
    assert_eq!(received(&mut driver, 2, &chains).0, frame(1, 64));
    send(&mut driver, 3, &frame(2, 64));
    assert_eq!(ends[1].receive(), frame(2, 64));
    // And back: what is left in the queue is dropped, nothing is received.
    assert_eq!(command(&mut driver, 4, &[&[4], &[0, 1], &[0]]), 0);
    send(&mut driver, 3, &frame(3, 64));
    driver.wait_used(3);
    driver.wait_used(3);
    ends[1].send(&frame(4, 64));
    events.settle();
    assert_eq!(driver.used(2), None);
    assert!(ends[1].is_empty());
    net.deactivate();
}

#[test]
fn without_multi_queue_the_control_queue_is_the_third() {
    let events = Loop::start();
    let (net, _ends) = card(&events, 2, |_| {});
    let mut driver = TestDriver::new(5);
    net.activate(driver.activation(net.features() & !feature::MQ)).unwrap();
    let offloads = feature::GUEST_CSUM.to_le_bytes();
    assert_eq!(command(&mut driver, CONTROL, &[&[5, 0], &offloads]), 0);
    assert_eq!(command(&mut driver, CONTROL, &[&[4, 0], &[1, 0]]), 1);
    assert_eq!(command(&mut driver, CONTROL, &[&[0, 0], &[1]]), 1);
    assert_eq!(command(&mut driver, CONTROL, &[&[]]), 1);
    net.deactivate();
}

#[test]
fn a_pair_without_queues_cannot_be_used() {
    let events = Loop::start();
    let (net, _ends) = card(&events, 2, |_| {});
    let mut driver = TestDriver::new(5);
    let mut activation = driver.activation(net.features());
    activation.queues[3] = None;
    net.activate(activation).unwrap();
    assert_eq!(command(&mut driver, 4, &[&[4, 0], &[2, 0]]), 1);
    assert_eq!(command(&mut driver, 4, &[&[4, 0], &[1, 0]]), 0);
    net.deactivate();
}

#[test]
fn rates_are_kept_in_both_directions() {
    let limit = RateLimit {
        operations_per_second: NonZeroU64::new(50),
        burst: Some(100),
        ..Default::default()
    };
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |config| {
        config.rate_rx = limit;
        config.rate_tx = limit;
    });
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    let chains: Vec<_> = (0..15).map(|_| driver.push(RX, &[], &[2048])).collect();
    driver.kick(RX);
    let start = Instant::now();
    for seed in 0..15 {
        ends[0].send(&frame(seed, 64));
        send(&mut driver, TX, &frame(seed, 64));
    }
    for seed in 0..15 {
        assert_eq!(received(&mut driver, RX, &chains).0, frame(seed, 64));
        assert_eq!(ends[0].receive(), frame(seed, 64));
    }
    // Five (and one, which leaves a debt) at once, the others at 20 ms each.
    assert!(start.elapsed() >= Duration::from_millis(9 * 20));
    net.deactivate();
}

#[test]
fn traffic_goes_on_in_a_restored_card() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 2, |_| {});
    let mut driver = TestDriver::new(5);
    net.activate(driver.activation(net.features())).unwrap();
    assert_eq!(command(&mut driver, 4, &[&[4, 0], &[2, 0]]), 0);
    let chains: Vec<_> = (0..8).map(|_| driver.push(2, &[], &[1000])).collect();
    driver.kick(2);
    ends[1].send(&frame(1, 2500));
    send(&mut driver, 3, &frame(2, 500));
    assert_eq!(received(&mut driver, 2, &chains), (frame(1, 2500), 3));
    driver.wait_used(3);
    net.pause().unwrap();
    send(&mut driver, 3, &frame(3, 600));
    ends[1].send(&frame(4, 700));
    events.settle();
    assert_eq!((driver.used(2), driver.used(3)), (None, None));
    let state = net.save().unwrap();
    // Pausing took nothing away: a card that goes on does all of it.
    net.resume().unwrap();
    driver.wait_used(3);
    assert_eq!(received(&mut driver, 2, &chains).0, frame(4, 700));
    assert_eq!((ends[1].receive(), ends[1].receive()), (frame(2, 500), frame(3, 600)));
    net.pause().unwrap();
    send(&mut driver, 3, &frame(5, 800));
    net.deactivate();

    let (restored, mut ends) = card(&events, 2, |config| config.mac = None);
    restored.restore(&state).unwrap();
    assert_eq!(restored.mac().0, GUEST_MAC);
    assert_eq!(restored.save().unwrap(), state);
    restored.activate(driver.activation(restored.features())).unwrap();
    assert_eq!(ends[1].receive(), frame(5, 800));
    ends[1].send(&frame(6, 900));
    assert_eq!(received(&mut driver, 2, &chains).0, frame(6, 900));
    assert_eq!(restored.save().unwrap(), state);
    restored.deactivate();
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let events = Loop::start();
    let (net, _ends) = card(&events, 1, |_| {});
    for state in [
        r#"{"mac":"52:54:00:01:02:03","driver":{"queue_pairs":2,"offloads":0}}"#,
        r#"{"mac":"52:54:00:01:02:03","driver":{"queue_pairs":0,"offloads":0}}"#,
        r#"{"mac":"52:54:00:01:02:03","driver":{"queue_pairs":1,"offloads":1024}}"#,
        r#"{"mac":"ff:ff:ff:ff:ff:ff"}"#,
        r#"{}"#,
        r#"[]"#,
    ] {
        let state = crate::State(serde_json::from_str(state).unwrap());
        assert!(net.restore(&state).is_err(), "{state:?}");
    }
}

#[test]
fn after_a_reset_guest_memory_is_left_alone() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    driver.push(RX, &[], &[2000]);
    driver.kick(RX);
    events.settle();
    net.deactivate();
    ends[0].send(&frame(1, 64));
    send(&mut driver, TX, &frame(2, 64));
    events.settle();
    assert_eq!((driver.used(RX), driver.used(TX)), (None, None));
    assert!(ends[0].is_empty());
}

#[test]
fn written_pages_are_recorded_as_dirty() {
    let events = Loop::start();
    let (net, mut ends) = card(&events, 1, |_| {});
    let mut driver = TestDriver::new(3);
    net.activate(driver.activation(net.features())).unwrap();
    driver.allocate(0x8000);
    let chains = [driver.push(RX, &[], &[0x4000])];
    let memory = driver.memory.clone();
    let region = memory.iter().next().unwrap();
    let at = chains[0].writable[0].0 as usize;
    driver.kick(RX);
    ends[0].send(&frame(1, 0x1800));
    received(&mut driver, RX, &chains);
    let bitmap = region.bitmap();
    assert!(bitmap.dirty_at(at) && bitmap.dirty_at(at + 0x17ff));
    assert!(!bitmap.dirty_at(at + 0x3000) && !bitmap.dirty_at(at - 0x1000));
    net.deactivate();
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let events = Loop::start();
    let user = || NetConfig::new(Backend::User { forward: Vec::new() });
    for config in [
        NetConfig { queue_pairs: 0, ..user() },
        NetConfig { queue_pairs: 2, ..user() },
        NetConfig { queue_pairs: 128, ..user() },
        NetConfig { queue_size: 0, ..user() },
        NetConfig { queue_size: 100, ..user() },
        NetConfig { mtu: Some(67), ..user() },
    ] {
        let refused = Net::new("net0", &config, events.handle()).err().unwrap();
        assert!(matches!(refused, Error::Configuration(_)), "{config:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chain_is_survived(
        chains in hostile::chains(5),
        frames in prop::collection::vec((0usize..2, 14usize..4000), 0..20),
        merged: bool,
    ) {
        let events = Loop::start();
        let (net, mut ends) = card(&events, 2, |_| {});
        // Whatever the driver's chains are, frames come meanwhile.
        for (pair, size) in frames {
            ends[pair].send(&frame(size, size));
        }
        let drain: Vec<_> = ends
            .iter()
            .map(|end| {
                let mut far = end.0.try_clone().unwrap();
                std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()))
            })
            .collect();
        let mut driver = TestDriver::new(5);
        let features = if merged { net.features() } else { net.features() & !feature::MRG_RXBUF };
        net.activate(driver.activation(features)).unwrap();
        for chain in &chains {
            driver.push_raw(chain.queue, &chain.descriptors);
            driver.kick(chain.queue);
        }
        events.settle();
        net.deactivate();
        hostile::attack(&*net, &events, chains);
        drop(net);
        drop(ends);
        for drain in drain {
            // A reset tells of frames that were not received.
            let _ = drain.join().unwrap();
        }
    }

    #[test]
    fn frames_arrive_whole_whatever_the_buffers_are(
        sizes in prop::collection::vec(14usize..9000, 1..12),
        buffers in prop::collection::vec(12u32..3000, 60),
    ) {
        let events = Loop::start();
        let (net, mut ends) = card(&events, 1, |_| {});
        let mut driver = TestDriver::new(3);
        net.activate(driver.activation(net.features())).unwrap();
        let mut room = 0;
        let chains: Vec<_> = buffers
            .iter()
            .map(|&size| {
                room += size as usize;
                driver.push(RX, &[], &[size])
            })
            .collect();
        driver.kick(RX);
        // A frame wastes less than one buffer.
        let mut need = 0;
        for (seed, &size) in sizes.iter().enumerate() {
            need += size + HEADER_SIZE + 3000;
            if need > room {
                break;
            }
            ends[0].send(&frame(seed, size));
            prop_assert_eq!(received(&mut driver, RX, &chains).0, frame(seed, size));
        }
        net.deactivate();
    }
}
