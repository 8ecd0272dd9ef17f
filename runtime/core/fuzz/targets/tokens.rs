#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| millrace_core_fuzz::tokens(bytes));
