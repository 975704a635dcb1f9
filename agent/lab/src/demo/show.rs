//! All that the demo knows at a moment, for whatever shows it. No I/O.

use std::collections::VecDeque;
use std::time::Instant;

use limpet_wire::message::{ModelPhase, Models};
use limpet_wire::result::{LatencyUs, ResultRecord, Verdict};

use super::judge::{Judge, Phase, Seen};
use super::phase_in_words;
use super::schedule::Schedule;
use super::sensor::MESSAGE_SAMPLES;
use crate::latency::{Parts, Times};
use crate::motor::Condition;

/// Results that the live figures look back on.
const RECENT: usize = 200;
/// Lines of the log that are kept.
const LOG: usize = 64;

/// The state of the demo.
pub struct Show {
    schedule: Schedule,
    judge: Judge,
    /// What became of the model, in words.
    model: String,
    serving: bool,
    sensor_started: Option<Instant>,
    sent_samples: u64,
    dropped_messages: u64,
    recent: VecDeque<Beat>,
    scores: Vec<(String, f32)>,
    latest: Option<Latest>,
    results: u64,
    late: u64,
    /// Windows that should have come between two results and did not.
    missing_windows: u64,
    last_first: Option<(u64, u64)>,
    latency: Parts<Times>,
    log: VecDeque<String>,
    logged: u64,
}

/// One result in the strip.
#[derive(Debug, Clone)]
pub struct Beat {
    /// Seconds since the sensor started when the result came.
    pub at: f64,
    /// What the motor had at the end of the window.
    pub truth: Condition,
    /// What the agent said.
    pub label: String,
    /// Whether that is right.
    pub right: bool,
    /// Where its time went.
    pub latency: LatencyUs,
}

/// The newest result.
#[derive(Debug, Clone)]
pub struct Latest {
    /// Label and score of the best class.
    pub label: String,
    /// Its score.
    pub score: f32,
    /// The agent's choice: engine and variant.
    pub engine: String,
    /// The variant.
    pub variant: String,
}

impl Show {
    /// The beginning.
    pub fn new(schedule: Schedule, broker: &str) -> Self {
        let mut show = Self {
            schedule,
            judge: Judge::new(schedule),
            model: "starting the agent".to_owned(),
            serving: false,
            sensor_started: None,
            sent_samples: 0,
            dropped_messages: 0,
            recent: VecDeque::with_capacity(RECENT),
            scores: Vec::new(),
            latest: None,
            results: 0,
            late: 0,
            missing_windows: 0,
            last_first: None,
            latency: Parts::new(),
            log: VecDeque::with_capacity(LOG),
            logged: 0,
        };
        show.tell(format!("broker on {broker}; starting limpet"));
        show
    }

    /// The phases.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// The agent says how its models are. Gives the reason if ours failed.
    pub fn models(&mut self, models: &Models) -> Option<String> {
        let model = models.models.first()?;
        let mut text = format!("{} {} {}", model.name, model.version, phase_in_words(model.state));
        if let (Some(engine), Some(variant)) = (&model.engine, &model.variant) {
            text += &format!(" on {engine}, {variant}");
        }
        if text != self.model {
            self.tell(text.clone());
            self.model = text;
        }
        self.serving = model.state == ModelPhase::Active;
        (model.state == ModelPhase::Failed).then(|| model.failure.clone().unwrap_or_else(|| "no reason given".into()))
    }

    /// Whether the model serves.
    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// The sensor publishes from now on.
    pub fn sensor_started(&mut self, at: Instant) {
        self.sensor_started = Some(at);
        self.enter(0);
    }

    /// How far the sensor is.
    pub fn sensor_at(&mut self, sent_samples: u64, dropped_messages: u64) {
        self.sent_samples = sent_samples;
        self.dropped_messages = dropped_messages;
        if !self.is_over() {
            let phase = self.schedule.phase_at(sent_samples);
            while self.judge.phases().len() as u64 <= phase {
                self.enter(self.judge.phases().len() as u64);
            }
        }
    }

    fn enter(&mut self, phase: u64) {
        self.judge.reach(phase);
        let what = match self.schedule.condition(phase) {
            Condition::Healthy if phase == 0 => "the motor runs, healthy".to_owned(),
            Condition::Healthy => "the motor is healthy again".to_owned(),
            fault => format!("the motor now has: {}", fault.label()),
        };
        self.tell(what);
    }

    /// Whether the sensor has sent its last sample.
    pub fn is_over(&self) -> bool {
        self.schedule.end().is_some_and(|end| self.sent_samples >= end)
    }

    /// A result came.
    pub fn result(&mut self, record: ResultRecord, at: Instant) {
        let Some((started, tag)) = self.sensor_started.zip(record.tag) else { return };
        let Verdict::Class { labels, scores, best } = &record.verdict else { return };
        let (first, last) = (record.window.first, record.window.last);
        self.count_missing(first);
        let at = at.saturating_duration_since(started).as_secs_f64();
        let label = labels[*best].as_str();
        let note = self.judge.see(&Seen {
            message_start: tag,
            message_samples: MESSAGE_SAMPLES,
            window_samples: last - first + 1,
            label,
            at,
        });
        let truth = self.judge.phases()[note.phase as usize].condition;
        self.results += 1;
        self.late += u64::from(record.late);
        self.latency.record(record.latency);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Beat { at, truth, label: label.to_owned(), right: note.right, latency: record.latency });
        self.scores = labels.iter().cloned().zip(scores.iter().copied()).collect();
        self.latest = Some(Latest {
            label: label.to_owned(),
            score: scores[*best],
            engine: record.engine.to_string(),
            variant: record.variant.to_string(),
        });
        if let Some(after) = note.detected_after {
            self.tell(format!("limpet says {label}, {after:.2} s into this phase"));
        } else if note.whole && !note.right {
            self.tell(format!("limpet says {label} of a window that is {} throughout", truth.label()));
        }
    }

    /// The first samples of windows are a hop apart; where they are not, windows are missing.
    fn count_missing(&mut self, first: u64) {
        let hop = match self.last_first {
            Some((before, hop)) if first > before => {
                let step = first - before;
                let hop = if hop == 0 { step } else { hop.min(step) };
                self.missing_windows += step / hop - 1;
                hop
            }
            Some((_, hop)) => hop,
            None => 0,
        };
        self.last_first = Some((first, hop));
    }

    /// Adds a line to the log.
    pub fn tell(&mut self, line: String) {
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:6.1} s  {line}", self.now()));
        self.logged += 1;
    }

    /// Seconds since the sensor started, by the clock of its samples.
    pub fn now(&self) -> f64 {
        self.schedule.seconds(self.sent_samples)
    }

    /// Seconds that the demo lasts, if it ends by itself.
    pub fn length(&self) -> Option<f64> {
        self.schedule.end().map(|end| self.schedule.seconds(end))
    }

    /// What became of the model, in words.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What the motor has now.
    pub fn truth(&self) -> Option<Condition> {
        self.sensor_started.map(|_| self.schedule.condition(self.schedule.phase_at(self.sent_samples)))
    }

    /// The newest result.
    pub fn latest(&self) -> Option<&Latest> {
        self.latest.as_ref()
    }

    /// All classes with the newest scores, in the graph's order.
    pub fn scores(&self) -> &[(String, f32)] {
        &self.scores
    }

    /// The last results, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Beat> {
        self.recent.iter()
    }

    /// Results that came in all.
    pub fn results(&self) -> u64 {
        self.results
    }

    /// Results that were ready only after their deadline.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Windows without a result.
    pub fn missing_windows(&self) -> u64 {
        self.missing_windows
    }

    /// Messages that the sensor could not send in time.
    pub fn dropped_messages(&self) -> u64 {
        self.dropped_messages
    }

    /// Samples that the sensor has sent.
    pub fn sent_samples(&self) -> u64 {
        self.sent_samples
    }

    /// Latency of all results.
    pub fn latency(&self) -> &Parts<Times> {
        &self.latency
    }

    /// The account of each phase.
    pub fn phases(&self) -> &[Phase] {
        self.judge.phases()
    }

    /// The log's lines with their numbers, oldest first.
    pub fn log(&self) -> impl DoubleEndedIterator<Item = (u64, &str)> {
        let first = self.logged - self.log.len() as u64;
        (first..).zip(self.log.iter().map(String::as_str)).collect::<Vec<_>>().into_iter()
    }

    /// Results a second, over the last results.
    pub fn per_second(&self) -> f64 {
        match (self.recent.front(), self.recent.back()) {
            (Some(first), Some(last)) if last.at > first.at => (self.recent.len() - 1) as f64 / (last.at - first.at),
            _ => 0.0,
        }
    }

    /// Medians of the parts of the latency over the last results, in microseconds.
    pub fn recent_latency(&self) -> Option<Parts<u64>> {
        let median = |part: fn(&LatencyUs) -> u64| {
            let mut values: Vec<_> = self.recent.iter().map(|beat| part(&beat.latency)).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied()
        };
        Some(Parts {
            wait: median(|l| l.wait)?,
            features: median(|l| l.features)?,
            queue: median(|l| l.queue)?,
            compute: median(|l| l.compute)?,
            decide: median(|l| l.decide)?,
            total: median(LatencyUs::total)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use limpet_wire::result::Span;

    fn record(first: u64, tag: u64, best: usize) -> ResultRecord {
        let labels: Arc<[String]> = ["healthy", "imbalance", "bearing", "looseness"].map(String::from).into();
        let mut scores = vec![0.0; 4];
        scores[best] = 1.0;
        let mut record = crate::answer::tests::result(tag);
        record.window = Span { first, last: first + 3199 };
        record.verdict = Verdict::Class { best, labels, scores };
        record
    }

    #[test]
    fn windows_that_were_skipped_are_counted() {
        let mut show = Show::new(Schedule::new(3200.0, None), "");
        let start = Instant::now();
        show.sensor_started(start);
        for first in [0, 1600, 3200, 8000, 9600] {
            show.result(record(first, first + 3136, 0), start + Duration::from_secs(1));
        }
        assert_eq!((show.results(), show.missing_windows()), (5, 2));
    }

    #[test]
    fn a_detection_is_told_once_with_its_delay() {
        let schedule = Schedule::new(3200.0, None);
        let mut show = Show::new(schedule, "");
        let start = Instant::now();
        show.sensor_started(start);
        let bearing = schedule.samples(1).start;
        show.sensor_at(bearing + 6400, 0);
        for hop in 0..3 {
            let first = bearing - 1600 + hop * 1600;
            let at = start + Duration::from_secs_f64((first + 3200) as f64 / 3200.0 + 0.25);
            show.result(record(first, first + 3136, 2), at);
        }
        let told: Vec<_> = show.log().filter(|(_, line)| line.contains("limpet says bearing")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].1.contains("0.75 s into"), "{told:?}");
    }
}
