//! Doors for the fuzz targets (`tests/fuzz`): everything of the agent that reads bytes which somebody else has written.
//! Each takes bytes, and panics if what must hold does not.

use std::sync::OnceLock;

use bytes::Bytes;
use limpet_wire::command::Verb;
use limpet_wire::topic::Topics;

use crate::codec::image::{ColorOrder, ImageSpec, Layout, PictureFormat};
use crate::codec::{Decoder, ImageDecoder, QuantizedDecoder};
use crate::commands::{Commands, LINES_MOST, Order};
use crate::config::codec::NumberType;
use crate::config::{Codec, Encoding};
use crate::join::{Joiner, WAITING_MAX};
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
        [
            ("{ raw = { type = \"i16\", channels = 3, header = [{ time = \"u64le ns\" }, { sequence = \"u32le\" }, { tag = \"u64le\" }] } }", 3),
            ("{ raw = { type = \"f32\" } }", 1),
            ("{ json = { value = [\"/x\", \"/a/0/v\"], time = \"/t\" } }", 2),
            ("{ json = { channels = 2 } }", 2),
            ("{ csv = { columns = [1, 2] } }", 2),
        ]
        .map(|(text, channels)| (codec(text), channels))
        .into()
    });
    let Some((first, payload)) = bytes.split_first() else { return };
    let (codec, channels) = &codecs[usize::from(*first) % codecs.len()];
    let mut decoder = Decoder::new(codec, *channels, &[], &[]).expect("it has so many channels");
    let mut out = Vec::new();
    if let Ok(message) = decoder.decode(payload, &mut out) {
        assert_eq!(out.len(), message.samples * channels, "samples are whole");
        assert!(out.iter().all(|value| value.is_finite()), "and numbers");
    }
}

/// A message that is a window of its own, of 12 values: the first byte chooses what reads it.
pub fn window(bytes: &[u8]) {
    const VALUES: usize = 12;
    static READERS: OnceLock<Vec<Reader>> = OnceLock::new();
    let readers = READERS.get_or_init(|| {
        let integers = |text: &str, number| {
            Reader::Integers(QuantizedDecoder::new(&codec(text), number, VALUES).expect("the codec fits"), number)
        };
        let picture = |format, size: (u32, u32), channels, resize: bool| {
            let spec = ImageSpec {
                format,
                raw_size: Some(size),
                size,
                channels,
                resize: resize.then_some(size),
                crop: None,
                order: ColorOrder::Bgr,
                layout: Layout::Nchw,
                mean: Vec::new(),
                std: Vec::new(),
            };
            Reader::Picture(ImageDecoder::new(spec).expect("its parts fit each other"))
        };
        vec![
            integers("{ raw = { type = \"i8\", header = [{ tag = \"u64le\" }] } }", NumberType::I8),
            integers("{ raw = { type = \"u8\", header = [{ time = \"u64le ns\" }] } }", NumberType::U8),
            integers("{ json = { value = \"/w\", time = \"/t\" } }", NumberType::I8),
            Reader::Features(codec("{ raw = { type = \"f32\" } }")),
            Reader::Features(codec("{ json = { value = \"/w\" } }")),
            Reader::Features(codec("{ csv = { columns = [1] } }")),
            picture(PictureFormat::Png, (4, 3), 1, true),
            picture(PictureFormat::Jpeg, (2, 2), 3, true),
            picture(PictureFormat::Rgb8, (2, 2), 3, false),
        ]
    });
    let Some((first, payload)) = bytes.split_first() else { return };
    match &readers[usize::from(*first) % readers.len()] {
        Reader::Integers(decoder, number) => {
            let mut out = Vec::new();
            let taken = decoder.decode(payload, &mut out);
            assert_eq!(out.len(), if taken.is_ok() { VALUES * number.size() } else { 0 }, "a window, or nothing");
        }
        Reader::Features(codec) => {
            let mut decoder = Decoder::new(codec, 1, &[], &[]).expect("it has one channel");
            let mut out = Vec::new();
            let taken = decoder.decode_window(payload, VALUES, &mut out);
            assert_eq!(out.len(), if taken.is_ok() { VALUES } else { 0 }, "a window, or nothing");
            assert!(out.iter().all(|value| value.is_finite()));
        }
        Reader::Picture(decoder) => {
            let mut out = Vec::new();
            let taken = decoder.decode(payload, &mut out);
            assert_eq!(out.len(), if taken.is_ok() { VALUES } else { 0 }, "a window, or nothing");
            assert!(out.iter().all(|value| value.is_finite()));
        }
    }
}

enum Reader {
    Integers(QuantizedDecoder, NumberType),
    Features(Codec),
    Picture(ImageDecoder),
}

/// Messages of the channels of a joined source. The first byte gives the number of channels (its lower two bits) and the
/// tolerance (the rest). Then each step is a byte that gives the channel (its lower two bits) and what follows: with bit 7 a
/// time as u64 little-endian; with bit 6 nothing, and silent channels are looked for; otherwise one byte, the time since the
/// last one.
pub fn join(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    let channels = 2 + usize::from(first & 3);
    let mut joiner = Joiner::new(channels, u64::from(first >> 2), 1000);
    let (mut rows, mut times, mut now, mut pushed, mut dropped) = (Vec::new(), Vec::new(), 0_u64, 0, 0);
    while let Some((step, more)) = rest.split_first() {
        rest = more;
        if step & 0x40 != 0 {
            assert!(joiner.silent(0, now).iter().all(|channel| *channel < channels));
            continue;
        }
        if step & 0x80 != 0 {
            let Some((time, more)) = rest.split_first_chunk() else { break };
            (now, rest) = (u64::from_le_bytes(*time), more);
        } else {
            let Some((later, more)) = rest.split_first() else { break };
            (now, rest) = (now.saturating_add((*later).into()), more);
        }
        dropped += joiner.push(usize::from(step & 3) % channels, [(now, pushed as f32)], &mut rows, &mut times).dropped;
        pushed += 1;
    }
    assert_eq!(rows.len(), times.len() * channels, "rows are whole");
    assert!(times.is_sorted(), "and in order");
    let waiting = pushed - rows.len() - dropped;
    assert!(waiting <= (channels - 1) * WAITING_MAX, "what waits is bounded, and one channel has nothing that waits");
    let mut used: Vec<f32> = rows;
    used.sort_by(f32::total_cmp);
    assert!(used.windows(2).all(|pair| pair[0] != pair[1]), "a sample is used once");
}

/// A codec as a configuration has it.
fn codec(text: &str) -> Codec {
    #[derive(serde::Deserialize)]
    struct Holder {
        codec: Codec,
    }
    toml::from_str::<Holder>(&format!("codec = {text}")).expect("it is one").codec
}
