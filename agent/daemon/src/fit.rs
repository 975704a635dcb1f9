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

/// Fits together what the configuration names and what is there.
///
/// # Errors
/// Everything that is wrong with the configuration or with packages at paths, with the lines that it is about.
pub fn fit(loaded: &Loaded, library: &Library) -> Result<Fitted, CliError> {
    open(loaded, library, &[], &BTreeSet::new())?.fit(loaded)
}

/// What pipelines name, open.
pub struct Parts {
    packages: Packages,
    /// Pipelines that have none, and why.
    waiting: BTreeMap<Name, String>,
}

/// Opens what the pipelines name; of the models of `new`, that instead. Pipelines of models in `later` are left out.
///
/// # Errors
/// Packages at paths that cannot be read, with the lines that name them.
pub fn open(loaded: &Loaded, library: &Library, new: &[Opened], later: &BTreeSet<ModelRef>) -> Result<Parts, CliError> {
    let mut packages: Packages = new.iter().map(|opened| (opened.model.clone(), opened.clone())).collect();
    let (mut waiting, mut faults) = (BTreeMap::new(), Vec::new());
    for (index, pipeline) in loaded.config.pipelines.iter().enumerate() {
        if packages.contains_key(&pipeline.model) {
            continue;
        }
        if later.contains(&pipeline.model) {
            waiting.insert(pipeline.name.clone(), "another version of its model comes".to_owned());
            continue;
        }
        let why = match (library.current(&pipeline.model), &pipeline.model) {
            (Ok(Some(opened)), _) => {
                packages.insert(pipeline.model.clone(), opened);
                continue;
            }
            (Ok(None), _) => "no version of its model was delivered yet".to_owned(),
            (Err(error), ModelRef::Path(_)) => {
                faults.push(loaded.problem("pipeline", index, "model", error.to_string()).to_string());
                continue;
            }
            (Err(error), ModelRef::Depot(_)) => error.to_string(),
        };
        waiting.insert(pipeline.name.clone(), why);
    }
    if faults.is_empty() { Ok(Parts { packages, waiting }) } else { Err(CliError::configuration(faults)) }
}

impl Parts {
    /// Fits them together.
    ///
    /// # Errors
    /// As for [`fit`].
    pub fn fit(self, loaded: &Loaded) -> Result<Fitted, CliError> {
        let Self { packages, mut waiting } = self;
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
                        let why = format!("{}: {}", misfit.key, misfit.text);
                        waiting.extend(delivered.into_iter().map(|name| (name, why.clone())));
                    }
                    if !faults.is_empty() || waiting.len() == before {
                        return Err(CliError::configuration(faults));
                    }
                }
            }
        }
    }
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

/// Whether a version of a model, the last of `new`, would let the pipelines run that name it, beside what is here and the
/// others of `new`: what would run then. Pipelines of models in `later` are left out.
///
/// # Errors
/// What does not fit.
pub fn would_run(
    loaded: &Loaded,
    library: &Library,
    new: &[Opened],
    later: &BTreeSet<ModelRef>,
) -> Result<Fitted, String> {
    let parts = open(loaded, library, new, later);
    let fitted = parts.and_then(|parts| parts.fit(loaded)).map_err(|error| error.to_string())?;
    let of_it = |waiting: &&Waiting| new.last().is_some_and(|opened| opened.model == waiting.model);
    match fitted.waiting.iter().find(of_it) {
        Some(waiting) => Err(format!("pipeline {}: {}", waiting.pipeline, waiting.why)),
        None => Ok(fitted),
    }
}
