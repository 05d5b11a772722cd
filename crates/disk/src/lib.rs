//! Virtual disks: formats, chains and the I/O beneath them.
