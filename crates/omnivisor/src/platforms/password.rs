//! Asks for a password, which is never on the command line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use platform::{Secret, Uri};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Longer ones are none.
const LONGEST: u64 = 4096;

/// How often somebody was asked. Whoever asks holds it: several platforms are asked for at once, a person is not.
static ASKED: Mutex<u64> = Mutex::new(0);

/// How often somebody was asked; waits for whoever is typing.
pub fn asked() -> u64 {
    *lock()
}

fn lock() -> MutexGuard<'static, u64> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks on the terminal, if there is one.
pub fn ask(uri: &Uri) -> Option<Secret> {
    let mut asked = lock();
    *asked += 1;
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
    let host = uri.host.as_deref().unwrap_or("this computer");
    let user = uri.user.as_deref().map(|user| format!("{user}@")).unwrap_or_default();
    let silent = Silent::new(terminal)?;
    write!(&silent.terminal, "Password of {user}{host}: ").ok()?;
    let mut line = String::new();
    let read = BufReader::new((&silent.terminal).take(LONGEST)).read_line(&mut line);
    let _ = writeln!(&silent.terminal);
    read.ok()?;
    Some(Secret::new(line.trim_end_matches(['\n', '\r'])))
}

/// A terminal that shows nothing of what is typed.
struct Silent {
    terminal: File,
    before: Termios,
}

impl Silent {
    fn new(terminal: File) -> Option<Self> {
        let before = tcgetattr(&terminal).ok()?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO;
        tcsetattr(&terminal, OptionalActions::Flush, &silent).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
