//! The devices of a VM.

use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::vm::is_default;
use crate::{Error, Forward, MacAddress, Result, Size, option};

/// A disk of any format. As a text: `PATH[,in-place][,discard][,readonly][,format=NAME][,serial=TEXT]...`.
///
/// What the guest writes goes into an overlay that is kept with the VM, unless one of `in_place`, `discard` and
/// `readonly` says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// Its file or block device.
    pub path: PathBuf,
    /// Its format, such as `raw` or `vmdk`; found out by content if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Whether the guest writes to the image itself.
    #[serde(skip_serializing_if = "is_default")]
    pub in_place: bool,
    /// Whether what the guest writes is gone after the run.
    #[serde(skip_serializing_if = "is_default")]
    pub discard: bool,
    /// Whether the guest cannot write to it.
    #[serde(skip_serializing_if = "is_default")]
    pub readonly: bool,
    /// Whether the files that the image names, such as its parents, may lie outside of its folder.
    #[serde(skip_serializing_if = "is_default")]
    pub outside: bool,
    /// The folder in which the files that the image names may lie, such as a VM's; the image's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<PathBuf>,
    /// Whether the host's page cache is passed by.
    #[serde(skip_serializing_if = "is_default")]
    pub direct: bool,
    /// The serial number that the guest reads, up to 20 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub serial: Option<String>,
    /// How many queues it has; one for each processor, up to 4, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<u16>,
    /// How much it may do.
    #[serde(skip_serializing_if = "is_default")]
    pub rate: Rate,
}

/// A network card. As a text: `user[,forwards=8080:80]...`, `tap=NAME[,mac=ADDRESS]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nic {
    /// What it is connected to; see [`kind`](Nic::kind) for one that does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<NicKind>,
    /// The tap interface's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Its hardware address; made from the VM's name if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// What the guest calls it, such as `ens192`, if it had that name elsewhere and is to keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many pairs of queues it has; one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<u16>,
    /// The largest payload of a frame, 68 to 65535 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68))]
    pub mtu: Option<u16>,
    /// Ports of the host that lead into the guest.
    #[serde(alias = "forward", skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<Forward>,
    /// How much it may do in each direction.
    #[serde(skip_serializing_if = "is_default")]
    pub rate: Rate,
}

/// What a network card is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NicKind {
    /// The host's network, without privileges.
    #[default]
    User,
    /// A tap interface of the host.
    Tap,
}

/// A folder of the host that the guest sees. As a text: `DIR[:TAG][,readonly]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Share {
    /// The folder.
    pub dir: PathBuf,
    /// The name by which the guest mounts it, up to 36 bytes; see [`tag`](Share::tag) for one that does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 36))]
    pub tag: Option<String>,
    /// Whether the guest cannot write to it.
    #[serde(skip_serializing_if = "is_default")]
    pub readonly: bool,
}

/// Sockets between guest and host. As a text: `PATH[,cid=N]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Vsock {
    /// The Unix socket on the host.
    pub path: PathBuf,
    /// The guest's address, from 3 on; 3 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3))]
    pub cid: Option<u32>,
}

/// How much a device may do per second; without limits if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rate {
    /// Bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Size>,
    /// Requests or frames per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub operations_per_second: Option<u32>,
    /// How many milliseconds' worth may be saved up and spent at once; one second's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

impl Nic {
    /// What it is connected to: what it says, or a tap if it names one, or the user-mode network.
    pub fn kind(&self) -> NicKind {
        let named = if self.tap.is_some() { NicKind::Tap } else { NicKind::User };
        self.kind.unwrap_or(named)
    }
}

impl Share {
    /// The name by which the guest mounts it: what it says, or the folder's own name.
    pub fn tag(&self) -> String {
        let own_name = || self.dir.file_name().map(|name| name.to_string_lossy().into_owned());
        self.tag.clone().or_else(own_name).unwrap_or_else(|| "root".into())
    }
}

impl Vsock {
    /// The guest's address, by default the first that a guest can have.
    pub fn cid(&self) -> u32 {
        self.cid.unwrap_or(3)
    }
}

impl FromStr for Disk {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        option::parse(text, "path")
    }
}

impl FromStr for Nic {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        option::parse(text, "kind")
    }
}

impl FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut share: Self = option::parse(text, "dir")?;
        // With a tag of its own the folder may have a colon in its name.
        if share.tag.is_none()
            && let Some((dir, tag)) = share.dir.to_str().and_then(|text| text.rsplit_once(':'))
        {
            let (dir, tag) = (PathBuf::from(dir), tag.to_owned());
            share = Self { dir, tag: Some(tag), ..share };
        }
        Ok(share)
    }
}

impl FromStr for Vsock {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        option::parse(text, "path")
    }
}
