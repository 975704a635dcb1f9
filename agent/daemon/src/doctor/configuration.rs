//! Whether the configuration is one.

use std::path::Path;

use super::Finding;
use crate::CliError;
use crate::config::{self, Loaded};

const CHECK: &str = "configuration";

/// Reads it; gives it if it is one.
pub fn check(path: &Path) -> (Vec<Finding>, Option<Loaded>) {
    match config::read(path) {
        Ok(loaded) => {
            let (sources, pipelines) = (loaded.config.sources.len(), loaded.config.pipelines.len());
            let found = format!("{}: {sources} sources, {pipelines} pipelines", path.display());
            (vec![Finding::ok(CHECK, found)], Some(loaded))
        }
        Err(CliError::Configuration(problems)) => {
            let todo = "put it right; limpet check says whether it is";
            (problems.into_iter().map(|problem| Finding::error(CHECK, problem, todo)).collect(), None)
        }
        Err(other) => (vec![Finding::error(CHECK, other.to_string(), "make it readable for whoever runs this")], None),
    }
}
