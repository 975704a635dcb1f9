//! Going back: to the version before one that did not keep its promise, or that was withdrawn.

use std::collections::BTreeMap;
use std::time::Instant;

use limpet_depot::select;
use limpet_depot::store::Installed;
use limpet_depot::trial::Mode;
use limpet_wire::message::ModelPhase;

use super::super::ModelVersion;
use super::super::loader::Loader;
use super::trials::Watched;
use super::{Grounds, NotReady, Ready};
use crate::pipeline::worker::Sink;

/// A version that served before and takes over again when it is proved.
pub(super) struct ComingBack {
    pub(super) installed: Installed,
    /// The version that is to go, why, and whether that is a breach; else it was withdrawn.
    pub(super) left: String,
    pub(super) why: String,
    pub(super) breach: bool,
}

/// How far going back to a version is.
enum Back {
    /// It serves.
    Serves,
    /// It is proved first.
    Proving,
}

/// How going back from a version of a model to the one before it came out.
fn returned(name: &str, left: &str, back: &str, why: &str, restored: Result<(), &str>) -> String {
    match restored {
        Ok(()) => format!("{name} {left} was taken back, {back} serves again: {why}"),
        Err(error) => format!("{name} {left} should be taken back, but {back} cannot serve ({error}): {why}"),
    }
}

/// What a version is called that served and was taken back.
fn left_as(breach: bool) -> ModelPhase {
    if breach { ModelPhase::Failed } else { ModelPhase::Withdrawn }
}

impl<S: Sink + 'static> Loader<S> {
    /// The version before takes over again. `breach`: what the one that served did; none if it was withdrawn.
    pub(super) fn go_back(&mut self, name: &str, watched: Watched, breach: Option<&str>) {
        let Watched { own, other, .. } = watched;
        let Some(previous) = self.record(name).previous.into_iter().next() else {
            let why = breach.unwrap_or_default();
            let story = format!("{name} {} stays, there is no version to go back to: {why}", own.installed.version);
            self.tell_of_return(name, &own.installed.version, true, &story);
            let _ = self.on_record(name, |record| record.end_trial());
            return self.board.set(&own.manifest, ModelPhase::Active, Some(&own.proved), Some(why.to_owned()));
        };
        let rejection = breach.map(|why| self.rejection(&own.installed.version, Grounds::Version, why));
        if let Err(why) = self.on_record(name, |record| _ = record.go_back(rejection)) {
            // It serves all the same; the next start tries the other one again, and is watched again.
            tracing::error!(model = name, why, "going back could not be put on record");
        }
        // What runs beside it takes over at once; what does not has to be loaded first.
        let beside = other.filter(|other| other.installed == previous);
        let switched = match beside {
            Some(ready) => self.restore(ready).map(|()| Back::Serves),
            None => self.bring_back(name, &previous, &own),
        };
        let (left, back) = (&own.installed.version, &previous.version);
        let why = breach.map_or_else(|| "it was withdrawn".to_owned(), str::to_owned);
        let story = match &switched {
            Ok(Back::Serves) => returned(name, left, back, &why, Ok(())),
            Ok(Back::Proving) => format!(
                "{name} {left} is to be taken back, and serves until then: {back} has no proof that is valid here, is \
                 being proved, and takes over when it passes: {why}"
            ),
            Err(error) => returned(name, left, back, &why, Err(error)),
        };
        self.tell_of_return(name, left, breach.is_some(), &story);
        match switched {
            Ok(Back::Serves) => {
                self.board.set_state(name, left, left_as(breach.is_some()), Some(why));
            }
            Ok(Back::Proving) => {
                let shown = format!("it is to be taken back when {back} is proved: {why}");
                self.board.set_state(name, left, ModelPhase::Active, Some(shown));
                let (left, breach) = (left.clone(), breach.is_some());
                let coming = ComingBack { installed: previous, left, why, breach };
                self.delivered.entry(name.to_owned()).or_default().coming_back = Some(coming);
            }
            Err(_) => {}
        }
    }

    fn tell_of_return(&self, name: &str, version: &str, breach: bool, story: &str) {
        tracing::error!("{story}");
        let kind = if breach { "rolled-back" } else { "model-withdrawn" };
        self.reporter.event(kind, story, &[("model", name), ("version", version)]);
    }

    /// The version to go back to was proved: it takes over.
    pub(super) fn came_back(&mut self, coming: &ComingBack, ready: Ready) {
        let ComingBack { installed, left, why, breach } = coming;
        let (name, back) = (ready.name().to_owned(), &installed.version);
        let restored = self.restore(ready);
        let story = returned(&name, left, back, why, restored.as_ref().copied().map_err(String::as_str));
        self.tell_of_return(&name, left, *breach, &story);
        if restored.is_ok() {
            self.board.set_state(&name, left, left_as(*breach), Some(why.clone()));
        }
        self.brought_up();
    }

    /// The version to go back to did not pass its proof: what serves stays, and the record says so, or the next start
    /// would have none that serves.
    pub(super) fn stays_after_all(&mut self, name: &str, coming: &ComingBack, not_proved: &str) {
        let ComingBack { installed, left, why, breach } = coming;
        let back = &installed.version;
        let serving = self.delivered.get(name).and_then(|delivered| delivered.serving.as_ref());
        let serving = serving.map(|ready| ready.installed.clone());
        let keep = self.keep();
        if let Some(serving) = serving {
            let kept = self.on_record(name, |record| {
                record.activate(serving, keep);
                record.previous.retain(|previous| previous != installed);
            });
            if let Err(why) = kept {
                tracing::error!(model = name, why, "what serves could not be put on record");
            }
        }
        let story =
            format!("{name} {left} stays, though it should be taken back ({why}): {back} was not proved: {not_proved}");
        self.tell_of_return(name, left, *breach, &story);
        self.board.set_state(name, left, ModelPhase::Active, Some(why.clone()));
    }

    /// A version that is not loaded serves again.
    fn bring_back(&mut self, name: &str, previous: &Installed, own: &Ready) -> Result<Back, String> {
        let pipeline = own.candidates.keys().next().ok_or("no pipeline names it")?;
        let model = &self.plan.pipelines[*pipeline].package;
        let opened = self.library.stored(model, name, &previous.version).map_err(|error| error.to_string())?;
        let Some(proved) = self.proof_of(&opened) else {
            self.tried.insert(opened.model.clone(), opened.package.digest());
            // It passed under another agent: it is proved again, and takes over then.
            self.board.set(opened.package.manifest(), ModelPhase::Proving, None, None);
            self.prove_first(opened);
            return Ok(Back::Proving);
        };
        let prepared = self.prepare(&opened, proved)?;
        let pipelines: Vec<usize> = own.candidates.keys().copied().collect();
        let restored = self.restore(Ready::of(&prepared, &pipelines));
        self.brought_up();
        restored.map(|()| Back::Serves)
    }

    /// Lets a version serve that served before. It was admitted then; what its sources did since does not keep it from
    /// taking over.
    fn restore(&mut self, ready: Ready) -> Result<(), String> {
        match self.make_ready(&ready.candidates) {
            Ok((with, admitted)) => self.settle(with, &admitted),
            Err(NotReady { why, .. }) => {
                tracing::warn!(why, "the version before is not admitted any more; it serves all the same");
                for (pipeline, candidate) in &ready.candidates {
                    self.load_all(*pipeline, candidate)?;
                    self.serving[*pipeline] = Some(candidate.clone());
                }
            }
        }
        ready.candidates.keys().for_each(|pipeline| self.serve(*pipeline));
        self.board.set(&ready.manifest, ModelPhase::Active, Some(&ready.proved), None);
        let name = ready.name().to_owned();
        self.delivered.entry(name).or_default().serving = Some(ready);
        Ok(())
    }

    /// What serves was withdrawn: the newest version before it that was not takes over, or it stays, and says so.
    pub(in super::super) fn withdrawn(&mut self, name: &str, withdrawn: &[String]) {
        let serving = self.delivered.get(name).and_then(|delivered| delivered.serving.clone());
        let Some(serving) = serving else { return };
        let (record, keep) = (self.record(name), self.keep());
        let delivered = self.delivered.entry(name.to_owned()).or_default();
        let coming_back = delivered.coming_back.take().is_some();
        if let Some(active) = record.active.filter(|active| *active != serving.installed && !coming_back) {
            // What serves stands in for it.
            let version = serving.installed.version.clone();
            let kept = self.on_record(name, |record| {
                record.activate(serving.installed, keep);
                record.previous.retain(|one| !withdrawn.contains(&one.version));
            });
            let story = match kept {
                Ok(_) => format!("{name} {} was withdrawn; {version} serves", active.version),
                Err(why) => format!("{name} {} was withdrawn, which could not be put on record: {why}", active.version),
            };
            self.tell_of_return(name, &active.version, false, &story);
            return self.done(ModelVersion { model: name.to_owned(), version: active.version });
        }
        let (watched, of) = (self.take_watched(name), serving.model_version());
        if let Some(beside) = watched.as_ref().filter(|watched| watched.mode == Mode::Shadow) {
            self.let_go(&beside.own.model_version());
        }
        let pipelines = serving.candidates.keys().copied().collect::<Vec<_>>();
        // What left the range that pipelines ask for is no way back either.
        let model = pipelines.first().and_then(|pipeline| self.plan.pipelines[*pipeline].package.depot());
        let lies_there = |version: &str| model.is_some_and(|model| select::in_range(&model.range, version));
        let may = |one: &Installed| !withdrawn.contains(&one.version) && lies_there(&one.version);
        let kept = self.on_record(name, |record| record.previous.retain(may));
        if let Err(why) = kept {
            tracing::error!(model = name, why, "what may serve could not be put on record");
        }
        if self.record(name).previous.is_empty() {
            let story = format!(
                "{name} {} was withdrawn; it stays, since there is no other version",
                serving.installed.version
            );
            let stays = self.on_record(name, |record| {
                record.withdrawn = true;
                record.end_trial();
            });
            match stays {
                Ok(_) => tracing::warn!("{story}"),
                Err(why) => tracing::error!(why, "{story}"),
            }
            self.reporter.event("model-withdrawn", &story, &[("model", name), ("version", &serving.installed.version)]);
            self.board.set_state(name, &serving.installed.version, ModelPhase::Withdrawn, None);
        } else {
            let other = watched.and_then(|watched| watched.other);
            let watched = Watched {
                mode: Mode::Trial,
                own: serving,
                other,
                open: BTreeMap::new(),
                done: BTreeMap::new(),
                kept: Instant::now(),
            };
            self.go_back(name, watched, None);
        }
        self.unwatch(&pipelines);
        self.tidy();
        self.trial_ended();
        self.done(of);
    }
}
