//! What a session costs: time of a run, memory of the process.
//!
//! Time is that of the thread on its CPU. A session runs on one thread and waits for nothing, so this is its latency
//! where nothing else runs; what other processes take meanwhile is not the model's, and a proof made while a gateway
//! starts would fail its budget by it. Admission adds up these same times.

use std::fs;
use std::time::{Duration, Instant};

use limpet_engine::{EngineError, Session};
use rustix::time::{ClockId, clock_gettime};

/// With fewer timed runs than this a 99th percentile means nothing: with so many, the second largest time is above the
/// true one with 99 % confidence (0.99ⁿ + n · 0.01 · 0.99ⁿ⁻¹ ≤ 0.01 from n = 662 on).
pub const RUNS_FOR_P99: usize = 662;
/// No fewer runs than this, however slow they are, so that a median is one.
const RUNS_MIN: usize = 5;
/// No more runs than this, however fast they are.
const RUNS_MAX: usize = 2000;

/// Times of runs of the session alone, on the CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// Median.
    pub p50_us: f64,
    /// 99th percentile; of fewer than [`RUNS_FOR_P99`] runs, the longest.
    pub p99_us: f64,
    /// How many runs were timed.
    pub runs: usize,
}

/// Times runs until there are enough or `limit` is over. `feed` writes the inputs before each and is not timed.
pub fn latency(
    session: &mut dyn Session,
    limit: Duration,
    mut feed: impl FnMut(&mut dyn Session, usize) -> Result<(), String>,
) -> Result<Latency, String> {
    let start = Instant::now();
    let reading = reading_time();
    let mut times = Vec::with_capacity(RUNS_MAX);
    while times.len() < RUNS_MIN || (times.len() < RUNS_MAX && start.elapsed() < limit) {
        feed(session, times.len())?;
        let begin = cpu_time();
        session.run().map_err(|error: EngineError| error.to_string())?;
        times.push(cpu_time().saturating_sub(begin).saturating_sub(reading).as_nanos() as f64 / 1000.0);
    }
    Ok(of(&mut times))
}

/// Time that this thread has spent on a CPU.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// What reading that clock adds to a time: a system call, which counts beside a session of two microseconds.
fn reading_time() -> Duration {
    let once = || {
        let begin = cpu_time();
        cpu_time().saturating_sub(begin)
    };
    (0..100).map(|_| once()).min().unwrap_or_default()
}

fn of(times: &mut [f64]) -> Latency {
    times.sort_unstable_by(f64::total_cmp);
    let runs = times.len();
    // Nearest rank: the smallest time that so many of the runs do not exceed.
    let rank = |share: f64| times[((share * runs as f64).ceil() as usize).clamp(1, runs) - 1];
    let p99_us = if runs < RUNS_FOR_P99 { times[runs - 1] } else { rank(0.99) };
    Latency { p50_us: rank(0.5), p99_us, runs }
}

/// Proportional set size of this process in bytes, or none where the kernel does not tell.
pub fn memory() -> Option<u64> {
    proportional(&fs::read_to_string("/proc/self/smaps_rollup").ok()?)
}

fn proportional(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_runs_have_a_maximum_and_many_a_percentile() {
        let mut times: Vec<f64> = (1..=661).rev().map(f64::from).collect();
        assert_eq!(of(&mut times), Latency { p50_us: 331.0, p99_us: 661.0, runs: 661 });
        let mut times: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(of(&mut times), Latency { p50_us: 500.0, p99_us: 990.0, runs: 1000 });
        assert_eq!(of(&mut [7.0]), Latency { p50_us: 7.0, p99_us: 7.0, runs: 1 });
    }

    #[test]
    fn the_proportional_set_size_is_read_in_bytes() {
        let rollup =
            "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:  2032 kB\nPss:                 460 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(proportional(rollup), Some(460 * 1024));
        assert_eq!(proportional("Rss: 1 kB\n"), None);
        assert!(memory().is_none_or(|bytes| bytes > 0));
    }
}
