//! The guest agent and the protocol it speaks with the host.

#![forbid(unsafe_code)]
