//! The state of one stream, from samples to windows of features.
//!
//! Samples pass the filters in blocks of at most one frame, and gather per channel in a buffer of one frame. When it
//! is full, the frame's vector is computed and the samples that the next frame shares move to the front.
//!
//! Vectors gather in a mirrored ring: a ring of twice a window's frames in which each vector is written twice, one
//! window apart. Thus the last frames always lie in a row somewhere, and a window is a slice of the ring; nothing is
//! moved when it is complete, and every hop costs the same. The price is the second copy of a vector and of the memory
//! (the wakeword front end: 30 frames of 40 values, 5 kB more).

use std::sync::Arc;

use crate::error::NotWholeSamples;
use crate::frame::Scratch;
use crate::plan::{Framing, Plan};

/// One complete window of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window<'a> {
    /// Index of the window's first sample in the stream.
    pub first: u64,
    /// Index of its last sample, which is also the last of its last frame.
    pub last: u64,
    /// The features, flat, as [`feature_shape`](crate::FrontEnd::feature_shape) says: frames, then channels, then
    /// elements.
    pub features: &'a [f32],
}

/// The state of one stream. Made by [`FrontEnd::stream`](crate::FrontEnd::stream).
#[derive(Debug)]
pub struct Stream {
    plan: Arc<Plan>,
    state: State,
}

/// All that a stream remembers. Apart from the plan, so that one can be read while the other changes.
#[derive(Debug)]
struct State {
    /// State of all filters, one after the other.
    filter_state: Vec<f32>,
    /// Filtered samples, interleaved, on their way to `samples`. Unused without framing.
    block: Vec<f32>,
    /// The frame being gathered: [channel][sample].
    samples: Vec<f32>,
    scratch: Scratch,
    /// [2 · window frames][channel][element]; frame i + window frames is the mirror of frame i.
    ring: Vec<f32>,
    /// The ring's frame, in its first half, that is written next.
    slot: usize,
    next_index: u64,
    /// Samples until the next frame is complete; more than a frame's length while samples are skipped.
    to_frame: usize,
    /// Samples until the next window is complete.
    to_window: usize,
}

impl Stream {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        let (block, scratch) = match &plan.framing {
            Some(framing) => (framing.length * plan.channels, Scratch::new(framing.length, &framing.operations)),
            None => (0, Scratch::new(0, &[])),
        };
        let filter_state = plan.filters.iter().map(|filter| filter.state_len(plan.channels)).sum();
        let state = State {
            filter_state: vec![0.0; filter_state],
            block: vec![0.0; block],
            samples: vec![0.0; block],
            scratch,
            ring: vec![0.0; 2 * plan.window_frames * plan.frame_values()],
            slot: 0,
            next_index: 0,
            to_frame: plan.samples_per_frame(),
            to_window: plan.samples_per_window,
        };
        Self { plan, state }
    }

    /// Takes samples, channels interleaved, and calls `done` for each window that they complete, in order.
    ///
    /// Windows depend on the samples alone, not on how they are cut into pushes.
    ///
    /// # Errors
    /// If `samples` ends within a sample. Then nothing of it was taken.
    pub fn push(&mut self, samples: &[f32], mut done: impl FnMut(Window<'_>)) -> Result<(), NotWholeSamples> {
        let Self { plan, state } = self;
        if !samples.len().is_multiple_of(plan.channels) {
            return Err(NotWholeSamples { values: samples.len(), channels: plan.channels });
        }
        let mut rest = samples;
        while !rest.is_empty() {
            let most = rest.len() / plan.channels;
            let taken = match &plan.framing {
                Some(framing) => state.take_for_frame(plan, framing, rest, most),
                None => state.take_unframed(plan, rest, most),
            };
            rest = &rest[taken * plan.channels..];
            state.next_index = state.next_index.wrapping_add(taken as u64);
            state.to_window -= taken;
            if state.to_window == 0 {
                state.to_window = plan.samples_per_hop;
                let last = state.next_index.wrapping_sub(1);
                let values = plan.frame_values();
                done(Window {
                    first: last.wrapping_sub(plan.samples_per_window as u64 - 1),
                    last,
                    // The slot written next holds the oldest frame.
                    features: &state.ring[state.slot * values..(state.slot + plan.window_frames) * values],
                });
            }
        }
        Ok(())
    }

    /// Starts from rest, as after a gap: filters hold zeros, no frame or window reaches back before this, and the next
    /// sample has the index `next_index`.
    pub fn reset(&mut self, next_index: u64) {
        let Self { plan, state } = self;
        state.filter_state.fill(0.0);
        state.slot = 0;
        state.next_index = next_index;
        state.to_frame = plan.samples_per_frame();
        state.to_window = plan.samples_per_window;
    }

    /// Index of the next sample. Indices wrap around after 2⁶⁴ samples.
    pub fn next_index(&self) -> u64 {
        self.state.next_index
    }

    /// How many more samples complete the next window; at least 1. Splitting a long message there gives one window a
    /// push.
    pub fn samples_to_next_window(&self) -> usize {
        self.state.to_window
    }
}

impl State {
    /// Takes samples up to the end of a frame, or as many as there are; computes the frame's vector if it is complete.
    /// Returns how many it took, at least one, and never more than complete a window: a window ends with a frame.
    fn take_for_frame(&mut self, plan: &Plan, framing: &Framing, samples: &[f32], most: usize) -> usize {
        let Framing { length, hop, .. } = *framing;
        // Between two frames that do not touch. Skipped samples pass the filters: the next one's output needs them.
        let skipped = self.to_frame.saturating_sub(length);
        let taken = most.min(if skipped > 0 { skipped.min(length) } else { self.to_frame });
        let block = &mut self.block[..taken * plan.channels];
        block.copy_from_slice(&samples[..taken * plan.channels]);
        filter(plan, &mut self.filter_state, block);
        if skipped == 0 {
            let gathered = length - self.to_frame;
            if plan.channels == 1 {
                self.samples[gathered..gathered + taken].copy_from_slice(block);
            } else {
                for (channel, frame) in self.samples.chunks_exact_mut(length).enumerate() {
                    let values = block[channel..].iter().step_by(plan.channels);
                    for (x, value) in frame[gathered..gathered + taken].iter_mut().zip(values) {
                        *x = *value;
                    }
                }
            }
        }
        self.to_frame -= taken;
        if self.to_frame == 0 {
            self.to_frame = hop;
            self.frame_complete(plan, framing, self.to_window - taken);
        }
        taken
    }

    /// Computes the vector of a complete frame, `to_window` samples before the end of a window, and makes room for the
    /// next frame.
    fn frame_complete(&mut self, plan: &Plan, framing: &Framing, to_window: usize) {
        let Framing { length, hop, ref operations } = *framing;
        // If the windows' hop exceeds their frames, the frames between two windows are not needed.
        let needed = to_window <= plan.samples_per_window - length;
        if needed {
            let values = plan.frame_values();
            let at = self.slot * values;
            for (channel, frame) in self.samples.chunks_exact(length).enumerate() {
                let at = at + channel * plan.elements;
                self.ring[at..at + plan.elements].copy_from_slice(self.scratch.run(operations, frame));
            }
            self.ring.copy_within(at..at + values, at + plan.window_frames * values);
            self.slot = (self.slot + 1) % plan.window_frames;
        }
        if hop < length {
            for frame in self.samples.chunks_exact_mut(length) {
                frame.copy_within(hop.., 0);
            }
        }
    }

    /// Takes samples up to the end of a window, or of the ring, or as many as there are: a frame is a sample, and the
    /// ring holds them as they come. Returns how many it took, at least one.
    fn take_unframed(&mut self, plan: &Plan, samples: &[f32], most: usize) -> usize {
        let (channels, window) = (plan.channels, plan.window_frames);
        let skipped = self.to_window.saturating_sub(window);
        let taken = most.min(window - self.slot).min(if skipped > 0 { skipped } else { self.to_window });
        let here = self.slot * channels..(self.slot + taken) * channels;
        self.ring[here.clone()].copy_from_slice(&samples[..taken * channels]);
        filter(plan, &mut self.filter_state, &mut self.ring[here.clone()]);
        // What is skipped stays where the next sample will overwrite it.
        if skipped == 0 {
            self.ring.copy_within(here.clone(), here.start + window * channels);
            self.slot = (self.slot + taken) % window;
        }
        taken
    }
}

/// Runs all filters on a block of interleaved samples.
fn filter(plan: &Plan, state: &mut [f32], block: &mut [f32]) {
    let mut rest = state;
    for filter in &plan.filters {
        let (here, others) = rest.split_at_mut(filter.state_len(plan.channels));
        filter.apply(here, block, plan.channels);
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use crate::{Frame, FrontEnd, PowerSpectrum, Step, WindowFunction};

    /// How many frames of the ring's first half each of `hops` hops writes, after the first frame.
    fn frames_written(window_frames: usize, window_hop: usize, hops: usize) -> Vec<usize> {
        let steps = [
            Step::Frame(Frame { length: 8, hop: 4, window: WindowFunction::Rectangular }),
            Step::PowerSpectrum(PowerSpectrum { divide_by: 1.0, fft_length: None }),
        ];
        let front_end = FrontEnd::new(&steps, 1.0, 1, window_frames, window_hop).expect("it builds");
        let elements = front_end.feature_shape()[2];
        let mut stream = front_end.stream();
        let mut sample = 0.0_f32;
        let mut push = |stream: &mut super::Stream, count: usize| {
            for _ in 0..count {
                sample += 1.0;
                stream.push(&[sample * sample], |_| {}).expect("one channel");
            }
        };
        push(&mut stream, 8);
        (0..hops)
            .map(|_| {
                let before = stream.state.ring.clone();
                push(&mut stream, 4);
                let frames = before.chunks(elements).zip(stream.state.ring.chunks(elements)).take(window_frames);
                frames.filter(|(before, after)| before != after).count()
            })
            .collect()
    }

    #[test]
    fn each_hop_computes_one_frame_however_many_windows_share_it() {
        assert_eq!(frames_written(5, 1, 12), [1; 12]);
        assert_eq!(frames_written(5, 3, 12), [1; 12]);
    }

    #[test]
    fn a_frame_of_no_window_is_not_computed() {
        // Frames 0 and 1 make a window, 2 to 4 none, 5 and 6 the next. Frame 0 came before the first hop.
        assert_eq!(frames_written(2, 5, 11), [1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]);
    }
}
