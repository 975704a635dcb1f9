//! The wall clock, which is for labels only: durations, deadlines and rates use CLOCK_BOOTTIME.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use limpet_runtime::Moment;
use limpet_wire::result::{Captured, Clock, rfc3339_micros};

/// No clock that is right shows a time before this: the first of November 2026, before the first release. A gateway
/// without a battery wakes up in 1970 or on the day its system was built.
pub const EARLIEST_NS: i64 = 1_793_491_200_000_000_000;

/// When this program was built, at the earliest; no metadata is judged by an earlier time.
pub fn built() -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(EARLIEST_NS)).expect("a time in this century is one")
}

/// Whether the clock is known to be right: the kernel knows of a time server that sets it.
pub fn is_right() -> bool {
    // SAFETY: all fields of a timex are integers, so zeros make one; with `modes` 0 nothing is set.
    #[allow(unsafe_code)]
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut timex), timex)
    };
    state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0
}

/// The relation between boot time and UTC at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Wall {
    /// UTC minus boot time, in nanoseconds; none where UTC is not known.
    offset: Option<i64>,
    /// Whether a time server sets it.
    right: bool,
}

impl Wall {
    /// As of now.
    pub fn now() -> Self {
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_nanos()).ok());
        Self {
            offset: utc.filter(|utc| *utc >= EARLIEST_NS).map(|utc| utc - Moment::now().0 as i64),
            right: is_right(),
        }
    }

    /// A clock that knows no UTC: results carry the time since the start instead, as for recordings.
    pub fn unknown() -> Self {
        Self { offset: None, right: false }
    }

    /// When something was captured, by this clock or by the payload's own.
    pub fn captured(&self, at: Moment, payload_ns: Option<i64>) -> (Captured, Clock) {
        match (payload_ns, self.offset) {
            (Some(ns), _) => (Captured::Utc(ns), self.state()),
            (None, Some(offset)) => (Captured::Utc(offset.saturating_add_unsigned(at.0)), self.state()),
            (None, None) => (Captured::Boottime(at.0), Clock::Unsynced),
        }
    }

    /// UTC minus boot time, in nanoseconds; none where UTC is not known.
    pub fn offset(&self) -> Option<i64> {
        self.offset
    }

    /// How far it can be trusted: one that shows a time that can be right, and that no time server keeps so, may be wrong by
    /// any amount.
    pub fn state(&self) -> Clock {
        if self.offset.is_some() && self.right { Clock::Synced } else { Clock::Unsynced }
    }
}

/// Notices when the clock is set: between two looks, UTC and the time since boot go on by the same.
#[derive(Debug)]
pub struct Steps {
    before: Wall,
}

/// How the clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It knows the time now.
    Known,
    /// It does not know it any more.
    Unknown,
    /// It went on or back by so many nanoseconds.
    Moved(i64),
}

impl Steps {
    /// A time server that only slows or speeds a clock up changes it by at most 0.5 ms a second; who sets it means more.
    const LEAST_NS: u64 = 500_000_000;

    /// What is shown now is no news.
    pub fn new(now: Wall) -> Self {
        Self { before: now }
    }

    /// Whether the clock was set since the last look, which was a few seconds ago at most.
    pub fn look(&mut self, now: Wall) -> Option<Step> {
        let before = std::mem::replace(&mut self.before, now);
        match (before.offset, now.offset) {
            (None, Some(_)) => Some(Step::Known),
            (Some(_), None) => Some(Step::Unknown),
            (Some(before), Some(now)) if now.abs_diff(before) >= Self::LEAST_NS => Some(Step::Moved(now - before)),
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known => f.write_str("the clock was set, and shows a time that can be right"),
            Self::Unknown => f.write_str("the clock was set, and shows a time before this program was built"),
            Self::Moved(ns) => {
                let (way, seconds) = (if *ns < 0 { "back" } else { "on" }, ns.unsigned_abs() as f64 / 1e9);
                write!(f, "the clock was set {way} by {seconds:.1} s")
            }
        }
    }
}

/// The time as RFC 3339, or none where it is not known.
pub fn now_text() -> Option<String> {
    match Wall::now().captured(Moment::now(), None).0 {
        Captured::Utc(ns) => Some(rfc3339_micros(ns)),
        Captured::Boottime(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_as_far_as_it_is_known_and_called_synced_if_a_time_server_sets_it() {
        let captured = |offset, right| Wall { offset, right }.captured(Moment(5), None);
        assert_eq!(captured(Some(EARLIEST_NS), true), (Captured::Utc(EARLIEST_NS + 5), Clock::Synced));
        assert_eq!(captured(Some(EARLIEST_NS), false), (Captured::Utc(EARLIEST_NS + 5), Clock::Unsynced));
        assert_eq!(captured(None, true), (Captured::Boottime(5), Clock::Unsynced));
        let payload = Wall { offset: Some(0), right: false }.captured(Moment(5), Some(7));
        assert_eq!(payload, (Captured::Utc(7), Clock::Unsynced));
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_once_and_one_that_drifts_is_not() {
        let at = |offset| Wall { offset, right: true };
        let mut steps = Steps::new(at(None));
        assert_eq!(steps.look(at(None)), None);
        assert_eq!(steps.look(at(Some(1_000_000_000))), Some(Step::Known));
        assert_eq!(steps.look(at(Some(1_400_000_000))), None, "less than a step");
        assert_eq!(steps.look(at(Some(3_601_400_000_000))), Some(Step::Moved(3_600_000_000_000)));
        assert_eq!(steps.look(at(Some(3_601_400_000_000))), None);
        assert_eq!(steps.look(at(Some(1_400_000_000))), Some(Step::Moved(-3_600_000_000_000)));
        assert_eq!(steps.look(at(None)), Some(Step::Unknown));
        assert_eq!(Step::Moved(-3_600_000_000_000).to_string(), "the clock was set back by 3600.0 s");
    }
}
