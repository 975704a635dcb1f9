//! How a payload is laid out: the configuration of a codec, not its work (that is [`crate::codec`]).

use serde::{Deserialize, Serialize};

use super::file::OneOrMany;

/// How a source's payloads are laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Little-endian numbers after an optional header.
    Raw(Raw),
    /// A JSON document.
    Json(Json),
    /// Lines of separated columns.
    Csv(Csv),
    /// A picture, in the format that the model's manifest names.
    Image(Image),
}

/// Little-endian numbers, channels interleaved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Type of one number.
    #[serde(rename = "type")]
    pub number: NumberType,
    /// How many channels.
    #[serde(default = "one")]
    pub channels: usize,
    /// Fields before the samples, in order, each at most once.
    #[serde(default)]
    pub header: Vec<HeaderField>,
}

fn one() -> usize {
    1
}

/// Type of a number in a raw payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberType {
    I8,
    U8,
    I16,
    I32,
    F32,
}

impl NumberType {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 => 2,
            Self::I32 | Self::F32 => 4,
        }
    }

    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::F32 => "f32",
        }
    }
}

/// One field of a raw header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderField {
    /// Capture of the last sample.
    Time(TimeField),
    /// Number of the message, modulo 2³².
    Sequence(SequenceField),
    /// Echoed in the result.
    Tag(TagField),
}

impl HeaderField {
    /// Bytes on the wire.
    pub fn size(self) -> usize {
        match self {
            Self::Time(TimeField::Nanoseconds) | Self::Tag(TagField::U64) => 8,
            Self::Sequence(SequenceField::U32) => 4,
        }
    }
}

/// How a header writes the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeField {
    /// Nanoseconds since the UNIX epoch.
    #[serde(rename = "u64le ns")]
    Nanoseconds,
}

/// How a header writes the sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SequenceField {
    /// 32 bits.
    #[serde(rename = "u32le")]
    U32,
}

/// How a header writes the tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagField {
    /// 64 bits.
    #[serde(rename = "u64le")]
    U64,
}

/// Where in a JSON document the samples stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Json {
    /// JSON pointers (RFC 6901): one to a number or an array, or a list with one per channel; without it the document
    /// itself is the number or array.
    #[serde(default)]
    pub value: Option<OneOrMany<String>>,
    /// How many channels; default: as many as `value` lists, else 1.
    #[serde(default)]
    pub channels: Option<usize>,
    /// JSON pointer to the time of the last sample.
    #[serde(default)]
    pub time: Option<String>,
    /// How that time is written.
    #[serde(default)]
    pub time_unit: TimeUnit,
}

/// How a time is written in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// RFC 3339, such as `2026-11-23T10:15:02.5Z`.
    #[default]
    Rfc3339,
    /// Seconds since the UNIX epoch, decimals allowed.
    S,
    /// Milliseconds since the UNIX epoch, decimals allowed.
    Ms,
    /// Microseconds since the UNIX epoch, decimals allowed.
    Us,
    /// Nanoseconds since the UNIX epoch.
    Ns,
}

/// Which columns of a line are channels. One line is one sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Csv {
    /// Columns in the order of the channels: numbers from 1, or names from the header line.
    pub columns: Vec<Column>,
    /// One character between columns.
    #[serde(default = "comma")]
    pub separator: char,
    /// Lines at the start of every message that are skipped.
    #[serde(default)]
    pub skip_lines: usize,
    /// Whether the next line of every message names the columns.
    #[serde(default)]
    pub header: bool,
    /// Column with the time of the line.
    #[serde(default)]
    pub time: Option<Column>,
    /// How that time is written.
    #[serde(default)]
    pub time_unit: TimeUnit,
}

fn comma() -> char {
    ','
}

/// A column of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Column {
    /// Counted from 1.
    Number(usize),
    /// As the header line calls it.
    Name(String),
}

/// A picture. What it must look like stands in the model's manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {}

impl Codec {
    /// How many channels a payload holds, as far as the configuration says.
    pub fn channels(&self) -> Option<usize> {
        match self {
            Self::Raw(raw) => Some(raw.channels),
            Self::Json(json) => Some(json.channels.unwrap_or(match &json.value {
                Some(OneOrMany::Many(pointers)) => pointers.len(),
                _ => 1,
            })),
            Self::Csv(csv) => Some(csv.columns.len()),
            Self::Image(_) => None,
        }
    }

    /// Whether a payload says when it was captured.
    pub fn has_time(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.header.iter().any(|field| matches!(field, HeaderField::Time(_))),
            Self::Json(json) => json.time.is_some(),
            Self::Csv(csv) => csv.time.is_some(),
            Self::Image(_) => false,
        }
    }

    /// The codec's key in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw",
            Self::Json(_) => "json",
            Self::Csv(_) => "csv",
            Self::Image(_) => "image",
        }
    }
}
