//! From completed windows to the queue: those that are served, and copies for a version in shadow.

use std::sync::Arc;
use std::time::Duration;

use limpet_runtime::queue::Pushed;
use limpet_runtime::{Class, Clock, Context, Handler as _, Lane, Ledger, Moment, Order, Outcome};
use limpet_wire::result::Span;

use super::super::groups::Groups;
use super::super::input::WindowInput;
use super::super::model::{Facts, InFlight};
use super::super::observe::{Pace, cpu_time};
use super::super::plan::PipelinePlan;
use super::super::shadow::{FeedWatch, Shadow, Watched};
use super::super::worker::{Infer, Job, Origin, Sink, StreamKey, Window, Worker};
use super::{Serve, Side};

/// Spare window buffers that are kept.
const SPARE: usize = 64;

/// What completing a window needs besides the stream.
pub(in super::super) struct Windowing<'a> {
    pub clock: &'a Clock,
    pub spare: &'a mut Vec<Vec<f32>>,
    pub groups: &'a mut Groups,
    pub pressed: bool,
    pub key: StreamKey,
    /// Models that windows wait for and that are not loaded.
    pub wanted: &'a mut Vec<Arc<Facts>>,
    /// Versions on trial, by pipeline.
    pub watched: &'a mut [Option<Watched>],
}

/// A window on its way into the queue.
pub(super) struct Completed {
    pub(super) input: WindowInput,
    pub(super) span: Span,
    pub(super) filled: u64,
    pub(super) captured: Moment,
    pub(super) payload_ns: Option<i64>,
    pub(super) complete: Moment,
    pub(super) tag: Option<u64>,
}

impl Windowing<'_> {
    /// The same, for a call that is not the last.
    pub(super) fn again(&mut self) -> Windowing<'_> {
        let Self { clock, pressed, key, .. } = *self;
        let Self { spare, groups, wanted, watched, .. } = self;
        Windowing { clock, spare, groups, pressed, key, wanted, watched }
    }

    pub(super) fn buffer(&mut self, values: &[f32]) -> Vec<f32> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(values);
        buffer
    }

    /// Hands a completed window to the queue. Whatever the queue gives up for it is counted.
    pub(super) fn complete<S: Sink + 'static>(
        &mut self,
        queued: Queued<'_>,
        serve: &Serve,
        completed: Completed,
        context: &mut Context<'_, Worker<S>>,
    ) -> Moment {
        let Queued { plan, ledger, lane, pace, last_class, watch } = queued;
        ledger.completed();
        let now = self.clock.now();
        let mut watch = watch.filter(|watch| watch.watch.is_of(&serve.version));
        if let Some(watch) = &watch {
            watch.watch.tick(now);
        }
        let facts = serve.reduced.as_ref().filter(|_| self.pressed).unwrap_or(&serve.full);
        // What comes faster than was admitted is shed first; and windows of a stream stay in order.
        let over = pace.is_over(serve.period(), completed.captured);
        let behind = *last_class > plan.class && context.waits(lane);
        let class = if over || behind { Class::Analytic } else { plan.class };
        *last_class = class;
        let deadline = completed.captured.after(plan.deadline);
        if class > plan.class && !self.groups.leaves_room(facts) {
            // Too long to run before anything that was admitted.
            ledger.ended(Outcome::Rejected);
            if let Some(watch) = watch {
                watch.watch.gave_up();
            }
            recycle(self.spare, completed.input);
            return deadline;
        }
        if self.groups.ask(facts.number) {
            self.wanted.push(Arc::clone(facts));
        }
        let max = plan.batching.max;
        let group = self.groups.of(facts, class, max, context);
        // Messages that wait have deadlines behind this window's, which would run before they are taken in, and so every
        // window alone, however many come. An analytic one lets them come first, for no longer than the run takes that
        // they may share.
        let crowded = class == Class::Analytic && context.queued() > 0;
        let hold = match self.groups.costs(facts, class, max).last() {
            Some(largest) if largest.size > 1 => {
                let company = if crowded { largest.typical } else { Duration::ZERO };
                match plan.batching.delay.max(company) {
                    Duration::ZERO => Moment(0),
                    delay => now.after(delay).min(deadline.before(largest.worst)),
                }
            }
            _ => Moment(0),
        };
        let last = completed.span.last;
        let copied = watch.as_mut().and_then(|watch| self.copy(watch, serve.pipeline, &completed.input, last, now));
        let infer = Infer {
            model: InFlight::new(facts, now),
            input: completed.input,
            deadline,
            origin: Origin::Window(Box::new(Window {
                stream: self.key,
                pipeline: serve.pipeline,
                plan: Arc::clone(plan),
                version: Arc::clone(&serve.version),
                ledger: Arc::clone(ledger),
                span: completed.span,
                filled: completed.filled,
                captured: completed.captured,
                payload_ns: completed.payload_ns,
                complete: completed.complete,
                featured: now,
                tag: completed.tag,
                watch: watch.as_ref().map(|watch| Arc::clone(&watch.watch)),
            })),
        };
        let order = Order { lane, group, deadline, expires: true, hold, weight: 0 };
        self.push(order, infer, context);
        if let (Some(watch), Some((input, set_aside))) = (watch, copied) {
            self.push_shadow(watch, plan, serve.pipeline, last, input, set_aside, context);
        }
        deadline
    }

    fn push<S: Sink + 'static>(&mut self, order: Order, infer: Infer, context: &mut Context<'_, Worker<S>>) {
        match context.push(order, Job::Infer(infer)) {
            Pushed::Waiting => {}
            Pushed::Replaced(jobs) => {
                for job in jobs {
                    self.give_up::<S>(job, Outcome::Replaced);
                }
            }
            Pushed::Refused(job) => self.give_up::<S>(job, Outcome::Rejected),
        }
    }

    /// Whether a pipeline's companion could run now: it makes no realtime window late, and it is loaded.
    fn leaves_room_for(&self, companion: &Serve) -> bool {
        !self.pressed && self.groups.is_loaded(companion.full.number) && self.groups.leaves_room(&companion.full)
    }

    /// A copy of a window for a companion that makes the same features, and what was set aside for it. One that makes its
    /// own is told of the window.
    fn copy(
        &mut self,
        watch: &mut FeedWatch,
        pipeline: usize,
        input: &WindowInput,
        last: u64,
        now: Moment,
    ) -> Option<(WindowInput, Duration)> {
        let companion = watch.watch.companion().filter(|_| !watch.watch.is_over())?;
        if let Some(beside) = &mut watch.beside {
            beside.wanted = Some(last);
            return None;
        }
        let room = self.leaves_room_for(&companion.serve);
        let watched = self.watched[pipeline].as_mut()?;
        if !room || !watched.affords(Duration::ZERO, now) {
            watch.watch.skip();
            return None;
        }
        let set_aside = watched.set_aside();
        let copy = match input {
            WindowInput::Real(features) => WindowInput::Real(self.buffer(features)),
            WindowInput::Integers(bytes) => WindowInput::Integers(bytes.clone()),
        };
        Some((copy, set_aside))
    }

    /// Hands a window for the companion to the queue, as the last of all work.
    #[expect(clippy::too_many_arguments, reason = "one window's facts, from two places that share nothing else")]
    fn push_shadow<S: Sink + 'static>(
        &mut self,
        watch: &mut FeedWatch,
        plan: &Arc<PipelinePlan>,
        pipeline: usize,
        last: u64,
        input: WindowInput,
        set_aside: Duration,
        context: &mut Context<'_, Worker<S>>,
    ) {
        let (Some(companion), Some(lane)) = (watch.watch.companion(), watch.lane) else { return };
        let facts = Arc::clone(&companion.serve.full);
        let group = self.groups.of(&facts, Class::Analytic, 1, context);
        let shadow = Shadow {
            stream: self.key,
            pipeline,
            plan: Arc::clone(plan),
            watch: Arc::clone(&watch.watch),
            last,
            set_aside,
        };
        let infer = Infer {
            model: InFlight::new(&facts, self.clock.now()),
            input,
            deadline: Moment::NEVER,
            origin: Origin::Shadow(Box::new(shadow)),
        };
        watch.awaits(last);
        let order = Order { lane, group, deadline: Moment::NEVER, expires: false, hold: Moment(0), weight: 0 };
        self.push(order, infer, context);
    }

    /// Pushes samples, the first of which has the index `at`, to a companion's own front end. `now` is the serving
    /// version's, which has them already. Returns the thread time that this took.
    #[expect(clippy::too_many_arguments, reason = "the parts of a feed and of a message that it needs")]
    pub(super) fn push_beside<S: Sink + 'static>(
        &mut self,
        watch: &mut FeedWatch,
        now: &Side,
        plan: &Arc<PipelinePlan>,
        samples: &[f32],
        channels: usize,
        at: u64,
        context: &mut Context<'_, Worker<S>>,
    ) -> Duration {
        let (Some(companion), Some(beside)) = (watch.watch.companion(), &mut watch.beside) else {
            return Duration::ZERO;
        };
        let (pipeline, over) = (companion.serve.pipeline, watch.watch.is_over());
        let room = !over && self.leaves_room_for(&companion.serve);
        let Some(watched) = self.watched[pipeline].as_mut() else { return Duration::ZERO };
        let wanted = beside.wanted.take();
        let end = at + (samples.len() / channels) as u64;
        if beside.paused || !room {
            if wanted.is_some() && !over {
                watch.watch.skip();
            }
            beside.paused = !room || !watched.affords(beside.cost, self.clock.now());
            if !beside.paused {
                let start = now.start_of_next(end, beside.side.window());
                beside.side.start(start);
                beside.spent = Duration::ZERO;
            }
            return Duration::ZERO;
        }
        let Some(front_end) = beside.side.front_end.as_mut() else { return Duration::ZERO };
        let begun = cpu_time();
        let skip = (beside.side.starts.saturating_sub(at) as usize).min(samples.len() / channels);
        let (mut input, mut complete) = (None, false);
        let spare = &mut self.spare;
        let pushed = front_end.push(&samples[skip * channels..], |window| {
            complete = true;
            if Some(window.last) == wanted {
                let mut buffer = spare.pop().unwrap_or_default();
                buffer.clear();
                buffer.extend_from_slice(window.features);
                input = Some(buffer);
            }
        });
        pushed.expect("the decoder gives whole samples");
        let spent = cpu_time().saturating_sub(begun);
        watched.spent(spent);
        beside.spent += spent;
        if complete {
            // What was begun is brought to its end; then it waits until it can afford the next one.
            beside.cost = std::mem::take(&mut beside.spent) + watched.expected();
            let set_aside = input.is_some().then(|| watched.set_aside());
            beside.paused = !watched.affords(beside.cost, self.clock.now());
            if let (Some(input), Some(set_aside), Some(last)) = (input, set_aside, wanted) {
                self.push_shadow(watch, plan, pipeline, last, WindowInput::Real(input), set_aside, context);
                return spent;
            }
        }
        if wanted.is_some() {
            watch.watch.skip();
        }
        spent
    }

    /// Reads a message that is a window for a companion that reads it otherwise. Returns the thread time that this took.
    pub(super) fn read_beside<S: Sink + 'static>(
        &mut self,
        watch: &mut FeedWatch,
        plan: &Arc<PipelinePlan>,
        payload: &[u8],
        context: &mut Context<'_, Worker<S>>,
    ) -> Duration {
        let (Some(companion), Some(beside)) = (watch.watch.companion(), &mut watch.beside) else {
            return Duration::ZERO;
        };
        let (Some(last), Some(reader)) = (beside.wanted.take(), &mut beside.side.reader) else { return Duration::ZERO };
        let (pipeline, room) = (companion.serve.pipeline, self.leaves_room_for(&companion.serve));
        let Some(watched) = self.watched[pipeline].as_mut() else { return Duration::ZERO };
        if !room || !watched.affords(beside.cost, self.clock.now()) {
            watch.watch.skip();
            return Duration::ZERO;
        }
        let begun = cpu_time();
        let read = reader.take(payload, self.spare.pop().unwrap_or_default());
        let spent = cpu_time().saturating_sub(begun);
        watched.spent(spent);
        beside.cost = spent + watched.expected();
        match read {
            Ok((_, input)) => {
                let set_aside = watched.set_aside();
                self.push_shadow(watch, plan, pipeline, last, input, set_aside, context);
            }
            // The serving version reads it, so this says something of the other; but the message is no window of it.
            Err(_) => watch.watch.skip(),
        }
        spent
    }

    fn give_up<S: Sink + 'static>(&mut self, mut job: Job, outcome: Outcome) {
        if let Job::Infer(infer) = &mut job {
            recycle(self.spare, infer.take_input());
        }
        Worker::<S>::give_up(job, outcome);
    }
}

/// The parts of a feed that queueing a window needs.
pub(super) struct Queued<'a> {
    pub(super) plan: &'a Arc<PipelinePlan>,
    pub(super) ledger: &'a Arc<Ledger>,
    pub(super) lane: Lane,
    pub(super) pace: &'a mut Pace,
    pub(super) last_class: &'a mut Class,
    pub(super) watch: Option<&'a mut FeedWatch>,
}

/// Keeps the buffer of a window that is done, for the next one.
pub(in super::super) fn recycle(spare: &mut Vec<Vec<f32>>, input: WindowInput) {
    if let WindowInput::Real(buffer) = input
        && spare.len() < SPARE
    {
        spare.push(buffer);
    }
}
