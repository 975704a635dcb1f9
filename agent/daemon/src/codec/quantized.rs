//! Windows that are already in the graph's own integer type: one message is one window, passed through as it is.

use serde_json::Value;

use super::raw::RawDecoder;
use super::{Message, Refusal, excerpt, json};
use crate::config::OneOrMany;
use crate::config::codec::{Codec, Json, NumberType};

/// Decodes the payloads of one source into the bytes of one graph input.
#[derive(Debug)]
pub struct QuantizedDecoder {
    kind: Kind,
    number: NumberType,
    values: usize,
}

#[derive(Debug)]
enum Kind {
    Raw(RawDecoder),
    Json(Json),
}

impl QuantizedDecoder {
    /// `number` is the type of the graph's input and `values` how many it takes.
    ///
    /// # Errors
    /// One sentence, if the codec cannot carry such a window.
    pub fn new(codec: &Codec, number: NumberType, values: usize) -> Result<Self, String> {
        let kind = match codec {
            Codec::Raw(raw) if raw.number != number => {
                return Err(format!(
                    "the codec's type is {} and the model takes {} as it is; set the type to {1}",
                    raw.number.name(),
                    number.name()
                ));
            }
            Codec::Raw(raw) => Kind::Raw(RawDecoder::new(raw)),
            Codec::Json(json) if !matches!(json.value, Some(OneOrMany::Many(_))) => Kind::Json(json.clone()),
            Codec::Json(_) => {
                return Err(
                    "the codec lists a pointer per channel and the model takes one array; give one pointer".into()
                );
            }
            other => {
                return Err(format!("the codec '{}' cannot carry quantized windows; use raw or json", other.name()));
            }
        };
        if matches!(number, NumberType::F32) {
            return Err(
                "a quantized window holds integers and the model's input is f32; use the kind 'features'".into()
            );
        }
        Ok(Self { kind, number, values })
    }

    /// Decodes one payload. `out` is cleared and gets the window as little-endian bytes of the graph's type; after a
    /// refusal it is empty.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decode(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<Message, Refusal> {
        out.clear();
        let decoded = match &self.kind {
            Kind::Raw(raw) => self.raw(raw, payload, out),
            Kind::Json(config) => self.json(config, payload, out),
        };
        decoded.inspect_err(|_| out.clear())
    }

    fn raw(&self, raw: &RawDecoder, payload: &[u8], out: &mut Vec<u8>) -> Result<Message, Refusal> {
        let (message, numbers) = raw.split(payload, 1)?;
        self.window(numbers.len() / self.number.size())?;
        out.extend_from_slice(numbers);
        Ok(Message { samples: 1, ..message })
    }

    fn json(&self, config: &Json, payload: &[u8], out: &mut Vec<u8>) -> Result<Message, Refusal> {
        let document = json::parse(payload)?;
        let pointer = config.value.as_ref().and_then(|value| value.as_slice().first()).map_or("", String::as_str);
        let Value::Array(items) = json::at(&document, pointer)? else {
            return Err(Refusal::Shape {
                found: "no array".into(),
                expected: format!("an array of {} whole numbers", self.values),
            });
        };
        self.window(items.len())?;
        for (index, item) in items.iter().enumerate() {
            let refuse =
                || Refusal::OutOfRange { index, found: excerpt(&item.to_string()), expected: self.number.name() };
            let value = item.as_i64().ok_or_else(refuse)?;
            match self.number {
                NumberType::I8 => out.extend(i8::try_from(value).map_err(|_| refuse())?.to_le_bytes()),
                NumberType::U8 => out.extend(u8::try_from(value).map_err(|_| refuse())?.to_le_bytes()),
                NumberType::I16 => out.extend(i16::try_from(value).map_err(|_| refuse())?.to_le_bytes()),
                NumberType::I32 => out.extend(i32::try_from(value).map_err(|_| refuse())?.to_le_bytes()),
                NumberType::F32 => return Err(refuse()),
            }
        }
        let time_ns = json::time(config, &document)?;
        Ok(Message { time_ns, samples: 1, ..Message::default() })
    }

    fn window(&self, found: usize) -> Result<(), Refusal> {
        if found == self.values { Ok(()) } else { Err(Refusal::WindowLength { found, expected: self.values }) }
    }
}
