//! `limpet-lab depot status`: what the gateways say of their models.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use limpet_depot::publish::{PublishError, ReleaseChange};
use limpet_wire::message::{ModelPhase, Models, Presence, Status};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ConnectionError, Event};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::cli::{AccessArgs, PlaceArgs, StatusArgs};
use super::commands::Open;
use super::place::prefix;
use crate::bench::text::table;
use crate::mqtt::broker::Broker;
use crate::unavailable;

/// When nothing retained has come for so long, all of it is there; and so long changes are gathered for the next table.
const QUIET: Duration = Duration::from_secs(1);
/// As long as a terminal is shown the same table, at least.
const LIVE: Duration = Duration::from_millis(200);
/// After so long all that is retained counts as there, whatever still comes.
const SETTLED: Duration = Duration::from_secs(10);
/// Without a connection for so long, it is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Waits between tries.
const AGAIN: Duration = Duration::from_millis(500);
/// How long another publisher with the same keys is waited for, before a rollout is halted.
const BUSY: Duration = Duration::from_secs(600);
/// Most that a cell shows of a failure, in characters.
const FAILURE_SHOWN: usize = 70;

/// What one gateway said last.
#[derive(Default)]
struct Gateway {
    presence: Option<Presence>,
    models: Option<Models>,
}

/// What a gateway said, fit for a cell.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().filter(|c| !c.is_control()).take(FAILURE_SHOWN).collect();
    if text.chars().count() > FAILURE_SHOWN {
        shown.push('…');
    }
    shown
}

/// All gateways, by id.
#[derive(Default)]
struct Fleet(BTreeMap<String, Gateway>);

impl Fleet {
    /// Takes a message. Tells whether it was one of a gateway; a damaged one is as none.
    fn take(&mut self, prefix: &str, topic: &str, payload: &[u8]) -> bool {
        let levels = topic.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')?.split_once('/'));
        let Some((id, what)) = levels else { return false };
        let gateway = || id.to_owned();
        match what {
            "models" => match serde_json::from_slice(payload) {
                Ok(models) => self.0.entry(gateway()).or_default().models = Some(models),
                Err(_) if payload.is_empty() => drop(self.0.remove(id)),
                Err(_) => return false,
            },
            "status" => match serde_json::from_slice::<Status>(payload) {
                Ok(status) => self.0.entry(gateway()).or_default().presence = Some(status.state),
                Err(_) if payload.is_empty() => drop(self.0.remove(id)),
                Err(_) => return false,
            },
            _ => return false,
        }
        true
    }

    /// Gateways on which a version failed.
    fn failed(&self, model: &str, version: &str) -> BTreeSet<&str> {
        let failed = |gateway: &Gateway| {
            let mut models = gateway.models.iter().flat_map(|models| &models.models);
            models.any(|m| m.name == model && m.version == version && m.state == ModelPhase::Failed)
        };
        self.0.iter().filter(|(_, gateway)| failed(gateway)).map(|(id, _)| id.as_str()).collect()
    }

    /// For each version of each model: gateways that serve it, gateways that failed, and gateways that name the model.
    fn shares(&self) -> BTreeMap<(String, String), (usize, usize, usize)> {
        let mut having: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut shares: BTreeMap<(String, String), (usize, usize, usize)> = BTreeMap::new();
        for (id, gateway) in &self.0 {
            for model in gateway.models.iter().flat_map(|models| &models.models) {
                having.entry(&model.name).or_default().insert(id);
                let share = shares.entry((model.name.clone(), model.version.clone())).or_default();
                share.0 += usize::from(model.state == ModelPhase::Active);
                share.1 += usize::from(model.state == ModelPhase::Failed);
            }
        }
        for ((model, _), share) in &mut shares {
            share.2 = having.get(model.as_str()).map_or(0, BTreeSet::len);
        }
        shares
    }

    fn text(&self) -> String {
        let titles = ["gateway ", "model ", "version ", "state ", "done", "failure "];
        let mut lines = vec![titles.map(str::to_owned).to_vec()];
        for (id, gateway) in &self.0 {
            let offline = if gateway.presence == Some(Presence::Offline) { " (offline)" } else { "" };
            let id = format!("{id}{offline}");
            let models = gateway.models.as_ref().map_or(&[][..], |models| &models.models);
            if models.is_empty() {
                lines.push(vec![id, "-".into(), "-".into(), "-".into(), String::new(), String::new()]);
                continue;
            }
            for model in models {
                let failure = shown(model.failure.as_deref().unwrap_or_default());
                let done = model.progress.map_or(String::new(), |p| format!("{:.0} %", p * 100.0));
                lines.push(vec![
                    id.clone(),
                    model.name.clone(),
                    model.version.clone(),
                    phase(model.state),
                    done,
                    failure,
                ]);
            }
        }
        if self.0.is_empty() {
            return "no gateway has said anything yet\n".to_owned();
        }
        let mut text = table(&lines);
        text.push('\n');
        for (id, gateway) in &self.0 {
            let Some(configuration) = gateway.models.as_ref().and_then(|models| models.configuration.as_ref()) else {
                continue;
            };
            let failure = configuration.failure.as_ref().map_or_else(String::new, |why| format!(": {}", shown(why)));
            let (name, word) = (&configuration.name, configuration.state.word());
            text.push_str(&format!("{id}: configuration {name} {word}{failure}\n"));
        }
        for ((model, version), (active, failed, of)) in self.shares() {
            let share = 100.0 * active as f64 / of.max(1) as f64;
            text.push_str(&format!(
                "{model} {version}: active on {active} of {of} ({share:.0} %), failed on {failed}\n"
            ));
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let gateways: BTreeMap<&str, _> = self
            .0
            .iter()
            .map(|(id, gateway)| {
                let models = gateway.models.as_ref();
                (
                    id.as_str(),
                    json!({"presence": gateway.presence, "agent": models.map(|m| &m.agent),
                    "labels": models.map(|m| &m.labels), "models": models.map_or(&[][..], |m| &m.models),
                    "configuration": models.map(|m| &m.configuration)}),
                )
            })
            .collect();
        let versions: Vec<_> = self
            .shares()
            .into_iter()
            .map(|((model, version), (active, failed, of))| {
                json!({"model": model, "version": version, "active": active, "failed": failed, "gateways": of})
            })
            .collect();
        json!({"gateways": gateways, "versions": versions})
    }
}

/// When the table is due. A fleet at work is never quiet, so what moves only ever brings it nearer.
struct Pace {
    /// From a change to the table with it.
    each: Duration,
    /// When the broker took the first subscription, until what was retained then is there.
    settling: Option<Instant>,
    settled: bool,
    due: Option<Instant>,
}

impl Pace {
    fn new(each: Duration) -> Self {
        Self { each, settling: None, settled: false, due: None }
    }

    /// The broker took a subscription: it sends what is retained.
    fn subscribed(&mut self, now: Instant) {
        if self.settled {
            self.due.get_or_insert(now + self.each);
        } else {
            self.settling.get_or_insert(now);
            self.due = Some(now + QUIET);
        }
    }

    /// Something about a gateway came, as it was retained or as it happened.
    fn heard(&mut self, now: Instant, retained: bool) {
        if self.settled {
            self.due.get_or_insert(now + self.each);
        } else if let (true, Some(since)) = (retained, self.settling) {
            self.due = Some((now + QUIET).min(since + SETTLED));
        }
    }

    /// The table was due: from now on all that was retained is there.
    fn shown(&mut self) {
        (self.settled, self.due) = (true, None);
    }
}

fn phase(state: ModelPhase) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Runs `limpet-lab depot status`.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let prefix = prefix(&args.topics)?.to_owned();
    let broker = Broker::new(&args.broker, &args.login)?;
    let options = broker.options(format!("limpet-lab-status-{}", std::process::id()));
    let topics = [format!("{prefix}/+/models"), format!("{prefix}/+/status")];
    // Before anything else: wrong keys, a wrong passphrase or a wrong name must not come out when it is urgent.
    let open = match &args.halt {
        Some((model, version)) => Some(ready_to_halt(&args, model, version).await?),
        None => None,
    };
    let (client, connection) = AsyncClient::new(options, 16);
    let mut told = crate::mqtt::events(connection, 16, AGAIN);
    watch(&args, &broker, &prefix, &topics, &client, &mut told, open.as_ref()).await
}

/// Shows what comes until it is enough.
async fn watch(
    args: &StatusArgs,
    broker: &Broker,
    prefix: &str,
    topics: &[String],
    client: &AsyncClient,
    told: &mut mpsc::Receiver<Result<Event, ConnectionError>>,
    open: Option<&Open>,
) -> anyhow::Result<ExitCode> {
    let mut fleet = Fleet::default();
    let once = args.once || args.json;
    let live = !once && std::io::stdout().is_terminal();
    let mut pace = Pace::new(if live { LIVE } else { QUIET });
    let (mut lost, mut shown, mut reached) = (Some(Instant::now()), None, false);
    loop {
        let wake = pace.due.unwrap_or_else(|| Instant::now() + PATIENCE);
        let event = tokio::select! {
            // A table that is due is shown, however much comes.
            biased;
            () = tokio::time::sleep_until(wake) => None,
            event = told.recv() => Some(event.context("the connection's task ended")?),
        };
        match event {
            Some(Ok(Event::Incoming(Packet::ConnAck(_)))) => {
                let filters: Vec<Filter> = topics.iter().map(|t| Filter::new(t.clone(), QoS::AtLeastOnce)).collect();
                client.subscribe_many(filters).await.context("the subscription could not be sent")?;
            }
            Some(Ok(Event::Incoming(Packet::SubAck(ack)))) => {
                if ack.return_codes.iter().any(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
                    return Err(unavailable(format!(
                        "{}: the broker does not let us read {}; allow that, as `topic read {prefix}/+/models` in mosquitto",
                        args.broker,
                        topics.join(" and ")
                    )));
                }
                (lost, reached) = (None, true);
                pace.subscribed(Instant::now());
            }
            Some(Ok(Event::Incoming(Packet::Publish(publish)))) => {
                if fleet.take(prefix, &String::from_utf8_lossy(&publish.topic), &publish.payload) {
                    pace.heard(Instant::now(), publish.retain);
                    if pace.settled
                        && let Some(halting) = Halting::due(args, open, &fleet)
                    {
                        tell(args, &fleet, live, &mut shown)?;
                        return halting.halt().await;
                    }
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                let for_good = !reached && broker.explain(&error).is_some();
                if for_good || lost.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err(unavailable(format!("no connection to {broker}: {}", broker.why(&error))));
                }
            }
            None if pace.due.is_none() && lost.is_some() => {
                return Err(unavailable(format!("{}: the broker does not answer", args.broker)));
            }
            None if pace.due.is_none() => {}
            None => {
                pace.shown();
                tell(args, &fleet, live, &mut shown)?;
                if let Some(halting) = Halting::due(args, open, &fleet) {
                    return halting.halt().await;
                }
                if once {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    }
}

/// Prints what the gateways say, if it is not what was printed last.
fn tell(args: &StatusArgs, fleet: &Fleet, live: bool, shown: &mut Option<String>) -> anyhow::Result<()> {
    if args.json {
        println!("{}", fleet.json());
        return Ok(());
    }
    let text = fleet.text();
    if shown.as_ref() != Some(&text) {
        show(&text, live, shown.is_none())?;
        *shown = Some(text);
    }
    Ok(())
}

/// Prints a table; on a terminal over the one before.
fn show(text: &str, live: bool, first: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let clear = match (live, first) {
        (true, _) => "\x1b[H\x1b[2J",
        (false, true) => "",
        (false, false) => "\n",
    };
    write!(out, "{clear}{text}").and_then(|()| out.flush()).context("standard output is closed")
}

/// Opens the depot and the keys that sign the rollout.
async fn ready_to_halt(args: &StatusArgs, model: &str, version: &str) -> anyhow::Result<Open> {
    let place = PlaceArgs {
        broker: Some(args.broker.clone()),
        login: args.login.clone(),
        topics: args.topics.clone(),
        to: None,
        patience: 10,
    };
    let open = Open::new(&AccessArgs { place, keys: args.keys.clone() }).await?;
    open.check_rollout(model, version)?;
    Ok(open)
}

/// A rollout that failed on as many gateways as it may.
struct Halting<'a> {
    open: &'a Open,
    model: &'a str,
    version: &'a str,
    failed: Vec<&'a str>,
}

impl<'a> Halting<'a> {
    /// None as long as it may go on.
    fn due(args: &'a StatusArgs, open: Option<&'a Open>, fleet: &'a Fleet) -> Option<Self> {
        let ((model, version), at) = (args.halt.as_ref()?, args.at?);
        let failed: Vec<&str> = fleet.failed(model, version).into_iter().collect();
        (failed.len() as u64 >= at).then_some(Self { open: open?, model, version, failed })
    }

    async fn halt(self) -> anyhow::Result<ExitCode> {
        halt(self.open, self.model, self.version, &self.failed).await
    }
}

async fn halt(open: &Open, model: &str, version: &str, failed: &[&str]) -> anyhow::Result<ExitCode> {
    let change = ReleaseChange { halted: Some(true), ..ReleaseChange::default() };
    let waits = Instant::now();
    let mut publisher = loop {
        match open.publisher() {
            // A publisher that is at work must not keep a bad version going.
            Err(PublishError::Busy(_)) if waits.elapsed() < BUSY => tokio::time::sleep(AGAIN).await,
            publisher => break publisher?,
        }
    };
    publisher.rollout(model, version, &change).await?;
    eprintln!(
        "limpet-lab: {model} {version} failed on {} gateways ({}): its rollout is halted. `limpet-lab depot withdraw {model} \
         {version}` takes it back from the others, `limpet-lab depot rollout {model} {version} --resume` goes on",
        failed.len(),
        failed.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(version: &str, state: &str, failure: &str) -> Vec<u8> {
        let model = json!({"name": "m", "version": version, "state": state, "failure": failure});
        json!({"v": 1, "type": "models", "agent": "1", "labels": {}, "clock": "synced", "models": [model]})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn a_fleet_that_is_never_quiet_is_shown_all_the_same_and_at_its_pace() {
        let begun = Instant::now();
        let after = |millis: u64| begun + Duration::from_millis(millis);
        let mut pace = Pace::new(LIVE);
        pace.heard(begun, true);
        assert_eq!(pace.due, None, "nothing is known before a subscription is taken");
        pace.subscribed(begun);
        // What is retained comes first, and what happens meanwhile does not put it off.
        pace.heard(after(500), true);
        (0..1000).for_each(|n| pace.heard(after(500 + n), false));
        assert_eq!(pace.due, Some(after(1500)));
        (0..20_000).for_each(|n| pace.heard(after(n), true));
        assert_eq!(pace.due, Some(begun + SETTLED), "nor does a broker that marks all as retained");
        pace.shown();
        assert!(pace.settled && pace.due.is_none());
        (0..1000).for_each(|n| pace.heard(after(20_000 + n), n % 2 == 0));
        pace.subscribed(after(20_999));
        assert_eq!(pace.due, Some(after(20_000) + LIVE), "the first change after a table sets the next one's time");
    }

    #[test]
    fn failures_are_counted_by_version_and_shares_by_model() {
        let mut fleet = Fleet::default();
        assert!(fleet.take("limpet/1", "limpet/1/a/models", &models("1.1.0", "failed", "golden vector 3")));
        assert!(fleet.take("limpet/1", "limpet/1/b/models", &models("1.1.0", "active", "")));
        assert!(fleet.take("limpet/1", "limpet/1/c/models", &models("1.0.0", "active", "an old\x1b[2J one")));
        assert!(!fleet.take("limpet/1", "limpet/1/c/models", b"{"));
        assert!(!fleet.take("limpet/1", "other/c/models", b"{}"));
        let offline = json!({"v": 1, "type": "status", "state": "offline", "session": "s", "connected_at": null});
        assert!(fleet.take("limpet/1", "limpet/1/c/status", offline.to_string().as_bytes()));
        assert_eq!(fleet.failed("m", "1.1.0"), BTreeSet::from(["a"]));
        assert!(fleet.failed("m", "1.0.0").is_empty());
        assert_eq!(fleet.shares()[&("m".to_owned(), "1.1.0".to_owned())], (1, 1, 3));
        let text = fleet.text();
        assert!(
            text.contains("c (offline)") && text.contains("m 1.1.0: active on 1 of 3 (33 %), failed on 1"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "a gateway cannot move the cursor");
        // A retained message that is taken away takes the gateway away.
        assert!(fleet.take("limpet/1", "limpet/1/a/models", b""));
        assert!(fleet.failed("m", "1.1.0").is_empty());
    }
}
