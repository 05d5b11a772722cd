//! The way into translated code and out of it, and the functions that it calls.

use std::mem::offset_of;

use super::context::{self, AGAIN, BRANCH, Context, FAULT, INTERPRET};
use super::emit::{ABOVE, Assembler, EQUAL, Mem, Prefixes, RBP, RBX, RDI, RDX, RSI, RSP, Rm};
use super::registers::{A, B, PINNED};
use super::vectors::{move_loaded_vectors, vectors};
use crate::cpu::{Access, Cpu, Stop};
use crate::host::{PAGE, Tlb};
use crate::op::Op;

/// Where the common code is.
#[derive(Clone, Copy, Default)]
pub struct Stubs {
    /// `fn(*mut Cpu, code)`: enters code, returns when it is left.
    pub enter: u64,
    /// Jump here to leave; RIP is stored, the reason in B.
    pub leave: u64,
    /// The same, with the flags still in RFLAGS.
    pub leave_flags: u64,
    /// Call: the linear address in A becomes the distance to the host's; what is wanted in B (see
    /// [`request`]), from bit 16 up what is to be added to RIP.
    pub find: u64,
    /// The same for up to 8 bytes on the stack of each ring, whose page is noted if it may be written.
    pub stacks: [u64; 2],
    /// Call: the function of the decoded instruction at A is executed.
    pub execute: u64,
    /// Call: vector registers are loaded, their lower halves or whole.
    pub vectors: u64,
    pub wide_vectors: u64,
}

/// What [`Stubs::find`] is to find: a number of `size` bytes, to be written or only read.
pub fn request(size: u8, write: bool) -> u32 {
    u32::from(size) | u32::from(write) << 8
}

pub fn ctx(displacement: i32) -> Rm {
    Rm::Mem(Mem::at(RSP, displacement))
}

/// `mov dword [mem], value`.
pub fn set(a: &mut Assembler, mem: Mem, value: u32) {
    a.narrow(0xc7, 0, Rm::Mem(mem));
    a.bytes(&value.to_le_bytes());
}

fn move_registers(a: &mut Assembler, below: i32, opcode: u8) {
    for (guest, host) in PINNED {
        a.wide(opcode, host, ctx(below + context::register(guest)));
    }
}

pub const LOAD: u8 = 0x8b;
pub const STORE: u8 = 0x89;

/// LAHF, SETO and the like: the flags go to memory. Changes A.
pub fn save_flags(a: &mut Assembler) {
    a.copy(A, 0);
    a.bytes(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
    a.instruction(
        Prefixes { word: true, ..Prefixes::default() },
        &[0x89],
        0,
        ctx(context::flags()),
    );
    a.copy(0, A);
}

/// And back. Changes B.
pub fn restore_flags(a: &mut Assembler) {
    a.copy(B, 0);
    // movzx eax, word; add al, 0x7f; sahf
    a.instruction(Prefixes::default(), &[0x0f, 0xb7], 0, ctx(context::flags()));
    a.bytes(&[0x04, 0x7f, 0x9e]);
    a.copy(0, B);
}

/// Emits the common code.
pub fn emit(a: &mut Assembler) -> Stubs {
    let mut stubs = Stubs { enter: a.here(), ..Stubs::default() };
    // push rbx, rbp, r12 to r15
    a.bytes(&[0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
    a.store(Mem::at(RDI, context::host_stack()), RSP);
    a.copy(RSP, RDI);
    a.copy(A, RSI);
    move_registers(a, 0, LOAD);
    a.bytes(&[0x41, 0xff, 0xe0 | A & 7]); // jmp A

    stubs.leave_flags = a.here();
    save_flags(a);
    stubs.leave = a.here();
    a.narrow(STORE, B, ctx(context::exit()));
    let leave = a.here();
    move_registers(a, 0, STORE);
    let left = a.here();
    move_loaded_vectors(a, 0, 0x11);
    set(a, Mem::at(RSP, context::vectors()), 0);
    a.load(RSP, Mem::at(RSP, context::host_stack()));
    a.bytes(&[0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);

    stubs.find = a.here();
    a.store(Mem::at(RSP, 8 + context::linear()), A);
    let find_noted = a.here();
    call_rust(a, find as *const () as u64, left);
    a.wide(0x2b, A, ctx(8 + context::linear())); // sub
    a.bytes(&[0xc3]);
    for user in [0, 1] {
        stubs.stacks[user as usize] = a.here();
        find_stack(a, user, find_noted);
    }
    stubs.execute = a.here();
    call_rust(a, execute as *const () as u64, left);
    a.bytes(&[0xc3]);

    stubs.vectors = a.here();
    vectors(a, false, leave);
    stubs.wide_vectors = a.here();
    vectors(a, true, leave);
    stubs
}

/// Calls `function(cpu, A, B)` on the host's stack; with 0 in return, leaves.
fn call_rust(a: &mut Assembler, function: u64, left: u64) {
    let below = 8;
    move_registers(a, below, STORE);
    a.copy(RDX, B);
    move_loaded_vectors(a, below, 0x11);
    a.lea(RDI, Mem::at(RSP, below));
    a.copy(RSI, A);
    a.copy(RBX, RDI);
    // The stack was 8 bytes from a multiple of 16 after six pushes and the return address.
    a.load(RBP, Mem::at(RSP, below + context::host_stack()));
    a.lea(RSP, Mem::at(RBP, -8));
    a.constant(0, function);
    a.bytes(&[0xff, 0xd0]); // call rax
    a.lea(RSP, Mem::at(RBX, -below));
    a.wide(0x85, 0, Rm::Reg(0)); // test rax, rax
    let failed = a.jump(Some(EQUAL));
    a.copy(A, 0);
    move_loaded_vectors(a, below, 0x10);
    move_registers(a, below, LOAD);
    let done = a.jump(None);
    a.bind(failed);
    a.lea(RSP, Mem::at(RSP, below));
    // The vector registers are stored.
    set(a, Mem::at(RSP, context::vectors()), 0);
    a.jump_to(left);
    a.bind(done);
}

/// See [`Stubs::stacks`].
fn find_stack(a: &mut Assembler, user: u64, find: u64) {
    const PUSH: u8 = 0x50;
    const POP: u8 = 0x58;
    // Below the processor are the return address, B and RAX.
    let writes = offset_of!(Cpu, writes) as i32;
    let entry = |offset| {
        let displacement = 24 + writes + Tlb::ring(user) as i32 + offset;
        Mem { base: Some(RSP), index: Some((B, 0)), displacement }
    };
    let noted = |offset| Mem::at(RSP, 24 + writes + Tlb::stack(user) as i32 + offset);
    a.store(Mem::at(RSP, 8 + context::linear()), A);
    a.bytes(&[0x41, PUSH | B & 7, PUSH]);
    a.copy(B, A);
    a.wide(0xc1, 5, Rm::Reg(B)); // shr
    a.bytes(&[8]);
    a.alu_narrow(4, Rm::Reg(B), (Tlb::ENTRIES as u32 - 1) << 4);
    a.wide(0x2b, A, Rm::Mem(entry(0))); // sub
    a.alu_wide(7, Rm::Reg(A), PAGE as i32 - 8);
    let near_end = a.jump(Some(ABOVE));
    for offset in [0, 8] {
        a.load(A, entry(offset));
        a.store(noted(offset), A);
    }
    a.store_constant(noted(16), PAGE - 7, 0);
    a.bytes(&[POP, 0x41, POP | B & 7, 0xc3]);

    // It may be in the page all the same: fewer than 8 bytes, of which the request tells.
    a.bind(near_end);
    a.instruction(Prefixes::default(), &[0x0f, 0xb6], 0, Rm::Mem(Mem::at(RSP, 8))); // movzx
    a.alu_wide(7, Rm::Reg(A), PAGE as i32);
    let elsewhere = a.jump(Some(ABOVE));
    a.wide(0x03, 0, Rm::Reg(A)); // add
    a.alu_wide(7, Rm::Reg(0), PAGE as i32);
    let beyond = a.jump(Some(ABOVE));
    a.load(A, entry(8));
    a.bytes(&[POP, 0x41, POP | B & 7, 0xc3]);
    a.bind(elsewhere);
    a.bind(beyond);
    a.bytes(&[POP, 0x41, POP | B & 7]);
    a.load(A, Mem::at(RSP, 8 + context::linear()));
    a.jump_to(find);
}

/// The host address of a linear one; 0 after a fault or where the interpreter must do it.
extern "sysv64" fn find(cpu: *mut Cpu, linear: u64, request: u64) -> u64 {
    // SAFETY: translated code passes the processor that it was entered with; the caller of the code holds
    // the only reference, and does not use it until the code returns.
    let cpu = unsafe { &mut *cpu };
    let (size, write) = (request & 0xff, request >> 8 & 1 != 0);
    cpu.rip |= request >> 16;
    // What is not canonical is one of two exceptions.
    let canonical = ((linear << 16) as i64 >> 16) as u64 == linear;
    if canonical && linear % PAGE + size <= PAGE {
        let access = if write { Access::Write } else { Access::Read };
        if cpu.translate(linear, access, cpu.user).is_err() {
            cpu.translated.exit = FAULT;
            return 0;
        }
        let tlb = if write { &cpu.writes } else { &cpu.reads };
        if let Some(host) = tlb.find::<u8>(linear, cpu.user) {
            return host.number();
        }
    }
    cpu.translated.exit = INTERPRET;
    0
}

/// Executes one decoded instruction; 0 if it stopped, else 1.
extern "sysv64" fn execute(cpu: *mut Cpu, op: *const Op) -> u64 {
    // SAFETY: as in `find`; the instruction lives as long as the code that was made from it.
    let (cpu, op) = unsafe { (&mut *cpu, &*op) };
    cpu.flags = cpu.translated.get_flags();
    let result = (op.run)(cpu, op);
    let flags = cpu.flags;
    cpu.translated.set_flags(&flags);
    let stop = match result {
        Ok(()) if !std::mem::take(&mut cpu.code_changed) => return 1,
        Ok(()) => {
            cpu.rip = op.next;
            Stop::Branch
        }
        Err(stop) => stop,
    };
    if stop != Stop::Branch {
        cpu.refine_fault(op);
        cpu.rip = op.next.wrapping_sub(op.length.into());
    }
    cpu.translated.exit = match stop {
        Stop::Branch => BRANCH,
        Stop::Fault => FAULT,
        Stop::Again => AGAIN,
    };
    0
}

/// Executes translated code until it is left; tells why.
pub fn enter(stubs: &Stubs, cpu: &mut Cpu, code: u64) -> u32 {
    let cpu: *mut Cpu = cpu;
    // SAFETY: `stubs.enter` was emitted above and keeps to the calling convention; `code` is an entry of a
    // block in the same arena. The processor is in a `Frame`, since only its translator knows any code.
    unsafe {
        let flags = (*cpu).flags;
        let context: &mut Context = &mut (*cpu).translated;
        context.exit = 0;
        context.set_flags(&flags);
        let enter: extern "sysv64" fn(*mut Cpu, u64) = std::mem::transmute(stubs.enter as usize);
        enter(cpu, code);
        (*cpu).flags = (*cpu).translated.get_flags();
        (*cpu).translated.exit
    }
}
