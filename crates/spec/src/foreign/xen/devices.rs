//! Disks and network cards as texts.

use super::super::description::{
    Bus, Description, Drive, DriveKind, FileRef, Level, NetworkCard, mac,
};
use super::super::folder::Folder;
use super::super::libvirt::letters_to_index;

/// Reads a disk of xl-disk-configuration(5): positions, `key=value` and the prefixes of `xm`, in any mixture. The error is a
/// sentence.
pub(crate) fn disk(text: &str, folder: &Folder) -> Result<Drive, String> {
    let mut drive = Drive { connected: true, ..Drive::default() };
    let (mut target, mut format, mut vdev, mut access) = (None, None, None, None);
    let mut rest = text.trim();
    // Prefixes say the format, which is then no position.
    let mut has_prefix = false;
    // A script gives the target a meaning of its own.
    let mut has_script = false;
    while let Some((prefix, after)) = rest.split_once(':') {
        match prefix {
            "raw" | "qcow" | "qcow2" | "vhd" | "qed" => format = Some(prefix.to_owned()),
            "file" | "phy" | "tap" | "tap2" | "aio" | "tapdisk" | "ioemu" => {}
            _ => break,
        }
        (has_prefix, rest) = (true, after);
    }
    let mut position = 0;
    while !rest.is_empty() {
        let (part, after) = rest.split_once(',').unwrap_or((rest, ""));
        match part.trim().split_once('=') {
            // All that follows is the target, commas and all.
            Some(("target", _)) => {
                target = Some(rest.trim_start().trim_start_matches("target=").to_owned());
                break;
            }
            Some(("format", value)) => format = Some(value.to_owned()),
            Some(("vdev", value)) => vdev = Some(value.to_owned()),
            Some(("access", value)) => access = Some(value.to_owned()),
            Some(("devtype", value)) => {
                if value == "cdrom" {
                    drive.kind = DriveKind::Cdrom;
                }
            }
            Some(("script", _)) => has_script = true,
            Some((
                "backend" | "backendtype" | "colo-host" | "grant_usage" | "specification"
                | "transport",
                _,
            )) => {}
            _ => match part.trim() {
                "cdrom" => drive.kind = DriveKind::Cdrom,
                "discard" | "no-discard" | "direct-io-safe" => {}
                value => {
                    // `xm` had no position for the format, with or without a prefix.
                    let is_name = || place(&mut Drive::default(), value).is_ok();
                    has_prefix |= position == 1 && !value.is_empty() && is_name();
                    let slot = match (position, has_prefix) {
                        (0, _) => Some(&mut target),
                        (1, false) => Some(&mut format),
                        (1, true) | (2, false) => Some(&mut vdev),
                        (2, true) | (3, false) => Some(&mut access),
                        _ => None,
                    };
                    position += 1;
                    match slot {
                        Some(slot) if !value.is_empty() => *slot = Some(value.to_owned()),
                        None if !value.is_empty() => {
                            return Err(format!(
                                "The disk `{}` says `{}`, which is not known",
                                short(text),
                                short(value)
                            ));
                        }
                        _ => {}
                    }
                }
            },
        }
        rest = after;
    }
    let vdev = vdev.ok_or_else(|| {
        format!("The disk `{}` does not say which one it is (such as xvda)", short(text))
    })?;
    place(&mut drive, &vdev)?;
    drive.readonly = match access.as_deref() {
        None => drive.kind == DriveKind::Cdrom,
        Some("r" | "ro" | "w" | "rw" | "w!" | "!" | "r!") => {
            access.is_some_and(|access| access.starts_with('r') && access != "rw")
        }
        Some(other) => {
            return Err(format!("The access `{}` of a disk is neither ro nor rw", short(other)));
        }
    };
    drive.format = match format.as_deref() {
        None | Some("" | "raw") => target.is_some().then(|| "raw".into()),
        Some("qcow" | "qcow2" | "qed") => format,
        Some("vhd" | "vpc") => Some("vhd".into()),
        // A CD-ROM without content.
        Some("empty") => None,
        Some(other) => return Err(format!("The format `{}` of a disk is not known", short(other))),
    };
    drive.file = target.filter(|target| !target.is_empty()).map(|target| match has_script {
        true => FileRef::remote(target),
        false => file(&target, folder),
    });
    Ok(drive)
}

/// The file of a disk.
pub(crate) fn file(target: &str, folder: &Folder) -> FileRef {
    let remote = ["rbd:", "nbd:", "iscsi:", "sheepdog:", "ssh:", "drbd:"];
    if remote.iter().any(|protocol| target.starts_with(protocol)) {
        return FileRef::remote(target);
    }
    folder.locate(target, &[])
}

/// Sets bus, number and kind by the name of the device: `xvda`, `hdc:cdrom`, `sdb`, `d2p0`.
pub(crate) fn place(drive: &mut Drive, name: &str) -> Result<(), String> {
    let (name, kind) = name.split_once(':').unwrap_or((name, ""));
    if kind == "cdrom" {
        drive.kind = DriveKind::Cdrom;
    }
    let plain = name.strip_prefix("/dev/").unwrap_or(name);
    let numbered = plain.strip_prefix('d').and_then(|rest| rest.split_once('p'));
    let (bus, index) = if let Some((disk, partition)) = numbered
        && let (Ok(disk), Ok(_)) = (disk.parse::<u32>(), partition.parse::<u32>())
    {
        (Bus::Xen, Some(disk))
    } else {
        // A partition alone may be given to a PV guest.
        let letters = plain.trim_end_matches(|letter: char| letter.is_ascii_digit());
        let known = [("xvd", Bus::Xen), ("hd", Bus::Ide), ("sd", Bus::Scsi), ("vd", Bus::Virtio)];
        let found =
            known.iter().find_map(|(prefix, bus)| Some((*bus, letters.strip_prefix(prefix)?)));
        found.map_or((Bus::Xen, None), |(bus, letters)| (bus, letters_to_index(letters)))
    };
    let Some(index) = index else {
        return Err(format!("The disk's name `{}` is not known", short(name)));
    };
    drive.bus = bus;
    drive.target = Some(name.to_owned());
    (drive.controller, drive.unit) =
        if bus == Bus::Ide { (index / 2, index % 2) } else { (0, index) };
    Ok(())
}

/// Reads a network card of xl-network-configuration(5). The error is a sentence.
pub(crate) fn network_card(
    text: &str,
    index: usize,
    vm: &mut Description,
) -> Result<NetworkCard, String> {
    let mut card = NetworkCard {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        connected: true,
        connection: Some("bridge".into()),
        ..NetworkCard::default()
    };
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((key, value)) = part.split_once('=') else {
            return Err(format!("Expected `key=value` in the network card `{}`", short(text)));
        };
        match key.trim() {
            "mac" => {
                card.mac = Some(
                    mac(value)
                        .ok_or_else(|| format!("`{}` is not a hardware address", short(value)))?,
                );
            }
            "bridge" => card.network = Some(value.into()),
            "model" => card.model = Some(value.into()),
            "type" => {
                if value != "ioemu" {
                    card.model.get_or_insert_with(|| "netfront".into());
                }
            }
            "mtu" => card.mtu = value.parse().ok(),
            "script" | "vifname" | "devid" | "backend" => {}
            _ => vm.note(
                Level::Info,
                format!("The network card {index} says {}, which is not taken over", short(part)),
            ),
        }
    }
    Ok(card)
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
