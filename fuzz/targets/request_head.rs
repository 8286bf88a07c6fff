#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_gateway::fuzz::request_head(data));
