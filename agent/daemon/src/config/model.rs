//! Which package a pipeline runs: one at a path, or whatever version the depot has for it.

use std::cmp::Ordering;
use std::fmt;
use std::path::{Path, PathBuf};

use limpet_wire::name::check_name;
use semver::VersionReq;
use serde::{Serialize, Serializer};

use super::Name;

/// Which package a pipeline runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelRef {
    /// A folder or a `.limpet` file.
    Path(PathBuf),
    /// The version of this model that the depot has for this gateway.
    Depot(DepotModel),
}

/// A model of the depot, and the versions of it that may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepotModel {
    /// Name of the model.
    pub name: Name,
    /// Its versions.
    pub range: VersionReq,
}

impl ModelRef {
    /// Reads `name`, `name@range`, or a path; a path has a slash or ends in `.limpet`. `place` makes it absolute.
    ///
    /// # Errors
    /// What was found and what was expected.
    pub fn parse(text: &str, place: impl FnOnce(&Path) -> PathBuf) -> Result<Self, String> {
        if text.contains('/') || text.ends_with(".limpet") {
            return Ok(Self::Path(place(Path::new(text))));
        }
        let (name, range) = text.split_once('@').unwrap_or((text, "*"));
        check_name(name).map_err(|error| {
            format!("{error}; write the name of a model of the depot with a range, such as \"motor-health@^1\", or a path to a package")
        })?;
        let range = VersionReq::parse(range).map_err(|error| {
            format!(
                "found '{}', which is no range of versions ({error}); write e.g. \"{name}@^1\" or \"{name}@~2.1\"",
                range.escape_debug()
            )
        })?;
        let name = Name::parse(name).map_err(|error| error.to_string())?;
        Ok(Self::Depot(DepotModel { name, range }))
    }

    /// The model of the depot, if it is one.
    pub fn depot(&self) -> Option<&DepotModel> {
        match self {
            Self::Path(_) => None,
            Self::Depot(model) => Some(model),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Depot(model) => write!(f, "{}@{}", model.name, model.range),
        }
    }
}

impl Serialize for ModelRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Ord for DepotModel {
    fn cmp(&self, other: &Self) -> Ordering {
        // A range has no order of its own.
        self.name.cmp(&other.name).then_with(|| self.range.to_string().cmp(&other.range.to_string()))
    }
}

impl PartialOrd for DepotModel {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
