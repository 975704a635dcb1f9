//! What a session costs: time of a run, memory of the process.
//!
//! Time is that of the thread on its CPU. A session runs on one thread and waits for nothing, so this is its latency
//! where nothing else runs; what other processes take meanwhile is not the model's, and a proof made while a gateway
//! starts would fail its budget by it. Admission adds up these same times, and those of the front end.

use std::fs;
use std::time::{Duration, Instant};

use limpet_engine::{EngineError, Session};
use limpet_signal::FrontEnd;
use rustix::time::{ClockId, clock_gettime};

use super::IngestCost;

/// With fewer timed runs than this a 99th percentile means nothing: with so many, the second largest time is above the
/// true one with 99 % confidence (0.99ⁿ + n · 0.01 · 0.99ⁿ⁻¹ ≤ 0.01 from n = 662 on).
pub const RUNS_FOR_P99: usize = 662;
/// No fewer runs than this, however slow they are, so that a median is one.
const RUNS_MIN: usize = 5;
/// Runs of a session before it is the other's turn.
const RUNS_A_TURN: usize = 4;
/// No more runs than this, however fast they are.
const RUNS_MAX: usize = 2000;

/// Times of runs of the session alone, on the CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// Median.
    pub p50_us: f64,
    /// Mean.
    pub mean_us: f64,
    /// 99th percentile; of fewer than [`RUNS_FOR_P99`] runs, the longest.
    pub p99_us: f64,
    /// How many runs were timed.
    pub runs: usize,
}

/// What is written into a session before a run that is timed; the number counts the runs.
pub type Feed<'a> = &'a dyn Fn(&mut dyn Session, usize) -> Result<(), String>;

/// Times runs until there are enough or `limit` is over. `feed` writes the inputs before each and is not timed.
pub fn latency(session: &mut dyn Session, limit: Duration, feed: Feed<'_>) -> Result<Latency, String> {
    let start = Instant::now();
    let mut timer = Timer::new();
    while timer.wants(start.elapsed() >= limit) {
        timer.run(session, feed)?;
    }
    Ok(timer.latency())
}

/// Times two sessions in turns of a few runs each, so that whatever the machine does meanwhile meets both, while most
/// runs find in the cache what the one before left there. The smaller runs `times` as often.
pub fn latencies(
    smaller: (&mut dyn Session, Feed<'_>),
    larger: (&mut dyn Session, Feed<'_>),
    times: usize,
    limit: Duration,
) -> Result<[Latency; 2], String> {
    let start = Instant::now();
    let mut timers = [Timer::new(), Timer::new()];
    while timers[1].wants(start.elapsed() >= limit) {
        for _ in 0..RUNS_A_TURN * times {
            timers[0].run(smaller.0, smaller.1)?;
        }
        for _ in 0..RUNS_A_TURN {
            timers[1].run(larger.0, larger.1)?;
        }
    }
    Ok(timers.map(Timer::latency))
}

/// Times of front ends, from samples to windows, in the steady state: what one hop of samples costs, which is what a
/// window costs. `sampled` are the front ends of one model, each with recorded samples; their costs add up. None if
/// there are none.
pub fn ingest(sampled: &[(FrontEnd, Vec<f32>)], limit: Duration) -> Option<IngestCost> {
    let limit = limit.checked_div(u32::try_from(sampled.len()).ok()?)?;
    let each = sampled.iter().map(|(front_end, samples)| ingest_one(front_end, samples, limit));
    each.reduce(|sum, one| IngestCost {
        mean_us: sum.mean_us + one.mean_us,
        p99_us: sum.p99_us + one.p99_us,
        runs: sum.runs.min(one.runs),
    })
}

fn ingest_one(front_end: &FrontEnd, samples: &[f32], limit: Duration) -> IngestCost {
    let start = Instant::now();
    let mut stream = front_end.stream();
    let mut features = vec![0.0; front_end.features_len()];
    let mut push = |samples: &[f32]| {
        stream
            .push(samples, |window| features.copy_from_slice(window.features))
            .expect("whole samples of all channels");
        std::hint::black_box(&mut features);
    };
    push(&samples[..front_end.samples_per_window() * front_end.channels()]);
    let hop = front_end.samples_per_hop() * front_end.channels();
    let mut endless = samples.iter().copied().cycle();
    let mut taken = Vec::with_capacity(hop);
    let mut timer = Timer::new();
    while timer.wants(start.elapsed() >= limit) {
        taken.clear();
        taken.extend(endless.by_ref().take(hop));
        timer.time(|| push(&taken));
    }
    let Latency { mean_us, p99_us, runs, .. } = timer.latency();
    IngestCost { mean_us, p99_us, runs }
}

/// Collects times of runs.
struct Timer {
    reading: Duration,
    times: Vec<f64>,
}

impl Timer {
    fn new() -> Self {
        Self { reading: reading_time(), times: Vec::with_capacity(RUNS_MAX) }
    }

    /// Whether another run is to be timed, now that the time for it is over or not.
    fn wants(&self, over: bool) -> bool {
        self.times.len() < RUNS_MIN || (self.times.len() < RUNS_MAX && !over)
    }

    fn run(&mut self, session: &mut dyn Session, feed: Feed<'_>) -> Result<(), String> {
        feed(session, self.times.len())?;
        self.time(|| session.run()).map_err(|error: EngineError| error.to_string())
    }

    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = cpu_time();
        let done = work();
        let took = cpu_time().saturating_sub(begin).saturating_sub(self.reading);
        self.times.push(took.as_nanos() as f64 / 1000.0);
        done
    }

    fn latency(mut self) -> Latency {
        of(&mut self.times)
    }
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
    Latency { p50_us: rank(0.5), mean_us: times.iter().sum::<f64>() / runs as f64, p99_us, runs }
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
        assert_eq!(of(&mut times), Latency { p50_us: 331.0, mean_us: 331.0, p99_us: 661.0, runs: 661 });
        let mut times: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(of(&mut times), Latency { p50_us: 500.0, mean_us: 500.5, p99_us: 990.0, runs: 1000 });
        assert_eq!(of(&mut [7.0]), Latency { p50_us: 7.0, mean_us: 7.0, p99_us: 7.0, runs: 1 });
    }

    #[test]
    fn the_front_end_is_timed_by_the_hop() {
        use limpet_signal::{Frame, PowerSpectrum, Step, WindowFunction};
        let steps = |hop| {
            [
                Step::Frame(Frame { length: 64, hop, window: WindowFunction::Rectangular }),
                Step::PowerSpectrum(PowerSpectrum { divide_by: 64.0, fft_length: None }),
            ]
        };
        // Windows that do not overlap, and that lie apart from one another.
        for (frames, hop) in [(4, 1), (4, 4), (2, 6)] {
            let front_end = FrontEnd::new(&steps(32), 1000.0, 2, frames, hop).unwrap();
            let samples = vec![0.5; 3 * front_end.samples_per_window() * 2];
            let one = ingest(&[(front_end, samples)], Duration::from_millis(5)).unwrap();
            assert!(one.mean_us > 0.0 && one.p99_us > 0.0 && one.runs >= RUNS_MIN, "{one:?}");
        }
        assert_eq!(ingest(&[], Duration::from_millis(5)), None);
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
