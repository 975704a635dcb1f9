//! Signed configurations: found, fetched, checked, and put in effect.
//!
//! One takes effect only when all that it needs is here: it reads over this gateway's file, a version of every model that
//! it names is in the store and proved, all of it fits together, and admission has room for it. What it lacks is fetched
//! first, while the one before runs. What can never be is rejected, and put on record with the reason.

use jiff::Timestamp;
use limpet_depot::ProofStore;
use limpet_depot::fetch::{self, FetchError};
use limpet_depot::select::{self, Choice};
use limpet_depot::store::{Configuration, Configured, Installed, Record, Rejection};
use limpet_depot::trial::ConfigurationTrial;
use limpet_depot::trust::Trusted;
use limpet_wire::depot::Hex;

use super::{Delivery, wanted};
use crate::config::Loaded;
use crate::configured;
use crate::library::{Opened, this_agent};
use crate::serve::NotProved;
use crate::serve::Settled;
use crate::{check, fit};

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
    pub(super) async fn configuration(&mut self, trusted: &Trusted, time: Timestamp) -> bool {
        let staged = match self.staged(trusted).await {
            Ok(staged) => staged,
            Err(why) => {
                self.complain("configuration", "depot-refused", &format!("signed configuration: {why}"));
                return false;
            }
        };
        let Some((configured, candidate)) = staged else {
            self.told.remove("configuration");
            return true;
        };
        let examined = self.examine(trusted, time, candidate.as_ref()).await;
        let name = configured::name(candidate.as_ref());
        let runs = configured::name(configured.active.as_ref());
        match examined {
            Ok(loaded) => {
                self.told.remove("configuration");
                self.put_in_effect(&loaded, candidate);
                true
            }
            Err(Not::Yet(why)) => {
                let failure = Some(format!("{name} waits: {why}"));
                self.show(&Configured { failure, ..configured });
                let message = format!("{name} waits, {runs} stays in effect: {why}");
                self.complain("configuration", "configuration-waits", &message);
                false
            }
            Err(Not::Ever(why)) => {
                let message = format!("{name} is rejected, {runs} stays in effect: {why}");
                self.complain("configuration", "configuration-rejected", &message);
                let rejection = configured::rejection(&self.tools.path, candidate.as_ref(), &why);
                let reject = |configured: &mut Configured| configured.reject(candidate.as_ref(), rejection);
                match self.store.update_configured(reject) {
                    Ok(configured) => self.show(&configured),
                    Err(error) => tracing::error!(%error, "a rejection could not be put on record; it is tried again"),
                }
                true
            }
        }
    }

    fn show(&self, configured: &Configured) {
        _ = configured::state(configured).map(|state| self.tools.board.set_configuration(state));
    }

    /// What should take the place of what is in effect, fetched and verified; with what is in effect. None if nothing
    /// should.
    async fn staged(&self, trusted: &Trusted) -> Result<Option<(Configured, Option<Configuration>)>, String> {
        let configured = self.store.configured().map_err(|error| error.to_string())?;
        let Some(target) = select::configuration(trusted, &self.gateway)? else {
            // The signed list says that there is none for this gateway, which is more than an absent message.
            let key = Configured::key(None);
            let stays =
                configured.active.is_none() || configured::rejected(&configured, &key, &self.tools.path).is_some();
            return Ok((!stays).then_some((configured, None)));
        };
        let sha256 = trusted.targets[target].sha256;
        let same = |one: &&Configuration| one.digest().0 == sha256;
        if configured.active.as_ref().is_some_and(|active| same(&active)) {
            return Ok(None);
        }
        if configured::rejected(&configured, &Hex(&sha256).to_string(), &self.tools.path).is_some() {
            return Ok(None);
        }
        if let Some(staged) = configured.staged.clone().filter(|staged| same(&staged)) {
            return Ok(Some((configured, Some(staged))));
        }
        let fetched = fetch::configuration(trusted, &self.fetcher, target).await.map_err(|error| error.to_string())?;
        let keep = fetched.clone();
        let kept = self.store.update_configured(|configured| configured.staged = Some(keep));
        Ok(Some((kept.map_err(|error| error.to_string())?, Some(fetched))))
    }

    /// Whether a configuration can work here, with what it needs fetched and proved.
    async fn examine(
        &mut self,
        trusted: &Trusted,
        time: Timestamp,
        candidate: Option<&Configuration>,
    ) -> Result<Loaded, Not> {
        let loaded = configured::apply(&self.tools.path, &self.tools.file, candidate).map_err(Not::ever)?;
        for (model, (reference, range)) in wanted(&loaded.config) {
            if self.store.record(&model).map_err(Not::yet)?.active.is_some() {
                continue;
            }
            let version = loop {
                let rejected = |version: &str| self.is_rejected(trusted, &model, version);
                match select::choose(trusted, &self.gateway, &model, &range, None, &rejected, time) {
                    Choice::Take(version) => match self.take(trusted, &model, &version, &reference).await {
                        Ok(Some(opened)) if self.introduce(&loaded, &opened)? => break version,
                        Ok(Some(_)) => self.reject(trusted, &model, &version),
                        Ok(None) | Err(FetchError::Unfit { .. }) => self.reject(trusted, &model, &version),
                        Err(error) => return Err(Not::Yet(format!("{model} {version} is not here yet: {error}"))),
                    },
                    Choice::Stay(why) => return Err(Not::Yet(format!("it names the model {model}: {why}"))),
                    Choice::Withdrawn { .. } => {
                        return Err(Not::Yet(format!("all versions of {model} were withdrawn")));
                    }
                }
            };
            tracing::info!(model, version, "here and proved, for a configuration that names it");
        }
        let fitted = fit::fit(&loaded, &self.tools.library).map_err(Not::ever)?;
        if let Some(waiting) = fitted.waiting.first() {
            return Err(Not::Yet(format!("pipeline {} could not run: {}", waiting.pipeline, waiting.why)));
        }
        let engines = limpet_engine::engines();
        let proofs = ProofStore::new(&loaded.config.gateway.state, &engines).map_err(Not::yet)?;
        let (candidates, _) = check::candidates(&fitted, Some(&proofs), &engines, true).map_err(Not::ever)?;
        match check::admit(&loaded, &fitted, &candidates).refused {
            refused if refused.is_empty() => Ok(loaded),
            refused => Err(Not::Ever(refused.join("; "))),
        }
    }

    /// Proves the first version of a model that no pipeline names yet, and lets it serve from the next start on. Says
    /// whether it passed; what failed is on record.
    fn introduce(&mut self, loaded: &Loaded, opened: &Opened) -> Result<bool, Not> {
        let fitted = fit::would_run(loaded, &self.tools.library, opened).map_err(Not::Ever)?;
        let package = &opened.package;
        let (model, installed, keep) = (package.manifest().name.clone(), Installed::of(package), self.depot.keep);
        let engines = limpet_engine::engines();
        let proofs = ProofStore::new(&loaded.config.gateway.state, &engines).map_err(Not::yet)?;
        let proved = proofs.get_or_prove(package, &engines, &fitted.plan.proof_options(&opened.model));
        let failed = match proved.map_err(|error| NotProved::of(&error)) {
            Ok(_) => None,
            Err(not) if not.its_fault => Some(not.why),
            Err(not) => return Err(Not::Yet(not.why)),
        };
        let change = |record: &mut Record| match &failed {
            None => record.activate(installed, keep),
            Some(why) => {
                let (at, under) = (Some(Timestamp::now()), Some(this_agent()));
                let rejection = Rejection { version: installed.version, reason: why.clone(), at, under };
                record.rejected.insert(installed.package, rejection);
            }
        };
        self.store.update_record(&model, change).map_err(Not::yet)?;
        if let Some(why) = &failed {
            self.complain(&model, "model-rejected", why);
        }
        Ok(failed.is_none())
    }

    /// Puts a configuration on record as the one in effect, and lets the agent begin again with it.
    fn put_in_effect(&mut self, loaded: &Loaded, candidate: Option<Configuration>) {
        let tools = &self.tools;
        let name = configured::name(candidate.as_ref());
        let before = configured::activity(&tools.plan, tools.started);
        let trial = configured::trial_of(&loaded.config).map(|_| ConfigurationTrial { before, ..Default::default() });
        match self.store.update_configured(|configured| configured.activate(candidate, trial)) {
            Ok(_) => {
                let story = format!("{name} was checked and admitted, and takes effect");
                tools.reporter.event("configuration-activated", &story, &[("configuration", &name)]);
                // Nobody listens after the stop.
                _ = tools.settled.send(Settled::Again(story));
            }
            Err(error) => {
                self.complain("configuration", "depot-refused", &format!("{name} cannot take effect: {error}"))
            }
        }
    }
}
