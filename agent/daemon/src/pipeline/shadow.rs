//! A version on trial, as its workers see it, and the other version beside it on the same windows.
//!
//! A [`Watch`] belongs to one pipeline on all of its workers. It hears how each window of the serving version ends and
//! tells the [judge](limpet_depot::trial). If it has a [`Companion`], that runs in shadow:
//!
//! - on the very same windows: where both versions have the same front end, on a copy of the same features; else it has
//!   a front end of its own, fed with the same samples, and windows meet by the index of their last sample;
//! - as the last of all analytic work, one window at a time, and only where the realtime windows of its worker leave room for
//!   that (`Worker::set_longest`), so it makes none of them late. Under pressure it does not run;
//! - within a share of the worker's time: before a window is copied its expected cost must be there, afterwards what the
//!   thread really spent is taken off. What finds no room is skipped, not queued up;
//! - unseen: it ends in no ledger, has no outcome, and is never published.
//!
//! A pipeline without a watch pays for none of this but a look at an `Option`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use limpet_depot::trial::{self, Before, Mode, Observation, Progress, Trial, distance};
use limpet_engine::{ElementType, TensorSpec};
use limpet_runtime::{Lane, LanePolicy, Ledger, Moment, Outcome, Overflow};
use limpet_wire::result::Verdict;

use super::input::WindowInput;
use super::plan::{PipelinePlan, Version};
use super::stream::{Serve, Side};
use super::worker::StreamKey;

/// Windows of a stream that may wait for the companion: those that one long message completes are soon there together.
pub(super) const LANE: LanePolicy = LanePolicy { depth: 4, weight: usize::MAX, overflow: Overflow::DropOldest };
/// Windows of a stream that only one version has been heard on so far, and that may still wait for the other.
const HALVES: usize = 16;
/// Time over which the share is kept: what was not used in so long is gone.
const BURST: Duration = Duration::from_secs(10);

/// The other version.
#[derive(Debug)]
pub struct Companion {
    /// What it is, for the watched pipeline. Its source must take it, and its models be loaded on the pipeline's workers;
    /// where they are not, windows are skipped.
    pub serve: Arc<Serve>,
    /// Share of each worker's time that it may take, from 0 to 1.
    pub share: f64,
}

/// What a companion has cost so far, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Windows that it ran.
    pub ran: u64,
    /// Windows that it did not: beyond its share, no room, not loaded, or given up.
    pub skipped: u64,
    /// Thread CPU time.
    pub spent: Duration,
}

/// A version on trial on all workers of a pipeline.
#[derive(Debug)]
pub struct Watch {
    mode: Mode,
    serving: Arc<Version>,
    companion: Option<Companion>,
    /// Whether both versions make the same features of the same messages.
    same_features: bool,
    noise: f64,
    judge: Mutex<Trial>,
    /// When a window of it was completed or ended last, in nanoseconds since boot.
    now: AtomicU64,
    /// Whether there is a verdict, and whether it was told.
    over: AtomicBool,
    untold: AtomicBool,
    ran: AtomicU64,
    skipped: AtomicU64,
    spent: AtomicU64,
}

impl Watch {
    /// Goes on with `trial` while `serving` serves; which of both versions is on trial says its progress's mode. `noise`
    /// is the golden noise of the one on trial ([`limpet_depot::trial::golden_noise`]).
    pub fn new(trial: Trial, serving: &Serve, noise: f64, companion: Option<Companion>) -> Self {
        let over = *trial.verdict() != trial::Verdict::Going;
        let same_features = companion.as_ref().is_some_and(|companion| {
            let (one, two) = (&serving.full.input, &companion.serve.full.input);
            serving.version.input == companion.serve.version.input
                && one.element == two.element
                && one.shape == two.shape
        });
        Self {
            mode: trial.progress().mode,
            serving: Arc::clone(&serving.version),
            companion,
            same_features,
            noise,
            judge: Mutex::new(trial),
            now: AtomicU64::new(0),
            over: AtomicBool::new(over),
            untold: AtomicBool::new(over),
            ran: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            spent: AtomicU64::new(0),
        }
    }

    /// How far the trial is, to be kept.
    pub fn progress(&self) -> Progress {
        self.judge().progress().clone()
    }

    /// What the judge says.
    pub fn verdict(&self) -> trial::Verdict {
        self.judge().verdict().clone()
    }

    /// What the companion has cost.
    pub fn figures(&self) -> Figures {
        Figures {
            ran: self.ran.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            spent: Duration::from_nanos(self.spent.load(Ordering::Relaxed)),
        }
    }

    fn judge(&self) -> MutexGuard<'_, Trial> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other version.
    pub(super) fn companion(&self) -> Option<&Companion> {
        self.companion.as_ref()
    }

    /// The other version, if it makes features of its own.
    pub(super) fn own_front_end(&self) -> Option<&Arc<Serve>> {
        self.companion.as_ref().filter(|_| !self.same_features).map(|companion| &companion.serve)
    }

    /// Whether windows of this version are watched: those of the one before may still be under way.
    pub(super) fn is_of(&self, version: &Arc<Version>) -> bool {
        Arc::ptr_eq(&self.serving, version)
    }

    /// Whether there is nothing to find out any more.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Tells it the time.
    pub(super) fn tick(&self, now: Moment) {
        self.now.fetch_max(now.0, Ordering::Relaxed);
    }

    /// A window of the serving version will not run. May be called from any thread.
    pub(super) fn gave_up(&self) {
        if self.mode == Mode::Trial {
            self.observe(&Observation::Missed);
        }
    }

    /// The companion does not run on a window.
    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    fn observe(&self, observation: &Observation<'_>) {
        if self.is_over() {
            return;
        }
        let at = Duration::from_nanos(self.now.load(Ordering::Relaxed));
        let mut judge = self.judge();
        // Somebody else may have seen the end meanwhile.
        if !self.is_over() && *judge.observe(observation, at) != trial::Verdict::Going {
            self.over.store(true, Ordering::Relaxed);
            self.untold.store(true, Ordering::Release);
        }
    }

    /// The verdict, to whoever asks first after there is one.
    pub(super) fn news(&self) -> Option<trial::Verdict> {
        let news = self.untold.load(Ordering::Relaxed) && self.untold.swap(false, Ordering::AcqRel);
        news.then(|| self.verdict())
    }
}

/// What a pipeline's version did so far, for the judge of the one that takes its place.
pub fn before(ledger: &Ledger) -> Before {
    let count = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| ledger.count(*outcome)).sum::<u64>();
    Before {
        windows: ledger.windows(),
        errors: count(&[Outcome::Failed, Outcome::Invalid]),
        misses: ledger.late() + count(&[Outcome::Expired, Outcome::Replaced, Outcome::Rejected]),
    }
}

/// A watch on one worker: what its companion may still spend there.
pub(super) struct Watched {
    pub watch: Arc<Watch>,
    share: f64,
    /// Nanoseconds that are left, as of `at`; below zero when something took longer than expected.
    left: f64,
    at: Moment,
    /// What the companion took on its last window.
    cost: Duration,
}

impl Watched {
    pub fn new(watch: Arc<Watch>, now: Moment) -> Self {
        let (share, cost) = match watch.companion() {
            Some(companion) => (companion.share.clamp(0.0, 1.0), companion.serve.full.costs[0].typical),
            None => (0.0, Duration::ZERO),
        };
        Self { watch, share, left: 0.0, at: now, cost }
    }

    /// Whether so much may be spent now, at least what one window is expected to take.
    pub fn affords(&mut self, cost: Duration, now: Moment) -> bool {
        let cost = nanos(cost.max(self.cost));
        let most = (self.share * nanos(BURST)).max(cost);
        self.left = (self.left + self.share * nanos(now.since(self.at))).min(most);
        self.at = self.at.max(now);
        self.share > 0.0 && self.left >= cost
    }

    /// What the session is expected to take on a window.
    pub fn expected(&self) -> Duration {
        self.cost
    }

    /// Sets aside what a window is expected to take.
    pub fn set_aside(&mut self) -> Duration {
        self.left -= nanos(self.cost);
        self.cost
    }

    /// A window took so much, for which something was set aside.
    pub fn ran(&mut self, set_aside: Duration, spent: Duration) {
        self.left += nanos(set_aside);
        self.cost = spent;
        self.watch.ran.fetch_add(1, Ordering::Relaxed);
        self.spent(spent);
    }

    /// Something else was spent on the companion.
    pub fn spent(&mut self, spent: Duration) {
        self.left -= nanos(spent);
        self.watch.spent.fetch_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// One window for the companion.
pub(super) struct Shadow {
    pub stream: StreamKey,
    pub pipeline: usize,
    pub plan: Arc<PipelinePlan>,
    pub watch: Arc<Watch>,
    /// Index of its last sample.
    pub last: u64,
    pub set_aside: Duration,
}

/// What one version said of a window.
pub(super) struct Heard {
    /// Index of the window's last sample.
    pub last: u64,
    /// Or why it gave no answer.
    pub verdict: Result<Verdict, String>,
    /// Hash of its raw outputs.
    pub output: u64,
}

/// How a version came to say that.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    /// Whether it was after the deadline.
    pub late: bool,
    /// From when to when the session ran.
    pub started: Moment,
    pub computed: Moment,
    pub input: &'a WindowInput,
    /// The graph's input.
    pub spec: &'a TensorSpec,
}

/// What is kept of a watched pipeline's stream.
pub(super) struct FeedWatch {
    pub watch: Arc<Watch>,
    /// Where windows wait for the companion.
    pub lane: Option<Lane>,
    /// Its own way from samples to windows.
    pub beside: Option<Beside>,
    /// Last samples of the windows that wait for the companion, or ran on it and not yet on the serving version.
    awaited: VecDeque<u64>,
    /// Windows that the serving version has been heard on, or the companion, and not both; in this order.
    halves: [VecDeque<Heard>; 2],
    /// Input of the version on trial when it changed last.
    reference: Option<WindowInput>,
}

/// A companion's own front end, while it can be afforded.
pub(super) struct Beside {
    pub side: Side,
    /// Whether it takes no samples at the moment: it starts anew when it may.
    pub paused: bool,
    /// Last sample of the window that the serving version has just completed.
    pub wanted: Option<u64>,
    /// What the front end took since the last window, and what it took for that.
    pub spent: Duration,
    pub cost: Duration,
}

impl FeedWatch {
    pub fn new(watch: &Arc<Watch>, lane: Option<Lane>, side: Option<Side>) -> Self {
        let beside = |side| Beside { side, paused: true, wanted: None, spent: Duration::ZERO, cost: Duration::ZERO };
        Self {
            watch: Arc::clone(watch),
            lane,
            beside: side.map(beside),
            awaited: VecDeque::new(),
            halves: Default::default(),
            reference: None,
        }
    }

    /// Whether it needs this model.
    pub fn uses(&self, number: u32) -> bool {
        self.watch.companion().is_some_and(|companion| companion.serve.uses(number))
    }

    /// Where samples are missing, its own front end starts anew.
    pub fn interrupted(&mut self) {
        if let Some(beside) = &mut self.beside {
            beside.paused = true;
        }
    }

    /// A window waits for the companion from now on.
    pub fn awaits(&mut self, last: u64) {
        push_bounded(&mut self.awaited, last);
    }

    /// The serving version worked a window out, or could not.
    pub fn served(&mut self, heard: Heard, how: How<'_>) {
        self.watch.tick(how.computed);
        if self.watch.mode == Mode::Trial {
            self.judge(&heard, how);
        }
        self.meet(heard, 0);
    }

    /// The companion did.
    pub fn shadowed(&mut self, heard: Heard, how: How<'_>) {
        self.watch.tick(how.computed);
        if self.watch.mode == Mode::Shadow {
            self.judge(&heard, how);
        }
        self.meet(heard, 1);
    }

    fn judge(&mut self, heard: &Heard, how: How<'_>) {
        let observation = match &heard.verdict {
            Ok(_) => Observation::Result {
                late: how.late,
                compute: how.computed.since(how.started),
                output: heard.output,
                varied: self.varied(how.input, how.spec),
            },
            Err(why) => Observation::Error(why),
        };
        self.watch.observe(&observation);
    }

    /// Whether the input has changed by more than the golden noise since it did last.
    fn varied(&mut self, input: &WindowInput, spec: &TensorSpec) -> bool {
        let varied = match (&self.reference, input) {
            (Some(WindowInput::Real(before)), WindowInput::Real(now)) => distance(before, now) > self.watch.noise,
            (Some(WindowInput::Integers(before)), WindowInput::Integers(now)) => {
                integer_distance(before, now, spec) > self.watch.noise
            }
            _ => false,
        };
        match (&mut self.reference, input) {
            (Some(_), _) if !varied => {}
            (Some(WindowInput::Real(before)), WindowInput::Real(now)) => before.clone_from(now),
            (reference, now) => *reference = Some(now.clone()),
        }
        varied
    }

    /// One version was heard on a window; with the other, that is a pair.
    fn meet(&mut self, heard: Heard, from: usize) {
        if self.lane.is_none() || self.watch.is_over() {
            return;
        }
        // Most windows of a companion with a small share never meet another, and take no place.
        let Some(awaited) = self.awaited.iter().position(|last| *last == heard.last) else { return };
        let others = &mut self.halves[1 - from];
        let at = others.iter().position(|other| other.last == heard.last);
        let Some(other) = at.and_then(|at| others.remove(at)) else {
            return push_bounded(&mut self.halves[from], heard);
        };
        self.awaited.remove(awaited);
        let (serving, companion) = if from == 0 { (heard, other) } else { (other, heard) };
        let (own, other) = match self.watch.mode {
            Mode::Trial => (serving, companion),
            Mode::Shadow => (companion, serving),
        };
        self.watch.observe(&Observation::Pair {
            own: own.verdict.as_ref().ok(),
            other: other.verdict.as_ref().ok(),
            other_output: other.output,
        });
    }
}

/// Appends one; the oldest goes where there are too many.
fn push_bounded<T>(list: &mut VecDeque<T>, one: T) {
    if list.len() == HALVES {
        list.pop_front();
    }
    list.push_back(one);
}

/// The same as [`distance`], of values in the graph's integers.
fn integer_distance(one: &[u8], other: &[u8], spec: &TensorSpec) -> f64 {
    let signed = spec.element == ElementType::I8;
    let apart = |(one, other): (&u8, &u8)| match signed {
        true => i32::from(one.cast_signed()).abs_diff(i32::from(other.cast_signed())),
        false => u32::from(one.abs_diff(*other)),
    };
    let sum: u32 = one.iter().zip(other).map(apart).sum();
    let step = spec.quantization.map_or(1.0, |quantization| f64::from(quantization.scale));
    f64::from(sum) * step / one.len().max(1) as f64
}
