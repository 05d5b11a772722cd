//! Windows systems that are looked into. Without the programs that make them, or without FUSE, a test says so and does nothing.

mod maker;
#[path = "../common/ntfs_3g.rs"]
mod ntfs_3g;

use std::sync::Arc;

use disk::{Disk, OpenOptions, RawDisk};
use guest::Guest;
use maker::State;

#[test]
fn windows_is_known_by_its_registry_and_prepared_for_other_storage() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    if !maker::system(folder.path(), &image, State::default()) {
        return;
    }
    let open = || -> Vec<Arc<dyn Disk>> {
        vec![Arc::new(RawDisk::open(&image, &OpenOptions::default()).unwrap())]
    };
    let disks = open();
    let guest = Guest::open(&disks);
    let os = guest.report().os.unwrap();
    assert_eq!(os.name.as_deref(), Some("Windows 11 Pro 23H2"));
    assert_eq!(os.edition.as_deref(), Some("Professional"));
    assert_eq!((os.version.as_deref(), os.build.as_deref()), (Some("10.0"), Some("22631.2861")));
    assert_eq!((os.hostname.as_deref(), os.architecture), (Some("Büro-PC"), Some("x86_64")));
    assert_eq!(os.tools, ["VMware tools"]);

    let plan = guest.registry_plan().unwrap();
    assert!(plan.notes.is_empty() && plan.obstacles.is_empty(), "{plan:?}");
    let what: Vec<_> =
        plan.changes.iter().map(|change| format!("{}\\{}", change.key, change.value)).collect();
    assert_eq!(
        what,
        [
            r"ControlSet001\Services\storahci\Start",
            r"ControlSet001\Services\storahci\StartOverride\0",
            r"ControlSet001\Services\intelide\Start",
            r"ControlSet002\Services\storahci\Start",
        ]
    );
    for change in &plan.changes {
        change.apply(&disks).unwrap();
        change.apply(&disks).unwrap();
    }
    disks[0].flush().unwrap();
    drop((guest, disks));
    // Nothing is left to be done, and others read the same.
    let disks = open();
    assert!(Guest::open(&disks).registry_plan().unwrap().changes.is_empty());
    drop(disks);
    let key = |key: &str| maker::key_of(&image, folder.path(), key);
    let text = key(r"ControlSet001\Services\storahci");
    assert!(
        text.contains("\"Start\"=dword:00000000") && text.contains("\"0\"=dword:00000000"),
        "{text}"
    );
    let text = key(r"ControlSet002\Services\StorAHCI");
    assert!(text.contains("\"Start\"=dword:00000000"), "{text}");
    let text = key(r"ControlSet001\Services\VMTools");
    assert!(text.contains("\"Start\"=dword:00000002"), "{text}");
    // A value that is not what it was is left alone.
    let disks = open();
    disks[0].write_at(&[7], plan.changes[0].offset).unwrap();
    assert!(plan.changes[0].apply(&disks).is_err());
}

#[test]
fn what_would_undo_or_be_hurt_by_a_change_stands_in_its_way() {
    let cases: [(State, usize, &str); 4] = [
        (State { compressed: true, ..State::default() }, 0, "is compressed or encrypted"),
        (State { dirty_registry: true, ..State::default() }, 0, "has changes in logs"),
        (State { hibernated: true, ..State::default() }, 4, "Windows is hibernated"),
        (State { dirty_volume: true, ..State::default() }, 4, "not shut down cleanly"),
    ];
    for (state, changes, obstacle) in cases {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        if !maker::system(folder.path(), &image, state) {
            return;
        }
        let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(&image, &OpenOptions::default()).unwrap());
        let plan = Guest::open(&[disk]).registry_plan().unwrap();
        assert_eq!(plan.changes.len(), changes, "{plan:?}");
        assert!(plan.obstacles.iter().any(|text| text.contains(obstacle)), "{obstacle}: {plan:?}");
    }
}
