use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::packet::{
    HOST_CID, Header, MOST_DATA, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::{Vsock, VsockConfig};
use crate::virtio::VirtioDevice;
use crate::virtio::hostile::{self, HostileChain, Loop};
use crate::virtio::testing::{Chain, RawDescriptor, TestDriver};

const CID: u64 = 5;
const GUEST_PORT: u32 = 7000;
const HOST_PORT: u32 = 1024;
const GUEST_BUFFER: u32 = 64 << 10;
const RECEIVE_SIZE: u32 = 4096 + 44;

/// A guest with a driver, and the host's folder of sockets.
struct Guest {
    // Declared first, so that the device is gone before its loop ends.
    vsock: Vsock,
    driver: TestDriver,
    offered: std::collections::VecDeque<Chain>,
    events: Loop,
    folder: tempfile::TempDir,
}

impl Guest {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let events = Loop::start();
        let config = VsockConfig { guest_cid: CID, path: folder.path().join("vsock") };
        let vsock = Vsock::new("vsock", config, events.handle()).unwrap();
        let driver = TestDriver::new(3);
        vsock.activate(driver.activation(vsock.features())).unwrap();
        Self { vsock, driver, offered: Default::default(), events, folder }
    }

    fn path(&self, port: Option<u32>) -> std::path::PathBuf {
        self.folder.path().join(port.map_or("vsock".into(), |port| format!("vsock_{port}")))
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(Some(port))).unwrap()
    }

    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let chain = self.driver.push(0, &[], &[44, RECEIVE_SIZE - 44]);
            self.offered.push_back(chain);
        }
        self.driver.kick(0);
    }

    /// Offers a buffer and waits for the packet in it.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        if self.offered.is_empty() {
            self.offer(1);
        }
        let (head, written) = self.driver.wait_used(0);
        let chain = self.offered.pop_front().unwrap();
        assert_eq!(head, chain.head);
        let bytes = self.driver.read(chain.writable[0].0, 44);
        let header = super::switch::parse(bytes.try_into().unwrap());
        assert_eq!(written, 44 + header.len.get());
        assert_eq!(header.src_cid.get(), HOST_CID);
        assert_eq!(header.dst_cid.get(), CID);
        assert_eq!(header.socket_type.get(), TYPE_STREAM);
        let data = self.driver.read(chain.writable[1].0, header.len.get() as usize);
        (header, data)
    }

    /// The operation of a packet whose type is not checked.
    fn receive_operation(&mut self) -> Option<Operation> {
        self.offer(1);
        self.driver.wait_used(0);
        let chain = self.offered.pop_front().unwrap();
        let bytes = self.driver.read(chain.writable[0].0, 44);
        super::switch::parse(bytes.try_into().unwrap()).operation()
    }

    fn expect(&mut self, operation: Operation) -> (Header, Vec<u8>) {
        let (header, data) = self.receive();
        assert_eq!(header.operation(), Some(operation), "{header:?}");
        (header, data)
    }

    fn send_header(&mut self, header: Header, data: &[u8]) {
        let mut packet = header.as_bytes().to_vec();
        packet.extend(data);
        // Headers and data may be cut anywhere.
        let (first, second) = packet.split_at(packet.len().min(20));
        let chain = self.driver.push(1, &[first, second], &[]);
        self.driver.kick(1);
        assert_eq!(self.driver.wait_used(1), (chain.head, 0));
    }

    fn send(&mut self, header: Header, operation: Operation, data: &[u8]) {
        let mut header = header;
        header.op = (operation as u16).into();
        header.len = (data.len() as u32).into();
        self.send_header(header, data);
    }

    fn header(&self, guest: u32, host: u32) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: guest.into(),
            dst_port: host.into(),
            socket_type: TYPE_STREAM.into(),
            buf_alloc: GUEST_BUFFER.into(),
            ..Header::default()
        }
    }

    /// A connection that the guest opens.
    fn connect(&mut self) -> (Header, UnixStream) {
        let listener = self.listen(HOST_PORT);
        let header = self.header(GUEST_PORT, HOST_PORT);
        self.send(header, Operation::Request, &[]);
        let (response, _) = self.expect(Operation::Response);
        assert_eq!(response.src_port.get(), HOST_PORT);
        assert_eq!(response.dst_port.get(), GUEST_PORT);
        assert!(response.buf_alloc.get() > 0);
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (header, stream)
    }
}

#[test]
fn the_guest_connects_and_both_sides_speak() {
    let mut guest = Guest::start();
    let (header, mut stream) = guest.connect();
    guest.send(header, Operation::ReadWrite, b"hello from the guest");
    let mut bytes = [0; 20];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello from the guest");
    stream.write_all(b"hello from the host").unwrap();
    let (header, data) = guest.expect(Operation::ReadWrite);
    assert_eq!(data, b"hello from the host");
    assert_eq!(header.fwd_cnt.get(), 20);
}

#[test]
fn the_host_connects_and_both_sides_speak() {
    let mut guest = Guest::start();
    let mut stream = UnixStream::connect(guest.path(None)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // The line may come in pieces, and data right behind it.
    stream.write_all(b"CONN").unwrap();
    guest.events.settle();
    stream.write_all(b"ECT 52\nfirst").unwrap();
    let (request, _) = guest.expect(Operation::Request);
    assert_eq!(request.dst_port.get(), 52);
    let header = guest.header(52, request.src_port.get());
    guest.send(header, Operation::Response, &[]);
    let answer = format!("OK {}\n", request.src_port.get());
    let mut bytes = vec![0; answer.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, answer.as_bytes());
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"first");
    guest.send(header, Operation::ReadWrite, b"second");
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"second");
}

#[test]
fn what_the_guest_refuses_ends_the_stream() {
    let mut guest = Guest::start();
    let mut stream = UnixStream::connect(guest.path(None)).unwrap();
    stream.write_all(b"CONNECT 9\n").unwrap();
    let (request, _) = guest.expect(Operation::Request);
    let header = guest.header(9, request.src_port.get());
    guest.send(header, Operation::Reset, &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_wrong_greeting_ends_the_stream() {
    let guest = Guest::start();
    for greeting in
        ["CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "GET / HTTP/1.1\r\n", &"C".repeat(40)]
    {
        let mut stream = UnixStream::connect(guest.path(None)).unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        // What was not read makes the close a reset.
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)), "{greeting}");
    }
}

#[test]
fn a_port_without_a_listener_is_reset() {
    let mut guest = Guest::start();
    let header = guest.header(GUEST_PORT, 99);
    guest.send(header, Operation::Request, &[]);
    let (reset, _) = guest.expect(Operation::Reset);
    assert_eq!(reset.src_port.get(), 99);
    assert_eq!(reset.dst_port.get(), GUEST_PORT);
}

#[test]
fn packets_that_cannot_be_are_reset_or_ignored() {
    let mut guest = Guest::start();
    let good = guest.header(GUEST_PORT, HOST_PORT);
    let seqpacket = Header { socket_type: 2.into(), ..good };
    guest.send(seqpacket, Operation::Request, &[]);
    assert_eq!(guest.receive_operation(), Some(Operation::Reset));
    guest.send(good, Operation::ReadWrite, b"nobody asked");
    guest.expect(Operation::Reset);
    let longer = Header { op: (Operation::Request as u16).into(), len: 100.into(), ..good };
    guest.send_header(longer, b"short");
    guest.expect(Operation::Reset);
    guest.send_header(Header { op: 77.into(), ..good }, &[]);
    guest.expect(Operation::Reset);
    // A RST is never answered, nor is what comes from somebody else, nor half a header.
    guest.send(good, Operation::Reset, &[]);
    guest.send(Header { src_cid: 77.into(), ..good }, Operation::Request, &[]);
    guest.driver.push(1, &[&[0; 20]], &[]);
    guest.driver.kick(1);
    guest.driver.wait_used(1);
    guest.offer(1);
    guest.events.settle();
    assert_eq!(guest.driver.used(0), None);
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut guest = Guest::start();
    let (mut header, mut stream) = guest.connect();
    header.buf_alloc = 10.into();
    guest.send(header, Operation::CreditUpdate, &[]);
    stream.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"0123456789");
    guest.expect(Operation::CreditRequest);
    guest.offer(1);
    guest.events.settle();
    assert_eq!(guest.driver.used(0), None);
    header.fwd_cnt = 10.into();
    guest.send(header, Operation::CreditUpdate, &[]);
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"abcdef");
    // A guest that claims to have read what was never sent gets nothing.
    header.fwd_cnt = 1000.into();
    guest.send(header, Operation::CreditUpdate, &[]);
    stream.write_all(b"more").unwrap();
    guest.expect(Operation::CreditRequest);
}

#[test]
fn the_guest_is_told_when_a_slow_host_has_read() {
    let mut guest = Guest::start();
    let (header, mut stream) = guest.connect();
    let data: Vec<u8> = (0..MOST_DATA).map(|index| (index * 7) as u8).collect();
    // More than the socket takes, so that some of it is held.
    let (mut sent, mut credit) = (0u32, 256 << 10);
    let mut told = 0;
    while credit - sent.wrapping_sub(told) >= MOST_DATA as u32 && sent < 4 << 20 {
        guest.send(header, Operation::ReadWrite, &data);
        sent += MOST_DATA as u32;
        guest.send(header, Operation::CreditRequest, &[]);
        let (update, _) = guest.expect(Operation::CreditUpdate);
        told = update.fwd_cnt.get();
        credit = update.buf_alloc.get();
    }
    assert!(told < sent, "the socket took everything");
    let mut received = vec![0; sent as usize];
    stream.read_exact(&mut received).unwrap();
    assert!(received.chunks(MOST_DATA).all(|chunk| chunk == data));
    // The rest was passed on without being asked for.
    let (update, _) = guest.expect(Operation::CreditUpdate);
    assert!(sent - update.fwd_cnt.get() <= credit / 2);
}

#[test]
fn sending_without_credit_ends_the_connection() {
    let mut guest = Guest::start();
    let (header, _stream) = guest.connect();
    guest.offer(8);
    let data = vec![0; MOST_DATA];
    let reset = (0..1000).find(|_| {
        guest.send(header, Operation::ReadWrite, &data);
        guest.driver.used(0).is_some_and(|_| {
            let chain = guest.offered.pop_front().unwrap();
            let bytes = guest.driver.read(chain.writable[0].0, 44);
            super::switch::parse(bytes.try_into().unwrap()).operation() == Some(Operation::Reset)
        })
    });
    assert!(reset.is_some_and(|count| count >= 4));
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::start();
    let (header, mut stream) = guest.connect();
    let half = Header { flags: SHUTDOWN_SEND.into(), ..header };
    guest.send(header, Operation::ReadWrite, b"last words");
    guest.send(half, Operation::Shutdown, &[]);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"last words");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"answer");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags.get(), SHUTDOWN_SEND);
    let both = Header { flags: (SHUTDOWN_SEND | SHUTDOWN_RECEIVE).into(), ..header };
    guest.send(both, Operation::Shutdown, &[]);
    guest.expect(Operation::Reset);
}

#[test]
fn a_host_that_closes_ends_both_directions() {
    let mut guest = Guest::start();
    let (header, mut stream) = guest.connect();
    stream.write_all(b"bye").unwrap();
    drop(stream);
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"bye");
    let mut flags = 0;
    while flags != SHUTDOWN_SEND | SHUTDOWN_RECEIVE {
        flags = guest.expect(Operation::Shutdown).0.flags.get();
    }
    guest.send(header, Operation::Reset, &[]);
    // The ports can be used again.
    std::fs::remove_file(guest.path(Some(HOST_PORT))).unwrap();
    guest.connect();
}

#[test]
fn what_the_guest_sent_last_reaches_a_slow_host_after_the_close() {
    let mut guest = Guest::start();
    let (header, mut stream) = guest.connect();
    let data = vec![9; MOST_DATA];
    let mut sent = 0;
    loop {
        guest.send(header, Operation::ReadWrite, &data);
        sent += data.len();
        guest.send(header, Operation::CreditRequest, &[]);
        let (update, _) = guest.expect(Operation::CreditUpdate);
        if update.fwd_cnt.get() < sent as u32 {
            break;
        }
    }
    let both = Header { flags: (SHUTDOWN_SEND | SHUTDOWN_RECEIVE).into(), ..header };
    guest.send(both, Operation::Shutdown, &[]);
    guest.expect(Operation::Reset);
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), sent);
    assert!(received.iter().all(|byte| *byte == 9));
}

#[test]
fn many_bytes_go_both_ways_unchanged() {
    const TOTAL: usize = 3 << 20;
    let pattern = |index: usize| (index.wrapping_mul(2654435761) >> 13) as u8;
    let mut guest = Guest::start();
    let (mut header, stream) = guest.connect();
    let mut writer = stream.try_clone().unwrap();
    let host = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..TOTAL).map(pattern).collect();
        writer.write_all(&bytes).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    // The test driver never reuses memory, so its buffers are offered again by hand.
    let buffers: Vec<u64> = (0..16).map(|_| guest.driver.allocate(RECEIVE_SIZE)).collect();
    let offer = |guest: &mut Guest, address| {
        let flags = crate::virtio::testing::WRITE;
        guest
            .driver
            .push_raw(0, &[RawDescriptor { address, length: RECEIVE_SIZE, flags, next: 0 }]);
        guest.driver.kick(0);
    };
    buffers.iter().for_each(|address| offer(&mut guest, *address));
    let mut received: Vec<u8> = Vec::new();
    for address in buffers.iter().cycle() {
        let (_, written) = guest.driver.wait_used(0);
        let bytes = guest.driver.read(*address, written as usize);
        let packet = super::switch::parse(*bytes.first_chunk().unwrap());
        match packet.operation() {
            Some(Operation::ReadWrite) => received.extend(&bytes[44..]),
            Some(Operation::CreditRequest) => {}
            Some(Operation::Shutdown) => break,
            other => panic!("{other:?}"),
        }
        offer(&mut guest, *address);
        let read = received.len() as u32;
        if read.wrapping_sub(header.fwd_cnt.get()) >= GUEST_BUFFER / 2 {
            header.fwd_cnt = read.into();
            // The transmit queue's memory is used up by many packets: one header is enough.
            guest.send(header, Operation::CreditUpdate, &[]);
        }
    }
    host.join().unwrap();
    assert_eq!(received.len(), TOTAL);
    assert!(received.iter().enumerate().all(|(index, byte)| *byte == pattern(index)));
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::start();
    let listener = guest.listen(HOST_PORT);
    let mut streams = Vec::new();
    let refused = (0..1000).find(|port| {
        let header = guest.header(10_000 + port, HOST_PORT);
        guest.send(header, Operation::Request, &[]);
        match guest.receive().0.operation() {
            Some(Operation::Response) => {
                streams.push(listener.accept().unwrap());
                false
            }
            _ => true,
        }
    });
    assert_eq!(refused, Some(256));
    // A program of the host waits meanwhile, and is served when another connection ends.
    let mut stream = UnixStream::connect(guest.path(None)).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    guest.events.settle();
    assert_eq!(guest.driver.used(0), None);
    let header = guest.header(10_000, HOST_PORT);
    guest.send(header, Operation::Reset, &[]);
    guest.expect(Operation::Request);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_served_further() {
    let mut guest = Guest::start();
    let header =
        Header { op: (Operation::ReadWrite as u16).into(), ..guest.header(GUEST_PORT, HOST_PORT) };
    for _ in 0..40 {
        for _ in 0..8 {
            guest.driver.push(1, &[header.as_bytes()], &[]);
        }
        guest.driver.kick(1);
        guest.events.settle();
        if guest.driver.used(1).is_none() {
            break;
        }
        while guest.driver.used(1).is_some() {}
    }
    // Answers make room again.
    guest.offer(32);
    for _ in 0..32 {
        guest.driver.wait_used(0);
    }
    guest.driver.wait_used(1);
}

#[test]
fn connections_end_by_a_restore_and_the_guest_is_told() {
    let mut guest = Guest::start();
    let (header, mut stream) = guest.connect();
    guest.send(header, Operation::ReadWrite, b"before");
    stream.write_all(b"never read").unwrap();
    guest.vsock.pause().unwrap();
    // This packet waits in the queue.
    let packet = Header { op: (Operation::ReadWrite as u16).into(), len: 5.into(), ..header };
    guest.driver.push(1, &[packet.as_bytes(), b"after"], &[]);
    guest.driver.kick(1);
    let state = guest.vsock.save().unwrap();
    guest.vsock.deactivate();

    let path = guest.folder.path().join("other");
    let config = VsockConfig { guest_cid: CID, path: path.clone() };
    let restored = Vsock::new("vsock", config, guest.events.handle()).unwrap();
    restored.restore(&state).unwrap();
    let event = guest.driver.push(2, &[], &[4]);
    guest.driver.memory.write_obj(77u32, GuestAddress(event.writable[0].0)).unwrap();
    restored.activate(guest.driver.activation(restored.features())).unwrap();
    restored.resume().unwrap();
    assert_eq!(guest.driver.wait_used(2), (event.head, 4));
    assert_eq!(guest.driver.read(event.writable[0].0, 4), [0; 4]);
    guest.driver.wait_used(1);
    guest.expect(Operation::Reset);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    guest.expect(Operation::Request);
}

#[test]
fn a_paused_device_goes_on_with_its_connections() {
    let mut guest = Guest::start();
    let (header, mut stream) = guest.connect();
    guest.vsock.pause().unwrap();
    stream.write_all(b"meanwhile").unwrap();
    guest.offer(1);
    guest.events.settle();
    assert_eq!(guest.driver.used(0), None);
    guest.vsock.resume().unwrap();
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"meanwhile");
    guest.send(header, Operation::ReadWrite, b"x");
    stream.read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn only_an_abandoned_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let events = Loop::start();
    let config = |name: &str| VsockConfig { guest_cid: CID, path: folder.path().join(name) };
    drop(UnixListener::bind(folder.path().join("old")).unwrap());
    let vsock = Vsock::new("vsock", config("old"), events.handle()).unwrap();
    assert!(Vsock::new("vsock", config("old"), events.handle()).is_err());
    std::fs::write(folder.path().join("file"), "precious").unwrap();
    assert!(Vsock::new("vsock", config("file"), events.handle()).is_err());
    assert!(Vsock::new("vsock", config(&"x".repeat(120)), events.handle()).is_err());
    let bad = VsockConfig { guest_cid: 2, ..config("new") };
    assert!(Vsock::new("vsock", bad, events.handle()).is_err());
    drop(vsock);
    assert!(!folder.path().join("old").exists());
}

/// Packets that are nearly right, in any chain.
fn packets() -> impl Strategy<Value = Vec<HostileChain>> {
    let op = prop_oneof![8 => 0u16..9, 1 => any::<u16>()];
    let length = prop_oneof![4 => 0u32..300, 1 => any::<u32>()];
    let packet = (op, 1u32..3, length, any::<u32>(), any::<u32>(), 0u32..4).prop_map(
        |(op, port, len, buf_alloc, fwd_cnt, flags)| {
            Header {
                src_cid: CID.into(),
                dst_cid: HOST_CID.into(),
                src_port: port.into(),
                dst_port: HOST_PORT.into(),
                socket_type: TYPE_STREAM.into(),
                len: len.into(),
                op: op.into(),
                buf_alloc: buf_alloc.into(),
                fwd_cnt: fwd_cnt.into(),
                flags: flags.into(),
            }
            .as_bytes()
            .to_vec()
        },
    );
    prop::collection::vec(hostile::chain(3, packet), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_chain_is_survived(chains in packets()) {
        let folder = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(folder.path().join("vsock_1024")).unwrap();
        let events = Loop::start();
        let config = VsockConfig { guest_cid: CID, path: folder.path().join("vsock") };
        let vsock = Vsock::new("vsock", config, events.handle()).unwrap();
        hostile::attack(&vsock, &events, chains);
    }

    #[test]
    fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        super::fuzz(&bytes);
    }
}
