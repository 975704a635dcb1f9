//! Engine `tract` gives back what it takes. A program of its own, so that its memory is its own.

mod common;

use limpet_engine::Tract;

#[test]
fn a_thousand_loads_leave_memory_as_it_was() {
    common::a_thousand_loads_leave_memory_as_it_was(&Tract, &common::int8_graphs("int8-qdq.onnx"));
}
