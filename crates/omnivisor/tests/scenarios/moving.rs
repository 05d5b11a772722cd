//! A guest that goes on elsewhere.

use super::harness::Scenarios;

/// Linux on these processors moves to the software processor and back, by way of a folder. The processor that QEMU 7.2
/// emulates in the lab keeps from KVM what its guest writes to XCR0, so that SSE would be lost with XSAVE.
pub fn moving(cpus: &str) -> Scenarios {
    Scenarios::default().prepare(&["--net", "none", "--disk", "/dev/null", "debian"]).scenario(
        "a guest that writes its disk loses nothing and does nothing twice",
        format!("cpus={cpus}\n{MOVE}"),
    )
}

const MOVE: &str = r#"
description --disk /dev/null debian >vm.toml
value() { sed -n "s/^$1 = \"\(.*\)\"$/\1/p" vm.toml; }
"${OMNIVISOR%/*}/examples/move" "$(value kernel)" "$(value initrd)" "$(value cmdline) noxsave" . $cpus \
    $ENGINE soft $ENGINE >output 2>log || fail "$(cat log)"
cat output
"#;
