//! `limpet try`: a recording through the very same path.
//!
//! The recording is cut into messages and goes through decoder, windows, features, queue, session and decision as a
//! sensor's would. On the played clock the queue is as long as it must be and nothing expires; with `--realtime` the
//! messages come at the recording's own pace, to worker threads and through the queue that the class would have.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use limpet_depot::manifest::{InputKind, Series};
use limpet_depot::{Options, Package};
use limpet_runtime::queue::{Queue, Turn};
use limpet_runtime::{
    BatchCost, Class, Clock, Context, Handler as _, LanePolicy, Moment, Order, Outcome, Overflow, Pool,
};
use limpet_wire::result::{ResultRecord, Verdict};

use crate::cli::{Expectation, TryArgs};
use crate::config::{self, Fraction, ModelRef};
use crate::console::Reader;
use crate::library::{Opened, Place};
use crate::pipeline::model::Model;
use crate::pipeline::plan::{Misfit, Plan};
use crate::pipeline::stream::{INGEST_COST, Serve};
use crate::pipeline::worker::{Decided, Ingest, Job, Policy, Sink, StreamKey, Worker};
use crate::serve::{Proved, open};
use crate::wall::Wall;
use crate::{CliError, console};

/// Samples in one message are at most this long.
const MESSAGE: Duration = Duration::from_millis(20);
/// What a trigger without a label is about, for `--expect`.
const ANOMALY: &str = "anomaly";
/// A lane that loses nothing.
const UNBOUNDED: LanePolicy = LanePolicy { depth: usize::MAX, weight: usize::MAX, overflow: Overflow::Refuse };
/// How long the last windows of a real-time run may take.
const DRAIN: Duration = Duration::from_secs(10);

/// Plays a recording.
///
/// # Errors
/// What is wrong with the package or the recording, and [`CliError::No`] if an expectation was not met.
pub fn play(args: &TryArgs) -> Result<(), CliError> {
    let package = Package::open(&args.package).map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    let package = Arc::new(package);
    let InputKind::Series(series) = package.manifest().inputs[0].kind.clone() else {
        return Err(CliError::Usage(format!(
            "{}: its input is '{}'; recordings of samples can be tried with models of kind 'series'",
            args.package.display(),
            package.manifest().inputs[0].kind.name()
        )));
    };
    let recording = read(args, &series)?;
    let config = configuration(args, &series);
    let model = ModelRef::Path(args.package.clone());
    let opened =
        Opened { model: model.clone(), place: Place::Path(args.package.clone()), package: Arc::clone(&package) };
    let packages = [(model, opened)].into();
    let misfits =
        |misfits: Vec<Misfit>| CliError::configuration(misfits.into_iter().map(|misfit| misfit.text).collect());
    let plan = Plan::new(&config, &packages).map_err(misfits)?;
    // On the played clock the queue loses nothing.
    let plan = if args.realtime { Arc::new(plan) } else { plan.with_lanes(UNBOUNDED) };
    let trigger = plan.pipelines[0].version.trigger.as_ref().map(|rule| match rule.label {
        Some(label) => package.labels()[label].as_str(),
        None => ANOMALY,
    });
    let expectations = Expectations::new(&args.expect, trigger, package.labels())?;
    let engines = limpet_engine::engines();
    let proved = open::prove_for_now(&package, &engines, &Options::default())?;
    let facts = open::look(&package, &proved, &proved.serving, 1, &engines, 0)?;
    let graph = proved.open_graph(&proved.serving, &package, &engines).map_err(|error| anyhow!(error))?;
    let model = open::load(&package, graph.as_ref(), &facts)?;
    let version = Arc::clone(&plan.pipelines[0].version);
    let served = Serve::new(0, version, facts, None, Duration::ZERO);
    let serving = (model, Arc::new(served));

    let mut judge = Judge { args, rate_hz: series.rate_hz, results: 0, expectations, reader: Reader::There };
    let mut drained = true;
    if args.realtime {
        let (results, sensor) = in_real_time(&plan, serving, &series, &recording)?;
        for record in results {
            if !judge.take(&record)? {
                return Ok(());
            }
        }
        drained = sensor.join().map_err(|_| anyhow!("the thread that plays the recording panicked"))?;
    } else {
        for record in on_a_played_clock(&plan, serving, &series, &recording) {
            if !judge.take(&record)? {
                return Ok(());
            }
        }
    }
    judge.summary(&plan, &series, recording.len() / series.channels.len(), &proved, drained)
}

/// The configuration that a recording is played with: one source, one pipeline that publishes everything.
fn configuration(args: &TryArgs, series: &Series) -> config::Config {
    config::for_recording(&args.package, series.channels.len(), series.rate_hz)
}

fn message_samples(series: &Series) -> usize {
    ((series.rate_hz * MESSAGE.as_secs_f64()) as usize).max(1)
}

/// The messages of a recording: the moment of their last sample, and their payload.
fn messages<'a>(series: &Series, recording: &'a [f32]) -> impl Iterator<Item = (Moment, Bytes)> + 'a {
    let (channels, rate_hz) = (series.channels.len(), series.rate_hz);
    let mut samples = 0;
    recording.chunks(message_samples(series) * channels).map(move |chunk| {
        samples += chunk.len() / channels;
        let payload: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        (Moment((samples as f64 / rate_hz * 1e9) as u64), payload.into())
    })
}

struct Collect(Vec<Arc<ResultRecord>>);

impl Sink for Collect {
    fn decided(&mut self, decided: Decided<'_>) {
        self.0.push(decided.record);
    }

    fn event(&mut self, _kind: &'static str, message: String, _source: &str, _stream: &str) {
        console::tell(message);
    }
}

/// Gives the worker of a recording its one model and its one stream.
fn set_up<S: Sink + 'static>(
    worker: &mut Worker<S>,
    (model, serve): (Model, Arc<Serve>),
    key: StreamKey,
    context: &mut Context<'_, Worker<S>>,
) {
    worker.load(model, context);
    worker.serve(serve, context);
    worker.add_stream(key, 0, "recording".into(), "recording".into(), context);
}

/// All results of the recording. The lanes of `plan` are [`UNBOUNDED`].
fn on_a_played_clock(
    plan: &Arc<Plan>,
    serving: (Model, Arc<Serve>),
    series: &Series,
    recording: &[f32],
) -> Vec<Arc<ResultRecord>> {
    let clock = Clock::played(Moment(0));
    let policy = Policy { clock: clock.clone(), wall: Some(Wall::unknown()) };
    let mut worker = Worker::new("try".into(), Arc::clone(plan), policy, Collect(Vec::new()));
    let mut queue = Queue::default();
    let (lane, group) = (queue.open(UNBOUNDED), queue.open_group(Class::Realtime, &[BatchCost::single(INGEST_COST)]));
    let key = StreamKey(0);
    set_up(&mut worker, serving, key, &mut Context::over(&mut queue, Moment(0)));
    for (at, payload) in messages(series, recording) {
        clock.set(at);
        let order = Order { lane, group, deadline: at, expires: false, hold: at, weight: 0 };
        queue.push(at, order, Job::Ingest(Ingest { stream: key, topic: 0, payload, arrived: at, missed: 0 }));
        while let Turn::Run(jobs) = queue.next(clock.now()) {
            worker.run(jobs, &mut Context::over(&mut queue, clock.now()));
        }
    }
    std::mem::take(&mut worker.sink().0)
}

#[derive(Clone)]
struct Send(Arc<Mutex<mpsc::Sender<Arc<ResultRecord>>>>);

impl Sink for Send {
    fn decided(&mut self, decided: Decided<'_>) {
        // Nobody listens any more only if printing failed, and then the process ends.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(decided.record);
    }

    fn event(&mut self, _kind: &'static str, message: String, _source: &str, _stream: &str) {
        console::tell(message);
    }
}

/// Nobody watches a recording but who plays it.
struct Unwatched;

impl limpet_runtime::Watch for Unwatched {
    fn starved(&self, _worker: usize, _waited: Duration) {}
    fn hung(&self, _worker: usize, _ran: Duration) {}
}

/// Results as they come, and the thread that plays the recording: it ends after the last of them and says whether
/// every window had its turn.
fn in_real_time(
    plan: &Arc<Plan>,
    serving: (Model, Arc<Serve>),
    series: &Series,
    recording: &[f32],
) -> Result<(mpsc::Receiver<Arc<ResultRecord>>, JoinHandle<bool>), CliError> {
    let (sender, results) = mpsc::channel();
    let policy = Policy { clock: Clock::boottime(), wall: None };
    let sink = Send(Arc::new(Mutex::new(sender)));
    let worker = Worker::new("try".into(), Arc::clone(plan), policy, sink);
    let pool = Pool::start(vec![worker], Duration::MAX, Unwatched, |_| Ok(()));
    let pool = pool.context("the system gives no thread for a worker")?;
    let thread = pool.workers()[0].clone();
    let key = StreamKey(0);
    thread.change(move |worker, context| set_up(worker, serving, key, context));
    let (lane, group) = (thread.open(UNBOUNDED), thread.open_group(Class::Realtime, &[BatchCost::single(INGEST_COST)]));
    let messages: Vec<_> = messages(series, recording).collect();
    let deadline = plan.pipelines[0].deadline;
    let feeder = std::thread::Builder::new().name("sensor".into()).spawn(move || {
        let start = Instant::now();
        for (at, payload) in messages {
            std::thread::sleep(Duration::from_nanos(at.0).saturating_sub(start.elapsed()));
            let arrived = Moment::now();
            let order =
                Order { lane, group, deadline: arrived.after(deadline), expires: false, hold: arrived, weight: 0 };
            thread.push(order, Job::Ingest(Ingest { stream: key, topic: 0, payload, arrived, missed: 0 }));
        }
        // The results end when the pool is dropped, and with it the last sender.
        pool.drain(DRAIN)
    });
    Ok((results, feeder.context("the system gives no thread for the recording")?))
}

/// Prints results, and holds them against what was expected.
struct Judge<'a> {
    args: &'a TryArgs,
    rate_hz: f64,
    results: usize,
    expectations: Expectations<'a>,
    reader: Reader,
}

impl Judge<'_> {
    /// Takes the next result. Says whether there is any use in more.
    fn take(&mut self, record: &ResultRecord) -> Result<bool, CliError> {
        self.results += 1;
        let (from, to) = (record.window.first as f64 / self.rate_hz, (record.window.last + 1) as f64 / self.rate_hz);
        if self.reader == Reader::There {
            let mut line = Vec::new();
            if self.args.json {
                record.to_json(&mut line);
            } else {
                line.extend_from_slice(describe(record, to).as_bytes());
            }
            line.push(b'\n');
            self.reader = console::print(&line)?;
        }
        self.expectations.take(from, to, record.verdict.label(), record.trigger);
        Ok(self.reader == Reader::There || !self.args.expect.is_empty())
    }

    /// Says what came of the recording, by the ledger of the plan that ran. `drained` tells whether every window had
    /// its turn.
    fn summary(
        self,
        plan: &Plan,
        series: &Series,
        samples: usize,
        proved: &Proved,
        drained: bool,
    ) -> Result<(), CliError> {
        let pipeline = &plan.pipelines[0];
        let mut problems = self.expectations.problems();
        let ended = |outcomes: &[Outcome]| -> Vec<String> {
            let some = outcomes.iter().map(|outcome| (pipeline.ledger.count(*outcome), outcome.word()));
            some.filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect()
        };
        let other: Vec<Outcome> = Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Result).collect();
        let other = ended(&other);
        if !self.args.json {
            console::tell(format_args!(
                "{} results from {:.3} s of samples at {} Hz by {} on {}{}{}",
                self.results,
                samples as f64 / series.rate_hz,
                series.rate_hz,
                proved.serving.choice.variant,
                proved.serving.choice.engine,
                if other.is_empty() { "" } else { "; " },
                other.join(", ")
            ));
        }
        let broken = ended(&[Outcome::Invalid, Outcome::Failed]);
        if pipeline.ledger.windows() == 0 {
            let needed = pipeline.version.front_end.as_ref().map_or(0, |front_end| front_end.samples_per_window());
            problems.push(format!("no window was complete: one needs {needed} samples, the recording has {samples}"));
        } else if !broken.is_empty() {
            problems.push(format!("not every window could be judged: {}; the log says why", broken.join(", ")));
        } else if self.results == 0 {
            problems.push(format!("no window gave a result: {}", other.join(", ")));
        }
        if !drained {
            problems
                .push(format!("windows were still waiting {} s after the last sample; they are lost", DRAIN.as_secs()));
        }
        for problem in &problems {
            console::tell(problem);
        }
        if problems.is_empty() { Ok(()) } else { Err(CliError::No) }
    }
}

/// What `--expect` asks for, and how far it came true; the help of `--expect` has the rules.
struct Expectations<'a> {
    expected: Vec<(&'a Expectation, Seen)>,
    /// What the model's trigger is about.
    trigger: Option<&'a str>,
    surprises: Vec<String>,
}

/// What was seen of one expectation.
#[derive(Debug, Default)]
struct Seen {
    /// Triggers in its range.
    triggers: usize,
    /// Windows that lie wholly inside its range.
    windows: usize,
    /// Those of them with its label as the best.
    right: usize,
}

impl<'a> Expectations<'a> {
    /// Of a model with these labels, and a trigger about one of them or about [`ANOMALY`].
    ///
    /// # Errors
    /// If a label is expected that the model does not know.
    fn new(expect: &'a [Expectation], trigger: Option<&'a str>, labels: &[String]) -> Result<Self, CliError> {
        let known = |label: &str| trigger == Some(label) || labels.iter().any(|known| known == label);
        if let Some(Expectation { label, .. }) = expect.iter().find(|expectation| !known(&expectation.label)) {
            let known: Vec<&str> = match labels {
                [] => trigger.into_iter().collect(),
                labels => labels.iter().map(String::as_str).collect(),
            };
            return Err(CliError::Usage(match known.as_slice() {
                [] => format!(
                    "--expect …:{label}: the model has neither labels nor a trigger, so nothing can be expected of it"
                ),
                known => {
                    format!("--expect …:{label}: found '{label}', expected one of the model's: {}", known.join(", "))
                }
            }));
        }
        let expected = expect.iter().map(|expectation| (expectation, Seen::default())).collect();
        Ok(Self { expected, trigger, surprises: Vec::new() })
    }

    /// Takes the result of a window from its first sample to the end of its last, in seconds.
    fn take(&mut self, from: f64, to: f64, label: Option<&str>, trigger: bool) {
        let mut awaited = false;
        for (Expectation { start, end, label: expected }, seen) in &mut self.expected {
            if trigger && self.trigger == Some(expected) && (*start..=*end).contains(&to) {
                seen.triggers += 1;
                awaited = true;
            }
            if *start <= from && to <= *end {
                seen.windows += 1;
                seen.right += usize::from(label == Some(expected));
            }
        }
        if trigger && !awaited && !self.expected.is_empty() {
            let about = self.trigger.unwrap_or_default();
            self.surprises.push(format!("a trigger '{about}' at {to:.3} s was not expected"));
        }
    }

    /// One sentence for each thing that came otherwise.
    fn problems(self) -> Vec<String> {
        let mut problems = self.surprises;
        for (Expectation { start, end, label }, seen) in self.expected {
            let expected = format!("'{label}' was expected between {start} and {end} s");
            if self.trigger == Some(label) {
                match seen.triggers {
                    0 => problems.push(format!("{expected} and did not come")),
                    1 => {}
                    times => problems.push(format!("{expected} once and came {times} times")),
                }
            } else if seen.windows == 0 {
                problems.push(format!("{expected}, and no window with a result lies wholly inside; widen the range"));
            } else if seen.right * 2 <= seen.windows {
                let Seen { right, windows, .. } = seen;
                problems
                    .push(format!("{expected} and is the best label of only {right} of the {windows} windows there"));
            }
        }
        problems
    }
}

/// A result for people: time, what, how sure, how long.
fn describe(record: &ResultRecord, at: f64) -> String {
    let mut line = format!("{at:9.3} s  ");
    // Writing into a string cannot fail.
    let _ = match &record.verdict {
        Verdict::Class { .. } => write!(
            line,
            "{:<16} {:.3}",
            record.verdict.label().unwrap_or_default(),
            record.verdict.score().unwrap_or_default()
        ),
        Verdict::Anomaly { score, threshold } => match threshold {
            Some(threshold) => write!(line, "score {score:.4} (threshold {threshold})"),
            None => write!(line, "score {score:.4}"),
        },
        Verdict::Regression { values } => write!(line, "{values:?}"),
    };
    let _ = write!(line, "  {} µs", record.latency.compute);
    if record.trigger {
        line.push_str("  TRIGGER");
    }
    line
}

/// A recording as interleaved samples in the model's unit.
fn read(args: &TryArgs, series: &Series) -> Result<Vec<f32>, CliError> {
    let path = &args.recording;
    let read = match path.extension().and_then(|e| e.to_str()) {
        Some("wav") => read_wav(path, series),
        Some("csv") => read_csv(path),
        Some("raw") => {
            let channels = match args.of {
                Some(channels) => channels.get(),
                None if args.channels.is_empty() => series.channels.len(),
                None => {
                    return Err(CliError::Usage(format!(
                        "--channels: {} does not say of how many channels; give their number with --of",
                        path.display()
                    )));
                }
            };
            read_raw(path, &args.r#type, channels)
        }
        _ => {
            return Err(CliError::Usage(format!("{}: a recording is a .wav, .csv or .raw file", path.display())));
        }
    };
    let (samples, found) = read.with_context(|| path.display().to_string())?;
    if let Some(of) = args.of.filter(|of| of.get() != found) {
        return Err(CliError::Usage(format!("--of {of}: {} has {found} channels; leave --of out", path.display())));
    }
    let wanted = series.channels.len();
    let chosen: Vec<usize> = match args.channels.as_slice() {
        [] if found >= wanted => (0..wanted).collect(),
        [] => {
            return Err(CliError::Usage(format!(
                "{}: it has {found} channels, the model wants {wanted}",
                path.display()
            )));
        }
        chosen => chosen.to_vec(),
    };
    if chosen.len() != wanted || chosen.iter().any(|channel| *channel >= found) {
        return Err(CliError::Usage(format!(
            "--channels {chosen:?}: the model wants {wanted} of the {found} channels of {}",
            path.display()
        )));
    }
    if args.channels.is_empty() && found > wanted {
        console::tell(format_args!(
            "{}: {found} channels, the first {wanted} are used (see --channels)",
            path.display()
        ));
    }
    let scale: Vec<f32> = match args.scale.as_slice() {
        [] => vec![1.0; wanted],
        [one] => vec![Fraction::value(*one) as f32; wanted],
        some if some.len() == wanted => some.iter().map(|scale| scale.value() as f32).collect(),
        some => {
            return Err(CliError::Usage(format!(
                "--scale has {} factors, the model has {wanted} channels",
                some.len()
            )));
        }
    };
    let picked =
        samples.chunks_exact(found).flat_map(|row| chosen.iter().zip(&scale).map(|(c, scale)| row[*c] * scale));
    let picked: Vec<f32> = picked.collect();
    if let Some(at) = picked.iter().position(|value| !value.is_finite()) {
        return Err(CliError::Other(anyhow!("{}: sample {} is not a number", path.display(), at / wanted)));
    }
    Ok(picked)
}

/// Samples of a .wav file with full scale 1, and its channels.
fn read_wav(path: &Path, series: &Series) -> anyhow::Result<(Vec<f32>, usize)> {
    let mut reader = hound::WavReader::open(path)?;
    let spec = reader.spec();
    if (f64::from(spec.sample_rate) - series.rate_hz).abs() > 0.001 * series.rate_hz {
        bail!("its sample rate is {} Hz, the model wants {}; convert it first", spec.sample_rate, series.rate_hz);
    }
    let samples: Result<Vec<f32>, _> = match spec.sample_format {
        hound::SampleFormat::Float => reader.samples::<f32>().collect(),
        hound::SampleFormat::Int => {
            let full = (1_u64 << (spec.bits_per_sample - 1)) as f32;
            reader.samples::<i32>().map(|sample| sample.map(|value| value as f32 / full)).collect()
        }
    };
    Ok((samples?, usize::from(spec.channels)))
}

/// Numbers of a .csv file, one sample a line. A first line that is no number names the columns.
fn read_csv(path: &Path) -> anyhow::Result<(Vec<f32>, usize)> {
    let text = std::fs::read_to_string(path)?;
    let (mut samples, mut columns) = (Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let row: Result<Vec<f32>, _> = line.split(',').map(|field| field.trim().parse()).collect();
        let row = match row {
            Ok(row) => row,
            Err(_) if number == 0 => continue,
            Err(_) => bail!("line {}: '{line}' is not numbers with commas between them", number + 1),
        };
        let expected = *columns.get_or_insert(row.len());
        if row.len() != expected {
            bail!("line {}: {} numbers, the lines before have {expected}", number + 1, row.len());
        }
        samples.extend(row);
    }
    Ok((samples, columns.ok_or_else(|| anyhow!("it holds no samples"))?))
}

/// Little-endian numbers of a .raw file.
fn read_raw(path: &Path, number: &str, channels: usize) -> anyhow::Result<(Vec<f32>, usize)> {
    let bytes = std::fs::read(path)?;
    let size: usize = match number {
        "i8" | "u8" => 1,
        "i16" => 2,
        "i32" | "f32" => 4,
        other => bail!("--type {other}: expected i8, u8, i16, i32 or f32"),
    };
    if !size.checked_mul(channels).is_some_and(|sample| sample > 0 && bytes.len().is_multiple_of(sample)) {
        bail!("{} bytes are not whole samples of {channels} × {number}", bytes.len());
    }
    let value = |b: &[u8]| match (number, b) {
        ("i8", [b]) => f32::from(*b as i8),
        ("u8", [b]) => f32::from(*b),
        ("i16", [a, b]) => f32::from(i16::from_le_bytes([*a, *b])),
        ("i32", [a, b, c, d]) => i32::from_le_bytes([*a, *b, *c, *d]) as f32,
        (_, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
        _ => f32::NAN,
    };
    Ok((bytes.chunks_exact(size).map(value).collect(), channels))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong when these windows (from, to, best label, trigger) are held against `expect`.
    fn problems(expect: &[&str], trigger: Option<&str>, windows: &[(f64, f64, &str, bool)]) -> Vec<String> {
        let expect: Vec<Expectation> =
            expect.iter().map(|text| text.parse().expect("the test writes whole expectations")).collect();
        let labels = ["loud".to_owned(), "quiet".to_owned()];
        let mut expectations = Expectations::new(&expect, trigger, &labels).expect("the model knows the labels");
        for (from, to, label, trigger) in windows {
            expectations.take(*from, *to, Some(label), *trigger);
        }
        expectations.problems()
    }

    #[test]
    fn a_triggers_label_is_met_by_exactly_one_trigger() {
        // The best label is not the trigger's: its score was high enough all the same.
        let trigger = |to: f64| (to - 1.0, to, "quiet", true);
        let check = |windows: &[_]| problems(&["1-2:loud", "4-5:loud"], Some("loud"), windows);
        assert!(check(&[trigger(1.0), trigger(5.0)]).is_empty(), "both ends belong to the range");
        assert_eq!(check(&[trigger(1.5)]), ["'loud' was expected between 4 and 5 s and did not come"]);
        assert_eq!(
            check(&[trigger(1.5), trigger(1.9), trigger(4.5)]),
            ["'loud' was expected between 1 and 2 s once and came 2 times"]
        );
        assert_eq!(
            check(&[trigger(1.5), trigger(3.0), trigger(4.5)]),
            ["a trigger 'loud' at 3.000 s was not expected"]
        );
        // Windows without a trigger do not meet it, whatever their label.
        assert_eq!(check(&[(1.0, 1.5, "loud", false), trigger(4.5)]).len(), 1);
    }

    #[test]
    fn a_trigger_in_the_range_of_another_label_is_a_surprise() {
        let windows = [(1.0, 1.4, "quiet", false), (1.2, 1.6, "quiet", true), (1.4, 1.8, "quiet", false)];
        assert_eq!(problems(&["1-2:quiet"], Some("loud"), &windows), ["a trigger 'loud' at 1.600 s was not expected"]);
        assert!(problems(&[], Some("loud"), &windows).is_empty(), "who expects nothing is not surprised");
    }

    #[test]
    fn another_label_is_met_by_most_windows_that_lie_wholly_inside() {
        let loud = |from: f64| (from, from + 0.5, "loud", false);
        let quiet = |from: f64| (from, from + 0.5, "quiet", false);
        let check = |windows: &[_]| problems(&["1-3:loud"], None, windows);
        assert!(check(&[loud(1.0), quiet(1.5), loud(2.5)]).is_empty());
        // Half is not most, and one lucky window is not either.
        assert_eq!(
            check(&[loud(1.0), quiet(1.5)]),
            ["'loud' was expected between 1 and 3 s and is the best label of only 1 of the 2 windows there"]
        );
        // Windows that stand out of the range on either side say nothing about it.
        assert!(check(&[quiet(0.9), loud(1.0), quiet(2.6)]).is_empty());
        assert_eq!(check(&[loud(0.9), loud(2.6)]).len(), 1, "no window lies inside");
    }

    #[test]
    fn a_label_that_the_model_does_not_have_is_usage() {
        let expect = ["1-2:lout".parse::<Expectation>().expect("it is whole")];
        let labels = ["loud".to_owned(), "quiet".to_owned()];
        for (trigger, labels) in [(None, &labels[..]), (Some("loud"), &labels[..]), (Some(ANOMALY), &[]), (None, &[])] {
            assert!(matches!(Expectations::new(&expect, trigger, labels), Err(CliError::Usage(_))));
        }
        let anomaly = ["1-2:anomaly".parse::<Expectation>().expect("it is whole")];
        assert!(Expectations::new(&anomaly, Some(ANOMALY), &[]).is_ok());
    }

    #[test]
    fn raw_files_hold_whole_samples_of_any_number_of_channels() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("a.raw");
        std::fs::write(&path, [1, 0, 2, 0, 3, 0, 255, 255]).expect("a temporary file can be written");
        assert_eq!(read_raw(&path, "i16", 4).expect("four numbers"), (vec![1.0, 2.0, 3.0, -1.0], 4));
        for wrong in [0, 3, usize::MAX, usize::MAX / 2 + 1] {
            assert!(read_raw(&path, "i16", wrong).is_err(), "{wrong}");
        }
    }
}
