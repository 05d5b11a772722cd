//! Finds out what a file or folder is and has it read.

use std::path::{Path, PathBuf};

use super::description::Description;
use super::folder::Folder;
use super::xml::Element;
use super::{libvirt, ovf, tar, text, virtualbox, vmware, xen, xml};
use crate::{Error, Result};

/// How to read a description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Files that the description names may lie anywhere, not only in its folder.
    pub anywhere: bool,
    /// The deployment option to take instead of the default one.
    pub configuration: Option<String>,
    /// Checks all files against the manifest of a package, not only the description.
    pub verify: bool,
}

/// Reads the VMs that a file or folder describes: one, or several of an OVF package.
///
/// # Errors
/// It is nothing that is known, it is broken, or it is encrypted. The error names the place.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Description>> {
    let metadata =
        std::fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        let file = in_folder(path)?;
        return read(&file, options);
    }
    if tar::is_tar(&text::read_head(path)?) {
        return archive(path, options);
    }
    let bytes = text::read_file(path)?;
    let folder = Folder::of(path, options.anywhere)?;
    match Form::detect(&bytes, path)? {
        Form::Vmx => one(vmware::read(&bytes, path, &folder)),
        Form::Vbox(root) => one(virtualbox::read(&root, path, &folder)),
        Form::Libvirt(root) => one(libvirt::read(&root, path, &folder)),
        Form::Ovf(root) => ovf::read(&root, path, &folder, options),
        Form::Xva(root) => one(xen::read_export(&root, path)),
        Form::XlJson => xen::read_json(&bytes, path, &folder),
        Form::XlConfig(text) => one(xen::read_config(&text, path, &folder)),
    }
}

/// Reads one description without looking at any other file: all that it names is missing.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Description>> {
    let folder = Folder::nowhere();
    match Form::detect(bytes, path)? {
        Form::Vmx => one(vmware::parse(bytes, path, &folder)),
        Form::Vbox(root) => one(virtualbox::read(&root, path, &folder)),
        Form::Libvirt(root) => one(libvirt::read(&root, path, &folder)),
        Form::Ovf(root) => ovf::read(&root, path, &folder, &ReadOptions::default()),
        Form::Xva(root) => one(xen::read_export(&root, path)),
        Form::XlJson => xen::read_json(bytes, path, &folder),
        Form::XlConfig(text) => one(xen::read_config(&text, path, &folder)),
    }
}

/// An archive is an export of XenServer if its first member is `ova.xml`, and an OVF package otherwise.
fn archive(path: &Path, options: &ReadOptions) -> Result<Vec<Description>> {
    let (name, bytes) = tar::first_member(path)?;
    if name != "ova.xml" {
        return ovf::read_archive(path, options);
    }
    let root = xml::parse(&bytes, &format!("{}/{name}", path.display()))?;
    one(xen::read_export(&root, path))
}

fn one(vm: Result<Description>) -> Result<Vec<Description>> {
    vm.map(|vm| vec![vm])
}

/// What a file is, with its XML if it is XML.
enum Form {
    Vmx,
    Vbox(Element),
    Libvirt(Element),
    Ovf(Element),
    Xva(Element),
    XlJson,
    XlConfig(String),
}

impl Form {
    /// By content; the name only helps where two forms look alike.
    fn detect(bytes: &[u8], path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let text = text::decode_xml(&bytes[..bytes.len().min(64 << 10)]);
        if text.trim_start().starts_with('<') {
            let root = xml::parse(bytes, &file)?;
            return match root.name.as_str() {
                "VirtualBox" => Ok(Self::Vbox(root)),
                "domain" | "domstatus" | "domainsnapshot" => Ok(Self::Libvirt(root)),
                "Envelope" => Ok(Self::Ovf(root)),
                "value" => Ok(Self::Xva(root)),
                name => {
                    Err(root.error(format!("<{name}> is no VM's description that is known here")))
                }
            };
        }
        if looks_like_vmx(&text) {
            return Ok(Self::Vmx);
        }
        if text.trim_start().starts_with(['{', '[']) {
            return Ok(Self::XlJson);
        }
        if xen::looks_right(&text) {
            return Ok(Self::XlConfig(text::decode_named(bytes, None).into_owned()));
        }
        Err(text::error(path, "This is no VM's description that is known here"))
    }
}

/// Whether one of the first lines says what every `.vmx` says.
fn looks_like_vmx(text: &str) -> bool {
    text.lines().take(2000).filter_map(|line| line.split_once('=')).any(|(key, _)| {
        let key = key.trim().to_ascii_lowercase();
        let typical = ["config.version", "virtualhw.version", "guestos", "memsize", "displayname"];
        typical.contains(&key.as_str())
    })
}

/// The one description in a folder.
fn in_folder(path: &Path) -> Result<PathBuf> {
    let names = Folder::new(path, false)?.names()?;
    for extension in ["vbox", "vmx", "ovf", "ova", "xva"] {
        let found: Vec<_> = names
            .iter()
            .filter(|name| {
                Path::new(name).extension().is_some_and(|one| one.eq_ignore_ascii_case(extension))
            })
            .collect();
        match found[..] {
            [] => {}
            [name] => return Ok(path.join(name)),
            _ => {
                let names: Vec<_> = found.iter().map(|name| name.as_str()).collect();
                return Err(text::error(
                    path,
                    format!("There are several VMs: name one of {}", names.join(", ")),
                ));
            }
        }
    }
    Err(text::error(path, "There is no VM's description in this folder"))
}
