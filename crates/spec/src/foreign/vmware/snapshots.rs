//! `.vmsd`: the snapshots of a VM.

use std::path::Path;

use super::super::description::{Description, Level, Snapshot, utc};
use super::dictionary::Dictionary;
use crate::Result;

/// More snapshots are not kept: VMware allows 32 in a chain.
const MOST: u32 = 4096;

/// Adds the snapshots of a file to `vm`. They are information: the `.vmx` names the disks of the present state.
pub(crate) fn read(bytes: &[u8], path: &Path, vm: &mut Description) -> Result<()> {
    let keys = Dictionary::parse(bytes, &path.display().to_string())?;
    let current = keys.text("snapshot.current");
    let count = keys.number("snapshot.numsnapshots")?.unwrap_or(0).min(MOST);
    for index in 0..count {
        let value = |name: &str| keys.text(&format!("snapshot{index}.{name}"));
        // The numbers of deleted ones are not used again.
        let Some(id) = value("uid") else { continue };
        let high: Option<i64> = keys.number(&format!("snapshot{index}.createtimehigh"))?;
        let low: Option<i64> = keys.number(&format!("snapshot{index}.createtimelow"))?;
        vm.snapshots.push(Snapshot {
            name: value("displayname").unwrap_or_default(),
            description: value("description"),
            created: high.zip(low).map(|(high, low)| moment(high, low)),
            parent: value("parent"),
            current: current.as_deref() == Some(id.as_str()),
            id,
        });
    }
    if keys.flag("snapshot.needconsolidate")? == Some(true) {
        vm.note(
            Level::Info,
            "VMware wants to consolidate the VM's disks: deleted snapshots left some behind",
        );
    }
    Ok(())
}

/// Microseconds since 1970 in two halves, the lower one with a sign.
fn moment(high: i64, low: i64) -> String {
    let microseconds = (high.cast_unsigned() << 32) | (low.cast_unsigned() & 0xffff_ffff);
    utc(microseconds / 1_000_000)
}
