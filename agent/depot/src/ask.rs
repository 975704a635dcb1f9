//! Asking a broker for the objects of a depot until they come.
//!
//! A broker keeps the depot as retained messages, and nothing is concluded from one that does not come: it may have been
//! dropped by a full queue, overtaken, or not be kept any more. So [`Asker`] asks again. What it promises:
//!
//! - It subscribes to exact topics only, in packets of at most [`FILTERS`], and never waits for more than [`PLACES`]
//!   answers at a time: brokers drop what they cannot queue (measured: 980 of 2,000 retained messages).
//! - Whoever waits longest is asked for first. An ask that nobody answered for [`ANSWER`] gives its place to the next.
//! - It asks again by unsubscribing and subscribing anew, because a broker sends a retained message for a new
//!   subscription: after 5 s, then twice as long each time up to 5 min, and up to a quarter longer by chance, so that
//!   gateways do not ask in step. A name that was given up and is wanted again goes on where it was: while its answer is
//!   due it is not asked for again, since that answer will do.
//! - A subscription stays as long as nobody needs its place, so what a publisher repairs comes at once.
//! - What does not come is told as [`Missing`]: once after the first ask without answer, then once an hour.
//! - A new connection is asked for everything anew.
//!
//! [`Asker`] is pure: events and moments go in, [`Action`]s come out. [`desk`] makes a pair around it: a [`Fetcher`],
//! which is a [`Remote`](crate::remote::Remote), and a [`Pump`] for whoever owns the connection. No MQTT library is known here.

mod desk;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use limpet_wire::depot::Name;

pub use desk::{Fetcher, Following, Pump, desk};

/// Answers that are waited for at a time.
pub const PLACES: usize = 16;
/// Filters in one SUBSCRIBE or UNSUBSCRIBE: AWS IoT takes no more.
pub const FILTERS: usize = 8;
/// How long an answer may take before the place is given to the next.
pub const ANSWER: Duration = Duration::from_secs(5);
/// Shortest time between two asks for one name on one connection; it doubles…
pub const FIRST_WAIT: Duration = Duration::from_secs(5);
/// …up to this, beside the quarter by chance.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// What was told to be missing is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(3600);
/// Names that were given up whose back-off is remembered.
const REMEMBERED: usize = 256;

/// What the owner of the connection does, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// One UNSUBSCRIBE with these.
    Unsubscribe(Vec<Name>),
    /// One SUBSCRIBE with these, at QoS 1, retained messages on every subscribe.
    Subscribe(Vec<Name>),
    /// Tells somebody.
    Missing(Missing),
}

/// Something that was asked for and did not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub name: Name,
    /// Since when it is wanted.
    pub since: Instant,
    /// How often it was asked for on this connection.
    pub tries: u32,
    /// What happened, in words for people.
    pub why: Why,
}

/// Why something counts as missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nothing came.
    Silent,
    /// The broker refuses the subscription: its reason.
    Refused(String),
    /// What came is not it: what was found and expected.
    Damaged(String),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => f.write_str(
                "the broker sends nothing: it is not kept there any more (limpet-lab depot repair), or this client may \
                 not read it (the broker's access list)",
            ),
            Self::Refused(reason) => {
                write!(f, "the broker refuses the subscription ({reason}); let this client read it in its access list")
            }
            Self::Damaged(reason) => {
                write!(f, "what the broker keeps there is damaged ({reason}); limpet-lab depot repair")
            }
        }
    }
}

/// What an arrival was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Somebody wanted it.
    Wanted,
    /// Nobody did, any more or at all.
    Unknown,
}

/// One name that is wanted, followed, or both.
#[derive(Debug)]
struct Want {
    /// In the order of wanting.
    order: u64,
    since: Instant,
    /// Somebody waits for an answer; without it, it is only followed.
    wanted: bool,
    /// Stays subscribed after an answer.
    followed: bool,
    /// When it is asked for next, if it is wanted.
    due: Instant,
    /// Until when an answer is waited for, if there is a subscription.
    until: Option<Instant>,
    /// That is over: its place may go to another.
    overdue: bool,
    /// It was given up while its answer was due; unless somebody wants it again by then, it goes with the answer.
    abandoned: bool,
    tries: u32,
    told: Option<Instant>,
    why: Why,
}

impl Want {
    /// Whether an answer is wanted of a subscription, which takes a place.
    fn holds_place(&self) -> bool {
        self.until.is_some() && self.wanted
    }

    fn is_waited_for(&self) -> bool {
        self.holds_place() && !self.overdue
    }
}

/// Which names are asked for, and when: see the module.
#[derive(Debug)]
pub struct Asker {
    wants: BTreeMap<Name, Want>,
    /// Names given up before they came, oldest first.
    given_up: VecDeque<(Name, Want)>,
    /// Subscriptions that nobody needs any more.
    leave: Vec<Name>,
    connected: bool,
    next_order: u64,
    random: u64,
}

impl Asker {
    /// One that wants nothing and is not connected. `seed` decides the part of the back-off that is left to chance: it
    /// must differ between gateways.
    pub fn new(seed: u64) -> Self {
        Self {
            wants: BTreeMap::new(),
            given_up: VecDeque::new(),
            leave: Vec::new(),
            connected: false,
            next_order: 0,
            random: seed,
        }
    }

    /// Wants a name until it arrives. One that is followed already is asked for anew.
    pub fn want(&mut self, name: &Name, now: Instant) {
        let want = self.entry(name, now);
        if std::mem::take(&mut want.abandoned) {
            want.since = now;
        }
        if !want.wanted {
            want.wanted = true;
            want.since = now;
            // The subscription of a follower stands, but it has had its answer: only a new one brings another.
            want.overdue = true;
            want.due = want.due.max(now);
        }
    }

    /// Follows a name: asked for like others, and subscribed to for good, so that each change arrives.
    pub fn follow(&mut self, name: &Name, now: Instant) {
        self.want(name, now);
        self.entry(name, now).followed = true;
    }

    fn entry(&mut self, name: &Name, now: Instant) -> &mut Want {
        self.next_order += 1;
        let order = self.next_order;
        let given_up = &mut self.given_up;
        self.wants.entry(name.clone()).or_insert_with(|| {
            let before = given_up.iter().position(|(other, _)| other == name).and_then(|at| given_up.remove(at));
            let fresh = Want {
                order,
                since: now,
                wanted: false,
                followed: false,
                due: now,
                until: None,
                overdue: false,
                abandoned: false,
                tries: 0,
                told: None,
                why: Why::Silent,
            };
            match before {
                Some((_, before)) => {
                    Want { due: before.due, tries: before.tries, told: before.told, why: before.why, ..fresh }
                }
                None => fresh,
            }
        })
    }

    /// Nobody waits for a name any more; who follows it still does.
    pub fn forget(&mut self, name: &Name) {
        let Some(want) = self.wants.get_mut(name) else { return };
        if want.followed {
            // An answer that is under way, or the first, is the follower's too.
            return;
        }
        if want.is_waited_for() {
            want.abandoned = true;
        } else {
            self.give_up(name);
        }
    }

    fn give_up(&mut self, name: &Name) {
        let Some(want) = self.wants.get(name) else { return };
        if want.until.is_some() {
            self.leave.push(name.clone());
        }
        if let Some(want) = self.wants.remove(name)
            && want.tries > 0
        {
            if self.given_up.len() == REMEMBERED {
                self.given_up.pop_front();
            }
            self.given_up.push_back((name.clone(), want));
        }
    }

    /// Nobody follows a name any more.
    pub fn unfollow(&mut self, name: &Name, waited_for: bool) {
        if let Some(want) = self.wants.get_mut(name) {
            want.followed = false;
            if !waited_for {
                self.forget(name);
            }
        }
    }

    /// What was wanted came, and is what it should be.
    pub fn arrived(&mut self, name: &Name, now: Instant) -> Arrival {
        let Some(want) = self.wants.get_mut(name) else { return Arrival::Unknown };
        if want.followed {
            want.wanted = false;
            want.overdue = false;
            want.tries = 0;
            want.told = None;
            want.due = now;
            want.why = Why::Silent;
        } else {
            let abandoned = want.abandoned;
            if want.until.is_some() {
                self.leave.push(name.clone());
            }
            self.wants.remove(name);
            if abandoned {
                return Arrival::Unknown;
            }
        }
        Arrival::Wanted
    }

    /// What came under a name is not what it should be: it is still wanted, and asked for when its back-off says so. Its
    /// subscription stays, so that a repaired one comes as soon as it is published.
    pub fn arrived_bad(&mut self, name: &Name, reason: String, now: Instant) {
        self.answered_uselessly(name, Why::Damaged(reason), now);
    }

    /// The broker refuses the subscription to a name.
    pub fn refused(&mut self, name: &Name, reason: &str, now: Instant) {
        self.answered_uselessly(name, Why::Refused(reason.to_owned()), now);
    }

    fn answered_uselessly(&mut self, name: &Name, why: Why, now: Instant) {
        if let Some(want) = self.wants.get_mut(name)
            && want.until.is_some()
        {
            want.why = why;
            want.until = Some(now);
            want.overdue = false;
        }
    }

    /// There is a connection, without subscriptions.
    pub fn connected(&mut self, now: Instant) {
        self.disconnected();
        self.connected = true;
        // Another broker, or the same after a restart, knows other things.
        self.given_up.clear();
        for want in self.wants.values_mut() {
            want.tries = 0;
            want.due = want.due.min(now);
            want.why = Why::Silent;
        }
    }

    /// The connection is gone, and all subscriptions with it.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.leave.clear();
        self.wants.retain(|_, want| !want.abandoned);
        for want in self.wants.values_mut() {
            want.until = None;
            want.overdue = false;
            // A follower may have missed a change.
            want.wanted |= want.followed;
        }
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: Instant) -> Vec<Action> {
        if !self.connected {
            return Vec::new();
        }
        let late = |want: &Want| want.abandoned && want.until.is_none_or(|until| until <= now);
        let late: Vec<Name> = self.wants.iter().filter(|(_, want)| late(want)).map(|(name, _)| name.clone()).collect();
        late.iter().for_each(|name| self.give_up(name));
        let mut actions: Vec<Action> = self.tell(now).into_iter().map(Action::Missing).collect();
        let mut leave = std::mem::take(&mut self.leave);
        let mut ask = Vec::new();
        for name in self.due(now) {
            if self.wants.values().filter(|want| want.is_waited_for()).count() >= PLACES {
                break;
            }
            let others = |wants: &BTreeMap<Name, Want>| {
                wants.iter().filter(|(other, want)| want.holds_place() && **other != name).count()
            };
            while others(&self.wants) >= PLACES {
                // The one that is asked for again last needs its place least.
                let idle =
                    self.wants.iter().filter(|(other, want)| want.holds_place() && want.overdue && **other != name);
                let Some(idle) = idle.max_by_key(|(_, want)| want.due).map(|(name, _)| name.clone()) else { break };
                self.want_mut(&idle).until = None;
                leave.push(idle);
            }
            let wait = self.wait(self.wants[&name].tries);
            let want = self.want_mut(&name);
            if want.until.is_some() {
                leave.push(name.clone());
            }
            want.until = Some(now + ANSWER);
            want.overdue = false;
            want.why = Why::Silent;
            want.tries = want.tries.saturating_add(1);
            want.due = now + wait;
            ask.push(name);
        }
        // All are left before any is asked for: one name may be in both.
        actions.extend(leave.chunks(FILTERS).map(|some| Action::Unsubscribe(some.to_vec())));
        actions.extend(ask.chunks(FILTERS).map(|some| Action::Subscribe(some.to_vec())));
        actions
    }

    /// When [`Asker::poll`] has something to do again, if nothing happens before.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        if !self.connected {
            return None;
        }
        if !self.leave.is_empty() {
            return Some(now);
        }
        let full = self.wants.values().filter(|want| want.is_waited_for()).count() >= PLACES;
        let moments = self.wants.values().filter(|want| want.wanted).filter_map(|want| match want.until {
            Some(until) if !want.overdue => Some(until),
            // A place will be free when an answer comes, or when its time is over: that is a moment of another.
            _ if full => None,
            _ => Some(want.due.max(now)),
        });
        moments.min()
    }

    /// Marks the asks that have had their time, and says which are to be told.
    fn tell(&mut self, now: Instant) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (name, want) in &mut self.wants {
            if !want.is_waited_for() || want.until.is_some_and(|until| now < until) {
                continue;
            }
            want.overdue = true;
            if matches!(want.why, Why::Refused(_)) {
                // There is no subscription to keep.
                want.until = None;
            }
            if want.told.is_none_or(|told| now >= told + TELL_AGAIN) {
                want.told = Some(now);
                missing.push(Missing {
                    name: name.clone(),
                    since: want.since,
                    tries: want.tries,
                    why: want.why.clone(),
                });
            }
        }
        missing
    }

    /// What may be asked for now, the longest due first.
    fn due(&self, now: Instant) -> Vec<Name> {
        let due = |want: &Want| want.wanted && want.due <= now && (want.until.is_none() || want.overdue);
        let mut names: Vec<_> = self.wants.iter().filter(|(_, want)| due(want)).collect();
        names.sort_by_key(|(_, want)| (want.due, want.order));
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    fn want_mut(&mut self, name: &Name) -> &mut Want {
        self.wants.get_mut(name).expect("the name comes from the map")
    }

    /// How long to wait after an ask that `tries` came before.
    fn wait(&mut self, tries: u32) -> Duration {
        let step = FIRST_WAIT.saturating_mul(1 << tries.min(10)).min(LONGEST_WAIT);
        // SplitMix64 (Steele, Lea, Flood 2014): good enough for what only has to differ.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        step.mul_f64(1.0 + 0.25 * (mixed as f64 / u64::MAX as f64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn name(index: u8) -> Name {
        Name::Chunk([index; 32])
    }

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn subscribed(actions: &[Action]) -> Vec<Name> {
        let names = actions.iter().filter_map(|action| match action {
            Action::Subscribe(names) => Some(names.clone()),
            _ => None,
        });
        names.flatten().collect()
    }

    fn missing(actions: &[Action]) -> Vec<(Name, Why)> {
        let missing = actions.iter().filter_map(|action| match action {
            Action::Missing(missing) => Some((missing.name.clone(), missing.why.clone())),
            _ => None,
        });
        missing.collect()
    }

    fn asker(now: Instant, wanted: impl IntoIterator<Item = u8>) -> Asker {
        let mut asker = Asker::new(7);
        asker.connected(now);
        wanted.into_iter().for_each(|index| asker.want(&name(index), now));
        asker
    }

    #[test]
    fn sixteen_are_asked_for_in_two_packets_in_the_order_of_wanting() {
        let now = Instant::now();
        let mut asker = asker(now, (0..40).rev());
        let actions = asker.poll(now);
        assert_eq!(actions.len(), 2);
        assert_eq!(subscribed(&actions), (24..40).rev().map(name).collect::<Vec<_>>());
        assert!(asker.poll(now).is_empty());
        asker.arrived(&name(30), now);
        let actions = asker.poll(now);
        assert_eq!(actions, [Action::Unsubscribe(vec![name(30)]), Action::Subscribe(vec![name(23)])]);
    }

    #[test]
    fn who_does_not_answer_is_told_once_and_gives_its_place_to_the_next() {
        let now = Instant::now();
        let mut asker = asker(now, 0..17);
        asker.poll(now);
        assert_eq!(asker.next_wake(now), Some(now + ANSWER));
        let actions = asker.poll(now + ANSWER);
        assert_eq!(missing(&actions).len(), 16);
        assert_eq!(subscribed(&actions), [name(16)]);
        assert!(actions.iter().any(|action| matches!(action, Action::Unsubscribe(names) if names.len() == 1)));
        // All of them are asked for again in the course of the back-off, and nobody is told again.
        let (mut at, mut again, mut told) = (now + ANSWER, BTreeSet::new(), Vec::new());
        while at < now + seconds(60) {
            let actions = asker.poll(at);
            again.extend(subscribed(&actions));
            told.extend(missing(&actions));
            at = asker.next_wake(at).unwrap();
        }
        assert_eq!(again.len(), 17);
        assert_eq!(told, [(name(16), Why::Silent)]);
    }

    #[test]
    fn asks_are_twice_as_far_apart_each_time_and_start_anew_with_a_connection() {
        let now = Instant::now();
        let mut asker = asker(now, [1]);
        let mut asked = Vec::new();
        let mut at = now;
        while asked.len() < 10 {
            if !subscribed(&asker.poll(at)).is_empty() {
                asked.push(at);
            }
            at = asker.next_wake(at).unwrap();
        }
        for (wait, least) in asked.windows(2).map(|pair| pair[1] - pair[0]).zip([5, 10, 20, 40, 80, 160, 300, 300, 300])
        {
            assert!(wait >= seconds(least) && wait <= seconds(least).mul_f64(1.25), "{wait:?} {least}");
        }
        asker.disconnected();
        assert_eq!(asker.next_wake(at), None);
        assert!(asker.poll(at).is_empty());
        asker.connected(at);
        assert_eq!(subscribed(&asker.poll(at)), [name(1)]);
    }

    #[test]
    fn an_ask_again_is_an_unsubscribe_before_a_subscribe() {
        let now = Instant::now();
        let mut asker = asker(now, [1]);
        asker.poll(now);
        asker.poll(now + ANSWER);
        let actions = asker.poll(now + seconds(7));
        assert_eq!(actions, [Action::Unsubscribe(vec![name(1)]), Action::Subscribe(vec![name(1)])]);
    }

    #[test]
    fn who_gives_up_and_wants_again_goes_on_with_the_back_off() {
        let now = Instant::now();
        let mut asker = asker(now, [1]);
        asker.poll(now);
        asker.forget(&name(1));
        assert!(asker.poll(now).is_empty());
        assert_eq!(asker.next_wake(now), Some(now + ANSWER));
        assert_eq!(asker.poll(now + ANSWER), [Action::Unsubscribe(vec![name(1)])]);
        asker.want(&name(1), now + ANSWER);
        assert!(asker.poll(now + ANSWER).is_empty());
        assert!(asker.next_wake(now + ANSWER).unwrap() > now + ANSWER);
        assert_eq!(subscribed(&asker.poll(now + seconds(7))), [name(1)]);
    }

    #[test]
    fn who_wants_again_what_was_asked_for_a_moment_ago_takes_that_answer() {
        let now = Instant::now();
        let mut asker = asker(now, [1, 2]);
        asker.poll(now);
        asker.forget(&name(1));
        asker.want(&name(1), now + seconds(1));
        assert!(asker.poll(now + seconds(1)).is_empty());
        assert_eq!(asker.arrived(&name(1), now + seconds(2)), Arrival::Wanted);
        // One that came while nobody wanted it is asked for again at once: the broker did answer.
        asker.forget(&name(2));
        assert_eq!(asker.arrived(&name(2), now + seconds(2)), Arrival::Unknown);
        asker.want(&name(2), now + seconds(2));
        let left = Action::Unsubscribe(vec![name(1), name(2)]);
        assert_eq!(asker.poll(now + seconds(2)), [left, Action::Subscribe(vec![name(2)])]);
        // With the connection goes what nobody wants.
        asker.forget(&name(2));
        asker.disconnected();
        asker.connected(now + seconds(3));
        assert!(asker.poll(now + seconds(3)).is_empty());
    }

    #[test]
    fn a_damaged_answer_is_told_and_asked_for_again_with_back_off() {
        let now = Instant::now();
        let mut asker = asker(now, [1]);
        asker.poll(now);
        asker.arrived_bad(&name(1), "zeros".to_owned(), now);
        assert_eq!(missing(&asker.poll(now)), [(name(1), Why::Damaged("zeros".to_owned()))]);
        assert!(asker.next_wake(now).unwrap() >= now + seconds(5));
        assert_eq!(subscribed(&asker.poll(now + seconds(7))), [name(1)]);
        assert_eq!(asker.arrived(&name(1), now + seconds(7)), Arrival::Wanted);
        assert_eq!(asker.arrived(&name(1), now + seconds(7)), Arrival::Unknown);
    }

    #[test]
    fn a_refused_subscription_is_told_with_the_reason_and_made_again_without_an_unsubscribe() {
        let now = Instant::now();
        let mut asker = asker(now, [1]);
        asker.poll(now);
        asker.refused(&name(1), "NotAuthorized", now);
        assert_eq!(missing(&asker.poll(now)), [(name(1), Why::Refused("NotAuthorized".to_owned()))]);
        assert_eq!(asker.poll(now + seconds(7)), [Action::Subscribe(vec![name(1)])]);
    }

    #[test]
    fn a_followed_name_stays_subscribed_and_takes_no_place_once_it_was_answered() {
        let now = Instant::now();
        let mut asker = asker(now, []);
        asker.follow(&Name::Timestamp, now);
        assert_eq!(subscribed(&asker.poll(now)), [Name::Timestamp]);
        asker.arrived(&Name::Timestamp, now);
        assert!(asker.poll(now).is_empty());
        assert_eq!(asker.next_wake(now), None);
        assert_eq!(asker.arrived(&Name::Timestamp, now), Arrival::Wanted);
        (0..16).for_each(|index| asker.want(&name(index), now));
        assert_eq!(subscribed(&asker.poll(now)).len(), 16);
        // Wanted beside: asked anew; then nobody follows it any more.
        for index in 0..16 {
            asker.arrived(&name(index), now);
        }
        asker.want(&Name::Timestamp, now);
        assert_eq!(subscribed(&asker.poll(now)), [Name::Timestamp]);
        asker.arrived(&Name::Timestamp, now);
        asker.unfollow(&Name::Timestamp, false);
        assert_eq!(asker.poll(now), [Action::Unsubscribe(vec![Name::Timestamp])]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Want(u8),
        Follow(u8),
        Forget(u8),
        /// The broker answers the n-th of its subscriptions, drops it, sends something else, or refuses it.
        Answer(usize),
        Damage(usize),
        Refuse(usize),
        Publish(u8),
        Disconnect,
        Connect,
        Pass(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..40u8).prop_map(Step::Want),
            1 => (40..44u8).prop_map(Step::Follow),
            2 => (0..40u8).prop_map(Step::Forget),
            4 => any::<usize>().prop_map(Step::Answer),
            1 => any::<usize>().prop_map(Step::Damage),
            1 => any::<usize>().prop_map(Step::Refuse),
            1 => (0..44u8).prop_map(Step::Publish),
            1 => Just(Step::Disconnect),
            2 => Just(Step::Connect),
            4 => (0..20_000u16).prop_map(Step::Pass),
        ]
    }

    /// A broker, and what was promised to it.
    #[derive(Default)]
    struct Model {
        subscriptions: BTreeSet<Name>,
        /// Subscriptions that were made and not answered yet.
        open: Vec<Name>,
        /// Wanted and not come.
        wanted: HashSet<Name>,
        followed: HashSet<Name>,
        /// On this connection: when, and how often without an answer.
        asked: HashMap<Name, (Instant, u32)>,
    }

    impl Model {
        fn take(&mut self, actions: Vec<Action>, now: Instant) {
            for action in actions {
                match action {
                    Action::Unsubscribe(names) => {
                        assert!(!names.is_empty() && names.len() <= FILTERS);
                        for name in names {
                            self.subscriptions.remove(&name);
                            self.open.retain(|other| *other != name);
                        }
                    }
                    Action::Subscribe(names) => {
                        assert!(!names.is_empty() && names.len() <= FILTERS);
                        for name in names {
                            assert!(self.wanted.contains(&name) || self.followed.contains(&name), "asked for nothing");
                            assert!(self.subscriptions.insert(name.clone()), "a second subscription brings nothing");
                            let (last, tries) = self.asked.entry(name.clone()).or_insert((now, 0));
                            if *tries > 0 {
                                let least = FIRST_WAIT.saturating_mul(1 << (*tries - 1).min(10)).min(LONGEST_WAIT);
                                assert!(now - *last >= least, "asked again after {:?}", now - *last);
                            }
                            (*last, *tries) = (now, *tries + 1);
                            self.open.push(name);
                        }
                    }
                    Action::Missing(missing) => assert!(missing.tries > 0),
                }
            }
            let waited_for = self.subscriptions.iter().filter(|name| self.wanted.contains(name)).count();
            assert!(waited_for <= PLACES, "{waited_for}");
        }

        fn deliver(&mut self, asker: &mut Asker, name: &Name, now: Instant) {
            let expected = self.wanted.remove(name) || self.followed.contains(name);
            let arrival = asker.arrived(name, now);
            assert_eq!(arrival == Arrival::Wanted, expected);
            self.asked.remove(name);
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_all_that_is_wanted_comes_in_the_end_and_nobody_is_asked_too_much(
            steps in proptest::collection::vec(step(), 0..200),
            seed: u64,
        ) {
            let mut now = Instant::now();
            let mut asker = Asker::new(seed);
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Want(index) => {
                        asker.want(&name(index), now);
                        model.wanted.insert(name(index));
                    }
                    Step::Follow(index) => {
                        asker.follow(&name(index), now);
                        model.followed.insert(name(index));
                    }
                    Step::Forget(index) => {
                        asker.forget(&name(index));
                        model.wanted.remove(&name(index));
                    }
                    Step::Answer(at) => {
                        if !model.open.is_empty() {
                            let name = model.open.swap_remove(at % model.open.len());
                            model.deliver(&mut asker, &name, now);
                        }
                    }
                    Step::Damage(at) => {
                        if !model.open.is_empty() {
                            let at = at % model.open.len();
                            asker.arrived_bad(&model.open[at].clone(), "x".to_owned(), now);
                        }
                    }
                    Step::Refuse(at) => {
                        if !model.open.is_empty() {
                            let name = model.open.swap_remove(at % model.open.len());
                            model.subscriptions.remove(&name);
                            asker.refused(&name, "no", now);
                        }
                    }
                    Step::Publish(index) => {
                        if model.subscriptions.contains(&name(index)) {
                            model.open.retain(|other| *other != name(index));
                            model.deliver(&mut asker, &name(index), now);
                        }
                    }
                    Step::Disconnect => {
                        asker.disconnected();
                        model.subscriptions.clear();
                        model.open.clear();
                    }
                    Step::Connect => {
                        asker.connected(now);
                        model.subscriptions.clear();
                        model.open.clear();
                        model.asked.clear();
                    }
                    Step::Pass(ms) => now += Duration::from_millis(ms.into()),
                }
                model.take(asker.poll(now), now);
            }
            // From now on the broker is a good one, except that it answers each for the first time only when it is asked
            // the second time.
            asker.connected(now);
            model.subscriptions.clear();
            model.open.clear();
            model.asked.clear();
            let mut followed = model.followed.clone();
            let mut dropped = HashSet::new();
            let mut rounds = 0;
            while !model.wanted.is_empty() || !followed.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 2000, "{} are still wanted", model.wanted.len());
                model.take(asker.poll(now), now);
                for name in std::mem::take(&mut model.open) {
                    if !dropped.insert(name.clone()) {
                        model.deliver(&mut asker, &name, now);
                        followed.remove(&name);
                    }
                }
                if let Some(wake) = asker.next_wake(now) {
                    now = wake;
                }
            }
        }
    }
}
