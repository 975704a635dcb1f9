//! What a person does with delivered models on the gateway: `limpet depot import` and `limpet store check`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use limpet_depot::fetch::{self, Bounds, FetchError, Progress};
use limpet_depot::remote::{Folder, Remote};
use limpet_depot::select::{self, Choice, Gateway};
use limpet_depot::store::{Configuration, Missing, Record};
use limpet_depot::trust::{Trusted, Update};
use limpet_depot::{Package, Store};
use semver::VersionReq;

use crate::cli::{ImportArgs, StoreCheckArgs};
use crate::config::{self, Config, Depot, Loaded, ModelRef};
use crate::library::{Library, Opened, Place};
use crate::{CliError, api, configured, console, delivery, fit};

/// Nothing slows a folder down.
const RATE: u64 = u64::MAX;

/// Brings what a depot in a folder has for this gateway into the store, and tells the agent.
///
/// # Errors
/// What is wrong with the configuration, the folder, or what is signed in it. What runs goes on.
pub fn import(args: &ImportArgs) -> Result<(), CliError> {
    let path = &args.config.config;
    let file = config::read(path)?;
    let depot = depot(&file.config)?;
    let store = Store::open(&file.config.gateway.state).map_err(refuse)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    // Until the agent has heard of it, nothing that came is anybody's.
    let hold = store.hold().map_err(refuse)?;
    runtime.block_on(bring(path, &file, &depot, &store, &args.folder))?;
    let config = file.config;
    let told = if api::client::reload(&config.gateway.run)? {
        "the agent that runs takes it up now"
    } else {
        "no agent runs; the next one takes it up when it starts"
    };
    drop(hold);
    say(told)?;
    Ok(())
}

async fn bring(path: &Path, file: &Loaded, depot: &Depot, store: &Store, folder: &Path) -> Result<(), CliError> {
    let config = &file.config;
    let mut trust = delivery::trust(config, depot).map_err(refuse)?;
    trust.warnings().iter().for_each(console::tell);
    let remote: Arc<dyn Remote> = Arc::new(Folder::new(folder));
    let clock = delivery::clock();
    match trust.update(Arc::clone(&remote), || clock).await.map_err(refuse)? {
        Update::Same => say("the metadata is the one that is trusted already")?,
        Update::New => say("the metadata is signed as it must be, and newer than what was trusted")?,
    };
    let Some(trusted) = trust.trusted() else { return Ok(()) };
    let time = trust.judge(clock).time;
    let gateway = delivery::gateway(config, depot);
    let configurations = configurations(trusted, &gateway, store, remote.as_ref()).await?;
    let import = Import { trusted, gateway: &gateway, time, store, remote: remote.as_ref(), disk: depot.disk.0 };
    let mut nothing = true;
    for (number, configuration) in configurations.iter().enumerate() {
        let loaded = match configured::apply(path, file, configuration.as_ref()) {
            Ok(loaded) => loaded,
            Err(error) => {
                say(&format!("{}: {error}", configured::name(configuration.as_ref())))?;
                continue;
            }
        };
        let models = delivery::wanted(&loaded.config);
        nothing &= models.is_empty();
        for (model, (reference, range)) in &models {
            let others = models.values().map(|(other, _)| other).filter(|other| *other != reference).cloned().collect();
            // What may take effect may need another version than what serves.
            let record = if number == 0 { store.record(model).map_err(refuse)? } else { Record::default() };
            let active = record.active.as_ref().map(|active| active.version.as_str());
            import.newest((&loaded, &others), (model, reference, range), active).await?;
        }
    }
    if nothing {
        say("no pipeline names a model of the depot, so nothing is fetched")?;
    }
    Ok(())
}

/// What versions are copied from and to.
struct Import<'a> {
    trusted: &'a Trusted,
    gateway: &'a Gateway,
    time: Timestamp,
    store: &'a Store,
    remote: &'a dyn Remote,
    disk: u64,
}

impl Import<'_> {
    /// Copies the newest version of a model that is to take the place of what is `active`, and fits a configuration, as far as
    /// the pipelines of the `others` let that be seen.
    async fn newest(
        &self,
        (loaded, others): (&Loaded, &BTreeSet<ModelRef>),
        (model, reference, range): (&str, &ModelRef, &VersionReq),
        active: Option<&str>,
    ) -> Result<(), CliError> {
        let library = Library::read_only(&loaded.config).map_err(refuse)?;
        let mut unfit = BTreeSet::new();
        loop {
            let rejected = |version: &str| unfit.contains(version);
            let version = match select::choose(self.trusted, self.gateway, model, range, active, &rejected, self.time) {
                Choice::Stay(_) if !unfit.is_empty() => return Ok(()),
                Choice::Stay(why) => return say(&format!("{model}: {why}")),
                Choice::Withdrawn { .. } => return say(&format!("{model}: what serves was withdrawn")),
                Choice::Take(version) => version,
            };
            // What cannot be copied is not hidden by an older one that can.
            let package = Arc::new(self.copy(model, &version).await.map_err(refuse)?);
            let place = Place::Stored { model: model.to_owned(), version: version.clone() };
            let opened = Opened { model: reference.clone(), place, package };
            match fit::would_run(loaded, &library, &[opened], others) {
                Ok(_) => return Ok(()),
                Err(why) => say(&format!("{model} {version} does not fit, and an older one is looked for: {why}"))?,
            }
            unfit.insert(version);
        }
    }

    async fn copy(&self, model: &str, version: &str) -> Result<Package, FetchError> {
        let index = fetch::index(self.trusted, self.store, self.remote, model, version).await?;
        let missing = self.store.missing(&index).len();
        let bounds = Bounds { rate: RATE, disk: self.disk };
        fetch::chunks(self.store, self.remote, &index, bounds, &|_: Progress| {}).await?;
        let package = fetch::open(self.store, &index)?;
        let chunks = index.chunks.len();
        // Whoever closed the pipe hears of it at the next word.
        _ = say(&format!("{model} {version}: {missing} of {chunks} chunks were copied, all are there"));
        Ok(package)
    }
}

/// The configurations whose models may be needed: first the one in effect, then what is signed for this gateway, which is
/// brought.
async fn configurations(
    trusted: &Trusted,
    gateway: &Gateway,
    store: &Store,
    remote: &dyn Remote,
) -> Result<Vec<Option<Configuration>>, CliError> {
    let configured = store.configured().map_err(refuse)?;
    let mut all = vec![configured.active.clone()];
    let Some(target) = select::configuration(trusted, gateway).map_err(refuse)? else {
        // The file alone takes effect again.
        all.extend(configured.active.is_some().then_some(None));
        return Ok(all);
    };
    if configured.active.is_some_and(|active| active.digest().0 == trusted.targets[target].sha256) {
        return Ok(all);
    }
    let staged = fetch::configuration(trusted, store, remote, target).await.map_err(refuse)?;
    say(&format!("{target}: is here; it takes effect when it was checked and admitted"))?;
    all.push(Some(staged));
    Ok(all)
}

/// Reads the whole store, and says what is damaged, missing or not needed.
///
/// # Errors
/// [`CliError::No`] if something is wrong and was not repaired.
pub fn check_store(args: &StoreCheckArgs) -> Result<(), CliError> {
    let config = config::read(&args.config.config)?.config;
    depot(&config)?;
    let store = Store::open(&config.gateway.state).map_err(refuse)?;
    let checked = store.check(args.repair).map_err(refuse)?;
    for notice in store.notices() {
        say(&notice)?;
    }
    for damaged in &checked.damaged {
        say(&damaged.reason)?;
    }
    for Missing { model, version, chunks } in &checked.missing {
        let what = chunks.map_or_else(|| "its index".to_owned(), |chunks| format!("{chunks} chunks"));
        say(&format!("{model} {version}: {what} missing"))?;
    }
    let stray = checked.stray.len();
    let text = format!(
        "{} chunks were read: {} damaged, {} missing, {stray} files that nobody needs",
        checked.chunks,
        checked.damaged.len(),
        checked.missing.len()
    );
    say(&text)?;
    let good = checked.damaged.is_empty() && checked.missing.is_empty();
    if args.repair && !good {
        let told = api::client::reload(&config.gateway.run)?;
        let who = if told { "the agent fetches what is missing now" } else { "the next agent fetches what is missing" };
        say(&format!("damaged files were removed; {who}"))?;
        return Ok(());
    }
    if good { Ok(()) } else { Err(CliError::No) }
}

fn say(text: &str) -> Result<(), CliError> {
    console::print(format!("{text}\n").as_bytes())?;
    Ok(())
}

fn depot(config: &Config) -> Result<Depot, CliError> {
    config.depot.clone().ok_or_else(|| {
        let text = "there is no [depot] in the configuration, so no models are delivered; add it with 'root = \"/etc/limpet/root.json\"'";
        CliError::configuration(vec![text.to_owned()])
    })
}

fn refuse(error: impl std::fmt::Display) -> CliError {
    CliError::Other(anyhow::anyhow!("{error}"))
}
