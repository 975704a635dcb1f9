//! Where packages are, and how they are opened: at a path, or in the store of what the depot delivered.

use std::path::PathBuf;
use std::sync::Arc;

use limpet_depot::store::Rejection;
use limpet_depot::{DepotError, Digest, Package, Store};

use crate::config::{Config, ModelRef};
use crate::pipeline::plan::Packages;

/// Where one package can be read, and read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder or a `.limpet` file.
    Path(PathBuf),
    /// One version of a model in the store.
    Stored {
        /// Name of the model.
        model: String,
        /// Its version.
        version: String,
    },
}

/// A package that was opened: for whom, from where, and what it is.
#[derive(Debug, Clone)]
pub struct Opened {
    /// What the configuration says of it.
    pub model: ModelRef,
    /// Where it can be read again.
    pub place: Place,
    /// The package.
    pub package: Arc<Package>,
}

/// A version that was taken back before anything ran.
pub struct TakenBack {
    /// Name of the model.
    pub model: String,
    /// What happened, in a sentence.
    pub story: String,
}

/// Opens packages.
#[derive(Debug, Clone, Default)]
pub struct Library {
    store: Option<Store>,
}

impl Library {
    /// One with the store of this gateway, if its configuration has a depot.
    ///
    /// # Errors
    /// If the store cannot be opened.
    pub fn new(config: &Config) -> Result<Self, DepotError> {
        let store = config.depot.as_ref().map(|_| Store::open(&config.gateway.state)).transpose()?;
        Ok(Self { store })
    }

    /// One with what the store holds, if it is there already: for whoever only looks, and need not be who runs the agent.
    ///
    /// # Errors
    /// If the store is there and cannot be opened.
    pub fn read_only(config: &Config) -> Result<Self, DepotError> {
        let there = config.gateway.state.join("depot").is_dir();
        if there { Self::new(config) } else { Ok(Self::default()) }
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Opens a package.
    ///
    /// # Errors
    /// Why it cannot be read, or what is wrong with it.
    pub fn open(&self, place: &Place) -> Result<Package, DepotError> {
        match place {
            Place::Path(path) => Package::open(path),
            Place::Stored { model, version } => {
                let index = self.store.as_ref().map(|store| store.index(model, version)).transpose()?.flatten();
                let missing = || DepotError::Package {
                    path: PathBuf::from(format!("{model} {version}")),
                    reason: "is not in the store".into(),
                };
                let (store, index) = self.store.as_ref().zip(index).ok_or_else(missing)?;
                store.package(&index)
            }
        }
    }

    /// Opens the package that a model has now; none if no version of it was delivered yet.
    ///
    /// # Errors
    /// As for [`place`](Self::place) and [`open`](Self::open).
    pub fn current(&self, model: &ModelRef) -> Result<Option<Opened>, DepotError> {
        let Some(place) = self.place(model)? else { return Ok(None) };
        let package = Arc::new(self.open(&place)?);
        Ok(Some(Opened { model: model.clone(), place, package }))
    }

    /// Takes back delivered versions that ended the process too often, and says so. `blamed` tells why a package may not
    /// run.
    pub fn take_back(&self, packages: &Packages, blamed: impl Fn(&Package) -> Option<String>) -> Vec<TakenBack> {
        let mut taken = Vec::new();
        for opened in packages.values() {
            let (Some(store), Some(_), Some(why)) = (&self.store, opened.model.depot(), blamed(&opened.package)) else {
                continue;
            };
            let manifest = opened.package.manifest();
            let version = manifest.version.to_string();
            let at = Some(jiff::Timestamp::now());
            let rejection = Rejection { version: version.clone(), reason: why.clone(), at, under: None };
            // With nothing to go back to it stays on record, and is refused at every start until it changes.
            let changed = store.update_record(&manifest.name, |record| _ = record.go_back(Some(rejection)));
            match changed {
                Ok(record) => {
                    let now = record.active.filter(|active| active.version != version);
                    let Some(now) = now else { continue };
                    let story =
                        format!("{} {version} was taken back, {} serves again: {why}", manifest.name, now.version);
                    tracing::error!("{story}");
                    taken.push(TakenBack { model: manifest.name.clone(), story });
                }
                Err(error) => {
                    tracing::error!(model = manifest.name, %error, "a version that crashes cannot be taken back")
                }
            }
        }
        taken
    }

    /// Where the package of a model is now; none if no version of it was delivered yet.
    ///
    /// # Errors
    /// If the store's record of it cannot be read.
    pub fn place(&self, model: &ModelRef) -> Result<Option<Place>, DepotError> {
        match (model, &self.store) {
            (ModelRef::Path(path), _) => Ok(Some(Place::Path(path.clone()))),
            (ModelRef::Depot(_), None) => Ok(None),
            (ModelRef::Depot(model), Some(store)) => {
                let active = store.record(&model.name)?.active;
                Ok(active.map(|active| Place::Stored { model: model.name.to_string(), version: active.version }))
            }
        }
    }
}

/// What a proof was made under: another agent may have other engines.
pub fn this_agent() -> String {
    format!("agent {}", env!("CARGO_PKG_VERSION"))
}

/// What a version was checked and admitted under.
pub fn this_configuration(config: &Config) -> String {
    let parts = (&config.sources, &config.pipelines, config.budget);
    let text = serde_json::to_vec(&parts).expect("all keys of the configuration are strings");
    format!("{}, configuration {}", this_agent(), Digest::of(&text))
}

/// Whether a rejection still counts.
pub fn still_counts(under: Option<&str>, config: &Config) -> bool {
    under.is_none_or(|under| under == this_agent() || under == this_configuration(config))
}
