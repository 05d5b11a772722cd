//! No machine, however strange, makes the judgement panic or contradict itself.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{all_machines, judge, machine, mips};
use host::{Capture, CpuidDump, Facts, Node, ProofResult, Registers, Report, Usability, report};
use proptest::prelude::*;

/// A word that means something to the judgement, or any text.
fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "kvm",
        "kvm_intel",
        "kvm_amd",
        "vmx svm hypervisor",
        "Y",
        "0",
        "xen",
        "PV",
        "control_d",
        "ec2",
        "QEMU",
        "VMware, Inc.",
        "Microsoft Corporation",
        "Amazon EC2",
        "m5.metal",
        "ID=debian\n",
        "blacklist kvm-intel\n",
        "6.1.0",
        "5.4.0-Microsoft",
        "docker",
        "0 1000 1",
        "/kubepods/x",
        "kthreadd",
        "GenuineIntel",
        "-1",
        "vmx flags : ept\nflags : vmx\n\nx",
        "18446744073709551616",
        "0x",
        ":::",
        "module_blacklist=kvm",
    ]);
    prop_oneof![2 => known.prop_map(str::to_owned), 1 => ".{0,40}"]
}

fn cpuid() -> impl Strategy<Value = CpuidDump> {
    let leaf = prop::sample::select(vec![
        0,
        1,
        7,
        0x21,
        0x4000_0000,
        0x4000_0001,
        0x4000_0003,
        0x4000_0004,
        0x4000_0100,
        0x4000_0200,
        0x8000_0000,
        0x8000_0001,
        0x8000_0002,
        0x8000_000a,
        0x8000_001f,
    ]);
    let register = || {
        prop_oneof![
            Just(0),
            Just(u32::MAX),
            any::<u32>(),
            prop::sample::select(vec![
                0x4b4d_564b,
                0x564b_4d56,
                0x4d,
                0x7263_694d,
                0x666f_736f,
                0x7648_2074
            ]),
            prop::sample::select(vec![
                0x566e_6558,
                0x6558_4d4d,
                0x4d4d_566e,
                0x4000_0001,
                0x8000_0020
            ]),
        ]
    };
    let registers = (register(), register(), register(), register());
    prop::collection::vec((leaf, registers), 0..20).prop_map(|leaves| {
        let mut dump = CpuidDump::default();
        for (leaf, (eax, ebx, ecx, edx)) in leaves {
            dump.insert(leaf, 0, Registers { eax, ebx, ecx, edx });
        }
        dump
    })
}

fn node() -> impl Strategy<Value = Node> {
    (any::<u32>(), any::<u32>(), word(), prop::option::of(any::<i32>()))
        .prop_map(|(mode, owner, group, errno)| Node { mode, owner, group, errno })
}

/// A captured machine of which parts are missing, and others say something else.
fn damaged_machine() -> impl Strategy<Value = Capture> {
    let machines: Vec<Capture> = all_machines().into_iter().map(|(_, capture)| capture).collect();
    let paths: BTreeSet<String> =
        machines.iter().flat_map(|capture| capture.files.keys().cloned()).collect();
    let folders: BTreeSet<String> =
        machines.iter().flat_map(|capture| capture.folders.keys().cloned()).collect();
    let nodes: BTreeSet<String> =
        machines.iter().flat_map(|capture| capture.nodes.keys().cloned()).collect();
    let path =
        |set: &BTreeSet<String>| prop::sample::select(set.iter().cloned().collect::<Vec<_>>());
    (
        prop::sample::select(machines),
        prop::collection::vec(path(&paths), 0..8),
        prop::collection::btree_map(path(&paths), word(), 0..8),
        prop::collection::btree_map(
            path(&folders),
            prop::collection::btree_set(word(), 0..4),
            0..4,
        ),
        prop::collection::btree_map(path(&nodes), node(), 0..3),
        prop::option::of(cpuid()),
        prop::option::of(prop::option::of(prop::collection::vec(word(), 0..4))),
        prop::collection::btree_map(
            prop::sample::select(vec!["0x3a", "0xc0010114", "0x48b", "0x87"]),
            word(),
            0..3,
        ),
        any::<u32>(),
    )
        .prop_map(|(mut capture, removed, files, folders, nodes, cpuid, log, msrs, euid)| {
            capture.files.retain(|path, _| !removed.contains(path));
            capture.files.extend(files);
            capture.folders.extend(folders);
            capture.nodes.extend(nodes);
            capture.cpuid = cpuid.unwrap_or(capture.cpuid);
            capture.log = log.unwrap_or(capture.log);
            capture.msrs.extend(msrs.into_iter().map(|(number, text)| (number.to_owned(), text)));
            capture.caller.euid = euid;
            capture
        })
}

/// Facts that no machine could have given.
fn arbitrary_facts() -> impl Strategy<Value = Facts> {
    let words = || prop::collection::vec(word(), 0..4);
    (
        cpuid(),
        words(),
        words(),
        prop::option::of(words()),
        prop::collection::btree_map(word(), node(), 0..4),
        prop::collection::btree_map(
            word(),
            prop::collection::btree_map(word(), word(), 0..3),
            0..4,
        ),
        prop::collection::btree_map(any::<u32>(), any::<u64>(), 0..4),
        prop::option::of((word(), word(), word())),
        any::<[bool; 8]>(),
    )
        .prop_map(|(cpuid, flags, parameters, log, mut nodes, modules, msrs, dmi, bits)| {
            let mut facts = Facts { cpuid, efi: bits[0], ..Facts::default() };
            facts.cpuinfo.flags = flags.iter().cloned().collect();
            facts.cpuinfo.vmx_flags = bits[1].then(|| flags.into_iter().collect());
            facts.kernel.release = parameters.first().cloned().unwrap_or_default();
            facts.kernel.modprobe = parameters.clone();
            facts.kernel.parameters = parameters;
            facts.kernel.log = log;
            facts.kernel.modules_disabled = bits[2];
            if let Some((_, node)) = nodes.pop_first() {
                facts.nodes.insert("/dev/kvm".into(), node);
            }
            facts.nodes.extend(nodes);
            facts.modules = modules
                .into_iter()
                .map(|(name, parameters)| {
                    (name, host::Module { users: bits[3].then_some(1), parameters })
                })
                .collect();
            facts.msrs =
                msrs.into_iter().map(|(number, value)| (number, host::Msr::Value(value))).collect();
            facts.dmi = dmi.map(|(system_vendor, product, version)| host::Dmi {
                system_vendor,
                product,
                version,
                ..Default::default()
            });
            facts.xen.proc_xen = bits[4];
            facts.container.dockerenv = bits[5];
            facts.container.user_namespace = bits[6];
            facts.container.wsl_interop = bits[7];
            facts.programs = BTreeMap::from([("xl".to_owned(), "/usr/sbin/xl".to_owned())]);
            facts
        })
}

fn proof() -> impl Strategy<Value = Option<ProofResult>> {
    let ring = || {
        prop_oneof![
            (0_u64..10_000).prop_map(mips),
            (word(), prop::option::of(any::<i32>())).prop_map(Err)
        ]
    };
    prop::option::of(
        (ring(), ring()).prop_map(|(ring0, ring3)| ProofResult::judge(Some(12), ring0, ring3)),
    )
}

fn is_consistent(report: &Report) {
    let usable = report.engines.iter().find(|engine| engine.state == Usability::Usable);
    assert_eq!(report.choice.engine.as_ref(), usable.map(|engine| &engine.id));
    for candidate in report.engines.iter().chain(&report.platforms) {
        assert!(!candidate.reason.is_empty(), "{candidate:?}");
        assert!(
            candidate.state != Usability::Usable || candidate.repair.is_empty(),
            "{candidate:?}"
        );
    }
    for layer in &report.inside {
        assert!(!layer.evidence.is_empty(), "{layer:?}");
        assert!(!layer.id.is_empty() && !layer.name.is_empty(), "{layer:?}");
    }
    serde_json::to_string(report).expect("every report has a JSON form");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_machine_is_judged(capture in damaged_machine(), proof in proof()) {
        is_consistent(&report(&Facts::replay(&capture), proof.as_ref()));
    }

    #[test]
    fn arbitrary_facts_are_judged(facts in arbitrary_facts(), proof in proof()) {
        is_consistent(&report(&facts, proof.as_ref()));
    }

    #[test]
    fn a_dump_of_anything_is_read_or_refused(text in "(0x[0-9a-f]{1,9} 0x0: (eax|ebx|foo)=0x[0-9a-f]{1,9}\n|.{0,30}\n){0,5}") {
        if let Ok(dump) = text.parse::<CpuidDump>() {
            prop_assert_eq!(dump.to_string().parse::<CpuidDump>(), Ok(dump));
        }
    }
}

#[test]
fn an_emulated_ring_is_never_usable() {
    for (name, capture) in all_machines() {
        let proof = ProofResult::judge(Some(12), mips(1), mips(4_000));
        let report = common::judge_with(&capture, &proof);
        assert_eq!(report.choice.engine.as_deref(), Some("soft"), "{name}");
    }
}

#[test]
fn a_capture_survives_its_text_form() {
    for (name, capture) in all_machines() {
        let text = toml::to_string_pretty(&capture).expect("TOML");
        let back: Capture = toml::from_str(&text).expect("the same form");
        assert_eq!(back, capture, "{name}");
        assert_eq!(judge(&back), judge(&capture), "{name}");
    }
}

/// A folder that was copied from a machine is read like the machine itself, as far as files go.
#[test]
fn a_root_folder_gives_the_same_verdict_as_its_capture() {
    let capture = machine("intel-laptop-locked-off");
    let root = tempfile::tempdir().expect("a folder");
    for (path, text) in &capture.files {
        let file = root.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("folders");
        std::fs::write(file, text).expect("a file");
    }
    for (folder, names) in &capture.folders {
        let folder = root.path().join(folder.trim_start_matches('/'));
        std::fs::create_dir_all(&folder).expect("folders");
        for name in names.iter().filter(|name| !folder.join(name).exists()) {
            std::fs::create_dir(folder.join(name)).expect("an entry");
        }
    }
    let log = format!("Linux version 6.1.0\n{}\n", capture.log.as_ref().expect("a log").join("\n"));
    std::fs::create_dir_all(root.path().join("var/log")).expect("folders");
    std::fs::write(root.path().join("var/log/dmesg"), log).expect("a file");

    let from_folder = report(&Facts::gather(root.path(), &capture.cpuid), None);
    // Without the register the log is the best witness, as in a folder.
    let expected = judge(&Capture { msrs: BTreeMap::new(), ..capture.clone() });
    assert_eq!(from_folder.cpu, expected.cpu);
    assert_eq!(from_folder.inside, expected.inside);
    assert_eq!(from_folder.candidate("kvm"), expected.candidate("kvm"));

    let again = Capture::of(root.path(), &capture.cpuid);
    assert_eq!(judge(&again).cpu, expected.cpu, "a capture of the folder");
}
