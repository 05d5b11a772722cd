//! Tests that every engine must pass, written against the traits only.

#![forbid(unsafe_code)]
