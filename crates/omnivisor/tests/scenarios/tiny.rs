//! A guest of some instructions.

use std::process::Command;

/// A kernel by Xen's PVH protocol: it says that it is there, and switches off where it can (`machine`'s power device).
const TINY: &str = r#"
    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long start
    .text
    .code32
    .globl start
start:
    mov $text, %esi
    mov $0x3f8, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  mov $0x604, %dx
    mov $0x3400, %ax
    out %ax, %dx
    sti
3:  hlt
    jmp 3b
text:
    .asciz "the tiny guest is up\r\n"
"#;

/// Assembles [`TINY`] as `kernel` in a folder that labs see.
pub fn kernel() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script =
        "as -o kernel.o kernel.s && ld -N -e start -Ttext=0x100000 -o kernel kernel.o 2>&1";
    std::fs::write(folder.path().join("kernel.s"), TINY).unwrap();
    let made = Command::new("sh").args(["-c", script]).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    folder
}
