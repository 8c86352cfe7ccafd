#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| reft_fuzz::recipes(data));
