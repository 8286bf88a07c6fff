#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_claude::fuzz::agent_lines(data));
