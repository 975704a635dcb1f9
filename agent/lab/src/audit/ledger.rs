//! What arrived, held against what was stored.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use limpet_wire::binary::{self, Item};
use limpet_wire::content_type;
use limpet_wire::dropped::{Dropped, Reason};
use limpet_wire::id::{ResultId, Serial};
use limpet_wire::message::{Delivery, DroppedRange};
use rangemap::RangeInclusiveSet;
use serde::{Deserialize, Serialize};

use crate::bench::text::{table, thousands};

/// A gateway whose link is up tells what is new within this time.
const TELLS_WITHIN: Duration = Duration::from_secs(12);
/// Pieces that a range may have at most: what a gateway drops in one go are some thousand results.
const PIECES: u64 = 1 << 20;
/// Lost ranges that are shown of a stream; all of them are counted.
const SHOWN: usize = 20;

/// All that came.
#[derive(Debug, Default)]
pub struct Ledger {
    from_start: bool,
    streams: BTreeMap<Name, Stream>,
    /// When the broker gave what it had kept of a gateway.
    joined: BTreeMap<String, Instant>,
    unreadable: u64,
    interruptions: u64,
    /// When the first result came, and the last.
    span: Option<(Instant, Instant)>,
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
    /// How often the gateway told of it.
    told: u64,
    /// How many runs of the stream were known when it was first heard of.
    order: usize,
}

impl Stream {
    fn run(&mut self, run: u64) -> &mut Run {
        let order = self.runs.len();
        self.runs.entry(run).or_insert_with(|| Run { order, ..Run::default() })
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

    /// How much gateways say is waiting.
    pub fn waiting(&self) -> u64 {
        self.streams.values().map(|stream| stream.waiting).sum()
    }

    /// Takes a message; `kept` if the broker had it from before. Says whether it was one of results.
    pub fn take(&mut self, topic: &str, content_type: &str, payload: &[u8], kept: bool) -> bool {
        if topic.ends_with("/delivery") && !topic.contains("/result/") {
            match serde_json::from_slice::<Delivery>(payload) {
                Ok(delivery) => self.told(delivery, kept),
                Err(_) => self.unreadable += 1,
            }
            return false;
        }
        let now = Instant::now();
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
        match content_type {
            content_type::POSTCARD => {
                let mut rest = payload;
                while !rest.is_empty() {
                    match binary::take(&mut rest) {
                        Ok(Some(Item::Result(record))) => match record.id() {
                            Some(id) => self.result(id),
                            None => self.unreadable += 1,
                        },
                        Ok(Some(Item::Dropped(dropped))) => self.dropped(dropped),
                        Ok(None) | Err(_) => {
                            self.unreadable += 1;
                            break;
                        }
                    }
                }
            }
            _ => payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).for_each(|line| self.line(line)),
        }
        true
    }

    fn line(&mut self, line: &[u8]) {
        read_line(line, |said| match said {
            Said::Result(id) => self.result(id),
            Said::Dropped(dropped) => self.dropped(dropped),
            Said::Unreadable => self.unreadable += 1,
        });
    }

    fn stream(&mut self, gateway: &str, pipeline: &str, stream: &str) -> &mut Stream {
        let name = Name { gateway: gateway.to_owned(), pipeline: pipeline.to_owned(), stream: stream.to_owned() };
        self.streams.entry(name).or_default()
    }

    fn result(&mut self, id: ResultId<'_>) {
        let stream = self.stream(id.gateway, id.pipeline, id.stream);
        let Serial { run, seq } = id.serial;
        let run = stream.run(run);
        if run.seen.contains(&seq) {
            stream.repeated += 1;
        } else {
            let late = run.seen.last().is_some_and(|last| *last.end() > seq);
            run.seen.insert(seq..=seq);
            stream.out_of_order += u64::from(late);
            stream.received += 1;
        }
    }

    fn dropped(&mut self, dropped: Dropped) {
        let Dropped { gateway, of: Some(of), run, first, last, every, reason, .. } = dropped else { return };
        let range = DroppedRange { first, last, every, reason };
        if !is_plausible(&range) {
            self.unreadable += 1;
            return;
        }
        self.stream(&gateway, &of.pipeline, &of.stream).run(run).drop_range(range);
    }

    /// A gateway says what it has stored. Of streams that it does not name nothing waits.
    fn told(&mut self, delivery: Delivery, kept: bool) {
        let now = Instant::now();
        if kept {
            self.joined.entry(delivery.gateway.clone()).or_insert(now);
        }
        // What the broker kept is some seconds old: the next one says better what had been stored when this program came.
        let joining = self.joined.get(&delivery.gateway).is_some_and(|at| now.duration_since(*at) < TELLS_WITHIN);
        let of_gateway = self.streams.iter_mut().filter(|(name, _)| name.gateway == delivery.gateway);
        if delivery.omitted == 0 {
            of_gateway.for_each(|(_, stream)| stream.waiting = 0);
        }
        let mut odd = 0;
        for told in delivery.streams {
            let stream = self.stream(&delivery.gateway, &told.pipeline, &told.stream);
            stream.waiting = told.waiting;
            for run in told.runs {
                let found = stream.run(run.run);
                // Only so often: a broker that lost this subscription gives what it kept again.
                if joining && (kept && found.told == 0 || found.told == 1 && found.before > 0) {
                    found.before = run.last;
                }
                found.told += 1;
                found.stored = Some(run.last.max(found.stored.unwrap_or(0)));
                let (plausible, not): (Vec<_>, Vec<_>) = run.dropped.into_iter().partition(is_plausible);
                plausible.into_iter().for_each(|range| found.drop_range(range));
                odd += not.len() as u64;
            }
        }
        self.unreadable += odd;
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
            waiting: 0,
            dropped: BTreeMap::new(),
            lost: 0,
            lost_ranges: Vec::new(),
        };
        let mut missing = Vec::new();
        let newest = self.runs.values().filter(|run| !run.seen.is_empty()).map(|run| run.order).max().unwrap_or(0);
        for (run, found) in &self.runs {
            // The same range may come as a record and in the gateway's summary, and it may have grown.
            let mut counted = found.seen.clone();
            for range in &found.dropped {
                for piece in pieces(range) {
                    let fresh: u64 = counted.gaps(&piece).map(|gap| length(&gap)).sum();
                    *row.dropped.entry(range.reason).or_default() += fresh;
                    counted.insert(piece);
                }
            }
            missing.extend(found.missing(from_start, found.order < newest).into_iter().map(|range| (*run, range)));
        }
        row.dropped.retain(|_, count| *count > 0);
        let all: u64 = missing.iter().map(|(_, range)| length(range)).sum();
        // What waits may be any of what is missing.
        row.waiting = self.waiting.min(all);
        row.lost = all - row.waiting;
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
        && (range.every <= 1 || (range.last - range.first) / range.every < PIECES)
}

/// How many numbers there are in a range.
pub fn length(range: &RangeInclusive<u64>) -> u64 {
    range.end() - range.start() + 1
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

    /// Numbers that should be here and are not, and of which nobody says that they were dropped. `over`: a later run of
    /// the stream has begun, so nothing more comes of this one but what waits.
    fn missing(&self, from_start: bool, over: bool) -> Vec<RangeInclusive<u64>> {
        let seen = (self.seen.first().map(|range| *range.start()), self.seen.last().map(|range| *range.end()));
        let first = if from_start { Some(1) } else { seen.0.map(|first| first.max(self.before + 1)) };
        // What was stored after the gateway told last, it will tell of with its next message, unless the run is over.
        let last = if over { self.stored.max(seen.1) } else { self.stored.or(seen.1) };
        let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
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
    /// What has not come and waits at the gateway.
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
    /// Whether something came, all of it could be read, and nothing is lost.
    pub fn is_complete(&self) -> bool {
        !self.streams.is_empty() && self.unreadable == 0 && self.streams.iter().all(|row| row.lost == 0)
    }

    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("writing plain values into memory cannot fail")
    }

    /// As a table.
    pub fn text(&self) -> String {
        if self.streams.is_empty() {
            return "no result has come\n".to_owned();
        }
        let titles =
            ["gateway ", "pipeline ", "stream ", "received", "repeated", "out of order", "waiting", "dropped", "lost"];
        let mut lines = vec![titles.map(str::to_owned).to_vec()];
        for row in &self.streams {
            let dropped: u64 = row.dropped.values().sum();
            let names = [&row.name.gateway, &row.name.pipeline, &row.name.stream].map(Clone::clone);
            let counts = [row.received, row.repeated, row.out_of_order, row.waiting, dropped, row.lost].map(thousands);
            lines.push(names.into_iter().chain(counts).collect());
        }
        let mut text = table(&lines);
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
mod tests {
    use limpet_wire::dropped::Origin;
    use limpet_wire::message::{Message as _, RunDelivery, StreamDelivery};

    use super::*;

    fn results(ledger: &mut Ledger, numbers: impl IntoIterator<Item = u64>) {
        for seq in numbers {
            let line = format!(r#"{{"v":1,"type":"result","id":"g/p/s/0000000000000007-{seq}","gateway":"g"}}"#);
            assert!(ledger.take("limpet/1/g/result/p/s", content_type::JSON, line.as_bytes(), false));
        }
    }

    fn dropped(first: u64, last: u64, every: u64) -> Dropped {
        let of = Some(Origin { pipeline: "p".into(), stream: "s".into() });
        Dropped { id: "g/event/1".into(), gateway: "g".into(), of, run: 7, first, last, every, reason: Reason::Full }
    }

    fn delivery(waiting: u64, last: u64, dropped: Vec<DroppedRange>) -> Vec<u8> {
        let runs = vec![RunDelivery { run: 7, last, dropped }];
        let streams = vec![StreamDelivery { pipeline: "p".into(), stream: "s".into(), waiting, runs }];
        Delivery { gateway: "g".into(), at: None, streams, omitted: 0 }.to_json()
    }

    fn row(ledger: &Ledger) -> (u64, u64, u64, u64, u64) {
        let row = ledger.report().streams.remove(0);
        (row.received, row.repeated, row.waiting, row.dropped.values().sum(), row.lost)
    }

    #[test]
    fn a_gap_is_lost_and_what_comes_twice_is_a_repeat() {
        let mut ledger = Ledger::new(false);
        results(&mut ledger, [5, 6, 8, 8, 9]);
        assert_eq!(row(&ledger), (4, 1, 0, 0, 1));
        let report = ledger.report();
        assert!(!report.is_complete());
        assert_eq!(report.streams[0].lost_ranges, [LostRange { run: "0000000000000007".into(), first: 7, last: 7 }]);
        assert!(report.text().contains("g/p/s: lost 0000000000000007-7 to 7"), "{}", report.text());
        results(&mut ledger, [7]);
        assert!(ledger.report().is_complete());
        assert_eq!(ledger.report().streams[0].out_of_order, 1);
        assert_eq!(row(&Ledger { from_start: true, ..ledger }), (5, 1, 0, 0, 4), "a run starts with number 1");
    }

    #[test]
    fn what_a_range_record_tells_of_is_dropped_and_not_lost() {
        let mut ledger = Ledger::new(true);
        results(&mut ledger, [1, 2, 10, 20]);
        for range in [dropped(3, 9, 1), dropped(11, 19, 10), dropped(5, 9, 1)] {
            ledger.take("limpet/1/g/result/p/s", content_type::JSON, &range.to_json(), false);
        }
        assert_eq!(row(&ledger), (4, 0, 0, 16, 0));
        let mut postcard = Vec::new();
        binary::write_dropped(&dropped(21, 25, 1), &mut postcard);
        ledger.take("limpet/1/g/result/p/s", content_type::POSTCARD, &postcard, false);
        assert_eq!(row(&ledger), (4, 0, 0, 21, 0));
    }

    #[test]
    fn what_waits_at_the_gateway_is_not_lost_and_what_does_not_is() {
        let mut ledger = Ledger::new(true);
        results(&mut ledger, [1, 2, 3, 9]);
        ledger.take("limpet/1/g/delivery", content_type::JSON, &delivery(6, 10, Vec::new()), false);
        assert_eq!((row(&ledger), ledger.waiting()), ((4, 0, 6, 0, 0), 6));
        // The gateway says that nothing waits, up to number 10.
        ledger.take("limpet/1/g/delivery", content_type::JSON, &delivery(0, 10, Vec::new()), false);
        assert_eq!(row(&ledger), (4, 0, 0, 0, 6));
        // What comes after it told is not judged yet.
        results(&mut ledger, [4, 5, 6, 7, 8, 10, 15]);
        assert_eq!(row(&ledger), (11, 0, 0, 0, 0));
        let range = DroppedRange { first: 11, last: 14, every: 1, reason: Reason::Age };
        ledger.take("limpet/1/g/delivery", content_type::JSON, &delivery(0, 15, vec![range]), false);
        assert_eq!(row(&ledger), (11, 0, 0, 4, 0));
    }

    #[test]
    fn a_run_that_is_over_is_judged_to_its_last_number() {
        let mut ledger = Ledger::new(true);
        results(&mut ledger, [1, 2, 5]);
        ledger.take("limpet/1/g/delivery", content_type::JSON, &delivery(0, 2, Vec::new()), false);
        assert!(ledger.report().is_complete(), "the gateway has not told of 3 and 4 yet");
        let line = br#"{"type":"result","id":"g/p/s/0000000000000008-1"}"#;
        ledger.take("limpet/1/g/result/p/s", content_type::JSON, line, false);
        assert_eq!(row(&ledger), (4, 0, 0, 0, 2), "another run has begun");
    }

    #[test]
    fn of_what_was_stored_before_it_came_nothing_is_judged() {
        let mut ledger = Ledger::new(false);
        ledger.take("limpet/1/g/delivery", content_type::JSON, &delivery(50, 100, Vec::new()), true);
        // New ones go before the backlog, and 101 and 102 went before this program came.
        results(&mut ledger, [103, 20, 21]);
        ledger.take("limpet/1/g/delivery", content_type::JSON, &delivery(20, 103, Vec::new()), false);
        results(&mut ledger, [104, 105]);
        ledger.take("limpet/1/g/delivery", content_type::JSON, &delivery(0, 106, Vec::new()), false);
        assert_eq!(row(&ledger), (5, 0, 0, 0, 1), "106 alone is missing");
    }

    #[test]
    fn a_range_that_nobody_can_mean_is_unreadable_and_takes_no_memory() {
        let mut ledger = Ledger::new(true);
        results(&mut ledger, [1]);
        for (first, last, every) in [(1, u64::MAX, 2), (5, 4, 1), (0, 7, 1)] {
            ledger.take("t/result/p/s", content_type::JSON, &dropped(first, last, every).to_json(), false);
        }
        let report = ledger.report();
        assert_eq!((report.unreadable, report.is_complete()), (3, false));
    }

    #[test]
    fn nothing_at_all_is_no_proof() {
        assert!(!Ledger::new(false).report().is_complete());
    }

    #[test]
    fn batches_are_taken_apart_and_what_is_no_result_is_counted() {
        let mut ledger = Ledger::new(false);
        let lines = "{\"type\":\"result\",\"id\":\"g/p/s/0000000000000007-1\"}\n{\"type\":\"news\"}\nnoise\n";
        ledger.take("limpet/1/g/result/p/s", content_type::NDJSON, lines.as_bytes(), false);
        assert_eq!((row(&ledger), ledger.unreadable), ((1, 0, 0, 0, 0), 2));
    }
}
