//! Token buckets that limit bytes and operations per second.
