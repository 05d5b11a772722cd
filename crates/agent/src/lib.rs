//! The guest agent and the protocol it speaks with the host.
//!
//! One byte stream joins host and guest: a vsock connection, a virtio-console port, or in tests a socket pair. On it
//! go the length-prefixed frames of [`wire`]. The host holds a [`Client`]; the guest runs [`serve`]. The program
//! `omnivisor-agent` is `serve` plus what PID 1 of an initramfs has to do before it.

#![forbid(unsafe_code)]

pub mod children;
mod client;
mod serve;
mod session;
pub mod wire;

pub use client::{Client, ClientError, Control, Streams};
pub use serve::{Ended, ServeError, ServeOptions, serve};
pub use session::{exec_on_tty, exit_code_of};
pub use wire::{Exec, Exit, Hello, Message, Window, WireError};

/// Vsock port on the host (CID 2) that the agent connects to unless the kernel command line says otherwise.
pub const DEFAULT_PORT: u32 = 1024;
/// Name of the virtio-console port that carries the protocol where there is no vsock.
pub const DEFAULT_PORT_NAME: &str = "org.omnivisor.agent";
/// First argument by which the agent's program, started as an ordinary process, puts a command on its terminal.
pub const TTY_HELPER: &str = "--on-tty";
