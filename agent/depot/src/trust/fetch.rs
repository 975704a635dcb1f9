//! How `tough` gets at a depot: its files, answered from objects.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use limpet_wire::depot::{Hex, MESSAGE_MAX, Name, Parts, Sha256};
use sha2::Digest as _;
use tough::{Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use super::{ROLLOUT_MAX, SNAPSHOT_MAX, TARGETS_MAX};
use crate::remote::{Remote, RemoteError};

/// The whole object under a name, of at most `most` bytes, put together from its parts if it has some.
///
/// What it gives is not trusted: parts carry digests, but nobody signed those.
///
/// # Errors
/// [`RemoteError`]; one that is too large is not fetched any further than it takes to see that.
pub(super) async fn object(remote: &dyn Remote, name: &Name, most: u64) -> Result<Vec<u8>, RemoteError> {
    let place = || remote.place().to_owned();
    let large = |found: u64| RemoteError::TooLarge { place: place(), name: name.clone(), found, most };
    let damaged = |reason: String| RemoteError::Damaged { place: place(), name: name.clone(), reason };
    let message = remote.message(name, MESSAGE_MAX).await?;
    if message.len() > MESSAGE_MAX {
        // Whoever reads a message must bound it; this is for one that did not.
        return Err(large(message.len() as u64));
    }
    if !Parts::is(&message) {
        let length = message.len() as u64;
        return if length > most { Err(large(length)) } else { Ok(message.into()) };
    }
    let parts = Parts::from_bytes(&message).map_err(|error| damaged(error.to_string()))?;
    if parts.bytes() > most {
        return Err(large(parts.bytes()));
    }
    let mut whole = Vec::new();
    for (sha256, length) in parts.parts {
        let length = length as usize;
        if length == 0 || length > MESSAGE_MAX {
            return Err(damaged(format!("a part of {length} bytes; expected 1 to {MESSAGE_MAX}")));
        }
        let part = remote.message(&Name::Chunk(sha256), length).await?;
        if part.len() != length || digest(&part) != sha256 {
            let found = Hex(&digest(&part)).to_string();
            let reason = format!("part {} is {} bytes of digest {found}; expected {length}", Hex(&sha256), part.len());
            return Err(damaged(reason));
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole)
}

pub(super) fn digest(bytes: &[u8]) -> Sha256 {
    sha2::Sha256::digest(bytes).into()
}

/// The files that `tough` asks for, out of a depot.
///
/// It knows five: anything else that metadata leads to, such as further delegations, is an error, so nobody who signs
/// metadata can make a gateway fetch without end.
#[derive(Clone)]
pub(super) struct Files(Arc<Inner>);

struct Inner {
    remote: Arc<dyn Remote>,
    /// Root metadata by version. `tough` takes any error for the end of the chain, so the chain is fetched before.
    roots: HashMap<u64, Bytes>,
    timestamp: Bytes,
    /// What is trusted already, by digest: not fetched again if signed metadata names the same digest.
    known: HashMap<String, Bytes>,
    /// What was fetched, by role.
    got: Mutex<HashMap<String, Bytes>>,
    /// Why fetching failed, which `tough` would only give as text.
    failed: Mutex<Option<RemoteError>>,
}

impl Files {
    pub(super) fn new(
        remote: Arc<dyn Remote>,
        roots: HashMap<u64, Bytes>,
        timestamp: Bytes,
        known: impl IntoIterator<Item = Bytes>,
    ) -> Self {
        let known = known.into_iter().map(|bytes| (Hex(&digest(&bytes)).to_string(), bytes)).collect();
        let (got, failed) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { remote, roots, timestamp, known, got, failed }))
    }

    /// What was fetched for a role, as it came.
    pub(super) fn got(&self, role: &str) -> Option<Bytes> {
        self.0.got.lock().expect("nobody panics while holding it").get(role).cloned()
    }

    /// What is trusted already under a digest.
    pub(super) fn known(&self, sha256: &Sha256) -> Option<Bytes> {
        self.0.known.get(&Hex(sha256).to_string()).cloned()
    }

    /// Why fetching failed, if that is what went wrong.
    pub(super) fn failure(&self) -> Option<RemoteError> {
        self.0.failed.lock().expect("nobody panics while holding it").take()
    }

    async fn file(&self, file: &str) -> Result<Option<Bytes>, RemoteError> {
        let Some(name) = file.strip_suffix(".json") else { return Ok(None) };
        if name == "timestamp" {
            return Ok(Some(self.0.timestamp.clone()));
        }
        let Some((version, role)) = name.split_once('.') else { return Ok(None) };
        let Ok(version) = version.parse::<u64>() else { return Ok(None) };
        let (pinned_by, most) = match role {
            "root" => return Ok(self.0.roots.get(&version).cloned()),
            "snapshot" => (Some(self.0.timestamp.clone()), SNAPSHOT_MAX),
            "targets" => (self.got("snapshot"), TARGETS_MAX),
            "rollout" => (self.got("snapshot"), ROLLOUT_MAX),
            _ => return Ok(None),
        };
        let pinned = pinned_by.and_then(|metadata| pinned(&metadata, role));
        let bytes = match pinned.and_then(|sha256| self.0.known.get(&sha256)) {
            Some(bytes) => bytes.clone(),
            None => {
                let name = Name::Metadata { version, role: role.to_owned() };
                object(self.0.remote.as_ref(), &name, most).await?.into()
            }
        };
        self.0.got.lock().expect("nobody panics while holding it").insert(role.to_owned(), bytes.clone());
        Ok(Some(bytes))
    }
}

/// The digest that metadata, verified before it is asked, names for a role.
fn pinned(metadata: &[u8], role: &str) -> Option<String> {
    let metadata: serde_json::Value = serde_json::from_slice(metadata).ok()?;
    let digest = &metadata["signed"]["meta"][format!("{role}.json")]["hashes"]["sha256"];
    digest.as_str().map(str::to_owned)
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("place", &self.0.remote.place()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for Files {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let file = url.path().trim_start_matches('/');
        match self.file(file).await {
            Ok(Some(bytes)) => Ok(Box::pin(stream::iter([Ok(bytes)]))),
            Ok(None) if file.ends_with(".root.json") => Err(TransportError::new(TransportErrorKind::FileNotFound, url)),
            Ok(None) => {
                let reason = "a depot has no such metadata; expected root, timestamp, snapshot, targets and rollout";
                Err(TransportError::new_with_cause(TransportErrorKind::Other, url, reason))
            }
            Err(error) => {
                let text = error.to_string();
                *self.0.failed.lock().expect("nobody panics while holding it") = Some(error);
                Err(TransportError::new_with_cause(TransportErrorKind::Other, url, text))
            }
        }
    }
}
