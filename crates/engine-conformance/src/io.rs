//! Port and memory-mapped I/O.

use engine::Engine;

use crate::asm::{Asm, Reg};
use crate::board::{Access, PATTERN, pattern};
use crate::guest::{Guest, place};
use crate::{Outcome, Test, equal};

pub const TESTS: &[Test] = &[
    Test { name: "A processor runs 16-bit code in real mode", body: real_mode },
    Test { name: "A processor runs 64-bit code", body: long_mode },
    Test { name: "Port output arrives with its width and value", body: port_output },
    Test { name: "Port input fills its part of the register", body: port_input },
    Test { name: "Port output of a string sends each element", body: port_output_string },
    Test { name: "Port input of a string fills memory", body: port_input_string },
    Test { name: "Loads of every width from a device see its bytes", body: device_loads },
    Test { name: "Stores of every width to a device arrive whole", body: device_stores },
    Test { name: "An update of a device register loads, then stores", body: device_update },
    Test { name: "A string copied to a device arrives in order", body: device_string },
    Test { name: "A load that crosses a page of a device sees its bytes", body: device_crossing },
    Test { name: "Memory that is not mapped reads as all ones", body: unmapped_memory },
    Test { name: "Statistics count the accesses", body: statistics },
];

/// Port that the board only remembers.
const PORT: u8 = 0x10;
const DEVICE: u64 = PATTERN.start;

fn real_mode(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    guest.write(
        place::CODE,
        &[
            0xb0, 0x42, // mov al, 0x42
            0xe6, PORT, // out PORT, al
            0xb8, 0x34, 0x12, // mov ax, 0x1234
            0xe7, PORT, // out PORT, ax
            0x8c, 0xc8, // mov ax, cs
            0xe7, PORT, // out PORT, ax
            0xe6, 0xf4, // out DONE, al
            0xf4, // hlt
        ],
    )?;
    let mut cpu = guest.cpu(0)?;
    let mut state = cpu.state()?;
    state.system.cs.selector = (place::CODE >> 4) as u16;
    state.system.cs.base = place::CODE;
    state.registers.rip = 0;
    cpu.set_state(&state)?;
    guest.finish(&mut *cpu)?;
    let out = |size, value| Access::Out { port: PORT.into(), size, value };
    let expected = vec![out(1, 0x42), out(2, 0x1234), out(2, place::CODE >> 4)];
    equal("accesses", guest.board.take_accesses(), expected)
}

fn long_mode(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rax, 0x0123_4567_89ab_cdef)
        .mov(Reg::Rcx, 0x1111_1111_1111_1111)
        .emit(&[0x48, 0x01, 0xc8]) // add rax, rcx
        .store_rax(place::RESULTS)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("the sum", guest.result(0)?, 0x1234_5678_9abc_df00)?;
    equal("RAX", cpu.state()?.registers.rax, 0x1234_5678_9abc_df00)
}

fn port_output(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rax, 0x8877_6655_4433_2211)
        .mov(Reg::Rdx, 0x1234)
        .emit(&[0xe6, PORT]) // out PORT, al
        .emit(&[0x66, 0xe7, PORT]) // out PORT, ax
        .emit(&[0xe7, PORT]) // out PORT, eax
        .emit(&[0xee]) // out dx, al
        .emit(&[0x66, 0xef]) // out dx, ax
        .emit(&[0xef]) // out dx, eax
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let mut expected = Vec::new();
    for port in [PORT.into(), 0x1234] {
        for (size, value) in [(1, 0x11), (2, 0x2211), (4, 0x4433_2211)] {
            expected.push(Access::Out { port, size, value });
        }
    }
    equal("accesses", guest.board.take_accesses(), expected)
}

fn port_input(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    let inputs: [&[u8]; 3] = [
        &[0xe4, PORT],       // in al, PORT
        &[0x66, 0xe5, PORT], // in ax, PORT
        &[0xe5, PORT],       // in eax, PORT
    ];
    for (index, input) in (0..).zip(inputs) {
        code.mov(Reg::Rax, u64::MAX).emit(input).store_rax(place::RESULTS + 8 * index);
    }
    code.done();
    guest.board.answer(&[0x11, 0x22, 0x23, 0x44, 0x45, 0x46, 0x47]);
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("in al", guest.result(0)?, 0xffff_ffff_ffff_ff11)?;
    equal("in ax", guest.result(1)?, 0xffff_ffff_ffff_2322)?;
    // A 32-bit result clears the upper half.
    equal("in eax", guest.result(2)?, 0x4746_4544)?;
    let access = |size| Access::In { port: PORT.into(), size };
    equal("accesses", guest.board.take_accesses(), vec![access(1), access(2), access(4)])
}

/// Each string instruction with its element's size.
const OUTS: [(&[u8], usize); 3] = [
    (&[0xf3, 0x6e], 1),       // rep outsb
    (&[0xf3, 0x66, 0x6f], 2), // rep outsw
    (&[0xf3, 0x6f], 4),       // rep outsd
];
const INS: [(&[u8], usize); 3] = [
    (&[0xf3, 0x6c], 1),       // rep insb
    (&[0xf3, 0x66, 0x6d], 2), // rep insw
    (&[0xf3, 0x6d], 4),       // rep insd
];

const ELEMENTS: usize = 5;

fn port_output_string(engine: &dyn Engine) -> Outcome {
    const SOURCE: u64 = place::RESULTS;
    let guest = Guest::new(engine)?;
    let bytes: Vec<u8> = (1..=20).collect();
    guest.write(SOURCE, &bytes)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rdx, PORT.into());
    for (instruction, _) in OUTS {
        code.mov(Reg::Rsi, SOURCE).mov(Reg::Rcx, ELEMENTS as u64).emit(instruction);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let mut expected = Vec::new();
    for (_, size) in OUTS {
        for element in bytes.chunks(size).take(ELEMENTS) {
            let value = element.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            expected.push(Access::Out { port: PORT.into(), size, value });
        }
    }
    equal("accesses", guest.board.take_accesses(), expected)?;
    let registers = cpu.state()?.registers;
    equal("RSI", registers.rsi, SOURCE + 20)?;
    equal("RCX", registers.rcx, 0)
}

fn port_input_string(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let bytes: Vec<u8> = (1..=(ELEMENTS * (1 + 2 + 4)) as u8).collect();
    guest.board.answer(&bytes);
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rdx, PORT.into()).mov(Reg::Rdi, place::RESULTS);
    for (instruction, _) in INS {
        code.mov(Reg::Rcx, ELEMENTS as u64).emit(instruction);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let memory = guest.memory_copy()?;
    let filled = &memory[place::RESULTS as usize..][..bytes.len() + 1];
    equal("memory", filled, &[bytes, vec![0]].concat())?;
    let expected: Vec<_> = INS
        .iter()
        .flat_map(|&(_, size)| vec![Access::In { port: PORT.into(), size }; ELEMENTS])
        .collect();
    equal("accesses", guest.board.take_accesses(), expected)
}

fn device_loads(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let loads: [(&[u8], u64, usize); 6] = [
        (&[0x8a, 0x03], 0, 1),             // mov al, [rbx]
        (&[0x66, 0x8b, 0x03], 2, 2),       // mov ax, [rbx]
        (&[0x8b, 0x03], 4, 4),             // mov eax, [rbx]
        (&[0x48, 0x8b, 0x03], 8, 8),       // mov rax, [rbx]
        (&[0x0f, 0xb6, 0x03], 7, 1),       // movzx eax, byte [rbx]
        (&[0x48, 0x0f, 0xbf, 0x03], 6, 2), // movsx rax, word [rbx]
    ];
    let mut code = Asm::at(place::CODE);
    for (index, (load, offset, _)) in (0..).zip(loads) {
        code.mov(Reg::Rax, u64::MAX)
            .mov(Reg::Rbx, DEVICE + offset)
            .emit(load)
            .store_rax(place::RESULTS + 8 * index);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("byte", guest.result(0)?, 0xffff_ffff_ffff_ff11)?;
    equal("word", guest.result(1)?, 0xffff_ffff_ffff_4433)?;
    equal("doubleword", guest.result(2)?, 0x8877_6655)?;
    equal("quadword", guest.result(3)?, 0x8877_6655_4433_2211)?;
    equal("zero-extended byte", guest.result(4)?, 0x88)?;
    equal("sign-extended word", guest.result(5)?, 0xffff_ffff_ffff_8877)?;
    let expected = loads.map(|(_, offset, size)| Access::Load { address: DEVICE + offset, size });
    equal("accesses", guest.board.take_accesses(), expected.to_vec())
}

fn device_stores(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let stores: [(&[u8], u64, usize, u64); 5] = [
        (&[0x88, 0x03], 1, 1, 0x11),                        // mov [rbx], al
        (&[0x66, 0x89, 0x03], 2, 2, 0x2211),                // mov [rbx], ax
        (&[0x89, 0x03], 4, 4, 0x4433_2211),                 // mov [rbx], eax
        (&[0x48, 0x89, 0x03], 8, 8, 0x8877_6655_4433_2211), // mov [rbx], rax
        (&[0xc7, 0x03, 0x78, 0x56, 0x34, 0x12], 16, 4, 0x1234_5678), // mov dword [rbx], 0x12345678
    ];
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rax, 0x8877_6655_4433_2211);
    for (store, offset, _, _) in stores {
        code.mov(Reg::Rbx, DEVICE + offset).emit(store);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let expected = stores.map(|(_, offset, size, value)| Access::Store {
        address: DEVICE + offset,
        size,
        value,
    });
    equal("accesses", guest.board.take_accesses(), expected.to_vec())
}

fn device_update(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, DEVICE)
        .emit(&[0x81, 0x0b, 0, 0, 0, 0x80]) // or dword [rbx], 0x80000000
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let expected = vec![
        Access::Load { address: DEVICE, size: 4 },
        Access::Store { address: DEVICE, size: 4, value: 0x4433_2211 | 0x8000_0000 },
    ];
    equal("accesses", guest.board.take_accesses(), expected)
}

fn device_string(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    for index in 0..ELEMENTS as u64 {
        guest.write_u64(place::RESULTS + 8 * index, 0x1000 + index)?;
    }
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rsi, place::RESULTS)
        .mov(Reg::Rdi, DEVICE)
        .mov(Reg::Rcx, ELEMENTS as u64)
        .emit(&[0xf3, 0x48, 0xa5]) // rep movsq
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let expected: Vec<_> = (0..ELEMENTS as u64)
        .map(|index| Access::Store { address: DEVICE + 8 * index, size: 8, value: 0x1000 + index })
        .collect();
    equal("accesses", guest.board.take_accesses(), expected)
}

fn device_crossing(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let address = DEVICE + 0xfff - 2;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, address)
        .emit(&[0x48, 0x8b, 0x03]) // mov rax, [rbx]
        .store_rax(place::RESULTS)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    let bytes: [u8; 8] = std::array::from_fn(|index| pattern(address + index as u64));
    equal("quadword", guest.result(0)?, u64::from_le_bytes(bytes))
}

fn unmapped_memory(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, place::MEMORY)
        .mov(Reg::Rax, 0)
        .emit(&[0x48, 0x8b, 0x03]) // mov rax, [rbx]
        .store_rax(place::RESULTS)
        .emit(&[0x48, 0xc7, 0x03, 5, 0, 0, 0]) // mov qword [rbx], 5
        .emit(&[0x8b, 0x03]) // mov eax, [rbx]
        .store_rax(place::RESULTS + 8)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("before a store", guest.result(0)?, u64::MAX)?;
    equal("after a store", guest.result(1)?, 0xffff_ffff)
}

fn statistics(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut code = Asm::at(place::CODE);
    code.out8(PORT).out8(PORT).load32(DEVICE).done();
    let mut cpu = guest.start(&code)?;
    let before = cpu.statistics();
    guest.finish(&mut *cpu)?;
    let after = cpu.statistics();
    // The third is DONE.
    equal("port accesses", after.pio - before.pio, 3)?;
    equal("device accesses", after.mmio - before.mmio, 1)?;
    crate::ensure(after.exits - before.exits >= 4, format!("exits: {after:?} after {before:?}"))
}
