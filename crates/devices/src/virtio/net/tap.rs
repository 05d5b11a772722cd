//! A tap interface of the host.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Vhost;
use super::header::{HEADER_SIZE, feature};
use super::port::{Cable, Port, PortError};
use super::sys;
use super::vhost::VhostNet;
use crate::virtio::sys::Slice;
use crate::{Error, Result};

const TUN_DEVICE: &str = "/dev/net/tun";

/// Flags of linux/if_tun.h.
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;

/// What the tun driver does for a guest: it takes and gives unfinished checksums and large segments.
const FEATURES: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::GUEST_OFFLOADS
    | feature::CTRL_VQ
    | feature::CTRL_GUEST_OFFLOADS;

/// One queue of a tap interface.
pub(super) struct Tap {
    file: OwnedFd,
    multi_queue: bool,
    enabled: bool,
}

/// Opens the existing tap `name` with `queues` queues.
pub(super) fn open(name: &str, queues: u16, vhost: Vhost) -> Result<Cable> {
    let wire_name = interface_name(name)?;
    let mut ports: Vec<(Box<dyn Port>, Option<VhostNet>)> = Vec::new();
    for index in 0..queues {
        let tap = Tap::open(name, wire_name, queues > 1, index == 0)?;
        let vhost = VhostNet::open(vhost, &tap.file)?;
        ports.push((Box::new(tap), vhost));
    }
    Ok(Cable { features: FEATURES, mtu: None, ports, keep: None })
}

impl Tap {
    fn open(
        name: &str,
        wire_name: [u8; libc::IFNAMSIZ],
        several: bool,
        first: bool,
    ) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(TUN_DEVICE, flags, Mode::empty()).map_err(no_device)?;
        let multi_queue = attach(&file, wire_name, several).map_err(|errno| {
            if errno == Errno::BUSY && !first {
                return wrong_queues(name);
            }
            not_attached(name, errno, several)
        })?;
        let failed = |source| Error::io(format!("set up the tap `{name}`"))(source);
        sys::tun_set_header(file.as_fd(), HEADER_SIZE as i32).map_err(failed)?;
        let mut tap = Self { file, multi_queue, enabled: true };
        if first {
            tap.set_offloads(0).map_err(failed)?;
        } else {
            // Until the driver asks for more, all frames are to come by the first queue.
            tap.set_enabled(false).map_err(failed)?;
        }
        Ok(tap)
    }
}

impl Port for Tap {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn receive(
        &mut self,
        slices: &[Slice<'_>],
        rest: &mut [u8],
    ) -> std::result::Result<usize, PortError> {
        sys::read_frame(self.file.as_fd(), slices, rest).map_err(|error| classify(error, true))
    }

    fn send(&mut self, slices: &[Slice<'_>]) -> std::result::Result<(), PortError> {
        match sys::write_frame(self.file.as_fd(), slices) {
            Ok(_) => Ok(()),
            Err(error) => Err(classify(error, false)),
        }
    }

    fn set_offloads(&mut self, features: u64) -> io::Result<()> {
        let mut flags = 0;
        // Segments are cut where checksums are completed, so the kernel refuses the others alone.
        if features & feature::GUEST_CSUM != 0 {
            flags |= TUN_F_CSUM;
            for (feature, flag) in [
                (feature::GUEST_TSO4, TUN_F_TSO4),
                (feature::GUEST_TSO6, TUN_F_TSO6),
                (feature::GUEST_ECN, TUN_F_TSO_ECN),
            ] {
                if features & feature != 0 {
                    flags |= flag;
                }
            }
        }
        sys::tun_set_offload(self.file.as_fd(), flags)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        if !self.multi_queue || self.enabled == enabled {
            return Ok(());
        }
        let flags = if enabled { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        sys::tun_set_queue(self.file.as_fd(), flags as i16)?;
        self.enabled = enabled;
        Ok(())
    }
}

/// The kernel's form of an interface name; an error unless such an interface exists, since attaching to a
/// name that does not would make a new interface that nobody configured.
fn interface_name(name: &str) -> Result<[u8; libc::IFNAMSIZ]> {
    let mut wire_name = [0; libc::IFNAMSIZ];
    let fits = !name.is_empty() && name.len() < wire_name.len();
    // `%d` would be a pattern.
    if !fits
        || name
            .bytes()
            .any(|byte| byte == 0 || byte == b'%' || byte == b'/' || byte.is_ascii_whitespace())
    {
        return Err(Error::Configuration(format!(
            "`{name}` cannot be the name of a tap interface"
        )));
    }
    wire_name[..name.len()].copy_from_slice(name.as_bytes());
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::io("look for a tap interface"))?;
    match rustix::net::netdevice::name_to_index(&socket, name) {
        Ok(_) => {
            warn_if_down(name, sys::interface_flags(socket.as_fd(), wire_name));
            Ok(wire_name)
        }
        Err(Errno::NODEV) => Err(Error::Configuration(format!(
            "There is no tap interface `{name}`; make it with `{}`",
            creation(name, false)
        ))),
        Err(source) => Err(Error::io(format!("look for the tap `{name}`"))(source)),
    }
}

fn warn_if_down(name: &str, flags: io::Result<i16>) {
    if flags.is_ok_and(|flags| i32::from(flags) & libc::IFF_UP == 0) {
        tracing::warn!(
            "the tap `{name}` is down and carries nothing until `sudo ip link set {name} up`"
        );
    }
}

/// Attaches to the interface; whether it has several queues is answered.
fn attach(
    file: &OwnedFd,
    name: [u8; libc::IFNAMSIZ],
    several: bool,
) -> std::result::Result<bool, Errno> {
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    let with = |flags: u16| {
        sys::tun_attach(file.as_fd(), name, flags as i16)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    match with(if several { flags | IFF_MULTI_QUEUE } else { flags }) {
        // One queue of an interface that may have several.
        Err(Errno::INVAL) if !several => with(flags | IFF_MULTI_QUEUE).map(|()| true),
        done => done.map(|()| several),
    }
}

fn no_device(errno: Errno) -> Error {
    let action = match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            format!("open {TUN_DEVICE}; load the kernel module with `sudo modprobe tun`")
        }
        Errno::ACCESS | Errno::PERM => {
            format!("open {TUN_DEVICE}; let everybody, as is usual: `sudo chmod 666 {TUN_DEVICE}`")
        }
        _ => format!("open {TUN_DEVICE}"),
    };
    Error::io(action)(errno)
}

fn not_attached(name: &str, errno: Errno, several: bool) -> Error {
    match errno {
        Errno::BUSY => Error::Configuration(format!(
            "The tap `{name}` is in use by another program; see which with `sudo grep -l '^iff:.*{name}$' /proc/*/fdinfo/*`"
        )),
        Errno::PERM | Errno::ACCESS => Error::io(format!(
            "use the tap `{name}`; make it anew for this user with `sudo ip tuntap del {name} mode tap; {}`",
            creation(name, several)
        ))(errno),
        Errno::INVAL if several => wrong_queues(name),
        Errno::INVAL => {
            Error::Configuration(format!("The network interface `{name}` is not a tap interface"))
        }
        _ => Error::io(format!("use the tap `{name}`"))(errno),
    }
}

fn wrong_queues(name: &str) -> Error {
    Error::Configuration(format!(
        "The interface `{name}` is not a tap for several queues; make it anew with `sudo ip tuntap del {name} mode tap; {}`",
        creation(name, true)
    ))
}

fn creation(name: &str, several: bool) -> String {
    let several = if several { " multi_queue" } else { "" };
    format!("sudo ip tuntap add {name} mode tap user $USER{several} && sudo ip link set {name} up")
}

fn classify(error: io::Error, receiving: bool) -> PortError {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::INTR) => PortError::NotReady,
        // The interface was deleted. Sending also answers EIO while it is merely down.
        Some(Errno::BADFD) => PortError::Gone(error),
        Some(Errno::IO) if receiving => PortError::Gone(error),
        _ => PortError::Refused,
    }
}
