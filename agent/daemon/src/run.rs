//! `limpet run`: everything together, from start to a clean stop.
//!
//! The main thread runs tokio and does the input and output: links, routing, telemetry, signals. Workers decode and
//! infer. A loader thread proves and loads models while the links come up, so that a proof that takes a minute is seen
//! as `proving` by whoever watches.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use limpet_runtime::{Clock, Moment, Pool};
use limpet_wire::message::{Message, SystemFigures, Telemetry};
use limpet_wire::topic::Topics;
use sysinfo::{Components, Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::config::{Config, Loaded};
use crate::link::outgoing::{Body, Fleeting, Outgoing};
use crate::link::{self, Role, Stop};
use crate::pipeline::plan::{self, Misfit, Packages, Plan};
use crate::pipeline::worker::{Policy, Worker};
use crate::report::{DropWatch, Reporter, pipeline_figures};
use crate::router::Router;
use crate::serve::{Board, Loader};
use crate::sink::LinkSink;
use crate::{CliError, wall};

/// How long a stop may take: half for the windows that wait, half for the results.
const STOP: Duration = Duration::from_secs(8);
/// How often telemetry is sent.
const TELEMETRY: Duration = Duration::from_secs(60);
/// How often idle streams are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// After how long without any message a source is called silent.
const SILENT: Duration = Duration::from_secs(60);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What is wrong with the configuration, the packages or the folders; never that a broker cannot be reached.
pub fn run(loaded: &Loaded) -> Result<(), CliError> {
    let config = &loaded.config;
    let (plan, packages) = fit(loaded)?;
    prepare_state(&config.gateway.state)?;
    // A worker that panics leaves its streams deaf; a process that ends is started again.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        std::process::abort();
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    let outcome = runtime.block_on(LocalSet::new().run_until(serve(config, plan, packages)));
    // Dropping it would wait for what blocks: the resolver of a network that is gone, a sensor on a slow bus.
    runtime.shutdown_background();
    Ok(outcome?)
}

/// Fits the configuration and the packages that it names together.
///
/// # Errors
/// Everything that does not fit, with the lines of the configuration that it is about.
pub fn fit(loaded: &Loaded) -> Result<(Arc<Plan>, Packages), CliError> {
    let misfits = |misfits: Vec<Misfit>| {
        let sentence = |m: Misfit| loaded.problem(m.list, m.index, m.key, m.text).to_string();
        CliError::configuration(misfits.into_iter().map(sentence).collect())
    };
    let packages = plan::open_packages(&loaded.config).map_err(misfits)?;
    let plan = Plan::new(&loaded.config, &packages).map_err(misfits)?;
    Ok((Arc::new(plan), packages))
}

/// Creates the state folder, for this user alone.
fn prepare_state(path: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        CliError::configuration(vec![format!(
            "gateway.state: the folder {} cannot be made: {error}; create it, or name another",
            path.display()
        )])
    })
}

async fn serve(config: &Config, plan: Arc<Plan>, packages: Packages) -> anyhow::Result<()> {
    let started = Instant::now();
    // Before anything runs that a signal should stop in good order.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let topics = Topics::new(&config.uplink.prefix, &config.gateway.id);
    let links: BTreeMap<Arc<str>, Arc<Outgoing>> =
        config.brokers.keys().map(|name| (name.shared(), Arc::new(Outgoing::new(topics.clone())))).collect();
    let uplink = Arc::clone(
        links.get(&*config.uplink.broker).expect("the configuration was checked: the uplink's broker exists"),
    );
    let reporter = Arc::new(Reporter::new(config.gateway.id.shared(), Arc::clone(&uplink)));
    let links = Arc::new(links);
    let sink = LinkSink::new(Arc::clone(&uplink), Arc::clone(&links), Arc::clone(&reporter));
    let policy = Policy { clock: Clock::boottime(), wall: None, expires: true };
    let handlers = (0..config.budget.workers())
        .map(|_| Worker::new(config.gateway.id.shared(), Arc::clone(&plan), policy.clone(), sink.clone()))
        .collect();
    let pool = Pool::start(handlers).context("the system gives no thread for a worker")?;
    let board = Arc::new(Board::new(config.gateway.labels.clone(), topics.models(), Arc::clone(&uplink)));
    let loader = Loader {
        plan: Arc::clone(&plan),
        packages,
        state: config.gateway.state.clone(),
        workers: pool.workers().to_vec(),
        board,
        reporter: Arc::clone(&reporter),
    };
    std::thread::Builder::new()
        .name("loader".into())
        .spawn(move || loader.load())
        .context("the system gives no thread for the loader")?;

    let router = Rc::new(Router::new(Arc::clone(&plan), pool.workers().to_vec()));
    let (stop, stopping) = watch::channel(Stop::Run);
    let mut tasks = Vec::new();
    for (name, broker) in &config.brokers {
        let role = Role {
            name: name.shared(),
            broker: broker.clone(),
            filters: filters(config, name),
            status: (*name == config.uplink.broker).then(|| topics.clone()),
            outgoing: Arc::clone(&links[&**name]),
        };
        let (router, name) = (Rc::clone(&router), name.shared());
        let receive = move |message: link::Received<'_>| router.receive(&name, &message);
        tasks.push(tokio::task::spawn_local(link::run(role, Arc::clone(&reporter), receive, stopping.clone())));
    }

    let mut telemetry = tokio::time::interval_at((started + TELEMETRY).into(), TELEMETRY);
    let mut drops = DropWatch::default();
    // Not on this thread: a temperature sensor on a slow bus takes its time, and no link waits for it.
    let gauge = Arc::new(Mutex::new(None));
    let (readings, mut read) = mpsc::channel(1);
    tokio::task::spawn_blocking({
        let gauge = Arc::clone(&gauge);
        move || _ = gauge.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Gauge::new)
    });
    let mut sweep = tokio::time::interval(SWEEP);
    let mut silence = std::pin::pin!(tokio::time::sleep(SILENT));
    let mut silence_over = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut silence, if !silence_over => {
                silence_over = true;
                report_silent(&plan, &reporter);
            }
            _ = telemetry.tick() => {
                let (gauge, readings) = (Arc::clone(&gauge), readings.clone());
                tokio::task::spawn_blocking(move || {
                    // One that is still at it answers for this one too.
                    let Ok(mut gauge) = gauge.try_lock() else { return };
                    // Nobody listens after the stop.
                    let _ = readings.blocking_send(gauge.get_or_insert_with(Gauge::new).read());
                });
                drops.look(|| uplink.counts().dropped, |count| reporter.dropped(count));
            }
            Some(system) = read.recv() => {
                let body = Body::Json(figures(config, &plan, &uplink, system, started).to_json());
                uplink.offer_fleeting(Fleeting { topic: topics.telemetry(), body, at_least_once: false, expiry_s: None });
            }
            _ = sweep.tick() => {
                for (source, stream) in router.forget_idle(Moment::now()) {
                    for pipeline in &plan.sources[source].pipelines {
                        uplink.forget_latest(&plan.pipelines[*pipeline].name, &stream);
                    }
                }
            }
        }
    }

    tracing::info!("stopping");
    router.close();
    let drained = tokio::task::spawn_blocking(move || {
        let drained = pool.drain(STOP / 2);
        // Dropping the pool ends its threads after their current job.
        drop(pool);
        drained
    });
    if !drained.await.unwrap_or(false) {
        tracing::error!("windows were still waiting when the time for stopping was half over; they are lost");
    }
    // Before the links say goodbye, so that it still goes out.
    drops.look(|| uplink.counts().dropped, |count| reporter.dropped(count));
    // A receiver that is gone has stopped by itself.
    let _ = stop.send(Stop::Drain(Instant::now() + STOP / 2));
    for task in tasks {
        task.await.context("a link failed")?;
    }
    let left = uplink.waiting();
    if left > 0 {
        tracing::error!(results = left, "results were not delivered before the stop and are lost");
    }
    tracing::info!(delivered = uplink.counts().delivered, "stopped");
    Ok(())
}

/// The filters to subscribe to at a broker, each once, with whether retained messages are wanted.
fn filters(config: &Config, broker: &str) -> Vec<(String, bool)> {
    let mut filters: BTreeMap<String, bool> = BTreeMap::new();
    for source in config.sources.iter().filter(|source| *source.broker == *broker) {
        for filter in source.filters() {
            *filters.entry(filter.mqtt().to_owned()).or_default() |= source.accept_retained;
        }
    }
    filters.into_iter().collect()
}

fn report_silent(plan: &Plan, reporter: &Reporter) {
    for source in plan.sources.iter().filter(|source| !source.ledger.heard()) {
        let topics: Vec<_> = source.config.filters().iter().map(|filter| filter.mqtt()).collect();
        let message = format!(
            "source {} is silent since start: nothing came in on {} at broker {}; is the sensor on, and does the broker's access list allow reading it?",
            source.name(),
            topics.join(", "),
            source.config.broker
        );
        tracing::warn!("{message}");
        reporter.event("silent-source", &message, &[("source", source.name())]);
    }
}

/// Reads what the process uses.
struct Gauge {
    system: Option<System>,
    components: Option<Components>,
    pid: Option<Pid>,
}

impl Gauge {
    /// Opens what there is. Processor time is measured from here to the first reading.
    fn new() -> Self {
        let mut gauge = Self {
            system: System::new().ok(),
            components: Components::new_with_refreshed_list().ok(),
            pid: sysinfo::get_current_pid().ok(),
        };
        gauge.refresh_process();
        gauge
    }

    fn refresh_process(&mut self) {
        if let Some(system) = &mut self.system {
            let pids: Vec<Pid> = self.pid.into_iter().collect();
            let kind = ProcessRefreshKind::nothing().with_cpu().with_memory();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, kind);
        }
    }

    /// What can be read; what cannot stays zero.
    fn read(&mut self) -> SystemFigures {
        let mut figures = SystemFigures::default();
        self.refresh_process();
        if let Some(components) = &mut self.components {
            components.refresh(false);
            figures.temperature_c = components.iter().filter_map(sysinfo::Component::temperature).reduce(f32::max);
        }
        if let Some(system) = &mut self.system {
            system.refresh_memory();
            figures.available_bytes = system.available_memory();
            if let Some(process) = self.pid.and_then(|pid| system.process(pid)) {
                figures.cpu = process.cpu_usage() / 100.0;
                figures.memory_bytes = process.memory();
            }
        }
        figures
    }
}

fn figures(config: &Config, plan: &Plan, uplink: &Outgoing, system: SystemFigures, started: Instant) -> Telemetry {
    let counts = uplink.counts();
    Telemetry {
        gateway: config.gateway.id.to_string(),
        at: wall::now_text(),
        uptime_s: started.elapsed().as_secs(),
        system,
        sources: plan.sources.iter().map(|source| (source.name().to_owned(), source.ledger.figures())).collect(),
        pipelines: plan
            .pipelines
            .iter()
            .map(|pipeline| (pipeline.name.as_ref().to_owned(), pipeline_figures(&pipeline.ledger)))
            .collect(),
        waiting: uplink.waiting() as u64,
        dropped: counts.dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_figures_know_the_processor_time_since_the_start() {
        let mut gauge = Gauge::new();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            std::hint::black_box(start);
        }
        let figures = gauge.read();
        assert!(figures.cpu > 0.0 && figures.memory_bytes > 0, "{figures:?}");
    }
}
