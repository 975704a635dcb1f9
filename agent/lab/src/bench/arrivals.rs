//! When queries arrive and which sample each takes: random, and the same in every run.

/// SplitMix64 (Steele, Lea, Flood 2014): a counter, mixed. Small, and good enough that its gaps pass for exponential.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number above 0 and at most 1.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Times of `queries` Poisson arrivals at `rate` a second, in nanoseconds from the start, ascending: the gaps are
/// exponential.
///
/// # Panics
/// If the rate is not above 0.
pub fn poisson(rate: f64, queries: usize, seed: u64) -> Vec<u64> {
    assert!(rate > 0.0, "a rate is above 0");
    let mut random = Random::new(seed);
    let mut at = 0.0;
    (0..queries)
        .map(|_| {
            at -= random.unit().ln() / rate;
            (at * 1e9) as u64
        })
        .collect()
}

/// The vector, of so many, that sample number `number` is: any, as MLPerf draws them with replacement, so that no cache
/// learns their order.
pub fn vector_of(number: u64, vectors: usize) -> usize {
    (mix(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)) % vectors as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_exponential_with_the_mean_that_was_asked_for() {
        let (rate, queries) = (5000.0, 100_000);
        let times = poisson(rate, queries, 1);
        assert!(times.is_sorted());
        let mut gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 * 1e-9 * rate).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        // The mean of n exponential gaps has a deviation of 1/√n.
        assert!((mean - 1.0).abs() < 4.0 / (queries as f64).sqrt(), "{mean}");
        // Kolmogorov and Smirnov's distance to 1 − e^−x, at 99.9 % confidence.
        gaps.sort_unstable_by(f64::total_cmp);
        let n = gaps.len() as f64;
        let distance = gaps
            .iter()
            .enumerate()
            .map(|(i, gap)| ((1.0 - (-gap).exp()) - (i as f64 + 0.5) / n).abs() + 0.5 / n)
            .fold(0.0, f64::max);
        assert!(distance < 1.95 / n.sqrt(), "{distance}");
    }

    #[test]
    fn counts_in_equal_spans_vary_as_much_as_their_mean() {
        let times = poisson(1000.0, 50_000, 2);
        let spans = (times[times.len() - 1] / 10_000_000) as usize;
        let mut counts = vec![0.0; spans];
        for time in times {
            if let Some(count) = counts.get_mut((time / 10_000_000) as usize) {
                *count += 1.0;
            }
        }
        let mean = counts.iter().sum::<f64>() / spans as f64;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / (spans - 1) as f64;
        // The index of dispersion of Poisson counts is 1, with a deviation of √(2/n).
        assert!((variance / mean - 1.0).abs() < 4.0 * (2.0 / spans as f64).sqrt(), "{variance} {mean}");
    }

    #[test]
    fn a_seed_gives_the_same_arrivals_and_another_seed_others() {
        assert_eq!(poisson(10.0, 100, 7), poisson(10.0, 100, 7));
        assert_ne!(poisson(10.0, 100, 7), poisson(10.0, 100, 8));
    }

    #[test]
    fn every_vector_is_drawn_about_as_often() {
        let mut counts = [0_u32; 16];
        (0..16_000).for_each(|number| counts[vector_of(number, 16)] += 1);
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
