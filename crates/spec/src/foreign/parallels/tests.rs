//! The bundle is written for these tests in the form of Parallels Desktop; no Parallels runs where they run.

use std::fs;

use proptest::prelude::*;

use super::super::description::FileState;
use super::*;
use crate::foreign::ReadOptions;

const CONFIG: &str = "<?xml version='1.0' encoding='UTF-8'?>
<ParallelsVirtualMachine dyn_lists='' schemaVersion='1.0'>
  <AppVersion>18.3.2-53621</AppVersion>
  <Identification><VmUuid>{5FBAABE3-6958-40FF-92A7-860E329AAB41}</VmUuid><VmName>Debian</VmName></Identification>
  <Settings>
    <General><OsType>9</OsType><OsNumber>2311</OsNumber><VmDescription>mine</VmDescription></General>
    <Startup><Bios><EfiEnabled>1</EfiEnabled><EfiSecureBoot>0</EfiSecureBoot></Bios></Startup>
    <Strange>7</Strange>
  </Settings>
  <Hardware>
    <Cpu><Number>2</Number><Mode>1</Mode><VirtualizedHV>1</VirtualizedHV></Cpu>
    <Memory><RAM>2048</RAM></Memory>
    <Hdd id='0'><Index>0</Index><Enabled>1</Enabled><Connected>1</Connected><EmulatedType>1</EmulatedType>
      <SystemName>harddisk.hdd</SystemName><InterfaceType>2</InterfaceType><StackIndex>0</StackIndex><Size>65536</Size></Hdd>
    <CdRom id='0'><Enabled>1</Enabled><Connected>0</Connected><EmulatedType>1</EmulatedType><SystemName>/a/b.iso</SystemName>
      <InterfaceType>0</InterfaceType><StackIndex>3</StackIndex></CdRom>
    <NetworkAdapter id='0'><Enabled>1</Enabled><Connected>1</Connected><AdapterType>3</AdapterType><EmulatedType>1</EmulatedType>
      <MAC>001C42AABBCC</MAC></NetworkAdapter>
    <Sound id='0'><Enabled>1</Enabled></Sound>
  </Hardware>
</ParallelsVirtualMachine>";

const SNAPSHOTS: &str = "<ParallelsSavedStates><SavedStateItem guid='' current='no'><SavedStateItem guid='{1}' current='no'>
  <Name>clean</Name><DateTime>2023-05-01 10:00:00</DateTime><SavedStateItem guid='{2}' current='yes'><Name>later</Name>
  </SavedStateItem></SavedStateItem></SavedStateItem></ParallelsSavedStates>";

fn parsed(text: &str) -> Result<Description> {
    parse(&xml::parse(text.as_bytes(), "config.pvs")?, Path::new("config.pvs"), &Folder::nowhere())
}

#[test]
fn a_bundle_is_read_with_its_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("Debian.pvm");
    fs::create_dir_all(bundle.join("harddisk.hdd")).unwrap();
    fs::write(bundle.join("config.pvs"), CONFIG).unwrap();
    fs::write(bundle.join("Snapshots.xml"), SNAPSHOTS).unwrap();
    let vm = crate::foreign::read(&bundle, &ReadOptions::default()).unwrap().remove(0);
    assert_eq!((vm.name.as_deref(), vm.annotation.as_deref()), (Some("Debian"), Some("mine")));
    assert_eq!(vm.product.as_deref(), Some("Parallels Desktop 18.3.2-53621"));
    assert_eq!(vm.guest_os.as_deref(), Some("Linux (2311)"));
    assert_eq!(
        (vm.firmware.kind, vm.firmware.secure_boot),
        (Some(FirmwareKind::Uefi), Some(false))
    );
    assert_eq!(
        (vm.cpus.count, vm.cpus.nested, vm.memory.size),
        (Some(2), Some(true), Some(2 << 30))
    );
    let disk = &vm.drives[0];
    assert_eq!((disk.address().as_str(), disk.format.as_deref()), ("sata0:0", Some("parallels")));
    assert_eq!(disk.file.as_ref().unwrap().state, FileState::Present);
    assert_eq!((vm.drives[1].address().as_str(), vm.drives[1].connected), ("ide1:1", false));
    assert_eq!(vm.nics[0].mac.unwrap().to_string(), "00:1c:42:aa:bb:cc");
    assert_eq!(
        (vm.nics[0].model.as_deref(), vm.nics[0].connection.as_deref()),
        (Some("virtio"), Some("shared"))
    );
    let snapshots: Vec<_> = vm
        .snapshots
        .iter()
        .map(|one| (one.name.as_str(), one.parent.as_deref(), one.current))
        .collect();
    assert_eq!(snapshots, [("clean", None, false), ("later", Some("1"), true)]);
    let unread: Vec<_> = vm.unread.iter().map(|one| one.key.as_str()).collect();
    assert_eq!(unread, ["ParallelsVirtualMachine/Settings/Strange"]);
    assert_eq!(vm.to_spec().unwrap().disks.len(), 1);
}

#[test]
fn an_arm_guest_is_refused_with_a_reason() {
    let vm = parsed(&CONFIG.replace("<Mode>1</Mode>", "<Type>1</Type>")).unwrap();
    let error = vm.to_spec().unwrap_err().to_string();
    assert!(
        error.contains("The guest is made for aarch64 processors; only x86 guests run here"),
        "{error}"
    );
    let error = parsed("<ParallelsVirtualMachine/>").unwrap_err().to_string();
    assert_eq!(error, "config.pvs:1:1: Expected <Hardware> in <ParallelsVirtualMachine>");
    let error = parsed(&CONFIG.replace("<RAM>2048", "<RAM>lots")).unwrap_err().to_string();
    assert!(error.ends_with("The <RAM> of <RAM> is `lots` instead of a number"), "{error}");
}

#[test]
fn a_disk_of_the_mac_itself_is_told_to_be_missing() {
    let vm = parsed(&CONFIG.replacen("<EmulatedType>1", "<EmulatedType>0", 1)).unwrap();
    let told = vm.differences();
    let part = "The drive sata0:0 is a device of its host";
    assert!(told.iter().any(|note| note.message.contains(part)), "{told:?}");
}

proptest! {
    #[test]
    fn a_bundle_with_any_part_cut_out_is_survived(start in 0..CONFIG.len(), length in 0..300_usize) {
        let end = (start + length).min(CONFIG.len());
        let _ = parsed(&format!("{}{}", &CONFIG[..start], &CONFIG[end..]));
    }
}
