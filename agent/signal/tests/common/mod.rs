//! Front ends for the property tests.

use limpet_signal::{
    Detrend, Frame, Log, Mel, Mfcc, Numbers, PowerSpectrum, ScaleOffset, Statistic, Step, WindowFunction,
};
use proptest::prelude::*;

/// The sample rate that the mel bands of [`front_end`] are made for.
pub const RATE_HZ: f64 = 1000.0;

fn numbers(len: usize, number: impl Strategy<Value = f64> + Clone) -> impl Strategy<Value = Numbers> {
    prop_oneof![number.clone().prop_map(Numbers::One), proptest::collection::vec(number, len).prop_map(Numbers::Each)]
}

/// The scale is not near 0: of samples that differ in their last digits only, `f32` and `f64` have different kurtoses.
fn scale_offset(len: usize) -> impl Strategy<Value = Step> {
    (numbers(len, prop_oneof![0.5..2.0, -2.0..-0.5]), numbers(len, -2.0..2.0))
        .prop_map(|(scale, offset)| Step::ScaleOffset(ScaleOffset { scale, offset }))
}

pub fn window_function() -> impl Strategy<Value = WindowFunction> {
    prop::sample::select(vec![
        WindowFunction::Rectangular,
        WindowFunction::HannPeriodic,
        WindowFunction::HannSymmetric,
        WindowFunction::HammingPeriodic,
        WindowFunction::HammingSymmetric,
    ])
}

/// The floor is high enough that the rounding of an `f32` transform does not show in the logarithm.
fn log() -> impl Strategy<Value = Log> {
    (0.1..1.0, 0.5..4.0, -2.0..2.0, 0.5..4.0, prop::option::of(-1.0..0.5)).prop_map(
        |(floor, scale, offset, divide, low)| Log {
            floor,
            scale,
            offset,
            divide,
            clip: low.map(|low| [low, low + 0.5]),
        },
    )
}

/// What comes after `frame` of a given length (at least 6: the statistics of few samples without their line are
/// those of rounding errors).
fn frame_steps(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let names =
        prop::sample::subsequence(vec![Statistic::Rms, Statistic::Peak, Statistic::Crest, Statistic::Kurtosis], 1..=4)
            .prop_shuffle();
    let statistics = names.prop_flat_map(|names| {
        let scale = scale_offset(names.len());
        scale.prop_map(move |scale| vec![Step::Statistics(names.clone()), scale])
    });
    let power = (0.5..40.0, prop::option::of(length..length + 40))
        .prop_map(|(divide_by, fft_length)| vec![Step::PowerSpectrum(PowerSpectrum { divide_by, fft_length })]);
    let mel = (0.5..40.0, 1..12_usize, 0.0..200.0, 250.0..500.0, log(), any::<bool>()).prop_flat_map(
        |(divide_by, bands, low_hz, high_hz, log, ten)| {
            prop::option::of(1..=bands).prop_map(move |coefficients| {
                let log = if ten { Step::Log10(log.clone()) } else { Step::Ln(log.clone()) };
                let mut steps = vec![
                    Step::PowerSpectrum(PowerSpectrum { divide_by, fft_length: None }),
                    Step::Mel(Mel { bands, low_hz, high_hz }),
                    log,
                ];
                steps.extend(coefficients.map(|coefficients| Step::Mfcc(Mfcc { coefficients })));
                steps
            })
        },
    );
    prop_oneof![Just(Vec::new()), statistics, power, mel]
}

/// A list of steps in a sensible order, for samples of so many channels at [`RATE_HZ`]; all of them build.
pub fn front_end(channels: usize) -> impl Strategy<Value = Vec<Step>> {
    let sample_steps =
        proptest::collection::vec(prop_oneof![scale_offset(channels), (-1.0..1.0).prop_map(Step::PreEmphasis)], 0..4);
    let detrend = prop::option::of(prop::sample::select(vec![Detrend::Constant, Detrend::Linear]));
    let framed =
        (6..40_usize, 1..60_usize, detrend, window_function()).prop_flat_map(|(length, hop, detrend, window)| {
            frame_steps(length).prop_map(move |rest| {
                let mut steps = match detrend {
                    None => vec![Step::Frame(Frame { length, hop, window })],
                    Some(detrend) => vec![
                        Step::Frame(Frame { length, hop, window: WindowFunction::Rectangular }),
                        Step::Detrend(detrend),
                        Step::Window(window),
                    ],
                };
                steps.extend(rest);
                steps
            })
        });
    (sample_steps, prop_oneof![1 => Just(Vec::new()), 4 => framed])
        .prop_map(|(sample_steps, framed)| [sample_steps, framed].concat())
}
