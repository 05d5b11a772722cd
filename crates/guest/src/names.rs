//! How Linux names block devices: in `root=`, in fstab, in crypttab.

use crate::storage::Found;

/// The volume that `text` names: `UUID=...`, `LABEL=...`, `/dev/sda1` and so on; its index.
pub fn find(volumes: &[Found], text: &str) -> Option<usize> {
    let text = text.trim_matches('"');
    let by = |matches: &dyn Fn(&Found) -> bool| volumes.iter().position(matches);
    let same = |value: &Option<String>, wanted: &str| {
        value.as_deref().is_some_and(|value| value.eq_ignore_ascii_case(wanted))
    };
    let tagged = |tag: &str, folder: &str| {
        let after = |prefix: &str| {
            let start = text.get(..prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then(|| text[prefix.len()..].trim_matches('"'))
        };
        after(&format!("{tag}=")).or_else(|| after(&format!("/dev/disk/{folder}/")))
    };
    if let Some(wanted) = tagged("PARTUUID", "by-partuuid") {
        return by(&|found| same(&found.report.part_uuid, wanted));
    }
    if let Some(wanted) = tagged("UUID", "by-uuid") {
        return by(&|found| same(&found.report.uuid, wanted));
    }
    if let Some(wanted) = tagged("PARTLABEL", "by-partlabel") {
        return by(&|found| found.report.part_label.as_deref() == Some(wanted));
    }
    if let Some(wanted) = tagged("LABEL", "by-label") {
        return by(&|found| found.report.label.as_deref() == Some(wanted));
    }
    let name = on_virtio(text).or_else(|| text.strip_prefix("/dev/").map(str::to_owned))?;
    by(&|found| found.report.name == name || mapper(&found.report.name, &name))
}

/// `/dev/vg/lv` and `/dev/mapper/vg-lv` are the same.
fn mapper(found: &str, wanted: &str) -> bool {
    let Some((group, volume)) = wanted.split_once('/') else { return false };
    let doubled = |name: &str| name.replace('-', "--");
    found == format!("mapper/{}-{}", doubled(group), doubled(volume))
}

/// What a device that is named by its controller is called on virtio: `/dev/sda1` is `vda1`. `None` for other names.
pub fn on_virtio(text: &str) -> Option<String> {
    let name = text.strip_prefix("/dev/")?;
    for prefix in ["sd", "hd", "xvd", "vd"] {
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        let letters = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
        let (letters, number) = rest.split_at(letters);
        if !letters.is_empty() && number.chars().all(|c| c.is_ascii_digit()) {
            return Some(format!("vd{letters}{number}"));
        }
    }
    let (disk, partition) = if let Some(rest) = name.strip_prefix("nvme") {
        let (disk, rest) = rest.split_once("n1")?;
        (disk, rest)
    } else {
        let rest = name.strip_prefix("mmcblk")?;
        rest.split_at(rest.find('p').unwrap_or(rest.len()))
    };
    let letter = char::from(b'a' + disk.parse::<u8>().ok().filter(|&disk| disk < 26)?);
    let partition = partition.strip_prefix('p').unwrap_or(partition);
    partition.chars().all(|c| c.is_ascii_digit()).then(|| format!("vd{letter}{partition}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_controller_have_names_on_virtio() {
        let cases = [
            ("/dev/sda1", Some("vda1")),
            ("/dev/hdb", Some("vdb")),
            ("/dev/xvdaa15", Some("vdaa15")),
            ("/dev/vda2", Some("vda2")),
            ("/dev/nvme0n1p3", Some("vda3")),
            ("/dev/nvme1n1", Some("vdb")),
            ("/dev/mmcblk0p2", Some("vda2")),
            ("/dev/mapper/vg-root", None),
            ("/dev/sda1x", None),
            ("/dev/nvme99n1p1", None),
            ("UUID=1", None),
        ];
        for (name, expected) in cases {
            assert_eq!(on_virtio(name).as_deref(), expected, "{name}");
        }
        assert!(mapper("mapper/my--vg-root", "my-vg/root"));
    }
}
