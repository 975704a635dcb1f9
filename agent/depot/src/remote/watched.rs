//! An end to waiting for what does not come.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use limpet_wire::depot::Name;
use tokio::time::Instant;
use tough::async_trait;

use super::{Remote, RemoteError};

/// Names of what does not come that are told.
const NAMED: usize = 3;

/// Nothing came any more. Something may later, so it is worth another try.
#[derive(Debug, thiserror::Error)]
#[error("{place}: nothing came for {} s, {missing} was asked for", patience.as_secs())]
pub struct Stalled {
    /// Where it was asked for.
    pub place: String,
    /// What did not come.
    pub missing: String,
    /// How long.
    pub patience: Duration,
}

/// A remote that notes what was asked for and what came, so that waiting has an end.
pub struct Watched<'a> {
    remote: &'a dyn Remote,
    patience: Duration,
    waits: Mutex<Waits>,
}

/// What is waited for.
struct Waits {
    /// When something came, or was asked for, last.
    since: Instant,
    /// How often each name is waited for.
    names: BTreeMap<Name, usize>,
}

impl<'a> Watched<'a> {
    /// One that lets nothing come for so long.
    pub fn new(remote: &'a dyn Remote, patience: Duration) -> Self {
        Self { remote, patience, waits: Mutex::new(Waits { since: Instant::now(), names: BTreeMap::new() }) }
    }

    /// Does work that reads from this remote, as long as something comes of what it asks for. Time in which it asks for
    /// nothing, because of its rate or another reason of its own, does not count.
    ///
    /// # Errors
    /// [`Stalled`] if nothing came for too long.
    pub async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, Stalled> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            missing = self.stalls() => {
                Err(Stalled { place: self.remote.place().to_owned(), missing, patience: self.patience })
            }
        }
    }

    /// Waits until nothing came for too long. What is missing then.
    async fn stalls(&self) -> String {
        loop {
            let next = {
                let waits = self.waits();
                let until = waits.since + self.patience;
                if waits.names.is_empty() {
                    Instant::now() + self.patience
                } else if until > Instant::now() {
                    until
                } else {
                    let mut named: Vec<String> = waits.names.keys().take(NAMED).map(Name::to_string).collect();
                    if waits.names.len() > NAMED {
                        named.push(format!("{} more", waits.names.len() - NAMED));
                    }
                    return named.join(", ");
                }
            };
            tokio::time::sleep_until(next).await;
        }
    }

    fn waits(&self) -> std::sync::MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that was asked for, until it came or nobody waits any more.
struct Asked<'a>(&'a Mutex<Waits>, &'a Name);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waits.since = Instant::now();
        if let Some(times) = waits.names.get_mut(self.1) {
            *times -= 1;
            if *times == 0 {
                waits.names.remove(self.1);
            }
        }
    }
}

#[async_trait]
impl Remote for Watched<'_> {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        {
            let mut waits = self.waits();
            waits.since = Instant::now();
            *waits.names.entry(name.clone()).or_default() += 1;
        }
        let _asked = Asked(&self.waits, name);
        self.remote.message(name, most).await
    }

    fn place(&self) -> &str {
        self.remote.place()
    }
}
