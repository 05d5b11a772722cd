//! The guest's network: the loopback, and one address on the first NIC. Spoken to the kernel over rtnetlink.

use super::complain;
use super::settings::{Network, Networks};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};

/// Script that udhcpc calls with the lease: this program.
const LEASE_SCRIPT: &str = "/init";
/// Where the resolver looks.
const RESOLVER: &str = "/etc/resolv.conf";
/// Where the lease's name servers wait until the root is there.
const LEASED_RESOLVER: &str = "/run/omnivisor-resolv.conf";

/// Brings up the loopback and the first NIC. Returns the text for `/etc/resolv.conf`.
pub fn set_up(networks: &Networks) -> String {
    let result = Netlink::open().and_then(|mut link| {
        link.up(1, None)?;
        let Some((name, index)) = first_nic().filter(|_| *networks != Networks::None) else {
            return Ok(String::new());
        };
        match networks {
            Networks::Static(networks) => {
                for network in networks {
                    configure(&mut link, index, network)?;
                }
                Ok(resolver(networks.iter().flat_map(|network| &network.dns)))
            }
            _ => {
                link.up(index, None)?;
                lease(&name);
                Ok(std::fs::read_to_string(LEASED_RESOLVER).unwrap_or_default())
            }
        }
    });
    result.unwrap_or_else(|error| {
        complain(&io::Error::new(
            error.kind(),
            format!("The network could not be set up: {error}"),
        ));
        String::new()
    })
}

/// Writes `/etc/resolv.conf`, unless there is nothing to write.
pub fn write_resolver(text: &str) {
    if text.is_empty() {
        return;
    }
    // In a host's root it is often a link into /run, which is empty here.
    let _ = std::fs::remove_file(RESOLVER);
    let _ = std::fs::write(RESOLVER, text);
}

/// Applies the lease that udhcpc has put into the environment.
pub fn apply_lease() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let list = |name: &str| -> Vec<IpAddr> {
        variable(name).split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let network = variable("ip").parse().ok().map(|address| Network {
        address,
        prefix: variable("mask").parse().ok().filter(|&bits| bits <= 32).unwrap_or(24),
        gateway: list("router").first().copied(),
        dns: list("dns"),
        mtu: variable("mtu").parse().ok(),
    });
    let applied = match (network, index_of(&variable("interface"))) {
        (Some(network), Some(index)) => Netlink::open().and_then(|mut link| {
            configure(&mut link, index, &network)?;
            std::fs::write(LEASED_RESOLVER, resolver(&network.dns))
        }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    };
    match applied {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Asks for an address, for four seconds at most.
fn lease(name: &str) {
    let mut command = Command::new("/bin/busybox");
    command.args([
        "udhcpc",
        "-f",
        "-q",
        "-n",
        "-t",
        "4",
        "-T",
        "1",
        "-i",
        name,
        "-s",
        LEASE_SCRIPT,
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Ok(mut child) = agent::children::spawn(&mut command) {
        let _ = agent::children::collect(&mut child, true);
    }
}

fn configure(link: &mut Netlink, index: u32, network: &Network) -> io::Result<()> {
    link.up(index, network.mtu)?;
    link.add_address(index, network.address, network.prefix)?;
    match network.gateway {
        Some(gateway) => link.add_default_route(index, gateway),
        None => Ok(()),
    }
}

fn resolver<'a>(servers: impl IntoIterator<Item = &'a IpAddr>) -> String {
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

/// The Ethernet interface with the lowest index.
fn first_nic() -> Option<(String, u32)> {
    let names = std::fs::read_dir("/sys/class/net").ok()?;
    names
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            // ARPHRD_ETHER
            std::fs::read_to_string(format!("/sys/class/net/{name}/type"))
                .is_ok_and(|kind| kind.trim() == "1")
        })
        .filter_map(|name| index_of(&name).map(|index| (name, index)))
        .min_by_key(|(_, index)| *index)
}

fn index_of(name: &str) -> Option<u32> {
    if name.contains('/') {
        return None;
    }
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

// linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// Length of a `nlmsghdr`.
const HEADER: usize = 16;

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is 0, which rustix writes `None`.
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    fn up(&mut self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        // struct ifinfomsg: family, padding, type, index, flags, change
        let mut body = vec![0; 4];
        for word in [index, IFF_UP, IFF_UP] {
            body.extend_from_slice(&word.to_ne_bytes());
        }
        if let Some(mtu) = mtu {
            put_attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.request(RTM_NEWLINK, 0, &body)
    }

    fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        // struct ifaddrmsg: family, prefix length, flags, scope, index
        let mut body = vec![family(address), prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        put_address(&mut body, IFA_LOCAL, address);
        put_address(&mut body, IFA_ADDRESS, address);
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        // struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags
        let mut body = vec![family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST];
        body.extend_from_slice(&[0; 4]);
        put_address(&mut body, RTA_GATEWAY, gateway);
        put_attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut reply = [0; 512];
        let (length, _) = recv(&self.socket, &mut reply, RecvFlags::empty())?;
        acknowledged(&reply[..length.min(reply.len())])
    }
}

/// Reads the kernel's answer: a `nlmsghdr` of type NLMSG_ERROR and an errno, negative, or 0.
fn acknowledged(reply: &[u8]) -> io::Result<()> {
    let kind = reply.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let code = reply
        .get(HEADER..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| i32::from_ne_bytes(*bytes));
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn put_address(body: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put_attribute(body, kind, &address.octets()),
        IpAddr::V6(address) => put_attribute(body, kind, &address.octets()),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}
