//! `limpet-lab chaos`: breaks everything around a running agent, and counts what arrived.
//!
//! ```text
//! sensors ──▶ broker ──▶ agent ──▶ wire ──▶ broker ── acknowledges ──▶ what is delivered
//!                          │
//!                          └── marks on a pipe: decided, stored ─────▶ what was produced
//! ```
//!
//! It runs the real agent with a small model in a scratch folder. The uplink's broker is a process of its own, so that it
//! can be killed and stopped; the wire to it can be cut, frozen, slow, or keep acknowledgements to itself. What the broker
//! has acknowledged is delivered; what was stored and is neither delivered nor told of by a range record is lost.

mod child;
mod fault;
mod judge;
mod wire;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use self::fault::{Deck, Fault, Wanted};
use self::judge::Tally;
use self::world::{Kills, World};
use crate::bench::text::{table, thousands};
use crate::{demo, usage};

/// How long the first result after a fault may take.
const RECOVERS_WITHIN: Duration = Duration::from_secs(90);
/// How long what is stored may go without anything of it being delivered, once all is well again.
const DRAINS_WITHIN: Duration = Duration::from_secs(60);
/// Results a second of one stream.
pub const STREAM_RATE: f64 = 20.0;

#[derive(clap::Args)]
pub struct ChaosArgs {
    /// For how long; each kind of fault comes once, and then again as drawn
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0)]
    minutes: f64,
    /// Exactly these faults instead, in any order, however long that takes
    #[arg(long, value_name = "FAULT=N,…", value_delimiter = ',', conflicts_with = "minutes")]
    faults: Vec<Wanted>,
    /// Every kind but these
    #[arg(long, value_name = "FAULT,…", value_delimiter = ',', conflicts_with = "faults")]
    without: Vec<Fault>,
    /// Draw the faults of an earlier run again
    #[arg(long)]
    seed: Option<u64>,
    /// Results a second
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    rate: f64,
    /// The agent [default: limpet beside this program]
    #[arg(long, value_name = "FILE")]
    limpet: Option<PathBuf>,
    /// Keep state, configuration and log of the agent in this folder, which must be empty or new
    #[arg(long, value_name = "DIR")]
    keep_dir: Option<PathBuf>,
    /// Set the system's clock an hour ahead and back again, too; needs root, and everything on this machine sees it
    #[arg(long)]
    clock_steps: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// What is to be said in the end.
#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    seconds: f64,
    faults: Vec<Struck>,
    /// Kinds of faults that could not be had here, and why.
    left_out: Vec<String>,
    #[serde(flatten)]
    tally: Tally,
    /// How often the agent was started.
    starts: u64,
    kills: Kills,
    /// What should not have been.
    failures: Vec<String>,
}

/// How often one kind of fault struck, and how long it took until a new result was delivered after it was over.
#[derive(Debug, Serialize)]
struct Struck {
    fault: Fault,
    times: usize,
    median_s: f64,
    most_s: f64,
}

/// Runs `limpet-lab chaos`. Exit code 1 if anything was lost, or the agent did not recover.
pub fn run(args: &ChaosArgs) -> anyhow::Result<ExitCode> {
    if !(args.minutes > 0.0 && args.minutes <= 60.0 * 24.0 * 7.0) {
        return Err(usage("--minutes: expected more than 0, at most a week"));
    }
    if !(STREAM_RATE..=5000.0).contains(&args.rate) {
        return Err(usage(format!("--rate: expected {STREAM_RATE} to 5000 results a second")));
    }
    let limpet = demo::agent::find(args.limpet.as_deref())?;
    // Before this program has a user namespace of its own, where everybody is root.
    if args.clock_steps && !world::is_inside() && !rustix::process::geteuid().is_root() {
        return Err(usage("--clock-steps: setting the clock needs root"));
    }
    let wants = |fault| match &args.faults[..] {
        [] => !args.without.contains(&fault),
        faults => faults.iter().any(|wanted| wanted.fault == fault),
    };
    if Fault::ALL.into_iter().all(|fault| !wants(fault)) {
        return Err(usage("--without: it names every fault, and none is left"));
    }
    let wants_disk = wants(Fault::DiskFull);
    // Its own mounts, so that a disk can be had that fills up. It does not come back from there.
    let apart = if wants_disk { world::enter_namespace()? } else { Err("it was not asked for".to_owned()) };
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut left_out: Vec<String> = args.without.iter().map(|fault| format!("{fault}: by --without")).collect();
    if let Err(why) = &apart
        && wants_disk
    {
        left_out.push(format!("{}: {why}", Fault::DiskFull));
    }
    if !args.clock_steps && !args.without.contains(&Fault::ClockStep) {
        left_out.push(format!(
            "{}: only with --clock-steps, since everything on this machine would see it",
            Fault::ClockStep
        ));
    }
    let can = |fault: Fault| match fault {
        fault if args.without.contains(&fault) => false,
        Fault::DiskFull => apart.is_ok(),
        Fault::ClockStep => args.clock_steps,
        _ => true,
    };
    if let Some(wanted) = args.faults.iter().find(|wanted| !can(wanted.fault)) {
        return Err(usage(format!("--faults: {} cannot be had here; {}", wanted.fault, left_out.join("; "))));
    }
    let mut deck = Deck::new(seed, &args.faults, can);
    let interrupted = interruption()?;
    let mut world =
        World::start(limpet, args.keep_dir.clone(), args.rate, apart.is_ok(), seed, Arc::clone(&interrupted))?;
    eprintln!("limpet-lab chaos: seed {seed}, agent in {}", world.folder().display());
    let began = Instant::now();
    let end = args.faults.is_empty().then(|| began + Duration::from_secs_f64(args.minutes * 60.0));
    let (mut struck, mut failures): (Vec<(Fault, Duration)>, Vec<String>) = (Vec::new(), Vec::new());
    world.wait_for_news(RECOVERS_WITHIN).context("the agent did not deliver a first result")?;
    let goes_on = || !interrupted.load(Ordering::SeqCst) && end.is_none_or(|end| Instant::now() < end);
    while let Some(fault) = deck.draw().filter(|_| goes_on()) {
        match world.strike(fault).and_then(|()| world.wait_for_news(RECOVERS_WITHIN)) {
            Ok(took) => struck.push((fault, took)),
            Err(error) => {
                failures.push(format!("{fault}, number {} of this run: {error:#}", struck.len() + 1));
                break;
            }
        }
        if struck.len() % 10 == 0 {
            let Tally { stored, delivered, .. } = world.judge().tally();
            eprintln!(
                "{:>6.0} s  {} faults, {stored} results stored, {delivered} delivered",
                began.elapsed().as_secs_f64(),
                struck.len()
            );
        }
        std::thread::sleep(deck.pause());
    }
    if failures.is_empty() {
        failures.extend(world.drain(DRAINS_WITHIN).err().map(|error| format!("at the end: {error:#}")));
    }
    if interrupted.load(Ordering::SeqCst) {
        failures.push("interrupted: the faults that were still to come did not strike".to_owned());
    }
    if args.faults.is_empty() {
        let never =
            Fault::ALL.into_iter().filter(|fault| can(*fault) && !struck.iter().any(|(struck, _)| struck == fault));
        left_out.extend(never.map(|fault| format!("{fault}: the time was over before it came")));
    }
    let (starts, kills) = (world.starts(), world.kills());
    let (tally, ended) = world.end()?;
    failures.extend(ended);
    let report = Report {
        seed,
        seconds: began.elapsed().as_secs_f64(),
        faults: Fault::ALL.iter().filter_map(|fault| Struck::of(*fault, &struck)).collect(),
        left_out,
        tally,
        starts,
        kills,
        failures,
    };
    let text = if args.json {
        serde_json::to_string(&report).expect("writing plain values into memory cannot fail") + "\n"
    } else {
        report.text()
    };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).context("writing to standard output")?;
    Ok(if report.tally.is_clean() && report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Turns true at SIGTERM or SIGINT: whatever runs is then ended in order, and the report says what came of it so far.
fn interruption() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    let mut terminate = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?
    };
    let told = Arc::clone(&interrupted);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        });
        told.store(true, Ordering::SeqCst);
    });
    Ok(interrupted)
}

impl Struck {
    fn of(fault: Fault, all: &[(Fault, Duration)]) -> Option<Self> {
        let mut took: Vec<f64> = all.iter().filter(|(f, _)| *f == fault).map(|(_, took)| took.as_secs_f64()).collect();
        took.sort_by(f64::total_cmp);
        Some(Self { fault, times: took.len(), median_s: *took.get(took.len() / 2)?, most_s: *took.last()? })
    }
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![["fault ", "times", "recovered in", "at most"].map(str::to_owned).to_vec()];
        for Struck { fault, times, median_s, most_s } in &self.faults {
            lines.push(vec![
                fault.to_string(),
                times.to_string(),
                format!("{median_s:.2} s"),
                format!("{most_s:.2} s"),
            ]);
        }
        let mut text = table(&lines);
        let Tally {
            decided,
            stored,
            delivered,
            repeated,
            dropped,
            unstored,
            skipped,
            lost,
            unknown,
            unreadable,
            which,
        } = &self.tally;
        let titles =
            ["produced", "stored", "delivered", "repeated", "dropped by policy", "decided, not stored", "lost"];
        let counts = [*decided, *stored, *delivered, *repeated, dropped.values().sum(), *unstored, *lost];
        text.push('\n');
        text.push_str(&table(&[titles.map(str::to_owned).to_vec(), counts.map(thousands).to_vec()]));
        let Kills { all, with_backlog, in_drain, in_start, on_full_disk } = self.kills;
        text.push_str(&format!(
            "of {all} kills {with_backlog} with a backlog on the disk, {in_drain} of them in its drain; {in_start} within 0.3 s of \
             a start; {on_full_disk} on a full disk\n"
        ));
        for (reason, count) in dropped {
            text.push_str(&format!("{} dropped ({})\n", thousands(*count), reason.word()));
        }
        for (count, what) in [
            (skipped, "decided and not stored, and no kill excuses it"),
            (unknown, "delivered that the agent never decided"),
            (unreadable, "messages or marks that cannot be read"),
        ] {
            if *count > 0 {
                text.push_str(&format!("{} {what}\n", thousands(*count)));
            }
        }
        for line in which.iter().take(20) {
            text.push_str(&format!("{line}\n"));
        }
        for line in &self.left_out {
            text.push_str(&format!("left out: {line}\n"));
        }
        for line in &self.failures {
            text.push_str(&format!("FAILED {line}\n"));
        }
        let good = self.tally.is_clean() && self.failures.is_empty();
        text.push_str(&format!(
            "\n{} in {:.0} s, {} starts of the agent; the same faults again: --seed {}\n",
            if good { "nothing lost" } else { "NOT as it should be" },
            self.seconds,
            self.starts,
            self.seed
        ));
        text
    }
}
