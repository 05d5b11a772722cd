//! From one guest instruction to host instructions.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};

use super::block::{Builder, Guest};
use super::classify::{Field, Form, Kind, uses_vectors};
use super::cold::Cold;
use super::context::{self, CLEARED, LOWER};
use super::emit::{EQUAL, Mem, NOT_BELOW, NOT_EQUAL, Prefixes, RAX, RDX, RSP, Rm};
use super::memory::Use;
use super::parts::{Map, Parts};
use super::registers::{A, B, STACK, host, slot};
use crate::cpu::{FLAG_IF, FLAG_RF, FLAG_VM};
use crate::flags::OF;
use crate::native::ZERO_UPPERS;
use crate::vex::Vex;

/// MXCSR's exception masks, and all bits that every processor has.
const MXCSR_MASKS: u32 = 0x1f80;
const MXCSR_DEFINED: u32 = 0xffff;

impl Builder<'_> {
    /// Emits an instruction that does not end the block.
    pub fn lower(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, kind: Kind) {
        match kind {
            Kind::Nothing => {}
            Kind::Raw => {
                self.settle(guest);
                self.a.bytes(guest.bytes);
            }
            Kind::Form(form) | Kind::Vector(form) => self.form(guest, parts, &form),
            Kind::Bits(access) => self.bits(guest, parts, access),
            Kind::ZeroUppers => self.zero_uppers(guest),
            Kind::Lea => {
                let to = host(parts.reg());
                self.effective(guest, parts, to.unwrap_or(A), !parts.wide());
                if to.is_none() {
                    self.a.store(slot(parts.reg()), A);
                }
            }
            Kind::Push => {
                let place = self.pushed(guest, -8, true);
                let value = self.resident(parts.low(), B);
                self.a.store(place, value);
                self.a.lea(STACK, Mem::at(STACK, -8));
            }
            Kind::PushConstant => {
                let place = self.pushed(guest, -8, true);
                self.a.store_constant(place, parts.signed() as u64, B);
                self.a.lea(STACK, Mem::at(STACK, -8));
            }
            Kind::Pop => {
                let place = self.pushed(guest, 0, false);
                let to = parts.low();
                self.a.load(host(to).unwrap_or(A), place);
                if host(to).is_none() {
                    self.a.store(slot(to), A);
                }
                if to != 4 {
                    self.a.lea(STACK, Mem::at(STACK, 8));
                }
            }
            Kind::Leave => {
                let place = self.frame_operand(guest);
                self.a.load(A, place);
                self.a.lea(STACK, Mem::at(super::emit::RBP, 8));
                self.a.copy(super::emit::RBP, A);
            }
            Kind::MoveConstant => self.move_constant(guest, parts),
            Kind::Exchange => {
                let other = self.resident(parts.low(), B);
                let wide = parts.wide();
                let prefixes = Prefixes { wide, ..Prefixes::default() };
                self.a.instruction(prefixes, &[0x87], RAX, Rm::Reg(other));
                if other == B {
                    self.a.store(slot(parts.low()), B);
                }
            }
            Kind::Swap => {
                let register = self.resident(parts.low(), B);
                let rex = u8::from(parts.wide()) << 3 | register >> 3;
                self.a.bytes(&[0x40 | rex, 0x0f, 0xc8 | register & 7]);
                if register == B {
                    self.a.store(slot(parts.low()), B);
                }
            }
            Kind::Divide => self.divide(guest, parts),
            Kind::ClearInterrupts => {
                self.clobber(guest);
                let rflags = Rm::Mem(Mem::at(RSP, context::rflags()));
                self.a.alu_narrow(4, rflags, !(FLAG_IF as u32));
            }
            Kind::PushFlags => self.push_flags(guest),
            Kind::LoadControl => self.load_control(guest, parts),
            _ => self.by_function(guest),
        }
    }

    /// The host register of a guest register, or `scratch` with its value.
    pub fn resident(&mut self, guest: u8, scratch: u8) -> u8 {
        host(guest).unwrap_or_else(|| {
            self.a.load(scratch, slot(guest));
            scratch
        })
    }

    fn form(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, form: &Form) {
        if uses_vectors(form) {
            self.need_vectors(guest, parts.vex.is_some());
        }
        let memory = parts.address.map(|_| self.operand(guest, parts, form.memory));
        self.settle(guest);
        let (mut reg_slot, mut rm_slot) = (None, None);
        let reg = match form.reg {
            Field::General => {
                let register = self.resident(parts.reg(), B);
                reg_slot = host(parts.reg()).is_none().then_some((parts.reg(), register));
                register
            }
            Field::Vector => parts.reg(),
            Field::Digit => parts.digit(),
        };
        let rm = match (memory, parts.rm()) {
            (Some(place), _) => Rm::Mem(place),
            (None, Some(number)) if form.rm == Field::General => {
                let same = form.reg == Field::General && number == parts.reg();
                let register = if same { reg } else { self.resident(number, A) };
                if host(number).is_none() && !same {
                    rm_slot = Some((number, register));
                }
                Rm::Reg(register)
            }
            (None, number) => Rm::Reg(number.unwrap_or(0)),
        };
        if let Some(vex) = parts.vex {
            self.a.vex(vex, parts.opcode, reg, rm);
        } else {
            self.legacy(parts, form.strip, reg, rm);
        }
        self.a.bytes(parts.immediate);
        for (number, register) in [reg_slot, rm_slot].into_iter().flatten() {
            if writes(&guest.i, number) {
                self.a.store(slot(number), register);
            }
        }
    }

    fn legacy(&mut self, parts: &Parts<'_>, strip: bool, reg: u8, rm: Rm) {
        let prefixes = Prefixes {
            lock: parts.lock,
            word: parts.word,
            repeat: parts.repeat.filter(|_| !strip),
            wide: parts.wide(),
            rex: parts.rex.is_some(),
        };
        let (opcode, length) = parts.opcode_bytes();
        self.a.instruction(prefixes, &opcode[..length], reg, rm);
    }

    /// BMI1 and BMI2: up to three general registers, none of which is both read and written.
    fn bits(&mut self, guest: &Guest<'_>, parts: &Parts<'_>, access: Use) {
        let Some(vex) = parts.vex else { return };
        let memory = parts.address.map(|_| self.operand(guest, parts, access));
        self.settle(guest);
        let rm = match (memory, parts.rm()) {
            (Some(place), _) => Rm::Mem(place),
            (None, number) => Rm::Reg(self.resident(number.unwrap_or(0), A)),
        };
        // A group has a digit in `reg`, and its result is in the second register.
        let group = (parts.map, parts.opcode) == (Map::ThreeByte38, 0xf3);
        let multiplies = guest.i.mnemonic() == Mnemonic::Mulx;
        let rotates = guest.i.mnemonic() == Mnemonic::Rorx;
        let second = match vex.second {
            _ if rotates => 0,
            number if group || multiplies => host(number).unwrap_or(B),
            number => self.resident(number, B),
        };
        let reg = match parts.reg() {
            _ if group => parts.digit(),
            // Both results may be in memory; what A holds has been read by then.
            number => host(number).unwrap_or(if multiplies { A } else { B }),
        };
        self.a.vex(Vex { second, ..vex }, parts.opcode, reg, rm);
        self.a.bytes(parts.immediate);
        // Where both results go to one register, it is the upper half that stays.
        if (group || multiplies) && host(vex.second).is_none() {
            self.a.store(slot(vex.second), second);
        }
        if !group && host(parts.reg()).is_none() {
            self.a.store(slot(parts.reg()), reg);
        }
    }

    /// The upper halves are in the host's registers, and from now on nowhere else.
    fn zero_uppers(&mut self, guest: &Guest<'_>) {
        self.need_vectors(guest, true);
        self.a.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
        self.a.load(B, Mem::at(RSP, context::fpu()));
        for (place, value) in [
            (Mem::at(B, ZERO_UPPERS as i32), 1),
            (Mem::at(RSP, context::vectors()), u32::from(CLEARED)),
        ] {
            self.a.narrow(0xc7, 0, Rm::Mem(place));
            self.a.bytes(&value.to_le_bytes());
        }
        self.vectors = LOWER;
    }

    /// PUSHF; the flags are in memory afterwards.
    fn push_flags(&mut self, guest: &Guest<'_>) {
        self.flags_to_memory();
        let place = self.pushed(guest, -8, true);
        let field = |displacement| Rm::Mem(Mem::at(RSP, displacement));
        // SF to CF are as LAHF had them, OF is beside them.
        self.a.instruction(Prefixes::default(), &[0x0f, 0xb6], B, field(context::flags() + 1));
        self.a.narrow(0x0b, B, field(context::rflags()));
        self.a.narrow(0x80, 7, field(context::flags())); // cmp byte
        self.a.bytes(&[0]);
        let clear = self.a.jump(Some(EQUAL));
        self.a.alu_narrow(1, Rm::Reg(B), OF as u32);
        self.a.bind(clear);
        self.a.alu_narrow(4, Rm::Reg(B), !((FLAG_RF | FLAG_VM) as u32));
        self.a.store(place, B);
        self.a.lea(STACK, Mem::at(STACK, -8));
    }

    /// LDMXCSR of a value that masks every exception and has no reserved bit; others are the interpreter's.
    fn load_control(&mut self, guest: &Guest<'_>, parts: &Parts<'_>) {
        self.need_vectors(guest, parts.vex.is_some());
        self.clobber(guest);
        let place = self.operand(guest, parts, Use { size: 4, write: false, aligned: false });
        // A copy, since other processors may change what is in memory between a look and the next.
        let copy = Rm::Mem(Mem::at(RSP, context::scratch()));
        self.a.narrow(0x8b, B, Rm::Mem(place));
        self.a.narrow(0x89, B, copy);
        self.a.alu_narrow(4, Rm::Reg(B), !(MXCSR_DEFINED & !MXCSR_MASKS));
        self.a.alu_narrow(7, Rm::Reg(B), MXCSR_MASKS);
        let hole = self.a.jump(Some(NOT_EQUAL));
        self.cold.push(Cold::Interpret { hole, rip: guest.i.ip() });
        self.a.instruction(Prefixes::default(), &[0x0f, 0xae], 2, copy);
    }

    fn move_constant(&mut self, guest: &Guest<'_>, parts: &Parts<'_>) {
        let number = parts.low();
        if parts.opcode < 0xb8 {
            match host(number) {
                _ if parts.rex.is_none() => self.a.bytes(guest.bytes),
                Some(register) => {
                    self.a.bytes(&[0x40 | register >> 3, 0xb0 | register & 7]);
                    self.a.bytes(parts.immediate);
                }
                None => {
                    self.a.narrow(0xc6, 0, Rm::Mem(slot(number)));
                    self.a.bytes(parts.immediate);
                }
            }
            return;
        }
        let value =
            if parts.wide() { parts.signed() as u64 } else { u64::from(parts.signed() as u32) };
        match host(number) {
            Some(register) => self.a.constant(register, value),
            None => self.a.store_constant(slot(number), value, B),
        }
    }

    /// DIV and IDIV where no exception can come; else the interpreter does it.
    fn divide(&mut self, guest: &Guest<'_>, parts: &Parts<'_>) {
        let wide = parts.wide();
        let size = parts.size();
        self.clobber(guest);
        let divisor = if parts.address.is_some() {
            let place = self.operand(guest, parts, Use { size, write: false, aligned: false });
            self.sized(wide, 0x8b, B, Rm::Mem(place));
            B
        } else {
            self.resident(parts.rm().unwrap_or(0), B)
        };
        let rip = guest.i.ip();
        let mut holes = Vec::new();
        if parts.digit() == 6 {
            // The quotient fits if the upper half is below the divisor.
            self.sized(wide, 0x3b, RDX, Rm::Reg(divisor));
            holes.push(self.a.jump(Some(NOT_BELOW)));
        } else {
            // It fits if the dividend does and the divisor is neither 0 nor -1.
            self.sized(wide, 0x8b, A, Rm::Reg(RAX));
            self.sized(wide, 0xc1, 7, Rm::Reg(A)); // sar
            self.a.bytes(&[if wide { 63 } else { 31 }]);
            self.sized(wide, 0x3b, A, Rm::Reg(RDX));
            holes.push(self.a.jump(Some(NOT_EQUAL)));
            self.sized(wide, 0x8d, A, Rm::Mem(Mem::at(divisor, 1)));
            self.sized(wide, 0x83, 7, Rm::Reg(A)); // cmp
            self.a.bytes(&[1]);
            holes.push(self.a.jump(Some(6)));
        }
        for hole in holes {
            self.cold.push(Cold::Interpret { hole, rip });
        }
        self.settle(guest);
        self.sized(wide, 0xf7, parts.digit(), Rm::Reg(divisor));
    }

    fn sized(&mut self, wide: bool, opcode: u8, reg: u8, rm: Rm) {
        self.a.instruction(Prefixes { wide, ..Prefixes::default() }, &[opcode], reg, rm);
    }
}

/// Whether the instruction changes this general register by an operand of its own.
fn writes(i: &Instruction, number: u8) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(i);
    (0..i.op_count()).any(|operand| {
        i.op_kind(operand) == OpKind::Register
            && i.op_register(operand).is_gpr()
            && i.op_register(operand).full_register().number() == usize::from(number)
            && !matches!(
                info.op_access(operand),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None
            )
    })
}
