//! The agent's protocol, as either side receives it.

#![no_main]

use agent::Message;
use agent::wire::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        let mut frame = Vec::new();
        message.encode(&mut frame).expect("what was read can be written");
        let mut decoder = Decoder::default();
        decoder.feed(&frame);
        assert_eq!(decoder.take().expect("it can be read"), Some(message));
    }
    let mut decoder = Decoder::default();
    for part in bytes.chunks(7) {
        decoder.feed(part);
        while let Ok(Some(_)) = decoder.take() {}
    }
});
