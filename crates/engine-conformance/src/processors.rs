//! More than one processor.

use engine::state::Activity;
use engine::{Engine, Exit, Vcpu};

use crate::asm::{Asm, Reg};
use crate::guest::{Guest, place, watched};
use crate::interrupts::{
    ICR_HIGH, ICR_LOW, LOCAL_APIC, VECTOR, counting_handler, message_to, with_apic,
};
use crate::{Failure, Outcome, Test, ensure, equal};

pub const TESTS: &[Test] = &[
    Test { name: "Only the first processor runs after a reset", body: reset_states },
    Test { name: "A processor that waits for its start can be kicked", body: kick_waiting },
    Test { name: "INIT and a start-up IPI start a second processor", body: startup },
    Test { name: "Two processors add to one counter without losing any", body: atomic_add },
    Test { name: "An interprocessor interrupt wakes the processor it names", body: wake_other },
    Test { name: "A processor is named by its APIC ID and not by its number", body: wake_by_id },
    Test { name: "An x2APIC tells its identity through a register", body: x2apic_identity },
    Test { name: "Interrupts reach an APIC ID that does not fit in 8 bits", body: large_identity },
];

const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;
const APIC_BASE: u32 = 0x1b;
const X2APIC_ENABLED: u64 = LOCAL_APIC | 1 << 11 | 1 << 10;
const BOOTSTRAP: u64 = 1 << 8;

/// Runs two processors, each on a thread of its own, until the guest is done.
fn run_both(guest: &Guest, first: &mut dyn Vcpu, second: &mut dyn Vcpu) -> Outcome {
    let other = second.kicker();
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| watched(second.kicker(), || second.run(&*guest.board)));
        let outcome = guest.finish(first);
        // It was kicked by the board unless the first failed.
        other.kick();
        let (exit, _) =
            runner.join().map_err(|_| Failure::new("the second processor's thread panicked"))?;
        outcome?;
        equal("exit of the second processor", exit?, Exit::Kicked)
    })
}

fn reset_states(engine: &dyn Engine) -> Outcome {
    let guest = Guest::with_vcpus(engine, 2)?;
    let mut first = guest.cpu(0)?;
    let mut second = guest.cpu(1)?;
    let state = first.state()?;
    equal("the first", state.activity, Activity::Running)?;
    equal("its reset vector", state.system.cs.base + state.registers.rip, 0xffff_fff0)?;
    equal("bit for the first", state.system.apic_base & BOOTSTRAP, BOOTSTRAP)?;
    let state = second.state()?;
    equal("the second", state.activity, Activity::Uninitialized)?;
    equal("bit for the second", state.system.apic_base & BOOTSTRAP, 0)?;
    ensure(guest.cpu(2).is_err(), "a third processor of two")
}

fn kick_waiting(engine: &dyn Engine) -> Outcome {
    let guest = Guest::with_vcpus(engine, 2)?;
    let _first = guest.cpu(0)?;
    let mut second = guest.cpu(1)?;
    let kicker = second.kicker();
    let exit = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            kicker.kick();
        });
        guest.run(&mut *second)
    });
    equal("exit", exit?, Exit::Kicked)?;
    equal("activity", second.state()?.activity, Activity::Uninitialized)
}

fn startup(engine: &dyn Engine) -> Outcome {
    let guest = Guest::with_vcpus(engine, 2)?;
    guest.write(
        place::STARTUP,
        &[
            0x8c, 0xc8, // mov ax, cs
            0x8e, 0xd8, // mov ds, ax
            0xa3, 0x00, 0x08, // mov [0x800], ax
            0xf4, // hlt
        ],
    )?;
    let told = place::STARTUP + 0x800;
    let mut code = with_apic();
    code.store32(ICR_HIGH, 1 << 24)
        .store32(ICR_LOW, INIT)
        .dawdle(1000)
        .store32(ICR_HIGH, 1 << 24)
        .store32(ICR_LOW, START_UP | (place::STARTUP >> 12) as u32)
        .wait(told, 1)
        .done();
    let mut first = guest.start(&code)?;
    let mut second = guest.cpu(1)?;
    run_both(&guest, &mut *first, &mut *second)?;
    equal("CS of the started processor", guest.read_u64(told)?, place::STARTUP >> 4)
}

fn atomic_add(engine: &dyn Engine) -> Outcome {
    const TIMES: u64 = 20_000;
    let guest = Guest::with_vcpus(engine, 2)?;
    let adder = |origin| {
        let mut code = Asm::at(origin);
        code.mov(Reg::Rcx, TIMES).mov(Reg::Rbx, place::RESULTS);
        let again = code.here();
        code.emit(&[0xf0, 0x48, 0xff, 0x03]) // lock inc qword [rbx]
            .emit(&[0x48, 0xff, 0xc9]) // dec rcx
            .jne(again)
            .inc(place::RESULTS + if origin == place::CODE { 8 } else { 16 });
        code
    };
    let mut code = adder(place::CODE);
    code.wait(place::RESULTS + 16, 1).done();
    let mut other = adder(place::HANDLER);
    other.hlt();
    let mut first = guest.start(&code)?;
    let mut second = guest.cpu(1)?;
    run_in_long_mode(&guest, &mut *second, &other)?;
    run_both(&guest, &mut *first, &mut *second)?;
    equal("counter", guest.result(0)?, 2 * TIMES)
}

/// Prepares a processor that would wait for its start-up IPI to run `code` at once, on a stack of its
/// own.
fn run_in_long_mode(guest: &Guest, cpu: &mut dyn Vcpu, code: &Asm) -> Outcome {
    guest.prepare(cpu, code)?;
    let mut state = cpu.state()?;
    state.registers.rsp = place::USER_STACK;
    state.activity = Activity::Running;
    cpu.set_state(&state)?;
    Ok(())
}

fn wake_other(engine: &dyn Engine) -> Outcome {
    wake(engine, 1)
}

fn wake_by_id(engine: &dyn Engine) -> Outcome {
    wake(engine, 6)
}

fn wake(engine: &dyn Engine, apic_id: u32) -> Outcome {
    let guest = Guest::with_vcpus(engine, 2)?;
    guest.handle(VECTOR, &counting_handler(place::HANDLER_2, place::RESULTS))?;
    let mut other = Asm::at(place::HANDLER);
    other.store32(LOCAL_APIC + 0xf0, 0x1ff).inc(place::RESULTS + 8).sti();
    let sleep = other.here();
    other.hlt().jmp(sleep);
    let mut code = with_apic();
    code.wait(place::RESULTS + 8, 1).store32(ICR_HIGH, apic_id << 24);
    for time in 1..=3 {
        code.store32(ICR_LOW, VECTOR.into()).wait(place::RESULTS, time);
    }
    code.done();
    let mut first = guest.start(&code)?;
    let mut second = guest.cpu_with_id(1, apic_id)?;
    run_in_long_mode(&guest, &mut *second, &other)?;
    run_both(&guest, &mut *first, &mut *second)?;
    equal("interrupts", guest.result(0)?, 3)
}

fn need_x2apic(engine: &dyn Engine) -> Outcome {
    match engine.capabilities().cpuid.get(1, 0) {
        Some(leaf) if leaf.ecx & 1 << 21 != 0 => Ok(()),
        _ => Err(Failure::Lacking("x2APIC")),
    }
}

fn x2apic_identity(engine: &dyn Engine) -> Outcome {
    const X2APIC_ID: u32 = 0x802;
    need_x2apic(engine)?;
    let guest = Guest::with_vcpus(engine, 2)?;
    let _first = guest.cpu(0)?;
    let mut code = Asm::at(place::CODE);
    code.wrmsr(APIC_BASE, X2APIC_ENABLED).rdmsr(X2APIC_ID).store_rax(place::RESULTS).done();
    let mut second = guest.cpu(1)?;
    run_in_long_mode(&guest, &mut *second, &code)?;
    guest.finish(&mut *second)?;
    equal("ID", guest.result(0)?, 1)?;
    let state = second.state()?;
    equal("saved ID", state.lapic.registers.get(2).copied(), Some(1))?;
    equal("saved APIC base", state.system.apic_base, X2APIC_ENABLED)
}

fn large_identity(engine: &dyn Engine) -> Outcome {
    const LARGE: u32 = 300;
    const X2APIC_SPURIOUS: u32 = 0x80f;
    const X2APIC_EOI: u32 = 0x80b;
    need_x2apic(engine)?;
    if engine.capabilities().max_vcpus <= LARGE {
        return Err(Failure::Lacking("301 processors"));
    }
    let guest = Guest::with_vcpus(engine, LARGE + 1)?;
    let _first = guest.cpu(0)?;
    let mut handler = Asm::at(place::HANDLER);
    handler.push_all().inc(place::RESULTS).wrmsr(X2APIC_EOI, 0).pop_all_iretq();
    guest.handle(VECTOR, &handler)?;
    let vm = std::sync::Arc::clone(&guest.vm);
    guest.board.set_hook(move |_| {
        // The same number modulo 256 must not do.
        let _ = vm.signal_msi(message_to(LARGE & 0xff, VECTOR));
        let _ = vm.signal_msi(message_to(LARGE, VECTOR));
    });
    let mut code = Asm::at(place::CODE);
    code.wrmsr(APIC_BASE, X2APIC_ENABLED)
        .wrmsr(X2APIC_SPURIOUS, 0x1ff)
        .sti()
        .out8(0x80)
        .wait(place::RESULTS, 1)
        .out8(0x80)
        .wait(place::RESULTS, 2)
        .done();
    let mut cpu = guest.cpu(LARGE)?;
    run_in_long_mode(&guest, &mut *cpu, &code)?;
    let outcome = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    outcome?;
    equal("interrupts", guest.result(0)?, 2)?;
    equal("saved ID", cpu.state()?.lapic.registers.get(2).copied(), Some(LARGE))
}
