//! All drivers.

use serde::Serialize;

use crate::{
    Ability, Options, Platform, Result, Uri, Verb, esx, hyperv, libvirt, own, parallels,
    virtualbox, xapi, xen,
};

/// How a kind of platform is reached.
#[derive(Clone, Copy)]
pub struct Driver {
    /// The platform.
    pub platform: &'static str,
    /// Schemes of the URIs that it takes. Those that end in `+ssh` run the platform's program on its host.
    pub schemes: &'static [&'static str],
    /// Whether a scheme without `+ssh` means this computer, and no other.
    pub is_local: bool,
    /// How many parts of the path name the platform and not the VM: 1 for `qemu:///system`.
    pub path_parts: usize,
    /// What this driver has met.
    pub met: Met,
    /// What it can do in general; a [`Platform`] that was reached may know better.
    pub ability: fn(Verb) -> Ability,
    /// Reaches it. Drivers that log in do it here; others find out when they are asked.
    pub connect: fn(&Uri, &Options) -> Result<Box<dyn Platform>>,
}

/// What a driver has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "met", content = "what")]
pub enum Met {
    /// The product itself: this one.
    Product(&'static str),
    /// Another program that behaves like it.
    Simulator(&'static str),
    /// Only what the product once said, or documentation says.
    Recorded(&'static str),
}

/// All drivers: one line for each platform.
pub const DRIVERS: &[Driver] = &[
    own::DRIVER,
    esx::HOST,
    esx::VCENTER,
    hyperv::DRIVER,
    libvirt::DRIVER,
    virtualbox::DRIVER,
    parallels::DRIVER,
    xen::DRIVER,
    xapi::DRIVER,
];

/// The driver of a scheme.
pub fn driver(scheme: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.schemes.contains(&scheme))
}

/// All schemes.
pub(crate) fn schemes() -> impl Iterator<Item = &'static str> {
    DRIVERS.iter().flat_map(|driver| driver.schemes.iter().copied())
}
