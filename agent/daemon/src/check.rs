//! `limpet check`: what is in effect, and whether it fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use limpet_depot::{Options, Package, ProofStore, Proved};
use limpet_engine::Engine;
use limpet_runtime::admission::Refusal;

use crate::admission::{Candidate, Estimate, Seen, Trial, introduce, sums, terms};
use crate::cli::CheckArgs;
use crate::config::{self, Durability, HistoryPlace, Loaded};
use crate::fit::Fitted;
use crate::library::Library;
use crate::link::{expiry, tls};
use crate::serve::{Fault, NotProved, open};
use crate::{CliError, configured, console, fit, threads};

/// What durability costs that knows no interval: three pages of the log for a commit, those of the item, of its lane and of
/// its run; 12.7 KB measured.
const PRICE_OF_EACH: &str = "# outbox.durability: each result is committed before it is sent, which writes about 13 KB for a result that comes alone: 11 GB a day at 10 results a second\n";

/// What results cost that stay on the disk after delivery: each is written to the log and to the file, and deleted later.
const PRICE_OF_HISTORY: &str = "# outbox.history: each result is written to the disk, delivered or not; about 350 MB an hour at 100 results a second\n";

/// Prints the effective configuration and every term of the admission.
///
/// # Errors
/// Everything that is wrong with the configuration and the packages it names, and every pipeline that would be refused.
pub fn check(args: &CheckArgs) -> Result<(), CliError> {
    let file = config::read(&args.config.config)?;
    let library = Library::read_only(&file.config).map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    let loaded = configured::in_effect(&args.config.config, file, &library)?;
    console::print(config::effective(&loaded).as_bytes())?;
    let fitted = fit::fit(&loaded, &library)?;
    for (name, broker) in &loaded.config.brokers {
        if broker.url.iter().any(|url| url.scheme.is_secure()) {
            tls::client(broker).map_err(|why| CliError::configuration(vec![format!("broker.{name}: {why}")]))?;
        }
        for expiry in expiry::of(broker).into_iter().flatten() {
            if let Some((found, todo)) = expiry.warning(jiff::Timestamp::now()) {
                console::print(format!("# broker.{name}: {found}; {todo}\n").as_bytes())?;
            }
        }
    }
    if loaded.config.outbox.durability == Durability::Each {
        console::print(PRICE_OF_EACH.as_bytes())?;
    }
    if loaded.config.outbox.history == HistoryPlace::Disk {
        console::print(PRICE_OF_HISTORY.as_bytes())?;
    }
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
    threads::check_affinity(&loaded.config.runtime.affinity).map_err(|why| CliError::configuration(vec![why]))?;
    // Whoever checks need not be who runs the agent, nor may write where it does.
    let engines = limpet_engine::engines();
    let state = &loaded.config.gateway.state;
    let store = if state.is_dir() || args.prove { ProofStore::new(state, &engines).ok() } else { None };
    let (candidates, unproved) = candidates(&fitted, store.as_ref(), &engines, args.prove)
        .map_err(|not_proved| CliError::configuration(vec![not_proved.why]))?;
    for model in unproved {
        let text = format!("# admission: the model {model} has no proof on this device; --prove makes one\n");
        console::print(text.as_bytes())?;
    }
    let admission = admit(&loaded, &fitted, &candidates);
    console::print(admission.text.as_bytes())?;
    if admission.refused.is_empty() { Ok(()) } else { Err(CliError::configuration(admission.refused)) }
}

/// What each pipeline would run, by its proof; and the packages that have none. `make`: prove those now.
///
/// # Errors
/// What a proof says against a package, and what does not fit together; or that a proof could not be made now.
pub fn candidates(
    fitted: &Fitted,
    store: Option<&ProofStore>,
    engines: &[Box<dyn Engine>],
    make: bool,
) -> Result<(Vec<Option<Candidate>>, Vec<String>), NotProved> {
    let fault = |why: String| NotProved { why, fault: Fault::Package };
    let (plan, packages) = (&fitted.plan, &fitted.packages);
    let mut candidates = vec![None; plan.pipelines.len()];
    let (mut unproved, mut number) = (Vec::new(), 0);
    for (model, opened) in packages {
        let package = &opened.package;
        let options = plan.proof_options(model);
        let Some(proved) = proof(store, package, engines, &options, make)? else {
            unproved.push(format!("{} {}", package.manifest().name, package.manifest().version));
            continue;
        };
        let facts = open::look_at_all(package, &proved, plan.batch_of(model), engines, &mut number)
            .map_err(|error| fault(error.to_string()))?;
        open::versions(&fitted.config, plan, model, package, &facts).map_err(|why| fault(format!("{model}: {why}")))?;
        for index in plan.uses_of(model) {
            candidates[index] = Some(Candidate {
                version: Arc::clone(&plan.pipelines[index].version),
                full: Arc::clone(&facts[0]),
                reduced: facts.get(1).cloned(),
                ingest: proved.serving.ingest.map(Estimate::from),
            });
        }
    }
    Ok((candidates, unproved))
}

fn proof(
    store: Option<&ProofStore>,
    package: &Package,
    engines: &[Box<dyn Engine>],
    options: &Options,
    make: bool,
) -> Result<Option<Proved>, NotProved> {
    match store {
        Some(store) if make => {
            store.get_or_prove(package, engines, options).map(Some).map_err(|error| NotProved::of(&error))
        }
        Some(store) => Ok(store.choice(package, engines, options)),
        None if make => open::prove_for_now(package, engines, options)
            .map(Some)
            .map_err(|error| NotProved { why: error.to_string(), fault: Fault::Package }),
        None => Ok(None),
    }
}

/// What admission says.
#[derive(Debug, Default)]
pub struct Admission {
    /// Every term of it, for people.
    pub text: String,
    /// A sentence for each pipeline that is refused, with the arithmetic.
    pub refused: Vec<String>,
}

/// Admits as the agent does: all together, or one after the other.
pub fn admit(loaded: &Loaded, fitted: &Fitted, candidates: &[Option<Candidate>]) -> Admission {
    let (config, plan) = (&fitted.config, &fitted.plan);
    let wanted: BTreeMap<usize, Candidate> =
        candidates.iter().enumerate().filter_map(|(index, candidate)| Some((index, candidate.clone()?))).collect();
    if wanted.is_empty() {
        return Admission::default();
    }
    let seen = vec![Seen::default(); plan.sources.len()];
    let trial = || Trial { config, plan, seen: &seen, placed: vec![None; plan.sources.len()] };
    let mut text = terms(&trial(), candidates);
    let (serving, admitted, refused) = introduce(trial(), &vec![None; candidates.len()], wanted);
    if let Some(admitted) = admitted {
        let bytes = trial().memory(&serving, &admitted).unwrap_or_default();
        text += &sums(config, plan, &admitted, &bytes);
    }
    let problem = |(index, refusal): (usize, Refusal)| {
        let key = if matches!(refusal, Refusal::Deadline { .. }) { "deadline" } else { "name" };
        let name = &config.pipelines[index].name;
        let index = loaded.config.pipelines.iter().position(|pipeline| pipeline.name == *name).unwrap_or(index);
        loaded.problem("pipeline", index, key, format!("refused: {refusal}")).to_string()
    };
    Admission { text, refused: refused.into_iter().map(problem).collect() }
}
