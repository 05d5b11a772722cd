//! The disk that tells the guest of an OVF package the package's properties.

use spec::Disk;
use spec::foreign::Description;

use crate::failure::Failure;
use crate::run::seed;

/// The disk, if the guest looks for one or is to be told `values`. Properties that somebody should have given a value are
/// told on standard error.
pub fn disk(vm: &Description, values: &[(String, String)]) -> Result<Option<Disk>, Failure> {
    if !vm.wants_environment() && values.is_empty() {
        return Ok(None);
    }
    let image = vm.environment(values)?;
    let is_given = |key: &str| values.iter().any(|(given, _)| given == key);
    for one in vm.properties.iter().filter(|one| one.user_configurable && !is_given(&one.key)) {
        if one.value.as_deref().unwrap_or_default().is_empty() {
            let label = one.label.as_ref().map(|label| format!(" ({label})")).unwrap_or_default();
            tell!(
                "The property {}{label} has no value; --property {}=TEXT gives it one.",
                one.key,
                one.key
            );
        }
    }
    seed::keep("ovf-env", &image).map(Some)
}
