//! Samples to windows to features.
//!
//! A model's front end is written in its manifest as a list of [`Step`]s (`docs/front-end.md` describes each).
//! [`FrontEnd::new`] checks that list once and computes everything that does not change: FFT plan, window functions,
//! mel bands. Each stream of samples then gets a [`Stream`] of its own, which holds the small state that does change
//! and hands out a [`Window`] of features whenever one is complete.
//!
//! What the crate promises:
//! - **Any list of steps either builds or is refused** with a sentence that names the step; what built never panics,
//!   whatever the samples are.
//! - **How samples are cut into messages changes nothing**: the features are the same to the last bit.
//! - **A frame is computed once**, when its last sample arrives, however many windows it belongs to; a frame that
//!   belongs to no window is not computed.
//! - **Nothing is allocated after [`FrontEnd::stream`]**, and nothing grows.
//! - No input or output, no clock, no threads. [`FrontEnd`] and [`Stream`] are `Send` and `Sync`.
//!
//! A sample that is not finite spoils the frames that hold it (with pre-emphasis, or its neighbor) and no others, as
//! no filter here has an endless memory. Whoever feeds a model refuses such samples first.
//!
//! ```
//! use limpet_signal::{Frame, FrontEnd, PowerSpectrum, Step, WindowFunction};
//!
//! // Two frames of 4 samples, 2 apart, make one window; windows are one frame apart.
//! let steps = [
//!     Step::Frame(Frame { length: 4, hop: 2, window: WindowFunction::Rectangular }),
//!     Step::PowerSpectrum(PowerSpectrum { divide_by: 4.0, fft_length: None }),
//! ];
//! let front_end = FrontEnd::new(&steps, 16_000.0, 1, 2, 1)?;
//! assert_eq!(front_end.feature_shape(), [2, 1, 3]);
//! assert_eq!(front_end.samples_per_window(), 6);
//!
//! let mut stream = front_end.stream();
//! let mut windows = Vec::new();
//! stream.push(&[1.0; 7], |window| windows.push((window.first, window.last, window.features.to_vec())))?;
//! stream.push(&[1.0; 1], |window| windows.push((window.first, window.last, window.features.to_vec())))?;
//!
//! let power = vec![4.0, 0.0, 0.0, 4.0, 0.0, 0.0];
//! assert_eq!(windows, [(0, 5, power.clone()), (2, 7, power)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod filter;
mod frame;
mod mel;
mod plan;
mod step;
mod stream;

pub use error::{FrontEndError, NotWholeSamples};
pub use plan::FrontEnd;
pub use step::{Detrend, Frame, Log, Mel, Mfcc, Numbers, PowerSpectrum, ScaleOffset, Statistic, Step, WindowFunction};
pub use stream::{Stream, Window};

/// The most channels that a front end takes.
pub const MAX_CHANNELS: usize = 4096;
/// The longest frame, and the longest FFT, in samples.
pub const MAX_FRAME_LENGTH: usize = 1 << 20;
/// The most mel bands.
pub const MAX_MEL_BANDS: usize = 4096;
/// The most values that a frame of all channels, or the features of one window, may have. Together with the other
/// limits it keeps a mistyped manifest from asking for more memory than a gateway has: a stream holds less than ten
/// times as many `f32`.
pub const MAX_VALUES: usize = 1 << 22;
/// The most samples that one window may span, and that may lie between two windows.
pub const MAX_SPAN: usize = 1 << 30;
