//! Messages that are windows of their own, by everything that reads such: integers, features, pictures.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limpet_agent::fuzzing::window(bytes));
