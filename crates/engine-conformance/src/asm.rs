//! A tiny assembler: enough x86-64 to write guests of a few lines.

/// General registers by their number in an instruction.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Reg {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsi = 6,
    Rdi = 7,
}

/// Machine code that grows at a known address. Registers that a method uses on the way are named in its
/// comment; everything else is left alone.
pub struct Asm {
    origin: u64,
    code: Vec<u8>,
}

/// A jump whose target is not known yet.
#[must_use]
pub struct Forward(usize);

impl Asm {
    /// Code for `origin`.
    pub fn at(origin: u64) -> Self {
        Self { origin, code: Vec::new() }
    }

    /// Address of the next instruction.
    pub fn here(&self) -> u64 {
        self.origin + self.code.len() as u64
    }

    /// The machine code.
    pub fn bytes(&self) -> &[u8] {
        &self.code
    }

    /// Any instruction, assembled by hand.
    pub fn emit(&mut self, bytes: &[u8]) -> &mut Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// `mov reg, value` with 64 bits.
    pub fn mov(&mut self, reg: Reg, value: u64) -> &mut Self {
        self.emit(&[0x48, 0xb8 + reg as u8]).emit(&value.to_le_bytes())
    }

    /// `mov [address], rax`
    pub fn store_rax(&mut self, address: u64) -> &mut Self {
        self.emit(&[0x48, 0xa3]).emit(&address.to_le_bytes())
    }

    /// `mov rax, [address]`
    pub fn load_rax(&mut self, address: u64) -> &mut Self {
        self.emit(&[0x48, 0xa1]).emit(&address.to_le_bytes())
    }

    /// `mov [reg], eax`
    pub fn store_eax_at(&mut self, reg: Reg) -> &mut Self {
        self.emit(&[0x89, reg as u8])
    }

    /// `mov dword [address], value`; uses RAX and RBX.
    pub fn store32(&mut self, address: u64, value: u32) -> &mut Self {
        self.mov(Reg::Rbx, address).mov(Reg::Rax, value.into()).store_eax_at(Reg::Rbx)
    }

    /// `mov eax, dword [address]`; uses RBX.
    pub fn load32(&mut self, address: u64) -> &mut Self {
        self.mov(Reg::Rbx, address).emit(&[0x8b, 0x03])
    }

    /// `inc qword [address]`, below 2 GiB.
    pub fn inc(&mut self, address: u64) -> &mut Self {
        self.emit(&[0x48, 0xff, 0x04, 0x25]).emit(&(address as u32).to_le_bytes())
    }

    /// `cmp qword [address], value`, below 2 GiB.
    pub fn cmp(&mut self, address: u64, value: u8) -> &mut Self {
        self.emit(&[0x48, 0x83, 0x3c, 0x25]).emit(&(address as u32).to_le_bytes()).emit(&[value])
    }

    /// `wrmsr`; uses RAX, RCX and RDX.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> &mut Self {
        self.mov(Reg::Rcx, index.into())
            .mov(Reg::Rax, value & 0xffff_ffff)
            .mov(Reg::Rdx, value >> 32)
            .emit(&[0x0f, 0x30])
    }

    /// `rdmsr` with the 64-bit result in RAX; uses RCX and RDX.
    pub fn rdmsr(&mut self, index: u32) -> &mut Self {
        self.mov(Reg::Rcx, index.into()).emit(&[0x0f, 0x32]).join_edx_eax()
    }

    /// `shl rdx, 32; or rax, rdx`
    pub fn join_edx_eax(&mut self) -> &mut Self {
        self.emit(&[0x48, 0xc1, 0xe2, 32, 0x48, 0x09, 0xd0])
    }

    /// `out port, al`
    pub fn out8(&mut self, port: u8) -> &mut Self {
        self.emit(&[0xe6, port])
    }

    /// `out port, eax`
    pub fn out32(&mut self, port: u8) -> &mut Self {
        self.emit(&[0xe7, port])
    }

    /// `mov al, value; out port, al`
    pub fn out8_value(&mut self, port: u8, value: u8) -> &mut Self {
        self.emit(&[0xb0, value]).out8(port)
    }

    /// `sti`
    pub fn sti(&mut self) -> &mut Self {
        self.emit(&[0xfb])
    }

    /// `hlt`
    pub fn hlt(&mut self) -> &mut Self {
        self.emit(&[0xf4])
    }

    /// `jmp target`
    pub fn jmp(&mut self, target: u64) -> &mut Self {
        let next = self.here() + 5;
        self.emit(&[0xe9]).emit(&relative(next, target))
    }

    /// `jne target`
    pub fn jne(&mut self, target: u64) -> &mut Self {
        self.jcc(0x85, target)
    }

    /// `jb target`
    pub fn jb(&mut self, target: u64) -> &mut Self {
        self.jcc(0x82, target)
    }

    /// `jne` to a place that [`Asm::land`] names.
    pub fn jne_forward(&mut self) -> Forward {
        self.emit(&[0x0f, 0x85, 0, 0, 0, 0]);
        Forward(self.code.len())
    }

    /// The target of `jump` is here.
    pub fn land(&mut self, jump: Forward) -> &mut Self {
        let distance = (self.code.len() - jump.0) as u32;
        self.code[jump.0 - 4..jump.0].copy_from_slice(&distance.to_le_bytes());
        self
    }

    /// Spins until the counter at `address` has reached `value`.
    pub fn wait(&mut self, address: u64, value: u8) -> &mut Self {
        let again = self.here();
        self.emit(&[0xf3, 0x90]) // pause
            .cmp(address, value)
            .jb(again)
    }

    /// Executes `pause` some times; uses RCX.
    pub fn dawdle(&mut self, times: u32) -> &mut Self {
        self.mov(Reg::Rcx, times.into());
        let again = self.here();
        self.emit(&[0xf3, 0x90]) // pause
            .emit(&[0x48, 0xff, 0xc9]) // dec rcx
            .jne(again)
    }

    /// Tells the board that the guest has done its work, and never goes on.
    pub fn done(&mut self) -> &mut Self {
        self.out8(crate::board::DONE);
        let stop = self.here();
        self.hlt().jmp(stop)
    }

    /// `push rax; push rbx; push rcx; push rdx`
    pub fn push_all(&mut self) -> &mut Self {
        self.emit(&[0x50, 0x53, 0x51, 0x52])
    }

    /// Undoes [`Asm::push_all`] and ends an interrupt handler: `iretq`.
    pub fn pop_all_iretq(&mut self) -> &mut Self {
        self.emit(&[0x5a, 0x59, 0x5b, 0x58, 0x48, 0xcf])
    }

    fn jcc(&mut self, opcode: u8, target: u64) -> &mut Self {
        let next = self.here() + 6;
        self.emit(&[0x0f, opcode]).emit(&relative(next, target))
    }
}

fn relative(next: u64, target: u64) -> [u8; 4] {
    (target.wrapping_sub(next) as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_reach_their_targets() {
        let mut asm = Asm::at(0x1000);
        asm.jmp(0x1000);
        assert_eq!(asm.bytes(), [0xe9, 0xfb, 0xff, 0xff, 0xff]);
        let over = asm.jne_forward();
        asm.hlt().hlt().land(over);
        assert_eq!(asm.bytes()[5..11], [0x0f, 0x85, 2, 0, 0, 0]);
    }
}
