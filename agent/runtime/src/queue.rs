//! Jobs in order of deadline, in bounded lanes.
//!
//! A [`Queue`] is a plain state machine: it knows no threads and no clock, so that the pool and a recording played on
//! a virtual clock use the same one. Jobs of a lane run in the order in which they came; between lanes the class
//! decides, then the earliest deadline, then who came first.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Moment;

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

/// Where a job stands among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Its lane.
    pub lane: Lane,
    /// Its class.
    pub class: Class,
    /// When its result is no longer wanted.
    pub deadline: Moment,
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
    keys: VecDeque<Key>,
    weight: usize,
}

/// What became of a job that was pushed.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed<J> {
    /// It waits.
    Waiting,
    /// It waits, and these older jobs of its lane do not any more.
    Replaced(Vec<J>),
    /// Its lane is full; here it is back.
    Refused(J),
}

/// Jobs that wait.
#[derive(Debug)]
pub struct Queue<J> {
    lanes: BTreeMap<Lane, LaneState>,
    next_lane: u32,
    next_number: u64,
    jobs: BTreeMap<Key, (Order, J)>,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self { lanes: BTreeMap::new(), next_lane: 0, next_number: 0, jobs: BTreeMap::new() }
    }
}

impl<J> Queue<J> {
    /// Opens a lane.
    pub fn open(&mut self, policy: LanePolicy) -> Lane {
        let lane = Lane(self.next_lane);
        self.next_lane += 1;
        self.lanes.insert(lane, LaneState { policy, keys: VecDeque::new(), weight: 0 });
        lane
    }

    /// Closes a lane and gives back what waited in it. Closing it again gives nothing.
    pub fn close(&mut self, lane: Lane) -> Vec<J> {
        let keys = self.lanes.remove(&lane).map(|state| state.keys).unwrap_or_default();
        keys.iter().filter_map(|key| self.jobs.remove(key)).map(|(_, job)| job).collect()
    }

    /// Adds a job to its lane. A job for a lane that is closed is refused.
    ///
    /// Within a lane jobs never overtake each other: one whose deadline lies before that of the job in front of it
    /// takes that one's.
    pub fn push(&mut self, order: Order, job: J) -> Pushed<J> {
        let Some(lane) = self.lanes.get_mut(&order.lane) else {
            return Pushed::Refused(job);
        };
        let full = |lane: &LaneState| {
            lane.keys.len() >= lane.policy.depth.max(1)
                || (!lane.keys.is_empty() && lane.weight.saturating_add(order.weight) > lane.policy.weight)
        };
        let mut replaced = Vec::new();
        while full(lane) {
            if lane.policy.overflow == Overflow::Refuse {
                return Pushed::Refused(job);
            }
            let Some(oldest) = lane.keys.pop_front() else { break };
            if let Some((old, job)) = self.jobs.remove(&oldest) {
                lane.weight -= old.weight;
                replaced.push(job);
            }
        }
        let (class, mut deadline) = (order.class, order.deadline);
        if let Some(front) = lane.keys.back().filter(|front| front.class == class) {
            deadline = deadline.max(front.deadline);
        }
        let key = Key { class, deadline, number: self.next_number };
        self.next_number += 1;
        lane.keys.push_back(key);
        lane.weight += order.weight;
        self.jobs.insert(key, (order, job));
        if replaced.is_empty() { Pushed::Waiting } else { Pushed::Replaced(replaced) }
    }

    /// Takes the job that is to run next.
    pub fn pop(&mut self) -> Option<J> {
        let (key, (order, job)) = self.jobs.pop_first()?;
        if let Some(lane) = self.lanes.get_mut(&order.lane) {
            // It is the lane's first, unless the lane mixes classes.
            if let Some(at) = lane.keys.iter().position(|k| *k == key) {
                lane.keys.remove(at);
                lane.weight -= order.weight;
            }
        }
        Some(job)
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(lane: Lane, class: Class, deadline: u64) -> Order {
        Order { lane, class, deadline: Moment(deadline), weight: 1 }
    }

    const OPEN: LanePolicy = LanePolicy { depth: 100, weight: usize::MAX, overflow: Overflow::Refuse };

    #[test]
    fn the_earliest_deadline_runs_first_and_realtime_before_analytic() {
        let mut queue = Queue::default();
        let lanes: Vec<_> = (0..4).map(|_| queue.open(OPEN)).collect();
        queue.push(order(lanes[0], Class::Analytic, 1), "analytic");
        queue.push(order(lanes[1], Class::Realtime, 30), "late");
        queue.push(order(lanes[2], Class::Realtime, 20), "soon");
        queue.push(order(lanes[3], Class::Realtime, 20), "soon, but came later");
        let ran: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(ran, ["soon", "soon, but came later", "late", "analytic"]);
    }

    #[test]
    fn the_newest_takes_the_place_of_the_oldest_where_the_policy_says_so() {
        let mut queue = Queue::default();
        let lane = queue.open(LanePolicy { depth: 1, weight: usize::MAX, overflow: Overflow::DropOldest });
        assert_eq!(queue.push(order(lane, Class::Realtime, 1), 1), Pushed::Waiting);
        assert_eq!(queue.push(order(lane, Class::Realtime, 2), 2), Pushed::Replaced(vec![1]));
        assert_eq!(queue.pop(), Some(2));
    }

    #[test]
    fn a_full_lane_refuses_and_others_do_not_suffer() {
        let mut queue = Queue::default();
        let (full, other) = (queue.open(LanePolicy { depth: 2, ..OPEN }), queue.open(OPEN));
        queue.push(order(full, Class::Realtime, 1), 1);
        queue.push(order(full, Class::Realtime, 1), 2);
        assert_eq!(queue.push(order(full, Class::Realtime, 1), 3), Pushed::Refused(3));
        assert_eq!(queue.push(order(other, Class::Realtime, 1), 4), Pushed::Waiting);
    }

    #[test]
    fn a_lane_is_bounded_by_weight_but_takes_one_heavy_job() {
        let mut queue = Queue::default();
        let lane = queue.open(LanePolicy { depth: 10, weight: 5, overflow: Overflow::Refuse });
        let heavy = Order { weight: 50, ..order(lane, Class::Realtime, 1) };
        assert_eq!(queue.push(heavy, 1), Pushed::Waiting);
        assert_eq!(queue.push(order(lane, Class::Realtime, 1), 2), Pushed::Refused(2));
        queue.pop();
        assert_eq!(queue.push(order(lane, Class::Realtime, 1), 2), Pushed::Waiting);
    }

    #[test]
    fn a_closed_lane_gives_back_what_waited_and_takes_nothing() {
        let mut queue = Queue::default();
        let lane = queue.open(OPEN);
        queue.push(order(lane, Class::Realtime, 1), 1);
        assert_eq!(queue.close(lane), [1]);
        assert_eq!(queue.close(lane), []);
        assert_eq!(queue.push(order(lane, Class::Realtime, 1), 2), Pushed::Refused(2));
        assert!(queue.is_empty());
    }

    proptest! {
        /// Whatever is pushed and popped: every job comes out exactly once, and jobs of a lane in the order they came.
        #[test]
        fn every_job_comes_out_once_and_lanes_keep_their_order(
            steps in proptest::collection::vec((0usize..3, 0u64..50, 0usize..4, any::<bool>()), 1..200),
            depth in 1usize..5,
        ) {
            let mut queue = Queue::default();
            let lanes = [
                queue.open(LanePolicy { depth, weight: 6, overflow: Overflow::Refuse }),
                queue.open(LanePolicy { depth, weight: 6, overflow: Overflow::DropOldest }),
                queue.open(OPEN),
            ];
            let (mut seen, mut last) = (Vec::new(), [None; 3]);
            let mut came_out = |(lane, number): (usize, usize), seen: &mut Vec<usize>| {
                seen.push(number);
                let in_order = last[lane].replace(number).is_none_or(|before| before < number);
                assert!(in_order, "lane {lane} overtook at {number}");
            };
            let mut pushed = 0;
            for (lane, deadline, weight, pop) in steps {
                let order =
                    Order { lane: lanes[lane], class: Class::Realtime, deadline: Moment(deadline), weight };
                match queue.push(order, (lane, pushed)) {
                    Pushed::Waiting => {}
                    Pushed::Replaced(jobs) => jobs.into_iter().for_each(|job| came_out(job, &mut seen)),
                    Pushed::Refused((_, number)) => seen.push(number),
                }
                pushed += 1;
                if pop && let Some(job) = queue.pop() {
                    came_out(job, &mut seen);
                }
            }
            while let Some(job) = queue.pop() {
                came_out(job, &mut seen);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..pushed).collect::<Vec<_>>());
        }
    }
}
