//! Xen: the configuration files of `xl` and its predecessor `xm`, the JSON of `xl list -l`, and the exports of XenServer
//! and XCP-ng.
//!
//! Sources: xl.cfg(5), xl-disk-configuration(5), xl-network-configuration(5); the XenAPI's classes.

mod config;
mod devices;
mod json;
mod syntax;
mod xva;

pub(crate) use config::read as read_config;
pub(crate) use json::read as read_json;
pub(crate) use syntax::looks_right;
pub(crate) use xva::read as read_export;

#[cfg(test)]
mod maker;
#[cfg(test)]
mod tests;
