//! XSAVE and the upper halves of AVX's registers.

use engine::{Engine, Exit, Vcpu};

use crate::asm::{Asm, Reg};
use crate::cpu::enter_ring_3;
use crate::guest::{Guest, place};
use crate::state::move_guest;
use crate::{Failure, Outcome, Test, equal};

pub const TESTS: &[Test] = &[
    Test { name: "AVX is there only when the system has turned it on", body: turned_on },
    Test { name: "XCR0 takes what there is and nothing else", body: control_register },
    Test { name: "XSAVE keeps upper halves and XRSTOR brings them back", body: kept },
    Test { name: "SSE leaves upper halves alone and AVX zeroes them", body: upper_halves },
    Test { name: "A gather that faulted goes on where it was", body: gather },
    Test { name: "Upper halves survive the move", body: moved },
];

const CR0_TS: u64 = 1 << 3;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
const UD: u8 = 6;
const NM: u8 = 7;
const GP: u8 = 13;
const PF: u8 = 14;
const HOOK: u8 = 0x80;

/// Where the guest has numbers of its own, and room for an XSAVE area.
const DATA: u64 = place::RESULTS + 0x800;
const AREA: u64 = place::RESULTS + 0x1000;

/// vmovdqu ymm, [rbx] and [rbx], ymm; the first of 8 registers.
fn load(register: u8) -> [u8; 4] {
    [0xc5, 0xfe, 0x6f, 3 | register << 3]
}
fn store(register: u8) -> [u8; 4] {
    [0xc5, 0xfe, 0x7f, 3 | register << 3]
}

/// A guest in which AVX is on, about to execute `code`; numbers from 1 to 4 are at [`DATA`].
fn start(engine: &dyn Engine, code: &Asm) -> Result<(Guest, Box<dyn Vcpu>), Failure> {
    let leaf = |function| engine.capabilities().cpuid.get(function, 0);
    let avx = leaf(1).is_some_and(|leaf| leaf.ecx & 1 << 28 != 0);
    if !avx || leaf(7).is_none_or(|leaf| leaf.ebx & 1 << 5 == 0) {
        return Err(Failure::Lacking("AVX2"));
    }
    let guest = Guest::new(engine)?;
    for (place, number) in (DATA..).step_by(8).zip(1..5) {
        guest.write_u64(place, number)?;
    }
    let mut cpu = guest.start(code)?;
    change(&mut *cpu, |state| {
        state.system.cr4 |= CR4_OSXSAVE | CR4_OSXMMEXCPT;
        state.xcr0 = Some(7);
    })?;
    Ok((guest, cpu))
}

fn change(cpu: &mut dyn Vcpu, what: impl FnOnce(&mut engine::state::VcpuState)) -> Outcome {
    let mut state = cpu.state()?;
    what(&mut state);
    Ok(cpu.set_state(&state)?)
}

/// Notes that it ran as the first result.
fn note(guest: &Guest, vector: u8) -> Outcome {
    let mut handler = Asm::at(place::HANDLER);
    handler.mov(Reg::Rax, 1).store_rax(place::RESULTS).done();
    guest.handle(vector, &handler)
}

fn turned_on(engine: &dyn Engine) -> Outcome {
    let cases: [(&str, u64, u64, u64, Option<u8>); 4] = [
        ("all on", CR4_OSXSAVE, 7, 0, None),
        ("XSAVE off", 0, 7, 0, Some(UD)),
        ("only SSE in XCR0", CR4_OSXSAVE, 3, 0, Some(UD)),
        ("another task's registers", CR4_OSXSAVE, 7, CR0_TS, Some(NM)),
    ];
    for (name, cr4, xcr0, cr0, vector) in cases {
        let mut code = Asm::at(place::CODE);
        code.mov(Reg::Rbx, DATA).emit(&load(1)).emit(&store(1)).done();
        let (guest, mut cpu) = start(engine, &code)?;
        note(&guest, vector.unwrap_or(UD))?;
        change(&mut *cpu, |state| {
            state.system.cr4 = state.system.cr4 & !CR4_OSXSAVE | cr4;
            state.system.cr0 |= cr0;
            state.xcr0 = Some(xcr0);
        })?;
        guest.finish(&mut *cpu)?;
        equal(name, guest.result(0)?, vector.is_some().into())?;
    }
    Ok(())
}

const XSETBV: [u8; 3] = [0x0f, 0x01, 0xd1];

fn control_register(engine: &dyn Engine) -> Outcome {
    // Register, value, ring, whether it is refused.
    let cases: [(&str, u64, u64, u8, bool); 6] = [
        ("x87 and SSE", 0, 3, 0, false),
        ("all", 0, 7, 0, false),
        ("AVX without SSE", 0, 5, 0, true),
        ("nothing", 0, 0, 0, true),
        ("another register", 9, 7, 0, true),
        ("in ring 3", 0, 7, 3, true),
    ];
    for (name, register, value, ring, refused) in cases {
        let mut code = Asm::at(place::CODE);
        code.mov(Reg::Rcx, register);
        let mut last = Asm::at(if ring == 3 { place::USER_CODE } else { code.here() + 1000 });
        last.mov(Reg::Rax, value).mov(Reg::Rdx, 0).emit(&XSETBV);
        // What of leaf 0xD tells the size of the area.
        last.mov(Reg::Rax, 0xd).mov(Reg::Rcx, 0).emit(&[0x0f, 0xa2]); // cpuid
        last.emit(&[0x48, 0x89, 0xd8]).store_rax(place::RESULTS + 8).done(); // mov rax, rbx
        if ring == 3 {
            enter_ring_3(&mut code, place::USER_CODE);
        } else {
            code.emit(last.bytes());
        }
        let (guest, mut cpu) = start(engine, &code)?;
        if ring == 3 {
            guest.load(&last)?;
        }
        note(&guest, GP)?;
        guest.finish(&mut *cpu)?;
        equal(name, guest.result(0)?, refused.into())?;
        if !refused {
            let size = if value == 7 { 832 } else { 576 };
            equal("bytes of an area", guest.result(1)?, size)?;
            equal("XCR0", cpu.state()?.xcr0, Some(value))?;
        }
    }
    Ok(())
}

fn kept(engine: &dyn Engine) -> Outcome {
    // xsave, xsavec where there is one, and xrstor of [rbx].
    let compact = engine.capabilities().cpuid.get(0xd, 1).is_some_and(|leaf| leaf.eax & 2 != 0);
    let mut kinds = vec![[0x0f, 0xae, 0x23]];
    kinds.extend(compact.then_some([0x0f, 0xc7, 0x23]));
    for save in kinds {
        let mut code = Asm::at(place::CODE);
        code.mov(Reg::Rbx, DATA)
            .emit(&load(3))
            .mov(Reg::Rbx, AREA)
            .mov(Reg::Rax, 7)
            .mov(Reg::Rdx, 0)
            .emit(&save)
            .emit(&[0xc5, 0xfc, 0x77]) // vzeroall
            .mov(Reg::Rbx, place::RESULTS + 0x40)
            .emit(&store(3))
            .mov(Reg::Rbx, AREA)
            .emit(&[0x0f, 0xae, 0x2b]) // xrstor
            .mov(Reg::Rbx, place::RESULTS)
            .emit(&store(3))
            .done();
        let (guest, mut cpu) = start(engine, &code)?;
        guest.finish(&mut *cpu)?;
        for number in 0..4 {
            equal("restored", guest.result(number)?, number + 1)?;
            equal("zeroed", guest.result(8 + number)?, 0)?;
        }
    }
    Ok(())
}

fn upper_halves(engine: &dyn Engine) -> Outcome {
    let cases: [(&str, &[u8], u64); 4] = [
        ("paddq xmm2, xmm2", &[0x66, 0x0f, 0xd4, 0xd2], 3),
        ("vpaddq xmm2, xmm2, xmm2", &[0xc5, 0xe9, 0xd4, 0xd2], 0),
        ("vpaddq ymm2, ymm2, ymm2", &[0xc5, 0xed, 0xd4, 0xd2], 6),
        ("vzeroupper", &[0xc5, 0xf8, 0x77], 0),
    ];
    for (name, bytes, third) in cases {
        let mut code = Asm::at(place::CODE);
        code.mov(Reg::Rbx, DATA).emit(&load(2)).emit(bytes);
        code.mov(Reg::Rbx, place::RESULTS).emit(&store(2)).done();
        let (guest, mut cpu) = start(engine, &code)?;
        guest.finish(&mut *cpu)?;
        equal(name, guest.result(2)?, third)?;
    }
    Ok(())
}

/// Two elements are where memory is, the third is where there is none until the handler turns the address
/// into another.
fn gather(engine: &dyn Engine) -> Outcome {
    const NOWHERE: u64 = 1 << 40;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, DATA + 0x20)
        .emit(&load(1))
        .emit(&[0xc5, 0xed, 0x76, 0xd2]) // vpcmpeqd ymm2, ymm2, ymm2
        .emit(&[0xc5, 0xe5, 0xef, 0xdb]) // vpxor ymm3, ymm3, ymm3
        .mov(Reg::Rbx, 0)
        .emit(&[0xc4, 0xe2, 0xed, 0x91, 0x1c, 0x0b]) // vpgatherqq ymm3, [rbx + ymm1], ymm2
        .mov(Reg::Rbx, place::RESULTS + 0x40)
        .emit(&store(3))
        .done();
    let (guest, mut cpu) = start(engine, &code)?;
    for (index, place) in (0..).zip([DATA, DATA + 8, NOWHERE, DATA + 24]) {
        guest.write_u64(DATA + 0x20 + 8 * index, place)?;
    }
    let mut handler = Asm::at(place::HANDLER);
    handler
        .inc(place::RESULTS)
        .mov(Reg::Rbx, place::RESULTS + 0x80)
        .emit(&store(3))
        .mov(Reg::Rbx, place::RESULTS + 0xc0)
        .emit(&store(2))
        .mov(Reg::Rax, DATA + 16)
        .store_rax(DATA + 0x30)
        .mov(Reg::Rbx, DATA + 0x20)
        .emit(&load(1))
        .mov(Reg::Rbx, 0)
        .emit(&[0x48, 0x83, 0xc4, 8, 0x48, 0xcf]); // add rsp, 8; iretq
    guest.handle(PF, &handler)?;
    guest.finish(&mut *cpu)?;
    equal("faults", guest.result(0)?, 1)?;
    equal("the first two at the fault", (guest.result(16)?, guest.result(17)?), (1, 2))?;
    equal("their bits of the mask", (guest.result(24)?, guest.result(25)?), (0, 0))?;
    equal("the mask from the third on", guest.result(26)?, u64::MAX)?;
    for number in 0..4 {
        equal("gathered", guest.result(8 + number)?, number + 1)?;
    }
    Ok(())
}

fn moved(engine: &dyn Engine) -> Outcome {
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, DATA).emit(&load(5)).out8(HOOK);
    code.mov(Reg::Rbx, place::RESULTS).emit(&store(5)).done();
    let (guest, mut cpu) = start(engine, &code)?;
    let kicker = cpu.kicker();
    guest.board.set_hook(move |_| kicker.kick());
    equal("exit", guest.run(&mut *cpu)?, Exit::Kicked)?;
    guest.board.clear_hook();
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.finish(&mut *cpu)?;
    for number in 0..4 {
        equal("upper and lower half", guest.result(number)?, number + 1)?;
    }
    Ok(())
}
