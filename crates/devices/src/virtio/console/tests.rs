use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::control::{
    CONSOLE_PORT, DEVICE_ADD, DEVICE_READY, Message, PORT_NAME, PORT_OPEN, PORT_READY, RESIZE,
};
use super::{Console, ConsolePort, INPUT_LIMIT, OUTPUT_LIMIT};
use crate::virtio::VirtioDevice;
use crate::virtio::hostile::{self, Loop};
use crate::virtio::testing::{RawDescriptor, TestDriver};

const MULTIPORT: u64 = 1 << 1;

/// Output that a test can look at, and that it can hold up.
#[derive(Clone)]
struct Screen {
    bytes: Arc<Mutex<Vec<u8>>>,
    gate: Arc<Mutex<Option<Receiver<()>>>>,
}

impl Screen {
    fn new() -> Self {
        Self { bytes: Arc::default(), gate: Arc::default() }
    }

    /// A screen that shows nothing before the sender is dropped.
    fn held() -> (Self, SyncSender<()>) {
        let (sender, receiver) = sync_channel(0);
        (Self { bytes: Arc::default(), gate: Arc::new(Mutex::new(Some(receiver))) }, sender)
    }

    fn wait_for(&self, length: usize) -> Vec<u8> {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let bytes = self.bytes.lock().unwrap().clone();
            if bytes.len() >= length {
                return bytes;
            }
            assert!(std::time::Instant::now() < deadline, "only {} bytes came", bytes.len());
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(gate) = &*self.gate.lock().unwrap() {
            let _ = gate.recv();
        }
        self.bytes.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn port(name: Option<&str>, screen: &Screen) -> ConsolePort {
    ConsolePort { name: name.map(str::to_owned), output: Box::new(screen.clone()), input: None }
}

fn single(screen: &Screen, events: &Loop) -> Console {
    Console::new("console", vec![port(None, screen)], events.handle()).unwrap()
}

#[test]
fn the_guest_writes_and_reads() {
    let (screen, events) = (Screen::new(), Loop::start());
    let console = single(&screen, &events);
    let mut driver = TestDriver::new(2);
    console.activate(driver.activation(console.features())).unwrap();
    let chain = driver.push(1, &[b"hello ", b"host"], &[]);
    driver.kick(1);
    assert_eq!(driver.wait_used(1), (chain.head, 0));
    assert_eq!(screen.wait_for(10), b"hello host");
    // Input that comes before a buffer waits for one, and fills as many as it needs.
    assert_eq!(console.receive(0, b"hello guest"), 11);
    let chain = driver.push(0, &[], &[4, 4]);
    driver.push(0, &[], &[100]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (chain.head, 8));
    assert_eq!(driver.read(chain.writable[0].0, 4), b"hell");
    assert_eq!(driver.read(chain.writable[1].0, 4), b"o gu");
    assert_eq!(driver.wait_used(0).1, 3);
}

#[test]
fn input_is_bounded_and_asked_for_again() {
    let (screen, events) = (Screen::new(), Loop::start());
    let console = single(&screen, &events);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    console.set_input_ready_callback(
        0,
        Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }),
    );
    assert_eq!(console.receive(0, &vec![b'x'; INPUT_LIMIT + 5]), INPUT_LIMIT);
    assert_eq!(console.receive(0, b"y"), 0);
    assert_eq!(console.receive(1, b"y"), 0);
    let mut driver = TestDriver::new(2);
    console.activate(driver.activation(console.features())).unwrap();
    driver.push(0, &[], &[64]);
    driver.kick(0);
    driver.wait_used(0);
    events.settle();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(console.receive(0, b"y"), 1);
}

#[test]
fn input_comes_from_a_descriptor_too() {
    let (screen, events) = (Screen::new(), Loop::start());
    let (theirs, mut ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let port = ConsolePort { input: Some(theirs.into()), ..port(None, &screen) };
    let console = Console::new("console", vec![port], events.handle()).unwrap();
    let mut driver = TestDriver::new(2);
    console.activate(driver.activation(console.features())).unwrap();
    // More than is held, then the end: all of it arrives.
    let bytes: Vec<u8> = (0..2 * INPUT_LIMIT).map(|index| (index % 251) as u8).collect();
    let writer = {
        let bytes = bytes.clone();
        std::thread::spawn(move || ours.write_all(&bytes).unwrap())
    };
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        let chain = driver.push(0, &[], &[4096]);
        driver.kick(0);
        let (_, written) = driver.wait_used(0);
        received.extend(driver.read(chain.writable[0].0, written as usize));
    }
    writer.join().unwrap();
    assert_eq!(received, bytes);
    driver.push(0, &[], &[16]);
    driver.kick(0);
    events.settle();
    assert_eq!(driver.used(0), None);
}

#[test]
fn a_guest_that_writes_faster_than_the_host_waits() {
    let (screen, gate) = Screen::held();
    let events = Loop::start();
    let console = single(&screen, &events);
    let mut driver = TestDriver::new(2);
    console.activate(driver.activation(console.features())).unwrap();
    let bytes: Vec<u8> = (0..3 * OUTPUT_LIMIT).map(|index| (index % 251) as u8).collect();
    let chain = driver.push(1, &[b"a", &bytes], &[]);
    driver.kick(1);
    events.settle();
    assert_eq!(driver.used(1), None);
    drop(gate);
    assert_eq!(driver.wait_used(1), (chain.head, 0));
    let shown = screen.wait_for(bytes.len() + 1);
    assert_eq!(shown[0], b'a');
    assert_eq!(shown[1..], bytes);
}

#[test]
fn a_host_that_reads_no_more_does_not_stop_the_guest() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let events = Loop::start();
    let port = ConsolePort { name: None, output: Box::new(Broken), input: None };
    let console = Console::new("console", vec![port], events.handle()).unwrap();
    let mut driver = TestDriver::new(2);
    console.activate(driver.activation(console.features())).unwrap();
    for _ in 0..8 {
        driver.push(1, &[&vec![0; OUTPUT_LIMIT]], &[]);
        driver.kick(1);
        driver.wait_used(1);
    }
}

#[test]
fn a_new_size_is_told() {
    let (screen, events) = (Screen::new(), Loop::start());
    let console = single(&screen, &events);
    let driver = TestDriver::new(2);
    console.activate(driver.activation(console.features())).unwrap();
    let mut config = [0; 4];
    console.read_config(0, &mut config);
    assert_eq!(config, [80, 0, 25, 0]);
    console.resize(300, 50);
    console.resize(300, 50);
    console.read_config(0, &mut config);
    assert_eq!(config, [44, 1, 50, 0]);
    assert_eq!(driver.signal.config_changes.load(Ordering::SeqCst), 1);
}

#[test]
fn an_emergency_write_needs_no_driver() {
    let (screen, events) = (Screen::new(), Loop::start());
    let console = single(&screen, &events);
    console.write_config(8, &[b'!', 0, 0, 0]);
    assert_eq!(screen.wait_for(1), b"!");
}

#[test]
fn ports_have_names_and_are_open_or_not() {
    let (screen, agent, events) = (Screen::new(), Screen::new(), Loop::start());
    let ports = vec![port(None, &screen), port(Some("omnivisor.agent"), &agent)];
    let console = Console::new("console", ports, events.handle()).unwrap();
    assert_eq!(console.queue_sizes().len(), 6);
    assert_ne!(console.features() & MULTIPORT, 0);
    let mut driver = TestDriver::new(6);
    console.activate(driver.activation(console.features())).unwrap();
    let tell = |driver: &mut TestDriver, id, event| {
        driver.push(3, &[&Message::new(id, event, 1).bytes(&[])], &[]);
        driver.kick(3);
        driver.wait_used(3);
    };
    let hear = |driver: &mut TestDriver| {
        let chain = driver.push(2, &[], &[64]);
        driver.kick(2);
        let (_, written) = driver.wait_used(2);
        driver.read(chain.writable[0].0, written as usize)
    };
    tell(&mut driver, u32::MAX, DEVICE_READY);
    assert_eq!(hear(&mut driver), Message::new(0, DEVICE_ADD, 0).bytes(&[]));
    assert_eq!(hear(&mut driver), Message::new(1, DEVICE_ADD, 0).bytes(&[]));
    tell(&mut driver, 0, PORT_READY);
    assert_eq!(hear(&mut driver), Message::new(0, CONSOLE_PORT, 1).bytes(&[]));
    assert_eq!(hear(&mut driver), Message::new(0, RESIZE, 1).bytes(&[80, 0, 25, 0]));
    assert_eq!(hear(&mut driver), Message::new(0, PORT_OPEN, 1).bytes(&[]));
    tell(&mut driver, 1, PORT_READY);
    assert_eq!(hear(&mut driver), Message::new(1, PORT_NAME, 1).bytes(b"omnivisor.agent"));
    assert_eq!(hear(&mut driver), Message::new(1, PORT_OPEN, 1).bytes(&[]));
    tell(&mut driver, 77, PORT_READY);

    // Until a program opens the port, its input waits.
    assert_eq!(console.receive(1, b"run"), 3);
    let chain = driver.push(4, &[], &[16]);
    driver.kick(4);
    events.settle();
    assert_eq!(driver.used(4), None);
    tell(&mut driver, 1, PORT_OPEN);
    assert_eq!(driver.wait_used(4), (chain.head, 3));
    driver.push(5, &[b"done"], &[]);
    driver.kick(5);
    driver.wait_used(5);
    assert_eq!(agent.wait_for(4), b"done");
    assert!(screen.bytes.lock().unwrap().is_empty());

    console.resize(1, 2);
    console.resize(100, 40);
    assert_eq!(hear(&mut driver), Message::new(0, RESIZE, 1).bytes(&[100, 0, 40, 0]));
}

#[test]
fn a_guest_that_takes_no_answers_is_not_served_further() {
    let (screen, events) = (Screen::new(), Loop::start());
    let ports = (0..4).map(|_| port(Some("p"), &screen)).collect();
    let console = Console::new("console", ports, events.handle()).unwrap();
    let mut driver = TestDriver::new(console.queue_sizes().len());
    console.activate(driver.activation(console.features())).unwrap();
    let ready = Message::new(0, DEVICE_READY, 1).bytes(&[]);
    for _ in 0..60 {
        driver.push(3, &[&ready], &[]);
    }
    driver.kick(3);
    events.settle();
    let served = std::iter::from_fn(|| driver.used(3)).count();
    assert!(served < 60, "{served}");
    // Answers make room for more.
    for _ in 0..50 {
        driver.push(2, &[], &[16]);
        driver.kick(2);
        driver.wait_used(2);
    }
    driver.wait_used(3);
}

#[test]
fn what_waits_on_both_sides_survives_a_restore() {
    let (screen, gate) = Screen::held();
    let events = Loop::start();
    let console = single(&screen, &events);
    let mut driver = TestDriver::new(2);
    console.activate(driver.activation(console.features())).unwrap();
    let bytes: Vec<u8> = (0..3 * OUTPUT_LIMIT).map(|index| (index % 241) as u8).collect();
    // The thread takes the first byte and is held up with it.
    driver.push(1, &[b"."], &[]);
    driver.kick(1);
    driver.wait_used(1);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while console.save().unwrap().0["ports"][0]["output"].as_array().is_none_or(|o| !o.is_empty()) {
        assert!(std::time::Instant::now() < deadline, "the thread takes nothing");
        std::thread::yield_now();
    }
    let chain = driver.push(1, &[&bytes], &[]);
    driver.kick(1);
    events.settle();
    console.receive(0, b"typed");
    console.pause().unwrap();
    let state = console.save().unwrap();
    console.deactivate();

    let shown = Screen::new();
    let restored = single(&shown, &events);
    restored.restore(&state).unwrap();
    restored.activate(driver.activation(restored.features())).unwrap();
    restored.resume().unwrap();
    assert_eq!(driver.wait_used(1), (chain.head, 0));
    assert_eq!(shown.wait_for(bytes.len()), bytes);
    let chain = driver.push(0, &[], &[16]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (chain.head, 5));
    assert_eq!(driver.read(chain.writable[0].0, 5), b"typed");
    drop(gate);
}

#[test]
fn a_state_of_another_console_is_refused() {
    let (screen, events) = (Screen::new(), Loop::start());
    let console = single(&screen, &events);
    let mut state = console.save().unwrap();
    state.0["ports"][0]["input"] = vec![0u8; INPUT_LIMIT + 1].into();
    assert!(console.restore(&state).is_err());
    state.0["ports"] = serde_json::json!([]);
    assert!(console.restore(&state).is_err());
}

#[test]
fn the_last_words_are_written_when_the_device_ends() {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let events = Loop::start();
    let port = ConsolePort { name: None, output: Box::new(theirs), input: None };
    let console = Console::new("console", vec![port], events.handle()).unwrap();
    console.write_config(8, b"x");
    drop(console);
    let mut bytes = Vec::new();
    ours.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"x");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_chain_is_survived(chains in hostile::chains(6)) {
        let (screen, events) = (Screen::new(), Loop::start());
        let ports = vec![port(None, &screen), port(Some("other"), &screen)];
        let console = Console::new("console", ports, events.handle()).unwrap();
        console.receive(0, b"typed");
        console.receive(1, b"sent");
        hostile::attack(&console, &events, chains);
    }

    #[test]
    fn any_control_message_is_survived(
        messages in prop::collection::vec((0u32..4, 0u16..9, 0u16..3), 1..30)
    ) {
        let (screen, events) = (Screen::new(), Loop::start());
        let ports = vec![port(None, &screen), port(Some("other"), &screen)];
        let console = Console::new("console", ports, events.handle()).unwrap();
        let mut driver = TestDriver::new(6);
        console.activate(driver.activation(console.features())).unwrap();
        for (id, event, value) in messages {
            driver.push(3, &[&Message::new(id, event, value).bytes(&[])], &[]);
            driver.push_raw(2, &[RawDescriptor { address: 0x10_0000, length: 64, flags: 2, next: 0 }]);
            driver.kick(3);
            events.settle();
        }
        prop_assert_eq!(driver.signal.resets_needed.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
        super::fuzz(&bytes);
    }
}
