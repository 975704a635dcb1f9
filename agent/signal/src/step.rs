//! The vocabulary of a manifest's `front_end`: one [`Step`] is one element of that list.
//!
//! These types say what is written, not whether it makes sense; [`FrontEnd::new`](crate::FrontEnd::new) judges that.
//! They read and write the form in `docs/front-end.md`: a table with one key, the step's name.
//! Numbers are `f64` as in TOML (an integer will do), and unknown keys are errors.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// One step on the way from samples to features.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// `y = x · scale + offset`; before `frame` on samples, after it on vectors.
    ScaleOffset(ScaleOffset),
    /// `y[n] = x[n] − a · x[n−1]` per channel, with `x[−1] = 0`; the number is `a`. Before `frame`.
    PreEmphasis(f64),
    /// Cuts each channel into frames.
    Frame(Frame),
    /// Takes a frame's mean or its straight line away.
    Detrend(Detrend),
    /// Multiplies a frame by a window function.
    Window(WindowFunction),
    /// A frame's power spectrum.
    PowerSpectrum(PowerSpectrum),
    /// A spectrum's mel bands.
    Mel(Mel),
    /// `(scale · log₁₀(x + floor) + offset) / divide`, then clipped.
    Log10(Log),
    /// `(scale · ln(x + floor) + offset) / divide`, then clipped.
    Ln(Log),
    /// The first mel-frequency cepstral coefficients of a log-mel vector.
    Mfcc(Mfcc),
    /// Numbers that describe a frame, in the order named.
    Statistics(Vec<Statistic>),
}

impl Step {
    /// The step's name, as a manifest has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ScaleOffset(_) => "scale_offset",
            Self::PreEmphasis(_) => "pre_emphasis",
            Self::Frame(_) => "frame",
            Self::Detrend(_) => "detrend",
            Self::Window(_) => "window",
            Self::PowerSpectrum(_) => "power_spectrum",
            Self::Mel(_) => "mel",
            Self::Log10(_) => "log10",
            Self::Ln(_) => "ln",
            Self::Mfcc(_) => "mfcc",
            Self::Statistics(_) => "statistics",
        }
    }
}

/// Parameters of [`Step::ScaleOffset`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ScaleOffset {
    /// Factor; 1 unless given.
    #[serde(default = "Numbers::one")]
    pub scale: Numbers,
    /// Added after scaling; 0 unless given.
    #[serde(default = "Numbers::zero")]
    pub offset: Numbers,
}

/// One number for all, or a list with one number each: per channel before `frame`, per element of the vector after it.
#[derive(Serialize, Debug, Clone, PartialEq)]
#[serde(untagged)]
pub enum Numbers {
    /// The same number for all.
    One(f64),
    /// One number each.
    Each(Vec<f64>),
}

impl Numbers {
    fn one() -> Self {
        Self::One(1.0)
    }

    fn zero() -> Self {
        Self::One(0.0)
    }
}

// By hand, because the derived form of an untagged enum answers every mistake with "did not match any variant".
impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumbersVisitor;

        impl<'de> Visitor<'de> for NumbersVisitor {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a list of numbers")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Numbers, E> {
                Ok(Numbers::One(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Numbers, E> {
                Ok(Numbers::One(value as f64))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Numbers, E> {
                Ok(Numbers::One(value as f64))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(Numbers::Each(numbers))
            }
        }

        deserializer.deserialize_any(NumbersVisitor)
    }
}

/// Parameters of [`Step::Frame`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// Samples in a frame.
    pub length: usize,
    /// Samples from the start of one frame to the start of the next; if it exceeds `length`, samples are skipped.
    pub hop: usize,
    /// Multiplied with each frame.
    #[serde(default, skip_serializing_if = "WindowFunction::is_rectangular")]
    pub window: WindowFunction,
}

/// A window function of N points. Symmetric ones divide the angle by N − 1, periodic ones by N; both are 1 for N = 1.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
pub enum WindowFunction {
    /// All ones.
    #[default]
    Rectangular,
    /// `0.5 − 0.5 · cos(2πn / N)`
    HannPeriodic,
    /// `0.5 − 0.5 · cos(2πn / (N − 1))`
    HannSymmetric,
    /// `0.54 − 0.46 · cos(2πn / N)`
    HammingPeriodic,
    /// `0.54 − 0.46 · cos(2πn / (N − 1))`
    HammingSymmetric,
}

impl WindowFunction {
    /// The function's name, as a manifest has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rectangular => "rectangular",
            Self::HannPeriodic => "hann_periodic",
            Self::HannSymmetric => "hann_symmetric",
            Self::HammingPeriodic => "hamming_periodic",
            Self::HammingSymmetric => "hamming_symmetric",
        }
    }

    /// Whether it leaves a frame as it is.
    pub fn is_rectangular(&self) -> bool {
        *self == Self::Rectangular
    }
}

/// What [`Step::Detrend`] takes away from a frame.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Detrend {
    /// Its mean.
    Constant,
    /// Its least-squares line.
    Linear,
}

/// Parameters of [`Step::PowerSpectrum`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PowerSpectrum {
    /// Each `|FFT|²` is divided by this; 1 unless given.
    #[serde(default = "one")]
    pub divide_by: f64,
    /// Points of the FFT, at least the frame's length, which it is unless given. A longer one pads with zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fft_length: Option<usize>,
}

/// Parameters of [`Step::Mel`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Mel {
    /// Number of triangular bands, equally wide in mel.
    pub bands: usize,
    /// Lower edge of the first band.
    pub low_hz: f64,
    /// Upper edge of the last band; at most half the sample rate.
    pub high_hz: f64,
}

/// Parameters of [`Step::Log10`] and [`Step::Ln`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Added before the logarithm; not negative. A sum below the smallest normal `f32`, 1.18e-38, counts as that, so
    /// the logarithm of any number is finite.
    pub floor: f64,
    /// The logarithm is multiplied by this.
    pub scale: f64,
    /// Then this is added.
    pub offset: f64,
    /// Then divided by this.
    pub divide: f64,
    /// Then kept between these two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<[f64; 2]>,
}

impl Default for Log {
    fn default() -> Self {
        Self { floor: 1e-30, scale: 1.0, offset: 0.0, divide: 1.0, clip: None }
    }
}

/// Parameters of [`Step::Mfcc`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Mfcc {
    /// How many coefficients to keep, the zeroth among them; at most the number of mel bands.
    pub coefficients: usize,
}

/// One number that describes a frame `x` of N samples.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// `√(Σ x² / N)`
    Rms,
    /// `max |x|`
    Peak,
    /// Peak / RMS; 0 if the RMS is 0.
    Crest,
    /// `m₄ / m₂²` with the central moments `mₖ = Σ (x − mean)ᵏ / N`: 3 for a Gaussian; 0 if the frame is constant.
    Kurtosis,
}

impl Statistic {
    /// The statistic's name, as a manifest has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rms => "rms",
            Self::Peak => "peak",
            Self::Crest => "crest",
            Self::Kurtosis => "kurtosis",
        }
    }
}

fn one() -> f64 {
    1.0
}
