//! PCI: one bus, its configuration space, base address registers and MSI-X (PCI Local Bus
//! Specification 3.0; PCI Express Base Specification 5.0 for ECAM).

mod config;
mod msix;
mod root;
#[cfg(test)]
pub(crate) mod test_support;

pub(crate) use config::SavedConfig;
pub use config::{Bar, BarKind, ClassCode, ConfigSpace, Identity};
pub use msix::{Msix, SavedMsix};
pub use root::{ECAM_SIZE, Root, RootAddresses, SLOTS};

use crate::Device;

/// A function (number 0) in a slot of the bus.
pub trait Function: Device {
    /// Reads 1, 2 or 4 bytes of configuration space that do not cross a doubleword.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space likewise.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// The memory ranges that it decodes just now.
    fn bars(&self) -> Vec<Bar>;

    /// The guest reads `offset` bytes into the range of BAR `bar`.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes there.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);
}
