//! A machine that nobody talks with: its console is watched until something is decided.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use engine::Engine;
use machine::boot::BootPlan;
use machine::disks::OpenDisk;
use machine::{Control, Machine, Outcome};
use spec::VmSpec;

use crate::failure::{FAILED, Failure};
use crate::run::plan;

/// How a watched machine ended.
pub struct Watched<T> {
    /// What was decided; none if the machine ended before.
    pub decision: Option<T>,
    /// How the machine ended.
    pub outcome: Outcome,
    /// It was stopped because the time was over.
    pub timed_out: bool,
    /// All that its console printed, but for the beginning if that is much.
    pub console: String,
    /// How long it ran.
    pub took: Duration,
}

/// So much of the console is kept.
const MOST_TEXT: usize = 1 << 20;

impl<T> Watched<T> {
    /// The last lines of the console.
    pub fn last_lines(&self, count: usize) -> String {
        let printable = |line: &str| line.replace(char::is_control, "");
        let lines: Vec<_> =
            self.console.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// Runs `spec` from `boot` until `decide` makes something of the last that the console has printed, the guest ends, or the
/// time is over.
pub fn watch<T: Send + 'static>(
    engine: &dyn Engine,
    spec: &VmSpec,
    disks: &[OpenDisk],
    boot: BootPlan,
    limit: Duration,
    decide: impl Fn(&str) -> Option<T> + Send + 'static,
) -> Result<Watched<T>, Failure> {
    let config = plan::config(spec, boot);
    let (sender, printed) = channel();
    let started = Instant::now();
    let machine = Machine::new(engine, &config, |board| {
        machine::plug(board, spec, disks)?;
        board.plug_serial(Box::new(Console(sender)));
        Ok(())
    })
    .map_err(plan::explain)?;
    let control = machine.control();
    let watcher = thread::Builder::new()
        .name("watch".into())
        .spawn(move || follow(&printed, &control, limit, decide))
        .map_err(|error| Failure::new(FAILED, format!("Cannot watch the guest: {error}")))?;
    let finished = machine.run()?;
    let seen = watcher.join().map_err(|_| Failure::new(FAILED, "The guest's watcher failed"))?;
    Ok(Watched {
        decision: seen.decision,
        outcome: finished.outcome,
        timed_out: seen.timed_out,
        console: String::from_utf8_lossy(&seen.text).into_owned(),
        took: started.elapsed(),
    })
}

struct Seen<T> {
    decision: Option<T>,
    timed_out: bool,
    text: Vec<u8>,
}

fn follow<T>(
    printed: &Receiver<Vec<u8>>,
    control: &Control,
    limit: Duration,
    decide: impl Fn(&str) -> Option<T>,
) -> Seen<T> {
    let end = Instant::now() + limit;
    let mut seen = Seen { decision: None, timed_out: false, text: Vec::new() };
    loop {
        match printed.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => seen.text.extend(bytes),
            Err(RecvTimeoutError::Timeout) => seen.timed_out = true,
            Err(RecvTimeoutError::Disconnected) => break,
        }
        // What is decided by may have come in pieces.
        let recent = &seen.text[seen.text.len().saturating_sub(512)..];
        seen.decision = decide(&String::from_utf8_lossy(recent));
        if seen.decision.is_some() || seen.timed_out {
            break;
        }
        let surplus = seen.text.len().saturating_sub(MOST_TEXT);
        seen.text.drain(..surplus);
    }
    control.stop();
    seen
}

/// Sends what the guest prints to the watcher.
struct Console(Sender<Vec<u8>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody watches any more when everything is decided.
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
