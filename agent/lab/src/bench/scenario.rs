//! The four scenarios of MLPerf Inference, on a clock and a session that may be simulated.
//!
//! - **single-stream**: one sample a query, the next query when the last is done.
//! - **multi-stream**: the same with eight samples a query.
//! - **server**: one sample a query, at times that were drawn beforehand; a latency counts from the scheduled time, so
//!   whoever is late to start a query is late for it. The schedule is the queue: every free worker waits
//!   until the oldest query that nobody has taken is due, and the first one takes it. That is a queue in front of the
//!   sessions, first come first served, that never holds more than was scheduled, and no thread that hands out
//!   queries takes a core from those that answer them.
//! - **offline**: all samples are there at the start, and are taken batch by batch.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use limpet_engine::EngineError;

use super::statistics::Percentile;

/// Samples of a multi-stream query.
pub const MULTI_STREAM_SAMPLES: usize = 8;
/// Most queries, or batches, of one run: 40 MB of latencies.
pub const QUERIES_MAX: usize = 5_000_000;
/// How much longer than asked for a run may last until it has enough queries for its percentile.
pub const STRETCH: u32 = 4;
/// How often a run tells how far it is.
const TICK: u64 = 100_000_000;

/// A session on a clock.
pub trait Station: Send {
    /// Nanoseconds since a moment that all stations of a run share.
    fn now(&self) -> u64;

    /// Returns at `at`, or at once if that is over.
    fn wait_until(&mut self, at: u64);

    /// Runs one batch of samples, the first of them number `first`.
    ///
    /// # Errors
    /// What the session gives.
    fn run(&mut self, first: u64) -> Result<(), EngineError>;

    /// Samples of one run.
    fn batch(&self) -> usize;
}

/// What a run of a scenario took.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// Latencies of the queries, or of the batches where there is one query, in nanoseconds, ascending.
    pub sorted: Vec<u64>,
    /// The whole of it.
    pub elapsed: Duration,
}

impl Times {
    fn new(mut latencies: Vec<u64>, elapsed: u64) -> Self {
        latencies.sort_unstable();
        Self { sorted: latencies, elapsed: Duration::from_nanos(elapsed) }
    }
}

/// How a stream of queries is made.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    /// Samples of a query, a multiple of the batch.
    pub samples: usize,
    /// What is to be told of the latencies.
    pub percentile: Percentile,
    /// How long at least. It lasts up to [`STRETCH`] times as long until there are enough queries for the percentile.
    pub length: Duration,
}

/// Runs single-stream or multi-stream. `tick` is told how far it is, 0 to 1, between queries.
///
/// # Errors
/// What the session gives.
pub fn stream<S: Station>(station: &mut S, rule: Stream, mut tick: impl FnMut(f64)) -> Result<Times, EngineError> {
    let length = nanoseconds(rule.length);
    let longest = length.saturating_mul(u64::from(STRETCH));
    let batch = station.batch();
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut sample = 0;
    let start = station.now();
    let mut next_tick = start;
    loop {
        let now = station.now();
        let elapsed = now - start;
        let enough = elapsed >= length && latencies.len() >= rule.percentile.queries_min();
        let full = elapsed >= longest || latencies.len() >= QUERIES_MAX;
        if !latencies.is_empty() && (enough || full) {
            return Ok(Times::new(latencies, elapsed));
        }
        if now >= next_tick {
            let counted = latencies.len() as f64 / rule.percentile.queries_min() as f64;
            tick((elapsed as f64 / length as f64).min(counted).min(1.0));
            next_tick = now + TICK;
        }
        let begin = station.now();
        for _ in 0..rule.samples / batch {
            station.run(sample)?;
            sample += batch as u64;
        }
        latencies.push(station.now() - begin);
    }
}

/// Runs a schedule of arrivals, in nanoseconds from the start, on stations of batch 1.
///
/// # Errors
/// What a session gives.
pub fn server<S: Station>(stations: &mut [S], arrivals: &[u64]) -> Result<Times, EngineError> {
    /// Until every worker is up.
    const LEAD: u64 = 5_000_000;
    let start = now(stations) + LEAD;
    let next = AtomicUsize::new(0);
    let work = |station: &mut S| {
        let mut latencies = Vec::with_capacity(arrivals.len());
        loop {
            let number = next.load(Ordering::Relaxed);
            let Some(arrival) = arrivals.get(number) else { return Ok(latencies) };
            let due = start + arrival;
            station.wait_until(due);
            // Not before it is due: whoever loses its core while it waits must not keep a query from the others.
            if next.compare_exchange(number, number + 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                continue;
            }
            station.run(number as u64).inspect_err(|_| next.store(arrivals.len(), Ordering::Relaxed))?;
            latencies.push(station.now() - due);
        }
    };
    let latencies = on_each(stations, &work)?;
    Ok(Times::new(latencies, now(stations) - start))
}

/// Runs `batches` batches of samples that are all there; the latencies are those of the batches.
///
/// # Errors
/// What a session gives.
pub fn offline<S: Station>(stations: &mut [S], batches: usize) -> Result<Times, EngineError> {
    let start = now(stations);
    let next = AtomicUsize::new(0);
    let work = |station: &mut S| {
        let mut latencies = Vec::with_capacity(batches.min(QUERIES_MAX));
        loop {
            let taken = next.fetch_add(1, Ordering::Relaxed);
            if taken >= batches {
                return Ok(latencies);
            }
            let begin = station.now();
            let first = (taken * station.batch()) as u64;
            station.run(first).inspect_err(|_| next.store(batches, Ordering::Relaxed))?;
            latencies.push(station.now() - begin);
        }
    };
    let latencies = on_each(stations, &work)?;
    Ok(Times::new(latencies, now(stations) - start))
}

/// Mean time of a batch in nanoseconds, over `length` and at least three of them.
///
/// # Errors
/// What the session gives.
pub fn warm_up<S: Station>(station: &mut S, length: Duration) -> Result<f64, EngineError> {
    let start = station.now();
    let mut runs = 0_u64;
    loop {
        station.run(runs * station.batch() as u64)?;
        runs += 1;
        let elapsed = station.now() - start;
        if runs >= 3 && elapsed >= nanoseconds(length) {
            return Ok((elapsed as f64 / runs as f64).max(1.0));
        }
    }
}

/// Nanoseconds of a duration.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The latest of the stations' clocks.
fn now<S: Station>(stations: &[S]) -> u64 {
    stations.iter().map(Station::now).max().unwrap_or_default()
}

/// One thread a station; what they gave, together.
fn on_each<S: Station>(
    stations: &mut [S],
    work: &(impl Fn(&mut S) -> Result<Vec<u64>, EngineError> + Sync),
) -> Result<Vec<u64>, EngineError> {
    thread::scope(|scope| {
        let threads: Vec<_> = stations.iter_mut().map(|station| scope.spawn(move || work(station))).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.append(&mut thread.join().expect("a worker does not panic")?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::super::arrivals::{Random, poisson};
    use super::super::statistics::{self, Tail, median, tail};
    use super::*;

    /// A session of simulated time: each run takes what `service` says of its number.
    struct Simulated<F> {
        now: u64,
        batch: usize,
        runs: u64,
        service: F,
    }

    impl<F: FnMut(u64) -> u64 + Send> Simulated<F> {
        fn new(batch: usize, service: F) -> Self {
            Self { now: 0, batch, runs: 0, service }
        }
    }

    impl<F: FnMut(u64) -> u64 + Send> Station for Simulated<F> {
        fn now(&self) -> u64 {
            self.now
        }

        fn wait_until(&mut self, at: u64) {
            self.now = self.now.max(at);
        }

        fn run(&mut self, _: u64) -> Result<(), EngineError> {
            self.now += (self.service)(self.runs);
            self.runs += 1;
            Ok(())
        }

        fn batch(&self) -> usize {
            self.batch
        }
    }

    fn mean(times: &Times) -> f64 {
        times.sorted.iter().map(|latency| *latency as f64).sum::<f64>() / times.sorted.len() as f64
    }

    #[test]
    fn a_queue_with_constant_service_waits_as_long_as_theory_says() {
        // M/D/1: the mean wait is ρ·s / (2·(1 − ρ)) (Pollaczek and Khinchine with a coefficient of variation of 0).
        let service = 1_000_000_u64;
        for load in [0.3, 0.5, 0.8] {
            let mut stations = [Simulated::new(1, |_| service)];
            let times = server(&mut stations, &poisson(load * 1000.0, 400_000, 1)).unwrap();
            let expected = service as f64 * (1.0 + load / (2.0 * (1.0 - load)));
            assert!((mean(&times) / expected - 1.0).abs() < 0.03, "load {load}: {} is not {expected}", mean(&times));
            assert_eq!(times.sorted.len(), 400_000);
            assert!(times.sorted[0] >= service);
        }
    }

    #[test]
    fn a_queue_with_exponential_service_has_exponential_latencies() {
        // M/M/1: the latency is exponential with mean s / (1 − ρ), so its p99 is 4.605 of these.
        let mut random = Random::new(9);
        let mut stations = [Simulated::new(1, move |_| (-random.unit().ln() * 1e6) as u64)];
        let times = server(&mut stations, &poisson(500.0, 400_000, 1)).unwrap();
        assert!((mean(&times) / 2e6 - 1.0).abs() < 0.03, "{}", mean(&times));
        let p99 = tail(&times.sorted, Percentile::P99).ns() as f64;
        assert!((p99 / (2e6 * 100.0_f64.ln()) - 1.0).abs() < 0.05, "{p99}");
    }

    #[test]
    fn a_latency_counts_from_the_scheduled_time() {
        // Three at once on one session that takes 10: the second starts 10 late, the third 20.
        let mut stations = [Simulated::new(1, |_| 10)];
        let times = server(&mut stations, &[0, 0, 0, 1000]).unwrap();
        assert_eq!(times.sorted, [10, 10, 20, 30]);
    }

    #[test]
    fn a_run_that_is_overloaded_does_not_keep_its_bound_and_one_that_is_not_does() {
        let bound = 20_000_000;
        for (rate, kept) in [(900.0, true), (1100.0, false)] {
            let mut stations = [Simulated::new(1, |_| 1_000_000)];
            let times = server(&mut stations, &poisson(rate, 10_000, 1)).unwrap();
            assert_eq!(statistics::keeps(&times.sorted, bound), kept, "{rate}/s");
        }
    }

    #[test]
    fn a_stream_lasts_until_it_has_enough_queries_and_no_more_than_four_times_as_long() {
        let rule = Stream { samples: 1, percentile: Percentile::P90, length: Duration::from_secs(1) };
        // 10 ms a query: 100 queries in a second, which is enough.
        let times = stream(&mut Simulated::new(1, |_| 10_000_000), rule, |_| ()).unwrap();
        assert_eq!((times.sorted.len(), times.elapsed), (100, Duration::from_secs(1)));
        // 50 ms a query: 64 queries take 3.2 s.
        let times = stream(&mut Simulated::new(1, |_| 50_000_000), rule, |_| ()).unwrap();
        assert_eq!((times.sorted.len(), times.elapsed), (64, Duration::from_millis(3200)));
        // 100 ms a query: 40 in 4 s, too few for a p90.
        let times = stream(&mut Simulated::new(1, |_| 100_000_000), rule, |_| ()).unwrap();
        assert_eq!(times.sorted.len(), 40);
        assert_eq!(tail(&times.sorted, Percentile::P90), Tail::Max { ns: 100_000_000, queries: 40 });
        // One query that takes longer than all of that is still measured.
        let times = stream(&mut Simulated::new(1, |_| 10_000_000_000), rule, |_| ()).unwrap();
        assert_eq!(times.sorted, [10_000_000_000]);
    }

    #[test]
    fn a_multi_stream_query_is_eight_samples_in_as_many_batches_as_that_takes() {
        for batch in [1, 2, 4, 8] {
            let mut station = Simulated::new(batch, |_| 1000);
            let length = Duration::from_millis(10);
            let rule = Stream { samples: MULTI_STREAM_SAMPLES, percentile: Percentile::P99, length };
            let times = stream(&mut station, rule, |_| ()).unwrap();
            assert_eq!(median(&times.sorted), 8000 / batch as u64);
        }
    }

    #[test]
    fn offline_runs_every_batch_once() {
        let mut stations = [0, 1].map(|_| Simulated::new(4, |_| 1000));
        let times = offline(&mut stations, 1001).unwrap();
        assert_eq!(times.sorted.len(), 1001);
        assert_eq!(stations.iter().map(|station| station.runs).sum::<u64>(), 1001);
        assert_eq!(times.elapsed.as_nanos() as u64, stations.iter().map(|station| station.now).max().unwrap());
    }

    #[test]
    fn a_session_that_fails_ends_the_run() {
        struct Broken;
        impl Station for Broken {
            fn now(&self) -> u64 {
                0
            }
            fn wait_until(&mut self, _: u64) {}
            fn run(&mut self, _: u64) -> Result<(), EngineError> {
                Err(EngineError::Run { engine: "tract", reason: "no".into() })
            }
            fn batch(&self) -> usize {
                1
            }
        }
        assert!(server(&mut [Broken, Broken], &[0; 100]).is_err());
        assert!(offline(&mut [Broken, Broken], 100).is_err());
        assert!(warm_up(&mut Broken, Duration::from_secs(1)).is_err());
    }
}
