//! Doors for the fuzz targets (`tests/fuzz`): everything of the agent that reads bytes which somebody else has written.
//! Each takes bytes, and panics if what must hold does not.

use std::sync::OnceLock;

use bytes::Bytes;
use limpet_wire::command::Verb;
use limpet_wire::topic::Topics;

use crate::codec::Decoder;
use crate::commands::{Commands, LINES_MOST, Order};
use crate::config::{Codec, Encoding};
use crate::link::Received;
use crate::link::client::Reply;
use crate::outbox::{item, ranges::Held, ring};

/// A message on a topic of commands: the bytes up to the first line break are the last level of its topic, those up to the
/// second where its answer goes, and the rest is the payload.
pub fn command(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (Ok(name), Ok(reply)) = (std::str::from_utf8(part()), std::str::from_utf8(part())) else { return };
    let payload = Bytes::copy_from_slice(part());
    let topics = Topics::new("limpet/1", "g");
    let (orders, mut ordered) = tokio::sync::mpsc::unbounded_channel();
    let commands = Commands::new(&topics, [Verb::Status, Verb::Logs].into(), orders);
    let topic = format!("limpet/1/g/cmd/{name}");
    let reply = Reply { topic: reply.to_owned(), correlation: Bytes::from_static(b"1") };
    for retained in [true, false] {
        let message = Received { topic: &topic, payload: payload.clone(), retained, reply: Some(reply.clone()) };
        assert!(commands.takes(&message, "5e55"), "whatever is on such a topic goes nowhere else");
        while let Ok(Order { asked, reply, .. }) = ordered.try_recv() {
            assert!(!retained && reply.topic.starts_with("limpet/1/g/reply/") && !reply.topic.contains(['+', '#']));
            let Ok(asked) = asked else { continue };
            assert!(asked.lines <= LINES_MOST && name == asked.verb.name() && asked.verb != Verb::Diagnose);
        }
    }
}

/// What a database or a ring may hold in the place of an item.
pub fn stored(bytes: &[u8]) {
    // Whatever has a number can be told of when it is dropped.
    if item::label(bytes).is_ok_and(|label| label.serial.is_some()) {
        assert!(Held::of(bytes).is_ok());
    }
    for encoding in [Encoding::Json, Encoding::Postcard] {
        for offset in [None, Some(i64::MIN), Some(i64::MAX)] {
            let mut out = Vec::new();
            _ = item::write(bytes, encoding, offset, &mut out);
        }
    }
}

/// A segment of a ring.
pub fn segment(bytes: &[u8]) {
    ring::read_any(bytes);
}

/// A message of samples: the first byte chooses the codec.
pub fn samples(bytes: &[u8]) {
    static CODECS: OnceLock<Vec<(Codec, usize)>> = OnceLock::new();
    let codecs = CODECS.get_or_init(|| {
        let codec = |(text, channels): (&str, usize)| {
            (toml::from_str::<Holder>(text).expect("it is one").codec, channels)
        };
        [
            ("codec = { raw = { type = \"i16\", channels = 3, header = [{ time = \"u64le ns\" }, { sequence = \"u32le\" }, { tag = \"u64le\" }] } }", 3),
            ("codec = { raw = { type = \"f32\" } }", 1),
            ("codec = { json = { value = [\"/x\", \"/a/0/v\"], time = \"/t\" } }", 2),
            ("codec = { json = { channels = 2 } }", 2),
            ("codec = { csv = { columns = [1, 2] } }", 2),
            ("codec = { image = {} }", 3),
        ]
        .map(codec)
        .into()
    });
    let Some((first, payload)) = bytes.split_first() else { return };
    let (codec, channels) = &codecs[usize::from(*first) % codecs.len()];
    let Ok(mut decoder) = Decoder::new(codec, *channels, &[], &[]) else { return };
    let mut out = Vec::new();
    if let Ok(message) = decoder.decode(payload, &mut out) {
        assert_eq!(out.len(), message.samples * channels, "samples are whole");
        assert!(out.iter().all(|value| value.is_finite()), "and numbers");
    }
}

#[derive(serde::Deserialize)]
struct Holder {
    codec: Codec,
}
