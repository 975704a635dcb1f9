//! Commands, as they arrive.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limpet_agent::fuzzing::command(bytes));
