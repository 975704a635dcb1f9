//! Engine `tflite` gives back what it takes. A program of its own, so that its memory is its own.

#![cfg(feature = "tflite")]

mod common;

use limpet_engine::Tflite;

#[test]
fn a_thousand_loads_leave_memory_as_it_was() {
    common::a_thousand_loads_leave_memory_as_it_was(&Tflite, &common::int8_graphs("int8.tflite"));
}
