//! Real taps, in a network of the test's own, and a real passt.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};
use spec::MacAddress;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::VirtQueue;
use crate::virtio::net::Vhost;
use crate::{Interrupt, Result};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 11, 12, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 11, 12, 2);
const BROADCAST: [u8; 6] = [0xff; 6];

/// Runs `test` on a thread with a network of its own, where `setup` was run as arguments of ip(8). Where that is not
/// permitted, says so and runs nothing.
fn in_network(setup: &[&str], test: impl FnOnce() + Send) {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: a network of its own needs root and /dev/net/tun");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the thread's table of descriptors stays shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            for arguments in setup {
                let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
                assert!(done.success(), "ip {arguments}");
            }
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn tap(events: &Loop, queue_pairs: u16) -> Result<Arc<Net>> {
    let backend = Backend::Tap { name: "tap0".into(), vhost: Vhost::Off };
    let mac = Some(MacAddress(GUEST_MAC));
    let config = NetConfig { mac, queue_pairs, queue_size: 64, ..NetConfig::new(backend) };
    Net::new("net0", &config, events.handle())
}

/// Opens a tap that was just closed: a process that another test starts at this moment may hold it a little longer.
fn open_again(mut open: impl FnMut() -> Result<Arc<Net>>) -> Arc<Net> {
    let mut opened = None;
    wait_until("the tap is free again", || {
        opened = open().ok();
        opened.is_some()
    });
    opened.unwrap()
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &GUEST_MAC, &kind.to_be_bytes(), payload].concat()
}

fn arp(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let request = [0, 1, 8, 0, 6, 4, 0, 1];
    let payload =
        [&request[..], &GUEST_MAC, &sender.octets(), &[0; 6], &target.octets(), &[0; 18]].concat();
    ethernet(BROADCAST, 0x806, &payload)
}

fn ipv4(to: [u8; 6], protocol: u8, source: Ipv4Addr, target: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(target.octets());
    let sum = checksum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    ethernet(to, 0x800, &[&header, payload].concat())
}

/// A UDP datagram without a checksum.
fn datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let header = [from, to, length, 0].map(u16::to_be_bytes).concat();
    [&header, payload].concat()
}

fn echo_request(to: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut header = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = checksum(&[&header, payload]).to_be_bytes();
    header[2..4].copy_from_slice(&sum);
    ipv4(to, 1, GUEST, HOST, &[&header, payload].concat())
}

/// Receives until a frame is `wanted`: a kernel has things of its own to say.
fn receive_until(
    driver: &mut TestDriver,
    queue: usize,
    chains: &[Chain],
    wanted: impl Fn(&[u8]) -> bool,
) -> (Vec<u8>, usize) {
    loop {
        let (frame, count) = received(driver, queue, chains);
        if wanted(&frame) {
            return (frame, count);
        }
    }
}

fn is_arp_reply(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[..6] == GUEST_MAC
}

fn is_echo_reply(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 0
}

/// Asks for the host's Ethernet address, and again: for a second after a tap was opened, the kernel may lose what
/// it sends there.
fn host_address(driver: &mut TestDriver, chains: &[Chain]) -> [u8; 6] {
    for attempt in 0.. {
        assert!(attempt < 100, "the host does not answer");
        send(driver, TX, &arp(GUEST, HOST));
        driver.wait_used(TX);
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            match poll_received(driver, RX, chains) {
                Some((reply, _)) if is_arp_reply(&reply) => {
                    return reply[6..12].try_into().unwrap();
                }
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
    unreachable!()
}

const ONE_TAP: [&str; 3] =
    ["tuntap add tap0 mode tap", "addr add 10.11.12.1/24 dev tap0", "link set tap0 mtu 9000 up"];

#[test]
fn the_hosts_kernel_answers_through_a_tap() {
    in_network(&ONE_TAP, || {
        let events = Loop::start();
        let net = tap(&events, 1).unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        net.activate(driver.activation(net.features())).unwrap();
        let chains: Vec<_> = (0..60).map(|_| driver.push(RX, &[], &[1536])).collect();
        driver.kick(RX);
        let host = host_address(&mut driver, &chains);
        let payload = frame(1, 56);
        send(&mut driver, TX, &echo_request(host, &payload));
        let (reply, count) = receive_until(&mut driver, RX, &chains, is_echo_reply);
        assert_eq!((&reply[42..], count), (&payload[..], 1));
        // Larger than what is collected for a first frame, and twice, since then more is.
        let payload = frame(2, 8000);
        for _ in 0..2 {
            send(&mut driver, TX, &echo_request(host, &payload));
            let (reply, count) = receive_until(&mut driver, RX, &chains, is_echo_reply);
            assert!(reply[42..] == payload, "the payload changed");
            assert_eq!(count, 6);
        }
        net.deactivate();
    });
}

#[test]
fn the_kernel_completes_checksums_and_cuts_segments() {
    in_network(&ONE_TAP, || {
        let events = Loop::start();
        let net = tap(&events, 1).unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        net.activate(driver.activation(net.features())).unwrap();
        let chains: Vec<_> = (0..16).map(|_| driver.push(RX, &[], &[1536])).collect();
        driver.kick(RX);
        let host = host_address(&mut driver, &chains);
        let socket = UdpSocket::bind((HOST, 4000)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let payload = frame(3, 500);
        let length = (8 + payload.len() as u16).to_be_bytes();
        let pseudo = [&GUEST.octets()[..], &HOST.octets(), &[0, 17], &length].concat();
        // Of the checksum, the driver has summed only the pseudo header.
        let partial = (!checksum(&[&pseudo])).to_be_bytes();
        let ports = [0x10, 0x00, 0x0f, 0xa0];
        let datagram = [&ports[..], &length, &partial, &payload].concat();
        let sent = ipv4(host, 17, GUEST, HOST, &datagram);
        // VIRTIO_NET_HDR_F_NEEDS_CSUM, from byte 34 on, to be stored 6 bytes further.
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
        driver.push(TX, &[&header, &sent], &[]);
        driver.kick(TX);
        let mut bytes = [0; 2000];
        let (size, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..size], from.ip()), (&payload[..], GUEST.into()));
        // A header that lies about the frame is refused by the kernel, and the next frame passes.
        let lies = [1, 1, 0xff, 0xff, 1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        driver.push(TX, &[&lies, &sent], &[]);
        driver.push(TX, &[&header, &sent], &[]);
        driver.kick(TX);
        assert_eq!(socket.recv_from(&mut bytes).unwrap().0, payload.len());
        assert_eq!(net.statistics().send_dropped, 1);
        net.deactivate();
    });
}

#[test]
fn several_queues_of_a_tap_work_once_the_driver_asks_for_them() {
    let mut setup = ONE_TAP;
    setup[0] = "tuntap add tap0 mode tap multi_queue";
    in_network(&setup, || {
        let events = Loop::start();
        let net = tap(&events, 2).unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        net.activate(driver.activation(net.features())).unwrap();
        let first: Vec<_> = (0..30).map(|_| driver.push(RX, &[], &[1536])).collect();
        let second: Vec<_> = (0..30).map(|_| driver.push(2, &[], &[1536])).collect();
        driver.kick(RX);
        driver.kick(2);
        // By one queue first.
        let host = host_address(&mut driver, &first);
        let pairs = driver.push(4, &[&[4, 0], &2_u16.to_le_bytes()], &[1]);
        driver.kick(4);
        driver.wait_used(4);
        assert_eq!(driver.read(pairs.writable[0].0, 1), [0]);
        // The kernel sends a flow's frames to the queue that the flow's came from.
        wait_until("the reply comes by the second queue", || {
            send(&mut driver, 3, &echo_request(host, &frame(4, 56)));
            driver.wait_used(3);
            events.settle();
            driver.used(2).is_some()
        });
        drop(second);
        net.deactivate();
        // The driver begins anew with one.
        let mut driver = TestDriver::new(net.queue_sizes().len());
        net.activate(driver.activation(net.features())).unwrap();
        let chains: Vec<_> = (0..30).map(|_| driver.push(RX, &[], &[1536])).collect();
        driver.kick(RX);
        assert_eq!(host_address(&mut driver, &chains), host);
        assert_eq!(driver.used(2), None);
        net.deactivate();
    });
}

#[test]
fn traffic_of_a_tap_goes_on_after_a_restore() {
    // The kernel forgets the neighbours of an interface that nobody holds open, but for such.
    let neighbour = "neigh add 10.11.12.2 lladdr 52:54:00:01:02:03 dev tap0 nud permanent";
    let setup = [ONE_TAP[0], ONE_TAP[1], ONE_TAP[2], neighbour];
    in_network(&setup, || {
        let events = Loop::start();
        let net = tap(&events, 1).unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        let features = net.features();
        net.activate(driver.activation(features)).unwrap();
        let chains: Vec<_> = (0..30).map(|_| driver.push(RX, &[], &[1536])).collect();
        driver.kick(RX);
        let host = host_address(&mut driver, &chains);
        let socket = UdpSocket::bind((HOST, 4000)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        net.pause().unwrap();
        send(&mut driver, TX, &ipv4(host, 17, GUEST, HOST, &datagram(4001, 4000, &frame(5, 56))));
        let state = net.save().unwrap();
        net.deactivate();
        drop(net);
        let net = open_again(|| tap(&events, 1));
        net.restore(&state).unwrap();
        net.activate(driver.activation(features)).unwrap();
        let mut bytes = [0; 2000];
        assert_eq!(socket.recv_from(&mut bytes).unwrap().0, 56);
        assert_eq!(bytes[..56], frame(5, 56));
        // Again and again, as in `host_address`.
        let mut seen = 0;
        wait_until("a datagram arrives", || {
            socket.send_to(&frame(6, 70), (GUEST, 4001)).unwrap();
            events.settle();
            while let Some((_, length)) = driver.used(RX) {
                seen += usize::from(length as usize == HEADER_SIZE + 42 + 70);
            }
            seen > 0
        });
        net.deactivate();
    });
}

#[test]
fn when_the_tap_is_deleted_the_link_is_down() {
    in_network(&ONE_TAP, || {
        let events = Loop::start();
        let net = tap(&events, 1).unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        net.activate(driver.activation(net.features())).unwrap();
        // Enough for what the kernel says by itself: a card that waits for buffers asks no port.
        (0..60).for_each(|_| drop(driver.push(RX, &[], &[1536])));
        driver.kick(RX);
        events.settle();
        assert!(Command::new("ip").args(["link", "del", "tap0"]).status().unwrap().success());
        wait_until("the link goes down", || config::<1>(&net, 6) == [0]);
        send(&mut driver, TX, &arp(GUEST, HOST));
        driver.wait_used(TX);
        net.deactivate();
    });
}

#[test]
fn what_is_wrong_with_a_tap_is_said_with_its_repair() {
    let setup = [
        "tuntap add single mode tap",
        "tuntap add several mode tap multi_queue",
        "tuntap add busy mode tap",
    ];
    in_network(&setup, || {
        let events = Loop::start();
        let refusal = |name: &str, queue_pairs| {
            let backend = Backend::Tap { name: name.into(), vhost: Vhost::Off };
            let config = NetConfig { queue_pairs, ..NetConfig::new(backend) };
            Net::new("net0", &config, events.handle()).err().map(|error| error.to_string())
        };
        let missing = refusal("tap7", 1).unwrap();
        assert!(missing.contains("There is no tap interface `tap7`"), "{missing}");
        assert!(missing.contains("sudo ip tuntap add tap7 mode tap user $USER"), "{missing}");
        let listed = Command::new("ip").arg("link").output().unwrap();
        assert!(!String::from_utf8_lossy(&listed.stdout).contains("tap7"), "it was made");
        let loopback = refusal("lo", 1).unwrap();
        assert!(loopback.contains("`lo` is not a tap interface"), "{loopback}");
        let single = refusal("single", 2).unwrap();
        assert!(single.contains("not a tap for several queues"), "{single}");
        assert!(
            single.contains("sudo ip tuntap add single mode tap user $USER multi_queue"),
            "{single}"
        );
        assert_eq!(refusal("several", 1), None);
        assert_eq!(refusal("several", 3), None);
        let backend = Backend::Tap { name: "busy".into(), vhost: Vhost::Auto };
        let user = Net::new("net0", &NetConfig::new(backend), events.handle()).unwrap();
        let busy = refusal("busy", 1).unwrap();
        assert!(busy.contains("`busy` is in use"), "{busy}");
        drop(user);
        wait_until("the tap is free again", || refusal("busy", 1).is_none());
        for name in ["", "a name", "tap%d", "../tap", "a-name-of-16-char"] {
            let impossible = refusal(name, 1).unwrap();
            assert!(impossible.contains("cannot be the name"), "{impossible}");
        }
    });
}

#[test]
fn a_missing_vhost_net_is_an_error_where_it_is_required() {
    if std::path::Path::new("/dev/vhost-net").exists() {
        eprintln!("skipped: this kernel has vhost-net");
        return;
    }
    in_network(&ONE_TAP, || {
        let events = Loop::start();
        let backend = Backend::Tap { name: "tap0".into(), vhost: Vhost::Required };
        let refused = Net::new("net0", &NetConfig::new(backend), events.handle()).err().unwrap();
        assert!(refused.to_string().contains("sudo modprobe vhost_net"), "{refused}");
    });
}

fn passt_is_here() -> bool {
    let here = Command::new("passt").arg("--version").output().is_ok();
    if !here {
        eprintln!("skipped: passt is not installed");
    }
    here
}

fn user(events: &Loop, forward: &[&str]) -> Arc<Net> {
    let forward = forward.iter().map(|text| text.parse().unwrap()).collect();
    let config = NetConfig {
        mac: Some(MacAddress(GUEST_MAC)),
        queue_size: 64,
        ..NetConfig::new(Backend::User { forward })
    };
    Net::new("net0", &config, events.handle()).unwrap()
}

/// A network with a way out, as passt looks for one: a cable between two interfaces.
const WAY_OUT: [&str; 5] = [
    "link add out type veth peer name far",
    "addr add 10.77.0.2/24 dev out",
    "link set out up",
    "link set far up",
    "route add default via 10.77.0.1 dev out",
];

/// The address that passt offers when the guest asks for one by DHCPDISCOVER (RFC 2131).
fn offered_address(driver: &mut TestDriver, chains: &[Chain]) -> [u8; 4] {
    let mut discover = vec![1, 1, 6, 0, 1, 2, 3, 4];
    discover.resize(28, 0);
    discover.extend(GUEST_MAC);
    discover.resize(236, 0);
    discover.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    discover.resize(300, 0);
    let udp = datagram(68, 67, &discover);
    let request = ipv4(BROADCAST, 17, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp);
    send(driver, TX, &request);
    let is_offer = |frame: &[u8]| {
        frame[12..14] == [8, 0] && frame[23] == 17 && frame[34..38] == [0, 67, 0, 68]
    };
    let (offer, _) = receive_until(driver, RX, chains, is_offer);
    offer[42 + 16..42 + 20].try_into().unwrap()
}

/// A datagram for the gateway's address reaches the host's loopback. Returns the host's socket, and what came.
fn reaches_the_loopback(
    driver: &mut TestDriver,
    chains: &[Chain],
    guest: Ipv4Addr,
    gateway: Ipv4Addr,
) -> (UdpSocket, Vec<u8>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 4001)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    send(driver, TX, &arp(guest, gateway));
    let (reply, _) = receive_until(driver, RX, chains, is_arp_reply);
    let host: [u8; 6] = reply[6..12].try_into().unwrap();
    let payload = frame(6, 700);
    let datagram = datagram(4000, 4001, &payload);
    send(driver, TX, &ipv4(host, 17, guest, gateway, &datagram));
    let mut bytes = [0; 2000];
    let (size, _) = socket.recv_from(&mut bytes).unwrap();
    assert_eq!(bytes[..size], payload);
    (socket, payload)
}

#[test]
fn passt_gives_the_guest_an_address_and_carries_its_traffic() {
    if !passt_is_here() {
        return;
    }
    in_network(&WAY_OUT, || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let events = Loop::start();
        let net = user(&events, &["4010:4000/udp"]);
        net.wait_ready().unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        net.activate(driver.activation(net.features())).unwrap();
        assert_eq!(config::<2>(&net, 10), 65520_u16.to_le_bytes());
        let chains: Vec<_> = (0..60).map(|_| driver.push(RX, &[], &[1536])).collect();
        driver.kick(RX);

        assert_eq!(offered_address(&mut driver, &chains), [10, 77, 0, 2]);
        let (guest, gateway) = (Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 1));
        let (socket, payload) = reaches_the_loopback(&mut driver, &chains, guest, gateway);

        // And a forwarded port leads into the guest.
        socket.send_to(&payload, (Ipv4Addr::LOCALHOST, 4010)).unwrap();
        let forwarded =
            |frame: &[u8]| frame[12..14] == [8, 0] && frame[36..38] == 4000_u16.to_be_bytes();
        let (datagram, _) = receive_until(&mut driver, RX, &chains, forwarded);
        assert_eq!(datagram[42..], payload);
        net.deactivate();
    });
}

#[test]
fn passt_serves_the_guest_of_a_host_without_a_network() {
    if !passt_is_here() {
        return;
    }
    in_network(&["link set lo up"], || {
        let events = Loop::start();
        let net = user(&events, &[]);
        net.wait_ready().unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        net.activate(driver.activation(net.features())).unwrap();
        let chains: Vec<_> = (0..60).map(|_| driver.push(RX, &[], &[1536])).collect();
        driver.kick(RX);
        assert_eq!(offered_address(&mut driver, &chains), [10, 0, 2, 15]);
        let (guest, gateway) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 2));
        reaches_the_loopback(&mut driver, &chains, guest, gateway);
        net.deactivate();
    });
}

#[test]
fn passt_ends_with_the_card_and_its_complaints_are_errors() {
    if !passt_is_here() {
        return;
    }
    in_network(&["link set lo up"], || {
        let events = Loop::start();
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 4010)).unwrap();
        let net = user(&events, &["4010:4000"]);
        let refused = net.wait_ready().unwrap_err().to_string();
        assert!(refused.contains("passt ended: "), "{refused}");
        assert!(refused.contains("4010:4000"), "{refused}");
        assert!(!refused.contains("syslog"), "{refused}");
    });
    in_network(&WAY_OUT, || {
        let events = Loop::start();
        let net = user(&events, &[]);
        net.wait_ready().unwrap();
        let process = net.passt_process().unwrap();
        let is_here = || std::path::Path::new(&format!("/proc/{process}")).exists();
        assert!(is_here());
        drop(net);
        assert!(!is_here());
    });
}

#[test]
fn passt_ends_when_its_socket_closes() {
    if !passt_is_here() {
        return;
    }
    in_network(&WAY_OUT, || {
        // As if the machine's process were killed: nobody kills passt, its socket just closes.
        let (near, far) = UnixStream::pair().unwrap();
        let mut command = Command::new("passt");
        let fd = crate::virtio::net::sys::inherit(&mut command, far.into()).unwrap();
        command.args(crate::virtio::net::passt::arguments(fd, &[], true));
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        drop(command);
        drop(near);
        wait_until("passt ends", || child.try_wait().unwrap().is_some());
    });
}

/// An interrupt by eventfd, as a hypervisor gives it to the kernel.
struct EventInterrupt(EventFd);

impl Interrupt for EventInterrupt {
    fn signal(&self) {
        self.0.write(1).unwrap();
    }

    fn event(&self) -> Option<EventFd> {
        self.0.try_clone().ok()
    }
}

/// Gives the driver's queues interrupts by eventfd, which are returned.
fn with_events(driver: &mut TestDriver) -> Vec<EventFd> {
    let mut events = Vec::new();
    for (index, queue) in (0..).zip(&mut driver.queues) {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let rings = queue.queue.save().queue().unwrap();
        let interrupt = Arc::new(EventInterrupt(event.try_clone().unwrap()));
        queue.queue = Arc::new(VirtQueue::new(index, rings, interrupt).unwrap());
        events.push(event);
    }
    events
}

#[test]
fn the_kernel_carries_the_frames_of_a_tap() {
    if !std::path::Path::new("/dev/vhost-net").exists() {
        eprintln!("skipped: this kernel has no vhost-net");
        return;
    }
    in_network(&ONE_TAP, || {
        let events = Loop::start();
        let backend = Backend::Tap { name: "tap0".into(), vhost: Vhost::Required };
        let mac = Some(MacAddress(GUEST_MAC));
        let config = NetConfig { mac, queue_size: 64, ..NetConfig::new(backend) };
        let net = Net::new("net0", &config, events.handle()).unwrap();
        let mut driver = TestDriver::new(net.queue_sizes().len());
        let interrupts = with_events(&mut driver);
        let features = net.features() & !crate::virtio::VIRTIO_F_EVENT_IDX;
        net.activate(driver.activation(features)).unwrap();
        let chains: Vec<_> = (0..60).map(|_| driver.push(RX, &[], &[1536])).collect();
        driver.kick(RX);
        let host = host_address(&mut driver, &chains);
        let payload = frame(7, 8000);
        send(&mut driver, TX, &echo_request(host, &payload));
        let (reply, count) = receive_until(&mut driver, RX, &chains, is_echo_reply);
        assert!(reply[42..] == payload, "the payload changed");
        assert_eq!(count, 6);
        assert!(interrupts[RX].read().is_ok() && interrupts[TX].read().is_ok());
        assert_eq!(net.statistics(), Default::default(), "the frames came by this process");

        // Paused, the kernel leaves the queues alone, and they know where it stopped.
        let before: Vec<_> = driver.queues.iter().map(|queue| queue.queue.save()).collect();
        assert_eq!(before[TX].next_used, 0);
        net.pause().unwrap();
        let after: Vec<_> = driver.queues.iter().map(|queue| queue.queue.save()).collect();
        assert!(after[TX].next_available >= 2 && after[TX].next_used == after[TX].next_available);
        assert!(after[RX].next_used >= 7);
        let memory = driver.memory.clone();
        assert!(memory.iter().all(|region| region.bitmap().dirty_at(0x80_0000)));
        send(&mut driver, TX, &echo_request(host, &frame(8, 56)));
        events.settle();
        while driver.used(RX).is_some() {}
        while driver.used(TX).is_some() {}
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(driver.used(TX), None);
        net.resume().unwrap();
        driver.wait_used(TX);
        let (reply, _) = receive_until(&mut driver, RX, &chains, is_echo_reply);
        assert_eq!(reply[42..], frame(8, 56));

        // A state taken from the kernel goes on in this process, and the other way round.
        net.pause().unwrap();
        let state = net.save().unwrap();
        let saved: Vec<_> = driver.queues.iter().map(|queue| queue.queue.save()).collect();
        net.deactivate();
        drop(net);
        for (queue, saved) in driver.queues.iter_mut().zip(&saved) {
            let interrupt = Arc::clone(&queue.interrupt) as Arc<dyn Interrupt>;
            let index = queue.queue.index();
            let queue_now = VirtQueue::new(index, saved.queue().unwrap(), interrupt).unwrap();
            queue.queue = Arc::new(queue_now);
        }
        let net = open_again(|| Net::new("net0", &config, events.handle()));
        net.restore(&state).unwrap();
        net.activate(driver.activation(features)).unwrap();
        assert_eq!(host_address(&mut driver, &chains), host);
        events.settle();
        assert!(net.statistics().received_frames > 0);
        net.pause().unwrap();
        net.deactivate();
        with_events(&mut driver);
        net.activate(driver.activation(features)).unwrap();
        assert_eq!(host_address(&mut driver, &chains), host);
        net.deactivate();

        // A ring that the kernel finds broken.
        let mut driver = TestDriver::new(net.queue_sizes().len());
        with_events(&mut driver);
        net.activate(driver.activation(features)).unwrap();
        driver.break_ring(TX);
        driver.kick(TX);
        let signal = Arc::clone(&driver.signal);
        wait_until("a reset is needed", || signal.resets_needed.load(Ordering::SeqCst) == 1);
        net.deactivate();
    });
}
