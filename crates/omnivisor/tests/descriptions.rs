//! VMs of other platforms on the command line.

use std::path::Path;
use std::process::{Command, Output};

/// Written for this test in the form of VMware.
const VMX: &str = "config.version = \"8\"\ndisplayName = \"web\"\nmemsize = \"512\"\nsata0.present = \"TRUE\"\n\
                   sata0:0.present = \"TRUE\"\nsata0:0.fileName = \"web.vmdk\"\nstrange.key = \"1\"\n";

fn omnivisor(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnivisor"))
        .args(arguments)
        .current_dir(folder)
        .env("XDG_STATE_HOME", folder)
        .output()
        .unwrap()
}

fn text(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("web.vmx"), VMX).unwrap();
    folder
}

#[test]
fn a_vm_is_inspected_by_its_file_and_by_its_folder() {
    let folder = folder();
    for name in ["web.vmx", "."] {
        let (code, page, talk) = text(&omnivisor(folder.path(), &["inspect", name]));
        assert_eq!(code, 0, "{talk}");
        assert!(page.starts_with("VM        web, of VMware (vmx)\n"), "{page}");
        assert!(
            page.contains("web.vmdk (missing)") && page.contains("unknown   strange.key"),
            "{page}"
        );
    }
    let (_, json, _) = text(&omnivisor(folder.path(), &["inspect", "--format", "json", "web.vmx"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["vms"][0]["description"]["unread"][0]["line"], 7);
}

#[test]
fn disks_are_still_disks() {
    let folder = folder();
    std::fs::write(folder.path().join("disk.raw"), vec![0; 4096]).unwrap();
    let (code, page, talk) = text(&omnivisor(folder.path(), &["inspect", "disk.raw"]));
    assert!(code == 0 && page.starts_with("disk"), "{page}{talk}");
    for arguments in [&["inspect", "nothing"][..], &["export", "nothing.vmx", "--to", "ovf"]] {
        assert_eq!(text(&omnivisor(folder.path(), arguments)).0, 127, "{arguments:?}");
    }
}

#[test]
fn a_vm_is_exported_and_what_is_lost_is_told() {
    let folder = folder();
    let (code, xml, lost) =
        text(&omnivisor(folder.path(), &["export", "web.vmx", "--to", "libvirt"]));
    assert_eq!((code, lost.as_str()), (0, ""));
    assert!(
        xml.contains("<name>web</name>") && xml.contains("<memory unit='KiB'>524288</memory>"),
        "{xml}"
    );
    std::fs::write(folder.path().join("web.xml"), xml).unwrap();
    let (code, page, _) = text(&omnivisor(folder.path(), &["inspect", "web.xml"]));
    assert!(code == 0 && page.starts_with("VM        web, of QEMU/KVM (libvirt kvm)"), "{page}");
    let (code, _, lost) = text(&omnivisor(folder.path(), &["export", "web.vmx", "--to", "xl"]));
    assert!(code == 0 && lost.contains("Xen does not read vmdk"), "{lost}");
}

#[test]
fn what_cannot_run_is_refused_with_its_reason() {
    let folder = folder();
    let (code, _, talk) = text(&omnivisor(folder.path(), &["run", "web.vmx"]));
    assert!(code == 2 && talk.contains("The file `web.vmdk` is not there"), "{code} {talk}");
    std::fs::write(folder.path().join("secret.vmx"), VMX.replace("web.vmdk", "/etc/hostname"))
        .unwrap();
    let (code, _, talk) = text(&omnivisor(folder.path(), &["run", "secret.vmx"]));
    assert!(code == 2 && talk.contains("lies outside of the VM's folder"), "{code} {talk}");
    assert!(talk.contains("say --allow-outside"), "{talk}");
    // All that is wrong, at once.
    let more = "sata0:1.present = \"TRUE\"\nsata0:1.fileName = \"/etc/hostname\"\n";
    std::fs::write(folder.path().join("both.vmx"), format!("{VMX}{more}")).unwrap();
    let (_, _, talk) = text(&omnivisor(folder.path(), &["run", "both.vmx"]));
    for part in ["`web.vmdk` is not there", "`/etc/hostname` lies outside", "--allow-outside"] {
        assert!(talk.contains(part), "{part}: {talk}");
    }
    let (code, _, talk) =
        text(&omnivisor(folder.path(), &["run", "debian", "--hostname", "a_b", "--dry-run"]));
    assert!(code == 2 && talk.contains("`a_b` is not a host's name"), "{code} {talk}");
}

#[test]
fn a_packages_deployment_option_is_chosen_by_every_verb() {
    let folder = folder();
    let ovf = "<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1' xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'>\
               <DeploymentOptionSection><Configuration ovf:id='small'/><Configuration ovf:id='big'/></DeploymentOptionSection>\
               <VirtualSystem ovf:id='web'><VirtualHardwareSection>\
               <Item><InstanceID>1</InstanceID><ResourceType>4</ResourceType><VirtualQuantity>256</VirtualQuantity></Item>\
               <Item ovf:configuration='big'><InstanceID>1</InstanceID><ResourceType>4</ResourceType>\
               <VirtualQuantity>4096</VirtualQuantity></Item></VirtualHardwareSection></VirtualSystem></Envelope>";
    std::fs::write(folder.path().join("web.ovf"), ovf).unwrap();
    let (_, page, talk) =
        text(&omnivisor(folder.path(), &["inspect", "web.ovf", "--option", "big"]));
    assert!(page.contains("4.0 GiB of memory") || page.contains("4 GiB of memory"), "{page}{talk}");
    for verb in [
        &["inspect", "web.ovf"][..],
        &["export", "web.ovf", "--to", "toml"],
        &["run", "web.ovf", "--dry-run"],
        &["import", "web.ovf", "to", "--dry-run"],
    ] {
        let arguments = [verb, &["--option", "huge"]].concat();
        let (code, _, talk) = text(&omnivisor(folder.path(), &arguments));
        assert!(code == 2 && talk.contains("there is small, big"), "{verb:?}: {code} {talk}");
    }
}

#[test]
fn a_guest_is_told_its_packages_properties_on_a_disk() {
    let folder = folder();
    let ovf = "<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1' xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'>\
               <VirtualSystem ovf:id='web'><VirtualHardwareSection ovf:transport='iso com.vmware.guestInfo'>\
               <Item><InstanceID>1</InstanceID><ResourceType>4</ResourceType><VirtualQuantity>256</VirtualQuantity></Item>\
               </VirtualHardwareSection><ProductSection><Property ovf:key='hostname' ovf:value='old'/>\
               <Property ovf:key='password' ovf:userConfigurable='true'><Label>Secret</Label></Property>\
               </ProductSection></VirtualSystem></Envelope>";
    std::fs::write(folder.path().join("web.ovf"), ovf).unwrap();
    let import = ["import", "web.ovf", "to", "--dry-run", "--property"];
    let (code, plan, talk) =
        text(&omnivisor(folder.path(), &[&import[..], &["hostname=new"]].concat()));
    assert_eq!(code, 0, "{talk}");
    assert!(talk.contains("The property password (Secret) has no value; --property"), "{talk}");
    let path = plan.split("made of ").nth(1).and_then(|rest| rest.split(" (raw").next());
    let image = std::fs::read(path.expect(&plan)).unwrap();
    let image = String::from_utf8_lossy(&image);
    assert!(image.contains("oe:key=\"hostname\" oe:value=\"new\""), "{image}");
    for verb in [&["import", "web.ovf", "to"][..], &["run", "web.ovf"]] {
        let arguments = [verb, &["--property", "name=new"]].concat();
        let (code, _, talk) = text(&omnivisor(folder.path(), &arguments));
        assert!(code == 2 && talk.contains("there are hostname, password"), "{code} {talk}");
    }
}

#[test]
fn what_a_package_is_asked_for_is_refused_where_there_is_none() {
    let folder = folder();
    std::fs::write(folder.path().join("web.img"), vec![0; 1 << 20]).unwrap();
    for verb in [
        &["run", "web.img", "--vm", "web"][..],
        &["run", "web.img", "--property", "name=new"],
        &["run", "debian", "--option", "big"],
        &["run", "esx://nowhere.invalid/web", "--property", "name=new"],
        &["import", "web.img", "to", "--option", "big"],
        &["inspect", "web.img", "--verify"],
    ] {
        let (code, _, talk) = text(&omnivisor(folder.path(), verb));
        let name = verb.iter().find(|word| word.starts_with("--")).unwrap();
        assert!(code == 2 && talk.contains(name) && talk.contains("package"), "{code} {talk}");
    }
    let arguments = ["export", "web.vmx", "--to", "toml", "--option", "big"];
    let (code, _, talk) = text(&omnivisor(folder.path(), &arguments));
    assert!(code == 2 && talk.contains("no deployment option `big`"), "{code} {talk}");
}

#[test]
fn what_is_named_as_a_description_is_no_disk() {
    let folder = folder();
    for (name, what) in
        [("cut.ova", "a tar archive"), ("cut.vmx", "lines of"), ("cut.vmcx", "Hyper")]
    {
        std::fs::write(folder.path().join(name), b"").unwrap();
        let (code, _, talk) = text(&omnivisor(folder.path(), &["inspect", name]));
        assert!(code == 2 && talk.contains(name) && talk.contains(what), "{code} {talk}");
    }
}

#[test]
fn nothing_is_written_in_place_before_somebody_has_agreed() {
    let folder = folder();
    std::fs::write(folder.path().join("web.vmdk"), vec![0; 1 << 20]).unwrap();
    let (code, _, talk) = text(&omnivisor(folder.path(), &["run", "web.vmx", "--in-place"]));
    assert!(code == 2 && talk.contains("cannot be undone"), "{code} {talk}");
    assert!(talk.contains("web.vmdk") && talk.contains("say --yes"), "{talk}");
    let both = ["run", "web.vmx", "--in-place", "--discard"];
    assert_eq!(text(&omnivisor(folder.path(), &both)).0, 2);
}

#[test]
fn a_parent_in_another_folder_is_told_with_the_option_that_takes_it() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("vm")).unwrap();
    let xml = "<domain type='kvm'><name>web</name><memory unit='MiB'>512</memory><devices><disk type='file' device='disk'>\
               <driver type='qcow2'/><source file='top.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>";
    std::fs::write(folder.path().join("vm/web.xml"), xml).unwrap();
    for create in [&["base.qcow2", "1M"][..], &["vm/top.qcow2", "--parent", "base.qcow2"]] {
        let (code, _, talk) =
            text(&omnivisor(folder.path(), &[&["disk", "create"], create].concat()));
        assert_eq!(code, 0, "{talk}");
    }
    let (_, page, _) = text(&omnivisor(folder.path(), &["inspect", "vm"]));
    assert!(page.contains("cannot be opened: ") && page.contains("(--allow-outside)"), "{page}");
    let (_, page, _) = text(&omnivisor(folder.path(), &["inspect", "vm", "--allow-outside"]));
    assert!(page.contains("base.qcow2") && !page.contains("cannot be opened"), "{page}");
}
