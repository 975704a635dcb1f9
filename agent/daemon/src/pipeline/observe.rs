//! What a stream really does, held against what was declared and assumed.

use std::sync::Arc;
use std::time::Duration;

use limpet_runtime::Moment;
use rustix::time::{ClockId, clock_gettime};

use super::plan::SourcePlan;

/// After so many messages of a stream its source is admitted again, with what was measured.
pub const MESSAGES: usize = 1000;
/// How far ahead of its declared rate a stream may be before it counts as too fast.
const AHEAD: Duration = Duration::from_secs(1);

/// What was seen of a source.
#[derive(Debug)]
pub struct Observation {
    /// The source.
    pub source: Arc<SourcePlan>,
    /// What was found.
    pub figures: Observed,
}

/// What can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// A message held so many samples, more than any before.
    Samples(usize),
    /// [`MESSAGES`] messages were measured.
    Figures(Figures),
}

/// What [`MESSAGES`] messages of a stream were like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Time from one sample to the next, on average.
    pub sample_period: Duration,
    /// J: all but one window in a hundred were complete in the agent so long after capture at most.
    pub wait: Duration,
    /// Thread CPU time of taking a message in, on average…
    pub ingest_mean: Duration,
    /// …and of all but one message in a hundred.
    pub ingest_worst: Duration,
    /// Time from one message to the next, on average.
    pub message_period: Duration,
}

impl Figures {
    /// The worse of two, figure by figure.
    pub fn worse(self, other: Self) -> Self {
        Self {
            sample_period: self.sample_period.min(other.sample_period),
            wait: self.wait.max(other.wait),
            ingest_mean: self.ingest_mean.max(other.ingest_mean),
            ingest_worst: self.ingest_worst.max(other.ingest_worst),
            message_period: self.message_period.min(other.message_period),
        }
    }
}

/// Measures a stream until there is enough, and then no more. Times are kept in units of 100 ns, four bytes each.
#[derive(Debug, Default)]
pub struct Observer {
    costs: Vec<u32>,
    waits: Vec<u32>,
    first: Option<(Moment, u64)>,
    done: bool,
}

impl Observer {
    /// Before a message, or the rest of one, is worked on. None if there is nothing to measure any more.
    pub fn begin(&mut self) -> Option<Duration> {
        (!self.done).then(cpu_time)
    }

    /// A window of the last message was complete so long after it was captured. The longest of a message counts.
    pub fn waited(&mut self, wait: Duration) {
        if !self.done
            && let Some(longest) = self.waits.last_mut()
        {
            *longest = (*longest).max(units(wait));
        }
    }

    /// A message begins.
    pub fn message(&mut self) {
        if !self.done {
            self.costs.push(0);
            self.waits.push(0);
        }
    }

    /// After a part of the last message was worked on.
    pub fn worked(&mut self, begun: Duration) {
        if let Some(cost) = self.costs.last_mut() {
            *cost = cost.saturating_add(units(cpu_time().saturating_sub(begun)));
        }
    }

    /// After a message that arrived at `arrived`, when `samples` are there in all: what was found, if that is enough.
    pub fn enough(&mut self, arrived: Moment, samples: u64) -> Option<Figures> {
        let (first, before) = *self.first.get_or_insert((arrived, samples));
        if self.done || self.costs.len() < MESSAGES {
            return None;
        }
        self.done = true;
        let (mut costs, mut waits) = (std::mem::take(&mut self.costs), std::mem::take(&mut self.waits));
        let span = arrived.since(first);
        let samples = samples.saturating_sub(before);
        // Nothing is known of the rate of a stream that was replayed in no time, or of one without samples.
        if samples == 0 || span.is_zero() {
            return None;
        }
        let of = |count: u64| Duration::from_nanos((span.as_nanos() as u64 / count).max(1));
        Some(Figures {
            sample_period: of(samples),
            wait: high(&mut waits),
            ingest_mean: UNIT * (costs.iter().map(|cost| u64::from(*cost)).sum::<u64>() / MESSAGES as u64) as u32,
            ingest_worst: high(&mut costs),
            message_period: of(MESSAGES as u64 - 1),
        })
    }
}

const UNIT: Duration = Duration::from_nanos(100);

fn units(time: Duration) -> u32 {
    u32::try_from(time.as_nanos() / UNIT.as_nanos()).unwrap_or(u32::MAX)
}

/// What all but one in a hundred do not exceed.
fn high(times: &mut [u32]) -> Duration {
    times.sort_unstable();
    UNIT * times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

/// CPU time of this thread.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Whether windows come faster than was admitted: the generic cell rate algorithm (ITU-T I.371), with a second of
/// tolerance, so that messages of many samples, and a link that delivers late, are no offense.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the next window would come at the declared rate.
    due: Moment,
}

impl Pace {
    /// Takes a window in that was captured at `captured`. Says whether it is one too many.
    pub fn is_over(&mut self, period: Duration, captured: Moment) -> bool {
        if self.due.before(AHEAD) > captured {
            return true;
        }
        self.due = self.due.max(captured).after(period);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(1_000_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn a_stream_at_its_declared_rate_is_never_too_fast_and_a_faster_one_after_a_second_of_excess() {
        let period = Duration::from_millis(10);
        let mut pace = Pace::default();
        assert!((0..10_000).all(|window| !pace.is_over(period, at(window * 10))));
        // A backlog of a second at once is no offense.
        assert!((0..100).all(|_| !pace.is_over(period, at(100_000))));
        let mut pace = Pace::default();
        let over: Vec<u64> = (0..1000).filter(|window| pace.is_over(period, at(window * 5))).collect();
        // Twice as fast: a second ahead after 200 windows, and then every other one.
        assert!((198..204).contains(&over[0]), "{}", over[0]);
        assert!((395..=405).contains(&over.len()), "{}", over.len());
    }

    #[test]
    fn a_thousand_messages_are_measured_once() {
        let mut observer = Observer::default();
        for message in 0..MESSAGES as u64 {
            observer.message();
            // A message may be worked on in parts.
            for part in 0..2 {
                let begun = observer.begin().expect("it is still measuring");
                observer.waited(Duration::from_millis((message % 100) * part));
                observer.worked(begun);
            }
            let figures = observer.enough(at(message * 20), (message + 1) * 64);
            if message + 1 < MESSAGES as u64 {
                assert_eq!(figures, None);
            } else {
                let figures = figures.expect("that was the last");
                assert_eq!(figures.message_period, Duration::from_millis(20));
                assert_eq!(figures.sample_period, Duration::from_nanos(312_500));
                assert_eq!(figures.wait, Duration::from_millis(98));
                assert!(figures.ingest_worst >= figures.ingest_mean);
            }
        }
        assert_eq!(observer.begin(), None);
    }
}
