//! Anything as the code of a guest, in every mode of the software processor: it ends, and nothing else does.

mod guest;

use engine_soft::{SoftEngine, Translation};
use guest::run;

/// Guests of each kind; `OMNIVISOR_HOSTILE=N` runs N.
const GUESTS: u64 = 250;

#[test]
fn no_code_of_a_guest_brings_the_program_down() {
    let guests = std::env::var("OMNIVISOR_HOSTILE").ok().and_then(|text| text.parse().ok());
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
        for guest in 0..guests.unwrap_or(GUESTS) {
            let mode = random() as u8;
            let code: Vec<u8> = if guest % 2 == 0 {
                (0..512).flat_map(|_| random().to_le_bytes()).collect()
            } else {
                vectors(&mut random)
            };
            run(&engine, mode, &code);
        }
    }
}

/// Descriptors, then instructions that most often have a VEX prefix of three bytes and a memory operand that is near.
fn vectors(random: &mut dyn FnMut() -> u64) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < 4096 {
        let bytes = random().to_le_bytes();
        let second = 0xe0 & !(bytes[1] & bytes[2] & 0xe0) | (1 + bytes[3] % 3);
        code.extend([0xc4, second, bytes[4], bytes[5], bytes[6]]);
        match bytes[6] >> 6 {
            1 => code.push(bytes[7]),
            2 => code.extend([bytes[7], 0, 0, 0]),
            _ => {}
        }
        if second & 3 == 3 {
            code.push(bytes[0]);
        }
    }
    code
}
