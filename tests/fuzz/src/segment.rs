//! Segments of a ring.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limpet_agent::fuzzing::segment(bytes));
