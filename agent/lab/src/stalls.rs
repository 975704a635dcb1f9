//! `limpet-lab stalls`: when, and for how long, the machine let no thread run.
//!
//! A virtual machine is stopped by its host, a kernel is busy with interrupts, and then every deadline of that moment is
//! missed, whoever had promised it. To tell such misses from an agent's own, one thread on each CPU, bound to it and at
//! the ordinary priority, does nothing but sleep for a millisecond and look at the clock. It needs a few microseconds
//! each time, so it takes no core from anybody; and the scheduler lets a thread that has used so little run within a
//! few milliseconds however busy the others keep the CPU. A wake-up that comes later than that is the machine's doing.

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use limpet_runtime::Moment;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::usage;

/// What each thread sleeps.
const STEP: Duration = Duration::from_millis(1);
/// Most stalls that are told, the longest.
const TOLD: usize = 1000;

#[derive(clap::Args)]
pub struct StallsArgs {
    /// How long to watch
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Wake-ups that come later than this are told, in microseconds
    #[arg(long, value_name = "US", default_value_t = 1000)]
    least_us: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// A time in which a CPU ran what it should have run only later.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Stall {
    /// The CPU.
    cpu: usize,
    /// When the thread should have run, in nanoseconds of CLOCK_BOOTTIME.
    from_ns: u64,
    /// How much later it did.
    us: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    /// How long was watched.
    seconds: f64,
    /// CPUs that were watched.
    cpus: Vec<usize>,
    /// Wake-ups in all.
    wake_ups: u64,
    /// The late ones, the longest first.
    stalls: Vec<Stall>,
}

/// Runs `limpet-lab stalls`.
pub fn run(args: &StallsArgs) -> anyhow::Result<()> {
    if !(args.seconds > 0.0 && args.seconds < 1e6) {
        return Err(usage(format!("--seconds {}: expected a number above 0", args.seconds)));
    }
    let report = watch(Duration::from_secs_f64(args.seconds), Duration::from_micros(args.least_us))?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report).context("writing the report")?;
        writeln!(out).context("writing the report")?;
        return Ok(());
    }
    writeln!(out, "{} wake-ups on {} CPUs in {:.1} s", report.wake_ups, report.cpus.len(), report.seconds)?;
    for stall in report.stalls.iter().take(10) {
        writeln!(
            out,
            "CPU {}: {:.1} ms late at {:.3} s since boot",
            stall.cpu,
            stall.us / 1e3,
            stall.from_ns as f64 / 1e9
        )?;
    }
    Ok(())
}

fn watch(time: Duration, least: Duration) -> anyhow::Result<Report> {
    let allowed = sched_getaffinity(None).context("reading the CPUs that this process may use")?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let end = Moment::now().after(time);
    let threads: Vec<_> = cpus.iter().map(|&cpu| thread::spawn(move || watch_cpu(cpu, end, least))).collect();
    let mut report = Report { seconds: time.as_secs_f64(), cpus, wake_ups: 0, stalls: Vec::new() };
    for watcher in threads {
        let (wake_ups, stalls) = watcher.join().map_err(|_| anyhow::anyhow!("a watching thread panicked"))??;
        report.wake_ups += wake_ups;
        report.stalls.extend(stalls);
    }
    report.stalls.sort_by(|one, other| other.us.total_cmp(&one.us));
    report.stalls.truncate(TOLD);
    Ok(report)
}

fn watch_cpu(cpu: usize, end: Moment, least: Duration) -> anyhow::Result<(u64, Vec<Stall>)> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("binding a thread to CPU {cpu}"))?;
    let (mut wake_ups, mut stalls) = (0, Vec::new());
    loop {
        let due = Moment::now().after(STEP);
        if due >= end {
            return Ok((wake_ups, stalls));
        }
        thread::sleep(STEP);
        wake_ups += 1;
        let late = Moment::now().since(due);
        if late >= least {
            stalls.push(Stall { cpu, from_ns: due.0, us: late.as_secs_f64() * 1e6 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wake_up_is_counted_and_those_that_are_late_enough_are_told_longest_first() {
        let report = watch(Duration::from_millis(50), Duration::ZERO).unwrap();
        assert!(!report.cpus.is_empty() && report.wake_ups > 0);
        assert_eq!(report.stalls.len() as u64, report.wake_ups);
        assert!(report.stalls.is_sorted_by(|one, other| one.us >= other.us));
        let none = watch(Duration::from_millis(20), Duration::from_secs(60)).unwrap();
        assert_eq!(none.stalls, []);
    }
}
