//! Lines, messages, eventfds, HLT and timers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Engine, InterruptRoute, MsiMessage};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::asm::{Asm, Reg};
use crate::guest::{Guest, place};
use crate::{Failure, Outcome, Test, ensure, equal};

pub const TESTS: &[Test] = &[
    Test { name: "An edge on an I/O APIC line interrupts once", body: edge },
    Test { name: "A level on an I/O APIC line interrupts until it is lowered", body: level },
    Test { name: "Lines interrupt through both 8259A", body: legacy_controllers },
    Test { name: "An eventfd connected to a line interrupts", body: eventfd_line },
    Test { name: "A message interrupts the processor it names", body: message },
    Test { name: "An eventfd connected to a message interrupts", body: eventfd_message },
    Test { name: "Eventfds keep their messages apart", body: many_eventfds },
    Test { name: "Interrupts wait until the processor allows them", body: masked },
    Test { name: "The higher of two waiting interrupts comes first", body: priority },
    Test { name: "An NMI comes through although interrupts are off", body: nmi },
    Test { name: "A processor can interrupt itself", body: self_ipi },
    Test { name: "HLT waits for an interrupt from another thread", body: halt },
    Test { name: "The local APIC's timer fires once", body: one_shot_timer },
    Test { name: "The local APIC's timer fires again and again", body: periodic_timer },
    Test { name: "The TSC deadline timer fires", body: deadline_timer },
    Test { name: "The 8254 interrupts again and again", body: interval_timer },
];

/// Number of handled interrupts, as the first result.
const COUNT: u64 = place::RESULTS;
pub const VECTOR: u8 = 0x41;
const OTHER_VECTOR: u8 = 0x61;

/// The local APIC's registers (SDM volume 3, table 11-1).
pub const LOCAL_APIC: u64 = 0xfee0_0000;
const EOI: u64 = LOCAL_APIC + 0xb0;
const SPURIOUS: u64 = LOCAL_APIC + 0xf0;
pub const ICR_LOW: u64 = LOCAL_APIC + 0x300;
pub const ICR_HIGH: u64 = LOCAL_APIC + 0x310;
const LVT_TIMER: u64 = LOCAL_APIC + 0x320;
const LVT_LINT0: u64 = LOCAL_APIC + 0x350;
const TIMER_INITIAL: u64 = LOCAL_APIC + 0x380;
const TIMER_DIVIDE: u64 = LOCAL_APIC + 0x3e0;

/// The I/O APIC's window.
const IOREGSEL: u64 = 0xfec0_0000;
const IOWIN: u64 = 0xfec0_0010;
const LEVEL: u32 = 1 << 15;

/// Ports that run the test's hook.
const HOOK: u8 = 0x80;
const HOOK_2: u8 = 0x81;
const HOOK_3: u8 = 0x82;

/// A message to the processor with this ID.
pub fn message_to(apic_id: u32, vector: u8) -> MsiMessage {
    let low = u64::from(apic_id & 0xff) << 12;
    // Bits 8 to 31 of an x2APIC ID, as KVM and others extend the format.
    let high = u64::from(apic_id & !0xff) << 32;
    MsiMessage { address: LOCAL_APIC | low | high, data: vector.into() }
}

/// Code that begins with the local APIC enabled, and with the 8259A cut off: they are not initialised,
/// and lines 0 to 15 reach them as well.
pub fn with_apic() -> Asm {
    const MASKED: u32 = 1 << 16;
    let mut code = Asm::at(place::CODE);
    code.store32(SPURIOUS, 0x1ff).store32(LVT_LINT0, MASKED);
    code
}

/// A handler that counts and tells the local APIC.
pub fn counting_handler(origin: u64, counter: u64) -> Asm {
    let mut handler = Asm::at(origin);
    handler.push_all().inc(counter).store32(EOI, 0).pop_all_iretq();
    handler
}

/// Sends I/O APIC input `pin` to `VECTOR` of processor 0.
fn route_pin(code: &mut Asm, pin: u32, flags: u32) {
    code.store32(IOREGSEL, 0x11 + 2 * pin)
        .store32(IOWIN, 0)
        .store32(IOREGSEL, 0x10 + 2 * pin)
        .store32(IOWIN, u32::from(VECTOR) | flags);
}

fn eventfd() -> Result<EventFd, Failure> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}

/// Runs `code` with the counting handler and compares the count.
fn expect_count(guest: &Guest, code: &Asm, count: u64) -> Outcome {
    guest.handle(VECTOR, &counting_handler(place::HANDLER, COUNT))?;
    let mut cpu = guest.start(code)?;
    let outcome = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    outcome?;
    equal("interrupts", guest.result(0)?, count)
}

fn edge(engine: &dyn Engine) -> Outcome {
    const PIN: u32 = 17;
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    guest.board.set_hook(move |_| {
        let _ = vm.set_line(PIN, true).and_then(|()| vm.set_line(PIN, false));
    });
    let mut code = with_apic();
    route_pin(&mut code, PIN, 0);
    code.sti().out8(HOOK).wait(COUNT, 1).out8(HOOK).wait(COUNT, 2).dawdle(1000).done();
    expect_count(&guest, &code, 2)
}

fn level(engine: &dyn Engine) -> Outcome {
    const PIN: u32 = 9;
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    guest.board.set_hook(move |port| {
        let _ = vm.set_line(PIN, port == u16::from(HOOK));
    });
    let mut handler = Asm::at(place::HANDLER);
    handler.push_all().inc(COUNT).cmp(COUNT, 3);
    let not_yet = handler.jne_forward();
    handler.out8(HOOK_2).land(not_yet).store32(EOI, 0).pop_all_iretq();
    guest.handle(VECTOR, &handler)?;
    let mut code = with_apic();
    route_pin(&mut code, PIN, LEVEL);
    code.sti().out8(HOOK).wait(COUNT, 3).dawdle(1000).done();
    let mut cpu = guest.start(&code)?;
    let outcome = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    outcome?;
    equal("interrupts", guest.result(0)?, 3)
}

/// First vector of the first 8259A; the second's follow.
const PIC_BASE: u8 = 0x30;

/// Initialises both 8259A with only the inputs `mask` (of 16) enabled, and the local APIC as their wire.
fn start_pics(code: &mut Asm, enabled: u16) {
    let [first, second] = (!(enabled | 4)).to_le_bytes();
    code.store32(LVT_LINT0, 0x700); // ExtINT
    let writes = [
        (0x20, 0x11),
        (0x21, PIC_BASE),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, PIC_BASE + 8),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, first),
        (0xa1, second),
    ];
    for (port, value) in writes {
        code.out8_value(port, value);
    }
}

/// A handler that counts and tells both 8259A.
fn pic_handler(origin: u64, counter: u64) -> Asm {
    let mut handler = Asm::at(origin);
    handler.push_all().inc(counter);
    handler.out8_value(0xa0, 0x20).out8_value(0x20, 0x20).pop_all_iretq();
    handler
}

fn legacy_controllers(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    guest.board.set_hook(move |port| {
        let line = if port == u16::from(HOOK) { 4 } else { 10 };
        let _ = vm.set_line(line, true).and_then(|()| vm.set_line(line, false));
    });
    guest.handle(PIC_BASE + 4, &pic_handler(place::HANDLER, COUNT))?;
    guest.handle(PIC_BASE + 10, &pic_handler(place::HANDLER_2, COUNT + 8))?;
    let mut code = with_apic();
    start_pics(&mut code, 1 << 4 | 1 << 10);
    code.sti().out8(HOOK).wait(COUNT, 1).out8(HOOK_2).wait(COUNT + 8, 1);
    code.out8(HOOK).wait(COUNT, 2).dawdle(1000).done();
    let mut cpu = guest.start(&code)?;
    let outcome = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    outcome?;
    equal("interrupts of line 4", guest.result(0)?, 2)?;
    equal("interrupts of line 10", guest.result(1)?, 1)
}

fn eventfd_line(engine: &dyn Engine) -> Outcome {
    const PIN: u32 = 20;
    let guest = Guest::new(engine)?;
    let fast = guest.vm.fast_interrupts().ok_or(Failure::Lacking("fast interrupts"))?;
    let event = eventfd()?;
    let route = fast.connect_line(&event, PIN)?;
    ensure(fast.connect_line(&event, 24).is_err(), "line 24 was accepted")?;
    ensure(route.update(message_to(0, VECTOR)).is_err(), "a line's route accepted a message")?;
    guest.board.set_hook(move |_| {
        let _ = event.write(1);
    });
    let mut code = with_apic();
    route_pin(&mut code, PIN, 0);
    code.sti().out8(HOOK).wait(COUNT, 1).out8(HOOK).wait(COUNT, 2).dawdle(1000).done();
    expect_count(&guest, &code, 2)
}

fn message(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    // The second goes to a processor that does not exist: it is lost, not an error.
    let lost = Arc::new(Mutex::new(Ok(())));
    let seen = Arc::clone(&lost);
    guest.board.set_hook(move |port| {
        let apic_id = if port == u16::from(HOOK) { 0 } else { 7 };
        let result = vm.signal_msi(message_to(apic_id, VECTOR));
        if let Ok(mut seen) = seen.lock() {
            *seen = std::mem::replace(&mut *seen, Ok(())).and(result);
        }
    });
    let mut code = with_apic();
    code.sti().out8(HOOK).wait(COUNT, 1).out8(HOOK_2).dawdle(1000).out8(HOOK).wait(COUNT, 2).done();
    expect_count(&guest, &code, 2)?;
    match lost.lock().map(|mut result| std::mem::replace(&mut *result, Ok(()))) {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::new("the hook panicked")),
    }
}

fn eventfd_message(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let fast = guest.vm.fast_interrupts().ok_or(Failure::Lacking("fast interrupts"))?;
    let event = eventfd()?;
    let route: Mutex<Option<Box<dyn InterruptRoute>>> =
        Mutex::new(Some(fast.connect_msi(&event, message_to(0, VECTOR))?));
    guest.board.set_hook(move |port| {
        let mut route = route.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match (port as u8, &*route) {
            (HOOK_2, Some(route)) => drop(route.update(message_to(0, OTHER_VECTOR))),
            (HOOK_3, _) => *route = None,
            _ => drop(event.write(1)),
        }
    });
    guest.handle(OTHER_VECTOR, &counting_handler(place::HANDLER_2, COUNT + 8))?;
    let mut code = with_apic();
    code.sti().out8(HOOK).wait(COUNT, 1).out8(HOOK).wait(COUNT, 2);
    code.out8(HOOK_2).out8(HOOK).wait(COUNT + 8, 1);
    code.out8(HOOK_3).out8(HOOK).dawdle(10_000).done();
    expect_count(&guest, &code, 2)?;
    equal("interrupts of the updated message", guest.result(1)?, 1)
}

fn many_eventfds(engine: &dyn Engine) -> Outcome {
    const ROUTES: u8 = 8;
    let guest = Guest::new(engine)?;
    let fast = guest.vm.fast_interrupts().ok_or(Failure::Lacking("fast interrupts"))?;
    let mut routes = Vec::new();
    for number in 0..ROUTES {
        let event = eventfd()?;
        let vector = VECTOR + number;
        let route = fast.connect_msi(&event, message_to(0, vector))?;
        routes.push((event, route));
        let number = u64::from(number);
        let handler = counting_handler(place::HANDLER + 0x100 * number, COUNT + 8 * number);
        guest.handle(vector, &handler)?;
    }
    guest.board.set_hook(move |port| {
        let number = usize::from(port - u16::from(HOOK));
        if let Some((event, _)) = routes.get(number) {
            let _ = event.write(1);
        }
    });
    let mut code = with_apic();
    code.sti();
    for number in (0..ROUTES).rev() {
        // As often as the route's number says, and once more.
        for time in 0..=number {
            code.out8(HOOK + number).wait(COUNT + 8 * u64::from(number), time + 1);
        }
    }
    code.dawdle(1000).done();
    let mut cpu = guest.start(&code)?;
    let outcome = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    outcome?;
    for number in 0..u64::from(ROUTES) {
        equal(&format!("interrupts of route {number}"), guest.result(number)?, number + 1)?;
    }
    Ok(())
}

fn masked(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    guest.board.set_hook(move |_| {
        let _ = vm.signal_msi(message_to(0, VECTOR));
    });
    let mut code = with_apic();
    code.out8(HOOK)
        .dawdle(1000)
        .load_rax(COUNT)
        .store_rax(place::RESULTS + 8)
        .sti()
        .wait(COUNT, 1)
        .done();
    expect_count(&guest, &code, 1)?;
    equal("interrupts while they were off", guest.result(1)?, 0)
}

fn priority(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    guest.board.set_hook(move |_| {
        let _ = vm.signal_msi(message_to(0, VECTOR));
        let _ = vm.signal_msi(message_to(0, OTHER_VECTOR));
    });
    for (vector, origin) in [(VECTOR, place::HANDLER), (OTHER_VECTOR, place::HANDLER_2)] {
        let mut handler = Asm::at(origin);
        handler
            .push_all()
            .load_rax(COUNT)
            .emit(&[0x48, 0xc1, 0xe0, 8]) // shl rax, 8
            .emit(&[0x0c, vector]) // or al, vector
            .store_rax(COUNT)
            .store32(EOI, 0)
            .inc(place::RESULTS + 8)
            .pop_all_iretq();
        guest.handle(vector, &handler)?;
    }
    let mut code = with_apic();
    code.out8(HOOK).sti().wait(place::RESULTS + 8, 2).done();
    let mut cpu = guest.start(&code)?;
    let outcome = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    outcome?;
    equal("order", guest.result(0)?, u64::from(OTHER_VECTOR) << 8 | u64::from(VECTOR))
}

fn nmi(engine: &dyn Engine) -> Outcome {
    const DELIVER_NMI: u32 = 4 << 8;
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    guest.board.set_hook(move |_| {
        let _ = vm.signal_msi(MsiMessage { address: LOCAL_APIC, data: DELIVER_NMI });
    });
    let mut handler = Asm::at(place::HANDLER);
    handler.push_all().inc(COUNT).pop_all_iretq();
    guest.handle(2, &handler)?;
    let mut code = with_apic();
    code.out8(HOOK).wait(COUNT, 1).out8(HOOK).wait(COUNT, 2).done();
    let mut cpu = guest.start(&code)?;
    let outcome = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    outcome?;
    equal("NMIs", guest.result(0)?, 2)
}

fn self_ipi(engine: &dyn Engine) -> Outcome {
    const TO_SELF: u32 = 1 << 18;
    let guest = Guest::new(engine)?;
    let mut code = with_apic();
    code.sti();
    for time in 1..=3 {
        code.store32(ICR_LOW, TO_SELF | u32::from(VECTOR)).wait(COUNT, time);
    }
    code.dawdle(1000).done();
    expect_count(&guest, &code, 3)
}

fn halt(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let vm = Arc::clone(&guest.vm);
    guest.board.set_hook(move |_| {
        let vm = Arc::clone(&vm);
        // Late enough that the guest sleeps, most of the time; right in any case.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let _ = vm.signal_msi(message_to(0, VECTOR));
        });
    });
    let mut code = with_apic();
    for _ in 0..3 {
        code.out8(HOOK).sti().hlt().emit(&[0xfa]); // cli
    }
    code.done();
    expect_count(&guest, &code, 3)
}

fn one_shot_timer(engine: &dyn Engine) -> Outcome {
    const BY_ONE: u32 = 0xb;
    let guest = Guest::new(engine)?;
    let mut code = with_apic();
    code.sti()
        .store32(TIMER_DIVIDE, BY_ONE)
        .store32(LVT_TIMER, VECTOR.into())
        .store32(TIMER_INITIAL, 100_000)
        .wait(COUNT, 1)
        .dawdle(10_000)
        .done();
    expect_count(&guest, &code, 1)
}

fn periodic_timer(engine: &dyn Engine) -> Outcome {
    const BY_ONE: u32 = 0xb;
    const PERIODIC: u32 = 1 << 17;
    let guest = Guest::new(engine)?;
    guest.handle(VECTOR, &counting_handler(place::HANDLER, COUNT))?;
    let mut code = with_apic();
    code.sti()
        .store32(TIMER_DIVIDE, BY_ONE)
        .store32(LVT_TIMER, PERIODIC | u32::from(VECTOR))
        .store32(TIMER_INITIAL, 1_000_000)
        .wait(COUNT, 3)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)
}

fn deadline_timer(engine: &dyn Engine) -> Outcome {
    const DEADLINE_MODE: u32 = 2 << 17;
    const TSC_DEADLINE: u64 = 0x6e0;
    let leaf = engine.capabilities().cpuid.get(1, 0).copied().unwrap_or_default();
    if leaf.ecx & 1 << 24 == 0 {
        return Err(Failure::Lacking("TSC deadline timer"));
    }
    let guest = Guest::new(engine)?;
    let mut code = with_apic();
    code.sti().store32(LVT_TIMER, DEADLINE_MODE | u32::from(VECTOR));
    for time in 1..=2 {
        code.emit(&[0x0f, 0x31]) // rdtsc
            .join_edx_eax()
            .emit(&[0x48, 0x05]) // add rax, 1000000
            .emit(&1_000_000_u32.to_le_bytes())
            .emit(&[0x48, 0x89, 0xc2]) // mov rdx, rax
            .emit(&[0x48, 0xc1, 0xea, 32]) // shr rdx, 32
            .mov(Reg::Rcx, TSC_DEADLINE)
            .emit(&[0x0f, 0x30]) // wrmsr
            .wait(COUNT, time);
    }
    code.dawdle(10_000).done();
    expect_count(&guest, &code, 2)
}

fn interval_timer(engine: &dyn Engine) -> Outcome {
    const RATE_GENERATOR: u8 = 0x34;
    let guest = Guest::new(engine)?;
    guest.handle(PIC_BASE, &pic_handler(place::HANDLER, COUNT))?;
    let mut code = with_apic();
    start_pics(&mut code, 1);
    // About 1 kHz.
    code.sti()
        .out8_value(0x43, RATE_GENERATOR)
        .out8_value(0x40, 0xa9)
        .out8_value(0x40, 0x04)
        .wait(COUNT, 3)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)
}
