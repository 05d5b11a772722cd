//! The frames: `length: u32`, `kind: u8`, then the kind's fields. Integers are little-endian; `length` counts what
//! follows it; strings and lists are preceded by their length as `u32`.
//!
//! Flow control: output is throttled by the stream itself, because the host always reads. Standard input is not: it
//! shares the stream with signals and window sizes, which a command that does not read must not hold up. So the host
//! may have at most [`STDIN_WINDOW`] bytes of a session's input under way and gets [`Message::Credit`] for what the
//! command has taken.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Version of the protocol, the first field of [`Hello`].
pub const VERSION: u16 = 1;
/// Longest frame, without its length field.
pub const MAX_FRAME: usize = 256 << 10;
/// Most bytes of standard input, output or error in one frame.
pub const MAX_DATA: usize = 32 << 10;
/// Bytes of standard input that the host may send before the first [`Message::Credit`].
pub const STDIN_WINDOW: usize = 64 << 10;
/// Most arguments, and most environment variables, of one command.
pub const MAX_STRINGS: usize = 4096;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Guest to host, once, first.
    Hello(Hello),
    /// Host to guest: start a command as `session`, a number that is not in use.
    Exec {
        /// Chosen by the host.
        session: u32,
        /// What to run.
        exec: Exec,
    },
    /// Host to guest: standard input.
    Stdin {
        /// Whose.
        session: u32,
        /// At most [`MAX_DATA`] bytes, and no more than the credit left.
        data: Vec<u8>,
    },
    /// Host to guest: standard input has ended.
    StdinEnd {
        /// Whose.
        session: u32,
    },
    /// Guest to host: that many more bytes of standard input may be sent.
    Credit {
        /// Whose.
        session: u32,
        /// How many.
        bytes: u32,
    },
    /// Guest to host: standard output, or everything when there is a terminal.
    Stdout {
        /// Whose.
        session: u32,
        /// At most [`MAX_DATA`] bytes.
        data: Vec<u8>,
    },
    /// Guest to host: standard error.
    Stderr {
        /// Whose.
        session: u32,
        /// At most [`MAX_DATA`] bytes.
        data: Vec<u8>,
    },
    /// Guest to host: the command has ended and all its output was sent; the session number is free again.
    Exit {
        /// Whose.
        session: u32,
        /// How.
        exit: Exit,
    },
    /// Host to guest: the terminal's new size.
    Resize {
        /// Whose.
        session: u32,
        /// The size.
        window: Window,
    },
    /// Host to guest: send a signal to the command's process group.
    Signal {
        /// Whose.
        session: u32,
        /// Linux signal number of x86-64.
        signal: u8,
    },
    /// Host to guest: answer with [`Message::Pong`].
    Ping {
        /// Returned as it is.
        token: u64,
    },
    /// Guest to host: the answer to [`Message::Ping`].
    Pong {
        /// That of the ping.
        token: u64,
    },
    /// Host to guest: write everything to the disks and switch off.
    PowerOff,
}

/// What the guest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The agent's [`VERSION`].
    pub version: u16,
    /// The guest kernel's release, as of `uname -r`.
    pub kernel: String,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments; a program without a slash is searched for in `PATH`.
    pub argv: Vec<OsString>,
    /// Variables to add to the agent's defaults (`PATH`, `HOME`, `USER`, `TERM`).
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; the user's home when `None`.
    pub cwd: Option<OsString>,
    /// Run on a terminal of that size.
    pub tty: Option<Window>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code; 127 when it was not found, 126 when it could not be executed.
    Code(u8),
    /// It was killed by this signal.
    Signal(u8),
}

impl Exit {
    /// The exit code by the shell's convention: 128 + signal for a killed command.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Longer than [`MAX_FRAME`].
    #[error("A frame of {0} bytes is longer than the {MAX_FRAME} bytes that the protocol allows")]
    TooLong(usize),
    /// More than [`MAX_STRINGS`] arguments or variables, or none where one is needed.
    #[error("A command with {0} arguments or variables is outside the protocol's limits")]
    Strings(usize),
    /// A string has a NUL in it.
    #[error("An argument or variable holds a NUL byte")]
    Nul,
    /// The frame ends before its fields do.
    #[error("A frame of kind {0} is too short")]
    Short(u8),
    /// The fields end before the frame does, or a field has a value that it cannot have.
    #[error("A frame of kind {0} is malformed")]
    Malformed(u8),
    /// A frame that this version does not know.
    #[error("Frame kind {0} is unknown")]
    Unknown(u8),
    /// The stream failed or ended.
    #[error("The stream between host and guest failed")]
    Stream(#[from] io::Error),
}

mod kind {
    pub const HELLO: u8 = 1;
    pub const EXEC: u8 = 2;
    pub const STDIN: u8 = 3;
    pub const STDIN_END: u8 = 4;
    pub const CREDIT: u8 = 5;
    pub const STDOUT: u8 = 6;
    pub const STDERR: u8 = 7;
    pub const EXIT: u8 = 8;
    pub const RESIZE: u8 = 9;
    pub const SIGNAL: u8 = 10;
    pub const PING: u8 = 11;
    pub const PONG: u8 = 12;
    pub const POWER_OFF: u8 = 13;
}

impl Message {
    /// Appends the frame to `out`; on an error `out` is as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let start = out.len();
        let result = self.encode_at(start, out);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn encode_at(&self, start: usize, out: &mut Vec<u8>) -> Result<(), WireError> {
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::Hello(hello) => {
                out.push(kind::HELLO);
                out.extend_from_slice(&hello.version.to_le_bytes());
                put_bytes(out, hello.kernel.as_bytes())?;
            }
            Self::Exec { session, exec } => {
                put_head(out, kind::EXEC, *session);
                put_exec(out, exec)?;
            }
            Self::Stdin { session, data } => put_data(out, kind::STDIN, *session, data)?,
            Self::StdinEnd { session } => put_head(out, kind::STDIN_END, *session),
            Self::Credit { session, bytes } => {
                put_head(out, kind::CREDIT, *session);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Self::Stdout { session, data } => put_data(out, kind::STDOUT, *session, data)?,
            Self::Stderr { session, data } => put_data(out, kind::STDERR, *session, data)?,
            Self::Exit { session, exit } => {
                put_head(out, kind::EXIT, *session);
                out.extend_from_slice(&match exit {
                    Exit::Code(code) => [0, *code],
                    Exit::Signal(signal) => [1, *signal],
                });
            }
            Self::Resize { session, window } => {
                put_head(out, kind::RESIZE, *session);
                put_window(out, *window);
            }
            Self::Signal { session, signal } => {
                put_head(out, kind::SIGNAL, *session);
                out.push(*signal);
            }
            Self::Ping { token } => {
                out.push(kind::PING);
                out.extend_from_slice(&token.to_le_bytes());
            }
            Self::Pong { token } => {
                out.push(kind::PONG);
                out.extend_from_slice(&token.to_le_bytes());
            }
            Self::PowerOff => out.push(kind::POWER_OFF),
        }
        let length = out.len() - start - 4;
        if length > MAX_FRAME {
            return Err(WireError::TooLong(length));
        }
        out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(())
    }

    /// Reads a frame's content, without its length field.
    pub fn decode(frame: &[u8]) -> Result<Self, WireError> {
        let (&kind, rest) = frame.split_first().ok_or(WireError::Short(0))?;
        let mut fields = Fields { kind, rest };
        let message = match kind {
            kind::HELLO => Self::Hello(Hello {
                version: fields.u16()?,
                kernel: String::from_utf8_lossy(fields.bytes()?).into_owned(),
            }),
            kind::EXEC => Self::Exec { session: fields.u32()?, exec: fields.exec()? },
            kind::STDIN => Self::Stdin { session: fields.u32()?, data: fields.data()? },
            kind::STDIN_END => Self::StdinEnd { session: fields.u32()? },
            kind::CREDIT => Self::Credit { session: fields.u32()?, bytes: fields.u32()? },
            kind::STDOUT => Self::Stdout { session: fields.u32()?, data: fields.data()? },
            kind::STDERR => Self::Stderr { session: fields.u32()?, data: fields.data()? },
            kind::EXIT => Self::Exit {
                session: fields.u32()?,
                exit: match (fields.u8()?, fields.u8()?) {
                    (0, code) => Exit::Code(code),
                    (1, signal) => Exit::Signal(signal),
                    _ => return Err(WireError::Malformed(kind)),
                },
            },
            kind::RESIZE => Self::Resize { session: fields.u32()?, window: fields.window()? },
            kind::SIGNAL => Self::Signal { session: fields.u32()?, signal: fields.u8()? },
            kind::PING => Self::Ping { token: fields.u64()? },
            kind::PONG => Self::Pong { token: fields.u64()? },
            kind::POWER_OFF => Self::PowerOff,
            unknown => return Err(WireError::Unknown(unknown)),
        };
        if fields.rest.is_empty() { Ok(message) } else { Err(WireError::Malformed(kind)) }
    }

    /// Reads one frame from a blocking stream; an end of the stream is [`io::ErrorKind::UnexpectedEof`].
    pub fn read_from(stream: &mut impl Read) -> Result<Self, WireError> {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut frame = vec![0; checked_length(length)?];
        stream.read_exact(&mut frame)?;
        Self::decode(&frame)
    }
}

/// Takes a stream apart that arrives in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// Adds what has arrived. To bound memory, take all messages out before adding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    pub fn take(&mut self) -> Result<Option<Message>, WireError> {
        let rest = &self.buffer[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = checked_length(*length)?;
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let message = Message::decode(frame)?;
        self.taken += 4 + length;
        Ok(Some(message))
    }
}

fn checked_length(bytes: [u8; 4]) -> Result<usize, WireError> {
    let length = u32::from_le_bytes(bytes) as usize;
    if length > MAX_FRAME { Err(WireError::TooLong(length)) } else { Ok(length) }
}

fn put_head(out: &mut Vec<u8>, kind: u8, session: u32) {
    out.push(kind);
    out.extend_from_slice(&session.to_le_bytes());
}

fn put_data(out: &mut Vec<u8>, kind: u8, session: u32, data: &[u8]) -> Result<(), WireError> {
    if data.len() > MAX_DATA {
        return Err(WireError::TooLong(data.len()));
    }
    put_head(out, kind, session);
    out.extend_from_slice(data);
    Ok(())
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), WireError> {
    if bytes.len() > MAX_FRAME {
        return Err(WireError::TooLong(bytes.len()));
    }
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_string(out: &mut Vec<u8>, string: &OsString) -> Result<(), WireError> {
    if string.as_bytes().contains(&0) {
        return Err(WireError::Nul);
    }
    put_bytes(out, string.as_bytes())
}

fn put_window(out: &mut Vec<u8>, window: Window) {
    out.extend_from_slice(&window.rows.to_le_bytes());
    out.extend_from_slice(&window.cols.to_le_bytes());
}

fn put_exec(out: &mut Vec<u8>, exec: &Exec) -> Result<(), WireError> {
    if exec.argv.is_empty() || exec.argv.len() > MAX_STRINGS {
        return Err(WireError::Strings(exec.argv.len()));
    }
    if exec.env.len() > MAX_STRINGS {
        return Err(WireError::Strings(exec.env.len()));
    }
    out.extend_from_slice(&(exec.argv.len() as u32).to_le_bytes());
    for argument in &exec.argv {
        put_string(out, argument)?;
    }
    out.extend_from_slice(&(exec.env.len() as u32).to_le_bytes());
    for (name, value) in &exec.env {
        put_string(out, name)?;
        put_string(out, value)?;
    }
    out.push(exec.cwd.is_some().into());
    if let Some(cwd) = &exec.cwd {
        put_string(out, cwd)?;
    }
    out.push(exec.tty.is_some().into());
    if let Some(window) = exec.tty {
        put_window(out, window);
    }
    Ok(())
}

struct Fields<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(WireError::Short(self.kind))?;
        self.rest = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Malformed(self.kind)),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.u32()? as usize;
        let (field, rest) =
            self.rest.split_at_checked(length).ok_or(WireError::Short(self.kind))?;
        self.rest = rest;
        Ok(field)
    }

    fn string(&mut self) -> Result<OsString, WireError> {
        let bytes = self.bytes()?;
        if bytes.contains(&0) {
            Err(WireError::Nul)
        } else {
            Ok(OsString::from_vec(bytes.to_vec()))
        }
    }

    fn data(&mut self) -> Result<Vec<u8>, WireError> {
        let data = std::mem::take(&mut self.rest);
        if data.len() > MAX_DATA { Err(WireError::TooLong(data.len())) } else { Ok(data.to_vec()) }
    }

    fn window(&mut self) -> Result<Window, WireError> {
        Ok(Window { rows: self.u16()?, cols: self.u16()? })
    }

    fn count(&mut self) -> Result<usize, WireError> {
        let count = self.u32()? as usize;
        if count > MAX_STRINGS { Err(WireError::Strings(count)) } else { Ok(count) }
    }

    fn exec(&mut self) -> Result<Exec, WireError> {
        let mut exec = Exec::default();
        let arguments = self.count()?;
        if arguments == 0 {
            return Err(WireError::Strings(0));
        }
        for _ in 0..arguments {
            exec.argv.push(self.string()?);
        }
        for _ in 0..self.count()? {
            exec.env.push((self.string()?, self.string()?));
        }
        if self.flag()? {
            exec.cwd = Some(self.string()?);
        }
        if self.flag()? {
            exec.tty = Some(self.window()?);
        }
        Ok(exec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string() -> impl Strategy<Value = OsString> {
        prop::collection::vec(1u8.., 0..20).prop_map(OsString::from_vec)
    }

    fn window() -> impl Strategy<Value = Window> {
        any::<(u16, u16)>().prop_map(|(rows, cols)| Window { rows, cols })
    }

    fn exec() -> impl Strategy<Value = Exec> {
        (
            prop::collection::vec(string(), 1..6),
            prop::collection::vec((string(), string()), 0..6),
            prop::option::of(string()),
            prop::option::of(window()),
        )
            .prop_map(|(argv, env, cwd, tty)| Exec { argv, env, cwd, tty })
    }

    fn message() -> impl Strategy<Value = Message> {
        let data = || (any::<u32>(), prop::collection::vec(any::<u8>(), 0..300));
        prop_oneof![
            (any::<u16>(), ".{0,20}")
                .prop_map(|(version, kernel)| Message::Hello(Hello { version, kernel })),
            (any::<u32>(), exec()).prop_map(|(session, exec)| Message::Exec { session, exec }),
            data().prop_map(|(session, data)| Message::Stdin { session, data }),
            data().prop_map(|(session, data)| Message::Stdout { session, data }),
            data().prop_map(|(session, data)| Message::Stderr { session, data }),
            any::<u32>().prop_map(|session| Message::StdinEnd { session }),
            any::<(u32, u32)>().prop_map(|(session, bytes)| Message::Credit { session, bytes }),
            any::<(u32, u8)>()
                .prop_map(|(session, code)| Message::Exit { session, exit: Exit::Code(code) }),
            any::<(u32, u8)>()
                .prop_map(|(session, code)| Message::Exit { session, exit: Exit::Signal(code) }),
            (any::<u32>(), window())
                .prop_map(|(session, window)| Message::Resize { session, window }),
            any::<(u32, u8)>().prop_map(|(session, signal)| Message::Signal { session, signal }),
            any::<u64>().prop_map(|token| Message::Ping { token }),
            any::<u64>().prop_map(|token| Message::Pong { token }),
            Just(Message::PowerOff),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            messages in prop::collection::vec(message(), 1..8),
            piece in 1usize..64,
        ) {
            let mut stream = Vec::new();
            for message in &messages {
                message.encode(&mut stream).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut pieces = Vec::new();
            for bytes in stream.chunks(piece) {
                decoder.feed(bytes);
                while let Some(message) = decoder.take().unwrap() {
                    pieces.push(message);
                }
            }
            prop_assert_eq!(&pieces, &messages);
            let mut reader = stream.as_slice();
            for message in &messages {
                prop_assert_eq!(&Message::read_from(&mut reader).unwrap(), message);
            }
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = Message::decode(&bytes) {
                let mut again = Vec::new();
                // A kernel release that is not UTF-8 may grow when it is read.
                message.encode(&mut again).unwrap();
            }
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.take() {}
        }

        #[test]
        fn a_frame_cut_short_is_an_error(message in message(), cut in 1usize..8) {
            let mut stream = Vec::new();
            message.encode(&mut stream).unwrap();
            let carries_data =
                matches!(message, Message::Stdin { .. } | Message::Stdout { .. } | Message::Stderr { .. });
            if !carries_data && stream.len() - 4 > cut {
                prop_assert!(Message::decode(&stream[4..stream.len() - cut]).is_err());
            }
        }
    }

    #[test]
    fn frames_outside_the_limits_are_refused() {
        let long = Message::Stdin { session: 1, data: vec![0; MAX_DATA + 1] };
        let mut out = vec![7];
        assert!(matches!(long.encode(&mut out), Err(WireError::TooLong(_))));
        assert_eq!(out, [7]);
        let mut decoder = Decoder::default();
        decoder.feed(&(MAX_FRAME as u32 + 1).to_le_bytes());
        assert!(matches!(decoder.take(), Err(WireError::TooLong(_))));
        let nothing = Message::Exec { session: 1, exec: Exec::default() };
        assert!(matches!(nothing.encode(&mut out), Err(WireError::Strings(0))));
        let nul = Exec { argv: vec!["a\0b".into()], ..Exec::default() };
        assert!(matches!(
            Message::Exec { session: 1, exec: nul }.encode(&mut out),
            Err(WireError::Nul)
        ));
        // A count far beyond what the frame holds must not be allocated.
        let mut frame = vec![kind::EXEC, 0, 0, 0, 0];
        frame.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Message::decode(&frame), Err(WireError::Strings(_))));
        assert!(matches!(Message::decode(&[200]), Err(WireError::Unknown(200))));
        assert!(matches!(Message::decode(&[kind::POWER_OFF, 0]), Err(WireError::Malformed(_))));
        assert!(matches!(Message::decode(&[]), Err(WireError::Short(_))));
    }
}
