//! Finds out what a file or folder is and has it read.

use std::path::{Path, PathBuf};

use super::description::Description;
use super::folder::Folder;
use super::tar::{self, Archive};
use super::{
    hyperv, libvirt, ovf, parallels, proxmox, text, vagrant, virtualbox, vmware, xen, xml,
};
use crate::{Error, Result, VmSpec};

/// How to read a description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Files that the description names may lie anywhere, not only in its folder.
    pub anywhere: bool,
    /// The deployment option to take instead of the default one.
    pub configuration: Option<String>,
    /// Checks all files against the manifest of a package, not only the description.
    pub verify: bool,
    /// A folder that keeps what was found out about compressed files: [`disk::ImageOptions::cache`].
    pub cache: Option<PathBuf>,
}

/// Reads the VMs that a file or folder describes: one, or several of an OVF package.
///
/// # Errors
/// It is nothing that is known, it is broken, or it is encrypted. The error names the place.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Description>> {
    let metadata =
        std::fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        let missing = || text::error(path, "There is no VM's description in this folder");
        return read(&in_folder(path)?.ok_or_else(missing)?, options);
    }
    let vms = match Kind::detect(&text::read_head(path)?, path) {
        Some(Kind::Archive) => archive(path, options),
        Some(Kind::Backup) => one(proxmox::read_backup(path, options.cache.as_deref())),
        Some(kind) => kind.read(&text::read_file(path)?, path, options),
        None => Err(text::error(path, unknown(path))),
    }?;
    match &options.configuration {
        Some(chosen) if vms.iter().all(|vm| vm.configurations.is_empty()) => Err(text::error(
            path,
            format!("There is no deployment option `{chosen}`, nor any other"),
        )),
        _ => Ok(vms),
    }
}

/// Whether a file or folder is likely to be a VM's description, or several, and not a disk: by its content, or by
/// its name if the content is of no kind.
pub fn is_description(path: &Path) -> bool {
    if path.is_dir() {
        return !matches!(in_folder(path), Ok(None));
    }
    path.is_file() && (expected(path).is_some() || looks_like_one(path))
}

fn looks_like_one(path: &Path) -> bool {
    text::read_head(path).is_ok_and(|head| Kind::detect(&head, path).is_some())
}

/// Why a file cannot be read.
fn unknown(path: &Path) -> String {
    let expected = expected(path)
        .map(|what| format!(": expected {what}, as its name says"))
        .unwrap_or_default();
    format!("This is no VM's description that is known here{expected}")
}

/// What is in a file of this name. XML and `.cfg` may be anything.
fn expected(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    let is_backup = path.file_stem()?.to_str()?.to_ascii_lowercase().ends_with(".vma");
    if is_backup && matches!(ending.as_str(), "zst" | "lzo") {
        return Some(
            "an archive of vzdump that is not compressed, or by gzip (unpack it with zstd -d, lzop -d)",
        );
    }
    Some(match ending.as_str() {
        "vmx" | "vmtx" => "lines of `key = \"value\"`",
        "ovf" => "XML with an <Envelope>",
        "ova" => "a tar archive with an .ovf",
        "box" => "a tar archive with a metadata.json, as it is or compressed by gzip",
        "vbox" => "XML with <VirtualBox>",
        "pvs" => "XML with <ParallelsVirtualMachine>",
        "vmcx" => "HyperVStorage",
        "vma" => "an archive of Proxmox VE's vzdump",
        "xva" => "a tar archive that begins with ova.xml",
        _ => return None,
    })
}

/// Reads one description without looking at any other file: all that it names is missing.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Description>> {
    parse_within(bytes, path, &Folder::nowhere())
}

/// The same, of a description whose files lie in a folder.
pub(crate) fn parse_within(bytes: &[u8], path: &Path, folder: &Folder) -> Result<Vec<Description>> {
    let head = &bytes[..bytes.len().min(text::HEAD)];
    match Kind::detect(head, path) {
        Some(kind) if !matches!(kind, Kind::Archive | Kind::Backup) => {
            kind.parse(bytes, path, folder, &ReadOptions::default())
        }
        _ => Err(text::error(path, unknown(path))),
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Archive,
    /// Of Proxmox VE.
    Backup,
    Vmx,
    Vbox,
    Libvirt,
    Ovf,
    Vmcx,
    HypervXml,
    Parallels,
    Xva,
    XlJson,
    XlConfig,
    Proxmox,
    Toml,
    Vagrant,
}

impl Kind {
    /// By the beginning of its content; the name helps only where there is none.
    fn detect(head: &[u8], path: &Path) -> Option<Self> {
        if tar::is_tar(head) || tar::is_gzip(head) && vagrant::is_box(path) {
            return Some(Self::Archive);
        }
        if proxmox::is_backup(head, path) {
            return Some(Self::Backup);
        }
        if hyperv::is_storage(head) {
            return Some(Self::Vmcx);
        }
        let text = text::decode_xml(head);
        if text.trim_start().starts_with('<') {
            return match xml::root_name(&text)?.as_str() {
                "VirtualBox" => Some(Self::Vbox),
                "domain" | "domstatus" | "domainsnapshot" => Some(Self::Libvirt),
                "Envelope" => Some(Self::Ovf),
                "ParallelsVirtualMachine" => Some(Self::Parallels),
                "configuration" => Some(Self::HypervXml),
                "value" => Some(Self::Xva),
                _ => None,
            };
        }
        // A disk may begin with a text, such as LVM's metadata, but goes on with zeros.
        if text.contains('\0') {
            return None;
        }
        if path.extension().is_some_and(|extension| extension == "toml") {
            return Some(Self::Toml);
        }
        if vagrant::is_metadata(&text, path) {
            return Some(Self::Vagrant);
        }
        if looks_like_vmx(&text) {
            return Some(Self::Vmx);
        }
        if text.trim_start().starts_with(['{', '[']) && text.contains("\"c_info\"") {
            return Some(Self::XlJson);
        }
        if proxmox::looks_right(&text) {
            return Some(Self::Proxmox);
        }
        xen::looks_right(&text).then_some(Self::XlConfig)
    }

    fn read(self, bytes: &[u8], path: &Path, options: &ReadOptions) -> Result<Vec<Description>> {
        let is_hyperv = matches!(self, Self::Vmcx | Self::HypervXml);
        let folder = match is_hyperv {
            true => Folder::new(hyperv::folder_of(path), options.anywhere)?,
            false => Folder::of(path, options.anywhere)?,
        };
        let mut vms = match self {
            Self::Vmx => vec![vmware::read(bytes, path, &folder)?],
            Self::Parallels => {
                let root = xml::parse(bytes, &path.display().to_string())?;
                vec![parallels::read(&root, path, &folder)?]
            }
            Self::Vagrant => vagrant::read(bytes, path, &folder, options)?,
            _ => self.parse(bytes, path, &folder, options)?,
        };
        for vm in &mut vms {
            if is_hyperv {
                hyperv::add_checkpoints(&folder, vm)?;
            }
            vm.folder = Some(folder.path().to_owned());
        }
        Ok(vms)
    }

    fn parse(
        self,
        bytes: &[u8],
        path: &Path,
        folder: &Folder,
        options: &ReadOptions,
    ) -> Result<Vec<Description>> {
        let file = path.display().to_string();
        let root = || xml::parse(bytes, &file);
        match self {
            Self::Vmx => one(vmware::parse(bytes, path, folder)),
            Self::Vbox => one(virtualbox::read(&root()?, path, folder)),
            Self::Libvirt => one(libvirt::read(&root()?, path, folder)),
            Self::Ovf => ovf::read(&root()?, path, folder, options),
            Self::Vmcx => one(hyperv::read(bytes, path, folder)),
            Self::Parallels => one(parallels::parse(&root()?, path, folder)),
            Self::HypervXml => one(hyperv::read_xml(&root()?, path, folder)),
            Self::Xva => one(xen::read_export(&root()?, path)),
            Self::XlJson => xen::read_json(bytes, path, folder),
            Self::XlConfig => one(xen::read_config(&text::decode_named(bytes, None), path, folder)),
            Self::Proxmox => one(proxmox::read(&text::decode_named(bytes, None), path, folder)),
            Self::Toml => {
                let spec = VmSpec::from_toml(&text::decode_named(bytes, None), &file)?;
                Ok(vec![Description::from_spec(spec, path, folder)])
            }
            Self::Vagrant => one(vagrant::parse(bytes, path)),
            Self::Archive | Self::Backup => {
                Err(text::error(path, "Expected a description and not an archive"))
            }
        }
    }
}

/// An archive is an export of XenServer if its first member is `ova.xml`, a box of Vagrant's with its `metadata.json`, and an OVF
/// package otherwise.
fn archive(path: &Path, options: &ReadOptions) -> Result<Vec<Description>> {
    if !vagrant::is_box(path) {
        let (name, bytes) = tar::first_member(path)?;
        if &*name == "ova.xml" {
            let root = xml::parse(&bytes, &format!("{}/{name}", path.display()))?;
            return one(xen::read_export(&root, path));
        }
    }
    let archive = Archive::open(path, ovf::MOST_MEMBERS, options.cache.as_deref())?;
    if archive.locate(vagrant::METADATA).is_usable() {
        return vagrant::read_box(archive, path, options);
    }
    ovf::read_archive(archive, path, "ova", options)
}

fn one(vm: Result<Description>) -> Result<Vec<Description>> {
    vm.map(|vm| vec![vm])
}

/// Whether one of the first lines says what every `.vmx` says.
fn looks_like_vmx(text: &str) -> bool {
    text.lines().take(2000).filter_map(|line| line.split_once('=')).any(|(key, _)| {
        let key = key.trim().to_ascii_lowercase();
        let typical = ["config.version", "virtualhw.version", "guestos", "memsize", "displayname"];
        typical.contains(&key.as_str())
    })
}

/// Our own description in the folder of a VM, as `import` makes it.
pub const OWN_DESCRIPTION: &str = "vm.toml";

/// Endings of descriptions; what comes first counts.
const ENDINGS: [&str; 11] =
    ["pvs", "vbox", "vmx", "vmtx", "ovf", "ova", "xva", "vmcx", "xml", "cfg", "conf"];

/// The one description in a folder; `None` if it holds none.
fn in_folder(path: &Path) -> Result<Option<PathBuf>> {
    let folder = Folder::new(path, false)?;
    if let Some(own) = folder.find(OWN_DESCRIPTION).filter(|own| own.is_file()) {
        return Ok(Some(own));
    }
    // What is beside it is another program's VM, or a disk alone.
    if let Some(metadata) = folder.find(vagrant::METADATA).filter(|path| looks_like_one(path)) {
        return Ok(Some(metadata));
    }
    of_platform(path, &folder)
}

/// The one description of a virtualization product in a folder.
pub(crate) fn of_platform(path: &Path, folder: &Folder) -> Result<Option<PathBuf>> {
    let names = folder.names()?;
    for ending in ENDINGS {
        let has_ending = |name: &&String| {
            Path::new(name).extension().is_some_and(|one| one.eq_ignore_ascii_case(ending))
        };
        // Links out of the folder are not found. Other things are XML and `.cfg`, too.
        let found: Vec<_> = names
            .iter()
            .filter(has_ending)
            .filter_map(|name| Some((name, folder.find(name)?)))
            .filter(|(_, path)| {
                path.is_file()
                    && (!matches!(ending, "xml" | "cfg" | "conf") || looks_like_one(path))
            })
            .collect();
        // VirtualBox keeps copies of what it brought to a newer schema: `NAME-1.19-linux.vbox` beside `NAME.vbox`.
        let found: Vec<_> = match ending {
            "vbox" => {
                found.iter().filter(|(name, _)| !is_old_copy(name, &names)).cloned().collect()
            }
            _ => found,
        };
        match &found[..] {
            [] => {}
            [(_, path)] => return Ok(Some(path.clone())),
            _ => {
                let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
                let message = format!("There are several VMs: name one of {}", names.join(", "));
                return Err(text::error(path, message));
            }
        }
    }
    // Hyper-V's exports.
    match folder.find("Virtual Machines").filter(|inner| inner.is_dir() && inner != path) {
        Some(inner) => in_folder(&inner),
        None => Ok(None),
    }
}

/// Whether a `.vbox` is called like another one with a version of the schema behind its name.
fn is_old_copy(name: &str, names: &[String]) -> bool {
    let mut parts = name.rsplitn(3, '-');
    let (Some(system), Some(version), Some(stem)) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_version = version.split_once('.').is_some_and(|(major, minor)| {
        [major, minor]
            .iter()
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    });
    system.ends_with(".vbox") && is_version && names.contains(&format!("{stem}.vbox"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_vms_in_a_folder_one_is_to_be_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_description(folder.path()));
        for name in ["a.vmx", "b.vmx"] {
            std::fs::write(folder.path().join(name), "memsize = \"512\"\n").unwrap();
        }
        assert!(is_description(folder.path()));
        let error = read(folder.path(), &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.ends_with("There are several VMs: name one of a.vmx, b.vmx"), "{error}");
        // What an import has made counts before what it was made of.
        std::fs::write(folder.path().join(OWN_DESCRIPTION), "name = \"ours\"\n").unwrap();
        let vms = read(folder.path(), &ReadOptions::default()).unwrap();
        assert_eq!(vms[0].name.as_deref(), Some("ours"));
    }

    #[test]
    fn what_is_named_as_a_description_is_refused_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        for (name, what) in [("a.vmx", "`key = "), ("b.OVA", "a tar archive"), ("c.vmcx", "Hyper")]
        {
            for content in [&b""[..], b"\0\x01\x02", b"lines of no kind\n"] {
                let path = write(name, content);
                assert!(is_description(&path), "{name}");
                let error = read(&path, &ReadOptions::default()).unwrap_err().to_string();
                assert!(error.contains(what) && error.contains(name), "{error}");
            }
        }
        for name in ["a.raw", "a.vmdk", "a.xml", "vmx"] {
            assert!(!is_description(&write(name, b"\0")), "{name}");
        }
    }

    #[test]
    fn a_disk_with_a_text_in_it_is_no_description() {
        let metadata = "vg {\nname = \"a\"\ntype = \"striped\"\nmemory = 1\n}\n";
        let detect = |head: &str| Kind::detect(head.as_bytes(), Path::new("disk.img"));
        assert_eq!(detect(metadata), Some(Kind::XlConfig));
        assert_eq!(detect(&format!("LABELONE\0\0\n{metadata}\0\0")), None);
    }
}
