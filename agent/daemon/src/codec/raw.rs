//! Raw payloads: an optional header, then little-endian numbers, channels interleaved.

use super::{Gains, Message, Refusal, bounded};
use crate::config::codec::{HeaderField, NumberType, Raw};

/// A layout with its sizes worked out.
#[derive(Debug)]
pub(super) struct RawDecoder {
    number: NumberType,
    header: Vec<HeaderField>,
    header_bytes: usize,
}

impl RawDecoder {
    pub(super) fn new(config: &Raw) -> Self {
        let header_bytes = config.header.iter().map(|field| field.size()).sum();
        Self { number: config.number, header: config.header.clone(), header_bytes }
    }

    /// Appends the samples to `out`. Values that are no numbers are left for the caller to find.
    pub(super) fn decode(&self, payload: &[u8], gains: &Gains, out: &mut Vec<f32>) -> Result<Message, Refusal> {
        let (mut message, numbers) = self.split(payload, gains.channels)?;
        let values = numbers.len() / self.number.size();
        bounded(values)?;
        message.samples = values / gains.channels;
        match self.number {
            NumberType::I8 => narrow(numbers, gains, out, |[byte]| f32::from(i8::from_le_bytes([byte]))),
            NumberType::U8 => narrow(numbers, gains, out, |[byte]| f32::from(byte)),
            NumberType::I16 => narrow(numbers, gains, out, |bytes| f32::from(i16::from_le_bytes(bytes))),
            NumberType::F32 => narrow(numbers, gains, out, f32::from_le_bytes),
            NumberType::I32 => {
                let (values, _) = numbers.as_chunks();
                let value = |(index, bytes): (usize, &[u8; 4])| {
                    gains.apply(index % gains.channels, f64::from(i32::from_le_bytes(*bytes)))
                };
                out.extend(values.iter().enumerate().map(value));
            }
        }
        Ok(message)
    }

    /// Reads the header and gives the bytes after it, which are whole samples, at least one.
    pub(super) fn split<'p>(&self, payload: &'p [u8], channels: usize) -> Result<(Message, &'p [u8]), Refusal> {
        let step = self.number.size() * channels;
        let numbers = payload.get(self.header_bytes..).unwrap_or_default();
        if numbers.is_empty() || !numbers.len().is_multiple_of(step) {
            return Err(Refusal::PayloadLength { found: payload.len(), header: self.header_bytes, step });
        }
        let mut message = Message::default();
        let mut rest = payload;
        for field in &self.header {
            match field {
                HeaderField::Time(_) => {
                    let ns = u64::from_le_bytes(take(&mut rest));
                    let time = i64::try_from(ns).map_err(|_| Refusal::BadTime {
                        found: ns.to_string(),
                        expected: "nanoseconds since 1970, before the year 2262",
                    })?;
                    message.time_ns = Some(time);
                }
                HeaderField::Sequence(_) => message.sequence = Some(u32::from_le_bytes(take(&mut rest))),
                HeaderField::Tag(_) => message.tag = Some(u64::from_le_bytes(take(&mut rest))),
            }
        }
        Ok((message, numbers))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, after) = rest.split_first_chunk().expect("the payload is longer than the header");
    *rest = after;
    *field
}

/// Converts numbers that an `f32` holds exactly.
fn narrow<const N: usize>(numbers: &[u8], gains: &Gains, out: &mut Vec<f32>, read: impl Fn([u8; N]) -> f32) {
    let (values, _) = numbers.as_chunks::<N>();
    if let [(scale, offset)] = gains.narrow[..] {
        out.extend(values.iter().map(|bytes| read(*bytes) * scale + offset));
        return;
    }
    // Channel by channel into place: several times faster than extending by one short sample after the other.
    let start = out.len();
    out.resize(start + values.len(), 0.0);
    for (channel, (scale, offset)) in gains.narrow.iter().enumerate() {
        let places = out[start..].iter_mut().skip(channel).step_by(gains.channels);
        for (place, bytes) in places.zip(values.iter().skip(channel).step_by(gains.channels)) {
            *place = read(*bytes) * scale + offset;
        }
    }
}
