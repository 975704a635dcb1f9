//! The publisher's side of a depot: keys, signatures, and what is put where in which order.
//!
//! A publisher has a folder of keys, and beside them its own copy of everything it signed ([`Home`]). That copy, not
//! the depot, is what it goes by: a depot that lost a message says nothing about it. A command makes the next [`Set`]
//! of signed metadata ([`Editor`]), saves it beside the keys by one rename, and then sends what the depot lacks, in an
//! order in which whoever reads meanwhile finds the old set whole or the new one whole: chunks, targets, metadata, and
//! the timestamp last. Chunks go out before the set that names them is saved. So a command may end at any point; the
//! same command again, or any other that changes something, first brings the depot to the saved set.
//!
//! What was sent to a place is kept in a journal of that place ([`home::Journal`]), written before the message goes out
//! and again when it is acknowledged: from it `gc` knows what nobody names any more, and an interrupted upload what
//! need not be sent again.
//!
//! How long metadata lives is told by the constants of [`editor`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use limpet_wire::depot::Name;

use crate::DepotError;
use crate::remote::RemoteError;

pub mod config;
pub mod editor;
pub mod forge;
pub mod home;
pub mod keys;
pub mod publisher;
pub mod set;
#[cfg(test)]
pub(crate) mod tests;

pub use editor::{Editor, Signers};
pub use home::Home;
pub use keys::{KeyRing, Secret, SigningKey};
pub use publisher::{
    Checked, Listed, Problem, Published, Publisher, ReleaseChange, Removed, Repaired, RoleKeys, Watch, init,
};
pub use set::{Role, Set};

/// Why something could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A file or folder that the operating system would not give or take.
    #[error("{path}: cannot be {doing}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done to it.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A key's file that cannot be used. Never shows what is in it.
    #[error("{path}: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Another publisher is at work with the same keys; it ends some time.
    #[error("{}: another publisher is at work with these keys; wait for it to end", .0.display())]
    Busy(
        /// The lock that it holds.
        PathBuf,
    ),
    /// Too few keys of a role are at hand.
    #[error(
        "{found} of the {threshold} keys that must sign as {role} are here; missing: {missing}. They are looked for in \
         {folders}; if they are kept elsewhere, name that folder with --offline-keys"
    )]
    KeysMissing {
        /// The role.
        role: &'static str,
        /// How many are here.
        found: usize,
        /// How many must sign.
        threshold: u64,
        /// Names of the files that are not here.
        missing: String,
        /// Where they were looked for.
        folders: String,
    },
    /// Metadata that does not verify, or a copy that is damaged.
    #[error("{place}: {reason}")]
    Metadata {
        /// Where it was found.
        place: String,
        /// What was found, what was expected, and what to do.
        reason: String,
    },
    /// The depot has what this publisher did not sign.
    #[error("{place}: {reason}")]
    Conflict {
        /// The depot.
        place: String,
        /// What it has and what this publisher has, and what to do.
        reason: String,
    },
    /// The depot gave no answer in time, which proves nothing.
    #[error(
        "{place}: {name} did not come within {} s; if the depot lost it, `limpet-lab depot repair` puts it back, with the \
         packages as arguments if chunks are gone too",
        limit.as_secs()
    )]
    Silent {
        /// The depot.
        place: String,
        /// What was asked for.
        name: Name,
        /// How long.
        limit: Duration,
    },
    /// What was asked for makes no sense as things are.
    #[error("{0}")]
    Refused(String),
    /// The depot could not be read or written.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A package is not as it should be.
    #[error(transparent)]
    Package(#[from] DepotError),
}

impl PublishError {
    fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }

    fn metadata(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Metadata { place: place.into(), reason: reason.into() }
    }
}
