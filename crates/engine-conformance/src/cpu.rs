//! Instructions, privilege levels, exceptions and page tables.

use std::sync::Arc;
use std::time::Duration;

use engine::cpuid::CpuidLeaf;
use engine::{Engine, Exit};
use vm_memory::{Bytes, MemoryRegionAddress};

use crate::asm::{Asm, Reg};
use crate::board::HOOKS;
use crate::guest::{EFER_NXE, Guest, NO_EXECUTE, PRESENT, USER, WRITABLE, place, selector};
use crate::{Failure, Outcome, Test, equal};

pub const TESTS: &[Test] = &[
    Test { name: "CPUID answers what the processor was given", body: cpuid },
    Test { name: "Privileged instructions in ring 3 raise #GP in ring 0", body: privileged },
    Test { name: "SYSCALL enters ring 0 and SYSRET leaves it", body: syscall },
    Test { name: "An interrupt from ring 3 changes to the stack of the TSS", body: stack_switch },
    Test { name: "Exceptions push the right address and error code", body: exceptions },
    Test { name: "Page faults tell address and cause", body: page_faults },
    Test { name: "An instruction that faulted runs again once its page is there", body: restart },
    Test { name: "Code that changes itself is executed as changed", body: self_modifying },
    Test { name: "The next instruction may be changed right before", body: modifying_ahead },
    Test { name: "Code that a device changes is executed as changed", body: device_modifying },
    Test { name: "Running code that a device changes is left for the new", body: device_meanwhile },
    Test { name: "A triple fault shuts the processor down", body: triple_fault },
    Test { name: "Model-specific registers keep what is written", body: model_specific },
];

fn cpuid(engine: &dyn Engine) -> Outcome {
    let mut guest = Guest::new(engine)?;
    let brand = CpuidLeaf {
        function: 0x8000_0002,
        index: None,
        eax: 0x6464_4141,
        ebx: 0x1234_5678,
        ecx: 0x9abc_def0,
        edx: 0x0bad_cafe,
    };
    guest.cpuid.set(brand);
    let mut code = Asm::at(place::CODE);
    for (index, leaf) in (0..).zip([0, 1, brand.function]) {
        let to = place::RESULTS + 32 * index;
        code.mov(Reg::Rax, leaf.into())
            .mov(Reg::Rcx, 0)
            .emit(&[0x0f, 0xa2]) // cpuid
            .store_rax(to)
            .emit(&[0x48, 0x89, 0xd8]) // mov rax, rbx
            .store_rax(to + 8)
            .emit(&[0x48, 0x89, 0xc8]) // mov rax, rcx
            .store_rax(to + 16)
            .emit(&[0x48, 0x89, 0xd0]) // mov rax, rdx
            .store_rax(to + 24);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let seen = |index: u64| -> Result<[u32; 4], Failure> {
        let register = |number| Ok::<_, Failure>(guest.result(4 * index + number)? as u32);
        Ok([register(0)?, register(1)?, register(2)?, register(3)?])
    };
    let table = crate::guest::cpuid_of(&guest.cpuid, 0);
    let given = |function| table.get(function, 0).map(|l| [l.eax, l.ebx, l.ecx, l.edx]);
    equal("leaf 0", Some(seen(0)?), given(0))?;
    equal("leaf 1", Some(seen(1)?), given(1))?;
    equal("leaf 0x80000002", Some(seen(2)?), given(brand.function))
}

/// Code that goes on at `rip` in ring 3; uses RAX.
pub(crate) fn enter_ring_3(code: &mut Asm, rip: u64) {
    let frame = [selector::USER_DATA.into(), place::USER_STACK, 2, selector::USER_CODE.into(), rip];
    for value in frame {
        code.mov(Reg::Rax, value).emit(&[0x50]); // push rax
    }
    code.emit(&[0x48, 0xcf]); // iretq
}

/// Stores the topmost values of the stack as results from `first` on.
fn pop_results(code: &mut Asm, first: u64, count: u64) {
    for index in first..first + count {
        code.emit(&[0x58]).store_rax(place::RESULTS + 8 * index); // pop rax
    }
}

const UD: u8 = 6;
const GP: u8 = 13;
const PF: u8 = 14;

fn privileged(engine: &dyn Engine) -> Outcome {
    let instructions: [(&str, &[u8]); 8] = [
        ("cli", &[0xfa]),
        ("hlt", &[0xf4]),
        ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("wrmsr", &[0x0f, 0x30]),
        ("lgdt [rsp]", &[0x0f, 0x01, 0x14, 0x24]),
        ("invlpg [rsp]", &[0x0f, 0x01, 0x3c, 0x24]),
        ("out 0x10, al", &[0xe6, 0x10]),
    ];
    for (name, instruction) in instructions {
        let guest = Guest::new(engine)?;
        let mut handler = Asm::at(place::HANDLER);
        pop_results(&mut handler, 0, 3);
        handler.done();
        guest.handle(GP, &handler)?;
        guest.write(place::USER_CODE, instruction)?;
        let mut code = Asm::at(place::CODE);
        enter_ring_3(&mut code, place::USER_CODE);
        let mut cpu = guest.start(&code)?;
        guest.finish(&mut *cpu)?;
        equal(&format!("{name}: error code"), guest.result(0)?, 0)?;
        equal(&format!("{name}: RIP"), guest.result(1)?, place::USER_CODE)?;
        equal(&format!("{name}: CS"), guest.result(2)?, selector::USER_CODE.into())?;
    }
    Ok(())
}

fn syscall(engine: &dyn Engine) -> Outcome {
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const FMASK: u32 = 0xc000_0084;
    const CARRY: u64 = 1;
    let guest = Guest::new(engine)?;

    let mut kernel = Asm::at(place::HANDLER);
    kernel
        .store_rax(place::RESULTS)
        .emit(&[0x48, 0x89, 0xc8]) // mov rax, rcx
        .store_rax(place::RESULTS + 8)
        .emit(&[0x4c, 0x89, 0xd8]) // mov rax, r11
        .store_rax(place::RESULTS + 16)
        .emit(&[0x9c, 0x58]) // pushfq; pop rax
        .store_rax(place::RESULTS + 24)
        .emit(&[0x8c, 0xc8]) // mov eax, cs
        .store_rax(place::RESULTS + 32)
        .mov(Reg::Rax, 0x99)
        .emit(&[0x48, 0x0f, 0x07]); // sysretq
    guest.load(&kernel)?;

    let mut user = Asm::at(place::USER_CODE);
    user.mov(Reg::Rax, 0x77)
        .emit(&[0xf9]) // stc
        .emit(&[0x0f, 0x05]); // syscall
    let after = user.here();
    user.store_rax(place::RESULTS + 40)
        .emit(&[0x8c, 0xc8]) // mov eax, cs
        .store_rax(place::RESULTS + 48)
        .emit(&[0x8c, 0xd0]) // mov eax, ss
        .store_rax(place::RESULTS + 56)
        .emit(&[0xcd, 0x80]); // int 0x80
    guest.load(&user)?;
    let mut end = Asm::at(place::HANDLER_2);
    end.done();
    guest.handle(0x80, &end)?;

    let mut code = Asm::at(place::CODE);
    let star = u64::from(selector::USER_CODE_32 | 3) << 48 | u64::from(selector::CODE) << 32;
    code.wrmsr(STAR, star).wrmsr(LSTAR, place::HANDLER).wrmsr(FMASK, CARRY);
    enter_ring_3(&mut code, place::USER_CODE);
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("RAX in the kernel", guest.result(0)?, 0x77)?;
    equal("RCX in the kernel", guest.result(1)?, after)?;
    equal("R11 in the kernel", guest.result(2)?, 2 | CARRY)?;
    equal("RFLAGS in the kernel", guest.result(3)?, 2)?;
    equal("CS in the kernel", guest.result(4)?, selector::CODE.into())?;
    equal("RAX after the call", guest.result(5)?, 0x99)?;
    equal("CS after the call", guest.result(6)?, selector::USER_CODE.into())?;
    equal("SS after the call", guest.result(7)?, selector::USER_DATA.into())
}

fn stack_switch(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut handler = Asm::at(place::HANDLER);
    handler.emit(&[0x48, 0x89, 0xe0]).store_rax(place::RESULTS); // mov rax, rsp
    pop_results(&mut handler, 1, 5);
    handler.done();
    guest.handle(0x80, &handler)?;
    guest.write(place::USER_CODE, &[0xcd, 0x80])?; // int 0x80
    let mut code = Asm::at(place::CODE);
    enter_ring_3(&mut code, place::USER_CODE);
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("RSP of the handler", guest.result(0)?, place::RING0_STACK - 5 * 8)?;
    equal("pushed RIP", guest.result(1)?, place::USER_CODE + 2)?;
    equal("pushed CS", guest.result(2)?, selector::USER_CODE.into())?;
    equal("pushed RFLAGS", guest.result(3)?, 2)?;
    equal("pushed RSP", guest.result(4)?, place::USER_STACK)?;
    equal("pushed SS", guest.result(5)?, selector::USER_DATA.into())
}

fn exceptions(engine: &dyn Engine) -> Outcome {
    /// Code, vector, error code, offset of the pushed RIP.
    type Case = (&'static str, &'static [u8], u8, Option<u64>, u64);
    let cases: [Case; 6] = [
        ("ud2", &[0x0f, 0x0b], UD, None, 0),
        ("xor ecx, ecx; div ecx", &[0x31, 0xc9, 0xf7, 0xf1], 0, None, 2),
        ("int3", &[0xcc], 3, None, 1),
        ("int 0x42", &[0xcd, 0x42], 0x42, None, 2),
        // A selector beyond the GDT.
        ("mov ax, 0x100; mov ds, ax", &[0x66, 0xb8, 0, 1, 0x8e, 0xd8], GP, Some(0x100), 4),
        // An address that is not canonical.
        (
            "mov rax, 1 << 47; mov al, [rax]",
            &[0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x8a, 0x00],
            GP,
            Some(0),
            10,
        ),
    ];
    for (name, bytes, vector, error_code, offset) in cases {
        let guest = Guest::new(engine)?;
        let mut handler = Asm::at(place::HANDLER);
        handler.mov(Reg::Rax, 1).store_rax(place::RESULTS);
        if error_code.is_some() {
            pop_results(&mut handler, 1, 1);
        }
        pop_results(&mut handler, 2, 1);
        handler.done();
        guest.handle(vector, &handler)?;
        let mut code = Asm::at(place::CODE);
        code.emit(bytes).done();
        let mut cpu = guest.start(&code)?;
        guest.finish(&mut *cpu)?;
        equal(&format!("{name}: handler ran"), guest.result(0)?, 1)?;
        equal(&format!("{name}: error code"), guest.result(1)?, error_code.unwrap_or(0))?;
        equal(&format!("{name}: RIP"), guest.result(2)?, place::CODE + offset)?;
    }
    Ok(())
}

/// Where the spare page table is mapped, one page a case.
const WINDOW: u64 = 0x6000_0000;
const READ_ONLY_PAGE: u64 = WINDOW;
const KERNEL_PAGE: u64 = WINDOW + 0x1000;
const MISSING_PAGE: u64 = WINDOW + 0x2000;
const DATA_PAGE: u64 = WINDOW + 0x3000;
const BROKEN_PAGE: u64 = WINDOW + 0x4000;
const FRAME: u64 = 0x30_0000;

fn map_window(guest: &Guest) -> Outcome {
    let directory = place::DIRECTORIES + 0x1000 * (WINDOW >> 30);
    let entry = directory + 8 * (WINDOW >> 21 & 511);
    guest.write_u64(entry, place::SPARE_TABLE | PRESENT | WRITABLE | USER)?;
    let entries = [
        FRAME | PRESENT | USER,
        FRAME | PRESENT | WRITABLE,
        0,
        FRAME | PRESENT | WRITABLE | USER | NO_EXECUTE,
        FRAME | PRESENT | WRITABLE | USER | 1 << 51,
    ];
    for (index, entry) in (0..).zip(entries) {
        guest.write_u64(place::SPARE_TABLE + 8 * index, entry)?;
    }
    Ok(())
}

fn page_faults(engine: &dyn Engine) -> Outcome {
    const READ: &[u8] = &[0x8a, 0x03]; // mov al, [rbx]
    const WRITE: &[u8] = &[0x88, 0x03]; // mov [rbx], al
    const JUMP: &[u8] = &[0xff, 0xe3]; // jmp rbx
    // Bits of the error code: 1 present, 2 write, 4 user, 8 reserved bit, 16 instruction fetch.
    let mut cases = vec![
        ("read of a missing page", READ, MISSING_PAGE, 0, 0),
        ("write to a missing page", WRITE, MISSING_PAGE + 0x123, 0, 2),
        ("write to a read-only page", WRITE, READ_ONLY_PAGE + 8, 0, 3),
        ("read of a missing page in ring 3", READ, MISSING_PAGE, 3, 4),
        ("read of a kernel page in ring 3", READ, KERNEL_PAGE + 0xfff, 3, 5),
        ("write to a kernel page in ring 3", WRITE, KERNEL_PAGE, 3, 7),
        ("write to a read-only page in ring 3", WRITE, READ_ONLY_PAGE, 3, 7),
    ];
    let cpuid = &engine.capabilities().cpuid;
    let no_execute = cpuid.get(0x8000_0001, 0).is_some_and(|leaf| leaf.edx & 1 << 20 != 0);
    if no_execute {
        cases.push(("jump to a data page", JUMP, DATA_PAGE + 16, 0, 0x11));
        cases.push(("jump to a data page in ring 3", JUMP, DATA_PAGE, 3, 0x15));
        cases.push(("jump to a missing page", JUMP, MISSING_PAGE + 1, 0, 0x10));
    }
    if engine.capabilities().physical_address_bits <= 51 {
        cases.push(("read through an entry with a reserved bit", READ, BROKEN_PAGE, 0, 9));
    }
    for (name, access, address, ring, error_code) in cases {
        let guest = Guest::new(engine)?;
        map_window(&guest)?;
        let mut handler = Asm::at(place::HANDLER);
        handler.emit(&[0x0f, 0x20, 0xd0]).store_rax(place::RESULTS); // mov rax, cr2
        pop_results(&mut handler, 1, 2);
        handler.done();
        guest.handle(PF, &handler)?;
        let mut code = Asm::at(place::CODE);
        code.mov(Reg::Rbx, address);
        let place_of_access = if ring == 3 {
            enter_ring_3(&mut code, place::USER_CODE);
            guest.write(place::USER_CODE, access)?;
            place::USER_CODE
        } else {
            code.emit(access);
            code.here() - access.len() as u64
        };
        let mut cpu = guest.cpu(0)?;
        guest.prepare(&mut *cpu, &code)?;
        if no_execute {
            let mut state = cpu.state()?;
            state.system.efer |= EFER_NXE;
            cpu.set_state(&state)?;
        } else {
            // The bit is reserved without it.
            guest.write_u64(place::SPARE_TABLE + 8 * 3, 0)?;
        }
        guest.finish(&mut *cpu)?;
        equal(&format!("{name}: CR2"), guest.result(0)?, address)?;
        // QEMU's software processor, which may be the one below KVM, forgets bit 0 here.
        let forgotten = u64::from(address == BROKEN_PAGE);
        equal(&format!("{name}: error code"), guest.result(1)? | forgotten, error_code)?;
        let rip = if access == JUMP { address } else { place_of_access };
        equal(&format!("{name}: RIP"), guest.result(2)?, rip)?;
    }
    Ok(())
}

fn restart(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    map_window(&guest)?;
    guest.write_u64(FRAME, 0x1122_3344_5566_7788)?;
    let mut handler = Asm::at(place::HANDLER);
    handler
        .inc(place::RESULTS)
        .mov(Reg::Rax, FRAME | PRESENT | WRITABLE)
        .store_rax(place::SPARE_TABLE + 8 * 2)
        .emit(&[0x48, 0x83, 0xc4, 8]) // add rsp, 8: the error code
        .emit(&[0x48, 0xcf]); // iretq
    guest.handle(PF, &handler)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, MISSING_PAGE)
        .emit(&[0x48, 0x8b, 0x03]) // mov rax, [rbx]
        .store_rax(place::RESULTS + 8)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("faults", guest.result(0)?, 1)?;
    equal("loaded", guest.result(1)?, 0x1122_3344_5566_7788)
}

/// One store and one string store change the number in the instruction that follows them.
fn modifying_ahead(engine: &dyn Engine) -> Outcome {
    const ROUNDS: u64 = 100;
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, 0).mov(Reg::Rdx, ROUNDS);
    let again = code.here();
    let number = |code: &Asm, length: u64| code.here() + length + 1;
    let changed = number(&code, 7);
    code.emit(&[0x88, 0x14, 0x25]) // mov [changed], dl
        .emit(&(changed as u32).to_le_bytes())
        .emit(&[0xb8, 1, 0, 0, 0]) // mov eax, 1
        .emit(&[0x48, 0x01, 0xc3]); // add rbx, rax
    let changed = number(&code, 10 + 2 + 1);
    code.mov(Reg::Rdi, changed)
        .emit(&[0x88, 0xd0]) // mov al, dl
        .emit(&[0xaa]) // stosb
        .emit(&[0xb8, 1, 0, 0, 0]) // mov eax, 1
        .emit(&[0x48, 0x01, 0xc3]) // add rbx, rax
        .emit(&[0x48, 0xff, 0xca]) // dec rdx
        .jne(again)
        .emit(&[0x48, 0x89, 0xd8]) // mov rax, rbx
        .store_rax(place::RESULTS)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("sum", guest.result(0)?, ROUNDS * (ROUNDS + 1))
}

fn self_modifying(engine: &dyn Engine) -> Outcome {
    const ROUNDS: u64 = 100;
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rdi, 0).mov(Reg::Rdx, ROUNDS);
    let again = code.here();
    code.emit(&[0xb8, 1, 0, 0, 0]) // mov eax, 1: the number is changed below
        .emit(&[0x48, 0x01, 0xc7]) // add rdi, rax
        .emit(&[0xff, 0x04, 0x25]) // inc dword [again + 1]
        .emit(&(again as u32 + 1).to_le_bytes())
        .emit(&[0x48, 0xff, 0xca]) // dec rdx
        .jne(again)
        .emit(&[0x48, 0x89, 0xf8]) // mov rax, rdi
        .store_rax(place::RESULTS)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("sum", guest.result(0)?, ROUNDS * (ROUNDS + 1) / 2)
}

/// The device has its turn in the instruction right before the one that it changes.
fn device_modifying(engine: &dyn Engine) -> Outcome {
    const ROUNDS: u64 = 100;
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rdi, 0).mov(Reg::Rdx, ROUNDS);
    let again = code.here();
    code.emit(&[0xe6, HOOKS.start as u8]); // out HOOKS.start, al
    let number = code.here() + 1;
    code.emit(&[0xb8, 0, 0, 0, 0]) // mov eax, 0: the number is changed by the device
        .emit(&[0x48, 0x01, 0xc7]) // add rdi, rax
        .emit(&[0x48, 0xff, 0xca]) // dec rdx
        .jne(again)
        .emit(&[0x48, 0x89, 0xf8]) // mov rax, rdi
        .store_rax(place::RESULTS)
        .done();
    let (memory, at) = (Arc::clone(&guest.memory), MemoryRegionAddress(number));
    guest.board.set_hook(move |_| {
        let old: u32 = memory.read_obj(at).unwrap_or(0);
        // What cannot be written is missing in the sum.
        let _ = memory.write_obj(old + 1, at);
    });
    let mut cpu = guest.start(&code)?;
    let finished = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    finished?;
    equal("sum", guest.result(0)?, ROUNDS * (ROUNDS + 1) / 2)
}

/// The device is another thread, and the guest does nothing but to execute what is changed.
fn device_meanwhile(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.emit(&[0xe6, HOOKS.start as u8]); // out HOOKS.start, al
    let again = code.here();
    code.emit(&[0xb8, 1, 0, 0, 0]) // mov eax, 1: the number becomes 2
        .emit(&[0x83, 0xf8, 2]) // cmp eax, 2
        .jne(again)
        .store_rax(place::RESULTS)
        .done();
    let (memory, at) = (Arc::clone(&guest.memory), MemoryRegionAddress(again + 1));
    guest.board.set_hook(move |_| {
        let memory = Arc::clone(&memory);
        std::thread::spawn(move || {
            // Long enough for the loop to be hot.
            std::thread::sleep(Duration::from_millis(20));
            memory.write_obj(2_u32, at)
        });
    });
    let mut cpu = guest.start(&code)?;
    let finished = guest.finish(&mut *cpu);
    guest.board.clear_hook();
    finished?;
    equal("number", guest.result(0)?, 2)
}

fn triple_fault(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.emit(&[0x0f, 0x0b]).done(); // ud2
    let mut cpu = guest.start(&code)?;
    let mut state = cpu.state()?;
    state.system.idt.limit = 0;
    cpu.set_state(&state)?;
    equal("exit", guest.run(&mut *cpu)?, Exit::Shutdown)
}

fn model_specific(engine: &dyn Engine) -> Outcome {
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    const FS_BASE: u32 = 0xc000_0100;
    const LSTAR: u32 = 0xc000_0082;
    let values = [
        (KERNEL_GS_BASE, 0xffff_8000_1234_5678),
        (FS_BASE, 0x0000_7fff_0000_1000),
        (LSTAR, 0xffff_ffff_8000_0000),
    ];
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    for (index, value) in values {
        code.wrmsr(index, value);
    }
    for (number, (index, _)) in (0..).zip(values) {
        code.rdmsr(index).store_rax(place::RESULTS + 8 * number);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    for (number, (index, value)) in (0..).zip(values) {
        equal(&format!("register {index:#x}"), guest.result(number)?, value)?;
    }
    let state = cpu.state()?;
    equal("saved FS base", state.system.fs.base, values[1].1)?;
    let saved = state.msrs.iter().find(|(index, _)| *index == KERNEL_GS_BASE);
    equal("saved KERNEL_GS_BASE", saved.copied(), Some(values[0]))
}
