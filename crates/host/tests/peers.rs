//! Our verdict beside those of virt-what, systemd-detect-virt, kvm-ok and virt-host-validate. Where they differ, the test says who is
//! right and why; a difference that it has no reason for is a failure.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{all_machines, candidate, hypervisor, judge};
use host::{Capture, Confidence, Facts, LayerKind, Report, Role, Usability, report};

/// Machines on which virt-what 1.25 says something else than we do, with what only it says, what only we say, and who is right.
const DIFFERENCES: &[(&str, &[&str], &[&str], &str)] = &[
    ("kvm-pvm", &["docker"], &[], LEFTOVER),
    ("kvm-on-tcg", &["docker"], &[], LEFTOVER),
    ("xen-dom0-on-tcg", &["docker"], &[], LEFTOVER),
    (
        "kvm-guest-hidden",
        &["hyperv", "qemu"],
        &["kvm"],
        "we: it gives two answers; QEMU offers Hyper-V's interface only on KVM",
    ),
    (
        "kvm-guest-offering-xen",
        &["xen"],
        &[],
        "we: it adds what the kernel takes for Xen, but KVM's own signature follows at the next base leaf",
    ),
    (
        "virtualbox-guest",
        &["kvm"],
        &[],
        "we: it gives two answers; KVM's signature is what VirtualBox offers to Linux guests",
    ),
];

const LEFTOVER: &str = "we: it takes /.dockerenv for a container, but process 2 is kthreadd, so this is the whole machine";

#[test]
fn virt_what_agrees_on_captured_machines_or_we_say_why_not() {
    let Some(virt_what) = installed("virt-what") else { return };
    if !Command::new(&virt_what)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        println!("skipped: virt-what does not run here");
        return;
    }
    let mut unexplained = Vec::new();
    for (name, capture) in all_machines() {
        let root = tempfile::tempdir().expect("a folder");
        unpack_for_virt_what(&capture, root.path());
        let output = Command::new(&virt_what)
            .arg(format!("--test-root={}", root.path().display()))
            .output()
            .expect("virt-what starts");
        let theirs: BTreeSet<String> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        let ours = in_words_of_virt_what(&judge(&capture));
        let theirs: BTreeSet<&str> =
            theirs.iter().map(String::as_str).filter(|word| WORDS.contains(word)).collect();
        let ours: BTreeSet<&str> =
            ours.iter().map(String::as_str).filter(|word| WORDS.contains(word)).collect();
        let only_theirs: Vec<&str> = theirs.difference(&ours).copied().collect();
        let only_ours: Vec<&str> = ours.difference(&theirs).copied().collect();
        let reason = DIFFERENCES.iter().find(|(known, theirs, ours, _)| {
            *known == name && **theirs == *only_theirs && **ours == *only_ours
        });
        match reason {
            Some((.., reason)) => {
                println!("{name}: virt-what {only_theirs:?}, we {only_ours:?}; right: {reason}")
            }
            None if only_theirs.is_empty() && only_ours.is_empty() => {}
            None => unexplained
                .push(format!("{name}: only virt-what {only_theirs:?}, only we {only_ours:?}")),
        }
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

/// What virt-what has a word for.
const WORDS: [&str; 19] = [
    "kvm",
    "qemu",
    "xen",
    "xen-dom0",
    "xen-hvm",
    "vmware",
    "hyperv",
    "virtualbox",
    "parallels",
    "bhyve",
    "docker",
    "podman",
    "lxc",
    "openvz",
    "aws",
    "google_cloud",
    "alibaba_cloud",
    "nutanix_ahv",
    "ovirt",
];

fn in_words_of_virt_what(report: &Report) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut innermost_hypervisor = true;
    for layer in &report.inside {
        if layer.confidence == Confidence::Possible {
            continue;
        }
        match layer.kind {
            // It names one hypervisor, the innermost.
            LayerKind::Hypervisor if !std::mem::take(&mut innermost_hypervisor) => {}
            LayerKind::Hypervisor => {
                let word = match layer.id.as_str() {
                    "qemu-tcg" => "qemu",
                    "hyper-v" => "hyperv",
                    id => id,
                };
                words.insert(word.to_owned());
                match (layer.id.as_str(), layer.role) {
                    ("xen", Role::Manager) => words.extend(["xen-dom0".to_owned()]),
                    ("xen", Role::Guest) if layer.name.contains("HVM") => {
                        words.extend(["xen-hvm".to_owned()])
                    }
                    _ => {}
                }
            }
            LayerKind::Container => words.extend([layer.id.clone()]),
            LayerKind::Cloud => words.extend([layer
                .id
                .replace("google-cloud", "google_cloud")
                .replace("alibaba", "alibaba_cloud")]),
        }
    }
    words
}

/// A root folder for virt-what's own test option: files, and its two helpers with the answers of this machine.
fn unpack_for_virt_what(capture: &Capture, root: &Path) {
    let write = |path: &str, text: &str| {
        let file = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().expect("a parent")).expect("folders");
        fs::write(file, text).expect("a file");
    };
    capture.files.iter().for_each(|(path, text)| write(path, text));
    capture.present.iter().for_each(|path| write(path, ""));
    for folder in capture.folders.keys().filter(|folder| folder.starts_with("/proc")) {
        fs::create_dir_all(root.join(folder.trim_start_matches('/'))).expect("a folder");
    }
    // Its helper looks for known names from the highest base leaf down, and prints the first.
    let facts = Facts::replay(capture);
    let signature =
        facts.cpuid.signatures().pop().map(|(_, signature)| signature).unwrap_or_default();
    let padded = if signature == "bhyve bhyve" { "bhyve bhyve ".to_owned() } else { signature };
    script(&root.join("usr/libexec/virt-what-cpuid-helper"), &format!("echo '{padded}'"));
    let dmi = facts.dmi.map_or("# No SMBIOS nor DMI entry point found, sorry.\n".to_owned(), |dmi| {
        format!(
            "BIOS Information\n\tVendor: {}\n\tVersion: {}\nSystem Information\n\tManufacturer: {}\n\tProduct Name: {}\n\tVersion: {}\n",
            dmi.bios_vendor, dmi.bios_version, dmi.system_vendor, dmi.product, dmi.version
        )
    });
    script(&root.join("usr/sbin/dmidecode"), &format!("cat <<'END'\n{dmi}END"));
}

fn script(path: &Path, body: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
    fs::write(path, format!("#!/bin/sh\n{body}\n")).expect("a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
}

#[test]
fn systemd_agrees_on_this_machine_or_we_say_why_not() {
    let Some(program) = installed("systemd-detect-virt") else { return };
    let report = report(&Facts::of_this_machine(), None);

    let theirs = first_line(Command::new(&program).arg("--vm"));
    let ours = hypervisor(&report).filter(|layer| layer.role != Role::Manager);
    let meant = BTreeMap::from([
        ("kvm", "kvm"),
        ("amazon", "kvm"),
        ("google", "kvm"),
        ("qemu", "qemu-tcg"),
        ("xen", "xen"),
        ("microsoft", "hyper-v"),
        ("oracle", "virtualbox"),
        ("vmware", "vmware"),
        ("parallels", "parallels"),
        ("bhyve", "bhyve"),
        ("acrn", "acrn"),
        ("apple", "apple"),
        ("qnx", "qnx"),
    ]);
    match (meant.get(theirs.as_str()), ours) {
        (Some(id), Some(layer)) if layer.id == *id => {}
        (None, None) if theirs == "none" => {}
        (_, ours) => panic!(
            "systemd-detect-virt says {theirs}, we say {ours:#?}, and nobody has said who is right"
        ),
    }

    let theirs = first_line(Command::new(&program).arg("--container"));
    let ours = report.inside.iter().find(|layer| layer.kind == LayerKind::Container);
    match ours {
        None => assert_eq!(theirs, "none"),
        Some(layer) if layer.confidence == Confidence::Possible => {
            let note = layer.note.as_deref().unwrap_or_default();
            assert!(note.contains("kthreadd"), "{note}");
            println!("systemd-detect-virt says {theirs}; right: we, who doubt it: {note}");
        }
        Some(layer) => {
            assert!(theirs != "none" || layer.id.starts_with("wsl"), "we say {layer:#?}")
        }
    }
}

#[test]
fn kvm_ok_and_virt_host_validate_agree_on_this_machine_or_we_say_why_not() {
    let facts = Facts::of_this_machine();
    let report = report(&facts, None);
    let ours = candidate(&report, "kvm");
    let has_extension = facts.cpuid.vmx() || facts.cpuid.svm();

    if let Some(program) = installed("kvm-ok") {
        let theirs = succeeds(&mut Command::new(program));
        let usable = ours.state == Usability::Usable;
        // It looks at flags of the processor, the existence of the node, and as root at the firmware lock. It opens nothing.
        match (theirs, usable) {
            (true, false) => {
                assert!(facts.nodes.contains_key("/dev/kvm"), "{}", ours.reason);
                println!(
                    "kvm-ok says yes; right: we, who tried to open the device: {}",
                    ours.reason
                );
            }
            (false, true) => {
                assert!(facts.kvm_opens(), "{}", ours.reason);
                println!("kvm-ok says no; right: we, because the device opens: {}", ours.reason);
            }
            (false, false) if facts.kvm_opens() => {
                assert!(!has_extension);
                println!(
                    "kvm-ok says that the processor has no extension; right: we, because /dev/kvm opens all the same: {}",
                    ours.reason
                );
            }
            _ => {}
        }
    }
    if let Some(program) = installed("virt-host-validate") {
        let output = Command::new(program).arg("qemu").output().expect("virt-host-validate starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let passed = |check: &str| {
            let line = text.lines().find(|line| line.contains(check))?;
            Some(line.contains(": PASS"))
        };
        // Its first check looks at the flags in /proc/cpuinfo.
        if let Some(theirs) = passed("Checking for hardware virtualization") {
            let flags = ["vmx", "svm"].iter().any(|&flag| facts.cpuinfo.flags.contains(flag));
            assert_eq!(theirs, flags, "{text}");
            if !theirs && facts.kvm_opens() {
                println!(
                    "virt-host-validate says that the host is not compatible with KVM; right: we, because /dev/kvm opens: {}",
                    ours.reason
                );
            }
        }
        if let Some(theirs) = passed("device /dev/kvm exists") {
            assert_eq!(theirs, facts.nodes.contains_key("/dev/kvm"), "{text}");
        }
        if let Some(theirs) = passed("device /dev/kvm is accessible") {
            assert_eq!(theirs, facts.kvm_opens(), "{text}");
        }
    }
}

/// The program's path, or a printed line if it is not installed.
fn installed(program: &str) -> Option<String> {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|folder| format!("{folder}/{program}"))
        .find(|path| Path::new(path).exists());
    if found.is_none() {
        println!("skipped: {program} is not installed");
    }
    found
}

fn first_line(command: &mut Command) -> String {
    let output = command.stderr(Stdio::null()).output().expect("the program starts");
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("the program starts")
        .success()
}
