//! Names that hypervisors, their virtual firmware and clouds give themselves.

use crate::facts::Dmi;

/// A hypervisor: its stable name and its name for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hypervisor {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
}

pub(super) const KVM: Hypervisor = hypervisor("kvm", "KVM");
pub(super) const XEN: Hypervisor = hypervisor("xen", "Xen");
pub(super) const HYPER_V: Hypervisor = hypervisor("hyper-v", "Hyper-V");
pub(super) const VMWARE: Hypervisor = hypervisor("vmware", "VMware");
pub(super) const VIRTUALBOX: Hypervisor = hypervisor("virtualbox", "VirtualBox");
pub(super) const PARALLELS: Hypervisor = hypervisor("parallels", "Parallels");
pub(super) const TCG: Hypervisor =
    hypervisor("qemu-tcg", "QEMU TCG (a processor made of software)");
pub(super) const BHYVE: Hypervisor = hypervisor("bhyve", "bhyve");
pub(super) const UNKNOWN: Hypervisor = hypervisor("unknown", "an unknown hypervisor");

const fn hypervisor(id: &'static str, name: &'static str) -> Hypervisor {
    Hypervisor { id, name }
}

/// Who answers with a signature in CPUID leaf 0x40000000.
pub(super) fn by_signature(signature: &str) -> Hypervisor {
    match signature {
        // The second is what KVM once used for its Hyper-V interface.
        "KVMKVMKVM" | "Linux KVM Hv" => KVM,
        "XenVMMXenVMM" => XEN,
        "Microsoft Hv" => HYPER_V,
        "VMwareVMware" => VMWARE,
        "VBoxVBoxVBox" => VIRTUALBOX,
        // The second is the first with the bytes of each word reversed.
        "prl hyperv" | "lrpepyh vr" => PARALLELS,
        "TCGTCGTCGTCG" => TCG,
        "bhyve bhyve" => BHYVE,
        "ACRNACRNACRN" => hypervisor("acrn", "ACRN"),
        "OpenBSDVMM58" => hypervisor("openbsd-vmm", "OpenBSD vmm"),
        "___ NVMM ___" => hypervisor("nvmm", "NetBSD NVMM"),
        "QNXQVMBSQG" => hypervisor("qnx", "QNX hypervisor"),
        "Jailhouse" => hypervisor("jailhouse", "Jailhouse"),
        "HAXMHAXMHAXM" => hypervisor("haxm", "Intel HAXM"),
        "SRESRESRESRE" => hypervisor("lmhs", "Lockheed Martin LMHS"),
        "UnisysSpar64" => hypervisor("s-par", "Unisys s-Par"),
        "LKVMLKVMLKVM" => hypervisor("lkvm", "kvmtool"),
        "VirtualApple" => hypervisor("apple", "Apple Virtualization"),
        _ => UNKNOWN,
    }
}

/// What the SMBIOS strings of a computer say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Product {
    /// A hypervisor that is known by its virtual firmware.
    pub(super) hypervisor: Option<Hypervisor>,
    /// The program that drives the hypervisor, or the distribution of it.
    pub(super) monitor: Option<&'static str>,
    /// A cloud: stable name and name for people.
    pub(super) cloud: Option<(&'static str, &'static str)>,
    /// It says itself that it is a whole computer.
    pub(super) bare_metal: bool,
    /// The string that told.
    pub(super) says: String,
}

/// A row of the table of names: the beginning of the system vendor, BIOS vendor or product, and
/// what it means.
struct Row {
    start: &'static str,
    hypervisor: Option<Hypervisor>,
    monitor: Option<&'static str>,
    cloud: Option<(&'static str, &'static str)>,
}

const fn row(start: &'static str, hypervisor: Hypervisor, monitor: Option<&'static str>) -> Row {
    Row { start, hypervisor: Some(hypervisor), monitor, cloud: None }
}

const fn cloud(start: &'static str, id: &'static str, name: &'static str) -> Row {
    Row { start, hypervisor: None, monitor: None, cloud: Some((id, name)) }
}

/// Clouds come first: their computers carry the name of a hypervisor as well.
const ROWS: [Row; 43] = [
    cloud("Amazon EC2", "aws", "Amazon EC2"),
    cloud("Google Compute Engine", "google-cloud", "Google Compute Engine"),
    cloud("DigitalOcean", "digitalocean", "DigitalOcean"),
    cloud("Hetzner", "hetzner", "Hetzner Cloud"),
    cloud("Alibaba Cloud", "alibaba", "Alibaba Cloud"),
    cloud("Tencent Cloud", "tencent", "Tencent Cloud"),
    cloud("Huawei Cloud", "huawei", "Huawei Cloud"),
    cloud("OpenStack", "openstack", "OpenStack"),
    cloud("Akamai", "akamai", "Akamai (Linode)"),
    cloud("Linode", "akamai", "Akamai (Linode)"),
    cloud("Vultr", "vultr", "Vultr"),
    cloud("Scaleway", "scaleway", "Scaleway"),
    cloud("Exoscale", "exoscale", "Exoscale"),
    cloud("UpCloud", "upcloud", "UpCloud"),
    cloud("CloudSigma", "cloudsigma", "CloudSigma"),
    cloud("E2E Networks", "e2e", "E2E Networks"),
    cloud("IBM:Cloud", "ibm", "IBM Cloud"),
    row("VMware", VMWARE, None),
    row("innotek GmbH", VIRTUALBOX, None),
    row("VirtualBox", VIRTUALBOX, None),
    row("Oracle VM VirtualBox", VIRTUALBOX, None),
    row("Parallels", PARALLELS, None),
    row("QEMU", KVM, Some("qemu")),
    row("Standard PC (", KVM, Some("qemu")),
    row("KVM", KVM, Some("qemu")),
    row("Bochs", KVM, Some("qemu")),
    row("SeaBIOS", KVM, Some("qemu")),
    row("Red Hat", KVM, Some("qemu")),
    row("RHEV", KVM, Some("ovirt")),
    row("oVirt", KVM, Some("ovirt")),
    row("KubeVirt", KVM, Some("kubevirt")),
    row("Nutanix", KVM, Some("nutanix-ahv")),
    row("AHV", KVM, Some("nutanix-ahv")),
    row("SmartDC HVM", KVM, Some("smartos")),
    row("Cloud Hypervisor", KVM, Some("cloud-hypervisor")),
    row("cloud-hypervisor", KVM, Some("cloud-hypervisor")),
    row("ChromiumOS crosvm", KVM, Some("crosvm")),
    row("BHYVE", BHYVE, None),
    row("FreeBSD BHYVE", BHYVE, None),
    row("HVM domU", XEN, None),
    row("Xen", XEN, None),
    row("Apple Virtualization", hypervisor("apple", "Apple Virtualization"), None),
    row("OpenBSD VMM", hypervisor("openbsd-vmm", "OpenBSD vmm"), None),
];

/// Azure writes this into every virtual machine's chassis (its own way of saying "AZURE VM").
const AZURE_ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";
const ORACLE_ASSET_TAG: &str = "OracleCloud.com";

/// What the firmware's strings mean, if they name a hypervisor or a cloud.
pub(super) fn by_firmware(dmi: &Dmi) -> Option<Product> {
    let product = |says: String, row: &Row| Product {
        hypervisor: row.hypervisor,
        monitor: row.monitor,
        cloud: row.cloud,
        bare_metal: dmi.product.contains("metal"),
        says,
    };
    let tagged = |id, name| Product {
        hypervisor: None,
        monitor: None,
        cloud: Some((id, name)),
        bare_metal: false,
        says: format!("chassis_asset_tag {}", dmi.chassis_asset_tag),
    };
    if dmi.chassis_asset_tag == AZURE_ASSET_TAG {
        return Some(Product { hypervisor: Some(HYPER_V), ..tagged("azure", "Microsoft Azure") });
    }
    if dmi.chassis_asset_tag == ORACLE_ASSET_TAG {
        let bare_metal = dmi.system_vendor != "QEMU";
        return Some(Product { bare_metal, ..tagged("oracle", "Oracle Cloud") });
    }
    if dmi.system_vendor == "Microsoft Corporation" && dmi.product == "Virtual Machine" {
        let says = "sys_vendor Microsoft Corporation, product_name Virtual Machine".to_owned();
        let row = row("", HYPER_V, None);
        return Some(product(says, &row));
    }
    let fields = [
        ("sys_vendor", &dmi.system_vendor),
        ("product_name", &dmi.product),
        ("bios_vendor", &dmi.bios_vendor),
        ("board_vendor", &dmi.board_vendor),
        ("chassis_vendor", &dmi.chassis_vendor),
    ];
    // Amazon's Xen machines call themselves Xen, with a version of Amazon's.
    if dmi.version.contains(".amazon") || dmi.bios_version.contains(".amazon") {
        let row = Row {
            start: "",
            hypervisor: Some(XEN),
            monitor: None,
            cloud: Some(("aws", "Amazon EC2")),
        };
        return Some(product(format!("version {}{}", dmi.version, dmi.bios_version), &row));
    }
    ROWS.iter().find_map(|row| {
        let (field, value) = fields.iter().find(|(_, value)| value.starts_with(row.start))?;
        Some(product(format!("{field} {value}"), row))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computer(system_vendor: &str, product: &str) -> Dmi {
        Dmi { system_vendor: system_vendor.into(), product: product.into(), ..Default::default() }
    }

    #[test]
    fn a_laptop_is_no_hypervisor() {
        assert_eq!(by_firmware(&computer("LENOVO", "20L50000GE")), None);
        assert_eq!(by_firmware(&computer("Microsoft Corporation", "Surface Laptop 3")), None);
    }

    #[test]
    fn a_cloud_is_told_before_the_hypervisor_under_it() {
        let product = by_firmware(&computer("Amazon EC2", "m5.metal")).expect("Amazon");
        assert_eq!(product.cloud, Some(("aws", "Amazon EC2")));
        assert!(product.bare_metal);
        assert!(!by_firmware(&computer("Amazon EC2", "t3.micro")).expect("Amazon").bare_metal);
    }

    #[test]
    fn every_start_in_the_table_is_found_by_itself() {
        for row in &ROWS {
            let product = by_firmware(&computer(row.start, "")).expect(row.start);
            assert_eq!(
                (product.hypervisor, product.cloud),
                (row.hypervisor, row.cloud),
                "{}",
                row.start
            );
        }
    }
}
