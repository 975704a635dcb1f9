//! What runs next: jobs in order of deadline, in bounded lanes, alone or in batches.
//!
//! A [`Queue`] is a plain state machine. It knows no threads and reads no clock: whoever asks says what time it is, so
//! the pool, a recording that is played, and the tests on a virtual clock all use the same one.
//!
//! A job belongs to a *lane*, which bounds how many of its kind wait and keeps their order, and to a *group*: the jobs
//! that one session runs, alone or together, with what that takes on this device. Between groups the class decides, then
//! the earliest deadline, then who came first.
//!
//! What holds at every moment, and is tested as such:
//! - A job that can no longer be ready in time is given up, never started ([`Queue::expire`], [`Queue::next`]).
//! - An analytic job starts only if no realtime job waits that could go now, and every realtime job that is still held
//!   back for company meets its deadline after it. So realtime work is kept waiting by one running job at most.
//! - A batch holds jobs of one group; it is as large as a proven size that every member's deadline allows. In one of
//!   realtime jobs none but the first is due later than a job of another group that could go now.
//! - Analytic jobs age by their deadlines: an old one comes before all that were captured so much later that their
//!   deadlines lie behind. Ageing never lifts one above a realtime job.
//!
//! - Jobs of a lane start in the order in which they came.
//!
//! Every operation takes time logarithmic in what waits, and in the number of lanes and groups; besides that, linear in
//! what it returns, in the depth of one lane, and, before an analytic start, in the realtime jobs that are held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::clock::Moment;

/// After so long without an analytic start, while analytic jobs wait, somebody should know.
pub const STARVED_AFTER: Duration = Duration::from_secs(10);

/// What a pipeline gives up last. Every `realtime` job goes before any `analytic` one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Latency counts.
    Realtime,
    /// Throughput counts.
    Analytic,
}

/// What a lane does with a job when it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// Refuse the new job.
    Refuse,
    /// Give up the oldest waiting job for the new one.
    DropOldest,
}

/// How much a lane holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanePolicy {
    /// Jobs that may wait; at least 1.
    pub depth: usize,
    /// Sum of the weights of jobs that may wait. One job always may, whatever its weight.
    pub weight: usize,
    /// What happens to one more.
    pub overflow: Overflow,
}

/// A lane of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(u32);

/// Jobs of one queue that may run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(u32);

/// What a batch of so many jobs takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchCost {
    /// Jobs in it.
    pub size: usize,
    /// Half of such batches take at most this long. Decides what can still be ready in time.
    pub typical: Duration,
    /// All but one in a hundred take at most this long. Decides what may go before realtime jobs that wait.
    pub worst: Duration,
}

impl BatchCost {
    /// A job that runs alone and takes this long.
    pub const fn single(cost: Duration) -> Self {
        Self { size: 1, typical: cost, worst: cost }
    }
}

/// Where a job stands among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Its lane.
    pub lane: Lane,
    /// Its group.
    pub group: Group,
    /// When its result is no longer wanted.
    pub deadline: Moment,
    /// Whether it is given up once it cannot be ready by then. What must not be lost stays.
    pub expires: bool,
    /// Until when it may wait for others of its group; in the past for one that does not.
    pub hold: Moment,
    /// What it holds, in the unit of [`LanePolicy::weight`].
    pub weight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    class: Class,
    deadline: Moment,
    number: u64,
}

#[derive(Debug)]
struct LaneState {
    policy: LanePolicy,
    jobs: VecDeque<(Key, Group)>,
    weight: usize,
}

#[derive(Debug)]
struct Waiting<J> {
    order: Order,
    /// The last moment at which it can start and still be ready in time.
    latest: Moment,
    job: J,
}

/// Where a group stands in the queue's indices.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Empty,
    Blocked,
    Held(Moment),
    Ready(Key),
}

#[derive(Debug)]
struct GroupState<J> {
    class: Class,
    /// Ascending sizes, the first of them 1.
    costs: Vec<BatchCost>,
    jobs: BTreeMap<Key, Waiting<J>>,
    /// The earliest moment at which one of its jobs waits no longer for others.
    hold: Moment,
    /// Whether that has come, or the group is full: then all of them go.
    released: bool,
    /// Whether none of them can run now, whatever the time.
    blocked: bool,
    retired: bool,
    place: Place,
}

/// What became of a job that was pushed.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed<J> {
    /// It waits.
    Waiting,
    /// It waits, and these older jobs of its lane do not any more.
    Replaced(Vec<J>),
    /// Its lane is full or closed, or its group retired; here it is back.
    Refused(J),
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<J> {
    /// Run these together; they are of one group, the most urgent first.
    Run(Vec<J>),
    /// These can no longer be ready in time. Give them up and ask again.
    Expired(Vec<J>),
    /// Nothing before this moment, unless something comes in.
    Wait(Moment),
    /// Nothing waits.
    Idle,
}

/// Jobs that wait.
#[derive(Debug)]
pub struct Queue<J> {
    lanes: BTreeMap<Lane, LaneState>,
    groups: BTreeMap<Group, GroupState<J>>,
    next_lane: u32,
    next_group: u32,
    next_number: u64,
    /// Groups whose jobs may go now, by their most urgent job.
    ready: BTreeSet<(Key, Group)>,
    /// Groups whose jobs wait for company, by when they wait no longer.
    held: BTreeSet<(Moment, Group)>,
    /// Jobs that expire, by the last moment at which they can start.
    expiring: BTreeSet<(Moment, Key, Group)>,
    /// Realtime jobs, likewise.
    urgent: BTreeSet<(Moment, Key, Group)>,
    len: usize,
    analytic: usize,
    /// Since when analytic jobs have waited without one starting.
    analytic_since: Moment,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self {
            lanes: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_lane: 0,
            next_group: 0,
            next_number: 0,
            ready: BTreeSet::new(),
            held: BTreeSet::new(),
            expiring: BTreeSet::new(),
            urgent: BTreeSet::new(),
            len: 0,
            analytic: 0,
            analytic_since: Moment::NEVER,
        }
    }
}

impl<J> Queue<J> {
    /// Opens a lane.
    pub fn open(&mut self, policy: LanePolicy) -> Lane {
        let lane = Lane(self.next_lane);
        self.next_lane += 1;
        self.lanes.insert(lane, LaneState { policy, jobs: VecDeque::new(), weight: 0 });
        lane
    }

    /// Closes a lane and gives back what waited in it. Closing it again gives nothing.
    pub fn close(&mut self, lane: Lane) -> Vec<J> {
        let jobs = self.lanes.remove(&lane).map(|state| state.jobs).unwrap_or_default();
        jobs.into_iter().filter_map(|(key, group)| self.remove(key, group)).map(|waiting| waiting.job).collect()
    }

    /// Opens a group whose batches cost this much: ascending sizes, the first of them 1.
    ///
    /// # Panics
    /// If there is no cost of a single job.
    pub fn open_group(&mut self, class: Class, costs: &[BatchCost]) -> Group {
        assert_eq!(costs.first().map(|cost| cost.size), Some(1), "a group can always run one job");
        let group = Group(self.next_group);
        self.next_group += 1;
        let state = GroupState {
            class,
            costs: costs.to_vec(),
            jobs: BTreeMap::new(),
            hold: Moment::NEVER,
            released: false,
            blocked: false,
            retired: false,
            place: Place::Empty,
        };
        self.groups.insert(group, state);
        group
    }

    /// Changes what batches of a group may be, and cost. A single job's cost stays, since what waits was judged by it.
    ///
    /// # Panics
    /// If there is no cost of a single job.
    pub fn set_batches(&mut self, group: Group, costs: &[BatchCost]) {
        assert_eq!(costs.first().map(|cost| cost.size), Some(1), "a group can always run one job");
        if let Some(state) = self.groups.get_mut(&group) {
            state.costs.truncate(1);
            state.costs.extend_from_slice(&costs[1..]);
            state.released |= state.jobs.len() >= state.costs.last().map_or(1, |cost| cost.size);
            self.place(group);
        }
    }

    /// Keeps the jobs of a group from running, or lets them run again. They wait, expire and are replaced all the same.
    pub fn block(&mut self, group: Group, blocked: bool) {
        if let Some(state) = self.groups.get_mut(&group) {
            state.blocked = blocked;
            self.place(group);
        }
    }

    /// Takes out all jobs of a group.
    pub fn drain(&mut self, group: Group) -> Vec<J> {
        let keys: Vec<Key> =
            self.groups.get(&group).map(|state| state.jobs.keys().copied().collect()).unwrap_or_default();
        keys.into_iter().filter_map(|key| self.remove(key, group)).map(|waiting| waiting.job).collect()
    }

    /// Takes no more jobs into a group. What waits in it no longer waits for company, and runs.
    pub fn retire(&mut self, group: Group) {
        if let Some(state) = self.groups.get_mut(&group) {
            (state.retired, state.released) = (true, true);
            self.place(group);
        }
    }

    /// Adds a job to its lane and group.
    ///
    /// Within a lane jobs never overtake each other: one whose deadline lies before that of the job in front of it
    /// takes that one's.
    pub fn push(&mut self, now: Moment, order: Order, job: J) -> Pushed<J> {
        let Some(state) = self.groups.get(&order.group).filter(|state| !state.retired) else {
            return Pushed::Refused(job);
        };
        let (class, typical) = (state.class, state.costs[0].typical);
        let mut replaced = Vec::new();
        loop {
            let Some(lane) = self.lanes.get_mut(&order.lane) else { return Pushed::Refused(job) };
            let full = lane.jobs.len() >= lane.policy.depth.max(1)
                || (!lane.jobs.is_empty() && lane.weight.saturating_add(order.weight) > lane.policy.weight);
            if !full {
                break;
            }
            if lane.policy.overflow == Overflow::Refuse {
                return Pushed::Refused(job);
            }
            let &(key, group) = lane.jobs.front().expect("a full lane holds a job");
            replaced.extend(self.remove(key, group).map(|waiting| waiting.job));
        }
        let Some(lane) = self.lanes.get_mut(&order.lane) else { return Pushed::Refused(job) };
        let mut deadline = order.deadline;
        let before = lane.jobs.back().copied();
        if let Some((front, _)) = before.filter(|(front, _)| front.class == class) {
            deadline = deadline.max(front.deadline);
        }
        let key = Key { class, deadline, number: self.next_number };
        self.next_number += 1;
        lane.jobs.push_back((key, order.group));
        lane.weight += order.weight;
        self.len += 1;
        let latest = order.deadline.before(typical);
        if order.expires {
            self.expiring.insert((latest, key, order.group));
        }
        match class {
            Class::Realtime => _ = self.urgent.insert((latest, key, order.group)),
            Class::Analytic => {
                if self.analytic == 0 {
                    self.analytic_since = now;
                }
                self.analytic += 1;
            }
        }
        let state = self.groups.get_mut(&order.group).expect("it was there a moment ago");
        state.jobs.insert(key, Waiting { order, latest, job });
        state.hold = state.hold.min(order.hold);
        let largest = state.costs.last().map_or(1, |cost| cost.size);
        state.released |= state.hold <= now || state.jobs.len() >= largest;
        self.place(order.group);
        // What is behind a job in its lane does not wait for that job's company.
        if let Some((_, group)) = before.filter(|(_, group)| *group != order.group) {
            self.release(group);
        }
        if replaced.is_empty() { Pushed::Waiting } else { Pushed::Replaced(replaced) }
    }

    /// Says what to do at `now`.
    pub fn next(&mut self, now: Moment) -> Turn<J> {
        let expired = self.expire(now);
        if !expired.is_empty() {
            return Turn::Expired(expired);
        }
        while let Some(&(_, group)) = self.held.first().filter(|(until, _)| *until <= now) {
            self.release(group);
        }
        // The first group with a job that may go: before each of another's an earlier one of its lane may wait in a group
        // that is blocked.
        let first = self.ready.iter().find(|(_, group)| self.first_member(&self.groups[group]).is_some());
        let Some(&(key, group)) = first else {
            return self.held.first().map_or(Turn::Idle, |(until, _)| Turn::Wait(*until));
        };
        match self.batch(now, group) {
            Some(keys) => Turn::Run(self.take(now, key.class, group, keys)),
            None => {
                // An analytic job that would make a realtime one late, which only waits for company: that one goes.
                let held = self.urgent.iter().find(|(_, key, group)| self.can_go(*key, *group));
                let &(_, key, group) = held.expect("only realtime jobs that could run keep others from running");
                self.release(group);
                let keys = self.batch(now, group).unwrap_or_else(|| vec![key]);
                Turn::Run(self.take(now, key.class, group, keys))
            }
        }
    }

    /// Takes out what can no longer be ready in time.
    pub fn expire(&mut self, now: Moment) -> Vec<J> {
        let mut expired = Vec::new();
        while let Some(&(_, key, group)) = self.expiring.first().filter(|(latest, _, _)| *latest < now) {
            expired.extend(self.remove(key, group).map(|waiting| waiting.job));
        }
        expired
    }

    /// The next moment at which [`Queue::expire`] has something to say, if nothing else happens.
    pub fn next_expiry(&self) -> Moment {
        self.expiring.first().map_or(Moment::NEVER, |(latest, _, _)| latest.after(Duration::from_nanos(1)))
    }

    /// The next moment at which [`Queue::expire`] or [`Queue::starved`] have something to say, if nothing else happens.
    pub fn next_notice(&self) -> Moment {
        let expiry = self.next_expiry();
        let starved = if self.analytic > 0 { self.analytic_since.after(STARVED_AFTER) } else { Moment::NEVER };
        expiry.min(starved)
    }

    /// How long analytic jobs have waited without one starting, once in every [`STARVED_AFTER`].
    pub fn starved(&mut self, now: Moment) -> Option<Duration> {
        let waited = now.since(self.analytic_since);
        (self.analytic > 0 && waited >= STARVED_AFTER).then(|| {
            self.analytic_since = now;
            waited
        })
    }

    /// Whether any job of a lane waits.
    pub fn waits(&self, lane: Lane) -> bool {
        self.lanes.get(&lane).is_some_and(|lane| !lane.jobs.is_empty())
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn release(&mut self, group: Group) {
        if let Some(state) = self.groups.get_mut(&group) {
            state.released = true;
            self.place(group);
        }
    }

    /// Brings the indices up to date with a group, and forgets it if it is retired and empty.
    fn place(&mut self, group: Group) {
        let Some(state) = self.groups.get_mut(&group) else { return };
        let place = match state.jobs.first_key_value() {
            None => Place::Empty,
            Some(_) if state.blocked => Place::Blocked,
            Some((key, _)) if state.released => Place::Ready(*key),
            Some(_) => Place::Held(state.hold),
        };
        if place == Place::Empty {
            (state.hold, state.released) = (Moment::NEVER, state.retired);
        }
        let before = std::mem::replace(&mut state.place, place);
        let gone = state.retired && place == Place::Empty;
        if before != place {
            match before {
                Place::Empty | Place::Blocked => {}
                Place::Held(until) => _ = self.held.remove(&(until, group)),
                Place::Ready(key) => _ = self.ready.remove(&(key, group)),
            }
            match place {
                Place::Empty | Place::Blocked => {}
                Place::Held(until) => _ = self.held.insert((until, group)),
                Place::Ready(key) => _ = self.ready.insert((key, group)),
            }
        }
        if gone {
            self.groups.remove(&group);
        }
    }

    /// The largest batch of a ready group that may start now; none if it is analytic and none may.
    fn batch(&self, now: Moment, group: Group) -> Option<Vec<Key>> {
        let state = &self.groups[&group];
        let largest = state.costs.last().map_or(1, |cost| cost.size);
        let mut members = match largest {
            1 => self.first_member(state).into_iter().collect(),
            most => self.members(state, most),
        };
        if state.class == Class::Realtime
            && members.len() > 1
            && let Some(before) = self.first_of_others(group)
        {
            let first = members[0];
            // None of a batch overtakes what waits and is due earlier: whoever did would be a second job that it waits
            // for, and the arithmetic has one ([`crate::admission`]). The most urgent may go in any case.
            members.retain(|key| *key < before || *key == first);
        }
        let fitting = state.costs.iter().rev().filter(|cost| cost.size <= members.len());
        let mut chosen = None;
        for cost in fitting {
            let alone = state.class == Class::Realtime && cost.size == 1;
            // In a batch the most urgent waits for the last, and of realtime jobs none was admitted to be late for that.
            let takes = if state.class == Class::Realtime { cost.worst } else { cost.typical };
            let in_time = |key: &Key| {
                let order = &state.jobs[key].order;
                !order.expires || now.after(takes) <= order.deadline
            };
            if alone || members[..cost.size].iter().all(in_time) && self.leaves_room(now.after(cost.worst), group) {
                chosen = Some(cost.size);
                break;
            }
        }
        members.truncate(chosen?);
        Some(members)
    }

    /// The most urgent job of other groups that may go now, or as soon as what is before it in its lane has gone.
    fn first_of_others(&self, group: Group) -> Option<Key> {
        let mut found: Option<Key> = None;
        for (most_urgent, other) in self.ready.iter().filter(|(_, other)| *other != group) {
            if found.is_some_and(|found| found < *most_urgent) {
                break;
            }
            let first = self.groups[other].jobs.keys().find(|key| self.can_go(**key, *other)).copied();
            found = found.into_iter().chain(first).min();
        }
        found
    }

    /// The most urgent job of a group before which nothing of its lane waits.
    fn first_member(&self, state: &GroupState<J>) -> Option<Key> {
        let leads = |(key, waiting): &(&Key, &Waiting<J>)| {
            let lane = self.lanes.get(&waiting.order.lane);
            lane.and_then(|lane| lane.jobs.front()).is_none_or(|(front, _)| front == *key)
        };
        state.jobs.iter().find(leads).map(|(key, _)| *key)
    }

    /// The most urgent jobs of a group that may run together, up to so many: those before which nothing of their lane
    /// waits in another group. There may be none.
    fn members(&self, state: &GroupState<J>, most: usize) -> Vec<Key> {
        let mut members: Vec<Key> = Vec::with_capacity(most.min(state.jobs.len()));
        let mut taken: BTreeMap<Lane, usize> = BTreeMap::new();
        for (key, waiting) in &state.jobs {
            if members.len() == most {
                break;
            }
            let before = taken.entry(waiting.order.lane).or_default();
            let next = self.lanes.get(&waiting.order.lane).and_then(|lane| lane.jobs.get(*before));
            if next.is_none_or(|(next, _)| next == key) {
                *before += 1;
                members.push(*key);
            }
        }
        members
    }

    /// Whether neither a job's own group is blocked nor that of one before it in its lane.
    fn can_go(&self, key: Key, group: Group) -> bool {
        let state = &self.groups[&group];
        let lane = state.jobs.get(&key).and_then(|waiting| self.lanes.get(&waiting.order.lane));
        let mut before = lane.into_iter().flat_map(|lane| &lane.jobs).take_while(|(other, _)| *other != key);
        !state.blocked && before.all(|(_, group)| !self.groups[group].blocked)
    }

    /// Whether the realtime jobs of other groups meet their deadlines if they start, one after the other, at `from`.
    fn leaves_room(&self, from: Moment, except: Group) -> bool {
        let mut at = from;
        let others = self.urgent.iter().filter(|(_, key, group)| *group != except && self.can_go(*key, *group));
        others.into_iter().all(|(latest, _, group)| {
            let in_time = at <= *latest;
            at = at.after(self.groups[group].costs[0].worst);
            in_time
        })
    }

    fn take(&mut self, now: Moment, class: Class, group: Group, keys: Vec<Key>) -> Vec<J> {
        if class == Class::Analytic {
            self.analytic_since = now;
        }
        keys.into_iter().filter_map(|key| self.remove(key, group)).map(|waiting| waiting.job).collect()
    }

    /// Takes a job out of everything that knows it.
    fn remove(&mut self, key: Key, group: Group) -> Option<Waiting<J>> {
        let waiting = self.groups.get_mut(&group)?.jobs.remove(&key)?;
        self.len -= 1;
        self.expiring.remove(&(waiting.latest, key, group));
        match key.class {
            Class::Realtime => _ = self.urgent.remove(&(waiting.latest, key, group)),
            Class::Analytic => self.analytic -= 1,
        }
        if let Some(lane) = self.lanes.get_mut(&waiting.order.lane)
            && let Some(at) = lane.jobs.iter().position(|(other, _)| *other == key)
        {
            lane.jobs.remove(at);
            lane.weight -= waiting.order.weight;
        }
        self.place(group);
        Some(waiting)
    }
}

#[cfg(test)]
mod tests;
