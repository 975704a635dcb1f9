//! The judge of a version on trial.
//!
//! A new version is proved before it serves, but golden vectors are not the plant. So it is on trial for a while: it
//! serves, and the version before it may run in shadow on the same windows ([`Mode::Trial`]); or, where that is asked
//! for, the other way round, and it has to earn its place ([`Mode::Shadow`]). Both are judged alike.
//!
//! Pure: observations come in with a time, a [`Verdict`] comes out, and [`Progress`] is what a power cut must not take.
//!
//! # What is a breach
//! A share is judged by the bounds of its Wilson score interval (Wilson 1927) three standard deviations wide, so that it
//! is a breach when few windows say so clearly, or many say so a little, and never because of one hiccup.
//!
//! | what | breach |
//! |---|---|
//! | errors (no answer, or none that is finite) | three at least, and surely a larger share than the other version gave before, or gives on the same windows, by more than [`Rules::errors`] |
//! | misses (late, expired, replaced, rejected) | the same with [`Rules::misses`], in three different seconds at least: one stall makes many windows late at once. A system that was late before is not the new version's fault |
//! | time of a session | surely more than one in a hundred longer than [`Rules::p99`], in three different seconds at least |
//! | disagreement | 32 windows compared at least, and the share that agrees surely below [`Rules::agreement`] |
//! | one class only | 32 windows compared at least, all of one class, of which the other version put eight or more elsewhere |
//! | collapse | 32 windows whose features changed by more than the [golden noise](golden_noise), all with bit-identical raw outputs, while the other version, where it was heard, did not stand still as well |
//!
//! At the end of the time and the windows that are asked for, each share must be within its limit as counted. Where one is
//! not, though not surely beyond it, the trial goes on, up to twice as long; then that is the breach. So a trial ends
//! wherever windows come. Where the other version runs beside it and fewer than 32 windows were compared, it goes on up to
//! twice as long as well; then it passes without, which whoever tells of it should say ([`Progress::is_compared`]).
//!
//! Two versions **agree** on a window when they name the same class, or stand on the same side of their thresholds; where
//! there are none, when they differ by no more than the other version's values spread around their means, or by a
//! twentieth of their size where they hardly move at all.

mod configuration;

use std::collections::BTreeMap;
use std::time::Duration;

use limpet_engine::TensorSpec;
use limpet_wire::result::Verdict as Answer;
use serde::{Deserialize, Serialize};

use crate::decision::Decider;
use crate::golden::{Golden, Tensor};
use crate::manifest::InputKind;
use crate::package::Package;

pub use configuration::{Activity, ConfigurationTrial, Heard, Judge, STARTS_MAX, Seen, Stand};

/// Standard deviations of a bound that a verdict rests on. It is asked again at every window, and so has to be wide.
const SURE: f64 = 3.0;
/// Standard deviations by which the version before is given the benefit of the doubt: little is known of it if it served
/// for few windows.
const DOUBT: f64 = 1.0;
/// Fewest errors, and fewest seconds with misses, that can be a breach.
const FEWEST: u64 = 3;
/// Fewest windows that say anything of agreement, and that make a collapse.
const WINDOWS: u64 = 32;
/// Windows of other classes that the other version must have seen before "one class only" means anything: a stray
/// answer now and then is what a better version would not give.
const ELSEWHERE: u64 = 8;
/// Share of windows that may take longer than a 99th percentile.
const SLOW: f64 = 0.01;
/// Time from one window to the next counts up to here: silence proves nothing.
const SILENCE: Duration = Duration::from_secs(600);
/// Classes that are told apart by name; more of them are no collapse.
const CLASSES: usize = 64;
/// Golden vectors that are looked at for their noise: as many as a package should have.
const VECTORS: usize = 64;

/// What a version has to do to stay, or to be promoted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Windows that it must see; in shadow, that must be compared. By default 1,000: enough to tell 1 % from 3 %.
    pub windows: u64,
    /// How long it must run, in which windows come. By default ten minutes, which a leak or a warm-up does not outlast.
    pub time: Duration,
    /// Smallest share of compared windows on which both versions must agree. By default 0.9: a version that answers
    /// one window in ten otherwise than what was trusted so far is for a person to look at.
    pub agreement: f64,
    /// Share of errors above what the version before gave that is allowed. By default 0.01.
    pub errors: f64,
    /// Share of misses above those of the version before that is allowed. By default 0.01.
    pub misses: f64,
    /// What 99 of 100 sessions must not take longer than, if that is judged. None by default.
    pub p99: Option<Duration>,
    /// Whether the other version runs on the same windows, so that a comparison can be waited for. By default not.
    pub beside: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let time = Duration::from_secs(600);
        Self { windows: 1000, time, agreement: 0.9, errors: 0.01, misses: 0.01, p99: None, beside: false }
    }
}

/// Which version serves meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The one on trial; a breach takes it back.
    #[default]
    Trial,
    /// The one before; a breach means that it stays.
    Shadow,
}

/// What the version before did until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// Windows that were completed.
    pub windows: u64,
    /// Those of them without an answer.
    pub errors: u64,
    /// Those that were late, or not run at all.
    pub misses: u64,
}

/// Faults, and the different seconds in which they fell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// How many.
    pub count: u64,
    /// In how many different seconds.
    pub seconds: u64,
}

/// How far a trial is: what a restart goes on with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Digest of the package on trial, in hex: what another version did is nothing that this one gets credit for.
    pub package: String,
    /// Which version serves.
    pub mode: Mode,
    /// What the version before did up to the trial.
    pub before: Before,
    /// Windows on which both versions were heard…
    pub pairs: u64,
    /// …and those on which the other one gave no answer.
    pub other_errors: u64,
    /// Windows of the version on trial that came to an end.
    pub windows: u64,
    /// Those of them that its session worked out.
    pub results: u64,
    /// Time in which windows came.
    pub served: Duration,
    /// Windows without an answer.
    pub errors: u64,
    /// Windows that were late, or not run at all.
    pub misses: Faults,
    /// Sessions that took longer than they may.
    pub slow: Faults,
    /// Windows on which both versions gave an answer that can be compared…
    pub compared: u64,
    /// …and on which they agreed.
    pub agreed: u64,
    /// How often it named which class on the compared windows…
    pub classes: BTreeMap<String, u64>,
    /// …and how often the other version did.
    pub other_classes: BTreeMap<String, u64>,
}

impl Progress {
    /// A trial that begins, of the package with this digest in hex.
    pub fn new(package: String, mode: Mode, before: Before) -> Self {
        Self { package, mode, before, ..Self::default() }
    }

    /// Share of the compared windows on which both versions agree, if any were compared.
    pub fn agreement(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.agreed as f64 / self.compared as f64)
    }

    /// Whether so many windows were compared that they say something of agreement.
    pub fn is_compared(&self) -> bool {
        self.compared >= WINDOWS
    }
}

/// Something that was seen.
#[derive(Debug, Clone, Copy)]
pub enum Observation<'a> {
    /// The version on trial worked a window out.
    Result {
        /// Whether that was after its deadline.
        late: bool,
        /// How long the session took.
        compute: Duration,
        /// Hash of its raw outputs.
        output: u64,
        /// Whether the window's features changed, since those of its stream changed last, by more than the
        /// [golden noise](golden_noise).
        varied: bool,
    },
    /// It gave no answer, or none that is finite: why.
    Error(&'a str),
    /// One of its windows was not run: expired, replaced or rejected.
    Missed,
    /// Both versions have been heard on the same window.
    Pair {
        /// What the version on trial said; none if that was an error, which was seen for itself.
        own: Option<&'a Answer>,
        /// What the other one said; none if that was an error.
        other: Option<&'a Answer>,
        /// Hash of the other one's raw outputs.
        other_output: u64,
    },
}

/// What the judge says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Going,
    /// It stays; or, in shadow, is promoted.
    Passed,
    /// It goes; or, in shadow, is not promoted: why, as a sentence about "it".
    Breach(String),
}

/// A trial under way.
#[derive(Debug)]
pub struct Trial {
    rules: Rules,
    progress: Progress,
    verdict: Verdict,
    last: Option<Duration>,
    /// Seconds of the last miss and the last slow session.
    missed: Option<u64>,
    slowed: Option<u64>,
    last_error: String,
    still: Still,
    spread: Spread,
}

/// Windows in a row with the same raw outputs.
#[derive(Debug, Default)]
struct Still {
    output: Option<u64>,
    /// How many of them had features that changed.
    varied: u64,
    /// The other version's outputs meanwhile: the first, how many, and whether there was a different one.
    other: Option<u64>,
    others: u64,
    other_moved: bool,
}

impl Still {
    fn heard_other(&mut self, output: u64) {
        self.others += 1;
        self.other_moved |= *self.other.get_or_insert(output) != output;
    }

    fn is_collapse(&self) -> bool {
        // Two versions that both stand still have good reason: a healthy machine, and classes far beyond doubt.
        let excused = self.others >= 2 && !self.other_moved;
        self.varied >= WINDOWS && !excused
    }
}

/// How the other version's values spread, where there are no classes.
#[derive(Debug, Default)]
struct Spread {
    seen: u64,
    mean: Vec<f64>,
    /// Mean absolute difference from the mean, and mean size.
    deviation: f64,
    size: f64,
}

impl Spread {
    /// Whether `own` is close to `other`; none while too little is known of how those spread.
    fn is_close(&mut self, own: &[f32], other: &[f32]) -> Option<bool> {
        let count = other.len().max(1) as f64;
        let known = self.seen >= WINDOWS;
        if self.mean.len() != other.len() {
            *self = Self { mean: vec![0.0; other.len()], ..Self::default() };
        }
        self.seen += 1;
        let (mut apart, mut from_mean, mut size) = (0.0, 0.0, 0.0);
        for ((mean, own), other) in self.mean.iter_mut().zip(own).zip(other) {
            let (own, other) = (f64::from(*own), f64::from(*other));
            apart += (own - other).abs() / count;
            size += other.abs() / count;
            *mean += (other - *mean) / self.seen as f64;
            from_mean += (other - *mean).abs() / count;
        }
        self.deviation += (from_mean - self.deviation) / self.seen as f64;
        self.size += (size - self.size) / self.seen as f64;
        known.then(|| apart <= self.deviation.max(self.size / 20.0))
    }
}

impl Trial {
    /// A trial that begins, or goes on.
    pub fn new(rules: Rules, progress: Progress) -> Self {
        let mut trial = Self {
            rules,
            progress,
            verdict: Verdict::Going,
            last: None,
            missed: None,
            slowed: None,
            last_error: String::new(),
            still: Still::default(),
            spread: Spread::default(),
        };
        if trial.progress.windows > 0 {
            trial.verdict = trial.judge();
        }
        trial
    }

    /// What it goes by.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What it says so far.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Takes in what was seen `at` a time, counted from whatever moment. A verdict, once there, stays.
    pub fn observe(&mut self, observation: &Observation<'_>, at: Duration) -> &Verdict {
        if self.verdict != Verdict::Going {
            return &self.verdict;
        }
        let progress = &mut self.progress;
        if let Some(last) = self.last {
            progress.served += at.saturating_sub(last).min(SILENCE);
        }
        self.last = Some(self.last.map_or(at, |last| last.max(at)));
        match *observation {
            Observation::Result { late, compute, output, varied } => {
                progress.windows += 1;
                progress.results += 1;
                if late {
                    progress.misses.count(at, &mut self.missed);
                }
                if self.rules.p99.is_some_and(|longest| compute > longest) {
                    progress.slow.count(at, &mut self.slowed);
                }
                if self.still.output == Some(output) {
                    self.still.varied += u64::from(varied);
                } else {
                    self.still = Still { output: Some(output), varied: 1, ..Still::default() };
                }
            }
            Observation::Error(why) => {
                progress.windows += 1;
                progress.errors += 1;
                why.clone_into(&mut self.last_error);
            }
            Observation::Missed => {
                progress.windows += 1;
                progress.misses.count(at, &mut self.missed);
            }
            Observation::Pair { own, other, other_output } => {
                progress.pairs += 1;
                progress.other_errors += u64::from(other.is_none());
                if let (Some(own), Some(other)) = (own, other) {
                    self.still.heard_other(other_output);
                    if let Err(why) = self.compare(own, other)
                        && self.progress.mode == Mode::Shadow
                    {
                        // It could never be promoted, and whoever waits for that should know.
                        self.verdict = Verdict::Breach(why);
                        return &self.verdict;
                    }
                }
            }
        }
        self.verdict = self.judge();
        &self.verdict
    }

    /// Compares two answers.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn compare(&mut self, own: &Answer, other: &Answer) -> Result<(), String> {
        let agree = match (class_of(own), class_of(other)) {
            (Some(one), Some(two)) => {
                count_class(&mut self.progress.classes, one);
                count_class(&mut self.progress.other_classes, two);
                Some(one == two)
            }
            _ => match (own, other) {
                (Answer::Anomaly { score: one, .. }, Answer::Anomaly { score: two, .. }) => {
                    self.spread.is_close(&[*one], &[*two])
                }
                (Answer::Regression { values: one }, Answer::Regression { values: two }) if one.len() == two.len() => {
                    self.spread.is_close(one, two)
                }
                _ => {
                    return Err("its answers are of another kind or number than those of the version that serves, so \
                                the two cannot be compared; put it in its place without shadow"
                        .to_owned());
                }
            },
        };
        if let Some(agree) = agree {
            self.progress.compared += 1;
            self.progress.agreed += u64::from(agree);
        }
        Ok(())
    }

    fn judge(&self) -> Verdict {
        let Self { rules, progress, .. } = self;
        let Progress { windows, before, errors, misses, slow, results, compared, agreed, .. } = progress;
        // What comes from the input comes to both versions, and did so before or does on the same windows.
        let other_errors = upper(progress.other_errors, progress.pairs, DOUBT);
        let error_limit = rules.errors + upper(before.errors, before.windows, DOUBT).max(other_errors);
        let miss_limit = rules.misses + upper(before.misses, before.windows, DOUBT);
        let over = |count: u64, of: u64, limit: f64| lower(count, of) > limit;
        let no_answer = || {
            let why =
                if self.last_error.is_empty() { String::new() } else { format!(" (the last: {})", self.last_error) };
            format!("{errors} of its {windows} windows have no answer{why}; {}", allowed(error_limit))
        };
        let too_late = || {
            let count = misses.count;
            format!("{count} of its {windows} windows were late or not run; {}", allowed(miss_limit))
        };
        let too_slow = || {
            let longest = rules.p99.unwrap_or_default();
            format!("{} of its {results} sessions took longer than {longest:?}; {}", slow.count, allowed(SLOW))
        };
        let disagrees = || {
            format!(
                "it agrees with the other version on {agreed} of {compared} windows; at least {} must",
                percent(rules.agreement)
            )
        };
        if *errors >= FEWEST && over(*errors, *windows, error_limit) {
            return Verdict::Breach(no_answer());
        }
        if misses.seconds >= FEWEST && over(misses.count, *windows, miss_limit) {
            return Verdict::Breach(too_late());
        }
        if slow.seconds >= FEWEST && over(slow.count, *results, SLOW) {
            return Verdict::Breach(too_slow());
        }
        if self.still.is_collapse() {
            return Verdict::Breach(format!(
                "its outputs have not changed by a bit over {} windows whose features did",
                self.still.varied
            ));
        }
        if progress.is_compared() {
            if upper(*agreed, *compared, SURE) < rules.agreement {
                return Verdict::Breach(disagrees());
            }
            if let Some(why) = one_class(progress) {
                return Verdict::Breach(why);
            }
        }
        let seen = if progress.mode == Mode::Shadow { *compared } else { *windows };
        // The first window of all, at least.
        if seen < rules.windows.max(1) || progress.served < rules.time {
            return Verdict::Going;
        }
        let within = |count: u64, of: u64, limit: f64| count as f64 <= limit * of as f64;
        let long = seen >= rules.windows.saturating_mul(2) && progress.served >= rules.time.saturating_mul(2);
        let judged = progress.mode == Mode::Shadow || progress.is_compared();
        let beyond = if !within(*errors, *windows, error_limit) {
            no_answer()
        } else if !within(misses.count, *windows, miss_limit) {
            too_late()
        } else if !within(slow.count, *results, SLOW) {
            too_slow()
        } else if judged && (*agreed as f64) < rules.agreement * *compared as f64 {
            disagrees()
        } else if !judged && rules.beside && !long {
            // Too few windows met so far. Whether the two agree is worth as much time again, and no more.
            return Verdict::Going;
        } else {
            return Verdict::Passed;
        };
        if long { Verdict::Breach(format!("{beyond}, after twice the trial's length")) } else { Verdict::Going }
    }
}

impl Faults {
    fn count(&mut self, at: Duration, last: &mut Option<u64>) {
        self.count += 1;
        if last.replace(at.as_secs()) != Some(at.as_secs()) {
            self.seconds += 1;
        }
    }
}

/// The class that an answer names: a label, or a side of the threshold.
fn class_of(answer: &Answer) -> Option<&str> {
    match answer {
        Answer::Class { .. } => answer.label(),
        Answer::Anomaly { score, threshold: Some(threshold) } => {
            Some(if score > threshold { "above the threshold" } else { "below the threshold" })
        }
        Answer::Anomaly { .. } | Answer::Regression { .. } => None,
    }
}

fn count_class(classes: &mut BTreeMap<String, u64>, class: &str) {
    if let Some(count) = classes.get_mut(class) {
        *count += 1;
    } else if classes.len() < CLASSES {
        classes.insert(class.to_owned(), 1);
    }
}

/// Whether one class is all that there is, where the other version gave two or more.
fn one_class(progress: &Progress) -> Option<String> {
    if progress.classes.len() != 1 {
        return None;
    }
    let (class, windows) = progress.classes.first_key_value()?;
    let most = progress.other_classes.values().max()?;
    let elsewhere = progress.other_classes.values().sum::<u64>() - most;
    (elsewhere >= ELSEWHERE).then(|| {
        let others = progress.other_classes.len();
        format!(
            "it calls all {windows} compared windows \"{class}\", where the other version tells {others} classes apart"
        )
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn allowed(limit: f64) -> String {
    format!("at most {} may, by the rules and what the version before did", percent(limit))
}

/// The smallest share that `count` of `of` can surely stand for.
fn lower(count: u64, of: u64) -> f64 {
    wilson(count, of, -SURE)
}

/// The largest share that `count` of `of` can stand for, within so many standard deviations; 0 if nothing is known.
fn upper(count: u64, of: u64, deviations: f64) -> f64 {
    if of == 0 { 0.0 } else { wilson(count, of, deviations) }
}

/// One bound of the Wilson score interval (Wilson 1927, "Probable inference, the law of succession, and statistical
/// inference").
fn wilson(count: u64, of: u64, deviations: f64) -> f64 {
    if of == 0 {
        return 0.0;
    }
    // A count that leads its total for a moment, since both come from several threads, is no more than all.
    let (share, of, squared) = ((count as f64 / of as f64).min(1.0), of as f64, deviations * deviations);
    let half = deviations * (share * (1.0 - share) / of + squared / (4.0 * of * of)).sqrt();
    (share + squared / (2.0 * of) + half) / (1.0 + squared / of)
}

/// How far apart the features of two windows are: the mean absolute difference of their elements.
pub fn distance(one: &[f32], other: &[f32]) -> f64 {
    let sum: f64 = one.iter().zip(other).map(|(one, other)| f64::from((one - other).abs())).sum();
    sum / one.len().max(1) as f64
}

/// **Golden noise**: how far the features of a package may move, by its own golden vectors, while its outputs may rightly
/// stay the same to a bit. It is the largest of
/// - the largest [`distance`] of two golden vectors with bit-identical outputs;
/// - the smallest distance of two with the same answer (the same class, the same side of the threshold; of any two where
///   there is neither): of windows closer than that the vectors say nothing;
/// - what the proof allows features to be off (`features_nmae`);
/// - one step of a quantized input, which the graph cannot see.
///
/// It is infinite where the golden vectors do not tell; then nothing is taken for a collapse.
///
/// The first of these is what keeps a healthy machine from being taken for a stuck model, since quantized classifiers
/// saturate. Measured on this repository's motor-health, int8: 9 of its 24 pairs of one class have bit-identical outputs,
/// and they are 0.045 to 0.123 apart, no less than pairs of two classes are (0.004 to 0.148). A package whose outputs
/// never repeat, such as most with floats, gets a small noise, and a stuck graph is found at once; one that saturates gets
/// a large one, and whether it tells classes apart is for the version in shadow to show.
///
/// `variant` is a file of the package, `input` and `outputs` are its graph's for one window.
pub fn golden_noise(package: &Package, variant: &str, input: &TensorSpec, outputs: &[TensorSpec]) -> f64 {
    let (file, bytes) = package.golden(variant);
    // It was read by the proof, so what is missing here is what a proof can do without.
    let Ok(golden) = Golden::read(&file, bytes) else { return f64::INFINITY };
    let Some(features) = golden_features(package, &golden, input) else { return f64::INFINITY };
    let Some(answers) = golden_answers(package, &golden, outputs, &features) else { return f64::INFINITY };
    let vectors: Vec<usize> = (0..golden.vectors()).step_by(golden.vectors().div_ceil(VECTORS).max(1)).collect();
    let each = features.len() / golden.vectors();
    let of = |vector: usize| &features[vector * each..][..each];
    let limits = package.manifest().variants.iter().find(|known| known.file == variant).map(|known| known.limits);
    let tolerance = limits.map_or(0.0, |limits| limits.features_nmae) * spread(&vectors, of, each);
    let step = input.quantization.map_or(0.0, |quantization| f64::from(quantization.scale));
    let (mut nearest, mut farthest) = (f64::INFINITY, tolerance.max(step));
    for (index, one) in vectors.iter().enumerate() {
        for other in &vectors[index + 1..] {
            let apart = distance(of(*one), of(*other));
            if answers[*one].class == answers[*other].class {
                nearest = nearest.min(apart);
            }
            if answers[*one].bits == answers[*other].bits {
                farthest = farthest.max(apart);
            }
        }
    }
    nearest.max(farthest)
}

/// What a golden vector says.
struct Expected {
    class: Option<String>,
    bits: Vec<u32>,
}

/// Mean absolute difference of features from their mean over the vectors.
fn spread<'f>(vectors: &[usize], of: impl Fn(usize) -> &'f [f32], each: usize) -> f64 {
    let mut mean = vec![0.0f32; each];
    for vector in vectors {
        mean.iter_mut().zip(of(*vector)).for_each(|(mean, value)| *mean += value / vectors.len() as f32);
    }
    vectors.iter().map(|vector| distance(of(*vector), &mean)).sum::<f64>() / vectors.len().max(1) as f64
}

fn real(tensor: &Tensor, spec: &TensorSpec) -> Option<Vec<f32>> {
    let same = tensor.values.element() == spec.element;
    tensor.values.real(spec.quantization.filter(|_| same).or(tensor.quantization))
}

/// What goes into the graph for each golden vector.
fn golden_features(package: &Package, golden: &Golden, input: &TensorSpec) -> Option<Vec<f32>> {
    let name = Some(input.name.as_str());
    if let Some(recorded) = golden.find("features", name, true).or_else(|| golden.find("input", name, true)) {
        return real(recorded, input).filter(|features| features.len() == golden.vectors() * input.elements());
    }
    let InputKind::Series(series) = &package.manifest().inputs.first()?.kind else { return None };
    let samples = golden.find("samples", name, true)?;
    let (values, mut stream) = (samples.values.real(samples.quantization)?, series.front_end().ok()?.stream());
    let mut features = Vec::new();
    for window in values.chunks_exact(samples.per_vector().max(1)) {
        stream.reset(0);
        stream.push(window, |window| features.extend_from_slice(window.features)).ok()?;
    }
    Some(features).filter(|features| features.len() == golden.vectors() * input.elements())
}

/// What each golden vector says, if that can be told.
fn golden_answers(
    package: &Package,
    golden: &Golden,
    outputs: &[TensorSpec],
    features: &[f32],
) -> Option<Vec<Expected>> {
    let each = features.len() / golden.vectors();
    let decider = Decider::new(package.manifest(), package.labels(), outputs, each).ok()?;
    let spec = &outputs[decider.output()];
    let output = real(golden.find("output", Some(&spec.name), outputs.len() == 1)?, spec)?;
    if output.len() != golden.vectors() * decider.elements() || each == 0 {
        return None;
    }
    let expected = |(output, features): (&[f32], &[f32])| {
        let answer = decider.decide(output, features).ok()?;
        let bits = output.iter().map(|value| value.to_bits()).collect();
        Some(Expected { class: class_of(&answer).map(str::to_owned), bits })
    };
    output.chunks_exact(decider.elements()).zip(features.chunks_exact(each)).map(expected).collect()
}

#[cfg(test)]
mod tests;
