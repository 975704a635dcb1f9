//! Mel bands and cepstral coefficients, as TensorFlow defines them.
//!
//! Sources: `tf.signal.linear_to_mel_weight_matrix` (HTK mel, 1127 · ln(1 + f / 700); triangles that are straight in
//! mel, not in hertz; weight 0 at both edges; the DC bin always 0) and `tf.signal.mfccs_from_log_mel_spectrograms`
//! (orthonormal but for the zeroth coefficient, which is √2 times as large).

use std::f64::consts::PI;
use std::ops::Range;

/// The mel weight matrix without its zeros: of 513 bins and 40 bands, 5 % are left.
#[derive(Debug)]
pub(crate) struct MelBands {
    /// For each band the bins that it weighs. May be empty: a band narrower than the distance of two bins can lie
    /// between them. TensorFlow gives such bands too, and a model trained with them needs them.
    bins: Vec<Range<usize>>,
    /// The weights of all bands, one after the other.
    weights: Vec<f32>,
}

impl MelBands {
    /// `bands` equally wide bands (in mel) from `low_hz` to `high_hz`, over `bins` bins that are `bin_hz` apart, the
    /// first at 0 Hz.
    pub(crate) fn new(bands: usize, low_hz: f64, high_hz: f64, bins: usize, bin_hz: f64) -> Self {
        let (low, high) = (hertz_to_mel(low_hz), hertz_to_mel(high_hz));
        let edge = |i: usize| low + (high - low) * i as f64 / (bands + 1) as f64;
        let mut all_bins = Vec::with_capacity(bands);
        let mut weights = Vec::new();
        for band in 0..bands {
            let (lower, center, upper) = (edge(band), edge(band + 1), edge(band + 2));
            // One bin early, in case rounding moved the edge past a bin; bin 0 counts for nothing.
            let candidates = ((mel_to_hertz(lower) / bin_hz) as usize).saturating_sub(1).max(1)..bins;
            let before = weights.len();
            let mut first = 0;
            for bin in candidates {
                let mel = hertz_to_mel(bin as f64 * bin_hz);
                if mel >= upper {
                    break;
                }
                let weight = ((mel - lower) / (center - lower)).min((upper - mel) / (upper - center)) as f32;
                if weight > 0.0 {
                    if weights.len() == before {
                        first = bin;
                    }
                    weights.push(weight);
                }
            }
            // A triangle has no gap, so the bins lie in a row.
            all_bins.push(first..first + weights.len() - before);
        }
        Self { bins: all_bins, weights }
    }

    /// Number of bands.
    pub(crate) fn len(&self) -> usize {
        self.bins.len()
    }

    /// The energy of each band: `spectrum` has a value per bin, `energies` a value per band.
    pub(crate) fn apply(&self, spectrum: &[f32], energies: &mut [f32]) {
        let mut weights = &self.weights[..];
        for (energy, bins) in energies.iter_mut().zip(&self.bins) {
            let (here, rest) = weights.split_at(bins.len());
            *energy = dot(here, &spectrum[bins.clone()]);
            weights = rest;
        }
    }
}

/// HTK's mel scale.
fn hertz_to_mel(hertz: f64) -> f64 {
    1127.0 * (hertz / 700.0).ln_1p()
}

fn mel_to_hertz(mel: f64) -> f64 {
    700.0 * (mel / 1127.0).exp_m1()
}

/// The first rows of the DCT-II matrix that turns log-mel bands into cepstral coefficients.
#[derive(Debug)]
pub(crate) struct Cepstrum {
    bands: usize,
    /// [coefficient][band]
    matrix: Vec<f32>,
}

impl Cepstrum {
    pub(crate) fn new(bands: usize, coefficients: usize) -> Self {
        let scale = (2.0 / bands as f64).sqrt();
        let matrix = (0..coefficients)
            .flat_map(|k| {
                (0..bands).map(move |n| {
                    // The angle repeats every 4 · bands; reducing it as an integer keeps it exact.
                    let steps = (k * (2 * n + 1)) % (4 * bands);
                    (scale * (PI * steps as f64 / (2 * bands) as f64).cos()) as f32
                })
            })
            .collect();
        Self { bands, matrix }
    }

    /// Number of coefficients.
    pub(crate) fn len(&self) -> usize {
        self.matrix.len() / self.bands
    }

    pub(crate) fn apply(&self, log_mel: &[f32], coefficients: &mut [f32]) {
        for (coefficient, row) in coefficients.iter_mut().zip(self.matrix.chunks_exact(self.bands)) {
            *coefficient = dot(row, log_mel);
        }
    }
}

/// The dot product of two slices of one length. Eight partial sums, so that the compiler may use vectors; their order
/// is fixed, so the same input gives the same bits.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tf.signal.linear_to_mel_weight_matrix(6, 17, 8000.0, 100.0, 3800.0)` of TensorFlow 2.19.1, transposed.
    #[rustfmt::skip]
    const TENSORFLOW: [[f32; 17]; 6] = [
        [0.0, 0.6964668, 0.35674995, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.64325005, 0.58979917, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.4102008, 0.94514894, 0.3891071, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.054851044, 0.6108929, 0.900231, 0.46403024, 0.07024949, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
         0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.09976901, 0.5359698, 0.9297505, 0.7113646, 0.38169158, 0.07682917, 0.0, 0.0,
         0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.28863537, 0.6183084, 0.9231708, 0.79330456, 0.5283242,
         0.2796108, 0.04528255, 0.0],
    ];

    /// The whole matrix, [band][bin].
    fn dense(bands: &MelBands, bins: usize) -> Vec<Vec<f32>> {
        let mut matrix = vec![vec![0.0; bins]; bands.len()];
        for bin in 0..bins {
            let mut spectrum = vec![0.0; bins];
            spectrum[bin] = 1.0;
            let mut energies = vec![0.0; bands.len()];
            bands.apply(&spectrum, &mut energies);
            for (row, energy) in matrix.iter_mut().zip(energies) {
                row[bin] = energy;
            }
        }
        matrix
    }

    #[test]
    fn mel_weights_are_tensorflows() {
        let matrix = dense(&MelBands::new(6, 100.0, 3800.0, 17, 250.0), 17);
        for (row, expected) in matrix.iter().zip(&TENSORFLOW) {
            for (weight, expected) in row.iter().zip(expected) {
                assert!((weight - expected).abs() < 2e-6, "{row:?} is not {expected:?}");
            }
        }
    }

    /// The definition, bin by bin and band by band, without a thought for speed.
    #[test]
    fn sparse_mel_weights_are_the_dense_definition() {
        for (bands, low, high, bins, bin_hz) in [
            (40, 0.0, 8000.0, 513, 15.625),
            (10, 20.0, 4000.0, 129, 31.25),
            (64, 0.0, 500.0, 257, 31.25),
            (3, 0.0, 1.0, 2, 1.0),
        ] {
            let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
            let width = (mel(high) - mel(low)) / (bands + 1) as f64;
            let matrix = dense(&MelBands::new(bands, low, high, bins, bin_hz), bins);
            for (band, row) in matrix.iter().enumerate() {
                let center = mel(low) + width * (band + 1) as f64;
                for (bin, weight) in row.iter().enumerate() {
                    let distance = (mel(bin as f64 * bin_hz) - center).abs() / width;
                    let expected = if bin == 0 { 0.0 } else { (1.0 - distance).max(0.0) };
                    assert!(
                        (f64::from(*weight) - expected).abs() < 1e-6,
                        "band {band}, bin {bin}: {weight}, {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_bin_on_a_bands_edge_and_the_dc_bin_count_for_nothing() {
        // Bins at 0, 100, …, 800 Hz; the only band from exactly 200 to exactly 600 Hz.
        let matrix = dense(&MelBands::new(1, 200.0, 600.0, 9, 100.0), 9);
        let weighed: Vec<usize> = (0..9).filter(|bin| matrix[0][*bin] > 1e-6).collect();
        assert_eq!(weighed, [3, 4, 5]);
        // A band around 0 Hz would weigh the DC bin, if it were not left out: its lower edge is at 0 Hz, exclusive.
        let matrix = dense(&MelBands::new(4, 0.0, 800.0, 9, 100.0), 9);
        assert!(matrix.iter().all(|row| row[0] == 0.0));
    }

    #[test]
    fn a_band_between_two_bins_is_silent() {
        let bands = MelBands::new(40, 0.0, 400.0, 5, 100.0);
        let mut energies = vec![f32::NAN; 40];
        bands.apply(&[1.0; 5], &mut energies);
        assert_eq!(energies[0], 0.0);
        assert!(energies.iter().any(|energy| *energy > 0.0));
    }

    #[test]
    fn all_coefficients_keep_the_energy_but_for_the_zeroth() {
        let cepstrum = Cepstrum::new(7, 7);
        let log_mel = [0.3, -1.5, 2.0, 0.25, 0.0, -0.75, 1.0_f32];
        let mut coefficients = [0.0; 7];
        cepstrum.apply(&log_mel, &mut coefficients);
        let energy = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>();
        coefficients[0] /= 2.0_f32.sqrt();
        assert!((energy(&coefficients) - energy(&log_mel)).abs() < 1e-4);
    }
}
