//! Results: what a decision says about one window.
//!
//! [`ResultRecord`] is the one type that the agent and its tools work with. It is written as JSON by
//! [`ResultRecord::to_json`], as postcard by [`crate::binary`], and read back by both.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::id::{ResultId, Serial};
use crate::{VERSION, WireError};

/// How far the wall clock can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// A time server sets the clock.
    Synced,
    /// None does: the time may be wrong by any amount. Where it cannot be right, results carry the time since boot instead.
    Unsynced,
    /// The time was not known when it was captured, and has been worked out since.
    Corrected,
}

/// When the last sample of a window was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Captured {
    /// Nanoseconds since the UNIX epoch.
    Utc(i64),
    /// Nanoseconds since boot, where UTC is not known.
    Boottime(u64),
}

/// First and last sample of a window, as indices in the stream since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Index of the first sample.
    pub first: u64,
    /// Index of the last sample.
    pub last: u64,
}

/// What the decision says.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The best label, its score, and the score of each label in the graph's order.
    Class {
        /// Index into `labels` of the best.
        best: usize,
        /// All labels, shared between results.
        labels: Arc<[String]>,
        /// One score a label.
        scores: Vec<f32>,
    },
    /// How unusual the window is.
    Anomaly {
        /// The score; higher is more unusual.
        score: f32,
        /// The score above which it is an anomaly, if one is set.
        threshold: Option<f32>,
    },
    /// What the graph gave.
    Regression {
        /// Values in the graph's order.
        values: Vec<f32>,
    },
}

impl Verdict {
    /// The best label, if it is a classification.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::Class { best, labels, .. } => labels.get(*best).map(String::as_str),
            _ => None,
        }
    }

    /// The score that `publish = "changes"` and triggers look at: of the best label, or of the anomaly.
    pub fn score(&self) -> Option<f32> {
        match self {
            Self::Class { best, scores, .. } => scores.get(*best).copied(),
            Self::Anomaly { score, .. } => Some(*score),
            Self::Regression { .. } => None,
        }
    }
}

/// Where the time went, in microseconds of CLOCK_BOOTTIME. `total` is their sum by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LatencyUs {
    /// From capture to the window being complete in the agent.
    pub wait: u64,
    /// Front end.
    pub features: u64,
    /// From features to the start of the session.
    pub queue: u64,
    /// The session.
    pub compute: u64,
    /// Decision.
    pub decide: u64,
}

impl LatencyUs {
    /// Sum of the parts; what somebody else has written may have any.
    pub fn total(&self) -> u64 {
        let parts = [self.wait, self.features, self.queue, self.compute, self.decide];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// One result.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultRecord {
    /// Run and position, if the result was selected for publication.
    pub serial: Option<Serial>,
    /// The gateway's name.
    pub gateway: Arc<str>,
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// The stream's name.
    pub stream: Arc<str>,
    /// The model's name.
    pub model: Arc<str>,
    /// The model's version.
    pub version: Arc<str>,
    /// The engine that ran it.
    pub engine: Arc<str>,
    /// The variant that ran.
    pub variant: Arc<str>,
    /// When the window's last sample was captured.
    pub captured: Captured,
    /// How far `captured` can be trusted.
    pub clock: Clock,
    /// The window.
    pub window: Span,
    /// Samples in the window that were filled in for missing ones.
    pub filled: u64,
    /// What the decision says.
    pub verdict: Verdict,
    /// Whether this result pulled the trigger.
    pub trigger: bool,
    /// Where the time went.
    pub latency: LatencyUs,
    /// Whether it was ready only after its deadline.
    pub late: bool,
    /// Tag of the message that completed the window, echoed.
    pub tag: Option<u64>,
}

impl ResultRecord {
    /// The id, if the result has one.
    pub fn id(&self) -> Option<ResultId<'_>> {
        self.serial.map(|serial| ResultId {
            gateway: &self.gateway,
            pipeline: &self.pipeline,
            stream: &self.stream,
            serial,
        })
    }

    /// Appends the result as one JSON object, without a line break.
    pub fn to_json(&self, out: &mut Vec<u8>) {
        let scores = match &self.verdict {
            Verdict::Class { labels, scores, .. } => Some(Scores { labels, scores }),
            _ => None,
        };
        let (threshold, values) = match &self.verdict {
            Verdict::Anomaly { threshold, .. } => (*threshold, None),
            Verdict::Regression { values } => (None, Some(values.as_slice())),
            Verdict::Class { .. } => (None, None),
        };
        let (captured, boottime_us) = match self.captured {
            Captured::Utc(ns) => (Some(rfc3339_micros(ns)), None),
            Captured::Boottime(ns) => (None, Some(ns / 1000)),
        };
        let object = JsonOut {
            v: VERSION,
            r#type: "result",
            id: self.id().map(|id| id.to_string()),
            gateway: &self.gateway,
            pipeline: &self.pipeline,
            stream: &self.stream,
            model: &self.model,
            version: &self.version,
            engine: &self.engine,
            variant: &self.variant,
            captured,
            boottime_us,
            clock: self.clock,
            window: self.window,
            filled: self.filled,
            label: self.verdict.label(),
            score: self.verdict.score(),
            scores,
            threshold,
            values,
            trigger: self.trigger,
            latency_us: JsonLatency { parts: self.latency, total: self.latency.total() },
            late: self.late,
            tag: self.tag,
        };
        serde_json::to_writer(out, &object).expect("writing plain values into memory cannot fail");
    }

    /// Reads one JSON object. Keys that it does not know are ignored.
    ///
    /// # Errors
    /// [`WireError`] with what is missing or wrong.
    pub fn from_json(text: &[u8]) -> Result<Self, WireError> {
        let object: JsonIn<'_> = serde_json::from_slice(text).map_err(|e| WireError::Payload(e.to_string()))?;
        if object.r#type != "result" {
            return Err(WireError::Type(object.r#type.into_owned()));
        }
        if object.v > VERSION {
            return Err(WireError::Version { found: object.v, known: VERSION });
        }
        let serial = object.id.as_deref().map(|id| ResultId::parse(id).map(|id| id.serial)).transpose()?;
        let captured = match (object.captured, object.boottime_us) {
            (Some(text), _) => Captured::Utc(parse_rfc3339(&text)?),
            (None, Some(us)) => Captured::Boottime(us.saturating_mul(1000)),
            (None, None) => return Err(WireError::Payload("neither captured nor boottime_us".into())),
        };
        let verdict = if let Some(values) = object.values {
            Verdict::Regression { values }
        } else if let Some(InOrder(scores)) = object.scores {
            let (labels, scores): (Vec<String>, Vec<f32>) = scores.into_iter().unzip();
            let labels: Arc<[String]> = labels.into();
            let label = object.label.ok_or_else(|| WireError::Payload("scores without label".into()))?;
            let best = labels.iter().position(|l| *l == label);
            let best = best.ok_or_else(|| WireError::Payload(format!("label '{label}' has no score")))?;
            Verdict::Class { best, labels, scores }
        } else {
            let score = object.score.ok_or_else(|| WireError::Payload("no score, scores or values".into()))?;
            Verdict::Anomaly { score, threshold: object.threshold }
        };
        Ok(Self {
            serial,
            gateway: object.gateway.into(),
            pipeline: object.pipeline.into(),
            stream: object.stream.into(),
            model: object.model.into(),
            version: object.version.into(),
            engine: object.engine.into(),
            variant: object.variant.into(),
            captured,
            clock: object.clock,
            window: object.window,
            filled: object.filled,
            verdict,
            trigger: object.trigger,
            latency: object.latency_us,
            late: object.late,
            tag: object.tag,
        })
    }
}

/// Labels with their scores, as a JSON object in the graph's order.
struct Scores<'a> {
    labels: &'a [String],
    scores: &'a [f32],
}

impl Serialize for Scores<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.scores.len()))?;
        for (label, score) in self.labels.iter().zip(self.scores) {
            map.serialize_entry(label, score)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct JsonLatency {
    #[serde(flatten)]
    parts: LatencyUs,
    total: u64,
}

#[derive(Serialize)]
struct JsonOut<'a> {
    v: u8,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    gateway: &'a str,
    pipeline: &'a str,
    stream: &'a str,
    model: &'a str,
    version: &'a str,
    engine: &'a str,
    variant: &'a str,
    /// Present as null where the time is not known.
    captured: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boottime_us: Option<u64>,
    clock: Clock,
    window: Span,
    filled: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Scores<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<&'a [f32]>,
    trigger: bool,
    latency_us: JsonLatency,
    late: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<u64>,
}

/// Labels with their scores in the order written, which is the graph's.
struct InOrder(Vec<(String, f32)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of labels and scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(InOrder(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[derive(Deserialize)]
struct JsonIn<'a> {
    v: u8,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    id: Option<String>,
    gateway: String,
    pipeline: String,
    stream: String,
    model: String,
    version: String,
    engine: String,
    variant: String,
    captured: Option<String>,
    boottime_us: Option<u64>,
    clock: Clock,
    window: Span,
    filled: u64,
    label: Option<String>,
    score: Option<f32>,
    scores: Option<InOrder>,
    threshold: Option<f32>,
    values: Option<Vec<f32>>,
    trigger: bool,
    latency_us: LatencyUs,
    late: bool,
    tag: Option<u64>,
}

/// Nanoseconds since the UNIX epoch as RFC 3339 in UTC with microseconds.
pub fn rfc3339_micros(ns: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns))
        .expect("any 64-bit number of nanoseconds lies between the years 1677 and 2262");
    let (h, m, s) = at.to_hms();
    let (year, month, day) = at.to_calendar_date();
    format!("{year:04}-{:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:06}Z", u8::from(month), at.microsecond())
}

/// RFC 3339 to nanoseconds since the UNIX epoch.
///
/// # Errors
/// [`WireError::Payload`] if it is no such time or lies outside the years 1677 to 2262.
pub fn parse_rfc3339(text: &str) -> Result<i64, WireError> {
    let wrong = |why: &dyn std::fmt::Display| WireError::Payload(format!("'{text}' is not an RFC 3339 time: {why}"));
    let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|e| wrong(&e))?.to_offset(UtcOffset::UTC);
    i64::try_from(at.unix_timestamp_nanos()).map_err(|_| wrong(&"the year is out of range"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The example of the contract.
    pub(crate) fn example() -> ResultRecord {
        let labels: Arc<[String]> = ["healthy", "imbalance", "bearing", "looseness"].map(String::from).into();
        ResultRecord {
            serial: Some(Serial { run: 0x9f2c_61d0_4b7a_e813, seq: 42 }),
            gateway: "press-07".into(),
            pipeline: "motor".into(),
            stream: "press-3".into(),
            model: "motor-health".into(),
            version: "2.1.0".into(),
            engine: "tflite".into(),
            variant: "int8.tflite".into(),
            captured: Captured::Utc(1_795_428_902_123_456_000),
            clock: Clock::Synced,
            window: Span { first: 3200, last: 6399 },
            filled: 0,
            verdict: Verdict::Class { best: 2, labels, scores: vec![0.01, 0.0, 0.98, 0.01] },
            trigger: true,
            latency: LatencyUs { wait: 210, features: 45, queue: 12, compute: 34, decide: 1 },
            late: false,
            tag: None,
        }
    }

    #[test]
    fn a_result_is_written_as_the_contract_shows_it() {
        let mut json = Vec::new();
        example().to_json(&mut json);
        let expected = concat!(
            r#"{"v":1,"type":"result","id":"press-07/motor/press-3/9f2c61d04b7ae813-42","gateway":"press-07","#,
            r#""pipeline":"motor","stream":"press-3","model":"motor-health","version":"2.1.0","engine":"tflite","#,
            r#""variant":"int8.tflite","captured":"2026-11-23T10:15:02.123456Z","clock":"synced","#,
            r#""window":{"first":3200,"last":6399},"filled":0,"label":"bearing","score":0.98,"#,
            r#""scores":{"healthy":0.01,"imbalance":0.0,"bearing":0.98,"looseness":0.01},"trigger":true,"#,
            r#""latency_us":{"wait":210,"features":45,"queue":12,"compute":34,"decide":1,"total":302},"late":false}"#,
        );
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }

    #[test]
    fn a_result_reads_back_from_json() {
        let mut variants = vec![example()];
        let verdicts = [
            Verdict::Anomaly { score: 0.5, threshold: Some(0.25) },
            Verdict::Anomaly { score: 0.5, threshold: None },
            Verdict::Regression { values: vec![1.5, -2.0] },
        ];
        for verdict in verdicts {
            let mut record = example();
            record.verdict = verdict;
            record.tag = Some(u64::MAX);
            record.serial = None;
            record.captured = Captured::Boottime(5_000_000);
            record.clock = Clock::Unsynced;
            variants.push(record);
        }
        for record in variants {
            let mut json = Vec::new();
            record.to_json(&mut json);
            assert_eq!(ResultRecord::from_json(&json).unwrap(), record);
        }
    }

    #[test]
    fn unknown_keys_are_ignored_and_newer_versions_refused() {
        let mut json = Vec::new();
        example().to_json(&mut json);
        let mut value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        value["colour"] = "red".into();
        assert!(ResultRecord::from_json(value.to_string().as_bytes()).is_ok());
        value["v"] = 2.into();
        let error = ResultRecord::from_json(value.to_string().as_bytes()).unwrap_err();
        assert_eq!(error, WireError::Version { found: 2, known: 1 });
    }

    #[test]
    fn times_read_back() {
        for ns in [0, 1_795_428_902_123_456_000, -1_000, i64::MAX / 1000 * 1000] {
            assert_eq!(parse_rfc3339(&rfc3339_micros(ns)), Ok(ns));
        }
        assert_eq!(rfc3339_micros(1_795_428_902_123_456_000), "2026-11-23T10:15:02.123456Z");
    }
}
