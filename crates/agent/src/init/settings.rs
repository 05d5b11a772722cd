//! The kernel command line as far as it concerns the agent.

use super::transport::Transport;
use agent::Window;
use std::net::IpAddr;

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `omnivisor.agent=`: serve the host over this.
    pub agent: Option<Transport>,
    /// `omnivisor.serve=`: where the agent serves the host as a service of the root's own init.
    pub serve: Option<Transport>,
    /// `omnivisor.hostname=`
    pub hostname: Option<String>,
    /// `omnivisor.ip=`, which may be given several times.
    pub networks: Networks,
    /// `omnivisor.root=TAG` or `root=DEVICE`.
    pub root: Option<Root>,
    /// `omnivisor.overlay`: what is written to the root is kept in memory and lost in the end.
    pub overlay: bool,
    /// `rw` as opposed to `ro`, of which the last counts.
    pub writable: bool,
    /// `omnivisor.share=TAG:PATH[:ro]`, which may be given several times.
    pub shares: Vec<Share>,
    /// `omnivisor.window=COLSxROWS`: size of the console's terminal.
    pub window: Option<Window>,
    /// `omnivisor.term=`: the console's `TERM`.
    pub term: Option<String>,
    /// `omnivisor.respawn`: start the shell again when it ends.
    pub respawn: bool,
    /// `init=`: what to start in the root.
    pub init: Option<String>,
}

/// Where the root is.
#[derive(Debug, PartialEq, Eq)]
pub enum Root {
    /// A virtio-fs tag.
    Share(String),
    /// A block device, by name or by what `findfs` understands.
    Device {
        /// `/dev/vda1`, `UUID=...`, `LABEL=...`
        device: String,
        /// `rootfstype=`
        kind: Option<String>,
    },
}

/// A folder of the host.
#[derive(Debug, PartialEq, Eq)]
pub struct Share {
    /// Its virtio-fs tag.
    pub tag: String,
    /// Where to mount it.
    pub path: String,
    /// Whether writing is refused.
    pub readonly: bool,
}

/// How the first NIC is set up.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Networks {
    /// Ask with DHCP.
    #[default]
    Dhcp,
    /// Leave it alone: `omnivisor.ip=none`.
    None,
    /// `omnivisor.ip=ADDRESS/PREFIX[,gw=ADDRESS][,dns=ADDRESS]...[,mtu=N]`
    Static(Vec<Network>),
}

/// One address with what belongs to it.
#[derive(Debug, PartialEq, Eq)]
pub struct Network {
    /// Of the NIC.
    pub address: IpAddr,
    /// Length of the network part of `address` in bits.
    pub prefix: u8,
    /// Default route.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Of the NIC, in bytes.
    pub mtu: Option<u32>,
}

impl Settings {
    /// Those that the guest was started with.
    pub fn of_kernel() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    /// Reads what it knows and passes over the rest, as the kernel does.
    pub fn parse(text: &str) -> Self {
        let mut settings = Self::default();
        let mut device = None;
        let mut kind = None;
        let mut tag = None;
        let mut networks = Vec::new();
        for word in words(text) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, value.trim_matches('"')),
                None => (word, ""),
            };
            match name {
                "omnivisor.agent" => settings.agent = Transport::parse(value),
                "omnivisor.serve" => settings.serve = Transport::parse(value),
                "omnivisor.hostname" => settings.hostname = Some(value.into()),
                "omnivisor.ip" if value == "none" => settings.networks = Networks::None,
                "omnivisor.ip" => networks.extend(Network::parse(value)),
                "omnivisor.root" => tag = Some(value.to_owned()),
                "omnivisor.overlay" => settings.overlay = true,
                "omnivisor.share" => settings.shares.extend(Share::parse(value)),
                "omnivisor.window" => settings.window = parse_window(value),
                "omnivisor.term" => settings.term = Some(value.into()),
                "omnivisor.respawn" => settings.respawn = true,
                "root" => device = Some(value.to_owned()),
                "rootfstype" => kind = Some(value.to_owned()),
                "init" => settings.init = Some(value.into()),
                "rw" => settings.writable = true,
                "ro" => settings.writable = false,
                _ => {}
            }
        }
        if !networks.is_empty() {
            settings.networks = Networks::Static(networks);
        }
        settings.root = tag.map(Root::Share).or(device.map(|device| Root::Device { device, kind }));
        settings
    }

    /// Whether the root's own init takes over: on a disk, unless the host wants to give commands; in a shared folder
    /// only when `init=` names it, because the usual case is the host's own root, whose services nobody wants twice.
    pub fn boots_roots_init(&self) -> bool {
        self.agent.is_none()
            && (self.init.is_some() || matches!(self.root, Some(Root::Device { .. })))
    }
}

impl Share {
    fn parse(text: &str) -> Option<Self> {
        let (tag, path) = text.split_once(':')?;
        let (path, readonly) = match path.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let whole = !tag.is_empty() && path.starts_with('/');
        whole.then(|| Self { tag: tag.into(), path: path.into(), readonly })
    }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let (address, prefix) = parts.next()?.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix =
            prefix.parse().ok().filter(|&bits| bits <= if address.is_ipv4() { 32 } else { 128 })?;
        let mut network = Self { address, prefix, gateway: None, dns: Vec::new(), mtu: None };
        for part in parts {
            match part.split_once('=')? {
                ("gw", value) => network.gateway = Some(value.parse().ok()?),
                ("dns", value) => network.dns.push(value.parse().ok()?),
                ("mtu", value) => network.mtu = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(network)
    }
}

fn parse_window(text: &str) -> Option<Window> {
    let (cols, rows) = text.split_once('x')?;
    Some(Window { rows: rows.parse().ok()?, cols: cols.parse().ok()? })
}

/// Splits at white space outside double quotes.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        quoted ^= c == '"';
        c.is_whitespace() && !quoted
    })
    .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_command_line_is_read() {
        let settings = Settings::parse(
            "console=ttyS0 omnivisor.agent=vsock:1024 omnivisor.ip=10.0.2.15/24,gw=10.0.2.2,dns=10.0.2.3,mtu=1400 \
             omnivisor.root=host omnivisor.overlay omnivisor.share=src:/mnt/src:ro omnivisor.share=a:/b \
             omnivisor.window=120x40 omnivisor.term=xterm-256color dyndbg=\"file a b\" omnivisor.hostname=web\n",
        );
        assert_eq!(settings.agent, Some(Transport::Vsock(1024)));
        assert_eq!(settings.root, Some(Root::Share("host".into())));
        assert!(settings.overlay && !settings.boots_roots_init());
        assert_eq!(
            settings.shares,
            [
                Share { tag: "src".into(), path: "/mnt/src".into(), readonly: true },
                Share { tag: "a".into(), path: "/b".into(), readonly: false }
            ]
        );
        assert_eq!(settings.window, Some(Window { rows: 40, cols: 120 }));
        assert_eq!(settings.term.as_deref(), Some("xterm-256color"));
        assert_eq!(settings.hostname.as_deref(), Some("web"));
        let Networks::Static(networks) = settings.networks else { panic!("no address") };
        assert_eq!(networks[0].gateway, Some("10.0.2.2".parse().unwrap()));
        assert_eq!((networks[0].prefix, networks[0].mtu), (24, Some(1400)));
    }

    #[test]
    fn a_disk_boots_its_own_init_unless_the_host_gives_commands() {
        let disk = Settings::parse("root=/dev/vda1 ro rootfstype=ext4 rw");
        assert!(disk.boots_roots_init() && disk.writable);
        let kind = Some("ext4".to_owned());
        assert_eq!(disk.root, Some(Root::Device { device: "/dev/vda1".into(), kind }));
        assert!(!Settings::parse("root=/dev/vda omnivisor.agent=port:a").boots_roots_init());
        assert!(!Settings::parse("omnivisor.root=host").boots_roots_init());
        assert!(Settings::parse("omnivisor.root=host init=/sbin/init").boots_roots_init());
        assert!(!Settings::parse("").boots_roots_init());
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in [
            "omnivisor.ip=1.2.3.4",
            "omnivisor.ip=1.2.3.4/33",
            "omnivisor.ip=1.2.3.4/8,gw=",
            "omnivisor.ip=/,,",
            "omnivisor.window=x",
            "omnivisor.share=a:b",
            "omnivisor.agent=vsock:x",
            "quiet \"",
            "= == a=",
        ] {
            assert_eq!(Settings::parse(text), Settings::default(), "{text}");
        }
    }
}
