//! What a database or a ring may hold in the place of an item.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limpet_agent::fuzzing::stored(bytes));
