//! The power button, pressed on a running machine.

use std::io::Write;
use std::time::{Duration, Instant};

use engine_soft::SoftEngine;
use machine::boot::BootPlan;
use machine::memory::MemoryConfig;
use machine::{Config, Machine, Outcome};

const DEADLINE: Duration = Duration::from_secs(60);

/// Enables the button's event in PM1 enable (port 0x602), polls PM1 status (0x600) until it is pressed, and enters
/// S5 by PM1 control (0x604).
#[rustfmt::skip]
const LISTENS: &[u8] = &[
    0x66, 0xba, 0x02, 0x06, // mov dx, 0x602
    0x66, 0xb8, 0x00, 0x01, // mov ax, 1 << 8
    0x66, 0xef,             // out dx, ax
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0x66, 0xed,             // in ax, dx
    0xf6, 0xc4, 0x01,       // test ah, 1
    0x74, 0xf9,             // jz to the in
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34, // mov ax, 5 << 10 | 1 << 13
    0x66, 0xef,             // out dx, ax
    0xf4, 0xeb, 0xfd,       // hlt, again and again
];

/// Does nothing.
const DEAF: &[u8] = &[0xf4, 0xeb, 0xfd];

#[test]
fn a_guest_that_listens_powers_off() {
    let (_kernel, machine) = machine(LISTENS);
    let control = machine.control();
    let running = std::thread::spawn(move || machine.run().unwrap());
    let start = Instant::now();
    while !control.press_power_button() {
        assert!(start.elapsed() < DEADLINE, "the guest never listens");
        std::thread::yield_now();
    }
    assert_eq!(running.join().unwrap().outcome, Outcome::PowerOff);
}

#[test]
fn a_guest_that_does_not_listen_is_told_from_one_that_does() {
    let (_kernel, machine) = machine(DEAF);
    let control = machine.control();
    let running = std::thread::spawn(move || machine.run().unwrap());
    assert!(!control.press_power_button());
    control.stop();
    assert_eq!(running.join().unwrap().outcome, Outcome::Stopped);
}

/// A machine whose kernel, an ELF file with one segment, is `code`.
fn machine(code: &[u8]) -> (tempfile::NamedTempFile, Machine) {
    const ADDRESS: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    // An executable for x86-64.
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    [ADDRESS, 64, 0].iter().for_each(|field| image.extend(field.to_le_bytes()));
    // Sizes and numbers of headers: one for the program.
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // To be loaded; readable and executable.
    image.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = code.len() as u64;
    let segment = [HEADERS, ADDRESS, ADDRESS, length, length, 0x1000];
    segment.iter().for_each(|field| image.extend(field.to_le_bytes()));
    image.extend(code);
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&image).unwrap();
    let boot = BootPlan {
        kernel: kernel.path().into(),
        kernel_is_immutable: false,
        initrd: None,
        cmdline: String::new(),
    };
    let memory = MemoryConfig { size: 32 << 20, hugepages: false, prealloc: false, shared: false };
    let config = Config {
        cpus: spec::Topology::cores(1),
        memory,
        smbios: spec::Smbios::default(),
        boot,
        offered: None,
    };
    (kernel, Machine::new(&SoftEngine::new(), &config, |_| Ok(())).unwrap())
}
