//! Signed configurations: what takes the place of `[[source]]`, `[[pipeline]]` and `[budget]` in this gateway's own file.
//!
//! The [record](limpet_depot::store::Configured) in the store says which one is in effect. A start applies it
//! ([`begin`]); the thread of deliveries finds, checks and activates another one, and the agent begins again with it. From
//! then on it is on [trial](limpet_depot::trial::Judge): what breaks on it is taken back, and the agent begins again with
//! what was in effect before. One that does not even start is taken back by the start itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use limpet_depot::store::{Configuration, Configured, Rejection};
use limpet_depot::trial::{Activity, ConfigurationTrial, Heard, Judge, STARTS_MAX, Seen, Stand, Verdict};
use limpet_depot::{Digest, Store};
use limpet_wire::message::{ConfigurationPhase, ConfigurationState};
use tokio::sync::mpsc::UnboundedSender;

use crate::CliError;
use crate::config::{self, Loaded, Overlay};
use crate::fit::{self, Fitted};
use crate::library::{Library, this_agent};
use crate::link::outgoing::Outgoing;
use crate::pipeline::plan::{Plan, SourcePlan};
use crate::pipeline::shadow::before;
use crate::report::Reporter;
use crate::router::NO_MODEL;
use crate::serve::{Board, PipelineState, Settled};

/// How often one on trial is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is kept how far a trial is: flash wears.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// A process that ran for so long has started well.
const STAYS_UP: Duration = Duration::from_secs(600);

/// The configuration that an agent starts with.
pub struct Begun {
    /// What is in effect.
    pub loaded: Loaded,
    /// What of it can run.
    pub fitted: Fitted,
    /// What takes the place of tables of the file, and the trial that it is on.
    pub configured: Configured,
    /// What was taken back on the way: sentences.
    pub taken_back: Vec<String>,
}

/// Applies the configuration that is in effect. What does not fit the gateway's file, or the packages that are here, is
/// taken back, and what was before it takes effect.
///
/// # Errors
/// What is wrong with the gateway's own file.
pub fn begin(path: &Path, file: Loaded, library: &Library) -> Result<Begun, CliError> {
    let Some(store) = library.store() else {
        let fitted = fit::fit(&file, library)?;
        return Ok(Begun { loaded: file, fitted, configured: Configured::default(), taken_back: Vec::new() });
    };
    let mut taken_back = Vec::new();
    let mut configured = store.configured().unwrap_or_else(|error| {
        taken_back.push(format!("no signed configuration is in effect, the file alone is: {error}"));
        Configured::default()
    });
    loop {
        let active = configured.active.clone();
        let starts = configured.trial.as_ref().map(|trial| trial.starts);
        let outcome = match starts.filter(|starts| *starts >= STARTS_MAX) {
            Some(starts) => {
                let why = format!("{starts} starts of the agent under it ended without being told to");
                Err(CliError::Configuration(vec![why]))
            }
            None => {
                // Before it is looked at: what is in it may be what ends the process.
                change(store, &mut configured, |configured| {
                    _ = configured.trial.as_mut().map(|trial| trial.starts += 1);
                });
                apply(path, &file, active.as_ref()).and_then(|loaded| {
                    put_models(store, &mut configured);
                    fit::fit(&loaded, library).map(|fitted| (loaded, fitted))
                })
            }
        };
        match outcome {
            Ok((loaded, fitted)) => return Ok(Begun { loaded, fitted, configured, taken_back }),
            // Nothing is left to go back to.
            Err(error) if active.is_none() && starts.is_none() => return Err(error),
            Err(error) => {
                let why = error.to_string();
                change(store, &mut configured, |configured| _ = go_back(configured, path, active.as_ref(), &why));
                let story = story(active.as_ref(), &configured, &why);
                tracing::error!("{story}");
                taken_back.push(story);
            }
        }
    }
}

/// Puts the records of models in place that come with what is in effect, or come back with it. One that cannot be written is
/// tried again at the next start.
fn put_models(store: &Store, configured: &mut Configured) {
    let mut done = BTreeSet::new();
    for (model, record) in &configured.models {
        match store.update_record(model, |now| now.replace(record)) {
            Ok(_) => _ = done.insert(model.clone()),
            Err(error) => {
                tracing::error!(model, %error, "the version that goes with the configuration could not be put on record");
            }
        }
    }
    if !done.is_empty() {
        change(store, configured, |configured| configured.models.retain(|model, _| !done.contains(model)));
    }
}

/// Takes back the configuration on trial, if one is, since the agent cannot run by it. Says whether one was.
pub fn does_not_run(store: &Store, path: &Path, why: &CliError) -> bool {
    let mut left = None;
    let configured = store.update_configured(|configured| {
        if configured.trial.is_some() {
            let active = configured.active.clone();
            go_back(configured, path, active.as_ref(), &why.to_string());
            left = Some(active);
        }
    });
    match configured {
        Ok(configured) => {
            let story = left.map(|left| story(left.as_ref(), &configured, &why.to_string()));
            story.inspect(|story| tracing::error!("{story}")).is_some()
        }
        Err(error) => {
            tracing::error!(%error, "the configuration on trial could not be taken back");
            false
        }
    }
}

/// Changes the record. An agent runs by it even if it cannot be written.
fn change(store: &Store, configured: &mut Configured, change: impl Fn(&mut Configured)) {
    match store.update_configured(&change) {
        Ok(now) => *configured = now,
        Err(error) => {
            tracing::error!(%error, "what became of the signed configuration could not be put on record");
            change(configured);
        }
    }
}

/// Notes that the agent ends because it was told to: this start, and what it was examining, are no sign of anything.
pub fn ends_well(store: &Store) {
    let noted = store.update_configured(|configured| {
        configured.attempts = 0;
        _ = configured.trial.as_mut().map(|trial| trial.starts = trial.starts.saturating_sub(1));
    });
    if let Err(error) = noted {
        tracing::warn!(%error, "a good end could not be noted for signed configurations");
    }
}

/// The configuration in effect, for whoever only looks.
///
/// # Errors
/// What is wrong with it.
pub fn in_effect(path: &Path, file: Loaded, library: &Library) -> Result<Loaded, CliError> {
    let Some(store) = library.store() else { return Ok(file) };
    let configured = store.configured().map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    apply(path, &file, configured.active.as_ref())
}

/// A configuration over the file, or the file alone.
///
/// # Errors
/// What is wrong with it, with its lines.
pub fn apply(path: &Path, file: &Loaded, configuration: Option<&Configuration>) -> Result<Loaded, CliError> {
    let Some(Configuration { target, text }) = configuration else { return Ok(file.clone()) };
    config::read_with(path, Some(Overlay { name: target, text }))
}

/// What a configuration is called: its target and the first digits of its digest, or that there is none.
pub fn name(configuration: Option<&Configuration>) -> String {
    let signed = |one: &Configuration| format!("{} ({})", one.target, &one.digest().to_string()[..12]);
    configuration.map_or_else(|| "the file alone".to_owned(), signed)
}

/// Why one is not tried again, until the agent or the gateway's file is another.
pub fn rejection(path: &Path, configuration: Option<&Configuration>, reason: &str) -> Rejection {
    let (version, at) = (name(configuration), Some(Timestamp::now()));
    Rejection { version, reason: reason.to_owned(), at, under: Some(under(path)) }
}

/// What a configuration is judged under.
fn under(path: &Path) -> String {
    let file = std::fs::read(path).map(|bytes| Digest::of(&bytes).to_string()).unwrap_or_default();
    format!("{}, file {file}", this_agent())
}

/// Whether a configuration, or the file alone, was rejected and that still counts: why.
pub fn rejected<'c>(configured: &'c Configured, key: &str, path: &Path) -> Option<&'c Rejection> {
    configured.rejected.get(key).filter(|rejection| rejection.under.as_deref() == Some(&*under(path)))
}

/// Takes back what is in effect, if that is `of`. Says whether it was.
fn go_back(configured: &mut Configured, path: &Path, of: Option<&Configuration>, why: &str) -> bool {
    let is = configured.active.as_ref() == of;
    if is {
        configured.go_back(rejection(path, of, why));
    }
    is
}

/// That `of` was taken back.
fn story(of: Option<&Configuration>, configured: &Configured, why: &str) -> String {
    format!("{} was taken back, {} is in effect again: {why}", name(of), name(configured.active.as_ref()))
}

/// What is shown of what is in effect; of a gateway that never had a signed configuration, nothing.
pub fn state(configured: &Configured) -> Option<ConfigurationState> {
    let Configured { active, trial, failure, rejected, .. } = configured;
    let never = active.is_none() && trial.is_none() && failure.is_none() && rejected.is_empty();
    (!never).then(|| ConfigurationState {
        name: active.as_ref().map_or_else(|| Configured::FILE.to_owned(), |active| active.target.clone()),
        sha256: active.as_ref().map(|active| active.digest().to_string()).unwrap_or_default(),
        state: if trial.is_some() { ConfigurationPhase::Trial } else { ConfigurationPhase::Active },
        failure: failure.clone(),
    })
}

/// Links by broker.
pub type Links = BTreeMap<Arc<str>, Arc<Outgoing>>;

/// What the gateway did since its agent started.
pub fn activity(plan: &Plan, links: &Links, started: Instant) -> Activity {
    let heard = |source: &Arc<SourcePlan>| {
        let figures = source.ledger.figures();
        // What came before there was a model says nothing of the source.
        let refused = figures.refused.iter().filter(|(reason, _)| *reason != NO_MODEL);
        let most = refused.clone().max_by_key(|(_, count)| **count).map(|(reason, _)| reason.clone());
        let refused = refused.map(|(_, count)| count).sum();
        (source.name().to_owned(), Heard { messages: figures.messages, refused, reason: most.unwrap_or_default() })
    };
    Activity {
        time: started.elapsed(),
        pipelines: plan.pipelines.iter().map(|plan| (plan.name.to_string(), before(&plan.ledger))).collect(),
        sources: plan.sources.iter().map(heard).collect(),
        brokers: links.iter().filter(|(_, link)| link.is_connected()).map(|(name, _)| name.to_string()).collect(),
    }
}

/// What watches a configuration on trial.
pub struct Watch {
    /// Where the configuration comes from.
    pub path: PathBuf,
    /// The store with its record.
    pub store: Store,
    /// What is on trial. Another one may take its place on record before this process ends.
    pub active: Option<Configuration>,
    /// What runs.
    pub plan: Arc<Plan>,
    /// Pipelines whose model is on its way.
    pub waiting: Vec<String>,
    /// Where pipelines stand.
    pub board: Arc<Board>,
    /// Links by broker.
    pub links: Arc<Links>,
    /// Who hears of what happens.
    pub reporter: Arc<Reporter>,
    /// How the agent begins again.
    pub settled: UnboundedSender<Settled>,
    /// When the agent started.
    pub started: Instant,
}

impl Watch {
    /// Watches on a thread of its own until the verdict is on record. The process may end at any time.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(self, long: Duration, trial: &ConfigurationTrial) -> std::io::Result<()> {
        let mut judge = Judge::new(long, trial);
        let before = trial.before.brokers.clone();
        let watch = move || {
            let (mut kept, mut complained) = (Instant::now(), false);
            loop {
                std::thread::sleep(LOOK);
                let ended = match judge.look(&self.seen(&before)) {
                    Verdict::Going => Ok(false),
                    verdict => self.end(verdict).map(|()| true),
                };
                match ended {
                    Ok(true) => return,
                    Ok(false) => {}
                    // A disk that is full may have room in a moment, and only what is on record has an effect.
                    Err(why) if !complained => {
                        complained = true;
                        tracing::error!("{why}");
                        self.reporter.event("configuration-not-on-record", &why, &[]);
                    }
                    Err(_) => {}
                }
                if kept.elapsed() >= KEEP_EVERY {
                    kept = Instant::now();
                    self.keep(judge.served());
                }
            }
        };
        std::thread::Builder::new().name("on-trial".into()).spawn(watch).map(|_| ())
    }

    /// `before`: brokers that were connected before.
    fn seen(&self, before: &BTreeSet<String>) -> Seen {
        let stand = |state| match state {
            PipelineState::Serving => Stand::Serving,
            PipelineState::Loading => Stand::Coming,
            PipelineState::Refused(why) => Stand::Refused(why),
        };
        let pipelines = self.plan.pipelines.iter().map(|pipeline| pipeline.name.to_string());
        let stands = pipelines.zip(self.board.pipelines().into_iter().map(stand));
        let sources = &self.plan.sources;
        Seen {
            activity: activity(&self.plan, &self.links, self.started),
            stands: stands.chain(self.waiting.iter().map(|name| (name.clone(), Stand::Coming))).collect(),
            connected: sources
                .iter()
                .filter_map(|source| source.config.broker.as_deref())
                .all(|broker| self.links[broker].is_connected() || !before.contains(broker)),
        }
    }

    /// How far the trial is; and that the agent stays up.
    fn keep(&self, served: Duration) {
        let kept = self.store.update_configured(|configured| {
            if let Some(trial) = configured.trial.as_mut().filter(|_| configured.active == self.active) {
                trial.served = served;
                if self.started.elapsed() >= STAYS_UP {
                    trial.starts = 0;
                }
            }
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "the progress of the configuration's trial could not be kept");
        }
    }

    /// Puts a verdict on record, and says so. Nothing is said where another configuration is on record meanwhile.
    ///
    /// # Errors
    /// Why it is not on record.
    fn end(&self, verdict: Verdict) -> Result<(), String> {
        let (active, mut concerned) = (self.active.as_ref(), false);
        let change = |configured: &mut Configured| match &verdict {
            Verdict::Breach(why) => concerned = go_back(configured, &self.path, active, why),
            _ => {
                concerned = configured.active.as_ref() == active;
                configured.trial = configured.trial.take().filter(|_| !concerned);
            }
        };
        let configured = self.store.update_configured(change).map_err(|error| {
            format!("what became of {} on its trial cannot be put on record: {error}", name(active))
        })?;
        if !concerned {
            return Ok(());
        }
        match &verdict {
            Verdict::Breach(why) => {
                let story = story(active, &configured, why);
                tracing::error!("{story}");
                self.reporter.event("configuration-rolled-back", &story, &[("configuration", &name(active))]);
                // Nobody listens after the stop.
                let _ = self.settled.send(Settled::Again(story));
            }
            _ => {
                let story = format!("{} passed its trial", name(active));
                tracing::info!("{story}");
                self.reporter.event("configuration-passed", &story, &[("configuration", &name(active))]);
                _ = state(&configured).map(|state| self.board.set_configuration(state));
            }
        }
        Ok(())
    }
}
