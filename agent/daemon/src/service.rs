//! What the service manager hears, as sd_notify(3) has it: that the agent is ready, what it lacks, and that it is alive.
//!
//! **Ready** is an agent whose configuration and store are sound, and whose proved models are loaded. What is missing
//! beyond that (a broker, a proof that goes on, a model on its way) stands in the status, and no start ever waits for it.
//!
//! **Alive** is an agent whose loops go round. Each of them has a [`Pulse`]: a few times in the watchdog's period it is
//! asked, and answers from the loop itself, so that an answer proves that very loop. As soon as one owes its answer for
//! longer than it may, the watchdog is fed no more, and the manager ends the process and starts it again. The loop that
//! asks is that of the main thread, which thereby proves itself.
//!
//! Where nobody listens (no `NOTIFY_SOCKET`), every call does nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::Notify;

/// How often the loops are asked, and the watchdog is fed, in a period of it.
const TURNS: u32 = 4;
/// Longest status: `systemctl status` shows it in one line.
const STATUS_BYTES: usize = 400;

/// The service manager that started this process, if one did.
pub struct Manager {
    listens: bool,
    watchdog: Option<Duration>,
    said: String,
}

impl Manager {
    /// The one that the environment names.
    pub fn of_environment() -> Self {
        Self {
            listens: std::env::var_os("NOTIFY_SOCKET").is_some(),
            watchdog: sd_notify::watchdog_enabled().filter(|period| !period.is_zero()),
            said: String::new(),
        }
    }

    /// Whether anybody hears what is said here.
    pub fn listens(&self) -> bool {
        self.listens
    }

    /// How often the loops are to be asked and the watchdog is to be fed; none without a watchdog.
    pub fn turn(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / TURNS)
    }

    /// The agent is ready, or has done what it was told to reload.
    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The agent reloads; [`ready`](Self::ready) ends that.
    pub fn reloading(&self) {
        let now = NotifyState::monotonic_usec_now();
        // From version 253 on a manager believes the one only with the other.
        _ = now.map(|now| self.tell(&[NotifyState::Reloading, now]));
    }

    /// The agent stops.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// The agent is alive.
    pub fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// The start goes on, and needs so much longer from now.
    pub fn takes(&self, longer: Duration) {
        self.tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(longer.as_micros()).unwrap_or(u32::MAX))]);
    }

    /// What the agent is doing, in one line. Said again only if it changes.
    pub fn status(&mut self, text: &str) {
        let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.len() > STATUS_BYTES {
            line.truncate(line.floor_char_boundary(STATUS_BYTES));
            line.push('…');
        }
        if line != self.said {
            self.tell(&[NotifyState::Status(&line)]);
            self.said = line;
        }
    }

    fn tell(&self, what: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(what) {
            tracing::debug!(%error, "the service manager does not hear this agent");
        }
    }
}

/// A loop that must go round. Cheap to clone: one half asks, the other answers.
#[derive(Clone)]
pub struct Pulse(Arc<Beat>);

struct Beat {
    name: String,
    /// How long an answer may take.
    limit: Duration,
    /// Since when one is owed.
    owed: Mutex<Option<Instant>>,
    wake: Notify,
}

impl Pulse {
    /// Of a loop of this name, which answers within `limit` as long as it is well.
    pub fn new(name: String, limit: Duration) -> Self {
        Self(Arc::new(Beat { name, limit, owed: Mutex::default(), wake: Notify::new() }))
    }

    /// The loop goes round.
    pub fn answer(&self) {
        *self.owed() = None;
    }

    /// Until an answer is wanted, for a loop that waits for many things.
    pub async fn wanted(&self) {
        self.0.wake.notified().await;
    }

    /// What `waits` gives; meanwhile it is answered.
    pub async fn through<T>(&self, waits: impl Future<Output = T>) -> T {
        let mut waits = std::pin::pin!(waits);
        loop {
            tokio::select! {
                given = &mut waits => return given,
                () = self.wanted() => self.answer(),
            }
        }
    }

    /// Asks, and says whether that was new: an answer may be owed already.
    pub fn ask(&self, now: Instant) -> bool {
        let mut owed = self.owed();
        let new = owed.is_none();
        owed.get_or_insert(now);
        self.0.wake.notify_one();
        new
    }

    /// For how long an answer has been owed, if that is longer than it may be.
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        self.owed().map(|since| now.saturating_duration_since(since)).filter(|owed| *owed > self.0.limit)
    }

    /// The loop's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    fn owed(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_overdue_once_it_owes_an_answer_for_longer_than_it_may() {
        let (pulse, start) = (Pulse::new("worker-0".into(), Duration::from_secs(5)), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulse.overdue(after(100)), None, "nobody asked");
        assert!(pulse.ask(start));
        // Being asked once more is no answer.
        assert!(!pulse.ask(after(4)));
        assert_eq!(pulse.overdue(after(5)), None);
        assert_eq!(pulse.overdue(after(6)), Some(Duration::from_secs(6)));
        pulse.answer();
        assert_eq!(pulse.overdue(after(100)), None);
    }

    #[test]
    fn whoever_waits_answers_meanwhile() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let pulse = Pulse::new("link".into(), Duration::ZERO);
        let (done, waits) = tokio::sync::oneshot::channel::<u8>();
        runtime.block_on(async {
            let asked = async {
                assert!(pulse.ask(Instant::now()));
                while pulse.owed().is_some() {
                    tokio::task::yield_now().await;
                }
                done.send(7).unwrap();
            };
            let (given, ()) = tokio::join!(pulse.through(waits), asked);
            assert_eq!(given, Ok(7));
        });
    }
}
