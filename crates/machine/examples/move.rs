//! Boots Linux and moves it from engine to engine while it works:
//! `move KERNEL INITRD CMDLINE FOLDER CPUS ENGINE...`, where an engine is `kvm` or `soft`, and CPUS is as after `--cpus`.
//!
//! The guest, which must have a shell on its serial console, counts and writes a disk. After each few lines it is
//! suspended, written into FOLDER, and goes on from there on the next engine. In the end no line may be
//! missing or twice, on the console or on the disk.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::{Capabilities, Engine};
use engine_kvm::KvmEngine;
use engine_soft::SoftEngine;
use machine::boot::BootPlan;
use machine::disks::{self, State};
use machine::memory::MemoryConfig;
use machine::{Board, Config, Control, Finished, Machine, Outcome, Saved};
use spec::{Cpus, VmSpec};

/// For each way on a computer that is busy with much else.
const DEADLINE: Duration = Duration::from_secs(300);
/// The guest counts so far on each engine.
const LINES: usize = 4;
/// Bytes of a line on the disk.
const LINE: usize = 512;

/// What the guest has printed.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        std::io::stderr().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Console {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn wait(&self, what: &str, is_there: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !is_there(&self.text()) {
            assert!(begun.elapsed() < DEADLINE, "{what} never came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn counted(&self) -> Vec<usize> {
        let text = self.text();
        let words = text.lines().filter_map(|line| line.trim().strip_prefix("counted "));
        words.filter_map(|number| number.parse().ok()).collect()
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, cmdline, folder, cpus, names @ ..] = args.as_slice() else {
        panic!("usage: move KERNEL INITRD CMDLINE FOLDER CPUS ENGINE...");
    };
    let folder = Path::new(folder);
    let engines: Vec<Box<dyn Engine>> = names.iter().map(|name| engine(name)).collect();
    let offered = engines.iter().map(|engine| engine.capabilities().clone());
    let offered = offered.reduce(|a, b| Capabilities::common(&a, &b)).expect("an engine");
    let memory = MemoryConfig { size: 128 << 20, hugepages: false, prealloc: false, shared: false };
    let boot = BootPlan {
        kernel: kernel.into(),
        kernel_is_immutable: false,
        initrd: Some(initrd.into()),
        cmdline: cmdline.clone(),
    };
    let cpus: Cpus = cpus.parse().expect("processors");
    let cpus = cpus.topology().expect("a division that fits");
    let config =
        Config { cpus, memory, smbios: spec::Smbios::default(), boot, offered: Some(offered) };

    let disk = folder.join("disk");
    let last = LINES * engines.len();
    std::fs::write(&disk, vec![0; ((last + 2) * LINE).next_multiple_of(1 << 20)]).expect("a disk");
    let spec = spec(&disk);
    let disks = disks::open_disks(
        &spec.disks,
        &State { folder: folder.join("state"), vm: "move".into(), cache: None },
    )
    .expect("an open disk");
    let console = Console::default();
    let mut saved: Option<Saved> = None;
    for (turn, (engine, name)) in (1..).zip(engines.iter().zip(names)) {
        let mut serial = None;
        let plug = |board: &mut Board| {
            machine::plug(board, &spec, &disks)?;
            serial = Some(board.plug_serial(Box::new(console.clone())));
            Ok(())
        };
        let machine = match saved.take() {
            None => Machine::new(&**engine, &config, plug),
            Some(saved) => Machine::restore(&**engine, saved, plug),
        }
        .expect("a machine");
        let control = machine.control();
        let running = std::thread::spawn(move || machine.run().expect("a run"));
        if turn == 1 {
            console.wait("the prompt", |text| text.contains(":~# "));
            type_in(&work(last), |bytes| serial.as_ref().expect("a serial port").receive(bytes));
        }
        let finished = if turn < engines.len() {
            suspend_at(&console, LINES * turn, &control, running)
        } else {
            running.join().expect("a machine's thread")
        };
        eprintln!("\n{name}: {:?} after {} lines", finished.outcome, console.counted().len());
        if let Some(state) = finished.saved {
            state.write(folder).expect("a saved machine");
            saved = Some(Saved::read(folder, &memory).expect("the saved machine"));
        } else {
            assert_eq!(finished.outcome, Outcome::PowerOff);
        }
    }
    assert_eq!(console.counted(), (1..=last).collect::<Vec<_>>());
    drop(disks);
    let bytes = std::fs::read(&disk).expect("the disk");
    for number in 1..=last {
        let line = &bytes[number * LINE..][..LINE];
        assert!(line.starts_with(format!("line {number}\n").as_bytes()), "line {number} is lost");
    }
    println!("moved {}, {last} lines on the console and on the disk", names.join(" -> "));
}

fn engine(name: &str) -> Box<dyn Engine> {
    match name {
        "kvm" => Box::new(KvmEngine::new().expect("KVM")),
        "soft" => Box::new(SoftEngine::new()),
        other => panic!("there is no engine {other}"),
    }
}

fn spec(disk: &Path) -> VmSpec {
    let text = format!("[[disks]]\npath = {:?}\nformat = \"raw\"\nin_place = true\n", disk);
    VmSpec::from_toml(&text, "move").expect("a description")
}

/// What the guest does: each line is on the disk before it is counted.
fn work(last: usize) -> String {
    format!(
        "i=0; while [ $i -lt {last} ]; do i=$((i+1)); \
         echo line $i | dd of=/dev/vda bs={LINE} seek=$i conv=notrunc,fsync 2>/dev/null; \
         echo counted $i; sleep 0.05; done; poweroff -f\n"
    )
}

/// Types as fast as the port takes it.
fn type_in(text: &str, port: impl Fn(&[u8]) -> usize) {
    let mut left = text.as_bytes();
    while !left.is_empty() {
        left = &left[port(left)..];
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn suspend_at(
    console: &Console,
    line: usize,
    control: &Control,
    running: std::thread::JoinHandle<Finished>,
) -> Finished {
    console.wait("the next line", |_| console.counted().len() >= line);
    control.suspend();
    running.join().expect("a machine's thread")
}
