//! A new version in the place of an old one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use limpet_depot::Package;
use limpet_runtime::Outcome;
use limpet_runtime::admission::Mebibytes;
use limpet_wire::message::ModelPhase;

use super::Proved;
use super::loader::{Loader, Prepared};
use crate::config::Swap;
use crate::pipeline::worker::Sink;

impl<S: Sink + 'static> Loader<S> {
    /// Looks for packages that changed, and swaps what did.
    pub(super) fn reload(&mut self) {
        let paths: BTreeSet<PathBuf> = self.plan.pipelines.iter().map(|pipeline| pipeline.package.clone()).collect();
        for path in paths {
            let package = match Package::open(&path) {
                Ok(package) => Arc::new(package),
                Err(error) => {
                    self.reporter.swap_refused(&path.display().to_string(), &error.to_string());
                    continue;
                }
            };
            if self.tried.insert(path.clone(), package.digest()) != Some(package.digest()) {
                self.change(&path, package);
            }
        }
    }

    /// A package changed: it takes the place of what its pipelines serve, once it is proved.
    fn change(&mut self, path: &Path, package: Arc<Package>) {
        let proved =
            self.store.as_ref().and_then(|store| store.choice(&package, &self.engines, &self.plan.proof_options(path)));
        match proved {
            Some(proved) => self.put_in_place(path, &package, proved),
            None => {
                if !self.board.is_active(&package) {
                    self.board.set(&package, ModelPhase::Proving, None, None);
                }
                self.prove(vec![(path.to_owned(), package)]);
            }
        }
    }

    /// Serves a package that was proved: in the place of another version, or for the first time.
    pub(super) fn put_in_place(&mut self, path: &Path, package: &Arc<Package>, proved: Proved) {
        let Some(prepared) = self.prepare_or_refuse(path, package, proved) else {
            self.tried.remove(path);
            return;
        };
        let (served, idle): (Vec<usize>, Vec<usize>) =
            self.plan.uses_of(path).partition(|pipeline| self.serving[*pipeline].is_some());
        if !served.is_empty()
            && let Err(why) = self.swap(&served, &prepared)
        {
            let manifest = package.manifest();
            self.tried.remove(path);
            self.set_failed(package, &why);
            self.reporter.swap_refused(&format!("{} {}", manifest.name, manifest.version), &why);
            return self.brought_up();
        }
        // Those that did not run so far may fit with this one.
        let versions = prepared.versions.iter().filter(|(pipeline, _)| idle.contains(pipeline));
        let versions = versions.map(|(pipeline, version)| (*pipeline, Arc::clone(version))).collect();
        self.introduce(&[Prepared { versions, ..prepared }]);
    }

    /// Puts a version in the place of what these pipelines serve.
    fn swap(&mut self, pipelines: &[usize], prepared: &Prepared) -> Result<(), String> {
        let mut with = self.serving.clone();
        for pipeline in pipelines {
            with[*pipeline] = Some(prepared.candidate(*pipeline));
        }
        let admitted = self.trial().test(&with).map_err(|refusal| refusal.to_string())?;
        let places: BTreeSet<usize> = pipelines.iter().flat_map(|pipeline| self.places_of(*pipeline)).collect();
        let needed: u64 = prepared.facts().map(|facts| facts.memory * places.len() as u64).sum();
        let candidates = pipelines.iter().filter_map(|pipeline| self.serving[*pipeline].as_ref());
        let old: BTreeSet<u32> = candidates.flat_map(|candidate| candidate.numbers()).collect();
        if !self.make_room(needed, &old, false) {
            let cold = pipelines.iter().all(|pipeline| self.plan.pipelines[*pipeline].swap == Swap::Cold);
            if !cold {
                return Err(format!(
                    "old and new version do not fit together: {} for the new one + {} that are loaded > budget.memory = {}; raise the budget, or allow swap = \"cold\", which misses windows meanwhile",
                    Mebibytes(needed),
                    Mebibytes(self.loaded_bytes()),
                    Mebibytes(self.config.budget.memory.0)
                ));
            }
            self.take_down(pipelines, &old);
            if !self.make_room(needed, &BTreeSet::new(), true) {
                tracing::error!("a worker does not let go of the old version; the new one is loaded all the same");
            }
        }
        for pipeline in pipelines {
            self.load_all(*pipeline, &prepared.candidate(*pipeline))?;
        }
        self.settle(with, &admitted);
        pipelines.iter().for_each(|pipeline| self.serve(*pipeline));
        self.board.set(&prepared.package, ModelPhase::Active, Some(&prepared.proved), None);
        self.reporter.model_activated(prepared.package.manifest(), &prepared.proved);
        self.tidy();
        Ok(())
    }

    /// Stops pipelines, and waits until the models that they served are gone.
    fn take_down(&mut self, pipelines: &[usize], models: &BTreeSet<u32>) {
        for pipeline in pipelines.iter().copied() {
            self.serving[pipeline] = None;
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
