//! Xen: the configuration files of `xl` and its predecessor `xm`, the JSON of `xl list -l`, and the exports of XenServer
//! and XCP-ng.
//!
//! Sources: xl.cfg(5), xl-disk-configuration(5), xl-network-configuration(5); the XenAPI's classes.

mod config;
mod devices;
mod json;
mod syntax;
mod xva;

use super::description::Description;
use crate::Smbios;

pub(crate) use config::read as read_config;
pub(crate) use json::read as read_json;
pub(crate) use syntax::looks_right;
pub(crate) use xva::read as read_export;

/// What Xen's firmware for guests tells of their UUID (`hvmloader`), where it is run at all.
fn smbios(vm: &Description) -> Smbios {
    let smbios = vm.smbios_of_uuid();
    Smbios { serial: smbios.uuid.map(String::from), ..smbios }
}

#[cfg(test)]
mod maker;
#[cfg(test)]
mod tests;
