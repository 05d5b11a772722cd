//! Hardware breakpoints.

use engine::Engine;

use crate::asm::{Asm, Reg};
use crate::guest::{Guest, place};
use crate::{Outcome, Test, equal};

pub const TESTS: &[Test] = &[Test {
    name: "Breakpoints stop before an instruction and behind an access",
    body: breakpoints,
}];

const DB: u8 = 1;
/// What is watched: four bytes for writes, and one for every access.
const WRITTEN: u64 = place::RESULTS + 0x800;
const ACCESSED: u64 = place::RESULTS + 0x808;
/// Where the handler's last place goes.
const END: u64 = place::RESULTS + 0x100;

/// DR7: the first three enabled; the first stops execution.
const ENABLED: u64 = 0x400 | 0b01_0101 | 0b1101 << 20 | 0b0011 << 24;

fn breakpoints(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let mut handler = Asm::at(place::HANDLER);
    handler
        .emit(&[0x48, 0x8b, 0x04, 0x24]) // mov rax, [rsp]
        .emit(&[0x49, 0x89, 0x06]) // mov [r14], rax
        .emit(&[0x0f, 0x21, 0xf0]) // mov rax, dr6
        .emit(&[0x49, 0x89, 0x46, 0x08]) // mov [r14+8], rax
        .emit(&[0x49, 0x83, 0xc6, 0x10]) // add r14, 16
        .emit(&[0x31, 0xc0, 0x0f, 0x23, 0xf0]) // xor eax, eax; mov dr6, rax
        // The resume flag: the instruction is executed now.
        .emit(&[0x81, 0x4c, 0x24, 0x10, 0, 0, 1, 0]) // or dword [rsp+16], 0x10000
        .emit(&[0x48, 0xcf]); // iretq
    guest.handle(DB, &handler)?;

    let mut code = Asm::at(place::CODE);
    code.emit(&[0x49, 0xbe]).emit(&place::RESULTS.to_le_bytes()); // mov r14, RESULTS
    code.mov(Reg::Rax, WRITTEN).emit(&[0x0f, 0x23, 0xc8]); // mov dr1, rax
    code.mov(Reg::Rax, ACCESSED).emit(&[0x0f, 0x23, 0xd0]); // mov dr2, rax
    // Behind two constants of 10 bytes and two moves of 3.
    let stop = code.here() + 26;
    code.mov(Reg::Rax, stop).emit(&[0x0f, 0x23, 0xc0]); // mov dr0, rax
    code.mov(Reg::Rax, ENABLED).emit(&[0x0f, 0x23, 0xf8]); // mov dr7, rax
    code.emit(&[0x90]); // nop
    store_al(&mut code, WRITTEN - 1);
    store_al(&mut code, WRITTEN + 4);
    load_al(&mut code, WRITTEN);
    let written = store_al(&mut code, WRITTEN + 2);
    let read = load_al(&mut code, ACCESSED);
    code.emit(&[0x31, 0xc0, 0x0f, 0x23, 0xf8]); // xor eax, eax; mov dr7, rax
    store_al(&mut code, WRITTEN);
    code.emit(&[0x4c, 0x89, 0xf0]).store_rax(END).done(); // mov rax, r14
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;

    let names = ["an instruction", "a write", "a read"];
    for (index, (name, rip)) in (0..).zip(names.into_iter().zip([stop, written, read])) {
        equal(&format!("{name}: RIP"), guest.result(2 * index)?, rip)?;
        let conditions = guest.result(2 * index + 1)? & 0xe00f;
        equal(&format!("{name}: DR6"), conditions, 1 << index)?;
    }
    equal("the end of the results", guest.read_u64(END)?, place::RESULTS + 3 * 16)
}

/// `mov [address], al`; where the next instruction is.
fn store_al(code: &mut Asm, address: u64) -> u64 {
    code.emit(&[0xa2]).emit(&address.to_le_bytes()).here()
}

/// `mov al, [address]`; likewise.
fn load_al(code: &mut Asm, address: u64) -> u64 {
    code.emit(&[0xa0]).emit(&address.to_le_bytes()).here()
}
