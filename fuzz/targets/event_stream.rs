#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_domain::fuzz::event_stream(data));
