//! The `omnivisor` program.

#![forbid(unsafe_code)]

fn main() {}
