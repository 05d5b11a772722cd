//! The host's own processor: cases run in a traced child process.

use std::ffi::c_void;
use std::ptr::null_mut;

use engine::state::Registers;

use crate::case::{
    AREA, CODE, CODE_SIZE, Case, DATA, DATA_SIZE, End, Executor, INT3, Outcome, WRITABLE, XSTATE_BV,
};
use crate::values::wide;

/// Linux's selectors for ring 3.
const CODE_64: u64 = 0x33;
const CODE_32: u64 = 0x23;
/// The register set that is an XSAVE area.
const NT_X86_XSTATE: i32 = 0x202;
/// `si_code` of an exception that has no code of its own.
const SI_KERNEL: i32 = 0x80;
const FPE_INTDIV: i32 = 1;
const BUS_ADRALN: i32 = 1;

/// See the module.
pub struct Native {
    child: libc::pid_t,
    /// Code and data, writable here and as the child sees them there.
    memory: *mut u8,
    registers: libc::user_regs_struct,
    /// x87 and vector state, as much as the host has.
    extended: Vec<u8>,
    code: (usize, usize),
}

impl Native {
    /// A child process, or why there is none.
    pub fn new() -> Result<Self, String> {
        let failed = |what: &str| format!("{what}: {}", std::io::Error::last_os_error());
        // SAFETY: system calls whose results are checked. The child only calls what may be called after a
        // fork of a process with several threads.
        unsafe {
            let size = CODE_SIZE + DATA_SIZE;
            let file = libc::memfd_create(c"cases".as_ptr(), libc::MFD_CLOEXEC);
            if file < 0 || libc::ftruncate(file, size as libc::off_t) != 0 {
                return Err(failed("memory"));
            }
            let map = |at: u64, size: usize, protection, offset: usize| {
                let fixed = if at == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
                let flags = libc::MAP_SHARED | fixed;
                libc::mmap(at as *mut c_void, size, protection, flags, file, offset as i64)
            };
            let (read, write) = (libc::PROT_READ, libc::PROT_WRITE);
            let memory = map(0, size, read | write, 0);
            let mappings = [
                memory,
                map(CODE, CODE_SIZE, read | libc::PROT_EXEC, 0),
                map(DATA, WRITABLE, read | write, CODE_SIZE),
                map(DATA + WRITABLE as u64, DATA_SIZE - WRITABLE, read, CODE_SIZE + WRITABLE),
            ];
            libc::close(file);
            if mappings.contains(&libc::MAP_FAILED) {
                return Err(failed("mapping"));
            }
            let child = libc::fork();
            if child == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Some time on the processor without an end is too long.
                let tick = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
                let timer = libc::itimerval { it_interval: tick, it_value: tick };
                libc::setitimer(libc::ITIMER_VIRTUAL, &raw const timer, null_mut());
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(1);
            }
            // The child has them; another child may want them here.
            for (at, size) in [(CODE, CODE_SIZE), (DATA, DATA_SIZE)] {
                libc::munmap(at as *mut c_void, size);
            }
            let mut status = 0;
            if child < 0 || libc::waitpid(child, &raw mut status, 0) != child {
                return Err(failed("child"));
            }
            let mut registers = std::mem::zeroed();
            let got = libc::ptrace(libc::PTRACE_GETREGS, child, 0, &raw mut registers);
            if got != 0 || !libc::WIFSTOPPED(status) {
                return Err(failed("trace"));
            }
            memory.cast::<u8>().write_bytes(INT3, CODE_SIZE);
            let mut extended = vec![0; 64 << 10];
            let mut area =
                libc::iovec { iov_base: extended.as_mut_ptr().cast(), iov_len: extended.len() };
            let got = libc::ptrace(libc::PTRACE_GETREGSET, child, NT_X86_XSTATE, &raw mut area);
            if got != 0 {
                return Err(failed("vectors"));
            }
            extended.truncate(area.iov_len.max(AREA));
            Ok(Self { child, memory: memory.cast(), registers, extended, code: (0, 0) })
        }
    }

    fn area(&mut self) -> libc::iovec {
        libc::iovec { iov_base: self.extended.as_mut_ptr().cast(), iov_len: self.extended.len() }
    }

    /// Puts the case into memory and registers.
    fn load(&mut self, case: &Case) {
        let r = &case.registers;
        let selector = if case.narrow { CODE_32 } else { CODE_64 };
        let registers = libc::user_regs_struct {
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rsp: r.rsp,
            rbp: r.rbp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            rip: r.rip,
            eflags: r.rflags,
            cs: selector,
            orig_rax: u64::MAX,
            fs_base: case.fs_base,
            gs_base: case.gs_base,
            // In compatibility mode these are used; flat.
            ds: 0x2b,
            es: 0x2b,
            ..self.registers
        };
        // SAFETY: the mapping has room for code and data, which were checked to fit; the child is stopped
        // and reads what is pointed to.
        unsafe {
            let (start, length) = self.code;
            self.memory.add(start).write_bytes(INT3, length);
            self.code = ((r.rip - CODE) as usize, case.code.len());
            let (start, length) = self.code;
            assert!(start + length <= CODE_SIZE && case.data.len() == DATA_SIZE);
            self.memory.add(start).copy_from_nonoverlapping(case.code.as_ptr(), length);
            let data = self.memory.add(CODE_SIZE);
            data.copy_from_nonoverlapping(case.data.as_ptr(), DATA_SIZE);
            let set = libc::ptrace(libc::PTRACE_SETREGS, self.child, 0, &raw const registers);
            assert_eq!(set, 0, "registers: {}", std::io::Error::last_os_error());
        }
        self.extended[..AREA].copy_from_slice(&case.fpu);
        // Upper halves that are not in use stay in the kernel's memory as a former case had them, and an EPYC (family 25,
        // model 17) whose VEX instruction faults takes them for those in use: they are zeroes there first.
        if wide() && case.fpu[XSTATE_BV] & 4 == 0 {
            self.extended[XSTATE_BV] |= 4;
            self.load_vectors();
            self.extended[XSTATE_BV] = case.fpu[XSTATE_BV];
        }
        self.load_vectors();
    }

    fn load_vectors(&mut self) {
        // What Linux says in the bytes that belong to software is only for reading.
        let mut area = self.area();
        // SAFETY: the child is stopped, and `area` leads to `extended`.
        let set = unsafe {
            libc::ptrace(libc::PTRACE_SETREGSET, self.child, NT_X86_XSTATE, &raw mut area)
        };
        assert_eq!(set, 0, "vectors: {}", std::io::Error::last_os_error());
    }

    fn run(&self) -> End {
        // The first tick may be that of another case's time.
        match self.run_to_signal() {
            End::Endless => self.run_to_signal(),
            end => end,
        }
    }

    fn run_to_signal(&self) -> End {
        let mut status = 0;
        // SAFETY: zeroes are a valid `siginfo_t`; the child is ours.
        let info: libc::siginfo_t = unsafe {
            let mut info = std::mem::zeroed();
            libc::ptrace(libc::PTRACE_CONT, self.child, 0, 0);
            libc::waitpid(self.child, &raw mut status, 0);
            libc::ptrace(libc::PTRACE_GETSIGINFO, self.child, 0, &raw mut info);
            info
        };
        assert!(libc::WIFSTOPPED(status), "the child ended with {status:#x}");
        // SAFETY: signals of exceptions carry an address.
        let address = unsafe { info.si_addr() } as u64;
        match (libc::WSTOPSIG(status), info.si_code) {
            (libc::SIGTRAP, SI_KERNEL) => End::Breakpoint,
            (libc::SIGTRAP, _) => End::Debug,
            (libc::SIGSEGV, SI_KERNEL) => End::Protection,
            (libc::SIGSEGV, _) => End::PageFault(address),
            (libc::SIGBUS, BUS_ADRALN) => End::Alignment,
            (libc::SIGBUS, _) => End::Stack,
            (libc::SIGFPE, FPE_INTDIV) => End::DivideError,
            (libc::SIGFPE, _) => End::FloatingPoint,
            (libc::SIGVTALRM, _) => End::Endless,
            (libc::SIGILL, _) => End::InvalidOpcode,
            (signal, _) => End::Other(signal.into()),
        }
    }
}

impl Executor for Native {
    fn execute(&mut self, case: &Case) -> Outcome {
        self.load(case);
        let end = self.run();
        // SAFETY: zeroes are valid registers; the child is stopped; the mapping holds the data.
        unsafe {
            let mut r: libc::user_regs_struct = std::mem::zeroed();
            let mut fpu = [0; AREA];
            libc::ptrace(libc::PTRACE_GETREGS, self.child, 0, &raw mut r);
            let mut area = self.area();
            libc::ptrace(libc::PTRACE_GETREGSET, self.child, NT_X86_XSTATE, &raw mut area);
            fpu.copy_from_slice(&self.extended[..AREA]);
            let registers = Registers {
                rax: r.rax,
                rbx: r.rbx,
                rcx: r.rcx,
                rdx: r.rdx,
                rsi: r.rsi,
                rdi: r.rdi,
                rsp: r.rsp,
                rbp: r.rbp,
                r8: r.r8,
                r9: r.r9,
                r10: r.r10,
                r11: r.r11,
                r12: r.r12,
                r13: r.r13,
                r14: r.r14,
                r15: r.r15,
                rip: r.rip,
                rflags: r.eflags,
            };
            let data = std::slice::from_raw_parts(self.memory.add(CODE_SIZE), DATA_SIZE).to_vec();
            Outcome { end, registers, fpu, data }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the child and the mapping are ours.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, null_mut(), 0);
            libc::munmap(self.memory.cast(), CODE_SIZE + DATA_SIZE);
        }
    }
}
