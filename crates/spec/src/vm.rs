//! The description of one VM.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Cpus, Disk, Error, Nic, Result, Share, Size, Smbios, Vsock, option, shorthand};

/// The neutral description of one VM.
///
/// What is absent was not said, and whoever builds the machine chooses; so that a description from the
/// command line can be laid [over](VmSpec::merge) one from a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmSpec {
    /// Its name, unique on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The guest to run: a name such as `debian`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where the guest's console is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<Console>,
    /// Whether the guest can give memory back; yes if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<bool>,
    /// Whether the guest gets random bytes from the host; yes if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng: Option<bool>,
    /// Its processors.
    #[serde(deserialize_with = "shorthand::one", skip_serializing_if = "is_default")]
    #[schemars(schema_with = "shorthand::one_schema::<Cpus>")]
    pub cpus: Cpus,
    /// Its memory.
    #[serde(deserialize_with = "shorthand::one", skip_serializing_if = "is_default")]
    #[schemars(schema_with = "shorthand::one_schema::<Memory>")]
    pub memory: Memory,
    /// What it tells the guest about itself.
    #[serde(deserialize_with = "shorthand::one", skip_serializing_if = "is_default")]
    #[schemars(schema_with = "shorthand::one_schema::<Smbios>")]
    pub smbios: Smbios,
    /// What it starts with, if not with what is on its disks.
    #[serde(skip_serializing_if = "is_default")]
    pub boot: Boot,
    /// Sockets between guest and host.
    #[serde(deserialize_with = "shorthand::some", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shorthand::one_schema::<Vsock>")]
    pub vsock: Option<Vsock>,
    /// Its disks, in the order in which the guest sees them.
    #[serde(deserialize_with = "shorthand::list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "shorthand::list_schema::<Disk>")]
    pub disks: Vec<Disk>,
    /// Its network cards; an empty list says none.
    #[serde(deserialize_with = "shorthand::some_list", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shorthand::list_schema::<Nic>")]
    pub nics: Option<Vec<Nic>>,
    /// Folders of the host that the guest sees.
    #[serde(deserialize_with = "shorthand::list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "shorthand::list_schema::<Share>")]
    pub shares: Vec<Share>,
}

/// Memory. As a text: `2G,hugepages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// How much; 512M if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Whether it is made of the host's huge pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<bool>,
    /// Whether the host sets it aside at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prealloc: Option<bool>,
    /// Whether other processes can map it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
}

/// A kernel to start with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// The kernel's file, or `host` for the kernel that the host runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initial file system's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// What the kernel is told, after what the machine itself has to tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// Where the guest's console is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// The first serial port.
    #[default]
    Serial,
    /// A virtio console.
    Virtio,
}

/// What [`Boot::kernel`] says for the kernel that the host runs; a file of that name is `./host`.
pub const HOST_KERNEL: &str = "host";

impl VmSpec {
    /// This description with `over` laid over it: what `over` says counts, key by key. A list is one key: all
    /// of `over`'s disks or all of these.
    #[must_use]
    pub fn merge(self, over: Self) -> Self {
        // Taken apart, so that no new key is forgotten.
        let Self {
            name,
            image,
            console,
            balloon,
            rng,
            cpus,
            memory,
            smbios,
            boot,
            vsock,
            disks,
            nics,
            shares,
        } = over;
        Self {
            name: name.or(self.name),
            image: image.or(self.image),
            console: console.or(self.console),
            balloon: balloon.or(self.balloon),
            rng: rng.or(self.rng),
            cpus: self.cpus.merge(cpus),
            memory: self.memory.merge(memory),
            smbios: self.smbios.merge(smbios),
            boot: self.boot.merge(boot),
            vsock: vsock.or(self.vsock),
            disks: if disks.is_empty() { self.disks } else { disks },
            nics: nics.or(self.nics),
            shares: if shares.is_empty() { self.shares } else { shares },
        }
    }

    /// This description with relative paths taken from `folder`, where the file is that it was read from.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> Self {
        let boot = &mut self.boot;
        let kernel = boot.kernel.iter_mut().filter(|kernel| **kernel != Path::new(HOST_KERNEL));
        let paths = kernel
            .chain(&mut boot.initrd)
            .chain(
                self.disks
                    .iter_mut()
                    .flat_map(|disk| std::iter::once(&mut disk.path).chain(&mut disk.within)),
            )
            .chain(self.shares.iter_mut().map(|share| &mut share.dir))
            .chain(self.vsock.iter_mut().map(|vsock| &mut vsock.path));
        for path in paths.filter(|path| !path.as_os_str().is_empty()) {
            *path = folder.join(&*path);
        }
        self
    }
}

impl Memory {
    /// What a VM has that does not say.
    pub const DEFAULT_SIZE: Size = Size::mebibytes(512);

    /// How much, by default [`DEFAULT_SIZE`](Self::DEFAULT_SIZE).
    pub fn size(&self) -> Size {
        self.size.unwrap_or(Self::DEFAULT_SIZE)
    }

    /// Whether it is made of huge pages, by default not.
    pub fn hugepages(&self) -> bool {
        self.hugepages.unwrap_or(false)
    }

    /// Whether it is set aside at the start, by default not.
    pub fn prealloc(&self) -> bool {
        self.prealloc.unwrap_or(false)
    }

    /// Whether other processes can map it, by default not.
    pub fn shared(&self) -> bool {
        self.shared.unwrap_or(false)
    }

    fn merge(self, over: Self) -> Self {
        let Self { size, hugepages, prealloc, shared } = over;
        Self {
            size: size.or(self.size),
            hugepages: hugepages.or(self.hugepages),
            prealloc: prealloc.or(self.prealloc),
            shared: shared.or(self.shared),
        }
    }
}

impl Boot {
    /// Whether the kernel is the one that the host runs.
    pub fn is_host_kernel(&self) -> bool {
        self.kernel.as_deref() == Some(Path::new(HOST_KERNEL))
    }

    fn merge(self, over: Self) -> Self {
        let Self { kernel, initrd, cmdline } = over;
        Self {
            kernel: kernel.or(self.kernel),
            initrd: initrd.or(self.initrd),
            cmdline: cmdline.or(self.cmdline),
        }
    }
}

impl FromStr for Memory {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        option::parse(text, "size")
    }
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_counts_over_the_file_key_by_key() {
        let file = VmSpec {
            name: Some("web".into()),
            cpus: "4".parse().unwrap(),
            memory: "1G,hugepages".parse().unwrap(),
            disks: vec!["root.img".parse().unwrap(), "data.img".parse().unwrap()],
            nics: Some(vec!["user".parse().unwrap()]),
            rng: Some(false),
            ..VmSpec::default()
        };
        let line = VmSpec {
            cpus: "1".parse().unwrap(),
            memory: "2G".parse().unwrap(),
            disks: vec!["other.img".parse().unwrap()],
            nics: Some(Vec::new()),
            ..VmSpec::default()
        };
        let merged = file.clone().merge(line);
        assert_eq!(merged.name.as_deref(), Some("web"));
        assert_eq!(merged.cpus.count(), 1);
        assert_eq!(merged.memory, "2G,hugepages".parse().unwrap());
        assert_eq!(merged.disks.len(), 1);
        assert_eq!(merged.nics, Some(Vec::new()));
        assert_eq!(merged.rng, Some(false));
        assert_eq!(file.clone().merge(VmSpec::default()), file);
        assert_eq!(VmSpec::default().merge(file.clone()), file);
    }

    #[test]
    fn paths_are_taken_from_the_folder_of_the_file() {
        let spec = VmSpec {
            boot: Boot {
                kernel: Some("vmlinuz".into()),
                initrd: Some("/boot/initrd".into()),
                cmdline: None,
            },
            disks: vec!["images/root.img".parse().unwrap(), "/dev/sdb".parse().unwrap()],
            shares: vec![".:here".parse().unwrap()],
            ..VmSpec::default()
        };
        let spec = spec.relative_to(Path::new("/srv/vm"));
        assert_eq!(spec.boot.kernel, Some("/srv/vm/vmlinuz".into()));
        assert_eq!(spec.boot.initrd, Some("/boot/initrd".into()));
        assert_eq!(spec.disks[0].path, Path::new("/srv/vm/images/root.img"));
        assert_eq!(spec.disks[1].path, Path::new("/dev/sdb"));
        assert_eq!(spec.shares[0].dir, Path::new("/srv/vm/."));
        let host = VmSpec {
            boot: Boot { kernel: Some("host".into()), ..Boot::default() },
            ..VmSpec::default()
        };
        assert!(host.relative_to(Path::new("/srv/vm")).boot.is_host_kernel());
    }
}
