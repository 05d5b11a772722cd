//! Images that name the host's devices, as VirtualBox and VMware's desktop write them for disks of the host.

use disk::{Error, FilePolicy, ImageOptions};

use crate::common::{Workshop, assert_disk_holds, chain, read_only};
use crate::loop_device::LoopDevice;

const LENGTH: usize = 4 << 20;

#[test]
fn vmdk_over_a_device_is_read_and_written_where_it_may_be_named() {
    let workshop = Workshop::new(LENGTH);
    let Some(device) = LoopDevice::new(&workshop.path("disk.raw")) else {
        return eprintln!("skipped: loop devices need root");
    };
    // A copy of the part before the first partition lies in a file; one partition is not to be seen.
    let mut raw = std::fs::read(workshop.path("disk.raw")).unwrap();
    std::fs::write(workshop.path("disk-pt.vmdk"), &raw[..1 << 20]).unwrap();
    let name = &device.path;
    let kinds = [
        ("fullDevice", format!("RW 8192 FLAT \"{name}\" 0\n")),
        (
            "partitionedDevice",
            format!(
                "RW 2048 FLAT \"disk-pt.vmdk\" 0\nRW 2048 FLAT \"{name}\" 2048\nRW 2048 ZERO \n\
                 RW 2048 FLAT \"{name}\" 6144\n"
            ),
        ),
    ];
    for (kind, extents) in kinds {
        let image = workshop.path(&format!("{kind}.vmdk"));
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=8001c5c5\nparentCID=ffffffff\n\
             createType=\"{kind}\"\n\n# Extent description\n{extents}\n# The disk Data Base \n#DDB\n"
        );
        std::fs::write(&image, text).unwrap();
        let refused = disk::open(&image, &read_only()).err().expect("it names a device");
        let Error::Image { source, .. } = &refused else { panic!("{refused}") };
        assert!(matches!(**source, Error::OutsideFolder { .. }), "{}", chain(&refused));

        let mut expected = raw.clone();
        if kind == "partitionedDevice" {
            expected[2 << 20..3 << 20].fill(0);
        }
        let trusted = ImageOptions { files: FilePolicy::Anywhere, ..ImageOptions::default() };
        let disk = disk::open(&image, &trusted).unwrap();
        assert_disk_holds(&*disk, &expected, kind);
        // There is no place for what is written to the partition that is not there.
        let place = (3 << 20) + 700;
        let written = disk.write_at(b"new", place as u64);
        assert_eq!(written.is_ok(), kind == "fullDevice", "{kind}: {written:?}");
        disk.flush().unwrap();
        drop(disk);
        if kind == "fullDevice" {
            raw[place..place + 3].copy_from_slice(b"new");
        }
        assert!(std::fs::read(name).unwrap() == raw, "{kind}");
    }
}
