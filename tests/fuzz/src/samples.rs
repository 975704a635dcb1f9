//! Messages of samples, by every codec.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limpet_agent::fuzzing::samples(bytes));
