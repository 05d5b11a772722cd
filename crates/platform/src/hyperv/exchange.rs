//! What a script is told and how it answers.
//!
//! PowerShell starts with `scripts/start.ps1` on its command line and reads the rest from its standard input, a line each, in
//! base64: a script, and the words that it is about, which are never part of a script. Each line of an answer begins with
//! what it is, so that nothing else which a host prints is taken for one:
//!
//! | line | what |
//! |---|---|
//! | `>` and base64 | bytes |
//! | `=` | a part is complete |
//! | `+` | all that was asked for is said |
//! | `!` and base64 | an error, as JSON |
//! | `.` | the script is done |

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::clixml;
use super::talk::{Ssh, Talk};
use super::winrm::Winrm;
use crate::{Error, Result, Runner};

const START: &str = include_str!("scripts/start.ps1");
const COMMON: &str = include_str!("scripts/common.ps1");

/// So much may an answer hold: the list of tens of thousands of VMs.
const LONGEST: usize = 64 << 20;
/// Longest line of an answer; ours have 64 KiB.
const LONGEST_LINE: usize = 1 << 20;
/// So much of standard error is kept.
const LONGEST_COMPLAINT: usize = 64 << 10;
/// What cmd.exe and Unix shells return for a program that is not there.
const NO_PROGRAM: [i32; 2] = [9009, 127];

/// A Windows host, and the way to its PowerShell.
pub(super) struct Remote {
    pub way: Way,
    pub limit: Duration,
}

/// How PowerShell is reached.
pub(super) enum Way {
    Winrm(Winrm),
    Ssh(Runner),
}

/// A script that runs.
pub(super) struct Exchange {
    talk: Box<dyn Talk>,
    place: String,
    /// The beginning of a line.
    rest: Vec<u8>,
    frames: VecDeque<Frame>,
    stderr: Vec<u8>,
    done: Option<i32>,
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Bytes(Vec<u8>),
    Part,
    Said,
    Failed(Complaint),
    Done,
}

/// What PowerShell says of an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Complaint {
    pub message: String,
    /// Its FullyQualifiedErrorId, which is the same in all languages.
    pub id: String,
    pub category: String,
}

/// A script's answer, or its complaint.
pub(super) type Outcome<T> = std::result::Result<T, Complaint>;

impl Remote {
    /// The host, for people.
    pub fn place(&self) -> &str {
        match &self.way {
            Way::Winrm(winrm) => winrm.place(),
            Way::Ssh(runner) => runner.place(),
        }
    }

    /// Runs a script that answers with one value; `limit` is how long it may take.
    pub fn ask<T: DeserializeOwned>(
        &self,
        script: &str,
        words: &[&str],
        limit: Duration,
    ) -> Result<Outcome<T>> {
        let bytes = match self.run(script, words, limit)? {
            Ok(bytes) => bytes,
            Err(complaint) => return Ok(Err(complaint)),
        };
        let value = serde_json::from_slice(&bytes);
        value.map(Ok).map_err(|error| Error::reply(self.place(), error.to_string()))
    }

    /// Runs a script; returns the bytes of its answer.
    pub fn run(&self, script: &str, words: &[&str], limit: Duration) -> Result<Outcome<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut exchange = self.start(script, words, true)?;
        let mut answer = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = exchange.next(left).map_err(|error| match error {
                Error::TimedOut { what, .. } => Error::TimedOut { what, limit },
                error => error,
            })?;
            match frame {
                Frame::Bytes(bytes) if answer.len() + bytes.len() > LONGEST => {
                    return Err(Error::TooMuch { what: self.place().into(), limit: LONGEST });
                }
                Frame::Bytes(bytes) => answer.extend(bytes),
                Frame::Failed(complaint) => return Ok(Err(complaint)),
                Frame::Done => return Ok(Ok(answer)),
                Frame::Part | Frame::Said => {}
            }
        }
    }

    /// Starts a script; unless `is_all`, more lines for it may follow.
    pub fn start(&self, script: &str, words: &[&str], is_all: bool) -> Result<Exchange> {
        let command = encoded(START);
        let arguments = format!("-NoProfile -NonInteractive -EncodedCommand {command}");
        let talk = match &self.way {
            Way::Winrm(winrm) => winrm.start("powershell", &arguments)?,
            Way::Ssh(runner) => Ssh::start(runner, &format!("powershell {arguments}"))?,
        };
        let place = self.place().to_owned();
        let mut exchange = Exchange::new(talk, place);
        let script = BASE64.encode([COMMON, script].join("\n"));
        let words = BASE64.encode(words.join("\0"));
        exchange.talk.send(format!("{script}\n{words}\n").as_bytes(), is_all)?;
        Ok(exchange)
    }
}

impl Exchange {
    pub fn new(talk: Box<dyn Talk>, place: String) -> Self {
        let (rest, frames, stderr) = Default::default();
        Self { talk, place, rest, frames, stderr, done: None }
    }

    /// Gives the script a further line.
    pub fn tell(&mut self, words: &[&str]) -> Result<()> {
        let line = BASE64.encode(words.join("\0")) + "\n";
        self.talk.send(line.as_bytes(), false)
    }

    /// Waits for the next line of its answer; an end without [`Frame::Done`] is an error.
    pub fn next(&mut self, limit: Duration) -> Result<Frame> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            if let Some(code) = self.done {
                return Err(self.ended(code));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let said = self.talk.receive(left)?;
            self.stderr.extend(
                said.stderr.iter().take(LONGEST_COMPLAINT.saturating_sub(self.stderr.len())),
            );
            self.done = said.done;
            self.take(&said.stdout)?;
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.rest.extend(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.rest);
            let frame =
                frame(&line).map_err(|message| Error::reply(self.place.clone(), message))?;
            self.frames.extend(frame);
        }
        self.rest.extend(bytes);
        match self.rest.len() > LONGEST_LINE {
            true => Err(Error::TooMuch { what: self.place.clone(), limit: LONGEST_LINE }),
            false => Ok(()),
        }
    }

    /// It ended before it was done.
    fn ended(&self, code: i32) -> Error {
        let place = self.place.clone();
        let message = clixml::sentence(&self.stderr);
        if NO_PROGRAM.contains(&code) {
            return Error::Program {
                program: format!("powershell on {place}"),
                source: std::io::ErrorKind::NotFound.into(),
                repair: Some(
                    "Hyper-V is steered by Windows PowerShell, which is part of Windows".into(),
                ),
            };
        }
        match message {
            Some(message) => {
                Error::Failed { what: format!("PowerShell on {place}"), message, repair: None }
            }
            None => {
                let message = format!("PowerShell ended in the middle, with code {code}");
                Error::Unreachable { place, message, repair: None }
            }
        }
    }
}

/// A line of an answer; nothing if it is something else that was printed.
pub(super) fn frame(line: &[u8]) -> std::result::Result<Option<Frame>, &'static str> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (kind, rest) = line.split_first().unwrap_or((&b' ', &[]));
    let bytes = || BASE64.decode(rest.trim_ascii()).map_err(|_| "a line is not base64");
    Ok(match (kind, rest) {
        (b'>', _) => Some(Frame::Bytes(bytes()?)),
        (b'!', _) => {
            let complaint = serde_json::from_slice(&bytes()?);
            Some(Frame::Failed(complaint.map_err(|_| "an error is not JSON")?))
        }
        (b'=', []) => Some(Frame::Part),
        (b'+', []) => Some(Frame::Said),
        (b'.', []) => Some(Frame::Done),
        _ => None,
    })
}

/// As `-EncodedCommand` takes it: base64 of UTF-16.
fn encoded(script: &str) -> String {
    BASE64.encode(script.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hyperv::talk::Said;

    struct Fixed(Vec<Said>);

    impl Talk for Fixed {
        fn send(&mut self, _: &[u8], _: bool) -> Result<()> {
            Ok(())
        }

        fn receive(&mut self, _: Duration) -> Result<Said> {
            Ok(self.0.remove(0))
        }
    }

    fn said(pieces: &[&str], stderr: &str, code: i32) -> Exchange {
        let piece = |text: &&str| Said { stdout: text.as_bytes().to_vec(), ..Said::default() };
        let mut said: Vec<_> = pieces.iter().map(piece).collect();
        said.push(Said { stderr: stderr.as_bytes().to_vec(), done: Some(code), ..Said::default() });
        Exchange::new(Box::new(Fixed(said)), "host".into())
    }

    #[test]
    fn an_answer_is_read_across_pieces_and_among_other_lines() {
        let mut exchange = said(&["WARNING: x\r\n>YW", "Jj\r", "\n=\n+\nsome .\n.\n"], "", 0);
        let mut next = || exchange.next(Duration::from_secs(1));
        assert_eq!(next().unwrap(), Frame::Bytes(b"abc".to_vec()));
        assert_eq!(
            [next().unwrap(), next().unwrap(), next().unwrap()],
            [Frame::Part, Frame::Said, Frame::Done]
        );
        assert!(next().unwrap_err().to_string().contains("ended in the middle"));
    }

    #[test]
    fn what_is_no_answer_is_one_sentence() {
        for (pieces, stderr, code, expected) in [
            (&[">*\n"][..], "", 0, "a line is not base64"),
            (&["!YQ==\n"], "", 0, "an error is not JSON"),
            (&[""], "Sorry.\n", 1, "PowerShell on host failed: Sorry"),
            (&["'powershell' is not recognized\n"], "", 9009, "Cannot run powershell on host"),
        ] {
            let error = said(pieces, stderr, code).next(Duration::from_secs(1)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let endless = "x".repeat(LONGEST_LINE + 1);
        let error = said(&[&endless], "", 0).next(Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, Error::TooMuch { .. }), "{error}");
    }

    #[test]
    fn the_command_line_is_one_that_cmd_takes() {
        // 8191 characters, less what is before it.
        assert!(encoded(START).len() < 7900, "{}", encoded(START).len());
    }
}
