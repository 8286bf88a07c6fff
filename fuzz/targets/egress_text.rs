#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_domain::fuzz::egress_text(data));
