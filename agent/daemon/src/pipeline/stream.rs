//! One stream on its worker: from messages to windows.
//!
//! Samples over time are read once and pushed to the front end of every pipeline of the source, up to the next window
//! that any of them completes; a message that is a window is read by each pipeline for itself.
//!
//! **A new version of a model** starts beside the old one: its front end takes the same samples, from where its first
//! window will end with one of the old version's, and is not heard until that is full. It is the first window of the new
//! version, and the old one's of the same end is not made. Where both make the same features of the same samples, there is
//! nothing to start: the new one takes over with the next window. So no window is missing, none comes twice, and each is of
//! one version from its first sample to its verdict.
//!
//! **A version in shadow** ([`shadow`]) gets a copy of each window that the serving one completes, or, where it makes
//! other features, has a front end of its own that starts like a new version's and is stopped where it costs too much.

mod windowing;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use limpet_runtime::{BatchCost, Class, Context, Group, Lane, LanePolicy, Ledger, Moment, Order, Outcome, Overflow};
use limpet_wire::id::Serial;
use limpet_wire::result::{Span, Verdict};

use super::input::{Refused, Samples, WindowInput, WindowReader, stamp};
use super::model::Facts;
use super::observe::{Observation, Observed, Observer, Pace};
use super::plan::{PipelinePlan, SourceKind, SourcePlan, Version};
use super::publish::PublishState;
use super::range::RangeWatch;
use super::shadow::{self, FeedWatch, Watch};
use super::timing::{Gap, Misplaced, Timeline};
use super::trigger::TriggerState;
use super::worker::{Ingest, Job, Sink, Window, Worker};
use crate::config::OnGap;
use crate::link;

use windowing::{Completed, Queued};
pub(super) use windowing::{Windowing, recycle};

/// A version of a model as one worker serves it to one pipeline.
#[derive(Debug)]
pub struct Serve {
    /// The pipeline, as a position in the plan.
    pub pipeline: usize,
    /// The package.
    pub version: Arc<Version>,
    /// The model that runs.
    pub full: Arc<Facts>,
    /// The one that runs under pressure, if the package has one.
    pub reduced: Option<Arc<Facts>>,
    /// T: shortest time between two windows of a stream, as it was admitted last; in nanoseconds.
    period: AtomicU64,
}

impl Serve {
    /// What a pipeline serves.
    pub fn new(
        pipeline: usize,
        version: Arc<Version>,
        full: Arc<Facts>,
        reduced: Option<Arc<Facts>>,
        period: Duration,
    ) -> Self {
        let serve = Self { pipeline, version, full, reduced, period: AtomicU64::default() };
        serve.set_period(period);
        serve
    }

    /// It was admitted anew.
    pub fn set_period(&self, period: Duration) {
        self.period.store(u64::try_from(period.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn period(&self) -> Duration {
        Duration::from_nanos(self.period.load(Ordering::Relaxed))
    }

    /// Its models.
    pub fn facts(&self) -> impl Iterator<Item = &Arc<Facts>> {
        std::iter::once(&self.full).chain(&self.reduced)
    }

    /// Whether it needs this model.
    pub fn uses(&self, number: u32) -> bool {
        self.models().any(|used| used == number)
    }

    /// The models that it needs, by number.
    pub fn models(&self) -> impl Iterator<Item = u32> {
        self.facts().map(|facts| facts.number)
    }
}

/// One stream of one worker.
pub struct StreamState {
    pub(super) name: Arc<str>,
    /// The topic that its first message came on, for whoever reads a complaint.
    topic: Arc<str>,
    pub(super) source: Arc<SourcePlan>,
    input: StreamInput,
    range: RangeWatch,
    /// Index of the next sample.
    next: u64,
    /// Samples in the largest message so far.
    largest: usize,
    /// Samples in the last message, and the last sample.
    last_samples: usize,
    last_sample: Vec<f32>,
    /// Messages since then that found no place in the queue or were refused.
    missed: u64,
    /// What is not windowed yet of the last message, and where the job that goes on with it stands in the queue.
    rest: Option<Rest>,
    continuing: Lane,
    ingest: Group,
    /// Indices of samples that were filled in, oldest first.
    filled: VecDeque<RangeInclusive<u64>>,
    samples: Vec<f32>,
    pub(super) feeds: Vec<Feed>,
    observer: Observer,
    /// What front ends in shadow took of the part of a message that is worked on: no measure of the stream.
    shadowed: Duration,
}

/// Samples of a message that are still to be windowed.
///
/// A message may complete several windows. It is cut where one is complete, so that the window is inferred before the
/// next one takes its place: a queue that keeps the newest window alone would otherwise lose all but the message's last.
struct Rest {
    samples: Vec<f32>,
    /// How many of its values are done.
    done: usize,
    /// Index in the stream of its last sample, and when that was captured.
    last: u64,
    captured: Moment,
    payload_ns: Option<i64>,
    tag: Option<u64>,
}

/// How a stream's messages are read.
enum StreamInput {
    /// As samples over time, for all pipelines at once.
    Series(Box<Samples>),
    /// As windows, by each feed for itself; their place in time is common.
    Windows(Box<Timeline>),
}

/// What one pipeline keeps of one stream.
pub(super) struct Feed {
    pub(super) pipeline: usize,
    plan: Arc<PipelinePlan>,
    ledger: Arc<Ledger>,
    lane: Lane,
    pace: Pace,
    /// Class of the last window that was queued.
    last_class: Class,
    now: Side,
    /// The version that takes over at its first full window.
    next: Option<Side>,
    /// The version on trial, if there is one.
    pub(super) watch: Option<Box<FeedWatch>>,
    pub(super) decision: DecisionState,
}

/// One version's way from samples to windows.
pub(super) struct Side {
    serve: Arc<Serve>,
    front_end: Option<limpet_signal::Stream>,
    reader: Option<WindowReader>,
    /// Index of the sample that it starts with.
    starts: u64,
}

/// What a pipeline remembers of a stream's results.
pub(super) struct DecisionState {
    version: Arc<Version>,
    trigger: TriggerState,
    pub(super) publish: PublishState,
    pub(super) locals: Vec<PublishState>,
    pub(super) serial: Serial,
}

/// A lane for one job: that which goes on with a message.
const ONE: LanePolicy = LanePolicy { depth: 1, weight: usize::MAX, overflow: Overflow::DropOldest };
/// What taking in a message takes, until it was measured.
pub const INGEST_COST: Duration = Duration::from_micros(50);

impl StreamInput {
    fn new(source: &SourcePlan) -> Self {
        match &source.kind {
            SourceKind::Series { channels } => {
                let samples = Samples::new(source, channels.len());
                Self::Series(Box::new(samples.expect("the plan was made with the same codec and channels")))
            }
            _ => Self::Windows(Box::new(Timeline::new(source.timing))),
        }
    }
}

impl Side {
    fn new(serve: &Arc<Serve>, source: &SourcePlan) -> Self {
        let version = &serve.version;
        let reader = WindowReader::new(&source.config, &version.input, &serve.full.input);
        Self {
            front_end: version.front_end.as_ref().map(limpet_signal::FrontEnd::stream),
            reader: reader.expect("the model was opened with the same codec and graph"),
            serve: Arc::clone(serve),
            starts: 0,
        }
    }

    /// Starts anew with the sample of this index.
    fn start(&mut self, index: u64) {
        self.starts = index;
        if let Some(front_end) = &mut self.front_end {
            front_end.reset(index);
        }
    }

    /// Samples from `at` on until its next window is complete; none where a message is a window.
    fn samples_to_next_window(&self, at: u64) -> Option<usize> {
        let front_end = self.front_end.as_ref()?;
        Some((self.starts.saturating_sub(at)) as usize + front_end.samples_to_next_window())
    }

    /// Where another version has to start, from sample `at` on, so that its first window of `length` samples ends with
    /// one of this side's.
    fn start_of_next(&self, at: u64, length: u64) -> u64 {
        let Some(front_end) = &self.front_end else { return at };
        let hop = self.serve.version.hop().max(1);
        let end = self.starts.max(at) + front_end.samples_to_next_window() as u64;
        let earliest = at + length;
        end + earliest.saturating_sub(end).div_ceil(hop) * hop - length
    }

    /// Samples that one window needs.
    fn window(&self) -> u64 {
        self.serve.version.front_end.as_ref().map_or(1, |front_end| front_end.samples_per_window() as u64)
    }
}

impl Feed {
    fn new<S: Sink + 'static>(
        plan: &Arc<PipelinePlan>,
        serve: &Arc<Serve>,
        stream: &Arc<str>,
        source: &SourcePlan,
        context: &mut Context<'_, Worker<S>>,
    ) -> Self {
        let decision = DecisionState {
            version: Arc::clone(&serve.version),
            trigger: TriggerState::default(),
            publish: PublishState::default(),
            locals: plan.locals.iter().map(|_| PublishState::default()).collect(),
            serial: Serial { run: link::random_run(), seq: 0 },
        };
        Self {
            pipeline: serve.pipeline,
            ledger: plan.open_stream(stream),
            lane: context.open(plan.lane),
            pace: Pace::default(),
            last_class: plan.class,
            now: Side::new(serve, source),
            next: None,
            watch: None,
            decision,
            plan: Arc::clone(plan),
        }
    }

    /// Whether another version is about to take over.
    pub(super) fn changes(&self) -> bool {
        self.next.is_some()
    }

    fn sides(&self) -> impl Iterator<Item = &Side> {
        std::iter::once(&self.now).chain(&self.next)
    }

    /// Whether it needs this model.
    pub(super) fn uses(&self, number: u32) -> bool {
        self.sides().any(|side| side.serve.uses(number)) || self.watch.as_ref().is_some_and(|watch| watch.uses(number))
    }
}

impl DecisionState {
    pub(super) fn trigger(&mut self, window: &Window, verdict: &Verdict) -> bool {
        if !Arc::ptr_eq(&self.version, &window.version) {
            self.version = Arc::clone(&window.version);
            self.trigger.start_anew();
        }
        let Some(rule) = &window.version.trigger else { return false };
        let score = match (rule.label, verdict) {
            (Some(label), Verdict::Class { scores, .. }) => scores.get(label).copied(),
            _ => verdict.score(),
        };
        let hop = window.version.hop();
        score.is_some_and(|score| self.trigger.take(rule, window.span.first, hop, score, window.captured))
    }
}

impl StreamState {
    /// A stream of which nothing was heard yet. `topic` is where its first message came.
    pub(super) fn new<S: Sink + 'static>(
        source: &Arc<SourcePlan>,
        name: Arc<str>,
        topic: Arc<str>,
        context: &mut Context<'_, Worker<S>>,
    ) -> Self {
        Self {
            name,
            topic,
            missed: 0,
            rest: None,
            continuing: context.open(ONE),
            ingest: context.open_group(source.class, &[BatchCost::single(INGEST_COST)]),
            input: StreamInput::new(source),
            range: RangeWatch::new(&source.kind),
            next: 0,
            largest: 0,
            last_samples: 0,
            last_sample: Vec::new(),
            filled: VecDeque::new(),
            samples: Vec::new(),
            feeds: Vec::new(),
            observer: Observer::default(),
            shadowed: Duration::ZERO,
            source: Arc::clone(source),
        }
    }

    /// Feeds one pipeline more, or gives it another version.
    pub(super) fn serve<S: Sink + 'static>(
        &mut self,
        plan: &Arc<PipelinePlan>,
        serve: &Arc<Serve>,
        context: &mut Context<'_, Worker<S>>,
    ) {
        // What is left of a message belongs to samples that the new one has not seen: it starts with the next one.
        let at = self.rest.as_ref().map_or(self.next, |rest| rest.last + 1);
        match self.feeds.iter_mut().find(|feed| feed.pipeline == serve.pipeline) {
            Some(feed) => {
                let mut next = Side::new(serve, &self.source);
                if serve.version.input == feed.now.serve.version.input {
                    // The same features: those at hand are its own, and it takes over with the very next window.
                    next.front_end = feed.now.front_end.take();
                    next.starts = feed.now.starts;
                    (feed.now, feed.next) = (next, None);
                } else {
                    next.start(feed.now.start_of_next(self.next, next.window()));
                    feed.next = Some(next);
                }
            }
            None => {
                let mut feed = Feed::new(plan, serve, &self.name, &self.source, context);
                feed.now.start(at);
                self.feeds.push(feed);
            }
        }
    }

    /// A pipeline's serving version, or the one beside it, is on trial from now on.
    pub(super) fn watch<S: Sink + 'static>(
        &mut self,
        pipeline: usize,
        watch: &Arc<Watch>,
        context: &mut Context<'_, Worker<S>>,
    ) {
        let Some(feed) = self.feeds.iter_mut().find(|feed| feed.pipeline == pipeline && feed.watch.is_none()) else {
            return;
        };
        let lane = watch.companion().map(|_| context.open(shadow::LANE));
        let side = watch.own_front_end().map(|serve| Side::new(serve, &self.source));
        feed.watch = Some(Box::new(FeedWatch::new(watch, lane, side)));
    }

    /// It is not on trial any more.
    pub(super) fn stop_watching<S: Sink + 'static>(&mut self, pipeline: usize, context: &mut Context<'_, Worker<S>>) {
        let feed = self.feeds.iter_mut().find(|feed| feed.pipeline == pipeline);
        if let Some(lane) = feed.and_then(|feed| feed.watch.take()).and_then(|watch| watch.lane) {
            context.close(lane, Outcome::Replaced);
        }
    }

    /// This model goes: what waits for it in shadow does not wait for it to come back.
    pub(super) fn stop_waiting_in_shadow<S: Sink + 'static>(
        &mut self,
        number: u32,
        context: &mut Context<'_, Worker<S>>,
    ) {
        let watches = self.feeds.iter_mut().filter_map(|feed| feed.watch.as_mut());
        for watch in watches.filter(|watch| watch.uses(number)) {
            if let Some(lane) = watch.lane.take() {
                context.close(lane, Outcome::Replaced);
                watch.lane = Some(context.open(shadow::LANE));
            }
        }
    }

    /// Feeds a pipeline no more; its windows that wait are given up as `outcome`.
    pub(super) fn stop_serving<S: Sink + 'static>(
        &mut self,
        pipeline: usize,
        outcome: Outcome,
        context: &mut Context<'_, Worker<S>>,
    ) {
        self.stop_watching(pipeline, context);
        if let Some(at) = self.feeds.iter().position(|feed| feed.pipeline == pipeline) {
            let feed = self.feeds.remove(at);
            context.close(feed.lane, outcome);
            feed.plan.close_stream(&self.name);
        }
    }

    /// Gives up everything that waits.
    pub(super) fn close<S: Sink + 'static>(mut self, context: &mut Context<'_, Worker<S>>) {
        context.close(self.continuing, Outcome::Expired);
        context.retire(self.ingest);
        while let Some(feed) = self.feeds.first() {
            self.stop_serving(feed.pipeline, Outcome::Expired, context);
        }
    }

    /// Takes a message in.
    pub(super) fn ingest<S: Sink + 'static>(
        &mut self,
        message: &Ingest,
        windowing: Windowing<'_>,
        sink: &mut S,
        context: &mut Context<'_, Worker<S>>,
    ) {
        let begun = self.observer.begin();
        self.observer.message();
        let largest = self.largest;
        if matches!(self.input, StreamInput::Series(_)) {
            self.push_series(message, windowing, sink, context);
        } else {
            self.push_window(message, windowing, context);
        }
        let seen = |figures| Observation { source: Arc::clone(&self.source), figures };
        // A message of several samples is older when it comes than was assumed.
        if self.largest > largest.max(1) {
            sink.observed(seen(Observed::Samples(self.largest)));
        }
        let shadowed = std::mem::take(&mut self.shadowed);
        if let Some(begun) = begun {
            self.observer.worked(begun + shadowed);
            if let Some(figures) = self.observer.enough(message.arrived, self.next) {
                sink.observed(seen(Observed::Figures(figures)));
            }
        }
    }

    /// Goes on with the rest of a message.
    pub(super) fn resume<S: Sink + 'static>(&mut self, windowing: Windowing<'_>, context: &mut Context<'_, Worker<S>>) {
        let begun = self.observer.begin();
        self.window(windowing, false, context);
        let shadowed = std::mem::take(&mut self.shadowed);
        if let Some(begun) = begun {
            self.observer.worked(begun + shadowed);
        }
    }

    pub(super) fn complain(&self, reason: &'static str, sentence: impl FnOnce() -> String) {
        self.source.ledger.complain(self.source.name(), &self.topic, reason, 1, sentence);
    }

    fn misplaced(&self, misplaced: Misplaced) {
        match misplaced {
            Misplaced::Repeated => {
                self.complain("repeated", || "a message with the same sequence number or time was here before".into());
            }
            Misplaced::OutOfOrder => {
                self.complain("out_of_order", || "a message is older than the one before it".into());
            }
        }
    }

    fn skewed(&self) {
        self.complain("time_skew", || {
            "the payload's time deviates by more than max_skew from its usual delay; arrival is used instead".into()
        });
    }

    /// Samples that a window needs at most, over all pipelines.
    fn longest_window(&self) -> u64 {
        self.feeds.iter().flat_map(Feed::sides).map(Side::window).max().unwrap_or(0)
    }

    /// Takes a message of samples in, with what is missing before them.
    fn push_series<S: Sink + 'static>(
        &mut self,
        message: &Ingest,
        mut windowing: Windowing<'_>,
        sink: &mut S,
        context: &mut Context<'_, Worker<S>>,
    ) {
        // What is left of the message before comes first.
        if self.rest.is_some() {
            self.window(windowing.again(), true, context);
        }
        let StreamInput::Series(input) = &mut self.input else { return };
        let mut samples = std::mem::take(&mut self.samples);
        let taken = input.take(message.topic, &message.payload, message.arrived, &mut samples);
        for channel in input.silent(message.arrived) {
            let topic = self.source.config.filters().get(channel).map_or("", |filter| filter.text());
            self.complain("channel_silent", || format!("nothing comes on {topic}, while the other channels deliver"));
        }
        self.missed += u64::from(message.missed);
        let taken = match taken {
            Ok(taken) => taken,
            Err(refused) => {
                self.samples = samples;
                return match refused {
                    Refused::Payload(refusal) => {
                        self.missed += 1;
                        self.complain(refusal.reason(), || refusal.to_string());
                    }
                    Refused::Misplaced(misplaced) => self.misplaced(misplaced),
                };
            }
        };
        if taken.placement.skewed {
            self.skewed();
        }
        self.source.ledger.took(taken.samples as u64);
        if taken.unpaired > 0 {
            let ledger = &self.source.ledger;
            ledger.complain(self.source.name(), &self.topic, "unpaired", taken.unpaired as u64, || {
                format!("{} samples found no partner on the other topics within the tolerance", taken.unpaired)
            });
        }
        if taken.samples == 0 {
            // A joined row waits for its other channels.
            self.samples = samples;
            return;
        }
        if let Some(sentence) = self.range.take(&samples, message.arrived) {
            sink.event("out-of-range", sentence(self.source.name(), &self.name), self.source.name(), &self.name);
        }
        // Messages that were refused or found no place in the queue are missing too, where the payload does not tell.
        let missed = std::mem::take(&mut self.missed) * self.last_samples as u64;
        let missed = if taken.placement.told { 0 } else { missed };
        let gap = match (taken.placement.gap, missed) {
            (None, 0) => None,
            (gap, missed) => Some(Gap { missing: gap.map_or(0, |gap| gap.missing).max(missed) }),
        };
        self.last_samples = taken.samples;
        self.largest = self.largest.max(taken.samples);
        if let Some(gap) = gap {
            self.complain("gap", || {
                format!("{} samples are missing; on_gap = {:?}", gap.missing, self.source.on_gap())
            });
            samples = self.bridge(gap, samples);
        }
        let channels = self.source.kind.channels();
        if let Some(last) = samples.chunks_exact(channels).next_back() {
            self.last_sample.clear();
            self.last_sample.extend_from_slice(last);
        }
        self.rest = Some(Rest {
            last: self.next + (samples.len() / channels) as u64 - 1,
            samples,
            done: 0,
            captured: taken.placement.captured,
            payload_ns: taken.placement.payload_ns,
            tag: taken.tag,
        });
        self.window(windowing, false, context);
    }

    /// Does what the source says about a gap: starts anew, or puts samples in the place of the missing ones.
    fn bridge(&mut self, gap: Gap, samples: Vec<f32>) -> Vec<f32> {
        let fillable = (1..=self.longest_window()).contains(&gap.missing) && !self.last_sample.is_empty();
        if self.source.on_gap() != OnGap::Reset && fillable {
            self.filled.push_back(self.next..=self.next + gap.missing - 1);
            return fill(self.source.on_gap(), gap.missing as usize, &self.last_sample, &samples);
        }
        self.next += gap.missing;
        self.filled.clear();
        for feed in &mut self.feeds {
            feed.now.start(self.next);
            if let Some(next) = &mut feed.next {
                next.start(self.next);
            }
            if let Some(watch) = &mut feed.watch {
                watch.interrupted();
            }
        }
        samples
    }

    /// Cuts windows out of what is left of the last message: up to the next one that is complete, or, with `all`, all.
    fn window<S: Sink + 'static>(
        &mut self,
        mut windowing: Windowing<'_>,
        all: bool,
        context: &mut Context<'_, Worker<S>>,
    ) {
        let Some(mut rest) = self.rest.take() else { return };
        let channels = self.source.kind.channels();
        let period_ns = 1e9 / self.source.timing.rate_hz;
        let complete = windowing.clock.now();
        let mut earliest = None;
        while rest.done < rest.samples.len() && (all || earliest.is_none()) {
            let left = (rest.samples.len() - rest.done) / channels;
            let sides = self.feeds.iter().flat_map(Feed::sides);
            let next = sides.filter_map(|side| side.samples_to_next_window(self.next)).min();
            let take = next.unwrap_or(left).min(left);
            let samples = &rest.samples[rest.done..rest.done + take * channels];
            for feed in &mut self.feeds {
                let Feed { plan, ledger, lane, pace, last_class, now, next, watch, .. } = feed;
                let filled = &self.filled;
                let observer = &mut self.observer;
                let mut push = |side: &mut Side| {
                    let Some(front_end) = side.front_end.as_mut() else { return false };
                    let (skip, mut any) = ((side.starts.saturating_sub(self.next) as usize).min(take), false);
                    let pushed = front_end.push(&samples[skip * channels..], |window| {
                        any = true;
                        // The message's time is that of its last sample; the window may end before it.
                        let before = Duration::from_nanos(((rest.last - window.last) as f64 * period_ns) as u64);
                        let captured = rest.captured.before(before);
                        let span = Span { first: window.first, last: window.last };
                        observer.waited(complete.since(captured));
                        let completed = Completed {
                            input: WindowInput::Real(windowing.buffer(window.features)),
                            span,
                            filled: overlap(filled, span),
                            captured,
                            payload_ns: rest.payload_ns.map(|ns| ns.saturating_sub_unsigned(before.as_nanos() as u64)),
                            complete,
                            tag: rest.tag,
                        };
                        let watch = watch.as_deref_mut();
                        let queued = Queued { plan, ledger, lane: *lane, pace, last_class, watch };
                        let deadline = windowing.complete(queued, &side.serve, completed, context);
                        earliest = Some(earliest.map_or(deadline, |earliest: Moment| earliest.min(deadline)));
                    });
                    pushed.expect("the decoder gives whole samples");
                    any
                };
                // The new version's first window is the last moment of the old one, whose own is then not made.
                if next.as_mut().is_some_and(&mut push) {
                    *now = next.take().expect("it has just made a window");
                } else {
                    push(now);
                }
                if let Some(watch) = watch.as_deref_mut().filter(|watch| watch.beside.is_some()) {
                    let spent = windowing.push_beside(watch, now, plan, samples, channels, self.next, context);
                    self.shadowed += spent;
                }
            }
            rest.done += take * channels;
            self.next += take as u64;
        }
        if rest.done == rest.samples.len() {
            let oldest = self.next.saturating_sub(self.longest_window());
            while self.filled.front().is_some_and(|range| *range.end() < oldest) {
                self.filled.pop_front();
            }
            self.samples = rest.samples;
        } else if let Some(deadline) = earliest {
            // Behind the most urgent of the windows that were just completed: others may be in no hurry.
            let (lane, group) = (self.continuing, self.ingest);
            let order = Order { lane, group, deadline, expires: false, hold: Moment(0), weight: 0 };
            self.rest = Some(rest);
            context.push(order, Job::Continue(windowing.key));
        }
    }

    /// Takes a message in that is a window of its own.
    fn push_window<S: Sink + 'static>(
        &mut self,
        message: &Ingest,
        mut windowing: Windowing<'_>,
        context: &mut Context<'_, Worker<S>>,
    ) {
        let complete = windowing.clock.now();
        let mut placed = None;
        let mut inputs = Vec::with_capacity(1);
        for (index, feed) in self.feeds.iter_mut().enumerate() {
            // Between two windows, which is now.
            if let Some(next) = feed.next.take() {
                feed.now = next;
            }
            let Some(reader) = &mut feed.now.reader else { continue };
            match reader.take(&message.payload, windowing.spare.pop().unwrap_or_default()) {
                Ok((decoded, input)) => {
                    placed = Some(decoded);
                    inputs.push((index, input));
                }
                Err(refusal) => {
                    let pipeline = &feed.plan.name;
                    let ledger = &self.source.ledger;
                    ledger.complain(self.source.name(), &self.topic, refusal.reason(), 1, || {
                        format!("pipeline {pipeline}: {refusal}")
                    });
                }
            }
        }
        let Some(decoded) = placed else { return };
        let StreamInput::Windows(timeline) = &mut self.input else { return };
        let placement = match timeline.place(stamp(&decoded, message.arrived)) {
            Ok(placement) => placement,
            Err(misplaced) => return self.misplaced(misplaced),
        };
        if placement.skewed {
            self.skewed();
        }
        self.source.ledger.took(1);
        let span = Span { first: self.next, last: self.next };
        self.next += 1;
        self.observer.waited(complete.since(placement.captured));
        for (index, input) in inputs {
            let completed = Completed {
                input,
                span,
                filled: 0,
                captured: placement.captured,
                payload_ns: placement.payload_ns,
                complete,
                tag: decoded.tag,
            };
            let Feed { plan, ledger, lane, pace, last_class, now, watch, .. } = &mut self.feeds[index];
            let queued = Queued { plan, ledger, lane: *lane, pace, last_class, watch: watch.as_deref_mut() };
            windowing.complete(queued, &now.serve, completed, context);
            if let Some(watch) = watch.as_deref_mut().filter(|watch| watch.beside.is_some()) {
                self.shadowed += windowing.read_beside(watch, plan, &message.payload, context);
            }
        }
    }
}

/// Samples in `span` that were filled in.
fn overlap(filled: &VecDeque<RangeInclusive<u64>>, span: Span) -> u64 {
    let common = |range: &RangeInclusive<u64>| {
        let (first, last) = (span.first.max(*range.start()), span.last.min(*range.end()));
        (last + 1).saturating_sub(first)
    };
    filled.iter().map(common).sum()
}

/// `missing` samples after `last`, then `samples`: the last one held, or a straight line to the first new one.
fn fill(on_gap: OnGap, missing: usize, last: &[f32], samples: &[f32]) -> Vec<f32> {
    let mut filled = Vec::with_capacity(missing * last.len() + samples.len());
    for step in 1..=missing {
        let share = match on_gap {
            OnGap::Interpolate => step as f32 / (missing + 1) as f32,
            OnGap::Hold | OnGap::Reset => 0.0,
        };
        filled.extend(last.iter().zip(samples).map(|(then, now)| then + (now - then) * share));
    }
    filled.extend_from_slice(samples);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holding_repeats_the_last_sample_and_interpolating_draws_a_line() {
        let (last, samples) = ([0.0, 10.0], [4.0, 2.0, 5.0, 5.0]);
        let held = fill(OnGap::Hold, 2, &last, &samples);
        assert_eq!(held, [0.0, 10.0, 0.0, 10.0, 4.0, 2.0, 5.0, 5.0]);
        let drawn = fill(OnGap::Interpolate, 3, &last, &samples);
        assert_eq!(drawn, [1.0, 8.0, 2.0, 6.0, 3.0, 4.0, 4.0, 2.0, 5.0, 5.0]);
    }

    #[test]
    fn filled_samples_are_counted_where_they_lie_in_the_window() {
        let filled = VecDeque::from([5..=9, 20..=20, 30..=40]);
        assert_eq!(overlap(&filled, Span { first: 8, last: 31 }), 2 + 1 + 2);
        assert_eq!(overlap(&filled, Span { first: 10, last: 19 }), 0);
    }
}
