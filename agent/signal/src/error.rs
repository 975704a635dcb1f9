//! What can be wrong with a list of steps, and with a push.

use crate::{MAX_CHANNELS, MAX_SPAN, MAX_VALUES};

/// Why a front end was refused. Each message is one sentence that names the key of the manifest, what it says and what
/// was expected.
#[derive(thiserror::Error, Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FrontEndError {
    /// One step cannot be done as written, or not in this place.
    #[error("front_end step {number} ({name}): {problem}")]
    Step {
        /// Position in the list, the first step being 1.
        number: usize,
        /// The step's name in the manifest, as [`Step::name`](crate::Step::name) gives it.
        name: &'static str,
        /// What is wrong: key, value found, value expected.
        problem: String,
    },
    /// The sample rate is zero, negative, not a number, or beyond any sensor.
    #[error("rate_hz = {found}: expected samples a second, from 1e-9 to 1e12")]
    Rate {
        /// The rate as given.
        found: f64,
    },
    /// No channel, or more than [`MAX_CHANNELS`].
    #[error("channels: found {found}, expected 1 to {MAX_CHANNELS}")]
    Channels {
        /// The number of channels as given.
        found: usize,
    },
    /// `window.frames` or `window.hop` is zero.
    #[error("window: {key} = 0, expected at least 1")]
    Empty {
        /// `frames` or `hop`.
        key: &'static str,
    },
    /// A window spans, or is followed by, more than [`MAX_SPAN`] samples.
    #[error("window: {key} = {found} makes {samples} samples, expected at most {MAX_SPAN}")]
    Span {
        /// `frames` or `hop`.
        key: &'static str,
        /// Its value, in frames (without a `frame` step: in samples).
        found: usize,
        /// The samples that it comes to.
        samples: u128,
    },
    /// The features of one window are more than [`MAX_VALUES`].
    #[error(
        "window: {frames} frames of {channels} channels with {elements} elements each make {} features, expected at most {MAX_VALUES}",
        *frames as u128 * *channels as u128 * *elements as u128
    )]
    Features {
        /// Frames in a window.
        frames: usize,
        /// Channels.
        channels: usize,
        /// Elements that the last step gives for each channel of a frame.
        elements: usize,
    },
}

/// A slice of interleaved samples ended within a sample. Nothing of it was taken.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
#[error("{values} values are not whole samples of {channels} channels: expected a multiple of {channels}")]
pub struct NotWholeSamples {
    /// Length of the slice.
    pub values: usize,
    /// Channels of the stream.
    pub channels: usize,
}
