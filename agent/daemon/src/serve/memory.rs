//! What is loaded: within the budget, and the idle goes before the new comes.
//!
//! Models of realtime pipelines, and pinned ones, are loaded at the start and stay. Others may be more than fit. One that is
//! wanted takes the place of the idle one that was used least recently; where none is idle, of the one that has been
//! loaded for longest, but not before that has had its turn. A worker keeps the windows of a model that is not
//! loaded in its queue, where they wait, expire and are replaced like any others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use limpet_runtime::admission::Mebibytes;

use super::delivered::SHOW_EVERY;
use super::loader::{Loader, said};
use super::{Request, open};
use crate::pipeline::model::{Facts, Model};
use crate::pipeline::worker::Sink;

/// How long a worker may take to let go of a model that it was told to unload: it runs its current job to the end.
const LETS_GO: Duration = Duration::from_secs(15);
/// How long a busy model stays loaded before another that is wanted takes its place.
const TURN: Duration = Duration::from_secs(1);
/// How long to wait when there is nothing to wait for.
const LONG: Duration = Duration::from_secs(3600);

impl<S: Sink + 'static> Loader<S> {
    /// Bytes of the budget that are taken: models that are loaded, and the ring of the outbox.
    pub(super) fn loaded_bytes(&self) -> u64 {
        let models = self.known.values().map(|known| known.facts.memory * known.loaded.len() as u64);
        self.config.outbox.ring.0 + models.sum::<u64>()
    }

    /// Loads a model on a worker.
    pub(super) fn load(&mut self, worker: usize, number: u32) -> Result<(), String> {
        let known = self.known.get_mut(&number).ok_or("it was replaced by another version meanwhile")?;
        let package = match &known.package {
            Some(package) => Arc::clone(package),
            None => Arc::new(self.library.open(&known.place).map_err(|error| error.to_string())?),
        };
        if package.digest() != known.facts.digest {
            return Err(format!(
                "the package {} was changed since it was proved; reload the agent to take the new one over",
                known.facts.name
            ));
        }
        let graph = match &known.graph {
            Some(graph) => Arc::clone(graph),
            None => {
                let graph = known.proved.open_graph(known.which(), &package, &self.engines);
                let graph: Arc<dyn limpet_engine::Graph> = graph.map_err(|error| error.to_string())?.into();
                known.graph = Some(Arc::clone(&graph));
                graph
            }
        };
        let model = open::load(&package, graph.as_ref(), &known.facts).map_err(|error| said(&error))?;
        known.loaded.insert(worker, Instant::now());
        // Before it gives its first result, so that nobody sees one by a model that is not there.
        self.tidy();
        self.workers[worker].change(move |worker, context| worker.load(model, context));
        Ok(())
    }

    /// Unloads models until so many bytes fit. Says whether they do. `busy`: also such as have work, if their turn is over.
    pub(super) fn make_room(&mut self, bytes: u64, keep: &BTreeSet<u32>, busy: bool) -> bool {
        while self.loaded_bytes() + bytes > self.config.budget.memory.0 {
            let Some(number) = self.victim(keep, busy) else { return false };
            if !self.unload(number) {
                return false;
            }
        }
        true
    }

    /// Unloads a model everywhere. Says whether all workers have let go of it.
    pub(super) fn unload(&mut self, number: u32) -> bool {
        let Some(known) = self.known.get(&number) else { return true };
        let name = Arc::clone(&known.facts.name);
        let workers: Vec<usize> = known.loaded.keys().copied().collect();
        for worker in workers {
            self.workers[worker].change(move |worker, context| worker.unload(number, context));
            if !self.await_release(worker, number) {
                return false;
            }
        }
        tracing::info!(model = %name, "unloaded: memory is wanted");
        true
    }

    /// Waits for models that nobody needs any more: they leave when their last windows are done.
    pub(super) fn await_leaving(&mut self, keep: &BTreeSet<u32>) {
        let end = Instant::now() + LETS_GO;
        let leaves = |number: &u32| !keep.contains(number) && !self.is_served(*number) && !self.is_beside(*number);
        let known = self.known.iter().filter(|(number, _)| leaves(number));
        let leaving: Vec<(usize, u32)> =
            known.flat_map(|(number, known)| known.loaded.keys().map(|worker| (*worker, *number))).collect();
        for (worker, number) in leaving {
            self.await_release_until(worker, number, end);
        }
    }

    /// The model that goes first: the idle one that was used least recently, else the busy one that was loaded first.
    fn victim(&self, keep: &BTreeSet<u32>, busy: bool) -> Option<u32> {
        // A version that nobody serves any more leaves by itself, when its last windows are done.
        let may_go = |number: &u32| {
            let users = self.serving.iter().zip(&self.plan.pipelines);
            let mut uses =
                users.filter(|(candidate, _)| candidate.as_ref().is_some_and(|c| c.uses(*number))).peekable();
            !keep.contains(number) && uses.peek().is_some() && uses.all(|(_, plan)| !plan.stays())
        };
        let loaded = || self.known.iter().filter(|(number, known)| !known.loaded.is_empty() && may_go(number));
        let idle = loaded().filter_map(|(number, known)| {
            let (last, in_flight) = known.facts.usage.read();
            (!in_flight).then_some((last, *number))
        });
        let first = loaded().filter_map(|(number, known)| Some((*known.loaded.values().min()?, *number)));
        idle.min()
            .map(|(_, number)| number)
            .or_else(|| first.min().filter(|(since, _)| busy && since.elapsed() >= TURN).map(|(_, number)| number))
    }

    /// Waits until a worker has let go of a model. What else is asked meanwhile is done afterwards.
    pub(super) fn await_release(&mut self, worker: usize, number: u32) -> bool {
        self.await_release_until(worker, number, Instant::now() + LETS_GO)
    }

    fn await_release_until(&mut self, worker: usize, number: u32, end: Instant) -> bool {
        while self.known.get(&number).is_some_and(|known| known.loaded.contains_key(&worker)) {
            match self.requests.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Request::Released(from, model)) => self.released(from, model),
                Ok(other) => self.later.push_back(other),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// A worker has let go of a model: its memory is free again.
    pub(super) fn released(&mut self, worker: usize, model: Model) {
        let number = model.facts().number;
        drop(model);
        if let Some(known) = self.known.get_mut(&number) {
            known.loaded.remove(&worker);
            if known.loaded.is_empty() {
                known.graph = None;
            }
        }
        limpet_engine::give_back_memory();
        self.tidy();
    }

    /// Windows wait for a model that is not loaded.
    pub(super) fn wanted(&mut self, worker: usize, number: u32) {
        let Some(known) = self.known.get(&number) else {
            return self.workers[worker].change(move |worker, context| worker.not_loaded(number, context));
        };
        if known.loaded.contains_key(&worker) {
            return;
        }
        let facts = Arc::clone(&known.facts);
        if facts.memory + self.config.outbox.ring.0 > self.config.budget.memory.0
            || !self.make_room(facts.memory, &BTreeSet::from([number]), true)
        {
            let why = self.no_room(&facts);
            if self.told.insert(number) {
                self.reporter.model_waits(&facts.name, &why);
            }
            self.waiting.insert((worker, number));
            return;
        }
        match self.load(worker, number) {
            Ok(()) => _ = self.told.remove(&number),
            Err(why) => {
                if self.told.insert(number) {
                    self.reporter.model_waits(&facts.name, &why);
                }
                self.workers[worker].change(move |worker, context| worker.not_loaded(number, context));
            }
        }
    }

    /// How long until somebody's turn may be over, or something is to be looked at again.
    pub(super) fn next_turn(&self) -> Duration {
        let turn = match (self.waiting.is_empty(), self.watches()) {
            (false, _) => TURN / 4,
            (true, true) => SHOW_EVERY,
            (true, false) => LONG,
        };
        self.until_due().map_or(turn, |due| due.min(turn))
    }

    /// Tries again to load what is wanted.
    pub(super) fn retry(&mut self) {
        for (worker, number) in std::mem::take(&mut self.waiting) {
            self.wanted(worker, number);
        }
    }

    pub(super) fn no_room(&self, facts: &Facts) -> String {
        format!(
            "it takes {}, {} of budget.memory = {} are taken by models and by the outbox's ring, and none of those models can go now",
            Mebibytes(facts.memory),
            Mebibytes(self.loaded_bytes()),
            Mebibytes(self.config.budget.memory.0)
        )
    }
}
