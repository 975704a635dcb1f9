//! JSON payloads: a number, an array, or one pointer per channel.
//!
//! | found | channels | samples |
//! |---|---|---|
//! | a number | 1 | one |
//! | an array of numbers | 1 | one per number |
//! | an array of numbers, as many as channels | several | one |
//! | an array of arrays, each with one number per channel | any | one per inner array |
//! | a list of pointers, each to a number | as many | one |
//! | a list of pointers, each to an array, all of one length | as many | one per element |

use serde_json::Value;

use super::{Gains, Message, Refusal, bounded, excerpt, parse_time};
use crate::config::OneOrMany;
use crate::config::codec::Json;

/// Appends the samples to `out`.
pub(super) fn decode(config: &Json, payload: &[u8], gains: &Gains, out: &mut Vec<f32>) -> Result<Message, Refusal> {
    let document = parse(payload)?;
    match &config.value {
        None => values(&document, gains, out)?,
        Some(OneOrMany::One(pointer)) => values(at(&document, pointer)?, gains, out)?,
        Some(OneOrMany::Many(pointers)) => channels(&document, pointers, gains, out)?,
    }
    let time_ns = time(config, &document)?;
    Ok(Message { time_ns, samples: out.len() / gains.channels, ..Message::default() })
}

/// Reads a document.
pub(super) fn parse(payload: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(payload).map_err(|error| Refusal::BrokenJson(error.to_string()))
}

/// The time that a document names, if the codec has one.
pub(super) fn time(config: &Json, document: &Value) -> Result<Option<i64>, Refusal> {
    let Some(pointer) = &config.time else { return Ok(None) };
    let time = match at(document, pointer)? {
        Value::String(text) => parse_time(text, config.time_unit),
        // As it was printed, so that decimals of a second are not rounded again.
        other => parse_time(&other.to_string(), config.time_unit),
    };
    time.map(Some)
}

/// What a JSON pointer leads to.
pub(super) fn at<'v>(document: &'v Value, pointer: &str) -> Result<&'v Value, Refusal> {
    document.pointer(pointer).ok_or_else(|| Refusal::MissingField(pointer.to_owned()))
}

fn number(value: &Value, index: usize) -> Result<f64, Refusal> {
    value.as_f64().ok_or_else(|| Refusal::NotANumber { index, found: excerpt(&value.to_string()) })
}

fn shape(found: impl Into<String>, gains: &Gains) -> Refusal {
    let expected = match gains.channels {
        1 => "a number or an array of numbers".to_owned(),
        several => format!("an array of {several} numbers, one per channel, or an array of such arrays"),
    };
    Refusal::Shape { found: found.into(), expected }
}

/// Samples from one place in the document.
fn values(value: &Value, gains: &Gains, out: &mut Vec<f32>) -> Result<(), Refusal> {
    let Value::Array(items) = value else {
        let only = number(value, 0)?;
        if gains.channels != 1 {
            return Err(shape("one number", gains));
        }
        out.push(gains.apply(0, only));
        return Ok(());
    };
    match items.first() {
        None => Err(shape("an empty array", gains)),
        Some(Value::Array(_)) => {
            bounded(items.len().saturating_mul(gains.channels))?;
            for item in items {
                match item {
                    Value::Array(sample) if sample.len() == gains.channels => row(sample, gains, out)?,
                    Value::Array(sample) => return Err(shape(format!("an inner array of {}", sample.len()), gains)),
                    _ => return Err(shape("arrays and other values mixed", gains)),
                }
            }
            Ok(())
        }
        Some(_) if gains.channels == 1 => {
            bounded(items.len())?;
            for (index, item) in items.iter().enumerate() {
                out.push(gains.apply(0, number(item, index)?));
            }
            Ok(())
        }
        Some(_) if items.len() == gains.channels => row(items, gains, out),
        Some(_) => Err(shape(format!("an array of {}", items.len()), gains)),
    }
}

/// One sample, one value per channel.
fn row(sample: &[Value], gains: &Gains, out: &mut Vec<f32>) -> Result<(), Refusal> {
    for (channel, value) in sample.iter().enumerate() {
        let value = number(value, out.len())?;
        out.push(gains.apply(channel, value));
    }
    Ok(())
}

/// One pointer per channel: all to numbers, or all to arrays of one length.
fn channels(document: &Value, pointers: &[String], gains: &Gains, out: &mut Vec<f32>) -> Result<(), Refusal> {
    let mut length = None;
    for (channel, pointer) in pointers.iter().enumerate() {
        let value = at(document, pointer)?;
        let column = match value {
            Value::Array(items) => items.as_slice(),
            other => std::slice::from_ref(other),
        };
        let samples = *length.get_or_insert(column.len());
        if column.is_empty() || column.len() != samples {
            return Err(Refusal::Shape {
                found: format!("{} values at '{pointer}'", column.len()),
                expected: format!("{} as at '{}', at least one", samples.max(1), pointers[0]),
            });
        }
        if channel == 0 {
            let values = samples.saturating_mul(pointers.len());
            bounded(values)?;
            out.resize(values, 0.0);
        }
        for (sample, item) in column.iter().enumerate() {
            let index = sample * pointers.len() + channel;
            out[index] = gains.apply(channel, number(item, index)?);
        }
    }
    Ok(())
}
