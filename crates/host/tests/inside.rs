//! What captured machines are found to run inside of.

mod common;

use common::{all_machines, hypervisor, inside, judge, machine};
use host::{Confidence, LayerKind, Role};

/// The innermost hypervisor's name, its driver and our role in it.
#[track_caller]
fn is_inside(name: &str, id: &str, monitor: Option<&str>, role: Role, confidence: Confidence) {
    let report = judge(&machine(name));
    let layer = hypervisor(&report).unwrap_or_else(|| panic!("{name}: no hypervisor found"));
    let found = (layer.id.as_str(), layer.monitor.as_deref(), layer.role, layer.confidence);
    assert_eq!(found, (id, monitor, role, confidence), "{name}: {layer:#?}");
    assert!(!layer.evidence.is_empty(), "{name} has no evidence");
}

use Confidence::{Certain, Likely, Possible};
use Role::{Guest, Manager, ParavirtualGuest};

#[test]
fn computers_without_a_hypervisor_are_inside_of_nothing() {
    for name in [
        "intel-laptop",
        "intel-laptop-locked-off",
        "amd-server",
        "intel-server-tdx",
        "celeron-without-vt-x",
    ] {
        assert_eq!(inside(&judge(&machine(name))), [""; 0], "{name}");
    }
}

#[test]
fn hypervisors_are_named_by_their_own_signature() {
    is_inside("kvm-guest-without-nesting", "kvm", Some("qemu"), Guest, Certain);
    is_inside("vmware-guest", "vmware", None, Guest, Certain);
    is_inside("bhyve-guest", "bhyve", None, Guest, Certain);
    is_inside("acrn-guest", "acrn", None, Guest, Certain);
    is_inside("kvm-on-tcg", "qemu-tcg", Some("qemu"), Guest, Certain);
    is_inside("hyper-v-guest", "hyper-v", None, Guest, Certain);
}

#[test]
fn kvm_that_answers_as_hyper_v_first_is_kvm() {
    is_inside("kvm-guest-enlightened", "kvm", Some("qemu"), Guest, Certain);
    let report = judge(&machine("kvm-guest-enlightened"));
    let note = hypervisor(&report).and_then(|layer| layer.note.clone()).expect("a note");
    assert!(note.contains("Hyper-V's interface"), "{note}");
}

#[test]
fn kvm_that_answers_as_xen_first_is_kvm() {
    is_inside("kvm-guest-offering-xen", "kvm", Some("qemu"), Guest, Certain);
}

#[test]
fn kvm_that_hides_behind_hyper_v_is_told_by_its_firmware() {
    is_inside("kvm-guest-hidden", "kvm", Some("qemu"), Guest, Likely);
}

#[test]
fn parallels_and_virtualbox_that_answer_as_kvm_are_told_by_their_firmware() {
    is_inside("parallels-guest", "parallels", None, Guest, Certain);
    is_inside("virtualbox-guest", "virtualbox", None, Guest, Certain);
}

#[test]
fn virtualbox_without_firmware_strings_is_told_by_its_devices() {
    let mut capture = machine("virtualbox-guest");
    capture.files.retain(|path, _| !path.starts_with("/sys/class/dmi"));
    let report = judge(&capture);
    let layer = hypervisor(&report).expect("a hypervisor");
    assert_eq!((layer.id.as_str(), layer.confidence), ("virtualbox", Likely));
}

#[test]
fn xen_is_told_with_our_role_in_it() {
    is_inside("xen-pv-guest", "xen", None, ParavirtualGuest, Certain);
    is_inside("xen-hvm-guest", "xen", None, Guest, Certain);
    is_inside("xen-pvh-guest", "xen", None, Guest, Certain);
    is_inside("xen-dom0-on-tcg", "xen", None, Manager, Certain);
    let report = judge(&machine("xen-hvm-guest"));
    assert_eq!(hypervisor(&report).expect("Xen").name, "Xen (HVM guest)");
}

#[test]
fn the_hypervisor_around_xen_is_seen_by_paravirtualized_kernels() {
    for name in ["xen-dom0-on-tcg", "xen-pv-guest"] {
        let report = judge(&machine(name));
        let hypervisors: Vec<&str> = report
            .inside
            .iter()
            .filter(|layer| layer.kind == LayerKind::Hypervisor)
            .map(|layer| layer.id.as_str())
            .collect();
        assert_eq!(hypervisors, ["xen", "qemu-tcg"], "{name}");
    }
    // A PVH guest sees only what Xen shows it.
    assert_eq!(inside(&judge(&machine("xen-pvh-guest"))), ["xen"]);
}

#[test]
fn a_root_partition_is_no_guest() {
    is_inside("hyper-v-root", "hyper-v", None, Manager, Certain);
}

#[test]
fn wsl_2_is_a_guest_and_wsl_1_on_windows_with_hyper_v_is_not() {
    assert_eq!(inside(&judge(&machine("wsl2"))), ["wsl2", "hyper-v"]);
    is_inside("wsl2", "hyper-v", None, Guest, Certain);
    assert_eq!(inside(&judge(&machine("wsl1"))), ["wsl1", "hyper-v"]);
    is_inside("wsl1", "hyper-v", None, Manager, Certain);
}

#[test]
fn a_hyper_v_that_says_it_is_nested_is_two_layers() {
    let mut capture = machine("hyper-v-guest");
    let text = capture
        .cpuid
        .to_string()
        .replace("0x40000004 0x00: eax=0x00062e2c", "0x40000004 0x00: eax=0x00063e2c");
    capture.cpuid = text.parse().expect("the same dump with one bit more");
    assert_eq!(inside(&judge(&capture)), ["hyper-v", "hyper-v"]);
}

#[test]
fn firecracker_is_told_by_its_tables_or_by_its_command_line() {
    is_inside("kvm-pvm", "kvm", Some("firecracker"), Guest, Certain);
    is_inside("firecracker-guest", "kvm", Some("firecracker"), Guest, Certain);
    is_inside("cloud-hypervisor-guest", "kvm", Some("cloud-hypervisor"), Guest, Certain);
}

#[test]
fn clouds_are_told_by_their_firmware_beside_the_hypervisor() {
    for (name, layers) in [
        ("aws-t2-on-xen", vec!["xen", "aws"]),
        ("aws-t3-on-nitro", vec!["kvm", "aws"]),
        ("aws-m5-metal", vec!["aws"]),
        ("google-compute-engine", vec!["kvm", "google-cloud"]),
        ("azure", vec!["hyper-v", "azure"]),
    ] {
        assert_eq!(inside(&judge(&machine(name))), layers, "{name}");
    }
    let metal = judge(&machine("aws-m5-metal"));
    assert_eq!(metal.inside[0].role, Role::BareMetal);
}

#[test]
fn containers_are_told_apart_from_root_file_systems_made_of_their_images() {
    let real = judge(&machine("docker-container"));
    assert_eq!((real.inside[0].id.as_str(), real.inside[0].confidence), ("docker", Likely));
    let leftover = judge(&machine("kvm-pvm"));
    assert_eq!(
        (leftover.inside[0].id.as_str(), leftover.inside[0].confidence),
        ("docker", Possible)
    );
    assert!(leftover.inside[0].note.as_deref().is_some_and(|note| note.contains("kthreadd")));
}

#[test]
fn a_container_manager_that_leaves_its_name_is_believed() {
    let mut capture = machine("intel-laptop");
    capture.files.insert("/run/systemd/container".into(), "lxc".into());
    assert_eq!(inside(&judge(&capture)), ["lxc"]);
    let mut capture = machine("intel-laptop");
    let path = "0::/system.slice/docker-0123456789abcdef.scope\n".to_owned();
    capture.files.insert("/proc/self/cgroup".into(), path);
    let report = judge(&capture);
    assert_eq!((report.inside[0].id.as_str(), report.inside[0].confidence), ("docker", Certain));
}

#[test]
fn a_hypervisor_bit_without_a_name_is_an_unknown_hypervisor() {
    let mut capture = machine("acrn-guest");
    let text: String = capture
        .cpuid
        .to_string()
        .lines()
        .filter(|line| !line.starts_with("0x4000"))
        .map(|line| format!("{line}\n"))
        .collect();
    capture.cpuid = text.parse().expect("a shorter dump");
    assert_eq!(inside(&judge(&capture)), ["unknown"]);
}

#[test]
fn a_guest_whose_memory_is_encrypted_is_told_so() {
    let encrypted = |capture: &host::Capture| {
        let report = judge(capture);
        let evidence = &hypervisor(&report).expect("a hypervisor").evidence;
        evidence.iter().any(|said| said.says.to_lowercase().contains("encrypt"))
    };
    let plain = machine("google-compute-engine");
    assert!(!encrypted(&plain));
    let mut sev = plain.clone();
    sev.log = Some(vec!["Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP".into()]);
    assert!(encrypted(&sev));
    let mut tdx = plain;
    let registers =
        host::Registers { eax: 0, ebx: 0x6574_6e49, ecx: 0x2020_2020, edx: 0x5844_546c };
    tdx.cpuid.insert(0, 0, host::Registers { eax: 0x21, ..Default::default() });
    tdx.cpuid.insert(0x21, 0, registers);
    assert!(encrypted(&tdx));
}

#[test]
fn every_layer_of_every_machine_has_evidence() {
    for (name, capture) in all_machines() {
        for layer in judge(&capture).inside {
            assert!(!layer.evidence.is_empty(), "{name}: {layer:?}");
        }
    }
}
