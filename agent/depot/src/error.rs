//! What can be wrong with a package, its golden vectors, a proof, or the places that packages and proofs are kept in.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// One sentence: the file, the key or tensor, what was found, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// A file or folder that the operating system would not give or take.
    #[error("{path}: cannot be {doing}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done to it: `read`, `written`, …
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A manifest that cannot be read or makes no sense.
    #[error("{0}")]
    Manifest(String),
    /// A package that lacks a file, has one too many, or is not in canonical form.
    #[error("{path}: {reason}")]
    Package {
        /// The folder or file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// Golden vectors that cannot be read, do not fit or prove nothing.
    #[error("{file}: {reason}")]
    Golden {
        /// The file, as the package calls it.
        file: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A decision that does not fit the graph.
    #[error("{0}")]
    Decision(String),
    /// The process that proves a variant could not be started or did not answer.
    #[error("the proof of {variant} on {engine} could not be carried out: {reason}")]
    Proof {
        /// Name of the engine.
        engine: String,
        /// The variant's file.
        variant: String,
        /// What went wrong.
        reason: String,
    },
    /// Somebody stopped the process that proves a variant: memory ran out, or a person did.
    #[error("the proof of {variant} on {engine} was stopped: {reason}")]
    Stopped {
        /// Name of the engine.
        engine: String,
        /// The variant's file.
        variant: String,
        /// By what.
        reason: String,
    },
    /// No engine may serve the package: every variant was refused or failed.
    #[error("{model}: no variant passed its proof: {reasons}")]
    NotProved {
        /// Name and version of the model.
        model: String,
        /// Engine, variant and reason of each.
        reasons: String,
    },
    /// A chunk that is not what the index says: damaged on its way, swapped with another, or made to do harm.
    #[error("chunk {chunk}: {reason}")]
    Chunk {
        /// Digest of what should be stored, in hexadecimal digits.
        chunk: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// An index that no package can come from.
    #[error("the index of {model} {version}: {reason}")]
    Index {
        /// Name of the model, as the index gives it.
        model: String,
        /// Its version, as the index gives it.
        version: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file of the local store that is missing or no longer what was written.
    #[error("{path}: {reason}")]
    Store {
        /// The file.
        path: PathBuf,
        /// What was found and what to do.
        reason: String,
    },
    /// No room for what should be stored. Nothing of it was kept, and what runs goes on.
    #[error("{path}: {reason}")]
    Full {
        /// The folder.
        path: PathBuf,
        /// The arithmetic, and what to do.
        reason: String,
    },
    /// A graph that was proved and that the engine now refuses.
    #[error(transparent)]
    Engine(#[from] limpet_engine::EngineError),
}

impl DepotError {
    /// Whether a stored file is not what was written: it says so itself, or the disk cannot give it any more. Everything
    /// else that keeps it from being read (too many open files, no memory, no right) says nothing of the file.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                let damage = [Errno::IO, Errno::BADMSG, Errno::UCLEAN].map(Errno::raw_os_error);
                source.raw_os_error().is_some_and(|code| damage.contains(&code))
            }
            _ => true,
        }
    }

    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }

    pub(crate) fn package(path: &Path, reason: impl Into<String>) -> Self {
        Self::Package { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn store(path: &Path, reason: impl Into<String>) -> Self {
        Self::Store { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn golden(file: &str, reason: impl Into<String>) -> Self {
        Self::Golden { file: file.to_owned(), reason: reason.into() }
    }
}
