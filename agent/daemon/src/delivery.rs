//! Deliveries: what the depot offers this gateway, brought into the store and handed to the loader.
//!
//! A thread of its own, which steps back behind everything else (nice 19, and by that the lowest best-effort I/O
//! priority), with a tokio of its own. It follows the depot's timestamp. Whenever that changes, and every `refresh`, it
//! brings its trust up to date; and whenever what is trusted is another, or somebody imported a folder, it chooses a
//! version of each model that pipelines name, fetches what is missing and hands it over. Both go on side by side, since
//! metadata that does not come says nothing against what was trusted before. What was withdrawn gives way before anything
//! is fetched, and what does not come lets others go first. What it cannot do now it tries again later; nothing that runs
//! depends on it.

mod configuration;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant};

use jiff::Timestamp;
use limpet_depot::ask::{Fetcher, Missing, desk};
use limpet_depot::clock::Clock;
use limpet_depot::fetch::{self, Bounds, Chunks, FetchError, Progress};
use limpet_depot::remote::{Remote as _, Watched};
use limpet_depot::select::{self, Choice, Gateway};
use limpet_depot::store::Record;
use limpet_depot::trust::{Trust, TrustError, Trusted, Update};
use limpet_depot::{DepotError, Digest, Store};
use limpet_wire::depot::{Index, MESSAGE_MAX, Name, Sha256, index_name};
use semver::VersionReq;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::config::{self, Config, Loaded, ModelRef};
use crate::configured::Links;
use crate::library::{self, Library, Opened, Place};
use crate::link;
use crate::pipeline::plan::Plan;
use crate::report::Reporter;
use crate::serve::{Board, ModelVersion, Request, Requests, Settled, Stops};
use crate::threads;
use crate::wall;

/// What complaints are about: bringing trust up to date, and what is trusted.
const UPDATE: &str = "update";
const TRUST: &str = "trust";
/// First wait after something failed; doubles up to `refresh`.
const AGAIN: Duration = Duration::from_secs(15);
/// How long nothing may come of a fetch before others go first. A broker was asked four times by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait after that.
const STALLED_WAIT: Duration = Duration::from_secs(300);

/// What a delivery works with.
pub struct Tools {
    /// The whole configuration, with what waits.
    pub config: Arc<Config>,
    /// Where the gateway's own file is, and what it says alone.
    pub path: PathBuf,
    /// See `path`.
    pub file: Loaded,
    /// What runs.
    pub plan: Arc<Plan>,
    /// Links by broker.
    pub links: Arc<Links>,
    /// When the agent started.
    pub started: StdInstant,
    /// Where packages are.
    pub library: Library,
    /// Where states are shown.
    pub board: Arc<Board>,
    /// Who hears of what happens.
    pub reporter: Arc<Reporter>,
    /// The loader.
    pub requests: Requests,
    /// How the agent begins again.
    pub settled: UnboundedSender<Settled>,
    /// How often the store may have come to hold what somebody imported; counted before the [`Nudge::Look`] that tells.
    pub imports: Arc<AtomicU64>,
}

/// Something that makes it look again.
#[derive(Debug)]
pub enum Nudge {
    /// The store may have changed.
    Look,
    /// What the loader made of a version.
    Settled(Settled),
}

/// What came of bringing a version in.
enum Taken {
    /// It is in the store.
    Here(Opened),
    /// So it was before, and the loader has it.
    Handed,
    /// It is on record as rejected: why.
    Rejected(String),
}

/// What a version is fetched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// What is in effect.
    InEffect,
    /// A configuration that may take effect.
    Candidate,
}

/// What a round is told, which may last for days.
#[derive(Clone, Copy)]
struct Told<'a> {
    trust: &'a Trust,
    trusted: &'a Trusted,
}

impl Told<'_> {
    /// The time to judge validity by.
    fn time(self) -> Timestamp {
        self.trust.judge(clock()).time
    }
}

/// Trust on its way to what the depot has now. It waits for as long as something does not come, and nothing waits for it.
type Updating = Pin<Box<dyn Future<Output = Result<Update, TrustError>>>>;

/// What happened in a turn of the thread.
enum Turn {
    /// A round is over: whether all went well.
    Over(bool),
    /// It is time for another round.
    Again,
    /// The depot is to be asked, though it did not say that it has anything new.
    Ask,
    /// The depot has another timestamp.
    News,
    /// Trust is up to date, or cannot be.
    Updated(Result<Update, TrustError>),
    /// Somebody nudged.
    Nudged(Nudge),
    /// The process ends.
    End,
}

/// Starts the thread. What the uplink's connection does for it, and how to nudge it.
///
/// # Errors
/// If the system gives no thread.
pub fn start(tools: Tools) -> io::Result<(link::depot::Depot, UnboundedSender<Nudge>)> {
    let uplink = &tools.config.uplink;
    let (fetcher, pump) = desk(format!("{}/depot at {}", uplink.prefix, &*uplink.broker), link::random());
    let prefix = format!("{}/depot/", uplink.prefix);
    let (reporter, topics) = (Arc::clone(&tools.reporter), prefix.clone());
    let missing = move |missing: &Missing| {
        let message = format!(
            "{topics}{} does not come, asked {} times: {}; what runs goes on",
            missing.name, missing.tries, missing.why
        );
        tracing::warn!("{message}");
        reporter.event("missing-chunk", &message, &[("name", &missing.name.to_string())]);
    };
    let depot = link::depot::Depot { prefix, pump, missing: Arc::new(missing) };
    let (nudges, nudged) = unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("delivery".into()).spawn(move || {
        threads::step_back();
        if let Some(delivery) = Delivery::new(tools, fetcher) {
            runtime.block_on(delivery.run(nudged));
        }
    })?;
    Ok((depot, nudges))
}

struct Delivery {
    tools: Tools,
    depot: config::Depot,
    store: Store,
    fetcher: Fetcher,
    gateway: Gateway,
    wanted: BTreeMap<String, (ModelRef, VersionReq)>,
    /// What the loader was handed and may take up yet.
    with_loader: BTreeSet<ModelVersion>,
    /// What is being fetched, or was when something came between: no record names it yet, and what is there of it is
    /// wanted.
    fetching: BTreeMap<(Whose, String), String>,
    /// The configuration that this process has looked at, and lives.
    examined: Option<String>,
    /// Indexes whose packages were rejected, by model and digest of the index.
    rejected: BTreeSet<(String, Sha256)>,
    /// What was said last of each thing that went wrong.
    told: BTreeMap<String, String>,
    /// Packages that the loader has had from here, by model: what it made of them is its affair until something changes.
    handed: BTreeMap<String, Sha256>,
    /// What the loader knows to be offered.
    offered: Option<BTreeMap<String, BTreeSet<String>>>,
    /// Packages of which it was told last that they are here, by model.
    announced: BTreeMap<String, Sha256>,
    /// Versions that the loader was asked to go back from, by model.
    gave_way: BTreeMap<String, String>,
    /// How often proofs were stopped from outside.
    stops: Stops,
    /// Whether nothing came of a fetch in this round.
    stalled: bool,
    /// Whether the loader is done with something since the last round that came to its end.
    settled: bool,
    /// How many imports the last round that came to its end has seen.
    seen: u64,
    /// Until when the jitter lasts, for which versions of targets and rollout: a timestamp that was only signed anew is no
    /// reason to wait again.
    jitter: Option<([u64; 2], Instant)>,
}

impl Delivery {
    fn new(tools: Tools, fetcher: Fetcher) -> Option<Self> {
        let depot = tools.config.depot.clone()?;
        let store = tools.library.store()?.clone();
        let gateway = gateway(&tools.config, &depot);
        let wanted = wanted(&tools.config);
        let (rejected, told) = (BTreeSet::new(), BTreeMap::new());
        let (handed, fetching) = (BTreeMap::new(), BTreeMap::new());
        Some(Self {
            tools,
            depot,
            store,
            fetcher,
            gateway,
            wanted,
            with_loader: BTreeSet::new(),
            fetching,
            examined: None,
            rejected,
            told,
            handed,
            offered: None,
            announced: BTreeMap::new(),
            gave_way: BTreeMap::new(),
            stops: Stops::default(),
            stalled: false,
            settled: false,
            seen: 0,
            jitter: None,
        })
    }

    async fn run(mut self, mut nudges: UnboundedReceiver<Nudge>) {
        let mut following = self.fetcher.follow(&Name::Timestamp, MESSAGE_MAX);
        let mut updating: Option<Updating> = None;
        // Whether the last update failed.
        let mut behind = false;
        let refresh = self.depot.refresh.0;
        // When the next round is; none while one goes on. What was trusted before, or imported meanwhile, needs no broker.
        let mut next: Option<Instant> = None;
        let mut ask = Instant::now() + refresh;
        let mut wait = AGAIN;
        loop {
            // A round that goes on is begun again after any other turn: all that it did stays.
            let turn = tokio::select! {
                good = self.round(), if next.is_none() => Turn::Over(good),
                () = due(next), if next.is_some() => Turn::Again,
                () = tokio::time::sleep_until(ask), if next.is_some() => Turn::Ask,
                updated = ends(&mut updating) => Turn::Updated(updated),
                _ = following.next() => Turn::News,
                nudge = nudges.recv() => nudge.map_or(Turn::End, Turn::Nudged),
            };
            match turn {
                Turn::Over(good) => {
                    let good = good && !behind;
                    let most = if std::mem::take(&mut self.stalled) { refresh.min(STALLED_WAIT) } else { refresh };
                    wait = if good { AGAIN } else { (wait * 2).min(most) };
                    next = Some(Instant::now() + if good { refresh } else { wait });
                }
                Turn::Again => {
                    next = None;
                    if behind {
                        // One that waits for something goes on waiting.
                        updating.get_or_insert_with(|| self.update());
                    }
                }
                Turn::Ask => {
                    (ask, next) = (Instant::now() + refresh, None);
                    updating.get_or_insert_with(|| self.update());
                    self.handed.clear();
                    self.gave_way.clear();
                }
                Turn::News => (updating, wait) = (Some(self.update()), AGAIN),
                Turn::Updated(updated) => {
                    (updating, behind) = (None, updated.is_err());
                    match updated {
                        Ok(Update::Same) => _ = self.told.remove(UPDATE),
                        Ok(Update::New) => {
                            self.told.remove(UPDATE);
                            next = None;
                        }
                        Err(error) => {
                            self.complain_of(UPDATE, &error);
                            next = next.map(|next| next.min(Instant::now() + wait));
                        }
                    }
                }
                Turn::Nudged(nudge) => {
                    self.nudged(nudge);
                    next = None;
                }
                Turn::End => return,
            }
        }
    }

    /// Brings trust up to date.
    fn update(&self) -> Updating {
        let (config, depot, fetcher) = (Arc::clone(&self.tools.config), self.depot.clone(), self.fetcher.clone());
        Box::pin(async move { trust(&config, &depot)?.update(Arc::new(fetcher), clock).await })
    }

    fn nudged(&mut self, nudge: Nudge) {
        match nudge {
            Nudge::Look => {
                self.jitter = None;
                self.handed.clear();
                self.gave_way.clear();
            }
            Nudge::Settled(Settled::Done(of)) => {
                self.with_loader.remove(&of);
                self.settled = true;
            }
            Nudge::Settled(Settled::LetGo(of)) => {
                self.with_loader.remove(&of);
                self.handed.remove(&of.model);
                self.settled = true;
            }
            // That is the end of this process.
            Nudge::Settled(Settled::Again(_)) => {}
        }
    }

    /// Drops what nobody needs any more. Says whether there was anything.
    fn collect(&mut self) -> bool {
        // What somebody imported, or comes after what the loader is done with, is nobody's until a round has chosen it.
        if self.tools.imports.load(Ordering::Acquire) != self.seen || self.settled {
            return false;
        }
        let fetching = self.fetching.iter().map(|((_, model), version)| (model.clone(), version.clone()));
        // What the loader has may be rejected, and another version that is offered, and here, be chosen then.
        let offered = self.offered.iter().flatten().flat_map(|(model, versions)| {
            let has_one = self.with_loader.iter().any(|of| of.model == *model);
            versions.iter().filter(move |_| has_one).map(|version| (model.clone(), version.clone()))
        });
        let there = self.with_loader.iter().map(|of| (of.model.clone(), of.version.clone()));
        let wanted: Vec<(String, String)> = there.chain(offered).chain(fetching).collect();
        match self.store.collect(&wanted) {
            Ok(collected) if collected.files > 0 => {
                tracing::debug!(files = collected.files, bytes = collected.bytes, "nobody needs these any more");
                return true;
            }
            Ok(_) => {}
            Err(error) => self.complain("collect", "depot-refused", &error.to_string()),
        }
        false
    }

    /// Notes what is being fetched of a model, if anything is. What was before it makes room.
    fn fetches(&mut self, whose: Whose, model: &str, version: Option<&str>) {
        let key = (whose, model.to_owned());
        let before = match version {
            Some(version) => self.fetching.insert(key, version.to_owned()),
            None => self.fetching.remove(&key),
        };
        if let Some(before) = before.filter(|before| Some(before.as_str()) != version) {
            self.tools.board.set_not_coming(model, &before);
            self.collect();
        }
    }

    /// Hands a version over, which is all in the store.
    fn hand_over(&mut self, opened: Opened) {
        let manifest = opened.package.manifest();
        let (model, version) = (manifest.name.clone(), manifest.version.to_string());
        self.fetching.remove(&(Whose::InEffect, model.clone()));
        self.told.remove(&model);
        self.handed.insert(model.clone(), opened.package.digest().0);
        self.with_loader.insert(ModelVersion { model, version });
        let _ = self.tools.requests.send(Request::Arrived(opened));
    }

    /// Says why something did not come, and notes whether nothing came of it for a while.
    fn why(&mut self, error: &FetchError) -> String {
        self.stalled |= matches!(error, FetchError::Stalled(_));
        error.to_string()
    }

    /// Does what follows from what is trusted. Says whether all went well.
    async fn round(&mut self) -> bool {
        let imports = self.tools.imports.load(Ordering::Acquire);
        let trust = match trust(&self.tools.config, &self.depot) {
            Ok(trust) => trust,
            Err(error) => {
                self.complain_of(TRUST, &error);
                return false;
            }
        };
        for notice in self.store.notices() {
            tracing::warn!("{notice}");
            self.tools.reporter.event("store-notice", &notice, &[]);
        }
        for warning in trust.warnings() {
            self.complain("warning", "depot-refused", warning);
        }
        if !self.is_current(&trust) {
            // Nothing new can be chosen.
            self.has_chosen(imports);
            return false;
        }
        let Some(trusted) = trust.trusted() else {
            self.has_chosen(imports);
            return true;
        };
        let told = Told { trust: &trust, trusted };
        self.offer(told);
        self.withdrawals(told);
        let mut good = self.configuration(told).await;
        for (model, (reference, range)) in self.wanted.clone() {
            good &= self.model(told, &model, &reference, &range).await;
        }
        self.has_chosen(imports);
        good
    }

    /// A round has chosen what it could, of so many imports: what nobody needs now may go.
    fn has_chosen(&mut self, imports: u64) {
        let imported = std::mem::replace(&mut self.seen, imports) != imports;
        if std::mem::take(&mut self.settled) || imported {
            self.collect();
        }
    }

    /// Whether what is trusted may tell of anything new now. What was trusted once does not for ever; what runs goes on.
    fn is_current(&mut self, trust: &Trust) -> bool {
        match trust.current(self.fetcher.place(), clock()) {
            Ok(()) => _ = self.told.remove(TRUST),
            Err(error) => {
                self.complain_of(TRUST, &error);
                return false;
            }
        }
        true
    }

    /// Tells the loader what is offered, when that is another: what was handed over may have been withdrawn or halted since.
    fn offer(&mut self, told: Told<'_>) {
        let of = |(model, (_, range)): (&String, &(ModelRef, VersionReq))| {
            (model.clone(), select::offered(told.trusted, &self.gateway, model, range, told.time()))
        };
        let offered: BTreeMap<String, BTreeSet<String>> = self.wanted.iter().map(of).collect();
        if self.offered.as_ref() != Some(&offered) {
            self.offered = Some(offered.clone());
            let _ = self.tools.requests.send(Request::Offered(offered));
        }
    }

    /// Lets what was withdrawn give way to a version that is here, of whichever model: that needs nothing to be fetched,
    /// and waits for no newer one.
    fn withdrawals(&mut self, told: Told<'_>) {
        let Told { trusted, .. } = told;
        for (model, (_, range)) in self.wanted.clone() {
            let gone = select::withdrawn(trusted, &model);
            // What cannot be read is told where the model is looked at.
            let Ok(record) = self.store.record(&model) else { continue };
            let Some(active) = &record.active else { continue };
            let rejected = |version: &str| self.is_rejected(trusted, &model, version);
            let choice =
                select::choose(trusted, &self.gateway, &model, &range, Some(&active.version), &rejected, told.time());
            match choice {
                Choice::Stay(_) => {}
                Choice::Withdrawn { withdrawn } => self.give_way(&model, &record, withdrawn),
                Choice::Take(_) => {
                    let may = |version: &str| !gone.contains(&version.to_owned()) && select::in_range(&range, version);
                    let before = record.previous.iter().find(|before| may(&before.version));
                    if gone.contains(&active.version) && before.is_some_and(|one| self.is_whole(&model, &one.version)) {
                        self.give_way(&model, &record, gone);
                    }
                }
            }
        }
    }

    /// Has the loader go back from a withdrawn version, once.
    fn give_way(&mut self, model: &str, record: &Record, withdrawn: Vec<String>) {
        let Some(active) = record.active.as_ref().filter(|_| !record.withdrawn) else { return };
        if self.gave_way.insert(model.to_owned(), active.version.clone()).as_ref() != Some(&active.version) {
            let _ = self.tools.requests.send(Request::Withdrawn { model: model.to_owned(), withdrawn });
        }
    }

    /// Whether all of a version is in the store.
    fn is_whole(&self, model: &str, version: &str) -> bool {
        let index = self.store.index(model, version);
        index.is_ok_and(|index| index.is_some_and(|index| self.store.missing(&index).is_empty()))
    }

    /// Does what there is to do for a model. Says whether it went well.
    async fn model(&mut self, told: Told<'_>, model: &str, reference: &ModelRef, range: &VersionReq) -> bool {
        let Told { trust, trusted } = told;
        loop {
            let record = match self.store.record(model) {
                Ok(record) => record,
                Err(error) => {
                    self.complain(model, "depot-refused", &error.to_string());
                    return false;
                }
            };
            let active = record.active.as_ref().map(|active| active.version.as_str());
            let rejected = |version: &str| self.is_rejected(trusted, model, version);
            let version = match select::choose(trusted, &self.gateway, model, range, active, &rejected, told.time()) {
                Choice::Stay(why) => {
                    self.fetches(Whose::InEffect, model, None);
                    tracing::debug!(model, why, "nothing to deliver");
                    return self.mend(trusted, model, reference, &record).await;
                }
                Choice::Withdrawn { withdrawn } => {
                    self.fetches(Whose::InEffect, model, None);
                    self.give_way(model, &record, withdrawn);
                    return self.mend(trusted, model, reference, &record).await;
                }
                Choice::Take(version) => version,
            };
            if self.has_loader(model, &version) {
                self.fetches(Whose::InEffect, model, None);
                return true;
            }
            self.fetches(Whose::InEffect, model, Some(&version));
            let config = Arc::clone(&self.tools.config);
            match self.bring_in(trusted, (Whose::InEffect, &config), model, &version, reference).await {
                Ok(Taken::Here(opened)) => {
                    // That may have taken days.
                    if !self.is_current(trust) {
                        return false;
                    }
                    self.offer(told);
                    let offered = self.offered.as_ref().and_then(|offered| offered.get(model));
                    if !offered.is_some_and(|versions| versions.contains(&version)) {
                        continue;
                    }
                    self.hand_over(opened);
                    return true;
                }
                Ok(Taken::Handed) => {
                    self.fetching.remove(&(Whose::InEffect, model.to_owned()));
                    return true;
                }
                // Perhaps another will do. Whoever counts failures has to see it after a restart, too.
                Ok(Taken::Rejected(why)) => {
                    self.tools.board.set_rejected(model, &version, why);
                    self.reject(trusted, model, &version);
                }
                Err(error @ FetchError::Unfit { .. }) => {
                    self.tools.board.set_rejected(model, &version, error.to_string());
                    self.tell_rejected(model, &version, &format!("{error}; what runs goes on"));
                    self.reject(trusted, model, &version);
                }
                Err(error) => {
                    let why = self.why(&error);
                    self.tools.board.set_fetching(model, &version, None, Some(why.clone()));
                    let message = format!("{model} {version} is not delivered yet, what runs goes on: {why}");
                    self.complain(model, "depot-refused", &message);
                    return false;
                }
            }
        }
    }

    /// Whether the loader has a version and may take it up yet.
    fn has_loader(&self, model: &str, version: &str) -> bool {
        self.with_loader.iter().any(|of| (of.model.as_str(), of.version.as_str()) == (model, version))
    }

    /// Whether a version was rejected since the start.
    fn is_rejected(&self, trusted: &Trusted, model: &str, version: &str) -> bool {
        let index = trusted.targets.get(&index_name(model, version)).map(|target| target.sha256);
        index.is_some_and(|index| self.rejected.contains(&(model.to_owned(), index)))
    }

    /// Chooses a version no more, until it is published with another content.
    fn reject(&mut self, trusted: &Trusted, model: &str, version: &str) {
        let index = trusted.targets.get(&index_name(model, version)).map(|target| target.sha256);
        // The targets that it was chosen from list it.
        self.rejected.extend(index.map(|index| (model.to_owned(), index)));
    }

    /// Fetches what is missing or damaged of the versions that are installed. Says whether it went well.
    async fn mend(&mut self, trusted: &Trusted, model: &str, reference: &ModelRef, record: &Record) -> bool {
        let configured = self.store.configured().unwrap_or_default();
        let with_it = configured.needs().filter(|(of, _)| *of == model).map(|(_, installed)| installed);
        for installed in record.installed().chain(with_it) {
            let version = installed.version.as_str();
            let listed = trusted.targets.contains_key(&index_name(model, version));
            if self.is_whole(model, version) || !listed || self.has_loader(model, version) {
                continue;
            }
            let config = Arc::clone(&self.tools.config);
            match self.bring_in(trusted, (Whose::InEffect, &config), model, version, reference).await {
                Ok(Taken::Here(opened)) if record.active.as_ref() == Some(installed) => self.hand_over(opened),
                Ok(_) => self.tools.board.set_not_coming(model, version),
                Err(error) => {
                    let why = self.why(&error);
                    let message = format!("{model} {version} is not whole, what runs goes on: {why}");
                    self.complain(model, "depot-refused", &message);
                    return false;
                }
            }
        }
        self.told.remove(model);
        true
    }

    /// Brings a version into the store and opens it, unless it is on record as rejected under `config`.
    async fn bring_in(
        &mut self,
        trusted: &Trusted,
        (whose, config): (Whose, &Config),
        model: &str,
        version: &str,
        reference: &ModelRef,
    ) -> Result<Taken, FetchError> {
        let mut hold = Some(self.store.hold()?);
        let index = {
            let depot = Watched::new(&self.fetcher, PATIENCE);
            depot.bound(fetch::index(trusted, &self.store, &depot, model, version)).await??
        };
        let record = self.store.record(model)?;
        let rejection = record.rejected.get(&Digest(index.package).to_string());
        if let Some(rejection) = rejection.filter(|one| library::still_counts(one.under.as_deref(), config)) {
            return Ok(Taken::Rejected(rejection.reason.clone()));
        }
        let missing = self.store.missing(&index);
        let handed = self.handed.get(model) == Some(&index.package);
        if handed && whose == Whose::InEffect && self.is_whole(model, version) {
            return Ok(Taken::Handed);
        }
        if !missing.is_empty() {
            let of = [trusted.versions.targets, trusted.versions.rollout];
            let until = match self.jitter {
                Some((begun, until)) if begun == of => until,
                _ => Instant::now() + self.depot.jitter.0.mul_f64(link::random() as f64 / u64::MAX as f64),
            };
            self.jitter = Some((of, until));
            tokio::time::sleep_until(until).await;
        }
        match self.fetch(trusted, &index).await {
            Err(full @ FetchError::Store(DepotError::Full { .. })) => {
                // What was being fetched before, perhaps by another process, may be in the way. While it is held, nothing goes.
                drop(hold.take());
                if !self.collect() {
                    return Err(full);
                }
                hold = Some(self.store.hold()?);
                self.fetch(trusted, &index).await?;
            }
            fetched => fetched?,
        }
        let package = match fetch::open(&self.store, &index) {
            // What was damaged was removed when it was found.
            Err(FetchError::Store(_)) if !self.store.missing(&index).is_empty() => {
                self.fetch(trusted, &index).await?;
                fetch::open(&self.store, &index)
            }
            opened => opened,
        };
        let package = Arc::new(package?);
        let bytes: u64 = missing.iter().map(|chunk| u64::from(chunk.stored_len)).sum();
        let message = format!(
            "{model} {version} is here: {} of {} chunks were fetched, {bytes} of {} bytes",
            missing.len(),
            index.chunks.len(),
            index.stored_bytes()
        );
        if self.announced.insert(model.to_owned(), index.package) != Some(index.package) || !missing.is_empty() {
            tracing::info!("{message}");
            self.tools.reporter.event("model-staged", &message, &[("model", model), ("version", version)]);
        }
        drop(hold);
        let place = Place::Stored { model: model.to_owned(), version: version.to_owned() };
        Ok(Taken::Here(Opened { model: reference.clone(), place, package }))
    }

    async fn fetch(&self, trusted: &Trusted, index: &Index) -> Result<(), FetchError> {
        let chunks = Chunks::of(trusted, &self.fetcher, self.depot.ca_file.as_deref())?;
        let bounds = Bounds { rate: self.depot.rate.0, disk: self.depot.disk.0 };
        let (board, model, version) = (&self.tools.board, &index.model, &index.version);
        let shown = std::sync::Mutex::new(None);
        let progress = move |progress: Progress| {
            // In steps of a tenth: the board is a message each time.
            let tenth = progress.done * 10 / progress.of.max(1);
            let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *shown != Some(tenth) {
                *shown = Some(tenth);
                board.set_fetching(model, version, Some(progress.done as f32 / progress.of.max(1) as f32), None);
            }
        };
        let chunks = Watched::new(chunks.remote(), PATIENCE);
        chunks.bound(fetch::chunks(&self.store, &chunks, index, bounds, &progress)).await?
    }

    /// Says what went wrong, once until it is something else.
    fn complain(&mut self, about: &str, kind: &str, message: &str) {
        self.tell(about, kind, message, &[("about", about)]);
    }

    /// The same, with what the event is about.
    fn tell(&mut self, about: &str, kind: &str, message: &str, keys: &[(&str, &str)]) {
        if self.told.insert(about.to_owned(), message.to_owned()).as_deref() != Some(message) {
            tracing::warn!("{message}");
            self.tools.reporter.event(kind, message, keys);
        }
    }

    /// Says once that a version is not taken.
    fn tell_rejected(&mut self, model: &str, version: &str, message: &str) {
        self.tell(model, "model-rejected", message, &[("model", model), ("version", version)]);
    }

    /// Says why nothing is trusted that is new. What expired is the same until that is another, whatever time it is now.
    fn complain_of(&mut self, about: &str, error: &TrustError) {
        let TrustError::Expired { role, expired, .. } = error else {
            return self.complain(about, "depot-refused", &error.to_string());
        };
        let same = format!("{role} expired at {expired}");
        let told = [UPDATE, TRUST].iter().any(|about| self.told.get(*about) == Some(&same));
        self.told.insert(about.to_owned(), same);
        if !told {
            tracing::warn!("{error}");
            self.tools.reporter.event("depot-expired", &error.to_string(), &[("about", about)]);
        }
    }
}

/// Waits until an update is over, if one goes on, or else for ever.
async fn ends(updating: &mut Option<Updating>) -> Result<Update, TrustError> {
    match updating {
        Some(updating) => updating.await,
        None => std::future::pending().await,
    }
}

/// Waits until a moment, if there is one, or else for ever.
async fn due(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What this gateway trusts.
///
/// # Errors
/// As [`Trust::open`].
pub fn trust(config: &Config, depot: &config::Depot) -> Result<Trust, TrustError> {
    let trust = Trust::open(&config.gateway.state, &depot.root, wall::built())?;
    Ok(trust.with_scratch(config.gateway.run.join("trust")))
}

/// Who asks the depot.
pub fn gateway(config: &Config, depot: &config::Depot) -> Gateway {
    Gateway { id: config.gateway.id.to_string(), labels: config.gateway.labels.clone(), channel: depot.channel.clone() }
}

/// The models of the depot that pipelines name, each once, with their ranges.
pub fn wanted(config: &Config) -> BTreeMap<String, (ModelRef, VersionReq)> {
    let models = config.pipelines.iter().filter_map(|pipeline| {
        let model = pipeline.model.depot()?;
        Some((model.name.to_string(), (pipeline.model.clone(), model.range.clone())))
    });
    models.collect()
}

/// What time it is, and whether that is known.
pub fn clock() -> Clock {
    Clock { now: Timestamp::now(), right: wall::is_right() }
}
