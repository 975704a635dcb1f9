//! The wall clock, which is for labels only: durations, deadlines and rates use CLOCK_BOOTTIME.

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
}

impl Wall {
    /// As of now.
    pub fn now() -> Self {
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_nanos()).ok());
        Self { offset: utc.filter(|utc| *utc >= EARLIEST_NS).map(|utc| utc - Moment::now().0 as i64) }
    }

    /// A clock that knows no UTC: results carry the time since the start instead, as for recordings.
    pub fn unknown() -> Self {
        Self { offset: None }
    }

    /// When something was captured, by this clock or by the payload's own.
    pub fn captured(&self, at: Moment, payload_ns: Option<i64>) -> (Captured, Clock) {
        match (payload_ns, self.offset) {
            (Some(ns), _) => (Captured::Utc(ns), self.state()),
            (None, Some(offset)) => (Captured::Utc(offset.saturating_add_unsigned(at.0)), Clock::Synced),
            (None, None) => (Captured::Boottime(at.0), Clock::Unsynced),
        }
    }

    /// UTC minus boot time, in nanoseconds; none where UTC is not known.
    pub fn offset(&self) -> Option<i64> {
        self.offset
    }

    /// How far it can be trusted.
    pub fn state(&self) -> Clock {
        if self.offset.is_some() { Clock::Synced } else { Clock::Unsynced }
    }
}

/// The time as RFC 3339, or none where it is not known.
pub fn now_text() -> Option<String> {
    match Wall::now().captured(Moment::now(), None).0 {
        Captured::Utc(ns) => Some(rfc3339_micros(ns)),
        Captured::Boottime(_) => None,
    }
}
