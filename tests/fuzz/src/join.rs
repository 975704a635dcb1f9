//! Messages of the channels of a joined source, with any times.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| limpet_agent::fuzzing::join(bytes));
