//! The groups of a worker's queue: windows of one model and class that may share a run of its session.
//!
//! A model that is not loaded keeps its groups blocked: its windows wait in their lanes, where they expire and are
//! replaced like any others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use limpet_runtime::{BatchCost, Class, Context, Group, Outcome};

use super::model::Facts;
use super::worker::{Sink, Worker};

/// Groups by model, class and largest batch, opened when first used.
#[derive(Debug)]
pub struct Groups {
    open: HashMap<(u32, Class, usize), (Group, Arc<Facts>)>,
    /// Models that are loaded, and those that were asked for since they were not.
    loaded: HashSet<u32>,
    asked: HashSet<u32>,
    /// The longest analytic job that the realtime work here leaves room for.
    longest: Duration,
}

impl Default for Groups {
    fn default() -> Self {
        Self { open: HashMap::new(), loaded: HashSet::new(), asked: HashSet::new(), longest: Duration::MAX }
    }
}

impl Groups {
    /// The group of a model's windows of one class, of which up to `max` run together.
    pub fn of<S: Sink + 'static>(
        &mut self,
        facts: &Arc<Facts>,
        class: Class,
        max: usize,
        context: &mut Context<'_, Worker<S>>,
    ) -> Group {
        // The largest that there is, whatever room there is for it now.
        let largest = facts.costs_up_to(max, Duration::MAX).last().map_or(1, |cost| cost.size);
        let costs = self.costs(facts, class, max);
        let absent = !self.loaded.contains(&facts.number);
        let (group, _) = self.open.entry((facts.number, class, largest)).or_insert_with(|| {
            let group = context.open_group(class, costs);
            context.block(group, absent);
            (group, Arc::clone(facts))
        });
        *group
    }

    /// What batches of that group cost.
    pub fn costs<'f>(&self, facts: &'f Facts, class: Class, max: usize) -> &'f [BatchCost] {
        let longest = match class {
            Class::Realtime => Duration::MAX,
            Class::Analytic => self.longest,
        };
        facts.costs_up_to(max, longest)
    }

    /// Whether a single analytic job of this model leaves the realtime work here in time.
    pub fn leaves_room(&self, facts: &Facts) -> bool {
        facts.costs[0].worst <= self.longest
    }

    /// Whether a model is loaded.
    pub fn is_loaded(&self, number: u32) -> bool {
        self.loaded.contains(&number)
    }

    /// Whether somebody should be asked to load this model, which is noted as done: it is asked once.
    pub fn ask(&mut self, number: u32) -> bool {
        !self.loaded.contains(&number) && self.asked.insert(number)
    }

    /// A model was loaded, or unloaded.
    pub fn set_loaded<S: Sink + 'static>(&mut self, number: u32, loaded: bool, context: &mut Context<'_, Worker<S>>) {
        if loaded {
            self.loaded.insert(number);
        } else {
            self.loaded.remove(&number);
        }
        self.asked.remove(&number);
        self.each(number, |group| context.block(group, !loaded));
    }

    /// A model that was asked for does not come: what waits for it is rejected.
    pub fn reject<S: Sink + 'static>(&mut self, number: u32, context: &mut Context<'_, Worker<S>>) {
        self.asked.remove(&number);
        self.each(number, |group| context.drain(group, Outcome::Rejected));
    }

    /// The realtime work changed, and with it the room for analytic batches.
    pub fn set_longest<S: Sink + 'static>(&mut self, longest: Duration, context: &mut Context<'_, Worker<S>>) {
        self.longest = longest;
        for ((_, class, largest), (group, facts)) in &self.open {
            context.set_batches(*group, self.costs(facts, *class, *largest));
        }
    }

    /// A model is unloaded for good, and nothing waits for it.
    pub fn forget<S: Sink + 'static>(&mut self, number: u32, context: &mut Context<'_, Worker<S>>) {
        self.each(number, |group| context.retire(group));
        self.open.retain(|(model, _, _), _| *model != number);
    }

    fn each(&self, number: u32, mut act: impl FnMut(Group)) {
        self.open.iter().filter(|((model, _, _), _)| *model == number).for_each(|(_, (group, _))| act(*group));
    }
}
