//! The configuration and the packages that are there, fitted together.
//!
//! A package at a path is there, or the configuration is wrong. A model of the depot may not have been delivered yet, or
//! its version may not fit what the pipeline gives it: that is no fault of the configuration, so its pipeline waits, and
//! the others run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::CliError;
use crate::config::{Config, Loaded, ModelRef, Name};
use crate::library::{Library, Opened};
use crate::pipeline::plan::{Misfit, Packages, Plan};

/// What can run now, and what cannot yet.
pub struct Fitted {
    /// The configuration, without the pipelines that wait and the sources that feed only those.
    pub config: Config,
    /// What runs.
    pub plan: Arc<Plan>,
    /// The packages that it runs.
    pub packages: Packages,
    /// What waits, and why.
    pub waiting: Vec<Waiting>,
}

/// A pipeline that waits for a version of its model which can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The pipeline.
    pub pipeline: Name,
    /// Its model.
    pub model: ModelRef,
    /// Why.
    pub why: String,
}

/// Fits together what the configuration names and what is there. Where the version of a model that serves does not fit, one
/// that may serve instead is tried: it may have come with this configuration, or have served before another.
///
/// # Errors
/// Everything that is wrong with the configuration or with packages at paths, with the lines that it is about.
pub fn fit(loaded: &Loaded, library: &Library) -> Result<Fitted, CliError> {
    let mut fitted = fit_with(loaded, library, &[])?;
    let misfits: BTreeSet<ModelRef> = fitted.waiting.iter().map(|waiting| waiting.model.clone()).collect();
    let mut others = Vec::new();
    for model in misfits {
        for other in library.instead(&model) {
            others.push(other);
            match fit_with(loaded, library, &others) {
                Ok(better) if better.waiting.iter().all(|waiting| waiting.model != model) => {
                    fitted = better;
                    break;
                }
                _ => _ = others.pop(),
            }
        }
    }
    Ok(fitted)
}

/// Fits together what the configuration names and what is there; of the models of `new`, that instead.
///
/// # Errors
/// As for [`fit`].
pub fn fit_with(loaded: &Loaded, library: &Library, new: &[Opened]) -> Result<Fitted, CliError> {
    let mut waiting = BTreeMap::new();
    let packages = open(loaded, library, new, &mut waiting)?;
    fit_packages(loaded, packages, waiting)
}

/// Fits them together, once they are open; `waiting`: pipelines that have none, with the reason.
///
/// # Errors
/// As for [`fit`].
fn fit_packages(loaded: &Loaded, packages: Packages, mut waiting: BTreeMap<Name, String>) -> Result<Fitted, CliError> {
    loop {
        let config = without(&loaded.config, &waiting);
        match Plan::new(&config, &packages) {
            Ok(plan) => {
                let pipelines = loaded.config.pipelines.iter();
                let waits = |pipeline: &crate::config::Pipeline| {
                    let why = waiting.get(&pipeline.name)?.clone();
                    Some(Waiting { pipeline: pipeline.name.clone(), model: pipeline.model.clone(), why })
                };
                let waiting = pipelines.filter_map(waits).collect();
                return Ok(Fitted { config, plan: Arc::new(plan), packages, waiting });
            }
            Err(misfits) => {
                let before = waiting.len();
                let mut faults = Vec::new();
                for misfit in misfits {
                    let delivered = delivered(&config, &misfit);
                    if delivered.is_empty() {
                        faults.push(problem(loaded, &config, &misfit));
                    }
                    waiting
                        .extend(delivered.into_iter().map(|name| (name, format!("{}: {}", misfit.key, misfit.text))));
                }
                if !faults.is_empty() || waiting.len() == before {
                    return Err(CliError::configuration(faults));
                }
            }
        }
    }
}

/// Opens what the pipelines name; of the models of `new`, that instead. `waiting`: who has none, and why.
///
/// # Errors
/// Packages at paths that cannot be read, with the lines that name them.
fn open(
    loaded: &Loaded,
    library: &Library,
    new: &[Opened],
    waiting: &mut BTreeMap<Name, String>,
) -> Result<Packages, CliError> {
    let mut packages: Packages = new.iter().map(|opened| (opened.model.clone(), opened.clone())).collect();
    let mut faults = Vec::new();
    for (index, pipeline) in loaded.config.pipelines.iter().enumerate() {
        if packages.contains_key(&pipeline.model) {
            continue;
        }
        match (library.current(&pipeline.model), &pipeline.model) {
            (Ok(Some(opened)), _) => _ = packages.insert(pipeline.model.clone(), opened),
            (Ok(None), _) => {
                waiting.insert(pipeline.name.clone(), "no version of its model was delivered yet".into());
            }
            (Err(error), ModelRef::Path(_)) => {
                faults.push(loaded.problem("pipeline", index, "model", error.to_string()).to_string());
            }
            (Err(error), ModelRef::Depot(_)) => _ = waiting.insert(pipeline.name.clone(), error.to_string()),
        }
    }
    if faults.is_empty() { Ok(packages) } else { Err(CliError::configuration(faults)) }
}

/// A configuration without these pipelines and without the sources that feed no other.
fn without(config: &Config, waiting: &BTreeMap<Name, String>) -> Config {
    let mut config = config.clone();
    let feeds = |source: &Name, config: &Config| config.pipelines.iter().any(|pipeline| pipeline.source == *source);
    let fed_nobody: Vec<Name> =
        config.sources.iter().map(|source| source.name.clone()).filter(|name| !feeds(name, &config)).collect();
    config.pipelines.retain(|pipeline| !waiting.contains_key(&pipeline.name));
    let pipelines = &config.pipelines;
    config.sources.retain(|source| {
        // A source that nobody ever reads is a mistake that the plan reports.
        fed_nobody.contains(&source.name) || pipelines.iter().any(|pipeline| pipeline.source == source.name)
    });
    config
}

/// The pipelines with a delivered model that a misfit may come from.
fn delivered(config: &Config, misfit: &Misfit) -> Vec<Name> {
    let concerns = |(index, pipeline): &(usize, &crate::config::Pipeline)| match misfit.list {
        "pipeline" => *index == misfit.index,
        _ => config.sources.get(misfit.index).is_some_and(|source| source.name == pipeline.source),
    };
    let pipelines = config.pipelines.iter().enumerate().filter(concerns);
    pipelines.filter(|(_, p)| p.model.depot().is_some()).map(|(_, pipeline)| pipeline.name.clone()).collect()
}

/// A misfit of the smaller configuration, where it stands in the file.
fn problem(loaded: &Loaded, config: &Config, misfit: &Misfit) -> String {
    let full = &loaded.config;
    let index = match misfit.list {
        "pipeline" => full.pipelines.iter().position(|pipeline| pipeline.name == config.pipelines[misfit.index].name),
        _ => full.sources.iter().position(|source| source.name == config.sources[misfit.index].name),
    };
    loaded.problem(misfit.list, index.unwrap_or(misfit.index), misfit.key, misfit.text.clone()).to_string()
}

/// Whether a version of a model would let the pipelines run that name it: what would run then.
///
/// # Errors
/// What does not fit.
pub fn would_run(loaded: &Loaded, library: &Library, opened: &Opened) -> Result<Fitted, String> {
    let fitted = fit_with(loaded, library, std::slice::from_ref(opened)).map_err(|error| error.to_string())?;
    match fitted.waiting.iter().find(|waiting| waiting.model == opened.model) {
        Some(waiting) => Err(format!("pipeline {}: {}", waiting.pipeline, waiting.why)),
        None => Ok(fitted),
    }
}
