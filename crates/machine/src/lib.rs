//! Builds and runs a machine from a VmSpec, a boot plan and an engine.

#![forbid(unsafe_code)]
