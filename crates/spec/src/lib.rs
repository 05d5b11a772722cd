//! VmSpec, the neutral description of one virtual machine, and its readers.

#![forbid(unsafe_code)]
