//! Saving a guest and going on with it elsewhere.

use std::sync::Arc;
use std::time::Duration;

use engine::state::{Activity, Exception, Interrupt, VcpuState, VmState};
use engine::{Engine, Exit, Vcpu};

use crate::asm::{Asm, Reg};
use crate::board::Access;
use crate::guest::{Guest, place};
use crate::interrupts::{VECTOR, counting_handler, message_to, with_apic};
use crate::{Failure, Outcome, Test, ensure, equal};

pub const TESTS: &[Test] = &[
    Test { name: "A restored reset state is the same state", body: reset_state },
    Test { name: "A loop that moves to another machine computes the same", body: move_once },
    Test { name: "A guest may move again and again", body: move_often },
    Test { name: "An input that a kick interrupted is complete when saved", body: input },
    Test { name: "A string input that moves is neither repeated nor cut", body: string_input },
    Test { name: "A waiting interrupt survives the move", body: waiting_interrupt },
    Test { name: "A sleeping processor wakes up after the move", body: sleeping },
    Test { name: "A timer that was started fires after the move", body: timer },
    Test { name: "Events in flight are delivered after the move", body: events },
    Test { name: "The time-stamp counter goes on after the move", body: time_stamp },
    Test { name: "Interrupt controllers and timers keep their state", body: controllers },
    Test { name: "States that cannot be are refused", body: refused },
];

const TSC: u32 = 0x10;
const HOOK: u8 = 0x80;

/// Without what time alone changes.
fn timeless(mut state: VcpuState) -> VcpuState {
    const TIMER_CURRENT_COUNT: usize = 0x39;
    state.msrs.retain(|(index, _)| *index != TSC);
    if let Some(count) = state.lapic.registers.get_mut(TIMER_CURRENT_COUNT) {
        *count = 0;
    }
    state
}

/// Without what time alone changes.
fn timeless_vm(mut state: VmState) -> VmState {
    state.clock_nanoseconds = 0;
    state.pit.channels.iter_mut().for_each(|channel| channel.loaded_nanoseconds_ago = 0);
    state
}

/// Compares two states part by part, for a message that fits on a screen.
fn same_state(seen: VcpuState, expected: VcpuState) -> Outcome {
    let (seen, expected) = (timeless(seen), timeless(expected));
    equal("registers", seen.registers, expected.registers)?;
    equal("system registers", seen.system, expected.system)?;
    equal("debug registers", seen.debug, expected.debug)?;
    equal("XCR0", seen.xcr0, expected.xcr0)?;
    equal("activity", seen.activity, expected.activity)?;
    equal("events", seen.events, expected.events)?;
    equal("local APIC", seen.lapic, expected.lapic)?;
    let changed: Vec<_> = expected.msrs.iter().filter(|msr| !seen.msrs.contains(msr)).collect();
    ensure(changed.is_empty(), format!("model-specific registers lost: {changed:x?}"))?;
    equal("model-specific registers", seen.msrs, expected.msrs)?;
    let differs = |at: &usize| seen.xsave.get(*at) != expected.xsave.get(*at);
    let length = seen.xsave.len().max(expected.xsave.len());
    let places: Vec<usize> = (0..length).filter(differs).collect();
    ensure(places.is_empty(), format!("the XSAVE area differs at {places:?}"))
}

/// Goes on with a guest of one processor in a fresh virtual machine.
pub(crate) fn move_guest(
    engine: &dyn Engine,
    guest: &Guest,
    cpu: &mut dyn Vcpu,
) -> Result<(Guest, Box<dyn Vcpu>), Failure> {
    let state = cpu.state()?;
    let vm_state = guest.vm.state()?;
    let mut new = Guest::new(engine)?;
    // Accesses are remembered in one place, whatever machine made them.
    new.board = Arc::clone(&guest.board);
    new.write(0, &guest.memory_copy()?)?;
    let mut new_cpu = new.cpu(0)?;
    new_cpu.set_state(&state)?;
    new.vm.set_state(&vm_state)?;
    same_state(new_cpu.state()?, state)?;
    equal("shared state", timeless_vm(new.vm.state()?), timeless_vm(vm_state))?;
    Ok((new, new_cpu))
}

fn reset_state(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut cpu = guest.cpu(0)?;
    let state = cpu.state()?;
    cpu.set_state(&state)?;
    same_state(cpu.state()?, state.clone())?;
    let mut other = Guest::new(engine)?.cpu(0)?;
    same_state(other.state()?, state)
}

/// A computation in general and vector registers and memory, with `every` iteration of `rounds` leaving
/// the guest.
fn computation(rounds: u64, leave: bool) -> Asm {
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rdi, rounds).mov(Reg::Rbx, 1).mov(Reg::Rax, MULTIPLIER);
    code.emit(&[0x66, 0x0f, 0xef, 0xc0]); // pxor xmm0, xmm0
    let again = code.here();
    code.emit(&[0x48, 0x0f, 0xaf, 0xd8]) // imul rbx, rax
        .emit(&[0x48, 0x83, 0xc3, 1]) // add rbx, 1
        .emit(&[0x66, 0x48, 0x0f, 0x6e, 0xcb]) // movq xmm1, rbx
        .emit(&[0x66, 0x0f, 0xd4, 0xc1]) // paddq xmm0, xmm1
        .inc(place::RESULTS + 16);
    if leave {
        code.out8(HOOK);
    }
    code.emit(&[0x48, 0xff, 0xcf]) // dec rdi
        .jne(again)
        .emit(&[0x48, 0x89, 0xd8]) // mov rax, rbx
        .store_rax(place::RESULTS)
        .emit(&[0x66, 0x48, 0x0f, 0x7e, 0xc0]) // movq rax, xmm0
        .store_rax(place::RESULTS + 8)
        .done();
    code
}

fn expect_computed(guest: &Guest, rounds: u64) -> Outcome {
    let (mut number, mut sum) = (1_u64, 0_u64);
    for _ in 0..rounds {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        sum = sum.wrapping_add(number);
    }
    equal("rounds", guest.result(2)?, rounds)?;
    equal("number", guest.result(0)?, number)?;
    equal("sum", guest.result(1)?, sum)
}

fn move_once(engine: &dyn Engine) -> Outcome {
    const ROUNDS: u64 = 50;
    let guest = Guest::new(engine)?;
    let mut cpu = guest.start(&computation(ROUNDS, true))?;
    let kicker = cpu.kicker();
    let left = std::sync::atomic::AtomicU64::new(0);
    guest.board.set_hook(move |_| {
        if left.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == ROUNDS / 2 {
            kicker.kick();
        }
    });
    equal("exit", guest.run(&mut *cpu)?, Exit::Kicked)?;
    ensure(!guest.board.take_done(), "the guest was not stopped on its way")?;
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.finish(&mut *cpu)?;
    guest.board.clear_hook();
    expect_computed(&guest, ROUNDS)
}

fn move_often(engine: &dyn Engine) -> Outcome {
    const ROUNDS: u64 = 3_000_000;
    const MOVES: usize = 8;
    let mut guest = Guest::new(engine)?;
    let mut cpu = guest.start(&computation(ROUNDS, false))?;
    for _ in 0..MOVES {
        let kicker = cpu.kicker();
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(2));
                kicker.kick();
            });
            guest.run(&mut *cpu)
        });
        equal("exit", exit?, Exit::Kicked)?;
        if guest.board.take_done() {
            return expect_computed(&guest, ROUNDS);
        }
        (guest, cpu) = move_guest(engine, &guest, &mut *cpu)?;
    }
    guest.finish(&mut *cpu)?;
    expect_computed(&guest, ROUNDS)
}

fn input(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.emit(&[0xe5, HOOK]); // in eax, HOOK
    let after = code.here();
    code.store_rax(place::RESULTS).done();
    let mut cpu = guest.start(&code)?;
    let kicker = cpu.kicker();
    guest.board.set_hook(move |_| kicker.kick());
    guest.board.answer(&[1, 2, 3, 4]);
    equal("exit", guest.run(&mut *cpu)?, Exit::Kicked)?;
    guest.board.clear_hook();
    let registers = cpu.state()?.registers;
    equal("RAX", registers.rax, 0x0403_0201)?;
    equal("RIP", registers.rip, after)?;
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.finish(&mut *cpu)?;
    equal("the input", guest.result(0)?, 0x0403_0201)?;
    let once = vec![Access::In { port: HOOK.into(), size: 4 }];
    equal("accesses", guest.board.take_accesses(), once)
}

fn string_input(engine: &dyn Engine) -> Outcome {
    const LENGTH: usize = 100;
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rdx, HOOK.into())
        .mov(Reg::Rdi, place::RESULTS)
        .mov(Reg::Rcx, LENGTH as u64)
        .emit(&[0xf3, 0x6c]) // rep insb
        .done();
    let mut cpu = guest.start(&code)?;
    let kicker = cpu.kicker();
    guest.board.set_hook(move |_| kicker.kick());
    let bytes: Vec<u8> = (1..=LENGTH as u8).collect();
    guest.board.answer(&bytes);
    equal("exit", guest.run(&mut *cpu)?, Exit::Kicked)?;
    guest.board.clear_hook();
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.finish(&mut *cpu)?;
    let memory = guest.memory_copy()?;
    let filled = &memory[place::RESULTS as usize..][..LENGTH];
    equal("memory", filled, &bytes)?;
    equal("inputs", guest.board.take_accesses().len(), LENGTH)
}

fn waiting_interrupt(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    guest.handle(VECTOR, &counting_handler(place::HANDLER, place::RESULTS))?;
    let mut code = with_apic();
    code.out8(crate::board::DONE).sti().wait(place::RESULTS, 1).done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    guest.vm.signal_msi(message_to(0, VECTOR))?;
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.finish(&mut *cpu)?;
    equal("interrupts", guest.result(0)?, 1)
}

fn sleeping(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    guest.handle(VECTOR, &counting_handler(place::HANDLER, place::RESULTS))?;
    let mut code = with_apic();
    code.sti().hlt().done();
    let mut cpu = guest.start(&code)?;
    // It may take some kicks until the guest has come to its HLT.
    for _ in 0..1000 {
        let kicker = cpu.kicker();
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                kicker.kick();
            });
            guest.run(&mut *cpu)
        });
        equal("exit", exit?, Exit::Kicked)?;
        if cpu.state()?.activity == Activity::Halted {
            break;
        }
    }
    equal("activity", cpu.state()?.activity, Activity::Halted)?;
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.vm.signal_msi(message_to(0, VECTOR))?;
    guest.finish(&mut *cpu)?;
    equal("interrupts", guest.result(0)?, 1)
}

fn timer(engine: &dyn Engine) -> Outcome {
    const LVT_TIMER: u64 = 0xfee0_0320;
    const TIMER_INITIAL: u64 = 0xfee0_0380;
    let guest = Guest::new(engine)?;
    guest.handle(VECTOR, &counting_handler(place::HANDLER, place::RESULTS))?;
    let mut code = with_apic();
    // Far enough away not to fire before the move: seconds, on every engine.
    code.store32(LVT_TIMER, VECTOR.into())
        .store32(TIMER_INITIAL, 3_000_000_000)
        .out8(crate::board::DONE)
        .sti()
        .wait(place::RESULTS, 1)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.finish(&mut *cpu)?;
    equal("interrupts", guest.result(0)?, 1)
}

fn events(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut handler = Asm::at(place::HANDLER);
    handler.emit(&[0x58]).store_rax(place::RESULTS).done(); // pop rax: the error code
    guest.handle(13, &handler)?;
    let mut handler = Asm::at(place::HANDLER_2);
    handler.mov(Reg::Rax, 5).store_rax(place::RESULTS + 8).done();
    guest.handle(VECTOR, &handler)?;
    let mut code = Asm::at(place::CODE);
    code.jmp(place::CODE);

    let mut cpu = guest.start(&code)?;
    let mut state = cpu.state()?;
    state.events.exception = Some(Exception { vector: 13, error_code: Some(0x18) });
    cpu.set_state(&state)?;
    equal("saved exception", cpu.state()?.events.exception, state.events.exception)?;
    guest.finish(&mut *cpu)?;
    equal("error code", guest.result(0)?, 0x18)?;

    guest.prepare(&mut *cpu, &code)?;
    let mut state = cpu.state()?;
    state.events.interrupt = Some(Interrupt { vector: VECTOR, software: false });
    state.registers.rflags |= 1 << 9;
    cpu.set_state(&state)?;
    guest.finish(&mut *cpu)?;
    equal("handler of the interrupt", guest.result(1)?, 5)
}

fn time_stamp(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    for index in 0..2 {
        code.emit(&[0x0f, 0x31]) // rdtsc
            .join_edx_eax()
            .store_rax(place::RESULTS + 8 * index)
            .out8(crate::board::DONE);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    // Far from what a new processor starts with.
    const AHEAD: u64 = 1 << 50;
    let mut state = cpu.state()?;
    for (_, value) in state.msrs.iter_mut().filter(|(index, _)| *index == TSC) {
        *value += AHEAD;
    }
    cpu.set_state(&state)?;
    guest.finish(&mut *cpu)?;
    let (guest, mut cpu) = move_guest(engine, &guest, &mut *cpu)?;
    guest.finish(&mut *cpu)?;
    let (first, second) = (guest.result(0)?, guest.result(1)?);
    ensure(first >= AHEAD, format!("the counter was not set: {first:#x}"))?;
    ensure(second > first, format!("the counter went from {first:#x} to {second:#x}"))?;
    ensure(second - first < 1 << 45, format!("the counter leapt from {first:#x} to {second:#x}"))
}

fn controllers(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let _cpu = guest.cpu(0)?;
    let mut state = guest.vm.state()?;
    equal("redirection entries", state.ioapic.redirection.len(), 24)?;
    equal("address of the I/O APIC", state.ioapic.base_address, 0xfec0_0000)?;
    state.ioapic.redirection[5] = 0x0100_0000_0001_a041;
    state.ioapic.select = 0x12;
    state.pics[0].irq_base = 0x30;
    state.pics[0].imr = 0xaa;
    state.pics[1].irq_base = 0x38;
    state.pics[1].elcr = 0x0c;
    state.clock_nanoseconds = 1 << 52;
    let channel = &mut state.pit.channels[2];
    (channel.count, channel.mode, channel.rw_mode, channel.gate) = (0x1234, 3, 3, true);
    guest.vm.set_state(&state)?;
    let seen = guest.vm.state()?;
    ensure(
        (1 << 52..1 << 53).contains(&seen.clock_nanoseconds),
        format!("the clock was not set: {:#x}", seen.clock_nanoseconds),
    )?;
    equal("shared state", timeless_vm(seen), timeless_vm(state))
}

fn refused(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.done();
    let mut cpu = guest.start(&code)?;
    let good = cpu.state()?;
    let mut try_state = |what: &str, change: &dyn Fn(&mut VcpuState)| {
        let mut state = good.clone();
        change(&mut state);
        ensure(cpu.set_state(&state).is_err(), format!("accepted: {what}"))
    };
    try_state("an XSAVE area of 100 bytes", &|state| state.xsave.truncate(100))?;
    try_state("no XSAVE area", &|state| state.xsave.clear())?;
    try_state("an XSAVE area that goes on for ever", &|state| state.xsave.resize(1 << 20, 1))?;
    try_state("a local APIC of 5 registers", &|state| state.lapic.registers.truncate(5))?;
    try_state("a local APIC of 65 registers", &|state| state.lapic.registers.push(0))?;
    try_state("a register that does not exist", &|state| state.msrs.push((0xdead_beef, 1)))?;
    try_state("paging without protection", &|state| state.system.cr0 = 1 << 31)?;
    cpu.set_state(&good)?;
    guest.finish(&mut *cpu)?;

    let mut state = guest.vm.state()?;
    state.ioapic.redirection.pop();
    ensure(guest.vm.set_state(&state).is_err(), "accepted: an I/O APIC of 23 inputs")
}
