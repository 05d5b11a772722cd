//! What `virsh` prints.

use crate::{Error, Result, State, VmSummary};

/// Length of a UUID in text.
const UUID: usize = 36;

/// The output of `list --all --uuid --name`, and of `domstats` behind it.
pub(super) fn list(text: &str) -> Result<Vec<VmSummary>> {
    let (names, statistics) = match text.find("Domain: '") {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let mut vms = Vec::new();
    for line in names.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        let parts =
            line.split_at_checked(UUID).and_then(|(id, rest)| Some((id, rest.strip_prefix(' ')?)));
        let is_id = |id: &str| id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let (id, name) = parts.filter(|(id, _)| is_id(id)).ok_or_else(|| {
            let line: String = line.chars().take(80).collect();
            Error::reply("virsh list", format!("{line:?} is no UUID and a name"))
        })?;
        vms.push(VmSummary {
            name: name.trim_start().into(),
            id: Some(id.into()),
            ..VmSummary::default()
        });
    }
    let mut current = None;
    let mut state = 0;
    for line in statistics.lines() {
        if let Some(rest) = line.strip_prefix("Domain: '") {
            let name = rest.strip_suffix('\'').unwrap_or(rest);
            current = vms.iter().position(|vm| vm.name == name);
            state = 0;
            continue;
        }
        let Some(vm) = current.and_then(|at: usize| vms.get_mut(at)) else { continue };
        let Some((key, value)) = line.trim().split_once('=') else { continue };
        let Ok(value) = value.parse::<u64>() else { continue };
        match key {
            "state.state" => {
                state = value;
                vm.state = self::state(value, 0);
            }
            "state.reason" => vm.state = self::state(state, value),
            "vcpu.current" => vm.cpus = u32::try_from(value).ok(),
            "balloon.current" => vm.memory = value.checked_mul(1024),
            _ => {}
        }
    }
    Ok(vms)
}

/// `virDomainState` and, for what is shut off, `virDomainShutoffReason`.
fn state(state: u64, reason: u64) -> State {
    const CRASHED: u64 = 3;
    const SAVED: u64 = 5;
    match (state, reason) {
        // A blocked guest waits for something that a running one would wait for, too.
        (1 | 2, _) => State::Running,
        (3, _) => State::Paused,
        (4, _) => State::Changing,
        (5, SAVED) | (7, _) => State::Suspended,
        (5, CRASHED) | (6, _) => State::Crashed,
        (5, _) => State::Stopped,
        _ => State::Unknown,
    }
}

/// The addresses in the output of `domifaddr`: name, MAC, protocol, and address with its prefix.
pub(super) fn addresses(text: &str) -> Vec<String> {
    let address = |line: &str| {
        let mut words = line.split_whitespace().rev();
        let (address, _) = words.next()?.split_once('/')?;
        address.parse::<std::net::IpAddr>().ok()
    };
    let mut found: Vec<_> = text.lines().take(1000).filter_map(address).collect();
    found.retain(|address| !address.is_loopback());
    found.dedup();
    found.iter().map(ToString::to_string).collect()
}

/// Seconds since 1970 as other platforms write times.
pub(super) fn utc(seconds: &str) -> Option<String> {
    let seconds: u64 = seconds.parse().ok()?;
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar in eras of 400 years that begin in March (Hinnant, "chrono-compatible date algorithms").
    let days = days.checked_add(719_468)?;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era.checked_mul(400)? + year + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    Some(format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

/// Reads what a fuzzer says in virsh's place.
pub fn fuzz(text: &str) {
    let _ = console_log(text.as_bytes());
    let _ = list(text);
    let _ = (addresses(text), utc(text));
}

/// The file in which libvirt keeps what a serial port or console shows: `<log file="..."/>`.
pub(super) fn console_log(document: &[u8]) -> Option<String> {
    let root = crate::xml::parse(document).ok()?;
    let devices = root.child("devices")?;
    let ports = devices.children("serial").chain(devices.children("console"));
    let file = |port: &crate::xml::Element| {
        let (_, path) = port.child("log")?.attributes.iter().find(|(name, _)| name == "file")?;
        path.starts_with('/').then(|| path.clone())
    };
    ports.into_iter().find_map(file)
}

/// Pool and volume of a disk that is written `POOL/VOLUME`.
pub(super) fn volume(written: &str) -> Option<(&str, &str)> {
    let is_plain = |part: &str| !part.is_empty() && !part.starts_with('-') && !part.contains(':');
    written.split_once('/').filter(|(pool, volume)| is_plain(pool) && is_plain(volume))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What virsh 9.0 printed of QEMU's VMs.
    const LIST: &str = "1b9699ce-5672-49fa-8ce1-dd30deb7e4fd web\n\
        2b9699ce-5672-49fa-8ce1-dd30deb7e4fd it's  a name\n\n\
        Domain: 'web'\n  state.state=3\n  state.reason=1\n  balloon.current=65536\n  balloon.maximum=65536\n\
        \x20 vcpu.current=1\n  vcpu.maximum=1\n  vcpu.0.state=1\n\n\
        Domain: 'it's  a name'\n  state.state=5\n  state.reason=5\n  vcpu.current=4\n\n\
        Domain: 'came later'\n  state.state=1\n";

    #[test]
    fn a_log_is_found_at_a_port_or_a_console() {
        let document = |port: &str| format!("<domain><devices><disk/>{port}</devices></domain>");
        let log = |port: &str| console_log(document(port).as_bytes());
        let found = log("<serial type='pty'><log file='/var/log/a b.log' append='on'/></serial>");
        assert_eq!(found.as_deref(), Some("/var/log/a b.log"));
        assert_eq!(log("<console type='pty'><log file='/x'/></console>").as_deref(), Some("/x"));
        assert_eq!(log("<serial type='pty'/>"), None);
        assert_eq!(console_log(b"<domain"), None);
    }

    #[test]
    fn lists_are_read_with_states_processors_and_memory() {
        let vms = list(LIST).unwrap();
        let facts: Vec<_> =
            vms.iter().map(|vm| (&vm.name[..], vm.state, vm.cpus, vm.memory)).collect();
        assert_eq!(
            facts,
            [
                ("web", State::Paused, Some(1), Some(64 << 20)),
                ("it's  a name", State::Suspended, Some(4), None)
            ]
        );
        assert!(list("error: something\n").is_err());
        assert_eq!(list("\n").unwrap(), []);
    }

    #[test]
    fn seconds_become_dates() {
        // date -u -d @SECONDS
        assert_eq!(utc("0").unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(utc("951782399").unwrap(), "2000-02-28T23:59:59Z");
        assert_eq!(utc("951782400").unwrap(), "2000-02-29T00:00:00Z");
        assert_eq!(utc("1795396719").unwrap(), "2026-11-23T01:18:39Z");
        assert_eq!(utc("x"), None);
        assert!(utc("18446744073709551615").is_some());
    }

    #[test]
    fn addresses_are_read_and_what_is_none_is_not() {
        let text = " vnet0      52:54:00:aa:bb:cc    ipv4         192.168.122.7/24\n \
                    -          -                    ipv6         fe80::1/64\n lo 0 ipv4 127.0.0.1/8\n what";
        assert_eq!(addresses(text), ["192.168.122.7", "fe80::1"]);
    }
}
