//! Ids: what makes it safe to deliver a result twice, and what proves a loss.
//!
//! A result's id is `<gateway>/<pipeline>/<stream>/<run>-<seq>`. `run` is 64 random bits, drawn when a stream's counter
//! starts; `seq` counts from 1 without gaps over what is published. A consumer that sees 41 and 43 of one run knows
//! that 42 is lost or late, from the ids alone.

use std::fmt;
use std::str::FromStr;

use crate::WireError;
use crate::name::{check_name, check_stream};

/// A position in a run: `<run>-<seq>`, the run as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial {
    /// The run.
    pub run: u64,
    /// Position in the run, from 1.
    pub seq: u64,
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.run, self.seq)
    }
}

impl FromStr for Serial {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let parse = || {
            let (run, seq) = text.split_once('-')?;
            let digits = |s: &str, ok: fn(&u8) -> bool| !s.is_empty() && s.bytes().all(|b| ok(&b));
            if run.len() != 16 || !digits(run, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return None;
            }
            if !digits(seq, u8::is_ascii_digit) || seq.starts_with('0') {
                return None;
            }
            Some(Self { run: u64::from_str_radix(run, 16).ok()?, seq: seq.parse().ok()? })
        };
        parse().ok_or_else(|| WireError::Id { found: text.to_owned(), form: "<16 hexadecimal digits>-<number from 1>" })
    }
}

/// Id of a published result, borrowed from its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResultId<'a> {
    /// The gateway's name.
    pub gateway: &'a str,
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// The stream's name.
    pub stream: &'a str,
    /// Run and position.
    pub serial: Serial,
}

impl fmt::Display for ResultId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.gateway, self.pipeline, self.stream, self.serial)
    }
}

impl<'a> ResultId<'a> {
    /// Takes an id apart.
    ///
    /// # Errors
    /// [`WireError::Id`] or [`WireError::Name`] if it is not one.
    pub fn parse(text: &'a str) -> Result<Self, WireError> {
        let mut parts = text.split('/');
        let (Some(gateway), Some(pipeline), Some(stream), Some(serial), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(WireError::Id { found: text.to_owned(), form: "<gateway>/<pipeline>/<stream>/<run>-<seq>" });
        };
        check_name(gateway)?;
        check_name(pipeline)?;
        check_stream(stream)?;
        Ok(Self { gateway, pipeline, stream, serial: serial.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let text = "press-07/motor/press-3/9f2c61d04b7ae813-42";
        let id = ResultId::parse(text).unwrap();
        assert_eq!(id.serial, Serial { run: 0x9f2c_61d0_4b7a_e813, seq: 42 });
        assert_eq!(id.to_string(), text);
    }

    proptest! {
        #[test]
        fn noise_is_refused_or_reads_back(text in "\\PC{0,80}") {
            if let Ok(id) = ResultId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn every_serial_reads_back(run: u64, seq in 1u64..) {
            let serial = Serial { run, seq };
            prop_assert_eq!(serial.to_string().parse::<Serial>(), Ok(serial));
        }
    }
}
