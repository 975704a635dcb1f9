//! Samples far outside what the manifest calls normal: usually a wrong `scale`.
//!
//! More than 1 % of a minute's samples beyond 1.5 times the range of their channel is an event.

use std::time::Duration;

use limpet_runtime::Moment;

use super::plan::SourceKind;

/// How far beyond the range is far.
const FAR: f64 = 1.5;
/// Largest share of far samples in a minute that is nobody's concern.
const SHARE: f64 = 0.01;
const MINUTE: Duration = Duration::from_secs(60);

/// Watches the samples of one stream.
#[derive(Debug)]
pub struct RangeWatch {
    channels: Vec<Watched>,
    since: Option<Moment>,
}

#[derive(Debug)]
struct Watched {
    unit: String,
    /// The manifest's range, and what is far beyond it.
    range: Option<(f64, f64)>,
    far: (f32, f32),
    samples: u64,
    beyond: u64,
}

impl RangeWatch {
    /// Watches the channels that have a range.
    pub fn new(kind: &SourceKind) -> Self {
        let channels = match kind {
            SourceKind::Series { channels } => channels.as_slice(),
            _ => &[],
        };
        let watched = channels.iter().map(|channel| {
            let far = channel.range.map_or((f32::MIN, f32::MAX), |(min, max)| {
                let (middle, half) = (f64::midpoint(min, max), (max - min) / 2.0);
                ((middle - FAR * half) as f32, (middle + FAR * half) as f32)
            });
            Watched { unit: channel.unit.clone(), range: channel.range, far, samples: 0, beyond: 0 }
        });
        Self { channels: watched.collect(), since: None }
    }

    /// Takes interleaved samples in. When a minute is over in which too many of a channel were far out: a sentence that wants the names of source and stream.
    pub fn take(&mut self, samples: &[f32], now: Moment) -> Option<impl FnOnce(&str, &str) -> String + use<>> {
        if self.channels.iter().all(|channel| channel.range.is_none()) {
            return None;
        }
        for sample in samples.chunks_exact(self.channels.len()) {
            for (value, channel) in sample.iter().zip(&mut self.channels) {
                channel.beyond += u64::from(*value < channel.far.0 || *value > channel.far.1);
            }
        }
        let count = (samples.len() / self.channels.len()) as u64;
        self.channels.iter_mut().for_each(|channel| channel.samples += count);
        if now.since(*self.since.get_or_insert(now)) < MINUTE {
            return None;
        }
        self.since = Some(now);
        let mut far_out = None;
        for (position, channel) in self.channels.iter_mut().enumerate() {
            let (samples, beyond) = (std::mem::take(&mut channel.samples), std::mem::take(&mut channel.beyond));
            if far_out.is_none()
                && beyond as f64 > SHARE * samples as f64
                && let Some((min, max)) = channel.range
            {
                let unit = channel.unit.clone();
                let sentence = move |source: &str, stream: &str| {
                    format!(
                        "{source}/{stream}: {beyond} of {samples} samples of channel {position} beyond 1.5 × the range {min} to {max} {unit}; is `scale` right?"
                    )
                };
                far_out = Some(sentence);
            }
        }
        far_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::plan::ChannelRange;

    fn watch() -> RangeWatch {
        let channel = ChannelRange { unit: "g".into(), range: Some((-16.0, 16.0)) };
        RangeWatch::new(&SourceKind::Series { channels: vec![channel.clone(), channel] })
    }

    fn minute(watch: &mut RangeWatch, samples: &[f32]) -> Option<String> {
        assert!(watch.take(&[0.0, 0.0], Moment(0)).is_none());
        watch.take(samples, Moment(60_000_000_000)).map(|sentence| sentence("vibration", "press-3"))
    }

    #[test]
    fn a_minute_of_samples_far_out_is_told_once_it_is_over() {
        let sentence = minute(&mut watch(), &[0.0, 25.0].repeat(10)).unwrap();
        assert!(sentence.starts_with("vibration/press-3: 10 of 11 samples of channel 1"), "{sentence}");
    }

    #[test]
    fn samples_a_little_out_or_few_far_out_are_not_told() {
        assert_eq!(minute(&mut watch(), &[23.9, -23.9].repeat(10)), None);
        let mut rare = [0.0, 0.0].repeat(200);
        rare[7] = 1000.0;
        assert_eq!(minute(&mut watch(), &rare), None);
    }
}
