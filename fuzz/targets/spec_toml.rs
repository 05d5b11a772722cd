//! A TOML file: what can be read can be checked, written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spec::VmSpec;

fuzz_target!(|text: &str| {
    match VmSpec::from_toml(text, "vm.toml") {
        Ok(spec) => {
            let _ = spec.validate();
            let written = spec.to_toml().expect("what came from text can be written");
            assert_eq!(VmSpec::from_toml(&written, "vm.toml").expect("it can be read"), spec);
        }
        Err(error) => assert!(error.to_string().starts_with("vm.toml")),
    }
});
