//! Names of network cards that a guest keeps.

use guest::{NicName, Os};
use spec::{MacAddress, Nic, VmSpec};

/// What the guest's cards were called elsewhere: as the description says, or as the guest's own configuration does if
/// that names as many cards as there are.
pub fn of_nics(spec: &VmSpec, os: Option<&Os>) -> Vec<NicName> {
    let nics = spec.nics.as_deref().unwrap_or_default();
    let configured: Vec<&str> =
        os.into_iter().flat_map(|os| &os.interfaces).map(String::as_str).collect();
    let free = |name: &&&str| !nics.iter().any(|nic| nic.name.as_deref() == Some(**name));
    let mut left: Vec<&str> =
        configured.iter().filter(free).copied().filter(|name| is_card(name)).collect();
    let unnamed = nics.iter().filter(|nic| nic.name.is_none()).count();
    if left.len() == unnamed && is_one_series(&left) {
        // Platforms count their cards upwards, and so do the names.
        left.sort_by_key(|name| (name.len(), *name));
    } else {
        left.clear();
    }
    let mut left = left.into_iter();
    let names = nics.iter().zip(0..).filter_map(|(nic, index)| {
        let name = nic.name.clone().or_else(|| left.next().map(str::to_owned))?;
        Some(NicName { mac: address(spec, nic, index).to_string(), name })
    });
    names.collect()
}

/// The address that the machine gives to a card.
fn address(spec: &VmSpec, nic: &Nic, index: usize) -> MacAddress {
    let vm = spec.name.as_deref().unwrap_or("vm");
    nic.mac.unwrap_or_else(|| MacAddress::of_name(&format!("{vm}/net{index}")))
}

/// Bridges, bonds, tunnels and VLANs are made by the guest.
fn is_card(name: &str) -> bool {
    ["eth", "en"].iter().any(|prefix| name.starts_with(prefix))
        && name.len() < 16
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Names that differ in their last number only.
fn is_one_series(names: &[&str]) -> bool {
    let stems = names.iter().map(|name| name.trim_end_matches(|c: char| c.is_ascii_digit()));
    let mut stems: Vec<_> = stems.collect();
    stems.dedup();
    stems.len() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(nics: &[&str], interfaces: &[&str]) -> Vec<String> {
        let nics = nics.iter().enumerate().map(|(index, name)| Nic {
            mac: Some(MacAddress([2, 0, 0, 0, 0, index as u8])),
            name: (!name.is_empty()).then(|| (*name).to_owned()),
            ..Nic::default()
        });
        let spec = VmSpec { nics: Some(nics.collect()), ..VmSpec::default() };
        let os = Os {
            interfaces: interfaces.iter().map(|&name| name.into()).collect(),
            ..Os::default()
        };
        of_nics(&spec, Some(&os))
            .into_iter()
            .map(|nic| format!("{}={}", &nic.mac[15..], nic.name))
            .collect()
    }

    #[test]
    fn cards_keep_the_names_of_their_slots() {
        assert_eq!(names(&["ens192", "ens224"], &[]), ["00=ens192", "01=ens224"]);
        assert_eq!(names(&["ens192", ""], &["ens192", "eth7", "br0"]), ["00=ens192", "01=eth7"]);
    }

    #[test]
    fn as_many_names_as_cards_are_theirs_in_order() {
        assert_eq!(names(&["", ""], &["enp0s10", "enp0s8", "lo"]), ["00=enp0s8", "01=enp0s10"]);
        assert_eq!(names(&["", ""], &["eth0"]), [""; 0]);
        assert_eq!(names(&["", ""], &["eth0", "enp0s3"]), [""; 0]);
        assert_eq!(names(&[""], &["eth0.5", "ens*"]), [""; 0]);
        assert!(of_nics(&VmSpec::default(), None).is_empty());
    }
}
