//! `limpet-lab demo`: the main job, from vibration to results, in front of your eyes.
//!
//! An embedded broker, a virtual accelerometer on a motor ([`sensor`]) that goes from healthy to one fault after the
//! other and back ([`schedule`]), and the real `limpet` as a child process ([`agent`]). The results come back through
//! the broker and are shown as they come ([`screen`], or [`lines`] where nobody watches a terminal). At the end each
//! phase is judged ([`judge`]): the exit code is 0 only if the agent saw what the motor had.

pub mod agent;
mod judge;
mod lines;
mod schedule;
mod screen;
mod sensor;
mod show;
mod summary;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use limpet_wire::message::{ModelPhase, Models};
use limpet_wire::result::ResultRecord;
use limpet_wire::topic::{DEFAULT_PREFIX, Topics};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::motor::{LSB_PER_G, RATE_HZ};
use crate::mqtt::Address;
use crate::{broker, unavailable, usage};
use agent::Agent;
use schedule::Schedule;
use sensor::Sensor;
use show::Show;

/// Shortest demo: three phases that hold enough windows to judge.
const SHORTEST: f64 = 20.0;
/// How long the agent may take from its start until its model serves; the first start proves it.
const READY_LIMIT: Duration = Duration::from_secs(180);
/// How long results may still come after the sensor's last sample.
const LAST_RESULTS: Duration = Duration::from_secs(2);
/// Time between two pictures.
const FRAME: Duration = Duration::from_millis(50);
/// Which motor: all those of [`crate::motor`] have parameters that no training motor has.
const MOTOR_SEED: u64 = 7;

#[derive(clap::Args)]
pub struct DemoArgs {
    /// End after this long, with a summary; without it the demo runs until q or Ctrl-C
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// Folder of the model package
    #[arg(long, value_name = "DIR", default_value = "models/motor-health")]
    model: PathBuf,
    /// The agent's binary; by default the one beside this program
    #[arg(long, value_name = "PATH")]
    limpet: Option<PathBuf>,
    /// Keep the configuration, state and log of the agent in this folder
    #[arg(long, value_name = "DIR")]
    keep_dir: Option<PathBuf>,
    /// Print lines, even to a terminal
    #[arg(long)]
    plain: bool,
}

/// Runs `limpet-lab demo`.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if args.seconds.is_some_and(|seconds| !(SHORTEST..=86_400.0).contains(&seconds)) {
        return Err(usage(format!(
            "--seconds: expected {SHORTEST} to 86400; a shorter demo has too few windows to judge"
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(play(&args))
}

async fn play(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let limpet = agent::find(args.limpet.as_deref())?;
    let package = args.model.canonicalize().map_err(|e| {
        unavailable(format!(
            "{}: {e}; start the demo in the checkout, or name the package with --model",
            args.model.display()
        ))
    })?;
    let temporary = tempfile::Builder::new().prefix("limpet-demo-").tempdir().context("making a temporary folder")?;
    let dir = match &args.keep_dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            dir.canonicalize().with_context(|| dir.display().to_string())?
        }
        None => temporary.path().to_owned(),
    };

    let broker = broker::start_on_free_port()?;
    let schedule = Schedule::new(RATE_HZ, args.seconds);
    let screen = !args.plain && std::io::stdout().is_terminal();
    let mut view = if screen { View::Screen(screen::Screen::open()?) } else { View::Lines(lines::Lines::default()) };

    let (heard, mut hearing) = mpsc::channel(1024);
    tokio::spawn(listen(broker.clone(), heard));
    let described = agent::Sensor { topic: sensor::TOPIC_FILTER, rate_hz: RATE_HZ, steps_per_g: LSB_PER_G };
    let config = agent::configure(&dir, &broker, &package, &described)?;
    let mut agent = Agent::start(&limpet, &config, &dir)?;

    let mut show = Show::new(schedule, &broker.to_string());
    show.tell(format!("limpet runs as process {}", agent.pid()));
    let ended = watch(&mut show, &mut view, &mut agent, &mut hearing, &broker).await;
    // Back to the ordinary screen before anything is printed.
    drop(view);
    if let Err(error) = ended {
        let words = agent.last_words();
        if !words.is_empty() {
            eprintln!("The agent's last words:\n{words}");
        }
        return Err(error);
    }
    let exit = agent.stop()?;
    let verdict = summary::print(&show, exit);
    if args.keep_dir.is_some() {
        println!("configuration, state and log of the agent: {}", dir.display());
    }
    Ok(if verdict { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the demo is shown.
enum View {
    Screen(screen::Screen),
    Lines(lines::Lines),
}

/// What came from the agent.
enum Heard {
    Models(Models),
    Result(Box<ResultRecord>, Instant),
    Event(String),
    /// The connection to our own broker failed.
    Deaf(String),
}

/// Why the live part ended.
enum Next {
    Heard(Option<Heard>),
    Frame,
    Stop,
}

/// The live part: waits until the model serves, starts the sensor, and shows what comes until the end.
async fn watch(
    show: &mut Show,
    view: &mut View,
    agent: &mut Agent,
    hearing: &mut mpsc::Receiver<Heard>,
    broker: &Address,
) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let agent_started = Instant::now();
    let mut sensor: Option<Sensor> = None;
    let mut last_sample: Option<Instant> = None;

    loop {
        let next = tokio::select! {
            heard = hearing.recv() => Next::Heard(heard),
            _ = frames.tick() => Next::Frame,
            _ = interrupt.recv() => Next::Stop,
            _ = terminate.recv() => Next::Stop,
        };
        match next {
            Next::Stop => return Ok(()),
            Next::Heard(None) => bail!("the listener ended"),
            Next::Heard(Some(Heard::Deaf(why))) => bail!("the connection to the embedded broker: {why}"),
            Next::Heard(Some(Heard::Event(message))) => {
                show.tell(message);
                view.changed(show);
            }
            Next::Heard(Some(Heard::Models(models))) => {
                if let Some(why) = show.models(&models) {
                    bail!("the agent does not serve the model: {why}");
                }
                if show.is_serving() && sensor.is_none() {
                    sensor = Some(start_sensor(broker, show)?);
                }
                view.changed(show);
            }
            Next::Heard(Some(Heard::Result(record, at))) => {
                show.result(*record, at);
                view.changed(show);
            }
            Next::Frame => {
                if let Some(status) = agent.ended()? {
                    bail!("limpet ended by itself: {status}");
                }
                match &sensor {
                    Some(sensor) => {
                        show.sensor_at(sensor.sent(), sensor.dropped());
                        if show.is_over() {
                            // The last windows are still on their way.
                            let since = last_sample.get_or_insert_with(Instant::now);
                            if since.elapsed() > LAST_RESULTS {
                                return Ok(());
                            }
                        }
                    }
                    None if agent_started.elapsed() > READY_LIMIT => {
                        bail!("the agent's model did not become active within {} s", READY_LIMIT.as_secs());
                    }
                    None => {}
                }
                if !view.frame(show)? {
                    return Ok(());
                }
            }
        }
    }
}

fn start_sensor(broker: &Address, show: &mut Show) -> anyhow::Result<Sensor> {
    let (client, mut events) = AsyncClient::new(broker.options("virtual-sensor"), 64);
    tokio::spawn(async move {
        // Ends with the connection: the sensor then counts what it cannot send, and the demo sees results fail to come.
        while events.poll().await.is_ok() {}
    });
    let sensor = Sensor::start(client, MOTOR_SEED, show.schedule())?;
    show.sensor_started(sensor.started());
    Ok(sensor)
}

impl View {
    /// Something was heard: print it, if this view prints.
    fn changed(&mut self, show: &mut Show) {
        if let Self::Lines(lines) = self {
            lines.print_new(show);
        }
    }

    /// Time for a picture. False if the user wants to leave.
    fn frame(&mut self, show: &mut Show) -> anyhow::Result<bool> {
        match self {
            Self::Lines(lines) => {
                lines.print_new(show);
                Ok(true)
            }
            Self::Screen(screen) => screen.draw(show),
        }
    }
}

/// Subscribes to all that the agent publishes and hands it on, until the broker or the demo ends.
async fn listen(broker: Address, heard: mpsc::Sender<Heard>) {
    let (client, mut events) = AsyncClient::new(broker.options("view"), 16);
    let ended = match client
        .subscribe_many([Filter::new(format!("{DEFAULT_PREFIX}/{}/#", agent::GATEWAY), QoS::AtLeastOnce)])
        .await
    {
        Ok(()) => hear(&mut events, &heard).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = ended {
        // If nobody receives any more the demo is over.
        let _ = heard.send(Heard::Deaf(format!("{error:#}"))).await;
    }
}

async fn hear(events: &mut EventLoop, heard: &mpsc::Sender<Heard>) -> anyhow::Result<()> {
    let topics = Topics::new(DEFAULT_PREFIX, agent::GATEWAY);
    let results = format!("{DEFAULT_PREFIX}/{}/result/{}/", agent::GATEWAY, agent::PIPELINE);
    loop {
        if let Event::Incoming(Packet::Publish(message)) = events.poll().await?
            && let Some(news) = understand(&message, &topics, &results)?
            && heard.send(news).await.is_err()
        {
            return Ok(());
        }
    }
}

fn understand(message: &Publish, topics: &Topics, results: &str) -> anyhow::Result<Option<Heard>> {
    let topic = std::str::from_utf8(&message.topic).context("a topic that is no UTF-8")?;
    let payload = &message.payload;
    let decoded = || format!("the message on {topic}: {}", String::from_utf8_lossy(payload));
    Ok(if topic.starts_with(results) {
        let record = ResultRecord::from_json(payload).with_context(decoded)?;
        Some(Heard::Result(Box::new(record), Instant::now()))
    } else if topic == topics.models() {
        Some(Heard::Models(serde_json::from_slice(payload).with_context(decoded)?))
    } else if topic == topics.event() {
        let event: EventMessage = serde_json::from_slice(payload).with_context(decoded)?;
        Some(Heard::Event(event.message))
    } else {
        None
    })
}

/// Of an event, what is shown.
#[derive(serde::Deserialize)]
struct EventMessage {
    message: String,
}

/// Words for a state of a model.
fn phase_in_words(phase: ModelPhase) -> &'static str {
    match phase {
        ModelPhase::Fetching => "is being fetched",
        ModelPhase::Proving => "is being proved: its golden vectors run on this very machine",
        ModelPhase::Shadow => "runs in shadow",
        ModelPhase::Trial => "is on trial",
        ModelPhase::Active => "is active",
        ModelPhase::Withdrawn => "was withdrawn",
        ModelPhase::Failed => "failed",
    }
}
