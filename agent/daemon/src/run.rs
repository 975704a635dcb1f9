//! `limpet run`: everything together, from start to a clean stop.
//!
//! The main thread runs tokio and does the input and output: links, routing, telemetry, signals. Workers decode and
//! infer. A loader thread proves and loads models while the links come up, so that a proof that takes a minute is seen
//! as `proving` by whoever watches.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use limpet_runtime::{Clock, Ledger, Moment, Pool};
use limpet_wire::message::{Message, PipelineTelemetry, SystemFigures, Telemetry};
use limpet_wire::topic::Topics;
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use sysinfo::{Components, Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;

use crate::api::report::{PipelineState, PipelineStatus};
use crate::api::socket::{self, Socket};
use crate::backend::LocalBackend;
use crate::commands::{self, Commands};
use crate::config::{Config, Loaded};
use crate::configured::{Begun, Watch};
use crate::crash::{Crashes, Markers};
use crate::delivery::{self, Nudge};
use crate::fit::{self, Fitted, Waiting};
use crate::library::Library;
use crate::link::outgoing::{Body, Fleeting, Outgoing};
use crate::link::probe::Prober;
use crate::link::{self, Role, Stop, expiry};
use crate::outbox::{EventIds, Outbox};
use crate::pipeline::plan::{PipelinePlan, Plan, SourcePlan};
use crate::pipeline::worker::{Policy, Worker};
use crate::pressure::{Limits, Pressure, Probe};
use crate::report::{DropWatch, Reporter};
use crate::router::Router;
use crate::serve::{Board, Loader, Places, Request, Requests, Settled, Tools};
use crate::service::{Manager, Pulse};
use crate::sink::{LinkSink, Outputs, Running};
use crate::threads::Placement;
use crate::{CliError, api, config, configured, crash, exec, marks, outbox, report, threads, wall};

/// How long a stop may take: half for the windows that wait, half for the results.
const STOP: Duration = Duration::from_secs(8);
/// How long the process may take to end for a session that hangs, once it was noticed.
const LAST_WORDS: Duration = Duration::from_secs(4);
/// How much of that it may wait for the broker, which often is there: after the next start it may be minutes later.
const HEARD: Duration = Duration::from_secs(2);
/// How long a link that is resumed waits for models to be proved.
const FOR_PROOFS: Duration = Duration::from_secs(120);
/// Exit code for that: an internal error, as sysexits.h has it.
const HUNG: i32 = 70;
/// Streams of a pipeline that telemetry tells apart.
const STREAMS_IN_TELEMETRY: usize = 32;
/// Longer than any process runs.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How long the loop of a link, or of a program's output, may take to answer: it does nothing that blocks.
const TASK_ANSWERS: Duration = Duration::from_secs(10);
/// How often the service manager may hear that the status is another.
const STATUS: Duration = Duration::from_secs(2);
/// How long loading one proved model may take: an ARM core optimizes a graph for seconds.
const LOADING: Duration = Duration::from_secs(30);
/// How often telemetry is sent.
const TELEMETRY: Duration = Duration::from_secs(60);
/// How often memory that was freed is given back to the system. What a start, a drain or an answer needed for a moment would
/// else stay resident, 1.3 MB of 8.0 after a start. It takes 0.1 to 0.2 ms on x86_64, and 0.7 the first time: on this thread,
/// which did not step back, since it holds locks of the allocator meanwhile that a worker may wait for.
const GIVE_BACK: Duration = Duration::from_secs(10);
/// When that is done first: links are up by then, and read what waits.
const GIVE_BACK_FIRST: Duration = Duration::from_millis(400);
/// How often idle streams are looked for, and it is told what was stored and dropped.
const SWEEP: Duration = Duration::from_secs(10);
/// After how long without any message a source is called silent.
const SILENT: Duration = Duration::from_secs(60);

/// How often the ends of certificates are looked at.
const EXPIRIES: Duration = Duration::from_secs(24 * 3600);

/// Runs until SIGTERM or SIGINT. `file` is what stands at `path`.
///
/// # Errors
/// What is wrong with the configuration, the packages or the folders; never that a broker cannot be reached.
pub fn run(path: &Path, file: Loaded) -> Result<(), CliError> {
    marks::open();
    check_processor()?;
    prepare_state(&file.config.gateway.state)?;
    let library = Library::new(&file.config).map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    // A worker that panics leaves its streams deaf; a process that ends is started again.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        crash::panicked();
        std::process::abort();
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    let store = library.store().cloned();
    let outcome = runtime.block_on(LocalSet::new().run_until(serve(path, file, library)));
    // Dropping it would wait for what blocks: the resolver of a network that is gone, a sensor on a slow bus.
    runtime.shutdown_background();
    match outcome {
        Ok(End::Stopped) => Ok(()),
        Ok(End::Again) => Err(begin_again().into()),
        Err(Failed::Before(error)) => Err(error),
        // By what is on trial the agent cannot run; by what was before it could.
        Err(Failed::Under(error)) => match store {
            Some(store) if configured::does_not_run(&store, path, &error) => Err(begin_again().into()),
            _ => Err(error),
        },
    }
}

/// Whether the processor has what the engines' kernels are made of: without it they would end the process in the middle.
fn check_processor() -> Result<(), CliError> {
    // HWCAP_NEON of 32-bit ARM, in the kernel's asm/hwcap.h; every 64-bit one has it.
    const NEON: usize = 1 << 12;
    if cfg!(target_arch = "arm") && rustix::param::linux_hwcap().0 & NEON == 0 {
        let why = "this processor has no NEON, which both engines compute with; this build runs on ARMv7 with NEON, such as a Cortex-A7, and on anything later";
        return Err(CliError::Unavailable(why.to_owned()));
    }
    Ok(())
}

/// Why the agent does not run.
enum Failed {
    /// Nothing of the configuration in effect had been taken up.
    Before(CliError),
    /// Perhaps because of that configuration.
    Under(CliError),
}

/// How the agent ended.
enum End {
    /// It was told to.
    Stopped,
    /// What is to run has changed so much that it begins again.
    Again,
}

/// Becomes a new process in the place of this one, with the same id: to a service manager it never ended.
///
/// A plan is made once, and everything that runs refers to it; another one is another start. It takes a fraction of a
/// second, and it happens only where pipelines could not run at all so far, or run otherwise from now on.
fn begin_again() -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "limpet".into());
    let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    Manager::of_environment().alive();
    let error = std::process::Command::new(program).arg0(name).args(arguments).exec();
    anyhow::Error::new(error).context("the agent cannot begin again")
}

/// Creates the state folder, for this user alone. One that is there and that others can read is closed to them if it is
/// this user's and holds nothing but an agent's state: somebody may have named a folder of something else.
fn prepare_state(path: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        CliError::configuration(vec![format!(
            "gateway.state: the folder {} cannot be made: {error}; create it, or name another",
            path.display()
        )])
    })?;
    if let Err(error) = rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK) {
        let (user, path) = (rustix::process::geteuid().as_raw(), path.display());
        return Err(CliError::configuration(vec![format!(
            "gateway.state: the folder {path} cannot be written by this user ({user}): {error}; chown it to the user that runs the agent, or name another"
        )]));
    }
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    let is_state =
        path.join(outbox::DATABASE).exists() || std::fs::read_dir(path).is_ok_and(|mut all| all.next().is_none());
    let is_mine = metadata.uid() == rustix::process::geteuid().as_raw();
    let private = std::fs::Permissions::from_mode(0o700);
    if !(is_state && is_mine && std::fs::set_permissions(path, private).is_ok()) {
        let path = path.display();
        tracing::warn!(%path, "gateway.state can be read by others; chmod 700 it, or name a folder of its own");
    }
    Ok(())
}

/// Takes the state folder for this process alone, for as long as what is given back lives: two agents on one store and one
/// outbox would each undo what the other does.
fn take_state(path: &Path) -> Result<OwnedFd, CliError> {
    let refused = |why: String| CliError::configuration(vec![format!("gateway.state: {why}")]);
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| refused(format!("the folder {} cannot be opened: {error}", path.display())))?;
    match socket::lock(&folder) {
        Ok(()) => Ok(folder),
        Err(Errno::WOULDBLOCK) => Err(refused(format!(
            "another limpet works with the folder {}; stop that one, or give each its own",
            path.display()
        ))),
        Err(error) => Err(refused(format!("the folder {} cannot be locked: {error}", path.display()))),
    }
}

/// What tells of sessions that hang, and ends the process for them.
struct Watcher {
    reporter: Arc<Reporter>,
    outbox: Arc<Outbox>,
    running: Vec<Arc<Running>>,
    markers: Markers,
}

impl limpet_runtime::Watch for Watcher {
    fn starved(&self, worker: usize, waited: Duration) {
        self.reporter.starved(worker, waited);
    }

    fn hung(&self, worker: usize, ran: Duration) {
        // The worker is not locked: the session may have come back in this very moment.
        let Some(run) = self.running[worker].read() else {
            tracing::error!(
                worker,
                "a job that is no session, or one that has just ended, ran for {:.1} s",
                ran.as_secs_f64()
            );
            return;
        };
        if let Some(marker) = self.markers.marker(worker) {
            marker.hung();
        }
        let pipeline = run.pipeline.as_ref().map(|pipeline| &*pipeline.name);
        self.reporter.session_hung(&run.facts.name, pipeline, ran);
        // A thread cannot be ended safely, so the process is: once the disk has the event, and the broker too if it can.
        let until = Instant::now() + LAST_WORDS;
        self.outbox.commit_all(until);
        let until = until.min(Instant::now() + HEARD);
        while self.outbox.events_waiting() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::process::exit(HUNG);
    }
}

async fn serve(path: &Path, file: Loaded, library: Library) -> Result<End, Failed> {
    let before = |error: CliError| Failed::Before(error);
    // A second agent on this run directory ends here, before it touches anything there.
    let socket = Socket::bind(&file.config.gateway.run)
        .map_err(|error| before(CliError::configuration(vec![error.to_string()])))?;
    let _state = take_state(&file.config.gateway.state).map_err(before)?;
    // What the last process left, and what tells of the end of this one.
    let crashes = Crashes::take(&file.config.gateway.run, &file.config.gateway.state);
    let begun = configured::begin(path, file.clone(), &library).map_err(before)?;
    serve_by(path, file, library, socket, crashes, begun).await.map_err(Failed::Under)
}

async fn serve_by(
    path: &Path,
    file: Loaded,
    library: Library,
    socket: Socket,
    crashes: Crashes,
    begun: Begun,
) -> Result<End, CliError> {
    let started = Instant::now();
    let mut manager = Manager::of_environment();
    // Before anything runs that a signal should stop in good order.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be caught")?;
    let Begun { loaded, fitted, configured, taken_back: configurations } = begun;
    let taken_back =
        library.take_back(&fitted.packages, |package| Some(crashes.blamed(&package.digest())?.to_string()));
    let fitted = if taken_back.is_empty() { fitted } else { fit::fit(&loaded, &library)? };
    let Fitted { config, plan, packages, waiting } = fitted;
    let config = &config;
    let markers = Markers::create(&config.gateway.run, config.budget.workers())
        .map_err(|why| CliError::configuration(vec![why]))?;
    markers.catch_signals().context("the signals of a crash cannot be caught")?;
    let topics = Topics::new(&config.uplink.prefix, &config.gateway.id);
    let (notices, mut noticed) = mpsc::unbounded_channel();
    let (ids, bell) = (Arc::new(EventIds::new(config.gateway.id.shared())), Arc::default());
    let outbox = Outbox::open(config, Arc::clone(&ids), Arc::clone(&bell), notices)
        .context("the system gives no thread for the outbox")?;
    let link = |name: &config::Name| {
        let topics = topics.clone();
        let outgoing = if *name == config.uplink.broker {
            Outgoing::uplink(topics, Arc::clone(&outbox), Arc::clone(&bell))
        } else {
            Outgoing::new(topics)
        };
        (name.shared(), Arc::new(outgoing))
    };
    let links: BTreeMap<Arc<str>, Arc<Outgoing>> = config.brokers.keys().map(link).collect();
    let uplink = Arc::clone(
        links.get(&*config.uplink.broker).expect("the configuration was checked: the uplink's broker exists"),
    );
    let reporter = Arc::new(Reporter::new(Arc::clone(&outbox), ids, topics.event()));
    if let Some(death) = crashes.last() {
        reporter.crashed(death);
    }
    configurations.iter().for_each(|story| reporter.event("configuration-rolled-back", story, &[]));
    for taken in &taken_back {
        reporter.event("rolled-back", &taken.story, &[("model", &taken.model), ("version", &taken.version)]);
    }
    for damaged in library.stood_in() {
        let about = [("model", damaged.model.as_str()), ("version", &damaged.version)];
        reporter.event("model-damaged", &damaged.story, &about);
    }
    let links = Arc::new(links);
    let outputs = Outputs::new(Arc::clone(&uplink), Arc::clone(&outbox), Arc::clone(&links), Arc::clone(&reporter));
    let (requests, asked) = std::sync::mpsc::channel();
    let (settled, mut heard) = mpsc::unbounded_channel();
    let (up, mut is_up) = oneshot::channel();
    let policy = Policy { clock: Clock::boottime(), wall: None };
    let running: Vec<Arc<Running>> = (0..config.budget.workers()).map(|_| Arc::default()).collect();
    let handlers = running
        .iter()
        .enumerate()
        .map(|(number, running)| {
            let marker = markers.marker(number);
            let sink = LinkSink::new(number, Arc::clone(running), marker, requests.clone(), outputs.clone());
            Worker::new(config.gateway.id.shared(), Arc::clone(&plan), policy.clone(), sink)
        })
        .collect();
    let watcher =
        Watcher { reporter: Arc::clone(&reporter), outbox: Arc::clone(&outbox), running: running.clone(), markers };
    let placement = placement(&config.runtime).map_err(|why| CliError::configuration(vec![why]))?;
    let prepare = move |_| threads::apply_to_this_thread(&placement).map_err(std::io::Error::other);
    let pool = Pool::start(handlers, config.runtime.hang_limit.0, watcher, prepare)
        .map_err(|error| CliError::configuration(vec![error.to_string()]))?;
    let pipelines = plan.pipelines.len();
    let board = Arc::new(Board::new(config.gateway.labels.clone(), topics.models(), Arc::clone(&uplink), pipelines));
    _ = configured::state(&configured).map(|state| board.set_configuration(state));
    let store = library.store().cloned();
    if let (Some(trial), Some(store), Some(depot)) = (&configured.trial, &store, &config.depot) {
        let watch = Watch {
            path: path.to_owned(),
            store: store.clone(),
            active: configured.active.clone(),
            plan: Arc::clone(&plan),
            waiting: waiting.iter().map(|waiting| waiting.pipeline.to_string()).collect(),
            board: Arc::clone(&board),
            links: Arc::clone(&links),
            reporter: Arc::clone(&reporter),
            settled: settled.clone(),
            started,
        };
        watch.start(depot.trial.0, trial).context("the system gives no thread for the configuration's trial")?;
    }
    let all_loaded = LOADING * u32::try_from(packages.len()).unwrap_or(u32::MAX).max(1);
    let places = Arc::new(Places::new(plan.sources.len()));
    let loader = Loader::new(
        config,
        Tools {
            plan: Arc::clone(&plan),
            loaded: loaded.clone(),
            settled: settled.clone(),
            library: library.clone(),
            workers: pool.workers().to_vec(),
            board: Arc::clone(&board),
            places: Arc::clone(&places),
            reporter: Arc::clone(&reporter),
            blamed: Box::new(move |package| crashes.blamed(&package.digest()).map(|blame| blame.to_string())),
            requests: (requests.clone(), asked),
            up,
        },
    );
    std::thread::Builder::new()
        .name("loader".into())
        .spawn(move || loader.run(packages))
        .context("the system gives no thread for the loader")?;

    // Whatever was imported before this start, no round has seen.
    let imports = Arc::new(AtomicU64::new(1));
    let (mut depot, delivery) = match &config.depot {
        Some(_) => {
            let tools = delivery::Tools {
                config: Arc::new(loaded.config.clone()),
                path: path.to_owned(),
                file,
                plan: Arc::clone(&plan),
                links: Arc::clone(&links),
                started,
                settled,
                library,
                board: Arc::clone(&board),
                reporter: Arc::clone(&reporter),
                requests: requests.clone(),
                imports: Arc::clone(&imports),
            };
            let (depot, nudges) = delivery::start(tools).context("the system gives no thread for deliveries")?;
            (Some(depot), Some(nudges))
        }
        None => (None, None),
    };
    let look = reload(requests.clone(), delivery.clone(), imports);
    let prober = Arc::new(Prober::new(topics.probe()));
    let suffering = Arc::new(Mutex::new(None));
    let backend = Arc::new(LocalBackend {
        config: config.clone(),
        plan: Arc::clone(&plan),
        waiting: waits(&loaded, waiting),
        board: Arc::clone(&board),
        workers: pool.workers().to_vec(),
        running,
        links: Arc::clone(&links),
        outbox: Arc::clone(&outbox),
        suffering: Arc::clone(&suffering),
        prober: Arc::clone(&prober),
        examining: tokio::sync::Mutex::default(),
        reload: Box::new(look.clone()),
        started,
    });
    let (orders, ordered) = mpsc::unbounded_channel();
    let enabled = config.uplink.commands.clone();
    let mut commands = (!enabled.is_empty()).then(|| Commands::new(&topics, enabled, orders));
    let secrets = secrets(config);
    let (asked_of, to) = (Arc::clone(&backend) as Arc<dyn api::Backend>, Arc::clone(&uplink));
    tokio::task::spawn_local(commands::answer(ordered, asked_of, to, config.gateway.id.to_string(), secrets));
    let (close, closed) = oneshot::channel::<()>();
    let (models, shown) = (Arc::clone(&backend), Arc::clone(&backend));
    let api = tokio::task::spawn_local(api::server::serve(socket, backend, async move { _ = closed.await }));

    let router = Rc::new(Router::new(Arc::clone(&plan), pool.workers().to_vec(), places));
    let (stop, stopping) = watch::channel(Stop::Run);
    let (mut tasks, mut pulses) = (Vec::new(), Pulses::of(pool.workers(), config.runtime.hang_limit.0));
    for (name, broker) in &config.brokers {
        let pulse = pulses.task(format!("the link to {name}"));
        let role = Role {
            name: name.shared(),
            broker: broker.clone(),
            filters: filters(config, name),
            status: (*name == config.uplink.broker).then(|| topics.clone()),
            depot: depot.take_if(|_| *name == config.uplink.broker),
            prober: (*name == config.uplink.broker).then(|| Arc::clone(&prober)),
            commands: commands.take_if(|_| *name == config.uplink.broker),
            outgoing: Arc::clone(&links[&**name]),
            pulse: pulse.clone(),
        };
        let (router, name) = (Rc::clone(&router), name.shared());
        let receive = move |message: link::Received<'_>| router.receive(&name, &message);
        let kept = broker.resume.then(|| proved(Arc::clone(&models), stopping.clone()));
        let link = link::run(role, Arc::clone(&reporter), receive, stopping.clone());
        tasks.push(tokio::task::spawn_local(async move {
            if let Some(proved) = kept {
                pulse.through(proved).await;
            }
            link.await;
        }));
    }

    for (index, source) in plan.sources.iter().enumerate().filter(|(_, source)| source.config.program().is_some()) {
        let pulse = pulses.task(format!("the program of {}", source.name()));
        let (router, board) = (Rc::clone(&router), Arc::clone(&board));
        let receive = Rc::new(move |message: link::Received<'_>| router.read(index, &message));
        let (source, reporter, stopping) = (Arc::clone(source), Arc::clone(&reporter), stopping.clone());
        tasks.push(tokio::task::spawn_local(async move {
            // Nobody would take what it writes before.
            pulse.through(served(&board, &source, stopping.clone())).await;
            exec::run(source, reporter, receive, pulse, stopping).await;
        }));
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
    let limits = limits(&config.pressure);
    let mut feel = tokio::time::interval(limits.interval());
    feel.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let probe = Arc::new(Mutex::new(Probe::new(&config.pressure.root)));
    let (felt, mut feelings) = mpsc::channel(1);
    let mut pressure = Pressure::new(limits);
    let mut clock = wall::Steps::new(wall::Wall::now());
    // At the start, and once a day.
    let mut certificates = tokio::time::interval(EXPIRIES);
    let mut sweep = tokio::time::interval(SWEEP);
    let first = tokio::time::Instant::now() + GIVE_BACK_FIRST;
    let mut give_back = tokio::time::interval_at(first, GIVE_BACK);
    let mut turn = tokio::time::interval(manager.turn().unwrap_or(NEVER));
    let mut status = tokio::time::interval(STATUS);
    let mut ready = false;
    let mut silence = std::pin::pin!(tokio::time::sleep(SILENT));
    let mut silence_over = false;
    let nudge = |nudge: Nudge| {
        // The thread of deliveries ends with the process only.
        _ = delivery.as_ref().map(|nudges| nudges.send(nudge));
    };
    let end = loop {
        tokio::select! {
            _ = terminate.recv() => break End::Stopped,
            _ = interrupt.recv() => break End::Stopped,
            _ = hangup.recv() => {
                // What is found is taken up beside what serves; before the agent was ready it is not for that.
                if ready {
                    manager.reloading();
                }
                look();
                if ready {
                    manager.ready();
                }
            }
            // Also where the loader is gone, which ends the process.
            _ = &mut is_up, if !ready => {
                ready = true;
                manager.status(&shown.summary());
                manager.ready();
            }
            _ = status.tick(), if manager.listens() => {
                manager.status(&shown.summary());
                if !ready && started.elapsed() < all_loaded {
                    manager.takes(LOADING);
                }
            }
            _ = turn.tick(), if manager.turn().is_some() => {
                if pulses.are_felt(Instant::now()) {
                    manager.alive();
                }
            }
            Some(settled) = heard.recv() => match settled {
                Settled::Again(why) => {
                    tracing::info!(why, "beginning again");
                    reporter.event("begins-again", &why, &[]);
                    break End::Again;
                }
                settled => nudge(Nudge::Settled(settled)),
            },
            () = &mut silence, if !silence_over => {
                silence_over = true;
                report_silent(&plan, &board, &reporter);
            }
            _ = telemetry.tick() => {
                let (gauge, readings) = (Arc::clone(&gauge), readings.clone());
                tokio::task::spawn_blocking(move || {
                    // One that is still at it answers for this one too.
                    let Ok(mut gauge) = gauge.try_lock() else { return };
                    // Nobody listens after the stop.
                    let _ = readings.blocking_send(gauge.get_or_insert_with(Gauge::new).read());
                });
                drops.look(|| outbox.figures().dropped, |count| reporter.dropped(count));
                outbox.forget_empty();
            }
            Some(notice) = noticed.recv() => reporter.outbox(&notice),
            Some(system) = read.recv() => {
                let body = Body::Json(figures(config, &plan, &outbox, &links, system, started).to_json());
                uplink.offer_fleeting(Fleeting { topic: topics.telemetry(), body, at_least_once: false, expiry_s: None, correlation: None });
            }
            _ = feel.tick() => {
                if let Some(step) = clock.look(wall::Wall::now()) {
                    reporter.clock_stepped(&step.to_string());
                }
                let (probe, felt) = (Arc::clone(&probe), felt.clone());
                tokio::task::spawn_blocking(move || {
                    let Ok(mut probe) = probe.try_lock() else { return };
                    let now = Moment::now();
                    let _ = felt.blocking_send((now, probe.read(now)));
                });
            }
            Some((now, reading)) = feelings.recv() => {
                if let Some(change) = pressure.take(now, &reading) {
                    let pressed = change.cause.is_some();
                    reporter.pressure(pressed, &change.message);
                    *suffering.lock().unwrap_or_else(PoisonError::into_inner) = pressed.then_some(change.message);
                    pool.workers().iter().for_each(|worker| worker.change(move |worker, _| worker.press(pressed)));
                }
            }
            _ = certificates.tick() => {
                for (name, broker) in &config.brokers {
                    for expiry in expiry::of(broker) {
                        let expiry = match expiry {
                            Ok(expiry) => expiry,
                            Err(why) => {
                                tracing::warn!(broker = %name, "{why}");
                                continue;
                            }
                        };
                        if let Some((found, todo)) = expiry.warning(jiff::Timestamp::now()) {
                            reporter.certificate(name, &format!("broker.{name}: {found}; {todo}"));
                        }
                    }
                }
            }
            // Locked pages stay where they are.
            _ = give_back.tick(), if !config.runtime.lock_memory => limpet_engine::give_back_memory(),
            _ = sweep.tick() => {
                uplink.offer_delivery();
                for (source, stream) in router.forget_idle(Moment::now()) {
                    for pipeline in &plan.sources[source].pipelines {
                        uplink.forget_latest(&plan.pipelines[*pipeline].name, &stream);
                    }
                }
            }
        }
    };

    tracing::info!("stopping");
    match end {
        End::Stopped => manager.stopping(),
        End::Again => manager.reloading(),
    }
    // From here on nothing asks any more, and beginning again takes a moment.
    manager.alive();
    _ = store.as_ref().map(configured::ends_well);
    let (done, kept) = std::sync::mpsc::channel();
    let _ = requests.send(Request::Keep(done));
    router.close();
    // Whoever asks now is told that nobody listens.
    let _ = close.send(());
    let drained = tokio::task::spawn_blocking(move || {
        let drained = pool.drain(STOP / 2);
        // A session that hangs is left to itself: the process ends with it.
        pool.stop(if drained { STOP / 2 } else { Duration::ZERO }) && drained
    });
    if !drained.await.unwrap_or(false) {
        tracing::error!("windows were still waiting when the time for stopping was half over; they are lost");
    }
    manager.alive();
    // First of all it is on the disk; what is acknowledged while the links say goodbye leaves it again.
    outbox.commit_all(Instant::now() + STOP / 8);
    // Before the links say goodbye, so that it still goes out.
    drops.look(|| outbox.figures().dropped, |count| reporter.dropped(count));
    // A receiver that is gone has stopped by itself.
    let _ = stop.send(Stop::Drain(Instant::now() + STOP / 2));
    for task in tasks {
        task.await.context("a link failed")?;
    }
    // It has nothing to do any more but to take the socket's file away.
    let _ = tokio::time::timeout(Duration::from_secs(1), api).await;
    // What the broker did not acknowledge by now goes with the next start.
    let written = outbox.commit_all(Instant::now() + STOP / 4);
    if !outbox.close(Instant::now() + STOP / 4) && !written {
        tracing::error!("the disk does not answer; what was written last goes by the ring with the next start");
    }
    let left = outbox.waiting();
    match (left, written) {
        (0, _) => {}
        (left, true) => tracing::info!(left, "results and events that were not delivered wait on the disk"),
        (left, false) => tracing::error!(
            left,
            "results and events that were not delivered could not be written to the disk; they are lost unless the run folder is kept"
        ),
    }
    // What a trial has come to; where the loader is busy, a minute of it is lost.
    let _ = kept.recv_timeout(Duration::from_secs(1));
    tracing::info!(delivered = outbox.figures().delivered, "stopped");
    Ok(end)
}

/// The loops that must go round, besides that of the main thread, which asks them.
struct Pulses {
    workers: Vec<(Pulse, limpet_runtime::Worker<Worker<LinkSink>>)>,
    /// Of links, and of the programs of sources.
    tasks: Vec<Pulse>,
    /// Whether one is missed, which is said once.
    missed: bool,
}

impl Pulses {
    /// Those of the workers. A session that runs for `hang_limit` ends the process in good order; the watchdog is for when
    /// that does not happen.
    fn of(workers: &[limpet_runtime::Worker<Worker<LinkSink>>], hang_limit: Duration) -> Self {
        let limit = hang_limit + 2 * LAST_WORDS;
        let pulse = |(number, worker): (usize, &limpet_runtime::Worker<_>)| {
            (Pulse::new(format!("worker-{number}"), limit), worker.clone())
        };
        Self { workers: workers.iter().enumerate().map(pulse).collect(), tasks: Vec::new(), missed: false }
    }

    /// One more, of a task on the main thread.
    fn task(&mut self, name: String) -> Pulse {
        let pulse = Pulse::new(name, TASK_ANSWERS);
        self.tasks.push(pulse.clone());
        pulse
    }

    /// Asks all of them. Says whether none owes its answer for longer than it may.
    fn are_felt(&mut self, now: Instant) -> bool {
        for (pulse, worker) in &self.workers {
            if pulse.ask(now) {
                let pulse = pulse.clone();
                worker.change(move |_, _| pulse.answer());
            }
        }
        self.tasks.iter().for_each(|pulse| _ = pulse.ask(now));
        let all = self.workers.iter().map(|(pulse, _)| pulse).chain(&self.tasks);
        let late = all.filter_map(|pulse| Some((pulse, pulse.overdue(now)?))).next();
        if let Some((pulse, owed)) = late.filter(|_| !self.missed) {
            let (name, seconds) = (pulse.name(), owed.as_secs());
            tracing::error!(
                "{name} has not answered for {seconds} s, so the watchdog is fed no more: the service manager starts the agent again"
            );
        }
        self.missed = late.is_some();
        !self.missed
    }
}

/// What looks for packages that changed, at paths and in the store.
fn reload(
    requests: Requests,
    delivery: Option<UnboundedSender<Nudge>>,
    imports: Arc<AtomicU64>,
) -> impl Fn() + Clone + Send + Sync {
    move || {
        tracing::info!("looking for packages that changed");
        imports.fetch_add(1, Ordering::Release);
        // Both ends are there for as long as the process is.
        let _ = requests.send(Request::Reload);
        let _ = delivery.as_ref().map(|nudges| nudges.send(Nudge::Look));
    }
}

/// Until no model is being proved or loaded any more, or it takes too long: what a broker has kept comes all at once when the link is
/// made, and before that nobody would take it.
async fn proved(backend: Arc<LocalBackend>, mut stop: watch::Receiver<Stop>) {
    let loading = |pipeline: &PipelineStatus| pipeline.state == PipelineState::Loading;
    let proving = || api::Backend::status(&*backend).pipelines.iter().any(loading);
    let until = Instant::now() + FOR_PROOFS;
    while proving() && Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            _ = stop.wait_for(|stop| *stop != Stop::Run) => return,
        }
    }
}

/// Until a pipeline of this source serves, or the agent stops.
async fn served(board: &Board, source: &SourcePlan, mut stop: watch::Receiver<Stop>) {
    while !serves(board, source) {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            _ = stop.wait_for(|stop| *stop != Stop::Run) => return,
        }
    }
}

/// Whether a pipeline of this source serves.
fn serves(board: &Board, source: &SourcePlan) -> bool {
    let states = board.pipelines();
    source.pipelines.iter().any(|pipeline| states[*pipeline] == crate::serve::PipelineState::Serving)
}

/// The passwords of all brokers, as they are now and as any connection used them.
fn secrets(config: &Config) -> impl Fn() -> Vec<String> + Clone + Send + use<> {
    let brokers: Vec<config::Broker> = config.brokers.values().cloned().collect();
    move || {
        brokers.iter().for_each(|broker| _ = broker.password());
        config::passwords().iter().cloned().collect()
    }
}

/// What waits, with its part of the configuration.
fn waits(loaded: &Loaded, waiting: Vec<Waiting>) -> Vec<(Waiting, config::Pipeline)> {
    let pipeline = |waiting: Waiting| {
        let pipeline = loaded.config.pipelines.iter().find(|pipeline| pipeline.name == waiting.pipeline)?.clone();
        Some((waiting, pipeline))
    };
    waiting.into_iter().filter_map(pipeline).collect()
}

/// How worker threads are placed, checked against this machine.
fn placement(runtime: &config::Runtime) -> Result<Placement, String> {
    threads::check_affinity(&runtime.affinity)?;
    if runtime.lock_memory {
        threads::lock_memory()?;
    }
    Ok(Placement { affinity: runtime.affinity.clone(), fifo_priority: runtime.fifo_priority })
}

fn limits(pressure: &config::Pressure) -> Limits {
    Limits {
        temperature_c: pressure.temperature_c,
        cpu_pressure: pressure.cpu,
        frequency: pressure.frequency,
        sustain: pressure.sustain.0,
        recover: pressure.recover.0,
    }
}

/// The filters to subscribe to at a broker, each once, with whether retained messages are wanted.
fn filters(config: &Config, broker: &str) -> Vec<(String, bool)> {
    let mut filters: BTreeMap<String, bool> = BTreeMap::new();
    for source in config.sources.iter().filter(|source| source.reads(broker)) {
        for filter in source.filters() {
            *filters.entry(filter.mqtt().to_owned()).or_default() |= source.accept_retained;
        }
    }
    filters.into_iter().collect()
}

fn report_silent(plan: &Plan, board: &Board, reporter: &Reporter) {
    for source in plan.sources.iter().filter(|source| !source.ledger.heard()) {
        // A program is not started before.
        if source.config.program().is_some() && !serves(board, source) {
            continue;
        }
        let why = match (source.config.program(), &source.config.broker) {
            (Some(program), _) => {
                format!("its program {} wrote nothing; does it run, and is its device there?", program[0])
            }
            (None, broker) => {
                let topics: Vec<_> = source.config.filters().iter().map(|filter| filter.mqtt()).collect();
                format!(
                    "nothing came in on {} at broker {}; is the sensor on, and does the broker's access list allow reading it?",
                    topics.join(", "),
                    broker.as_deref().unwrap_or_default()
                )
            }
        };
        let message = format!("source {} is silent since start: {why}", source.name());
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
                figures.written_bytes = written_bytes();
                figures.cpu = process.cpu_usage() / 100.0;
                figures.memory_bytes = process.memory();
            }
        }
        figures
    }
}

/// Bytes that this process has had written to disks, by the kernel's account: pages of files on tmpfs are not among them,
/// and what was written and removed before it reached the disk is taken off.
fn written_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0);
    field("write_bytes:").saturating_sub(field("cancelled_write_bytes:"))
}

fn figures(
    config: &Config,
    plan: &Plan,
    outbox: &Outbox,
    links: &BTreeMap<Arc<str>, Arc<Outgoing>>,
    system: SystemFigures,
    started: Instant,
) -> Telemetry {
    Telemetry {
        gateway: config.gateway.id.to_string(),
        at: wall::now_text(),
        uptime_s: started.elapsed().as_secs(),
        system,
        sources: plan.sources.iter().map(|source| (source.name().to_owned(), source.ledger.figures())).collect(),
        pipelines: plan
            .pipelines
            .iter()
            .map(|pipeline| (pipeline.name.as_ref().to_owned(), pipeline_telemetry(pipeline)))
            .collect(),
        outbox: outbox.figures().into(),
        links: links.iter().map(|(name, link)| (name.to_string(), link.figures())).collect(),
    }
}

/// What a pipeline did. Its quantiles, and those of its streams, start anew.
fn pipeline_telemetry(pipeline: &PipelinePlan) -> PipelineTelemetry {
    let streams = pipeline.streams.lock().unwrap_or_else(PoisonError::into_inner);
    let told = streams.len() <= STREAMS_IN_TELEMETRY;
    let figures = |ledger: &Ledger| report::figures(ledger, ledger.take_quantiles());
    let all = streams.iter().map(|(name, ledger)| (name.as_ref().to_owned(), figures(ledger)));
    PipelineTelemetry {
        figures: figures(&pipeline.ledger),
        // All spans end, whether they are told or not.
        streams: all.filter(|_| told).collect(),
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
