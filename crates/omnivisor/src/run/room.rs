//! Whether this computer has the memory that a guest is to have.

use spec::VmSpec;

use crate::disk::human;
use crate::failure::{Failure, NOT_STARTED};

/// Linux keeps 64 bytes for each page of 4 KiB.
const BOOKKEEPING: u64 = 64;

/// Bytes of memory that this computer has.
pub fn there() -> u64 {
    let system = rustix::system::sysinfo();
    system.totalram.saturating_mul(u64::from(system.mem_unit))
}

/// What should be known before the guest is started, if it is to have more memory than this computer has.
pub fn warning(spec: &VmSpec) -> Option<String> {
    warning_of(spec.memory.size().0, there())
}

fn warning_of(wanted: u64, there: u64) -> Option<String> {
    let (shown, limit) = (human(wanted), human(there));
    let consequence = if is_hopeless(wanted, there) {
        "which is too little to start it"
    } else {
        "and Linux ends it if it uses more"
    };
    (wanted > there).then(|| {
        format!("The guest is to have {shown} of memory; this computer has {limit}, {consequence}")
    })
}

/// Whether there is not even room for what the guest's kernel notes about its memory.
fn is_hopeless(wanted: u64, there: u64) -> bool {
    wanted / BOOKKEEPING > there / 2
}

/// Tells it.
///
/// # Errors
/// The guest could not start.
pub fn check(spec: &VmSpec) -> Result<(), Failure> {
    let Some(warning) = warning(spec) else { return Ok(()) };
    if is_hopeless(spec.memory.size().0, there()) {
        return Err(Failure::new(NOT_STARTED, warning).help("give it less with --memory SIZE"));
    }
    tell!("{warning}. --memory SIZE gives it less.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_told_with_what_comes_of_it() {
        const GIB: u64 = 1 << 30;
        assert_eq!(warning_of(16 * GIB, 16 * GIB), None);
        let told = warning_of(17 * GIB, 16 * GIB).unwrap();
        assert!(
            told.ends_with("this computer has 16 GiB, and Linux ends it if it uses more"),
            "{told}"
        );
        let told = warning_of(40 << 40, 16 * GIB).unwrap();
        assert!(told.contains("40 TiB") && told.ends_with("too little to start it"), "{told}");
    }
}
