//! Values that carry their unit: `"20ms"`, `"64MiB"`, `"1/2048"`.
//!
//! Each type reads what a person writes, keeps it exactly, and prints the shortest text that reads back as the same
//! value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A length of time, from nanoseconds to days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval(pub Duration);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A finite number, as itself or as a quotient of two: the reciprocal of a sensor's steps per unit is seldom a short
/// decimal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fraction {
    numerator: f64,
    denominator: f64,
}

/// Largest absolute value that a [`Fraction`] may have: far beyond any sensor, and small enough that no 32-bit sample
/// overflows when it is scaled.
pub const FRACTION_MAX: f64 = 1e12;

/// Units of time and their nanoseconds, smallest first.
const TIMES: [(&str, u128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Units of size and their bytes. Those that are printed come first, smallest first.
const SIZES: [(&str, u128); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];
const SIZES_PRINTED: usize = 4;

/// Reads `<digits>[.<digits>]<unit>` as a whole number of the smallest unit; `None` if it is no such text, no whole
/// number of the smallest unit, or beyond 64 bits.
fn parse_quantity(text: &str, units: &[(&str, u128)]) -> Option<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(split);
    let &(_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || part.is_empty() || whole.len() > 20 || part.len() > 15 || part.contains('.') {
        return None;
    }
    let ten = 10u128.pow(u32::try_from(part.len()).expect("at most 15"));
    let part = part.parse::<u128>().ok()? * factor;
    if !part.is_multiple_of(ten) {
        return None;
    }
    u64::try_from(whole.parse::<u128>().ok()?.checked_mul(factor)? + part / ten).ok()
}

/// Prints in the largest unit that needs no decimals.
fn print_quantity(value: u128, units: &[(&str, u128)], zero: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if value == 0 {
        return f.write_str(zero);
    }
    let fitting = units.iter().rev().find(|(_, factor)| value.is_multiple_of(*factor));
    let (name, factor) = fitting.expect("the smallest unit is 1 and divides everything");
    write!(f, "{}{name}", value / factor)
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_quantity(text, &TIMES).map(|ns| Self(Duration::from_nanos(ns))).ok_or_else(|| {
            format!("'{text}' is not a length of time: write a number and its unit (ns, us, ms, s, m, h, d), such as \"20ms\"")
        })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_quantity(self.0.as_nanos(), &TIMES, "0s", f)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_quantity(text, &SIZES).map(Self).ok_or_else(|| {
            format!("'{text}' is not a size: write a number and its unit (B, KiB, MiB, GiB), such as \"64MiB\"")
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_quantity(u128::from(self.0), &SIZES[..SIZES_PRINTED], "0B", f)
    }
}

impl Fraction {
    /// A plain number.
    ///
    /// # Errors
    /// If it is not finite or beyond [`FRACTION_MAX`].
    pub fn new(number: f64) -> Result<Self, String> {
        Self::quotient(number, 1.0)
    }

    fn quotient(numerator: f64, denominator: f64) -> Result<Self, String> {
        let this = Self { numerator, denominator };
        let fits = numerator.is_finite() && denominator.is_finite() && this.value().abs() <= FRACTION_MAX;
        if fits { Ok(this) } else { Err(format!("'{this}' is not a finite number between -1e12 and 1e12")) }
    }

    /// The number.
    pub fn value(self) -> f64 {
        self.numerator / self.denominator
    }
}

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let part = part.trim();
            let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            let parsed = if plain { part.parse::<f64>().ok() } else { None };
            parsed.ok_or_else(|| format!("'{text}' is not a number or a fraction such as \"1/2048\""))
        };
        let (numerator, denominator) = text.split_once('/').unwrap_or((text, "1"));
        Self::quotient(number(numerator)?, number(denominator)?)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.numerator)?;
        if self.denominator == 1.0 { Ok(()) } else { write!(f, "/{}", self.denominator) }
    }
}

impl Serialize for Fraction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.denominator == 1.0 { serializer.serialize_f64(self.numerator) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FractionVisitor;
        impl Visitor<'_> for FractionVisitor {
            type Value = Fraction;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a fraction such as \"1/2048\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Fraction, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Fraction, E> {
                Fraction::new(number).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Fraction, E> {
                self.visit_f64(number as f64)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Fraction, E> {
                self.visit_f64(number as f64)
            }
        }
        deserializer.deserialize_any(FractionVisitor)
    }
}

/// Serializes as text; deserializes from text only, so that a number without a unit is refused with the reason.
macro_rules! as_text {
    ($type:ident, $expected:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct TextVisitor;
                impl Visitor<'_> for TextVisitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(TextVisitor)
            }
        }
    };
}

as_text!(Interval, "a length of time with its unit, such as \"20ms\"");
as_text!(Size, "a size with its unit, such as \"64MiB\"");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intervals_are_read_with_their_unit() {
        for (text, ns) in [
            ("20ms", 20_000_000),
            ("1m", 60_000_000_000),
            ("1.5s", 1_500_000_000),
            ("0s", 0),
            ("7ns", 7),
            ("30d", 2_592_000_000_000_000),
        ] {
            assert_eq!(text.parse::<Interval>().unwrap().0, Duration::from_nanos(ns), "{text}");
        }
        for bad in
            ["", "20", "ms", "20 ms", "-1s", "1.5ns", "1.s", ".5s", "1..5s", "1M", "99999999999999999999d", "1e3s"]
        {
            assert!(bad.parse::<Interval>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1.5KiB", 1536), ("2GB", 2_000_000_000), ("0B", 0)] {
            assert_eq!(text.parse::<Size>().unwrap().0, bytes, "{text}");
        }
        for bad in ["64", "64mib", "64 MiB", "0.5B", "999999999999GiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
        assert_eq!(Size(1_000_000).to_string(), "1000000B");
    }

    #[test]
    fn fractions_are_numbers_or_quotients() {
        for (text, value) in [("1/2048", 1.0 / 2048.0), ("0.5", 0.5), ("-3", -3.0), ("1e-3", 0.001), ("2.5 / 10", 0.25)]
        {
            assert_eq!(text.parse::<Fraction>().unwrap().value(), value, "{text}");
        }
        for bad in ["", "/", "1/", "1/0", "0/0", "nan", "inf", "1/2/3", "1e13", "x"] {
            assert!(bad.parse::<Fraction>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(ns: u64, bytes: u64, a in -1e9..1e9f64, b in 1.0..1e9f64) {
            let interval = Interval(Duration::from_nanos(ns));
            prop_assert_eq!(interval.to_string().parse::<Interval>(), Ok(interval));
            let size = Size(bytes);
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
            let fraction = Fraction::quotient(a, b).unwrap();
            prop_assert_eq!(fraction.to_string().parse::<Fraction>(), Ok(fraction));
        }

        #[test]
        fn noise_never_panics(text in ".{0,24}") {
            let _ = (text.parse::<Interval>(), text.parse::<Size>(), text.parse::<Fraction>());
        }
    }
}
