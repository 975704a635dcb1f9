//! Where a message's samples stand in time, and what is missing before them.
//!
//! A sequence number in the header is the best witness: it tells lost messages from late ones. Without one, payload
//! times are; and without those, arrival, which only an interval far beyond what is usual can turn into a gap.
//!
//! A payload's time is another machine's clock. It is mapped to CLOCK_BOOTTIME by the smallest difference between
//! arrival and payload time of the last ten minutes: the message that was delayed least. `max_skew` bounds the
//! deviation from that line, not from UTC, in both directions. A time beyond it is not believed: it neither moves the
//! line nor is later messages' measure. Only a clock that was set, which several messages in a row agree on, starts
//! a new line; a delay never does, since it cannot turn time back or let messages arrive before they were sent.

use std::collections::VecDeque;
use std::time::Duration;

use limpet_runtime::Moment;

/// Whose clock tells when samples were captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeSource {
    /// The agent's: a sample was captured when it arrived.
    Arrival,
    /// The payload's.
    Payload {
        /// Largest deviation from the usual delay that is believed.
        max_skew: Duration,
    },
}

/// What a timeline needs to know of its source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimingRule {
    /// Samples per second.
    pub rate_hz: f64,
    /// Whose clock.
    pub time: TimeSource,
    /// Longest interval without samples that is no gap, if the source says one.
    pub max_gap: Option<Duration>,
}

/// A message, as far as time is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// When it arrived.
    pub arrived: Moment,
    /// The payload's time of its last sample, in nanoseconds since the UNIX epoch.
    pub payload_ns: Option<i64>,
    /// The payload's sequence number.
    pub sequence: Option<u32>,
    /// Samples in it, at least one.
    pub samples: usize,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// When its last sample was captured.
    pub captured: Moment,
    /// The payload's own time of that, if it is believed.
    pub payload_ns: Option<i64>,
    /// What is missing before it.
    pub gap: Option<Gap>,
    /// Whether the payload tells what is missing, by sequence number or time. If not, the arrival does, in which a
    /// single lost message does not show.
    pub told: bool,
    /// The payload's time deviates by more than `max_skew`; arrival stands in for it.
    pub skewed: bool,
}

/// Samples that did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How many, as far as can be told.
    pub missing: u64,
}

/// Why a message has no place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misplaced {
    /// It came before: the same sequence number or time.
    Repeated,
    /// It is older than what came before it.
    OutOfOrder,
}

/// Intervals between arrivals of which the median is taken.
const INTERVALS: usize = 15;
/// A jump of the sequence number beyond this is a sender that started anew, not a loss.
const SEQUENCE_HALF: u32 = 1 << 31;
/// A sequence number that is behind by at most this was overtaken on the way.
const OVERTAKEN: u32 = 1000;
/// Messages in a row that agree before they are believed: that the sender counts anew, or that its clock was set.
const AGREEING: u32 = 3;

/// The place in time of one stream.
#[derive(Debug, Clone)]
pub struct Timeline {
    rule: TimingRule,
    last: Option<Last>,
    intervals: VecDeque<u64>,
    offset: SlidingMinimum,
    /// The last message that was refused as overtaken, and how many in a row before it rose by one.
    behind: Option<Run<u32>>,
    /// Arrival minus payload time of messages that tell of a clock that was set: the smallest, and how many agree.
    moved: Option<Run<i128>>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    arrived: Moment,
    /// Only if it was believed.
    payload_ns: Option<i64>,
    sequence: Option<u32>,
    samples: usize,
}

/// Messages in a row that agree on something.
#[derive(Debug, Clone, Copy)]
struct Run<T> {
    value: T,
    messages: u32,
}

impl Timeline {
    /// A stream that nothing was heard of.
    pub fn new(rule: TimingRule) -> Self {
        Self {
            rule,
            last: None,
            intervals: VecDeque::with_capacity(INTERVALS),
            offset: SlidingMinimum::default(),
            behind: None,
            moved: None,
        }
    }

    /// Places a message behind those before it.
    ///
    /// # Errors
    /// If it was here before or comes too late. Of such a message only that it came is remembered: several in a row
    /// that count up are a sender that started anew.
    pub fn place(&mut self, stamp: Stamp) -> Result<Placement, Misplaced> {
        let difference = match (self.rule.time, stamp.payload_ns) {
            (TimeSource::Payload { max_skew }, Some(payload_ns)) => {
                Some((payload_ns, stamp.arrived.0 as i128 - i128::from(payload_ns), max_skew.as_nanos() as i128))
            }
            _ => None,
        };
        let believed = difference.and_then(|(payload_ns, difference, max_skew)| {
            let usual = self.offset.minimum(stamp.arrived);
            usual.is_none_or(|usual| (difference - usual).abs() <= max_skew).then_some(payload_ns)
        });
        let (gap, told) = match self.last {
            None => (None, true),
            Some(last) => self.gap_after(&last, &stamp, believed)?,
        };
        let mut placement = Placement { captured: stamp.arrived, payload_ns: None, gap, told, skewed: false };
        if let Some((payload_ns, difference, max_skew)) = difference {
            if believed.is_some() || self.clock_was_set(&stamp, payload_ns, difference, max_skew) {
                self.moved = None;
                let late = difference - self.offset.offer(stamp.arrived, difference);
                placement.captured = stamp.arrived.before(Duration::from_nanos(u64::try_from(late).unwrap_or(0)));
                placement.payload_ns = Some(payload_ns);
            } else {
                placement.skewed = true;
            }
        }
        if let Some(last) = &self.last {
            if self.intervals.len() == INTERVALS {
                self.intervals.pop_front();
            }
            self.intervals.push_back(stamp.arrived.0.saturating_sub(last.arrived.0));
        }
        self.behind = None;
        self.last = Some(Last {
            arrived: stamp.arrived,
            payload_ns: placement.payload_ns,
            sequence: stamp.sequence,
            samples: stamp.samples,
        });
        Ok(placement)
    }

    /// Looks at a time that is not believed: whether it and those just before it agree on a new line, which then
    /// replaces the old one. Messages that are only late do not count: they were delayed.
    fn clock_was_set(&mut self, stamp: &Stamp, payload_ns: i64, difference: i128, max_skew: i128) -> bool {
        let early = self.offset.minimum(stamp.arrived).is_some_and(|usual| difference < usual);
        self.moved = match self.moved {
            Some(run) if (difference - run.value).abs() <= max_skew => {
                Some(Run { value: run.value.min(difference), messages: run.messages + 1 })
            }
            _ if early || self.stepped_back(payload_ns, max_skew) => Some(Run { value: difference, messages: 1 }),
            _ => None,
        };
        let Some(run) = self.moved.filter(|run| run.messages >= AGREEING) else { return false };
        self.offset = SlidingMinimum::default();
        self.offset.offer(stamp.arrived, run.value);
        true
    }

    /// Whether a time lies before the last one that was believed, by more than may be.
    fn stepped_back(&self, payload_ns: i64, max_skew: i128) -> bool {
        let before = self.last.and_then(|last| last.payload_ns);
        before.is_some_and(|before| i128::from(before) - i128::from(payload_ns) > max_skew)
    }

    /// What is missing between two messages, and whether the payload tells it.
    fn gap_after(
        &mut self,
        last: &Last,
        stamp: &Stamp,
        believed: Option<i64>,
    ) -> Result<(Option<Gap>, bool), Misplaced> {
        let period_ns = 1e9 / self.rule.rate_hz;
        let anew = Some(Gap { missing: 0 });
        if let (Some(before), Some(sequence)) = (last.sequence, stamp.sequence) {
            return match sequence.wrapping_sub(before) {
                0 => Err(Misplaced::Repeated),
                1 => Ok((None, true)),
                // One that is only a little behind was overtaken on the way; further back, the sender started anew.
                step if step >= u32::MAX - OVERTAKEN => {
                    if self.counts_anew(last, stamp, sequence) {
                        Ok((anew, true))
                    } else {
                        Err(Misplaced::OutOfOrder)
                    }
                }
                step if step >= SEQUENCE_HALF => Ok((anew, true)),
                step => Ok((Some(Gap { missing: u64::from(step - 1) * last.samples as u64 }), true)),
            };
        }
        if let (Some(before), Some(now)) = (last.payload_ns, believed) {
            if now == before {
                return Err(Misplaced::Repeated);
            }
            let first = now as f64 - (stamp.samples - 1) as f64 * period_ns;
            let interval = first - before as f64;
            if interval < -0.5 * period_ns || now < before {
                return Err(Misplaced::OutOfOrder);
            }
            let longest = self.rule.max_gap.map_or(1.5 * period_ns, |gap| gap.as_nanos() as f64);
            let missing = (interval / period_ns).round() - 1.0;
            return Ok(((interval > longest).then_some(Gap { missing: missing.max(0.0) as u64 }), true));
        }
        if let (TimeSource::Payload { max_skew }, Some(now)) = (self.rule.time, stamp.payload_ns)
            && self.stepped_back(now, max_skew.as_nanos() as i128)
        {
            return Ok((anew, true));
        }
        let interval = stamp.arrived.0.saturating_sub(last.arrived.0) as f64;
        let duration = stamp.samples as f64 * period_ns;
        let missing = ((interval - duration) / period_ns).round();
        let gap = (interval > self.longest_interval(duration)).then_some(Gap { missing: missing.max(0.0) as u64 });
        Ok((gap, false))
    }

    /// Whether a sequence number that is a little behind is not that of an overtaken message: after an unusual
    /// silence, or where several in a row count up, the sender has started anew.
    fn counts_anew(&mut self, last: &Last, stamp: &Stamp, sequence: u32) -> bool {
        let duration = stamp.samples as f64 * 1e9 / self.rule.rate_hz;
        let silence = stamp.arrived.0.saturating_sub(last.arrived.0) as f64;
        let messages = match self.behind {
            Some(run) if sequence == run.value.wrapping_add(1) => run.messages + 1,
            _ => 1,
        };
        self.behind = Some(Run { value: sequence, messages });
        messages >= AGREEING || silence > self.longest_interval(duration)
    }

    /// The longest interval between two arrivals that is not unusual, for a message that lasts `duration`, both in
    /// nanoseconds.
    fn longest_interval(&self, duration: f64) -> f64 {
        match self.rule.max_gap {
            // What is missing is what the message itself does not account for.
            Some(gap) => gap.as_nanos() as f64 + duration,
            // Messages may come in bursts, faster than they were captured: no interval shorter than what a message
            // holds is unusual.
            None => 3.0 * self.median_interval().max(duration),
        }
    }

    fn median_interval(&self) -> f64 {
        let mut sorted: Vec<u64> = self.intervals.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).map_or(0.0, |ns| *ns as f64)
    }
}

/// The smallest value of the last ten minutes, to the minute.
#[derive(Debug, Clone, Default)]
struct SlidingMinimum {
    /// Minute since boot and its minimum, oldest first.
    minutes: VecDeque<(u64, i128)>,
}

impl SlidingMinimum {
    const MINUTES: u64 = 10;

    /// The minimum, if there is a value that is not too old.
    fn minimum(&mut self, at: Moment) -> Option<i128> {
        let minute = Self::minute(at);
        while self.minutes.front().is_some_and(|(old, _)| old + Self::MINUTES <= minute) {
            self.minutes.pop_front();
        }
        self.minutes.iter().map(|(_, minimum)| *minimum).min()
    }

    /// Takes a value in and gives the minimum, that value counted.
    fn offer(&mut self, at: Moment, value: i128) -> i128 {
        let minute = Self::minute(at);
        match self.minutes.back_mut() {
            Some((newest, minimum)) if *newest == minute => *minimum = value.min(*minimum),
            _ => self.minutes.push_back((minute, value)),
        }
        self.minimum(at).unwrap_or(value)
    }

    fn minute(at: Moment) -> u64 {
        at.0 / 60_000_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn timeline(time: TimeSource) -> Timeline {
        Timeline::new(TimingRule { rate_hz: 1000.0, time, max_gap: None })
    }

    fn at(ms: u64) -> Stamp {
        Stamp { arrived: Moment(ms * MS), payload_ns: None, sequence: None, samples: 10 }
    }

    #[test]
    fn a_lost_message_is_known_by_its_sequence_number() {
        let mut line = timeline(TimeSource::Arrival);
        for (sequence, gap) in [(u32::MAX, None), (0, None), (3, Some(Gap { missing: 20 })), (4, None)] {
            let stamp = Stamp { sequence: Some(sequence), ..at(u64::from(sequence & 7)) };
            assert_eq!(line.place(stamp).unwrap().gap, gap);
        }
        assert_eq!(line.place(Stamp { sequence: Some(4), ..at(5) }), Err(Misplaced::Repeated));
        assert_eq!(line.place(Stamp { sequence: Some(2), ..at(5) }), Err(Misplaced::OutOfOrder));
        assert_eq!(
            line.place(Stamp { sequence: Some(5), ..at(6) }).unwrap().gap,
            None,
            "a refused one leaves no trace"
        );
    }

    #[test]
    fn a_sender_that_starts_anew_is_a_gap_of_unknown_length() {
        let mut line = timeline(TimeSource::Arrival);
        line.place(Stamp { sequence: Some(1_000_000), ..at(0) }).unwrap();
        let placed = line.place(Stamp { sequence: Some(1), ..at(10) }).unwrap();
        assert_eq!(placed.gap, Some(Gap { missing: 0 }));
    }

    #[test]
    fn late_arrivals_are_a_gap_only_far_beyond_the_usual_interval() {
        let mut line = timeline(TimeSource::Arrival);
        for ms in [0, 10, 20, 30, 45, 70, 80] {
            assert_eq!(line.place(at(ms)).unwrap().gap, None, "at {ms}");
        }
        assert_eq!(line.place(at(120)).unwrap().gap, Some(Gap { missing: 30 }));
    }

    #[test]
    fn a_burst_does_not_make_the_next_usual_interval_a_gap() {
        let mut line = timeline(TimeSource::Arrival);
        for i in 0..20 {
            line.place(Stamp { arrived: Moment(i * 1000), ..at(0) }).unwrap();
        }
        assert_eq!(line.place(at(20)).unwrap().gap, None);
    }

    #[test]
    fn a_slow_sensor_keeps_its_own_pace() {
        let rule = TimingRule { rate_hz: 0.1, time: TimeSource::Arrival, max_gap: None };
        let mut line = Timeline::new(rule);
        let one = |s: u64| Stamp { arrived: Moment(s * 1000 * MS), samples: 1, ..at(0) };
        for s in [0, 10, 20, 31, 40] {
            assert_eq!(line.place(one(s)).unwrap().gap, None);
        }
        assert_eq!(line.place(one(90)).unwrap().gap, Some(Gap { missing: 4 }));
    }

    fn payload(arrived_ms: u64, payload_ms: i64) -> Stamp {
        Stamp { payload_ns: Some(payload_ms * MS as i64), ..at(arrived_ms) }
    }

    #[test]
    fn payload_times_are_mapped_by_the_least_delayed_message() {
        let mut line = timeline(TimeSource::Payload { max_skew: Duration::from_secs(2) });
        // The sender's clock is far from boot time; its messages take 5 to 40 ms.
        line.place(payload(1040, 9_000_000)).unwrap();
        let quick = line.place(payload(1015, 9_000_010)).unwrap();
        assert_eq!(quick.captured, Moment(1015 * MS));
        let slow = line.place(payload(1050, 9_000_020)).unwrap();
        assert_eq!((slow.captured, slow.skewed), (Moment(1025 * MS), false));
        assert_eq!(slow.payload_ns, Some(9_000_020 * MS as i64));
    }

    #[test]
    fn a_payload_time_beyond_max_skew_is_counted_and_arrival_used() {
        let mut line = timeline(TimeSource::Payload { max_skew: Duration::from_secs(2) });
        line.place(payload(1000, 9_000_000)).unwrap();
        let placed = line.place(payload(4010, 9_000_010)).unwrap();
        assert!(placed.skewed);
        assert_eq!((placed.captured, placed.payload_ns), (Moment(4010 * MS), None));
    }

    #[test]
    fn missing_payload_time_is_a_gap_and_an_older_one_is_refused() {
        let mut line = timeline(TimeSource::Payload { max_skew: Duration::from_secs(2) });
        line.place(payload(1000, 9_000_000)).unwrap();
        assert_eq!(line.place(payload(1010, 9_000_010)).unwrap().gap, None);
        assert_eq!(line.place(payload(1011, 9_000_010)), Err(Misplaced::Repeated));
        assert_eq!(line.place(payload(1011, 9_000_005)), Err(Misplaced::OutOfOrder));
        assert_eq!(line.place(payload(1050, 9_000_050)).unwrap().gap, Some(Gap { missing: 30 }));
    }

    /// Ten samples every 10 ms, the sender's clock 9,000 s ahead of boot time, `off_ms` off from that.
    fn sent(n: u64, off_ms: i64) -> Stamp {
        payload(1000 + 10 * n, 9_000_000 + 10 * n as i64 + off_ms)
    }

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn one_time_far_ahead_makes_nothing_after_it_old() {
        let mut line = timeline(TimeSource::Payload { max_skew: Duration::from_secs(2) });
        for n in 0..5 {
            line.place(sent(n, 0)).unwrap();
        }
        let wrong = line.place(sent(5, HOUR_MS)).unwrap();
        assert_eq!((wrong.skewed, wrong.captured, wrong.payload_ns), (true, sent(5, 0).arrived, None));
        for n in 6..10 {
            let placed = line.place(sent(n, 0)).unwrap();
            assert_eq!((placed.skewed, placed.gap, placed.captured), (false, None, sent(n, 0).arrived), "message {n}");
        }
    }

    #[test]
    fn a_clock_that_is_set_is_followed_when_three_messages_agree() {
        for off_ms in [HOUR_MS, -HOUR_MS] {
            let mut line = timeline(TimeSource::Payload { max_skew: Duration::from_secs(2) });
            for n in 0..5 {
                line.place(sent(n, 0)).unwrap();
            }
            let skewed: Vec<bool> = (5..10).map(|n| line.place(sent(n, off_ms)).unwrap().skewed).collect();
            assert_eq!(skewed, [true, true, false, false, false], "by {off_ms} ms");
            assert_eq!(line.place(sent(10, off_ms)).unwrap().payload_ns, sent(10, off_ms).payload_ns);
        }
    }

    #[test]
    fn a_first_message_with_a_wrong_time_does_not_spoil_the_line() {
        let mut line = timeline(TimeSource::Payload { max_skew: Duration::from_secs(2) });
        line.place(sent(0, HOUR_MS)).unwrap();
        let placed: Vec<Placement> = (1..5).map(|n| line.place(sent(n, 0)).unwrap()).collect();
        assert_eq!(placed[0].gap, Some(Gap { missing: 0 }), "time went back: nothing before it belongs to it");
        assert_eq!(placed.iter().map(|p| p.skewed).collect::<Vec<_>>(), [true, true, false, false]);
    }

    #[test]
    fn delayed_messages_do_not_move_the_line() {
        let mut line = timeline(TimeSource::Payload { max_skew: Duration::from_secs(2) });
        line.place(sent(0, 0)).unwrap();
        // Everything was held up for five seconds, then comes at once.
        for n in 1..20 {
            let delayed = Stamp { arrived: Moment(6200 * MS), ..sent(n, 0) };
            assert!(line.place(delayed).unwrap().skewed, "message {n}");
        }
        let placed = line.place(sent(521, 0)).unwrap();
        assert_eq!((placed.skewed, placed.captured), (false, sent(521, 0).arrived));
    }

    #[test]
    fn a_sensor_that_reboots_early_is_heard_again_at_the_third_message() {
        let mut line = timeline(TimeSource::Arrival);
        for n in 0..800 {
            line.place(Stamp { sequence: Some(n), ..at(10 * u64::from(n)) }).unwrap();
        }
        let mut place = |n: u32| line.place(Stamp { sequence: Some(n), ..at(8000 + 5 * u64::from(n)) });
        assert_eq!(place(0), Err(Misplaced::OutOfOrder));
        assert_eq!(place(1), Err(Misplaced::OutOfOrder));
        assert_eq!(place(2).unwrap().gap, Some(Gap { missing: 0 }));
        assert_eq!(place(3).unwrap().gap, None);
    }

    #[test]
    fn a_sensor_that_reboots_early_is_heard_at_once_after_a_silence() {
        let mut line = timeline(TimeSource::Arrival);
        for n in 0..800 {
            line.place(Stamp { sequence: Some(n), ..at(10 * u64::from(n)) }).unwrap();
        }
        let placed = line.place(Stamp { sequence: Some(0), ..at(12_000) }).unwrap();
        assert_eq!(placed.gap, Some(Gap { missing: 0 }));
    }

    #[test]
    fn overtaken_messages_are_not_a_reboot() {
        let mut line = timeline(TimeSource::Arrival);
        for (n, taken) in [(10, true), (8, false), (9, false), (11, true), (7, false), (12, true), (10, false)] {
            assert_eq!(line.place(Stamp { sequence: Some(n), ..at(u64::from(n)) }).is_ok(), taken, "number {n}");
        }
    }

    #[test]
    fn the_line_forgets_after_ten_minutes() {
        let mut minimum = SlidingMinimum::default();
        assert_eq!(minimum.offer(Moment(0), -100), -100);
        assert_eq!(minimum.offer(Moment(9 * 60_000 * MS), 5), -100);
        assert_eq!(minimum.offer(Moment(10 * 60_000 * MS), 7), 5);
    }
}
