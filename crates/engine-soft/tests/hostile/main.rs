//! Anything as the code of a guest, in every mode of the software processor: it ends, and nothing else does.

mod guest;

use engine_soft::{SoftEngine, Translation};
use guest::run;

#[test]
fn no_code_of_a_guest_brings_the_program_down() {
    let mut number = 1_u64;
    let mut random = move || {
        // Xorshift: the same bytes each time.
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        number
    };
    for translation in [Translation::Off, Translation::Eager] {
        let engine = SoftEngine::with(translation);
        for _ in 0..250 {
            let mode = random() as u8;
            let code: Vec<u8> = (0..512).flat_map(|_| random().to_le_bytes()).collect();
            run(&engine, mode, &code);
        }
    }
}
