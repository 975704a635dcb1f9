//! What a person does with delivered models on the gateway: `limpet depot import` and `limpet store check`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use limpet_depot::Store;
use limpet_depot::fetch::{self, Bounds, Progress};
use limpet_depot::remote::{Folder, Remote};
use limpet_depot::select::{self, Choice, Gateway};
use limpet_depot::store::{Configuration, Missing};
use limpet_depot::trust::{Trusted, Update};

use crate::cli::{ImportArgs, StoreCheckArgs};
use crate::config::{self, Config, Depot, Loaded};
use crate::{CliError, api, configured, console, delivery};

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
    let mut models = BTreeMap::new();
    // What may take effect may need another version than what is: each that is offered.
    let mut others = BTreeSet::new();
    for (number, configuration) in configurations.iter().enumerate() {
        match configured::apply(path, file, configuration.as_ref()) {
            Ok(loaded) if number == 0 => models.extend(delivery::wanted(&loaded.config)),
            Ok(loaded) => {
                for (model, (_, range)) in delivery::wanted(&loaded.config) {
                    let offered = select::offered(trusted, &gateway, &model, &range, time);
                    others.extend(offered.into_iter().map(|version| (model.clone(), version)));
                }
            }
            Err(error) => say(&format!("{}: {error}", configured::name(configuration.as_ref())))?,
        }
    }
    if models.is_empty() && others.is_empty() {
        say("no pipeline names a model of the depot, so nothing is fetched")?;
    }
    for (model, (_, range)) in &models {
        let record = store.record(model).map_err(refuse)?;
        let active = record.active.as_ref().map(|active| active.version.as_str());
        match select::choose(trusted, &gateway, model, range, active, &|_| false, time) {
            Choice::Stay(why) => say(&format!("{model}: {why}"))?,
            Choice::Withdrawn { .. } => say(&format!("{model}: what serves was withdrawn"))?,
            Choice::Take(version) => _ = others.insert((model.clone(), version)),
        }
    }
    for (model, version) in others {
        let index = fetch::index(trusted, store, remote.as_ref(), &model, &version).await.map_err(refuse)?;
        let missing = store.missing(&index).len();
        let bounds = Bounds { rate: RATE, disk: depot.disk.0 };
        fetch::chunks(store, remote.as_ref(), &index, bounds, &|_: Progress| {}).await.map_err(refuse)?;
        fetch::open(store, &index).map_err(refuse)?;
        let chunks = index.chunks.len();
        say(&format!("{model} {version}: {missing} of {chunks} chunks were copied, all are there"))?;
    }
    Ok(())
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
