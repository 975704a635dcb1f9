//! The arguments of `limpet-lab depot`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use limpet_depot::publish::Role;
use limpet_depot::units::{ByteSize, Duration};
use limpet_wire::name::check_name;
use limpet_wire::topic::DEFAULT_PREFIX;
use semver::VersionReq;

use crate::mqtt::broker::{BrokerUrl, LoginArgs};
use crate::pack::ProveArgs;

/// Arguments of `limpet-lab depot`.
#[derive(Args)]
pub struct DepotArgs {
    #[command(subcommand)]
    pub command: DepotCommand,
}

/// What is done to a depot.
#[derive(Subcommand)]
pub enum DepotCommand {
    /// Makes the keys and the first metadata, puts that on the depot, and writes KEYS/root.json for the gateways
    Init(InitArgs),
    /// Publishes packages: only chunks that are not there are sent; may be interrupted and repeated at any point
    Publish(PublishArgs),
    /// Shows what was published, who gets it, and when the signed metadata ends
    List(ListArgs),
    /// Takes a version back: nobody takes it any more, and gateways that have it return to an older one
    Withdraw(WithdrawArgs),
    /// Changes who gets a version
    Rollout(RolloutArgs),
    /// Gives roles new keys; gateways follow by themselves
    RotateKeys(RotateArgs),
    /// Signs a new timestamp, and what else is past half of its life; run it from a timer, daily
    Refresh(RefreshArgs),
    /// Removes what no metadata has named for a while
    Gc(GcArgs),
    /// Reads everything back; exit code 1 if something is missing or damaged
    Verify(VerifyArgs),
    /// Puts back what is missing or damaged; packages whose chunks are gone must be given
    Repair(RepairArgs),
    /// Signs a configuration for a gateway or for all with a label
    Configure(ConfigureArgs),
    /// Sets or clears the https URL from which gateways may have chunks
    ChunksUrl(ChunksArgs),
    /// Takes over what the depot has, if it was signed with the same keys and is newer than the copy beside these
    Adopt(AdoptArgs),
    /// Watches what the gateways do with the models
    Status(StatusArgs),
    /// Simulates gateways that take what the depot offers them: what a delivery asks of a broker
    Swarm(SwarmArgs),
}

/// Where the depot is.
#[derive(Args, Clone, Default)]
#[command(group(ArgGroup::new("place").args(["to", "broker"]).multiple(false)))]
pub struct PlaceArgs {
    /// Folder that is the depot, such as a memory stick; `limpet depot import` reads it
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Broker that keeps the depot, as mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    pub broker: Option<BrokerUrl>,
    #[command(flatten)]
    pub login: LoginArgs,
    #[command(flatten)]
    pub topics: TopicArgs,
    /// Seconds after which an answer that has not come counts as none
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub patience: u64,
}

/// Which topics of a broker.
#[derive(Args, Clone, Default)]
pub struct TopicArgs {
    /// Prefix of the topics
    #[arg(long, default_value = DEFAULT_PREFIX)]
    pub prefix: String,
}

/// Where keys are.
#[derive(Args, Clone, Default)]
pub struct KeyArgs {
    /// Folder with the keys, and with the copy of everything that they signed; keep a backup of it
    #[arg(long, value_name = "DIR", default_value = "depot-keys")]
    pub keys: PathBuf,
    /// Folder with the keys of root and targets, if they are kept elsewhere
    #[arg(long, value_name = "DIR")]
    pub offline_keys: Option<PathBuf>,
    /// File with the passphrase of the keys in its first line; otherwise LIMPET_DEPOT_PASSPHRASE, or it is asked for
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// Which depot, and with which keys.
#[derive(Args, Clone, Default)]
pub struct AccessArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// How many keys roles have.
#[derive(Args, Clone, Default)]
pub struct CountArgs {
    /// How many keys of a role must sign, such as root=2; 1 by default
    #[arg(long, value_name = "ROLE=N", value_parser = role_number)]
    pub threshold: Vec<(Role, u64)>,
    /// How many keys a role has, such as root=3; as many as must sign by default
    #[arg(long, value_name = "ROLE=N", value_parser = role_number)]
    pub key_count: Vec<(Role, u64)>,
    /// Do not ask for a passphrase for new keys, and do not encrypt them
    #[arg(long, conflicts_with = "passphrase_file")]
    pub no_passphrase: bool,
}

/// Arguments of `init`.
#[derive(Args)]
pub struct InitArgs {
    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub counts: CountArgs,
    /// Put the keys of root and targets into KEYS-offline (or --offline-keys), to be moved away from this machine
    #[arg(long)]
    pub offline_root: bool,
    /// Base URL (https) from which gateways may have chunks: URL/chunk/SHA256
    #[arg(long, value_name = "URL")]
    pub chunks_url: Option<String>,
}

/// Who gets a version.
#[derive(Args, Clone, Default)]
pub struct WhoArgs {
    /// Channel that carries it; may be repeated. A new version is on `stable` without this
    #[arg(long, value_name = "NAME")]
    pub channel: Vec<String>,
    /// Share of the gateways that get it, 0 to 100; each decides by a hash of its id. A new version: 100
    #[arg(long, value_name = "N")]
    pub percent: Option<f64>,
    /// Only gateways with this label get it; may be repeated, and then all must fit
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    /// Nobody takes it before this time, as 2026-12-01T06:00:00Z; `none` takes the bound away
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub not_before: Option<Bound>,
    /// Nobody takes it after this time; `none` takes the bound away
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub not_after: Option<Bound>,
}

/// Arguments of `publish`.
#[derive(Args)]
pub struct PublishArgs {
    /// Packages: `.limpet` files, or folders with a model.toml
    #[arg(required = true, value_name = "PACKAGE")]
    pub packages: Vec<PathBuf>,
    #[command(flatten)]
    pub who: WhoArgs,
    #[command(flatten)]
    pub prove: ProveArgs,
    /// Print what was sent as one JSON object: sent_chunks, chunks, sent_bytes, bytes, metadata_bytes
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `list`.
#[derive(Args)]
pub struct ListArgs {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `withdraw`.
#[derive(Args)]
pub struct WithdrawArgs {
    /// Name of the model
    pub model: String,
    /// Version to take back
    pub version: String,
    /// Take its index away too, so that `gc` frees its chunks; this needs the keys of the targets
    #[arg(long)]
    pub remove: bool,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `rollout`.
#[derive(Args)]
pub struct RolloutArgs {
    /// Name of the model
    pub model: String,
    /// Its version
    pub version: String,
    #[command(flatten)]
    pub who: WhoArgs,
    /// All labels may have it again
    #[arg(long, conflicts_with = "label")]
    pub any_label: bool,
    /// Nobody takes it any more; who has it keeps it
    #[arg(long, conflicts_with = "resume")]
    pub halt: bool,
    /// Gateways take it again
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `rotate-keys`.
#[derive(Args)]
pub struct RotateArgs {
    /// Role that gets new keys; may be repeated. All roles without this
    #[arg(long, value_parser = role)]
    pub role: Vec<Role>,
    #[command(flatten)]
    pub counts: CountArgs,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `refresh`.
#[derive(Args)]
pub struct RefreshArgs {
    /// Sign root and targets anew too; this needs their keys
    #[arg(long)]
    pub offline: bool,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `gc`.
#[derive(Args)]
pub struct GcArgs {
    /// For how long nothing must have named an object, as 1h or 2d: gateways may be reading an older set
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = grace)]
    pub grace: SignedDuration,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `verify`.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `repair`.
#[derive(Args)]
pub struct RepairArgs {
    /// Packages whose chunks may be gone
    #[arg(value_name = "PACKAGE")]
    pub packages: Vec<PathBuf>,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `configure`.
#[derive(Args)]
#[command(group(ArgGroup::new("addressee").args(["gateway", "label"]).required(true).multiple(false)))]
pub struct ConfigureArgs {
    /// Configuration with [[source]], [[pipeline]] and [budget]
    #[arg(required_unless_present = "remove", conflicts_with = "remove")]
    pub file: Option<PathBuf>,
    /// Gateway that it is for
    #[arg(long, value_name = "ID")]
    pub gateway: Option<String>,
    /// Gateways that it is for: those with this label
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Option<String>,
    /// Take it away: the gateways' own files hold again
    #[arg(long)]
    pub remove: bool,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `chunks-url`.
#[derive(Args)]
pub struct ChunksArgs {
    /// Base URL, as https://HOST/PATH; none clears it
    pub url: Option<String>,
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `adopt`.
#[derive(Args)]
pub struct AdoptArgs {
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `status`.
#[derive(Args)]
pub struct StatusArgs {
    /// Broker that the gateways report to, as mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    pub broker: BrokerUrl,
    #[command(flatten)]
    pub login: LoginArgs,
    #[command(flatten)]
    pub topics: TopicArgs,
    /// Print one table as soon as nothing has come for a second, and end
    #[arg(long)]
    pub once: bool,
    /// As --once, as JSON
    #[arg(long)]
    pub json: bool,
    /// Halt the rollout of this version, with the keys of rollout, snapshot and timestamp, once --at gateways report that
    /// it failed on them; ends then. Exit code 1 says that it was halted
    #[arg(long, value_name = "MODEL@VERSION", requires = "at", value_parser = model_version)]
    pub halt: Option<(String, String)>,
    /// How many failures halt it
    #[arg(long, visible_alias = "halt-at", value_name = "FAILURES", requires = "halt", value_parser = clap::value_parser!(u64).range(1..))]
    pub at: Option<u64>,
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// Arguments of `swarm`.
#[derive(Args)]
pub struct SwarmArgs {
    /// How many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub gateways: u32,
    /// Broker with the depot, as mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    pub broker: BrokerUrl,
    #[command(flatten)]
    pub login: LoginArgs,
    #[command(flatten)]
    pub topics: TopicArgs,
    /// Root metadata that `init` wrote
    #[arg(long, value_name = "FILE")]
    pub root: PathBuf,
    /// What their ids begin with; a number follows. Two swarms on one broker need two
    #[arg(long, value_name = "TEXT", default_value = "swarm-")]
    pub id_prefix: String,
    /// Model that each of them wants, with a range of versions; may be repeated
    #[arg(long, required = true, value_name = "NAME@RANGE", value_parser = model_range)]
    pub model: Vec<(String, VersionReq)>,
    /// Channel that they follow
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub channel: String,
    /// Label of all of them; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    /// Folder for their stores, one below it for each; kept. Otherwise one that is removed at the end
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Most bytes a second that each of them fetches
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    pub rate: ByteSize,
    /// Longest time, drawn at random, before one of them fetches
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub jitter: Duration,
    /// What has not come by then does not come
    #[arg(long, value_name = "TIME", default_value = "2m")]
    pub timeout: Duration,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A bound in time, or none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound(pub Option<Timestamp>);

fn role(text: &str) -> Result<Role, String> {
    Role::named(text)
        .ok_or_else(|| format!("'{text}' is no role; expected root, targets, rollout, snapshot or timestamp"))
}

fn role_number(text: &str) -> Result<(Role, u64), String> {
    let (name, number) = text.split_once('=').ok_or("expected ROLE=N, such as root=2")?;
    Ok((role(name)?, number.parse().map_err(|_| format!("'{number}' is no number; expected ROLE=N, such as root=2"))?))
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as line=3".to_owned()),
    }
}

fn moment(text: &str) -> Result<Bound, String> {
    if text == "none" {
        return Ok(Bound(None));
    }
    text.parse()
        .map(|time| Bound(Some(time)))
        .map_err(|error| format!("{error}; expected a time as 2026-12-01T06:00:00Z"))
}

fn grace(text: &str) -> Result<SignedDuration, String> {
    let hours = |days: i64| days.checked_mul(24).map(SignedDuration::from_hours);
    let found = match text.strip_suffix('d').and_then(|days| days.parse::<i64>().ok()) {
        Some(days) if days < 36_500 => hours(days),
        _ => text.parse::<SignedDuration>().ok(),
    };
    found.filter(|grace| !grace.is_negative()).ok_or_else(|| "expected a time such as 0s, 30m, 1h or 2d".to_owned())
}

fn model_range(text: &str) -> Result<(String, VersionReq), String> {
    let found = text.split_once('@').filter(|(model, _)| check_name(model).is_ok());
    let range = found.and_then(|(model, range)| Some((model.to_owned(), range.parse().ok()?)));
    range.ok_or_else(|| "expected NAME@RANGE, such as motor-health@^1".to_owned())
}

fn model_version(text: &str) -> Result<(String, String), String> {
    match text.split_once('@') {
        Some((model, version)) if !model.is_empty() && semver::Version::parse(version).is_ok() => {
            Ok((model.to_owned(), version.to_owned()))
        }
        _ => Err("expected MODEL@VERSION, such as motor-health@1.2.0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_arguments_are_read_or_refused_with_an_example() {
        assert_eq!(role_number("root=2"), Ok((Role::Root, 2)));
        assert!(role_number("boot=2").unwrap_err().contains("expected root, targets"));
        assert!(role_number("root").unwrap_err().contains("root=2"));
        assert_eq!(moment("none"), Ok(Bound(None)));
        assert!(moment("tomorrow").unwrap_err().contains("2026-12-01T06:00:00Z"));
        assert_eq!(grace("2d"), Ok(SignedDuration::from_hours(48)));
        assert_eq!(grace("30m"), Ok(SignedDuration::from_mins(30)));
        assert!(grace("-1h").is_err() && grace("soon").is_err());
        assert_eq!(model_version("m@1.2.0"), Ok(("m".to_owned(), "1.2.0".to_owned())));
        assert!(model_version("m").is_err() && model_version("m@1").is_err());
        assert_eq!(model_range("m@^1"), Ok(("m".to_owned(), VersionReq::parse("^1").unwrap())));
        assert!(model_range("m").is_err() && model_range("../m@*").is_err() && model_range("m@new").is_err());
    }
}
