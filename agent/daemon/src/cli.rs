//! The command line.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

use crate::config;

/// Inference agent for AIoT gateways: sensor samples in, proven results out, on time.
#[derive(Debug, Parser)]
#[command(name = "limpet", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent until SIGTERM
    Run(ConfigArgs),
    /// Check a configuration and print what is in effect, with where each value came from
    Check(CheckArgs),
    /// Prove a package, or a bare graph, on this device: does it give its golden outputs, and how fast?
    Prove(ProveArgs),
    /// Run a recording through a package, on a clock that waits for nothing
    Try(TryArgs),
    /// Show what the running agent is doing: budget, pipelines, models
    Status(StatusArgs),
    /// Show the last results of a pipeline, delivered or not
    Results(ResultsArgs),
    /// Find what is wrong with this gateway, and say what to do; exit code 1 if anything is
    Doctor(DoctorArgs),
    /// Bring models from a depot by hand
    #[command(subcommand)]
    Depot(DepotCommand),
    /// Look after the store of delivered models
    #[command(subcommand)]
    Store(StoreCommand),
}

/// What to do with a depot.
#[derive(Debug, Subcommand)]
pub enum DepotCommand {
    /// Take what a depot in a folder, such as on a USB stick, has for this gateway
    Import(ImportArgs),
}

/// What to import.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The depot, as `limpet-lab depot publish --to DIR` writes it
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Where the configuration is
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What to do with the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Read everything, and say what is damaged or missing; exit code 1 if anything is
    Check(StoreCheckArgs),
}

/// How to check the store.
#[derive(Debug, Args)]
pub struct StoreCheckArgs {
    /// Remove what is damaged, so that the agent fetches it again
    #[arg(long)]
    pub repair: bool,
    /// Where the configuration is
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/limpet/limpet.toml")]
    pub config: PathBuf,
}

/// What to check.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Where the configuration is
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Prove models that have no proof on this device yet, so that what they cost is known
    #[arg(long)]
    pub prove: bool,
}

/// What to prove.
#[derive(Debug, Args)]
pub struct ProveArgs {
    /// A package (folder or .limpet file), or a graph (.onnx or .tflite) with --golden
    #[arg(value_name = "PACKAGE|MODEL")]
    pub subject: PathBuf,
    /// Golden vectors of a bare graph
    #[arg(long, value_name = "FILE.safetensors")]
    pub golden: Option<PathBuf>,
    /// Least share of vectors whose best class must agree [default: the package's, or 0.93]
    #[arg(long, value_name = "SHARE")]
    pub top1: Option<f64>,
    /// Largest normalized mean absolute error [default: the package's, or 0.25]
    #[arg(long, value_name = "ERROR")]
    pub nmae: Option<f64>,
    /// Print the table as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write what each engine and variant gave to DIR/<engine>.<variant>.safetensors
    #[arg(long, value_name = "DIR")]
    pub outputs: Option<PathBuf>,
}

/// What to play.
#[derive(Debug, Args)]
pub struct TryArgs {
    /// A package: folder or .limpet file
    pub package: PathBuf,
    /// A recording: .wav, .csv or .raw
    #[arg(value_name = "FILE")]
    pub recording: PathBuf,
    /// Play at the recording's own pace, through the queue that drops what is late
    #[arg(long)]
    pub realtime: bool,
    /// Print one result object a line
    #[arg(long)]
    pub json: bool,
    /// Expect LABEL between two times in seconds; repeat for more. Exit code 1 if it comes otherwise
    ///
    /// LABEL is that of the model's trigger ("anomaly" where the trigger is about a score without labels): exactly one
    /// trigger from START to END, both included. The time of a trigger is the end of its window. LABEL is any other, or
    /// the model has no trigger: more than half of the results whose windows lie wholly between START and END have it
    /// as their best label, and there is at least one such. If anything is expected, a trigger outside all ranges of
    /// its own label is a failure too.
    #[arg(long, value_name = "START-END:LABEL")]
    pub expect: Vec<Expectation>,
    /// Type of the numbers in a .raw file
    #[arg(long, value_name = "i8|u8|i16|i32|f32", default_value = "i16")]
    pub r#type: String,
    /// Number of channels in a .raw file, which does not say it [default: the model's]. Needed with --channels
    #[arg(long, value_name = "N")]
    pub of: Option<NonZeroUsize>,
    /// Channels to take, where the recording has more than the model wants: their positions, from 0
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub channels: Vec<usize>,
    /// Factor from the recording's numbers to the model's unit, for all channels or one each; N or N/M
    /// [default: 1; a .wav file's full scale is 1]
    #[arg(long, value_delimiter = ',', value_name = "FACTOR,…")]
    pub scale: Vec<config::Fraction>,
}

/// What to show of the running agent.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The configuration, which says where the socket is
    #[arg(long, value_name = "FILE", default_value = "/etc/limpet/limpet.toml")]
    pub config: PathBuf,
    /// The agent's socket [default: limpet.sock in the configuration's gateway.run]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Show it again and again, every 2 seconds or as said
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    pub watch: Option<NonZeroU64>,
    /// Every stream, and the stages of its latency
    #[arg(long)]
    pub streams: bool,
    /// Print the report as one JSON object a line
    #[arg(long, conflicts_with = "streams")]
    pub json: bool,
}

/// What to examine.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/limpet/limpet.toml")]
    pub config: PathBuf,
    /// The agent's socket [default: limpet.sock in the configuration's gateway.run]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print what was found as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which results to show.
#[derive(Debug, Args)]
pub struct ResultsArgs {
    /// The pipeline
    pub pipeline: String,
    /// Only those of this time until now, such as 1h or 90s
    #[arg(long, value_name = "TIME")]
    pub since: Option<config::Interval>,
    /// Only those of this stream
    #[arg(long, value_name = "NAME")]
    pub stream: Option<String>,
    /// Only the last N of them
    #[arg(long, value_name = "N")]
    pub last: Option<NonZeroUsize>,
    /// Print one result object a line
    #[arg(long)]
    pub json: bool,
    /// The configuration, which says where the socket is
    #[arg(long, value_name = "FILE", default_value = "/etc/limpet/limpet.toml")]
    pub config: PathBuf,
    /// The agent's socket [default: limpet.sock in the configuration's gateway.run]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `START-END:LABEL`, times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// Start, in seconds.
    pub start: f64,
    /// End, in seconds.
    pub end: f64,
    /// The label.
    pub label: String,
}

impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (times, label) = text.split_once(':')?;
            let (start, end) = times.split_once('-')?;
            let (start, end): (f64, f64) = (start.parse().ok()?, end.parse().ok()?);
            let ordered = start.is_finite() && end.is_finite() && 0.0 <= start && start < end;
            (ordered && !label.is_empty()).then(|| Self { start, end, label: label.to_owned() })
        };
        parse().ok_or_else(|| "expected START-END:LABEL with times in seconds, such as 1.0-1.65:marvin".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn expectations_are_ordered_times_and_a_label() {
        let expected = Expectation { start: 1.0, end: 1.65, label: "marvin".into() };
        assert_eq!("1.0-1.65:marvin".parse(), Ok(expected));
        for wrong in ["", "1-2", "2-1:a", "1-1:a", "a-b:c", "1-2:", "nan-2:a", "-1-2:a"] {
            assert!(wrong.parse::<Expectation>().is_err(), "{wrong}");
        }
    }
}
