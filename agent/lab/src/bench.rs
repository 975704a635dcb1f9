//! `limpet-lab bench`: how fast a model is on this machine, by MLPerf Inference's rules.
//!
//! The subject is proved first, and what does not give its golden outputs is not timed. Then it is run in four
//! [scenarios](scenario), and what is said of the tails of latencies is held to a [rule](statistics) that few
//! queries cannot bend. `--tune` sweeps engines, threads and batches instead, and keeps the best with the proof.

mod arrivals;
mod chart;
mod machine;
mod progress;
mod report;
mod scenario;
mod search;
mod statistics;
mod subject;
mod suite;
pub mod text;
mod tune;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use limpet_depot::manifest::Role;
use limpet_depot::{ProofStore, units};
use limpet_engine::Engine;

use crate::{unavailable, usage};
use machine::Machine;
use progress::Progress;
use report::Results;
use subject::{Selection, Subject};
use suite::{Row, Scenario, Settings};
use tune::Objective;

/// Batches that are measured unless others are asked for.
const BATCHES: [usize; 4] = [1, 2, 4, 8];
/// The largest batch and number of threads that can be asked for.
const BATCH_MAX: usize = 4096;
const THREADS_MAX: usize = 256;
/// Where the agent keeps its proofs.
const STATE: &str = "/var/lib/limpet";

#[derive(clap::Args)]
pub struct BenchArgs {
    /// Package (folder or .limpet file), or a bare .onnx or .tflite file
    subject: PathBuf,
    /// Golden vectors of a bare graph; without them it is fed noise and its answers are not checked
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Engine, or `all`; by default what the proof chooses
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Only this variant of a package
    #[arg(long, value_name = "FILE")]
    variant: Option<String>,
    /// What is measured: single-stream, multi-stream, server, offline, or all
    #[arg(long, value_name = "NAME[,NAME…]", value_delimiter = ',', default_value = "all", conflicts_with = "tune")]
    scenario: Vec<String>,
    /// Numbers of threads: inside a run for the streams, of sessions side by side for server and offline
    #[arg(long, value_name = "N[,N…]", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Numbers of samples of one run
    #[arg(long, value_name = "N[,N…]", value_delimiter = ',')]
    batch: Vec<usize>,
    /// How long each scenario lasts at least; up to four times as long until there are enough queries for its percentile
    #[arg(long, default_value_t = 5.0, allow_negative_numbers = true, conflicts_with = "tune")]
    seconds: f64,
    /// Latency within which 99 % of the server scenario's answers must come
    #[arg(long, value_name = "TIME", default_value = "20ms", allow_hyphen_values = true, conflicts_with = "tune")]
    bound: units::Duration,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Write the results as one HTML page with plots
    #[arg(long, value_name = "FILE", conflicts_with = "tune")]
    report: Option<PathBuf>,
    /// Find the best engine, threads and batch, and keep them with the package's proof
    #[arg(long, conflicts_with = "golden")]
    tune: bool,
    /// How long tuning may take, the proof included
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, requires = "tune")]
    time: units::Duration,
    /// What tuning makes best
    #[arg(long = "for", value_name = "OBJECTIVE", default_value = "latency", requires = "tune")]
    objective: Objective,
    /// State directory of the agent, where tuning keeps what it chose
    #[arg(long, value_name = "DIR", default_value = STATE, requires = "tune")]
    state: PathBuf,
}

/// Runs `limpet-lab bench`.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let scenarios = scenarios(&args.scenario)?;
    if !(args.seconds > 0.0 && args.seconds <= 86_400.0) {
        return Err(usage(format!("--seconds {}: expected a number above 0 and at most 86400", args.seconds)));
    }
    for (name, time) in [("--bound", args.bound), ("--time", args.time)] {
        if time.0.is_zero() || time.0 > Duration::from_secs(86_400) {
            return Err(usage(format!("{name} {time}: expected a time above 0 and at most 1d, such as \"20ms\"")));
        }
    }
    let threads = counts("--threads", &args.threads, THREADS_MAX)?;
    let batches = counts("--batch", &args.batch, BATCH_MAX)?;
    let engines = engines(args.engine.as_deref())?;
    let subject = Subject::open(&args.subject, args.golden.as_deref())?;
    if let Some(variant) = args.variant.as_ref().filter(|variant| !subject.variants().contains(variant)) {
        let known = subject.variants().join(", ");
        return Err(usage(format!("--variant {variant}: there is no such variant; there is {known}")));
    }
    let selection = Selection { engine: args.engine.clone(), variant: args.variant.clone() };
    let machine = Machine::now();
    if args.tune {
        return tune(args, &subject, &engines, &selection, &machine, threads, batches);
    }
    let settings = Settings {
        scenarios,
        length: Duration::from_secs_f64(args.seconds),
        bound: args.bound.0,
        threads: threads.unwrap_or_else(|| vec![1]),
        batches: batches.unwrap_or_else(|| BATCHES.to_vec()),
    };
    if let Some(path) = &args.report {
        // Before minutes of measuring, not after them.
        create(path)?;
    }
    let progress = Progress::new(suite::work(&settings));
    progress.start("proves".to_owned());
    let proof = subject.prove(&engines)?;
    let (contenders, not_timed) = subject.contenders(&engines, proof.as_ref(), &selection)?;
    if contenders.is_empty() && not_timed.is_empty() {
        let variants = args.variant.clone().unwrap_or_else(|| subject.variants().join(", "));
        let engine = args.engine.as_deref().unwrap_or("this build");
        return Err(usage(format!("there is nothing to measure: {engine} does not read {variants}")));
    }
    progress.pieces(suite::work(&settings) * contenders.len());
    let mut results = Results {
        subject: subject.title(),
        inputs: subject.inputs(),
        machine,
        seconds: args.seconds,
        bound_us: args.bound.0.as_secs_f64() * 1e6,
        rows: Vec::new(),
        not_timed,
        notes: Vec::new(),
    };
    let mut complete = !contenders.is_empty() && results.not_timed.iter().all(|other| !other.failed);
    for contender in &contenders {
        let measured = suite::measure(contender, &settings, &progress)?;
        complete &= !measured.rows.is_empty();
        results.rows.extend(measured.rows);
        results.notes.extend(measured.notes);
    }
    progress.end();
    if let Some(path) = &args.report {
        std::fs::write(path, report::page(&results)).with_context(|| format!("writing {}", path.display()))?;
    }
    let text = match args.json {
        true => serde_json::to_string(&results).context("writing the results")? + "\n",
        false => describe(&results),
    };
    print(&text)?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tune(
    args: &BenchArgs,
    subject: &Subject,
    engines: &[Box<dyn Engine>],
    selection: &Selection,
    machine: &Machine,
    threads: Option<Vec<usize>>,
    batches: Option<Vec<usize>>,
) -> anyhow::Result<ExitCode> {
    let end = Instant::now() + args.time.0;
    let Subject::Package(package) = subject else {
        return Err(usage(format!(
            "{}: --tune needs a package; a bare graph has no proof that a choice could be kept with",
            args.subject.display()
        )));
    };
    if args.objective == Objective::Latency && batches.as_ref().is_some_and(|batches| !batches.contains(&1)) {
        return Err(usage("--for latency is judged by batch 1: add 1 to --batch, or tune --for throughput"));
    }
    let store = ProofStore::new(&args.state, engines)
        .map_err(|error| unavailable(format!("{error}; --state names another directory")))?;
    // All of them, whatever one would choose without --tune.
    let engine = selection.engine.clone().or_else(|| Some("all".to_owned()));
    let selection = Selection { engine, ..selection.clone() };
    let doubling = |most: usize| (0..).map(|power| 1 << power).take_while(move |count| *count <= most);
    let plan = tune::Plan {
        objective: args.objective,
        end,
        threads: threads.unwrap_or_else(|| doubling(machine.cores).collect()),
        until_no_gain: batches.is_none(),
        batches: batches.unwrap_or_else(|| doubling(64).collect()),
    };
    let progress = Progress::new(1);
    progress.start("proves".to_owned());
    let proof = subject.prove(engines)?;
    let (mut contenders, not_timed) = subject.contenders(engines, proof.as_ref(), &selection)?;
    // What is only for times of pressure is never what serves.
    let serves = |file: &str| {
        let role = package.manifest().variants.iter().find(|variant| variant.file == file).map(|variant| variant.role);
        role == Some(Role::Full)
    };
    contenders.retain(|contender| serves(&contender.variant));
    for other in &not_timed {
        eprintln!("limpet-lab: {} on {} is not tuned: {}", other.variant, other.engine, other.reason);
    }
    if contenders.is_empty() {
        anyhow::bail!("{}: nothing passed its proof, so there is nothing to tune", args.subject.display());
    }
    progress.pieces(contenders.len() * plan.threads.len() * (plan.batches.len() + 1));
    let sweep = tune::sweep(&contenders, &plan, &progress)?;
    progress.end();
    let best = sweep.best();
    store.keep_tuning(package, &best.tuning(sweep.objective))?;
    let text = match args.json {
        true => serde_json::to_string(&sweep).context("writing the sweep")? + "\n",
        false => {
            let mut text = format!("{} · {}\n", subject.title(), machine.describe());
            text.extend(machine.warning().map(|warning| format!("Warning: {warning}\n")));
            text += &format!("\n{}\n", sweep.table());
            if sweep.left_out > 0 {
                text +=
                    &format!("the time did not suffice for {} measurements: give a longer --time\n", sweep.left_out);
            }
            text.extend(sweep.notes.iter().map(|note| format!("{note}\n")));
            text + &format!(
                "chosen: {} on {}, {} {}, batch {}; kept in {}\n",
                best.variant,
                best.engine,
                best.threads,
                match (sweep.objective, best.threads) {
                    (Objective::Latency, 1) => "thread in a run",
                    (Objective::Latency, _) => "threads in a run",
                    (Objective::Throughput, 1) => "session at a time",
                    (Objective::Throughput, _) => "sessions side by side",
                },
                best.batch,
                args.state.display()
            )
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The results for people.
fn describe(results: &Results) -> String {
    let mut text = format!("{} · {}\n{}\n", results.subject, results.machine.describe(), results.answers());
    text.extend(results.machine.warning().map(|warning| format!("Warning: {warning}\n")));
    if !results.rows.is_empty() {
        let titles = Row::TITLES.map(str::to_owned).to_vec();
        let lines: Vec<_> =
            std::iter::once(titles).chain(results.rows.iter().map(|row| row.cells().to_vec())).collect();
        text += &format!("\n{}", text::table(&lines));
    }
    let remarks = results.remarks();
    if !remarks.is_empty() {
        text += &format!("\n{}\n", remarks.join("\n"));
    }
    text
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("writing to standard output")
}

/// Makes sure that a file can be written, without touching what it holds.
fn create(path: &Path) -> anyhow::Result<()> {
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// The engines that an option names, of those of this build.
fn engines(name: Option<&str>) -> anyhow::Result<Vec<Box<dyn Engine>>> {
    let mut engines = limpet_engine::engines();
    let known: Vec<&str> = engines.iter().map(|engine| engine.name()).collect();
    match name {
        None | Some("all") => {}
        Some(name) if known.contains(&name) => engines.retain(|engine| engine.name() == name),
        Some(name) => {
            return Err(usage(format!("--engine {name}: expected one of {}, or all", known.join(", "))));
        }
    }
    Ok(engines)
}

fn scenarios(names: &[String]) -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for name in names {
        match Scenario::ALL.into_iter().find(|scenario| scenario.name() == name) {
            Some(scenario) => scenarios.push(scenario),
            None if name == "all" => scenarios.extend(Scenario::ALL),
            None => {
                let known = Scenario::ALL.map(Scenario::name).join(", ");
                return Err(usage(format!("--scenario {name}: expected one of {known}, or all")));
            }
        }
    }
    scenarios.sort_unstable();
    scenarios.dedup();
    Ok(scenarios)
}

/// Numbers from 1 to `most`, ascending and each once; none if there are none.
fn counts(name: &str, numbers: &[usize], most: usize) -> anyhow::Result<Option<Vec<usize>>> {
    if let Some(wrong) = numbers.iter().find(|number| !(1..=most).contains(*number)) {
        return Err(usage(format!("{name} {wrong}: expected numbers from 1 to {most}")));
    }
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    Ok((!numbers.is_empty()).then_some(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_measured_is_usage_and_says_what_can() {
        let error = engines(Some("onnxruntime")).err().unwrap().to_string();
        assert!(error.contains("onnxruntime") && error.contains("tract"), "{error}");
        let error = scenarios(&["servers".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("servers") && error.contains("multi-stream"), "{error}");
        for wrong in [0, 257] {
            let error = counts("--threads", &[1, wrong], THREADS_MAX).unwrap_err().to_string();
            assert!(error.contains(&wrong.to_string()) && error.contains("256"), "{error}");
        }
        assert_eq!(counts("--batch", &[8, 1, 8], BATCH_MAX).unwrap(), Some(vec![1, 8]));
        assert_eq!(counts("--batch", &[], BATCH_MAX).unwrap(), None);
    }

    #[test]
    fn scenarios_come_in_order_and_once() {
        let found = scenarios(&["offline".to_owned(), "single-stream".to_owned(), "offline".to_owned()]).unwrap();
        assert_eq!(found, [Scenario::SingleStream, Scenario::Offline]);
        assert_eq!(scenarios(&["all".to_owned()]).unwrap(), Scenario::ALL);
    }
}
