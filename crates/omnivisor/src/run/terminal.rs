//! The user's terminal: raw while a guest's console is on it, and always put back.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode; dropping it restores the mode it had.
pub struct RawTerminal {
    saved: Termios,
}

impl RawTerminal {
    /// Makes the terminal on standard input raw; `None` where there is none.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { saved }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.saved);
    }
}

/// Columns and rows of the terminal on standard output.
pub fn size() -> Option<(u16, u16)> {
    let stdout = io::stdout();
    let size = if stdout.is_terminal() { tcgetwinsize(&stdout).ok()? } else { return None };
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Finds the keys that leave the console in what is typed: Ctrl-], or Ctrl-a followed by x. Ctrl-a twice
/// types one Ctrl-a.
#[derive(Debug, Default)]
pub struct Escape {
    prefixed: bool,
}

const CTRL_A: u8 = 0x01;
const CTRL_BRACKET: u8 = 0x1d;

impl Escape {
    /// What of `typed` is for the guest, and whether the user leaves.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (std::mem::take(&mut self.prefixed), byte) {
                (_, CTRL_BRACKET) | (true, b'x' | b'X') => return (passed, true),
                (true, CTRL_A) => passed.push(CTRL_A),
                (true, other) => passed.extend([CTRL_A, other]),
                (false, CTRL_A) => self.prefixed = true,
                (false, other) => passed.push(other),
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(typed: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut escape = Escape::default();
        let mut all = Vec::new();
        for part in typed {
            let (passed, leaves) = escape.filter(part);
            all.extend(passed);
            if leaves {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn either_key_sequence_leaves_also_in_two_parts() {
        assert_eq!(filter(&[b"ls\x1drest"]), (b"ls".to_vec(), true));
        assert_eq!(filter(&[b"ls\x01", b"x"]), (b"ls".to_vec(), true));
    }

    #[test]
    fn everything_else_reaches_the_guest() {
        assert_eq!(filter(&[b"\x01\x01"]), (b"\x01".to_vec(), false));
        assert_eq!(filter(&[b"a\x01b", b"c"]), (b"a\x01bc".to_vec(), false));
    }
}
