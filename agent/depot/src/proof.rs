//! The proof: whether a package gives its golden outputs, inside its budget, on this device and engine.
//!
//! [`prove`] takes every variant to every engine that reads it, each in a process of its own, so a graph
//! that crashes or hangs an engine costs nothing but its verdict. The answer is a [`Report`]: a row for each, and the
//! fastest that passed.

pub(crate) mod child;
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
pub use self::measure::RUNS_FOR_P99;
use self::spawn::Outcome;
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
    /// What runs now, and stays unless another is at least a tenth faster.
    pub present: Option<Choice>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timing: Duration::from_secs(2),
            wall: Duration::from_secs(60),
            data_bytes: 2 << 30,
            outputs: None,
            present: None,
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
    /// 99th percentile; of fewer than [`RUNS_FOR_P99`] runs the longest, and `reason` says so.
    pub p99_us: Option<f64>,
    /// Growth of the proportional set size of a process that loads and runs it.
    pub memory_bytes: Option<u64>,
    /// What it has earned.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
    /// Whether the same proof would end so again: not if it was stopped from outside or was only too slow.
    #[serde(skip)]
    pub(crate) lasting: bool,
}

impl Row {
    fn without_measures(engine: &str, variant: &str, verdict: Verdict, reason: String) -> Self {
        Self {
            engine: engine.to_owned(),
            variant: variant.to_owned(),
            load_ms: None,
            top1_agreement: None,
            mean_abs_error: None,
            nmae: None,
            p50_us: None,
            p99_us: None,
            memory_bytes: None,
            verdict,
            reason,
            lasting: true,
        }
    }
}

/// What a proof found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Passed if any variant did; refused if all were; else failed.
    pub verdict: Verdict,
    /// The variant that is to serve: the fastest that passed, or what runs now if that is hardly slower.
    pub chosen: Option<Choice>,
    /// Variants in the manifest's order, engines in the build's.
    pub rows: Vec<Row>,
}

impl Report {
    /// Chooses among rows. `reduced` says which variants are only for times of pressure.
    fn new(rows: Vec<Row>, reduced: impl Fn(&str) -> bool, present: Option<&Choice>) -> Self {
        let median = |row: &Row| row.p50_us.unwrap_or(f64::INFINITY);
        let eligible = || rows.iter().filter(|row| row.verdict == Verdict::Passed && !reduced(&row.variant));
        let fastest = eligible().min_by(|a, b| median(a).total_cmp(&median(b)));
        let kept = present
            .and_then(|present| eligible().find(|row| row.engine == present.engine && row.variant == present.variant))
            .filter(|kept| fastest.is_some_and(|fastest| median(fastest) > REPLACED_BELOW * median(kept)));
        let chosen = kept.or(fastest).map(|row| Choice { engine: row.engine.clone(), variant: row.variant.clone() });
        let verdict = if chosen.is_some() {
            Verdict::Passed
        } else if rows.iter().all(|row| row.verdict == Verdict::Refused) {
            Verdict::Refused
        } else {
            Verdict::Failed
        };
        Self { verdict, chosen, rows }
    }

    /// The row of a variant on an engine.
    pub fn row(&self, choice: &Choice) -> Option<&Row> {
        self.rows.iter().find(|row| row.engine == choice.engine && row.variant == choice.variant)
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
            Ok(choose(package, rows, options.present.as_ref()))
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
            Ok(Report::new(rows, |_| false, options.present.as_ref()))
        }
    }
}

/// The report on a package with these rows.
fn choose(package: &Package, rows: Vec<Row>, present: Option<&Choice>) -> Report {
    let reduced = |file: &str| {
        package.manifest().variants.iter().any(|variant| variant.file == file && variant.role == Role::Reduced)
    };
    Report::new(rows, reduced, present)
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
        budget: package.manifest().budget,
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
        Outcome::Measured(measured) => measured_row(engine, variant, measured, candidate.budget),
        Outcome::Refused { load_ms, reason } => {
            Row { load_ms, ..Row::without_measures(engine, variant, Verdict::Refused, reason) }
        }
        Outcome::Broken { reason, lasting } => {
            Row { lasting, ..Row::without_measures(engine, variant, Verdict::Failed, reason) }
        }
    })
}

fn measured_row(engine: &str, variant: &str, measured: Measured, budget: Budget) -> Row {
    // A share of what is told would say more than is known.
    let rounded = |value: f64| (value * 10.0).round() / 10.0;
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
        p99_us: Some(rounded(measured.p99_us)),
        memory_bytes: measured.memory_bytes,
        verdict,
        reason: reasons.join("; "),
        lasting: wrong || verdict == Verdict::Passed,
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
        let report = Report::new(rows, |variant| variant == "small", None);
        assert_eq!((report.verdict, report.chosen), (Verdict::Passed, Some(choice("tract", "b"))));
    }

    #[test]
    fn what_runs_now_is_replaced_only_by_what_is_a_tenth_faster() {
        let rows = |other| vec![row("tflite", "a", Verdict::Passed, 100.0), row("tract", "a", Verdict::Passed, other)];
        let chosen = |other| Report::new(rows(other), |_| false, Some(&choice("tflite", "a"))).chosen;
        assert_eq!(chosen(91.0), Some(choice("tflite", "a")));
        assert_eq!(chosen(90.0), Some(choice("tract", "a")));
        let gone = vec![row("tflite", "a", Verdict::Failed, 1.0), row("tract", "a", Verdict::Passed, 99.0)];
        let report = Report::new(gone, |_| false, Some(&choice("tflite", "a")));
        assert_eq!(report.chosen, Some(choice("tract", "a")));
    }

    #[test]
    fn a_package_is_refused_only_if_every_row_is() {
        let refused = || row("tflite", "a", Verdict::Refused, 1.0);
        assert_eq!(Report::new(vec![refused()], |_| false, None).verdict, Verdict::Refused);
        let mixed = vec![refused(), row("tract", "a", Verdict::Failed, 1.0)];
        assert_eq!(Report::new(mixed, |_| false, None).verdict, Verdict::Failed);
    }

    fn measured(runs: usize, p99_us: f64) -> Measured {
        Measured {
            load_ms: 1.26,
            memory_bytes: Some(3 << 20),
            p50_us: 10.0,
            p99_us,
            runs,
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
        let report =
            Report::new(vec![measured_row("tract", "a.onnx", measured(700, 60.0), Budget::default())], |_| false, None);
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"verdict":"passed","chosen":{"engine":"tract","variant":"a.onnx"},"rows":[{"engine":"tract","variant":"a.onnx","load_ms":1.3,"top1_agreement":null,"mean_abs_error":null,"nmae":0.5,"p50_us":10.0,"p99_us":60.0,"memory_bytes":3145728,"verdict":"passed","reason":"within its limits"}]}"#
        );
    }
}
