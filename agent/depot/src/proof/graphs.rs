//! Graphs against their golden vectors, for whoever makes a package.

use std::time::Duration;

use limpet_engine::Engine;

use super::{Options, Row, Verdict, prove_variant, unread};
use crate::DepotError;
use crate::package::Package;

/// What came of running the graphs of a package that may go out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Variants that some engine ran, and got right.
    pub right: Vec<String>,
    /// Variants that no engine of this build reads, each with that for a reason: nobody knows.
    pub unread: Vec<String>,
    /// Of variants that one engine got right, what others made of them, each a sentence.
    pub doubts: Vec<String>,
}

/// Runs every graph of a package on every engine that reads it, and compares what it gives with its golden vectors.
///
/// This is the proof without its budget, which is one for the gateway, and with hardly any timing. The gateway chooses
/// among the engines, so a variant is good if one of them gets it right.
///
/// # Errors
/// [`DepotError::Package`] with each variant that no engine gets right: vector, found and expected. Others as
/// [`prove`](super::prove).
pub fn run_graphs(package: &Package, engines: &[Box<dyn Engine>]) -> Result<Ran, DepotError> {
    let options = Options { timing: Duration::ZERO, budget: false, ..Options::default() };
    let (mut ran, mut wrong) = (Ran::default(), Vec::new());
    for variant in &package.manifest().variants {
        let file = &variant.file;
        if !engines.iter().any(|engine| engine.reads(variant.format)) {
            ran.unread.push(format!("{file}: {}", unread(file, variant.format).reason));
            continue;
        }
        let rows = prove_variant(package, variant, engines, &options)?;
        let told = |row: &Row| format!("{file} {} on {}: {}", row.verdict.name(), row.engine, row.reason);
        let (right, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.verdict == Verdict::Passed);
        let others = others.into_iter().map(told);
        if right.is_empty() {
            wrong.extend(others);
        } else {
            ran.right.push(file.clone());
            ran.doubts.extend(others);
        }
    }
    if wrong.is_empty() {
        return Ok(ran);
    }
    Err(DepotError::package(
        package.path(),
        format!("does not give its golden outputs, so it is of no use to anybody; {}", wrong.join("; ")),
    ))
}
