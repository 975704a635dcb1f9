//! `limpet prove`: the table of the proof, for people and programs.

use limpet_depot::manifest::Limits;
use limpet_depot::{Options, Package, Subject};

use anyhow::Context as _;

use crate::cli::ProveArgs;
use crate::{CliError, console};

/// Proves a package or a bare graph and prints the table.
///
/// # Errors
/// What is wrong with the files; [`CliError::No`] if no engine passes.
pub fn prove(args: &ProveArgs) -> Result<(), CliError> {
    let wrong = |error: limpet_depot::DepotError| CliError::configuration(vec![error.to_string()]);
    let engines = limpet_engine::engines();
    let options = Options { outputs: args.outputs.clone(), ..Options::default() };
    let graph = limpet_engine::Format::of(&args.subject).is_some();
    let report = match (&args.golden, graph) {
        (Some(golden), true) => {
            let limits = Limits {
                top1_agreement: args.top1.unwrap_or(Limits::GRAPH.top1_agreement),
                nmae: args.nmae.unwrap_or(Limits::GRAPH.nmae),
                ..Limits::GRAPH
            };
            let subject = Subject::Graph { path: &args.subject, golden, limits };
            limpet_depot::prove(subject, &engines, &options).map_err(wrong)?
        }
        (None, false) => {
            if args.top1.is_some() || args.nmae.is_some() {
                return Err(CliError::Usage(
                    "--top1 and --nmae go with a bare graph; a package's limits are in its manifest".into(),
                ));
            }
            let package = Package::open(&args.subject).map_err(wrong)?;
            limpet_depot::prove(Subject::Package(&package), &engines, &options).map_err(wrong)?
        }
        (None, true) => {
            return Err(CliError::Usage(format!(
                "{}: a bare graph is proved against golden vectors; give --golden FILE.safetensors",
                args.subject.display()
            )));
        }
        (Some(_), false) => {
            return Err(CliError::Usage(format!(
                "{}: --golden goes with a graph (.onnx or .tflite); a package has its own golden vectors",
                args.subject.display()
            )));
        }
    };
    let text = if args.json {
        serde_json::to_string(&report).context("the report cannot be written as JSON")? + "\n"
    } else {
        report.table()
    };
    console::print(text.as_bytes())?;
    if report.chosen.is_some() { Ok(()) } else { Err(CliError::No) }
}
