//! The packages of the guests' tests, on KVM.

use crate::harness::{PROMPT, Workshop, sums};
use crate::packages::{KIND, PACKAGES, Package};
use crate::scenarios::harness::Scenarios;

/// Runs a VM until it asks for a login; its console must show `SAYS`.
const SCRIPT: &str = r#"
    machine --cmdline quiet ARGUMENTS </dev/null >console 2>talk & vm=$!
    until grep -qF -- 'PROMPT' console; do
        kill -0 $vm 2>/dev/null || fail "it ended: $(cat console talk)"
        [ $SECONDS -lt 150 ] || fail "it asks for no login: $(cat console talk)"
        sleep 1
    done
    says 'SAYS' console"#;

#[test]
fn packages_of_vmware_virtualbox_and_hyper_v_boot_as_they_are() {
    boot(&PACKAGES[..HALF]);
}

#[test]
fn packages_of_parallels_xen_and_libvirt_boot_as_they_are() {
    boot(&PACKAGES[HALF..]);
}

/// So many of them run in one lab, and the others in another: all are more than its time on a busy computer.
const HALF: usize = 5;

fn boot(packages: &[Package]) {
    let mut scenarios = Scenarios::default();
    let mut originals = Vec::new();
    for package in packages {
        let Some(workshop) = Workshop::new(KIND) else { return };
        let Some(packed) = (package.pack)(&workshop) else { continue };
        let arguments = packed.arguments.iter().map(|word| format!("'{word}' "));
        let script = SCRIPT.replace("ARGUMENTS", &arguments.collect::<String>());
        let script = script.replace("PROMPT", PROMPT).replace("SAYS", packed.says);
        scenarios = scenarios.scenario(package.name, script);
        originals.push((sums(&workshop.vm()), workshop));
    }
    // The lab could change them: its folder of each VM is the host's.
    let writable = originals.iter().map(|(_, workshop)| workshop.vm()).collect();
    scenarios.run(&crate::Lab { writable, ..crate::lab(1300) });
    for (before, workshop) in &originals {
        assert_eq!(sums(&workshop.vm()), *before, "an original was changed");
    }
}
