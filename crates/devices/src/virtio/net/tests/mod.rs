//! The card between a test's driver and the other end of its cable.

mod host;
mod socket;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::header::{HEADER_SIZE, feature};
use super::port::{Cable, Port};
use super::stream::StreamPort;
use super::{Backend, Net, NetConfig};
use crate::virtio::VirtioDevice;
use crate::virtio::hostile::Loop;
use crate::virtio::testing::{Chain, TestDriver};

const RX: usize = 0;
const TX: usize = 1;
const DEADLINE: Duration = Duration::from_secs(60);
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// The far end of a cable that carries frames over a socket.
struct FarEnd(UnixStream);

impl FarEnd {
    fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.0.write_all(frame).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        self.0.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut size = [0; 4];
        self.0.read_exact(&mut size).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(size) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }

    fn is_empty(&mut self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let empty = self.0.read(&mut [0]).is_err();
        self.0.set_nonblocking(false).unwrap();
        empty
    }
}

/// A card whose `pairs` ports are sockets, with a control queue.
fn card(
    events: &Loop,
    pairs: u16,
    configure: impl FnOnce(&mut NetConfig),
) -> (Arc<Net>, Vec<FarEnd>) {
    let mut config = NetConfig::new(Backend::User { forward: Vec::new() });
    config.queue_size = 64;
    config.mac = Some(spec::MacAddress(GUEST_MAC));
    configure(&mut config);
    let mut ports: Vec<(Box<dyn Port>, _)> = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..pairs {
        let (near, far) = UnixStream::pair().unwrap();
        ports.push((Box::new(StreamPort::new(near).unwrap()), None));
        ends.push(FarEnd(far));
    }
    let features = feature::CTRL_VQ | feature::CTRL_GUEST_OFFLOADS | feature::GUEST_OFFLOADS;
    let cable = Cable { features, mtu: None, ports, keep: None };
    let net = Net::with_cable("net0".into(), &config, cable, None, events.handle());
    (net, ends)
}

fn frame(seed: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + seed * 13 + at / 251) as u8).collect()
}

/// Puts a frame into transmit queue `queue`, with its header apart.
fn send(driver: &mut TestDriver, queue: usize, frame: &[u8]) -> Chain {
    let chain = driver.push(queue, &[&[0; HEADER_SIZE], frame], &[]);
    driver.kick(queue);
    chain
}

/// Reads a received frame of receive queue `queue`, which may span `chains`, and says in how many it was.
fn received(driver: &mut TestDriver, queue: usize, chains: &[Chain]) -> (Vec<u8>, usize) {
    let first = driver.wait_used(queue);
    rest_of_frame(driver, queue, chains, first)
}

/// As [`received`], if there is a frame.
fn poll_received(
    driver: &mut TestDriver,
    queue: usize,
    chains: &[Chain],
) -> Option<(Vec<u8>, usize)> {
    let first = driver.used(queue)?;
    Some(rest_of_frame(driver, queue, chains, first))
}

fn rest_of_frame(
    driver: &mut TestDriver,
    queue: usize,
    chains: &[Chain],
    first: (u16, u32),
) -> (Vec<u8>, usize) {
    let mut bytes = read_chain(driver, chains, first);
    let count = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
    for _ in 1..count {
        // All of a frame is shown at once.
        let next = driver.used(queue).expect("a part of a frame is missing");
        bytes.extend(read_chain(driver, chains, next));
    }
    (bytes.split_off(HEADER_SIZE), count)
}

fn read_chain(driver: &TestDriver, chains: &[Chain], (head, length): (u16, u32)) -> Vec<u8> {
    let chain = chains.iter().rev().find(|chain| chain.head == head).unwrap();
    let mut bytes = Vec::new();
    for &(address, size) in &chain.writable {
        bytes.extend(driver.read(address, size as usize));
    }
    assert!(bytes.len() >= length as usize, "more was written than there is room for");
    bytes.truncate(length as usize);
    bytes
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: this never happened");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn interrupts(driver: &TestDriver, queue: usize) -> usize {
    driver.queues[queue].interrupt.0.load(Ordering::SeqCst)
}

fn config<const N: usize>(net: &Net, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    net.read_config(offset, &mut bytes);
    bytes
}

proptest::proptest! {
    #[test]
    fn any_guest_and_host_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..4096)) {
        super::fuzz(&bytes);
    }
}
