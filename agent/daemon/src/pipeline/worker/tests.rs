//! A whole worker on a played clock, with sessions that give back their input: whatever happens to it, every window has
//! one outcome, results come in order and say what was in their samples, and no model stays in use.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use limpet_depot::manifest::{InputKind, Manifest};
use limpet_depot::trial::{Before, Mode, Progress, Rules, Trial};
use limpet_depot::{Decider, Digest};
use limpet_engine::{ElementType, EngineError, Session, TensorMut, TensorRef, TensorSpec};
use limpet_runtime::queue::{Queue, Turn};
use limpet_runtime::{BatchCost, Group};
use proptest::prelude::*;

use super::*;
use crate::config;
use crate::config::codec::NumberType;
use crate::pipeline::model::Usage;
use crate::pipeline::plan::{Batching, ChannelRange, SourceKind, SourcePlan};
use crate::pipeline::publish::PublishRule;
use crate::pipeline::shadow::{Companion, before};
use crate::pipeline::stream::INGEST_COST;
use crate::pipeline::timing::{TimeSource, TimingRule};
use crate::report::SourceLedger;

const RATE: f64 = 1000.0;
const STREAMS: usize = 3;

/// Number of the version whose session takes its time: so much of its thread's.
const BUSY: u32 = 5;
const BUSY_TIME: Duration = Duration::from_micros(400);

/// Number of the version whose session is wrong: by so much.
const WRONG: u32 = 6;
const WRONG_BY: f32 = 1e6;

/// A session whose output is its input.
struct Echo {
    specs: Vec<TensorSpec>,
    values: Vec<f32>,
    takes: Duration,
    off: f32,
}

fn spec(rows: usize, length: usize) -> TensorSpec {
    TensorSpec { name: "x".into(), element: ElementType::F32, shape: vec![rows, length], quantization: None }
}

impl Session for Echo {
    fn inputs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn input_mut(&mut self, _: usize) -> TensorMut<'_> {
        TensorMut::F32(&mut self.values)
    }

    fn run(&mut self) -> Result<(), EngineError> {
        let begun = cpu_time();
        while cpu_time() - begun < self.takes {}
        self.values.iter_mut().for_each(|value| *value += self.off);
        Ok(())
    }

    fn output(&self, _: usize) -> TensorRef<'_> {
        TensorRef::F32(&self.values)
    }
}

/// A version whose windows hold so many samples of a channel, so far apart, and its model.
fn version_of(
    number: u32,
    channel: &str,
    window: usize,
    hop: usize,
    batches: bool,
) -> (Arc<Version>, Arc<Facts>, Manifest) {
    let text = format!(
        r#"
format = 1
[model]
name = "echo"
version = "{number}.0.0"
task = "regression"
summary = "Says what it hears"
license = "MIT"
[[variant]]
file = "f32.onnx"
[[input]]
kind = "series"
rate_hz = {RATE}
channels = [{{ name = "{channel}", unit = "1" }}]
window = {{ frames = {window}, hop = {hop} }}
"#
    );
    let manifest = Manifest::parse(Path::new("model.toml"), &text).unwrap();
    let InputKind::Series(series) = &manifest.inputs[0].kind else { panic!("it is a series") };
    let version = Version {
        model: "echo".into(),
        version: manifest.version.to_string().into(),
        input: manifest.inputs[0].kind.clone(),
        front_end: Some(series.front_end().unwrap()),
        trigger: None,
    };
    let cost = |size: usize| BatchCost {
        size,
        typical: Duration::from_micros(10 * size as u64),
        worst: Duration::from_micros(15 * size as u64),
    };
    let facts = Facts {
        number,
        digest: Digest::of(&number.to_le_bytes()),
        name: "echo".into(),
        engine: "test".into(),
        variant: "f32.onnx".into(),
        costs: if batches { [1, 2, 4].map(cost).to_vec() } else { vec![cost(1)] },
        mean: Duration::from_micros(10),
        memory: 1,
        input: spec(1, window),
        outputs: vec![spec(1, window)],
        usage: Usage::default(),
    };
    (Arc::new(version), Arc::new(facts), manifest)
}

fn version(number: u32, window: usize, hop: usize, batches: bool) -> (Arc<Version>, Arc<Facts>, Manifest) {
    version_of(number, "x", window, hop, batches)
}

fn model(facts: &Arc<Facts>, manifest: &Manifest) -> Model {
    let length = facts.input.elements();
    let off = if facts.number == WRONG { WRONG_BY } else { 0.0 };
    let takes = if facts.number == BUSY { BUSY_TIME } else { Duration::ZERO };
    let session = |cost: &BatchCost| -> Box<dyn Session> {
        Box::new(Echo { specs: vec![spec(cost.size, length)], values: vec![0.0; cost.size * length], takes, off })
    };
    let decider = Decider::new(manifest, &Arc::from([]), &[spec(1, length)], length).unwrap();
    Model::new(Arc::clone(facts), facts.costs.iter().map(session).collect(), decider)
}

#[derive(Default)]
struct Seen {
    results: Vec<Arc<ResultRecord>>,
    released: Vec<u32>,
    wanted: Vec<u32>,
    judged: Vec<(usize, trial::Verdict)>,
    judged_by: Vec<Arc<Watch>>,
}

impl Sink for Seen {
    fn decided(&mut self, decided: Decided<'_>) {
        self.results.push(decided.record);
    }

    fn event(&mut self, _: &'static str, message: String, _: &str, _: &str) {
        panic!("nothing here is out of range: {message}");
    }

    fn wanted(&mut self, facts: &Arc<Facts>) {
        self.wanted.push(facts.number);
    }

    fn judged(&mut self, pipeline: usize, watch: &Arc<Watch>, verdict: trial::Verdict) {
        self.judged.push((pipeline, verdict));
        self.judged_by.push(Arc::clone(watch));
    }

    fn released(&mut self, model: Model) {
        self.released.push(model.facts().number);
    }
}

/// A worker with one source and two pipelines of it, a realtime and an analytic one.
struct Plant {
    clock: Clock,
    queue: Queue<Job>,
    worker: Worker<Seen>,
    plan: Arc<Plan>,
    versions: Vec<(Arc<Version>, Arc<Facts>, Manifest)>,
    /// What each pipeline serves, as a position in the versions.
    serving: [usize; 2],
    /// Samples sent so far, and whether the stream is there.
    streams: [(u64, bool); STREAMS],
    lanes: Vec<(Lane, Group)>,
}

fn pipeline(name: &str, class: Class, deadline: Duration, lane: LanePolicy, version: &Arc<Version>) -> PipelinePlan {
    PipelinePlan {
        name: name.into(),
        source: 0,
        package: config::ModelRef::Path("echo".into()),
        version: Arc::clone(version),
        class,
        deadline,
        lane,
        batching: Batching { max: 4, delay: Duration::ZERO },
        pinned: false,
        swap: config::Swap::Warm,
        publish: PublishRule { publish: config::Publish::Every, deadband: 0.0, heartbeat: None },
        packing: crate::link::outgoing::Packing { encoding: config::Encoding::Json, max: 1, delay: Duration::ZERO },
        locals: Vec::new(),
        ledger: Arc::default(),
        streams: Mutex::default(),
    }
}

impl Plant {
    /// `deadlines` of the two pipelines, and how many windows of a stream may wait.
    fn new(deadlines: [Duration; 2], depth: usize) -> Self {
        let versions = vec![
            version(0, 8, 4, true),
            version(1, 12, 4, true),
            version(2, 6, 3, false),
            // The same features as those of the first; and the same by another front end.
            version(3, 8, 4, true),
            version_of(4, "y", 8, 2, true),
            version(BUSY, 8, 4, true),
            version(WRONG, 8, 4, true),
        ];
        let mut source = config::for_recording(Path::new("x"), 1, RATE).sources.remove(0);
        source.codec = config::Codec::Raw(config::codec::Raw { number: NumberType::F32, channels: 1, header: vec![] });
        let source = SourcePlan {
            config: source,
            timing: TimingRule { rate_hz: RATE, time: TimeSource::Arrival, max_gap: Some(Duration::MAX) },
            kind: SourceKind::Series { channels: vec![ChannelRange { unit: "1".into(), range: None }] },
            pipelines: vec![0, 1],
            class: Class::Realtime,
            deadline: deadlines[0],
            rate_declared: true,
            ledger: SourceLedger::default(),
        };
        let lane = |overflow| LanePolicy { depth, weight: usize::MAX, overflow };
        let first = &versions[0].0;
        let plan = Arc::new(Plan {
            sources: vec![Arc::new(source)],
            pipelines: vec![
                Arc::new(pipeline("fast", Class::Realtime, deadlines[0], lane(Overflow::DropOldest), first)),
                Arc::new(pipeline("slow", Class::Analytic, deadlines[1], lane(Overflow::Refuse), first)),
            ],
        });
        let clock = Clock::played(Moment(1_000_000_000));
        let policy = Policy { clock: clock.clone(), wall: Some(Wall::unknown()) };
        let mut queue = Queue::default();
        let open = LanePolicy { depth: 1000, ..lane(Overflow::Refuse) };
        let lanes = (0..STREAMS)
            .map(|_| (queue.open(open), queue.open_group(Class::Realtime, &[BatchCost::single(INGEST_COST)])))
            .collect();
        let worker = Worker::new("gw".into(), Arc::clone(&plan), policy, Seen::default());
        let mut plant =
            Self { clock, queue, worker, plan, versions, serving: [0; 2], streams: [(0, false); STREAMS], lanes };
        plant.load(0);
        (0..2).for_each(|pipeline| plant.serve(pipeline, 0, None));
        (0..STREAMS).for_each(|stream| plant.stream(stream, true));
        plant
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Worker<Seen>, &mut Context<'_, Worker<Seen>>) -> T) -> T {
        act(&mut self.worker, &mut Context::over(&mut self.queue, self.clock.now()))
    }

    fn load(&mut self, version: usize) {
        let (_, facts, manifest) = &self.versions[version];
        let model = model(facts, manifest);
        if !self.worker.models.contains_key(&facts.number) {
            self.with(|worker, context| worker.load(model, context));
        }
    }

    fn serve(&mut self, pipeline: usize, version: usize, reduced: Option<usize>) {
        self.load(version);
        let reduced = reduced.filter(|reduced| self.versions[*reduced].1.input == self.versions[version].1.input);
        let (serves, facts, _) = &self.versions[version];
        let reduced = reduced.map(|reduced| Arc::clone(&self.versions[reduced].1));
        let serve = Serve::new(pipeline, Arc::clone(serves), Arc::clone(facts), reduced, Duration::ZERO);
        self.serving[pipeline] = version;
        self.with(|worker, context| worker.serve(Arc::new(serve), context));
    }

    /// Puts what a pipeline serves on trial beside another version, unless it serves nothing.
    fn watch(&mut self, pipeline: usize, companion: usize, share: f64, mode: Mode, rules: Rules) -> Option<Arc<Watch>> {
        let serving = self.worker.serving[pipeline].clone()?;
        self.load(companion);
        let (version, facts, _) = &self.versions[companion];
        let serve = Serve::new(pipeline, Arc::clone(version), Arc::clone(facts), None, Duration::ZERO);
        let trial = Trial::new(rules, Progress::new(String::new(), mode, Before::default()));
        let companion = Companion { serve: Arc::new(serve), share };
        let watch = Arc::new(Watch::new(trial, &serving, f64::INFINITY, Some(companion)));
        let given = Arc::clone(&watch);
        self.with(|worker, context| worker.watch(pipeline, given, context));
        Some(watch)
    }

    fn stop_watching(&mut self, pipeline: usize) {
        self.with(|worker, context| worker.stop_watching(pipeline, context));
    }

    /// So many messages of so many samples to every stream, in real time by the played clock.
    fn play(&mut self, messages: usize, samples: u64) {
        for _ in 0..messages {
            self.clock.set(self.clock.now().after(Duration::from_millis(samples)));
            (0..STREAMS).for_each(|stream| self.message(stream, samples));
            self.finish();
        }
    }

    fn stream(&mut self, stream: usize, there: bool) {
        if self.streams[stream].1 == there {
            return;
        }
        self.streams[stream] = (0, there);
        // As the router does: what waits for a stream goes with it.
        self.queue.close(self.lanes[stream].0);
        let lane = LanePolicy { depth: 1000, weight: usize::MAX, overflow: Overflow::Refuse };
        self.lanes[stream].0 = self.queue.open(lane);
        let key = StreamKey(stream as u32);
        let name: Arc<str> = format!("s{stream}").into();
        self.with(|worker, context| match there {
            true => worker.add_stream(key, 0, Arc::clone(&name), name, context),
            false => worker.remove_stream(key, context),
        });
    }

    /// The next samples of a stream: each is its own index.
    fn message(&mut self, stream: usize, samples: u64) {
        let (next, there) = self.streams[stream];
        if !there {
            return;
        }
        self.streams[stream].0 += samples;
        let payload: Vec<u8> = (next..next + samples).flat_map(|index| (index as f32).to_le_bytes()).collect();
        let now = self.clock.now();
        let (lane, group) = self.lanes[stream];
        let order = Order { lane, group, deadline: now, expires: false, hold: now, weight: 0 };
        let (stream, payload) = (StreamKey(stream as u32), payload.into());
        self.queue.push(now, order, Job::Ingest(Ingest { stream, topic: 0, payload, arrived: now, missed: 0 }));
    }

    /// One turn of the queue; whether there was anything to do.
    fn turn(&mut self) -> bool {
        match self.queue.next(self.clock.now()) {
            Turn::Run(jobs) => {
                self.with(|worker, context| worker.run(jobs, context));
                true
            }
            Turn::Expired(jobs) => {
                jobs.into_iter().for_each(|job| Worker::<Seen>::give_up(job, Outcome::Expired));
                true
            }
            Turn::Wait(until) => {
                self.clock.set(until);
                true
            }
            Turn::Idle => false,
        }
    }

    /// Loads what is wanted, and works until nothing waits.
    fn finish(&mut self) {
        loop {
            while self.turn() {}
            let wanted = std::mem::take(&mut self.worker.sink.wanted);
            if wanted.is_empty() {
                return;
            }
            wanted.into_iter().for_each(|number| self.load(number as usize));
        }
    }

    /// Results by pipeline and stream, in the order in which they came.
    fn results(&self) -> BTreeMap<(&str, &str), Vec<&ResultRecord>> {
        let mut by: BTreeMap<(&str, &str), Vec<&ResultRecord>> = BTreeMap::new();
        for record in &self.worker.sink.results {
            by.entry((&record.pipeline, &record.stream)).or_default().push(record);
        }
        by
    }
}

#[derive(Debug, Clone)]
enum Step {
    Message(usize, u64),
    Turns(usize),
    Pass(u64),
    Serve(usize, usize, Option<usize>),
    Press(bool),
    Unload(usize),
    NotLoaded(usize),
    Longest(u64),
    Stream(usize, bool),
    Stop(usize),
    Watch(usize, usize, bool, f64),
    StopWatching(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..STREAMS, 1u64..40).prop_map(|(stream, samples)| Step::Message(stream, samples)),
        8 => (1usize..8).prop_map(Step::Turns),
        4 => (0u64..3000).prop_map(Step::Pass),
        2 => (0usize..2, 0usize..3, proptest::option::of(0usize..3)).prop_map(|(p, v, r)| Step::Serve(p, v, r)),
        1 => any::<bool>().prop_map(Step::Press),
        1 => (0usize..5).prop_map(Step::Unload),
        1 => (0usize..5).prop_map(Step::NotLoaded),
        1 => (0u64..100).prop_map(Step::Longest),
        1 => (0..STREAMS, any::<bool>()).prop_map(|(stream, there)| Step::Stream(stream, there)),
        1 => (0usize..2).prop_map(Step::Stop),
        2 => (0usize..2, 0usize..5, any::<bool>(), prop_oneof![Just(0.0), Just(0.2), Just(1.0)])
            .prop_map(|(pipeline, companion, shadow, share)| Step::Watch(pipeline, companion, shadow, share)),
        1 => (0usize..2).prop_map(Step::StopWatching),
    ]
}

/// A trial that goes on.
const LONG: Rules = Rules {
    windows: u64::MAX,
    time: Duration::MAX,
    agreement: 0.9,
    errors: 1.0,
    misses: 1.0,
    p99: None,
    beside: false,
};

fn mode(shadow: bool) -> Mode {
    if shadow { Mode::Shadow } else { Mode::Trial }
}

proptest! {
    #[test]
    fn every_window_has_one_outcome_and_no_model_stays_in_use(
        steps in proptest::collection::vec(step(), 1..120),
        deadlines in (100u64..20_000, 100u64..60_000),
        depth in 1usize..6,
    ) {
        let deadlines = [deadlines.0, deadlines.1].map(Duration::from_micros);
        let mut plant = Plant::new(deadlines, depth);
        let mut watches = Vec::new();
        for step in steps {
            match step {
                Step::Message(stream, samples) => plant.message(stream, samples),
                Step::Turns(turns) => _ = (0..turns).all(|_| plant.turn()),
                Step::Pass(us) => plant.clock.set(plant.clock.now().after(Duration::from_micros(us))),
                Step::Serve(pipeline, version, reduced) => plant.serve(pipeline, version, reduced),
                Step::Press(pressed) => plant.worker.press(pressed),
                Step::Unload(version) => plant.with(|worker, context| worker.unload(version as u32, context)),
                Step::NotLoaded(version) => plant.with(|worker, context| worker.not_loaded(version as u32, context)),
                Step::Longest(us) => {
                    plant.with(|worker, context| worker.set_longest(Duration::from_micros(us), context));
                }
                Step::Stream(stream, there) => plant.stream(stream, there),
                Step::Stop(pipeline) => {
                    plant.with(|worker, context| worker.stop_serving(pipeline, Outcome::Rejected, context));
                }
                Step::Watch(pipeline, companion, shadow, share) => {
                    watches.extend(plant.watch(pipeline, companion, share, mode(shadow), LONG));
                }
                Step::StopWatching(pipeline) => plant.stop_watching(pipeline),
            }
        }
        plant.finish();
        (0..2).for_each(|pipeline| plant.stop_watching(pipeline));
        for watch in &watches {
            let progress = watch.progress();
            prop_assert_eq!(progress.agreed, progress.compared, "both say what is in the samples");
        }
        let needed = |number: &u32| {
            let feeds = |stream: &StreamState| stream.feeds.iter().any(|feed| feed.uses(*number));
            plant.worker.served.contains(number) || plant.worker.streams.values().any(feeds)
        };
        prop_assert!(plant.worker.models.keys().all(needed), "what only ran in shadow is released");
        for pipeline in &plant.plan.pipelines {
            let ended: u64 = Outcome::ALL.iter().map(|outcome| pipeline.ledger.count(*outcome)).sum();
            prop_assert_eq!(pipeline.ledger.windows(), ended, "{}: every window has one outcome", &pipeline.name);
            for outcome in [Outcome::Failed, Outcome::Invalid] {
                prop_assert_eq!(pipeline.ledger.count(outcome), 0);
            }
            let results = plant.worker.sink.results.iter().filter(|record| record.pipeline == pipeline.name).count();
            prop_assert_eq!(pipeline.ledger.count(Outcome::Result), results as u64);
            let batched: u64 = pipeline.ledger.batches().map(|(_, windows)| windows).sum();
            prop_assert_eq!(batched, results as u64);
        }
        for (_, facts, _) in &plant.versions {
            prop_assert!(!facts.usage.read().1, "{} is still in use", facts.number);
        }
        for record in &plant.worker.sink.results {
            let Verdict::Regression { values } = &record.verdict else { panic!("it is a regression") };
            let expected: Vec<f32> = (record.window.first..=record.window.last).map(|index| index as f32).collect();
            prop_assert_eq!(values, &expected, "a result says what was in its samples");
        }
    }

    /// Where nothing is in a hurry and everything finds room: each window comes once, in order, whatever version it is of.
    #[test]
    fn a_swap_loses_no_window_and_doubles_none(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut plant = Plant::new([Duration::MAX; 2], 100_000);
        let mut swaps = 0;
        for step in steps {
            match step {
                Step::Message(stream, samples) => plant.message(stream, samples),
                Step::Turns(turns) => _ = (0..turns).all(|_| plant.turn()),
                // The first two versions share their hop.
                Step::Serve(pipeline, version, _) if version < 2 => {
                    swaps += usize::from(plant.serving[pipeline] != version);
                    plant.serve(pipeline, version, None);
                }
                Step::Unload(version) if version < 2 => {
                    plant.with(|worker, context| worker.unload(version as u32, context));
                }
                Step::Longest(us) => {
                    plant.with(|worker, context| worker.set_longest(Duration::from_micros(us), context));
                }
                Step::Watch(pipeline, companion, shadow, share) => {
                    plant.watch(pipeline, companion, share, mode(shadow), LONG);
                }
                Step::StopWatching(pipeline) => plant.stop_watching(pipeline),
                _ => {}
            }
        }
        plant.finish();
        for ((pipeline, stream), results) in plant.results() {
            let sent = plant.streams.iter().enumerate().find(|(index, _)| *stream == format!("s{index}")).unwrap().1.0;
            let ends: Vec<u64> = results.iter().map(|record| record.window.last).collect();
            let expected: Vec<u64> = (7..sent).step_by(4).collect();
            prop_assert_eq!(ends, expected, "{} of {} after {} swaps", pipeline, stream, swaps);
        }
    }
}

#[test]
fn a_companion_hears_the_windows_that_are_served_and_nobody_hears_it() {
    for (companion, shadow) in [(3, false), (3, true), (4, false), (4, true)] {
        let mut plant = Plant::new([Duration::MAX; 2], 100_000);
        let watch = plant.watch(0, companion, 1.0, mode(shadow), LONG).unwrap();
        plant.play(200, 16);
        let (progress, figures) = (watch.progress(), watch.figures());
        let served = plant.plan.pipelines[0].ledger.count(Outcome::Result);
        assert_eq!(served, 3 * (200 * 16 / 4 - 1));
        assert_eq!(plant.worker.sink.results.len() as u64, 2 * served, "two pipelines, and no third");
        // A front end of its own begins with a window of its own.
        assert_eq!(figures.ran + figures.skipped, served, "{figures:?}");
        assert!(figures.ran > served * 9 / 10, "{figures:?}");
        assert_eq!((progress.pairs, progress.windows), (figures.ran, if shadow { figures.ran } else { served }));
        assert!(progress.agreed > 0 && progress.agreed == progress.compared, "{progress:?}");
        assert_eq!(before(&plant.plan.pipelines[0].ledger), Before { windows: served, errors: 0, misses: 0 });
        assert!(plant.worker.models.contains_key(&(companion as u32)));
        plant.stop_watching(0);
        assert_eq!(plant.worker.sink.released, [companion as u32]);
        assert_eq!(plant.worker.sink.judged, []);
    }
}

#[test]
fn a_companion_keeps_to_its_share_of_the_time() {
    let mut plant = Plant::new([Duration::MAX; 2], 100_000);
    let (begun, share) = (plant.clock.now(), 0.05);
    // Three streams of 250 windows a second would take 0.3 of a core.
    let watch = plant.watch(0, BUSY as usize, share, Mode::Trial, LONG).unwrap();
    plant.play(60, 16);
    let (figures, elapsed) = (watch.figures(), plant.clock.now().since(begun));
    let served = plant.plan.pipelines[0].ledger.count(Outcome::Result);
    assert_eq!(figures.ran + figures.skipped, served);
    assert!(figures.ran > 0 && figures.skipped > served / 2, "{figures:?} in {elapsed:?}");
    // One run may turn out longer than the one before.
    let most = elapsed.mul_f64(share) + 3 * BUSY_TIME;
    assert!(figures.spent <= most, "{figures:?}, not {most:?} in {elapsed:?}");
    let none = plant.watch(0, 3, 0.0, Mode::Trial, LONG).unwrap();
    plant.play(10, 16);
    assert_eq!(
        (none.figures().ran, none.progress().windows),
        (0, 3 * 10 * 4),
        "the serving version is watched all the same"
    );
}

#[test]
fn a_companion_makes_room_for_realtime_work_and_pressure() {
    let mut plant = Plant::new([Duration::MAX; 2], 100_000);
    let watch = plant.watch(0, 3, 1.0, Mode::Shadow, LONG).unwrap();
    plant.with(|worker, context| worker.set_longest(Duration::from_micros(1), context));
    plant.play(10, 16);
    assert_eq!(watch.figures().ran, 0, "no analytic job of its length finds room");
    plant.with(|worker, context| worker.set_longest(Duration::MAX, context));
    plant.worker.press(true);
    plant.play(10, 16);
    assert_eq!(watch.figures().ran, 0, "and none runs under pressure");
    plant.worker.press(false);
    plant.with(|worker, context| worker.unload(3, context));
    plant.play(10, 16);
    assert_eq!((watch.figures().ran, plant.worker.sink.wanted.len()), (0, 0), "it asks nobody to load it");
    plant.load(3);
    plant.play(10, 16);
    assert!(watch.figures().ran > 0);
}

#[test]
fn a_verdict_is_told_once_at_the_window_that_decides_it() {
    let mut plant = Plant::new([Duration::MAX; 2], 100_000);
    let rules = Rules { windows: 30, time: Duration::ZERO, ..LONG };
    let watch = plant.watch(0, 3, 0.0, Mode::Trial, rules).unwrap();
    plant.play(5, 8);
    assert_eq!(plant.worker.sink.judged, [], "27 windows");
    plant.play(20, 8);
    assert_eq!(plant.worker.sink.judged, [(0, trial::Verdict::Passed)]);
    assert_eq!(watch.progress().windows, 30);
    // A restart in between, and the trial was over: it is told again to the loader that begins anew.
    let again = Trial::new(rules, watch.progress());
    let serving = plant.worker.serving[0].clone().unwrap();
    let again = Arc::new(Watch::new(again, &serving, 0.0, None));
    let given = Arc::clone(&again);
    plant.with(|worker, context| worker.watch(0, given, context));
    assert_eq!(plant.worker.sink.judged.len(), 2);
    // Each by the watch that it is of: a verdict is no word about what is on trial there by the time that it is heard.
    let by = &plant.worker.sink.judged_by;
    assert!(Arc::ptr_eq(&by[0], &watch) && Arc::ptr_eq(&by[1], &again));
}

#[test]
fn windows_that_wait_too_long_are_misses_of_the_version_on_trial() {
    let mut plant = Plant::new([Duration::from_millis(1), Duration::MAX], 100_000);
    let watch = plant.watch(0, 3, 0.0, Mode::Trial, Rules { misses: 0.1, ..LONG }).unwrap();
    for _ in 0..6 {
        plant.clock.set(plant.clock.now().after(Duration::from_millis(700)));
        (0..STREAMS).for_each(|stream| plant.message(stream, 16));
        plant.clock.set(plant.clock.now().after(Duration::from_millis(20)));
        plant.finish();
    }
    let progress = watch.progress();
    assert!(progress.misses.count > 0 && progress.misses.seconds > 1, "{progress:?}");
    let judged = plant.worker.sink.judged.clone();
    assert!(matches!(&judged[..], [(0, trial::Verdict::Breach(why))] if why.contains("late or not run")), "{judged:?}");
}

#[test]
fn a_version_with_the_same_features_takes_over_with_the_next_window() {
    let mut plant = Plant::new([Duration::MAX; 2], 100_000);
    plant.play(4, 10);
    plant.serve(0, 3, None);
    plant.play(4, 10);
    plant.serve(0, 0, None);
    plant.play(4, 10);
    for results in plant.results().iter().filter(|((pipeline, _), _)| *pipeline == "fast").map(|(_, results)| results) {
        let versions: Vec<(u64, &str)> = results.iter().map(|record| (record.window.last, &*record.version)).collect();
        let expected: Vec<(u64, &str)> =
            (7..120).step_by(4).map(|last| (last, if (40..80).contains(&last) { "3.0.0" } else { "0.0.0" })).collect();
        assert_eq!(versions, expected);
    }
}

#[test]
fn a_version_that_answers_otherwise_is_taken_back_within_one_window() {
    let mut plant = Plant::new([Duration::MAX; 2], 100_000);
    plant.play(4, 8);
    plant.serve(0, WRONG as usize, None);
    let watch = plant.watch(0, 0, 1.0, Mode::Trial, LONG).unwrap();
    let messages = (1..100).find(|_| {
        plant.play(1, 4);
        !plant.worker.sink.judged.is_empty()
    });
    let judged = plant.worker.sink.judged.clone();
    assert!(matches!(&judged[..], [(0, trial::Verdict::Breach(why))] if why.contains("it agrees")), "{judged:?}");
    assert!(watch.progress().compared >= 32 && watch.progress().agreed == 0, "{:?}", watch.progress());
    // What a loader does when it hears of it.
    plant.serve(0, 0, None);
    plant.stop_watching(0);
    assert_eq!(plant.worker.sink.released, [WRONG], "the old version serves, and the new one is let go");
    plant.play(1, 4);
    for (_, results) in plant.results().iter().filter(|((pipeline, _), _)| *pipeline == "fast") {
        let ends: Vec<u64> = results.iter().map(|record| record.window.last).collect();
        let sent = 4 * 8 + 4 * (messages.unwrap() + 1);
        assert_eq!(ends, (7..sent).step_by(4).collect::<Vec<u64>>(), "no window is missing");
        let (last, before) = results.split_last().unwrap();
        assert_eq!((&*last.version, &*before.last().unwrap().version), ("0.0.0", "6.0.0"));
    }
}
