//! The ACPI tables of the machine (ACPI 6.5; MCFG: PCI Firmware Specification 3.3 section 4.1.2).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml_as_bytes};
use devices::power;
use engine::GuestMemory;
use spec::Topology;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::layout::{
    ACPI_TABLES, ACPI_TABLES_END, ECAM, IO_APIC, LOCAL_APIC, PCI_WINDOW, PCI_WINDOW_SIZE,
};
use crate::{Error, Result, topology};

const OEM: [u8; 6] = *b"OMNIVR";
const TABLE: [u8; 8] = *b"MICRO   ";
const REVISION: u32 = 1;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig {
    /// Processors.
    pub cpus: Topology,
    /// First port of the power management block.
    pub power_ports: u16,
    /// Interrupt of power management events.
    pub sci: u8,
}

/// Writes all tables to guest memory and returns the address of the RSDP.
pub fn write(memory: &GuestMemory, config: &AcpiConfig) -> Result<u64> {
    let mut next = ACPI_TABLES + Rsdp::len().next_multiple_of(16) as u64;
    let mut put = |table: Vec<u8>| {
        let address = next;
        next += table.len().next_multiple_of(16) as u64;
        if next > ACPI_TABLES_END {
            return Err(Error::TablesTooLarge);
        }
        memory.write_slice(&table, GuestAddress(address))?;
        Ok(address)
    };
    let dsdt = put(dsdt())?;
    let fadt = put(bytes(&fadt(config, dsdt)))?;
    let madt = put(bytes(&madt(config)))?;
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM, 0, 0, 0);
    let mcfg = put(bytes(&mcfg))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = put(bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(ACPI_TABLES))?;
    Ok(ACPI_TABLES)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The host bridge, the range that ECAM takes, and the sleep state that powers off.
fn dsdt() -> Vec<u8> {
    let bridge_resources = ResourceTemplate::new(vec![
        &AddressSpace::<u16>::new_bus_number(0, 0),
        &AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            PCI_WINDOW as u32,
            (PCI_WINDOW + PCI_WINDOW_SIZE - 1) as u32,
            None,
        ),
    ])
    .into_bytes();
    let bridge = Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &0_u8),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(Path::new("_CRS"), &bridge_resources),
        ],
    )
    .into_bytes();
    // ECAM must be reserved by a motherboard resource, or Linux does not use it.
    let ecam = ResourceTemplate::new(vec![&Memory32Fixed::new(
        true,
        ECAM as u32,
        devices::pci::ECAM_SIZE as u32,
    )])
    .into_bytes();
    let motherboard = Device::new(
        Path::new("MRES"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(Path::new("_CRS"), &ecam),
        ],
    )
    .into_bytes();
    let system = Scope::new(Path::new("_SB_"), vec![&bridge, &motherboard]).into_bytes();
    let power_off = Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&power::SLEEP_TYPE_S5, &power::SLEEP_TYPE_S5, &0_u8, &0_u8]),
    )
    .into_bytes();
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    table.append_slice(&power_off.0);
    table.append_slice(&system.0);
    table.as_slice().to_vec()
}

fn fadt(config: &AcpiConfig, dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |offset: u16| u32::from(config.power_ports + offset);
    let register = |offset: u16, bits: u8, access: AccessSize| {
        GAS::new(GasSpace::SystemIo, bits, 0, access, port(offset).into())
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    // No FACS: there is no waking vector and no global lock.
    fadt.sci_int = u16::from(config.sci).into();
    fadt.pm1a_evt_blk = port(power::PM1A_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = register(power::PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = port(power::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = register(power::PM1A_CONTROL, 16, AccessSize::WordAccess);
    // No power management timer: Linux would read it some thirty times to see whether it is a good clock.
    fadt.reset_reg = register(power::RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = power::RESET_VALUE;
    // C2 and C3 are not supported (section 5.2.9: values above 100 and 1000).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT | NO_ASPM).into();
    fadt.finalize()
}

/// IA-PC boot architecture flags (section 5.2.9.3). The 8042 is left out: it only resets, and a guest
/// that looks for a keyboard would wait for nothing.
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;

fn madt(config: &AcpiConfig) -> MADT {
    let mut madt =
        MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC as u32));
    for cpu in 0..config.cpus.count() {
        // At most 64 processors, so that the 8-bit form does for all.
        let id = topology::apic_id(config.cpus, cpu) as u8;
        madt.add_structure(ProcessorLocalApic::new(cpu as u8, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC as u32, 0));
    madt.add_structure(InterruptOverride {
        kind: 2,
        length: 10,
        bus: 0,
        source: config.sci,
        gsi: u32::from(config.sci).into(),
        flags: (ACTIVE_HIGH | LEVEL_TRIGGERED).into(),
    });
    madt
}

/// Interrupt source override (section 5.2.12.5).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct InterruptOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: U32,
    flags: U16,
}

aml_as_bytes!(InterruptOverride);

const ACTIVE_HIGH: u16 = 1;
const LEVEL_TRIGGERED: u16 = 3 << 2;

/// An AML object that has been put into bytes, so that it outlives what it was built from.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

trait IntoBytesOwned {
    fn into_bytes(self) -> Encoded;
}

impl<T: Aml> IntoBytesOwned for T {
    fn into_bytes(self) -> Encoded {
        Encoded(bytes(&self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(memory: &GuestMemory, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn table(memory: &GuestMemory, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        read(memory, address, length as usize)
    }

    fn sum(data: &[u8]) -> u8 {
        data.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_adds_up() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let rsdp =
            write(&memory, &AcpiConfig { cpus: Topology::cores(64), power_ports: 0x600, sci: 9 })
                .unwrap();
        let root = read(&memory, rsdp, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root), sum(&root[..20])), (0, 0));
        let xsdt = table(&memory, u64::from_le_bytes(root[24..32].try_into().unwrap()));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let found = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&found), 0);
            names.push(String::from_utf8(found[..4].to_vec()).unwrap());
            if &found[..4] == b"FACP" {
                let dsdt = table(&memory, u64::from_le_bytes(found[140..148].try_into().unwrap()));
                assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
            }
        }
        assert_eq!(names, ["FACP", "APIC", "MCFG"]);
    }
}
