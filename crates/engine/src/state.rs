//! Neutral state: what must be known of a processor and of the interrupt controllers to stop a guest
//! on one engine and go on with it on another.
//!
//! Field names are those of the Intel SDM; encodings are the architecture's own, not a backend's.

use serde::{Deserialize, Serialize};

/// Everything about one virtual processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers, RIP and RFLAGS.
    pub registers: Registers,
    /// Segment, control and descriptor-table registers.
    pub system: SystemRegisters,
    /// DR0 to DR3, DR6, DR7.
    pub debug: DebugRegisters,
    /// XCR0, where the processor has XSAVE.
    pub xcr0: Option<u64>,
    /// x87, SSE and extended state as an XSAVE area in the standard (not compacted) format, SDM
    /// volume 1 section 13.4; at least the 576 bytes of legacy region and header.
    pub xsave: Vec<u8>,
    /// Model-specific registers as (index, value), IA32_TIME_STAMP_COUNTER (0x10) among them.
    pub msrs: Vec<(u32, u64)>,
    /// The local APIC's registers.
    pub lapic: LocalApicState,
    /// Whether it runs, halts or waits for another processor.
    pub activity: Activity,
    /// What was about to be delivered.
    pub events: PendingEvents,
}

/// General-purpose registers, instruction pointer and flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Offset of its last byte, in bytes whatever the granularity.
    pub limit: u32,
    /// Access rights as the second doubleword of a descriptor holds them, shifted right by 8: type in
    /// bits 0 to 3, S 4, DPL 5 to 6, P 7, AVL 12, L 13, D/B 14, G 15 (SDM volume 3, section 3.4.5).
    pub access: u16,
    /// The segment is unusable (a null selector was loaded).
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// Registers that decide how addresses and privileges work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    /// Task register.
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
}

/// Debug registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DebugRegisters {
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

impl Default for DebugRegisters {
    /// Values after reset (SDM volume 3, table 10-1).
    fn default() -> Self {
        Self { dr: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 }
    }
}

/// The local APIC's register page (SDM volume 3, table 11-1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApicState {
    /// Register at offset `16 * i` as element `i`, 64 of them; in x2APIC mode the APIC ID register
    /// holds the 32-bit ID.
    pub registers: Vec<u32>,
}

/// Whether a processor executes instructions (ACPI/SDM activity states).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executing.
    #[default]
    Running,
    /// In HLT until an interrupt.
    Halted,
    /// An application processor after reset: waits for INIT.
    Uninitialized,
    /// INIT was received: waits for a start-up IPI.
    WaitForStartup,
    /// A start-up IPI with this vector was received and is about to be obeyed.
    StartupReceived {
        /// Page number of the first instruction.
        vector: u8,
    },
}

/// Events that had been recognised but not yet delivered when the processor stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvents {
    /// An exception that is being injected.
    pub exception: Option<Exception>,
    /// An external or software interrupt that is being injected.
    pub interrupt: Option<Interrupt>,
    /// Interrupts are held off for one instruction (after STI or MOV SS): bit 0 STI, bit 1 MOV SS.
    pub interrupt_shadow: u8,
    /// An NMI is being injected.
    pub nmi_injected: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
}

/// An exception with what it pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Vector 0 to 31.
    pub vector: u8,
    /// Error code, for those that have one.
    pub error_code: Option<u32>,
}

/// An interrupt on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupt {
    /// Vector.
    pub vector: u8,
    /// It comes from an INT instruction.
    pub software: bool,
}

/// What the processors of one virtual machine share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// The two 8259A interrupt controllers, master first.
    pub pics: [PicState; 2],
    /// The I/O APIC.
    pub ioapic: IoApicState,
    /// The 8254 timer.
    pub pit: PitState,
    /// kvm-clock: nanoseconds since the guest was started.
    pub clock_nanoseconds: u64,
}

/// One Intel 8259A (datasheet order number 231468).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PicState {
    /// Levels of the eight inputs when they were last seen.
    pub last_irr: u8,
    /// Interrupt request, mask and in-service registers.
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    /// Input with the highest priority.
    pub priority_add: u8,
    /// Vector of input 0 (ICW2).
    pub irq_base: u8,
    pub read_reg_select: bool,
    pub poll: bool,
    pub special_mask: bool,
    /// Which initialisation word is expected next; 0 when initialised.
    pub init_state: u8,
    pub auto_eoi: bool,
    pub rotate_on_auto_eoi: bool,
    pub special_fully_nested_mode: bool,
    pub init4: bool,
    /// Edge/level control register and the bits that may be set in it.
    pub elcr: u8,
    pub elcr_mask: u8,
}

/// An I/O APIC with 24 inputs (Intel 82093AA).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Guest-physical address of its registers.
    pub base_address: u64,
    /// Register that IOWIN shows.
    pub select: u32,
    /// APIC ID.
    pub id: u32,
    /// Levels of the inputs, bit per input.
    pub irr: u32,
    /// Redirection entries (82093AA section 3.2.4), 24 of them.
    pub redirection: Vec<u64>,
}

/// The 8254 timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// Its three channels.
    pub channels: [PitChannel; 3],
    /// The speaker's port is answered with a dummy instead of a speaker.
    pub speaker_dummy: bool,
}

/// One channel of the 8254 (datasheet order number 231164).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PitChannel {
    /// Reload value, 65536 for a programmed 0.
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: bool,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    /// 0 to 5 (6 and 7 are other words for 2 and 3), or 255 until it is programmed.
    pub mode: u8,
    pub bcd: bool,
    pub gate: bool,
    /// Nanoseconds since the count was loaded, when the state was saved: an age, because a point in
    /// time on one host's clock means nothing on another.
    pub loaded_nanoseconds_ago: u64,
}
