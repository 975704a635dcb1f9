//! What is stored: a result or a range record as postcard, or an event as the JSON that goes out.
//!
//! The first byte tells them apart: 1 and 2 are the types of a postcard item (`limpet_wire::binary`), an event starts
//! with `{`. A result keeps all that it says, whatever encoding its pipeline has, so that a time which was not known when
//! it was stored can still be put right when it is sent.

use std::fmt;
use std::sync::Arc;

use limpet_wire::WireError;
use limpet_wire::binary::{self, Item};
use limpet_wire::dropped::Dropped;
use limpet_wire::id::Serial;
use limpet_wire::message::Message as _;
use limpet_wire::result::{Captured, Clock, ResultRecord};
use limpet_wire::topic::Topics;
use serde::Deserialize;

use crate::config::Encoding;

/// Items of one topic, which keep their order; topics do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LaneKey {
    /// What the agent says of itself.
    Events,
    /// Results of a pipeline and a stream.
    Results(Arc<str>, Arc<str>),
}

impl LaneKey {
    /// The lane of a result.
    pub fn of(record: &ResultRecord) -> Self {
        Self::Results(Arc::clone(&record.pipeline), Arc::clone(&record.stream))
    }

    /// Its topic.
    pub fn topic(&self, topics: &Topics) -> String {
        match self {
            Self::Events => topics.event(),
            Self::Results(pipeline, stream) => topics.result(pipeline, stream),
        }
    }

    /// Its pipeline, unless it is that of events.
    pub fn pipeline(&self) -> Option<&str> {
        match self {
            Self::Events => None,
            Self::Results(pipeline, _) => Some(pipeline),
        }
    }
}

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events => f.write_str("event"),
            Self::Results(pipeline, stream) => write!(f, "{pipeline}/{stream}"),
        }
    }
}

/// Writes a result down.
pub fn of_result(record: &ResultRecord) -> Arc<[u8]> {
    let mut payload = Vec::with_capacity(320);
    binary::write_result(record, &mut payload);
    payload.into()
}

/// Writes a range record down.
pub fn of_dropped(dropped: &Dropped) -> Arc<[u8]> {
    let mut payload = Vec::with_capacity(128);
    binary::write_dropped(dropped, &mut payload);
    payload.into()
}

/// What can be said of a stored item without sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Where it goes.
    pub lane: LaneKey,
    /// Its run and number in it; none if it is a range record.
    pub serial: Option<Serial>,
}

#[derive(Deserialize)]
struct EventId<'a> {
    id: &'a str,
}

/// Reads what an item is.
///
/// # Errors
/// [`WireError`] if it is none.
pub fn label(payload: &[u8]) -> Result<Label, WireError> {
    if payload.first() == Some(&b'{') {
        let event: EventId<'_> =
            serde_json::from_slice(payload).map_err(|error| WireError::Payload(error.to_string()))?;
        let serial = event.id.rsplit('/').next().unwrap_or_default().parse()?;
        return Ok(Label { lane: LaneKey::Events, serial: Some(serial) });
    }
    Ok(match binary::read(payload)? {
        Item::Result(record) => Label { lane: LaneKey::of(&record), serial: record.serial },
        Item::Dropped(Dropped { of: Some(of), .. }) => {
            Label { lane: LaneKey::Results(of.pipeline.into(), of.stream.into()), serial: None }
        }
        Item::Dropped(_) => Label { lane: LaneKey::Events, serial: None },
    })
}

/// Appends a stored item as it goes out, and gives the id of a result. `offset`: UTC minus the boot time of the boot
/// under which it was stored, in nanoseconds, if that is known by now.
///
/// # Errors
/// [`WireError`] if it is none.
pub fn write(
    payload: &[u8],
    encoding: Encoding,
    offset: Option<i64>,
    out: &mut Vec<u8>,
) -> Result<Option<String>, WireError> {
    if payload.first() == Some(&b'{') {
        out.extend_from_slice(payload);
        return Ok(None);
    }
    match binary::read(payload)? {
        Item::Dropped(dropped) => match encoding {
            Encoding::Json => out.extend_from_slice(&dropped.to_json()),
            Encoding::Postcard => binary::write_dropped(&dropped, out),
        },
        Item::Result(mut record) => {
            correct(&mut record, offset);
            match encoding {
                Encoding::Json => record.to_json(out),
                Encoding::Postcard => binary::write_result(&record, out),
            }
            return Ok(record.id().map(|id| id.to_string()));
        }
    }
    Ok(None)
}

/// Puts a time right that was not known when it was captured.
fn correct(record: &mut ResultRecord, offset: Option<i64>) {
    if let (Captured::Boottime(at), Some(offset)) = (record.captured, offset) {
        record.captured = Captured::Utc(offset.saturating_add_unsigned(at));
        record.clock = Clock::Corrected;
    }
}

/// Results for tests.
#[cfg(test)]
pub mod fixture {
    use limpet_wire::result::{LatencyUs, Span, Verdict};

    use super::{Captured, Clock, ResultRecord, Serial};

    /// A result of run 7.
    pub fn record(pipeline: &str, stream: &str, seq: u64, verdict: Verdict) -> ResultRecord {
        ResultRecord {
            serial: Some(Serial { run: 7, seq }),
            gateway: "g".into(),
            pipeline: pipeline.into(),
            stream: stream.into(),
            model: "m".into(),
            version: "1.0.0".into(),
            engine: "tract".into(),
            variant: "v.onnx".into(),
            captured: Captured::Utc(0),
            clock: Clock::Synced,
            window: Span { first: seq, last: seq },
            filled: 0,
            verdict,
            trigger: false,
            latency: LatencyUs::default(),
            late: false,
            tag: None,
        }
    }
}
