//! The agent on the gateway: all that `limpet` does.
//!
//! It is a library of its own so that programs which measure or fuzz a part of it can reach that part; what they need is
//! public, and nothing else. Its front door is [`main`].

// One module may: a signal handler cannot be installed otherwise.
#![deny(unsafe_code)]

mod admission;
mod api;
mod backend;
mod by_hand;
mod check;
mod cli;
mod codec;
mod commands;
mod config;
mod configured;
mod console;
mod crash;
mod delivery;
mod doctor;
mod exec;
mod fit;
pub mod fuzzing;
mod join;
mod library;
mod link;
mod logging;
mod marks;
pub mod outbox;
mod pipeline;
mod play;
mod pressure;
mod prove;
mod report;
mod router;
mod run;
mod serve;
mod service;
mod sink;
mod threads;
mod topic;
mod wall;

use std::fmt;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

pub use crate::config::{DropPolicy, Encoding, OutboxOrder};
pub use crate::link::outgoing::{Packing, Room};

use crate::cli::{Cli, Command, DepotCommand, StoreCommand};

/// Exit code for a wrong command line.
const USAGE: u8 = 64;
/// Exit code if no agent answers.
const UNAVAILABLE: u8 = 69;
/// Exit code for a wrong configuration or package.
const CONFIGURATION: u8 = 78;

/// Why a command did not do what it was asked. As text it is one line.
#[derive(Debug)]
pub enum CliError {
    /// The configuration or a package is wrong: one sentence for each problem.
    Configuration(Vec<String>),
    /// The command line asks for what does not fit.
    Usage(String),
    /// The agent that should be asked does not answer.
    Unavailable(String),
    /// The command did its work, and the answer is no. It has said so already.
    No,
    /// Anything else.
    Other(anyhow::Error),
}

impl CliError {
    /// Problems with the configuration.
    pub fn configuration(problems: Vec<String>) -> Self {
        Self::Configuration(problems)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(problems) => f.write_str(&problems.join("; ")),
            Self::Usage(why) | Self::Unavailable(why) => f.write_str(why),
            Self::No => f.write_str("the answer is no"),
            Self::Other(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Reads the command line, does the one thing that it asks for, and turns the outcome into an exit code: 0 done, 1 the
/// answer is no or something failed, 64 the command line is wrong, 69 no agent answers, 78 the configuration or a package
/// is wrong.
pub fn main() -> ExitCode {
    // A package is proved in a process of its own, which is this program.
    limpet_depot::run_if_proof_child();
    // And so is what becomes the program of a source.
    exec::become_program();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nothing can be done about a standard output that is closed.
            let _ = error.print();
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    let outcome = match &cli.command {
        Command::Run(args) => config::read(&args.config).and_then(|loaded| {
            logging::start(loaded.config.log);
            run::run(&args.config, loaded)
        }),
        Command::Check(args) => check::check(args),
        Command::Prove(args) => prove::prove(args),
        Command::Try(args) => {
            // What is wrong with samples or windows is said in the log.
            logging::start(config::Log { level: config::LogLevel::Warn, format: config::LogFormat::Text });
            play::play(args)
        }
        Command::Status(args) => api::client::status(args),
        Command::Results(args) => api::results::results(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Depot(DepotCommand::Import(args)) => by_hand::import(args),
        Command::Store(StoreCommand::Check(args)) => by_hand::check_store(args),
    };
    let problems = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(CliError::No) => return ExitCode::FAILURE,
        Err(CliError::Configuration(problems)) => (problems, CONFIGURATION),
        Err(CliError::Usage(problem)) => (vec![problem], USAGE),
        Err(CliError::Unavailable(why)) => (vec![why], UNAVAILABLE),
        Err(CliError::Other(error)) => (vec![format!("{error:#}")], 1),
    };
    for problem in &problems.0 {
        console::tell(problem);
    }
    if matches!(cli.command, Command::Run(_)) {
        // It stays there to be read by `systemctl status`.
        service::Manager::of_environment().status(&problems.0.join("; "));
    }
    ExitCode::from(problems.1)
}
