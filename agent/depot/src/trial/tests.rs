use std::path::Path;
use std::sync::Arc;

use limpet_engine::LoadOptions;
use proptest::prelude::*;

use super::*;

const TENTH: Duration = Duration::from_millis(100);

/// A trial that is fed windows, one each tenth of a second.
struct Bench {
    trial: Trial,
    at: Duration,
}

fn rules(windows: u64) -> Rules {
    Rules { windows, time: Duration::ZERO, ..Rules::default() }
}

impl Bench {
    fn new(rules: Rules, mode: Mode, before: Before) -> Self {
        Self { trial: Trial::new(rules, Progress::new("d1".into(), mode, before)), at: Duration::from_secs(1000) }
    }

    fn see(&mut self, observation: &Observation<'_>) -> Verdict {
        self.at += TENTH;
        self.trial.observe(observation, self.at).clone()
    }

    fn result(&mut self, output: u64, varied: bool) -> Verdict {
        self.see(&Observation::Result { late: false, compute: TENTH, output, varied })
    }

    fn late(&mut self, late: bool) -> Verdict {
        let output = self.trial.progress().windows;
        self.see(&Observation::Result { late, compute: TENTH, output, varied: true })
    }

    fn pair(&mut self, own: &Answer, other: &Answer, other_output: u64) -> Verdict {
        self.see(&Observation::Pair { own: Some(own), other: Some(other), other_output })
    }
}

fn class(best: usize) -> Answer {
    let labels: Arc<[String]> = ["healthy", "bearing", "imbalance"].map(String::from).into();
    Answer::Class { best, labels, scores: vec![0.0; 3] }
}

#[track_caller]
fn is_breach(verdict: &Verdict, part: &str) {
    match verdict {
        Verdict::Breach(why) => assert!(why.contains(part), "`{part}` is not in: {why}"),
        other => panic!("{other:?}"),
    }
}

const GOOD: Before = Before { windows: 10_000, errors: 0, misses: 20 };

#[test]
fn a_version_that_does_as_well_passes_after_windows_and_time() {
    let rules = Rules { time: Duration::from_secs(20), ..rules(100) };
    let mut bench = Bench::new(rules, Mode::Trial, GOOD);
    let windows = (1..).find(|_| bench.late(false) != Verdict::Going).unwrap();
    // The first window has no time before it.
    assert_eq!((windows, bench.trial.verdict()), (201, &Verdict::Passed));
    let mut bench = Bench::new(Rules { time: Duration::from_secs(5), ..rules }, Mode::Trial, GOOD);
    let windows = (1..).find(|_| bench.late(false) != Verdict::Going).unwrap();
    assert_eq!((windows, bench.trial.verdict()), (100, &Verdict::Passed));
    assert_eq!(bench.late(true), Verdict::Passed, "a verdict stays");
}

#[test]
fn a_version_that_gives_no_answers_goes_at_once_and_one_error_is_none() {
    let mut bench = Bench::new(rules(100), Mode::Trial, GOOD);
    assert_eq!(bench.see(&Observation::Error("boom")), Verdict::Going);
    assert_eq!(bench.see(&Observation::Error("boom")), Verdict::Going);
    is_breach(&bench.see(&Observation::Error("boom")), "3 of its 3 windows have no answer (the last: boom)");
    let mut bench = Bench::new(rules(200), Mode::Trial, GOOD);
    bench.see(&Observation::Error("boom"));
    assert_eq!((0..199).map(|_| bench.late(false)).find(|verdict| *verdict != Verdict::Going), Some(Verdict::Passed));
}

#[test]
fn errors_that_the_other_version_gives_too_are_the_inputs() {
    let mut bench = Bench::new(rules(1000), Mode::Trial, GOOD);
    let ended = (0..).find_map(|window| {
        if window % 25 == 0 {
            bench.see(&Observation::Error("the input is not finite"));
            bench.see(&Observation::Pair { own: None, other: None, other_output: 0 });
        } else {
            bench.late(false);
            bench.pair(&class(window % 2), &class(window % 2), window as u64);
        }
        Some(bench.trial.verdict().clone()).filter(|verdict| *verdict != Verdict::Going)
    });
    assert_eq!(ended, Some(Verdict::Passed));
}

#[test]
fn a_system_that_was_late_before_does_not_blame_the_new_version() {
    let late_before = Before { windows: 400, errors: 0, misses: 120 };
    let mut bench = Bench::new(rules(500), Mode::Trial, late_before);
    let ended = (0..).map(|window| bench.late(window % 10 < 3)).find(|verdict| *verdict != Verdict::Going);
    assert_eq!(ended, Some(Verdict::Passed));
    // The same of a version that follows one that was on time.
    let mut bench = Bench::new(rules(500), Mode::Trial, GOOD);
    let windows = (0..).find(|window| bench.late(window % 10 < 3) != Verdict::Going).unwrap();
    is_breach(bench.trial.verdict(), "were late or not run");
    assert!(windows < 40, "{windows}");
}

#[test]
fn one_stall_is_no_breach_however_many_windows_it_makes_late() {
    let mut bench = Bench::new(rules(10_000), Mode::Trial, GOOD);
    for _ in 0..50 {
        bench.trial.observe(&Observation::Missed, bench.at);
    }
    assert_eq!(bench.trial.verdict(), &Verdict::Going);
    let ended = (0..).map(|_| bench.late(false)).find(|verdict| *verdict != Verdict::Going);
    assert_eq!(ended, Some(Verdict::Passed));
    let mut bench = Bench::new(rules(10_000), Mode::Trial, GOOD);
    let windows = (0..).find(|_| bench.see(&Observation::Missed) != Verdict::Going).unwrap();
    assert!(windows < 30, "where it goes on, it is: {windows}");
}

#[test]
fn sessions_that_take_too_long_are_a_breach_when_more_than_one_in_a_hundred_do() {
    let limited = Rules { p99: Some(TENTH), ..rules(1000) };
    let run = |every: u64| {
        let mut bench = Bench::new(limited, Mode::Shadow, GOOD);
        (0..).find_map(|window| {
            let compute = if window % every == every - 1 { 2 * TENTH } else { TENTH };
            bench.see(&Observation::Result { late: false, compute, output: window, varied: true });
            let verdict = bench.pair(&class(0), &class(0), 0);
            Some(verdict).filter(|verdict| *verdict != Verdict::Going)
        })
    };
    assert_eq!(run(150), Some(Verdict::Passed));
    is_breach(&run(10).unwrap(), "took longer than 100ms");
    // Not surely too many, but too many all the same.
    is_breach(&run(80).unwrap(), "after twice the trial's length");
}

#[test]
fn versions_that_differ_do_not_pass_and_shadow_needs_comparisons() {
    for mode in [Mode::Trial, Mode::Shadow] {
        let mut bench = Bench::new(rules(1000), mode, GOOD);
        let windows = (0..).find(|window| {
            bench.late(false);
            // One in four, and never one class alone.
            bench.pair(&class(*window % 2), &class((*window + usize::from(window % 4 == 0)) % 2), 0) != Verdict::Going
        });
        is_breach(bench.trial.verdict(), "it agrees with the other version on");
        assert!((32..300).contains(&windows.unwrap()), "{windows:?}");
    }
    let mut bench = Bench::new(rules(100), Mode::Shadow, GOOD);
    assert!((0..1000).all(|_| bench.late(false) == Verdict::Going), "nothing was compared");
}

#[test]
fn one_class_only_is_a_breach_where_the_other_version_gave_two() {
    // Agreement alone would let this pass: one window in fifteen.
    let mut bench = Bench::new(rules(1000), Mode::Trial, GOOD);
    let ended = (0..1000).find(|window| {
        bench.late(false);
        bench.pair(&class(0), &class(usize::from(window % 15 == 14)), *window) != Verdict::Going
    });
    is_breach(bench.trial.verdict(), "\"healthy\", where the other version tells 2 classes apart");
    assert_eq!(ended, Some(8 * 15 - 1));
    // A machine that is healthy for both.
    let mut bench = Bench::new(rules(1000), Mode::Trial, GOOD);
    let ended = (0..).find_map(|_| {
        bench.result(7, true);
        Some(bench.pair(&class(0), &class(0), 9)).filter(|verdict| *verdict != Verdict::Going)
    });
    assert_eq!(ended, Some(Verdict::Passed));
}

#[test]
fn scores_and_values_are_compared_by_how_far_they_spread() {
    let run = |off: f32, noise: f32, level: f32| {
        let mut bench = Bench::new(rules(500), Mode::Shadow, GOOD);
        (0..).find_map(|window| {
            bench.late(false);
            let other = level + noise * ((window * 7 % 11) as f32 / 5.0 - 1.0);
            let (own, other) = (vec![other + off, 1.0], vec![other, 1.0]);
            let (own, other) = (Answer::Regression { values: own }, Answer::Regression { values: other });
            Some(bench.pair(&own, &other, 0)).filter(|verdict| *verdict != Verdict::Going)
        })
    };
    assert_eq!(run(0.1, 1.0, 0.0), Some(Verdict::Passed));
    is_breach(&run(3.0, 1.0, 0.0).unwrap(), "it agrees");
    // What hardly moves is compared by its size.
    assert_eq!(run(0.2, 0.001, 10.0), Some(Verdict::Passed));
    is_breach(&run(2.0, 0.001, 10.0).unwrap(), "it agrees");
    let score = |score, threshold| Answer::Anomaly { score, threshold };
    let mut bench = Bench::new(rules(50), Mode::Shadow, GOOD);
    // On other scales, but on the same side of their thresholds.
    let ended = (0..).find_map(|window| {
        bench.late(false);
        let high = window % 5 == 0;
        let own = score(if high { 90.0 } else { 3.0 }, Some(10.0));
        let other = score(if high { 0.9 } else { 0.03 }, Some(0.5));
        Some(bench.pair(&own, &other, 0)).filter(|verdict| *verdict != Verdict::Going)
    });
    assert_eq!(ended, Some(Verdict::Passed));
}

#[test]
fn answers_of_another_kind_end_a_shadow_and_are_no_matter_in_a_trial() {
    let (own, other) = (Answer::Anomaly { score: 1.0, threshold: None }, class(0));
    let mut bench = Bench::new(rules(10), Mode::Shadow, GOOD);
    bench.late(false);
    is_breach(&bench.pair(&own, &other, 0), "cannot be compared");
    let mut bench = Bench::new(rules(10), Mode::Trial, GOOD);
    bench.late(false);
    assert_eq!(bench.pair(&own, &other, 0), Verdict::Going);
}

#[test]
fn silence_does_not_count_as_time() {
    let mut bench = Bench::new(Rules { time: Duration::from_secs(3600), ..rules(2) }, Mode::Trial, GOOD);
    bench.late(false);
    bench.at += Duration::from_secs(8 * 3600);
    assert_eq!(bench.late(false), Verdict::Going);
    assert_eq!(bench.trial.progress().served, SILENCE);
}

#[test]
fn progress_of_a_later_agent_is_read() {
    let text = r#"{"package":"ab","mode":"shadow","windows":3,"served":{"secs":2,"nanos":0},"later":1}"#;
    let progress: Progress = serde_json::from_str(text).unwrap();
    assert_eq!((progress.mode, progress.windows, progress.served.as_secs()), (Mode::Shadow, 3, 2));
}

#[derive(Debug, Clone)]
enum Event {
    Result(bool, u64, bool),
    Error,
    Missed,
    Pair(Option<usize>, Option<usize>),
}

fn event() -> impl Strategy<Value = Event> {
    let said = || proptest::option::weighted(0.98, 0usize..2);
    prop_oneof![
        40 => (proptest::bool::weighted(0.02), 0u64..4, any::<bool>()).prop_map(|(l, o, v)| Event::Result(l, o, v)),
        1 => Just(Event::Error),
        1 => Just(Event::Missed),
        20 => (said(), said(), proptest::bool::weighted(0.95))
            .prop_map(|(own, other, same)| Event::Pair(own, if same { own } else { other })),
    ]
}

proptest! {
    /// Whatever the windows do: one that stands still within the noise never collapses.
    #[test]
    fn a_healthy_machine_is_never_a_collapse(outputs in proptest::collection::vec(0u64..2, 1..50)) {
        let mut bench = Bench::new(rules(u64::MAX), Mode::Trial, GOOD);
        for output in outputs {
            for _ in 0..1000 {
                prop_assert_eq!(bench.result(output, false), Verdict::Going);
            }
        }
    }

    /// Features that change, some windows that do not, and never another output.
    #[test]
    fn a_stuck_model_is_found_within_32_windows_that_vary(still in proptest::collection::vec(0usize..5, 31)) {
        let mut bench = Bench::new(rules(u64::MAX), Mode::Trial, GOOD);
        bench.result(5, false);
        for (index, still) in still.iter().enumerate() {
            for _ in 0..*still {
                prop_assert_eq!(bench.result(5, false), Verdict::Going, "after {}", index);
            }
            bench.result(5, true);
        }
        is_breach(bench.trial.verdict(), "have not changed by a bit over 32 windows");
    }

    /// Where the other version stands still on the same windows, it is the input. Where it moves, it is not.
    #[test]
    fn a_collapse_is_excused_by_the_other_version_alone(moves in any::<bool>(), every in 1u64..8) {
        let mut bench = Bench::new(rules(u64::MAX), Mode::Trial, GOOD);
        for window in 0..200 {
            bench.result(5, true);
            if window % every == 0 {
                bench.pair(&class(0), &class(0), if moves { window } else { 3 });
            }
        }
        prop_assert_eq!(matches!(bench.trial.verdict(), Verdict::Breach(_)), moves);
    }

    /// A trial that is stopped and goes on with what was written down comes to the same verdict, at the same window,
    /// unless that was a collapse, which begins to count anew.
    #[test]
    fn a_trial_goes_on_where_it_was(
        events in proptest::collection::vec(event(), 1..400),
        stop in 0usize..400,
        windows in 10u64..200,
    ) {
        let run = |stop: Option<usize>| {
            let mut bench = Bench::new(rules(windows), Mode::Trial, Before { windows: 50, errors: 1, misses: 2 });
            for (index, event) in events.iter().enumerate() {
                if Some(index) == stop {
                    let text = serde_json::to_string(bench.trial.progress()).unwrap();
                    bench.trial = Trial::new(*bench.trial.rules(), serde_json::from_str(&text).unwrap());
                }
                let before = bench.trial.progress().windows;
                match event {
                    Event::Result(late, output, varied) => {
                        let output = output + 4 * (index as u64 % 20);
                        bench.see(&Observation::Result { late: *late, compute: TENTH, output, varied: *varied });
                    }
                    Event::Error => _ = bench.see(&Observation::Error("boom")),
                    Event::Missed => _ = bench.see(&Observation::Missed),
                    Event::Pair(own, other) => {
                        let (own, other) = (own.map(class), other.map(class));
                        bench.see(&Observation::Pair { own: own.as_ref(), other: other.as_ref(), other_output: 0 });
                    }
                }
                let progress = bench.trial.progress();
                prop_assert!(progress.windows - before <= 1);
                prop_assert!(progress.agreed <= progress.compared && progress.compared <= progress.pairs);
                prop_assert!(progress.misses.seconds <= progress.misses.count);
            }
            Ok((bench.trial.verdict() == &Verdict::Passed, bench.trial.progress().windows))
        };
        let (whole, stopped) = (run(None)?, run(Some(stop))?);
        // A second that a restart cuts in two may count twice.
        prop_assert_eq!(whole, stopped);
    }

    /// Windows that come always end a trial, whatever shares they have.
    #[test]
    fn every_trial_ends(late in 0u64..100, wrong in 0u64..100, failed in 0u64..100, windows in 1u64..300) {
        for mode in [Mode::Trial, Mode::Shadow] {
            let mut bench = Bench::new(rules(windows), mode, GOOD);
            let ended = (0..2 * windows.max(WINDOWS) + 2).any(|window| {
                let at = window * 37 % 100;
                if at < failed / 10 {
                    bench.see(&Observation::Error("boom"));
                    // In shadow, windows without an answer are not compared.
                    return bench.pair(&class(0), &class(0), window) != Verdict::Going;
                }
                bench.late(at < late / 10);
                bench.pair(&class((window % 3) as usize), &class(((window + u64::from(at < wrong)) % 3) as usize), window)
                    != Verdict::Going
            });
            prop_assert!(ended, "{:?}", bench.trial.progress());
        }
    }

    #[test]
    fn the_bounds_hold_the_share_between_them(count in 0u64..1000, more in 0u64..1000) {
        let of = count + more;
        let share = if of == 0 { 0.0 } else { count as f64 / of as f64 };
        let (low, high) = (lower(count, of), upper(count, of, SURE));
        prop_assert!(-1e-9 <= low && low <= share + 1e-9 && share <= high + 1e-9 && high <= 1.0 + 1e-9);
    }
}

/// The package of this repository saturates: no two windows that rightly have the same outputs are told from a stuck
/// model by their features. What moves farther than any of these is.
#[test]
fn golden_noise_covers_the_windows_whose_outputs_are_rightly_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/motor-health");
    let package = Package::open(&folder).unwrap();
    let mut saturating = 0;
    for variant in &package.manifest().variants {
        let engines = limpet_engine::engines();
        let opened = engines.iter().find_map(|engine| engine.open(variant.format, package.graph(&variant.file)).ok());
        let Some(session) = opened.and_then(|graph| graph.session(LoadOptions::default()).ok()) else { continue };
        let (input, outputs) = (&session.inputs()[0], session.outputs());
        let noise = golden_noise(&package, &variant.file, input, outputs);
        let (file, bytes) = package.golden(&variant.file);
        let golden = Golden::read(&file, bytes).unwrap();
        let features = golden_features(&package, &golden, input).unwrap();
        let answers = golden_answers(&package, &golden, outputs, &features).unwrap();
        let each = features.len() / golden.vectors();
        let (mut same, mut beyond) = (0, 0);
        for one in 0..golden.vectors() {
            for other in 0..one {
                let far = distance(&features[one * each..][..each], &features[other * each..][..each]);
                if answers[one].bits == answers[other].bits {
                    assert!(far <= noise, "{far} of {noise}");
                    same += 1;
                } else {
                    beyond += usize::from(far > noise);
                }
            }
        }
        assert!(noise.is_finite() && beyond > 0, "{}: noise {noise}, {beyond} beyond", variant.file);
        saturating += same;
    }
    assert!(saturating > 0, "int8 outputs saturate");
}

#[test]
fn a_version_that_was_not_compared_has_twice_the_time_for_that_where_the_other_runs_and_no_more() {
    let alone = rules(100);
    let beside = Rules { beside: true, ..alone };
    let ends = |rules: Rules, pairs_from: u64| {
        let mut bench = Bench::new(rules, Mode::Trial, GOOD);
        for window in 1.. {
            let mut verdict = bench.late(false);
            if verdict == Verdict::Going && window >= pairs_from {
                verdict = bench.pair(&class(window as usize % 2), &class(window as usize % 2), window);
            }
            if verdict != Verdict::Going {
                assert_eq!(verdict, Verdict::Passed);
                return (window, bench.trial.progress().is_compared());
            }
        }
        unreachable!("it ends wherever windows come")
    };
    assert_eq!(ends(alone, u64::MAX), (100, false));
    assert_eq!(ends(beside, u64::MAX), (200, false));
    assert_eq!(ends(beside, 121), (152, true));
    assert_eq!(ends(beside, 1), (100, true));
}
