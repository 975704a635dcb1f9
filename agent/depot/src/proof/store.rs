//! Where proofs are kept, so that a package is proved once and not at every start.
//!
//! A row of a report is valid for one package digest, variant, engine, engine library, agent build and CPU: the
//! conditions. It lies in `<state>/proofs/` as `<SHA-256 of the conditions>.json`, which holds the conditions in
//! full beside the row, so a file under a wrong name is noticed. `<package digest>.choice` holds what was chosen, as a
//! second proof of the package under other conditions has to beat it. Each file is replaced at once or not at all, and
//! one that does not read is as good as none.
//!
//! `<package digest>.tuning` holds what a sweep over engines, threads and batches found best. It is valid for the same
//! package, engine library and CPU, and for every program of the same version, because another program than the agent
//! makes it: limpet-lab stores it where the agent looks.
//!
//! The agent build is the version and the SHA-256 of the running program. Hashing twenty megabytes takes a small ARM
//! core longer than a start may last, so the hash is kept too, in `program.json`, under the file's device, inode, size
//! and times of change: the kernel sets the last of these whenever content changes, and no program can set it back.
//!
//! All proofs are kept until there are more than [`KEPT`]; then the oldest files go.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use limpet_engine::{Engine, Graph, LoadOptions, Session};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Batches, Choice, IngestCost, Options, RUNS_FOR_P99, Report, Row, Verdict, Wish, choose, prove_variant, unread,
};
use crate::DepotError;
use crate::manifest::Variant;
use crate::package::{Digest, Package};

/// Most files in the folder.
pub const KEPT: usize = 512;
/// Largest file that is read back, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// A package that may serve, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Proved {
    /// What serves.
    pub serving: ProvedVariant,
    /// What serves under pressure, if the package has a variant for that which passed.
    pub reduced: Option<ProvedVariant>,
    /// Threads that a run of what serves may use: 1 unless tuning found another number. Times are those of one thread.
    pub threads: usize,
    /// The largest batch that tuning found worth it, if it was tuned.
    pub batch_cap: Option<usize>,
    /// All rows.
    pub report: Report,
    /// Why the proof could not be kept, if so: it holds now, and has to be repeated at the next start.
    pub not_kept: Option<String>,
}

/// A variant that passed on an engine, and what it costs there. Times are CPU time, in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct ProvedVariant {
    /// The engine and the variant.
    pub choice: Choice,
    /// Median of a run.
    pub p50_us: f64,
    /// Mean of a run.
    pub mean_us: f64,
    /// 99th percentile, or the longest of too few runs.
    pub p99_us: f64,
    /// Whether the runs were too few for a 99th percentile.
    pub few_runs: bool,
    /// Growth of the memory of a process that loads and runs it, where the kernel tells.
    pub memory_bytes: Option<u64>,
    /// What the front end costs, where there is one.
    pub ingest: Option<IngestCost>,
    /// What batches gain; none if they were not tried.
    pub batches: Option<Batches>,
}

impl ProvedVariant {
    fn of(report: &Report, choice: &Choice) -> Option<Self> {
        let row = report.row(choice)?;
        Some(Self {
            choice: choice.clone(),
            p50_us: row.p50_us?,
            mean_us: row.mean_us?,
            p99_us: row.p99_us?,
            few_runs: row.runs? < RUNS_FOR_P99,
            memory_bytes: row.memory_bytes,
            ingest: row.ingest,
            batches: row.batches.clone(),
        })
    }
}

/// What a sweep over engines, threads and batches found best.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// The engine and the variant.
    pub choice: Choice,
    /// Threads of a run, at least 1.
    pub threads: usize,
    /// The largest batch that is worth it, at least 1.
    pub batch: usize,
}

impl Proved {
    /// What a report earns a package, or none if nothing in it passed.
    pub fn of(report: Report) -> Option<Self> {
        let serving = ProvedVariant::of(&report, report.chosen.as_ref()?)?;
        let reduced = report.reduced.as_ref().and_then(|reduced| ProvedVariant::of(&report, reduced));
        Some(Self { serving, reduced, threads: 1, batch_cap: None, report, not_kept: None })
    }

    /// Applies a tuning, if it is of what serves.
    fn tuned(self, tuning: Option<&Tuning>) -> Self {
        match tuning.filter(|tuning| tuning.choice == self.serving.choice) {
            Some(tuning) => Self { threads: tuning.threads, batch_cap: Some(tuning.batch), ..self },
            None => self,
        }
    }

    /// Opens the graph of a variant that was proved: [`Proved::serving`] or [`Proved::reduced`].
    ///
    /// # Errors
    /// [`DepotError::Engine`] if the engine no longer takes the graph, [`DepotError::Proof`] if this build lacks it.
    pub fn open_graph(
        &self,
        which: &ProvedVariant,
        package: &Package,
        engines: &[Box<dyn Engine>],
    ) -> Result<Box<dyn Graph>, DepotError> {
        let Choice { engine: name, variant } = &which.choice;
        let missing = |reason: &str| DepotError::Proof {
            engine: name.clone(),
            variant: variant.clone(),
            reason: reason.to_owned(),
        };
        let engine = engines.iter().find(|engine| engine.name() == name);
        let engine = engine.ok_or_else(|| missing("this build has no such engine"))?;
        let known = package.manifest().variants.iter().find(|known| known.file == *variant);
        let known = known.ok_or_else(|| missing("the package has no such variant"))?;
        Ok(engine.open(known.format, package.graph(variant))?)
    }

    /// A session of what serves, where one is all that is wanted.
    ///
    /// # Errors
    /// As for [`Proved::open_graph`].
    pub fn open_session(
        &self,
        package: &Package,
        engines: &[Box<dyn Engine>],
        options: LoadOptions,
    ) -> Result<Box<dyn Session>, DepotError> {
        Ok(self.open_graph(&self.serving, package, engines)?.session(options)?)
    }
}

/// The proofs of one device.
#[derive(Debug)]
pub struct ProofStore {
    folder: PathBuf,
    agent: String,
    cpu: String,
    /// Name and library of each engine.
    engines: Vec<(String, String)>,
}

/// What a row is valid for. Every part is text, so that a person can compare two of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Conditions {
    package: String,
    variant: String,
    engine: String,
    library: String,
    agent: String,
    cpu: String,
}

/// A row as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    conditions: Conditions,
    row: Row,
    /// Whether the same proof would end so again.
    lasting: bool,
}

impl Kept {
    /// Whether it tells what these options ask for.
    fn answers(&self, options: &Options) -> bool {
        !options.batches || self.row.verdict != Verdict::Passed || self.row.batches.is_some()
    }
}

/// A tuning as it is kept, with what it is valid for.
#[derive(Serialize, Deserialize)]
struct KeptTuning {
    package: String,
    library: String,
    version: String,
    cpu: String,
    tuning: Tuning,
}

/// The hash of the running program, and what tells that it is still the same file.
#[derive(Serialize, Deserialize)]
struct Program {
    stat: Vec<i64>,
    sha256: String,
}

impl ProofStore {
    /// The proofs under a state directory, which are valid for these engines, this program and this CPU.
    ///
    /// # Errors
    /// [`DepotError::Io`] if the folder cannot be made or the running program not be read.
    pub fn new(state: &Path, engines: &[Box<dyn Engine>]) -> Result<Self, DepotError> {
        let folder = state.join("proofs");
        // The state folder is its owner's alone, whoever makes it.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(DepotError::io(&folder, "made"))?;
        let program = program_digest(&folder).map_err(DepotError::io(Path::new("/proc/self/exe"), "read"))?;
        let engines = engines
            .iter()
            .map(|engine| {
                let library = engine.library();
                (engine.name().to_owned(), format!("{} {}", library.version, library.sha256.unwrap_or_default()))
            })
            .collect();
        Ok(Self { folder, agent: format!("{} {program}", env!("CARGO_PKG_VERSION")), cpu: cpu(), engines })
    }

    /// What may serve by the proofs that are kept, or none if any is missing or nothing passed. `options` tells whether
    /// batches are wanted and what runs now.
    pub fn choice(&self, package: &Package, engines: &[Box<dyn Engine>], options: &Options) -> Option<Proved> {
        let rows = pairs(package, engines)
            .map(|(variant, engine)| match engine {
                Some(engine) => {
                    let kept = self.kept(package, &variant.file, engine)?;
                    kept.answers(options).then_some(kept.row)
                }
                None => Some(unread(&variant.file, variant.format)),
            })
            .collect::<Option<Vec<_>>>()?;
        let (report, tuning) = self.choose(package, rows, options);
        Some(Proved::of(report)?.tuned(tuning.as_ref()))
    }

    /// Chooses among rows by what is kept of the package besides them.
    fn choose(&self, package: &Package, rows: Vec<Row>, options: &Options) -> (Report, Option<Tuning>) {
        let present = options.present.clone().or_else(|| self.present(package));
        let tuning = self.tuning(package);
        let wish = Wish { tuned: tuning.as_ref().map(|tuning| &tuning.choice), present: present.as_ref() };
        (choose(package, rows, wish), tuning)
    }

    /// What may serve: proves whatever lacks a valid proof, keeps what it finds, and chooses.
    ///
    /// A kept row of a variant that passed without batches is missing where [`Options::batches`] asks for them.
    ///
    /// Where nothing passes, what failed only for its time or because it was stopped is proved once more, since that
    /// may have been the device's bad day.
    ///
    /// # Errors
    /// [`DepotError::NotProved`] if nothing passed, [`DepotError::Stopped`] if that is so because somebody stopped a proof, or
    /// what [`prove`](super::prove) gives.
    pub fn get_or_prove(
        &self,
        package: &Package,
        engines: &[Box<dyn Engine>],
        options: &Options,
    ) -> Result<Proved, DepotError> {
        let mut fresh = Vec::new();
        let mut rows = Vec::new();
        for (variant, engine) in pairs(package, engines) {
            let kept = engine.and_then(|engine| self.kept(package, &variant.file, engine));
            if let Some(kept) = kept.as_ref().filter(|kept| kept.answers(options)) {
                rows.push(Row { lasting: kept.lasting, ..kept.row.clone() });
                continue;
            }
            let row = prove_one(package, variant, engine, engines, options)?;
            match kept {
                // What holds without batches is not lost to the device's bad day.
                Some(kept) if row.verdict != Verdict::Passed && !row.lasting => {
                    rows.push(Row { lasting: kept.lasting, ..kept.row });
                }
                _ => {
                    fresh.push(rows.len());
                    rows.push(row);
                }
            }
        }
        if rows.iter().all(|row| row.verdict != Verdict::Passed) {
            for (index, (variant, engine)) in pairs(package, engines).enumerate() {
                if !rows[index].lasting && !fresh.contains(&index) {
                    rows[index] = prove_one(package, variant, engine, engines, options)?;
                    fresh.push(index);
                }
            }
        }
        let (report, tuning) = self.choose(package, rows, options);
        let not_kept = match fresh.is_empty() {
            true => None,
            false => self.record(package, &report).err().map(|error| error.to_string()),
        };
        match Proved::of(report.clone()) {
            Some(proved) => Ok(Proved { not_kept, ..proved.tuned(tuning.as_ref()) }),
            None => {
                if let Some(row) = report.rows.iter().find(|row| row.stopped) {
                    let Row { engine, variant, reason, .. } = row.clone();
                    return Err(DepotError::Stopped { engine, variant, reason });
                }
                let manifest = package.manifest();
                let reasons: Vec<String> = report
                    .rows
                    .iter()
                    .map(|row| format!("{} on {}: {}", row.variant, row.engine, row.reason))
                    .collect();
                Err(DepotError::NotProved {
                    model: format!("{} {}", manifest.name, manifest.version),
                    reasons: reasons.join("; "),
                })
            }
        }
    }

    /// Keeps a report on a package, in place of what was kept of the same.
    ///
    /// # Errors
    /// [`DepotError::Io`].
    pub fn record(&self, package: &Package, report: &Report) -> Result<(), DepotError> {
        for row in &report.rows {
            if let Some(conditions) = self.conditions(package, &row.variant, &row.engine) {
                let name = conditions.file_name();
                let kept = Kept { conditions, row: row.clone(), lasting: row.lasting };
                self.write(&name, &kept)?;
            }
        }
        if let Some(choice) = &report.chosen {
            self.write(&choice_name(package), choice)?;
        }
        self.prune().map_err(DepotError::io(&self.folder, "tidied"))
    }

    /// What was chosen of this package when it was last proved.
    fn present(&self, package: &Package) -> Option<Choice> {
        read(&self.folder.join(choice_name(package)))
    }

    /// Keeps a tuning of a package, in place of another.
    ///
    /// # Errors
    /// [`DepotError::Proof`] if it names no engine of this build, no variant of the package, or a number of 0;
    /// [`DepotError::Io`].
    pub fn keep_tuning(&self, package: &Package, tuning: &Tuning) -> Result<(), DepotError> {
        let Choice { engine, variant } = &tuning.choice;
        let refuse = |reason: &str| DepotError::Proof {
            engine: engine.clone(),
            variant: variant.clone(),
            reason: reason.to_owned(),
        };
        let kept = self.tuned_for(package, tuning).ok_or_else(|| refuse("this build has no such engine"))?;
        if !package.manifest().variants.iter().any(|known| known.file == *variant) {
            return Err(refuse("the package has no such variant"));
        }
        if tuning.threads == 0 || tuning.batch == 0 {
            return Err(refuse("a tuning has at least one thread and a batch of at least 1"));
        }
        self.write(&tuning_name(package), &kept)
    }

    /// The tuning that is kept of a package, if it is valid: made on this CPU, with the engine library of now, by a
    /// program of this version.
    pub fn tuning(&self, package: &Package) -> Option<Tuning> {
        let kept: KeptTuning = read(&self.folder.join(tuning_name(package)))?;
        let now = self.tuned_for(package, &kept.tuning)?;
        let same = (&kept.package, &kept.library, &kept.version, &kept.cpu)
            == (&now.package, &now.library, &now.version, &now.cpu);
        (same && kept.tuning.threads > 0 && kept.tuning.batch > 0).then_some(kept.tuning)
    }

    /// A tuning with what makes it valid now; none if this build lacks its engine.
    fn tuned_for(&self, package: &Package, tuning: &Tuning) -> Option<KeptTuning> {
        let (_, library) = self.engines.iter().find(|(name, _)| *name == tuning.choice.engine)?;
        Some(KeptTuning {
            package: package.digest().to_string(),
            library: library.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu: self.cpu.clone(),
            tuning: tuning.clone(),
        })
    }

    fn kept(&self, package: &Package, variant: &str, engine: &str) -> Option<Kept> {
        let conditions = self.conditions(package, variant, engine)?;
        let kept: Kept = read(&self.folder.join(conditions.file_name()))?;
        (kept.conditions == conditions && kept.row.variant == variant && kept.row.engine == engine).then_some(kept)
    }

    fn conditions(&self, package: &Package, variant: &str, engine: &str) -> Option<Conditions> {
        let (engine, library) = self.engines.iter().find(|(name, _)| name == engine)?;
        Some(Conditions {
            package: package.digest().to_string(),
            variant: variant.to_owned(),
            engine: engine.clone(),
            library: library.clone(),
            agent: self.agent.clone(),
            cpu: self.cpu.clone(),
        })
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), DepotError> {
        let path = self.folder.join(name);
        write(&self.folder, name, value).map_err(DepotError::io(&path, "written"))
    }

    /// Removes the oldest files beyond [`KEPT`].
    fn prune(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        let excess = files.len().saturating_sub(KEPT);
        files[..excess].iter().try_for_each(|(_, path)| fs::remove_file(path))
    }
}

impl Conditions {
    fn file_name(&self) -> String {
        let text = serde_json::to_vec(self).expect("plain text becomes JSON");
        format!("{}.json", Digest::of(&text))
    }
}

fn choice_name(package: &Package) -> String {
    format!("{}.choice", package.digest())
}

fn tuning_name(package: &Package) -> String {
    format!("{}.tuning", package.digest())
}

/// Proves one variant on one engine, or tells that none reads it.
fn prove_one(
    package: &Package,
    variant: &Variant,
    engine: Option<&str>,
    engines: &[Box<dyn Engine>],
    options: &Options,
) -> Result<Row, DepotError> {
    let one = engine.and_then(|name| engines.iter().position(|engine| engine.name() == name));
    let engines = one.map_or(&[][..], |index| &engines[index..=index]);
    let mut rows = prove_variant(package, variant, engines, options)?;
    Ok(rows.pop().expect("there is a row for one engine or for none"))
}

/// Every variant with every engine that reads it, or with none where no engine does.
fn pairs<'a>(
    package: &'a Package,
    engines: &'a [Box<dyn Engine>],
) -> impl Iterator<Item = (&'a Variant, Option<&'a str>)> {
    package.manifest().variants.iter().flat_map(|variant| {
        let mut readers: Vec<Option<&str>> =
            engines.iter().filter(|engine| engine.reads(variant.format)).map(|engine| Some(engine.name())).collect();
        if readers.is_empty() {
            readers.push(None);
        }
        readers.into_iter().map(move |reader| (variant, reader))
    })
}

/// SHA-256 of the running program in hex, from the folder if the file has not changed since it was hashed.
fn program_digest(folder: &Path) -> io::Result<String> {
    let mut file = File::open("/proc/self/exe")?;
    let meta = file.metadata()?;
    let stat = vec![
        meta.dev().cast_signed(),
        meta.ino().cast_signed(),
        meta.size().cast_signed(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ];
    // Both programs share a state directory on a developer's machine, so each has a file of its own.
    let name = format!("program-{}-{}.json", meta.dev(), meta.ino());
    if let Some(program) = read::<Program>(&folder.join(&name)).filter(|program| program.stat == stat) {
        return Ok(program.sha256);
    }
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    let sha256 = Digest(hash.finalize().into()).to_string();
    // Where it cannot be kept it is hashed again next time.
    let _ = write(folder, &name, &Program { stat, sha256: sha256.clone() });
    Ok(sha256)
}

/// Model and features of the CPUs: what decides which code an engine runs.
///
/// From sysfs, because a unit with `ProcSubset=pid` sees no `/proc/cpuinfo`, and the same proof must hold inside a
/// sandbox and out of it. A kernel without that file gets the other.
fn cpu() -> String {
    let folder = Path::new("/sys/devices/system/cpu");
    let Ok(modalias) = fs::read_to_string(folder.join("modalias")) else {
        return from_cpuinfo(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    };
    let cpus = fs::read_dir(folder).into_iter().flatten().flatten();
    // On ARM64 the model is a register of each CPU, and they may differ (big.LITTLE).
    let mut models: Vec<String> = cpus
        .filter_map(|cpu| fs::read_to_string(cpu.path().join("regs/identification/midr_el1")).ok())
        .map(|model| model.trim().to_owned())
        .collect();
    models.sort_unstable();
    models.dedup();
    models.insert(0, modalias.trim().to_owned());
    models.join("\n")
}

/// Model and features from the text of `/proc/cpuinfo`, each line that differs once.
fn from_cpuinfo(cpuinfo: &str) -> String {
    let telling = ["model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"];
    let mut lines: Vec<String> = cpuinfo
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            let key = key.trim();
            telling.contains(&key).then(|| format!("{key}: {}", value.trim()))
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    lines.join("\n")
}

/// A file of ours, or none if it is missing, too large or does not read: then it is as if it were not there.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let file = File::open(path).ok()?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, FILE_MAX), &mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Replaces a file at once or not at all, and after that for good.
fn write(folder: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    crate::replace::replace(&folder.join(name), ".tmp", &serde_json::to_vec_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_told_by_what_decides_the_code() {
        let x86 = "processor : 0\nmodel name\t: Zen\ncpu MHz\t: 2400.1\nflags\t\t: sse2 avx2\n\n\
                   processor : 1\nmodel name\t: Zen\ncpu MHz\t: 1800.9\nflags\t\t: sse2 avx2\n";
        assert_eq!(from_cpuinfo(x86), "flags: sse2 avx2\nmodel name: Zen");
        let arm = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\nCPU part\t: 0xd08\n";
        assert_eq!(from_cpuinfo(arm), "CPU part: 0xd08\nFeatures: fp asimd");
        assert!(!cpu().is_empty());
    }

    #[test]
    fn the_program_is_hashed_once_and_again_when_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let first = program_digest(folder.path()).unwrap();
        assert_eq!(first, Digest::of(&fs::read("/proc/self/exe").unwrap()).to_string());
        let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut program: Program = read(&path).unwrap();
        program.sha256 = "kept".to_owned();
        fs::write(&path, serde_json::to_vec(&program).unwrap()).unwrap();
        assert_eq!(program_digest(folder.path()).unwrap(), "kept");
        program.stat[6] += 1;
        fs::write(&path, serde_json::to_vec(&program).unwrap()).unwrap();
        assert_eq!(program_digest(folder.path()).unwrap(), first);
    }

    #[test]
    fn a_file_that_does_not_read_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        assert!(read::<Choice>(&path).is_none());
        fs::write(&path, "{\"engine\":").unwrap();
        assert!(read::<Choice>(&path).is_none());
        let choice = Choice { engine: "tract".into(), variant: "a.onnx".into() };
        write(folder.path(), "x", &choice).unwrap();
        assert_eq!(read(&path), Some(choice));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
