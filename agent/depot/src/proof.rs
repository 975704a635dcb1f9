//! The proof: whether a package gives its golden outputs, inside its budget, on this device and engine.
//!
//! [`prove`] takes every variant to every engine that reads it, each in a process of its own, so a graph
//! that crashes or hangs an engine costs nothing but its verdict. The answer is a [`Report`]: a row for each, and the
//! fastest that passed.

mod batch;
pub(crate) mod child;
mod graphs;
mod judge;
mod measure;
mod spawn;
pub mod store;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use limpet_engine::{Engine, Format};
use serde::{Deserialize, Serialize};

use self::child::{Job, Measured};
pub use self::graphs::{Ran, run_graphs};
pub use self::measure::RUNS_FOR_P99;
use self::spawn::{Cause, Larger, Outcome};
use crate::DepotError;
use crate::golden::{Golden, check_package};
use crate::manifest::{Budget, Limits, Role, Variant};
use crate::package::Package;
use crate::units;

/// A variant that was chosen before keeps its place unless another takes at most this share of its time.
const REPLACED_BELOW: f64 = 0.9;

/// What is to be proved.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A package, by its own limits.
    Package(&'a Package),
    /// A bare `.onnx` or `.tflite` file.
    Graph {
        /// The graph's file.
        path: &'a Path,
        /// Its golden vectors, a safetensors file with `input` and `output`.
        golden: &'a Path,
        /// What it must reach; [`Limits::GRAPH`] unless told otherwise.
        limits: Limits,
    },
}

/// How to prove it.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long runs of one variant on one engine are timed.
    pub timing: Duration,
    /// After this a child is stopped.
    pub wall: Duration,
    /// Most data that a child may allocate, in bytes.
    pub data_bytes: u64,
    /// Folder for what each graph gave, as `<engine>.<variant>.safetensors`; made if it is not there.
    pub outputs: Option<PathBuf>,
    /// Whether the manifest's budget is judged. It is one for the gateway: elsewhere it says nothing.
    pub budget: bool,
    /// What runs now, and stays unless another is at least a tenth faster.
    pub present: Option<Choice>,
    /// Whether to try batches of what passes: for packages that an analytic pipeline uses. A batch gets as long for its
    /// timing as single runs do, and no size is begun when half of `wall` is over.
    pub batches: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timing: Duration::from_secs(2),
            wall: Duration::from_secs(60),
            data_bytes: 2 << 30,
            outputs: None,
            budget: true,
            present: None,
            batches: false,
        }
    }
}

/// What a variant or a whole package has earned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may serve.
    Passed,
    /// It is wrong, too slow, too large, or crashed.
    Failed,
    /// The engine does not take it, or it cannot be judged.
    Refused,
}

impl Verdict {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// One variant on one engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Name of the engine.
    pub engine: String,
    /// The variant's file.
    pub variant: String,
}

/// What the front end costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct IngestCost {
    /// Mean CPU time of what completes a window, in microseconds: one hop of samples, in the steady state.
    pub mean_us: f64,
    /// 99th percentile; of fewer than [`RUNS_FOR_P99`] runs, the longest.
    pub p99_us: f64,
    /// How many windows were timed.
    pub runs: usize,
}

/// What batches gain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batches {
    /// Sizes that give the golden outputs and are worth it: 1, and those powers of 2 that give at least 5 % more windows
    /// per second than the one before in this list.
    pub sizes: Vec<BatchCost>,
    /// Why there are no more, such as `16 gains 2 % over 8`.
    pub stopped: String,
}

/// What a batch of one size costs, in CPU time of one run of the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BatchCost {
    /// Windows in the batch.
    pub size: usize,
    /// Median, in microseconds.
    pub p50_us: f64,
    /// Mean, in microseconds.
    pub mean_us: f64,
    /// 99th percentile, in microseconds; of fewer than [`RUNS_FOR_P99`] runs, the longest.
    pub p99_us: f64,
    /// How many runs were timed.
    pub runs: usize,
    /// Memory: for size 1 that of graph and session, for the others what a session of this size adds.
    pub memory_bytes: Option<u64>,
}

/// What was found of one variant on one engine. What could not be measured is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the engine, or `none` if no engine of this build reads the file.
    pub engine: String,
    /// The variant's file.
    pub variant: String,
    /// Time to load and optimize, in milliseconds.
    pub load_ms: Option<f64>,
    /// Share of the vectors with the golden best class, where there are classes.
    pub top1_agreement: Option<f64>,
    /// Mean absolute error of the outputs, in their own units.
    pub mean_abs_error: Option<f64>,
    /// The same, normalized: 1 is what the best constant answer scores.
    pub nmae: Option<f64>,
    /// Median time of a run of the session alone, in microseconds of its thread's CPU time.
    pub p50_us: Option<f64>,
    /// The mean of the same times.
    pub mean_us: Option<f64>,
    /// 99th percentile; of fewer than [`RUNS_FOR_P99`] runs the longest, and `reason` says so.
    pub p99_us: Option<f64>,
    /// How many runs were timed.
    pub runs: Option<usize>,
    /// Growth of the proportional set size of a process that loads and runs it.
    pub memory_bytes: Option<u64>,
    /// What the front end costs, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest: Option<IngestCost>,
    /// What batches gain, where that was tried: it passed, and [`Options::batches`] was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batches: Option<Batches>,
    /// What it has earned.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
    /// Whether the same proof would end so again: not if it was stopped from outside or was only too slow.
    #[serde(skip)]
    pub(crate) lasting: bool,
    /// Whether it was stopped from outside, and says nothing of the variant.
    #[serde(skip)]
    pub(crate) stopped: bool,
}

impl Row {
    fn choice(&self) -> Choice {
        Choice { engine: self.engine.clone(), variant: self.variant.clone() }
    }

    fn median(&self) -> f64 {
        self.p50_us.unwrap_or(f64::INFINITY)
    }

    fn is(&self, choice: &Choice) -> bool {
        self.engine == choice.engine && self.variant == choice.variant
    }

    fn without_measures(engine: &str, variant: &str, verdict: Verdict, reason: String) -> Self {
        Self {
            engine: engine.to_owned(),
            variant: variant.to_owned(),
            load_ms: None,
            top1_agreement: None,
            mean_abs_error: None,
            nmae: None,
            p50_us: None,
            mean_us: None,
            p99_us: None,
            runs: None,
            memory_bytes: None,
            ingest: None,
            batches: None,
            verdict,
            reason,
            lasting: true,
            stopped: false,
        }
    }
}

/// What is preferred to the fastest.
#[derive(Clone, Copy, Default)]
struct Wish<'a> {
    /// What tuning found best: taken if it passed.
    tuned: Option<&'a Choice>,
    /// What runs now: kept if it passed and is hardly slower.
    present: Option<&'a Choice>,
}

/// What a proof found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Passed if any variant did; refused if all were; else failed.
    pub verdict: Verdict,
    /// The variant that is to serve: what tuning found best, else the fastest that passed, or what runs now if that is
    /// hardly slower.
    pub chosen: Option<Choice>,
    /// The variant for times of pressure: the fastest of those for them that passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduced: Option<Choice>,
    /// Variants in the manifest's order, engines in the build's.
    pub rows: Vec<Row>,
}

impl Report {
    /// Chooses among rows. `reduced` says which variants are only for times of pressure.
    fn new(rows: Vec<Row>, reduced: impl Fn(&str) -> bool, wish: Wish<'_>) -> Self {
        let passed = rows.iter().filter(|row| row.verdict == Verdict::Passed);
        let (for_pressure, full): (Vec<&Row>, Vec<&Row>) = passed.partition(|row| reduced(&row.variant));
        let find =
            |choice: Option<&Choice>| full.iter().copied().find(|row| choice.is_some_and(|choice| row.is(choice)));
        let kept = find(wish.present)
            .filter(|kept| fastest_of(&full).is_some_and(|fastest| fastest.median() > REPLACED_BELOW * kept.median()));
        let chosen = find(wish.tuned).or(kept).or(fastest_of(&full)).map(Row::choice);
        let pressed = fastest_of(&for_pressure).map(Row::choice);
        let verdict = if chosen.is_some() {
            Verdict::Passed
        } else if rows.iter().all(|row| row.verdict == Verdict::Refused) {
            Verdict::Refused
        } else {
            Verdict::Failed
        };
        Self { verdict, chosen, reduced: pressed, rows }
    }

    /// The row of a variant on an engine.
    pub fn row(&self, choice: &Choice) -> Option<&Row> {
        self.rows.iter().find(|row| row.is(choice))
    }

    /// The rows as an aligned table for people, with a line about what was chosen.
    pub fn table(&self) -> String {
        table::write(self)
    }
}

/// One graph file and what it is judged by.
struct Candidate<'a> {
    variant: String,
    format: Format,
    graph: &'a [u8],
    golden_file: String,
    golden: &'a [u8],
    limits: Limits,
    budget: Budget,
    package: Option<&'a Package>,
}

/// Proves every variant on every engine that reads it.
///
/// # Errors
/// [`DepotError`] if a bare graph or its golden vectors cannot be read, or a child process cannot be started. That a
/// variant fails or is refused is no error but a row.
pub fn prove(subject: Subject<'_>, engines: &[Box<dyn Engine>], options: &Options) -> Result<Report, DepotError> {
    if let Some(folder) = &options.outputs {
        std::fs::create_dir_all(folder).map_err(DepotError::io(folder, "made"))?;
    }
    match subject {
        Subject::Package(package) => {
            let mut rows = Vec::new();
            for variant in &package.manifest().variants {
                rows.extend(prove_variant(package, variant, engines, options)?);
            }
            Ok(choose(package, rows, Wish { tuned: None, present: options.present.as_ref() }))
        }
        Subject::Graph { path, golden, limits } => {
            let format = Format::of(path)
                .ok_or_else(|| DepotError::package(path, "is neither an .onnx nor a .tflite file, nor a package"))?;
            let graph = std::fs::read(path).map_err(DepotError::io(path, "read"))?;
            let vectors = std::fs::read(golden).map_err(DepotError::io(golden, "read"))?;
            let golden_file = golden.display().to_string();
            // A damaged file is the user's to mend, whatever the engines say.
            Golden::read(&golden_file, &vectors)?;
            let candidate = Candidate {
                variant: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                format,
                graph: &graph,
                golden_file,
                golden: &vectors,
                limits,
                budget: Budget::default(),
                package: None,
            };
            let mut rows = prove_on_all(&candidate, engines, options)?;
            if rows.is_empty() {
                rows.push(unread(&candidate.variant, format));
            }
            Ok(Report::new(rows, |_| false, Wish { tuned: None, present: options.present.as_ref() }))
        }
    }
}

fn fastest_of<'a>(rows: &[&'a Row]) -> Option<&'a Row> {
    rows.iter().copied().min_by(|a, b| a.median().total_cmp(&b.median()))
}

/// The report on a package with these rows.
fn choose(package: &Package, rows: Vec<Row>, wish: Wish<'_>) -> Report {
    let reduced = |file: &str| {
        package.manifest().variants.iter().any(|variant| variant.file == file && variant.role == Role::Reduced)
    };
    Report::new(rows, reduced, wish)
}

/// Proves one variant of a package on all of these engines that read it.
fn prove_variant(
    package: &Package,
    variant: &Variant,
    engines: &[Box<dyn Engine>],
    options: &Options,
) -> Result<Vec<Row>, DepotError> {
    let file = &variant.file;
    let unproved = |reason: &str| {
        let readers = engines.iter().filter(|engine| engine.reads(variant.format));
        readers.map(|engine| Row::without_measures(engine.name(), file, Verdict::Refused, reason.to_owned())).collect()
    };
    match check_package(package, variant) {
        Ok(_) => {}
        // Vectors that cannot prove anything are a verdict on the variant, to be read in the report.
        Err(error @ DepotError::Golden { .. }) => return Ok(or_unread(unproved(&error.to_string()), variant)),
        Err(other) => return Err(other),
    }
    let (golden_file, golden) = package.golden(file);
    let candidate = Candidate {
        variant: file.clone(),
        format: variant.format,
        graph: package.graph(file),
        golden_file,
        golden,
        limits: variant.limits,
        budget: if options.budget { package.manifest().budget } else { Budget::default() },
        package: Some(package),
    };
    Ok(or_unread(prove_on_all(&candidate, engines, options)?, variant))
}

fn or_unread(rows: Vec<Row>, variant: &Variant) -> Vec<Row> {
    if rows.is_empty() { vec![unread(&variant.file, variant.format)] } else { rows }
}

/// A row for each of these engines that reads the candidate's format.
fn prove_on_all(
    candidate: &Candidate<'_>,
    engines: &[Box<dyn Engine>],
    options: &Options,
) -> Result<Vec<Row>, DepotError> {
    let readers = engines.iter().filter(|engine| engine.reads(candidate.format));
    readers.map(|engine| prove_on(candidate, engine.name(), options)).collect()
}

/// The row of a variant that no engine of this build reads.
fn unread(variant: &str, format: Format) -> Row {
    let format = match format {
        Format::Onnx => ".onnx",
        Format::Tflite => ".tflite",
    };
    let reason = format!("no engine of this build reads {format} files");
    Row::without_measures("none", variant, Verdict::Refused, reason)
}

fn prove_on(candidate: &Candidate<'_>, engine: &str, options: &Options) -> Result<Row, DepotError> {
    let variant = &candidate.variant;
    let outputs = options.outputs.as_ref().map(|folder| folder.join(format!("{engine}.{variant}.safetensors")));
    let job = Job {
        engine: engine.to_owned(),
        onnx: candidate.format == Format::Onnx,
        package: candidate.package.map(|package| (package.manifest_text().to_owned(), package.labels().to_vec())),
        golden_file: candidate.golden_file.clone(),
        limits: candidate.limits,
        graph_bytes: candidate.graph.len() as u64,
        golden_bytes: candidate.golden.len() as u64,
        timing: options.timing,
        wall: options.wall,
        batches: options.batches,
        data_bytes: options.data_bytes,
        // Loading may use several cores.
        cpu_seconds: options.wall.as_secs().max(1) * 2,
        outputs,
    };
    let outcome = spawn::run(&job, candidate.graph, candidate.golden, options.wall).map_err(|error| {
        let reason = format!("its process could not be run: {error}");
        DepotError::Proof { engine: engine.to_owned(), variant: variant.clone(), reason }
    })?;
    Ok(match outcome {
        Outcome::Measured(measured, larger) => {
            let row = measured_row(engine, variant, *measured, candidate.budget);
            let batches = larger.and_then(|larger| batches(&row, larger));
            Row { batches, ..row }
        }
        Outcome::Refused { load_ms, reason } => {
            Row { load_ms, ..Row::without_measures(engine, variant, Verdict::Refused, reason) }
        }
        Outcome::Broken { reason, cause } => {
            let (lasting, stopped) = (cause == Cause::Own, cause == Cause::Stopped);
            Row { lasting, stopped, ..Row::without_measures(engine, variant, Verdict::Failed, reason) }
        }
    })
}

/// What batches gain over a row that passed.
fn batches(row: &Row, larger: Larger) -> Option<Batches> {
    if row.verdict != Verdict::Passed {
        return None;
    }
    let single = BatchCost {
        size: 1,
        p50_us: row.p50_us?,
        mean_us: row.mean_us?,
        p99_us: row.p99_us?,
        runs: row.runs?,
        memory_bytes: row.memory_bytes,
    };
    let sizes = std::iter::once(single).chain(larger.sizes).collect();
    Some(Batches { sizes, stopped: larger.stopped })
}

/// To a tenth: more would say more than is known.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn measured_row(engine: &str, variant: &str, measured: Measured, budget: Budget) -> Row {
    let few = (measured.runs < RUNS_FOR_P99).then(|| format!("max of {} runs", measured.runs));
    let wrong = !measured.faults.is_empty();
    let mut reasons = measured.faults;
    if let Some(limit) = budget.latency_p99
        && measured.p99_us > limit.as_secs_f64() * 1e6
    {
        let what = few.as_deref().unwrap_or("p99");
        let limit = units::Duration(limit);
        reasons.push(format!("{what} {:.0} µs is above the budget's latency_p99 of {limit}", measured.p99_us));
    }
    if let Some((found, limit)) = measured.memory_bytes.zip(budget.memory)
        && found > limit
    {
        let found = found as f64 / f64::from(1 << 20);
        reasons.push(format!("{found:.1} MiB is above the budget's memory of {}", units::ByteSize(limit)));
    }
    let verdict = if reasons.is_empty() { Verdict::Passed } else { Verdict::Failed };
    if verdict == Verdict::Passed {
        reasons.push(match &few {
            Some(few) => format!("within its limits; p99 is the {few}"),
            None => "within its limits".to_owned(),
        });
        reasons.extend(measured.detail);
    }
    Row {
        engine: engine.to_owned(),
        variant: variant.to_owned(),
        load_ms: Some(rounded(measured.load_ms)),
        top1_agreement: measured.top1_agreement,
        mean_abs_error: measured.mean_abs_error.parse().ok(),
        nmae: measured.nmae.parse().ok(),
        p50_us: Some(rounded(measured.p50_us)),
        mean_us: Some(rounded(measured.mean_us)),
        p99_us: Some(rounded(measured.p99_us)),
        runs: Some(measured.runs),
        memory_bytes: measured.memory_bytes,
        ingest: measured.ingest.map(|cost| IngestCost {
            mean_us: rounded(cost.mean_us),
            p99_us: rounded(cost.p99_us),
            ..cost
        }),
        batches: None,
        verdict,
        reason: reasons.join("; "),
        lasting: wrong || verdict == Verdict::Passed,
        stopped: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(engine: &str, variant: &str, verdict: Verdict, p50_us: f64) -> Row {
        Row { p50_us: Some(p50_us), ..Row::without_measures(engine, variant, verdict, String::new()) }
    }

    fn choice(engine: &str, variant: &str) -> Choice {
        Choice { engine: engine.to_owned(), variant: variant.to_owned() }
    }

    #[test]
    fn the_fastest_that_passed_is_chosen() {
        let rows = vec![
            row("tflite", "a", Verdict::Passed, 20.0),
            row("tract", "a", Verdict::Failed, 5.0),
            row("tract", "b", Verdict::Passed, 10.0),
            row("tract", "small", Verdict::Passed, 1.0),
        ];
        let report = Report::new(rows, |variant| variant == "small", Wish::default());
        assert_eq!((report.verdict, report.chosen), (Verdict::Passed, Some(choice("tract", "b"))));
        assert_eq!(report.reduced, Some(choice("tract", "small")));
    }

    #[test]
    fn a_reduced_variant_alone_does_not_serve() {
        let rows = vec![row("tract", "a", Verdict::Failed, 5.0), row("tract", "small", Verdict::Passed, 1.0)];
        let report = Report::new(rows, |variant| variant == "small", Wish::default());
        assert_eq!((report.verdict, report.chosen), (Verdict::Failed, None));
    }

    #[test]
    fn what_tuning_found_wins_if_it_passed() {
        let rows = || vec![row("tflite", "a", Verdict::Passed, 10.0), row("tract", "a", Verdict::Passed, 90.0)];
        let chosen = |rows, tuned| {
            let present = choice("tflite", "a");
            Report::new(rows, |_| false, Wish { tuned: Some(&tuned), present: Some(&present) }).chosen
        };
        assert_eq!(chosen(rows(), choice("tract", "a")), Some(choice("tract", "a")));
        assert_eq!(chosen(rows(), choice("tract", "gone")), Some(choice("tflite", "a")));
        let failed = vec![row("tflite", "a", Verdict::Passed, 10.0), row("tract", "a", Verdict::Failed, 90.0)];
        assert_eq!(chosen(failed, choice("tract", "a")), Some(choice("tflite", "a")));
    }

    #[test]
    fn batches_are_told_of_what_passed_and_begin_with_one() {
        let larger = || Larger { sizes: Vec::new(), stopped: "2 gains 1 % over 1".to_owned() };
        let passed = measured_row("tract", "a", measured(700, 60.0), Budget::default());
        let found = batches(&passed, larger()).unwrap();
        assert_eq!((found.sizes.len(), found.sizes[0].size, found.sizes[0].runs), (1, 1, 700));
        let budget = Budget { latency_p99: Some(Duration::from_micros(50)), memory: None };
        assert_eq!(batches(&measured_row("tract", "a", measured(700, 60.0), budget), larger()), None);
    }

    #[test]
    fn what_runs_now_is_replaced_only_by_what_is_a_tenth_faster() {
        let rows = |other| vec![row("tflite", "a", Verdict::Passed, 100.0), row("tract", "a", Verdict::Passed, other)];
        let present = choice("tflite", "a");
        let wish = Wish { tuned: None, present: Some(&present) };
        let chosen = |other| Report::new(rows(other), |_| false, wish).chosen;
        assert_eq!(chosen(91.0), Some(choice("tflite", "a")));
        assert_eq!(chosen(90.0), Some(choice("tract", "a")));
        let gone = vec![row("tflite", "a", Verdict::Failed, 1.0), row("tract", "a", Verdict::Passed, 99.0)];
        let report = Report::new(gone, |_| false, wish);
        assert_eq!(report.chosen, Some(choice("tract", "a")));
    }

    #[test]
    fn a_package_is_refused_only_if_every_row_is() {
        let refused = || row("tflite", "a", Verdict::Refused, 1.0);
        assert_eq!(Report::new(vec![refused()], |_| false, Wish::default()).verdict, Verdict::Refused);
        let mixed = vec![refused(), row("tract", "a", Verdict::Failed, 1.0)];
        assert_eq!(Report::new(mixed, |_| false, Wish::default()).verdict, Verdict::Failed);
    }

    fn measured(runs: usize, p99_us: f64) -> Measured {
        Measured {
            load_ms: 1.26,
            memory_bytes: Some(3 << 20),
            p50_us: 10.0,
            mean_us: 11.04,
            p99_us,
            runs,
            ingest: None,
            top1_agreement: None,
            mean_abs_error: "inf".to_owned(),
            nmae: "0.5".to_owned(),
            faults: Vec::new(),
            detail: None,
        }
    }

    #[test]
    fn a_budget_that_is_broken_is_told_with_both_numbers() {
        let budget = Budget { latency_p99: Some(Duration::from_micros(50)), memory: Some(2 << 20) };
        let row = measured_row("tract", "a", measured(700, 60.0), budget);
        assert_eq!(
            row.reason,
            "p99 60 µs is above the budget's latency_p99 of 50us; 3.0 MiB is above the budget's memory of 2MiB"
        );
        assert_eq!((row.verdict, row.lasting, row.load_ms), (Verdict::Failed, false, Some(1.3)));
        let row = measured_row("tract", "a", measured(100, 60.0), budget);
        assert!(row.reason.starts_with("max of 100 runs 60 µs is above"), "{}", row.reason);
        let row = measured_row("tract", "a", measured(100, 40.0), Budget::default());
        assert_eq!(row.reason, "within its limits; p99 is the max of 100 runs");
    }

    #[test]
    fn a_report_is_json_as_the_contract_shows_it() {
        let report = Report::new(
            vec![measured_row("tract", "a.onnx", measured(700, 60.0), Budget::default())],
            |_| false,
            Wish::default(),
        );
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"verdict":"passed","chosen":{"engine":"tract","variant":"a.onnx"},"rows":[{"engine":"tract","variant":"a.onnx","load_ms":1.3,"top1_agreement":null,"mean_abs_error":null,"nmae":0.5,"p50_us":10.0,"mean_us":11.0,"p99_us":60.0,"runs":700,"memory_bytes":3145728,"verdict":"passed","reason":"within its limits"}]}"#
        );
    }
}
