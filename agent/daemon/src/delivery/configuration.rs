//! Signed configurations: found, fetched, checked, and put in effect.
//!
//! One takes effect only when all that it needs is here: it reads over this gateway's file, a version of every model that
//! it names, within the range that it names, is in the store and proved, all of it fits together, its budget is one that this
//! machine has, and admission has room for it. What it lacks is fetched first, while the one before runs. What can never be
//! is rejected, and put on record with the reason.
//!
//! A model is a file that a stranger made, and is looked at in this process; so it is put on record before that one is being
//! examined, and what ended the process three times meanwhile is rejected too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use limpet_depot::ProofStore;
use limpet_depot::fetch::{self, FetchError};
use limpet_depot::remote::Watched;
use limpet_depot::select::{self, Choice};
use limpet_depot::store::{Configuration, Configured, Installed, Record, Rejection};
use limpet_depot::trial::ConfigurationTrial;
use limpet_depot::trust::Trusted;
use limpet_wire::depot::Hex;
use semver::VersionReq;

use super::{Delivery, PATIENCE, Taken, Told, Whose, wanted};
use crate::config::{Loaded, ModelRef, Size};
use crate::fit::{self, Fitted};
use crate::library::{Opened, this_agent};
use crate::serve::{Fault, NotProved, Settled};
use crate::{check, configured};

/// How often the process may end while a configuration is examined.
const ATTEMPTS_MAX: u32 = 3;
/// Shortest time that an agent runs before another configuration takes effect, if the trial is not shorter: what is
/// done under it is compared with what was done before.
const RUNS_BEFORE: Duration = Duration::from_secs(60);

/// Why a configuration does not take effect.
enum Not {
    /// What it needs is not here: it is tried again.
    Yet(String),
    /// It cannot work on this gateway.
    Ever(String),
}

impl Not {
    fn ever(error: impl ToString) -> Self {
        Self::Ever(error.to_string())
    }

    fn yet(error: impl ToString) -> Self {
        Self::Yet(error.to_string())
    }
}

impl Delivery {
    /// Does what there is to do for the configuration of this gateway. Says whether it went well.
    pub(super) async fn configuration(&mut self, told: Told<'_>) -> bool {
        let staged = match self.staged(told.trusted).await {
            Ok(staged) => staged,
            Err(why) => {
                self.complain("configuration", "depot-refused", &format!("signed configuration: {why}"));
                return false;
            }
        };
        let Some((configured, candidate)) = staged else {
            self.told.remove("configuration");
            self.fetches_for_candidate(&BTreeMap::new());
            return true;
        };
        // What was before the one on trial has its versions here.
        let trial = configured.trial.as_ref().filter(|trial| trial.previous == candidate);
        let back = trial.map(|trial| trial.models.clone()).unwrap_or_default();
        match self.examine(told, candidate.as_ref(), &back).await {
            Ok(models) => {
                // What it is compared with.
                let long = self.depot.trial.0.min(RUNS_BEFORE);
                tokio::time::sleep_until((self.tools.started + long).into()).await;
                // To fetch what it names may have taken days.
                if !self.is_current(told.trust) {
                    return false;
                }
                self.put_in_effect(&configured, candidate, models)
            }
            Err(Not::Yet(why)) => {
                let name = configured::name(candidate.as_ref());
                let runs = configured::name(configured.active.as_ref());
                let failure = Some(format!("{name} waits: {why}"));
                self.show(&Configured { failure, ..configured });
                let message = format!("{name} waits, {runs} stays in effect: {why}");
                self.tell("configuration", "configuration-waits", &message, &[("configuration", &name)]);
                false
            }
            Err(Not::Ever(why)) => {
                let name = configured::name(candidate.as_ref());
                let key = Configured::key(candidate.as_ref());
                self.turn_down(&configured, &name, key, candidate.as_ref(), &why);
                self.fetches_for_candidate(&BTreeMap::new());
                true
            }
        }
    }

    /// Puts a configuration on record as one that is not tried again. `key`: what it is called there.
    fn turn_down(
        &mut self,
        configured: &Configured,
        name: &str,
        key: String,
        candidate: Option<&Configuration>,
        why: &str,
    ) {
        let runs = configured::name(configured.active.as_ref());
        let message = format!("{name} is rejected, {runs} stays in effect: {why}");
        self.tell("configuration", "configuration-rejected", &message, &[("configuration", name)]);
        let rejection =
            Rejection { version: name.to_owned(), ..configured::rejection(&self.tools.path, candidate, why) };
        match self.store.update_configured(|configured| configured.reject(key, rejection)) {
            Ok(configured) => self.show(&configured),
            Err(error) => tracing::error!(%error, "a rejection could not be put on record; it is tried again"),
        }
    }

    /// Looks at `what` a configuration brings, in a way that may end the process. That is on record while it is done for the
    /// first time in a row.
    fn with_care<T>(&mut self, what: &str, look: impl FnOnce(&mut Self) -> T) -> Result<T, Not> {
        if self.examined.as_deref() == Some(what) {
            return Ok(look(self));
        }
        let mut attempts = 0;
        let begin = |configured: &mut Configured| {
            attempts = configured.attempts;
            configured.attempts += 1;
        };
        self.store.update_configured(begin).map_err(Not::yet)?;
        if attempts >= ATTEMPTS_MAX {
            return Err(Not::Ever(format!("the agent ended {attempts} times while it was examined")));
        }
        let looked = look(self);
        self.store.update_configured(|configured| configured.attempts = 0).map_err(Not::yet)?;
        self.examined = Some(what.to_owned());
        Ok(looked)
    }

    fn show(&self, configured: &Configured) {
        _ = configured::state(configured).map(|state| self.tools.board.set_configuration(state));
    }

    /// What should take the place of what is in effect, fetched and verified; with what is in effect. None if nothing
    /// should.
    async fn staged(&mut self, trusted: &Trusted) -> Result<Option<(Configured, Option<Configuration>)>, String> {
        let configured = self.store.configured().map_err(|error| error.to_string())?;
        let Some(target) = select::configuration(trusted, &self.gateway)? else {
            // The signed list says that there is none for this gateway, which is more than an absent message.
            let key = Configured::key(None);
            let stays =
                configured.active.is_none() || configured::rejected(&configured, &key, &self.tools.path).is_some();
            return Ok((!stays).then_some((configured, None)));
        };
        let (target, sha256) = (target.to_owned(), trusted.targets[target].sha256);
        if configured.active.as_ref().is_some_and(|active| active.digest().0 == sha256) {
            return Ok(None);
        }
        let key = Hex(&sha256).to_string();
        if configured::rejected(&configured, &key, &self.tools.path).is_some() {
            return Ok(None);
        }
        let depot = Watched::new(&self.fetcher, PATIENCE);
        let fetched = depot.bound(fetch::configuration(trusted, &self.store, &depot, &target)).await;
        match fetched.map_err(FetchError::from).flatten() {
            Ok(staged) => Ok(Some((configured, Some(staged)))),
            Err(FetchError::Unfit { why, .. }) => {
                self.turn_down(&configured, &target, key, None, &why);
                Ok(None)
            }
            Err(error) => Err(self.why(&error)),
        }
    }

    /// Whether a configuration can work here, with the records that come `back` with it, and with what else it needs fetched
    /// and proved. Gives the records that are put in place with it.
    async fn examine(
        &mut self,
        told: Told<'_>,
        candidate: Option<&Configuration>,
        back: &BTreeMap<String, Record>,
    ) -> Result<BTreeMap<String, Record>, Not> {
        let loaded = configured::apply(&self.tools.path, &self.tools.file, candidate).map_err(Not::ever)?;
        fits_machine(&loaded)?;
        let key = Configured::key(candidate);
        let models = wanted(&loaded.config);
        self.fetches_for_candidate(&models);
        // What it does not name goes back in any case.
        let mut put: BTreeMap<String, Record> = back.clone();
        put.retain(|model, _| !models.contains_key(model));
        let comes_back = |(model, record): (&String, &Record)| {
            let ((reference, range), active) = (models.get(model)?, record.active.as_ref()?);
            let lies_there = select::in_range(range, &active.version);
            lies_there.then(|| self.tools.library.stored(reference, model, &active.version).ok()).flatten()
        };
        // What comes back, then what is brought.
        let mut new: Vec<Opened> = back.iter().filter_map(comes_back).collect();
        let here = self.fitted(&loaded, &new)?;
        let mut lacks = Vec::new();
        for (model, (reference, range)) in models {
            let record = self.store.record(&model).map_err(Not::yet)?;
            let active = record.active.as_ref().filter(|_| !record.withdrawn);
            let lies_there = active.is_some_and(|active| select::in_range(&range, &active.version));
            let comes_back = new.iter().any(|opened| opened.model == reference);
            if !(lies_there || comes_back) || here.waiting.iter().any(|waiting| waiting.model == reference) {
                new.retain(|opened| opened.model != reference);
                lacks.push((model, reference, range));
            }
        }
        let known = new.len();
        let mut not_yet = None;
        let mut later: BTreeSet<ModelRef> = lacks.iter().map(|(_, reference, _)| reference.clone()).collect();
        for (model, reference, range) in lacks {
            // It need not fit beside what is replaced as well.
            later.remove(&reference);
            match self.bring(told, (&loaded, &key), (&new, &later), &model, &reference, &range).await {
                Ok(opened) => new.push(opened),
                // The others are fetched meanwhile.
                Err(Not::Yet(why)) => {
                    not_yet = not_yet.or(Some(why));
                    later.insert(reference);
                }
                Err(ever) => return Err(ever),
            }
        }
        match not_yet {
            Some(why) => Err(Not::Yet(why)),
            None => {
                self.with_care(&key, |delivery| delivery.look_at(&loaded, &new))??;
                put.extend(new.iter().enumerate().map(|(number, opened)| {
                    let model = opened.package.manifest().name.clone();
                    let brought = || Record { active: Some(Installed::of(&opened.package)), ..Record::default() };
                    let record = back.get(&model).filter(|_| number < known).cloned();
                    (model, record.unwrap_or_else(brought))
                }));
                Ok(put)
            }
        }
    }

    /// A configuration, fitted together with the packages that are here and with those that are `new`.
    fn fitted(&self, loaded: &Loaded, new: &[Opened]) -> Result<Fitted, Not> {
        let parts = fit::open(loaded, &self.tools.library, new, &BTreeSet::new()).map_err(Not::yet)?;
        parts.fit(loaded).map_err(Not::ever)
    }

    /// Of these models alone something is fetched for a configuration that may take effect.
    fn fetches_for_candidate(&mut self, models: &BTreeMap<String, (ModelRef, VersionReq)>) {
        let others =
            self.fetching.keys().filter(|(whose, model)| *whose == Whose::Candidate && !models.contains_key(model));
        let others: Vec<String> = others.map(|(_, model)| model.clone()).collect();
        others.iter().for_each(|model| self.fetches(Whose::Candidate, model, None));
    }

    /// Whether a configuration fits together with the packages that are here and with those that are `new`, is proved, and
    /// admitted.
    fn look_at(&self, loaded: &Loaded, new: &[Opened]) -> Result<(), Not> {
        let fitted = self.fitted(loaded, new)?;
        if let Some(waiting) = fitted.waiting.first() {
            let index = loaded.config.pipelines.iter().position(|pipeline| pipeline.name == waiting.pipeline);
            let problem = loaded.problem("pipeline", index.unwrap_or_default(), "model", waiting.why.clone());
            return Err(Not::yet(problem));
        }
        let engines = limpet_engine::engines();
        let proofs = ProofStore::new(&loaded.config.gateway.state, &engines).map_err(Not::yet)?;
        let candidates = check::candidates(&fitted, Some(&proofs), &engines, true);
        let (candidates, _) = candidates.map_err(|NotProved { why, fault }| match fault {
            Fault::Package => Not::Ever(why),
            Fault::Stopped | Fault::Device => Not::Yet(why),
        })?;
        match check::admit(loaded, &fitted, &candidates).refused {
            refused if refused.is_empty() => Ok(()),
            refused => Err(Not::Ever(refused.join("; "))),
        }
    }

    /// The highest version of a model that is offered, in the range that a configuration names, fits it, and is proved.
    async fn bring(
        &mut self,
        told: Told<'_>,
        (loaded, key): (&Loaded, &str),
        (new, later): (&[Opened], &BTreeSet<ModelRef>),
        model: &str,
        reference: &ModelRef,
        range: &VersionReq,
    ) -> Result<Opened, Not> {
        // Those that are no good for this configuration. They may be for another.
        let mut unfit: BTreeSet<String> = BTreeSet::new();
        let mut last = String::new();
        loop {
            // What is in effect says nothing of that: what it rejected is looked at under this one.
            let rejected = |version: &str| unfit.contains(version);
            let version = match select::choose(told.trusted, &self.gateway, model, range, None, &rejected, told.time())
            {
                Choice::Take(version) => version,
                Choice::Stay(why) => return Err(Not::Yet(format!("it names the model {model}: {why}{last}"))),
                Choice::Withdrawn { .. } => return Err(Not::Yet(format!("all versions of {model} were withdrawn"))),
            };
            // What is there of it is wanted, though no record names it.
            self.fetches(Whose::Candidate, model, Some(&version));
            let why = match self
                .bring_in(told.trusted, (Whose::Candidate, &loaded.config), model, &version, reference)
                .await
            {
                Ok(Taken::Here(opened)) => match self.with_care(&format!("{key} {model} {version}"), |delivery| {
                    delivery.prove(loaded, (new, later), &opened)
                })?? {
                    Ok(()) => return Ok(opened),
                    Err(why) => why,
                },
                // Only of what is in effect.
                Ok(Taken::Handed) => return Err(Not::Yet(format!("{model} {version} is being looked at"))),
                Ok(Taken::Rejected(why)) => format!("it was rejected before: {why}"),
                Err(error @ FetchError::Unfit { .. }) => error.to_string(),
                Err(error) => {
                    return Err(Not::Yet(format!("{model} {version} is not here yet: {}", self.why(&error))));
                }
            };
            last = format!("; {version}: {why}");
            unfit.insert(version);
        }
    }

    /// Proves a version for a configuration. What is wrong with it for that configuration is in the answer; what it will
    /// always be wrong with is on record.
    fn prove(
        &mut self,
        loaded: &Loaded,
        (new, later): (&[Opened], &BTreeSet<ModelRef>),
        opened: &Opened,
    ) -> Result<Result<(), String>, Not> {
        let with_it = [new, std::slice::from_ref(opened)].concat();
        let fitted = match fit::would_run(loaded, &self.tools.library, &with_it, later) {
            Ok(fitted) => fitted,
            Err(why) => return Ok(Err(why)),
        };
        let (package, engines) = (&opened.package, limpet_engine::engines());
        let proofs = ProofStore::new(&loaded.config.gateway.state, &engines).map_err(Not::yet)?;
        let proved = proofs.get_or_prove(package, &engines, &fitted.plan.proof_options(&opened.model));
        let (model, installed) = (package.manifest().name.clone(), Installed::of(package));
        let why = match proved.map_err(|error| NotProved::of(&error)) {
            Ok(_) => return Ok(Ok(())),
            Err(NotProved { why, fault: Fault::Package }) => why,
            Err(NotProved { why, fault: Fault::Stopped }) if self.stops.once_more(&installed.package) => why,
            Err(NotProved { why, .. }) => return Err(Not::Yet(why)),
        };
        let (at, under) = (Some(Timestamp::now()), Some(this_agent()));
        let rejection = Rejection { version: installed.version.clone(), reason: why.clone(), at, under };
        let reject = |record: &mut Record| _ = record.rejected.insert(installed.package, rejection);
        self.store.update_record(&model, reject).map_err(Not::yet)?;
        self.tell_rejected(&model, &installed.version, &format!("{model} {} is rejected: {why}", installed.version));
        Ok(Err(why))
    }

    /// Puts a configuration on record as the one in effect, with the records that come with it, and lets the agent begin again
    /// with it, unless what it was examined `beside` is no longer in effect. Says whether that went well.
    fn put_in_effect(
        &mut self,
        beside: &Configured,
        candidate: Option<Configuration>,
        models: BTreeMap<String, Record>,
    ) -> bool {
        let tools = &self.tools;
        let name = configured::name(candidate.as_ref());
        let before = configured::activity(&tools.plan, &tools.links, tools.started);
        let trial = ConfigurationTrial { before, ..ConfigurationTrial::default() };
        let mut put = false;
        let records = self.store.records();
        let written = records.and_then(|records| {
            self.store.update_configured(|configured| {
                // Its trial may have ended meanwhile, one way or the other.
                put = configured.active == beside.active && configured.trial.is_some() == beside.trial.is_some();
                if put {
                    configured.activate(candidate, Some(trial));
                    let now = |model: &str| records.get(model).and_then(|record| record.as_ref().ok()).cloned();
                    configured.bring(models, |model| now(model).unwrap_or_default());
                }
            })
        });
        match written {
            Ok(_) if put => {
                let story = format!("{name} was checked and admitted, and takes effect");
                tools.reporter.event("configuration-activated", &story, &[("configuration", &name)]);
                // Nobody listens after the stop.
                _ = tools.settled.send(Settled::Again(story));
                self.told.remove("configuration");
                true
            }
            // It is examined again.
            Ok(_) => false,
            Err(error) => {
                self.complain("configuration", "depot-refused", &format!("{name} cannot take effect: {error}"));
                false
            }
        }
    }
}

/// A budget beyond what the machine has admits what cannot run, and may keep the agent from starting.
fn fits_machine(loaded: &Loaded) -> Result<(), Not> {
    let budget = &loaded.config.budget;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if budget.workers() > cores {
        let text = format!("found {}, and this gateway has {cores} cores", budget.cpu);
        return Err(Not::ever(loaded.problem_with("budget.cpu", text)));
    }
    let memory = sysinfo::System::new().map(|mut system| {
        system.refresh_memory();
        system.cgroup_limits().map_or_else(|| system.total_memory(), |limits| limits.total_memory)
    });
    match memory {
        Ok(memory) if budget.memory.0 > memory => {
            let text = format!("found {}, and this gateway has {}", budget.memory, Size(memory));
            Err(Not::ever(loaded.problem_with("budget.memory", text)))
        }
        // A system that does not tell is no reason.
        _ => Ok(()),
    }
}
