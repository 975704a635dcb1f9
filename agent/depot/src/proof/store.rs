//! Where proofs are kept, so that a package is proved once and not at every start.
//!
//! A row of a report is valid for one package digest, variant, engine, engine library, agent build and CPU: the
//! conditions. It lies in `<state>/proofs/` as `<SHA-256 of the conditions>.json`, which holds the conditions in
//! full beside the row, so a file under a wrong name is noticed. `<package digest>.choice` holds what was chosen, as a
//! second proof of the package under other conditions has to beat it. Each file is replaced at once or not at all, and
//! one that does not read is as good as none.
//!
//! The agent build is the version and the SHA-256 of the running program. Hashing twenty megabytes takes a small ARM
//! core longer than a start may last, so the hash is kept too, in `program.json`, under the file's device, inode, size
//! and times of change: the kernel sets the last of these whenever content changes, and no program can set it back.
//!
//! All proofs are kept until there are more than [`KEPT`]; then the oldest files go.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use limpet_engine::{Engine, LoadOptions, Session};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Choice, Options, Report, Row, Verdict, choose, prove_variant, unread};
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
    /// The engine and the variant.
    pub choice: Choice,
    /// Median time of a run, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, or the longest of too few runs.
    pub p99_us: f64,
    /// Growth of the memory of a process that loads and runs it, where the kernel tells.
    pub memory_bytes: Option<u64>,
    /// All rows.
    pub report: Report,
    /// Why the proof could not be kept, if so: it holds now, and has to be repeated at the next start.
    pub not_kept: Option<String>,
}

impl Proved {
    /// What a report earns a package, or none if nothing in it passed.
    pub fn of(report: Report) -> Option<Self> {
        let choice = report.chosen.clone()?;
        let row = report.row(&choice)?;
        let (p50_us, p99_us, memory_bytes) = (row.p50_us?, row.p99_us?, row.memory_bytes);
        Some(Self { choice, p50_us, p99_us, memory_bytes, report, not_kept: None })
    }

    /// Loads the session that was proved.
    ///
    /// # Errors
    /// [`DepotError::Engine`] if the engine no longer takes the graph, [`DepotError::Proof`] if this build lacks it.
    pub fn open_session(
        &self,
        package: &Package,
        engines: &[Box<dyn Engine>],
        options: LoadOptions,
    ) -> Result<Box<dyn Session>, DepotError> {
        let Choice { engine: name, variant } = &self.choice;
        let missing = |reason: &str| DepotError::Proof {
            engine: name.clone(),
            variant: variant.clone(),
            reason: reason.to_owned(),
        };
        let engine = engines.iter().find(|engine| engine.name() == name);
        let engine = engine.ok_or_else(|| missing("this build has no such engine"))?;
        let known = package.manifest().variants.iter().find(|known| known.file == *variant);
        let known = known.ok_or_else(|| missing("the package has no such variant"))?;
        Ok(engine.load(known.format, package.graph(variant), options)?)
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
        fs::create_dir_all(&folder).map_err(DepotError::io(&folder, "made"))?;
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

    /// What may serve by the proofs that are kept, or none if any is missing or nothing passed.
    pub fn choice(&self, package: &Package, engines: &[Box<dyn Engine>]) -> Option<Proved> {
        let rows = pairs(package, engines)
            .map(|(variant, engine)| match engine {
                Some(engine) => Some(self.kept(package, &variant.file, engine)?.row),
                None => Some(unread(&variant.file, variant.format)),
            })
            .collect::<Option<Vec<_>>>()?;
        Proved::of(choose(package, rows, self.present(package).as_ref()))
    }

    /// What may serve: proves whatever lacks a valid proof, keeps what it finds, and chooses.
    ///
    /// Where nothing passes, what failed only for its time or because it was stopped is proved once more, since that
    /// may have been the device's bad day.
    ///
    /// # Errors
    /// [`DepotError::NotProved`] if nothing passed, or what [`prove`](super::prove) gives.
    pub fn get_or_prove(
        &self,
        package: &Package,
        engines: &[Box<dyn Engine>],
        options: &Options,
    ) -> Result<Proved, DepotError> {
        let mut fresh = Vec::new();
        let mut rows = Vec::new();
        for (variant, engine) in pairs(package, engines) {
            match engine.and_then(|engine| self.kept(package, &variant.file, engine)) {
                Some(kept) => rows.push(Row { lasting: kept.lasting, ..kept.row }),
                None => {
                    let row = prove_one(package, variant, engine, engines, options)?;
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
        let present = options.present.clone().or_else(|| self.present(package));
        let report = choose(package, rows, present.as_ref());
        let not_kept = match fresh.is_empty() {
            true => None,
            false => self.record(package, &report).err().map(|error| error.to_string()),
        };
        match Proved::of(report.clone()) {
            Some(proved) => Ok(Proved { not_kept, ..proved }),
            None => {
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
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(temporary.as_file_mut(), value)?;
    temporary.flush()?;
    temporary.as_file().sync_all()?;
    temporary.persist(folder.join(name)).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
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
