//! From a proof to sessions.

use std::collections::BTreeMap;
use std::sync::Arc;

use limpet_depot::manifest::InputKind;
use limpet_depot::{Decider, Options, Package, Proved, ProvedVariant, Report, Subject};
use limpet_engine::{Engine, Graph, LoadOptions, Session, TensorSpec};
use limpet_runtime::BatchCost;

use crate::admission::micros;
use crate::config::{Config, ModelRef};
use crate::pipeline::input::WindowReader;
use crate::pipeline::model::{Facts, Model, Usage};
use crate::pipeline::plan::{self, Plan, Version};
use crate::{CliError, console};

/// What is wrong with a package, with its path.
fn refuse(package: &Package, why: impl std::fmt::Display) -> CliError {
    CliError::configuration(vec![format!("{}: {why}", package.path().display())])
}

/// Looks at a variant that was proved: whether it fits its package, and what it will cost with batches up to `batch`.
/// Nothing stays loaded.
///
/// # Errors
/// One sentence: the package, what was found and what to do.
pub fn look(
    package: &Package,
    proved: &Proved,
    which: &ProvedVariant,
    batch: usize,
    engines: &[Box<dyn Engine>],
    number: u32,
) -> Result<Arc<Facts>, CliError> {
    let graph = proved.open_graph(which, package, engines).map_err(|error| refuse(package, error))?;
    let session = graph.session(LoadOptions::default()).map_err(|error| refuse(package, error))?;
    fits(package, session.as_ref())?;
    let mut costs = vec![BatchCost { size: 1, typical: micros(which.p50_us), worst: micros(which.p99_us) }];
    // What the kernel did not let the proof measure is at least as large as the file.
    let mut memory = which.memory_bytes.unwrap_or(package.graph(&which.choice.variant).len() as u64);
    let most = proved.batch_cap.unwrap_or(usize::MAX).min(batch);
    for cost in which.batches.iter().flat_map(|batches| &batches.sizes).filter(|cost| (2..=most).contains(&cost.size)) {
        costs.push(BatchCost { size: cost.size, typical: micros(cost.p50_us), worst: micros(cost.p99_us) });
        memory += cost.memory_bytes.unwrap_or(0);
    }
    Ok(Arc::new(Facts {
        number,
        digest: package.digest(),
        name: package.manifest().name.as_str().into(),
        engine: which.choice.engine.as_str().into(),
        variant: which.choice.variant.as_str().into(),
        costs,
        mean: micros(which.mean_us),
        memory,
        input: session.inputs()[0].clone(),
        outputs: session.outputs().to_vec(),
        usage: Usage::default(),
    }))
}

/// Looks at every variant of a package that may run: the one that serves, then the reduced one if there is one. Each gets
/// the next number.
///
/// # Errors
/// As for [`look`].
pub fn look_at_all(
    package: &Package,
    proved: &Proved,
    batch: usize,
    engines: &[Box<dyn Engine>],
    next_number: &mut u32,
) -> Result<Vec<Arc<Facts>>, CliError> {
    let variants = std::iter::once(&proved.serving).chain(&proved.reduced);
    variants
        .map(|which| {
            let number = *next_number;
            *next_number += 1;
            look(package, proved, which, batch, engines, number)
        })
        .collect()
}

/// Loads a model: a session for each of its batch sizes. Each run uses one thread, since that is what the proof measured
/// and admission adds up.
///
/// # Errors
/// One sentence: the package, what was found and what to do.
pub fn load(package: &Package, graph: &dyn Graph, facts: &Arc<Facts>) -> Result<Model, CliError> {
    let session = |cost: &BatchCost| graph.session(LoadOptions { batch: cost.size, threads: 1 });
    let sessions: Result<Vec<_>, _> = facts.costs.iter().map(session).collect();
    let sessions = sessions.map_err(|error| refuse(package, error))?;
    let decider = decider(package, sessions[0].as_ref())?;
    Ok(Model::new(Arc::clone(facts), sessions, decider))
}

fn decider(package: &Package, session: &dyn Session) -> Result<Decider, CliError> {
    let given = session.inputs()[0].elements();
    Decider::new(package.manifest(), package.labels(), session.outputs(), given).map_err(|error| refuse(package, error))
}

/// Whether a graph takes what the front end gives, and gives what the decision takes.
fn fits(package: &Package, session: &dyn Session) -> Result<(), CliError> {
    let input = &session.inputs()[0];
    if let InputKind::Series(series) = &package.manifest().inputs[0].kind {
        let front_end = series.front_end().map_err(|error| refuse(package, error))?;
        if front_end.features_len() != input.elements() {
            return Err(refuse(
                package,
                format_args!(
                    "[[input]] window: the front end gives {:?} = {} values, but the graph's input {} takes {:?} = {}; change window or front_end",
                    front_end.feature_shape(),
                    front_end.features_len(),
                    input.name,
                    input.shape,
                    input.elements()
                ),
            ));
        }
    }
    decider(package, session).map(|_| ())
}

/// A package as each of its pipelines uses it, checked against their sources.
///
/// # Errors
/// What does not fit.
pub fn versions(
    config: &Config,
    plan: &Plan,
    model: &ModelRef,
    package: &Package,
    facts: &[Arc<Facts>],
) -> Result<BTreeMap<usize, Arc<Version>>, String> {
    if let [full, reduced] = facts {
        same_input(&package.manifest().inputs[0].kind, &full.input, &reduced.input)?;
    }
    let mut versions = BTreeMap::new();
    for index in plan.uses_of(model) {
        let made = plan::version_of(&config.pipelines[index], package);
        let made = made.map_err(|(key, text)| format!("{key}: {text}"))?;
        let source = &plan.sources[plan.pipelines[index].source];
        source.takes(&made)?;
        for facts in facts {
            WindowReader::new(&source.config, &made.input, &facts.input)
                .map_err(|why| format!("source {}: {why}", source.name()))?;
        }
        versions.insert(index, Arc::new(made));
    }
    Ok(versions)
}

/// Whether a reduced variant takes the same input as the full one: under pressure it gets the very windows that were
/// made for that.
///
/// # Errors
/// What differs.
fn same_input(kind: &InputKind, full: &TensorSpec, reduced: &TensorSpec) -> Result<(), String> {
    // Real numbers are quantized for each; what comes in as stored is not.
    let stored = matches!(kind, InputKind::Quantized);
    let differs = full.shape != reduced.shape
        || stored && (full.element != reduced.element || full.quantization != reduced.quantization);
    if differs {
        return Err(format!(
            "the reduced variant takes {} {:?} where the full one takes {} {:?}; both get the same windows, so export them with the same input",
            reduced.element, reduced.shape, full.element, full.shape
        ));
    }
    Ok(())
}

/// Proves a package without keeping the proof.
///
/// # Errors
/// If no engine passes: why.
pub fn prove_for_now(package: &Package, engines: &[Box<dyn Engine>], options: &Options) -> Result<Proved, CliError> {
    let report: Report = limpet_depot::prove(Subject::Package(package), engines, options)
        .map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    let table = report.table();
    Proved::of(report).ok_or_else(|| {
        let path = package.path().display();
        console::tell(format_args!("{path}: no engine gives the golden outputs; it is not run\n{table}"));
        CliError::No
    })
}
