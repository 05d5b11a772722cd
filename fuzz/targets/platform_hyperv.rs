//! What a Hyper-V host answers: WS-Management, NTLM, PowerShell's errors, lines and values.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| platform::fuzz_hyperv(bytes));
