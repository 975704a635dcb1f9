//! `--tune`: which engine, how many threads and what batch serve a package best on this machine.
//!
//! Every engine that passed the proof is measured with each number of threads and each batch, in the time that is given:
//! single-stream latency for batch 1, and offline throughput for all. What the objective is judged by is measured
//! first, and what is left of the time is shared out evenly.

use std::time::{Duration, Instant};

use anyhow::bail;
use limpet_depot::Tuning;
use limpet_depot::proof::Choice;
use limpet_engine::LoadOptions;
use serde::Serialize;

use super::progress::Progress;
use super::scenario::Stream;
use super::statistics::{Percentile, Tail, tail};
use super::subject::Contender;
use super::suite::{self, TailUs};
use super::text;

/// Longest measurement of one combination.
const LONGEST: Duration = Duration::from_secs(5);
/// Shortest one that is worth its loading.
const SHORTEST: Duration = Duration::from_millis(50);
/// A doubling of the batch that gains less than this share is the last.
const GAIN: f64 = 0.05;

/// What is to be best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The lowest p90 of single-stream latency.
    Latency,
    /// The most samples a second, all at once.
    Throughput,
}

/// One combination and what was found of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Combination {
    /// Name of the engine.
    pub engine: String,
    /// The variant's file.
    pub variant: String,
    /// Threads: inside a run for latency, sessions side by side for throughput.
    pub threads: usize,
    /// Samples of a run.
    pub batch: usize,
    /// Tail of the single-stream latency; of batch 1 alone.
    pub latency: Option<TailUs>,
    /// Samples a second, all at once.
    pub samples_per_second: Option<f64>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Sweep {
    /// What was to be best.
    pub objective: Objective,
    /// What was measured, in the order of engines, threads and batches.
    pub combinations: Vec<Combination>,
    /// Measurements for which the time did not suffice.
    pub left_out: usize,
    /// Index of the best combination.
    pub chosen: usize,
    /// What was not measured for another reason.
    pub notes: Vec<String>,
}

impl Sweep {
    /// The best combination.
    pub fn best(&self) -> &Combination {
        &self.combinations[self.chosen]
    }

    /// The sweep for people.
    pub fn table(&self) -> String {
        let titles = ["engine ", "variant ", "threads", "batch", "single-stream", "offline", " "];
        let mut lines = vec![titles.map(str::to_owned).to_vec()];
        for (index, found) in self.combinations.iter().enumerate() {
            let dash = || "–".to_owned();
            lines.push(vec![
                found.engine.clone(),
                found.variant.clone(),
                found.threads.to_string(),
                found.batch.to_string(),
                found
                    .latency
                    .map_or_else(dash, |TailUs(tail)| format!("{} {}", tail.name(), text::time(tail.ns() as f64))),
                found.samples_per_second.map_or_else(dash, |rate| text::rate(rate, "samples")),
                if index == self.chosen { "chosen".to_owned() } else { String::new() },
            ]);
        }
        text::table(&lines)
    }
}

impl Combination {
    /// What is kept of it. Sessions side by side are workers of the agent's budget, not threads of a run.
    pub fn tuning(&self, objective: Objective) -> Tuning {
        let threads = match objective {
            Objective::Latency => self.threads,
            Objective::Throughput => 1,
        };
        let choice = Choice { engine: self.engine.clone(), variant: self.variant.clone() };
        Tuning { choice, threads, batch: self.batch }
    }
}

/// What is swept.
pub struct Plan {
    /// What is to be best.
    pub objective: Objective,
    /// When all must be done.
    pub end: Instant,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Batches, ascending.
    pub batches: Vec<usize>,
    /// Whether a batch that gains nothing over the one before is the last.
    pub until_no_gain: bool,
}

/// Sweeps.
///
/// # Errors
/// If a session fails to run, or nothing could be measured in the time.
pub fn sweep(contenders: &[Contender<'_>], plan: &Plan, progress: &Progress) -> anyhow::Result<Sweep> {
    let mut combinations = Vec::new();
    for contender in contenders {
        for &threads in &plan.threads {
            for &batch in &plan.batches {
                combinations.push(Combination {
                    engine: contender.engine().to_owned(),
                    variant: contender.variant.clone(),
                    threads,
                    batch,
                    latency: None,
                    samples_per_second: None,
                });
            }
        }
    }
    let of = |found: &Combination| {
        contenders.iter().find(|known| known.engine() == found.engine && known.variant == found.variant)
    };
    let order = match plan.objective {
        Objective::Latency => [Objective::Latency, Objective::Throughput],
        Objective::Throughput => [Objective::Throughput, Objective::Latency],
    };
    let mut left = combinations.len() + combinations.iter().filter(|found| found.batch == 1).count();
    let (mut left_out, mut notes) = (0, Vec::new());
    for measuring in order {
        let mut ended: Option<(String, String, usize)> = None;
        let mut before: Option<f64> = None;
        for found in &mut combinations {
            let Some(contender) = of(found) else { continue };
            let (threads, batch) = (found.threads, found.batch);
            if measuring == Objective::Latency && batch > 1 {
                continue;
            }
            left -= 1;
            progress.done(1);
            if measuring == Objective::Latency && threads > 1 && !contender.threads_in_a_run() {
                continue;
            }
            let line = (found.engine.clone(), found.variant.clone(), threads);
            if measuring == Objective::Throughput && batch == plan.batches[0] {
                before = None;
            }
            if ended.as_ref() == Some(&line) {
                continue;
            }
            let now = Instant::now();
            let share = plan.end.saturating_duration_since(now) / u32::try_from(left + 1).unwrap_or(u32::MAX);
            if share < SHORTEST {
                left_out += 1;
                continue;
            }
            // Loading and warming up are part of the share.
            let length = (share * 2 / 3).min(LONGEST);
            progress.start(format!("{} on {} · {threads} × batch {batch}", found.variant, found.engine));
            let refused = match measuring {
                Objective::Latency => {
                    let options = LoadOptions { batch: 1, threads };
                    // A stream may last four times as long to get its 64 queries.
                    let rule = Stream { samples: 1, percentile: Percentile::P90, length: length / 2 };
                    let times = suite::stream(contender, options, rule, |_| ());
                    times.map(|times| found.latency = Some(TailUs(tail(&times.sorted, rule.percentile))))
                }
                Objective::Throughput => suite::offline(contender, threads, batch, length / 2).map(|times| {
                    let rate = (times.sorted.len() * batch) as f64 / times.elapsed.as_secs_f64();
                    found.samples_per_second = Some(rate);
                    if plan.until_no_gain && before.is_some_and(|before| rate < before * (1.0 + GAIN)) {
                        ended = Some(line.clone());
                    }
                    before = Some(rate);
                }),
            };
            if let Err(error) = refused {
                let (engine, variant, _) = &line;
                let why = if batch > 1 { "it runs one by one: " } else { "" };
                notes.push(format!("{variant} on {engine}: {threads} × batch {batch} is not measured, {why}{error:#}"));
                ended = Some(line);
            }
        }
    }
    combinations.retain(|found| found.latency.is_some() || found.samples_per_second.is_some());
    let Some(chosen) = best(&combinations, plan.objective) else {
        bail!("nothing could be measured in the time: give a longer --time");
    };
    Ok(Sweep { objective: plan.objective, combinations, left_out, chosen, notes })
}

/// Index of the best combination by an objective; of equals the first, which has fewer threads and a smaller batch.
fn best(combinations: &[Combination], objective: Objective) -> Option<usize> {
    let cost = |found: &Combination| match objective {
        // The longest of a few is no percentile, and loses against any.
        Objective::Latency => found.latency.map(|TailUs(tail)| match tail {
            Tail::Estimate { ns, .. } => (false, ns as f64),
            Tail::Max { ns, .. } => (true, ns as f64),
        }),
        Objective::Throughput => found.samples_per_second.map(|rate| (false, -rate)),
    };
    let costs = combinations.iter().enumerate().filter_map(|(index, found)| Some((index, cost(found)?)));
    costs.min_by(|(_, a), (_, b)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combination(threads: usize, batch: usize, latency: Option<Tail>, rate: Option<f64>) -> Combination {
        let (engine, variant) = ("tflite".to_owned(), "a.tflite".to_owned());
        Combination { engine, variant, threads, batch, latency: latency.map(TailUs), samples_per_second: rate }
    }

    #[test]
    fn the_objective_decides_and_a_maximum_loses_against_a_percentile() {
        let p90 = |ns| Some(Tail::Estimate { percentile: Percentile::P90, ns, discarded: 0 });
        let found = [
            combination(1, 1, p90(200), Some(1000.0)),
            combination(1, 8, None, Some(4000.0)),
            combination(2, 1, p90(150), Some(3000.0)),
            combination(4, 1, Some(Tail::Max { ns: 100, queries: 5 }), None),
        ];
        assert_eq!(best(&found, Objective::Latency), Some(2));
        assert_eq!(best(&found, Objective::Throughput), Some(1));
        assert_eq!(best(&found[3..], Objective::Throughput), None);
        let sweep = Sweep {
            objective: Objective::Latency,
            combinations: found.to_vec(),
            left_out: 0,
            chosen: 2,
            notes: vec![],
        };
        let table = sweep.table();
        let line = table.lines().nth(3).unwrap();
        assert!(line.ends_with("chosen") && line.contains("p90 150 ns"), "{table}");
        assert!(table.contains("max of 5 100 ns"), "{table}");
        let kept = |objective| (found[2].tuning(objective).threads, found[2].tuning(objective).batch);
        assert_eq!((kept(Objective::Latency), kept(Objective::Throughput)), ((2, 1), (1, 1)));
    }
}
