//! A new version in the place of an old one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use limpet_runtime::Outcome;
use limpet_runtime::admission::{Admitted, Mebibytes};
use limpet_wire::message::ModelPhase;

use super::delivered::{Because, NotReady};
use super::loader::{Loader, Prepared};
use super::{PipelineState, Proved};
use crate::admission::Candidate;
use crate::config::{ModelRef, Swap};
use crate::library::Opened;
use crate::pipeline::model::Facts;
use crate::pipeline::worker::Sink;

impl<S: Sink + 'static> Loader<S> {
    /// Looks for packages that changed, and swaps what did. What something kept is looked at again, too.
    pub(super) fn reload(&mut self) {
        self.look_again_at_all();
        let models: BTreeSet<ModelRef> = self
            .plan
            .pipelines
            .iter()
            .map(|pipeline| pipeline.package.clone())
            .filter(|m| m.depot().is_none())
            .collect();
        for model in models {
            match self.library.current(&model) {
                Ok(Some(opened)) => {
                    let digest = opened.package.digest();
                    if self.tried.insert(model, digest) != Some(digest) {
                        self.change(opened);
                    }
                }
                // What is at a path is there, or opening it fails.
                Ok(None) => {}
                Err(error) => self.reporter.swap_refused(&model.to_string(), &error.to_string()),
            }
        }
    }

    /// A package changed: it takes the place of what its pipelines serve, once it is proved.
    pub(super) fn change(&mut self, opened: Opened) {
        match self.proof_of(&opened) {
            Some(proved) => self.put_in_place(&opened, proved),
            None => {
                if !self.board.is_active(opened.package.manifest()) {
                    self.board.set(opened.package.manifest(), ModelPhase::Proving, None, None);
                }
                self.prove(vec![opened]);
            }
        }
    }

    /// Serves a package that was proved: in the place of another version, or for the first time.
    pub(super) fn put_in_place(&mut self, opened: &Opened, proved: Proved) {
        if self.plan.uses_of(&opened.model).next().is_none() {
            // Its pipelines wait for it. The proof may be one of before a restart.
            return self.take_up_later(opened);
        }
        let Some(prepared) = self.prepare_or_refuse(opened, proved) else {
            self.tried.remove(&opened.model);
            return self.dealt_with(opened);
        };
        let (served, idle): (Vec<usize>, Vec<usize>) =
            self.plan.uses_of(&opened.model).partition(|pipeline| self.serving[*pipeline].is_some());
        if opened.model.depot().is_some() {
            return self.take_up(prepared, &served);
        }
        if !served.is_empty()
            && let Err(NotReady { why, .. }) = self.swap(&served, &prepared)
        {
            let manifest = opened.package.manifest();
            self.tried.remove(&opened.model);
            self.set_failed(&opened.package, &why);
            self.reporter.swap_refused(&format!("{} {}", manifest.name, manifest.version), &why);
            return self.brought_up();
        }
        // Those that did not run so far may fit with this one.
        let versions = prepared.versions.iter().filter(|(pipeline, _)| idle.contains(pipeline));
        let versions = versions.map(|(pipeline, version)| (*pipeline, Arc::clone(version))).collect();
        self.introduce(&[Prepared { versions, ..prepared }]);
    }

    /// Puts a version in the place of what these pipelines serve.
    fn swap(&mut self, pipelines: &[usize], prepared: &Prepared) -> Result<(), NotReady> {
        let candidates = prepared.candidates(pipelines);
        let (with, admitted) = self.make_ready(&candidates)?;
        self.settle(with, &admitted);
        pipelines.iter().for_each(|pipeline| self.serve(*pipeline));
        self.board.set(prepared.opened.package.manifest(), ModelPhase::Active, Some(&prepared.proved), None);
        self.reporter.model_activated(prepared.opened.package.manifest(), &prepared.proved);
        self.tidy();
        Ok(())
    }

    /// Admits versions in the place of what their pipelines serve, and loads them. The caller settles and serves.
    ///
    /// # Errors
    /// Why they cannot serve. What serves goes on; where `swap = "cold"` took it down, it is back.
    pub(super) fn make_ready(
        &mut self,
        candidates: &BTreeMap<usize, Candidate>,
    ) -> Result<(Vec<Option<Candidate>>, Admitted), NotReady> {
        let pipelines: Vec<usize> = candidates.keys().copied().collect();
        let mut with = self.serving.clone();
        for (pipeline, candidate) in candidates {
            with[*pipeline] = Some(candidate.clone());
        }
        let admitted = self.trial().test(&with).map_err(|refusal| NotReady::unfit(refusal.to_string()))?;
        let places: BTreeSet<usize> = pipelines.iter().flat_map(|pipeline| self.places_of(*pipeline)).collect();
        // All are of one version, so of the same models.
        let new: BTreeSet<u32> = candidates.values().flat_map(Candidate::numbers).collect();
        let models = candidates.values().next().into_iter().flat_map(Candidate::facts);
        let loaded = |facts: &Facts| self.known.get(&facts.number).map_or(0, |known| known.loaded.len());
        let needed: u64 = models.map(|facts| facts.memory * places.len().saturating_sub(loaded(facts)) as u64).sum();
        let serving = pipelines.iter().filter_map(|pipeline| self.serving[*pipeline].as_ref());
        let old: BTreeSet<u32> = serving.flat_map(|candidate| candidate.numbers()).collect();
        if !self.make_room(needed, &old, false) && !self.make_room_of_companions(needed, &pipelines, &old, &new) {
            let cold = pipelines.iter().all(|pipeline| self.plan.pipelines[*pipeline].swap == Swap::Cold);
            if !cold {
                return Err(self.no_room_now(format!(
                    "old and new version do not fit together: {} for the new one + {} that are taken > budget.memory = {}; raise the budget, or allow swap = \"cold\", which misses windows meanwhile",
                    Mebibytes(needed),
                    Mebibytes(self.loaded_bytes()),
                    Mebibytes(self.config.budget.memory.0)
                )));
            }
            self.take_down(&pipelines, &old);
            if !self.make_room(needed, &BTreeSet::new(), true) {
                tracing::error!("a worker does not let go of the old version; the new one is loaded all the same");
            }
        }
        for (pipeline, candidate) in candidates {
            if let Err(why) = self.load_all(*pipeline, candidate) {
                self.call_off(&new);
                return Err(self.no_room_now(why));
            }
        }
        Ok((with, admitted))
    }

    /// A refusal that may be another one once no version is on trial any more, and the one beside it is gone.
    pub(super) fn no_room_now(&self, why: String) -> NotReady {
        let because = if self.watches() { Because::Room } else { Because::Unfit };
        NotReady { why, because }
    }

    /// Unloads what runs beside the versions that these pipelines serve, and waits for what is on its way out already.
    /// Says whether so many bytes fit then. What a version on trial was compared with is of no use any more when a newer
    /// one is to take its place.
    fn make_room_of_companions(
        &mut self,
        bytes: u64,
        pipelines: &[usize],
        old: &BTreeSet<u32>,
        new: &BTreeSet<u32>,
    ) -> bool {
        for number in self.companions_of(pipelines) {
            if !new.contains(&number) && !self.is_served(number) {
                self.unload(number);
            }
        }
        self.await_leaving(new);
        self.make_room(bytes, old, false)
    }

    /// Lets go of models that were loaded for a swap that does not take place, and lets serve again what was taken down
    /// for it.
    pub(super) fn call_off(&mut self, new: &BTreeSet<u32>) {
        self.unload_unserved(new);
        // They stay known until they are loaded again.
        let old = self.taken_down.clone();
        if old.is_empty() {
            return;
        }
        // The others are in its place.
        self.await_leaving(&BTreeSet::new());
        for (pipeline, candidate) in old {
            self.serving[pipeline] = Some(candidate.clone());
            match self.load_all(pipeline, &candidate) {
                Ok(()) => self.serve(pipeline),
                Err(why) => {
                    self.serving[pipeline] = None;
                    let (name, model) = (&self.plan.pipelines[pipeline].name, &candidate.full.name);
                    tracing::error!(pipeline = %name, why, "what was taken down for another version cannot serve again");
                    self.reporter.model_refused(name, model, &why);
                    self.board.set_pipeline(pipeline, PipelineState::Refused(why));
                }
            }
        }
        self.taken_down.clear();
        self.tidy();
    }

    /// Stops pipelines, and waits until the models that they served are gone.
    fn take_down(&mut self, pipelines: &[usize], models: &BTreeSet<u32>) {
        for pipeline in pipelines.iter().copied() {
            if let Some(candidate) = self.serving[pipeline].take() {
                self.taken_down.insert(pipeline, candidate);
            }
            for thread in &self.workers {
                thread.change(move |worker, context| worker.stop_serving(pipeline, Outcome::Rejected, context));
            }
        }
        for number in models {
            let workers: Vec<usize> =
                self.known.get(number).map(|known| known.loaded.keys().copied().collect()).unwrap_or_default();
            for worker in workers {
                // Other pipelines may serve it too, and then it stays.
                if !self.serving.iter().flatten().any(|candidate| candidate.uses(*number)) {
                    self.await_release(worker, *number);
                }
            }
        }
    }
}
