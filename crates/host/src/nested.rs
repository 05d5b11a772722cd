//! How to ask each hypervisor for VT-x or AMD-V inside of its guests. The commands are typed on its
//! host, not here.

use crate::report::{Confidence, Layer, LayerKind, Repair, Role};

/// What the owner of the innermost hypervisor would have to do; empty outside of a virtual machine.
pub(crate) fn repair(inside: &[Layer]) -> Vec<Repair> {
    let Some(layer) = innermost_hypervisor(inside) else { return Vec::new() };
    let cloud =
        inside.iter().find(|layer| layer.kind == LayerKind::Cloud).map(|layer| layer.id.as_str());
    if let Some(repair) = cloud.and_then(in_cloud) {
        return vec![repair];
    }
    if inside.iter().any(|layer| layer.id == "wsl2") {
        return vec![Repair::command(
            "In Windows (11, or 10 with a processor of 2018 or later) write this into \
             %UserProfile%\\.wslconfig, then run `wsl --shutdown`",
            "[wsl2]\nnestedVirtualization=true",
        )];
    }
    on_host(layer)
}

/// The hypervisor whose guest this kernel is, if we are fairly sure of it.
pub(crate) fn innermost_hypervisor(inside: &[Layer]) -> Option<&Layer> {
    inside.iter().find(|layer| {
        layer.kind == LayerKind::Hypervisor
            && matches!(layer.role, Role::Guest | Role::ParavirtualGuest)
            && layer.confidence >= Confidence::Likely
    })
}

fn in_cloud(cloud: &str) -> Option<Repair> {
    Some(match cloud {
        "aws" => Repair::advice(
            "Use a bare-metal instance type (`*.metal`) or one with nested virtualization (C8i, \
             M8i, R8i with NestedVirtualization enabled)",
        ),
        "google-cloud" => Repair::command(
            "Export the instance with `gcloud compute instances export`, and import it again \
             with nested virtualization (not on E2, AMD or Arm types)",
            "gcloud compute instances update-from-file INSTANCE --source=INSTANCE.yaml  # with \
             advancedMachineFeatures: {enableNestedVirtualization: true}",
        ),
        "azure" => Repair::advice(
            "Use a size with nested virtualization (Dv3, Ev3 or later, security type Standard, \
             not the Dpsv and confidential families)",
        ),
        "oracle" | "alibaba" | "ibm" | "scaleway" | "hetzner" | "tencent" | "huawei" => {
            Repair::advice("Use one of the provider's bare-metal machines")
        }
        _ => return None,
    })
}

fn on_host(layer: &Layer) -> Vec<Repair> {
    let kvm_module = "options kvm_intel nested=1\noptions kvm_amd nested=1";
    match (layer.id.as_str(), layer.monitor.as_deref()) {
        ("kvm", Some("firecracker")) => vec![Repair::advice(
            "Firecracker gives its guests no VT-x or AMD-V; use another VMM with a CPU model \
             that has it, or a bare-metal machine",
        )],
        ("kvm", Some("cloud-hypervisor")) => vec![Repair::command(
            "On the host start the VMM with",
            "cloud-hypervisor --cpus nested=on ...",
        )],
        ("kvm", _) => vec![
            Repair::command(
                "On the host let KVM nest",
                format!(
                    "printf '{}\\n' | sudo tee /etc/modprobe.d/kvm-nested.conf",
                    kvm_module.replace('\n', "\\n")
                ),
            ),
            Repair::command(
                "and give the guest the host's processor (libvirt: <cpu mode='host-passthrough'/>)",
                "qemu-system-x86_64 -accel kvm -cpu host ...",
            ),
        ],
        ("qemu-tcg", _) => vec![Repair::command(
            "Give QEMU's software processor AMD-V (it cannot do VT-x)",
            "qemu-system-x86_64 -accel tcg -cpu max,+svm,+npt ...",
        )],
        ("vmware", _) => vec![Repair::advice(
            "Power the virtual machine off, and tick \"Virtualize Intel VT-x/EPT or AMD-V/RVI\" \
             (ESXi: \"Expose hardware assisted virtualization\"), or put `vhv.enable = \
             \"TRUE\"` into its .vmx file",
        )],
        ("hyper-v", _) => vec![Repair::command(
            "With the virtual machine off, in an administrator's PowerShell on the host",
            "Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true",
        )],
        ("virtualbox", _) => vec![Repair::command(
            "With the virtual machine off, on the host",
            "VBoxManage modifyvm NAME --nested-hw-virt on",
        )],
        ("parallels", _) => vec![Repair::command(
            "With the virtual machine off, on the Mac (Intel processors only)",
            "prlctl set NAME --nested-virt on",
        )],
        ("xen", _) if !layer.name.contains("HVM") => {
            vec![Repair::advice(
                "Start the domain as `type = \"hvm\"` with `nestedhvm = 1` in its \
                 configuration; a PV or PVH guest has no such extension",
            )]
        }
        ("xen", _) => vec![Repair::advice(
            "Put `nestedhvm = 1` into the domain's configuration (experimental, and off in many \
             builds of Xen)",
        )],
        ("apple", _) => vec![Repair::advice(
            "Apple's framework nests only on M3 and later, and not for x86-64 guests",
        )],
        (_, _) => vec![Repair::advice(format!(
            "{} has no documented way to give VT-x or AMD-V to its guests",
            layer.name
        ))],
    }
}
