//! Features against other people's numbers, and against the textbook.

mod common;

use std::f64::consts::PI;
use std::path::PathBuf;

use common::{RATE_HZ, front_end};
use limpet_signal::{
    Detrend, Frame, FrontEnd, Log, Mel, Mfcc, Numbers, PowerSpectrum, Statistic, Step, WindowFunction,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

/// All windows of a recording: first index, last index, features.
fn windows(front_end: &FrontEnd, samples: &[f32]) -> Vec<(u64, u64, Vec<f32>)> {
    let mut windows = Vec::new();
    front_end
        .stream()
        .push(samples, |window| windows.push((window.first, window.last, window.features.to_vec())))
        .expect("whole samples");
    windows
}

/// Values of TensorFlow 2.19.1 for
/// `x = np.float32([((7*i*i + 3*i) % 61 - 30) / 32 for i in range(32)])`,
/// `power = tf.abs(tf.signal.rfft(x * tf.signal.hann_window(32))) ** 2`,
/// `mel = power @ tf.signal.linear_to_mel_weight_matrix(6, 17, 8000.0, 100.0, 3800.0)`,
/// `log_mel = tf.math.log(mel + 1e-6)`, `tf.signal.mfccs_from_log_mel_spectrograms(log_mel)[:4]`.
#[test]
fn power_mel_log_and_mfcc_are_tensorflows() {
    let samples: Vec<f32> = (0..32).map(|i| ((7 * i * i + 3 * i) % 61 - 30) as f32 / 32.0).collect();
    let steps = [
        Step::Frame(Frame { length: 32, hop: 32, window: WindowFunction::HannPeriodic }),
        Step::PowerSpectrum(PowerSpectrum { divide_by: 1.0, fft_length: None }),
        Step::Mel(Mel { bands: 6, low_hz: 100.0, high_hz: 3800.0 }),
        Step::Ln(Log { floor: 1e-6, ..Log::default() }),
        Step::Mfcc(Mfcc { coefficients: 4 }),
    ];
    let expected: [&[f32]; 4] = [
        &[
            1.8150606, 11.124194, 22.949125, 7.71755, 0.308269, 8.849401, 9.581937, 5.199072, 3.0072296, 0.21511883,
            1.1656861, 0.06898655, 3.0540361, 3.1191127, 0.2882123, 0.37342015, 0.7013745,
        ],
        &[15.9347315, 19.31383, 6.9004703, 16.672686, 7.1417594, 5.0147114],
        &[2.768501, 2.9608214, 1.9315897, 2.813772, 1.9659593, 1.6123761],
        &[8.113515, 0.9190717, -0.18224229, 0.42598465],
    ];
    for (upto, expected) in (2..).zip(expected) {
        let front_end = FrontEnd::new(&steps[..upto], 8000.0, 1, 1, 1).expect("it builds");
        assert_eq!(front_end.feature_shape(), [1, 1, expected.len()]);
        let windows = windows(&front_end, &samples);
        assert_eq!(windows.len(), 1);
        for (found, expected) in windows[0].2.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5, "{}: {found} is not {expected}", steps[upto - 1].name());
        }
    }
}

/// The shared reference material, if it lies beside the repository (or where LIMPET_SHARED says).
fn shared(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("LIMPET_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")), PathBuf::from);
    let path = folder.join(file);
    if path.exists() {
        Some(path)
    } else {
        println!("skipped: needs ../shared/{file}");
        None
    }
}

#[test]
fn the_wakeword_features_are_within_1e_4_of_tensorflows() {
    let (Some(wav), Some(expected)) =
        (shared("wakeword/short_wav_easy10s.wav"), shared("wakeword/short_wav_easy10s.expected.safetensors"))
    else {
        return;
    };
    let mut wav = hound::WavReader::open(wav).expect("a WAV file");
    let channels = wav.spec().channels as usize;
    let samples: Vec<f32> = wav
        .samples::<i16>()
        .map(|sample| f32::from(sample.expect("a sample")) / 32768.0)
        .step_by(channels) // the first channel
        .collect();
    let bytes = std::fs::read(expected).expect("readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = tensors.tensor("features").expect("the file has it");
    assert_eq!(tensor.shape(), [311, 40]);
    let expected: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();

    let steps = [
        Step::PreEmphasis(0.96875),
        Step::Frame(Frame { length: 1024, hop: 512, window: WindowFunction::HammingSymmetric }),
        Step::PowerSpectrum(PowerSpectrum { divide_by: 1024.0, fft_length: None }),
        Step::Mel(Mel { bands: 40, low_hz: 0.0, high_hz: 8000.0 }),
        Step::Log10(Log { scale: 10.0, offset: 52.0, divide: 64.0, clip: Some([0.0, 1.0]), ..Log::default() }),
    ];
    let front_end = FrontEnd::new(&steps, 16_000.0, 1, 30, 1).expect("it builds");
    let windows = windows(&front_end, &samples);
    assert_eq!(windows.len(), 282, "311 frames make 282 windows of 30");
    let mut worst = 0.0_f32;
    for (window, (first, last, features)) in windows.iter().enumerate() {
        assert_eq!((*first, *last), (window as u64 * 512, window as u64 * 512 + 29 * 512 + 1023));
        for (found, expected) in features.iter().zip(&expected[window * 40..(window + 30) * 40]) {
            worst = worst.max((found - expected).abs());
        }
    }
    println!("largest difference: {worst:e}");
    assert!(worst < 1e-4, "largest difference: {worst:e}");
}

/// Everything once more in `f64`, on the whole recording at once, by definition: no streaming, no fast transform, no
/// sparse matrix.
mod textbook {
    use super::*;

    fn each(numbers: &Numbers, i: usize) -> f64 {
        match numbers {
            Numbers::One(number) => *number,
            Numbers::Each(numbers) => numbers[i],
        }
    }

    /// Features of every window that is complete, [window][frame · channel · element].
    pub fn features(
        steps: &[Step],
        rate_hz: f64,
        channels: usize,
        window_frames: usize,
        window_hop: usize,
        samples: &[f32],
    ) -> Vec<Vec<f64>> {
        let framed = steps.iter().position(|step| matches!(step, Step::Frame(_)));
        let (sample_steps, frame_steps) = steps.split_at(framed.unwrap_or(steps.len()));
        let per_channel: Vec<Vec<Vec<f64>>> = (0..channels)
            .map(|channel| {
                let mut x: Vec<f64> = samples.iter().skip(channel).step_by(channels).map(|x| f64::from(*x)).collect();
                for step in sample_steps {
                    x = filtered(step, channel, &x);
                }
                let (length, hop) = match frame_steps.first() {
                    Some(Step::Frame(frame)) => (frame.length, frame.hop),
                    _ => (1, 1),
                };
                let count = if x.len() < length { 0 } else { (x.len() - length) / hop + 1 };
                (0..count)
                    .map(|frame| {
                        let frame = x[frame * hop..frame * hop + length].to_vec();
                        frame_steps.iter().fold(frame, |vector, step| vectored(step, rate_hz, length, vector))
                    })
                    .collect()
            })
            .collect();
        let frames = per_channel[0].len();
        (0..)
            .map(|window| window * window_hop)
            .take_while(|start| start + window_frames <= frames)
            .map(|start| {
                (start..start + window_frames)
                    .flat_map(|frame| per_channel.iter().flat_map(move |channel| channel[frame].clone()))
                    .collect()
            })
            .collect()
    }

    fn filtered(step: &Step, channel: usize, x: &[f64]) -> Vec<f64> {
        match step {
            Step::ScaleOffset(p) => x.iter().map(|x| x * each(&p.scale, channel) + each(&p.offset, channel)).collect(),
            Step::PreEmphasis(a) => (0..x.len()).map(|n| x[n] - if n == 0 { 0.0 } else { a * x[n - 1] }).collect(),
            other => panic!("{other:?} is no sample step"),
        }
    }

    fn windowed(function: WindowFunction, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        if x.len() == 1 {
            return x.to_vec();
        }
        x.iter()
            .enumerate()
            .map(|(i, x)| {
                let i = i as f64;
                x * match function {
                    WindowFunction::Rectangular => 1.0,
                    WindowFunction::HannPeriodic => (PI * i / n).sin().powi(2),
                    WindowFunction::HannSymmetric => (PI * i / (n - 1.0)).sin().powi(2),
                    WindowFunction::HammingPeriodic => 0.54 - 0.46 * (2.0 * PI * i / n).cos(),
                    WindowFunction::HammingSymmetric => 0.54 - 0.46 * (2.0 * PI * i / (n - 1.0)).cos(),
                }
            })
            .collect()
    }

    fn mean(x: impl ExactSizeIterator<Item = f64>) -> f64 {
        let n = x.len() as f64;
        x.sum::<f64>() / n
    }

    fn vectored(step: &Step, rate_hz: f64, frame_length: usize, x: Vec<f64>) -> Vec<f64> {
        let n = x.len();
        match step {
            Step::Frame(frame) => windowed(frame.window, &x),
            Step::Window(function) => windowed(*function, &x),
            Step::ScaleOffset(p) => {
                x.iter().enumerate().map(|(i, x)| x * each(&p.scale, i) + each(&p.offset, i)).collect()
            }
            Step::Detrend(Detrend::Constant) => {
                let mean = mean(x.iter().copied());
                x.iter().map(|x| x - mean).collect()
            }
            Step::Detrend(Detrend::Linear) => {
                // The normal equations of a line, with time from 0.
                let (n, t, tt) = (n as f64, (0..n).sum::<usize>() as f64, (0..n).map(|i| i * i).sum::<usize>() as f64);
                let y: f64 = x.iter().sum();
                let ty: f64 = x.iter().enumerate().map(|(i, x)| i as f64 * x).sum();
                let determinant = n * tt - t * t;
                let slope = if determinant == 0.0 { 0.0 } else { (n * ty - t * y) / determinant };
                let start = (y - slope * t) / n;
                x.iter().enumerate().map(|(i, x)| x - start - slope * i as f64).collect()
            }
            Step::PowerSpectrum(p) => {
                let fft_length = p.fft_length.unwrap_or(n);
                (0..=fft_length / 2)
                    .map(|k| {
                        let angle = |i: usize| 2.0 * PI * (i * k) as f64 / fft_length as f64;
                        let real: f64 = x.iter().enumerate().map(|(i, x)| x * angle(i).cos()).sum();
                        let imaginary: f64 = x.iter().enumerate().map(|(i, x)| x * angle(i).sin()).sum();
                        (real * real + imaginary * imaginary) / p.divide_by
                    })
                    .collect()
            }
            Step::Mel(p) => {
                let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
                // The generated steps leave fft_length out wherever mel bands follow.
                let bin_hz = rate_hz / frame_length as f64;
                let width = (mel(p.high_hz) - mel(p.low_hz)) / (p.bands + 1) as f64;
                (1..=p.bands)
                    .map(|band| mel(p.low_hz) + width * band as f64)
                    .map(|center| {
                        let weight = |k: usize| (1.0 - (mel(k as f64 * bin_hz) - center).abs() / width).max(0.0);
                        (1..n).map(|k| weight(k) * x[k]).sum()
                    })
                    .collect()
            }
            Step::Log10(p) => x.iter().map(|x| logged(p, (x + p.floor).log10())).collect(),
            Step::Ln(p) => x.iter().map(|x| logged(p, (x + p.floor).ln())).collect(),
            Step::Mfcc(p) => (0..p.coefficients)
                .map(|k| {
                    let angle = |i: usize| PI * k as f64 * (i as f64 + 0.5) / n as f64;
                    let dct: f64 = 2.0 * x.iter().enumerate().map(|(i, x)| x * angle(i).cos()).sum::<f64>();
                    dct / (2.0 * n as f64).sqrt()
                })
                .collect(),
            Step::Statistics(names) => {
                let average = mean(x.iter().copied());
                let moment = |k| mean(x.iter().map(|x| (x - average).powi(k)));
                let rms = mean(x.iter().map(|x| x * x)).sqrt();
                let peak = x.iter().fold(0.0_f64, |peak, x| peak.max(x.abs()));
                let x0 = x[0];
                let named = |name: &Statistic| match name {
                    Statistic::Rms => rms,
                    Statistic::Peak => peak,
                    Statistic::Crest if rms == 0.0 => 0.0,
                    Statistic::Crest => peak / rms,
                    Statistic::Kurtosis if x.iter().all(|x| *x == x0) => 0.0,
                    Statistic::Kurtosis => moment(4) / moment(2).powi(2),
                };
                names.iter().map(named).collect()
            }
            other => panic!("{other:?} is no frame step"),
        }
    }

    fn logged(p: &Log, logarithm: f64) -> f64 {
        let y = (p.scale * logarithm + p.offset) / p.divide;
        p.clip.map_or(y, |[low, high]| y.clamp(low, high))
    }
}

fn case() -> impl Strategy<Value = (Vec<Step>, usize, usize, usize, Vec<f32>)> {
    (1..4_usize).prop_flat_map(|channels| {
        let samples = proptest::collection::vec(-1.0..1.0_f32, 0..400)
            .prop_map(move |samples| samples[..samples.len() / channels * channels].to_vec());
        (front_end(channels), Just(channels), 1..6_usize, 1..9_usize, samples)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 2))]

    #[test]
    fn a_stream_gives_the_textbooks_features((steps, channels, frames, hop, samples) in case()) {
        let front_end = FrontEnd::new(&steps, RATE_HZ, channels, frames, hop)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        let expected = textbook::features(&steps, RATE_HZ, channels, frames, hop, &samples);
        let found = windows(&front_end, &samples);
        prop_assert_eq!(found.len(), expected.len());
        for (window, ((first, last, features), expected)) in found.iter().zip(&expected).enumerate() {
            prop_assert_eq!(*first, (window * front_end.samples_per_hop()) as u64);
            prop_assert_eq!(*last, first + front_end.samples_per_window() as u64 - 1);
            prop_assert_eq!(features.len(), front_end.features_len());
            prop_assert_eq!(features.len(), expected.len());
            let largest = expected.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
            for (found, expected) in features.iter().zip(expected) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-4 * largest, "{} is not {}", found, expected);
            }
        }
    }
}
