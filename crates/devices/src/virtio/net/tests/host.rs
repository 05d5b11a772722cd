//! Real taps and a real passt.
