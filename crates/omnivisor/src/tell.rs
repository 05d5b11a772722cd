//! What the user is told on standard error.

/// Writes a line on standard error as `eprintln!` does, but without a panic where nobody reads it any more.
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}
