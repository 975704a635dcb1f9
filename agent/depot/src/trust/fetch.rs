//! How `tough` gets at a depot: its files, answered from objects.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use limpet_wire::depot::{Hex, Name, Sha256};
use tough::{Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use super::{ROLLOUT_MAX, SNAPSHOT_MAX, TARGETS_MAX};
use crate::package::Digest;
use crate::remote::{Remote, RemoteError, object};

/// The files that `tough` asks for, out of a depot.
///
/// It knows four: anything else that metadata leads to, such as further delegations, is an error, so nobody who signs
/// metadata can make a gateway fetch without end. Root metadata is none of them: `tough` takes any error for the end of the
/// chain, so the chain was followed to its end before, and `tough` is told that there is no more.
#[derive(Clone)]
pub(super) struct Files(Arc<Inner>);

struct Inner {
    remote: Arc<dyn Remote>,
    timestamp: Bytes,
    /// What is trusted already, by digest: not fetched again if signed metadata names the same digest.
    known: HashMap<String, Bytes>,
    /// What was fetched, by role.
    got: Mutex<HashMap<String, Bytes>>,
    /// Why fetching failed, which `tough` would only give as text.
    failed: Mutex<Option<RemoteError>>,
}

impl Files {
    pub(super) fn new(remote: Arc<dyn Remote>, timestamp: Bytes, known: impl IntoIterator<Item = Bytes>) -> Self {
        let known = known.into_iter().map(|bytes| (Digest::of(&bytes).to_string(), bytes)).collect();
        let (got, failed) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { remote, timestamp, known, got, failed }))
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
