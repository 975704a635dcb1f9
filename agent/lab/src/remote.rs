//! `limpet-lab remote`: asks a gateway by way of its broker.
//!
//! It takes the gateway's `session` from its retained `status`, sends the command with a response topic of its own and
//! random correlation data, and prints the answer.

use std::time::Duration;

use anyhow::{Context as _, bail};
use limpet_wire::command::{Answer, Command, Verb};
use limpet_wire::message::{Message as _, Presence, Status};
use limpet_wire::topic::Topics;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::depot::prefix;
use crate::mqtt::{self, uplink::UplinkArgs};
use crate::{unavailable, usage};

#[derive(clap::Args)]
pub struct RemoteArgs {
    /// The gateway's name
    #[arg(value_name = "GATEWAY")]
    gateway: String,
    /// What to ask: status, logs or diagnose; the gateway must have it in uplink.commands
    #[arg(value_name = "COMMAND")]
    command: Verb,
    #[command(flatten)]
    uplink: UplinkArgs,
    /// How many lines of the log
    #[arg(long, value_name = "N")]
    lines: Option<u32>,
    /// How long to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    seconds: f64,
}

/// Runs `limpet-lab remote`: prints the answer as JSON, or the lines of a log as they are. Exit code 69 if there is none.
pub fn run(args: &RemoteArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    if !(0.1..=3600.0).contains(&args.seconds) {
        return Err(usage("--seconds: expected 0.1 to 3600"));
    }
    if let Err(why) = limpet_wire::name::check_name(&args.gateway) {
        return Err(usage(format!("{}: {why}", args.gateway)));
    }
    let patience = Duration::from_secs_f64(args.seconds);
    let answer = runtime.block_on(async { timeout(patience, ask(args)).await });
    let Ok(answer) = answer else {
        return Err(unavailable(format!(
            "{} does not answer within {} s; is it online, has it {} in uplink.commands, and does its broker let you write {}?",
            args.gateway,
            args.seconds,
            args.command,
            topics(args)?.commands() + args.command.name()
        )));
    };
    let Answer { answer, error, .. } = answer?;
    if let Some(why) = error {
        bail!("{} refuses: {why}", args.gateway);
    }
    let answer = answer.unwrap_or_default();
    let text = match answer["lines"].as_array() {
        Some(lines) => lines.iter().filter_map(|line| line.as_str()).map(|line| format!("{line}\n")).collect(),
        None => format!("{answer:#}\n"),
    };
    // What another machine says must not steer the terminal.
    let plain: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    std::io::Write::write_all(&mut std::io::stdout(), plain.as_bytes()).context("writing to standard output")?;
    Ok(())
}

fn topics(args: &RemoteArgs) -> anyhow::Result<Topics> {
    Ok(Topics::new(prefix(&args.uplink.user)?, &args.gateway))
}

async fn ask(args: &RemoteArgs) -> anyhow::Result<Answer> {
    let topics = topics(args)?;
    let number = crate::depot::mqtt::random();
    let (reply, correlation) = (format!("{}lab-{number:016x}", topics.replies()), number.to_le_bytes().to_vec());
    let options = args.uplink.options(format!("limpet-lab-remote-{number:016x}"))?;
    let (client, connection) = AsyncClient::new(options, 16);
    let mut told = mqtt::events(connection, 64, Duration::from_millis(500));
    let filters = [topics.status(), reply.clone()].map(|topic| Filter::new(topic, QoS::AtLeastOnce));
    let mut asked: Option<String> = None;
    loop {
        match next(args, &mut told).await? {
            Packet::ConnAck(_) => {
                client.subscribe_many(filters.clone()).await.context("the subscription could not be sent")?
            }
            Packet::SubAck(ack) if ack.return_codes.iter().any(|c| !matches!(c, SubscribeReasonCode::Success(_))) => {
                return Err(unavailable(format!("the broker does not let you read {} and {reply}", topics.status())));
            }
            Packet::Publish(publish) if publish.topic == topics.status() => {
                let status: Status =
                    serde_json::from_slice(&publish.payload).context("what the gateway says of itself")?;
                if status.state != Presence::Online {
                    return Err(unavailable(format!("{} is offline", args.gateway)));
                }
                // Once for each session: the gateway may have come back under another.
                if asked.as_ref() == Some(&status.session) {
                    continue;
                }
                asked = Some(status.session.clone());
                let command = Command { session: status.session, lines: args.lines };
                let properties = PublishProperties {
                    response_topic: Some(reply.clone()),
                    correlation_data: Some(correlation.clone().into()),
                    ..PublishProperties::default()
                };
                let topic = format!("{}{}", topics.commands(), args.command);
                let sent =
                    client.publish_with_properties(topic, QoS::AtLeastOnce, false, command.to_json(), properties);
                sent.await.context("the command could not be sent")?;
            }
            Packet::Publish(publish) if publish.topic == reply && is_ours(&publish, &correlation) => {
                return serde_json::from_slice(&publish.payload).context("what the gateway answers is no answer");
            }
            _ => {}
        }
    }
}

fn is_ours(publish: &Publish, correlation: &[u8]) -> bool {
    let data = publish.properties.as_ref().and_then(|properties| properties.correlation_data.as_deref());
    data == Some(correlation)
}

async fn next(
    args: &RemoteArgs,
    told: &mut Receiver<Result<Event, rumqttc::v5::ConnectionError>>,
) -> anyhow::Result<Packet> {
    loop {
        match told.recv().await.context("the connection's task ended")? {
            Ok(Event::Incoming(packet)) => return Ok(packet),
            Ok(Event::Outgoing(_)) => {}
            Err(error) => {
                let uplink = &args.uplink;
                return Err(unavailable(format!("no connection to {}: {}", uplink.broker, uplink.why(&error))));
            }
        }
    }
}
