//! The first runs of a new session: they warm the library's caches and look for a graph that remembers.
//!
//! A graph that carries state from one run to the next (a recurrent layer whose library keeps its cells, a variable,
//! a random generator) gives another answer when the same input comes again. The proof feeds golden vectors one after
//! the other and a pipeline's streams share a session, so such a graph would be silently wrong for everybody but its
//! first input. It is told by running it twice on the same noise and comparing the bits.

use crate::{Session, TensorMut, TensorRef};

/// Runs `session` twice on noise, and leaves its inputs zeroed.
///
/// # Errors
/// Why the session must not be used: a run failed, or the answer to the same input changed.
pub(crate) fn warm(session: &mut dyn Session) -> Result<(), String> {
    for input in 0..session.inputs().len() {
        fill(session.input_mut(input));
    }
    session.run().map_err(|error| format!("its first run failed: {error}"))?;
    let first: Vec<Vec<u32>> = (0..session.outputs().len()).map(|output| bits(session.output(output))).collect();
    session.run().map_err(|error| format!("its second run failed: {error}"))?;
    for (output, first) in first.iter().enumerate() {
        if *first != bits(session.output(output)) {
            return Err(format!(
                "output '{}' changes when the same input comes again: the graph keeps state between runs or draws \
                 random numbers, and sessions are shared between streams; export it with its state as inputs and \
                 outputs, or unrolled over its window",
                session.outputs()[output].name
            ));
        }
    }
    for input in 0..session.inputs().len() {
        match session.input_mut(input) {
            TensorMut::F32(buffer) => buffer.fill(0.0),
            TensorMut::I8(buffer) => buffer.fill(0),
            TensorMut::U8(buffer) => buffer.fill(0),
        }
    }
    Ok(())
}

/// Noise that is the same on every device: bytes of a 64-bit linear congruential generator; floats in [−1, 1).
fn fill(buffer: TensorMut<'_>) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut byte = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    match buffer {
        TensorMut::F32(values) => values.fill_with(|| f32::from(byte()) / 128.0 - 1.0),
        TensorMut::I8(values) => values.fill_with(|| byte() as i8),
        TensorMut::U8(values) => values.fill_with(byte),
    }
}

fn bits(tensor: TensorRef<'_>) -> Vec<u32> {
    match tensor {
        TensorRef::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
        TensorRef::I8(values) => values.iter().map(|&value| u32::from(value as u8)).collect(),
        TensorRef::U8(values) => values.iter().map(|&value| u32::from(value)).collect(),
    }
}
