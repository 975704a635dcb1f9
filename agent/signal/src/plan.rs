//! From a list of steps to a plan: every step is checked against what comes before it, and turned into something
//! that runs without looking anything up.

use std::sync::Arc;

use realfft::RealFftPlanner;

use crate::error::FrontEndError;
use crate::filter::Filter;
use crate::frame::{Base, Operation, window_function};
use crate::mel::{Cepstrum, MelBands};
use crate::step::{Frame, Log, Mel, Mfcc, Numbers, PowerSpectrum, ScaleOffset, Statistic, Step, WindowFunction};
use crate::stream::Stream;
use crate::{MAX_CHANNELS, MAX_FRAME_LENGTH, MAX_MEL_BANDS, MAX_SPAN, MAX_VALUES};

/// A package's front end: a checked list of steps with everything that is computed once. It never changes; clones
/// share it, and so do all streams.
#[derive(Debug, Clone)]
pub struct FrontEnd {
    plan: Arc<Plan>,
}

/// What the streams share.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) channels: usize,
    pub(crate) filters: Vec<Filter>,
    /// None: windows of samples.
    pub(crate) framing: Option<Framing>,
    /// Values that each channel has in one frame of the features.
    pub(crate) elements: usize,
    /// Frames in a window; without framing: samples.
    pub(crate) window_frames: usize,
    pub(crate) samples_per_window: usize,
    pub(crate) samples_per_hop: usize,
}

/// How samples become frames, and frames vectors.
#[derive(Debug)]
pub(crate) struct Framing {
    pub(crate) length: usize,
    pub(crate) hop: usize,
    pub(crate) operations: Vec<Operation>,
}

impl FrontEnd {
    /// Checks a list of steps and prepares it.
    ///
    /// Samples have `channels` interleaved channels and come at `rate_hz`. A window has `window_frames` frames, and
    /// the next one starts `window_hop` frames later (which may be more than a window has); if `steps` has no
    /// `frame`, both count samples. An empty list gives windows of samples as they are.
    ///
    /// # Errors
    /// If a step cannot be done as written or stands in the wrong place, or if a number is outside its limits; the
    /// limits are the constants of this crate.
    pub fn new(
        steps: &[Step],
        rate_hz: f64,
        channels: usize,
        window_frames: usize,
        window_hop: usize,
    ) -> Result<Self, FrontEndError> {
        // Far beyond any sensor at either end, and near enough that no frequency computed from it loses its digits.
        if !(1e-9..=1e12).contains(&rate_hz) {
            return Err(FrontEndError::Rate { found: rate_hz });
        }
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(FrontEndError::Channels { found: channels });
        }
        for (key, value) in [("frames", window_frames), ("hop", window_hop)] {
            if value == 0 {
                return Err(FrontEndError::Empty { key });
            }
        }

        let mut builder = Builder { rate_hz, channels, filters: Vec::new(), framing: None };
        for (index, step) in steps.iter().enumerate() {
            builder.add(step).map_err(|problem| FrontEndError::Step {
                number: index + 1,
                name: step.name(),
                problem,
            })?;
        }
        let Builder { filters, framing, .. } = builder;
        let (framing, elements) = match framing {
            Some((framing, vector)) => (Some(framing), vector.len),
            None => (None, 1),
        };

        let (length, hop) = framing.as_ref().map_or((1, 1), |framing| (framing.length, framing.hop));
        let span = |key, found, samples: u128| match usize::try_from(samples) {
            Ok(samples) if samples <= MAX_SPAN => Ok(samples),
            _ => Err(FrontEndError::Span { key, found, samples }),
        };
        let samples_per_window =
            span("frames", window_frames, length as u128 + (window_frames - 1) as u128 * hop as u128)?;
        let samples_per_hop = span("hop", window_hop, window_hop as u128 * hop as u128)?;
        if window_frames as u128 * channels as u128 * elements as u128 > MAX_VALUES as u128 {
            return Err(FrontEndError::Features { frames: window_frames, channels, elements });
        }

        let plan = Plan { channels, filters, framing, elements, window_frames, samples_per_window, samples_per_hop };
        Ok(Self { plan: Arc::new(plan) })
    }

    /// Channels of a sample.
    pub fn channels(&self) -> usize {
        self.plan.channels
    }

    /// Shape of a window's features: frames, channels, elements per channel. Without a `frame` step: samples,
    /// channels, 1.
    pub fn feature_shape(&self) -> [usize; 3] {
        [self.plan.window_frames, self.plan.channels, self.plan.elements]
    }

    /// Number of values in a window's features: the product of [`feature_shape`](Self::feature_shape).
    pub fn features_len(&self) -> usize {
        self.plan.window_frames * self.plan.frame_values()
    }

    /// Samples from the start of a window to its end, both included: as many as complete the first window from rest.
    pub fn samples_per_window(&self) -> usize {
        self.plan.samples_per_window
    }

    /// Samples from the end of one window to the end of the next.
    pub fn samples_per_hop(&self) -> usize {
        self.plan.samples_per_hop
    }

    /// The state of one stream, at rest, its first sample having index 0. Nothing is allocated after this.
    pub fn stream(&self) -> Stream {
        Stream::new(Arc::clone(&self.plan))
    }
}

impl Plan {
    /// Values of one frame in the features, all channels together.
    pub(crate) fn frame_values(&self) -> usize {
        self.channels * self.elements
    }

    /// Samples that complete the first frame; without framing a frame is a sample.
    pub(crate) fn samples_per_frame(&self) -> usize {
        self.framing.as_ref().map_or(1, |framing| framing.length)
    }
}

/// The vector of one channel between two frame steps.
struct Vector {
    kind: Kind,
    len: usize,
}

/// What a vector holds; decides which steps may follow.
#[derive(Clone, Copy)]
enum Kind {
    Frame {
        window: WindowFunction,
    },
    Spectrum {
        fft_length: usize,
    },
    Mel,
    LogMel,
    Mfcc,
    Statistics,
    /// The logarithm of something else.
    Logarithm,
}

impl Kind {
    /// In a sentence: "gets …".
    fn noun(self) -> &'static str {
        match self {
            Self::Frame { .. } => "a frame",
            Self::Spectrum { .. } => "a power spectrum",
            Self::Mel => "mel bands",
            Self::LogMel => "log-mel bands",
            Self::Mfcc => "cepstral coefficients",
            Self::Statistics => "statistics",
            Self::Logarithm => "a logarithm",
        }
    }
}

/// A sentence about one step.
type Problem = String;

struct Builder {
    rate_hz: f64,
    channels: usize,
    filters: Vec<Filter>,
    /// From the `frame` step on: the operations so far, and what the last one gives.
    framing: Option<(Framing, Vector)>,
}

impl Builder {
    fn add(&mut self, step: &Step) -> Result<(), Problem> {
        let Some((framing, vector)) = &mut self.framing else {
            match step {
                Step::ScaleOffset(parameters) => {
                    let all = format!("{} channel{}", self.channels, if self.channels == 1 { "" } else { "s" });
                    let (scale, offset) = scale_offset(parameters, self.channels, &all, "channel")?;
                    self.filters.push(Filter::ScaleOffset { scale, offset });
                }
                Step::PreEmphasis(a) => self.filters.push(Filter::PreEmphasis(finite("pre_emphasis", *a)?)),
                Step::Frame(frame) => self.framing = Some(framed(frame, self.channels)?),
                _ => return Err("works on frames, and no frame step stands before it".to_owned()),
            }
            return Ok(());
        };
        let (operation, next) = match step {
            Step::PreEmphasis(_) => return Err("works on samples: it has to stand before the frame step".to_owned()),
            Step::Frame(_) => return Err("samples are already cut into frames: expected one frame step".to_owned()),
            Step::ScaleOffset(parameters) => {
                let all = format!("the {} elements of the vector", vector.len);
                let (scale, offset) = scale_offset(parameters, vector.len, &all, "element")?;
                (Operation::ScaleOffset { scale, offset }, Vector { ..*vector })
            }
            Step::Detrend(detrend) => {
                let window = vector.frame("detrend")?;
                if !window.is_rectangular() {
                    return Err(format!(
                        "the frame is already multiplied by {}: leave window out of the frame step and put a window \
                         step behind detrend",
                        window.name()
                    ));
                }
                (Operation::Detrend(*detrend), Vector { ..*vector })
            }
            Step::Window(function) => {
                let window = vector.frame("window")?;
                if !window.is_rectangular() {
                    return Err(format!(
                        "the frame is already multiplied by {}: expected one window function",
                        window.name()
                    ));
                }
                let weights = window_function(*function, vector.len);
                (Operation::Multiply(weights), Vector { kind: Kind::Frame { window: *function }, ..*vector })
            }
            Step::PowerSpectrum(parameters) => power_spectrum(parameters, vector)?,
            Step::Mel(mel) => mel_bands(mel, vector, self.rate_hz)?,
            Step::Log10(log) => logarithm(log, Base::Ten, vector)?,
            Step::Ln(log) => logarithm(log, Base::E, vector)?,
            Step::Mfcc(mfcc) => cepstrum(mfcc, vector)?,
            Step::Statistics(statistics) => named_statistics(statistics, vector)?,
        };
        framing.operations.push(operation);
        *vector = next;
        Ok(())
    }
}

impl Vector {
    /// The window function of a frame; an error if the vector is not a frame.
    fn frame(&self, step: &str) -> Result<WindowFunction, Problem> {
        match self.kind {
            Kind::Frame { window } => Ok(window),
            kind => Err(format!("needs a frame, but gets {}: put {step} right behind the frame step", kind.noun())),
        }
    }
}

fn framed(frame: &Frame, channels: usize) -> Result<(Framing, Vector), Problem> {
    let &Frame { length, hop, window } = frame;
    within("length", length, MAX_FRAME_LENGTH)?;
    within("hop", hop, MAX_SPAN)?;
    let values = length as u64 * channels as u64;
    if values > MAX_VALUES as u64 {
        return Err(format!(
            "length = {length} times {channels} channels makes {values} values, expected at most {MAX_VALUES}"
        ));
    }
    let operations =
        if window.is_rectangular() { Vec::new() } else { vec![Operation::Multiply(window_function(window, length))] };
    Ok((Framing { length, hop, operations }, Vector { kind: Kind::Frame { window }, len: length }))
}

fn power_spectrum(parameters: &PowerSpectrum, vector: &Vector) -> Result<(Operation, Vector), Problem> {
    vector.frame("power_spectrum")?;
    let fft_length = parameters.fft_length.unwrap_or(vector.len);
    if !(vector.len..=MAX_FRAME_LENGTH).contains(&fft_length) {
        return Err(format!(
            "fft_length = {fft_length}: expected at least the frame's length, {}, and at most {MAX_FRAME_LENGTH}",
            vector.len
        ));
    }
    let factor = (1.0 / parameters.divide_by) as f32;
    if !(factor.is_normal() && factor > 0.0) {
        return Err(format!("divide_by = {}: expected a number above 0", parameters.divide_by));
    }
    let fft = RealFftPlanner::new().plan_fft_forward(fft_length);
    let next = Vector { kind: Kind::Spectrum { fft_length }, len: fft.complex_len() };
    Ok((Operation::PowerSpectrum { fft, factor }, next))
}

fn mel_bands(mel: &Mel, vector: &Vector, rate_hz: f64) -> Result<(Operation, Vector), Problem> {
    let Kind::Spectrum { fft_length } = vector.kind else {
        return Err(format!("needs a power spectrum, but gets {}", vector.kind.noun()));
    };
    let &Mel { bands, low_hz, high_hz } = mel;
    within("bands", bands, MAX_MEL_BANDS)?;
    if !(low_hz >= 0.0 && low_hz.is_finite()) {
        return Err(format!("low_hz = {low_hz}: expected a frequency of at least 0"));
    }
    let half = rate_hz / 2.0;
    if high_hz > half {
        return Err(format!("high_hz = {high_hz} lies above half the sample rate, {half}"));
    }
    if high_hz.is_nan() || high_hz <= low_hz {
        return Err(format!("high_hz = {high_hz}: expected a frequency above low_hz = {low_hz}"));
    }
    let bands = MelBands::new(bands, low_hz, high_hz, vector.len, rate_hz / fft_length as f64);
    let next = Vector { kind: Kind::Mel, len: bands.len() };
    Ok((Operation::Mel(bands), next))
}

fn logarithm(log: &Log, base: Base, vector: &Vector) -> Result<(Operation, Vector), Problem> {
    let floor = finite("floor", log.floor)?;
    if floor < 0.0 {
        return Err(format!("floor = {}: expected a number of at least 0", log.floor));
    }
    let scale = finite("scale", log.scale)?;
    let offset = finite("offset", log.offset)?;
    let divide = finite("divide", log.divide)?;
    if !divide.is_normal() {
        return Err(format!("divide = {}: expected a number other than 0", log.divide));
    }
    let clip = match log.clip {
        None => None,
        Some([low, high]) => {
            let bounds = [finite("clip", low)?, finite("clip", high)?];
            if bounds[0] >= bounds[1] {
                return Err(format!("clip = [{low}, {high}]: expected the first number to be below the second"));
            }
            Some(bounds)
        }
    };
    let kind = if matches!(vector.kind, Kind::Mel) { Kind::LogMel } else { Kind::Logarithm };
    Ok((Operation::Log { base, floor, scale, offset, divide, clip }, Vector { kind, ..*vector }))
}

fn cepstrum(mfcc: &Mfcc, vector: &Vector) -> Result<(Operation, Vector), Problem> {
    if !matches!(vector.kind, Kind::LogMel) {
        return Err(format!("needs log-mel bands (mel, then ln or log10), but gets {}", vector.kind.noun()));
    }
    if !(1..=vector.len).contains(&mfcc.coefficients) {
        return Err(format!(
            "coefficients = {}: expected 1 to {}, the number of mel bands",
            mfcc.coefficients, vector.len
        ));
    }
    let cepstrum = Cepstrum::new(vector.len, mfcc.coefficients);
    let next = Vector { kind: Kind::Mfcc, len: cepstrum.len() };
    Ok((Operation::Mfcc(cepstrum), next))
}

fn named_statistics(statistics: &[Statistic], vector: &Vector) -> Result<(Operation, Vector), Problem> {
    vector.frame("statistics")?;
    if statistics.is_empty() {
        return Err("names no statistic: expected some of rms, peak, crest, kurtosis".to_owned());
    }
    for (i, statistic) in statistics.iter().enumerate() {
        if statistics[..i].contains(statistic) {
            return Err(format!("names {} twice", statistic.name()));
        }
    }
    let next = Vector { kind: Kind::Statistics, len: statistics.len() };
    Ok((Operation::Statistics(statistics.to_vec()), next))
}

/// Both lists of a `scale_offset` step in full: one number for each of `len`, which are `all` together and `each` one
/// by one.
fn scale_offset(parameters: &ScaleOffset, len: usize, all: &str, each: &str) -> Result<(Vec<f32>, Vec<f32>), Problem> {
    let numbers = |key: &str, numbers: &Numbers| match numbers {
        Numbers::One(number) => Ok(vec![finite(key, *number)?; len]),
        Numbers::Each(numbers) if numbers.len() == len => numbers.iter().map(|number| finite(key, *number)).collect(),
        Numbers::Each(numbers) => {
            Err(format!("{key} has {} numbers for {all}: expected one number, or one per {each}", numbers.len()))
        }
    };
    Ok((numbers("scale", &parameters.scale)?, numbers("offset", &parameters.offset)?))
}

/// A number as `f32`, if it is one.
fn finite(key: &str, number: f64) -> Result<f32, Problem> {
    let narrow = number as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err(format!("{key} = {number}: expected a finite 32-bit number")) }
}

fn within(key: &str, found: usize, most: usize) -> Result<(), Problem> {
    if (1..=most).contains(&found) { Ok(()) } else { Err(format!("{key} = {found}: expected 1 to {most}")) }
}
