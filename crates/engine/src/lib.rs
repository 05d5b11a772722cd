//! The engine traits and the neutral state of processors and interrupt controllers.

#![forbid(unsafe_code)]
