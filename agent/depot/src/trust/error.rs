//! Why metadata is not trusted.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::clock::Judged;
use crate::remote::RemoteError;

/// One sentence: where, which object, what was found and expected, and that what runs goes on. None of these changes
/// what was trusted before.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The root metadata that the owner installed is not there or none.
    #[error("{path}: {reason}; no model is delivered, what runs goes on")]
    Root {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected and what to do.
        reason: String,
    },
    /// The gateway's own folder would not give or take.
    #[error("{path}: cannot be {doing}: {source}; nothing new is trusted, what runs goes on")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done to it.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has taken over metadata since this one read what is trusted.
    #[error(
        "{path}: another process has just taken over metadata, such as `limpet depot import`; nothing was changed by this \
         one, try again; what runs goes on"
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// An object could not be had, was too large or fell apart.
    #[error("{0}; nothing new is trusted, what runs goes on")]
    Remote(#[from] RemoteError),
    /// An object is not signed by enough of the keys that it has to be signed by.
    #[error("{place}: {object} is not signed as it must be: {reason}; refused, what runs goes on")]
    Signature {
        /// Where.
        place: String,
        /// Which.
        object: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// An object is older than what is trusted already: somebody replays old metadata.
    #[error("{place}: {object} went back: {reason}; refused, what runs goes on")]
    Rollback {
        /// Where.
        place: String,
        /// Which.
        object: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// An object is past its end: somebody holds newer metadata back, or the publisher no longer signs.
    #[error(
        "{place}: {role} expired at {expired}, judged at {judged}; `depot refresh` signs it anew; \
         nothing new is trusted, what runs goes on"
    )]
    Expired {
        /// Where.
        place: String,
        /// Of which role.
        role: &'static str,
        /// When it expired.
        expired: Timestamp,
        /// The time that this was judged by.
        judged: Judged,
    },
    /// An object does not say what it must.
    #[error("{place}: {object} is refused: {reason}; what runs goes on")]
    Refused {
        /// Where.
        place: String,
        /// Which.
        object: String,
        /// What was found and what was expected.
        reason: String,
    },
}
