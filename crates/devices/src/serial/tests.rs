use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;

use super::uart::{
    LINE_DATA_READY, LINE_TRANSMITTER_EMPTY, RECEIVE_FIFO, RECEIVED, TRANSMITTER_EMPTY,
};
use super::*;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

#[derive(Default)]
struct Count(AtomicU32);

impl Interrupt for Count {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets one write through for each message.
struct Gate(Receiver<()>, Screen);

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.recv().map_err(io::Error::other)?;
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Would block every other time, and takes little.
struct Reluctant(bool, Screen);

impl Write for Reluctant {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = !self.0;
        if self.0 {
            Err(ErrorKind::WouldBlock.into())
        } else {
            self.1.write(&bytes[..bytes.len().min(3)])
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn serial() -> (Serial, Arc<Count>, Screen) {
    let screen = Screen::default();
    let (serial, interrupts) = serial_with(Box::new(screen.clone()));
    (serial, interrupts, screen)
}

fn serial_with(output: Box<dyn Write + Send>) -> (Serial, Arc<Count>) {
    let interrupts = Arc::new(Count::default());
    (Serial::new("serial0", Arc::clone(&interrupts) as _, output), interrupts)
}

fn gated() -> (Serial, Arc<Count>, Screen, Sender<()>) {
    let (sender, receiver) = channel();
    let screen = Screen::default();
    let (serial, interrupts) = serial_with(Box::new(Gate(receiver, screen.clone())));
    (serial, interrupts, screen, sender)
}

fn get(serial: &Serial, offset: u64) -> u8 {
    let mut data = [0];
    serial.read(offset, &mut data);
    data[0]
}

fn put(serial: &Serial, offset: u64, byte: u8) {
    serial.write(offset, &[byte]);
}

/// As an open port of Linux stands.
fn open(serial: &Serial) {
    put(serial, FCR, 0x07);
    put(serial, LCR, 0x03);
    put(serial, MCR, 0x0b);
    put(serial, IER, 0x05);
    get(serial, IIR);
}

#[test]
fn linux_finds_a_16550a() {
    // The steps of autoconfig() and autoconfig_16550a() in drivers/tty/serial/8250/8250_port.c.
    let (serial, _, screen) = serial();
    put(&serial, IER, 0);
    assert_eq!(get(&serial, IER) & 0x0f, 0);
    put(&serial, IER, 0x0f);
    assert_eq!(get(&serial, IER) & 0x0f, 0x0f);
    put(&serial, IER, 0);
    let mcr = get(&serial, MCR);
    put(&serial, MCR, 0x1a);
    assert_eq!(get(&serial, MSR) & 0xf0, 0x90, "loopback of the modem lines");
    put(&serial, MCR, mcr);
    put(&serial, LCR, 0xbf);
    put(&serial, 2, 0);
    put(&serial, LCR, 0);
    put(&serial, FCR, 0x01);
    assert_eq!(get(&serial, IIR) >> 6, 3, "FIFOs that work");
    put(&serial, LCR, 0x80);
    assert_ne!(get(&serial, 2), 0, "no 16650");
    put(&serial, LCR, 0xbf);
    assert_ne!(get(&serial, 2), 0, "no 16650V2");
    put(&serial, LCR, 0);
    put(&serial, IER, 0x40);
    assert_eq!(get(&serial, IER) & 0x40, 0, "no XScale");
    // size_fifo(): a 16550A has 16 bytes.
    put(&serial, FCR, 0x07);
    put(&serial, MCR, 0x10);
    for byte in 0..=255 {
        put(&serial, DATA, byte);
    }
    let mut count = 0;
    while get(&serial, LSR) & LINE_DATA_READY != 0 {
        assert_eq!(get(&serial, DATA), count);
        count += 1;
    }
    assert_eq!(count, 16);
    serial.stop();
    assert!(lock(&screen.0).is_empty());
}

#[test]
fn enabling_the_transmitter_interrupt_raises_it_every_time() {
    // The test for UART_BUG_THRE in serial8250_do_startup().
    let (serial, interrupts, _) = serial();
    for raised in 1..=2 {
        put(&serial, IER, TRANSMITTER_EMPTY);
        assert_eq!(interrupts.0.load(Ordering::SeqCst), raised);
        assert_eq!(get(&serial, IIR), 0x02);
        assert_eq!(get(&serial, IIR), 0x01);
        put(&serial, IER, 0);
    }
}

#[test]
fn a_burst_of_output_interrupts_once() {
    let (serial, interrupts, screen) = serial();
    put(&serial, IER, TRANSMITTER_EMPTY);
    get(&serial, IIR);
    let before = interrupts.0.load(Ordering::SeqCst);
    for byte in b"sixteen bytes ..." {
        put(&serial, DATA, *byte);
    }
    assert_eq!(interrupts.0.load(Ordering::SeqCst), before + 1);
    serial.stop();
    assert_eq!(*lock(&screen.0), b"sixteen bytes ...");
}

#[test]
fn output_arrives_in_order_from_a_started_port() {
    let (serial, _, screen) = serial();
    serial.start().unwrap();
    let text: Vec<u8> = (0..OUTPUT_LIMIT / 2).map(|index| index as u8).collect();
    for byte in &text {
        put(&serial, DATA, *byte);
    }
    serial.stop();
    assert_eq!(*lock(&screen.0), text);
}

#[test]
fn an_output_that_stands_still_stalls_the_transmitter_and_not_the_guest() {
    let (serial, interrupts, screen, gate) = gated();
    serial.start().unwrap();
    put(&serial, IER, TRANSMITTER_EMPTY);
    get(&serial, IIR);
    let mut sent = 0;
    while get(&serial, LSR) & LINE_TRANSMITTER_EMPTY != 0 {
        put(&serial, DATA, b'x');
        sent += 1;
        assert!(sent <= 2 * OUTPUT_LIMIT);
    }
    assert_eq!(get(&serial, IIR), 0x01, "nothing to tell");
    put(&serial, DATA, b'y');
    let before = interrupts.0.load(Ordering::SeqCst);
    gate.send(()).unwrap();
    gate.send(()).unwrap();
    while interrupts.0.load(Ordering::SeqCst) == before {
        std::thread::yield_now();
    }
    assert_eq!(get(&serial, LSR) & LINE_TRANSMITTER_EMPTY, LINE_TRANSMITTER_EMPTY);
    assert_eq!(get(&serial, IIR), 0x02);
    put(&serial, DATA, b'z');
    for _ in 0..3 {
        let _ = gate.send(());
    }
    serial.stop();
    let screen = lock(&screen.0);
    assert_eq!(screen.len(), sent + 1, "the byte sent to a full transmitter is lost");
    assert_eq!(screen.last(), Some(&b'z'));
}

#[test]
fn stop_leaves_an_output_that_never_moves() {
    let (serial, _, screen, _gate) = gated();
    serial.start().unwrap();
    put(&serial, DATA, b'x');
    serial.stop();
    assert!(lock(&screen.0).is_empty());
}

#[test]
fn an_output_that_would_block_is_tried_again() {
    let screen = Screen::default();
    let (serial, _) = serial_with(Box::new(Reluctant(false, screen.clone())));
    serial.start().unwrap();
    serial.write(DATA, b"a");
    for byte in b"bcdefgh\n" {
        put(&serial, DATA, *byte);
    }
    serial.stop();
    assert_eq!(*lock(&screen.0), b"abcdefgh\n");
}

#[test]
fn a_broken_output_swallows_what_follows() {
    let (serial, _, _, gate) = gated();
    drop(gate);
    serial.start().unwrap();
    put(&serial, DATA, b'x');
    while !serial.shared.lock().failed {
        std::thread::yield_now();
    }
    for _ in 0..2 * OUTPUT_LIMIT {
        put(&serial, DATA, b'x');
    }
    assert_eq!(get(&serial, LSR), LINE_TRANSMITTER_EMPTY);
    assert!(serial.shared.lock().output.is_empty());
}

#[test]
fn input_interrupts_and_is_read_until_none_is_left() {
    let (serial, interrupts, _) = serial();
    open(&serial);
    assert_eq!(get(&serial, LSR) & LINE_DATA_READY, 0);
    assert_eq!(serial.receive(b"ls\r"), 3);
    assert_eq!(interrupts.0.load(Ordering::SeqCst), 1);
    assert_eq!(get(&serial, IIR), 0xc4);
    let mut read = Vec::new();
    while get(&serial, LSR) & LINE_DATA_READY != 0 {
        read.push(get(&serial, DATA));
    }
    assert_eq!(read, b"ls\r");
    assert_eq!(get(&serial, IIR), 0xc1);
}

#[test]
fn a_full_fifo_refuses_and_calls_back_when_it_is_read() {
    let (serial, _, _) = serial();
    let calls = Arc::new(Count::default());
    let callback = Arc::clone(&calls);
    serial.set_input_ready_callback(Arc::new(move || callback.signal()));
    open(&serial);
    assert_eq!(serial.receive(&[b'x'; 100]), RECEIVE_FIFO);
    for _ in 1..RECEIVE_FIFO {
        get(&serial, DATA);
    }
    assert_eq!(calls.0.load(Ordering::SeqCst), 0);
    get(&serial, DATA);
    assert_eq!(calls.0.load(Ordering::SeqCst), 1);
    get(&serial, DATA);
    assert_eq!(calls.0.load(Ordering::SeqCst), 1, "once");
    assert_eq!(serial.receive(b"y"), 1);
}

#[test]
fn input_waits_until_the_guest_listens() {
    let (serial, interrupts, _) = serial();
    let calls = Arc::new(Count::default());
    let callback = Arc::clone(&calls);
    serial.set_input_ready_callback(Arc::new(move || callback.signal()));
    assert_eq!(serial.receive(b"typed ahead"), 0);
    put(&serial, MCR, 0x10);
    put(&serial, IER, RECEIVED);
    assert_eq!(serial.receive(b"typed ahead"), 0, "not into a loopback test");
    put(&serial, IER, 0);
    open(&serial);
    assert_eq!(calls.0.load(Ordering::SeqCst), 1);
    assert_eq!(interrupts.0.load(Ordering::SeqCst), 1, "to come and look");
    assert_eq!(serial.receive(b"typed ahead"), 11);
    assert_eq!(interrupts.0.load(Ordering::SeqCst), 2);
}

#[test]
fn nothing_typed_is_lost_while_linux_finds_and_opens_the_port() {
    let (serial, interrupts, _) = serial();
    let serial = Arc::new(serial);
    let typed = Arc::new(Mutex::new(b"typed ahead".to_vec()));
    let deliver = {
        let (serial, typed) = (Arc::downgrade(&serial), Arc::clone(&typed));
        move || {
            let (Some(serial), mut typed) = (serial.upgrade(), lock(&typed)) else { return };
            let count = serial.receive(&typed);
            typed.drain(..count);
        }
    };
    serial.set_input_ready_callback(Arc::new(deliver.clone()));
    deliver();
    // autoconfig(): all interrupts for a moment.
    put(&serial, IER, 0x0f);
    get(&serial, IER);
    put(&serial, IER, 0);
    // serial8250_do_startup().
    for fifo_control in [0x01, 0x07, 0x00] {
        put(&serial, FCR, fifo_control);
    }
    for register in [LSR, DATA, IIR, MSR] {
        get(&serial, register);
    }
    // serial8250_do_set_termios(): the interrupt before the FIFOs.
    put(&serial, IER, 0x05);
    put(&serial, LCR, 0x13);
    put(&serial, FCR, 0x01);
    put(&serial, FCR, 0x81);
    assert_eq!(lock(&typed).len(), 11, "nothing was given to a port that is not open yet");
    assert_ne!(interrupts.0.load(Ordering::SeqCst), 0);
    // The interrupt's handler looks until nothing is left.
    get(&serial, IIR);
    let mut read = Vec::new();
    while get(&serial, IIR) & 1 == 0 {
        while get(&serial, LSR) & LINE_DATA_READY != 0 {
            read.push(get(&serial, DATA));
        }
    }
    assert_eq!(read, b"typed ahead");
}

#[test]
fn a_driver_that_polls_gets_byte_after_byte() {
    let (serial, interrupts, _) = serial();
    let mut typed = b"boot\r".iter();
    let mut next = typed.next();
    let mut read = Vec::new();
    for _ in 0..1000 {
        if let Some(byte) = next
            && serial.receive(&[*byte]) == 1
        {
            next = typed.next();
        }
        if get(&serial, LSR) & LINE_DATA_READY != 0 {
            read.push(get(&serial, DATA));
        }
    }
    assert_eq!(read, b"boot\r");
    assert_eq!(interrupts.0.load(Ordering::SeqCst), 0);
}

#[test]
fn a_port_restored_in_the_middle_of_a_conversation_goes_on() {
    let (serial, _, _) = serial();
    open(&serial);
    put(&serial, 7, 0x5a);
    put(&serial, LCR, 0x83);
    serial.write(DATA, &[0x34]);
    serial.write(IER, &[0x12]);
    put(&serial, LCR, 0x03);
    serial.receive(b"half a line");
    assert_eq!(get(&serial, DATA), b'h');
    serial.pause().unwrap();
    let state = serial.save().unwrap();

    let (restored, interrupts, _) = self::serial();
    restored.restore(&state).unwrap();
    restored.start().unwrap();
    assert_eq!(interrupts.0.load(Ordering::SeqCst), 1, "input that waits is told again");
    assert_eq!(restored.save().unwrap(), state);
    let mut line = Vec::new();
    while get(&restored, LSR) & LINE_DATA_READY != 0 {
        line.push(get(&restored, DATA));
    }
    assert_eq!(line, b"alf a line");
    assert_eq!(get(&restored, 7), 0x5a);
    put(&restored, LCR, 0x83);
    assert_eq!([get(&restored, 0), get(&restored, 1)], [0x34, 0x12]);
}

#[test]
fn a_stalled_transmitter_is_empty_elsewhere() {
    let (serial, _, _, _gate) = gated();
    put(&serial, IER, TRANSMITTER_EMPTY);
    for _ in 0..OUTPUT_LIMIT {
        put(&serial, DATA, b'x');
    }
    assert_eq!(get(&serial, LSR), 0);
    let (restored, interrupts, _) = self::serial();
    restored.restore(&serial.save().unwrap()).unwrap();
    restored.resume().unwrap();
    assert_eq!(interrupts.0.load(Ordering::SeqCst), 1);
    assert_eq!(get(&restored, LSR), LINE_TRANSMITTER_EMPTY);
    // Nobody will open the gate.
    drop(lock(&serial.output).take());
}

#[test]
fn a_state_with_too_much_input_is_refused() {
    let (serial, _, _) = serial();
    let mut state = serial.save().unwrap();
    state.0["received"] = serde_json::json!(vec![0; RECEIVE_FIFO + 1]);
    assert!(matches!(serial.restore(&state), Err(Error::InvalidState(_))));
    state.0["received"] = serde_json::json!([256]);
    assert!(matches!(serial.restore(&state), Err(Error::State { .. })));
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Receive(Vec<u8>),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = || prop_oneof![8 => 0..8u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    prop_oneof![
        4 => (offset(), 1..9usize).prop_map(|(offset, length)| Step::Read(offset, length)),
        8 => (offset(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(offset, data)| Step::Write(offset, data)),
        2 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Receive),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_survived_and_saved(steps in prop::collection::vec(step(), 0..100)) {
        let (serial, _, _) = serial();
        for step in steps {
            match step {
                Step::Read(offset, length) => serial.read(offset, &mut vec![0; length]),
                Step::Write(offset, data) => serial.write(offset, &data),
                Step::Receive(bytes) => {
                    let count = serial.receive(&bytes);
                    prop_assert!(count <= bytes.len().min(RECEIVE_FIFO));
                }
                Step::Reset => serial.reset().unwrap(),
            }
        }
        let state = serial.save().unwrap();
        let (restored, _, _) = self::serial();
        restored.restore(&state).unwrap();
        prop_assert_eq!(restored.save().unwrap(), state);
    }
}
