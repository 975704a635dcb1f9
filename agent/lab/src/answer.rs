//! What is needed of an answer to measure it: the tag that it echoes, and where its time went.
//!
//! An answer is a message on a result topic or on a local output, in any encoding that the agent publishes: one JSON
//! object, JSON lines, one postcard item, or several after their lengths. Anything that is no result, such as a range
//! record, is counted apart and never taken for one.

use std::borrow::Cow;

use limpet_wire::binary;
use limpet_wire::content_type;
use limpet_wire::result::{LatencyUs, Span};
use serde::Deserialize;

/// One result in an answer. What other agents than limpet do not say is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The tag of the message that it answers.
    pub tag: u64,
    /// Where its time went.
    pub latency: Option<LatencyUs>,
    /// Whether it was ready only after its deadline.
    pub late: bool,
    /// Index of its window's first sample.
    pub first: Option<u64>,
    /// The version of the model that gave it.
    pub version: Option<&'a str>,
}

/// Of a result in JSON only what is measured: a full decode would make the measuring end the slower one.
#[derive(Deserialize)]
struct Glance<'a> {
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    tag: Option<u64>,
    latency_us: Option<LatencyUs>,
    #[serde(default)]
    late: bool,
    window: Option<Span>,
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
}

/// Calls `each` for every tagged result in a message; gives the number of entries that were none.
pub fn read(content: Option<&str>, message: &[u8], mut each: impl FnMut(Answer<'_>)) -> u64 {
    if content == Some(content_type::POSTCARD) {
        return read_postcard(message, &mut each);
    }
    let mut others = 0;
    for line in message.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice::<Glance<'_>>(line) {
            Ok(Glance { r#type, tag: Some(tag), latency_us, late, window, version })
                if r#type.as_deref().is_none_or(|t| t == "result") =>
            {
                let (first, version) = (window.map(|window| window.first), version.as_deref());
                each(Answer { tag, latency: latency_us, late, first, version });
            }
            _ => others += 1,
        }
    }
    others
}

fn read_postcard(message: &[u8], each: &mut impl FnMut(Answer<'_>)) -> u64 {
    let mut take = |item: &[u8]| match binary::read_result(item) {
        Ok(record) => {
            let answer = record.tag.map(|tag| Answer {
                tag,
                latency: Some(record.latency),
                late: record.late,
                first: Some(record.window.first),
                version: Some(&record.version),
            });
            answer.map(&mut *each).is_some()
        }
        Err(_) => false,
    };
    // A message with one item has no length in front; nothing but the content tells the two apart.
    if take(message) {
        return 0;
    }
    let mut rest = message;
    let mut others = 0;
    while !rest.is_empty() {
        let Ok(item) = binary::take_framed(&mut rest) else {
            return others + 1;
        };
        others += u64::from(!take(item));
    }
    others
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use limpet_wire::result::{Captured, Clock, ResultRecord, Span, Verdict};

    pub(crate) fn result(tag: u64) -> ResultRecord {
        ResultRecord {
            serial: None,
            gateway: "bench".into(),
            pipeline: "motor".into(),
            stream: "press-3".into(),
            model: "motor-health".into(),
            version: "1.0.0".into(),
            engine: "tflite".into(),
            variant: "int8.tflite".into(),
            captured: Captured::Utc(1_795_428_902_123_456_000),
            clock: Clock::Synced,
            window: Span { first: 0, last: 3199 },
            filled: 0,
            verdict: Verdict::Anomaly { score: 0.5, threshold: None },
            trigger: false,
            latency: LatencyUs { wait: 5, features: 4, queue: 3, compute: 2, decide: 1 },
            late: false,
            tag: Some(tag),
        }
    }

    fn tags(content: &str, message: &[u8]) -> (Vec<u64>, u64) {
        let mut tags = Vec::new();
        let others = read(Some(content), message, |answer| {
            let expected = result(answer.tag);
            assert_eq!(answer.latency, Some(expected.latency));
            assert_eq!((answer.first, answer.version, answer.late), (Some(0), Some("1.0.0"), false));
            tags.push(answer.tag);
        });
        (tags, others)
    }

    #[test]
    fn tags_are_found_in_every_encoding() {
        let (mut json, mut framed, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for tag in [7, 8] {
            result(tag).to_json(&mut json);
            json.push(b'\n');
            bare.clear();
            binary::write_result(&result(tag), &mut bare);
            binary::push_framed(&bare, &mut framed);
        }
        assert_eq!(tags(content_type::NDJSON, &json), (vec![7, 8], 0));
        assert_eq!(tags(content_type::POSTCARD, &framed), (vec![7, 8], 0));
        assert_eq!(tags(content_type::POSTCARD, &bare), (vec![8], 0));
    }

    #[test]
    fn what_is_no_tagged_result_is_counted_and_not_taken_for_one() {
        let mut untagged = result(0);
        untagged.tag = None;
        let mut json = br#"{"v":1,"type":"dropped","tag":4}"#.to_vec();
        json.push(b'\n');
        untagged.to_json(&mut json);
        json.extend_from_slice(b"\nnonsense\n");
        assert_eq!(tags(content_type::NDJSON, &json), (vec![], 3));
        assert_eq!(tags(content_type::POSTCARD, &[0xff; 9]), (vec![], 1));
    }
}
