//! Fetching one version of a model into the store.
//!
//! Only chunks that the store lacks are asked for, a few at a time, no faster than the rate allows; each is verified as it
//! comes and kept at once, so a fetch that is cut off goes on where it was. What does not verify is asked for again: a
//! broker may keep a damaged message for ever, and then the fetch fails by name, to be tried again later. Nothing here
//! gives up because something did not come; whoever calls bounds the time, as [`Watched`](crate::remote::Watched) does.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use limpet_wire::depot::{ChunkRef, Hex, Index, Name, index_name};
use tokio::time::Instant;

use crate::remote::{Remote, RemoteError, Stalled, object};
use crate::store::{CONFIGURATION_MAX, Configuration, Store, check_index};
use crate::trust::{TargetInfo, Trusted};
use crate::web::Web;
use crate::{DepotError, Digest};

/// Chunks that are asked for at once.
const AT_ONCE: usize = 8;
/// How often a chunk that does not verify is asked for, and the pause before the second time, which doubles.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// What a fetch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that the whole store may hold.
    pub disk: u64,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of chunks that are there.
    pub done: u64,
    /// Bytes of all its chunks.
    pub of: u64,
}

/// Why a version is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The signed metadata does not list it.
    #[error("{0} is not listed in the signed metadata of the depot")]
    NotListed(String),
    /// The depot did not give something, or gave what does not verify.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The web server with the chunks cannot be used.
    #[error("{0}")]
    Web(String),
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] DepotError),
    /// What its publisher signed is no package that can be taken. It will not change, so asking again is no use.
    #[error("{what}: {why}; publish it again")]
    Unfit {
        /// The object.
        what: String,
        /// What was found and what was expected.
        why: String,
    },
    /// Nothing of it came any more.
    #[error("{0}; others go first")]
    Stalled(#[from] Stalled),
}

/// Where a gateway has the chunks from.
pub enum Chunks<'a> {
    /// The depot itself.
    Depot(&'a dyn Remote),
    /// The web server that the signed metadata names.
    Web(Web),
}

impl<'a> Chunks<'a> {
    /// Where the signed metadata says. `ca_file`: authorities that vouch for a web server, if not those of the system.
    ///
    /// # Errors
    /// [`FetchError::Web`] if a web server is named and cannot be used.
    pub fn of(trusted: &Trusted, depot: &'a dyn Remote, ca_file: Option<&Path>) -> Result<Self, FetchError> {
        let Some(url) = &trusted.chunks else { return Ok(Self::Depot(depot)) };
        Web::new(url, ca_file).map(Self::Web).map_err(|error| FetchError::Web(format!("{url}: {error}")))
    }

    /// As something that is read from.
    pub fn remote(&self) -> &dyn Remote {
        match self {
            Self::Depot(depot) => *depot,
            Self::Web(web) => web,
        }
    }
}

/// Fetches the chunks of a version that the store lacks, from the depot or from a web server. It is complete in the store afterwards, and its index is kept.
///
/// # Errors
/// [`FetchError`]. What was fetched stays.
pub async fn chunks(
    store: &Store,
    remote: &dyn Remote,
    index: &Index,
    bounds: Bounds,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), FetchError> {
    let missing = store.missing(index);
    let of = index.stored_bytes();
    let left: u64 = missing.iter().map(|chunk| u64::from(chunk.stored_len)).sum();
    store.room_for(Store::cost(&missing), bounds.disk)?;
    // Before its chunks: a collection knows then what they are for.
    store.put_index(index)?;
    progress(Progress { done: of - left, of });
    let pace = Pace::new(bounds.rate);
    let done = Mutex::new(of - left);
    let chunks = futures_util::stream::iter(missing).map(|chunk| {
        let (pace, done) = (&pace, &done);
        async move {
            pace.take(u64::from(chunk.stored_len)).await;
            chunk_into(store, remote, index, &chunk).await?;
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += u64::from(chunk.stored_len);
            progress(Progress { done: *done, of });
            Ok::<(), FetchError>(())
        }
    });
    chunks.buffer_unordered(AT_ONCE).try_collect::<()>().await
}

/// The index of a version, from the store if it is there, else from the depot.
///
/// # Errors
/// [`FetchError`].
pub async fn index(
    trusted: &Trusted,
    store: &Store,
    depot: &dyn Remote,
    model: &str,
    version: &str,
) -> Result<Index, FetchError> {
    let target = index_name(model, version);
    let info = trusted.targets.get(&target).ok_or_else(|| FetchError::NotListed(target.clone()))?;
    // Indexes are written canonically, so the same index has the same bytes.
    if let Ok(Some(index)) = store.index(model, version)
        && Digest::of(&index.to_bytes()).0 == info.sha256
    {
        return Ok(index);
    }
    let unfit = |why: String| FetchError::Unfit { what: target.clone(), why };
    let bytes = target_bytes(depot, &target, info).await?;
    let index = Index::from_bytes(&bytes).map_err(|error| unfit(error.to_string()))?;
    if index.model != model || index.version != version {
        return Err(unfit(format!("it is the index of {} {}", index.model, index.version)));
    }
    check_index(&index).map_err(|error| unfit(error.to_string()))?;
    Ok(index)
}

/// A signed configuration, from the store if it is staged there, else from the depot; it is staged then.
///
/// # Errors
/// [`FetchError`].
pub async fn configuration(
    trusted: &Trusted,
    store: &Store,
    depot: &dyn Remote,
    target: &str,
) -> Result<Configuration, FetchError> {
    let info = trusted.targets.get(target).ok_or_else(|| FetchError::NotListed(target.to_owned()))?;
    let unfit = |why: String| FetchError::Unfit { what: target.to_owned(), why };
    if info.length > CONFIGURATION_MAX as u64 {
        let why = format!("it has {} bytes, and a signed configuration has at most {CONFIGURATION_MAX}", info.length);
        return Err(unfit(why));
    }
    let staged = store.configured()?.staged.filter(|staged| staged.digest().0 == info.sha256);
    if let Some(staged) = staged {
        return Ok(staged);
    }
    let bytes = target_bytes(depot, target, info).await?;
    let text = String::from_utf8(bytes).map_err(|_| unfit("it is no text".into()))?;
    let fetched = Configuration { target: target.to_owned(), text };
    store.update_configured(|configured| configured.stage(fetched.clone()))?;
    Ok(fetched)
}

/// The bytes of a target, verified.
async fn target_bytes(depot: &dyn Remote, target: &str, info: &TargetInfo) -> Result<Vec<u8>, FetchError> {
    let unfit = |why: &str| FetchError::Unfit { what: target.to_owned(), why: why.to_owned() };
    let name = Name::target(info.sha256, target).ok_or_else(|| unfit("its name cannot stand in a topic"))?;
    let bytes = object(depot, &name, info.length).await?;
    let found = Digest::of(&bytes);
    if found.0 != info.sha256 {
        let reason = format!("its SHA-256 is {found}, expected {}", Hex(&info.sha256));
        return Err(RemoteError::Damaged { place: depot.place().to_owned(), name, reason }.into());
    }
    Ok(bytes)
}

/// Fetches one chunk, verifies it and keeps it.
async fn chunk_into(store: &Store, chunks: &dyn Remote, index: &Index, chunk: &ChunkRef) -> Result<(), FetchError> {
    let name = Name::Chunk(chunk.stored);
    let mut pause = PAUSE;
    for tried in 1.. {
        let bytes = chunks.message(&name, chunk.stored_len as usize).await?;
        match store.put(chunk, &bytes) {
            // It is what the signed index names, and will be the same however often it is asked for.
            Err(DepotError::Chunk { reason, .. }) if Digest::of(&bytes).0 == chunk.stored => {
                let what = format!("{} {}: {name}", index.model, index.version);
                return Err(FetchError::Unfit { what, why: reason });
            }
            Err(DepotError::Chunk { reason, .. }) if tried == TRIES => {
                return Err(RemoteError::Damaged { place: chunks.place().to_owned(), name, reason }.into());
            }
            Err(DepotError::Chunk { .. }) => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            kept => return kept.map_err(FetchError::from),
        }
    }
    unreachable!("the last try returns")
}

/// Lets through so many bytes a second.
struct Pace {
    rate: u64,
    /// When the next byte may go.
    free: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may go.
    async fn take(&self, bytes: u64) {
        let start = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*free).max(Instant::now());
            *free = start + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

/// Opens what was fetched, as the package that its index says.
///
/// # Errors
/// [`FetchError::Unfit`] if it is no package, or of another model than its index says: its publisher's fault, since every
/// chunk was verified.
pub fn open(store: &Store, index: &Index) -> Result<crate::Package, FetchError> {
    let unfit = |why: String| FetchError::Unfit { what: format!("{} {}", index.model, index.version), why };
    let package = store.package(index).map_err(|error| match error {
        error @ (DepotError::Io { .. } | DepotError::Store { .. }) => FetchError::Store(error),
        other => unfit(other.to_string()),
    })?;
    let manifest = package.manifest();
    if manifest.name != index.model || manifest.version.to_string() != index.version {
        return Err(unfit(format!("its manifest says {} {}", manifest.name, manifest.version)));
    }
    Ok(package)
}

#[cfg(test)]
mod tests;
