//! Call gates, of 64-bit and of 32-bit code.

use engine::Engine;
use engine::state::{Segment, VcpuState};

use crate::asm::{Asm, Reg};
use crate::cpu::enter_ring_3;
use crate::guest::{CR0_NE, CR0_PE, Guest, place, selector};
use crate::{Outcome, Test, equal};

pub const TESTS: &[Test] = &[
    Test { name: "A call gate leads to ring 0 and back", body: call_gate },
    Test { name: "A call gate of 32-bit code copies operands", body: call_gate_32 },
];

/// Access rights of a gate that ring 3 may use, at their place.
const CALL_GATE_FOR_RING_3: u64 = 0xec00 << 32;

fn set_gate(guest: &Guest, code: u16, operands: u64) -> Outcome {
    let gate = place::GDT + u64::from(selector::GATE & !7);
    let low = place::HANDLER & 0xffff
        | u64::from(code) << 16
        | operands << 32
        | CALL_GATE_FOR_RING_3
        | (place::HANDLER >> 16 & 0xffff) << 48;
    guest.write_u64(gate, low)?;
    guest.write_u64(gate + 8, 0)
}

fn call_gate(engine: &dyn Engine) -> Outcome {
    const DONE: u8 = 0x50;
    let guest = Guest::new(engine)?;
    set_gate(&guest, selector::CODE, 0)?;

    let mut kernel = Asm::at(place::HANDLER);
    for offset in [0, 8, 16, 24] {
        kernel.emit(&[0x48, 0x8b, 0x44, 0x24, offset]); // mov rax, [rsp+offset]
        kernel.store_rax(place::RESULTS + u64::from(offset));
    }
    kernel
        .emit(&[0x8c, 0xc8]) // mov eax, cs
        .store_rax(place::RESULTS + 32)
        .emit(&[0x48, 0x89, 0xe0]) // mov rax, rsp
        .store_rax(place::RESULTS + 40)
        .emit(&[0x48, 0xcb]); // retfq
    guest.load(&kernel)?;

    let pointer = place::RESULTS + 0x100;
    guest.write_u64(pointer, u64::from(selector::GATE) << 32)?;
    let mut user = Asm::at(place::USER_CODE);
    user.mov(Reg::Rax, 0).emit(&[0xff, 0x1c, 0x25]).emit(&(pointer as u32).to_le_bytes()); // call far
    let after = user.here();
    user.emit(&[0x8c, 0xc8]) // mov eax, cs
        .store_rax(place::RESULTS + 48)
        .emit(&[0x48, 0x89, 0xe0]) // mov rax, rsp
        .store_rax(place::RESULTS + 56)
        .emit(&[0xcd, DONE]); // int
    guest.load(&user)?;
    let mut done = Asm::at(place::HANDLER_2);
    done.done();
    guest.handle(DONE, &done)?;
    let mut code = Asm::at(place::CODE);
    enter_ring_3(&mut code, place::USER_CODE);
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;

    let expected = [
        ("the return address", after),
        ("the caller's CS", selector::USER_CODE.into()),
        ("the caller's RSP", place::USER_STACK),
        ("the caller's SS", selector::USER_DATA.into()),
        ("CS behind the gate", selector::CODE.into()),
        ("RSP behind the gate", place::RING0_STACK - 32),
        ("CS after the return", selector::USER_CODE.into()),
        ("RSP after the return", place::USER_STACK),
    ];
    for (index, (name, value)) in (0..).zip(expected) {
        equal(name, guest.result(index)?, value)?;
    }
    Ok(())
}

fn call_gate_32(engine: &dyn Engine) -> Outcome {
    /// Where long mode has the second half of the TSS's descriptor.
    const CODE_32: u16 = 0x38;
    const IOPL_3: u64 = 0x3000;
    let guest = Guest::new(engine)?;
    guest.write_u64(place::GDT + u64::from(CODE_32), 0x00cf_9b00_0000_ffff)?;
    guest.write(place::TSS + 8, &selector::DATA.to_le_bytes())?;
    set_gate(&guest, CODE_32, 2)?;
    let result = |index: u64| (place::RESULTS as u32 + 8 * index as u32).to_le_bytes();

    let mut kernel = Asm::at(place::HANDLER);
    for index in 0..6 {
        kernel.emit(&[0x8b, 0x44, 0x24, 4 * index]); // mov eax, [esp+offset]
        kernel.emit(&[0xa3]).emit(&result(index.into())); // mov [result], eax
    }
    kernel.emit(&[0x89, 0x25]).emit(&result(6)); // mov [result], esp
    kernel.emit(&[0xca, 8, 0]); // retf 8
    guest.load(&kernel)?;

    let mut user = Asm::at(place::USER_CODE);
    user.emit(&[0x68, 0x11, 0x11, 0x11, 0x11, 0x68, 0x22, 0x22, 0x22, 0x22]); // push; push
    user.emit(&[0x9a, 0, 0, 0, 0]).emit(&selector::GATE.to_le_bytes()); // call far
    let after = user.here();
    user.emit(&[0x89, 0x25]).emit(&result(7)); // mov [result], esp
    user.out8(crate::board::DONE).emit(&[0xeb, 0xfe]); // jmp to itself
    let mut cpu = guest.start(&user)?;
    let mut state = cpu.state()?;
    enter_ring_3_of_32_bits(&mut state);
    state.registers.rflags |= IOPL_3;
    cpu.set_state(&state)?;
    guest.finish(&mut *cpu)?;

    let expected = [
        ("the return address", after),
        ("the caller's CS", (selector::USER_CODE_32 | 3).into()),
        ("the last operand", 0x2222_2222),
        ("the first operand", 0x1111_1111),
        ("the caller's ESP", place::USER_STACK - 8),
        ("the caller's SS", selector::USER_DATA.into()),
        ("ESP behind the gate", place::RING0_STACK - 24),
        ("ESP after the return", place::USER_STACK),
    ];
    for (index, (name, value)) in (0..).zip(expected) {
        equal(name, guest.result(index)?, value)?;
    }
    Ok(())
}

/// Protected mode without paging.
fn enter_ring_3_of_32_bits(state: &mut VcpuState) {
    let system = &mut state.system;
    let data = Segment { selector: selector::USER_DATA, access: 0xc0f3, ..system.ds };
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.cs = Segment { selector: selector::USER_CODE_32 | 3, access: 0xc0fb, ..data };
    (system.cr0, system.cr4, system.efer) = (CR0_PE | CR0_NE, 0, 0);
    state.registers.rsp = place::USER_STACK;
}
