//! The judge of a signed configuration on trial.
//!
//! It was checked against the packages that are here, and admitted, before it took effect; what that cannot show is
//! whether its topics, codecs and deadlines are those of the plant. So it is watched for a while, by counts alone: there
//! is nothing to compare window by window, since a window may be another one under it.
//!
//! | what | breach |
//! |---|---|
//! | starts | [`STARTS_MAX`] that ended without being told to, none after ten minutes: the agent does not stay up under it |
//! | a pipeline | refused on this device |
//! | a source | [`HEARD`] messages at least that could not be read, and surely more than half of all, beyond the share before |
//! | errors, misses of a pipeline | as for a [version](super::Trial), against what the pipeline of that name did before; misses were seen in three looks at least |
//! | silence | at the end: a source, or a pipeline, that did nothing, where the one of that name would have had [`EXPECTED`] messages or windows as it did before; or all sources together, whatever they were called |
//!
//! Time counts while the brokers of its sources are connected, of those that were before: a dead link is not its fault, and a
//! broker that was never there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Before, DOUBT, FEWEST, Rules, Verdict, allowed, lower, upper};
use crate::store::{Configuration, Record};

/// Starts whose process ended without being told to, and before ten minutes, that are no chance any more.
pub const STARTS_MAX: u32 = 3;
/// Share of messages that cannot be read, beyond which a source is not the one that the configuration means.
const UNREAD: f64 = 0.5;
/// Messages of which one at least can be read.
const HEARD: u64 = 32;
/// What must have been expected where nothing came. By chance that is e⁻³², if messages come independently.
const EXPECTED: f64 = 32.0;

/// What messages of a source came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heard {
    /// Messages that were read.
    pub messages: u64,
    /// Messages or samples that were not.
    pub refused: u64,
    /// Why most of those were not, in a word.
    pub reason: String,
}

/// What a gateway did in a span of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// How long.
    pub time: Duration,
    /// Its pipelines, by name.
    pub pipelines: BTreeMap<String, Before>,
    /// Its sources, by name.
    pub sources: BTreeMap<String, Heard>,
    /// Brokers that were connected at the end.
    pub brokers: BTreeSet<String>,
}

/// A trial of a configuration: what a restart goes on with, and where it goes back to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigurationTrial {
    /// What was in effect before; the file alone where there is none.
    pub previous: Option<Configuration>,
    /// The records from before of the models of which it brought a version.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, Record>,
    /// What the gateway did under it.
    pub before: Activity,
    /// Starts that did not end well so far, the one that goes on among them.
    pub starts: u32,
    /// How long it ran with its brokers connected.
    pub served: Duration,
}

/// Where a pipeline stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// It serves.
    Serving,
    /// Its model is on its way.
    Coming,
    /// It does not run: why.
    Refused(String),
}

/// What is seen at one look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Counts since the process started.
    pub activity: Activity,
    /// Where its pipelines stand, by name.
    pub stands: BTreeMap<String, Stand>,
    /// Whether the brokers of all sources are connected.
    pub connected: bool,
}

/// The judge.
#[derive(Debug)]
pub struct Judge {
    long: Duration,
    before: Activity,
    served: Duration,
    /// When the last look was.
    last: Duration,
    /// Misses at the last look, and looks at which there were more, by pipeline.
    missed: BTreeMap<String, (u64, u64)>,
}

impl Judge {
    /// One for a trial of so long, which begins or goes on. Counts start with the process, at nothing.
    pub fn new(long: Duration, trial: &ConfigurationTrial) -> Self {
        let (before, served) = (trial.before.clone(), trial.served);
        Self { long, before, served, last: Duration::ZERO, missed: BTreeMap::new() }
    }

    /// How long it ran with its brokers connected.
    pub fn served(&self) -> Duration {
        self.served
    }

    /// Takes in what is seen now.
    pub fn look(&mut self, seen: &Seen) -> Verdict {
        let passed = seen.activity.time.saturating_sub(self.last);
        self.last = seen.activity.time;
        if seen.connected {
            self.served += passed;
        }
        for (name, stand) in &seen.stands {
            if let Stand::Refused(why) = stand {
                return Verdict::Breach(format!("pipeline {name} is refused: {why}"));
            }
        }
        for (name, heard) in &seen.activity.sources {
            let Heard { messages, refused, reason } = heard;
            let (of, before) = (messages + refused, self.before.sources.get(name).cloned().unwrap_or_default());
            let limit = UNREAD + upper(before.refused, before.messages + before.refused, DOUBT);
            if *refused >= HEARD && lower(*refused, of) > limit {
                let why = format!("{refused} of the {of} messages of source {name} could not be read: {reason}");
                return Verdict::Breach(why);
            }
        }
        let rules = Rules::default();
        for (name, now) in &seen.activity.pipelines {
            let before = self.before.pipelines.get(name).copied().unwrap_or_default();
            let (last, looks) = self.missed.entry(name.clone()).or_default();
            *looks += u64::from(now.misses > *last);
            *last = now.misses;
            let over = |count, limit| lower(count, now.windows) > limit;
            let limit = rules.errors + upper(before.errors, before.windows, DOUBT);
            if now.errors >= FEWEST && over(now.errors, limit) {
                let (errors, windows) = (now.errors, now.windows);
                let why =
                    format!("{errors} of {windows} windows of pipeline {name} have no answer; {}", allowed(limit));
                return Verdict::Breach(why);
            }
            let limit = rules.misses + upper(before.misses, before.windows, DOUBT);
            if *looks >= FEWEST && over(now.misses, limit) {
                let (misses, windows) = (now.misses, now.windows);
                let why = format!(
                    "{misses} of {windows} windows of pipeline {name} were late or not run; {}",
                    allowed(limit)
                );
                return Verdict::Breach(why);
            }
        }
        if self.served < self.long {
            return Verdict::Going;
        }
        match self.silent(&seen.activity) {
            Silence::Breach(why) => Verdict::Breach(why),
            Silence::TooEarly => Verdict::Going,
            Silence::None if seen.stands.values().all(|stand| *stand == Stand::Serving) => Verdict::Passed,
            Silence::None => Verdict::Going,
        }
    }

    /// What should have done something by now, and did not.
    fn silent(&self, now: &Activity) -> Silence {
        let rate = |count: u64| count as f64 / self.before.time.as_secs_f64().max(f64::MIN_POSITIVE);
        // Of this process, and without the time in which nothing could come.
        let time = now.time.min(self.served).as_secs_f64();
        let all =
            |heard: &BTreeMap<String, Heard>| heard.values().map(|heard| heard.messages + heard.refused).sum::<u64>();
        let sources =
            now.sources.iter().filter(|(_, heard)| heard.messages + heard.refused == 0).filter_map(|(name, _)| {
                let before = self.before.sources.get(name)?;
                Some((format!("source {name}"), "messages", rate(before.messages + before.refused)))
            });
        let pipelines = now.pipelines.iter().filter(|(_, now)| now.windows == 0).filter_map(|(name, _)| {
            Some((format!("pipeline {name}"), "windows", rate(self.before.pipelines.get(name)?.windows)))
        });
        let total = (all(&now.sources) == 0)
            .then(|| ("all sources together".to_owned(), "messages", rate(all(&self.before.sources))));
        let mut silence = Silence::None;
        for (what, of, rate) in sources.chain(pipelines).chain(total) {
            let expected = rate * time;
            if expected >= EXPECTED {
                let why = format!("{what} had no {of} in {time:.0} s, where {expected:.0} came in as long before");
                return Silence::Breach(why);
            }
            // After a restart: a trial in one piece would have told.
            if rate * self.long.as_secs_f64() >= EXPECTED {
                silence = Silence::TooEarly;
            }
        }
        silence
    }
}

/// Whether something is silent that should not be.
enum Silence {
    /// Nothing is.
    None,
    /// Something may be; this process has not run for long enough to tell.
    TooEarly,
    /// Something is.
    Breach(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn heard(messages: u64, refused: u64) -> Heard {
        Heard { messages, refused, reason: "broken_json".into() }
    }

    fn before() -> Activity {
        Activity {
            time: Duration::from_secs(1000),
            pipelines: BTreeMap::from([("scores".into(), Before { windows: 1000, errors: 0, misses: 10 })]),
            sources: BTreeMap::from([("spindle".into(), heard(1000, 0))]),
            brokers: BTreeSet::new(),
        }
    }

    fn judge() -> Judge {
        Judge::new(LONG, &ConfigurationTrial { before: before(), ..ConfigurationTrial::default() })
    }

    fn seen(seconds: u64) -> Seen {
        Seen {
            activity: Activity {
                time: Duration::from_secs(seconds),
                pipelines: BTreeMap::from([("scores".into(), Before { windows: seconds, errors: 0, misses: 0 })]),
                sources: BTreeMap::from([("spindle".into(), heard(seconds, 0))]),
                brokers: BTreeSet::new(),
            },
            stands: BTreeMap::from([("scores".into(), Stand::Serving)]),
            connected: true,
        }
    }

    fn breach(verdict: Verdict) -> String {
        match verdict {
            Verdict::Breach(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_under_which_all_goes_on_passes_after_its_time_and_not_before() {
        let mut judge = judge();
        assert_eq!(judge.look(&seen(599)), Verdict::Going);
        assert_eq!(judge.look(&seen(600)), Verdict::Passed);
    }

    #[test]
    fn time_without_brokers_does_not_count() {
        let mut judge = judge();
        let down = Seen { connected: false, ..seen(500) };
        assert_eq!(judge.look(&down), Verdict::Going);
        assert_eq!(judge.look(&seen(1099)), Verdict::Going);
        assert_eq!(judge.look(&seen(1100)), Verdict::Passed);
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let trial = ConfigurationTrial { served: Duration::from_secs(590), ..ConfigurationTrial::default() };
        let mut judge = Judge::new(LONG, &trial);
        assert_eq!(judge.look(&seen(9)), Verdict::Going);
        assert_eq!(judge.look(&seen(10)), Verdict::Passed);
    }

    #[test]
    fn a_refused_pipeline_is_a_breach_at_once_and_one_that_comes_only_delays() {
        let mut stands = seen(1);
        stands.stands.insert("scores".into(), Stand::Refused("0.4 + 0.9 > 1".into()));
        assert!(breach(judge().look(&stands)).contains("pipeline scores is refused: 0.4 + 0.9 > 1"));
        let mut coming = seen(700);
        coming.stands.insert("scores".into(), Stand::Coming);
        let mut judge = judge();
        assert_eq!(judge.look(&coming), Verdict::Going);
        assert_eq!(judge.look(&seen(701)), Verdict::Passed);
    }

    #[test]
    fn messages_that_cannot_be_read_are_a_breach() {
        let with = |messages, refused| {
            let mut seen = seen(10);
            seen.activity.sources.insert("spindle".into(), heard(messages, refused));
            judge().look(&seen)
        };
        assert_eq!(with(0, 31), Verdict::Going);
        assert_eq!(with(3200, 1600), Verdict::Going);
        assert!(breach(with(1, 3200)).starts_with("3200 of the 3201 messages"));
        let why = breach(with(0, 32));
        assert_eq!(why, "32 of the 32 messages of source spindle could not be read: broken_json");
        let mut judge = judge();
        judge.before.sources.insert("spindle".into(), heard(10, 1000));
        let mut seen = seen(10);
        seen.activity.sources.insert("spindle".into(), heard(1, 320));
        assert_eq!(judge.look(&seen), Verdict::Going, "it was as bad before");
    }

    #[test]
    fn errors_are_a_breach_and_one_hiccup_is_none() {
        let with = |windows, errors| {
            let mut seen = seen(10);
            seen.activity.pipelines.insert("scores".into(), Before { windows, errors, misses: 0 });
            judge().look(&seen)
        };
        assert_eq!(with(100, 2), Verdict::Going);
        assert!(breach(with(100, 20)).contains("20 of 100 windows of pipeline scores have no answer"));
    }

    #[test]
    fn misses_count_when_they_are_seen_again_and_again_and_are_more_than_before() {
        let with = |each: u64| {
            let mut judge = judge();
            let looks = (1..=4).map(|look| {
                let mut seen = seen(look * 5);
                let figures = Before { windows: look * 100, errors: 0, misses: look * each };
                seen.activity.pipelines.insert("scores".into(), figures);
                judge.look(&seen)
            });
            looks.collect::<Vec<_>>()
        };
        assert!(with(1).iter().all(|verdict| *verdict == Verdict::Going), "as before");
        let verdicts = with(50);
        assert_eq!(verdicts[..2], [Verdict::Going, Verdict::Going]);
        assert!(breach(verdicts[2].clone()).contains("150 of 300 windows of pipeline scores were late or not run"));
    }

    #[test]
    fn silence_is_a_breach_only_where_much_was_expected() {
        let mut silent = seen(600);
        silent.activity.sources.insert("spindle".into(), Heard::default());
        silent.activity.pipelines.insert("scores".into(), Before::default());
        let why = breach(judge().look(&silent));
        assert_eq!(why, "source spindle had no messages in 600 s, where 600 came in as long before");
        let mut judge = judge();
        judge.before.sources.insert("spindle".into(), heard(50, 0));
        judge.before.pipelines.insert("scores".into(), Before { windows: 50, errors: 0, misses: 0 });
        assert_eq!(judge.look(&silent), Verdict::Passed, "30 expected is too little to say");
        silent.activity.sources.insert("other".into(), Heard::default());
        assert_eq!(judge.look(&silent), Verdict::Passed, "a source that was not there before");
    }

    #[test]
    fn another_name_does_not_hide_that_nothing_comes_any_more() {
        let mut renamed = seen(600);
        renamed.activity.sources = BTreeMap::from([("axle".into(), Heard::default())]);
        renamed.activity.pipelines = BTreeMap::from([("axle".into(), Before::default())]);
        let why = breach(judge().look(&renamed));
        assert_eq!(why, "all sources together had no messages in 600 s, where 600 came in as long before");
    }

    #[test]
    fn silence_after_a_restart_passes_only_when_there_was_time_to_tell() {
        let trial =
            ConfigurationTrial { before: before(), served: Duration::from_secs(595), ..ConfigurationTrial::default() };
        let mut judge = Judge::new(LONG, &trial);
        let silent = |seconds| {
            let mut seen = seen(seconds);
            seen.activity.sources.insert("spindle".into(), Heard::default());
            seen
        };
        assert_eq!(judge.look(&silent(10)), Verdict::Going);
        assert!(breach(judge.look(&silent(40))).contains("source spindle had no messages in 40 s"));
    }
}
