//! Stopping a processor from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{Engine, Exit};

use crate::asm::{Asm, Reg};
use crate::board::Access;
use crate::guest::{Guest, place, watched};
use crate::{Outcome, Test, ensure, equal};

pub const TESTS: &[Test] = &[
    Test { name: "A kick before the first run is not lost", body: before },
    Test { name: "Kicks that come together count as one", body: together },
    Test { name: "A kick ends a guest that loops without exits", body: during },
    Test { name: "A kick ends a guest that sleeps in HLT", body: during_halt },
    Test { name: "A kicker may outlive its processor", body: outlive },
    Test { name: "A processor may run on one thread after another", body: change_thread },
    Test { name: "No output is lost or doubled in a storm of kicks", body: storm },
];

fn endless() -> Asm {
    let mut code = Asm::at(place::CODE);
    code.jmp(place::CODE);
    code
}

fn before(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut cpu = guest.start(&endless())?;
    cpu.kicker().kick();
    equal("exit", guest.run(&mut *cpu)?, Exit::Kicked)?;
    equal("RIP", cpu.state()?.registers.rip, place::CODE)
}

fn together(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.done();
    let mut cpu = guest.start(&code)?;
    for _ in 0..5 {
        cpu.kicker().kick();
    }
    equal("exit", guest.run(&mut *cpu)?, Exit::Kicked)?;
    ensure(!guest.board.take_done(), "the guest ran in spite of the kick")?;
    guest.finish(&mut *cpu)
}

fn during(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut cpu = guest.start(&endless())?;
    for _ in 0..3 {
        let kicker = cpu.kicker();
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                kicker.kick();
            });
            guest.run(&mut *cpu)
        });
        equal("exit", exit?, Exit::Kicked)?;
        equal("RIP", cpu.state()?.registers.rip, place::CODE)?;
    }
    Ok(())
}

fn during_halt(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.hlt().jmp(place::CODE);
    let mut cpu = guest.start(&code)?;
    let kicker = cpu.kicker();
    let exit = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            kicker.kick();
        });
        guest.run(&mut *cpu)
    });
    equal("exit", exit?, Exit::Kicked)
}

fn outlive(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let cpu = guest.start(&endless())?;
    let kicker = cpu.kicker();
    drop(cpu);
    drop(guest);
    kicker.kick();
    Ok(())
}

fn change_thread(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut cpu = guest.start(&endless())?;
    for _ in 0..3 {
        let kicker = cpu.kicker();
        let exit = std::thread::scope(|scope| {
            let runner = scope.spawn(|| guest.run(&mut *cpu));
            std::thread::sleep(Duration::from_millis(5));
            kicker.kick();
            runner.join()
        });
        let exit = exit.map_err(|_| crate::Failure::new("the processor's thread panicked"))?;
        equal("exit", exit?, Exit::Kicked)?;
    }
    Ok(())
}

fn storm(engine: &dyn Engine) -> Outcome {
    const OUTPUTS: u64 = 1000;
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rax, 0);
    let again = code.here();
    code.emit(&[0x48, 0xff, 0xc0]) // inc rax
        .out32(0x10)
        .emit(&[0x48, 0x3d]) // cmp rax, OUTPUTS
        .emit(&(OUTPUTS as u32).to_le_bytes())
        .jne(again)
        .done();
    let mut cpu = guest.start(&code)?;
    let kicker = cpu.kicker();
    let over = Arc::new(AtomicBool::new(false));
    let (result, timed_out) = watched(cpu.kicker(), || {
        std::thread::scope(|scope| {
            let stop = Arc::clone(&over);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    kicker.kick();
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            let deadline = std::time::Instant::now() + Duration::from_secs(50);
            let result = loop {
                match cpu.run(&*guest.board) {
                    Ok(Exit::Kicked) if guest.board.take_done() => break Ok(()),
                    Ok(Exit::Kicked) if std::time::Instant::now() < deadline => {}
                    Ok(exit) => break Err(crate::Failure::new(format!("stopped with {exit:?}"))),
                    Err(error) => break Err(error.into()),
                }
            };
            over.store(true, Ordering::SeqCst);
            result
        })
    });
    ensure(!timed_out, "the guest did not come to its end")?;
    result?;
    let expected: Vec<_> =
        (1..=OUTPUTS).map(|value| Access::Out { port: 0x10, size: 4, value }).collect();
    ensure(guest.board.take_accesses() == expected, "outputs were lost, doubled or disordered")
}
