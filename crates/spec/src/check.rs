//! What a description says that cannot be.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use crate::{
    Disk, Error, MAX_CPUS, MacAddress, Nic, NicKind, Rate, Result, Share, Size, Smbios, VmSpec,
};

/// Something in a description that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, such as `disks[0].serial`.
    pub key: String,
    /// A sentence.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (`{}`)", self.message, self.key)
    }
}

impl VmSpec {
    /// Checks that this VM can be, as far as that can be said without looking at the host.
    ///
    /// # Errors
    /// [`Error::Invalid`] with everything that is wrong.
    pub fn validate(&self) -> Result<()> {
        let mut check = Check::default();
        if let Some(name) = &self.name {
            check.name(name);
        }
        check.processors_and_memory(self);
        check.smbios(&self.smbios);
        check.boot(self);
        check.disks(&self.disks);
        check.nics(self.nics.as_deref().unwrap_or_default());
        check.shares(&self.shares);
        if let Some(vsock) = &self.vsock {
            check.path("vsock.path", &vsock.path);
            let cids = FIRST_CID..u32::MAX;
            check.require(cids.contains(&vsock.cid()), "vsock.cid", || {
                format!("A guest's address is from {FIRST_CID} to {}", u32::MAX - 1)
            });
        }
        if check.problems.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid { problems: check.problems })
        }
    }
}

const LONGEST_NAME: usize = 128;
const LEAST_MEMORY: Size = Size::mebibytes(16);
/// What the 46 address bits of common processors reach. The host says how much there is.
const MOST_MEMORY: Size = Size(1 << 46);
const PAGE: u64 = 4 << 10;
const HUGE_PAGE: Size = Size::mebibytes(2);
/// Linux's COMMAND_LINE_SIZE on x86, with the byte that ends it.
const LONGEST_CMDLINE: usize = 2047;
/// Virtio 1.2, section 5.2.6: VIRTIO_BLK_ID_BYTES.
const LONGEST_SERIAL: usize = 20;
/// Virtio 1.2, section 5.11.4: the size of `tag`.
pub(crate) const LONGEST_TAG: usize = 36;
/// Linux's IFNAMSIZ, without the byte that ends it.
const LONGEST_INTERFACE: usize = 15;
/// Both together fit into 64 KiB (DSP0134 section 5.2).
const LONGEST_SMBIOS: usize = 60 << 10;
const MOST_QUEUES: u16 = 64;
/// Virtio 1.2, section 5.1.4.1.
const LEAST_MTU: u16 = 68;
/// Virtio 1.2, section 5.10.4: 0 to 2 are reserved.
const FIRST_CID: u32 = 3;

#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn require<S: Into<String>>(&mut self, holds: bool, key: &str, message: impl FnOnce() -> S) {
        if !holds {
            self.problems.push(Problem { key: key.into(), message: message().into() });
        }
    }

    fn name(&mut self, name: &str) {
        self.require(!name.is_empty(), "name", || "A VM's name is not empty");
        self.require(name.len() <= LONGEST_NAME, "name", || {
            format!("A VM's name has up to {LONGEST_NAME} bytes")
        });
        let legal =
            !name.contains('/') && !name.contains(char::is_control) && ![".", ".."].contains(&name);
        self.require(
            legal,
            "name",
            || "A VM's name is like a file's, without slashes and control characters",
        );
    }

    fn smbios(&mut self, smbios: &Smbios) {
        let strings = smbios.oem_strings.iter().enumerate();
        let strings = strings.map(|(number, text)| (format!("smbios.oem_strings[{number}]"), text));
        let serial = smbios.serial.iter().map(|text| ("smbios.serial".to_owned(), text));
        let mut length = 0;
        for (key, text) in serial.chain(strings) {
            // An empty text would end the table of texts.
            let legal = !text.is_empty() && !text.contains(char::is_control);
            self.require(legal, &key, || "It is a text of one line");
            length += text.len() + 8;
        }
        self.require(length <= LONGEST_SMBIOS, "smbios", || {
            format!("All texts together have up to {} KiB", LONGEST_SMBIOS >> 10)
        });
    }

    fn processors_and_memory(&mut self, spec: &VmSpec) {
        let count = spec.cpus.count();
        self.require((1..=MAX_CPUS).contains(&count), "cpus.count", || {
            format!("A VM has 1 to {MAX_CPUS} processors, not {count}")
        });
        self.require(spec.cpus.topology().is_some(), "cpus", || {
            format!("{count} processors cannot be {}", spec.cpus.division())
        });
        let size = spec.memory.size();
        let key = "memory.size";
        self.require(size >= LEAST_MEMORY, key, || {
            // Whoever writes 512 means another unit.
            let unit = if size.0 != 0 && size.0 < 1 << 20 {
                format!("; it is in bytes, did you mean `{}`?", Size(size.0 << 20))
            } else {
                String::new()
            };
            format!("{size} is too little memory, the least is {LEAST_MEMORY}{unit}")
        });
        self.require(size <= MOST_MEMORY, key, || {
            format!("{size} is too much memory, the most is {MOST_MEMORY}")
        });
        self.require(
            size < LEAST_MEMORY || size.0.is_multiple_of(PAGE),
            key,
            || "Memory is a multiple of 4K",
        );
        let huge = !spec.memory.hugepages() || size.0.is_multiple_of(HUGE_PAGE.0);
        self.require(huge, key, || format!("Memory of huge pages is a multiple of {HUGE_PAGE}"));
    }

    fn boot(&mut self, spec: &VmSpec) {
        let boot = &spec.boot;
        if let Some(kernel) = &boot.kernel {
            self.path("boot.kernel", kernel);
        }
        if let Some(initrd) = &boot.initrd {
            self.path("boot.initrd", initrd);
            self.require(
                boot.kernel.is_some(),
                "boot.initrd",
                || "An initrd needs a kernel that reads it",
            );
        }
        if let Some(cmdline) = &boot.cmdline {
            let key = "boot.cmdline";
            self.require(cmdline.len() <= LONGEST_CMDLINE, key, || {
                format!(
                    "Linux reads {LONGEST_CMDLINE} bytes of a command line, this has {}",
                    cmdline.len()
                )
            });
            self.require(!cmdline.contains('\0'), key, || "A command line holds no zero byte");
        }
    }

    fn disks(&mut self, disks: &[Disk]) {
        for (index, disk) in disks.iter().enumerate() {
            let key = |field| format!("disks[{index}].{field}");
            self.path(&key("path"), &disk.path);
            let shared =
                |other: &&Disk| other.path == disk.path && !(other.readonly && disk.readonly);
            let twice =
                disks[..index].iter().find(shared).filter(|disk| !disk.path.as_os_str().is_empty());
            self.require(twice.is_none(), &key("path"), || {
                format!(
                    "{} is there twice, and one of the two would write to it",
                    disk.path.display()
                )
            });
            let fates = [disk.in_place, disk.discard, disk.readonly];
            self.require(fates.iter().filter(|said| **said).count() <= 1, &key("in_place"), || {
                "A disk is written in place, or what is written is discarded, or it is read-only"
            });
            if let Some(serial) = &disk.serial {
                self.require(serial.len() <= LONGEST_SERIAL, &key("serial"), || {
                    format!(
                        "A disk's serial number has up to {LONGEST_SERIAL} bytes, this has {}",
                        serial.len()
                    )
                });
                let printable = serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
                self.require(
                    printable,
                    &key("serial"),
                    || "A disk's serial number is printable ASCII",
                );
            }
            self.queues(&key("queues"), disk.queues);
            self.rate(&key("rate"), &disk.rate);
        }
    }

    fn nics(&mut self, nics: &[Nic]) {
        let mut taps = HashSet::new();
        let mut addresses = HashSet::new();
        let mut ports = HashSet::new();
        for (index, nic) in nics.iter().enumerate() {
            let key = |field| format!("nics[{index}].{field}");
            match (nic.kind(), &nic.tap) {
                (NicKind::Tap, None) => {
                    self.require(false, &key("tap"), || "A tap needs the name of its interface");
                }
                (NicKind::Tap, Some(tap)) => {
                    let legal = (1..=LONGEST_INTERFACE).contains(&tap.len())
                        && !tap.contains(|letter: char| {
                            letter == '/' || letter == ':' || !letter.is_ascii_graphic()
                        })
                        && ![".", ".."].contains(&tap.as_str());
                    self.require(legal, &key("tap"), || {
                        format!("An interface's name has 1 to {LONGEST_INTERFACE} letters and no slash or colon")
                    });
                    self.require(
                        nic.queues.unwrap_or(1) > 1 || taps.insert(tap),
                        &key("tap"),
                        || format!("Two network cards cannot use the same tap `{tap}`"),
                    );
                }
                (NicKind::User, Some(_)) => {
                    self.require(false, &key("kind"), || "The user-mode network has no tap");
                }
                (NicKind::User, None) => {}
            }
            if let Some(name) = &nic.name {
                // What Linux takes as an interface's name, less what other programs mean something by.
                let is_name = (1..16).contains(&name.len())
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
                    && !name.starts_with('.');
                self.require(is_name, &key("name"), || {
                    format!("{name:?} cannot be the name of a network card")
                });
            }
            if let Some(mac) = nic.mac {
                self.require(!mac.is_multicast(), &key("mac"), || {
                    format!(
                        "{mac} names a group of cards, a card's address begins with an even byte"
                    )
                });
                self.require(
                    mac != MacAddress([0; 6]),
                    &key("mac"),
                    || "A card's address is not zero",
                );
                self.require(addresses.insert(mac), &key("mac"), || {
                    format!("Two network cards have the address {mac}")
                });
            }
            if let Some(mtu) = nic.mtu {
                self.require(mtu >= LEAST_MTU, &key("mtu"), || {
                    format!("An MTU is at least {LEAST_MTU}")
                });
            }
            let forwards = nic.forwards.is_empty() || nic.kind() == NicKind::User;
            self.require(
                forwards,
                &key("forwards"),
                || "Only the user-mode network forwards ports",
            );
            for forward in &nic.forwards {
                let new = ports.insert((forward.protocol, forward.address, forward.host));
                self.require(new, &key("forwards"), || {
                    format!("Port {} is forwarded twice", forward.host)
                });
            }
            self.queues(&key("queues"), nic.queues);
            self.rate(&key("rate"), &nic.rate);
        }
    }

    fn shares(&mut self, shares: &[Share]) {
        let mut tags = HashSet::new();
        for (index, share) in shares.iter().enumerate() {
            let key = |field| format!("shares[{index}].{field}");
            self.path(&key("dir"), &share.dir);
            let tag = share.tag();
            self.require((1..=LONGEST_TAG).contains(&tag.len()), &key("tag"), || {
                format!(
                    "A tag has 1 to {LONGEST_TAG} bytes, `{tag}` has {}; give one: DIR:TAG",
                    tag.len()
                )
            });
            self.require(
                !tag.contains(char::is_control),
                &key("tag"),
                || "A tag has no control characters",
            );
            self.require(tags.insert(tag.clone()), &key("tag"), || {
                format!("Two shares have the tag `{tag}`; give one another: DIR:TAG")
            });
        }
    }

    fn path(&mut self, key: &str, path: &Path) {
        self.require(!path.as_os_str().is_empty(), key, || "A path is missing");
        self.require(
            !path.as_os_str().as_encoded_bytes().contains(&0),
            key,
            || "A path holds no zero byte",
        );
    }

    fn queues(&mut self, key: &str, queues: Option<u16>) {
        self.require(queues.is_none_or(|queues| (1..=MOST_QUEUES).contains(&queues)), key, || {
            format!("A device has 1 to {MOST_QUEUES} queues")
        });
    }

    fn rate(&mut self, key: &str, rate: &Rate) {
        let nothing =
            rate.bytes_per_second == Some(Size(0)) || rate.operations_per_second == Some(0);
        self.require(!nothing, key, || "A rate of zero would let nothing through");
        let limited = rate.bytes_per_second.is_some() || rate.operations_per_second.is_some();
        self.require(
            limited || rate.burst.is_none(),
            &format!("{key}.burst"),
            || "A burst needs a rate: bytes_per_second or operations_per_second",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Boot, Vsock};

    fn problems(toml: &str) -> Vec<String> {
        let spec = VmSpec::from_toml(toml, "test.toml").unwrap();
        match spec.validate() {
            Ok(()) => Vec::new(),
            Err(Error::Invalid { problems }) => {
                assert!(!problems.is_empty());
                problems.into_iter().map(|problem| problem.to_string()).collect()
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn what_says_nothing_and_what_says_much_is_valid() {
        assert_eq!(VmSpec::default().validate().map_err(|error| error.to_string()), Ok(()));
        let much = r#"
            name = "web server"
            cpus = 64
            memory = "2G,hugepages"
            vsock = "/run/web.sock"
            disks = ["root.img,serial=abc", "same.iso,readonly", "same.iso,readonly"]
            nics = ["user,forwards=8080:80,forwards=8080:80/udp", "tap=tap0,mac=52:54:00:12:34:56"]
            shares = ["/srv", "/home:home"]
            [boot]
            kernel = "host"
            initrd = "initrd.img"
        "#;
        assert_eq!(problems(much), [""; 0]);
    }

    #[test]
    fn what_cannot_be_is_said_in_sentences() {
        let cases = [
            ("cpus = 0", "A VM has 1 to 64 processors, not 0 (`cpus.count`)"),
            (
                "cpus = { count = 8, sockets = 3, cores = 2 }",
                "8 processors cannot be 3 sockets of 2 cores (`cpus`)",
            ),
            (
                "cpus = \"6,threads=4\"",
                "6 processors cannot be sockets of cores of 4 threads (`cpus`)",
            ),
            ("cpus = 65", "A VM has 1 to 64 processors, not 65 (`cpus.count`)"),
            ("memory = \"8M\"", "8M is too little memory, the least is 16M (`memory.size`)"),
            (
                "memory = 512",
                "512 is too little memory, the least is 16M; it is in bytes, did you mean `512M`? (`memory.size`)",
            ),
            ("memory = \"65T\"", "65T is too much memory, the most is 64T (`memory.size`)"),
            ("memory = 16777217", "Memory is a multiple of 4K (`memory.size`)"),
            (
                "memory = \"17M,hugepages\"",
                "Memory of huge pages is a multiple of 2M (`memory.size`)",
            ),
            ("name = \"\"", "A VM's name is not empty (`name`)"),
            (
                "name = \"a/b\"",
                "A VM's name is like a file's, without slashes and control characters (`name`)",
            ),
            ("boot.initrd = \"i\"", "An initrd needs a kernel that reads it (`boot.initrd`)"),
            ("disks = [{ readonly = true }]", "A path is missing (`disks[0].path`)"),
            (
                "disks = [\"a,serial=123456789012345678901\"]",
                "A disk's serial number has up to 20 bytes, this has 21 (`disks[0].serial`)",
            ),
            (
                "disks = [\"a\", \"b\", \"a,readonly\"]",
                "a is there twice, and one of the two would write to it (`disks[2].path`)",
            ),
            (
                "disks = [\"a,in-place,discard\"]",
                "A disk is written in place, or what is written is discarded, or it is read-only (`disks[0].in_place`)",
            ),
            ("disks = [\"a,queues=0\"]", "A device has 1 to 64 queues (`disks[0].queues`)"),
            (
                "disks = [\"a,rate.bytes_per_second=0\"]",
                "A rate of zero would let nothing through (`disks[0].rate`)",
            ),
            (
                "disks = [\"a,rate.burst=5\"]",
                "A burst needs a rate: bytes_per_second or operations_per_second (`disks[0].rate.burst`)",
            ),
            ("nics = [\"tap\"]", "A tap needs the name of its interface (`nics[0].tap`)"),
            ("nics = [\"user,tap=t\"]", "The user-mode network has no tap (`nics[0].kind`)"),
            (
                "nics = [\"tap=sixteen-letters!\"]",
                "An interface's name has 1 to 15 letters and no slash or colon (`nics[0].tap`)",
            ),
            (
                "nics = [\"tap=t\", \"tap=t\"]",
                "Two network cards cannot use the same tap `t` (`nics[1].tap`)",
            ),
            (
                "nics = [\"user,mac=01:00:5e:00:00:01\"]",
                "01:00:5e:00:00:01 names a group of cards, a card's address begins with an even byte (`nics[0].mac`)",
            ),
            (
                "nics = [\"user,mac=52:54:00:00:00:01\", \"tap=t,mac=52-54-00-00-00-01\"]",
                "Two network cards have the address 52:54:00:00:00:01 (`nics[1].mac`)",
            ),
            ("nics = [\"user,mtu=67\"]", "An MTU is at least 68 (`nics[0].mtu`)"),
            (
                "nics = [\"tap=t,forwards=80\"]",
                "Only the user-mode network forwards ports (`nics[0].forwards`)",
            ),
            (
                "nics = [\"user,forwards=80,forwards=80:81\"]",
                "Port 80 is forwarded twice (`nics[0].forwards`)",
            ),
            (
                "shares = [\"/a/x\", \"/b/x\"]",
                "Two shares have the tag `x`; give one another: DIR:TAG (`shares[1].tag`)",
            ),
            (
                "shares = [\"/a:0123456789012345678901234567890123456\"]",
                "A tag has 1 to 36 bytes, `0123456789012345678901234567890123456` has 37; give one: DIR:TAG (`shares[0].tag`)",
            ),
            ("vsock = \"v,cid=2\"", "A guest's address is from 3 to 4294967294 (`vsock.cid`)"),
            ("vsock = { cid = 3 }", "A path is missing (`vsock.path`)"),
        ];
        for (toml, expected) in cases {
            assert_eq!(problems(toml), [expected], "{toml}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let spec = VmSpec {
            boot: Boot {
                kernel: Some("a\0b".into()),
                initrd: Some("".into()),
                cmdline: Some("x".repeat(2048) + "\0"),
            },
            vsock: Some(Vsock::default()),
            ..VmSpec::default()
        };
        let Err(Error::Invalid { problems }) = spec.validate() else { panic!("it is valid") };
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            ["boot.kernel", "boot.initrd", "boot.cmdline", "boot.cmdline", "vsock.path"]
        );
    }
}
