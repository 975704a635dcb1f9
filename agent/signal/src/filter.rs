//! Sample steps: one sample in, one out, per channel. They run on every sample once, in blocks of interleaved samples.

/// One sample step, ready to run. Every block holds whole samples, channels interleaved.
#[derive(Debug)]
pub(crate) enum Filter {
    /// One scale and one offset per channel.
    ScaleOffset { scale: Vec<f32>, offset: Vec<f32> },
    /// `y[n] = x[n] − a · x[n−1]`; its state is the last input of each channel.
    PreEmphasis(f32),
}

impl Filter {
    /// How many values of state it keeps.
    pub(crate) fn state_len(&self, channels: usize) -> usize {
        match self {
            Self::ScaleOffset { .. } => 0,
            Self::PreEmphasis(_) => channels,
        }
    }

    /// Filters a block in place. `state` has [`state_len`](Self::state_len) values, zeros at rest.
    pub(crate) fn apply(&self, state: &mut [f32], block: &mut [f32], channels: usize) {
        match self {
            Self::ScaleOffset { scale, offset } => {
                if let ([scale], [offset]) = (&scale[..], &offset[..]) {
                    for x in block {
                        *x = *x * scale + offset;
                    }
                } else {
                    for sample in block.chunks_exact_mut(channels) {
                        for ((x, scale), offset) in sample.iter_mut().zip(scale).zip(offset) {
                            *x = *x * scale + offset;
                        }
                    }
                }
            }
            Self::PreEmphasis(a) => {
                if let [state] = state {
                    // The same arithmetic as below; with the last input in a local, the compiler uses vectors.
                    let mut last = *state;
                    for x in block {
                        let input = *x;
                        *x = input - a * last;
                        last = input;
                    }
                    *state = last;
                } else {
                    for sample in block.chunks_exact_mut(channels) {
                        for (x, last) in sample.iter_mut().zip(state.iter_mut()) {
                            let input = *x;
                            *x = input - a * *last;
                            *last = input;
                        }
                    }
                }
            }
        }
    }
}
