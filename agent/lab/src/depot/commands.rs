//! The commands of a publisher, but for `status`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use jiff::Timestamp;
use limpet_depot::Package;
use limpet_depot::publish::config::{Addressee, check};
use limpet_depot::publish::publisher::ROOT_FILE;
use limpet_depot::publish::{
    Home, KeyRing, Listed, Problem, PublishError, Published, Publisher, ReleaseChange, Role, RoleKeys, Set, Signers,
    init,
};
use limpet_depot::remote::Shelf;
use limpet_wire::depot::{Hex, Release};
use serde_json::json;

use super::cli::{
    AccessArgs, CountArgs, DepotArgs, DepotCommand, InitArgs, ListArgs, PublishArgs, RolloutArgs, RotateArgs, WhoArgs,
};
use super::interrupt;
use super::place::{Bar, make, new_passphrase, patience, ring, shelf};
use super::{status, swarm};
use crate::bench::text::{table, thousands};
use crate::{pack, unavailable, usage};

/// Metadata that only offline keys sign is spoken of when it ends within so many days.
const WARN_DAYS: i64 = 60;
/// Problems that are listed.
const SHOWN: usize = 20;

/// Runs `limpet-lab depot`.
///
/// # Errors
/// Whatever went wrong, with what to do.
pub fn run(args: DepotArgs) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime did not start")?;
    // What only looks needs no farewell.
    if !matches!(args.command, DepotCommand::List(_) | DepotCommand::Status(_)) {
        interrupt::listen()?;
    }
    runtime.block_on(command(args.command)).map_err(|error| match error.downcast_ref::<PublishError>() {
        Some(PublishError::Silent { .. }) => unavailable(error.to_string()),
        _ => error,
    })
}

async fn command(command: DepotCommand) -> anyhow::Result<ExitCode> {
    match command {
        DepotCommand::Init(args) => return initialize(&args).await,
        DepotCommand::Publish(args) => return publish(&args).await,
        DepotCommand::List(args) => return list(&args).await,
        DepotCommand::Status(args) => return status::run(args).await,
        // Its gateways are threads with runtimes of their own; nothing else is to be done here meanwhile.
        DepotCommand::Swarm(args) => return swarm::run(&args),
        DepotCommand::Rollout(args) => return rollout(&args).await,
        DepotCommand::RotateKeys(args) => return rotate(&args).await,
        DepotCommand::Withdraw(args) => {
            let open = Open::new(&args.access).await?;
            let changed = open.publisher()?.withdraw(&args.model, &args.version, args.remove).await?;
            let is = if changed { "is" } else { "was already" };
            println!(
                "{} {} {is} withdrawn; gateways that have it return to an older version",
                args.model, args.version
            );
        }
        DepotCommand::Refresh(args) => {
            let open = Open::new(&args.access).await?;
            let mut publisher = open.publisher()?;
            let signed = publisher.refresh(args.offline).await?;
            let names: Vec<&str> = signed.into_iter().map(Role::name).collect();
            let end = publisher.set().expires(Role::Timestamp);
            println!("signed anew: {}; the timestamp ends {}", names.join(", "), show_time(end));
            warn_of_ends(publisher.set());
        }
        DepotCommand::Gc(args) => {
            let open = Open::new(&args.access).await?;
            let removed = open.publisher()?.collect(args.grace).await?;
            println!("{} objects removed; {} wait for {:#} to pass", removed.objects, removed.waiting, args.grace);
        }
        DepotCommand::Verify(args) => {
            let open = Open::new(&args.access).await?;
            let publisher = open.publisher()?;
            let checked = publisher.verify().await?;
            println!("{} objects read, {} bytes are right", checked.objects, thousands(checked.bytes));
            if !checked.problems.is_empty() {
                show_problems(&checked.problems);
                let packages: BTreeSet<&str> = checked.problems.iter().filter_map(|p| p.of.as_deref()).collect();
                let which = if packages.is_empty() {
                    String::new()
                } else {
                    format!(" with the packages of {}", packages.into_iter().collect::<Vec<_>>().join(", "))
                };
                anyhow::bail!(
                    "{} objects are missing or damaged; `limpet-lab depot repair`{which} puts them back",
                    checked.problems.len()
                );
            }
        }
        DepotCommand::Repair(args) => {
            make(&args.access.place)?;
            let open = Open::new(&args.access).await?;
            let packages = packages(&args.packages)?;
            let repaired = open.publisher()?.repair(&packages).await?;
            println!("{} objects put back, {} bytes", repaired.sent, thousands(repaired.bytes));
            if !repaired.left.is_empty() {
                show_problems(&repaired.left);
                anyhow::bail!(
                    "{} objects are still missing; give the packages that they belong to as arguments",
                    repaired.left.len()
                );
            }
        }
        DepotCommand::Configure(args) => {
            let addressee = match (&args.gateway, &args.label) {
                (Some(id), _) => Addressee::gateway(id)?,
                (None, Some(label)) => Addressee::label(label)?,
                (None, None) => return Err(usage("for whom? Give --gateway ID or --label KEY=VALUE")),
            };
            let text = match &args.file {
                Some(file) => {
                    let text =
                        std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
                    check(&file.display().to_string(), &text)?;
                    Some(text)
                }
                None => None,
            };
            let open = Open::new(&args.access).await?;
            let changed = open.publisher()?.configure(&addressee, text.as_deref()).await?;
            let done = if text.is_some() { "is signed and there" } else { "was taken away" };
            println!("{} {}", addressee.path(), if changed { done } else { "was there already; nothing changed" });
        }
        DepotCommand::ChunksUrl(args) => {
            let open = Open::new(&args.access).await?;
            let changed = open.publisher()?.set_chunks_url(args.url.as_deref()).await?;
            let url = args.url.as_deref().unwrap_or("the depot itself");
            println!("gateways have chunks from {url}{}", if changed { "" } else { ", as before" });
        }
        DepotCommand::Adopt(args) => {
            let open = Open::new(&args.access).await?;
            let taken = open.publisher()?.adopt().await?;
            let what = if taken { "took over what the depot has" } else { "the depot has what this copy has" };
            println!("{what}; publish from one place only");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a command works with.
pub(super) struct Open {
    shelf: Box<dyn Shelf>,
    ring: KeyRing,
    bar: Bar,
    patience: std::time::Duration,
}

impl Open {
    pub(super) async fn new(access: &AccessArgs) -> anyhow::Result<Self> {
        let AccessArgs { place, keys } = access;
        // Wrong keys are found before a broker is waited for.
        let ring = ring(keys, None)?;
        Set::load(&Home::open(ring.folder())?)?;
        Ok(Self { shelf: shelf(place).await?, ring, bar: Bar::new(), patience: patience(place) })
    }

    /// Whether the rollout of a version can be changed: it is there, and the keys are at hand and open.
    pub(super) fn check_rollout(&self, model: &str, version: &str) -> anyhow::Result<()> {
        let publisher = self.publisher()?;
        publisher.release_of(model, version)?;
        Signers::read(&self.ring, publisher.set(), &[Role::Rollout, Role::Snapshot, Role::Timestamp])?;
        Ok(())
    }

    pub(super) fn publisher(&self) -> Result<Publisher<'_>, PublishError> {
        Publisher::open(&*self.shelf, &self.ring, Timestamp::now(), self.patience, &self.bar)
    }
}

fn role_keys(args: &CountArgs, before: &dyn Fn(Role) -> RoleKeys) -> BTreeMap<Role, RoleKeys> {
    let mut roles: BTreeMap<Role, RoleKeys> = BTreeMap::new();
    for (role, threshold) in &args.threshold {
        let keys = roles.entry(*role).or_insert_with(|| before(*role));
        *keys = RoleKeys { threshold: *threshold, count: keys.count.max(*threshold) };
    }
    for (role, count) in &args.key_count {
        roles.entry(*role).or_insert_with(|| before(*role)).count = *count;
    }
    roles
}

async fn initialize(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let beside = {
        let mut name = args.access.keys.keys.as_os_str().to_owned();
        name.push("-offline");
        PathBuf::from(name)
    };
    let offline = args.offline_root.then_some(beside.as_path());
    let ring = ring(&args.access.keys, offline)?;
    make(&args.access.place)?;
    let shelf = shelf(&args.access.place).await?;
    let fresh = !args.access.keys.keys.join("metadata/set.json").exists();
    if args.access.place.broker.is_some() && fresh {
        eprintln!("asking the broker whether it has a depot already, {} s at most", args.access.place.patience);
    }
    let passphrase = if fresh { new_passphrase(&args.access.keys, args.counts.no_passphrase)? } else { None };
    let roles = role_keys(&args.counts, &|_| RoleKeys::default());
    let made = init(&ring, &roles, args.chunks_url.as_deref(), passphrase.as_ref(), Timestamp::now())?;
    let bar = Bar::new();
    let mut publisher = Publisher::open(&*shelf, &ring, Timestamp::now(), patience(&args.access.place), &bar)?;
    publisher.settle().await?;
    let keys = args.access.keys.keys.display();
    if made {
        let how = if passphrase.is_some() { "encrypted" } else { "not encrypted" };
        println!("new keys in {keys}, {how}; keep a backup of that folder");
        if let Some(offline) = args.access.keys.offline_keys.as_deref().or(offline) {
            println!(
                "the keys of root and targets are in {}: move it away from this machine, and name it with \
                 --offline-keys to publish",
                offline.display()
            );
        }
    } else {
        println!("the keys in {keys} stay as they are");
    }
    println!("the depot at {} is ready", shelf.place());
    println!(
        "install {} on the gateways, and name it as `root` under [depot]",
        Path::new(&args.access.keys.keys).join(ROOT_FILE).display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Opens packages, and refuses those whose golden vectors prove nothing.
fn packages(paths: &[PathBuf]) -> anyhow::Result<Vec<Package>> {
    paths.iter().map(|path| pack::open(path)).collect()
}

fn change(who: &WhoArgs) -> ReleaseChange {
    ReleaseChange {
        channels: (!who.channel.is_empty()).then(|| who.channel.clone()),
        percent: who.percent,
        labels: (!who.label.is_empty()).then(|| who.label.iter().cloned().collect()),
        not_before: who.not_before.map(|bound| bound.0),
        not_after: who.not_after.map(|bound| bound.0),
        halted: None,
    }
}

async fn publish(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    let packages = packages(&args.packages)?;
    let mut not_run = BTreeMap::new();
    for package in &packages {
        // A file too: nobody knows whether the graphs in it were run when it was packed.
        let left = pack::run_or_warn(package, args.prove)?;
        let manifest = package.manifest();
        not_run.insert(format!("{} {}", manifest.name, manifest.version), left.unwrap_or_default());
    }
    let open = Open::new(&args.access).await?;
    let mut publisher = open.publisher()?;
    let done = publisher.publish(&packages, &change(&args.who)).await?;
    if args.json {
        let chunks = done.chunks_sent + done.chunks_known;
        println!(
            "{}",
            json!({"sent_chunks": done.chunks_sent, "chunks": chunks, "sent_bytes": done.bytes_sent,
                   "bytes": done.bytes_all, "metadata_bytes": done.bytes_beside})
        );
        return Ok(ExitCode::SUCCESS);
    }
    let listed = publisher.list();
    for (package, new) in &done.packages {
        let who = listed.iter().find(|listed| format!("{} {}", listed.model, listed.version) == *package);
        let who = who.and_then(|listed| listed.release.as_ref()).map_or("nobody".to_owned(), audience);
        let what = if *new { "is published" } else { "was published before" };
        println!("{package} {what}, for {who}{}", not_run.get(package).map_or("", String::as_str));
    }
    println!("{}", summary(&done));
    warn_of_ends(publisher.set());
    Ok(ExitCode::SUCCESS)
}

fn summary(done: &Published) -> String {
    let share = if done.bytes_all == 0 { 0.0 } else { 100.0 * done.bytes_sent as f64 / done.bytes_all as f64 };
    format!(
        "sent {} of {} chunks, {} of {} bytes ({share:.0} %), and {} bytes of index and metadata",
        done.chunks_sent,
        done.chunks_sent + done.chunks_known,
        thousands(done.bytes_sent),
        thousands(done.bytes_all),
        thousands(done.bytes_beside)
    )
}

/// Who gets a version, in words.
fn audience(release: &Release) -> String {
    if release.withdrawn {
        return "nobody: withdrawn".to_owned();
    }
    let mut text = format!("{} % of {}", release.percent, release.channels.join(", "));
    for (key, value) in &release.labels {
        text.push_str(&format!(", {key}={value}"));
    }
    for (word, time) in [("not before", &release.not_before), ("not after", &release.not_after)] {
        if let Some(time) = time {
            text.push_str(&format!(", {word} {time}"));
        }
    }
    if release.halted {
        text.push_str(", halted");
    }
    text
}

async fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let ring = ring(&args.access.keys, None)?;
    let set = Set::load(&Home::open(ring.folder())?)?;
    let mut settled = None;
    let listed: Vec<Listed> = limpet_depot::publish::publisher::list(&set);
    if args.access.place.to.is_some() || args.access.place.broker.is_some() {
        let open = Open::new(&args.access).await?;
        settled = Some(open.publisher()?.is_settled().await?);
    }
    let configurations: Vec<&str> = set.configurations().into_keys().collect();
    if args.json {
        let models: Vec<_> = listed
            .iter()
            .map(|one| {
                json!({"model": one.model, "version": one.version, "package": Hex(&one.package).to_string(),
                       "raw_bytes": one.raw_bytes, "stored_bytes": one.stored_bytes, "release": one.release})
            })
            .collect();
        let ends: BTreeMap<&str, String> =
            Role::ALL.into_iter().map(|role| (role.name(), set.expires(role).to_string())).collect();
        println!("{}", json!({"models": models, "configurations": configurations, "ends": ends, "current": settled}));
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![["model ", "version ", "bytes", "stored", "who gets it "].map(str::to_owned).to_vec()];
    lines.extend(listed.iter().map(|one| {
        vec![
            one.model.clone(),
            one.version.clone(),
            thousands(one.raw_bytes),
            thousands(one.stored_bytes),
            one.release.as_ref().map_or("nobody".to_owned(), audience),
        ]
    }));
    if listed.is_empty() {
        println!("nothing was published yet");
    } else {
        print!("{}", table(&lines));
    }
    for configuration in configurations {
        println!("configuration for {configuration}");
    }
    let ends = Role::ALL.map(|role| format!("{} {}", role.name(), show_time(set.expires(role))));
    println!("metadata ends: {}", ends.join(", "));
    if settled == Some(false) {
        println!(
            "the depot has an older set, or gave none: the next command that changes something brings it up to this"
        );
    }
    warn_of_ends(&set);
    Ok(ExitCode::SUCCESS)
}

async fn rollout(args: &RolloutArgs) -> anyhow::Result<ExitCode> {
    let mut change = change(&args.who);
    if args.any_label {
        change.labels = Some(BTreeMap::new());
    }
    change.halted = match (args.halt, args.resume) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    let open = Open::new(&args.access).await?;
    let mut publisher = open.publisher()?;
    let changed = publisher.rollout(&args.model, &args.version, &change).await?;
    let state = publisher.set().state();
    let release = state.models.get(&args.model).and_then(|versions| versions.get(&args.version));
    let who = release.map_or("nobody".to_owned(), audience);
    println!("{} {}: {who}{}", args.model, args.version, if changed { "" } else { ", as before" });
    Ok(ExitCode::SUCCESS)
}

async fn rotate(args: &RotateArgs) -> anyhow::Result<ExitCode> {
    let open = Open::new(&args.access).await?;
    let roles: BTreeSet<Role> =
        if args.role.is_empty() { Role::ALL.into_iter().collect() } else { args.role.iter().copied().collect() };
    let mut publisher = open.publisher()?;
    let before = |role| {
        let (ids, threshold) = publisher.set().keys_of(role);
        RoleKeys { count: ids.len() as u64, threshold }
    };
    let wanted = role_keys(&args.counts, &before);
    if let Some(role) = wanted.keys().find(|role| !roles.contains(role)) {
        return Err(usage(format!("{0} gets no new keys; add --role {0}", role.name())));
    }
    let passphrase = new_passphrase(&args.access.keys, args.counts.no_passphrase)?;
    let retired = publisher.rotate(&roles, &wanted, passphrase.as_ref()).await?;
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    println!(
        "new keys for {}{}",
        names.join(", "),
        if passphrase.is_some() { ", encrypted" } else { ", not encrypted" }
    );
    println!("these no longer sign, and may be deleted: {}", retired.join(", "));
    println!("gateways follow from the root that they have; nothing is to be installed");
    Ok(ExitCode::SUCCESS)
}

fn show_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// Says what only offline keys can sign and ends soon.
fn warn_of_ends(set: &Set) {
    for role in [Role::Root, Role::Targets] {
        let days = (set.expires(role).as_second() - Timestamp::now().as_second()) / 86_400;
        if days < WARN_DAYS {
            eprintln!(
                "limpet-lab: {} metadata ends in {days} days; sign it anew with `limpet-lab depot refresh --offline`",
                role.name()
            );
        }
    }
}

fn show_problems(problems: &[Problem]) {
    for problem in problems.iter().take(SHOWN) {
        let of = problem.of.as_ref().map_or(String::new(), |of| format!(" ({of})"));
        println!("{}{of}: {}", problem.name, problem.reason);
    }
    if problems.len() > SHOWN {
        println!("and {} more", problems.len() - SHOWN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::cli::{GcArgs, KeyArgs, PlaceArgs, RefreshArgs, TopicArgs, VerifyArgs, WithdrawArgs};
    use crate::depot::mqtt::tests::Mosquitto;

    /// Runs every command on a depot.
    async fn all_commands(place: PlaceArgs, folder: &Path) {
        let keys =
            KeyArgs { keys: folder.join("keys"), offline_keys: Some(folder.join("away")), passphrase_file: None };
        let counts = CountArgs { no_passphrase: true, ..CountArgs::default() };
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/motor-health");
        let version = Package::open(&model).unwrap().manifest().version.to_string();
        let access = || AccessArgs { place: place.clone(), keys: keys.clone() };
        let init = InitArgs { access: access(), counts, offline_root: false, chunks_url: None };
        let publish = PublishArgs {
            packages: vec![model.clone()],
            who: WhoArgs { percent: Some(5.0), ..WhoArgs::default() },
            // A proof starts this program again, which is here one of tests.
            prove: pack::ProveArgs { no_prove: true },
            json: true,
            access: access(),
        };
        let named = || ("motor-health".to_owned(), version.clone());
        let (name, of) = named();
        let withdraw = WithdrawArgs { model: name, version: of, remove: false, access: access() };
        for step in [
            DepotCommand::Init(init),
            DepotCommand::Publish(publish),
            DepotCommand::List(ListArgs { json: false, access: access() }),
            DepotCommand::Refresh(RefreshArgs { offline: false, access: access() }),
            DepotCommand::Gc(GcArgs { grace: jiff::SignedDuration::ZERO, access: access() }),
            DepotCommand::Withdraw(withdraw),
            DepotCommand::Verify(VerifyArgs { access: access() }),
        ] {
            command(step).await.unwrap();
        }
        assert!(folder.join("keys").join(ROOT_FILE).exists());
        let open = Open::new(&access()).await.unwrap();
        let publisher = open.publisher().unwrap();
        assert!(publisher.is_settled().await.unwrap());
        let release = publisher.list().remove(0).release.unwrap();
        assert!((release.percent, release.withdrawn) == (5.0, true));
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_folder_is_a_depot_for_all_commands() {
        let folder = tempfile::tempdir().unwrap();
        let place = PlaceArgs { to: Some(folder.path().join("depot")), patience: 5, ..PlaceArgs::default() };
        run(all_commands(place, folder.path()));
    }

    #[test]
    fn a_mosquitto_is_a_depot_for_all_commands() {
        let broker = Mosquitto::start("");
        let folder = tempfile::tempdir().unwrap();
        let topics = TopicArgs { prefix: "plant/limpet".to_owned() };
        let place = PlaceArgs { broker: Some(broker.url()), topics, patience: 1, ..PlaceArgs::default() };
        run(all_commands(place, folder.path()));
    }

    #[test]
    fn without_a_place_it_says_how_to_give_one() {
        let error = run(async { shelf(&PlaceArgs::default()).await.err().expect("there is none") });
        assert!(error.to_string().contains("--to DIR or --broker"), "{error}");
    }
}
