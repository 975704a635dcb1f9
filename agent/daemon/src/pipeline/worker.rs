//! What a worker thread does: messages to windows to results.
//!
//! A worker owns its sessions and the state of its streams; nobody else touches them, so there is no lock between a
//! message and its result. The same code runs under the pool's threads and, on a played clock, under `limpet try`.
//!
//! Every completed window ends in exactly one outcome; the ledger of its pipeline counts it here, or where the queue
//! gives the window up.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use limpet_depot::Decider;
use limpet_engine::{ElementType, Session, TensorMut};
use limpet_runtime::queue::Pushed;
use limpet_runtime::{Clock, Context, Handler, Lane, LanePolicy, Moment, Order, Outcome, Overflow};
use limpet_wire::id::Serial;
use limpet_wire::result::{LatencyUs, ResultRecord, Span, Verdict};

use super::input::{Refused, Samples, WindowInput, WindowReader, stamp};
use super::plan::{PipelinePlan, Plan, SourceKind, SourcePlan};
use super::publish::PublishState;
use super::range::RangeWatch;
use super::timing::{Gap, Misplaced, Timeline};
use super::trigger::TriggerState;
use crate::config::OnGap;
use crate::link;
use crate::wall::Wall;

/// One stream of one worker, numbered over the whole agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey(pub u32);

/// Work for a worker.
pub enum Job {
    /// One message of one stream.
    Ingest(Ingest),
    /// The rest of a message that completes several windows.
    Continue(StreamKey),
    /// One window.
    Infer(Box<Infer>),
}

/// One message of one stream.
pub struct Ingest {
    /// The stream.
    pub stream: StreamKey,
    /// Which of a joined source's topics it came on; 0 otherwise.
    pub topic: usize,
    /// What it holds.
    pub payload: Bytes,
    /// When it came in.
    pub arrived: Moment,
    /// Messages of this stream before it that found no place in the queue.
    pub missed: u32,
}

/// One window on its way to the session.
pub struct Infer {
    stream: StreamKey,
    pipeline: usize,
    input: WindowInput,
    span: Span,
    filled: u64,
    captured: Moment,
    payload_ns: Option<i64>,
    deadline: Moment,
    /// When the window was complete, and when its features were.
    complete: Moment,
    featured: Moment,
    tag: Option<u64>,
}

/// A result, and who is to hear of it.
pub struct Decided<'a> {
    /// The pipeline it belongs to.
    pub pipeline: &'a PipelinePlan,
    /// The result.
    pub record: Arc<ResultRecord>,
    /// Whether it was selected for publication.
    pub published: bool,
    /// Whether each of the pipeline's local outputs wants it.
    pub locals: &'a [bool],
    /// When it was no longer wanted.
    pub deadline: Moment,
    /// Now.
    pub now: Moment,
}

/// Where results go.
pub trait Sink: Send {
    /// Takes a result. Must not block.
    fn decided(&mut self, decided: Decided<'_>);

    /// Something that a person should know: a word, a sentence, and the stream it is about.
    fn event(&mut self, kind: &'static str, message: String, source: &str, stream: &str);
}

/// A model that serves: its session and what the decision needs.
pub struct Serving {
    /// The session, owned by the worker from now on.
    pub session: Box<dyn Session>,
    /// From outputs to verdicts.
    pub decider: Decider,
    /// The engine's name.
    pub engine: Arc<str>,
    /// The variant's file.
    pub variant: Arc<str>,
    /// Half of the session's runs take at most this long, by its proof.
    pub cost: Duration,
}

/// How the worker treats time.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What time it is.
    pub clock: Clock,
    /// UTC, where it does not follow the kernel's clock.
    pub wall: Option<Wall>,
    /// Whether a window that cannot be ready in time is given up. Not where a recording must lose nothing.
    pub expires: bool,
}

/// The handler of one worker thread.
pub struct Worker<S> {
    gateway: Arc<str>,
    plan: Arc<Plan>,
    policy: Policy,
    sink: S,
    streams: HashMap<StreamKey, StreamState>,
    models: Vec<Option<Model>>,
    /// Buffers of windows that are done, for the next ones.
    spare: Vec<Vec<f32>>,
}

struct Model {
    serving: Serving,
    output: Vec<f32>,
    /// What quantized features stand for, where the decision needs it.
    features: Vec<f32>,
    wants: Vec<bool>,
}

struct StreamState {
    name: Arc<str>,
    /// The topic that its first message came on, for whoever reads a complaint.
    topic: Arc<str>,
    source: Arc<SourcePlan>,
    input: StreamInput,
    range: RangeWatch,
    /// Index of the next sample.
    next: u64,
    /// Samples in the last message, and the last sample.
    last_samples: usize,
    last_sample: Vec<f32>,
    /// Messages since then that found no place in the queue or were refused.
    missed: u64,
    /// What is not windowed yet of the last message, and where the job that goes on with it stands in the queue.
    rest: Option<Rest>,
    continuing: Lane,
    /// Indices of samples that were filled in, oldest first.
    filled: VecDeque<RangeInclusive<u64>>,
    samples: Vec<f32>,
    feeds: Vec<Feed>,
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
struct Feed {
    pipeline: usize,
    front_end: Option<limpet_signal::Stream>,
    reader: Option<WindowReader>,
    /// Samples that one window needs.
    window: u64,
    lane: Lane,
    decision: DecisionState,
}

struct DecisionState {
    trigger: TriggerState,
    publish: PublishState,
    locals: Vec<PublishState>,
    serial: Serial,
}

/// A lane for one job: that which goes on with a message.
const ONE: LanePolicy = LanePolicy { depth: 1, weight: usize::MAX, overflow: Overflow::DropOldest };
/// Spare window buffers that are kept.
const SPARE: usize = 64;

impl<S: Sink + 'static> Worker<S> {
    /// A worker without streams and models.
    pub fn new(gateway: Arc<str>, plan: Arc<Plan>, policy: Policy, sink: S) -> Self {
        let models = plan.pipelines.iter().map(|_| None).collect();
        Self { gateway, plan, policy, sink, streams: HashMap::new(), models, spare: Vec::new() }
    }

    /// The sink, for whoever owns the worker.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// A model serves from now on; streams that are there get a front end, from rest.
    pub fn serve(&mut self, pipeline: usize, serving: Serving, context: &mut Context<'_, Self>) {
        let plan = &self.plan.pipelines[pipeline];
        let output = vec![0.0; serving.decider.elements()];
        let model = Model { serving, output, features: Vec::new(), wants: vec![false; plan.locals.len()] };
        for stream in self.streams.values_mut().filter(|stream| stream.source.pipelines.contains(&pipeline)) {
            let mut feed = Feed::new(plan, pipeline, &model, &stream.source, context);
            if let Some(front_end) = &mut feed.front_end {
                front_end.reset(stream.next);
            }
            stream.feeds.push(feed);
        }
        self.models[pipeline] = Some(model);
    }

    /// A stream that was not there before.
    /// `topic` is where its first message came.
    pub fn add_stream(
        &mut self,
        key: StreamKey,
        source: usize,
        name: Arc<str>,
        topic: Arc<str>,
        context: &mut Context<'_, Self>,
    ) {
        let source = Arc::clone(&self.plan.sources[source]);
        let mut feeds = Vec::new();
        for pipeline in &source.pipelines {
            if let Some(model) = &self.models[*pipeline] {
                feeds.push(Feed::new(&self.plan.pipelines[*pipeline], *pipeline, model, &source, context));
            }
        }
        let stream = StreamState {
            name,
            topic,
            missed: 0,
            rest: None,
            continuing: context.open(ONE),
            input: StreamInput::new(&source),
            range: RangeWatch::new(&source.kind),
            next: 0,
            last_samples: 0,
            last_sample: Vec::new(),
            filled: VecDeque::new(),
            samples: Vec::new(),
            feeds,
            source,
        };
        self.streams.insert(key, stream);
    }

    /// A stream that has been silent for too long. What it has in the queue runs no more.
    pub fn remove_stream(&mut self, key: StreamKey, context: &mut Context<'_, Self>) {
        let Some(stream) = self.streams.remove(&key) else { return };
        context.close(stream.continuing);
        for feed in stream.feeds {
            let ledger = &self.plan.pipelines[feed.pipeline].ledger;
            context.close(feed.lane).iter().for_each(|_| ledger.ended(Outcome::Expired));
        }
    }

    fn ingest(&mut self, message: Ingest, context: &mut Context<'_, Self>) {
        let Some(stream) = self.streams.get_mut(&message.stream) else { return };
        let windowing =
            Windowing { plan: &self.plan, clock: &self.policy.clock, spare: &mut self.spare, key: message.stream };
        if matches!(stream.input, StreamInput::Series(_)) {
            stream.push_series(&message, windowing, &mut self.sink, context);
        } else {
            stream.push_window(&message, windowing, context);
        }
    }

    fn resume(&mut self, key: StreamKey, context: &mut Context<'_, Self>) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let windowing = Windowing { plan: &self.plan, clock: &self.policy.clock, spare: &mut self.spare, key };
        stream.window(windowing, false, context);
    }

    fn infer(&mut self, mut window: Infer) {
        let plan = Arc::clone(&self.plan.pipelines[window.pipeline]);
        let started = self.policy.clock.now();
        let (Some(model), Some(stream)) = (self.models[window.pipeline].as_mut(), self.streams.get_mut(&window.stream))
        else {
            plan.ledger.ended(Outcome::Expired);
            return;
        };
        if self.policy.expires && started.after(model.serving.cost) > window.deadline {
            plan.ledger.ended(Outcome::Expired);
            recycle(&mut self.spare, window.input);
            return;
        }
        let verdict = model.run(&window.input);
        let computed = self.policy.clock.now();
        recycle(&mut self.spare, std::mem::replace(&mut window.input, WindowInput::Integers(Vec::new())));
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err((outcome, reason, sentence)) => {
                plan.ledger.ended(outcome);
                stream.source.ledger.complain(stream.source.name(), &stream.topic, reason, 1, || {
                    format!("pipeline {}: {sentence}", plan.name)
                });
                return;
            }
        };
        let Some(feed) = stream.feeds.iter_mut().find(|feed| feed.pipeline == window.pipeline) else {
            plan.ledger.ended(Outcome::Expired);
            return;
        };
        let trigger = feed.decision.trigger(&plan, &verdict, &window);
        let published = feed.decision.publish.selects(&plan.publish, &verdict, trigger, started);
        for ((state, local), wants) in feed.decision.locals.iter_mut().zip(&plan.locals).zip(&mut model.wants) {
            *wants = state.selects(&local.rule, &verdict, trigger, started);
        }
        let serial = published.then(|| {
            feed.decision.serial.seq += 1;
            feed.decision.serial
        });
        let wall = self.policy.wall.unwrap_or_else(Wall::now);
        let (captured, clock) = wall.captured(window.captured, window.payload_ns);
        let decided = self.policy.clock.now();
        let latency = LatencyUs {
            wait: window.complete.micros_since(window.captured),
            features: window.featured.micros_since(window.complete),
            queue: started.micros_since(window.featured),
            compute: computed.micros_since(started),
            decide: decided.micros_since(computed),
        };
        plan.ledger.record([latency.wait, latency.features, latency.queue, latency.compute, latency.decide]);
        plan.ledger.ended(Outcome::Result);
        let record = ResultRecord {
            serial,
            gateway: Arc::clone(&self.gateway),
            pipeline: Arc::clone(&plan.name),
            stream: Arc::clone(&stream.name),
            model: Arc::clone(&plan.model),
            version: Arc::clone(&plan.version),
            engine: Arc::clone(&model.serving.engine),
            variant: Arc::clone(&model.serving.variant),
            captured,
            clock,
            window: window.span,
            filled: window.filled,
            verdict,
            trigger,
            latency,
            late: decided > window.deadline,
            tag: window.tag,
        };
        self.sink.decided(Decided {
            pipeline: &plan,
            record: Arc::new(record),
            published,
            locals: &model.wants,
            deadline: window.deadline,
            now: decided,
        });
    }
}

impl<S: Sink + 'static> Handler for Worker<S> {
    type Job = Job;

    fn run(&mut self, job: Job, context: &mut Context<'_, Self>) {
        match job {
            Job::Ingest(message) => self.ingest(message, context),
            Job::Continue(stream) => self.resume(stream, context),
            Job::Infer(window) => self.infer(*window),
        }
    }
}

impl Model {
    /// Runs the session on a window and decides. What goes wrong has an outcome, a reason and a sentence.
    fn run(&mut self, input: &WindowInput) -> Result<Verdict, (Outcome, &'static str, String)> {
        let failed = |error: &dyn std::fmt::Display| (Outcome::Failed, "session_failed", error.to_string());
        let session = self.serving.session.as_mut();
        let features = match input {
            WindowInput::Real(features) => {
                limpet_engine::write_real(session, 0, features).map_err(|e| failed(&e))?;
                features.as_slice()
            }
            WindowInput::Integers(bytes) => {
                write_integers(session.input_mut(0), bytes);
                if self.serving.decider.needs_features() {
                    self.dequantized(bytes);
                }
                &self.features
            }
        };
        self.serving.session.run().map_err(|e| failed(&e))?;
        let output = self.serving.decider.output();
        limpet_engine::read_real(self.serving.session.as_ref(), output, &mut self.output).map_err(|e| failed(&e))?;
        self.serving
            .decider
            .decide(&self.output, features)
            .map_err(|error| (Outcome::Invalid, "output_not_finite", error.to_string()))
    }

    /// What integers stand for, where the decision compares the output with it.
    fn dequantized(&mut self, bytes: &[u8]) {
        let input = &self.serving.session.inputs()[0];
        self.features.resize(bytes.len(), 0.0);
        let Some(quantization) = input.quantization else { return };
        let signed = input.element == ElementType::I8;
        for (real, byte) in self.features.iter_mut().zip(bytes) {
            let stored = if signed { i32::from(*byte as i8) } else { i32::from(*byte) };
            *real = (stored - quantization.zero_point) as f32 * quantization.scale;
        }
    }
}

fn write_integers(input: TensorMut<'_>, bytes: &[u8]) {
    match input {
        TensorMut::U8(values) => values.copy_from_slice(bytes),
        TensorMut::I8(values) => values.iter_mut().zip(bytes).for_each(|(value, byte)| *value = *byte as i8),
        // A float graph is refused for this input kind when it is served.
        TensorMut::F32(_) => {}
    }
}

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

impl Feed {
    fn new<S: Sink + 'static>(
        plan: &PipelinePlan,
        pipeline: usize,
        model: &Model,
        source: &SourcePlan,
        context: &mut Context<'_, Worker<S>>,
    ) -> Self {
        let reader = WindowReader::new(&source.config, &plan.input, &model.serving.session.inputs()[0]);
        let reader = reader.expect("the model was opened with the same codec and graph");
        let lane = context.open(plan.lane);
        let decision = DecisionState {
            trigger: TriggerState::default(),
            publish: PublishState::default(),
            locals: plan.locals.iter().map(|_| PublishState::default()).collect(),
            serial: Serial { run: link::random_run(), seq: 0 },
        };
        let window = plan.front_end.as_ref().map_or(1, |front_end| front_end.samples_per_window() as u64);
        let front_end = plan.front_end.as_ref().map(limpet_signal::FrontEnd::stream);
        Self { pipeline, front_end, reader, window, lane, decision }
    }
}

impl DecisionState {
    fn trigger(&mut self, plan: &PipelinePlan, verdict: &Verdict, window: &Infer) -> bool {
        let Some(rule) = &plan.trigger else { return false };
        let score = match (rule.label, verdict) {
            (Some(label), Verdict::Class { scores, .. }) => scores.get(label).copied(),
            _ => verdict.score(),
        };
        score.is_some_and(|score| self.trigger.take(rule, window.span.first, plan.hop(), score, window.captured))
    }
}

/// What completing a window needs besides the stream.
struct Windowing<'a> {
    plan: &'a Plan,
    clock: &'a Clock,
    spare: &'a mut Vec<Vec<f32>>,
    key: StreamKey,
}

impl Windowing<'_> {
    /// The same, for a call that is not the last.
    fn again(&mut self) -> Windowing<'_> {
        Windowing { plan: self.plan, clock: self.clock, spare: self.spare, key: self.key }
    }

    fn buffer(&mut self, values: &[f32]) -> Vec<f32> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(values);
        buffer
    }

    /// Hands a completed window to the queue. Whatever the queue gives up for it is counted.
    fn complete<S: Sink + 'static>(
        &mut self,
        lane: Lane,
        pipeline: usize,
        window: Infer,
        context: &mut Context<'_, Worker<S>>,
    ) {
        let plan = &self.plan.pipelines[pipeline];
        plan.ledger.completed();
        let order = Order { lane, class: plan.class, deadline: window.deadline, weight: 0 };
        let mut give_up = |job: Job, outcome: Outcome| {
            plan.ledger.ended(outcome);
            if let Job::Infer(window) = job {
                recycle(self.spare, window.input);
            }
        };
        match context.push(order, Job::Infer(Box::new(window))) {
            Pushed::Waiting => {}
            Pushed::Replaced(jobs) => jobs.into_iter().for_each(|job| give_up(job, Outcome::Replaced)),
            Pushed::Refused(job) => give_up(job, Outcome::Rejected),
        }
    }
}

fn recycle(spare: &mut Vec<Vec<f32>>, input: WindowInput) {
    if let WindowInput::Real(buffer) = input
        && spare.len() < SPARE
    {
        spare.push(buffer);
    }
}

impl StreamState {
    fn complain(&self, reason: &'static str, sentence: impl FnOnce() -> String) {
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
        self.feeds.iter().map(|feed| feed.window).max().unwrap_or(0)
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
        for front_end in self.feeds.iter_mut().filter_map(|feed| feed.front_end.as_mut()) {
            front_end.reset(self.next);
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
        let mut latest = None;
        while rest.done < rest.samples.len() && (all || latest.is_none()) {
            let left = (rest.samples.len() - rest.done) / channels;
            let front_ends = self.feeds.iter().filter_map(|feed| feed.front_end.as_ref());
            let next = front_ends.map(limpet_signal::Stream::samples_to_next_window).min();
            let take = next.unwrap_or(left).min(left);
            let samples = &rest.samples[rest.done..rest.done + take * channels];
            for feed in &mut self.feeds {
                let (pipeline, lane) = (feed.pipeline, feed.lane);
                let Some(front_end) = feed.front_end.as_mut() else { continue };
                let plan = &windowing.plan.pipelines[pipeline];
                let filled = &self.filled;
                let pushed = front_end.push(samples, |window| {
                    // The message's time is that of its last sample; the window may end before it.
                    let before = Duration::from_nanos(((rest.last - window.last) as f64 * period_ns) as u64);
                    let captured = rest.captured.before(before);
                    let payload_ns = rest.payload_ns.map(|ns| ns.saturating_sub_unsigned(before.as_nanos() as u64));
                    let span = Span { first: window.first, last: window.last };
                    let infer = Infer {
                        stream: windowing.key,
                        pipeline,
                        input: WindowInput::Real(windowing.buffer(window.features)),
                        span,
                        filled: overlap(filled, span),
                        captured,
                        payload_ns,
                        deadline: captured.after(plan.deadline),
                        complete,
                        featured: windowing.clock.now(),
                        tag: rest.tag,
                    };
                    latest = latest.max(Some(infer.deadline));
                    windowing.complete(lane, pipeline, infer, context);
                });
                pushed.expect("the decoder gives whole samples");
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
        } else if let Some(deadline) = latest {
            // Behind the windows that were just completed, and before whatever comes later.
            let order = Order { lane: self.continuing, class: self.source.class, deadline, weight: 0 };
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
        let mut windows = Vec::with_capacity(1);
        for feed in &mut self.feeds {
            let Some(reader) = &mut feed.reader else { continue };
            match reader.take(&message.payload, windowing.spare.pop().unwrap_or_default()) {
                Ok((decoded, input)) => {
                    placed = Some(decoded);
                    windows.push((feed.pipeline, feed.lane, input));
                }
                Err(refusal) => {
                    let pipeline = &windowing.plan.pipelines[feed.pipeline].name;
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
        for (pipeline, lane, input) in windows {
            let infer = Infer {
                stream: windowing.key,
                pipeline,
                input,
                span,
                filled: 0,
                captured: placement.captured,
                payload_ns: placement.payload_ns,
                deadline: placement.captured.after(windowing.plan.pipelines[pipeline].deadline),
                complete,
                featured: windowing.clock.now(),
                tag: decoded.tag,
            };
            windowing.complete(lane, pipeline, infer, context);
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
