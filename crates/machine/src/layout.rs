//! Where things lie in guest-physical address space.

/// RAM ends here below 4 GiB; what does not fit lies from [`HIGH_RAM`] on.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM above the hole.
pub const HIGH_RAM: u64 = 1 << 32;
/// Base address registers.
pub const PCI_WINDOW: u64 = LOW_RAM_END;
/// Bytes of the window for base address registers.
pub const PCI_WINDOW_SIZE: u64 = ECAM - PCI_WINDOW;
/// PCI configuration space of bus 0, 1 MiB.
pub const ECAM: u64 = 0xf000_0000;
/// The I/O APIC's registers (82093AA).
pub const IO_APIC: u64 = 0xfec0_0000;
/// The local APICs' registers (SDM volume 3, section 11.4.1).
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Conventional memory ends here: above lie the legacy video and ROM ranges, below is RAM of any use.
pub const LOW_MEMORY_END: u64 = 0xa_0000;
/// ACPI tables, the RSDP first; within the range that ACPI 6.5 section 5.2.5.1 has searched.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// End of the range for ACPI tables.
pub const ACPI_TABLES_END: u64 = SMBIOS;
/// SMBIOS tables, the entry point first: where the range begins that DSP0134 section 5.2 has searched.
pub const SMBIOS: u64 = 0xf_0000;
/// End of the range for SMBIOS tables.
pub const SMBIOS_END: u64 = 0x10_0000;
/// Extended memory starts here; no kernel may be loaded below.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Descriptor table of the entry state.
pub const BOOT_GDT: u64 = 0x500;
/// PVH `hvm_start_info`, with its memory map and module list behind it.
pub const START_INFO: u64 = 0x6000;
/// Linux `boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity-mapping page tables of the 64-bit entry: one page of PML4, one of PDPT, four of PD.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of the longest command line with its terminating zero (Linux COMMAND_LINE_SIZE on x86).
pub const COMMAND_LINE_SIZE: usize = 2048;
