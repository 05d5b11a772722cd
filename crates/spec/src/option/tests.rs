use proptest::prelude::*;

use super::*;
use crate::{Cpus, Disk, MacAddress, Memory, NicKind, Rate, Share, Size, Vsock};

fn error<T: std::fmt::Debug + std::str::FromStr<Err = Error>>(text: &str) -> String {
    text.parse::<T>().unwrap_err().to_string()
}

#[test]
fn a_disk_that_is_written_in_place() {
    let disk: Disk = "disk.img,in-place,format=raw".parse().unwrap();
    assert!(disk.in_place && !disk.discard && disk.format.as_deref() == Some("raw"));
}

#[test]
fn a_disk_with_everything() {
    let text = "disk.img,readonly,direct,serial=abc,queues=4,rate.bytes_per_second=10M,\
                rate.operations-per-second=200,rate.burst=50";
    let expected = Disk {
        path: "disk.img".into(),
        readonly: true,
        direct: true,
        serial: Some("abc".into()),
        queues: Some(4),
        rate: Rate {
            bytes_per_second: Some(Size(10 << 20)),
            operations_per_second: Some(200),
            burst: Some(50),
        },
        ..Disk::default()
    };
    assert_eq!(text.parse::<Disk>().unwrap(), expected);
}

#[test]
fn the_first_part_is_the_path_whatever_it_looks_like() {
    for (text, path) in [
        ("a=b/c.img", None),
        ("/a=b.img", Some("/a=b.img")),
        ("readonly", Some("readonly")),
        ("path=a=b.img", Some("a=b.img")),
        ("a,,b.img", Some("a,b.img")),
        ("disk 1.img=x", Some("disk 1.img=x")),
    ] {
        let read = text.parse::<Disk>().ok().map(|disk| disk.path);
        assert_eq!(read.as_deref(), path.map(std::path::Path::new), "{text}");
    }
}

#[test]
fn flags_can_be_turned_off() {
    assert!(!"a,readonly=off".parse::<Disk>().unwrap().readonly);
    assert!("a,readonly=yes".parse::<Disk>().unwrap().readonly);
    assert_eq!("1G,shared=false".parse::<Memory>().unwrap().shared, Some(false));
}

#[test]
fn network_cards() {
    let user: Nic = "user,forward=8080:80,forward=53/udp,mtu=1400".parse().unwrap();
    assert_eq!(user.kind(), NicKind::User);
    assert_eq!(user.forwards.len(), 2);
    assert_eq!(user.mtu, Some(1400));
    let tap: Nic = "tap=vm0,mac=52:54:00:12:34:56,queues=2".parse().unwrap();
    assert_eq!((tap.kind(), tap.tap.as_deref()), (NicKind::Tap, Some("vm0")));
    assert_eq!(tap.mac, Some(MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
    assert_eq!(nics::<&str>(&[]).unwrap(), None);
    assert_eq!(nics(&["none"]).unwrap(), Some(Vec::new()));
    assert_eq!(nics(&["user", "tap=t"]).unwrap().unwrap().len(), 2);
    assert!(nics(&["user", "none"]).is_err());
    assert!(nics(&["usr"]).is_err());
}

#[test]
fn shares_have_their_tag_after_the_last_colon() {
    let share: Share = "/srv/data:data,readonly".parse().unwrap();
    assert_eq!(share, Share { dir: "/srv/data".into(), tag: Some("data".into()), readonly: true });
    let share: Share = "/srv/a:b,tag=data".parse().unwrap();
    assert_eq!(share, Share { dir: "/srv/a:b".into(), tag: Some("data".into()), readonly: false });
    assert_eq!("/srv/data".parse::<Share>().unwrap().tag(), "data");
    assert_eq!("/".parse::<Share>().unwrap().tag(), "root");
}

#[test]
fn other_options() {
    assert_eq!("8".parse::<Cpus>().unwrap().count(), 8);
    assert_eq!("2G".parse::<Memory>().unwrap().size(), Size(2 << 30));
    let vsock: Vsock = "/run/vm.sock,cid=7".parse().unwrap();
    assert_eq!((vsock.path.to_str(), vsock.cid()), (Some("/run/vm.sock"), 7));
}

#[test]
fn errors_are_sentences_that_help() {
    for (message, expected) in [
        (error::<Disk>("a,readnly"), "There is no option `readnly`; did you mean `readonly`?"),
        (error::<Disk>("a,read-only"), "There is no option `read_only`; did you mean `readonly`?"),
        (
            error::<Disk>("a,cache=none"),
            "There is no option `cache`; there is `path`, `format`, `in_place`, `discard`, `readonly`, `outside`, `within`, `direct`, `serial`, `queues`, `rate`",
        ),
        (error::<Disk>("a,serial"), "Option `serial` needs a value: `serial=...`"),
        (error::<Disk>("a,readonly=maybe"), "Option `readonly` is `on` or `off`, not `maybe`"),
        (
            error::<Disk>("a,queues=many"),
            "Option `queues` is a whole number from 0 to 65535, not `many`",
        ),
        (error::<Disk>("a,serial=x,serial=y"), "Option `serial` is given twice"),
        (error::<Disk>("a,readonly,readonly"), "`readonly` is given twice"),
        (error::<Disk>("a,path=b"), "Option `path` is given twice"),
        (error::<Disk>("a,rate=5M"), "Option `rate` has parts: `rate.bytes_per_second=...`"),
        (
            error::<Disk>("a,rate.bytes_per_second=5X"),
            "Option `rate.bytes_per_second`: `5X` is not a size such as 512M or 2G",
        ),
        (error::<Disk>("a,serial.x=5"), "Option `serial` has no parts"),
        (error::<Disk>("a,x.x.x.x.x=5"), "`x.x.x.x.x` is not an option"),
        (
            error::<Disk>("a,"),
            "There is nothing between two commas; double a comma that belongs to a value",
        ),
        (error::<Nic>("tab"), "There is no `tab` to choose; did you mean `tap`?"),
        (
            error::<Nic>("user,mac=1"),
            "Option `mac`: `1` is not a hardware address such as 52:54:00:12:34:56",
        ),
        (
            error::<Nic>("user,forward=http"),
            "Option `forward`: `http` is not a port to forward such as 8080:80, 53/udp or 127.0.0.1:2222:22",
        ),
        (error::<Cpus>("two"), "Option `count` is a whole number from 0 to 4294967295, not `two`"),
        (error::<Memory>("lots"), "Option `size`: `lots` is not a size such as 512M or 2G"),
    ] {
        assert_eq!(message, expected);
    }
}

/// The option that reads as this disk.
fn written(disk: &Disk) -> String {
    let double = |text: &str| text.replace(',', ",,");
    let mut text = format!("path={}", double(disk.path.to_str().unwrap()));
    for (flag, set) in [("readonly", disk.readonly), ("direct", disk.direct)] {
        if set {
            text += &format!(",{flag}");
        }
    }
    let numbers = [
        ("serial", disk.serial.as_deref().map(double)),
        ("queues", disk.queues.map(|number| number.to_string())),
        ("rate.bytes_per_second", disk.rate.bytes_per_second.map(|size| size.to_string())),
        (
            "rate.operations_per_second",
            disk.rate.operations_per_second.map(|number| number.to_string()),
        ),
        ("rate.burst", disk.rate.burst.map(|number| number.to_string())),
    ];
    for (key, value) in numbers {
        if let Some(value) = value {
            text += &format!(",{key}={value}");
        }
    }
    text
}

prop_compose! {
    fn disk()(
        path in "[^\0]{1,20}",
        (readonly, direct) in any::<(bool, bool)>(),
        serial in prop::option::of("[ -~]{1,20}"),
        queues: Option<u16>,
        bytes_per_second: Option<u64>,
        operations_per_second: Option<u32>,
        burst: Option<u32>,
    ) -> Disk {
        let rate = Rate { bytes_per_second: bytes_per_second.map(Size), operations_per_second, burst };
        Disk { path: path.into(), readonly, direct, serial, queues, rate, ..Disk::default() }
    }
}

proptest! {
    #[test]
    fn a_disk_reads_as_it_is_written(disk in disk()) {
        prop_assert_eq!(written(&disk).parse::<Disk>().unwrap(), disk);
    }

    #[test]
    fn any_text_is_survived(text in prop_oneof!["[a-z_.=,:0-9/-]{0,60}", ".*"]) {
        let _ = text.parse::<Disk>();
        let _ = text.parse::<Nic>();
        let _ = text.parse::<Share>();
        let _ = text.parse::<Vsock>();
        let _ = text.parse::<Memory>();
        let _ = text.parse::<Cpus>();
        let _ = nics(&[text]);
    }
}
