//! How the messages of one stream become samples or windows.
//!
//! Samples over time ([`Samples`]) are read once for all pipelines of a source. Where a message is a window of its own,
//! each pipeline reads it for itself ([`WindowReader`]), since only the graph knows how long it is.

use limpet_depot::manifest::{self, InputKind};
use limpet_engine::{ElementType, TensorSpec};
use limpet_runtime::Moment;

use super::plan::SourcePlan;
use super::timing::{Gap, Misplaced, Placement, Stamp, Timeline};
use crate::codec::image::{ColorOrder, ImageSpec, Layout, PictureFormat};
use crate::codec::{Decoder, ImageDecoder, Message, QuantizedDecoder, Refusal};
use crate::config::codec::NumberType;
use crate::config::{self, Input};
use crate::join::Joiner;

/// How long a channel of a joined source may be silent while the others deliver.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Why a message gave nothing.
#[derive(Debug)]
pub enum Refused {
    /// Its payload is not as configured.
    Payload(Refusal),
    /// It has no place in the stream.
    Misplaced(Misplaced),
}

/// What a message gave.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// Where its samples stand.
    pub placement: Placement,
    /// How many there are; none while a joined row waits for its other channels.
    pub samples: usize,
    /// Samples of joined channels that found no partner and were given up.
    pub unpaired: usize,
    /// The message's tag.
    pub tag: Option<u64>,
}

/// Reads samples over time.
#[derive(Debug)]
pub struct Samples {
    timeline: Timeline,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    /// One topic that holds all channels.
    One(Decoder),
    /// A topic a channel.
    Joined(Box<Joined>),
}

#[derive(Debug)]
struct Joined {
    joiner: Joiner,
    channels: Vec<(Decoder, Timeline)>,
    values: Vec<f32>,
    times: Vec<u64>,
    period_ns: f64,
    started: Option<Moment>,
    /// Samples that a channel is known to lack since the last row.
    missing: u64,
}

impl Samples {
    /// For one stream of a source whose models want `channels`.
    ///
    /// # Errors
    /// One sentence, if codec, scale or offset do not fit that.
    pub fn new(plan: &SourcePlan, channels: usize) -> Result<Self, String> {
        let source = &plan.config;
        let timeline = Timeline::new(plan.timing);
        let reader = match &source.input {
            Input::Topic(_) | Input::Exec(_) => {
                Reader::One(Decoder::new(&source.codec, channels, &source.scale, &source.offset)?)
            }
            Input::Join(join) => {
                if join.topics.len() != channels {
                    return Err(format!(
                        "join has {} topics and the model expects {channels} channels; name one topic a channel",
                        join.topics.len()
                    ));
                }
                let one = |channel: usize| {
                    let part = |list: &[config::Fraction]| list.get(channel..=channel).unwrap_or_default().to_vec();
                    let decoder = Decoder::new(&source.codec, 1, &part(&source.scale), &part(&source.offset))?;
                    Ok((decoder, Timeline::new(plan.timing)))
                };
                let channels = (0..channels).map(one).collect::<Result<Vec<_>, String>>()?;
                let tolerance = u64::try_from(join.tolerance.0.as_nanos()).unwrap_or(u64::MAX);
                Reader::Joined(Box::new(Joined {
                    joiner: Joiner::new(channels.len(), tolerance, PATIENCE_NS),
                    channels,
                    values: Vec::new(),
                    times: Vec::new(),
                    period_ns: 1e9 / plan.timing.rate_hz,
                    started: None,
                    missing: 0,
                }))
            }
        };
        Ok(Self { timeline, reader })
    }

    /// Reads a message that came on the source's topic number `topic`. `out` gets the samples, channels interleaved.
    ///
    /// # Errors
    /// Why the message gave nothing; it then leaves no trace.
    pub fn take(
        &mut self,
        topic: usize,
        payload: &[u8],
        arrived: Moment,
        out: &mut Vec<f32>,
    ) -> Result<Taken, Refused> {
        match &mut self.reader {
            Reader::One(decoder) => {
                let message = decoder.decode(payload, out).map_err(Refused::Payload)?;
                let placement = self.timeline.place(stamp(&message, arrived)).map_err(Refused::Misplaced)?;
                Ok(Taken { placement, samples: message.samples, unpaired: 0, tag: message.tag })
            }
            Reader::Joined(joined) => joined.take(&mut self.timeline, topic, payload, arrived, out),
        }
    }

    /// Channels of a joined source that stay away, by position.
    pub fn silent(&mut self, now: Moment) -> Vec<usize> {
        match &mut self.reader {
            Reader::One(_) => Vec::new(),
            Reader::Joined(joined) => joined.joiner.silent(joined.started.unwrap_or(now).0, now.0),
        }
    }
}

impl Joined {
    fn take(
        &mut self,
        rows: &mut Timeline,
        topic: usize,
        payload: &[u8],
        arrived: Moment,
        out: &mut Vec<f32>,
    ) -> Result<Taken, Refused> {
        self.started.get_or_insert(arrived);
        let (decoder, timeline) = &mut self.channels[topic];
        let message = decoder.decode(payload, &mut self.values).map_err(Refused::Payload)?;
        let placed = timeline.place(stamp(&message, arrived)).map_err(Refused::Misplaced)?;
        let (period_ns, count) = (self.period_ns, self.values.len());
        let timed = self.values.iter().enumerate().map(|(index, value)| {
            let before = ((count - 1 - index) as f64 * period_ns) as u64;
            (placed.captured.0.saturating_sub(before), *value)
        });
        out.clear();
        self.times.clear();
        let pushed = self.joiner.push(topic, timed, out, &mut self.times);
        self.missing = self.missing.max(placed.gap.map_or(0, |gap| gap.missing));
        let taken = Taken { placement: placed, samples: pushed.rows, unpaired: pushed.dropped, tag: message.tag };
        let Some(last) = self.times.last().filter(|_| pushed.rows > 0) else { return Ok(taken) };
        let row = Stamp { arrived: Moment(*last), payload_ns: None, sequence: None, samples: pushed.rows };
        let mut placement = rows.place(row).map_err(Refused::Misplaced)?;
        // A hole in any channel is one in the rows, which may be too short for their own times to show it.
        let missing = std::mem::take(&mut self.missing).max(placement.gap.map_or(0, |gap| gap.missing));
        placement.gap = (missing > 0 || placement.gap.is_some()).then_some(Gap { missing });
        placement.skewed = placed.skewed;
        placement.told = placed.told;
        Ok(Taken { placement, ..taken })
    }
}

/// A message as its place in time sees it.
pub fn stamp(message: &Message, arrived: Moment) -> Stamp {
    Stamp { arrived, payload_ns: message.time_ns, sequence: message.sequence, samples: message.samples.max(1) }
}

/// What goes into a graph for one window.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowInput {
    /// Real values, quantized on the way in if the graph wants that.
    Real(Vec<f32>),
    /// The graph's own integers, as bytes.
    Integers(Vec<u8>),
}

impl WindowInput {
    /// Values in it.
    pub fn len(&self) -> usize {
        match self {
            Self::Real(values) => values.len(),
            Self::Integers(bytes) => bytes.len(),
        }
    }
}

/// Reads messages that are windows of their own.
#[derive(Debug)]
pub enum WindowReader {
    /// Features in the graph's order.
    Features {
        /// Reads numbers.
        decoder: Decoder,
        /// Values in a window.
        elements: usize,
    },
    /// The graph's own integers.
    Quantized(QuantizedDecoder),
    /// Pictures.
    Image(ImageDecoder),
}

impl WindowReader {
    /// For a graph's input, or none where samples are windowed by a front end.
    ///
    /// # Errors
    /// One sentence, if codec, manifest and graph do not fit each other.
    pub fn new(source: &config::Source, kind: &InputKind, input: &TensorSpec) -> Result<Option<Self>, String> {
        let reader = match kind {
            InputKind::Series(_) => return Ok(None),
            InputKind::Features => {
                let channels = source.codec.channels().unwrap_or(1);
                let decoder = Decoder::new(&source.codec, channels, &source.scale, &source.offset)?;
                Self::Features { decoder, elements: input.elements() }
            }
            InputKind::Quantized => {
                let number = match input.element {
                    ElementType::I8 => NumberType::I8,
                    ElementType::U8 => NumberType::U8,
                    ElementType::F32 => NumberType::F32,
                };
                Self::Quantized(QuantizedDecoder::new(&source.codec, number, input.elements())?)
            }
            InputKind::Image(image) => Self::Image(ImageDecoder::new(image_spec(image, &input.shape)?)?),
        };
        Ok(Some(reader))
    }

    /// Reads a message. `spare` is a buffer that may be used for the window.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn take(&mut self, payload: &[u8], mut spare: Vec<f32>) -> Result<(Message, WindowInput), Refusal> {
        match self {
            Self::Features { decoder, elements } => {
                let message = decoder.decode_window(payload, *elements, &mut spare)?;
                Ok((Message { samples: 1, ..message }, WindowInput::Real(spare)))
            }
            Self::Quantized(decoder) => {
                let mut bytes = Vec::with_capacity(payload.len());
                let message = decoder.decode(payload, &mut bytes)?;
                Ok((message, WindowInput::Integers(bytes)))
            }
            Self::Image(decoder) => {
                let message = decoder.decode(payload, &mut spare)?;
                Ok((message, WindowInput::Real(spare)))
            }
        }
    }
}

/// What the manifest and the graph say about pictures.
fn image_spec(image: &manifest::Image, shape: &[usize]) -> Result<ImageSpec, String> {
    let (height, width, channels) = match (image.layout, shape) {
        (manifest::Layout::Nhwc, [_, height, width, channels]) => (*height, *width, *channels),
        (manifest::Layout::Nchw, [_, channels, height, width]) => (*height, *width, *channels),
        (_, shape) => {
            return Err(format!("the graph's input is {shape:?}; pictures need four dimensions, the batch first"));
        }
    };
    let size = |size: manifest::Size| (size.width, size.height);
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    // One number stands for all colors.
    let each = |list: &[f32]| match list {
        [one] => vec![*one; channels],
        some => some.to_vec(),
    };
    let graph = (side(width), side(height));
    Ok(ImageSpec {
        format: match image.format {
            manifest::ImageFormat::Jpeg => PictureFormat::Jpeg,
            manifest::ImageFormat::Png => PictureFormat::Png,
            manifest::ImageFormat::Rgb8 => PictureFormat::Rgb8,
            manifest::ImageFormat::Gray8 => PictureFormat::Gray8,
        },
        // A raw picture does not carry its size: it is the graph's, which neither resize nor crop then change.
        raw_size: Some(graph),
        size: graph,
        channels,
        resize: image.resize.map(size),
        crop: image.crop.map(size),
        order: match image.order {
            manifest::Order::Rgb => ColorOrder::Rgb,
            manifest::Order::Bgr => ColorOrder::Bgr,
        },
        layout: match image.layout {
            manifest::Layout::Nhwc => Layout::Nhwc,
            manifest::Layout::Nchw => Layout::Nchw,
        },
        mean: each(&image.mean),
        std: each(&image.std),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::codec::{Codec, HeaderField, Raw, SequenceField};
    use crate::config::{Interval, Join};
    use crate::pipeline::plan::{ChannelRange, SourceKind};
    use crate::pipeline::timing::{TimeSource, TimingRule};
    use crate::report::SourceLedger;
    use crate::topic::Filter;
    use limpet_runtime::Class;
    use std::time::Duration;

    const MS: u64 = 1_000_000;

    /// A source of two channels on two topics, 1,000 samples a second, messages numbered.
    fn joined() -> Samples {
        let mut source = config::for_recording(std::path::Path::new("x"), 2, 1000.0).sources.remove(0);
        source.codec = Codec::Raw(Raw {
            number: NumberType::I8,
            channels: 1,
            header: vec![HeaderField::Sequence(SequenceField::U32)],
        });
        source.input = Input::Join(Join {
            topics: ["a/x", "a/y"].map(|topic| Filter::parse(topic).unwrap()).into(),
            tolerance: Interval(Duration::from_micros(400)),
        });
        let plan = SourcePlan {
            config: source,
            timing: TimingRule { rate_hz: 1000.0, time: TimeSource::Arrival, max_gap: None },
            kind: SourceKind::Series { channels: vec![ChannelRange { unit: "g".into(), range: None }; 2] },
            pipelines: Vec::new(),
            class: Class::Realtime,
            deadline: Duration::ZERO,
            rate_declared: true,
            ledger: SourceLedger::default(),
        };
        Samples::new(&plan, 2).unwrap()
    }

    fn message(sequence: u32, values: [i8; 5]) -> Vec<u8> {
        sequence.to_le_bytes().into_iter().chain(values.map(|value| value as u8)).collect()
    }

    #[test]
    fn joined_topics_become_rows_when_each_has_its_part() {
        let (mut samples, mut out) = (joined(), Vec::new());
        let first = samples.take(0, &message(0, [1, 2, 3, 4, 5]), Moment(10 * MS), &mut out).unwrap();
        assert_eq!((first.samples, out.len()), (0, 0));
        let second = samples.take(1, &message(0, [-1, -2, -3, -4, -5]), Moment(10 * MS + MS / 4), &mut out).unwrap();
        assert_eq!((second.samples, second.placement.gap), (5, None));
        assert_eq!(out, [1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0, 5.0, -5.0]);
    }

    #[test]
    fn a_hole_in_one_channel_is_a_hole_in_the_rows() {
        let (mut samples, mut out) = (joined(), Vec::new());
        let steps = [(0, 0, 10), (1, 0, 10), (0, 1, 15), (0, 2, 20), (1, 2, 20)];
        let mut last = None;
        for (topic, sequence, ms) in steps {
            let taken = samples.take(topic, &message(sequence, [7; 5]), Moment(ms * MS), &mut out);
            last = Some(taken.unwrap());
        }
        let last = last.unwrap();
        assert_eq!(last.samples, 5);
        assert_eq!(last.placement.gap, Some(Gap { missing: 5 }), "message 1 of the second channel is lost");
        assert_eq!(last.unpaired, 5, "so that of the first has no partner");
    }

    #[test]
    fn a_channel_that_stays_away_is_named() {
        let (mut samples, mut out) = (joined(), Vec::new());
        for sequence in 0..4 {
            let at = Moment(u64::from(sequence) * 5_000 * MS);
            samples.take(0, &message(sequence, [0; 5]), at, &mut out).unwrap();
        }
        assert_eq!(samples.silent(Moment(15_001 * MS)), [1]);
    }
}
