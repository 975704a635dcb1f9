//! From a topic to the worker that owns its stream.
//!
//! Lives on the I/O thread, next to the links. A stream gets one of the places that were admitted for its source when its
//! first message comes, on the first worker that has one free, and is forgotten when it has been silent for
//! `stream_idle`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use limpet_runtime::queue::Pushed;
use limpet_runtime::{BatchCost, Class, Group, Lane, LanePolicy, Moment, Order, Overflow, Worker as Thread};
use limpet_wire::name::check_stream;

use crate::link::Received;
use crate::pipeline::observe::Pace;
use crate::pipeline::plan::{Plan, SourcePlan};
use crate::pipeline::stream::INGEST_COST;
use crate::pipeline::worker::{Ingest, Job, Sink, StreamKey, Worker};
use crate::serve::Places;
use crate::topic::Filters;

/// Messages of one stream that may wait for their worker, and their bytes.
const WAITING: LanePolicy = LanePolicy { depth: 256, weight: 4 * 1024 * 1024, overflow: Overflow::Refuse };

/// Why a message is refused that comes before any model of its source serves.
pub const NO_MODEL: &str = "no_model";

/// Hands messages to workers.
pub struct Router<S: Sink + 'static> {
    plan: Arc<Plan>,
    threads: Vec<Thread<Worker<S>>>,
    places: Arc<Places>,
    /// By broker: every filter with its source and its place among the source's topics.
    filters: HashMap<Arc<str>, Filters<(usize, usize)>>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    closed: bool,
    next_key: u32,
    /// Sources and topics of the message at hand.
    heard: Vec<(usize, usize)>,
    /// By source, then by stream name.
    streams: Vec<HashMap<Box<str>, Route>>,
    /// By source, then by worker.
    load: Vec<Vec<Load>>,
}

/// What a source has on a worker: streams, and the groups of their messages, for those that were admitted and for those
/// that come too fast.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    streams: u32,
    groups: Option<(Group, Group)>,
}

struct Route {
    key: StreamKey,
    name: Arc<str>,
    thread: usize,
    lane: Lane,
    group: Group,
    /// Where messages go that come too fast.
    excess: Group,
    pace: Pace,
    heard: Moment,
    missed: u32,
}

impl<S: Sink + 'static> Router<S> {
    /// A router without streams.
    pub fn new(plan: Arc<Plan>, threads: Vec<Thread<Worker<S>>>, places: Arc<Places>) -> Self {
        let state = State {
            streams: plan.sources.iter().map(|_| HashMap::new()).collect(),
            load: vec![vec![Load::default(); threads.len()]; plan.sources.len()],
            ..State::default()
        };
        let mut filters: HashMap<Arc<str>, Filters<(usize, usize)>> = HashMap::new();
        for (index, source) in plan.sources.iter().enumerate() {
            let Some(broker) = &source.config.broker else { continue };
            let of_broker = filters.entry(broker.shared()).or_default();
            for (topic, filter) in source.config.filters().iter().enumerate() {
                of_broker.insert(filter, (index, topic));
            }
        }
        Self { plan, threads, places, filters, state: RefCell::new(state) }
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
        let Some(filters) = self.filters.get(broker) else { return };
        let mut heard = std::mem::take(&mut state.heard);
        filters.matching(message.topic, &mut |found| heard.push(*found));
        // In the order of the configuration.
        heard.sort_unstable();
        for (index, topic) in heard.drain(..) {
            let source = &self.plan.sources[index];
            let filter = &source.config.filters()[topic];
            let name = if filter.names_stream() { filter.stream_of(message.topic) } else { Some(source.name()) };
            if let Some(name) = name {
                self.deliver(&mut state, index, source, topic, name, message, arrived);
            }
        }
        state.heard = heard;
    }

    /// The program of a source wrote a message.
    pub fn read(&self, index: usize, message: &Received<'_>) {
        let mut state = self.state.borrow_mut();
        if !state.closed {
            let source = &self.plan.sources[index];
            self.deliver(&mut state, index, source, 0, source.name(), message, Moment::now());
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
            let Some(route) = self.place(state, index, name, message.topic, arrived) else {
                return refuse(NO_MODEL, &|| {
                    "no model of this source serves: it is still being proved, or was refused; see limpet status".into()
                });
            };
            state.streams[index].insert(name.into(), route);
        }
        let Some(route) = state.streams[index].get_mut(name) else { return };
        route.heard = arrived;
        // Who sends more than was admitted is shed first: what is too much goes behind everything that was.
        let over = self.places.period(index).is_some_and(|period| route.pace.is_over(period, arrived));
        let group = if over { route.excess } else { route.group };
        let order = Order {
            lane: route.lane,
            group,
            deadline: arrived.after(self.places.deadline(index)),
            expires: false,
            hold: arrived,
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

    /// A place on the first worker that has one free; none if no pipeline of the source was admitted.
    fn place(&self, state: &mut State, source: usize, name: &str, topic: &str, now: Moment) -> Option<Route> {
        let places = self.places.of(source)?;
        let load = &mut state.load[source];
        // There are as many places as streams are allowed, so one is free.
        let thread = load.iter().zip(&places).position(|(load, places)| load.streams < *places)?;
        let Load { streams, groups } = &mut load[thread];
        *streams += 1;
        let class = self.plan.sources[source].class;
        let worker = &self.threads[thread];
        let open = |class| worker.open_group(class, &[BatchCost::single(INGEST_COST)]);
        let (group, excess) = *groups.get_or_insert_with(|| (open(class), open(Class::Analytic)));
        let key = StreamKey(state.next_key);
        state.next_key += 1;
        let name: Arc<str> = name.into();
        let lane = worker.open(WAITING);
        let (named, topic) = (Arc::clone(&name), Arc::from(topic));
        worker.change(move |worker, context| worker.add_stream(key, source, named, topic, context));
        tracing::debug!(source = self.plan.sources[source].name(), stream = %name, thread, "new stream");
        Some(Route { key, name, thread, lane, group, excess, pace: Pace::default(), heard: now, missed: 0 })
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
                load[index][route.thread].streams -= 1;
                gone.push((index, Arc::clone(&route.name)));
                false
            });
        }
        gone
    }
}
