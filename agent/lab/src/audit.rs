//! `limpet-lab audit`: what arrived of what gateways stored.
//!
//! Ids alone prove a loss or a repeat: numbers of a run follow each other. Three things say why a number is not there.
//! A range record says that a policy dropped it. The retained `delivery` message of the gateway says up to which number
//! each run was stored and how much of its stream waits. Whatever is neither here, nor dropped, nor waiting, is lost.
//!
//! Who joins later can judge only what was stored from then on: of what came before, new results and a backlog may have
//! gone out in any order. The `delivery` message that the broker kept says where that begins, unless the gateway is
//! offline, as its retained `status` says: then more may have gone out after that message.

pub mod ledger;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::ledger::Ledger;
use crate::depot::{TopicArgs, prefix};
use crate::mqtt::{
    self,
    broker::{Broker, BrokerUrl, LoginArgs},
};
use crate::unavailable;

/// Waits between tries.
const AGAIN: Duration = Duration::from_millis(200);
/// Without a first connection for so long, it is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a broker keeps what comes while this program has lost it, in seconds.
const SESSION: u32 = 3600;

#[derive(clap::Args)]
pub struct AuditArgs {
    /// The broker that the gateways' results go to, as mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    broker: BrokerUrl,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    topics: TopicArgs,
    /// Only results of this gateway
    #[arg(long, value_name = "NAME", default_value = "+")]
    gateway: String,
    /// How long to listen; without it, and without --until-quiet, until Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// End when no result has come for so long and no gateway that is online says that any waits; at least 11, since a
    /// gateway tells every ten seconds what it has stored
    #[arg(long, value_name = "SECONDS", value_parser = quiet)]
    until_quiet: Option<f64>,
    /// Every run is judged from number 1: this program is there before the gateways are. Without it, what had been stored
    /// when it came is not judged
    #[arg(long)]
    from_start: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

fn quiet(text: &str) -> Result<f64, String> {
    const LEAST: f64 = 11.0;
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if seconds >= LEAST { Ok(seconds) } else { Err(format!("expected at least {LEAST}")) }
}

/// Runs `limpet-lab audit`. Exit code 1 if anything is lost, could not be read, or if nothing came.
pub fn run(args: &AuditArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    let ledger = runtime.block_on(listen(args))?;
    let report = ledger.report();
    let text = if args.json { report.json() + "\n" } else { report.text() };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).context("writing to standard output")?;
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn listen(args: &AuditArgs) -> anyhow::Result<Ledger> {
    let prefix = prefix(&args.topics)?.to_owned();
    let broker = Broker::new(&args.broker, &args.login)?;
    let mut options = broker.options(format!("limpet-lab-audit-{}", std::process::id()));
    // What comes while the connection is gone is sent later, if the broker lives.
    options.set_clean_start(false);
    options.set_session_expiry_interval(Some(SESSION));
    let (client, connection) = AsyncClient::new(options, 64);
    let mut told = mqtt::events(connection, 64, AGAIN);
    let topics = ["result/#", "delivery", "status"].map(|topic| format!("{prefix}/{}/{topic}", args.gateway));
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut ledger = Ledger::new(args.from_start);
    let start = Instant::now();
    let end = args.seconds.map(|seconds| start + Duration::from_secs_f64(seconds.max(0.0)));
    let quiet = args.until_quiet.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
    let (mut subscribed, mut last) = (false, Instant::now());
    let mut why = "the broker does not answer".to_owned();
    loop {
        let quiet = quiet.filter(|_| subscribed).map(|quiet| last + quiet);
        let due = [end, quiet, (!subscribed).then(|| start + PATIENCE)];
        let due = due.into_iter().flatten().min().unwrap_or_else(|| start + Duration::from_secs(1 << 30));
        let event = tokio::select! {
            biased;
            event = told.recv() => event.context("the connection's task ended")?,
            () = tokio::time::sleep_until(due) => {
                if !subscribed {
                    return Err(unavailable(format!("no connection to {broker}: {why}")));
                }
                let waiting = ledger.waiting();
                if end.is_some_and(|end| end <= due) || waiting.is_empty() {
                    break;
                }
                let whom: Vec<String> = waiting.iter().map(|(gateway, count)| format!("{gateway} ({count})")).collect();
                eprintln!("limpet-lab: nothing comes, and something waits at {}", whom.join(", "));
                last = Instant::now();
                continue;
            }
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        };
        match event {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                if subscribed && !ack.session_present {
                    ledger.interrupted();
                    eprintln!("limpet-lab: the broker forgot this subscription; what came meanwhile counts as lost");
                }
                if !ack.session_present {
                    let filters: Vec<Filter> =
                        topics.iter().map(|t| Filter::new(t.clone(), QoS::AtLeastOnce)).collect();
                    client.subscribe_many(filters).await.context("the subscription could not be sent")?;
                }
            }
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                if ack.return_codes.iter().any(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
                    return Err(unavailable(format!(
                        "{broker}: the broker does not let us read {}; allow that, as `topic read {prefix}/#` in mosquitto",
                        topics.join(" and ")
                    )));
                }
                subscribed = true;
                last = Instant::now();
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let content_type =
                    publish.properties.as_ref().and_then(|p| p.content_type.as_deref()).unwrap_or_default();
                let topic = String::from_utf8_lossy(&publish.topic);
                if ledger.take(&topic, content_type, &publish.payload, publish.retain, Instant::now().into_std()) {
                    last = Instant::now();
                }
            }
            Ok(_) => {}
            // What is wrong with a certificate does not go away by itself; what ends later may.
            Err(error) if !subscribed && broker.explain(&error).is_some() => {
                return Err(unavailable(format!("no connection to {broker}: {}", broker.why(&error))));
            }
            Err(error) => {
                let now = broker.why(&error);
                if now != why {
                    eprintln!("limpet-lab: no connection to {broker}, trying again: {now}");
                    why = now;
                }
            }
        }
    }
    Ok(ledger)
}
