#![no_main]

// A line of the agent's stream-json: whatever it is, it is some line.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let line = caisson_claude::parse(data);
    let _ = line.is_delta();
});
