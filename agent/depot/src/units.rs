//! Values that carry their unit: durations, sizes and rates, as manifests and configurations write them.
//!
//! `"5ms"`, `"8MiB"`, `"64KiB/s"`. A number without a unit is refused, because 5 of what nobody can tell later. Each
//! type reads and writes the same form, so what `check` prints can be pasted back.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A text that is not a value with a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{found}\" is not {what}: expected {expected}")]
pub struct UnitError {
    /// The text.
    pub found: String,
    /// What it should have been.
    pub what: &'static str,
    /// The form it should have.
    pub expected: &'static str,
}

/// Nanoseconds in each unit of time, the largest first.
const TIMES: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Bytes in each unit of size, the largest first; powers of 1,024 before those of 1,000.
const SIZES: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// A length of time, in whole nanoseconds: `"5ms"`, `"1.5s"`, `"30d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub std::time::Duration);

/// A number of bytes: `"8MiB"`, `"64KiB"`, `"100kB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

/// Bytes per second: `"64KiB/s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteRate(pub u64);

/// Events per second: `"100/s"`, `"6/m"`, `"1/h"`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Rate(pub f64);

/// Splits `"1.5ms"` into 1.5 and `ms`. Spaces between the two are allowed.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (!number.is_empty()).then_some((number, unit.trim_start()))
}

/// `number` × `unit`, rounded to a whole; none if it is no number or does not fit.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let value = number.parse::<f64>().ok()? * unit as f64;
    // 2⁶³ is far beyond any duration or size here, and below what `as` would cap.
    (value.is_finite() && value < 9.2e18).then_some(value.round() as u64)
}

/// The value in the largest unit that gives a whole number.
fn in_largest_unit(value: u64, units: &[(&'static str, u64)]) -> (u64, &'static str) {
    let smallest = units.last().map_or(("", 1), |unit| *unit);
    if value == 0 {
        return (0, smallest.0);
    }
    let (name, size) = *units.iter().find(|(_, size)| value.is_multiple_of(*size)).unwrap_or(&smallest);
    (value / size, name)
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = split(text)?;
    scaled(number, units.iter().find(|(name, _)| *name == unit)?.1)
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        quantity(text, &TIMES).map(|ns| Self(std::time::Duration::from_nanos(ns))).ok_or_else(|| UnitError {
            found: text.to_owned(),
            what: "a duration",
            expected: "a number and one of ns, us, ms, s, m, h, d, such as \"5ms\"",
        })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u64::try_from(self.0.as_nanos()) {
            Ok(0) => f.write_str("0s"),
            Ok(ns) => {
                let (number, unit) = in_largest_unit(ns, &TIMES);
                write!(f, "{number}{unit}")
            }
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        quantity(text, &SIZES).map(Self).ok_or_else(|| UnitError {
            found: text.to_owned(),
            what: "a size",
            expected: "a number and one of B, kB, MB, GB, KiB, MiB, GiB, TiB, such as \"8MiB\"",
        })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = in_largest_unit(self.0, &SIZES);
        write!(f, "{number}{unit}")
    }
}

impl FromStr for ByteRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        text.trim().strip_suffix("/s").and_then(|size| quantity(size, &SIZES)).map(Self).ok_or_else(|| UnitError {
            found: text.to_owned(),
            what: "a number of bytes per second",
            expected: "a size and /s, such as \"64KiB/s\"",
        })
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parse = || {
            let (number, unit) = text.trim().split_once('/')?;
            let seconds = match unit.trim() {
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            let number: f64 = number.trim().parse().ok()?;
            (number.is_finite() && number >= 0.0).then_some(Self(number / seconds))
        };
        parse().ok_or_else(|| UnitError {
            found: text.to_owned(),
            what: "a rate",
            expected: "a number and one of /s, /m, /h, such as \"100/s\"",
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// Reads a string through [`FromStr`], so that a bare number is told that its unit is missing.
struct FromText<T>(&'static str, std::marker::PhantomData<T>);

impl<T: FromStr<Err = UnitError>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(format_args!("{number} has no unit: expected {}", self.0)))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        Err(E::custom(format_args!("{number} has no unit: expected {}", self.0)))
    }
}

macro_rules! as_text {
    ($($type:ident: $expecting:literal),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(FromText($expecting, std::marker::PhantomData))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_text!(
    Duration: "a duration such as \"5ms\"",
    ByteSize: "a size such as \"8MiB\"",
    ByteRate: "a number of bytes per second such as \"64KiB/s\"",
    Rate: "a rate such as \"100/s\""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units() {
        let ns = |text: &str| text.parse::<Duration>().map(|d| d.0.as_nanos() as u64);
        assert_eq!(ns("5ms"), Ok(5_000_000));
        assert_eq!(ns("1.5 s"), Ok(1_500_000_000));
        assert_eq!(ns("250us"), Ok(250_000));
        assert_eq!(ns("30d"), Ok(30 * 86_400_000_000_000));
        assert_eq!("8MiB".parse(), Ok(ByteSize(8 << 20)));
        assert_eq!("100kB".parse(), Ok(ByteSize(100_000)));
        assert_eq!("64KiB/s".parse(), Ok(ByteRate(64 << 10)));
        assert_eq!("6/m".parse(), Ok(Rate(0.1)));
    }

    #[test]
    fn what_has_no_known_unit_is_refused_with_an_example() {
        for bad in ["5", "ms", "", "5 mss", "-5ms", "1.2.3s", "1e3s", "99999999999999999d"] {
            let error = bad.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{bad}\" is not a duration")) && error.contains("\"5ms\""), "{error}");
        }
        for bad in ["8", "8 mib", "8M", "8KB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for bad in ["64KiB", "100", "-1/s", "nan/s", "1/d"] {
            assert!(bad.parse::<ByteRate>().is_err() && bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_number_in_toml_is_told_that_its_unit_is_missing() {
        #[derive(Debug, Deserialize)]
        struct Table {
            #[expect(dead_code, reason = "only its reading is tested")]
            latency: Duration,
        }
        let error = toml::from_str::<Table>("latency = 5").unwrap_err();
        assert_eq!(error.message(), "5 has no unit: expected a duration such as \"5ms\"");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(ns in 0u64..=i64::MAX as u64, bytes: u64) {
            let duration = Duration(std::time::Duration::from_nanos(ns));
            assert_eq!(duration.to_string().parse(), Ok(duration));
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
            assert_eq!(ByteRate(bytes).to_string().parse(), Ok(ByteRate(bytes)));
        }

        #[test]
        fn no_text_makes_a_reader_panic(text: String) {
            let _ = text.parse::<Duration>();
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<ByteRate>();
            let _ = text.parse::<Rate>();
        }
    }
}
