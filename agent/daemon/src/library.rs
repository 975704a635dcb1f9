//! Where packages are, and how they are opened: at a path, or in the store of what the depot delivered.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use limpet_depot::store::{Record, Rejection};
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
    /// The version.
    pub version: String,
    /// What happened, in a sentence.
    pub story: String,
}

/// A version that could not be opened, so that the one before it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoodIn {
    /// Name of the model.
    pub model: String,
    /// The version that could not be opened.
    pub version: String,
    /// What happened, in a sentence.
    pub story: String,
}

/// Opens packages.
#[derive(Debug, Clone, Default)]
pub struct Library {
    store: Option<Store>,
    /// Shared by clones; each once.
    stood_in: Arc<Mutex<Vec<StoodIn>>>,
}

impl Library {
    /// One with the store of this gateway, if its configuration has a depot.
    ///
    /// # Errors
    /// If the store cannot be opened.
    pub fn new(config: &Config) -> Result<Self, DepotError> {
        let store = config.depot.as_ref().map(|_| Store::open(&config.gateway.state)).transpose()?;
        Ok(Self { store, ..Self::default() })
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

    /// Opens a version of a model that is in the store. `name` is the model's.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn stored(&self, model: &ModelRef, name: &str, version: &str) -> Result<Opened, DepotError> {
        self.open_for(model, Place::Stored { model: name.to_owned(), version: version.to_owned() })
    }

    fn open_for(&self, model: &ModelRef, place: Place) -> Result<Opened, DepotError> {
        let package = Arc::new(self.open(&place)?);
        Ok(Opened { model: model.clone(), place, package })
    }

    /// Opens the package that a model has now; none if no version of it was delivered yet.
    ///
    /// If the version that should serve cannot be opened, what may serve [instead](Record::instead) is, which
    /// [`Library::stood_in`] tells of. The record is as it was: what is damaged is fetched again, and takes over when it is
    /// whole.
    ///
    /// # Errors
    /// If the store's record of it cannot be read, and as for [`open`](Self::open), of the version that should serve.
    pub fn current(&self, model: &ModelRef) -> Result<Option<Opened>, DepotError> {
        let (reference, store) = match (model, &self.store) {
            (ModelRef::Path(path), _) => return self.open_for(model, Place::Path(path.clone())).map(Some),
            (ModelRef::Depot(_), None) => return Ok(None),
            (ModelRef::Depot(reference), Some(store)) => (reference, store),
        };
        let record = store.record(&reference.name)?;
        let Some(active) = &record.active else { return Ok(None) };
        let name = reference.name.to_string();
        let error = match self.stored(model, &name, &active.version) {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) => error,
        };
        for before in record.instead(&reference.range) {
            match self.stored(model, &name, &before.version) {
                Ok(opened) => {
                    let story = format!(
                        "{name} {} cannot be opened, {} serves until it is whole: {error}",
                        active.version, before.version
                    );
                    self.stands_in(StoodIn { model: name, version: active.version.clone(), story });
                    return Ok(Some(opened));
                }
                Err(error) => {
                    tracing::error!(model = name, version = before.version, %error, "cannot be opened either");
                }
            }
        }
        Err(error)
    }

    /// Remembers what [`stood_in`](Self::stood_in) tells of, and logs it.
    fn stands_in(&self, stood_in: StoodIn) {
        let mut all = self.stood_in.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |one: &StoodIn| (&one.model, &one.version) == (&stood_in.model, &stood_in.version);
        if !all.iter().any(same) {
            tracing::error!("{}", stood_in.story);
            all.push(stood_in);
        }
    }

    /// The versions that could not be opened so far, so that others were: each once.
    pub fn stood_in(&self) -> Vec<StoodIn> {
        self.stood_in.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
            let mut stood_in = false;
            // With nothing to go back to it stays on record, and is refused at every start until it changes.
            let changed = store.update_record(&manifest.name, |record| {
                stood_in = stands_in(record, &version);
                if stood_in {
                    // What it stood in for stays on record; another one before that may stand in for it.
                    record.previous.retain(|one| one.version != version);
                    record.rejected.insert(opened.package.digest().to_string(), rejection);
                } else {
                    record.go_back(Some(rejection));
                }
            });
            match changed {
                Ok(record) => {
                    let now = record.active.filter(|active| active.version != version);
                    let Some(now) = now else { continue };
                    let becomes = if stood_in { "is not stood in for by it" } else { "serves again" };
                    let story = format!("{} {version} was taken back, {} {becomes}: {why}", manifest.name, now.version);
                    tracing::error!("{story}");
                    taken.push(TakenBack { model: manifest.name.clone(), version: version.to_string(), story });
                }
                Err(error) => {
                    tracing::error!(model = manifest.name, %error, "a version that crashes cannot be taken back")
                }
            }
        }
        taken
    }
}

/// Whether a version is one that stands in for what is active.
fn stands_in(record: &Record, version: &str) -> bool {
    let is_active = record.active.as_ref().is_some_and(|active| active.version == version);
    !is_active && record.installed().any(|one| one.version == version)
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
