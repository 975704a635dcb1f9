//! What arrived, held against what was stored.
//!
//! From which number on a run is judged depends on what is known of it when it is first heard of:
//!
//! - The message that the broker had kept names it: what had been stored when this program came is not judged. That
//!   message is some seconds old, so the gateway's next one says better what that was.
//! - It began while this program was there: number 1, since numbers have no gaps. That has to be certain. A gateway lists
//!   only the last few of the runs of which nothing waits and nothing was dropped, so a run that it does not name need not
//!   be new ([`Listing`]); and one that began in the seconds before this program came is in no message yet.
//! - Anything else: the first number that came, or what was stored after the gateway first told of it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use limpet_wire::binary::{self, Item};
use limpet_wire::content_type;
use limpet_wire::dropped::{Dropped, Reason};
use limpet_wire::id::{ResultId, Serial};
use limpet_wire::message::{Delivery, DroppedRange, Presence, Status};
use rangemap::RangeInclusiveSet;
use serde::{Deserialize, Serialize};

use crate::bench::text::{table, thousands};

/// A gateway whose link is up tells what is new within this time.
const TELLS_WITHIN: Duration = Duration::from_secs(12);
/// Runs of which nothing waits and nothing was dropped that a gateway lists at most, all its streams together. Its events
/// have a run too, which takes one of the places and is not listed.
const IDLE_RUNS: usize = 8;
/// Runs of one stream that a gateway remembers at most.
const RUNS_OF_A_STREAM: usize = 256;
/// A message of one stream that would be longer than 64 KiB loses its oldest runs, and is longer than this then.
const CUT_BYTES: usize = 32 * 1024;
/// Pieces that a range may have at most: what a gateway drops in one go are some thousand results.
const PIECES: u64 = 1 << 20;
/// Lost ranges that are shown of a stream; all of them are counted.
const SHOWN: usize = 20;

/// All that came.
#[derive(Debug, Default)]
pub struct Ledger {
    from_start: bool,
    streams: BTreeMap<Name, Stream>,
    gateways: BTreeMap<String, Gateway>,
    unreadable: u64,
    interruptions: u64,
    /// When the first result came, and the last.
    span: Option<(Instant, Instant)>,
}

/// What a gateway told so far.
#[derive(Debug, Default)]
struct Gateway {
    /// When the broker gave what it had kept, if that came first.
    joined: Option<Instant>,
    /// Whether it told something itself since.
    told: bool,
    /// Whether it is offline, as far as the broker knows.
    offline: bool,
    /// Whether it was offline before it did, so that what the broker had kept may be older than what went last.
    away: bool,
    /// Whether it has listed every run of which something waited: of others only what is stored later can come…
    complete: bool,
    /// …and every other one that something can still come of.
    named_all: bool,
}

/// When a gateway told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Before this program came: the broker had kept it.
    Kept,
    /// For the first time since, so soon that what it tells of may have begun before.
    First,
    /// For the first time since it was offline.
    Back,
    /// Any other time.
    Later,
    /// The broker gave what it had kept again, having lost this subscription.
    Again,
}

impl Gateway {
    fn moment(&self, kept: bool, now: Instant) -> Moment {
        let soon = self.joined.is_none_or(|at| now.duration_since(at) < TELLS_WITHIN);
        match (kept, self.told) {
            (true, false) if self.joined.is_none() => Moment::Kept,
            (true, _) => Moment::Again,
            (false, false) if soon => Moment::First,
            (false, false) if self.away => Moment::Back,
            (false, _) => Moment::Later,
        }
    }

    /// Whether it told what there was when this program came: itself, or by its silence, which says that what the broker
    /// had kept was still so.
    fn is_settled(&self, now: Instant) -> bool {
        let silent = self.joined.is_some_and(|at| now.duration_since(at) >= TELLS_WITHIN);
        self.complete && (self.told || silent && !self.away)
    }
}

/// What can be concluded of runs that a message does not name.
#[derive(Debug, Clone, Copy)]
struct Listing {
    /// Nothing of them waits.
    complete: bool,
    /// Nothing can come of them any more.
    named_all: bool,
}

impl Listing {
    fn of(delivery: &Delivery, bytes: usize) -> Self {
        let streams = &delivery.streams;
        let cut = delivery.omitted > 0
            || bytes > CUT_BYTES
            || streams.iter().any(|stream| stream.runs.len() >= RUNS_OF_A_STREAM);
        let idle = streams.iter().filter(|stream| stream.waiting == 0).flat_map(|stream| &stream.runs);
        let idle = idle.filter(|run| run.dropped.is_empty()).count();
        Self { complete: !cut, named_all: !cut && idle < IDLE_RUNS - 1 }
    }
}

/// A stream of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Name {
    gateway: String,
    pipeline: String,
    stream: String,
}

#[derive(Debug, Default)]
struct Stream {
    received: u64,
    repeated: u64,
    /// Results that came after a later one of their run.
    out_of_order: u64,
    /// What waits at the gateway, if it says anything.
    waiting: u64,
    /// Whether its newest run is known, so that another one is new.
    known: bool,
    runs: BTreeMap<u64, Run>,
}

#[derive(Debug, Default)]
struct Run {
    seen: RangeInclusiveSet<u64>,
    dropped: Vec<DroppedRange>,
    /// The last number that was stored, if the gateway told.
    stored: Option<u64>,
    /// Numbers up to this one had been stored when this program came: nobody here can say what became of them.
    before: u64,
    /// From this number on everything was stored while this program was there.
    surely: Option<u64>,
    /// Whether the gateway's last message named it.
    listed: bool,
    /// How many runs of the stream were known when it was first heard of.
    order: usize,
}

impl Stream {
    /// One of its runs. `news`: the gateway has told what there was when this program came, and whether it named all runs.
    fn run(&mut self, run: u64, news: Option<bool>) -> &mut Run {
        let order = self.runs.len();
        let is_new = news.is_some_and(|named_all| named_all || self.known);
        self.runs.entry(run).or_insert_with(|| Run { order, surely: is_new.then_some(1), ..Run::default() })
    }
}

/// As much of a JSON object as is needed.
#[derive(Deserialize)]
struct Glance<'a> {
    #[serde(borrow)]
    r#type: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    id: Option<std::borrow::Cow<'a, str>>,
}

/// What one line of a message on a result topic says.
pub enum Said<'a> {
    /// A result.
    Result(ResultId<'a>),
    /// What a policy dropped.
    Dropped(Dropped),
    /// It is neither.
    Unreadable,
}

/// Reads a line of JSON on a result topic.
pub fn read_line(line: &[u8], take: impl FnOnce(Said<'_>)) {
    let glance = serde_json::from_slice::<Glance<'_>>(line).ok();
    match glance.as_ref().map(|glance| (glance.r#type.as_ref(), glance.id.as_deref().map(ResultId::parse))) {
        Some(("result", Some(Ok(id)))) => take(Said::Result(id)),
        Some(("dropped", _)) => take(serde_json::from_slice(line).map_or(Said::Unreadable, Said::Dropped)),
        _ => take(Said::Unreadable),
    }
}

impl Ledger {
    /// Nothing has come yet. `from_start`: every run begins with number 1.
    pub fn new(from_start: bool) -> Self {
        Self { from_start, ..Self::default() }
    }

    /// What came meanwhile did not come here.
    pub fn interrupted(&mut self) {
        self.interruptions += 1;
    }

    /// How much gateways say is waiting, by gateway; of those that are offline nothing comes for now.
    pub fn waiting(&self) -> BTreeMap<&str, u64> {
        let mut waiting = BTreeMap::new();
        for (name, stream) in self.streams.iter().filter(|(_, stream)| stream.waiting > 0) {
            if self.gateways.get(&name.gateway).is_none_or(|gateway| !gateway.offline) {
                let sum: &mut u64 = waiting.entry(&*name.gateway).or_default();
                *sum = sum.saturating_add(stream.waiting);
            }
        }
        waiting
    }

    /// Takes a message; `kept` if the broker had it from before. Says whether it was one of results.
    pub fn take(&mut self, topic: &str, content_type: &str, payload: &[u8], kept: bool, now: Instant) -> bool {
        if topic.ends_with("/delivery") && !topic.contains("/result/") {
            match serde_json::from_slice::<Delivery>(payload) {
                Ok(delivery) => self.told(delivery, payload.len(), kept, now),
                Err(_) => self.unreadable += 1,
            }
            return false;
        }
        if topic.ends_with("/status") && !topic.contains("/result/") {
            self.status(topic, payload);
            return false;
        }
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
        if !is_postcard(content_type, payload) {
            payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).for_each(|line| self.line(line, now));
            return true;
        }
        let mut rest = payload;
        while !rest.is_empty() {
            match binary::take(&mut rest) {
                Ok(Some(Item::Result(record))) => match record.id() {
                    Some(id) => self.result(id, now),
                    None => self.unreadable += 1,
                },
                Ok(Some(Item::Dropped(dropped))) => self.dropped(dropped, now),
                Ok(None) | Err(_) => {
                    self.unreadable += 1;
                    break;
                }
            }
        }
        true
    }

    fn line(&mut self, line: &[u8], now: Instant) {
        read_line(line, |said| match said {
            Said::Result(id) => self.result(id, now),
            Said::Dropped(dropped) => self.dropped(dropped, now),
            Said::Unreadable => self.unreadable += 1,
        });
    }

    /// Whether a gateway has told what there was when this program came, and if so, whether it named all its runs.
    fn news(&self, gateway: &str, now: Instant) -> Option<bool> {
        self.gateways.get(gateway).filter(|gateway| gateway.is_settled(now)).map(|gateway| gateway.named_all)
    }

    fn of_gateway(&mut self, gateway: &str) -> impl Iterator<Item = &mut Stream> {
        self.streams.iter_mut().filter(move |(name, _)| name.gateway == gateway).map(|(_, stream)| stream)
    }

    fn stream(&mut self, gateway: &str, pipeline: &str, stream: &str) -> &mut Stream {
        let name = Name { gateway: gateway.to_owned(), pipeline: pipeline.to_owned(), stream: stream.to_owned() };
        self.streams.entry(name).or_default()
    }

    fn result(&mut self, id: ResultId<'_>, now: Instant) {
        let news = self.news(id.gateway, now);
        let stream = self.stream(id.gateway, id.pipeline, id.stream);
        let Serial { run, seq } = id.serial;
        let run = stream.run(run, news);
        if run.seen.contains(&seq) {
            stream.repeated += 1;
            return;
        }
        let late = run.seen.last().is_some_and(|last| *last.end() > seq);
        // What waited when the gateway told, it told of: this was stored since, and in the newest run.
        let fresh = run.stored.is_none_or(|stored| seq > stored);
        run.seen.insert(seq..=seq);
        stream.known |= fresh && news.is_some();
        stream.out_of_order += u64::from(late);
        stream.received += 1;
    }

    fn dropped(&mut self, dropped: Dropped, now: Instant) {
        let Dropped { gateway, of: Some(of), run, first, last, every, reason, .. } = dropped else { return };
        let range = DroppedRange { first, last, every, reason };
        if !is_plausible(&range) {
            self.unreadable += 1;
            return;
        }
        let news = self.news(&gateway, now);
        self.stream(&gateway, &of.pipeline, &of.stream).run(run, news).drop_range(range);
    }

    /// A gateway says that it is there, or its broker that it is not.
    fn status(&mut self, topic: &str, payload: &[u8]) {
        // Who takes a gateway away clears what the broker had kept of it: an empty message.
        let Ok(status) = serde_json::from_slice::<Status>(payload) else { return };
        let Some(gateway) = topic.rsplit('/').nth(1) else { return };
        let gateway = self.gateways.entry(gateway.to_owned()).or_default();
        gateway.offline = status.state == Presence::Offline;
        gateway.away |= status.state == Presence::Offline && !gateway.told;
    }

    /// A gateway says what it has stored, in so many bytes. Of streams that it does not name nothing waits.
    fn told(&mut self, delivery: Delivery, bytes: usize, kept: bool, now: Instant) {
        let listing = Listing::of(&delivery, bytes);
        let Delivery { gateway: name, streams, omitted, .. } = delivery;
        let gateway = self.gateways.entry(name.clone()).or_default();
        let moment = gateway.moment(kept, now);
        let (speaks, was_silent) = (!kept, moment == Moment::Later && !gateway.told);
        match moment {
            Moment::Kept => gateway.joined = Some(now),
            // More may have begun between what the broker had kept and the coming of this program.
            Moment::First | Moment::Back => (gateway.complete, gateway.named_all) = (false, false),
            Moment::Later | Moment::Again => {}
        }
        let news = self.news(&name, now);
        for stream in self.of_gateway(&name) {
            if omitted == 0 {
                stream.waiting = 0;
            }
            stream.known &= !matches!(moment, Moment::First | Moment::Back);
            for run in stream.runs.values_mut() {
                run.listed = false;
                // It had nothing to tell for long enough, so what the broker had kept was still so.
                if was_silent && run.before > 0 {
                    run.surely.get_or_insert(run.before.saturating_add(1));
                }
            }
        }
        // What the broker gives again may be old.
        let counts = listing.complete && moment != Moment::Again;
        let mut odd = 0;
        for told in streams {
            let stream = self.stream(&name, &told.pipeline, &told.stream);
            stream.waiting = told.waiting;
            // Of a stream's runs of which nothing was dropped a newer one is forgotten only after an older one.
            let names_newest = counts && told.runs.iter().any(|run| run.dropped.is_empty());
            for run in told.runs {
                let found = stream.run(run.run, news);
                found.hear(moment, run.last);
                let (plausible, not): (Vec<_>, Vec<_>) = run.dropped.into_iter().partition(is_plausible);
                plausible.into_iter().for_each(|range| found.drop_range(range));
                odd += not.len() as u64;
            }
            stream.known |= names_newest;
        }
        self.unreadable += odd;
        if counts && speaks {
            // A run that it lists no more had nothing waiting: what was stored up to what came, should have come.
            let runs = self.of_gateway(&name).flat_map(|stream| stream.runs.values_mut());
            runs.filter(|run| !run.listed).for_each(|run| run.stored = run.stored.max(run.newest()));
        }
        let gateway = self.gateways.entry(name).or_default();
        gateway.told |= speaks;
        gateway.complete |= counts;
        gateway.named_all |= counts && listing.named_all;
    }

    /// What is to be said of it.
    pub fn report(&self) -> Report {
        let streams = self.streams.iter().map(|(name, stream)| stream.row(name, self.from_start)).collect();
        let seconds = self.span.map_or(0.0, |(first, last)| last.duration_since(first).as_secs_f64());
        Report { streams, seconds, unreadable: self.unreadable, interruptions: self.interruptions }
    }
}

impl Stream {
    fn row(&self, name: &Name, from_start: bool) -> Row {
        let mut row = Row {
            name: name.clone(),
            received: self.received,
            repeated: self.repeated,
            out_of_order: self.out_of_order,
            waiting: self.waiting,
            dropped: BTreeMap::new(),
            lost: 0,
            lost_ranges: Vec::new(),
        };
        let mut missing = Vec::new();
        let newest = self.runs.values().filter(|run| !run.seen.is_empty()).map(|run| run.order).max().unwrap_or(0);
        for (run, found) in &self.runs {
            // The same range may come as a record and in the gateway's summary, and it may have grown.
            let mut counted = found.seen.clone();
            let judged = found.judged(from_start);
            for range in &found.dropped {
                for piece in pieces(range).into_iter().filter_map(|piece| clipped(piece, judged)) {
                    let fresh: u64 = counted.gaps(&piece).map(|gap| length(&gap)).sum();
                    *row.dropped.entry(range.reason).or_default() += fresh;
                    counted.insert(piece);
                }
            }
            missing.extend(found.missing(from_start, found.order < newest).into_iter().map(|range| (*run, range)));
        }
        row.dropped.retain(|_, count| *count > 0);
        // Anybody may publish that a run is as long as can be.
        let all = missing.iter().fold(0_u64, |all, (_, range)| all.saturating_add(length(range)));
        // What waits may be any of what is missing.
        row.lost = all.saturating_sub(self.waiting);
        if row.lost > 0 {
            let range = |(run, range): (u64, RangeInclusive<u64>)| LostRange {
                run: format!("{run:016x}"),
                first: *range.start(),
                last: *range.end(),
            };
            row.lost_ranges = missing.into_iter().map(range).collect();
        }
        row
    }
}

/// Whether a gateway can have meant that. Anybody may publish on a topic; each piece of what was thinned out takes memory.
pub fn is_plausible(range: &DroppedRange) -> bool {
    range.first >= 1
        && range.first <= range.last
        // No gateway stores as many, and sums of them are sums.
        && range.last <= u64::MAX >> 16
        && (range.every <= 1 || (range.last - range.first) / range.every < PIECES)
}

/// How many numbers there are in a range.
pub fn length(range: &RangeInclusive<u64>) -> u64 {
    range.end() - range.start() + 1
}

/// What a range has from a number on.
fn clipped(range: RangeInclusive<u64>, first: u64) -> Option<RangeInclusive<u64>> {
    let (start, end) = range.into_inner();
    (first <= end).then(|| start.max(first)..=end)
}

/// Whether a message holds postcard. A gateway that speaks MQTT 3.1.1 cannot say so: an item begins with its type, and the
/// length before an item of several ends with a zero, which JSON does not hold.
fn is_postcard(content_type: &str, payload: &[u8]) -> bool {
    match content_type {
        content_type::POSTCARD => true,
        "" => matches!(payload, [1 | 2, ..] | [_, _, _, 0, ..]),
        _ => false,
    }
}

/// The numbers that were dropped, as ranges: those between the ones that were kept.
pub fn pieces(range: &DroppedRange) -> Vec<RangeInclusive<u64>> {
    if range.every <= 1 {
        return (range.first <= range.last).then_some(range.first..=range.last).into_iter().collect();
    }
    let mut pieces = Vec::new();
    let mut first = range.first;
    while first <= range.last {
        let kept = first.next_multiple_of(range.every);
        if first < kept {
            pieces.push(first..=range.last.min(kept - 1));
        }
        first = kept + 1;
    }
    pieces
}

impl Run {
    fn drop_range(&mut self, range: DroppedRange) {
        if !self.dropped.contains(&range) {
            self.dropped.push(range);
        }
    }

    /// The gateway tells up to which number it has stored.
    fn hear(&mut self, moment: Moment, last: u64) {
        let next = last.saturating_add(1);
        match moment {
            Moment::Kept => self.before = last,
            Moment::First if self.before > 0 => (self.before, self.surely) = (last, Some(next)),
            Moment::First | Moment::Back | Moment::Later => _ = self.surely.get_or_insert(next),
            Moment::Again => {}
        }
        self.stored = self.stored.max(Some(last));
        self.listed = true;
    }

    /// The highest number that came.
    fn newest(&self) -> Option<u64> {
        self.seen.last().map(|range| *range.end())
    }

    /// The first number that must be here.
    fn first(&self, from_start: bool) -> Option<u64> {
        if from_start {
            return Some(1);
        }
        let after = self.before.saturating_add(1);
        let seen = self.seen.iter().find(|range| *range.end() >= after).map(|range| after.max(*range.start()));
        seen.into_iter().chain(self.surely).min()
    }

    /// The first number of which it counts that it was dropped.
    fn judged(&self, from_start: bool) -> u64 {
        match self.first(from_start) {
            Some(first) if from_start || self.surely.is_some() => first,
            // Where the gateway never told, its range records are all that is known.
            _ => self.before.saturating_add(1),
        }
    }

    /// Numbers that should be here and are not, and of which nobody says that they were dropped. `over`: a later run of
    /// the stream has begun, so nothing more comes of this one but what waits.
    fn missing(&self, from_start: bool, over: bool) -> Vec<RangeInclusive<u64>> {
        // What was stored after the gateway told last, it will tell of with its next message, unless the run is over.
        let last = if over { self.stored.max(self.newest()) } else { self.stored.or(self.newest()) };
        let (Some(first), Some(last)) = (self.first(from_start), last) else { return Vec::new() };
        if first > last {
            return Vec::new();
        }
        let mut accounted = self.seen.clone();
        self.dropped.iter().flat_map(pieces).for_each(|piece| accounted.insert(piece));
        accounted.gaps(&(first..=last)).collect()
    }
}

/// What is to be said.
#[derive(Debug, Serialize)]
pub struct Report {
    streams: Vec<Row>,
    /// From the first result to the last.
    seconds: f64,
    /// Messages or parts of them that are no results.
    unreadable: u64,
    /// How often this program missed what came.
    interruptions: u64,
}

/// What is to be said of one stream.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    #[serde(flatten)]
    name: Name,
    received: u64,
    repeated: u64,
    /// Results that came after a later one of their run, as where new ones go before a backlog.
    out_of_order: u64,
    /// What waits at the gateway, as it told last. Some of it may have come before, or be told of by records.
    waiting: u64,
    /// What a policy dropped, by its reason.
    dropped: BTreeMap<Reason, u64>,
    lost: u64,
    lost_ranges: Vec<LostRange>,
}

/// Numbers that have not come. Where some of the stream waits, these may be among them.
#[derive(Debug, PartialEq, Serialize)]
struct LostRange {
    run: String,
    first: u64,
    last: u64,
}

impl Report {
    /// Whether a result came, all that came could be read, and nothing is lost.
    pub fn is_complete(&self) -> bool {
        self.has_results() && self.unreadable == 0 && self.streams.iter().all(|row| row.lost == 0)
    }

    fn has_results(&self) -> bool {
        self.streams.iter().any(|row| row.received > 0)
    }

    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("writing plain values into memory cannot fail")
    }

    /// As a table.
    pub fn text(&self) -> String {
        let titles =
            ["gateway ", "pipeline ", "stream ", "received", "repeated", "out of order", "waiting", "dropped", "lost"];
        let mut lines = vec![titles.map(str::to_owned).to_vec()];
        for row in &self.streams {
            let dropped: u64 = row.dropped.values().sum();
            let names = [&row.name.gateway, &row.name.pipeline, &row.name.stream].map(Clone::clone);
            let counts = [row.received, row.repeated, row.out_of_order, row.waiting, dropped, row.lost].map(thousands);
            lines.push(names.into_iter().chain(counts).collect());
        }
        let mut text = if self.streams.is_empty() { String::new() } else { table(&lines) };
        for row in &self.streams {
            let Name { gateway, pipeline, stream } = &row.name;
            for (reason, count) in &row.dropped {
                let (count, reason) = (thousands(*count), reason.word());
                text.push_str(&format!("{gateway}/{pipeline}/{stream}: {count} dropped ({reason})\n"));
            }
            for LostRange { run, first, last } in row.lost_ranges.iter().take(SHOWN) {
                text.push_str(&format!("{gateway}/{pipeline}/{stream}: lost {run}-{first} to {last}\n"));
            }
            if row.lost_ranges.len() > SHOWN {
                let more = row.lost_ranges.len() - SHOWN;
                text.push_str(&format!("{gateway}/{pipeline}/{stream}: and {more} more ranges\n"));
            }
        }
        if !self.has_results() {
            text.push_str("no result has come\n");
        }
        if self.unreadable > 0 {
            text.push_str(&format!("{} messages or parts of them could not be read\n", thousands(self.unreadable)));
        }
        if self.interruptions > 0 {
            text.push_str(&format!(
                "the broker forgot this subscription {} times; what came meanwhile counts as lost\n",
                self.interruptions
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests;
