//! Payloads as postcard.
//!
//! An item is byte 0 the type, byte 1 the version, then the struct of that type and version in postcard. Several items
//! in one message stand each after its length as u32 little-endian. A version is one private struct here, frozen.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::dropped::{Dropped, Origin, Reason};
use crate::id::Serial;
use crate::result::{Captured, Clock, LatencyUs, ResultRecord, Span, Verdict};

/// Type byte of a result.
const RESULT: u8 = 1;
/// Newest version of a result.
const RESULT_VERSION: u8 = 1;
/// Type byte of a range record.
const DROPPED: u8 = 2;
/// Newest version of a range record.
const DROPPED_VERSION: u8 = 1;

/// What stands in a message of results.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A result.
    Result(Box<ResultRecord>),
    /// What a policy dropped of them.
    Dropped(Dropped),
}

#[derive(Serialize, Deserialize)]
struct ResultV1<'a> {
    serial: Option<(u64, u64)>,
    gateway: &'a str,
    pipeline: &'a str,
    stream: &'a str,
    model: &'a str,
    version: &'a str,
    engine: &'a str,
    variant: &'a str,
    captured: CapturedV1,
    clock: ClockV1,
    first: u64,
    last: u64,
    filled: u64,
    #[serde(borrow)]
    verdict: VerdictV1<'a>,
    trigger: bool,
    /// wait, features, queue, compute, decide
    latency_us: [u64; 5],
    late: bool,
    tag: Option<u64>,
}

#[derive(Serialize, Deserialize)]
enum CapturedV1 {
    Utc(i64),
    Boottime(u64),
}

#[derive(Serialize, Deserialize)]
enum ClockV1 {
    Synced,
    Unsynced,
    Corrected,
}

#[derive(Serialize, Deserialize)]
enum VerdictV1<'a> {
    Class {
        best: u32,
        #[serde(borrow)]
        scores: Vec<(&'a str, f32)>,
    },
    Anomaly {
        score: f32,
        threshold: Option<f32>,
    },
    Regression {
        values: Vec<f32>,
    },
}

#[derive(Serialize, Deserialize)]
struct DroppedV1<'a> {
    id: &'a str,
    gateway: &'a str,
    of: Option<(&'a str, &'a str)>,
    run: u64,
    first: u64,
    last: u64,
    every: u64,
    reason: ReasonV1,
}

#[derive(Serialize, Deserialize)]
enum ReasonV1 {
    Full,
    Age,
    Disk,
    TooLarge,
    Damaged,
}

/// Appends a range record as one item, without a length in front.
pub fn write_dropped(dropped: &Dropped, out: &mut Vec<u8>) {
    let item = DroppedV1 {
        id: &dropped.id,
        gateway: &dropped.gateway,
        of: dropped.of.as_ref().map(|of| (of.pipeline.as_str(), of.stream.as_str())),
        run: dropped.run,
        first: dropped.first,
        last: dropped.last,
        every: dropped.every,
        reason: match dropped.reason {
            Reason::Full => ReasonV1::Full,
            Reason::Age => ReasonV1::Age,
            Reason::Disk => ReasonV1::Disk,
            Reason::TooLarge => ReasonV1::TooLarge,
            Reason::Damaged => ReasonV1::Damaged,
        },
    };
    out.extend_from_slice(&[DROPPED, DROPPED_VERSION]);
    postcard::to_io(&item, out).expect("writing plain values into memory cannot fail");
}

/// Reads one item.
///
/// # Errors
/// [`WireError`] if it is of another type or of a newer version, damaged, or followed by more bytes.
pub fn read(item: &[u8]) -> Result<Item, WireError> {
    match split(item)? {
        Some((item, [])) => Ok(item),
        Some((_, rest)) => Err(WireError::Payload(format!("{} bytes after the end of the item", rest.len()))),
        None => Err(WireError::Payload(format!("{} bytes are only a part of an item", item.len()))),
    }
}

/// Appends a result as one item, without a length in front.
pub fn write_result(record: &ResultRecord, out: &mut Vec<u8>) {
    let verdict = match &record.verdict {
        Verdict::Class { best, labels, scores } => VerdictV1::Class {
            best: u32::try_from(*best).expect("a graph has fewer than 2^32 classes"),
            scores: labels.iter().map(String::as_str).zip(scores.iter().copied()).collect(),
        },
        Verdict::Anomaly { score, threshold } => VerdictV1::Anomaly { score: *score, threshold: *threshold },
        Verdict::Regression { values } => VerdictV1::Regression { values: values.clone() },
    };
    let latency = record.latency;
    let item = ResultV1 {
        serial: record.serial.map(|s| (s.run, s.seq)),
        gateway: &record.gateway,
        pipeline: &record.pipeline,
        stream: &record.stream,
        model: &record.model,
        version: &record.version,
        engine: &record.engine,
        variant: &record.variant,
        captured: match record.captured {
            Captured::Utc(ns) => CapturedV1::Utc(ns),
            Captured::Boottime(ns) => CapturedV1::Boottime(ns),
        },
        clock: match record.clock {
            Clock::Synced => ClockV1::Synced,
            Clock::Unsynced => ClockV1::Unsynced,
            Clock::Corrected => ClockV1::Corrected,
        },
        first: record.window.first,
        last: record.window.last,
        filled: record.filled,
        verdict,
        trigger: record.trigger,
        latency_us: [latency.wait, latency.features, latency.queue, latency.compute, latency.decide],
        late: record.late,
        tag: record.tag,
    };
    out.extend_from_slice(&[RESULT, RESULT_VERSION]);
    postcard::to_io(&item, out).expect("writing plain values into memory cannot fail");
}

/// Reads one item that holds a result.
///
/// # Errors
/// [`WireError`] if it is no result, of a newer version, damaged, or followed by more bytes.
pub fn read_result(item: &[u8]) -> Result<ResultRecord, WireError> {
    match read(item)? {
        Item::Result(record) => Ok(*record),
        Item::Dropped(_) => Err(WireError::Type(DROPPED.to_string())),
    }
}

/// Longest item that is believed. A message holds at most 100 KiB, so a longer one means that the reader is out of step.
pub const ITEM_MAX: usize = 1 << 20;

/// Takes the first item off a run of payloads, each an item by itself or several after their lengths, as they come from
/// subscriptions. None if `bytes` end inside it; more may follow.
///
/// The two forms cannot be taken for each other: a length is below 2^24, so its fourth byte is 0, and the fourth byte
/// of an item is not: in a result (after type, version, and whether there is a serial) it starts either the run, which
/// is never 0, or the gateway's name, which is never empty; in a range record it is the first character of the id.
///
/// # Errors
/// [`WireError`] if it is no such item, or damaged.
pub fn take(bytes: &mut &[u8]) -> Result<Option<Item>, WireError> {
    let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
    if head[3] != 0 {
        let Some((item, rest)) = split(bytes)? else { return Ok(None) };
        *bytes = rest;
        return Ok(Some(item));
    }
    let length = u32::from_le_bytes(*head) as usize;
    if length > ITEM_MAX {
        return Err(WireError::Payload(format!("an item of {length} bytes, the longest has {ITEM_MAX}")));
    }
    if bytes.len() < 4 + length {
        return Ok(None);
    }
    let item = read(take_framed(bytes)?)?;
    Ok(Some(item))
}

/// The item at the start of `bytes`, and what follows it; none if they end inside it.
fn split(bytes: &[u8]) -> Result<Option<(Item, &[u8])>, WireError> {
    let [kind, version, body @ ..] = bytes else { return Ok(None) };
    let known = match *kind {
        RESULT => RESULT_VERSION,
        DROPPED => DROPPED_VERSION,
        kind => return Err(WireError::Type(kind.to_string())),
    };
    if *version != known {
        return Err(WireError::Version { found: *version, known });
    }
    let (item, rest) = if *kind == RESULT {
        let Some((item, rest)) = take_struct::<ResultV1<'_>>(body)? else { return Ok(None) };
        (Item::Result(Box::new(record(item)?)), rest)
    } else {
        let Some((item, rest)) = take_struct::<DroppedV1<'_>>(body)? else { return Ok(None) };
        (Item::Dropped(dropped(item)), rest)
    };
    Ok(Some((item, rest)))
}

/// A struct at the start of `body`, and what follows it; none if it ends inside it.
fn take_struct<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<Option<(T, &'a [u8])>, WireError> {
    match postcard::take_from_bytes(body) {
        Ok(taken) => Ok(Some(taken)),
        Err(postcard::Error::DeserializeUnexpectedEnd) => Ok(None),
        Err(error) => Err(WireError::Payload(error.to_string())),
    }
}

fn dropped(item: DroppedV1<'_>) -> Dropped {
    Dropped {
        id: item.id.to_owned(),
        gateway: item.gateway.to_owned(),
        of: item.of.map(|(pipeline, stream)| Origin { pipeline: pipeline.to_owned(), stream: stream.to_owned() }),
        run: item.run,
        first: item.first,
        last: item.last,
        every: item.every,
        reason: match item.reason {
            ReasonV1::Full => Reason::Full,
            ReasonV1::Age => Reason::Age,
            ReasonV1::Disk => Reason::Disk,
            ReasonV1::TooLarge => Reason::TooLarge,
            ReasonV1::Damaged => Reason::Damaged,
        },
    }
}

fn record(item: ResultV1<'_>) -> Result<ResultRecord, WireError> {
    let verdict = match item.verdict {
        VerdictV1::Class { best, scores } => {
            let best = best as usize;
            if best >= scores.len() {
                return Err(WireError::Payload(format!("best class {best} of {}", scores.len())));
            }
            let labels: Arc<[String]> = scores.iter().map(|(label, _)| (*label).to_owned()).collect();
            Verdict::Class { best, labels, scores: scores.into_iter().map(|(_, score)| score).collect() }
        }
        VerdictV1::Anomaly { score, threshold } => Verdict::Anomaly { score, threshold },
        VerdictV1::Regression { values } => Verdict::Regression { values },
    };
    let [wait, features, queue, compute, decide] = item.latency_us;
    Ok(ResultRecord {
        serial: item.serial.map(|(run, seq)| Serial { run, seq }),
        gateway: item.gateway.into(),
        pipeline: item.pipeline.into(),
        stream: item.stream.into(),
        model: item.model.into(),
        version: item.version.into(),
        engine: item.engine.into(),
        variant: item.variant.into(),
        captured: match item.captured {
            CapturedV1::Utc(ns) => Captured::Utc(ns),
            CapturedV1::Boottime(ns) => Captured::Boottime(ns),
        },
        clock: match item.clock {
            ClockV1::Synced => Clock::Synced,
            ClockV1::Unsynced => Clock::Unsynced,
            ClockV1::Corrected => Clock::Corrected,
        },
        window: Span { first: item.first, last: item.last },
        filled: item.filled,
        verdict,
        trigger: item.trigger,
        latency: LatencyUs { wait, features, queue, compute, decide },
        late: item.late,
        tag: item.tag,
    })
}

/// Appends an item after its length, for a message that holds several.
///
/// # Panics
/// If the item is 4 GiB or longer.
pub fn push_framed(item: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(item.len()).expect("an item is far below 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(item);
}

/// Takes the first framed item off a message that holds several.
///
/// # Errors
/// [`WireError::Payload`] if the message ends inside it.
pub fn take_framed<'a>(message: &mut &'a [u8]) -> Result<&'a [u8], WireError> {
    let (length, rest) = message
        .split_first_chunk::<4>()
        .ok_or_else(|| WireError::Payload(format!("{} bytes where a length of 4 is due", message.len())))?;
    let length = u32::from_le_bytes(*length) as usize;
    if rest.len() < length {
        return Err(WireError::Payload(format!("an item of {length} bytes, {} are left", rest.len())));
    }
    let (item, rest) = rest.split_at(length);
    *message = rest;
    Ok(item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dropped::tests::example as dropped_example;
    use crate::result::tests::example;
    use proptest::prelude::*;

    /// Version 1 as it was published. If this fails, make a version 2 instead of changing it.
    const RESULT_V1: &str = include_str!("../tests/result-v1.hex");

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn version_1_is_frozen() {
        let mut item = Vec::new();
        write_result(&example(), &mut item);
        assert_eq!(hex(&item), RESULT_V1.split_whitespace().collect::<String>());
    }

    /// The same of a range record.
    const DROPPED_V1: &str = include_str!("../tests/dropped-v1.hex");

    #[test]
    fn version_1_of_a_range_record_is_frozen() {
        let mut item = Vec::new();
        write_dropped(&dropped_example(), &mut item);
        assert_eq!(hex(&item), DROPPED_V1.split_whitespace().collect::<String>());
        assert_eq!(read(&item), Ok(Item::Dropped(dropped_example())));
        assert_eq!(read_result(&item), Err(WireError::Type("2".into())));
    }

    #[test]
    fn every_kind_of_result_reads_back() {
        let mut anomaly = example();
        anomaly.verdict = Verdict::Anomaly { score: 1.5, threshold: None };
        anomaly.captured = Captured::Boottime(7);
        anomaly.clock = Clock::Unsynced;
        anomaly.serial = None;
        let mut regression = example();
        regression.verdict = Verdict::Regression { values: vec![0.0, -1.0] };
        regression.tag = Some(3);
        for record in [example(), anomaly, regression] {
            let mut item = Vec::new();
            write_result(&record, &mut item);
            assert_eq!(read_result(&item), Ok(record));
        }
    }

    #[test]
    fn framed_items_come_back_in_order() {
        let mut message = Vec::new();
        for item in [&b"one"[..], b"", b"three"] {
            push_framed(item, &mut message);
        }
        let mut rest = &message[..];
        assert_eq!(take_framed(&mut rest), Ok(&b"one"[..]));
        assert_eq!(take_framed(&mut rest), Ok(&b""[..]));
        assert_eq!(take_framed(&mut rest), Ok(&b"three"[..]));
        assert!(take_framed(&mut rest).is_err());
    }

    #[test]
    fn payloads_of_either_form_are_taken_one_after_the_other() {
        let (mut item, mut bytes) = (Vec::new(), Vec::new());
        write_result(&example(), &mut item);
        let mut unpublished = example();
        unpublished.serial = None;
        bytes.extend_from_slice(&item);
        push_framed(&item, &mut bytes);
        write_result(&unpublished, &mut bytes);
        push_framed(&item, &mut bytes);
        write_dropped(&dropped_example(), &mut bytes);
        for cut in 0..bytes.len() {
            let (mut rest, mut count) = (&bytes[..cut], 0);
            while take(&mut rest).expect("a cut is no damage").is_some() {
                count += 1;
            }
            assert!(count < 5, "cut at {cut}");
        }
        let mut rest = &bytes[..];
        let taken: Vec<_> = std::iter::from_fn(|| take(&mut rest).unwrap()).collect();
        let result = |record| Item::Result(Box::new(record));
        let results = [example(), example(), unpublished, example()].map(result);
        assert_eq!(taken, results.into_iter().chain([Item::Dropped(dropped_example())]).collect::<Vec<_>>());
        assert!(rest.is_empty());
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_result(&bytes);
            let _ = ResultRecord::from_json(&bytes);
            let mut rest = &bytes[..];
            while take_framed(&mut rest).is_ok() {}
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = take(&mut rest) {}
        }

        #[test]
        fn a_damaged_result_never_panics(at in 0usize..200, value: u8, cut in 0usize..200) {
            let mut item = Vec::new();
            write_result(&example(), &mut item);
            let length = item.len();
            item[at % length] = value;
            item.truncate(length - cut % length);
            let _ = read_result(&item);
        }
    }
}
