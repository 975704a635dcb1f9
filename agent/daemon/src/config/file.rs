//! The keys of `limpet.toml` and their types, before they are checked against each other.
//!
//! A key that may be left out is an [`Option`] here; what stands in for it is decided in [`super::resolve`], in one
//! place, because several defaults depend on other keys.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::codec::{Codec, Column};
use super::units::{Fraction, Interval, Size};
use super::{
    Class, DropPolicy, Durability, Encoding, HistoryPlace, LogFormat, LogLevel, OnGap, OutboxOrder, Publish,
    QueuePolicy, Swap, TimeOrigin,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub format: Option<u32>,
    #[serde(default)]
    pub gateway: Gateway,
    #[serde(default)]
    pub broker: BTreeMap<String, Broker>,
    #[serde(default)]
    pub uplink: Uplink,
    #[serde(default)]
    pub budget: Budget,
    #[serde(default)]
    pub runtime: Runtime,
    #[serde(default)]
    pub pressure: Pressure,
    #[serde(default)]
    pub outbox: Outbox,
    pub depot: Option<Depot>,
    #[serde(default)]
    pub source: Vec<Source>,
    #[serde(default)]
    pub pipeline: Vec<Pipeline>,
    #[serde(default)]
    pub log: Log,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    pub id: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub state: Option<PathBuf>,
    pub run: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    pub url: OneOrMany<String>,
    pub client_id: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub proxy: Option<String>,
    pub keep_alive: Option<Interval>,
    pub mqtt: Option<u8>,
    pub resume: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    pub broker: Option<String>,
    pub prefix: Option<String>,
    #[serde(default)]
    pub commands: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub cpu: Option<f64>,
    pub memory: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    #[serde(default)]
    pub affinity: Vec<usize>,
    pub fifo_priority: Option<u8>,
    pub lock_memory: Option<bool>,
    pub hang_limit: Option<Interval>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pressure {
    pub temperature_c: Option<f64>,
    pub cpu: Option<f64>,
    pub frequency: Option<f64>,
    pub sustain: Option<Interval>,
    pub recover: Option<Interval>,
    pub root: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbox {
    pub commit_interval: Option<Interval>,
    pub durability: Option<Durability>,
    pub max_bytes: Option<Size>,
    pub max_age: Option<Interval>,
    pub ring: Option<Size>,
    pub policy: Option<DropPolicy>,
    pub order: Option<OutboxOrder>,
    pub drain_rate: Option<Size>,
    pub history: Option<HistoryPlace>,
    pub history_results: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: String,
    pub broker: Option<String>,
    pub topic: Option<String>,
    pub join: Option<Join>,
    pub exec: Option<Vec<String>>,
    pub message: Option<Size>,
    pub codec: Codec,
    #[serde(default)]
    pub scale: Vec<Fraction>,
    #[serde(default)]
    pub offset: Vec<Fraction>,
    pub rate_hz: Option<f64>,
    pub time: Option<TimeOrigin>,
    pub max_skew: Option<Interval>,
    pub max_gap: Option<Interval>,
    pub on_gap: Option<OnGap>,
    pub max_streams: Option<u32>,
    pub stream_idle: Option<Interval>,
    pub accept_retained: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    pub topics: Vec<String>,
    pub tolerance: Interval,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    pub name: String,
    pub source: String,
    pub model: String,
    pub class: Option<Class>,
    pub deadline: Option<Interval>,
    #[serde(default)]
    pub queue: Queue,
    pub publish: Option<Publish>,
    pub deadband: Option<f64>,
    pub heartbeat: Option<Interval>,
    #[serde(default)]
    pub inference_batch: Batch,
    pub pin: Option<bool>,
    pub swap: Option<Swap>,
    #[serde(default)]
    pub message_batch: Batch,
    pub encoding: Option<Encoding>,
    pub outbox_policy: Option<DropPolicy>,
    #[serde(default)]
    pub trial: Trial,
    #[serde(default)]
    pub local: Vec<LocalOutput>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Depot {
    pub root: PathBuf,
    pub channel: Option<String>,
    pub keep: Option<usize>,
    pub rate: Option<Size>,
    pub disk: Option<Size>,
    pub jitter: Option<Interval>,
    pub refresh: Option<Interval>,
    pub trial: Option<Interval>,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    pub windows: Option<u64>,
    pub time: Option<Interval>,
    pub shadow: Option<bool>,
    pub shadow_cpu: Option<f64>,
    pub agreement: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    pub depth: Option<u32>,
    pub policy: Option<QueuePolicy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    pub max: Option<u32>,
    pub delay: Option<Interval>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalOutput {
    pub broker: Option<String>,
    pub topic: String,
    pub on: Option<Publish>,
    pub qos: Option<u8>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: Option<LogLevel>,
    pub format: Option<LogFormat>,
}

/// A value, or a list of them. Unlike serde's untagged enums it reports the problem of the form that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// As `"x"`.
    One(T),
    /// As `["x", "y"]`.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(OneOrMany::One)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(OneOrMany::Many)
            }
        }
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ColumnVisitor;
        impl Visitor<'_> for ColumnVisitor {
            type Value = Column;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a column: its number, counted from 1, or its name in the header line")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Column, E> {
                match usize::try_from(number) {
                    Ok(number @ 1..) => Ok(Column::Number(number)),
                    _ => Err(E::custom(format!("{number} is not a column; columns are counted from 1"))),
                }
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Column, E> {
                i64::try_from(number).map_err(E::custom).and_then(|number| self.visit_i64(number))
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Column, E> {
                Ok(Column::Name(name.to_owned()))
            }
        }
        deserializer.deserialize_any(ColumnVisitor)
    }
}
