//! From a topic to the worker that owns its stream.
//!
//! Lives on the I/O thread, next to the links. A stream is placed on the worker with the fewest streams when its first
//! message comes, and forgotten when it has been silent for `stream_idle`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use limpet_runtime::queue::Pushed;
use limpet_runtime::{Lane, LanePolicy, Moment, Order, Overflow, Worker as Thread};
use limpet_wire::name::check_stream;

use crate::link::Received;
use crate::pipeline::plan::{Plan, SourcePlan};
use crate::pipeline::worker::{Ingest, Job, Sink, StreamKey, Worker};

/// Messages of one stream that may wait for their worker, and their bytes.
const WAITING: LanePolicy = LanePolicy { depth: 256, weight: 4 * 1024 * 1024, overflow: Overflow::Refuse };

/// Hands messages to workers.
pub struct Router<S: Sink + 'static> {
    plan: Arc<Plan>,
    threads: Vec<Thread<Worker<S>>>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    closed: bool,
    next_key: u32,
    /// By source, then by stream name.
    streams: Vec<HashMap<Box<str>, Route>>,
    /// Streams on each worker.
    load: Vec<usize>,
}

struct Route {
    key: StreamKey,
    name: Arc<str>,
    thread: usize,
    lane: Lane,
    heard: Moment,
    missed: u32,
}

impl<S: Sink + 'static> Router<S> {
    /// A router without streams.
    pub fn new(plan: Arc<Plan>, threads: Vec<Thread<Worker<S>>>) -> Self {
        let state = State {
            streams: plan.sources.iter().map(|_| HashMap::new()).collect(),
            load: vec![0; threads.len()],
            ..State::default()
        };
        Self { plan, threads, state: RefCell::new(state) }
    }

    /// Takes no message any more.
    pub fn close(&self) {
        self.state.borrow_mut().closed = true;
    }

    /// A message came in from a broker. It goes to every source that reads its topic there.
    pub fn receive(&self, broker: &str, message: &Received<'_>) {
        let arrived = Moment::now();
        let mut state = self.state.borrow_mut();
        if state.closed {
            return;
        }
        for (index, source) in self.plan.sources.iter().enumerate() {
            if *source.config.broker != *broker {
                continue;
            }
            for (topic, filter) in source.config.filters().iter().enumerate() {
                if !filter.matches(message.topic) {
                    continue;
                }
                let name = if filter.names_stream() { filter.stream_of(message.topic) } else { Some(source.name()) };
                if let Some(name) = name {
                    self.deliver(&mut state, index, source, topic, name, message, arrived);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one message and where it goes, taken apart once")]
    fn deliver(
        &self,
        state: &mut State,
        index: usize,
        source: &SourcePlan,
        topic: usize,
        name: &str,
        message: &Received<'_>,
        arrived: Moment,
    ) {
        let refuse = |reason: &'static str, sentence: &dyn Fn() -> String| {
            source.ledger.complain(source.name(), message.topic, reason, 1, sentence);
        };
        if message.retained && !source.config.accept_retained {
            return refuse("retained", &|| {
                "a retained message is not a fresh sample; publish without retain, or set accept_retained".into()
            });
        }
        if !state.streams[index].contains_key(name) {
            if let Err(error) = check_stream(name) {
                return refuse("stream_name", &|| format!("the topic names no stream: {error}"));
            }
            if state.streams[index].len() >= source.config.max_streams as usize {
                return refuse("max_streams", &|| {
                    format!(
                        "a stream beyond max_streams = {}; raise it if all of them are wanted",
                        source.config.max_streams
                    )
                });
            }
            let route = self.place(state, index, name, message.topic, arrived);
            state.streams[index].insert(name.into(), route);
        }
        let Some(route) = state.streams[index].get_mut(name) else { return };
        route.heard = arrived;
        let order = Order {
            lane: route.lane,
            class: source.class,
            deadline: arrived.after(source.deadline),
            weight: message.payload.len(),
        };
        let job = Job::Ingest(Ingest {
            stream: route.key,
            topic,
            payload: message.payload.clone(),
            arrived,
            missed: route.missed,
        });
        match self.threads[route.thread].push(order, job) {
            Pushed::Waiting | Pushed::Replaced(_) => route.missed = 0,
            Pushed::Refused(_) => {
                route.missed = route.missed.saturating_add(1);
                refuse("flood", &|| {
                    format!(
                        "messages come faster than they can be processed; {} of them or {} MiB wait already",
                        WAITING.depth,
                        WAITING.weight >> 20
                    )
                });
            }
        }
    }

    fn place(&self, state: &mut State, source: usize, name: &str, topic: &str, now: Moment) -> Route {
        let (thread, _) =
            state.load.iter().enumerate().min_by_key(|(_, load)| **load).expect("there is at least one worker");
        state.load[thread] += 1;
        let key = StreamKey(state.next_key);
        state.next_key += 1;
        let name: Arc<str> = name.into();
        let lane = self.threads[thread].open(WAITING);
        let (named, topic) = (Arc::clone(&name), Arc::from(topic));
        self.threads[thread].change(move |worker, context| worker.add_stream(key, source, named, topic, context));
        tracing::debug!(source = self.plan.sources[source].name(), stream = %name, thread, "new stream");
        Route { key, name, thread, lane, heard: now, missed: 0 }
    }

    /// Forgets streams that have been silent for too long, and names them with their source.
    pub fn forget_idle(&self, now: Moment) -> Vec<(usize, Arc<str>)> {
        let mut state = self.state.borrow_mut();
        let State { streams, load, .. } = &mut *state;
        let mut gone = Vec::new();
        for (index, (source, streams)) in self.plan.sources.iter().zip(streams).enumerate() {
            let idle: Duration = source.config.stream_idle.0;
            streams.retain(|_, route| {
                if now.since(route.heard) < idle {
                    return true;
                }
                let (key, thread) = (route.key, &self.threads[route.thread]);
                thread.close(route.lane);
                thread.change(move |worker, context| worker.remove_stream(key, context));
                load[route.thread] -= 1;
                gone.push((index, Arc::clone(&route.name)));
                false
            });
        }
        gone
    }
}
