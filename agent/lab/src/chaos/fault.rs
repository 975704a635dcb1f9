//! What can go wrong, and in which order it does.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::wire::Mode;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The agent gets SIGKILL and is started again; when, [`Killing`] says.
    Kill,
    /// The broker gets SIGKILL and is started again; it knows of no session then.
    BrokerRestart,
    /// The broker is stopped (SIGSTOP) for two and a half keep-alive periods.
    BrokerStall,
    /// Connections are reset, some times in a row.
    Cut,
    /// Connections stay open, and nothing comes through any more.
    HalfOpen,
    /// 20 kB a second, and a quarter of a second for each packet.
    SlowLink,
    /// The broker acknowledges results with "quota exceeded".
    Refusal,
    /// Acknowledgements do not come through; how that ends, [`Release`] says.
    Unacknowledged,
    /// The disk is full while the link is dead, and every other time the agent is killed meanwhile.
    DiskFull,
    /// A page of the outbox's database, which holds a backlog, is overwritten while the agent does not run.
    DamagedPage,
    /// The system's clock is an hour ahead for a while.
    ClockStep,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::BrokerRestart,
        Self::BrokerStall,
        Self::Cut,
        Self::HalfOpen,
        Self::SlowLink,
        Self::Refusal,
        Self::Unacknowledged,
        Self::DiskFull,
        Self::DamagedPage,
        Self::ClockStep,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::BrokerRestart => "broker-restart",
            Self::BrokerStall => "broker-stall",
            Self::Cut => "cut",
            Self::HalfOpen => "half-open",
            Self::SlowLink => "slow-link",
            Self::Refusal => "refusal",
            Self::Unacknowledged => "unacknowledged",
            Self::DiskFull => "disk-full",
            Self::DamagedPage => "damaged-page",
            Self::ClockStep => "clock-step",
        }
    }

    /// How often it is drawn, against the others. What takes long comes less often.
    fn weight(self) -> usize {
        match self {
            Self::Kill => 8,
            Self::Cut | Self::Unacknowledged | Self::BrokerRestart => 3,
            _ => 1,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| format!("'{name}' is no fault; expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// So many of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The fault.
    pub fault: Fault,
    /// How often.
    pub times: usize,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, times) = text.split_once('=').unwrap_or((text, "1"));
        let fault = name.parse()?;
        let times = times.parse().ok().filter(|times| *times > 0);
        let times = times.ok_or_else(|| format!("'{text}' says no number of times; expected such as {name}=10"))?;
        Ok(Self { fault, times })
    }
}

/// The wire of a drain that is to be caught in its middle: a backlog of some seconds takes about as long to go.
const NARROW: Mode = Mode::Slow { delay: Duration::from_millis(20), bytes_per_s: 200e3 };

/// A second kill in a row comes at most so long after the start.
const AGAIN_WITHIN: Duration = Duration::from_millis(300);

/// When kills come: one, or two in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Killing {
    /// What is done first so that a backlog is on the disk. Otherwise the kill comes while all is well.
    pub backlog: Option<Backlog>,
    /// So long after the agent was started again it is killed again: in its start, or as it takes over what it left.
    pub again: Option<Duration>,
}

/// How results come to wait on the disk before a kill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backlog {
    /// What keeps them: no connection, or no acknowledgement.
    pub mode: Mode,
    /// For so long. The agent writes to its disk what has waited for a whole second.
    pub lasts: Duration,
    /// The wire in a drain that is under way when the kill comes, and how far it has come by then. Otherwise the kill comes
    /// before it.
    pub drain: Option<(Mode, Duration)>,
}

impl Killing {
    /// One of three meets a backlog, half of those in its drain; one of four kills comes twice.
    pub fn draw(random: &mut fastrand::Rng) -> Self {
        let backlog = (random.u8(..3) == 0).then(|| Backlog {
            mode: if random.bool() { Mode::Down } else { Mode::Withholding },
            lasts: Duration::from_millis(random.u64(2000..5000)),
            drain: random.bool().then(|| (NARROW, Duration::from_millis(random.u64(..500)))),
        });
        // Squared, so that a third of them come in the first tenth: a start takes some tens of milliseconds.
        let again = (random.u8(..4) == 0).then(|| AGAIN_WITHIN.mul_f64(random.f64().powi(2)));
        Self { backlog, again }
    }
}

/// What comes after a time without acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The agent is killed, and they are lost.
    Kill,
    /// The connection is reset, and they are lost.
    Cut,
    /// They come, late.
    Late,
}

impl Release {
    /// Each as often.
    pub fn draw(random: &mut fastrand::Rng) -> Self {
        [Self::Kill, Self::Cut, Self::Late][random.usize(..3)]
    }
}

/// The faults to come.
pub struct Deck {
    random: fastrand::Rng,
    /// The next ones, the last first.
    cards: Vec<Fault>,
    /// What is drawn from when those are through; nothing if exactly those were wanted.
    bag: Vec<Fault>,
}

impl Deck {
    /// Exactly these faults in an order that the seed gives; if there are none, each of those that `can` be had, and then
    /// without end.
    pub fn new(seed: u64, wanted: &[Wanted], can: impl Fn(Fault) -> bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut cards, mut bag) = (Vec::new(), Vec::new());
        if wanted.is_empty() {
            cards.extend(Fault::ALL.into_iter().filter(|fault| can(*fault)));
            bag.extend(cards.iter().flat_map(|fault| std::iter::repeat_n(*fault, fault.weight())));
        } else {
            cards.extend(wanted.iter().flat_map(|wanted| std::iter::repeat_n(wanted.fault, wanted.times)));
        }
        random.shuffle(&mut cards);
        Self { random, cards, bag }
    }

    /// The next one.
    pub fn draw(&mut self) -> Option<Fault> {
        self.cards.pop().or_else(|| self.random.choice(&self.bag).copied())
    }

    /// How long all is well until then.
    pub fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(20..600))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_every_kind_once() {
        let draw = |seed| {
            let mut deck = Deck::new(seed, &[], |fault| fault != Fault::ClockStep);
            (0..100).map(|_| deck.draw().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let first = &draw(7)[..10];
        assert!(Fault::ALL.iter().all(|fault| first.contains(fault) == (*fault != Fault::ClockStep)));
    }

    #[test]
    fn a_third_of_the_kills_meet_a_backlog_and_a_fourth_come_again_in_the_start() {
        let draw = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            std::iter::repeat_with(move || Killing::draw(&mut random)).take(500).collect::<Vec<_>>()
        };
        let kills = draw(7);
        assert_eq!(kills, draw(7));
        assert_ne!(kills, draw(8));
        let count = |is: fn(&Killing) -> bool| kills.iter().filter(|kill| is(kill)).count();
        assert!((140..=195).contains(&count(|kill| kill.backlog.is_some())));
        assert!((60..=110).contains(&count(|kill| kill.backlog.is_some_and(|backlog| backlog.drain.is_some()))));
        assert!((60..=110).contains(&count(|kill| kill.backlog.is_some_and(|backlog| backlog.mode == Mode::Down))));
        assert!((95..=155).contains(&count(|kill| kill.again.is_some())));
        let early = |kill: &Killing| kill.again.is_some_and(|after| after < AGAIN_WITHIN / 10);
        assert!((25..=60).contains(&count(early)));
        assert!((20..=65).contains(&count(|kill| kill.again.is_some() && kill.backlog.is_some())));
        let held: Duration = kills.iter().filter_map(|kill| Some(kill.backlog?.lasts)).sum();
        assert!(held < Duration::from_secs(780), "500 kills are not to take longer than twenty minutes: {held:?}");
    }

    #[test]
    fn what_was_asked_for_comes_exactly_so_often() {
        let wanted = ["kill=50", "broker-restart=5", "cut"].map(|text| text.parse::<Wanted>().unwrap());
        let mut deck = Deck::new(1, &wanted, |_| true);
        let drawn: Vec<Fault> = std::iter::from_fn(|| deck.draw()).collect();
        assert_eq!(drawn.len(), 56);
        assert_eq!(drawn.iter().filter(|fault| **fault == Fault::Kill).count(), 50);
        for wrong in ["kil=3", "kill=x", ""] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }
}
