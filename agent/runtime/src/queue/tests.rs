use super::*;
use proptest::prelude::*;

const OPEN: LanePolicy = LanePolicy { depth: 100, weight: usize::MAX, overflow: Overflow::Refuse };
const NOW: Moment = Moment(0);

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn at(micros: u64) -> Moment {
    Moment(micros * 1000)
}

fn order(lane: Lane, group: Group, deadline: u64) -> Order {
    Order { lane, group, deadline: at(deadline), expires: true, hold: NOW, weight: 1 }
}

/// A queue with one group of each class, whose batches take 10 µs a job.
struct Fixture {
    queue: Queue<u32>,
    realtime: Group,
    analytic: Group,
}

fn costs(sizes: &[usize]) -> Vec<BatchCost> {
    let cost = |size: &usize| micros(10 * *size as u64);
    sizes.iter().map(|size| BatchCost { size: *size, typical: cost(size), worst: cost(size) }).collect()
}

impl Fixture {
    fn new(realtime: &[usize], analytic: &[usize]) -> Self {
        let mut queue = Queue::default();
        let realtime = queue.open_group(Class::Realtime, &costs(realtime));
        let analytic = queue.open_group(Class::Analytic, &costs(analytic));
        Self { queue, realtime, analytic }
    }

    fn push(&mut self, order: Order, job: u32) {
        assert_eq!(self.queue.push(NOW, order, job), Pushed::Waiting);
    }
}

#[test]
fn the_earliest_deadline_runs_first_and_realtime_before_analytic() {
    let mut f = Fixture::new(&[1], &[1]);
    let lanes: Vec<_> = (0..4).map(|_| f.queue.open(OPEN)).collect();
    f.push(order(lanes[0], f.analytic, 100), 0);
    f.push(order(lanes[1], f.realtime, 300), 1);
    f.push(order(lanes[2], f.realtime, 200), 2);
    f.push(order(lanes[3], f.realtime, 200), 3);
    for expected in [2, 3, 1, 0] {
        assert_eq!(f.queue.next(NOW), Turn::Run(vec![expected]));
    }
    assert_eq!(f.queue.next(NOW), Turn::Idle);
}

#[test]
fn the_newest_takes_the_place_of_the_oldest_where_the_policy_says_so() {
    let mut f = Fixture::new(&[1], &[1]);
    let lane = f.queue.open(LanePolicy { depth: 1, weight: usize::MAX, overflow: Overflow::DropOldest });
    f.push(order(lane, f.realtime, 100), 1);
    assert_eq!(f.queue.push(NOW, order(lane, f.realtime, 200), 2), Pushed::Replaced(vec![1]));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![2]));
}

#[test]
fn a_full_lane_refuses_and_others_do_not_suffer() {
    let mut f = Fixture::new(&[1], &[1]);
    let (full, other) = (f.queue.open(LanePolicy { depth: 2, ..OPEN }), f.queue.open(OPEN));
    f.push(order(full, f.realtime, 100), 1);
    f.push(order(full, f.realtime, 100), 2);
    assert_eq!(f.queue.push(NOW, order(full, f.realtime, 100), 3), Pushed::Refused(3));
    f.push(order(other, f.realtime, 100), 4);
}

#[test]
fn a_lane_is_bounded_by_weight_but_takes_one_heavy_job() {
    let mut f = Fixture::new(&[1], &[1]);
    let lane = f.queue.open(LanePolicy { depth: 10, weight: 5, overflow: Overflow::Refuse });
    let heavy = Order { weight: 50, ..order(lane, f.realtime, 100) };
    f.push(heavy, 1);
    assert_eq!(f.queue.push(NOW, order(lane, f.realtime, 100), 2), Pushed::Refused(2));
    f.queue.next(NOW);
    f.push(order(lane, f.realtime, 100), 2);
}

#[test]
fn a_closed_lane_gives_back_what_waited_and_takes_nothing() {
    let mut f = Fixture::new(&[1], &[1]);
    let lane = f.queue.open(OPEN);
    f.push(order(lane, f.realtime, 100), 1);
    assert_eq!(f.queue.close(lane), [1]);
    assert!(f.queue.close(lane).is_empty());
    assert_eq!(f.queue.push(NOW, order(lane, f.realtime, 100), 2), Pushed::Refused(2));
    assert!(f.queue.is_empty());
}

#[test]
fn what_cannot_be_ready_in_time_is_given_up_to_the_nanosecond() {
    let mut f = Fixture::new(&[1], &[1]);
    let lane = f.queue.open(OPEN);
    f.push(order(lane, f.realtime, 100), 1);
    f.push(Order { expires: false, ..order(lane, f.realtime, 100) }, 2);
    assert_eq!(f.queue.next_notice(), Moment(90_001));
    assert!(f.queue.expire(Moment(90_000)).is_empty(), "it takes 10 µs, and that much is left");
    assert_eq!(f.queue.next(Moment(90_001)), Turn::Expired(vec![1]));
    assert_eq!(f.queue.next(at(5000)), Turn::Run(vec![2]), "what must not be lost stays");
}

#[test]
fn a_batch_is_the_largest_proven_size_that_waits() {
    let mut f = Fixture::new(&[1], &[1, 2, 4]);
    for job in 0..7 {
        let lane = f.queue.open(OPEN);
        f.push(order(lane, f.analytic, 1000 + u64::from(job)), job);
    }
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![0, 1, 2, 3]));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![4, 5]));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![6]));
}

#[test]
fn what_batches_may_be_can_change_while_jobs_wait() {
    let mut f = Fixture::new(&[1], &[1, 2, 4]);
    for job in 0..6 {
        let lane = f.queue.open(OPEN);
        f.push(Order { hold: at(500), ..order(lane, f.analytic, 1000 + u64::from(job)) }, job);
    }
    f.queue.set_batches(f.analytic, &costs(&[1, 2]));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![0, 1]));
    f.queue.set_batches(f.analytic, &costs(&[1, 2, 4]));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![2, 3, 4, 5]));
}

#[test]
fn a_batch_is_cut_to_what_its_most_urgent_member_allows() {
    let mut f = Fixture::new(&[1], &[1, 2, 4]);
    for (job, deadline) in [(0, 35), (1, 1000), (2, 1000), (3, 1000)] {
        let lane = f.queue.open(OPEN);
        f.push(order(lane, f.analytic, deadline), job);
    }
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![0, 1]), "four take 40 µs");
}

/// Beside a flood, what was admitted missed a deadline once: a batch went ahead of what was due earlier, which had waited
/// for one job of the flood already.
#[test]
fn a_batch_of_realtime_jobs_overtakes_nobody() {
    let mut f = Fixture::new(&[1, 2, 4], &[1]);
    let other = f.queue.open_group(Class::Realtime, &[BatchCost::single(Duration::from_micros(1))]);
    let lanes: Vec<Lane> = (0..5).map(|_| f.queue.open(OPEN)).collect();
    for (job, deadline) in [(0, 1000), (1, 1100), (2, 1300), (3, 1400)] {
        f.push(order(lanes[job as usize], f.realtime, deadline), job);
    }
    f.push(order(lanes[4], other, 1200), 4);
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![0, 1]));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![4]));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![2, 3]));
}

#[test]
fn jobs_wait_for_company_until_the_batch_is_full_or_one_has_waited_long_enough() {
    let mut f = Fixture::new(&[1, 2, 4], &[1]);
    let held = |lane, group, hold| Order { hold: at(hold), ..order(lane, group, 10_000) };
    let lane = f.queue.open(OPEN);
    f.push(held(lane, f.realtime, 500), 0);
    f.push(held(lane, f.realtime, 700), 1);
    assert_eq!(f.queue.next(at(1)), Turn::Wait(at(500)));
    f.push(held(lane, f.realtime, 800), 2);
    assert_eq!(f.queue.next(at(500)), Turn::Run(vec![0, 1]));
    assert_eq!(f.queue.next(at(500)), Turn::Run(vec![2]), "its company has left");
    for job in 3..7 {
        f.push(held(lane, f.realtime, 900), job);
    }
    assert_eq!(f.queue.next(at(501)), Turn::Run(vec![3, 4, 5, 6]), "full");
}

#[test]
fn analytic_jobs_leave_room_for_realtime_jobs_that_are_held() {
    let mut f = Fixture::new(&[1, 2], &[1, 2, 4]);
    let (realtime, analytic) = (f.queue.open(OPEN), f.queue.open(OPEN));
    f.push(Order { hold: at(80), ..order(realtime, f.realtime, 40) }, 0);
    (1..=4).for_each(|job| f.push(order(analytic, f.analytic, 1000), job));
    assert_eq!(f.queue.next(at(1)), Turn::Run(vec![1, 2]), "four would take until 41 µs, and 30 is the latest start");
    assert_eq!(f.queue.next(at(21)), Turn::Run(vec![0]), "none more fits before it, and waiting would help nobody");
    assert_eq!(f.queue.next(at(31)), Turn::Run(vec![3, 4]));
}

#[test]
fn jobs_of_a_lane_start_in_order_though_their_groups_differ() {
    let mut f = Fixture::new(&[1, 2], &[1]);
    let other = f.queue.open_group(Class::Realtime, &costs(&[1, 2]));
    let (lane, elsewhere) = (f.queue.open(OPEN), f.queue.open(OPEN));
    f.push(Order { hold: at(900), ..order(lane, f.realtime, 1000) }, 0);
    f.push(order(elsewhere, other, 500), 1);
    f.push(order(lane, other, 1000), 2);
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![1]), "the second of its group stands behind one of another");
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![0]), "which waits no longer for company");
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![2]));
}

#[test]
fn a_blocked_group_waits_and_expires_and_keeps_nobody_from_running() {
    let mut f = Fixture::new(&[1], &[1]);
    let lanes: Vec<_> = (0..3).map(|_| f.queue.open(OPEN)).collect();
    f.push(order(lanes[0], f.realtime, 15), 0);
    f.queue.block(f.realtime, true);
    f.push(order(lanes[1], f.realtime, 100), 1);
    f.push(order(lanes[2], f.analytic, 1000), 2);
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![2]));
    assert_eq!(f.queue.next(NOW), Turn::Idle);
    assert_eq!(f.queue.next(at(6)), Turn::Expired(vec![0]));
    f.queue.block(f.realtime, false);
    assert_eq!(f.queue.next(at(6)), Turn::Run(vec![1]));
    f.queue.block(f.realtime, true);
    f.push(order(lanes[0], f.realtime, 100), 3);
    assert_eq!(f.queue.drain(f.realtime), [3]);
    assert!(f.queue.is_empty());
}

#[test]
fn a_retired_group_runs_what_it_has_and_takes_no_more() {
    let mut f = Fixture::new(&[1, 8], &[1]);
    let lane = f.queue.open(OPEN);
    f.push(Order { hold: at(900), ..order(lane, f.realtime, 1000) }, 1);
    f.queue.retire(f.realtime);
    assert_eq!(f.queue.push(NOW, order(lane, f.realtime, 1000), 2), Pushed::Refused(2));
    assert_eq!(f.queue.next(NOW), Turn::Run(vec![1]), "and waits for no company");
    assert!(!f.queue.groups.contains_key(&f.realtime));
}

#[test]
fn analytic_jobs_that_never_start_are_told_every_ten_seconds() {
    let mut f = Fixture::new(&[1], &[1]);
    let lane = f.queue.open(OPEN);
    let second = |s: u64| at(s * 1_000_000);
    f.push(Order { expires: false, ..order(lane, f.analytic, 1) }, 1);
    assert_eq!(f.queue.next_notice(), second(10));
    assert_eq!(f.queue.starved(second(9)), None);
    assert_eq!(f.queue.starved(second(12)), Some(Duration::from_secs(12)));
    assert_eq!(f.queue.starved(second(13)), None);
    assert_eq!(f.queue.starved(second(22)), Some(Duration::from_secs(10)));
    assert_eq!(f.queue.next(second(23)), Turn::Run(vec![1]));
    assert_eq!(f.queue.next_notice(), Moment::NEVER);
}

/// What happens to a queue in the property test.
#[derive(Debug, Clone)]
enum Step {
    Push {
        lane: usize,
        second: bool,
        deadline: u64,
        hold: u64,
        weight: usize,
    },
    /// The worker becomes free and asks.
    Next,
    Pass(u64),
    Close(usize),
    /// One of a class's two groups is retired, and another opened in its place.
    Retire(usize),
    Block(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..6, any::<bool>(), 0u64..400, 0u64..200, 0usize..4)
            .prop_map(|(lane, second, deadline, hold, weight)| Step::Push { lane, second, deadline, hold, weight }),
        5 => Just(Step::Next),
        3 => (0u64..60).prop_map(Step::Pass),
        1 => (0usize..6).prop_map(Step::Close),
        1 => (0usize..4).prop_map(Step::Retire),
        1 => (0usize..4, any::<bool>()).prop_map(|(group, blocked)| Step::Block(group, blocked)),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    number: usize,
    lane: usize,
    group: Group,
    deadline: Moment,
    /// What the queue orders it by.
    due: Moment,
    hold: Moment,
    expires: bool,
}

/// Lanes 0 to 3 are realtime, 4 and 5 analytic.
fn class_of(lane: usize) -> Class {
    if lane < 4 { Class::Realtime } else { Class::Analytic }
}

/// Whether a job waits behind one of its lane that cannot go.
fn stuck(job: &Seen, waiting: &[Seen], blocked: &[Group]) -> bool {
    let before = |other: &&Seen| other.lane == job.lane && other.number < job.number;
    waiting.iter().filter(before).any(|other| blocked.contains(&other.group))
}

proptest! {
    /// Whatever comes in whatever order: every job comes out exactly once; lanes keep their order and their bounds;
    /// nothing late is started; no analytic job starts while a realtime one could; batches are of one group, and of
    /// a proven size; the indices stay true.
    #[test]
    fn the_invariants_hold(
        steps in proptest::collection::vec(step(), 1..300),
        depth in 1usize..5,
        sizes in prop_oneof![Just(vec![1]), Just(vec![1, 2]), Just(vec![1, 2, 4, 8])],
        slack in 0u64..8,
    ) {
        let costs: Vec<BatchCost> = costs(&sizes)
            .into_iter()
            .map(|cost| BatchCost { worst: cost.worst + micros(slack), ..cost })
            .collect();
        let mut queue: Queue<Seen> = Queue::default();
        let classes = [Class::Realtime, Class::Realtime, Class::Analytic, Class::Analytic];
        let mut groups = classes.map(|class| queue.open_group(class, &costs));
        let mut blocked: Vec<Group> = Vec::new();
        let overflow = [Overflow::Refuse, Overflow::DropOldest];
        let lanes: Vec<Lane> = (0..6)
            .map(|lane| queue.open(LanePolicy { depth, weight: 6, overflow: overflow[lane % 2] }))
            .collect();
        // Not at boot: a deadline that lies before what a job takes would be cut off there.
        let (mut now, mut pushed, mut out) = (at(1_000_000), 0, Vec::new());
        let mut waiting: Vec<Seen> = Vec::new();
        let leave = |job: &Seen, waiting: &mut Vec<Seen>, out: &mut Vec<usize>| {
            waiting.retain(|other| other.number != job.number);
            out.push(job.number);
        };
        for step in steps {
            match step {
                Step::Push { lane, second, deadline, hold, weight } => {
                    let group = groups[2 * (lane / 4) + usize::from(second)];
                    let expires = lane != 5;
                    let (deadline, hold) = (now.after(micros(deadline)), now.after(micros(hold)));
                    let job = Seen { number: pushed, lane, group, deadline, due: deadline, hold, expires };
                    pushed += 1;
                    let order = Order { lane: lanes[lane], group, deadline, expires, hold, weight };
                    waiting.push(job);
                    match queue.push(now, order, job) {
                        Pushed::Waiting => {}
                        Pushed::Replaced(jobs) => {
                            for job in jobs {
                                prop_assert_eq!(job.lane, lane);
                                leave(&job, &mut waiting, &mut out);
                            }
                        }
                        Pushed::Refused(job) => leave(&job, &mut waiting, &mut out),
                    }
                    // What the queue orders it by: that of the job in front of it, if that is later.
                    let front = waiting.iter().rfind(|other| other.lane == lane && other.number < job.number);
                    let due = front.map_or(deadline, |front| front.due.max(deadline));
                    waiting.iter_mut().filter(|other| other.number == job.number).for_each(|other| other.due = due);
                }
                Step::Next => match queue.next(now) {
                    Turn::Run(jobs) => {
                        prop_assert!(sizes.contains(&jobs.len()));
                        let end = now.after(micros(10 * jobs.len() as u64));
                        let due = |job: &Seen| waiting.iter().find(|other| other.number == job.number).map(|other| other.due);
                        let later: Vec<_> = jobs.iter().skip(1).filter_map(due).collect();
                        let overtaken = waiting.iter().filter(|other| {
                            other.group != jobs[0].group && class_of(other.lane) == Class::Realtime && other.hold <= now
                                && !blocked.contains(&other.group) && !stuck(other, &waiting, &blocked)
                        });
                        if class_of(jobs[0].lane) == Class::Realtime {
                            for other in overtaken {
                                prop_assert!(later.iter().all(|due| *due <= other.due), "a batch overtakes nobody");
                            }
                        }
                        for job in &jobs {
                            prop_assert_eq!(job.group, jobs[0].group, "one group");
                            prop_assert!(!blocked.contains(&job.group));
                            prop_assert!(!job.expires || end <= job.deadline, "nothing late is started");
                            let overtaken =
                                waiting.iter().any(|other| other.lane == job.lane && other.number < job.number);
                            prop_assert!(!overtaken, "lanes keep their order");
                            leave(job, &mut waiting, &mut out);
                        }
                        if class_of(jobs[0].lane) == Class::Analytic {
                            let mut at = now.after(micros(10 * jobs.len() as u64 + slack));
                            let mut held: Vec<_> = waiting
                                .iter()
                                .filter(|job| class_of(job.lane) == Class::Realtime && !blocked.contains(&job.group))
                                .filter(|job| !stuck(job, &waiting, &blocked))
                                .collect();
                            held.sort_by_key(|job| job.deadline);
                            for job in held {
                                prop_assert!(job.hold > now, "no realtime job could start");
                                prop_assert!(at.after(micros(10)) <= job.deadline, "and those that are held will be in time");
                                at = at.after(micros(10 + slack));
                            }
                        }
                    }
                    Turn::Expired(jobs) => {
                        for job in jobs {
                            prop_assert!(job.expires && now.after(micros(10)) > job.deadline);
                            leave(&job, &mut waiting, &mut out);
                        }
                    }
                    Turn::Wait(until) => prop_assert!(until > now && !queue.is_empty()),
                    Turn::Idle => prop_assert!(
                        waiting.iter().all(|job| blocked.contains(&job.group) || stuck(job, &waiting, &blocked))
                    ),
                },
                Step::Pass(time) => now = now.after(micros(time)),
                Step::Close(lane) => {
                    for job in queue.close(lanes[lane]) {
                        prop_assert_eq!(job.lane, lane);
                        leave(&job, &mut waiting, &mut out);
                    }
                }
                Step::Retire(index) => {
                    let before = std::mem::replace(&mut groups[index], queue.open_group(classes[index], &costs));
                    queue.block(before, false);
                    blocked.retain(|group| *group != before);
                    queue.retire(before);
                }
                Step::Block(index, block) => {
                    queue.block(groups[index], block);
                    blocked.retain(|group| *group != groups[index]);
                    if block {
                        blocked.push(groups[index]);
                    }
                }
            }
            prop_assert_eq!(queue.len(), waiting.len());
            for lane in 0..6 {
                prop_assert!(waiting.iter().filter(|job| job.lane == lane).count() <= depth);
            }
        }
        // In the end everything comes out.
        groups.iter().for_each(|group| queue.block(*group, false));
        now = now.after(Duration::from_secs(1));
        loop {
            match queue.next(now) {
                Turn::Run(jobs) | Turn::Expired(jobs) => {
                    jobs.iter().for_each(|job| leave(job, &mut waiting, &mut out));
                }
                Turn::Wait(_) => prop_assert!(false, "nothing is held for a second"),
                Turn::Idle => break,
            }
        }
        out.sort_unstable();
        prop_assert_eq!(out, (0..pushed).collect::<Vec<_>>());
        prop_assert!(queue.ready.is_empty() && queue.held.is_empty());
        prop_assert!(queue.expiring.is_empty() && queue.urgent.is_empty() && queue.analytic == 0);
        prop_assert_eq!(queue.groups.len(), 4, "retired groups are forgotten");
    }
}
