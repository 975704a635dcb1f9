//! What a worker thread does: messages to windows to results.
//!
//! A worker owns its models and the state of its streams; nobody else touches them, so there is no lock between a
//! message and its result. The same code runs under the pool's threads and, on a played clock, under `limpet try`.
//!
//! Every completed window ends in exactly one outcome; the ledger of its stream counts it here, or where the queue
//! gives the window up.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use limpet_depot::trial;
use limpet_runtime::queue::Pushed;
use limpet_runtime::{Class, Clock, Context, Handler, Lane, LanePolicy, Ledger, Moment, Order, Outcome, Overflow};
use limpet_wire::result::{LatencyUs, ResultRecord, Span, Verdict};
use tokio::sync::oneshot;

use super::groups::Groups;
use super::input::WindowInput;
use super::model::{Facts, Failure, InFlight, Model, Stored};
use super::observe::{Observation, cpu_time};
use super::plan::{PipelinePlan, Plan, Version};
use super::shadow::{FeedWatch, Heard, How, Shadow, Watch, Watched};
use super::stream::{Feed, Serve, StreamState, Windowing, recycle};
use crate::wall::Wall;

/// One row of every output of a model, in the graph's own types; or how the request ended.
pub type Answer = Result<Vec<Stored>, Outcome>;

/// One stream of one worker, numbered over the whole agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey(pub u32);

/// Work for a worker.
pub enum Job {
    /// One message of one stream.
    Ingest(Ingest),
    /// The rest of a message that completes several windows.
    Continue(StreamKey),
    /// One window, or one row of a request.
    Infer(Infer),
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

/// One input on its way to the session.
pub struct Infer {
    pub(super) model: InFlight,
    pub(super) input: WindowInput,
    pub(super) deadline: Moment,
    pub(super) origin: Origin,
}

impl Infer {
    pub(super) fn take_input(&mut self) -> WindowInput {
        std::mem::replace(&mut self.input, WindowInput::Integers(Vec::new()))
    }
}

/// Who wants to know.
pub(super) enum Origin {
    /// A stream's decision.
    Window(Box<Window>),
    /// Somebody who waits.
    Request(oneshot::Sender<Answer>),
    /// A version in shadow.
    Shadow(Box<Shadow>),
}

/// Where a window comes from.
pub(super) struct Window {
    pub stream: StreamKey,
    pub pipeline: usize,
    pub plan: Arc<PipelinePlan>,
    pub version: Arc<Version>,
    pub ledger: Arc<Ledger>,
    pub span: Span,
    pub filled: u64,
    pub captured: Moment,
    pub payload_ns: Option<i64>,
    /// When the window was complete, and when its features were.
    pub complete: Moment,
    pub featured: Moment,
    pub tag: Option<u64>,
    /// Who hears how it ends, if its version is watched.
    pub watch: Option<Arc<Watch>>,
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

/// Where results go, and who hears of what the worker does.
pub trait Sink: Send {
    /// Takes a result. Must not block.
    fn decided(&mut self, decided: Decided<'_>);

    /// Something that a person should know: a word, a sentence, and the stream it is about.
    fn event(&mut self, kind: &'static str, message: String, source: &str, stream: &str);

    /// A stream has been measured.
    fn observed(&mut self, _observation: Observation) {}

    /// Windows wait for this model, which is not loaded.
    fn wanted(&mut self, _facts: &Arc<Facts>) {}

    /// A model is about to run, for this pipeline or for a request.
    fn begins(&mut self, _facts: &Arc<Facts>, _pipeline: Option<&Arc<PipelinePlan>>) {}

    /// It has ended.
    fn ends(&mut self) {}

    /// The trial of a pipeline came to its end: once, from the worker that saw the window that decided it. By the time
    /// that anybody hears of it, another version may be on trial there.
    fn judged(&mut self, _pipeline: usize, _watch: &Arc<Watch>, _verdict: trial::Verdict) {}

    /// A model is not needed any more. It may take a while to drop.
    fn released(&mut self, _model: Model) {}
}

/// How the worker treats time.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What time it is.
    pub clock: Clock,
    /// UTC, where it does not follow the kernel's clock.
    pub wall: Option<Wall>,
}

/// The handler of one worker thread.
pub struct Worker<S> {
    gateway: Arc<str>,
    plan: Arc<Plan>,
    policy: Policy,
    sink: S,
    streams: HashMap<StreamKey, StreamState>,
    models: HashMap<u32, Model>,
    /// What each pipeline serves, by its position in the plan.
    serving: Vec<Option<Arc<Serve>>>,
    /// What is on trial, by pipeline, and whether anything is.
    watched: Vec<Option<Watched>>,
    watching: bool,
    /// Numbers of the models that some pipeline serves, or that run in shadow.
    served: HashSet<u32>,
    groups: Groups,
    /// Whether pipelines run their reduced variants.
    pressed: bool,
    /// Whether models are on their way out.
    changing: bool,
    /// Models to ask for.
    wanted: Vec<Arc<Facts>>,
    /// Where requests wait, once there was one.
    requests: Option<Lane>,
    /// Buffers of windows that are done, for the next ones.
    spare: Vec<Vec<f32>>,
    wants: Vec<bool>,
}

/// Rows of requests that may wait.
const REQUESTS: LanePolicy = LanePolicy { depth: 1024, weight: usize::MAX, overflow: Overflow::Refuse };

impl<S: Sink + 'static> Worker<S> {
    /// A worker without streams and models.
    pub fn new(gateway: Arc<str>, plan: Arc<Plan>, policy: Policy, sink: S) -> Self {
        let serving = plan.pipelines.iter().map(|_| None).collect();
        let watched = plan.pipelines.iter().map(|_| None).collect();
        Self {
            gateway,
            plan,
            policy,
            sink,
            streams: HashMap::new(),
            models: HashMap::new(),
            serving,
            watched,
            watching: false,
            served: HashSet::new(),
            groups: Groups::default(),
            pressed: false,
            changing: false,
            wanted: Vec::new(),
            requests: None,
            spare: Vec::new(),
            wants: Vec::new(),
        }
    }

    /// The sink, for whoever owns the worker.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// A model is there from now on; what waits for it goes on.
    pub fn load(&mut self, model: Model, context: &mut Context<'_, Self>) {
        let number = model.facts().number;
        self.models.insert(number, model);
        self.groups.set_loaded(number, true, context);
    }

    /// Gives a model up for another, though windows may still want it; those wait.
    pub fn unload(&mut self, number: u32, context: &mut Context<'_, Self>) {
        if let Some(model) = self.models.remove(&number) {
            if self.watching {
                self.streams.values_mut().for_each(|stream| stream.stop_waiting_in_shadow(number, context));
            }
            self.groups.set_loaded(number, false, context);
            let facts = Arc::clone(model.facts());
            self.sink.released(model);
            if facts.usage.read().1 && self.groups.ask(number) {
                self.sink.wanted(&facts);
            }
        }
    }

    /// A model that was asked for cannot be loaded.
    pub fn not_loaded(&mut self, number: u32, context: &mut Context<'_, Self>) {
        self.groups.reject(number, context);
    }

    /// A pipeline serves this from now on. Streams that are there start it from rest; where another version is heard,
    /// it takes over at its first full window, or at once where that makes the same features.
    pub fn serve(&mut self, serve: Arc<Serve>, context: &mut Context<'_, Self>) {
        let plan = &self.plan.pipelines[serve.pipeline];
        for stream in self.streams.values_mut().filter(|stream| stream.source.pipelines.contains(&serve.pipeline)) {
            stream.serve(plan, &serve, context);
            if let Some(watched) = &self.watched[serve.pipeline] {
                stream.watch(serve.pipeline, &watched.watch, context);
            }
        }
        let pipeline = serve.pipeline;
        self.set_serving(pipeline, Some(serve), context);
    }

    /// A pipeline serves nothing from now on; its windows that wait are given up as `outcome`.
    pub fn stop_serving(&mut self, pipeline: usize, outcome: Outcome, context: &mut Context<'_, Self>) {
        for stream in self.streams.values_mut() {
            stream.stop_serving(pipeline, outcome, context);
        }
        self.set_serving(pipeline, None, context);
    }

    fn set_serving(&mut self, pipeline: usize, serve: Option<Arc<Serve>>, context: &mut Context<'_, Self>) {
        self.serving[pipeline] = serve;
        self.count_served(context);
    }

    fn count_served(&mut self, context: &mut Context<'_, Self>) {
        let companions = self.watched.iter().flatten().filter_map(|watched| watched.watch.companion());
        let companions = companions.map(|companion| &companion.serve);
        self.served = self.serving.iter().flatten().chain(companions).flat_map(|serve| serve.models()).collect();
        self.release_unused(context);
    }

    /// A pipeline's version is on trial from now on, in the place of any other that was. The models of the companion
    /// count as used until [`Worker::stop_watching`], though it does not ask for them: load them before or after.
    ///
    /// Call it when the version that the watch calls serving is the one given to [`Worker::serve`] last. Windows of
    /// the version before that, which may still come, are not watched.
    pub fn watch(&mut self, pipeline: usize, watch: Arc<Watch>, context: &mut Context<'_, Self>) {
        for stream in self.streams.values_mut() {
            stream.stop_watching(pipeline, context);
            stream.watch(pipeline, &watch, context);
        }
        self.watched[pipeline] = Some(Watched::new(watch, self.policy.clock.now()));
        self.watching = true;
        self.count_served(context);
        self.tell_news();
    }

    /// A pipeline serves this from now on, and is watched. Both at once: in between, a model that one of the two versions
    /// needs, and needs in another part from now on, would be released.
    pub fn serve_watched(&mut self, serve: Arc<Serve>, watch: Arc<Watch>, context: &mut Context<'_, Self>) {
        let pipeline = serve.pipeline;
        self.streams.values_mut().for_each(|stream| stream.stop_watching(pipeline, context));
        self.watched[pipeline] = Some(Watched::new(watch, self.policy.clock.now()));
        self.watching = true;
        self.serve(serve, context);
        self.tell_news();
    }

    /// A pipeline's version is not on trial any more. Models that only the companion needed are released.
    pub fn stop_watching(&mut self, pipeline: usize, context: &mut Context<'_, Self>) {
        self.streams.values_mut().for_each(|stream| stream.stop_watching(pipeline, context));
        self.watched[pipeline] = None;
        self.watching = self.watched.iter().any(Option::is_some);
        self.count_served(context);
    }

    fn tell_news(&mut self) {
        for (pipeline, watched) in self.watched.iter().enumerate() {
            let Some(Watched { watch, .. }) = watched else { continue };
            if let Some(verdict) = watch.news() {
                self.sink.judged(pipeline, watch, verdict);
            }
        }
    }

    /// Pipelines with a reduced variant run that, or no longer.
    pub fn press(&mut self, pressed: bool) {
        self.pressed = pressed;
    }

    /// The longest analytic job that the realtime work here leaves room for.
    pub fn set_longest(&mut self, longest: Duration, context: &mut Context<'_, Self>) {
        self.groups.set_longest(longest, context);
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
        let source = &self.plan.sources[source];
        let mut stream = StreamState::new(source, name, topic, context);
        for pipeline in &source.pipelines {
            if let Some(serve) = &self.serving[*pipeline] {
                stream.serve(&self.plan.pipelines[*pipeline], serve, context);
            }
            if let Some(watched) = &self.watched[*pipeline] {
                stream.watch(*pipeline, &watched.watch, context);
            }
        }
        self.streams.insert(key, stream);
    }

    /// A stream that has been silent for too long. What it has in the queue runs no more.
    pub fn remove_stream(&mut self, key: StreamKey, context: &mut Context<'_, Self>) {
        if let Some(stream) = self.streams.remove(&key) {
            stream.close(context);
            self.release_unused(context);
        }
    }

    /// Lets go of the models that nothing here needs any more, and remembers whether there will be more of them: while
    /// a version waits for its first full window, and while the last windows of an old one are under way.
    fn release_unused(&mut self, context: &mut Context<'_, Self>) {
        let needed = |number: u32| {
            self.served.contains(&number)
                || self.streams.values().any(|stream| stream.feeds.iter().any(|feed| feed.uses(number)))
        };
        let unused: Vec<u32> = self.models.keys().copied().filter(|number| !needed(*number)).collect();
        self.changing = self.streams.values().any(|stream| stream.feeds.iter().any(Feed::changes));
        for number in unused {
            if self.models[&number].facts().usage.read().1 {
                self.changing = true;
            } else {
                self.unload(number, context);
                self.groups.forget(number, context);
            }
        }
    }

    fn ingest(&mut self, message: Ingest, context: &mut Context<'_, Self>) {
        self.with_stream(message.stream, |stream, windowing, sink| stream.ingest(&message, windowing, sink, context));
    }

    fn resume(&mut self, key: StreamKey, context: &mut Context<'_, Self>) {
        self.with_stream(key, |stream, windowing, _| stream.resume(windowing, context));
    }

    fn with_stream(&mut self, key: StreamKey, act: impl FnOnce(&mut StreamState, Windowing<'_>, &mut S)) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let windowing = Windowing {
            clock: &self.policy.clock,
            spare: &mut self.spare,
            groups: &mut self.groups,
            pressed: self.pressed,
            key,
            wanted: &mut self.wanted,
            watched: &mut self.watched,
        };
        act(stream, windowing, &mut self.sink);
        self.wanted.drain(..).for_each(|facts| self.sink.wanted(&facts));
    }

    /// Runs a batch; all of it is for one model.
    fn infer(&mut self, batch: Vec<Infer>) {
        let Some(first) = batch.first() else { return };
        let facts = Arc::clone(first.model.facts());
        let Some(model) = self.models.get_mut(&facts.number) else {
            // Its groups are blocked while it is away, so none of it should come here.
            return batch.into_iter().for_each(|infer| Self::give_up(Job::Infer(infer), Outcome::Rejected));
        };
        let unheard = |infer: &Infer| matches!(&infer.origin, Origin::Request(answer) if answer.is_closed());
        if batch.iter().all(unheard) {
            return;
        }
        let started = self.policy.clock.now();
        let pipeline = match &first.origin {
            Origin::Window(window) => Some(&window.plan),
            Origin::Shadow(shadow) => Some(&shadow.plan),
            Origin::Request(_) => None,
        };
        // A window in shadow always runs alone.
        let begun = matches!(first.origin, Origin::Shadow(_)).then(cpu_time);
        self.sink.begins(&facts, pipeline);
        let ran = model.run(batch.iter().map(|infer| &infer.input));
        self.sink.ends();
        let computed = self.policy.clock.now();
        let size = batch.len();
        for (row, mut infer) in batch.into_iter().enumerate() {
            let model = self.models.get_mut(&facts.number).expect("nothing here unloads it");
            match infer.origin {
                Origin::Window(window) => {
                    window.ledger.batch(size);
                    let verdict = ran.clone().and_then(|()| model.verdict(row, &infer.input));
                    let heard = window.watch.as_ref().map(|_| heard(window.span.last, &verdict, model, row));
                    let late = self.conclude(&window, &facts, verdict, infer.deadline, started, computed);
                    if let Some(heard) = heard {
                        let how = How { late, started, computed, input: &infer.input, spec: &facts.input };
                        self.watched_window(&window, heard, how);
                    }
                }
                Origin::Shadow(shadow) => {
                    let verdict = ran.clone().and_then(|()| model.verdict(row, &infer.input));
                    let heard = heard(shadow.last, &verdict, model, row);
                    let how = How { late: false, started, computed, input: &infer.input, spec: &facts.input };
                    self.shadow_window(&shadow, heard, how);
                    let spent = begun.map_or(Duration::ZERO, |begun| cpu_time().saturating_sub(begun));
                    if let Some(watched) = &mut self.watched[shadow.pipeline] {
                        watched.ran(shadow.set_aside, spent);
                    }
                }
                Origin::Request(answer) => {
                    let given = ran.as_ref().map(|()| model.outputs(row)).map_err(|failure| failure.outcome);
                    // Whoever asked may have gone.
                    let _ = answer.send(given);
                }
            }
            recycle(&mut self.spare, std::mem::replace(&mut infer.input, WindowInput::Integers(Vec::new())));
        }
        // An old version's last windows, or a request to a model that no pipeline here serves.
        self.changing |= !self.served.contains(&facts.number);
    }

    /// Somebody asks what a model says of these inputs, as analytic work.
    pub fn request(
        &mut self,
        facts: &Arc<Facts>,
        rows: Vec<(WindowInput, oneshot::Sender<Answer>)>,
        deadline: Moment,
        context: &mut Context<'_, Self>,
    ) {
        if !self.groups.leaves_room(facts) {
            // It would make realtime windows late that were admitted without it.
            return rows.into_iter().for_each(|(_, answer)| _ = answer.send(Err(Outcome::Rejected)));
        }
        let lane = *self.requests.get_or_insert_with(|| context.open(REQUESTS));
        // With the windows of analytic pipelines, where they take batches of any size.
        let group = self.groups.of(facts, Class::Analytic, usize::MAX, context);
        let now = self.policy.clock.now();
        if self.groups.ask(facts.number) {
            self.sink.wanted(facts);
        }
        for (input, answer) in rows {
            let order = Order { lane, group, deadline, expires: true, hold: Moment(0), weight: 0 };
            let (model, origin) = (InFlight::new(facts, now), Origin::Request(answer));
            if let Pushed::Refused(job) = context.push(order, Job::Infer(Infer { model, input, deadline, origin })) {
                Self::give_up(job, Outcome::Rejected);
            }
        }
    }

    /// Ends a window. Says whether it is a result that came late.
    fn conclude(
        &mut self,
        window: &Window,
        facts: &Facts,
        verdict: Result<Verdict, Failure>,
        deadline: Moment,
        started: Moment,
        computed: Moment,
    ) -> bool {
        let Window { plan, version, ledger, .. } = window;
        let stream = self.streams.get_mut(&window.stream);
        let feed = stream.and_then(|stream| {
            let StreamState { name, source, feeds, .. } = stream;
            let feed = feeds.iter_mut().find(|feed| feed.pipeline == window.pipeline)?;
            Some((name, source, feed))
        });
        let Some((stream, source, feed)) = feed else {
            // A stream takes its waiting windows with it when it goes, so none of it should come here.
            ledger.ended(Outcome::Failed);
            return false;
        };
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(Failure { outcome, reason, sentence }) => {
                ledger.ended(outcome);
                let sentence = || format!("pipeline {}: {sentence}", plan.name);
                source.ledger.complain(source.name(), stream, reason, 1, sentence);
                return false;
            }
        };
        let decision = &mut feed.decision;
        let trigger = decision.trigger(window, &verdict);
        let published = decision.publish.selects(&plan.publish, &verdict, trigger, started);
        self.wants.clear();
        let locals = decision.locals.iter_mut().zip(&plan.locals);
        self.wants.extend(locals.map(|(state, local)| state.selects(&local.rule, &verdict, trigger, started)));
        let serial = published.then(|| {
            decision.serial.seq += 1;
            decision.serial
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
        let late = decided > deadline;
        ledger.record([latency.wait, latency.features, latency.queue, latency.compute, latency.decide], late);
        ledger.ended(Outcome::Result);
        let record = ResultRecord {
            serial,
            gateway: Arc::clone(&self.gateway),
            pipeline: Arc::clone(&plan.name),
            stream: Arc::clone(stream),
            model: Arc::clone(&version.model),
            version: Arc::clone(&version.version),
            engine: Arc::clone(&facts.engine),
            variant: Arc::clone(&facts.variant),
            captured,
            clock,
            window: window.span,
            filled: window.filled,
            verdict,
            trigger,
            latency,
            late,
            tag: window.tag,
        };
        self.sink.decided(Decided {
            pipeline: plan,
            record: Arc::new(record),
            published,
            locals: &self.wants,
            deadline,
            now: decided,
        });
        late
    }

    fn watch_of(&mut self, stream: StreamKey, pipeline: usize) -> Option<&mut FeedWatch> {
        let feeds = &mut self.streams.get_mut(&stream)?.feeds;
        feeds.iter_mut().find(|feed| feed.pipeline == pipeline)?.watch.as_deref_mut()
    }

    /// A window of a watched version has ended.
    fn watched_window(&mut self, window: &Window, heard: Heard, how: How<'_>) {
        // It may be a window of a watch that was followed by another.
        let watch = window.watch.as_ref();
        let same = |feed: &&mut FeedWatch| watch.is_some_and(|watch| Arc::ptr_eq(watch, &feed.watch));
        if let Some(feed) = self.watch_of(window.stream, window.pipeline).filter(same) {
            feed.served(heard, how);
        }
    }

    /// A window in shadow has ended, and nobody but the judge hears of it.
    fn shadow_window(&mut self, shadow: &Shadow, heard: Heard, how: How<'_>) {
        let same = |feed: &&mut FeedWatch| Arc::ptr_eq(&shadow.watch, &feed.watch);
        if let Some(feed) = self.watch_of(shadow.stream, shadow.pipeline).filter(same) {
            feed.shadowed(heard, how);
        }
    }
}

/// What a model says of a window, for the judge.
fn heard(last: u64, verdict: &Result<Verdict, Failure>, model: &Model, row: usize) -> Heard {
    let output = if verdict.is_ok() { model.fingerprint(row) } else { 0 };
    Heard { last, verdict: verdict.clone().map_err(|failure| failure.sentence), output }
}

impl<S: Sink + 'static> Handler for Worker<S> {
    type Job = Job;

    fn run(&mut self, jobs: Vec<Job>, context: &mut Context<'_, Self>) {
        let mut batch = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                Job::Ingest(message) => self.ingest(message, context),
                Job::Continue(stream) => self.resume(stream, context),
                Job::Infer(infer) => batch.push(infer),
            }
        }
        self.infer(batch);
        if self.watching {
            self.tell_news();
        }
        if self.changing {
            self.release_unused(context);
        }
    }

    fn give_up(job: Job, outcome: Outcome) {
        match job {
            // A message that finds no place is a gap, and the router counts it as one.
            Job::Ingest(_) | Job::Continue(_) => {}
            Job::Infer(infer) => match infer.origin {
                Origin::Window(window) => {
                    window.ledger.ended(outcome);
                    if let Some(watch) = &window.watch {
                        watch.gave_up();
                    }
                }
                Origin::Shadow(shadow) => shadow.watch.skip(),
                // Whoever asked may have gone.
                Origin::Request(answer) => _ = answer.send(Err(outcome)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
