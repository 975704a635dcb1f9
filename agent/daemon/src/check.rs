//! `limpet check`: what is in effect, and whether it fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use limpet_depot::{Options, Package, ProofStore, Proved};
use limpet_engine::Engine;
use limpet_runtime::admission::Refusal;

use crate::admission::{Candidate, Estimate, Seen, Trial, introduce, sums, terms};
use crate::cli::CheckArgs;
use crate::config::{self, Config, Loaded};
use crate::library::Library;
use crate::pipeline::plan::Plan;
use crate::serve::open;
use crate::{CliError, console, fit, threads};

/// Prints the effective configuration and every term of the admission.
///
/// # Errors
/// Everything that is wrong with the configuration and the packages it names, and every pipeline that would be refused.
pub fn check(args: &CheckArgs) -> Result<(), CliError> {
    let loaded = config::read(&args.config.config)?;
    console::print(config::effective(&loaded).as_bytes())?;
    let library =
        Library::read_only(&loaded.config).map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    let fitted = fit::fit(&loaded, &library)?;
    if let Some(depot) = &loaded.config.depot {
        let files = [("root", Some(&depot.root)), ("ca_file", depot.ca_file.as_ref())];
        for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path?))) {
            std::fs::File::open(path).map_err(|error| {
                let advice = "put the root.json there that `limpet-lab depot init` made, readable for the agent";
                let text = format!("depot.{key}: {} cannot be read: {error}; {advice}", path.display());
                CliError::configuration(vec![text])
            })?;
        }
    }
    for waiting in &fitted.waiting {
        let text = format!("# pipeline {} waits for {}: {}\n", waiting.pipeline, waiting.model, waiting.why);
        console::print(text.as_bytes())?;
    }
    let (plan, packages) = (&fitted.plan, &fitted.packages);
    threads::check_affinity(&loaded.config.runtime.affinity).map_err(|why| CliError::configuration(vec![why]))?;
    let engines = limpet_engine::engines();
    // Whoever checks need not be who runs the agent, nor may write where it does.
    let state = &loaded.config.gateway.state;
    let store = if state.is_dir() || args.prove { ProofStore::new(state, &engines).ok() } else { None };
    let mut candidates = vec![None; plan.pipelines.len()];
    let (mut unproved, mut number) = (Vec::new(), 0);
    for (model, opened) in packages {
        let package = &opened.package;
        let options = plan.proof_options(model);
        let Some(proved) = proof(store.as_ref(), package, &engines, &options, args.prove)? else {
            unproved.push(format!("{} {}", package.manifest().name, package.manifest().version));
            continue;
        };
        let facts = open::look_at_all(package, &proved, plan.batch_of(model), &engines, &mut number)?;
        open::versions(&fitted.config, plan, model, package, &facts)
            .map_err(|why| CliError::configuration(vec![format!("{model}: {why}")]))?;
        for index in plan.uses_of(model) {
            candidates[index] = Some(Candidate {
                version: Arc::clone(&plan.pipelines[index].version),
                full: Arc::clone(&facts[0]),
                reduced: facts.get(1).cloned(),
                ingest: proved.serving.ingest.map(Estimate::from),
            });
        }
    }
    for model in unproved {
        let text = format!("# admission: the model {model} has no proof on this device; --prove makes one\n");
        console::print(text.as_bytes())?;
    }
    fits(&loaded, &fitted.config, plan, &candidates)
}

fn proof(
    store: Option<&ProofStore>,
    package: &Package,
    engines: &[Box<dyn Engine>],
    options: &Options,
    make: bool,
) -> Result<Option<Proved>, CliError> {
    match store {
        Some(store) if make => store
            .get_or_prove(package, engines, options)
            .map(Some)
            .map_err(|error| CliError::configuration(vec![error.to_string()])),
        Some(store) => Ok(store.choice(package, engines, options)),
        None if make => open::prove_for_now(package, engines, options).map(Some),
        None => Ok(None),
    }
}

/// Admits as the agent does: all together, or one after the other, and says which are refused.
fn fits(loaded: &Loaded, config: &Config, plan: &Plan, candidates: &[Option<Candidate>]) -> Result<(), CliError> {
    let wanted: BTreeMap<usize, Candidate> =
        candidates.iter().enumerate().filter_map(|(index, candidate)| Some((index, candidate.clone()?))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let seen = vec![Seen::default(); plan.sources.len()];
    let trial = || Trial { config, plan, seen: &seen, placed: vec![None; plan.sources.len()] };
    console::print(terms(&trial(), candidates).as_bytes())?;
    let (serving, admitted, refused) = introduce(trial(), &vec![None; candidates.len()], wanted);
    if let Some(admitted) = admitted {
        let bytes = trial().memory(&serving, &admitted).unwrap_or_default();
        console::print(sums(config, plan, &admitted, &bytes).as_bytes())?;
    }
    let problem = |(index, refusal): (usize, Refusal)| {
        let key = if matches!(refusal, Refusal::Deadline { .. }) { "deadline" } else { "name" };
        let name = &config.pipelines[index].name;
        let index = loaded.config.pipelines.iter().position(|pipeline| pipeline.name == *name).unwrap_or(index);
        loaded.problem("pipeline", index, key, format!("refused: {refusal}")).to_string()
    };
    let problems: Vec<String> = refused.into_iter().map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(CliError::configuration(problems)) }
}
