//! Frame steps: one vector of one channel in, one out. Sums over a frame are taken in `f64`, because a small
//! vibration on top of gravity, or of a pressure, leaves few digits to an `f32`.

use std::f64::consts::PI;
use std::fmt;
use std::sync::Arc;

use realfft::RealToComplex;
use realfft::num_complex::Complex;

use crate::mel::{Cepstrum, MelBands};
use crate::step::{Detrend, Statistic, WindowFunction};

/// One frame step with all that can be computed beforehand.
pub(crate) enum Operation {
    /// Element by element; as many weights as elements.
    Multiply(Vec<f32>),
    Detrend(Detrend),
    /// `|FFT|² · factor`.
    PowerSpectrum {
        fft: Arc<dyn RealToComplex<f32>>,
        factor: f32,
    },
    Mel(MelBands),
    Log {
        base: Base,
        floor: f32,
        scale: f32,
        offset: f32,
        divide: f32,
        clip: Option<[f32; 2]>,
    },
    Mfcc(Cepstrum),
    /// Element by element; as many of each as elements.
    ScaleOffset {
        scale: Vec<f32>,
        offset: Vec<f32>,
    },
    Statistics(Vec<Statistic>),
}

/// The base of a logarithm.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base {
    Ten,
    E,
}

/// The vectors that the operations of one stream work in: as long as the longest vector of the plan.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// The vector so far.
    vector: Vec<f32>,
    /// Where an operation that cannot work in place puts its result, before the two change places.
    result: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    fft: Vec<Complex<f32>>,
}

impl Scratch {
    /// For frames of `length` samples and these operations.
    pub(crate) fn new(length: usize, operations: &[Operation]) -> Self {
        let (mut vector, mut spectrum, mut scratch) = (length, 0, 0);
        for operation in operations {
            match operation {
                Operation::PowerSpectrum { fft, .. } => {
                    vector = vector.max(fft.len());
                    spectrum = spectrum.max(fft.complex_len());
                    scratch = scratch.max(fft.get_scratch_len());
                }
                Operation::Mel(bands) => vector = vector.max(bands.len()),
                Operation::Statistics(statistics) => vector = vector.max(statistics.len()),
                Operation::Mfcc(_) // never longer than its input
                | Operation::Multiply(_)
                | Operation::Detrend(_)
                | Operation::Log { .. }
                | Operation::ScaleOffset { .. } => {}
            }
        }
        Self {
            vector: vec![0.0; vector],
            result: vec![0.0; vector],
            spectrum: vec![Complex::default(); spectrum],
            fft: vec![Complex::default(); scratch],
        }
    }

    /// Runs the operations on one frame of one channel and returns the last one's vector.
    pub(crate) fn run(&mut self, operations: &[Operation], frame: &[f32]) -> &[f32] {
        let mut len = frame.len();
        self.vector[..len].copy_from_slice(frame);
        for operation in operations {
            len = operation.apply(self, len);
        }
        &self.vector[..len]
    }
}

impl Operation {
    /// Works on the first `len` elements of `scratch.vector`, leaves its result there and returns its length.
    fn apply(&self, scratch: &mut Scratch, len: usize) -> usize {
        let vector = &mut scratch.vector[..len];
        match self {
            Self::Multiply(weights) => {
                for (x, weight) in vector.iter_mut().zip(weights) {
                    *x *= weight;
                }
                len
            }
            Self::Detrend(detrend) => {
                match detrend {
                    Detrend::Constant => detrend_constant(vector),
                    Detrend::Linear => detrend_linear(vector),
                }
                len
            }
            Self::PowerSpectrum { fft, factor } => {
                scratch.vector[len..fft.len()].fill(0.0);
                let bins = fft.complex_len();
                fft.process_with_scratch(
                    &mut scratch.vector[..fft.len()],
                    &mut scratch.spectrum[..bins],
                    &mut scratch.fft[..fft.get_scratch_len()],
                )
                .expect("it refuses nothing but buffers of other lengths than it asked for");
                for (power, bin) in scratch.vector.iter_mut().zip(&scratch.spectrum[..bins]) {
                    *power = bin.norm_sqr() * factor;
                }
                bins
            }
            Self::Mel(bands) => {
                bands.apply(vector, &mut scratch.result[..bands.len()]);
                std::mem::swap(&mut scratch.vector, &mut scratch.result);
                bands.len()
            }
            &Self::Log { base, floor, scale, offset, divide, clip } => {
                let logarithm = match base {
                    Base::Ten => f32::log10,
                    Base::E => f32::ln,
                };
                for x in vector {
                    let sum = *x + floor;
                    // Not f32::max, which would turn a NaN into a number.
                    let positive = if sum < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { sum };
                    let y = (scale * logarithm(positive) + offset) / divide;
                    *x = clip.map_or(y, |[low, high]| y.clamp(low, high));
                }
                len
            }
            Self::Mfcc(cepstrum) => {
                cepstrum.apply(vector, &mut scratch.result[..cepstrum.len()]);
                std::mem::swap(&mut scratch.vector, &mut scratch.result);
                cepstrum.len()
            }
            Self::ScaleOffset { scale, offset } => {
                for ((x, scale), offset) in vector.iter_mut().zip(scale).zip(offset) {
                    *x = *x * scale + offset;
                }
                len
            }
            Self::Statistics(statistics) => {
                let moments = Moments::of(vector);
                for (y, statistic) in scratch.result.iter_mut().zip(statistics) {
                    *y = moments.get(*statistic) as f32;
                }
                std::mem::swap(&mut scratch.vector, &mut scratch.result);
                statistics.len()
            }
        }
    }
}

impl fmt::Debug for Operation {
    // The tables are long, and an FFT plan has no Debug.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Multiply(_) => "Multiply",
            Self::Detrend(_) => "Detrend",
            Self::PowerSpectrum { .. } => "PowerSpectrum",
            Self::Mel(_) => "Mel",
            Self::Log { .. } => "Log",
            Self::Mfcc(_) => "Mfcc",
            Self::ScaleOffset { .. } => "ScaleOffset",
            Self::Statistics(_) => "Statistics",
        })
    }
}

/// The `length` points of a window function.
pub(crate) fn window_function(function: WindowFunction, length: usize) -> Vec<f32> {
    let (mean, depth, period) = match function {
        WindowFunction::Rectangular => (1.0, 0.0, length),
        WindowFunction::HannPeriodic => (0.5, 0.5, length),
        WindowFunction::HannSymmetric => (0.5, 0.5, length - 1),
        WindowFunction::HammingPeriodic => (0.54, 0.46, length),
        WindowFunction::HammingSymmetric => (0.54, 0.46, length - 1),
    };
    if length == 1 {
        return vec![1.0];
    }
    (0..length).map(|n| (mean - depth * (2.0 * PI * n as f64 / period as f64).cos()) as f32).collect()
}

/// The mean's distance from the first sample. Relative to that sample, so that a constant frame gives exactly 0
/// however its value rounds.
fn mean_above_first(frame: &[f32]) -> f64 {
    let first = f64::from(frame[0]);
    frame.iter().map(|x| f64::from(*x) - first).sum::<f64>() / frame.len() as f64
}

fn detrend_constant(frame: &mut [f32]) {
    let first = f64::from(frame[0]);
    let mean = mean_above_first(frame);
    for x in frame {
        *x = (f64::from(*x) - first - mean) as f32;
    }
}

fn detrend_linear(frame: &mut [f32]) {
    let n = frame.len() as f64;
    let first = f64::from(frame[0]);
    let mean = mean_above_first(frame);
    let middle = (n - 1.0) / 2.0;
    // With time counted from the middle, mean and slope of the least-squares line do not depend on each other, and
    // the squares of the times have a closed sum.
    let squares = n * (n * n - 1.0) / 12.0;
    let products: f64 =
        frame.iter().enumerate().map(|(i, x)| (i as f64 - middle) * (f64::from(*x) - first - mean)).sum();
    let slope = if squares > 0.0 { products / squares } else { 0.0 };
    for (i, x) in frame.iter_mut().enumerate() {
        *x = (f64::from(*x) - first - mean - slope * (i as f64 - middle)) as f32;
    }
}

/// What the statistics of a frame are made of.
struct Moments {
    mean_square: f64,
    peak: f64,
    /// Second and fourth central moments.
    second: f64,
    fourth: f64,
}

impl Moments {
    fn of(frame: &[f32]) -> Self {
        let n = frame.len() as f64;
        let first = f64::from(frame[0]);
        let mean = mean_above_first(frame);
        let (mut squares, mut peak, mut second, mut fourth) = (0.0, 0.0_f64, 0.0, 0.0);
        for x in frame {
            let x = f64::from(*x);
            squares += x * x;
            // Not f64::max, which would drop a NaN.
            if x.abs() > peak || x.is_nan() {
                peak = x.abs();
            }
            let square = (x - first - mean).powi(2);
            second += square;
            fourth += square * square;
        }
        Self { mean_square: squares / n, peak, second: second / n, fourth: fourth / n }
    }

    fn get(&self, statistic: Statistic) -> f64 {
        let rms = self.mean_square.sqrt();
        match statistic {
            Statistic::Rms => rms,
            Statistic::Peak => self.peak,
            Statistic::Crest if rms == 0.0 => 0.0,
            Statistic::Crest => self.peak / rms,
            Statistic::Kurtosis if self.second == 0.0 => 0.0,
            Statistic::Kurtosis => self.fourth / (self.second * self.second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (x, y) in found.iter().zip(expected) {
            assert!((x - y).abs() < 5e-7, "{found:?} is not {expected:?}");
        }
    }

    /// `tf.signal.hann_window` and `tf.signal.hamming_window` of TensorFlow 2.19.1.
    #[test]
    fn window_functions_are_tensorflows() {
        let points = |function| window_function(function, 8);
        assert_close(
            &points(WindowFunction::HannPeriodic),
            &[0.0, 0.14644665, 0.5, 0.85355335, 1.0, 0.85355335, 0.5, 0.14644647],
        );
        assert_close(
            &points(WindowFunction::HannSymmetric),
            &[0.0, 0.1882551, 0.6112605, 0.9504844, 0.9504844, 0.6112603, 0.18825519, 0.0],
        );
        assert_close(
            &points(WindowFunction::HammingPeriodic),
            &[0.08000001, 0.21473092, 0.54, 0.8652691, 1.0, 0.8652691, 0.54, 0.21473077],
        );
        assert_close(
            &points(WindowFunction::HammingSymmetric),
            &[0.08000001, 0.25319472, 0.6423597, 0.9544457, 0.9544457, 0.6423595, 0.25319478, 0.08000001],
        );
        assert_close(&points(WindowFunction::Rectangular), &[1.0; 8]);
    }

    /// TensorFlow's `periodic` does nothing at odd lengths; its `hann_window(5, periodic=True)` is symmetric.
    #[test]
    fn periodic_means_periodic_at_odd_lengths_too() {
        assert_close(&window_function(WindowFunction::HannSymmetric, 5), &[0.0, 0.5, 1.0, 0.5, 0.0]);
        let periodic = window_function(WindowFunction::HannPeriodic, 5);
        assert_close(&periodic, &[0.0, 0.345_491_5, 0.904_508_5, 0.904_508_5, 0.345_491_5]);
    }

    #[test]
    fn a_window_function_of_one_point_is_one() {
        for function in [WindowFunction::HannPeriodic, WindowFunction::HannSymmetric, WindowFunction::HammingSymmetric]
        {
            assert_eq!(window_function(function, 1), [1.0]);
        }
    }

    #[test]
    fn detrending_a_line_leaves_nothing_and_keeps_what_is_on_top() {
        let on_top = [1.0, -1.0, -1.0, 1.0_f32]; // has no mean and no slope of its own
        let mut frame: Vec<f32> = on_top.iter().enumerate().map(|(i, x)| 1000.0 + 2.5 * i as f32 + x).collect();
        detrend_linear(&mut frame);
        assert_close(&frame, &on_top);

        let mut constant = [0.1_f32; 1000];
        detrend_constant(&mut constant);
        assert_eq!(constant, [0.0; 1000]);
        let mut single = [3.0];
        detrend_linear(&mut single);
        assert_eq!(single, [0.0]);
    }

    #[test]
    fn statistics_of_known_frames() {
        let of = |frame: &[f32]| {
            let moments = Moments::of(frame);
            [Statistic::Rms, Statistic::Peak, Statistic::Crest, Statistic::Kurtosis].map(|s| moments.get(s) as f32)
        };
        // Mean 2, central moments (4 + 0 + 1 + 1 + 4) / 5 = 2 and (16 + 0 + 1 + 1 + 16) / 5 = 6.8.
        assert_close(&of(&[0.0, 2.0, 1.0, 3.0, 4.0]), &[6.0_f32.sqrt(), 4.0, 4.0 / 6.0_f32.sqrt(), 1.7]);
        assert_close(&of(&[-3.0, 3.0, 3.0, -3.0]), &[3.0, 3.0, 1.0, 1.0]);
        assert_eq!(of(&[0.0; 8]), [0.0; 4]);
        // 0.1 is not a whole number of binary places, so a mean taken the plain way would not be 0.1.
        assert_eq!(of(&[0.1; 1000])[3], 0.0);
    }

    #[test]
    fn a_nan_does_not_get_lost() {
        let moments = Moments::of(&[1.0, f32::NAN, 2.0]);
        for statistic in [Statistic::Rms, Statistic::Peak, Statistic::Crest, Statistic::Kurtosis] {
            assert!(moments.get(statistic).is_nan(), "{statistic:?}");
        }
        let log =
            Operation::Log { base: Base::E, floor: 0.0, scale: 1.0, offset: 0.0, divide: 1.0, clip: Some([0.0, 1.0]) };
        assert!(Scratch::new(1, &[]).run(&[log], &[f32::NAN])[0].is_nan());
    }

    #[test]
    fn the_logarithm_of_nothing_is_finite() {
        let log = |base| Operation::Log { base, floor: 0.0, scale: 1.0, offset: 0.0, divide: 1.0, clip: None };
        assert_close(Scratch::new(2, &[]).run(&[log(Base::Ten)], &[0.0, -1.0]), &[f32::MIN_POSITIVE.log10(); 2]);
        assert_close(Scratch::new(1, &[]).run(&[log(Base::E)], &[1.0]), &[0.0]);
    }
}
