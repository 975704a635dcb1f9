//! A package: the files that belong to one version of one model, checked against each other.
//!
//! It is a folder while it is made and a `.limpet` file when it travels: the canonical tar ([`archive`]), compressed
//! with zstd. Both open to the same thing with the same [`Digest`]. What does not belong to the model, such as the
//! script that trained it, is left out. A package is read whole and at once, so what was digested, what is proved and
//! what is loaded are the same bytes; drop it when the sessions are made.

pub mod archive;

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use self::archive::Files;
use crate::DepotError;
use crate::manifest::{self, Manifest, Task};

/// Extension of a packed package.
pub const EXTENSION: &str = "limpet";
/// Name of the labels in a package: one a line, in the order of the output's elements.
pub const LABELS: &str = "labels.txt";
/// Name of the golden vectors that every variant without its own is judged by.
pub const GOLDEN: &str = "golden.safetensors";
/// Name of the model card, which travels along if there is one.
pub const CARD: &str = "README.md";

/// Largest text file in a package, in bytes.
const TEXT_MAX: usize = 1 << 20;
/// Longest label, in bytes.
const LABEL_MAX: usize = 64;
/// Trades packing time for size on every link that the package travels over.
pub(crate) const ZSTD_LEVEL: i32 = 19;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One version of one model, in memory.
#[derive(Debug, Clone)]
pub struct Package {
    path: PathBuf,
    manifest: Manifest,
    labels: Arc<[String]>,
    files: Files,
    digest: Digest,
}

impl Package {
    /// Opens a folder or a `.limpet` file.
    ///
    /// # Errors
    /// [`DepotError`] with the file, the key, what was found and what was expected.
    pub fn open(path: &Path) -> Result<Self, DepotError> {
        let file = File::open(path).map_err(DepotError::io(path, "read"))?;
        if file.metadata().map_err(DepotError::io(path, "read"))?.is_dir() {
            return Self::from_folder(path);
        }
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            return Err(DepotError::package(
                path,
                format!("is neither a folder with a {} nor a .{EXTENSION} file", manifest::FILE_NAME),
            ));
        }
        let tar = zstd::Decoder::new(BufReader::new(file)).map_err(DepotError::io(path, "read"))?;
        Self::from_tar(path, tar)
    }

    /// Reads a package from its canonical uncompressed tar, with the checks that a `.limpet` file gets. `origin` is what
    /// its errors and [`Package::path`] call it, and need not be a file.
    ///
    /// # Errors
    /// [`DepotError`] as for [`Package::open`]; also if `tar` cannot be read to its end.
    pub fn from_tar(origin: &Path, tar: impl Read) -> Result<Self, DepotError> {
        let refuse = |reason: String| DepotError::package(origin, reason);
        let (files, digest) = archive::read(tar).map_err(refuse)?;
        let package = Self::check(origin, files, Some(digest))?;
        let members = members(&package.manifest);
        if let Some(stray) = package.files.keys().find(|name| !members.contains(name)) {
            return Err(refuse(format!(
                "holds \"{stray}\", which does not belong to the model: pack its folder again"
            )));
        }
        Ok(package)
    }

    fn from_folder(path: &Path) -> Result<Self, DepotError> {
        let manifest_path = path.join(manifest::FILE_NAME);
        let mut left = archive::RAW_MAX;
        let text = read_bounded(&manifest_path, &mut left)?
            .ok_or_else(|| DepotError::package(path, format!("there is no {} in it", manifest::FILE_NAME)))?;
        let manifest = parse_manifest(&manifest_path, &text)?;
        let mut files = Files::from([(manifest::FILE_NAME.to_owned(), text)]);
        for name in members(&manifest) {
            if files.contains_key(&name) {
                continue;
            }
            if let Some(bytes) = read_bounded(&path.join(&name), &mut left)? {
                files.insert(name, bytes);
            }
        }
        Self::check(path, files, None)
    }

    /// Checks files against the manifest among them.
    fn check(path: &Path, files: Files, digest: Option<Digest>) -> Result<Self, DepotError> {
        let refuse = |reason: String| DepotError::package(path, reason);
        let text = files
            .get(manifest::FILE_NAME)
            .ok_or_else(|| refuse(format!("there is no {} in it", manifest::FILE_NAME)))?;
        let manifest = parse_manifest(&path.join(manifest::FILE_NAME), text)?;
        for (index, variant) in manifest.variants.iter().enumerate() {
            if !files.contains_key(&variant.file) {
                return Err(DepotError::Manifest(format!(
                    "{}: `variant[{index}].file`: there is no \"{}\" beside it",
                    path.join(manifest::FILE_NAME).display(),
                    variant.file
                )));
            }
            let own = own_golden(&variant.file);
            if !files.contains_key(&own) && !files.contains_key(GOLDEN) {
                return Err(refuse(format!(
                    "there are no golden vectors for {}: expected {own} or {GOLDEN}; a model that cannot be proved is \
                     not run",
                    variant.file
                )));
            }
        }
        let labels: Arc<[String]> = match (manifest.task, files.get(LABELS)) {
            (Task::Classification, Some(bytes)) => parse_labels(&path.join(LABELS), bytes)?.into(),
            (Task::Classification, None) => {
                return Err(refuse(format!(
                    "there is no {LABELS} in it; a classification needs one, with a label a line"
                )));
            }
            (Task::Anomaly | Task::Regression, _) => Arc::new([]),
        };
        let trigger = manifest.decision.trigger.as_ref().and_then(|trigger| trigger.label.as_ref());
        if let Some(label) = trigger.filter(|label| !labels.contains(label)) {
            return Err(DepotError::Manifest(format!(
                "{}: `decision.trigger.label`: \"{label}\" is not in {LABELS}; {}",
                path.join(manifest::FILE_NAME).display(),
                crate::toml_error::suggestion(label, &labels)
            )));
        }
        let digest = digest.unwrap_or_else(|| archive::digest(&files));
        Ok(Self { path: path.to_owned(), manifest, labels, files, digest })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says about its model.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as written.
    pub fn manifest_text(&self) -> &str {
        std::str::from_utf8(&self.files[manifest::FILE_NAME]).expect("it was parsed as UTF-8")
    }

    /// The labels in the order of the output's elements; empty unless it classifies. How many the output needs, the
    /// proof says.
    pub fn labels(&self) -> &Arc<[String]> {
        &self.labels
    }

    /// SHA-256 of the canonical uncompressed tar: the same for the folder and the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The content of a variant's graph file.
    ///
    /// # Panics
    /// If the manifest names no such variant.
    pub fn graph(&self, file: &str) -> &[u8] {
        assert!(self.manifest.variants.iter().any(|variant| variant.file == file), "{file} is not a variant");
        &self.files[file]
    }

    /// Name and content of the golden vectors that a variant is judged by: its own, or those of all.
    pub fn golden(&self, file: &str) -> (String, &[u8]) {
        let own = own_golden(file);
        match self.files.get(&own) {
            Some(bytes) => (own, bytes),
            None => (GOLDEN.to_owned(), &self.files[GOLDEN]),
        }
    }

    /// The canonical uncompressed tar: what [`Package::digest`] is the SHA-256 of.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        archive::write(&self.files, &mut tar).expect("names were checked to fit a header, and memory takes all");
        tar
    }

    /// Writes the `.limpet` file. The same package gives the same bytes, whenever and wherever it is written; `out`
    /// is replaced at once or not at all.
    ///
    /// # Errors
    /// [`DepotError::Io`].
    pub fn write(&self, out: &Path) -> Result<(), DepotError> {
        let folder = match out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let failed = || DepotError::io(out, "written");
        // A package is for others to read, unlike a temporary file; the umask still has its say.
        let readable = Permissions::from_mode(0o666);
        let mut temporary = tempfile::Builder::new().permissions(readable).tempfile_in(folder).map_err(failed())?;
        let mut zstd = zstd::Encoder::new(temporary.as_file_mut(), ZSTD_LEVEL).map_err(failed())?;
        zstd.include_checksum(true).map_err(failed())?;
        archive::write(&self.files, &mut zstd).map_err(failed())?;
        zstd.finish().and_then(|file| file.flush()).map_err(failed())?;
        temporary.as_file().sync_all().map_err(failed())?;
        temporary.persist(out).map_err(|error| failed()(error.error))?;
        Ok(())
    }

    /// Refuses golden vectors that prove nothing, as far as that shows without running the graphs;
    /// [`run_graphs`](crate::run_graphs) shows the rest.
    ///
    /// # Errors
    /// [`DepotError::Golden`].
    pub fn check_golden(&self) -> Result<(), DepotError> {
        self.manifest.variants.iter().try_for_each(|variant| crate::golden::check_package(self, variant).map(|_| ()))
    }
}

/// Every file that may belong to a package with this manifest.
fn members(manifest: &Manifest) -> Vec<String> {
    let mut members: Vec<String> = [manifest::FILE_NAME, GOLDEN, CARD].map(str::to_owned).into();
    if manifest.task == Task::Classification {
        members.push(LABELS.to_owned());
    }
    for variant in &manifest.variants {
        members.push(variant.file.clone());
        members.push(own_golden(&variant.file));
    }
    members
}

/// Name of the golden vectors of one variant alone.
fn own_golden(variant: &str) -> String {
    let stem = variant.rsplit_once('.').map_or(variant, |(stem, _)| stem);
    format!("golden.{stem}.safetensors")
}

/// The content of a regular file, or none if there is no such file; `left` is what the package may still have.
fn read_bounded(path: &Path, left: &mut u64) -> Result<Option<Vec<u8>>, DepotError> {
    let failed = || DepotError::io(path, "read");
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed())?,
    };
    if !file.metadata().map_err(failed())?.is_file() {
        return Err(DepotError::package(path, "is not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(*left + 1).read_to_end(&mut bytes).map_err(failed())?;
    *left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
        let most = archive::RAW_MAX >> 20;
        DepotError::package(path, format!("with it the package has more than {most} MiB, the most that one may have"))
    })?;
    Ok(Some(bytes))
}

fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, DepotError> {
    if bytes.len() > TEXT_MAX {
        return Err(DepotError::package(path, format!("has {} bytes; expected at most {TEXT_MAX}", bytes.len())));
    }
    std::str::from_utf8(bytes)
        .map_err(|error| DepotError::package(path, format!("is not UTF-8 text: {error}; save it as UTF-8")))
}

fn parse_manifest(path: &Path, bytes: &[u8]) -> Result<Manifest, DepotError> {
    Manifest::parse(path, utf8(path, bytes)?)
}

/// One label a line; the last line may end without a line break, and lines may end as Windows ends them.
fn parse_labels(path: &Path, bytes: &[u8]) -> Result<Vec<String>, DepotError> {
    let mut labels: Vec<String> = Vec::new();
    for (index, line) in utf8(path, bytes)?.lines().enumerate() {
        let label = line.trim();
        let refuse = |reason: &str| Err(DepotError::package(path, format!("line {}: {reason}", index + 1)));
        if label.is_empty() {
            return refuse("is empty; expected one label a line");
        }
        if label.len() > LABEL_MAX || label.chars().any(char::is_control) {
            return refuse("a label has at most 64 bytes and no control characters");
        }
        if labels.iter().any(|other| other == label) {
            return refuse(&format!("\"{label}\" stands there twice"));
        }
        labels.push(label.to_owned());
    }
    if labels.is_empty() {
        return Err(DepotError::package(path, "is empty; expected one label a line"));
    }
    Ok(labels)
}

#[cfg(test)]
mod tests;
