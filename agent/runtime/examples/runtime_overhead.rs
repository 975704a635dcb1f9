//! What a worker costs beyond the session that it runs: `runtime_overhead MODEL.tflite|MODEL.onnx [--runs N] [--json]`.
//!
//! Three sessions of the same graph get the same input, in turns, so that whatever the machine does meanwhile meets all:
//! one is called here and now (bare), one by the handler of a worker of a real [`Pool`], as a realtime job with a
//! deadline in a lane of bounded depth, beside a group of analytic jobs. A job's time counts from before the push until
//! its result has been read in the handler; and, as what the asker sees, until the asker has been woken with it. The
//! third is called by a thread that waits at a channel and knows neither order nor deadline: what that costs more than
//! the bare call is the kernel waking a thread on a CPU that sleeps, which no runtime with worker threads goes without.
//!
//! Once back to back, and once at a hundred a second, where threads, caches and CPUs go to sleep in between.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use limpet_engine::{EngineError, Format, LoadOptions, Session, TensorMut, TensorRef, engines};
use limpet_runtime::queue::Pushed;
use limpet_runtime::{
    BatchCost, Class, Context, Group, Handler, Lane, LanePolicy, Moment, Order, Outcome, Overflow, Pool, Watch, Worker,
};

/// Time between two measurements at a hundred a second; each kind has its turn in it.
const PERIOD: Duration = Duration::from_millis(10);
const DEADLINE: Duration = Duration::from_millis(20);
const POLICY: LanePolicy = LanePolicy { depth: 1, weight: usize::MAX, overflow: Overflow::DropOldest };

struct Job {
    input: Arc<[u8]>,
    answer: Sender<Result<Instant, String>>,
}

/// Runs one session.
struct Runner(Box<dyn Session>);

impl Handler for Runner {
    type Job = Job;

    fn run(&mut self, jobs: Vec<Job>, _: &mut Context<'_, Self>) {
        for job in jobs {
            let ran = run(&mut *self.0, &job.input).map(|()| Instant::now()).map_err(|error| error.to_string());
            // Whoever asked may have gone.
            let _ = job.answer.send(ran);
        }
    }

    fn give_up(job: Job, outcome: Outcome) {
        let _ = job.answer.send(Err(format!("a job ended as {}", outcome.word())));
    }
}

struct Nobody;

impl Watch for Nobody {
    fn starved(&self, _: usize, _: Duration) {}
    fn hung(&self, _: usize, _: Duration) {}
}

/// Fills, runs and reads a session.
fn run(session: &mut dyn Session, input: &[u8]) -> Result<(), EngineError> {
    match session.input_mut(0) {
        TensorMut::F32(buffer) => buffer.iter_mut().zip(input).for_each(|(to, from)| *to = f32::from(*from) / 256.0),
        TensorMut::U8(buffer) => buffer.copy_from_slice(input),
        TensorMut::I8(buffer) => buffer.iter_mut().zip(input).for_each(|(to, from)| *to = *from as i8),
    }
    session.run()?;
    match session.output(0) {
        TensorRef::F32(values) => _ = black_box(values.first()),
        TensorRef::I8(values) => _ = black_box(values.first()),
        TensorRef::U8(values) => _ = black_box(values.first()),
    }
    Ok(())
}

fn main() -> ExitCode {
    let (mut file, mut runs, mut json) = (None, 20_000, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--json" => json = true,
            "--runs" => match arguments.next().and_then(|value| value.parse().ok()) {
                Some(value) if value > 0 => runs = value,
                _ => return usage("--runs wants a number above 0"),
            },
            _ if file.is_none() && !argument.starts_with('-') => file = Some(argument),
            _ => return usage(&format!("unknown argument '{argument}'")),
        }
    }
    let Some(file) = file else { return usage("which model?") };
    match measure(&file, runs) {
        Ok(lines) => {
            lines.iter().for_each(|measured| measured.print(json));
            if json {
                let parts: Vec<_> = lines.iter().map(Measured::json).collect();
                println!("{{{}}}", parts.join(", "));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("runtime_overhead: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(what: &str) -> ExitCode {
    eprintln!("runtime_overhead: {what}\nusage: runtime_overhead MODEL.tflite|MODEL.onnx [--runs N] [--json]");
    ExitCode::from(64)
}

/// Microseconds, sorted.
struct Measured {
    name: &'static str,
    bare: Vec<f64>,
    /// From the push to the result, in the worker.
    result: Vec<f64>,
    /// From the push to the asker that has it.
    asker: Vec<f64>,
    /// From the message to the result, in a thread with nothing but a session.
    floor: Vec<f64>,
}

impl Measured {
    fn rows(&self) -> [(&'static str, &[f64]); 4] {
        [("bare", &self.bare), ("result", &self.result), ("asker", &self.asker), ("thread", &self.floor)]
    }

    fn print(&self, json: bool) {
        if json {
            return;
        }
        println!("{}, {} of each in turns, µs", self.name.replace('_', " "), self.result.len());
        for (name, times) in self.rows() {
            let [p50, p99, max] = quantiles(times);
            println!("  {:<10} p50 {p50:8.2}   p99 {p99:8.2}   max {max:9.2}", name.replace('_', "-"));
        }
    }

    fn json(&self) -> String {
        let row = |(name, times): (&str, &[f64])| {
            let [p50, p99, max] = quantiles(times);
            format!("\"{name}\": {{\"p50_us\": {p50:.3}, \"p99_us\": {p99:.3}, \"max_us\": {max:.3}}}")
        };
        let rows: Vec<_> = self.rows().into_iter().map(row).collect();
        format!("\"{}\": {{\"runs\": {}, {}}}", self.name, self.result.len(), rows.join(", "))
    }
}

fn quantiles(sorted: &[f64]) -> [f64; 3] {
    [0.5, 0.99, 1.0].map(|part| sorted[((sorted.len() - 1) as f64 * part).round() as usize])
}

/// A thread with a session and nothing else.
struct Floor {
    ask: Sender<()>,
    answers: Receiver<Result<Instant, String>>,
}

impl Floor {
    fn start(mut session: Box<dyn Session>, input: Arc<[u8]>) -> std::io::Result<Self> {
        let ((ask, asked), (answer, answers)) = (channel::<()>(), channel());
        let mut serve = move || run(&mut *session, &input).map(|()| Instant::now()).map_err(|error| error.to_string());
        // It ends with the sender.
        std::thread::Builder::new()
            .name("floor".into())
            .spawn(move || while asked.recv().is_ok() && answer.send(serve()).is_ok() {})?;
        Ok(Self { ask, answers })
    }
}

/// Everything that is measured in turns.
struct Bench {
    bare: Box<dyn Session>,
    input: Arc<[u8]>,
    worker: Worker<Runner>,
    lane: Lane,
    group: Group,
    floor: Floor,
}

type Failure = Box<dyn std::error::Error>;

fn measure(file: &str, runs: usize) -> Result<[Measured; 2], Failure> {
    let format = Format::of(file.as_ref()).ok_or("neither .onnx nor .tflite")?;
    let graph = std::fs::read(file)?;
    let engines = engines();
    let engine = engines.iter().find(|engine| engine.reads(format)).ok_or("no engine reads it")?;
    let mut bare = engine.load(format, &graph, LoadOptions::default())?;
    let input: Arc<[u8]> = (0..bare.inputs()[0].elements()).map(|index| (index * 197 % 251) as u8).collect();
    let mut times = Vec::new();
    for _ in 0..1000 {
        let start = Instant::now();
        run(&mut *bare, &input)?;
        times.push(start.elapsed());
    }
    times.sort();
    let cost = BatchCost { size: 1, typical: times[500], worst: times[990] };

    let handler = Runner(engine.load(format, &graph, LoadOptions::default())?);
    let pool = Pool::start(vec![handler], Duration::from_secs(10), Nobody, |_| Ok(()))?;
    let worker = pool.workers()[0].clone();
    let (lane, group) = (worker.open(POLICY), worker.open_group(Class::Realtime, &[cost]));
    worker.open_group(Class::Analytic, &[cost]);
    let floor = Floor::start(engine.load(format, &graph, LoadOptions::default())?, Arc::clone(&input))?;
    let mut bench = Bench { bare, input, worker, lane, group, floor };
    bench.series("warm_up", 200, Duration::ZERO)?;
    let back_to_back = bench.series("back_to_back", runs, Duration::ZERO)?;
    // Enough for a 99th percentile.
    let paced = bench.series("at_100_per_s", (runs / 20).max(100), PERIOD)?;
    drop(bench);
    drop(pool);
    Ok([back_to_back, paced])
}

impl Bench {
    fn run_bare(&mut self) -> Result<Duration, EngineError> {
        let start = Instant::now();
        run(&mut *self.bare, &self.input)?;
        Ok(start.elapsed())
    }

    /// Bare run and job, bare run and thread, in turns: the other CPU has slept as long before the one as before the
    /// other, and how long it has matters more to a hand-over than anything else. With a period, a quarter of it apart.
    fn series(&mut self, name: &'static str, runs: usize, period: Duration) -> Result<Measured, Failure> {
        let mut measured = Measured { name, bare: vec![], result: vec![], asker: vec![], floor: vec![] };
        let (answer, answers) = channel();
        let mut due = Instant::now();
        let mut pause = || {
            due += period / 4;
            if !period.is_zero() {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        };
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        for _ in 0..runs {
            pause();
            measured.bare.push(us(self.run_bare()?));

            pause();
            let job = Job { input: Arc::clone(&self.input), answer: answer.clone() };
            let start = Instant::now();
            let now = Moment::now();
            let order = Order {
                lane: self.lane,
                group: self.group,
                deadline: now.after(DEADLINE),
                expires: true,
                hold: now,
                weight: 0,
            };
            let Pushed::Waiting = self.worker.push(order, job) else { return Err("a job found no place".into()) };
            let done = answers.recv()?;
            let back = start.elapsed();
            // One that expired because the machine stood still is no measurement of the runtime; there is no result.
            let Ok(done) = done else { continue };
            measured.result.push(us(done.duration_since(start)));
            measured.asker.push(us(back));

            pause();
            measured.bare.push(us(self.run_bare()?));

            pause();
            let start = Instant::now();
            self.floor.ask.send(())?;
            measured.floor.push(us(self.floor.answers.recv()??.duration_since(start)));
        }
        for times in [&mut measured.bare, &mut measured.result, &mut measured.asker, &mut measured.floor] {
            times.sort_by(f64::total_cmp);
        }
        if measured.result.is_empty() {
            return Err("no job gave a result".into());
        }
        Ok(measured)
    }
}
