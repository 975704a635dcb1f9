//! `limpet-lab`: the binary beside the agent, for everything that a gateway does not need.
//!
//! It shows the main job (`demo`), packs models (`pack`), publishes them (`depot`), reads postcard results (`decode`), proves that none is lost (`audit`), asks gateways (`remote`), breaks everything around an
//! agent (`chaos`), puts load on an agent
//! through a broker (`load`) or its local socket (`ask`) and measures the answers, tells how long the machine itself
//! stood still meanwhile (`stalls`), measures models alone (`bench`), and is a small broker itself (`broker`). Where it
//! needs the agent it starts the real `limpet` as a child; no code of the daemon is linked here.
//!
//! Exit codes: 0 done, 64 usage, 69 something needed is not available (a broker, the agent, a file that is the
//! machine's part), 1 anything else.

#![deny(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod answer;
mod ask;
mod audit;
mod bench;
mod broker;
mod chaos;
mod decode;
mod demo;
mod depot;
mod latency;
mod load;
mod motor;
mod mqtt;
mod pack;
mod remote;
mod stalls;

#[derive(Parser)]
#[command(name = "limpet-lab", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the main job: a broker, a virtual motor and the real agent, with a live view
    Demo(demo::DemoArgs),
    /// Makes a package of a folder; refuses one whose graphs do not give their golden outputs, or that any graph would pass
    Pack(pack::PackArgs),
    /// Publishes models and configurations for gateways, and watches what they do with them
    Depot(depot::DepotArgs),
    /// Measures a package or a graph by MLPerf Inference's rules, or finds what serves it best (--tune)
    Bench(bench::BenchArgs),
    /// Listens to results and tells what is repeated, dropped or lost
    Audit(audit::AuditArgs),
    /// Asks a gateway by way of its broker: its status, the last lines of its log, what its doctor finds
    Remote(remote::RemoteArgs),
    /// Breaks everything around a running agent in a scratch folder, and counts what arrived
    Chaos(chaos::ChaosArgs),
    /// Turns postcard results on standard input into JSON lines
    Decode,
    /// Publishes through a broker and measures the answers
    Load(load::LoadArgs),
    /// Asks an agent's local socket, several clients at once, and measures the answers
    Ask(ask::AskArgs),
    /// Tells when, and for how long, the machine let no thread run
    Stalls(stalls::StallsArgs),
    /// Runs the embedded MQTT broker until Ctrl-C; it keeps nothing on disk
    Broker(broker::BrokerArgs),
}

/// What ends the program with an exit code of its own.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(String),
    /// Something that should be there is not.
    #[error("{0}")]
    Unavailable(String),
}

/// An error that ends the program with code 69.
fn unavailable(message: impl Into<String>) -> anyhow::Error {
    Failure::Unavailable(message.into()).into()
}

/// An error that ends the program with code 64.
fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure::Usage(message.into()).into()
}

fn main() -> ExitCode {
    // A package is proved in a process of its own, which is this program again.
    limpet_depot::run_if_proof_child();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no errors. If standard output is closed there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let done = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Pack(args) => pack::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Depot(args) => depot::run(args),
        Command::Bench(args) => bench::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Remote(args) => remote::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Chaos(args) => chaos::run(&args),
        Command::Decode => decode::run().map(|()| ExitCode::SUCCESS),
        Command::Load(args) => load::run(args).map(|()| ExitCode::SUCCESS),
        Command::Ask(args) => ask::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Stalls(args) => stalls::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Broker(args) => broker::run(&args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("limpet-lab: {error:#}");
        ExitCode::from(match error.downcast_ref::<Failure>() {
            Some(Failure::Usage(_)) => 64,
            Some(Failure::Unavailable(_)) => 69,
            None => 1,
        })
    })
}
