use proptest::prelude::*;

use super::*;
use crate::{
    Boot, Console, Cpus, Disk, MacAddress, Memory, Nic, NicKind, Rate, Share, Size, Smbios, Uuid,
    Vsock, schema,
};

fn error(text: &str) -> String {
    VmSpec::from_toml(text, "vm.toml").unwrap_err().to_string()
}

#[test]
fn a_file_with_everything() {
    let text = r#"
        name = "web"
        image = "debian"
        console = "virtio"
        balloon = false
        rng = true

        [cpus]
        count = 2

        [memory]
        size = "2G"
        hugepages = true

        [smbios]
        serial = "A-1"
        oem_strings = ["a=b"]

        [boot]
        kernel = "vmlinuz"
        initrd = "initrd.img"
        cmdline = "quiet"

        [vsock]
        path = "/run/web.sock"
        cid = 7

        [[disks]]
        path = "root.img"
        serial = "root"
        rate = { bytes_per_second = 10485760, burst = 100 }

        [[disks]]
        path = "data.img"
        readonly = true

        [[nics]]
        kind = "user"
        forwards = ["8080:80"]

        [[nics]]
        tap = "tap0"
        mac = "52:54:00:12:34:56"

        [[shares]]
        dir = "/srv"
        tag = "srv"
    "#;
    let expected = VmSpec {
        name: Some("web".into()),
        image: Some("debian".into()),
        console: Some(Console::Virtio),
        balloon: Some(false),
        rng: Some(true),
        cpus: Cpus { count: Some(2), ..Cpus::default() },
        memory: Memory { size: Some(Size(2 << 30)), hugepages: Some(true), ..Memory::default() },
        smbios: Smbios {
            serial: Some("A-1".into()),
            oem_strings: vec!["a=b".into()],
            ..Smbios::default()
        },
        boot: Boot {
            kernel: Some("vmlinuz".into()),
            initrd: Some("initrd.img".into()),
            cmdline: Some("quiet".into()),
        },
        vsock: Some(Vsock { path: "/run/web.sock".into(), cid: Some(7) }),
        disks: vec![
            Disk {
                path: "root.img".into(),
                serial: Some("root".into()),
                rate: Rate {
                    bytes_per_second: Some(Size(10 << 20)),
                    burst: Some(100),
                    ..Rate::default()
                },
                ..Disk::default()
            },
            Disk { path: "data.img".into(), readonly: true, ..Disk::default() },
        ],
        nics: Some(vec![
            Nic {
                kind: Some(NicKind::User),
                forwards: vec!["8080:80".parse().unwrap()],
                ..Nic::default()
            },
            Nic {
                tap: Some("tap0".into()),
                mac: Some(MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
                ..Nic::default()
            },
        ]),
        shares: vec![Share { dir: "/srv".into(), tag: Some("srv".into()), readonly: false }],
    };
    assert_eq!(VmSpec::from_toml(text, "vm.toml").unwrap(), expected);
}

#[test]
fn options_can_stand_for_tables() {
    let short = r#"
        cpus = 2
        memory = "2G,hugepages"
        vsock = "/run/web.sock"
        disks = ["root.img,readonly", { path = "data.img" }]
        nics = ["user,forward=8080:80"]
        shares = ["/srv:srv"]
    "#;
    let spec = VmSpec::from_toml(short, "vm.toml").unwrap();
    assert_eq!(spec.cpus.count(), 2);
    assert!(spec.memory.hugepages());
    assert_eq!(spec.disks.len(), 2);
    assert_eq!(spec.shares[0].tag(), "srv");
    assert_eq!(VmSpec::from_toml(&spec.to_toml().unwrap(), "vm.toml").unwrap(), spec);
}

#[test]
fn errors_name_the_place_and_help() {
    for (text, expected) in [
        (
            "cpus = 1\nmemroy = \"1G\"\n",
            "vm.toml:2:1: There is no key `memroy`; did you mean `memory`?",
        ),
        (
            "[[disks]]\npath = \"a\"\n\n[[disks]]\npath = \"b\"\nread-only = true\n",
            "vm.toml:6:1: There is no key `read-only`; did you mean `readonly`?",
        ),
        ("[memory]\nsiez = \"1G\"\n", "vm.toml:2:1: There is no key `siez`; did you mean `size`?"),
        (
            "console = \"seriell\"",
            "vm.toml:1:11: There is no `seriell` to choose; did you mean `serial`?",
        ),
        ("[memory]\nsize = \"1X\"", "vm.toml:2:8: `1X` is not a size such as 512M or 2G"),
        ("memory = \"1X\"", "vm.toml:1:10: Option `size`: `1X` is not a size such as 512M or 2G"),
        (
            "disks = [\"a\",\n  \"b,readnly\"]",
            "vm.toml:2:3: There is no option `readnly`; did you mean `readonly`?",
        ),
        (
            "cpus = -1",
            "vm.toml:1:8: Option `count` is a whole number from 0 to 4294967295, not `-1`",
        ),
        ("name = 5", "vm.toml:1:8: Invalid type: integer `5`, expected a string"),
        ("name = \"é\" x", "vm.toml:1:12: "),
        ("name = \"a\"\nname = \"b\"", "vm.toml:2:1: Duplicate key"),
    ] {
        let message = error(text);
        assert!(message.starts_with(expected), "{message} instead of {expected}");
    }
}

#[test]
fn the_schema_knows_every_key_and_refuses_others() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    let expected = [
        "balloon", "boot", "console", "cpus", "disks", "image", "memory", "name", "nics", "rng",
        "shares", "smbios", "vsock",
    ];
    assert_eq!(keys, expected);
    for (name, key) in
        [("Disk", "readonly"), ("Nic", "forwards"), ("Share", "dir"), ("Memory", "size")]
    {
        let definition = &schema["$defs"][name];
        assert_eq!(definition["additionalProperties"], false, "{name}");
        assert!(definition["properties"][key].is_object(), "{name}.{key}");
    }
    assert!(schema["$defs"]["Disk"]["properties"]["direct"]["description"].is_string());
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,12}"
}

prop_compose! {
    fn rate()(
        bytes_per_second: Option<u64>, operations_per_second: Option<u32>, burst: Option<u32>,
    ) -> Rate {
        Rate { bytes_per_second: bytes_per_second.map(Size), operations_per_second, burst }
    }
}

prop_compose! {
    fn disk()(
        path in text(), readonly: bool, direct: bool, serial in prop::option::of(text()), queues: Option<u16>,
        rate in rate(),
    ) -> Disk {
        Disk { path: path.into(), readonly, direct, serial, queues, rate, ..Disk::default() }
    }
}

prop_compose! {
    fn nic()(
        kind in prop::option::of(prop_oneof![Just(NicKind::User), Just(NicKind::Tap)]),
        tap in prop::option::of(text()),
        mac: Option<[u8; 6]>,
        name in prop::option::of(text()),
        (queues, mtu) in any::<(Option<u16>, Option<u16>)>(),
        ports in prop::collection::vec((1..=u16::MAX, 1..=u16::MAX, any::<bool>()), 0..3),
        rate in rate(),
    ) -> Nic {
        let forwards = ports
            .into_iter()
            .map(|(host, guest, udp)| format!("[::1]:{host}:{guest}/{}", if udp { "udp" } else { "tcp" }))
            .map(|text| text.parse().unwrap())
            .collect();
        Nic { kind, tap, mac: mac.map(MacAddress), name, queues, mtu, forwards, rate }
    }
}

prop_compose! {
    fn share()(dir in text(), tag in prop::option::of(text()), readonly: bool) -> Share {
        Share { dir: dir.into(), tag, readonly }
    }
}

prop_compose! {
    fn spec()(
        (name, image) in (prop::option::of(text()), prop::option::of(text())),
        console in prop::option::of(prop_oneof![Just(Console::Serial), Just(Console::Virtio)]),
        (balloon, rng) in any::<(Option<bool>, Option<bool>)>(),
        [count, sockets, cores, threads]: [Option<u32>; 4],
        (size, hugepages, prealloc, shared) in any::<(Option<u64>, Option<bool>, Option<bool>, Option<bool>)>(),
        (kernel, initrd, cmdline) in (prop::option::of(text()), prop::option::of(text()), prop::option::of(text())),
        (uuid, serial, oem_strings) in (any::<Option<u128>>(), prop::option::of(text()), prop::collection::vec(text(), 0..3)),
        vsock in prop::option::of((text(), any::<Option<u32>>())),
        disks in prop::collection::vec(disk(), 0..3),
        nics in prop::option::of(prop::collection::vec(nic(), 0..3)),
        shares in prop::collection::vec(share(), 0..3),
    ) -> VmSpec {
        VmSpec {
            name, image, console, balloon, rng,
            cpus: Cpus { count, sockets, cores, threads },
            memory: Memory { size: size.map(Size), hugepages, prealloc, shared },
            smbios: Smbios { uuid: uuid.map(|number| Uuid(number.to_be_bytes())), serial, oem_strings },
            boot: Boot { kernel: kernel.map(Into::into), initrd: initrd.map(Into::into), cmdline },
            vsock: vsock.map(|(path, cid)| Vsock { path: path.into(), cid }),
            disks, nics, shares,
        }
    }
}

proptest! {
    #[test]
    fn every_description_reads_as_it_is_written(spec in spec()) {
        let written = spec.to_toml().unwrap();
        prop_assert_eq!(VmSpec::from_toml(&written, "vm.toml").unwrap(), spec);
    }

    #[test]
    fn every_description_is_valid_or_not(spec in spec()) {
        if let Err(error) = spec.validate() {
            let said = matches!(error, Error::Invalid { problems } if !problems.is_empty());
            prop_assert!(said);
        }
    }

    #[test]
    fn merging_over_itself_changes_nothing(spec in spec()) {
        prop_assert_eq!(spec.clone().merge(spec.clone()), spec);
    }

    #[test]
    fn any_text_is_survived(text in prop_oneof!["[a-z=\"\n\\[\\]{}.0-9, ]{0,80}", ".*"]) {
        if let Err(error) = VmSpec::from_toml(&text, "vm.toml") {
            prop_assert!(error.to_string().starts_with("vm.toml"));
        }
    }
}
