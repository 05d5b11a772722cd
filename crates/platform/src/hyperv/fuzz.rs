//! What the fuzzer gives.

use super::reply::{Held, List, Product, Shown, Snapshots, Summary};
use super::{clixml, description, exchange, winrm};

/// Reads any bytes as a host's answer: WS-Management's, PowerShell's errors, lines and values.
pub fn fuzz(bytes: &[u8]) {
    winrm::fuzz(bytes);
    let _ = clixml::sentence(bytes);
    for line in bytes.split(|byte| *byte == b'\n') {
        let _ = exchange::frame(line);
    }
    let _ = serde_json::from_slice::<Product>(bytes);
    let _ = serde_json::from_slice::<Snapshots>(bytes);
    let _ = serde_json::from_slice::<Held>(bytes);
    if let Ok(list) = serde_json::from_slice::<List>(bytes) {
        let _: Vec<_> = list.vms.into_iter().map(Summary::into_summary).collect();
    }
    if let Ok(shown) = serde_json::from_slice::<Shown>(bytes) {
        // What the reader refuses is refused in a sentence.
        let _ = description::describe(&shown, "fuzz");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn damaged_answers_stop_nothing() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/platform_hyperv");
        let mut count = 0;
        for seed in std::fs::read_dir(seeds).unwrap() {
            let mut bytes = std::fs::read(seed.unwrap().path()).unwrap();
            for at in 0..bytes.len() {
                super::fuzz(&bytes[..at]);
                let good = bytes[at];
                for bad in [0, 0xff, good ^ 1, good.wrapping_add(1)] {
                    bytes[at] = bad;
                    super::fuzz(&bytes);
                }
                bytes[at] = good;
            }
            super::fuzz(&bytes);
            count += 1;
        }
        assert!(count >= 10);
    }
}
