//! What time it is, as far as a gateway without a real-time clock can know.
//!
//! Signed metadata has an end, so whoever can turn a clock back can keep old metadata alive, and a gateway that boots in
//! 1970 would find nothing expired. The time that metadata is judged by therefore never lies before the *floor*: the
//! newest of the time this program was built and the newest `issued` that was ever trusted. A clock that is not known to
//! be right is not asked at all: a clock that is ahead would refuse good metadata at boot.

use std::fmt;

use jiff::Timestamp;

/// A clock, and whether it can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// What it shows.
    pub now: Timestamp,
    /// Whether it is known to be right: set by NTP, or by hand.
    pub right: bool,
}

/// The time that metadata is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// That time.
    pub time: Timestamp,
    /// Where it comes from.
    pub by: By,
}

/// What a judged time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A clock that is right.
    Clock,
    /// The newest of build time and last trusted metadata: the true time is that or later.
    Floor,
}

impl Clock {
    /// The time to judge by, which is never before `floor`.
    ///
    /// A clock that is right and shows less than the floor was turned back: the floor counts then, too.
    pub fn judge(self, floor: Timestamp) -> Judged {
        if self.right && self.now >= floor {
            Judged { time: self.now, by: By::Clock }
        } else {
            Judged { time: floor, by: By::Floor }
        }
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            By::Clock => write!(f, "{} by the clock", self.time),
            By::Floor => write!(f, "{} by the newest signed time known", self.time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_judged_time_never_lies_before_the_floor() {
        let floor = at("2026-06-01T00:00:00Z");
        let cases = [
            ("1970-01-01T00:00:00Z", false, "2026-06-01T00:00:00Z", By::Floor),
            ("1970-01-01T00:00:00Z", true, "2026-06-01T00:00:00Z", By::Floor),
            ("2100-01-01T00:00:00Z", false, "2026-06-01T00:00:00Z", By::Floor),
            ("2100-01-01T00:00:00Z", true, "2100-01-01T00:00:00Z", By::Clock),
            ("2026-06-02T00:00:00Z", true, "2026-06-02T00:00:00Z", By::Clock),
            ("2026-06-02T00:00:00Z", false, "2026-06-01T00:00:00Z", By::Floor),
        ];
        for (now, right, time, by) in cases {
            let judged = Clock { now: at(now), right }.judge(floor);
            assert_eq!(judged, Judged { time: at(time), by }, "{now} {right}");
        }
    }

    #[test]
    fn it_says_what_it_was_judged_by() {
        let floor = at("2026-06-01T00:00:00Z");
        let judged = Clock { now: floor, right: false }.judge(floor);
        assert_eq!(judged.to_string(), "2026-06-01T00:00:00Z by the newest signed time known");
        let judged = Clock { now: floor, right: true }.judge(floor);
        assert_eq!(judged.to_string(), "2026-06-01T00:00:00Z by the clock");
    }
}
