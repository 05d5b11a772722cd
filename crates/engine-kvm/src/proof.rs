//! Proof that KVM runs guest code, and how fast.
//!
//! `/dev/kvm` can be there, pass every API check, and still interpret kernel code one instruction
//! at a time (`kvm_pvm` does). Only running something tells. This module builds a VM of its own, of
//! one vCPU and a few pages, and times the same counting loop in ring 0 and in ring 3. It judges
//! nothing: it returns instructions and nanoseconds.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// What the little guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The answer to `KVM_GET_API_VERSION`.
    pub api_version: i32,
    /// The loop at privilege level 0, where a guest's kernel runs.
    pub ring0: Result<Measurement, LoopError>,
    /// The same loop at privilege level 3, where a guest's programs run.
    pub ring3: Result<Measurement, LoopError>,
}

/// Guest instructions and the wall-clock time that they took, in the best of a few rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// Guest instructions executed.
    pub instructions: u64,
    /// Nanoseconds from entering the guest to leaving it.
    pub nanoseconds: u64,
}

/// Why no guest could be built. The causes are system errors, so that the caller can choose the
/// repair by their number.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// `/dev/kvm` cannot be opened.
    #[error("Cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// A request to KVM failed.
    #[error("KVM refuses {request}")]
    Request {
        /// The request, by the kernel's name for it.
        request: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The guest's few pages cannot be allocated.
    #[error("Cannot allocate the memory of the test guest")]
    Memory(#[source] io::Error),
    /// KVM did not come back from a loop that takes microseconds.
    #[error("The test guest did not come back within {} ms", LONGEST.as_millis())]
    Hangs,
}

/// Why a loop has no measurement although its VM could be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoopError {
    /// The registers that start the loop were refused, or `KVM_RUN` failed.
    #[error("{request} fails: {message}")]
    Request {
        /// The request, by the kernel's name for it.
        request: &'static str,
        /// The kernel's answer.
        message: String,
    },
    /// The guest left for another reason than the one port write at the end of the loop.
    #[error("The guest stopped with {0} instead of finishing its loop")]
    Exit(String),
}

impl From<ProofError> for LoopError {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Request { request, source } => {
                Self::Request { request, message: source.to_string() }
            }
            other => Self::Exit(other.to_string()),
        }
    }
}

/// Runs the loops and returns what they took: a few milliseconds each.
///
/// The work is done in a thread of its own, so that a KVM that never returns costs one thread and
/// not the program. Such a thread ends with the process.
pub fn prove() -> Result<Proof, ProofError> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("kvm-proof".into())
        .spawn(move || {
            // The receiver is gone only after the deadline, when nobody wants the answer any more.
            let _ = sender.send(measure_both());
        })
        .map_err(ProofError::Memory)?;
    receiver.recv_timeout(LONGEST).unwrap_or(Err(ProofError::Hangs))
}

/// A healthy KVM needs a hundredth of it.
const LONGEST: Duration = Duration::from_secs(2);
/// Long enough that entering and leaving the guest does not count.
const ENOUGH: Duration = Duration::from_millis(3);
/// Few enough for an interpreter of a million instructions per second to finish in about a
/// millisecond.
const FIRST_ITERATIONS: u64 = 500;
/// One slow round is an accident.
const FEWEST_ROUNDS: u32 = 4;
/// Rounds stop here, so that both loops and the making of the VM stay well under a tenth of a
/// second.
const LOOP_BUDGET: Duration = Duration::from_millis(30);
/// Iterations per round never exceed this, whatever the clock says.
const MOST_ITERATIONS: u64 = 1 << 32;
/// `dec rcx` and `jnz`.
const INSTRUCTIONS_PER_ITERATION: u64 = 2;

/// The port that ends the loop; 0x80 is the diagnostic port of the PC, which no in-kernel device
/// claims.
const PORT: u16 = 0x80;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const CODE: u64 = 0x5000;
const STACK: u64 = 0x7000;
const MEMORY: u64 = 0x8000;

/// ```text
/// again: dec rcx
///        jnz again
///        out 0x80, al
///        jmp again
/// ```
/// Execution starts at the `jmp`, because the first entry and the entry after an `out` then look
/// the same.
const LOOP: [u8; 9] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, PORT as u8, 0xeb, 0xf7];
const LOOP_ENTRY: u64 = CODE + 7;

/// Flat segments of the descriptor table, ring 0 and ring 3 (Intel SDM volume 3, 3.4.5).
const GDT_ENTRIES: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8b00_0000_0067,
    0,
];
const TASK_SELECTOR: u16 = 5 << 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ring {
    Kernel,
    User,
}

fn measure_both() -> Result<Proof, ProofError> {
    let kvm = Kvm::new().map_err(|error| ProofError::Open(error.into()))?;
    let api_version = kvm.get_api_version();
    let memory = guest_memory()?;
    let vm = create_vm(&kvm)?;
    // Processors without "unrestricted guest" need three pages for real mode; the address is the
    // one that QEMU uses.
    vm.set_tss_address(0xfffb_d000).map_err(request("KVM_SET_TSS_ADDR"))?;
    let host_address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|error| ProofError::Memory(io::Error::other(error)))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY,
        userspace_addr: host_address as u64,
    };
    // SAFETY: the region is exactly the mapping of `memory`, which is declared before the VM and so
    // outlives it and its vCPU; nobody else uses this VM.
    unsafe { vm.set_user_memory_region(region) }.map_err(request("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(request("KVM_CREATE_VCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(request("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(request("KVM_SET_CPUID2"))?;

    let ring0 = measure(&mut vcpu, Ring::Kernel);
    let ring3 = measure(&mut vcpu, Ring::User);
    Ok(Proof { api_version, ring0, ring3 })
}

/// `KVM_CREATE_VM` is interrupted by any signal while it waits for other processors, so it is tried
/// again.
fn create_vm(kvm: &Kvm) -> Result<VmFd, ProofError> {
    for _ in 0..100 {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(request("KVM_CREATE_VM")),
        }
    }
    Err(request("KVM_CREATE_VM")(kvm_ioctls::Error::new(libc::EINTR)))
}

fn request(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProofError {
    move |error| ProofError::Request { request: name, source: error.into() }
}

/// Memory with the page tables (the first 2 MiB, one to one, open to ring 3), the descriptor table
/// and the loop.
fn guest_memory() -> Result<GuestMemoryMmap, ProofError> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)])
        .map_err(|error| ProofError::Memory(io::Error::other(error)))?;
    // Present, writable, user; and in the last level also "page size".
    let mut contents: Vec<(u64, Vec<u8>)> = vec![
        (PML4, (PDPT | 0x07).to_le_bytes().to_vec()),
        (PDPT, (PD | 0x07).to_le_bytes().to_vec()),
        (PD, 0x87_u64.to_le_bytes().to_vec()),
        (CODE, LOOP.to_vec()),
    ];
    contents.push((GDT, GDT_ENTRIES.iter().flat_map(|entry| entry.to_le_bytes()).collect()));
    for (address, bytes) in contents {
        memory
            .write_slice(&bytes, GuestAddress(address))
            .map_err(|error| ProofError::Memory(io::Error::other(error)))?;
    }
    Ok(memory)
}

/// Doubles the iterations until a round takes long enough, and returns the fastest round: other
/// programs, and the first touch of the pages, can only make a round slower.
fn measure(vcpu: &mut VcpuFd, ring: Ring) -> Result<Measurement, LoopError> {
    enter_long_mode(vcpu, ring)?;
    let started = Instant::now();
    round(vcpu, 1)?;
    let mut iterations = FIRST_ITERATIONS;
    let mut best: Option<Measurement> = None;
    let mut rounds = 0;
    loop {
        rounds += 1;
        let elapsed = round(vcpu, iterations)?;
        let measured = Measurement {
            instructions: iterations.saturating_mul(INSTRUCTIONS_PER_ITERATION),
            nanoseconds: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1),
        };
        let fastest = best.filter(|best| !measured.is_faster_than(*best)).unwrap_or(measured);
        best = Some(fastest);
        let long_enough = elapsed >= ENOUGH || iterations >= MOST_ITERATIONS;
        if (long_enough && rounds >= FEWEST_ROUNDS) || started.elapsed() >= LOOP_BUDGET {
            return Ok(fastest);
        }
        if !long_enough {
            iterations *= 2;
        }
    }
}

impl Measurement {
    fn is_faster_than(self, other: Self) -> bool {
        u128::from(self.instructions) * u128::from(other.nanoseconds)
            > u128::from(other.instructions) * u128::from(self.nanoseconds)
    }
}

/// Runs the loop once for `iterations`.
fn round(vcpu: &mut VcpuFd, iterations: u64) -> Result<Duration, LoopError> {
    let mut registers = vcpu.get_regs().map_err(request("KVM_GET_REGS"))?;
    registers.rcx = iterations;
    vcpu.set_regs(&registers).map_err(request("KVM_SET_REGS"))?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, _)) => return Ok(start.elapsed()),
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => return Err(LoopError::Exit(format!("{exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(request("KVM_RUN")(error).into()),
        }
    }
}

/// 64-bit mode with flat segments of the ring; I/O privilege 3, so that ring 3 may end its loop by
/// the same port write.
fn enter_long_mode(vcpu: &mut VcpuFd, ring: Ring) -> Result<(), LoopError> {
    const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
    const CR4_PAE: u64 = 0x20;
    const EFER_LME_LMA: u64 = 0x500;
    const FLAGS_IOPL3: u64 = 0x3002;

    let privilege: u8 = if ring == Ring::User { 3 } else { 0 };
    let (code, data) = match ring {
        Ring::Kernel => (1 << 3, 2 << 3),
        Ring::User => ((4 << 3) | 3, (3 << 3) | 3),
    };
    let segment = |selector: u16, kind: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: privilege,
        db: u8::from(kind == 3),
        s: 1,
        l: u8::from(kind == 11),
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs().map_err(request("KVM_GET_SREGS"))?;
    sregs.cs = segment(code, 11);
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = segment(data, 3);
    }
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: TASK_SELECTOR,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (size_of_val(&GDT_ENTRIES) - 1) as u16;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs).map_err(request("KVM_SET_SREGS"))?;

    let mut registers = vcpu.get_regs().map_err(request("KVM_GET_REGS"))?;
    registers.rip = LOOP_ENTRY;
    registers.rsp = STACK;
    registers.rflags = FLAGS_IOPL3;
    vcpu.set_regs(&registers).map_err(request("KVM_SET_REGS"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest that the module builds is right on every KVM that lets itself be opened, native or
    /// not.
    #[test]
    fn both_loops_finish_where_kvm_can_be_opened() {
        let proof = match prove() {
            Err(ProofError::Open(reason)) => {
                eprintln!("skipped: /dev/kvm cannot be opened: {reason}");
                return;
            }
            result => result.expect("a VM of one vCPU and eight pages"),
        };
        assert_eq!(proof.api_version, 12);
        for measurement in [proof.ring0, proof.ring3] {
            let measurement = measurement.expect("a loop of two instructions");
            assert!(measurement.instructions >= FIRST_ITERATIONS * INSTRUCTIONS_PER_ITERATION);
            assert!(measurement.nanoseconds > 0);
        }
    }

    #[test]
    fn the_fastest_round_is_the_one_with_most_instructions_per_time() {
        let slow = Measurement { instructions: 1_000, nanoseconds: 1_000 };
        let fast = Measurement { instructions: 1_000_000, nanoseconds: 10_000 };
        assert!(fast.is_faster_than(slow));
        assert!(!slow.is_faster_than(fast));
        assert!(!slow.is_faster_than(slow));
    }

    #[test]
    fn the_jumps_of_the_loop_land_where_the_listing_says() {
        let target = |jump: usize| jump + 2 + usize::from(LOOP[jump + 1]) - 256;
        assert_eq!(target(3), 0, "jnz again");
        assert_eq!(target(7), 0, "jmp again");
        assert_eq!(LOOP_ENTRY, CODE + 7);
    }
}
