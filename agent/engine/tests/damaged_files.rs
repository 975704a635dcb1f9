//! Files that were cut off or garbled on their way: an engine refuses them or runs what they say, and never panics.
//!
//! Byte changes are drawn from a fixed seed, so that a failure comes again. For TensorFlow Lite only cuts are tried in
//! this process: a changed byte can pass the library's verifier and still lead it astray (150 tries did not), which is
//! why proofs run in a process of their own.

mod common;

use common::{readers, root};
use limpet_engine::{EngineError, Format, LoadOptions};

struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// Loads, and runs what was loaded. True if it was refused.
fn refused(file: &str, bytes: &[u8]) -> bool {
    let path = root().join("agent/engine/tests/data").join(file);
    let engine = readers(&path).remove(0);
    match engine.load(Format::of(&path).unwrap(), bytes, LoadOptions::default()) {
        Ok(mut session) => {
            let _ = session.run();
            false
        }
        Err(EngineError::Refused { reason, .. }) => {
            assert!(!reason.is_empty() && !reason.contains('\n'), "one sentence: {reason}");
            true
        }
        Err(other) => panic!("loading refuses and nothing else: {other}"),
    }
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(root().join("agent/engine/tests/data").join(file)).unwrap()
}

#[test]
#[cfg(feature = "tflite")]
fn a_flatbuffer_that_was_cut_off_is_refused() {
    let whole = read("dual-tflite-int8-int8-edges.tflite");
    let mut draw = Draw(1);
    assert!(!refused("dual-tflite-int8-int8-edges.tflite", &whole));
    for _ in 0..60 {
        let length = draw.below(whole.len());
        assert!(refused("dual-tflite-int8-int8-edges.tflite", &whole[..length]), "cut at {length}");
    }
}

#[test]
fn an_onnx_model_that_was_cut_off_is_refused() {
    let whole = read("dual-tf2onnx-int8-int8-edges.onnx");
    let mut draw = Draw(2);
    assert!(!refused("dual-tf2onnx-int8-int8-edges.onnx", &whole));
    for _ in 0..60 {
        // The last bytes are the version of the standard, which is optional: without it the file is still whole.
        let length = draw.below(whole.len() - 64);
        assert!(refused("dual-tf2onnx-int8-int8-edges.onnx", &whole[..length]), "cut at {length}");
    }
}

#[test]
fn an_onnx_model_with_changed_bytes_never_panics() {
    let whole = read("dual-tf2onnx-int8-int8-edges.onnx");
    let mut draw = Draw(3);
    let mut refusals = 0;
    for round in 0..120 {
        let mut bytes = whole.clone();
        for _ in 0..=round % 8 {
            let place = draw.below(bytes.len());
            bytes[place] = draw.below(256) as u8;
        }
        refusals += usize::from(refused("dual-tf2onnx-int8-int8-edges.onnx", &bytes));
    }
    assert!(refusals > 30, "most of the changes hit something that matters: {refusals}");
}
