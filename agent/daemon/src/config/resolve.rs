//! Checks the keys of a file against each other, and fills in what was left out.
//!
//! A check that fails is recorded and the rest goes on, so that a person sees all problems at once. A part that cannot
//! be built for its problems is left out; since there is then at least one problem, nobody sees the incomplete result.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use limpet_wire::command::Verb;
use limpet_wire::name::check_name;

use super::codec::{Codec, Column, Csv, HeaderField, Json, Raw};
use super::file::{self, File, OneOrMany};
use super::load::{Origins, Problem, Surroundings, nearest};
use super::units::{Interval, Size};
use super::{
    Broker, BrokerUrl, Budget, Class, Config, Depot, DropPolicy, Encoding, FORMAT, Gateway, InferenceBatch, Input,
    Join, LocalOutput, Log, LogFormat, LogLevel, MessageBatch, ModelRef, Name, OnGap, Pipeline, Pressure, Publish,
    Queue, QueuePolicy, Runtime, Source, Swap, TimeOrigin, Trial, Uplink,
};
use crate::exec::MESSAGE_MAX;
use crate::topic::{Filter, Template};

mod outbox;

const STATE: &str = "/var/lib/limpet";
const RUN: &str = "/run/limpet";
/// Shortest keep-alive in seconds: rumqttc panics below it.
const KEEP_ALIVE_MIN: u64 = 5;
/// MQTT writes the keep-alive as 16 bits of seconds.
const KEEP_ALIVE_MAX: u64 = 65_535;
const CPU_MAX: f64 = 64.0;
const CHANNELS_MAX: usize = 1024;
const STREAMS_MAX: u32 = 65_536;
const QUEUE_MAX: u32 = 4096;
const BATCH_MAX: u32 = 1000;
/// As far as a proof goes.
const INFERENCE_BATCH_MAX: u32 = 64;
/// More than Linux is built for.
const CPU_NUMBERS: usize = 8192;
/// More versions of a model than anybody goes back to.
const KEEP_MAX: usize = 16;
/// Below this a package takes hours.
const RATE_MIN: u64 = 1 << 10;
/// Shortest trial of a signed configuration: one look.
const TRIAL_MIN: Duration = Duration::from_secs(1);
/// Below this hardly a package fits.
const DISK_MIN: u64 = 1 << 20;
const JITTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const REFRESH_MIN: Duration = Duration::from_secs(10);
const HANG_MIN: Duration = Duration::from_millis(100);
const HANG_MAX: Duration = Duration::from_secs(600);
/// Ten minutes: a result that waits longer for company is late for everybody.
const BATCH_DELAY_MAX: Duration = Duration::from_secs(600);

/// Builds the configuration.
pub(super) fn resolve(
    file: File,
    folder: &Path,
    surroundings: &Surroundings,
    origins: &Origins,
) -> Result<Config, Vec<Problem>> {
    let mut check = Check { origins, folder, surroundings, problems: Vec::new() };
    if file.format.is_none() {
        check.problem(&At::top(), "format", format!("the key is missing; add 'format = {FORMAT}' as the first line"));
    }
    let gateway = check.gateway(file.gateway);
    let id = gateway.as_ref().map_or("gateway", |gateway| &gateway.id);
    let brokers = check.brokers(file.broker, id);
    let uplink = check.uplink(file.uplink, &brokers);
    let outbox = check.outbox(&file.outbox);
    let budget = check.budget(&file.budget, outbox.ring);
    let runtime = check.runtime(file.runtime);
    let pressure = check.pressure(file.pressure);
    let depot = file.depot.map(|depot| check.depot(depot));
    let sources = check.sources(file.source, &brokers);
    let pipelines = check.pipelines(file.pipeline, &brokers, &sources, outbox.policy);
    check.depot_models(depot.is_some(), &pipelines);
    let log =
        Log { level: file.log.level.unwrap_or(LogLevel::Info), format: file.log.format.unwrap_or(LogFormat::Text) };

    match (gateway, uplink) {
        (Some(gateway), Some(uplink)) if check.problems.is_empty() => {
            let brokers = brokers.found;
            let sources = sources.found;
            Ok(Config {
                format: FORMAT,
                gateway,
                brokers,
                uplink,
                budget,
                runtime,
                pressure,
                outbox,
                depot,
                sources,
                pipelines,
                log,
            })
        }
        _ => Err(check.problems),
    }
}

/// A table that is being checked: its path in the document, and the same for people.
#[derive(Clone)]
struct At {
    path: String,
    shown: String,
}

impl At {
    fn top() -> Self {
        Self { path: String::new(), shown: String::new() }
    }

    fn table(path: &str) -> Self {
        Self { path: path.to_owned(), shown: path.to_owned() }
    }

    /// An element of a list of tables, shown by its name where it has one that is good.
    fn item(list: &str, index: usize, name: &str) -> Self {
        let shown = if check_name(name).is_ok() { format!("{list}.{name}") } else { format!("{list}[{index}]") };
        Self { path: format!("{list}.{index}"), shown }
    }

    fn key(&self, key: &str) -> (String, String) {
        let join = |path: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        (join(&self.path), join(&self.shown))
    }

    fn inner(&self, key: &str) -> Self {
        let (path, shown) = self.key(key);
        Self { path, shown }
    }

    fn inner_item(&self, key: &str, index: usize) -> Self {
        let (path, shown) = self.key(key);
        Self { path: format!("{path}.{index}"), shown: format!("{shown}[{index}]") }
    }
}

/// What was found, and every name that somebody tried to give: a reference to a source whose other keys are wrong is
/// no second problem.
struct Named<T> {
    found: T,
    names: BTreeSet<String>,
}

struct Check<'a> {
    origins: &'a Origins,
    folder: &'a Path,
    surroundings: &'a Surroundings,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn problem(&mut self, at: &At, key: &str, text: impl Into<String>) {
        let (path, shown) = at.key(key);
        self.problems.push(Problem { origin: self.origins.nearest(&path), key: shown, text: text.into() });
    }

    /// Records a problem and gives nothing; or gives the value.
    fn accept<T>(&mut self, at: &At, key: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|text| self.problem(at, key, text)).ok()
    }

    fn require(&mut self, at: &At, key: &str, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.problem(at, key, text());
        }
    }

    fn name(&mut self, at: &At, key: &str, name: &str) -> Option<Name> {
        self.accept(at, key, Name::parse(name).map_err(|error| format!("{error}; rename it")))
    }

    /// Relative paths start at the folder of the file.
    fn path(&self, path: &Path) -> PathBuf {
        // Taking the parts together again drops the '.' of "./model".
        self.folder.join(path).components().collect()
    }

    fn gateway(&mut self, file: file::Gateway) -> Option<Gateway> {
        let at = At::table("gateway");
        let id = match (file.id, &self.surroundings.host_name) {
            (Some(id), _) => self.name(&at, "id", &id),
            (None, host) => host.as_deref().and_then(|host| Name::parse(host).ok()).or_else(|| {
                let host = host.as_deref().unwrap_or_default().to_owned();
                let text = format!(
                    "not given, and the host name '{host}' is no valid name; add 'id = \"…\"' of lower-case letters, digits, '_' and '-'"
                );
                self.problem(&at, "id", text);
                None
            }),
        };
        let labels_at = at.inner("labels");
        for (key, value) in &file.labels {
            self.name(&labels_at, key, key);
            let fits = !value.is_empty() && value.len() <= 64 && !value.chars().any(char::is_control);
            self.require(&labels_at, key, fits, || {
                format!("found '{}', expected 1 to 64 bytes without control characters", value.escape_debug())
            });
        }
        let state = self.path(&file.state.unwrap_or_else(|| STATE.into()));
        let run = self.path(&file.run.unwrap_or_else(|| RUN.into()));
        Some(Gateway { id: id?, labels: file.labels, state, run })
    }

    fn brokers(&mut self, file: BTreeMap<String, file::Broker>, gateway: &str) -> Named<BTreeMap<Name, Broker>> {
        if file.is_empty() {
            self.problem(
                &At::top(),
                "broker",
                "there is none; add '[broker.local]' with 'url = \"mqtt://127.0.0.1:1883\"'",
            );
        }
        let mut found = BTreeMap::new();
        let names = file.keys().cloned().collect();
        let mut client_ids: BTreeMap<String, String> = BTreeMap::new();
        for (name, broker) in file {
            let at = At::table("broker").inner(&name);
            let checked = self.name(&At::table("broker"), &name, &name);
            let Some(broker) = self.broker(&at, &name, gateway, broker) else { continue };
            // Two links with one id on one server throw each other off for ever.
            for url in &broker.url {
                let link = format!("{}@{url}", broker.client_id);
                if let Some(other) = client_ids.insert(link, name.clone())
                    && other != name
                {
                    let text = format!(
                        "'{}' is also the client id of broker.{other} at the same address; give each its own",
                        broker.client_id
                    );
                    self.problem(&at, "client_id", text);
                }
            }
            if let Some(name) = checked {
                found.insert(name, broker);
            }
        }
        Named { found, names }
    }

    fn broker(&mut self, at: &At, name: &str, gateway: &str, file: file::Broker) -> Option<Broker> {
        let mqtt = file.mqtt.unwrap_or(5);
        self.require(at, "mqtt", matches!(mqtt, 4 | 5), || format!("found {mqtt}, expected 5, or 4 for MQTT 3.1.1"));
        let keep_alive = file.keep_alive.unwrap_or(Interval(Duration::from_secs(12)));
        let whole =
            keep_alive.0.subsec_nanos() == 0 && (KEEP_ALIVE_MIN..=KEEP_ALIVE_MAX).contains(&keep_alive.0.as_secs());
        self.require(at, "keep_alive", whole, || {
            format!(
                "found {keep_alive}, expected whole seconds from {KEEP_ALIVE_MIN}s, the least that the MQTT client takes, to {KEEP_ALIVE_MAX}s, the most that MQTT can say"
            )
        });
        let client_id = file.client_id.unwrap_or_else(|| format!("limpet-{gateway}-{name}"));
        let fits = !client_id.is_empty() && client_id.len() <= 128 && !client_id.chars().any(char::is_control);
        self.require(at, "client_id", fits, || {
            format!("found '{}', expected 1 to 128 bytes without control characters", client_id.escape_debug())
        });
        let password_file = file.password_file.map(|path| self.secret_file(at, "password_file", &path, "the password"));
        self.require(at, "password_file", password_file.is_none() || file.username.is_some(), || {
            "a password without a user name is not sent; add 'username'".into()
        });

        let urls = file.url.as_slice();
        self.require(at, "url", !urls.is_empty(), || "the list is empty; give at least one address".into());
        let parsed: Vec<Option<BrokerUrl>> = urls.iter().map(|url| self.accept(at, "url", url.parse())).collect();
        let url = parsed.into_iter().collect::<Option<Vec<_>>>()?;
        let tls = url.iter().any(|url| url.scheme.is_secure());
        let mut secret = |key: &str, path: Option<PathBuf>, what: &str| {
            let path = path.map(|path| self.secret_file(at, key, &path, what));
            self.require(at, key, path.is_none() || tls, || {
                "it has no use without TLS; give an address that begins with mqtts:// or wss://, or remove the key"
                    .into()
            });
            path
        };
        let ca_file = secret("ca_file", file.ca_file, "the certificates of the authorities that sign the broker's");
        let cert_file = secret("cert_file", file.cert_file, "this gateway's certificate");
        let key_file = secret("key_file", file.key_file, "the key of this gateway's certificate");
        let (lone, other) = if cert_file.is_some() { ("cert_file", "key_file") } else { ("key_file", "cert_file") };
        self.require(at, lone, cert_file.is_some() == key_file.is_some(), || {
            format!("a client certificate needs both; add '{other}'")
        });
        let proxy = file.proxy.and_then(|proxy| self.accept(at, "proxy", proxy.parse()));
        Some(Broker {
            url,
            client_id,
            username: file.username,
            password_file,
            ca_file,
            cert_file,
            key_file,
            proxy,
            keep_alive,
            mqtt,
            resume: file.resume.unwrap_or(false),
        })
    }

    /// A path, or the bare name of a systemd credential, of a file that holds `what`.
    fn secret_file(&mut self, at: &At, key: &str, path: &Path, what: &str) -> PathBuf {
        let bare = path.components().count() == 1 && path.is_relative();
        let credentials =
            self.surroundings.variable("CREDENTIALS_DIRECTORY").filter(|_| bare).map(|dir| Path::new(dir).join(path));
        let chosen = credentials.filter(|path| path.is_file()).unwrap_or_else(|| self.path(path));
        self.require(at, key, chosen.is_file(), || {
            format!("there is no file {}; put {what} there, readable for the agent alone", chosen.display())
        });
        chosen
    }

    /// The broker that is named, or the only one there is.
    fn choose_broker(
        &mut self,
        at: &At,
        named: Option<String>,
        brokers: &Named<BTreeMap<Name, Broker>>,
    ) -> Option<Name> {
        let list = || brokers.names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        match named {
            // A name that is no good has been reported where it is given.
            Some(name) if brokers.names.contains(&name) => Name::parse(&name).ok(),
            Some(name) => {
                let names: Vec<&String> = brokers.names.iter().collect();
                let near = nearest(&name, &names).map_or(String::new(), |near| format!("; the nearest is '{near}'"));
                self.problem(at, "broker", format!("there is no [broker.{name}]{near}; the brokers are {}", list()));
                None
            }
            None => {
                let mut names = brokers.names.iter();
                match (names.next(), names.next()) {
                    (Some(only), None) => Name::parse(only).ok(),
                    // That there is no broker at all has been said.
                    (None, _) => None,
                    _ => {
                        self.problem(
                            at,
                            "broker",
                            format!("not given, and there are several: {}; name one of them", list()),
                        );
                        None
                    }
                }
            }
        }
    }

    fn uplink(&mut self, file: file::Uplink, brokers: &Named<BTreeMap<Name, Broker>>) -> Option<Uplink> {
        let at = At::table("uplink");
        let broker = self.choose_broker(&at, file.broker, brokers);
        let prefix = file.prefix.unwrap_or_else(|| limpet_wire::topic::DEFAULT_PREFIX.into());
        let problem = match Template::parse(&prefix) {
            Err(reason) => Some(reason),
            Ok(_) if prefix.contains('{') => Some(format!("'{prefix}' holds a placeholder; it belongs to all streams")),
            Ok(_) if prefix.split('/').any(str::is_empty) => {
                Some(format!("'{prefix}' has an empty level; write it without '/' at either end, such as \"limpet/1\""))
            }
            Ok(_) if prefix.len() > 256 => Some("it is longer than 256 bytes".into()),
            Ok(_) => None,
        };
        if let Some(problem) = problem {
            self.problem(&at, "prefix", problem);
        }
        let mut commands = BTreeSet::new();
        for name in &file.commands {
            match name.parse::<Verb>() {
                Ok(verb) => _ = commands.insert(verb),
                Err(why) => self.problem(&at, "commands", why),
            }
        }
        let old = broker.as_ref().and_then(|name| brokers.found.get(name)).is_some_and(|broker| broker.mqtt == 4);
        self.require(&at, "commands", !old || file.commands.is_empty(), || {
            "the uplink speaks MQTT 3.1.1, which has no place for an answer; use MQTT 5, or leave the list empty".into()
        });
        Some(Uplink { broker: broker?, prefix, commands })
    }

    fn budget(&mut self, file: &file::Budget, ring: Size) -> Budget {
        let at = At::table("budget");
        let cpu = file.cpu.unwrap_or(1.0);
        self.require(&at, "cpu", cpu > 0.0 && cpu <= CPU_MAX, || {
            format!("found {cpu}, expected cores above 0 and up to {CPU_MAX}, such as 1.5")
        });
        let memory = file.memory.unwrap_or(Size(96 << 20));
        self.require(&at, "memory", memory.0 > ring.0, || {
            format!(
                "found {memory}, and outbox.ring = {ring} is a part of it, so that no model fits; give e.g. \"{}\"",
                Size(ring.0 + (88 << 20))
            )
        });
        Budget { cpu, memory }
    }

    fn runtime(&mut self, file: file::Runtime) -> Runtime {
        let at = At::table("runtime");
        let default = Runtime::default();
        for (index, cpu) in file.affinity.iter().enumerate() {
            self.require(&at, "affinity", *cpu < CPU_NUMBERS, || {
                format!("found CPU {cpu}, expected numbers below {CPU_NUMBERS}")
            });
            self.require(&at, "affinity", !file.affinity[..index].contains(cpu), || {
                format!("CPU {cpu} stands there twice; name each once")
            });
        }
        if let Some(priority) = file.fifo_priority {
            self.require(&at, "fifo_priority", (1..=99).contains(&priority), || {
                format!("found {priority}, expected 1 to 99, or leave the key out for the ordinary scheduler")
            });
        }
        let hang_limit = file.hang_limit.unwrap_or(default.hang_limit);
        self.require(&at, "hang_limit", (HANG_MIN..=HANG_MAX).contains(&hang_limit.0), || {
            format!("found {hang_limit}, expected {} to {}", Interval(HANG_MIN), Interval(HANG_MAX))
        });
        Runtime {
            affinity: file.affinity,
            fifo_priority: file.fifo_priority,
            lock_memory: file.lock_memory.unwrap_or(default.lock_memory),
            hang_limit,
        }
    }

    fn pressure(&mut self, file: file::Pressure) -> Pressure {
        let at = At::table("pressure");
        let default = Pressure::default();
        if let Some(celsius) = file.temperature_c {
            self.require(&at, "temperature_c", (20.0..=150.0).contains(&celsius), || {
                format!("found {celsius}, expected 20 to 150 degrees Celsius")
            });
        }
        let mut share = |key: &'static str, given: Option<f64>, default: f64| {
            let share = given.unwrap_or(default);
            self.require(&at, key, share > 0.0 && share <= 1.0, || {
                format!("found {share}, expected a share above 0 and up to 1, such as {default}")
            });
            share
        };
        let cpu = share("cpu", file.cpu, default.cpu);
        let frequency = share("frequency", file.frequency, default.frequency);
        let sustain = file.sustain.unwrap_or(default.sustain);
        self.positive(&at, "sustain", sustain);
        let recover = file.recover.unwrap_or(default.recover);
        self.positive(&at, "recover", recover);
        let root = file.root.map_or(default.root, |root| self.path(&root));
        Pressure { temperature_c: file.temperature_c, cpu, frequency, sustain, recover, root }
    }

    fn depot(&mut self, file: file::Depot) -> Depot {
        let at = At::table("depot");
        let root = self.path(&file.root);
        let channel = file.channel.unwrap_or_else(|| "stable".into());
        self.name(&at, "channel", &channel);
        let keep = file.keep.unwrap_or(2);
        self.require(&at, "keep", (1..=KEEP_MAX).contains(&keep), || {
            format!("found {keep}, expected 1 to {KEEP_MAX} versions; without one there is nothing to go back to")
        });
        let rate = file.rate.unwrap_or(Size(256 << 10));
        self.require(&at, "rate", rate.0 >= RATE_MIN, || {
            format!("found {rate}, expected at least {} a second", Size(RATE_MIN))
        });
        let disk = file.disk.unwrap_or(Size(256 << 20));
        self.require(&at, "disk", disk.0 >= DISK_MIN, || format!("found {disk}, expected at least {}", Size(DISK_MIN)));
        let jitter = file.jitter.unwrap_or(Interval(Duration::from_secs(30)));
        self.require(&at, "jitter", jitter.0 <= JITTER_MAX, || {
            format!("found {jitter}, expected at most {}", Interval(JITTER_MAX))
        });
        let refresh = file.refresh.unwrap_or(Interval(Duration::from_secs(3600)));
        self.require(&at, "refresh", (REFRESH_MIN..=JITTER_MAX).contains(&refresh.0), || {
            format!("found {refresh}, expected {} to {}", Interval(REFRESH_MIN), Interval(JITTER_MAX))
        });
        let trial = file.trial.unwrap_or(Interval(Duration::from_secs(600)));
        self.require(&at, "trial", (TRIAL_MIN..=JITTER_MAX).contains(&trial.0), || {
            format!("found {trial}, expected {} to {}", Interval(TRIAL_MIN), Interval(JITTER_MAX))
        });
        let ca_file = file.ca_file.map(|path| self.path(&path));
        Depot { root, channel, keep, rate, disk, jitter, refresh, trial, ca_file }
    }

    /// Models by name need a depot, and a gateway runs one version of each.
    fn depot_models(&mut self, there_is_one: bool, pipelines: &[Pipeline]) {
        let mut ranges: BTreeMap<&Name, (&Name, &ModelRef)> = BTreeMap::new();
        for (index, pipeline) in pipelines.iter().enumerate() {
            let Some(model) = pipeline.model.depot() else { continue };
            let at = At::item("pipeline", index, &pipeline.name);
            self.require(&at, "model", there_is_one, || {
                format!(
                    "'{}' is a model of the depot, and there is no [depot]; add it with 'root = \"/etc/limpet/root.json\"', or give a path, such as \"./{}\"",
                    pipeline.model, model.name
                )
            });
            let (first, other) = ranges.entry(&model.name).or_insert((&pipeline.name, &pipeline.model));
            self.require(&at, "model", **other == pipeline.model, || {
                format!(
                    "found '{}', but pipeline {first} says '{other}'; a gateway runs one version of a model, so write the same range",
                    pipeline.model
                )
            });
        }
    }

    fn sources(&mut self, file: Vec<file::Source>, brokers: &Named<BTreeMap<Name, Broker>>) -> Named<Vec<Source>> {
        let mut found = Vec::with_capacity(file.len());
        let mut names = BTreeSet::new();
        for (index, source) in file.into_iter().enumerate() {
            let at = At::item("source", index, &source.name);
            if !names.insert(source.name.clone()) {
                let text = format!("a [[source]] named '{}' exists already; names are unique, rename one", source.name);
                self.problem(&at, "name", text);
            }
            found.extend(self.source(&at, source, brokers));
        }
        Named { found, names }
    }

    fn source(&mut self, at: &At, file: file::Source, brokers: &Named<BTreeMap<Name, Broker>>) -> Option<Source> {
        let name = self.name(at, "name", &file.name);
        let is_program = file.exec.is_some();
        let broker = if is_program {
            self.require(at, "broker", file.broker.is_none(), || {
                "a program ('exec') gives the samples, and no broker; keep one of the two keys".into()
            });
            Some(None)
        } else {
            self.choose_broker(at, file.broker, brokers).map(Some)
        };
        self.codec(at, &file.codec);
        self.message(at, is_program, file.message, &file.codec);
        let input = match (file.topic, file.join, file.exec) {
            (Some(topic), None, None) => self.accept(at, "topic", Filter::parse(&topic)).map(Input::Topic),
            (None, Some(join), None) => self.join(at, join, &file.codec),
            (None, None, Some(program)) => {
                self.accept(at, "exec", check_program(&program)).map(|()| Input::Exec(program))
            }
            (None, None, None) => {
                let text =
                    "the key is missing; add 'topic = \"…\"', 'join' for several topics, or 'exec' for a program";
                self.problem(at, "topic", text);
                None
            }
            (_, Some(_), _) => {
                self.problem(at, "join", "'topic', 'join' and 'exec' exclude each other; keep one of them");
                None
            }
            (Some(_), None, Some(_)) => {
                self.problem(at, "exec", "'topic' and 'exec' exclude each other; keep one of them");
                None
            }
        };

        // A joined source has one channel per topic, each from a payload of one channel.
        let channels = match &input {
            Some(Input::Join(join)) => Some(join.topics.len()),
            _ => file.codec.channels(),
        };
        for (key, list) in [("scale", &file.scale), ("offset", &file.offset)] {
            if let Some(channels) = channels {
                self.require(at, key, list.is_empty() || list.len() == channels, || {
                    format!("found {} values, expected {channels}, one per channel", list.len())
                });
            }
            let image = matches!(file.codec, Codec::Image(_));
            self.require(at, key, list.is_empty() || !image, || {
                "a picture is not scaled here; 'mean' and 'std' stand in the model's manifest".into()
            });
        }
        self.require(at, "scale", file.scale.iter().all(|scale| scale.value() != 0.0), || {
            "a factor is 0, which makes every sample the same; correct it".into()
        });
        if let Some(rate) = file.rate_hz {
            self.require(at, "rate_hz", (1e-6..=1e9).contains(&rate), || {
                format!("found {rate}, expected samples a second from 1e-6 to 1e9")
            });
        }

        let time = file.time.unwrap_or(TimeOrigin::Arrival);
        self.require(at, "time", time == TimeOrigin::Arrival || file.codec.has_time(), || {
            format!(
                "found \"payload\", and the codec '{}' names no time in it; add one there, or use \"arrival\"",
                file.codec.name()
            )
        });
        let resumes =
            broker.iter().flatten().next().filter(|name| brokers.found.get(*name).is_some_and(|broker| broker.resume));
        self.require(at, "time", resumes.is_none() || time == TimeOrigin::Payload, || {
            format!(
                "broker '{}' has resume = true and so brings samples of any age, whose time must be in them; set 'time = \"payload\"', or name a broker without it",
                resumes.map_or("", |name| name)
            )
        });
        let max_skew = file.max_skew.unwrap_or(Interval(Duration::from_secs(2)));
        self.positive(at, "max_skew", max_skew);
        if let Some(gap) = file.max_gap {
            self.positive(at, "max_gap", gap);
        }
        let max_streams = file.max_streams.unwrap_or(if is_program { 1 } else { 16 });
        self.require(at, "max_streams", !is_program || max_streams == 1, || {
            format!("found {max_streams}, and a program is one stream; remove the key, or give each program a source")
        });
        self.require(at, "max_streams", (1..=STREAMS_MAX).contains(&max_streams), || {
            format!("found {max_streams}, expected 1 to {STREAMS_MAX}")
        });
        let stream_idle = file.stream_idle.unwrap_or(Interval(Duration::from_secs(600)));
        self.positive(at, "stream_idle", stream_idle);
        let accept_retained = file.accept_retained.unwrap_or(false);
        self.require(at, "accept_retained", !accept_retained || time == TimeOrigin::Payload, || {
            "a retained message may be of any age, so its time must be in it; set 'time = \"payload\"'".into()
        });

        Some(Source {
            name: name?,
            broker: broker?,
            input: input?,
            message: file.message,
            codec: file.codec,
            scale: file.scale,
            offset: file.offset,
            rate_hz: file.rate_hz,
            time,
            max_skew,
            max_gap: file.max_gap,
            on_gap: file.on_gap.unwrap_or(OnGap::Reset),
            max_streams,
            stream_idle,
            accept_retained,
        })
    }

    fn positive(&mut self, at: &At, key: &str, interval: Interval) {
        self.require(at, key, !interval.0.is_zero(), || "found 0, expected more, such as \"20ms\"".into());
    }

    /// How a program's output is cut into messages: JSON and CSV by lines, samples that are nothing but numbers anywhere
    /// between two of them, and everything else by a length.
    fn message(&mut self, at: &At, is_program: bool, message: Option<Size>, codec: &Codec) {
        let Some(bytes) = message else {
            let ends = match codec {
                Codec::Raw(raw) => raw.header.is_empty(),
                Codec::Json(_) => true,
                Codec::Csv(csv) => {
                    self.require(at, "codec", !is_program || !csv.header && csv.skip_lines == 0, || {
                        "a program writes its header once, and every line of it is a message; leave out 'header' and 'skip_lines', and give columns by their numbers"
                            .into()
                    });
                    true
                }
                Codec::Image(_) => {
                    self.require(at, "codec", !is_program, || {
                        "pictures have no end that could be seen in a program's output; let it publish each to a topic"
                            .into()
                    });
                    true
                }
            };
            return self.require(at, "message", !is_program || ends, || {
                "the key is missing: with a header in the codec it must be known where a message ends; give its length, header and samples, such as \"516B\"".into()
            });
        };
        let Codec::Raw(raw) = codec else {
            let text = format!(
                "the codec '{}' ends a message by itself, so its length is not wanted; remove it",
                codec.name()
            );
            return self.problem(at, "message", text);
        };
        self.require(at, "message", is_program, || {
            "only a program's output ('exec') is cut into messages; MQTT brings them whole, so remove the key".into()
        });
        let header: usize = raw.header.iter().map(|field| field.size()).sum();
        let frame = raw.channels.max(1) * raw.number.size();
        let fits =
            usize::try_from(bytes.0).ok().filter(|bytes| *bytes <= MESSAGE_MAX).and_then(|n| n.checked_sub(header));
        self.require(at, "message", fits.is_some_and(|samples| samples > 0 && samples % frame == 0), || {
            format!("found {bytes}, expected {header} bytes of header and whole samples of {frame} bytes, at most {MESSAGE_MAX} bytes")
        });
    }

    fn join(&mut self, at: &At, join: file::Join, codec: &Codec) -> Option<Input> {
        let inner = at.inner("join");
        self.positive(&inner, "tolerance", join.tolerance);
        self.require(&inner, "topics", (2..=CHANNELS_MAX).contains(&join.topics.len()), || {
            format!("found {} topics, expected 2 to {CHANNELS_MAX}; for one topic use 'topic'", join.topics.len())
        });
        self.require(at, "codec", codec.channels() == Some(1), || {
            "every joined topic is one channel, so its payload must hold one; set the codec's channels to 1".into()
        });
        let parsed: Vec<Option<Filter>> =
            join.topics.iter().map(|topic| self.accept(&inner, "topics", Filter::parse(topic))).collect();
        let topics = parsed.into_iter().collect::<Option<Vec<_>>>()?;
        let naming = topics.iter().filter(|topic| topic.names_stream()).count();
        self.require(&inner, "topics", naming == 0 || naming == topics.len(), || {
            "some topics have '{stream}' and others do not, so their samples cannot be matched; give it to all or to none".into()
        });
        for (index, topic) in topics.iter().enumerate() {
            self.require(&inner, "topics", !topic.is_shared(), || {
                format!("'{topic}' is shared, and a row cannot be joined from half of the messages; drop '$share/…/'")
            });
            self.require(&inner, "topics", !topics[..index].contains(topic), || {
                format!("'{topic}' stands there twice; each channel has its own topic")
            });
        }
        Some(Input::Join(Join { topics, tolerance: join.tolerance }))
    }

    fn codec(&mut self, at: &At, codec: &Codec) {
        let at = at.inner("codec").inner(codec.name());
        if let Some(channels) = codec.channels() {
            let key = if matches!(codec, Codec::Csv(_)) { "columns" } else { "channels" };
            self.require(&at, key, (1..=CHANNELS_MAX).contains(&channels), || {
                format!("found {channels} channels, expected 1 to {CHANNELS_MAX}")
            });
        }
        match codec {
            Codec::Raw(raw) => self.raw(&at, raw),
            Codec::Json(json) => self.json(&at, json),
            Codec::Csv(csv) => self.csv(&at, csv),
            Codec::Image(_) => {}
        }
    }

    fn raw(&mut self, at: &At, raw: &Raw) {
        for (index, field) in raw.header.iter().enumerate() {
            let same = |other: &HeaderField| std::mem::discriminant(other) == std::mem::discriminant(field);
            self.require(at, "header", !raw.header[..index].iter().any(same), || {
                format!("field {} stands there twice; each field occurs once", index + 1)
            });
        }
    }

    fn json(&mut self, at: &At, json: &Json) {
        if let (Some(channels), Some(OneOrMany::Many(pointers))) = (json.channels, &json.value) {
            self.require(at, "channels", channels == pointers.len(), || {
                format!(
                    "found {channels}, and 'value' lists {} pointers, one per channel; leave 'channels' out",
                    pointers.len()
                )
            });
        }
        let values = json.value.iter().flat_map(|value| value.as_slice()).map(|pointer| ("value", pointer));
        for (key, pointer) in values.chain(json.time.iter().map(|pointer| ("time", pointer))) {
            self.require(at, key, pointer.is_empty() || pointer.starts_with('/'), || {
                format!("'{pointer}' is no JSON pointer; write '/{pointer}', with '/' between levels")
            });
        }
    }

    fn csv(&mut self, at: &At, csv: &Csv) {
        let forbidden = csv.separator.is_alphanumeric() || matches!(csv.separator, '\n' | '\r' | '"' | '.' | '-' | '+');
        self.require(at, "separator", !forbidden, || {
            format!("found {:?}, which occurs in numbers or ends lines; use \",\", \";\" or \"\\t\"", csv.separator)
        });
        let columns = csv.columns.iter().map(|column| ("columns", column));
        for (key, column) in columns.chain(csv.time.iter().map(|column| ("time", column))) {
            match column {
                Column::Name(name) => self.require(at, key, csv.header, || {
                    format!("'{name}' is a name, and there is no line that names columns; set 'header = true' or give numbers")
                }),
                Column::Number(number) => self.require(at, key, *number <= CHANNELS_MAX, || {
                    format!("found column {number}, expected at most {CHANNELS_MAX}")
                }),
            }
        }
    }

    fn pipelines(
        &mut self,
        file: Vec<file::Pipeline>,
        brokers: &Named<BTreeMap<Name, Broker>>,
        sources: &Named<Vec<Source>>,
        dropping: DropPolicy,
    ) -> Vec<Pipeline> {
        let mut found = Vec::with_capacity(file.len());
        let mut names = BTreeSet::new();
        for (index, pipeline) in file.into_iter().enumerate() {
            let at = At::item("pipeline", index, &pipeline.name);
            if !names.insert(pipeline.name.clone()) {
                let text =
                    format!("a [[pipeline]] named '{}' exists already; names are unique, rename one", pipeline.name);
                self.problem(&at, "name", text);
            }
            found.extend(self.pipeline(&at, pipeline, brokers, sources, dropping));
        }
        found
    }

    fn pipeline(
        &mut self,
        at: &At,
        file: file::Pipeline,
        brokers: &Named<BTreeMap<Name, Broker>>,
        sources: &Named<Vec<Source>>,
        dropping: DropPolicy,
    ) -> Option<Pipeline> {
        let name = self.name(at, "name", &file.name);
        let source = Name::parse(&file.source).ok();
        if !sources.names.contains(&file.source) {
            let names: Vec<&String> = sources.names.iter().collect();
            let text = match nearest(&file.source, &names) {
                Some(near) => format!("there is no [[source]] named '{}'; the nearest is '{near}'", file.source),
                None => format!("there is no [[source]] named '{}', nor any other; add it", file.source),
            };
            self.problem(at, "source", text);
        }
        let model = self.model(at, &file.model);

        let class = file.class.unwrap_or(Class::Realtime);
        let deadline = file.deadline.unwrap_or(Interval(match class {
            Class::Realtime => Duration::from_millis(100),
            Class::Analytic => Duration::from_secs(10),
        }));
        self.positive(at, "deadline", deadline);
        let policy = file.queue.policy.unwrap_or(match class {
            Class::Realtime => QueuePolicy::LatestOnly,
            Class::Analytic => QueuePolicy::DropOldest,
        });
        let depth = match (class, policy) {
            (Class::Realtime, _) | (_, QueuePolicy::LatestOnly) => 1,
            (Class::Analytic, QueuePolicy::DropOldest | QueuePolicy::Reject) => 16,
        };
        let queue = Queue { depth: file.queue.depth.unwrap_or(depth), policy };
        let queue_at = at.inner("queue");
        self.require(&queue_at, "depth", (1..=QUEUE_MAX).contains(&queue.depth), || {
            format!("found {}, expected 1 to {QUEUE_MAX} windows", queue.depth)
        });
        self.require(&queue_at, "depth", queue.policy != QueuePolicy::LatestOnly || queue.depth <= 1, || {
            format!(
                "found {}, but with the policy \"latest_only\"{} one window waits; leave 'depth' out, or set 'policy = \"drop_oldest\"'",
                queue.depth,
                if file.queue.policy.is_none() { ", the default of this class," } else { "" }
            )
        });

        let deadband = file.deadband.unwrap_or(0.05);
        self.require(at, "deadband", deadband.is_finite() && deadband >= 0.0, || {
            format!("found {deadband}, expected a number that is not negative, in units of the score")
        });
        let inference_batch =
            self.inference_batch(&at.inner("inference_batch"), &file.inference_batch, class, deadline);
        let message_batch = self.message_batch(&at.inner("message_batch"), &file.message_batch);
        let trial = self.trial(&at.inner("trial"), &file.trial);
        let mut local = Vec::with_capacity(file.local.len());
        for (index, output) in file.local.into_iter().enumerate() {
            local.extend(self.local(&at.inner_item("local", index), output, brokers, sources));
        }

        Some(Pipeline {
            name: name?,
            source: source?,
            model: model?,
            class,
            deadline,
            queue,
            publish: file.publish.unwrap_or(Publish::Changes),
            deadband,
            heartbeat: file.heartbeat.unwrap_or(Interval(Duration::from_secs(60))),
            inference_batch,
            pin: file.pin.unwrap_or(false),
            swap: file.swap.unwrap_or(Swap::Warm),
            message_batch,
            encoding: file.encoding.unwrap_or(Encoding::Json),
            outbox_policy: self.drop_policy(at, "outbox_policy", file.outbox_policy, dropping),
            trial,
            local,
        })
    }

    fn model(&mut self, at: &At, model: &str) -> Option<ModelRef> {
        let parsed = ModelRef::parse(model, |path| self.path(path));
        self.accept(at, "model", parsed)
    }

    fn trial(&mut self, at: &At, file: &file::Trial) -> Trial {
        let trial = Trial {
            windows: file.windows.unwrap_or(1000),
            time: file.time.unwrap_or(Interval(Duration::from_secs(600))),
            shadow: file.shadow.unwrap_or(false),
            shadow_cpu: file.shadow_cpu.unwrap_or(0.1),
            agreement: file.agreement.unwrap_or(0.9),
        };
        self.positive(at, "time", trial.time);
        for (key, share) in [("shadow_cpu", trial.shadow_cpu), ("agreement", trial.agreement)] {
            self.require(at, key, (0.0..=1.0).contains(&share), || {
                format!("found {share}, expected a share from 0 to 1")
            });
        }
        self.require(at, "shadow_cpu", !trial.shadow || trial.shadow_cpu > 0.0, || {
            "found 0, but with 'shadow = true' the new version must run; give it a share, such as 0.1".into()
        });
        trial
    }

    fn inference_batch(&mut self, at: &At, file: &file::Batch, class: Class, deadline: Interval) -> InferenceBatch {
        let max = file.max.unwrap_or(match class {
            Class::Realtime => 1,
            Class::Analytic => INFERENCE_BATCH_MAX,
        });
        let batch = InferenceBatch { max, delay: file.delay.unwrap_or(Interval(Duration::ZERO)) };
        self.require(at, "max", (1..=INFERENCE_BATCH_MAX).contains(&batch.max), || {
            format!("found {}, expected 1 to {INFERENCE_BATCH_MAX} windows in one run", batch.max)
        });
        self.require(at, "delay", batch.delay.0 < deadline.0.max(Duration::from_nanos(1)), || {
            format!("found {}, which is not below the deadline of {deadline}: no window could be ready", batch.delay)
        });
        self.require(at, "delay", batch.delay.0.is_zero() || batch.max > 1, || {
            "a window that runs alone has nothing to wait for; set 'max' above 1 or leave 'delay' out".into()
        });
        batch
    }

    fn message_batch(&mut self, at: &At, file: &file::Batch) -> MessageBatch {
        let batch = MessageBatch { max: file.max.unwrap_or(1), delay: file.delay.unwrap_or(Interval(Duration::ZERO)) };
        self.require(at, "max", (1..=BATCH_MAX).contains(&batch.max), || {
            format!("found {}, expected 1 to {BATCH_MAX} results in one message", batch.max)
        });
        self.require(at, "delay", batch.delay.0 <= BATCH_DELAY_MAX, || {
            format!("found {}, expected at most {}", batch.delay, Interval(BATCH_DELAY_MAX))
        });
        self.require(at, "delay", batch.delay.0.is_zero() || batch.max > 1, || {
            "a message of one result has nothing to wait for; set 'max' above 1 or leave 'delay' out".into()
        });
        batch
    }

    fn local(
        &mut self,
        at: &At,
        file: file::LocalOutput,
        brokers: &Named<BTreeMap<Name, Broker>>,
        sources: &Named<Vec<Source>>,
    ) -> Option<LocalOutput> {
        let broker = self.choose_broker(at, file.broker, brokers);
        let qos = file.qos.unwrap_or(0);
        self.require(at, "qos", qos <= 1, || format!("found {qos}, expected 0 or 1"));
        let topic = self.accept(at, "topic", Template::parse(&file.topic));
        if let (Some(topic), Some(broker)) = (&topic, &broker) {
            let mut own = sources.found.iter().filter(|source| source.reads(broker));
            if let Some(source) = own.find(|source| source.filters().iter().any(|filter| filter.may_receive(topic))) {
                let text = format!(
                    "'{topic}' is read by source '{}' too, so results would come back as samples; choose another topic",
                    source.name
                );
                self.problem(at, "topic", text);
            }
        }
        Some(LocalOutput { broker: broker?, topic: topic?, on: file.on.unwrap_or(Publish::Triggers), qos })
    }
}

/// Whether a program can be started by this list.
fn check_program(program: &[String]) -> Result<(), String> {
    let Some(name) = program.first().filter(|name| !name.is_empty()) else {
        return Err(
            "the list is empty; give a program and its arguments, such as [\"arecord\", \"-t\", \"raw\"]".into()
        );
    };
    if program.iter().any(|word| word.contains('\0')) {
        return Err("a word holds a NUL, which no program can be given".into());
    }
    if name.contains(char::is_whitespace) && program.len() == 1 {
        return Err(format!(
            "found \"{name}\", and there is no shell that would take it apart; give each word of it by itself"
        ));
    }
    if name.contains('/') && !name.starts_with('/') {
        return Err(format!("found \"{name}\", expected an absolute path, or a name that is looked for on PATH"));
    }
    Ok(())
}
