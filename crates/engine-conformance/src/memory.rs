//! Memory regions, doorbells and dirty pages.

use std::sync::Arc;

use engine::{Doorbell, Engine, MemoryRegion, PAGE_SIZE};
use vm_memory::{Bytes, MemoryRegionAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::asm::{Asm, Reg};
use crate::board::{Access, PATTERN};
use crate::guest::{Guest, place, region};
use crate::{Failure, Outcome, Test, ensure, equal};

pub const TESTS: &[Test] = &[
    Test { name: "Dirty pages are those that the processor wrote", body: dirty_pages },
    Test { name: "Reading memory leaves its pages clean", body: clean_pages },
    Test { name: "Read-only memory can be read, and writes reach the bus", body: read_only },
    Test { name: "Regions that overlap or are not whole pages are refused", body: bad_regions },
    Test { name: "Memory that was unmapped belongs to the bus", body: unmapped },
    Test { name: "A doorbell rings and the write does not reach the bus", body: doorbell },
    Test { name: "A doorbell for one value lets others pass", body: doorbell_value },
    Test { name: "A doorbell for one width lets others pass", body: doorbell_width },
    Test { name: "Doorbells that cannot be are refused", body: bad_doorbells },
];

/// Where the second region is: behind the first.
const EXTRA: u64 = place::MEMORY;
const EXTRA_PAGES: u64 = 130;
const SLOT: u32 = 1;

fn write_to(code: &mut Asm, address: u64) {
    code.mov(Reg::Rbx, address).emit(&[0xc6, 0x03, 0x5a]); // mov byte [rbx], 0x5a
}

fn pages(bitmap: &[u64]) -> Vec<u64> {
    (0..bitmap.len() as u64 * 64)
        .filter(|page| bitmap[(page / 64) as usize] >> (page % 64) & 1 != 0)
        .collect()
}

fn dirty_pages(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let tracking = guest.vm.dirty_tracking().ok_or(Failure::Lacking("dirty tracking"))?;
    let extra = region(EXTRA, EXTRA_PAGES * PAGE_SIZE)?;
    guest.vm.map(MemoryRegion { slot: SLOT, region: extra, read_only: false })?;
    ensure(tracking.take(SLOT).is_err(), "pages were told without recording")?;
    ensure(tracking.record(SLOT + 1, true).is_err(), "an empty slot was recorded")?;

    let rounds: [&[u64]; 3] = [&[3, 64, 129], &[0, 3], &[7]];
    let mut code = Asm::at(place::CODE);
    for pages in rounds {
        for page in pages {
            write_to(&mut code, EXTRA + page * PAGE_SIZE + 0xfff);
        }
        code.out8(crate::board::DONE);
    }
    code.done();
    let mut cpu = guest.start(&code)?;
    tracking.record(SLOT, true)?;
    for expected in &rounds[..2] {
        guest.finish(&mut *cpu)?;
        let bitmap = tracking.take(SLOT)?;
        equal("words in the bitmap", bitmap.len(), EXTRA_PAGES.div_ceil(64) as usize)?;
        equal("written pages", pages(&bitmap), expected.to_vec())?;
        equal("pages at once again", pages(&tracking.take(SLOT)?), vec![])?;
    }
    guest.finish(&mut *cpu)?;
    tracking.record(SLOT, true)?;
    equal("pages after a new start", pages(&tracking.take(SLOT)?), vec![])?;
    tracking.record(SLOT, false)?;
    ensure(tracking.take(SLOT).is_err(), "pages were told after recording stopped")
}

fn clean_pages(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let tracking = guest.vm.dirty_tracking().ok_or(Failure::Lacking("dirty tracking"))?;
    let extra = region(EXTRA, EXTRA_PAGES * PAGE_SIZE)?;
    guest.vm.map(MemoryRegion { slot: SLOT, region: extra, read_only: false })?;
    tracking.record(SLOT, true)?;
    let mut code = Asm::at(place::CODE);
    code.load32(EXTRA + 5 * PAGE_SIZE).done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("written pages", pages(&tracking.take(SLOT)?), vec![])
}

fn read_only(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let rom = region(EXTRA, PAGE_SIZE)?;
    let write = |value: u64| {
        rom.write_obj(value, MemoryRegionAddress(8))
            .map_err(|error| Failure::new(error.to_string()))
    };
    write(0x1234_5678_9abc_def0)?;
    guest.vm.map(MemoryRegion { slot: SLOT, region: Arc::clone(&rom), read_only: true })?;
    let mut code = Asm::at(place::CODE);
    code.load_rax(EXTRA + 8)
        .store_rax(place::RESULTS)
        .mov(Reg::Rbx, EXTRA + 8)
        .emit(&[0xc7, 0x03, 1, 2, 3, 4]) // mov dword [rbx], 0x04030201
        .load_rax(EXTRA + 8)
        .store_rax(place::RESULTS + 8)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("before the write", guest.result(0)?, 0x1234_5678_9abc_def0)?;
    equal("after the write", guest.result(1)?, 0x1234_5678_9abc_def0)?;
    let store = Access::Store { address: EXTRA + 8, size: 4, value: 0x0403_0201 };
    equal("accesses", guest.board.take_accesses(), vec![store])
}

fn bad_regions(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let map = |slot, address, length| -> Result<bool, Failure> {
        let region = region(address, length)?;
        Ok(guest.vm.map(MemoryRegion { slot, region, read_only: false }).is_ok())
    };
    ensure(!map(1, place::MEMORY - PAGE_SIZE, 2 * PAGE_SIZE)?, "an overlapping region")?;
    ensure(!map(1, 0, PAGE_SIZE)?, "a region inside of another")?;
    ensure(!map(0, EXTRA, PAGE_SIZE)?, "a slot that is taken")?;
    ensure(!map(1, EXTRA + 0x800, PAGE_SIZE)?, "an address inside of a page")?;
    ensure(!map(1, EXTRA, PAGE_SIZE + 0x800)?, "a length of half a page")?;
    ensure(!map(u32::MAX, EXTRA, PAGE_SIZE)?, "a slot beyond all limits")?;
    ensure(guest.vm.unmap(1).is_err(), "an empty slot was unmapped")?;
    ensure(map(1, EXTRA, PAGE_SIZE)?, "a good region was refused after bad ones")
}

fn unmapped(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let extra = region(PATTERN.start, PAGE_SIZE)?;
    guest.vm.map(MemoryRegion { slot: SLOT, region: extra, read_only: false })?;
    let mut code = Asm::at(place::CODE);
    code.store32(PATTERN.start, 7)
        .out8(crate::board::DONE)
        .load32(PATTERN.start)
        .store_rax(place::RESULTS)
        .done();
    let mut cpu = guest.start(&code)?;
    guest.finish(&mut *cpu)?;
    equal("accesses while mapped", guest.board.take_accesses(), vec![])?;
    guest.vm.unmap(SLOT)?;
    guest.finish(&mut *cpu)?;
    equal("the device's bytes", guest.result(0)?, 0x4433_2211)
}

/// What one doorbell made of some writes.
struct Rung {
    times: u64,
    accesses: Vec<Access>,
}

/// Runs `code` with a doorbell attached, and again after it was detached.
fn ring(engine: &dyn Engine, doorbell: Doorbell, code: &Asm) -> Result<[Rung; 2], Failure> {
    let guest = Guest::new(engine)?;
    let doorbells = guest.vm.doorbells().ok_or(Failure::Lacking("doorbells"))?;
    let event = EventFd::new(EFD_NONBLOCK)?;
    let mut cpu = guest.start(code)?;
    doorbells.attach(doorbell, &event)?;
    guest.finish(&mut *cpu)?;
    let with = Rung { times: event.read().unwrap_or(0), accesses: guest.board.take_accesses() };
    doorbells.detach(doorbell, &event)?;
    ensure(doorbells.detach(doorbell, &event).is_err(), "a doorbell was detached twice")?;
    guest.prepare(&mut *cpu, code)?;
    guest.finish(&mut *cpu)?;
    let without = Rung { times: event.read().unwrap_or(0), accesses: guest.board.take_accesses() };
    Ok([with, without])
}

const BELL: u64 = 0xd800_0000;

/// Code that stores 16 and 32 bits of 0x00010005 and 32 bits of 6, and the accesses that it makes.
fn bell_writes() -> (Asm, [Access; 3]) {
    let mut code = Asm::at(place::CODE);
    code.mov(Reg::Rbx, BELL)
        .mov(Reg::Rax, 0x1_0005)
        .emit(&[0x66, 0x89, 0x03]) // mov [rbx], ax
        .emit(&[0x89, 0x03]) // mov [rbx], eax
        .mov(Reg::Rax, 6)
        .emit(&[0x89, 0x03]) // mov [rbx], eax
        .done();
    let store = |size, value| Access::Store { address: BELL, size, value };
    (code, [store(2, 5), store(4, 0x1_0005), store(4, 6)])
}

fn expect_rings(
    engine: &dyn Engine,
    width: Option<u8>,
    value: Option<u64>,
    rung_by: &[usize],
) -> Outcome {
    let (code, all) = bell_writes();
    let doorbell = Doorbell { address: BELL, width, value };
    let [with, without] = ring(engine, doorbell, &code)?;
    let passed: Vec<_> =
        (0..all.len()).filter(|index| !rung_by.contains(index)).map(|index| all[index]).collect();
    equal("rings", with.times, rung_by.len() as u64)?;
    equal("writes that passed", with.accesses, passed)?;
    equal("rings after it was detached", without.times, 0)?;
    equal("writes after it was detached", without.accesses, all.to_vec())
}

fn doorbell(engine: &dyn Engine) -> Outcome {
    expect_rings(engine, None, None, &[0, 1, 2])
}

fn doorbell_value(engine: &dyn Engine) -> Outcome {
    expect_rings(engine, Some(4), Some(6), &[2])?;
    expect_rings(engine, Some(2), Some(5), &[0])
}

fn doorbell_width(engine: &dyn Engine) -> Outcome {
    expect_rings(engine, Some(4), None, &[1, 2])
}

fn bad_doorbells(engine: &dyn Engine) -> Outcome {
    let guest = Guest::new(engine)?;
    let doorbells = guest.vm.doorbells().ok_or(Failure::Lacking("doorbells"))?;
    let event = EventFd::new(EFD_NONBLOCK)?;
    let doorbell = Doorbell { address: BELL, width: Some(4), value: None };
    ensure(doorbells.detach(doorbell, &event).is_err(), "a doorbell that was never attached")?;
    let odd = Doorbell { width: Some(3), ..doorbell };
    ensure(doorbells.attach(odd, &event).is_err(), "a width of 3 bytes")?;
    doorbells.attach(doorbell, &event)?;
    ensure(doorbells.attach(doorbell, &event).is_err(), "the same doorbell twice")
}
