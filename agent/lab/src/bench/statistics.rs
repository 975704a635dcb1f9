//! What may be said about a tail of latencies that were measured.
//!
//! The rule is MLPerf Inference's early stopping, as its load generator has it (`loadgen/early_stopping.cc` and
//! `results.cc` in mlcommons/inference; inference_rules.adoc, appendix "Early Stopping Criterion"; Reddi et al., "MLPerf
//! Inference Benchmark", ISCA 2020, arXiv:1911.02549), with its confidence c = 0.99 and its tolerance d = 0.
//!
//! Whether a query takes longer than the true percentile p is a coin with probability 1 − p. If t or fewer of n queries
//! lie above a latency, and so few would do so with a probability below 1 − c even if that latency were the percentile,
//!
//! > P(Binomial(n, 1 − p) ≤ t) = I_p(n − t, t + 1) < 1 − c,
//!
//! then the latency is an upper bound of the percentile, with confidence c. The *estimate* of the percentile is the t-th
//! largest latency for the largest such t ≥ 1; so it lies above the percentile of the sample, the more the fewer queries
//! there are. From fewer than 64 queries there is no p90, from fewer than 662 no p99: then the longest is told, by that
//! name. A run *keeps a bound* if the number of queries above it is such a t, 0 included (459 queries for p99).

use serde::Serialize;

/// What a claim about a percentile is held to.
const CONFIDENCE: f64 = 0.99;

/// A percentile of latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Percentile {
    /// 90 of 100 are at or below it.
    P90,
    /// 99 of 100 are at or below it.
    P99,
}

impl Percentile {
    /// The share of queries at or below it.
    fn share(self) -> f64 {
        match self {
            Self::P90 => 0.90,
            Self::P99 => 0.99,
        }
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::P90 => "p90",
            Self::P99 => "p99",
        }
    }

    /// With fewer queries than this there is no estimate.
    pub fn queries_min(self) -> usize {
        match self {
            Self::P90 => 64,
            Self::P99 => 662,
        }
    }
}

/// What is known of the tail of some latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// An upper bound of a percentile, with 99 % confidence.
    Estimate {
        /// Which one.
        percentile: Percentile,
        /// The bound, in nanoseconds.
        ns: u64,
        /// How many latencies are above it in the order of the sample.
        discarded: usize,
    },
    /// The longest of queries that are too few for an estimate.
    Max {
        /// The longest, in nanoseconds.
        ns: u64,
        /// How many there are.
        queries: usize,
    },
}

impl Tail {
    /// Nanoseconds.
    pub fn ns(self) -> u64 {
        match self {
            Self::Estimate { ns, .. } | Self::Max { ns, .. } => ns,
        }
    }

    /// What the nanoseconds are: `p99`, or `max of 120`.
    pub fn name(self) -> String {
        match self {
            Self::Estimate { percentile, .. } => percentile.name().to_owned(),
            Self::Max { queries, .. } => format!("max of {queries}"),
        }
    }
}

/// The largest t for which t or fewer queries above a latency show, with 99 % confidence, that the percentile is not
/// above it; none if there are too few queries for any.
///
/// It adds up the binomial distribution from 0 on, each term from the one before by its logarithm, as the first
/// underflows from 7,000 queries on. It ends at t, so a million queries cost 100,000 terms.
pub fn allowed_over(queries: usize, percentile: Percentile) -> Option<usize> {
    let share = percentile.share();
    let odds = (1.0 - share) / share;
    let mut ln_term = queries as f64 * share.ln();
    let mut sum = 0.0;
    let mut allowed = None;
    for over in 0..=queries {
        sum += ln_term.exp();
        if sum >= 1.0 - CONFIDENCE {
            break;
        }
        allowed = Some(over);
        ln_term += ((queries - over) as f64 / (over + 1) as f64 * odds).ln();
    }
    allowed
}

/// The early-stopping estimate of a percentile, or the longest where there are too few.
///
/// # Panics
/// If there is none, or they are not sorted.
pub fn tail(sorted: &[u64], percentile: Percentile) -> Tail {
    debug_assert!(sorted.is_sorted());
    match allowed_over(sorted.len(), percentile).filter(|over| *over >= 1) {
        Some(over) => Tail::Estimate { percentile, ns: sorted[sorted.len() - over], discarded: over - 1 },
        None => Tail::Max { ns: *sorted.last().expect("at least one query was measured"), queries: sorted.len() },
    }
}

/// The median, by nearest rank.
///
/// # Panics
/// If there is none.
pub fn median(sorted: &[u64]) -> u64 {
    sorted[sorted.len().div_ceil(2) - 1]
}

/// How many are above a bound.
pub fn over(sorted: &[u64], bound: u64) -> usize {
    sorted.len() - sorted.partition_point(|latency| *latency <= bound)
}

/// Whether 99 % of the queries are at or below the bound, with 99 % confidence.
pub fn keeps(sorted: &[u64], bound: u64) -> bool {
    allowed_over(sorted.len(), Percentile::P99).is_some_and(|allowed| over(sorted, bound) <= allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::arrivals::Random;
    use super::*;

    /// P(Binomial(n, q) ≤ t), term by term from factorials: for small n only.
    fn binomial_cdf(n: usize, t: usize, q: f64) -> f64 {
        let choose = |k: usize| (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product::<f64>();
        (0..=t).map(|k| choose(k) * q.powi(k as i32) * (1.0 - q).powi((n - k) as i32)).sum()
    }

    #[test]
    fn the_numbers_are_those_of_the_load_generator() {
        // MLPerf's load generator asks for at least 64 queries for p90 and 662 for p99, and 459 to pass with none over.
        for (queries, percentile, allowed) in [
            (458, Percentile::P99, None),
            (459, Percentile::P99, Some(0)),
            (661, Percentile::P99, Some(0)),
            (662, Percentile::P99, Some(1)),
            (63, Percentile::P90, Some(0)),
            (64, Percentile::P90, Some(1)),
            // Summaries that it printed: 100 queries, 2 discarded; 201 queries, 9 discarded.
            (100, Percentile::P90, Some(3)),
            (201, Percentile::P90, Some(10)),
        ] {
            assert_eq!(allowed_over(queries, percentile), allowed, "{queries} {percentile:?}");
        }
        for percentile in [Percentile::P90, Percentile::P99] {
            let enough = percentile.queries_min();
            assert!(allowed_over(enough, percentile) >= Some(1) && allowed_over(enough - 1, percentile) < Some(1));
        }
    }

    #[test]
    fn many_queries_approach_the_percentile_and_do_not_underflow() {
        // The normal approximation, 2.326 standard deviations below the mean.
        for (n, percentile, q) in [(1_000_000, Percentile::P99, 0.01_f64), (5_000_000, Percentile::P90, 0.1)] {
            let allowed = allowed_over(n, percentile).unwrap() as f64;
            let (mean, deviation) = (n as f64 * q, (n as f64 * q * (1.0 - q)).sqrt());
            assert!((allowed - (mean - 2.326 * deviation)).abs() < 0.02 * deviation + 2.0, "{allowed}");
        }
    }

    #[test]
    fn too_few_queries_have_a_maximum_and_no_percentile() {
        let latencies: Vec<u64> = (1..=661).collect();
        assert_eq!(tail(&latencies, Percentile::P99), Tail::Max { ns: 661, queries: 661 });
        assert_eq!(tail(&latencies, Percentile::P99).name(), "max of 661");
        let latencies: Vec<u64> = (1..=662).collect();
        let estimate = Tail::Estimate { percentile: Percentile::P99, ns: 662, discarded: 0 };
        assert_eq!(tail(&latencies, Percentile::P99), estimate);
        assert_eq!((median(&latencies), median(&[7]), median(&[1, 2, 3])), (331, 7, 2));
    }

    #[test]
    fn the_estimate_is_above_the_true_percentile_in_99_of_100_runs() {
        let mut random = Random::new(3);
        for (queries, percentile) in [(64, Percentile::P90), (500, Percentile::P90), (1500, Percentile::P99)] {
            let runs = 2000;
            let below = (0..runs)
                .filter(|_| {
                    let mut latencies: Vec<u64> = (0..queries).map(|_| (random.unit() * 1e9) as u64).collect();
                    latencies.sort_unstable();
                    (tail(&latencies, percentile).ns() as f64) < percentile.share() * 1e9
                })
                .count();
            // 1 % of 2,000 is 20, its standard deviation 4.4.
            assert!(below <= 38, "{below} of {runs} runs of {queries} were below the true {percentile:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_allowed_is_the_largest_number_that_the_distribution_allows(n in 1usize..900) {
            for (percentile, q) in [(Percentile::P90, 0.1), (Percentile::P99, 0.01)] {
                match allowed_over(n, percentile) {
                    Some(t) => {
                        prop_assert!(binomial_cdf(n, t, q) < 0.01 + 1e-9);
                        prop_assert!(binomial_cdf(n, t + 1, q) >= 0.01 - 1e-9);
                    }
                    None => prop_assert!(binomial_cdf(n, 0, q) >= 0.01 - 1e-9),
                }
                prop_assert!(allowed_over(n + 1, percentile) >= allowed_over(n, percentile));
            }
        }

        #[test]
        fn an_estimate_is_never_below_the_percentile_of_the_sample(mut latencies in prop::collection::vec(0u64..1000, 1..1500)) {
            latencies.sort_unstable();
            for percentile in [Percentile::P90, Percentile::P99] {
                let rank = (percentile.share() * latencies.len() as f64).ceil() as usize;
                let tail = tail(&latencies, percentile);
                prop_assert!(tail.ns() >= latencies[rank - 1]);
                prop_assert_eq!(matches!(tail, Tail::Max { .. }), latencies.len() < percentile.queries_min());
                // A run keeps its own estimate as a bound.
                if latencies.len() >= 662 && percentile == Percentile::P99 {
                    prop_assert!(keeps(&latencies, tail.ns()));
                }
            }
            prop_assert_eq!(over(&latencies, 500), latencies.iter().filter(|latency| **latency > 500).count());
        }
    }
}
