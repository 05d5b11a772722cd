//! What captured machines are found to be able to do, and the repair where they are not.

mod common;

use std::collections::BTreeSet;
use std::io;

use common::{
    all_machines, candidate, commands, firmware_place, judge, judge_with, machine, mips, native,
};
use host::{
    Capture, Facts, FirmwareState, KvmStep, Presence, ProofResult, Report, Usability, kvm_advice,
    kvm_error_advice, report,
};

#[track_caller]
fn kvm_is(report: &Report, state: Usability, reason: &str) {
    let kvm = candidate(report, "kvm");
    assert_eq!(kvm.state, state, "{kvm:#?}");
    assert!(kvm.reason.contains(reason), "{:?} does not say {reason:?}", kvm.reason);
}

#[track_caller]
fn repaired_by(report: &Report, id: &str, command: &str) {
    let commands = commands(candidate(report, id));
    assert!(commands.contains(command), "{commands:?} does not contain {command:?}");
}

fn extension(report: &Report, id: &str) -> Presence {
    let found = report.cpu.extensions.iter().find(|extension| extension.id == id);
    found.unwrap_or_else(|| panic!("no extension {id}")).state
}

use Usability::{Absent, Unusable, Usable};

#[test]
fn a_laptop_with_kvm_runs_guests() {
    let report = judge_with(&machine("intel-laptop"), &native());
    kvm_is(&report, Usable, "natively (7000 M instructions/s");
    assert_eq!(report.choice.engine.as_deref(), Some("kvm"));
    assert_eq!(report.cpu.firmware.state, FirmwareState::Enabled);
    for id in ["vt-x", "ept", "vpid", "unrestricted-guest", "nested", "iommu"] {
        assert_eq!(extension(&report, id), Presence::Present, "{id}");
    }
}

#[test]
fn without_a_proof_the_verdict_says_so() {
    let report = judge(&machine("intel-laptop"));
    kvm_is(&report, Usable, "was not tried");
    assert_eq!(report.kvm.module.as_deref(), Some("kvm_intel"));
    assert_eq!(report.kvm.parameters["kvm_intel.nested"], "Y");
}

#[test]
fn an_ordinary_user_hears_what_root_would_add() {
    let report = judge(&machine("intel-laptop"));
    assert!(report.root_would_add.iter().any(|text| text.contains("/dev/cpu/0/msr")));
    assert!(report.root_would_add.iter().any(|text| text.contains("log")));
    assert_eq!(judge(&machine("amd-server")).root_would_add, [""; 0]);
}

#[test]
fn a_firmware_lock_is_told_by_the_register_the_log_or_the_cleared_flag() {
    let mut capture = machine("intel-laptop-locked-off");
    let mut sources = Vec::new();
    for _ in 0..3 {
        let report = judge(&capture);
        assert_eq!(report.cpu.firmware.state, FirmwareState::LockedOff);
        kvm_is(&report, Unusable, "switched off in the computer's firmware setup");
        repaired_by(&report, "kvm", "systemctl reboot --firmware-setup");
        sources.push(report.cpu.firmware.evidence[0].source.clone());
        // The best witness is taken away.
        if capture.msrs.is_empty() {
            capture.log = None;
        }
        capture.msrs.clear();
    }
    assert_eq!(sources, ["MSR 0x3a IA32_FEATURE_CONTROL", "kernel log", "/proc/cpuinfo"]);
}

#[test]
fn the_setting_is_named_as_in_this_computers_firmware() {
    for (name, place) in [
        ("intel-laptop-locked-off", "Security > Virtualization > Intel Virtualization Technology"),
        ("intel-desktop-locked-off-linux-4.19", "Advanced > CPU Configuration > Intel (VMX)"),
        ("amd-desktop-svm-off", "Tweaker > Advanced CPU Settings > SVM Mode"),
    ] {
        let report = judge(&machine(name));
        assert_eq!(report.cpu.firmware.state, FirmwareState::LockedOff, "{name}");
        let found = firmware_place(&report.cpu.firmware);
        assert!(found.contains(place), "{name}: {found}");
    }
}

#[test]
fn an_amd_server_has_its_extensions_by_cpuid_and_module() {
    let report = judge_with(&machine("amd-server"), &native());
    kvm_is(&report, Usable, "natively");
    for id in
        ["amd-v", "npt", "nrips", "avic", "vgif", "sev", "sev-es", "sev-snp", "nested", "iommu"]
    {
        assert_eq!(extension(&report, id), Presence::Present, "{id}");
    }
    assert_eq!(report.cpu.firmware.evidence[0].source, "MSR 0xc0010114 VM_CR");
}

#[test]
fn a_tdx_host_is_told() {
    let report = judge(&machine("intel-server-tdx"));
    assert_eq!(extension(&report, "tdx"), Presence::Present);
    assert_eq!(extension(&report, "apicv"), Presence::Present);
    let mut off = machine("intel-server-tdx");
    off.files.insert("/sys/module/kvm_intel/parameters/tdx".into(), "N".into());
    assert_eq!(extension(&judge(&off), "tdx"), Presence::Off);
    assert_eq!(extension(&judge(&machine("intel-laptop")), "tdx"), Presence::Unknown);
}

#[test]
fn an_iommu_that_is_switched_off_is_not_one_that_is_absent() {
    let mut capture = machine("intel-laptop");
    capture.folders.remove("/sys/kernel/iommu_groups");
    capture.folders.remove("/sys/class/iommu");
    assert_eq!(extension(&judge(&capture), "iommu"), Presence::Off);
    assert_eq!(extension(&judge(&machine("celeron-without-vt-x")), "iommu"), Presence::Absent);
}

#[test]
fn an_old_processor_has_nothing_and_no_repair() {
    let report = judge(&machine("celeron-without-vt-x"));
    kvm_is(&report, Absent, "the processor has no VT-x");
    assert!(candidate(&report, "kvm").repair.is_empty());
    assert_eq!(report.cpu.firmware.state, FirmwareState::NotApplicable);
    assert_eq!(report.choice.engine.as_deref(), Some("soft"));
}

#[test]
fn a_kvm_that_emulates_kernel_code_is_not_usable() {
    let proof = ProofResult::judge(Some(12), mips(2), mips(4_450));
    let report = judge_with(&machine("kvm-pvm"), &proof);
    kvm_is(
        &report,
        Unusable,
        "KVM is there but emulates kernel code; not usable for ordinary guests",
    );
    kvm_is(&report, Unusable, "ring 0: 2.0 M instructions/s");
    assert_eq!(report.kvm.module.as_deref(), Some("kvm_pvm"));
    assert_eq!(report.choice.engine.as_deref(), Some("soft"));
    // The module alone tells as well.
    kvm_is(&judge(&machine("kvm-pvm")), Unusable, "KVM is there but emulates kernel code");
}

#[test]
fn a_user_without_permission_is_not_sent_to_open_a_kvm_that_emulates() {
    let mut capture = machine("kvm-pvm");
    capture.caller.euid = 1000;
    capture.nodes.get_mut("/dev/kvm").expect("a node").errno = Some(13);
    kvm_is(&judge(&capture), Unusable, "emulates kernel code");
}

#[test]
fn a_kvm_on_a_processor_made_of_software_is_native() {
    let proof = ProofResult::judge(Some(12), mips(430), mips(440));
    kvm_is(&judge_with(&machine("kvm-on-tcg"), &proof), Usable, "natively");
}

#[test]
fn a_guest_that_cannot_be_entered_is_reported_with_the_reason() {
    let failed = ProofResult::failed("KVM refuses KVM_CREATE_VM: Cannot allocate memory", Some(12));
    kvm_is(&judge_with(&machine("intel-laptop"), &failed), Unusable, "no memory for a guest");
    let failed =
        ProofResult::judge(Some(12), Err(("KVM_RUN fails: Bad address".into(), None)), mips(1_000));
    kvm_is(&judge_with(&machine("intel-laptop"), &failed), Unusable, "KVM_RUN fails: Bad address");
    let old = ProofResult { api_version: Some(11), ..native() };
    kvm_is(&judge_with(&machine("intel-laptop"), &old), Unusable, "not version 12");
}

/// The laptop, with a user who may not open the device.
fn refused(change: impl FnOnce(&mut Capture)) -> Report {
    let mut capture = machine("intel-laptop");
    capture.caller.groups = BTreeSet::from(["alice".to_owned()]);
    capture.caller.assigned_groups.clear();
    capture.nodes.get_mut("/dev/kvm").expect("a node").errno = Some(13);
    change(&mut capture);
    judge(&capture)
}

#[test]
fn a_user_outside_of_the_group_is_told_to_join_it() {
    let report = refused(|_| ());
    kvm_is(&report, Unusable, "not in the group that may open /dev/kvm (group kvm, mode 0660)");
    repaired_by(&report, "kvm", "sudo usermod -aG kvm $USER");
    repaired_by(&report, "kvm", "sudo setfacl -m u:$USER:rw /dev/kvm");
}

#[test]
fn a_user_who_joined_after_login_is_told_to_log_in_again() {
    let report = refused(|capture| {
        capture.caller.assigned_groups.insert("kvm".into());
    });
    kvm_is(&report, Unusable, "this login is older");
    repaired_by(&report, "kvm", "newgrp kvm");
}

#[test]
fn a_device_of_root_alone_needs_a_udev_rule() {
    let report = refused(|capture| {
        let node = capture.nodes.get_mut("/dev/kvm").expect("a node");
        (node.mode, node.group) = (0o600, "root".into());
    });
    kvm_is(&report, Unusable, "Only root may open");
    repaired_by(&report, "kvm", "/etc/udev/rules.d/65-kvm.rules");
    repaired_by(&report, "kvm", "usermod -aG kvm");
}

#[test]
fn root_who_is_refused_is_told_to_look_for_a_device_rule() {
    let report = refused(|capture| capture.caller.euid = 0);
    kvm_is(&report, Unusable, "a device rule or security module refuses to open it");
}

/// The laptop with nothing loaded.
fn unloaded(change: impl FnOnce(&mut Capture)) -> Report {
    let mut capture = machine("intel-laptop");
    capture.nodes.clear();
    capture.folders.insert("/sys/module".into(), BTreeSet::new());
    change(&mut capture);
    judge(&capture)
}

#[test]
fn a_module_that_is_not_loaded_is_loaded() {
    let report = unloaded(|_| ());
    kvm_is(&report, Unusable, "the module kvm_intel is not loaded");
    repaired_by(&report, "kvm", "sudo modprobe kvm_intel");
}

#[test]
fn a_module_that_is_forbidden_is_allowed_again() {
    let report = unloaded(|capture| {
        let names = BTreeSet::from(["no-kvm.conf".to_owned()]);
        capture.folders.insert("/etc/modprobe.d".into(), names);
        let text = "# for VirtualBox\nblacklist kvm-intel\nblacklist nouveau\n".to_owned();
        capture.files.insert("/etc/modprobe.d/no-kvm.conf".into(), text);
    });
    kvm_is(&report, Unusable, "forbidden by /etc/modprobe.d/no-kvm.conf: blacklist kvm-intel");
    repaired_by(&report, "kvm", "/etc/modprobe.d/no-kvm.conf && sudo modprobe kvm_intel");
}

#[test]
fn a_module_that_the_command_line_forbids_needs_grub() {
    let report = unloaded(|capture| {
        let line = "quiet secret=x module_blacklist=nouveau,kvm_intel".to_owned();
        capture.files.insert("/proc/cmdline".into(), line);
    });
    kvm_is(&report, Unusable, "the kernel parameter `module_blacklist=nouveau,kvm_intel` forbids");
    assert!(candidate(&report, "kvm").repair[0].explain.contains("/etc/default/grub"));
}

#[test]
fn a_kernel_that_loads_no_modules_needs_a_restart() {
    let report = unloaded(|capture| {
        capture.files.insert("/proc/sys/kernel/modules_disabled".into(), "1\n".into());
    });
    kvm_is(&report, Unusable, "kernel.modules_disabled = 1");
    repaired_by(&report, "kvm", "sudo reboot");
}

#[test]
fn a_kernel_whose_modules_were_replaced_needs_a_restart() {
    let report = unloaded(|capture| {
        capture
            .folders
            .insert("/lib/modules".into(), BTreeSet::from(["6.1.0-29-amd64".to_owned()]));
        capture.folders.remove("/lib/modules/6.1.0-28-amd64/kernel/arch/x86/kvm");
    });
    kvm_is(&report, Unusable, "/lib/modules has nothing for the running kernel");
    repaired_by(&report, "kvm", "sudo reboot");
}

#[test]
fn a_pv_guest_has_no_extension_although_cpuid_shows_the_processors() {
    let capture = machine("xen-pv-guest");
    assert!(capture.cpuid.svm());
    let report = judge(&capture);
    assert_eq!(extension(&report, "amd-v"), Presence::Absent);
    kvm_is(&report, Absent, "Xen (PV guest) gives this virtual machine no AMD-V");
}

#[test]
fn a_system_without_any_modules_needs_another_kernel() {
    let report = unloaded(|capture| capture.folders.retain(|path, _| !path.starts_with("/lib")));
    kvm_is(&report, Unusable, "no kernel modules are installed");
}

#[test]
fn a_kernel_without_kvm_needs_another_kernel() {
    let report = unloaded(|capture| {
        capture.folders.remove("/lib/modules/6.1.0-28-amd64/kernel/arch/x86/kvm");
    });
    kvm_is(&report, Unusable, "the kernel 6.1.0-28-amd64 has no module kvm_intel");
    repaired_by(&report, "kvm", "sudo apt install linux-image-amd64");
}

#[test]
fn a_loaded_module_without_a_node_needs_udev() {
    let mut capture = machine("intel-laptop");
    capture.nodes.clear();
    let report = judge(&capture);
    kvm_is(&report, Unusable, "although kvm_intel is loaded");
    repaired_by(&report, "kvm", "mknod -m 0660 /dev/kvm c 10 232");
}

#[test]
fn a_node_without_a_driver_needs_the_module() {
    let report = unloaded(|capture| {
        let node = host::Node { mode: 0o660, group: "kvm".into(), errno: Some(19), owner: 0 };
        capture.nodes.insert("/dev/kvm".into(), node);
    });
    kvm_is(&report, Unusable, "no driver is behind it: the module kvm_intel is not loaded");
    repaired_by(&report, "kvm", "sudo modprobe kvm_intel");
}

#[test]
fn containers_are_told_how_to_get_the_device() {
    let report = judge(&machine("docker-container"));
    kvm_is(&report, Unusable, "the Docker container was not given it");
    repaired_by(&report, "kvm", "docker run --device /dev/kvm");
    let report = judge(&machine("podman-rootless"));
    kvm_is(&report, Unusable, "in this container");
    repaired_by(&report, "kvm", "--group-add keep-groups");
}

#[test]
fn every_hypervisor_is_asked_for_nesting_in_its_own_words() {
    for (name, words) in [
        ("kvm-guest-without-nesting", "nested=1"),
        ("virtualbox-guest", "VBoxManage modifyvm NAME --nested-hw-virt on"),
        ("hyper-v-guest", "-ExposeVirtualizationExtensions $true"),
        ("parallels-guest", "prlctl set NAME --nested-virt on"),
        ("google-compute-engine", "enableNestedVirtualization"),
        ("cloud-hypervisor-guest", "--cpus nested=on"),
    ] {
        let report = judge(&machine(name));
        kvm_is(&report, Absent, "gives this virtual machine no ");
        repaired_by(&report, "kvm", words);
    }
    for (name, words) in [
        ("vmware-guest", "vhv.enable"),
        ("xen-hvm-guest", "nestedhvm = 1"),
        ("xen-pv-guest", "type = \"hvm\""),
        ("xen-pvh-guest", "type = \"hvm\""),
        ("aws-t3-on-nitro", "*.metal"),
        ("azure", "nested virtualization"),
        ("firecracker-guest", "Firecracker gives its guests no VT-x"),
    ] {
        let report = judge(&machine(name));
        kvm_is(&report, Absent, "gives this virtual machine no ");
        let explained = &candidate(&report, "kvm").repair[0].explain;
        assert!(explained.contains(words), "{name}: {explained}");
    }
}

#[test]
fn windows_linux_subsystem_runs_guests_in_version_2_only() {
    kvm_is(&judge(&machine("wsl2")), Usable, "kvm_intel behind it");
    let report = judge(&machine("wsl1"));
    kvm_is(&report, Absent, "WSL 1 has no Linux kernel");
    repaired_by(&report, "kvm", "wsl --set-version NAME 2");
    assert_eq!(candidate(&report, "hyper-v").state, Unusable);
}

#[test]
fn a_whole_computer_of_a_cloud_runs_guests() {
    kvm_is(&judge(&machine("aws-m5-metal")), Usable, "kvm_intel behind it");
}

#[test]
fn dom0_is_a_xen_host_and_cannot_use_kvm() {
    let report = judge(&machine("xen-dom0-on-tcg"));
    assert_eq!(candidate(&report, "xen").state, Usable);
    kvm_is(&report, Unusable, "the hypervisor below keeps AMD-V for itself");
    assert!(report.holders.iter().any(|holder| holder.id == "xen" && holder.holds));
    // With the processor's extension visible or not, Xen is the reason and not the firmware.
    assert_eq!(report.cpu.firmware.state, FirmwareState::Unknown);
}

#[test]
fn xens_programs_without_xen_need_a_restart() {
    let mut capture = machine("intel-laptop");
    capture.programs.insert("xl".into(), "/usr/sbin/xl".into());
    let report = judge(&capture);
    assert_eq!(candidate(&report, "xen").state, Unusable);
    repaired_by(&report, "xen", "sudo reboot");
}

#[test]
fn a_root_partition_is_a_hyper_v_host() {
    let report = judge(&machine("hyper-v-root"));
    assert_eq!(candidate(&report, "hyper-v").state, Usable);
    kvm_is(&report, Absent, "Hyper-V (as its root partition)");
}

#[test]
fn two_who_want_the_processor_are_told_who_has_it() {
    let report = judge(&machine("virtualbox-host"));
    let virtualbox = candidate(&report, "virtualbox");
    assert_eq!(virtualbox.state, Unusable);
    assert!(virtualbox.reason.contains("kvm holds VT-x"), "{}", virtualbox.reason);
    repaired_by(&report, "virtualbox", "sudo modprobe -r kvm_intel");
    let ids: Vec<_> =
        report.holders.iter().map(|holder| (holder.id.as_str(), holder.holds)).collect();
    assert_eq!(ids, [("kvm", true), ("virtualbox", true)]);
}

#[test]
fn an_idle_kvm_leaves_the_processor_to_others() {
    let report = judge(&machine("vmware-host"));
    assert_eq!(candidate(&report, "vmware").state, Usable);
    let ids: Vec<_> =
        report.holders.iter().map(|holder| (holder.id.as_str(), holder.holds)).collect();
    assert_eq!(ids, [("kvm", false), ("vmware", true)]);
}

#[test]
fn a_busy_processor_names_who_keeps_it_busy() {
    let busy = ProofResult::failed("KVM refuses KVM_CREATE_VM: Device or resource busy", Some(16));
    let report = judge_with(&machine("virtualbox-host"), &busy);
    kvm_is(&report, Unusable, "VirtualBox holds VT-x");
    repaired_by(&report, "kvm", "modprobe -r vboxnetadp vboxnetflt vboxdrv");
}

#[test]
fn missing_modules_of_platforms_are_built() {
    let mut capture = machine("vmware-host");
    capture.nodes.remove("/dev/vmmon");
    let report = judge(&capture);
    assert_eq!(candidate(&report, "vmware").state, Unusable);
    repaired_by(&report, "vmware", "sudo vmware-modconfig --console --install-all");
    let mut capture = machine("virtualbox-host");
    capture.nodes.remove("/dev/vboxdrv");
    repaired_by(&judge(&capture), "virtualbox", "sudo modprobe vboxdrv");
}

#[test]
fn libvirt_is_told_by_its_socket() {
    let mut capture = machine("virtualbox-host");
    let report = judge(&capture);
    assert_eq!(candidate(&report, "libvirt").state, Unusable);
    repaired_by(&report, "libvirt", "systemctl enable --now virtqemud.socket");
    let socket = host::Node { mode: 0o660, group: "libvirt".into(), errno: Some(13), owner: 0 };
    capture.nodes.insert("/run/libvirt/libvirt-sock".into(), socket.clone());
    repaired_by(&judge(&capture), "libvirt", "usermod -aG libvirt $USER");
    capture.nodes.insert("/run/libvirt/libvirt-sock".into(), host::Node { errno: None, ..socket });
    assert_eq!(candidate(&judge(&capture), "libvirt").state, Usable);
}

#[test]
fn packages_are_installed_with_this_distributions_program() {
    repaired_by(&judge(&machine("intel-laptop")), "virtualbox", "sudo apt install");
    repaired_by(&judge(&machine("intel-server-tdx")), "virtualbox", "sudo zypper install");
    let mut capture = machine("intel-laptop");
    capture.files.insert("/etc/os-release".into(), "ID=arch\n".into());
    repaired_by(&judge(&capture), "libvirt", "sudo pacman -S libvirt");
}

#[test]
fn every_candidate_that_was_not_chosen_has_a_reason() {
    for (name, capture) in all_machines() {
        let report = judge(&capture);
        let chosen = report.choice.engine.iter().count();
        let all = report.engines.len() + report.platforms.len();
        assert_eq!(report.choice.rejected.len() + chosen, all, "{name}");
        assert!(
            report.choice.rejected.iter().all(|rejected| !rejected.reason.is_empty()),
            "{name}"
        );
    }
}

#[test]
fn no_platform_and_no_engine_can_be_both_usable_and_repaired() {
    for (name, capture) in all_machines() {
        let report = judge(&capture);
        for candidate in report.engines.iter().chain(&report.platforms) {
            assert!(
                candidate.state != Usable || candidate.repair.is_empty(),
                "{name}: {candidate:#?}"
            );
        }
    }
}

#[test]
fn a_report_survives_json() {
    for (name, capture) in all_machines() {
        let report = judge_with(&capture, &native());
        let text = serde_json::to_string(&report).expect("JSON");
        let back: Report = serde_json::from_str(&text).expect("the same form");
        assert_eq!(back, report, "{name}");
    }
}

#[test]
fn the_fields_of_the_json_form_are_these() {
    let report = judge_with(&machine("kvm-on-tcg"), &native());
    let value = serde_json::to_value(&report).expect("JSON");
    let fields: Vec<&str> =
        value.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        [
            "choice",
            "cpu",
            "engines",
            "holders",
            "inside",
            "kvm",
            "platforms",
            "root_would_add",
            "schema"
        ]
    );
    assert_eq!(value["schema"], 1);
    assert_eq!(value["engines"][0]["id"], "kvm");
    assert_eq!(value["engines"][0]["state"], "usable");
    assert_eq!(value["kvm"]["proof"]["ring0"]["result"], "native");
    assert_eq!(value["inside"][1]["kind"], "hypervisor");
    assert_eq!(value["inside"][1]["confidence"], "certain");
    assert_eq!(value["cpu"]["firmware"]["state"], "enabled");
}

#[test]
fn whoever_meets_an_error_of_kvm_gets_the_same_advice() {
    let facts = Facts::replay(&machine("virtualbox-host"));
    let busy = io::Error::from_raw_os_error(16);
    let advice = kvm_error_advice(&facts, KvmStep::Request("KVM_CREATE_VM", &busy));
    assert_eq!(advice.sentence, "VirtualBox holds VT-x, and two hypervisors cannot share it");
    let mut capture = machine("intel-laptop");
    capture.caller.groups.clear();
    capture.caller.assigned_groups.clear();
    let refused = io::Error::from_raw_os_error(13);
    let advice = kvm_error_advice(&Facts::replay(&capture), KvmStep::Open(&refused));
    assert!(advice.sentence.contains("not in the group"), "{}", advice.sentence);
    assert_eq!(advice.repair[0].command.as_deref(), Some("sudo usermod -aG kvm $USER"));
    let missing = io::Error::from_raw_os_error(2);
    capture.nodes.clear();
    let advice = kvm_error_advice(&Facts::replay(&capture), KvmStep::Open(&missing));
    assert!(advice.sentence.starts_with("There is no /dev/kvm"), "{}", advice.sentence);
}

#[test]
fn advice_is_given_only_where_kvm_cannot_run_guests() {
    assert_eq!(kvm_advice(&Facts::replay(&machine("intel-laptop")), Some(&native())), None);
    let advice = kvm_advice(&Facts::replay(&machine("kvm-pvm")), None).expect("advice");
    assert!(advice.sentence.starts_with("KVM is there but emulates kernel code"));
}

#[test]
fn no_facts_at_all_give_a_report_too() {
    let report = report(&Facts::default(), None);
    kvm_is(&report, Absent, "There is no /dev/kvm");
}
