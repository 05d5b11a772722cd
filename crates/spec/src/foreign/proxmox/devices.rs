//! Drives, network cards and other devices.

use super::super::description::{
    Bus, Description, Drive, DriveKind, FileRef, NetworkCard, SerialPort, Unread, mac,
};
use super::syntax::{Entry, decoded};

/// How a drive is read, written and backed up there.
const KNOWN_OF_DRIVES: &[&str] = &[
    "aio",
    "backup",
    "bps",
    "bps_rd",
    "bps_wr",
    "cache",
    "detect_zeroes",
    "discard",
    "iops",
    "iops_max",
    "iops_rd",
    "iops_rd_max",
    "iops_wr",
    "iops_wr_max",
    "iothread",
    "mbps",
    "mbps_max",
    "mbps_rd",
    "mbps_rd_max",
    "mbps_wr",
    "mbps_wr_max",
    "product",
    "queues",
    "replicate",
    "rerror",
    "scsiblock",
    "shared",
    "ssd",
    "vendor",
    "werror",
    "wwn",
];
const KNOWN_OF_CARDS: &[&str] = &["firewall", "queues", "rate"];

/// Bus, controller and unit of a drive.
pub(super) fn place(word: &str, index: u32) -> Option<(Bus, u32, u32)> {
    Some(match word {
        "scsi" => (Bus::Scsi, 0, index),
        "sata" => (Bus::Sata, 0, index),
        "ide" => (Bus::Ide, index / 2, index % 2),
        "virtio" => (Bus::Virtio, 0, index),
        _ => return None,
    })
}

pub(super) fn drive(
    entry: &Entry,
    index: u32,
    locate: &dyn Fn(&str) -> FileRef,
    unread: &mut Vec<Unread>,
) -> Drive {
    let (bus, controller, unit) = place(entry.word(), index).unwrap_or_default();
    let mut drive = Drive::new(DriveKind::Disk, bus, controller, unit);
    drive.target = Some(entry.key.clone());
    for (key, value) in entry.options("file").iter() {
        match key {
            "file" | "volume" if value == "none" => {}
            "file" | "volume" if value == "cdrom" => drive.kind = DriveKind::Passthrough,
            "file" | "volume" => {
                drive.file = Some(locate(value));
                drive.format = drive.format.or_else(|| Some(format_of(value).into()));
            }
            "media" if value == "cdrom" && drive.kind == DriveKind::Disk => {
                drive.kind = DriveKind::Cdrom;
            }
            "media" => {}
            "format" => drive.format = Some(value.into()),
            "size" => drive.capacity = size(value),
            "ro" => drive.readonly = value == "1",
            "snapshot" => drive.volatile = value == "1",
            "serial" => drive.serial = Some(decoded(value)),
            key if KNOWN_OF_DRIVES.contains(&key) => {}
            key => {
                unread.push(Unread { key: format!("{}.{key}", entry.key), ..entry.unread(value) })
            }
        }
    }
    drive
}

/// A volume's format: what its name ends in, raw where volumes are devices.
fn format_of(volume: &str) -> &'static str {
    match volume.rsplit_once('.').map(|(_, ending)| ending) {
        Some("qcow2") => "qcow2",
        Some("vmdk") => "vmdk",
        _ => "raw",
    }
}

/// A length such as `32G`, in bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let number: f64 = digits.parse().ok()?;
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let bytes = number * (1_u64 << shift) as f64;
    (bytes >= 0.0 && bytes < (1_u64 << 60) as f64).then_some(bytes as u64)
}

pub(super) fn card(entry: &Entry, index: u32, unread: &mut Vec<Unread>) -> NetworkCard {
    let mut card = NetworkCard { index, connected: true, ..NetworkCard::default() };
    for (key, value) in entry.options("model").iter() {
        match key {
            "model" => card.model = Some(value.into()),
            "macaddr" => card.mac = mac(value),
            "bridge" => card.network = Some(value.into()),
            "link_down" => card.connected = value != "1",
            // 1 is that of the bridge.
            "mtu" => card.mtu = value.parse().ok().filter(|mtu| *mtu > 1),
            key if KNOWN_OF_CARDS.contains(&key) => {}
            key => match mac(value) {
                // `virtio=ADDRESS`
                Some(address) => (card.model, card.mac) = (Some(key.into()), Some(address)),
                None => unread
                    .push(Unread { key: format!("{}.{key}", entry.key), ..entry.unread(value) }),
            },
        }
    }
    let connection = if card.network.is_some() { "bridge" } else { "user" };
    card.connection = Some(connection.into());
    card
}

/// A serial port: a socket, or a device of the host.
pub(super) fn serial(index: u32, value: &str) -> SerialPort {
    let is_socket = value == "socket";
    SerialPort {
        index,
        backend: Some(if is_socket { "socket" } else { "device" }.into()),
        target: (!is_socket).then(|| value.into()),
    }
}

/// Adds a device of which nothing more is known; whether it is one.
pub(super) fn other(word: &str, value: &str, vm: &mut Description) -> bool {
    let (kind, model) = match word {
        "hostpci" => ("pci", value),
        "usb" => ("usb", value),
        "audio" => ("sound", value),
        "parallel" => ("parallel", value),
        "watchdog" => ("watchdog", value),
        "ivshmem" => ("shmem", value),
        // A terminal instead of a screen.
        "vga" if value.starts_with("serial") || value == "none" => return true,
        "vga" => ("display", value),
        _ => return false,
    };
    vm.device(kind, Some(model.into()));
    true
}
