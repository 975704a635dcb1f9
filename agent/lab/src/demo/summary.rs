//! What the demo says at its end, and whether it went well.

use std::process::ExitStatus;

use super::judge::{DETECT_WITHIN, Fault, WRONG_SHARE};
use super::show::Show;

/// Prints the summary. True if every phase that ran to its end was seen rightly and the agent left with exit code 0.
pub fn print(show: &Show, agent: ExitStatus) -> bool {
    println!();
    println!("{}", show.model());
    println!("from      motor had   seen after   windows   right   of them wrong");
    let mut good = true;
    let mut judged = 0;
    for phase in show.phases() {
        let start = show.schedule().seconds(phase.samples.start);
        let seen = phase.detected_after.map_or("never".to_owned(), |after| format!("{after:.2} s"));
        let right = if phase.whole > 0 { 100.0 * phase.right as f64 / phase.whole as f64 } else { 0.0 };
        let confused: Vec<_> = phase.confused_with.iter().map(|(label, times)| format!("{times} × {label}")).collect();
        let complete = show.sent_samples() >= phase.samples.end;
        let fault = phase.fault(show.sent_samples());
        judged += u32::from(complete);
        good &= fault.is_none();
        let remark = match fault {
            Some(Fault::Silent) => "FAILED: no result for any window".to_owned(),
            Some(Fault::Missed) => format!("FAILED: not among the first {DETECT_WITHIN} windows"),
            Some(Fault::Wrong) => format!("FAILED: more than {:.0} % wrong", 100.0 * WRONG_SHARE),
            None if !complete => "(not run to its end)".to_owned(),
            None => String::new(),
        };
        println!(
            "{start:5.1} s   {:<9}   {seen:>10}   {:>7}   {right:4.0} %   {:<18} {remark}",
            phase.condition.label(),
            phase.whole,
            confused.join(", "),
        );
    }
    if let Some(parts) = show.latency().quantiles() {
        let text = |pick: fn(&crate::latency::Quantiles) -> f64| {
            let parts: Vec<_> = parts.named().iter().map(|(name, q)| format!("{name} {:.0}", pick(q))).collect();
            parts.join(" · ")
        };
        println!("latency in µs, half of the results at or below: {}", text(|q| q.p50));
        println!("               99 of 100 at or below:           {}", text(|q| q.p99));
    }
    println!(
        "{} results; windows without a result {}; after their deadline {}; messages the sensor could not send {}",
        show.results(),
        show.missing_windows(),
        show.late(),
        show.dropped_messages(),
    );
    println!("limpet on SIGTERM: {agent}");
    if !agent.success() {
        good = false;
    }
    let verdict = match (good, judged) {
        (false, _) => "FAILED",
        (true, 0) => "stopped before the first phase was over; nothing to judge",
        (true, _) => "the agent saw what the motor had, in every phase",
    };
    println!("{verdict}");
    good
}
