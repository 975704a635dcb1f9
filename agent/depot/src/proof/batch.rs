//! Which batches a graph takes, whether their answers are right, and what they gain.
//!
//! Sizes double from 2 on. Each gets a session of its own beside those of size 1 and of the last size that was kept, is
//! judged by the golden vectors exactly as size 1 was, and is timed in turns with the last that was kept. The first that
//! the engine refuses or that is wrong ends the search: a larger one is not tried.
//!
//! A size that gains too little is not kept, and two in a row end the search. One alone does not: XNNPACK computes
//! several rows of a fully connected layer at once, so that a batch of 2 costs what one of 7 does. Anomaly-detection
//! int8 of MLPerf Tiny loses a fifth by a batch of 2, gains half by one of 4 and runs 2.7 times as fast by 32 (x86_64
//! with AVX512-VNNI).

use std::time::Instant;

use limpet_engine::{Graph, LoadOptions, Session};

use super::child::{Doing, Job, Lines, Message, warm_up};
use super::judge::Case;
use super::{BatchCost, measure, rounded};

/// The largest size that is tried.
const LARGEST: usize = 64;
/// What a size must gain in samples per second over the last that was kept.
const GAIN_MIN: f64 = 0.05;

/// What came of a size.
enum Tried {
    Kept(BatchCost, Box<dyn Session>),
    /// Right, and not worth it.
    Gainless(String),
}

/// Tries sizes and tells each that is kept; then why it went no further.
///
/// # Errors
/// If the parent no longer listens.
pub(super) fn prove(
    graph: &dyn Graph,
    first: &mut dyn Session,
    case: &Case<'_>,
    job: &Job,
    begun: Instant,
    out: &mut Lines,
) -> std::io::Result<()> {
    let mut kept: Option<(usize, Box<dyn Session>)> = None;
    let mut gainless: Option<String> = None;
    let mut size = 2;
    let stopped = loop {
        if size > LARGEST {
            break gainless.take().unwrap_or_else(|| format!("{LARGEST} is the largest that is tried"));
        }
        // The other half is for what has begun.
        if begun.elapsed() >= job.wall / 2 {
            break format!(
                "{size} was left out, since half of the {} s for this proof was over",
                job.wall.as_secs_f32()
            );
        }
        out.send(&Message::Doing(Doing::Batch(size)))?;
        let best: (usize, &mut dyn Session) = match &mut kept {
            Some((size, session)) => (*size, session.as_mut()),
            None => (1, &mut *first),
        };
        match try_size(graph, best, case, job, size) {
            Ok(Tried::Kept(cost, session)) => {
                out.send(&Message::Batch(cost))?;
                kept = Some((size, session));
                gainless = None;
            }
            Ok(Tried::Gainless(reason)) if gainless.is_none() => gainless = Some(reason),
            Ok(Tried::Gainless(reason)) => break reason,
            Err(reason) => break not_kept(size, &reason),
        }
        size *= 2;
    };
    let stopped = gainless.into_iter().chain([stopped]).collect::<Vec<_>>().join(", ");
    out.send(&Message::BatchesEnd(stopped))
}

/// Why a size cannot be used, for people: without any batch a graph runs one by one.
pub(super) fn not_kept(size: usize, reason: &str) -> String {
    match size {
        2 => format!("runs one by one: {reason}"),
        _ => format!("{size} cannot be used: {reason}"),
    }
}

/// Makes a session for batches of `size`, judges it and compares it with the best so far, which is smaller.
///
/// # Errors
/// Why it cannot be used.
fn try_size(
    graph: &dyn Graph,
    (best_size, best): (usize, &mut dyn Session),
    case: &Case<'_>,
    job: &Job,
    size: usize,
) -> Result<Tried, String> {
    // Memory that the last size left free would hide what this one takes.
    limpet_engine::give_back_memory();
    let before = measure::memory();
    let options = LoadOptions { batch: size, ..LoadOptions::default() };
    let mut session = graph.session(options).map_err(|error| error.to_string())?;
    warm_up(session.as_mut())?;
    limpet_engine::give_back_memory();
    let memory_bytes = before.zip(measure::memory()).map(|(before, after)| after.saturating_sub(before));
    let times = size / best_size;
    Case::check_batch(session.as_ref(), best, times)?;
    let judged = case.judge_batch(session.as_mut(), size)?;
    if !judged.faults.is_empty() {
        return Err(format!("a batch of {size} gives other answers: {}", judged.faults.join("; ")));
    }
    let feed_best = |session: &mut dyn Session, run: usize| case.feed(session, run * best_size, best_size);
    let feed = |session: &mut dyn Session, run: usize| case.feed(session, run * size, size);
    let [smaller, larger] = measure::latencies((best, &feed_best), (session.as_mut(), &feed), times, job.timing)?;
    let gain = times as f64 * smaller.p50_us / larger.p50_us - 1.0;
    if gain >= GAIN_MIN {
        let cost = BatchCost {
            size,
            p50_us: rounded(larger.p50_us),
            mean_us: rounded(larger.mean_us),
            p99_us: rounded(larger.p99_us),
            runs: larger.runs,
            memory_bytes,
        };
        return Ok(Tried::Kept(cost, session));
    }
    Ok(Tried::Gainless(match gain {
        // Both are below what the clock tells.
        _ if gain.is_nan() => format!("{size} gains nothing that can be measured over {best_size}"),
        ..0.0 => format!("{size} loses {:.1} % against {best_size}", -gain * 100.0),
        _ => format!("{size} gains {:.1} % over {best_size}", gain * 100.0),
    }))
}
