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
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, PubAckReason, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::depot::{TopicArgs, prefix};
use crate::mqtt::{
    self,
    broker::{Broker, BrokerUrl, LoginArgs},
};
use crate::{unavailable, usage};

/// How long to wait before a command is sent once more that nobody heard.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct RemoteArgs {
    /// The gateway's name
    #[arg(value_name = "GATEWAY")]
    gateway: String,
    /// What to ask: status, logs or diagnose; the gateway must have it in uplink.commands
    #[arg(value_name = "COMMAND")]
    command: Verb,
    /// The broker that the gateways' results go to, as mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    broker: BrokerUrl,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    topics: TopicArgs,
    /// How many lines of the log, with logs: 1 to 500
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
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
    if args.lines.is_some() && args.command != Verb::Logs {
        return Err(usage(format!("--lines is for logs, not for {}", args.command)));
    }
    let patience = Duration::from_secs_f64(args.seconds);
    let mut asked = None;
    let answer = runtime.block_on(async { timeout(patience, ask(args, &mut asked)).await });
    let Ok(answer) = answer else {
        let (gateway, seconds, topics) = (&args.gateway, args.seconds, topics(args)?);
        return Err(unavailable(match asked {
            None => format!(
                "the broker has nothing from a gateway {gateway}: no message on {} within {seconds} s; is that its name, is this its broker, and may you read that?",
                topics.status()
            ),
            Some(_) => format!(
                "{gateway} was asked and does not answer within {seconds} s; has it {} in uplink.commands, and does its broker let it read {}# and write {}#?",
                args.command,
                topics.commands(),
                topics.replies()
            ),
        }));
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
    Ok(Topics::new(prefix(&args.topics)?, &args.gateway))
}

/// `asked`: the session under which the gateway was asked, once it was.
async fn ask(args: &RemoteArgs, asked: &mut Option<String>) -> anyhow::Result<Answer> {
    let topics = topics(args)?;
    let number = crate::depot::mqtt::random();
    let (reply, correlation) = (format!("{}lab-{number:016x}", topics.replies()), number.to_le_bytes().to_vec());
    let broker = Broker::new(&args.broker, &args.login)?;
    let options = broker.options(format!("limpet-lab-remote-{number:016x}"));
    let (client, connection) = AsyncClient::new(options, 16);
    let mut told = mqtt::events(connection, 64, Duration::from_millis(500));
    let mut again = false;
    let filters = [topics.status(), reply.clone()].map(|topic| Filter::new(topic, QoS::AtLeastOnce));
    loop {
        match next(&broker, &mut told).await? {
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
                send(&client, args, &topics, &status.session, &reply, &correlation).await?;
                *asked = Some(status.session);
            }
            Packet::PubAck(ack) => match ack.reason {
                PubAckReason::Success => {}
                // It says that it is there just before it subscribes: once more, in a moment.
                PubAckReason::NoMatchingSubscribers if !std::mem::replace(&mut again, true) => {
                    tokio::time::sleep(AGAIN).await;
                    send(&client, args, &topics, asked.as_deref().unwrap_or_default(), &reply, &correlation).await?;
                }
                PubAckReason::NoMatchingSubscribers => {
                    let (gateway, command) = (&args.gateway, args.command);
                    return Err(unavailable(format!(
                        "{gateway} does not hear {command}: it has it not in uplink.commands, its broker does not let it read {}#, or it is not connected just now",
                        topics.commands()
                    )));
                }
                reason => {
                    let topic = topics.commands() + args.command.name();
                    return Err(unavailable(format!("the broker does not let you write {topic} ({reason:?})")));
                }
            },
            Packet::Publish(publish) if publish.topic == reply && is_ours(&publish, &correlation) => {
                return serde_json::from_slice(&publish.payload).context("what the gateway answers is no answer");
            }
            _ => {}
        }
    }
}

/// Sends the command.
async fn send(
    client: &AsyncClient,
    args: &RemoteArgs,
    topics: &Topics,
    session: &str,
    reply: &str,
    correlation: &[u8],
) -> anyhow::Result<()> {
    let command = Command { session: session.to_owned(), lines: args.lines };
    let properties = PublishProperties {
        response_topic: Some(reply.to_owned()),
        correlation_data: Some(correlation.to_vec().into()),
        ..PublishProperties::default()
    };
    let topic = topics.commands() + args.command.name();
    let sent = client.publish_with_properties(topic, QoS::AtLeastOnce, false, command.to_json(), properties);
    sent.await.context("the command could not be sent")
}

fn is_ours(publish: &Publish, correlation: &[u8]) -> bool {
    let data = publish.properties.as_ref().and_then(|properties| properties.correlation_data.as_deref());
    data == Some(correlation)
}

async fn next(
    broker: &Broker,
    told: &mut Receiver<Result<Event, rumqttc::v5::ConnectionError>>,
) -> anyhow::Result<Packet> {
    loop {
        match told.recv().await.context("the connection's task ended")? {
            Ok(Event::Incoming(packet)) => return Ok(packet),
            Ok(Event::Outgoing(_)) => {}
            Err(error) => return Err(unavailable(format!("no connection to {broker}: {}", broker.why(&error)))),
        }
    }
}
