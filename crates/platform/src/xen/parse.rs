//! What `xl` and `xenstore-ls` print.

use crate::{Error, Result, State, VmSummary};

/// The table of `xl list`: name, number, MiB, processors, state, seconds. Names may have blanks in them.
pub(super) fn list(text: &str) -> Result<Vec<(u32, VmSummary)>> {
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| line.starts_with("Name")) {
        return Err(Error::reply("xl list", "it has no header"));
    }
    let mut domains = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let domain = domain(line).ok_or_else(|| {
            let line: String = line.chars().take(80).collect();
            Error::reply("xl list", format!("{line:?} is no domain"))
        })?;
        domains.push(domain);
    }
    Ok(domains)
}

fn domain(line: &str) -> Option<(u32, VmSummary)> {
    let mut rest = line;
    let mut word = || {
        let text = rest.trim_end();
        let (before, word) = text.rsplit_once(char::is_whitespace)?;
        rest = before;
        Some(word)
    };
    let _seconds: f64 = word()?.parse().ok()?;
    let flags = word()?;
    let cpus = word()?.parse().ok()?;
    let mebibytes: u64 = word()?.parse().ok()?;
    let id = word()?.parse().ok()?;
    let name = rest.trim_end();
    let summary = VmSummary {
        // A domain that is being made has no name yet.
        name: if name == "(null)" { String::new() } else { name.into() },
        state: state(flags)?,
        cpus: Some(cpus),
        memory: mebibytes.checked_mul(1 << 20),
        ..VmSummary::default()
    };
    Some((id, summary))
}

/// Letters for running, blocked, paused, shut down, crashed, dying; none for one that could run.
fn state(flags: &str) -> Option<State> {
    if flags.is_empty() || !flags.chars().all(|flag| "rbpscd-".contains(flag)) {
        return None;
    }
    let has = |flag| flags.contains(flag);
    Some(match () {
        () if has('c') => State::Crashed,
        () if has('d') || has('s') => State::Changing,
        () if has('p') => State::Paused,
        () => State::Running,
    })
}

/// The table of `xl vm-list`: UUID, number, name.
pub(super) fn add_uuids(text: &str, domains: &mut [(u32, VmSummary)]) {
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let (Some(uuid), Some(Ok(id))) = (words.next(), words.next().map(str::parse::<u32>)) else {
            continue;
        };
        if let Some((_, vm)) = domains.iter_mut().find(|(one, _)| *one == id) {
            vm.id = Some(uuid.into());
        }
    }
}

/// The addresses that a guest's agent tells below `attr`: `/vif/0/ipv4/0` is `192.0.2.1`.
pub(super) fn addresses(facts: &[(String, String)]) -> Vec<String> {
    let address = |(_, value): &(String, String)| value.parse::<std::net::IpAddr>().ok();
    let mut found: Vec<_> = facts.iter().filter_map(address).collect();
    found.sort();
    found.dedup();
    found.iter().map(ToString::to_string).collect()
}

/// `Debian GNU/Linux 12|/boot/...` as the name alone: what follows is of Windows' tools.
pub(super) fn os_name(text: &str) -> String {
    text.split('|').next().unwrap_or(text).trim().chars().take(200).collect()
}

/// Reads what a fuzzer says in xl's place.
pub fn fuzz(text: &str) {
    if let Ok(mut domains) = list(text) {
        add_uuids(text, &mut domains);
    }
    let _ = os_name(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What xl 4.17 printed, and a name with a blank.
    const LIST: &str = "\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0  1024     1     r-----      39.6
pv-guest                                     1   128     1     --p---       7.6
pvh guest                                    2   128     2     ------       3.4
";
    const NAMES: &str = "\
UUID                                  ID    name
00000000-0000-0000-0000-000000000000  0    Domain-0                      
0615fa30-5463-4a12-b7e8-88f16dc4e99c  1    pv-guest                      
";

    #[test]
    fn domains_are_read_with_their_states() {
        let mut domains = list(LIST).unwrap();
        add_uuids(NAMES, &mut domains);
        let facts: Vec<_> = domains
            .iter()
            .map(|(id, vm)| (*id, &vm.name[..], vm.state, vm.cpus, vm.memory))
            .collect();
        assert_eq!(
            facts,
            [
                (0, "Domain-0", State::Running, Some(1), Some(1 << 30)),
                (1, "pv-guest", State::Paused, Some(1), Some(128 << 20)),
                (2, "pvh guest", State::Running, Some(2), Some(128 << 20)),
            ]
        );
        assert_eq!(domains[1].1.id.as_deref(), Some("0615fa30-5463-4a12-b7e8-88f16dc4e99c"));
        assert!(list("").is_err() && list("Name\nsomething else\n").is_err());
    }

    #[test]
    fn addresses_are_found_among_what_guests_tell() {
        let facts = [("/vif/0/ipv4/0", "192.0.2.1"), ("/PVAddons", "1"), ("/x", "2001:db8::1")];
        let facts = facts.map(|(path, value)| (path.to_owned(), value.to_owned()));
        assert_eq!(addresses(&facts), ["192.0.2.1", "2001:db8::1"]);
    }
}
