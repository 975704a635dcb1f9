//! A desk where objects are waited for, in two halves: whoever waits has a [`Fetcher`], whoever owns the connection to the
//! broker a [`Pump`]. Between them an [`Asker`] says what to ask for and when.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use limpet_wire::depot::{Name, Parts};
use tokio::sync::{Notify, oneshot, watch};
use tough::async_trait;

use super::{Action, Arrival, Asker};
use crate::package::Digest;
use crate::remote::{Remote, RemoteError};

/// A depot behind a broker, in two halves. `place` says where, for people: `limpet/1/depot at uplink`; `seed` is that of
/// [`Asker::new`].
pub fn desk(place: impl Into<String>, seed: u64) -> (Fetcher, Pump) {
    let desk =
        Desk { asker: Asker::new(seed), waiters: HashMap::new(), next_id: 0, followers: HashMap::new(), closed: None };
    let shared = Arc::new(Shared { place: place.into(), desk: Mutex::new(desk), bell: Notify::new() });
    (Fetcher { shared: Arc::clone(&shared) }, Pump { shared })
}

struct Shared {
    place: String,
    desk: Mutex<Desk>,
    /// Rings when the pump has something to do that it does not know of.
    bell: Notify,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing panics while it is locked; if something did, what is waited for is still known.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Desk {
    asker: Asker,
    waiters: HashMap<Name, Vec<Waiter>>,
    next_id: u64,
    followers: HashMap<Name, Follower>,
    /// Why nothing will come any more.
    closed: Option<String>,
}

struct Waiter {
    id: u64,
    most: usize,
    answer: oneshot::Sender<Result<Bytes, RemoteError>>,
}

struct Follower {
    most: usize,
    newest: watch::Sender<Option<Bytes>>,
}

/// Reads a depot's messages through whoever owns the connection. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

impl Fetcher {
    /// Follows a message of at most `most` bytes, until the last [`Following`] of its name is dropped.
    pub fn follow(&self, name: &Name, most: usize) -> Following {
        let mut desk = self.shared.desk();
        let newest = match desk.followers.get(name) {
            Some(follower) => {
                let mut newest = follower.newest.subscribe();
                // What came already is news to this one.
                newest.mark_changed();
                newest
            }
            None => {
                desk.asker.follow(name, Instant::now());
                let (sender, newest) = watch::channel(None);
                desk.followers.insert(name.clone(), Follower { most, newest: sender });
                newest
            }
        };
        drop(desk);
        self.shared.bell.notify_one();
        Following { shared: Arc::clone(&self.shared), name: name.clone(), newest }
    }
}

#[async_trait]
impl Remote for Fetcher {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        let (answer, answered) = oneshot::channel();
        let waiting = {
            let mut desk = self.shared.desk();
            if let Some(reason) = &desk.closed {
                return Err(self.failed(name, reason.clone()));
            }
            desk.next_id += 1;
            let id = desk.next_id;
            desk.waiters.entry(name.clone()).or_default().push(Waiter { id, most, answer });
            desk.asker.want(name, Instant::now());
            Waiting { shared: &self.shared, name, id }
        };
        self.shared.bell.notify_one();
        let answer = answered.await;
        drop(waiting);
        answer.unwrap_or_else(|_| Err(self.failed(name, "the connection was given up".to_owned())))
    }

    fn place(&self) -> &str {
        &self.shared.place
    }
}

impl Fetcher {
    fn failed(&self, name: &Name, reason: String) -> RemoteError {
        RemoteError::Failed { place: self.shared.place.clone(), name: name.clone(), reason }
    }
}

/// Somebody waits; its drop forgets that.
struct Waiting<'a> {
    shared: &'a Shared,
    name: &'a Name,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut desk = self.shared.desk();
        // Not there any more if the answer came.
        let Some(waiters) = desk.waiters.get_mut(self.name) else { return };
        waiters.retain(|waiter| waiter.id != self.id);
        if waiters.is_empty() {
            desk.waiters.remove(self.name);
            desk.asker.forget(self.name);
            drop(desk);
            self.shared.bell.notify_one();
        }
    }
}

/// Every change of one message.
pub struct Following {
    shared: Arc<Shared>,
    name: Name,
    newest: watch::Receiver<Option<Bytes>>,
}

impl Following {
    /// Waits until another message than before arrives, or the first, and gives the newest. One that is larger than the
    /// follower takes is none. Never ends once the pump is gone. May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Bytes {
        loop {
            if self.newest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(bytes) = &*self.newest.borrow_and_update() {
                return bytes.clone();
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut desk = self.shared.desk();
        let last = desk.followers.get(&self.name).is_some_and(|follower| follower.newest.receiver_count() <= 1);
        if last {
            desk.followers.remove(&self.name);
            let waited_for = desk.waiters.contains_key(&self.name);
            desk.asker.unfollow(&self.name, waited_for);
            drop(desk);
            self.shared.bell.notify_one();
        }
    }
}

/// The end of whoever owns the connection. Its drop ends all waiting with an error.
pub struct Pump {
    shared: Arc<Shared>,
}

impl Pump {
    /// Until there may be new actions.
    pub async fn rung(&self) {
        self.shared.bell.notified().await;
    }

    /// What is to be done now, in this order.
    pub fn next_actions(&self, now: Instant) -> Vec<Action> {
        self.shared.desk().asker.poll(now)
    }

    /// When to call [`Pump::next_actions`] again, if the bell does not ring before.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        self.shared.desk().asker.next_wake(now)
    }

    /// There is a connection, without subscriptions.
    pub fn connected(&self, now: Instant) {
        self.shared.desk().asker.connected(now);
        self.shared.bell.notify_one();
    }

    /// The connection is gone.
    pub fn disconnected(&self) {
        self.shared.desk().asker.disconnected();
    }

    /// The broker refuses these subscriptions.
    pub fn refused(&self, names: &[Name], reason: &str, now: Instant) {
        let mut desk = self.shared.desk();
        names.iter().for_each(|name| desk.asker.refused(name, reason, now));
        drop(desk);
        self.shared.bell.notify_one();
    }

    /// A message came under `<prefix>/depot/` + `suffix`.
    ///
    /// What names its own digest is checked here, so that a damaged message is asked for again with back-off. An empty
    /// one says that it is not kept at the moment, of which nothing is concluded.
    pub fn arrived(&self, suffix: &str, payload: &Bytes, now: Instant) -> Arrival {
        let Ok(name) = suffix.parse::<Name>() else { return Arrival::Unknown };
        let mut desk = self.shared.desk();
        if payload.is_empty() || !desk.asker.wants.contains_key(&name) {
            return Arrival::Unknown;
        }
        if let Err(reason) = check(&name, payload) {
            desk.asker.arrived_bad(&name, reason, now);
            drop(desk);
            self.shared.bell.notify_one();
            return Arrival::Wanted;
        }
        let arrival = desk.asker.arrived(&name, now);
        for waiter in desk.waiters.remove(&name).unwrap_or_default() {
            let fits = payload.len() <= waiter.most;
            let answer =
                if fits { Ok(payload.clone()) } else { Err(self.too_large(&name, payload.len(), waiter.most)) };
            // Whoever waited may have gone a moment ago.
            let _ = waiter.answer.send(answer);
        }
        if let Some(follower) = desk.followers.get(&name)
            && payload.len() <= follower.most
        {
            // Not the same again: whoever follows a message may ask for it on every change, and each answer comes here too.
            follower.newest.send_if_modified(|newest| {
                let changed = newest.as_ref() != Some(payload);
                if changed {
                    *newest = Some(payload.clone());
                }
                changed
            });
        }
        drop(desk);
        self.shared.bell.notify_one();
        arrival
    }

    /// Nothing will come any more: everybody who waits, or will, is told why.
    pub fn close(&self, reason: &str) {
        let mut desk = self.shared.desk();
        desk.closed.get_or_insert_with(|| reason.to_owned());
        for (name, waiters) in std::mem::take(&mut desk.waiters) {
            desk.asker.forget(&name);
            for waiter in waiters {
                let place = self.shared.place.clone();
                let error = RemoteError::Failed { place, name: name.clone(), reason: reason.to_owned() };
                // As above.
                let _ = waiter.answer.send(Err(error));
            }
        }
    }

    fn too_large(&self, name: &Name, found: usize, most: usize) -> RemoteError {
        RemoteError::TooLarge {
            place: self.shared.place.clone(),
            name: name.clone(),
            found: found as u64,
            most: most as u64,
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.close("the connection was given up");
    }
}

/// Whether a message is what its name says, as far as a name says it.
fn check(name: &Name, payload: &[u8]) -> Result<(), String> {
    let expected = match name {
        Name::Chunk(sha256) => sha256,
        // A list of parts stands for it; whoever puts them together checks the whole.
        Name::Target { .. } if Parts::is(payload) => return Ok(()),
        Name::Target { sha256, .. } => sha256,
        Name::Roots | Name::Timestamp | Name::Metadata { .. } => return Ok(()),
    };
    let found = Digest::of(payload);
    if found.0 == *expected {
        return Ok(());
    }
    Err(format!("{} bytes with SHA-256 {found}", payload.len()))
}

#[cfg(test)]
mod tests {
    use super::super::{Missing, Why};
    use super::*;

    fn chunk(content: &'static [u8]) -> (Name, Bytes) {
        (Name::Chunk(Digest::of(content).0), Bytes::from_static(content))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// Until the fetcher has something to ask for.
    async fn actions(pump: &Pump) -> Vec<Action> {
        loop {
            let actions = pump.next_actions(Instant::now());
            if !actions.is_empty() {
                return actions;
            }
            pump.rung().await;
        }
    }

    #[test]
    fn a_message_is_asked_for_and_given_to_all_who_wait_for_it() {
        let (fetcher, pump) = desk("here", 1);
        let (name, bytes) = chunk(b"content");
        pump.connected(Instant::now());
        runtime().block_on(async {
            let broker = async {
                let asked = actions(&pump).await;
                assert_eq!(asked, [Action::Subscribe(vec![name.clone()])]);
                // Something else, nothing, and junk are not it.
                assert_eq!(pump.arrived("chunk/x", &bytes, Instant::now()), Arrival::Unknown);
                assert_eq!(pump.arrived(&name.to_string(), &Bytes::new(), Instant::now()), Arrival::Unknown);
                pump.arrived(&name.to_string(), &Bytes::from_static(b"junk"), Instant::now());
                let told = actions(&pump).await;
                assert!(matches!(&*told, [Action::Missing(Missing { why: Why::Damaged(_), .. })]), "{told:?}");
                pump.arrived(&name.to_string(), &bytes, Instant::now());
            };
            let all = (fetcher.message(&name, 7), fetcher.message(&name, 100), fetcher.message(&name, 6), broker);
            let (one, other, small, ()) = tokio::join!(all.0, all.1, all.2, all.3);
            assert_eq!(one.unwrap(), bytes);
            assert_eq!(other.unwrap(), bytes);
            assert!(matches!(small, Err(RemoteError::TooLarge { found: 7, most: 6, .. })));
        });
        assert_eq!(pump.next_actions(Instant::now()), [Action::Unsubscribe(vec![name])]);
    }

    #[test]
    fn who_drops_the_future_is_forgotten() {
        let (fetcher, pump) = desk("here", 1);
        let (name, bytes) = chunk(b"content");
        pump.connected(Instant::now());
        runtime().block_on(async {
            tokio::select! {
                biased;
                _ = fetcher.message(&name, 7) => panic!("nothing came"),
                asked = actions(&pump) => assert_eq!(asked, [Action::Subscribe(vec![name.clone()])]),
            }
        });
        // Its answer is due, and nobody's.
        assert!(pump.next_actions(Instant::now()).is_empty());
        assert_eq!(pump.arrived(&name.to_string(), &bytes, Instant::now()), Arrival::Unknown);
        assert_eq!(pump.next_actions(Instant::now()), [Action::Unsubscribe(vec![name])]);
    }

    #[test]
    fn a_pump_that_ends_tells_those_who_wait() {
        let (fetcher, pump) = desk("here", 1);
        runtime().block_on(async {
            let (answer, ()) = tokio::join!(fetcher.message(&Name::Roots, 7), async { drop(pump) });
            assert_eq!(answer.unwrap_err().to_string(), "here: meta/roots: the connection was given up");
            fetcher.message(&Name::Roots, 7).await.unwrap_err();
        });
    }

    #[test]
    fn a_follower_gets_every_change_and_the_newest_if_it_was_slow() {
        let (fetcher, pump) = desk("here", 1);
        pump.connected(Instant::now());
        runtime().block_on(async {
            let mut following = fetcher.follow(&Name::Timestamp, 10);
            assert_eq!(actions(&pump).await, [Action::Subscribe(vec![Name::Timestamp])]);
            for bytes in [b"1", b"2"] {
                pump.arrived("meta/timestamp", &Bytes::from_static(bytes), Instant::now());
            }
            assert_eq!(following.next().await, &b"2"[..]);
            pump.arrived("meta/timestamp", &Bytes::from_static(b"3"), Instant::now());
            assert_eq!(following.next().await, &b"3"[..]);
            assert_eq!(fetcher.follow(&Name::Timestamp, 10).next().await, &b"3"[..]);
            // The same again is no change, and neither is what is larger than it may be.
            pump.arrived("meta/timestamp", &Bytes::from_static(b"3"), Instant::now());
            pump.arrived("meta/timestamp", &Bytes::from_static(b"12345678901"), Instant::now());
            assert!(!following.newest.has_changed().unwrap());
            drop(following);
        });
        assert_eq!(pump.next_actions(Instant::now()), [Action::Unsubscribe(vec![Name::Timestamp])]);
    }
}
