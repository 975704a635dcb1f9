//! Codecs: from a payload as it arrived to samples in the units of the model's manifest.
//!
//! Everything here is pure: bytes in, numbers out, no clock and no I/O, and no input makes it panic. A payload is taken
//! whole or refused whole; a [`Refusal`] has a reason to count by and a sentence that says what was expected.
//! Raw payloads allocate nothing once the output buffer has grown.

mod csv;
pub mod image;
mod json;
pub mod quantized;
mod raw;

use limpet_wire::result::parse_rfc3339;

pub use self::image::ImageDecoder;
pub use self::quantized::QuantizedDecoder;

use crate::config::codec::{Codec, Json, TimeUnit};
use crate::config::units::Fraction;

/// Most numbers that one message may hold, all channels together: ten seconds of six channels at 16 kHz. What is longer
/// belongs into several messages.
pub const VALUES_MAX: usize = 1 << 20;

/// What a payload says besides its samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Message {
    /// Capture of the last sample, in nanoseconds since the UNIX epoch by the sender's clock.
    pub time_ns: Option<i64>,
    /// The sender's number of this message, modulo 2³².
    pub sequence: Option<u32>,
    /// To be echoed in results.
    pub tag: Option<u64>,
    /// How many samples it holds; at least one.
    pub samples: usize,
}

/// Why a payload was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Bytes that are no header and whole samples.
    #[error(
        "the payload has {found} bytes, expected {header} bytes of header and {step} bytes per sample, at least once"
    )]
    PayloadLength {
        /// Bytes of the payload.
        found: usize,
        /// Bytes of the header.
        header: usize,
        /// Bytes of one sample of all channels.
        step: usize,
    },
    /// A message that must be one window has another length.
    #[error("the message holds {found} values, expected exactly {expected}: one window")]
    WindowLength {
        /// Values in the message.
        found: usize,
        /// Values in a window.
        expected: usize,
    },
    /// More than [`VALUES_MAX`] values.
    #[error("the message holds {found} values, expected at most {VALUES_MAX}; send it in parts")]
    TooManySamples {
        /// Values in the message.
        found: usize,
    },
    /// A value that is no finite number, also after scaling.
    #[error("value {index} of the message is {found}, expected a finite number")]
    NotANumber {
        /// Which value, counted from 0 over all channels.
        index: usize,
        /// What stood there.
        found: String,
    },
    /// A value that the graph's integer type cannot hold.
    #[error("value {index} of the message is {found}, expected a whole number that fits {expected}")]
    OutOfRange {
        /// Which value, counted from 0.
        index: usize,
        /// What stood there.
        found: String,
        /// The graph's type.
        expected: &'static str,
    },
    /// The document is no JSON.
    #[error("the payload is not JSON: {0}")]
    BrokenJson(String),
    /// A JSON pointer leads nowhere.
    #[error("the JSON has nothing at '{0}'")]
    MissingField(String),
    /// Arrays that do not fit the channels.
    #[error("found {found}, expected {expected}")]
    Shape {
        /// What the document holds.
        found: String,
        /// What fits the source.
        expected: String,
    },
    /// The line that should name the columns does not.
    #[error("the header line has no column '{0}'")]
    BadHeader(String),
    /// The time cannot be read.
    #[error("the time is '{found}', expected {expected}")]
    BadTime {
        /// What stood there.
        found: String,
        /// How times are written here.
        expected: &'static str,
    },
    /// A line that is not as configured.
    #[error("line {line}: {problem}")]
    BadCsv {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The picture cannot be read, or has another size.
    #[error("the picture cannot be used: {0}")]
    BadImage(String),
}

impl Refusal {
    /// The reason under which this is counted; part of the telemetry, so the words stay.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PayloadLength { .. } | Self::WindowLength { .. } => "payload_length",
            Self::TooManySamples { .. } => "too_many_samples",
            Self::NotANumber { .. } => "not_a_number",
            Self::OutOfRange { .. } => "out_of_range",
            Self::BrokenJson(_) => "broken_json",
            Self::MissingField(_) => "missing_field",
            Self::Shape { .. } => "wrong_shape",
            Self::BadHeader(_) => "bad_header",
            Self::BadTime { .. } => "bad_time",
            Self::BadCsv { .. } => "bad_csv",
            Self::BadImage(_) => "bad_image",
        }
    }
}

/// The first characters of something that a stranger sent, fit for a log.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// Scale and offset of each channel.
#[derive(Debug, Clone)]
struct Gains {
    channels: usize,
    /// Factor and summand per channel. In f64, because an i32 does not fit into an f32.
    wide: Vec<(f64, f64)>,
    /// The same in f32, for values that do fit.
    narrow: Vec<(f32, f32)>,
}

impl Gains {
    fn new(channels: usize, scale: &[Fraction], offset: &[Fraction]) -> Self {
        let value = |list: &[Fraction], channel: usize, default| list.get(channel).map_or(default, |f| f.value());
        let wide: Vec<_> = (0..channels).map(|c| (value(scale, c, 1.0), value(offset, c, 0.0))).collect();
        let narrow = wide.iter().map(|&(scale, offset)| (scale as f32, offset as f32)).collect();
        Self { channels, wide, narrow }
    }

    /// One value of one channel in the manifest's unit.
    fn apply(&self, channel: usize, value: f64) -> f32 {
        let (scale, offset) = self.wide[channel];
        (value * scale + offset) as f32
    }
}

/// Decodes the payloads of one source.
#[derive(Debug)]
pub struct Decoder {
    kind: Kind,
    gains: Gains,
}

#[derive(Debug)]
enum Kind {
    Raw(raw::RawDecoder),
    Json(Json),
    Csv(csv::CsvDecoder),
}

impl Decoder {
    /// `channels` is what the model's manifest has; `scale` and `offset` are empty or have one value per channel.
    ///
    /// # Errors
    /// One sentence, if the codec holds another number of channels, or pictures, which [`ImageDecoder`] decodes.
    pub fn new(codec: &Codec, channels: usize, scale: &[Fraction], offset: &[Fraction]) -> Result<Self, String> {
        if let Some(found) = codec.channels().filter(|found| *found != channels) {
            return Err(format!(
                "the codec '{}' holds {found} channels and the model expects {channels}; change the codec's channels or use another model",
                codec.name()
            ));
        }
        for (key, list) in [("scale", scale), ("offset", offset)] {
            if !list.is_empty() && list.len() != channels {
                return Err(format!("'{key}' has {} values, expected {channels}, one per channel", list.len()));
            }
        }
        let kind = match codec {
            Codec::Raw(config) => Kind::Raw(raw::RawDecoder::new(config)),
            Codec::Json(config) => Kind::Json(config.clone()),
            Codec::Csv(config) => Kind::Csv(csv::CsvDecoder::new(config)),
            Codec::Image(_) => {
                return Err("the codec 'image' holds pictures and the model expects samples; change the codec".into());
            }
        };
        Ok(Self { kind, gains: Gains::new(channels, scale, offset) })
    }

    /// How many channels a sample has.
    #[cfg(test)]
    pub fn channels(&self) -> usize {
        self.gains.channels
    }

    /// Decodes one payload. `out` is cleared and gets the samples, channels interleaved, in the manifest's units; after
    /// a refusal it is empty.
    ///
    /// # Errors
    /// [`Refusal`], if any part of the payload is not as configured.
    pub fn decode(&mut self, payload: &[u8], out: &mut Vec<f32>) -> Result<Message, Refusal> {
        out.clear();
        let decoded = match &mut self.kind {
            Kind::Raw(decoder) => decoder.decode(payload, &self.gains, out),
            Kind::Json(config) => json::decode(config, payload, &self.gains, out),
            Kind::Csv(decoder) => decoder.decode(payload, &self.gains, out),
        };
        decoded.and_then(|message| all_finite(out).map(|()| message)).inspect_err(|_| out.clear())
    }

    /// Decodes one payload that must hold exactly one window of `expected` values.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and [`Refusal::WindowLength`].
    pub fn decode_window(&mut self, payload: &[u8], expected: usize, out: &mut Vec<f32>) -> Result<Message, Refusal> {
        let message = self.decode(payload, out)?;
        if out.len() == expected {
            return Ok(message);
        }
        let found = out.len();
        out.clear();
        Err(Refusal::WindowLength { found, expected })
    }
}

fn all_finite(values: &[f32]) -> Result<(), Refusal> {
    // Without an early exit the compiler makes vector instructions of this, and nearly all payloads are good.
    if values.iter().fold(true, |finite, value| finite & value.is_finite()) {
        return Ok(());
    }
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Refusal::NotANumber { index, found: values[index].to_string() }),
    }
}

/// Refuses what is too long before memory is spent on it.
fn bounded(values: usize) -> Result<(), Refusal> {
    if values <= VALUES_MAX { Ok(()) } else { Err(Refusal::TooManySamples { found: values }) }
}

/// Reads a time as configured, to nanoseconds since the UNIX epoch.
fn parse_time(text: &str, unit: TimeUnit) -> Result<i64, Refusal> {
    let (factor, expected) = match unit {
        TimeUnit::Rfc3339 => {
            let expected = "an RFC 3339 time such as 2026-11-23T10:15:02.5Z";
            return parse_rfc3339(text).map_err(|_| Refusal::BadTime { found: excerpt(text), expected });
        }
        TimeUnit::S => (1_000_000_000, "seconds since 1970, between the years 1677 and 2262"),
        TimeUnit::Ms => (1_000_000, "milliseconds since 1970, between the years 1677 and 2262"),
        TimeUnit::Us => (1_000, "microseconds since 1970, between the years 1677 and 2262"),
        TimeUnit::Ns => (1, "nanoseconds since 1970, between the years 1677 and 2262"),
    };
    epoch(text, factor).ok_or_else(|| Refusal::BadTime { found: excerpt(text), expected })
}

/// A decimal number times `factor`, exactly as far as nanoseconds go: seconds in an `f64` would lose the last digits.
fn epoch(text: &str, factor: i64) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 19 || !all_digits(whole) || !all_digits(part) {
        return None;
    }
    let mut nanoseconds = whole.parse::<i128>().ok()? * i128::from(factor);
    let mut step = i128::from(factor);
    for digit in part.bytes() {
        step /= 10;
        nanoseconds += i128::from(digit - b'0') * step;
    }
    i64::try_from(if negative { -nanoseconds } else { nanoseconds }).ok()
}

#[cfg(test)]
mod tests;
