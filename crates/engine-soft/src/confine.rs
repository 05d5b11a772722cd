//! A thread that executes translated code opens no file and starts no program (seccomp(2)).
//!
//! This is a second wall: the first is that translated code reaches memory only through the TLB. Other threads
//! of the process are not confined by it.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, sock_filter, sock_fprog,
};

/// System calls that fail from now on.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_creat,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_io_uring_setup,
    libc::SYS_mount,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
];

/// AUDIT_ARCH_X86_64.
const X86_64: u32 = 0xc000_003e;
/// System calls of the x32 interface start here.
const X32: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(condition: u32, k: u32, yes: usize, no: usize) -> sock_filter {
    sock_filter { code: (BPF_JMP | condition | BPF_K) as u16, jt: yes as u8, jf: no as u8, k }
}

fn program() -> Vec<sock_filter> {
    let refusal = SECCOMP_RET_ERRNO | libc::EPERM as u32;
    // From each test forward to the last statement, which refuses.
    let mut program = vec![
        statement(BPF_LD | BPF_W | BPF_ABS, ARCHITECTURE),
        jump(BPF_JEQ, X86_64, 0, REFUSED.len() + 3),
        statement(BPF_LD | BPF_W | BPF_ABS, NUMBER),
        jump(BPF_JGE, X32, REFUSED.len() + 1, 0),
    ];
    for (index, number) in REFUSED.iter().enumerate() {
        program.push(jump(BPF_JEQ, *number as u32, REFUSED.len() - index, 0));
    }
    program.push(statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    program.push(statement(BPF_RET | BPF_K, refusal));
    program
}

/// Confines the calling thread, and threads that it starts, for ever.
pub fn confine_thread() -> std::io::Result<()> {
    let mut program = program();
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: plain system calls; the filter lives until they return.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
                == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_thread_opens_nothing_and_starts_nothing() {
        let thread = std::thread::spawn(|| {
            assert!(std::fs::File::open("/proc/self/maps").is_ok());
            confine_thread().expect("a filter");
            let refused = std::fs::File::open("/proc/self/maps").expect_err("no file");
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            let path = c"/bin/true";
            // SAFETY: the path ends with NUL, and the arguments are an empty list.
            let result = unsafe { libc::execv(path.as_ptr(), [std::ptr::null()].as_ptr()) };
            assert_eq!(result, -1);
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
            // What a processor needs still works.
            std::thread::spawn(std::thread::yield_now).join().expect("a thread");
        });
        thread.join().expect("the confined thread");
        assert!(std::fs::File::open("/proc/self/maps").is_ok());
    }
}
