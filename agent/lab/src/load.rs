//! `limpet-lab load`: publishes messages through a broker and measures the answers.
//!
//! Every message starts with a tag, a u64 little-endian, which the agent echoes in its result; the tag is the number of
//! the message. So each answer is matched to the moment its message was handed to the socket, answers that never come
//! are counted as lost, and repeated ones as repeated. `--echo` subscribes to the published topic itself and so
//! measures one hop through the broker, the floor under every other figure.
//!
//! Two ways to publish: at a fixed rate, whatever the answers do, for latency; or flat out with a number of messages
//! unanswered at any time, for throughput. What happens in the warm-up is not measured. `--publish-only` is for loads
//! above what an agent can take, and for what it is to refuse (`--untagged`): it publishes at a rate, takes no answers, and
//! ends when all has been written.

mod ledger;
mod process;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use serde::Serialize;
use tokio::sync::Notify;

use crate::mqtt::broker::{Broker, BrokerUrl, LoginArgs};
use crate::{answer, unavailable, usage};
use ledger::{Figures, Ledger};
use process::Process;

/// Bytes of the tag in front of every payload.
const TAG: usize = size_of::<u64>();
/// Stands for the tag in a topic.
const TAG_IN_TOPIC: &str = "{tag}";
/// An answer that takes longer is lost, and its place among the unanswered is given to another message.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// How often lost answers are looked for.
const LOOK_FOR_LOST: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub struct LoadArgs {
    /// The broker
    #[arg(long, value_name = "URL", default_value = "mqtt://127.0.0.1:1883")]
    broker: BrokerUrl,
    #[command(flatten)]
    login: LoginArgs,
    /// Topic to publish to; {tag} in it becomes the message's number, so that each has a topic of its own
    #[arg(long, default_value = "limpet-lab/load")]
    topic: String,
    /// Topic filter on which answers come
    #[arg(long, value_name = "FILTER", required_unless_present_any = ["echo", "publish_only"], conflicts_with = "echo")]
    answers: Option<String>,
    /// Take no answers: what becomes of the messages, the agent's own counters say
    #[arg(long, conflicts_with_all = ["answers", "echo", "flat_out"])]
    publish_only: bool,
    /// Publish the payloads alone, without a tag in front
    #[arg(long, requires = "publish_only")]
    untagged: bool,
    /// Measure the broker's own echo: receive what is published
    #[arg(long)]
    echo: bool,
    /// Payloads, --size bytes each, one after the other; they are published in turn
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// Bytes of a payload, the tag not counted
    #[arg(long, value_name = "BYTES", default_value_t = 490)]
    size: usize,
    /// Messages a second
    #[arg(long, value_name = "HZ", default_value_t = 100.0, conflicts_with = "flat_out")]
    rate: f64,
    /// As fast as answers come, with --unanswered messages on their way
    #[arg(long)]
    flat_out: bool,
    /// Messages on their way at any time when --flat-out
    #[arg(long, value_name = "N", default_value_t = 64)]
    unanswered: usize,
    /// How long to measure
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long to publish before measuring, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    warm_up: f64,
    /// Process whose CPU time and memory are measured: the agent
    #[arg(long)]
    pid: Option<u32>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What a run found.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    figures: Figures,
    /// Messages without a tag on the answer topic.
    untagged: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessReport>,
}

/// What the process under load used.
#[derive(Debug, Serialize)]
struct ProcessReport {
    /// CPU time per answer, user and system, all threads.
    cpu_us_per_answer: Option<f64>,
    /// The same, less the time that the results say their sessions took.
    cpu_us_beyond_session: Option<f64>,
    /// Cores in use.
    cores: f64,
    /// Resident memory at the end.
    rss_bytes: u64,
    /// Proportional set size at the end: shared pages counted once among those who share them.
    pss_bytes: Option<u64>,
}

/// Runs `limpet-lab load`.
pub fn run(args: LoadArgs) -> anyhow::Result<()> {
    let (json, publish_only) = (args.json, args.publish_only);
    let traffic = Traffic::new(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let report = runtime.block_on(tokio::task::LocalSet::new().run_until(measure(args, traffic)))?;
    if json {
        println!("{}", serde_json::to_string(&report).context("writing the report")?);
    } else {
        print(&report);
    }
    if report.figures.received == 0 && !publish_only {
        bail!("no answer came; is the agent running, and does its source have a header field named tag?");
    }
    Ok(())
}

/// What is published: payloads in turn, each behind its tag.
struct Traffic {
    topic: String,
    payloads: Vec<u8>,
    size: usize,
    is_tagged: bool,
}

impl Traffic {
    fn new(args: &LoadArgs) -> anyhow::Result<Self> {
        for (name, value) in [("--rate", args.rate), ("--seconds", args.seconds)] {
            if !(value > 0.0 && value < 1e6) {
                return Err(usage(format!("{name} {value}: expected a number above 0")));
            }
        }
        if !(0.0..1e6).contains(&args.warm_up) {
            return Err(usage(format!("--warm-up {}: expected 0 or more seconds", args.warm_up)));
        }
        if args.echo && args.topic.contains(TAG_IN_TOPIC) {
            return Err(usage(format!("--echo subscribes to the topic, and '{TAG_IN_TOPIC}' has no place in that")));
        }
        if args.size == 0 || args.unanswered == 0 {
            return Err(usage("--size and --unanswered must be at least 1"));
        }
        let payloads = match &args.payload {
            Some(path) => std::fs::read(path).with_context(|| format!("reading {}", path.display()))?,
            // Not zeros: a model may be faster on them than on anything real.
            None => (0..args.size).map(|i| (i * 197 % 251) as u8).collect(),
        };
        if payloads.is_empty() || payloads.len() % args.size != 0 {
            return Err(usage(format!(
                "the payload file has {} bytes, which is not a multiple of --size {}",
                payloads.len(),
                args.size
            )));
        }
        Ok(Self { topic: args.topic.clone(), payloads, size: args.size, is_tagged: !args.untagged })
    }

    /// Topic of message number `tag`.
    fn topic(&self, tag: u64) -> Cow<'_, str> {
        if self.topic.contains(TAG_IN_TOPIC) {
            self.topic.replace(TAG_IN_TOPIC, &tag.to_string()).into()
        } else {
            self.topic.as_str().into()
        }
    }

    /// Message number `tag`.
    fn message(&self, tag: u64) -> Vec<u8> {
        let count = self.payloads.len() / self.size;
        let start = (tag % count as u64) as usize * self.size;
        let mut message = Vec::with_capacity(TAG + self.size);
        if self.is_tagged {
            message.extend_from_slice(&tag.to_le_bytes());
        }
        message.extend_from_slice(&self.payloads[start..start + self.size]);
        message
    }
}

/// Publishes, and writes down what was published.
struct Publisher {
    client: AsyncClient,
    traffic: Traffic,
    ledger: RefCell<Ledger>,
    untagged: RefCell<u64>,
    /// Messages written to the broker.
    written: Cell<u64>,
}

impl Publisher {
    /// Hands the next message to the client.
    fn publish(&self) -> anyhow::Result<()> {
        let tag = self.ledger.borrow_mut().send(Instant::now());
        let message = self.traffic.message(tag);
        self.client
            .try_publish(self.traffic.topic(tag), QoS::AtMostOnce, false, message)
            .context("the client takes no more messages; is the broker slower than --rate?")
    }

    /// Publishes until `unanswered` messages are on their way.
    fn fill(&self, unanswered: usize) -> anyhow::Result<()> {
        while self.ledger.borrow().unanswered() < unanswered {
            self.publish()?;
        }
        Ok(())
    }
}

async fn measure(args: LoadArgs, traffic: Traffic) -> anyhow::Result<Report> {
    let broker = Broker::new(&args.broker, &args.login)?;
    let options = broker.options(format!("limpet-lab-load-{}", std::process::id()));
    // At a fixed rate the channel may hold what falls due while the broker, or this process, stands still for as long as an
    // answer may take.
    let due = (args.rate * LOST_AFTER.as_secs_f64()).ceil() as usize;
    let capacity = if args.flat_out { args.unanswered } else { due } + 16;
    let (client, mut events) = AsyncClient::new(options, capacity);
    let publisher = Rc::new(Publisher {
        client,
        traffic,
        ledger: RefCell::new(Ledger::new()),
        untagged: RefCell::new(0),
        written: Cell::new(0),
    });
    if !args.publish_only {
        subscribe(&args, &broker, &publisher.client, &mut events).await?;
    }

    let stop = Rc::new(Notify::new());
    let pacing = tokio::task::spawn_local(pace(publisher.clone(), stop.clone(), Pace::from(&args)));
    let refill = args.flat_out.then_some(args.unanswered);
    let polled = tokio::select! {
        polled = poll(&mut events, &broker, &publisher, args.echo, refill) => polled,
        () = stop.notified() => Ok(()),
    };
    polled?;
    let usage = pacing.await.context("the pacing task")??;

    let figures = publisher.ledger.borrow().figures();
    let untagged = *publisher.untagged.borrow();
    let process = usage.map(|usage| {
        let per_answer = |us: f64| (figures.received > 0).then(|| us / figures.received as f64);
        let cpu_us = usage.cpu.as_secs_f64() * 1e6;
        let cpu_us_per_answer = per_answer(cpu_us);
        let session = figures.latency_us.as_ref().map(|parts| parts.compute.mean);
        ProcessReport {
            cpu_us_per_answer,
            cpu_us_beyond_session: cpu_us_per_answer.zip(session).map(|(cpu, session)| cpu - session),
            cores: usage.cpu.as_secs_f64() / figures.seconds,
            rss_bytes: usage.rss_bytes,
            pss_bytes: usage.pss_bytes,
        }
    });
    Ok(Report { figures, untagged, process })
}

/// Connects and subscribes; returns once the broker has granted it.
async fn subscribe(
    args: &LoadArgs,
    broker: &Broker,
    client: &AsyncClient,
    events: &mut EventLoop,
) -> anyhow::Result<()> {
    let filter = args.answers.as_deref().unwrap_or(&args.topic);
    let mut filter = Filter::new(filter, QoS::AtMostOnce);
    filter.preserve_retain = true;
    client.try_subscribe_many([filter.clone()]).with_context(|| format!("the filter '{}'", filter.path))?;
    loop {
        let event = events.poll().await.map_err(|e| unavailable(format!("broker {broker}: {}", broker.why(&e))))?;
        if let Event::Incoming(Packet::SubAck(ack)) = event {
            return match ack.return_codes.first() {
                Some(SubscribeReasonCode::Success(_)) => Ok(()),
                refused => {
                    Err(unavailable(format!("{broker} refused a subscription to '{}': {refused:?}", filter.path)))
                }
            };
        }
    }
}

/// Takes the answers. When flat out, each answer makes room for the next message.
async fn poll(
    events: &mut EventLoop,
    broker: &Broker,
    publisher: &Publisher,
    echo: bool,
    refill: Option<usize>,
) -> anyhow::Result<()> {
    loop {
        let event = events.poll().await;
        let event = event.map_err(|e| unavailable(format!("no connection to {broker}: {}", broker.why(&e))))?;
        if let Event::Outgoing(Outgoing::Publish(_)) = event {
            publisher.written.set(publisher.written.get() + 1);
        }
        let Event::Incoming(Packet::Publish(message)) = event else { continue };
        let now = Instant::now();
        if message.retain {
            continue;
        }
        let mut ledger = publisher.ledger.borrow_mut();
        if echo {
            match message.payload.first_chunk::<TAG>() {
                Some(tag) => {
                    ledger.receive(answer::Answer { tag: u64::from_le_bytes(*tag), ..Default::default() }, now)
                }
                None => *publisher.untagged.borrow_mut() += 1,
            }
        } else {
            let content = message.properties.as_ref().and_then(|p| p.content_type.as_deref());
            let others = answer::read(content, &message.payload, |answer| ledger.receive(answer, now));
            *publisher.untagged.borrow_mut() += others;
        }
        let open = ledger.is_open();
        drop(ledger);
        if let Some(unanswered) = refill.filter(|_| open) {
            publisher.fill(unanswered)?;
        }
    }
}

/// When to publish.
struct Pace {
    /// Messages that are kept unanswered; else messages are published at a rate.
    unanswered: Option<usize>,
    period: Duration,
    warm_up: Duration,
    measured: Duration,
    pid: Option<u32>,
    publish_only: bool,
}

impl From<&LoadArgs> for Pace {
    fn from(args: &LoadArgs) -> Self {
        Self {
            unanswered: args.flat_out.then_some(args.unanswered),
            period: Duration::from_secs_f64(1.0 / args.rate),
            warm_up: Duration::from_secs_f64(args.warm_up),
            measured: Duration::from_secs_f64(args.seconds),
            pid: args.pid,
            publish_only: args.publish_only,
        }
    }
}

/// Publishes for the warm-up and the measured time, then waits for the answers that are on their way and stops.
async fn pace(publisher: Rc<Publisher>, stop: Rc<Notify>, pace: Pace) -> anyhow::Result<Option<process::Used>> {
    let done = async {
        publish_for(&publisher, &pace, pace.warm_up).await?;
        let watched = pace.pid.map(Process::new).transpose()?;
        publisher.ledger.borrow_mut().open(Instant::now());
        publish_for(&publisher, &pace, pace.measured).await?;
        publisher.ledger.borrow_mut().close(Instant::now());
        let used = watched.map(|process| process.used()).transpose()?;

        let until = Instant::now() + LOST_AFTER;
        if pace.publish_only {
            return finish_writing(&publisher, until).await.map(|()| used);
        }
        while publisher.ledger.borrow().unanswered() > 0 && Instant::now() < until {
            tokio::time::sleep(LOOK_FOR_LOST).await;
        }
        publisher.ledger.borrow_mut().expire(None);
        Ok(used)
    }
    .await;
    // Whether it went well or not, nothing more is to be polled for.
    stop.notify_one();
    done
}

/// Waits until every message has been written. Nothing may be left behind: others count what arrives.
async fn finish_writing(publisher: &Publisher, until: Instant) -> anyhow::Result<()> {
    let sent = publisher.ledger.borrow().unanswered() as u64;
    while publisher.written.get() < sent {
        if Instant::now() >= until {
            bail!(
                "{} messages were not written in time; is the broker slower than --rate?",
                sent - publisher.written.get()
            );
        }
        tokio::time::sleep(LOOK_FOR_LOST).await;
    }
    // The last of them are written when the connection is next looked at.
    tokio::time::sleep(LOOK_FOR_LOST).await;
    Ok(())
}

async fn publish_for(publisher: &Publisher, pace: &Pace, time: Duration) -> anyhow::Result<()> {
    // Without a warm-up every message is measured: not even the first is sent before.
    if time.is_zero() {
        return Ok(());
    }
    let end = Instant::now() + time;
    let mut tick = tokio::time::interval(if pace.unanswered.is_some() { LOOK_FOR_LOST } else { pace.period });
    // After a pause the messages that fell due meanwhile are published at once: the rate is what was asked for.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = tokio::time::sleep_until(end.into()) => return Ok(()),
        }
        if !pace.publish_only {
            publisher.ledger.borrow_mut().expire(Instant::now().checked_sub(LOST_AFTER));
        }
        match pace.unanswered {
            Some(unanswered) => publisher.fill(unanswered)?,
            None => publisher.publish()?,
        }
    }
}

fn print(report: &Report) {
    let Report { figures, untagged, process } = report;
    println!(
        "sent {} · received {} · lost {} · repeated {} · untagged {untagged} · {:.0} answers/s over {:.1} s",
        figures.sent, figures.received, figures.lost, figures.repeated, figures.per_second, figures.seconds
    );
    if let Some(trip) = &figures.trip_us {
        println!("publish to answer  p50 {:.0} µs · p99 {:.0} µs · max {:.0} µs", trip.p50, trip.p99, trip.max);
    }
    if let Some(parts) = &figures.latency_us {
        let text: Vec<_> = parts.named().iter().map(|(name, q)| format!("{name} {:.0}/{:.0}", q.p50, q.p99)).collect();
        println!("of it in the agent p50/p99 µs: {}", text.join(" · "));
    }
    if let Some(process) = process {
        print!("process: {:.2} cores", process.cores);
        if let Some(us) = process.cpu_us_per_answer {
            print!(" · {us:.1} µs CPU an answer");
        }
        if let Some(us) = process.cpu_us_beyond_session {
            print!(" ({us:.1} beyond its session)");
        }
        print!(" · {:.1} MB resident", process.rss_bytes as f64 / 1e6);
        if let Some(pss) = process.pss_bytes {
            print!(" ({:.1} MB proportional)", pss as f64 / 1e6);
        }
        println!();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker;

    fn args(rate: f64, flat_out: bool) -> LoadArgs {
        LoadArgs {
            login: LoginArgs::default(),
            broker: broker::start_on_free_port().unwrap().into(),
            topic: "test/load".into(),
            answers: None,
            publish_only: false,
            untagged: false,
            echo: true,
            payload: None,
            size: 490,
            rate,
            flat_out,
            unanswered: 8,
            seconds: 0.3,
            warm_up: 0.05,
            pid: Some(std::process::id()),
            json: false,
        }
    }

    fn report(args: LoadArgs) -> Report {
        let traffic = Traffic::new(&args).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(measure(args, traffic))).unwrap()
    }

    #[test]
    fn an_echo_at_a_rate_comes_back_once_for_each_message() {
        let report = report(args(200.0, false));
        assert!((50..=70).contains(&report.figures.sent), "{report:?}");
        assert_eq!((report.figures.lost, report.figures.repeated, report.untagged), (0, 0, 0), "{report:?}");
        assert!(report.process.unwrap().rss_bytes > 1 << 20);
    }

    #[test]
    fn an_echo_flat_out_keeps_its_number_of_messages_on_their_way() {
        let report = report(args(1.0, true));
        assert!(report.figures.received > 100, "{report:?}");
        assert_eq!((report.figures.lost, report.figures.repeated), (0, 0), "{report:?}");
        assert!(report.figures.most_unanswered <= 8, "{report:?}");
    }

    #[test]
    fn what_is_only_published_is_written_whole_and_nothing_of_it_counts_as_lost() {
        let report = report(LoadArgs { echo: false, publish_only: true, ..args(2000.0, false) });
        assert!(report.figures.sent > 500, "{report:?}");
        assert_eq!((report.figures.received, report.figures.lost), (0, 0), "{report:?}");
    }

    #[test]
    fn payloads_are_published_in_turn_behind_their_tags_or_alone() {
        let traffic =
            |topic: &str, is_tagged| Traffic { topic: topic.into(), payloads: vec![1, 2, 3, 4], size: 2, is_tagged };
        let tagged = traffic("plant/a/in", true);
        let sent: Vec<_> = (0..3).map(|tag| tagged.message(tag)).collect();
        assert_eq!(sent[0], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(sent[1], [1, 0, 0, 0, 0, 0, 0, 0, 3, 4]);
        assert_eq!(sent[2], [2, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(tagged.topic(3), "plant/a/in");
        let alone = traffic("plant/x{tag}/in", false);
        assert_eq!((&*alone.topic(12), alone.message(13)), ("plant/x12/in", vec![3, 4]));
    }
}
