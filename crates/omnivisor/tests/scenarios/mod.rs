//! Scenarios from end to end, which run wherever there is an engine.

pub mod console;
pub mod errors;
pub mod harness;
pub mod moving;
pub mod network;
pub mod storage;
