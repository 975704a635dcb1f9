//! What is received, repeated, dropped and lost, message by message.

use limpet_wire::dropped::Origin;
use limpet_wire::message::{Message as _, RunDelivery, StreamDelivery};

use super::*;

const RESULTS: &str = "limpet/1/g/result/p/s";

fn line(run: u64, seq: u64) -> String {
    format!(r#"{{"v":1,"type":"result","id":"g/p/s/{run:016x}-{seq}","gateway":"g"}}"#)
}

fn results(ledger: &mut Ledger, numbers: impl IntoIterator<Item = u64>) {
    for seq in numbers {
        assert!(ledger.take(RESULTS, content_type::JSON, line(7, seq).as_bytes(), false, Instant::now()));
    }
}

fn dropped(first: u64, last: u64, every: u64) -> Dropped {
    let of = Some(Origin { pipeline: "p".into(), stream: "s".into() });
    Dropped { id: "g/event/1".into(), gateway: "g".into(), of, run: 7, first, last, every, reason: Reason::Full }
}

fn full(first: u64, last: u64) -> DroppedRange {
    DroppedRange { first, last, every: 1, reason: Reason::Full }
}

fn stream(stream: &str, waiting: u64, runs: &[(u64, u64, &[DroppedRange])]) -> StreamDelivery {
    let run = |(run, last, dropped): &(u64, u64, &[DroppedRange])| RunDelivery {
        run: *run,
        last: *last,
        dropped: dropped.to_vec(),
    };
    let runs = runs.iter().map(run).collect();
    StreamDelivery { pipeline: "p".into(), stream: stream.into(), waiting, runs }
}

fn tell(ledger: &mut Ledger, streams: Vec<StreamDelivery>, omitted: u64, kept: bool, now: Instant) {
    let message = Delivery { gateway: "g".into(), at: None, streams, omitted }.to_json();
    assert!(!ledger.take("limpet/1/g/delivery", content_type::JSON, &message, kept, now));
}

fn delivery(ledger: &mut Ledger, waiting: u64, last: u64, dropped: &[DroppedRange], kept: bool) {
    tell(ledger, vec![stream("s", waiting, &[(7, last, dropped)])], 0, kept, Instant::now());
}

/// An audit that came to gateway `g` in the middle of things, by a clock that is set by hand.
struct Joined {
    ledger: Ledger,
    now: Instant,
}

impl Joined {
    /// The broker had kept this of the gateway.
    fn to(kept: Vec<StreamDelivery>) -> Self {
        let mut joined = Self { ledger: Ledger::new(false), now: Instant::now() };
        tell(&mut joined.ledger, kept, 0, true, joined.now);
        joined
    }

    /// So much later that the gateway would have told if there were anything.
    fn passes(&mut self) -> &mut Self {
        self.now += TELLS_WITHIN;
        self
    }

    fn goes(&mut self) -> &mut Self {
        let status = Status { state: Presence::Offline, session: "a".into(), connected_at: None }.to_json();
        assert!(!self.ledger.take("limpet/1/g/status", content_type::JSON, &status, false, self.now));
        self
    }

    fn tells(&mut self, streams: Vec<StreamDelivery>) -> &mut Self {
        tell(&mut self.ledger, streams, 0, false, self.now);
        self
    }

    fn gets(&mut self, run: u64, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
        for seq in numbers {
            self.ledger.take(RESULTS, content_type::JSON, line(run, seq).as_bytes(), false, self.now);
        }
        self
    }

    /// What is lost of stream `s`, and how many numbers that is.
    #[track_caller]
    fn lost(&self) -> Vec<(u64, u64, u64)> {
        let rows = self.ledger.report().streams;
        let row = rows.into_iter().find(|row| row.name.stream == "s").expect("the stream is known");
        let range = |range: LostRange| (u64::from_str_radix(&range.run, 16).unwrap(), range.first, range.last);
        let lost: Vec<_> = row.lost_ranges.into_iter().map(range).collect();
        assert_eq!(lost.iter().map(|(_, first, last)| last - first + 1).sum::<u64>(), row.lost);
        lost
    }
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
        ledger.take(RESULTS, content_type::JSON, &range.to_json(), false, Instant::now());
    }
    assert_eq!(row(&ledger), (4, 0, 0, 16, 0));
    let mut postcard = Vec::new();
    binary::write_dropped(&dropped(21, 25, 1), &mut postcard);
    ledger.take(RESULTS, content_type::POSTCARD, &postcard, false, Instant::now());
    assert_eq!(row(&ledger), (4, 0, 0, 21, 0));
}

#[test]
fn what_waits_at_the_gateway_is_not_lost_and_what_does_not_is() {
    let mut ledger = Ledger::new(true);
    results(&mut ledger, [1, 2, 3, 9]);
    delivery(&mut ledger, 6, 10, &[], false);
    assert_eq!((row(&ledger), ledger.waiting()), ((4, 0, 6, 0, 0), BTreeMap::from([("g", 6)])));
    // The gateway says that nothing waits, up to number 10.
    delivery(&mut ledger, 0, 10, &[], false);
    assert_eq!(row(&ledger), (4, 0, 0, 0, 6));
    // What comes after it told is not judged yet.
    results(&mut ledger, [4, 5, 6, 7, 8, 10, 15]);
    assert_eq!(row(&ledger), (11, 0, 0, 0, 0));
    delivery(&mut ledger, 0, 15, &[full(11, 14)], false);
    assert_eq!(row(&ledger), (11, 0, 0, 4, 0));
}

#[test]
fn a_run_that_is_over_is_judged_to_its_last_number() {
    let mut ledger = Ledger::new(true);
    results(&mut ledger, [1, 2, 5]);
    delivery(&mut ledger, 0, 2, &[], false);
    assert!(ledger.report().is_complete(), "the gateway has not told of 3 and 4 yet");
    ledger.take(RESULTS, content_type::JSON, line(8, 1).as_bytes(), false, Instant::now());
    assert_eq!(row(&ledger), (4, 0, 0, 0, 2), "another run has begun");
}

#[test]
fn of_what_was_stored_before_it_came_nothing_is_judged() {
    let mut ledger = Ledger::new(false);
    delivery(&mut ledger, 50, 100, &[], true);
    // New ones go before the backlog, and 101 and 102 went before this program came.
    results(&mut ledger, [103, 20, 21]);
    delivery(&mut ledger, 20, 103, &[], false);
    results(&mut ledger, [104, 105]);
    delivery(&mut ledger, 0, 106, &[], false);
    assert_eq!(row(&ledger), (5, 0, 0, 0, 1), "106 alone is missing");
}

#[test]
fn all_that_was_stored_while_it_was_there_and_never_came_is_lost() {
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 100, &[])])]);
    joined.tells(vec![stream("s", 0, &[(7, 110, &[])])]);
    assert!(joined.lost().is_empty(), "101 to 110 may have gone before");
    // An outage: all of it waits, then none of it does, and nothing has come.
    joined.passes().tells(vec![stream("s", 40, &[(7, 150, &[])])]);
    assert!(joined.lost().is_empty());
    joined.passes().tells(vec![stream("s", 0, &[(7, 150, &[])])]);
    assert_eq!(joined.lost(), [(7, 111, 150)]);
    assert!(!joined.ledger.report().is_complete());
    joined.gets(7, 111..=149);
    assert_eq!(joined.lost(), [(7, 150, 150)]);
}

#[test]
fn where_the_gateway_had_nothing_new_to_tell_what_the_broker_had_kept_is_where_it_begins() {
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 100, &[])])]);
    joined.passes().gets(7, [104]).tells(vec![stream("s", 0, &[(7, 104, &[])])]);
    assert_eq!(joined.lost(), [(7, 101, 103)]);
}

#[test]
fn of_a_gateway_that_is_away_what_the_broker_had_kept_may_be_older_than_what_went_last() {
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 100, &[])])]);
    // 101 to 103 went before the link was lost, and so did 1 and 2 of the next run.
    joined.goes().passes().tells(vec![stream("s", 4, &[(7, 106, &[]), (8, 3, &[])])]);
    joined.gets(7, [104, 106]).gets(8, [3]).tells(vec![stream("s", 0, &[(7, 106, &[]), (8, 3, &[])])]);
    assert_eq!(joined.lost(), [(7, 105, 105)]);
    // From now on it is there.
    joined.goes().passes().gets(9, [2]).tells(vec![stream("s", 0, &[(8, 3, &[]), (9, 2, &[])])]);
    assert_eq!(joined.lost(), [(7, 105, 105), (9, 1, 1)]);
}

#[test]
fn a_run_that_begins_while_it_is_there_begins_with_1() {
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 100, &[])])]);
    joined.tells(vec![stream("s", 0, &[(7, 101, &[])])]);
    // The first that comes of it is 3, and of the next one nothing comes at all.
    joined.gets(8, [3]);
    assert_eq!(joined.lost(), [(8, 1, 2)]);
    joined.tells(vec![stream("s", 0, &[(7, 101, &[]), (8, 3, &[]), (9, 20, &[full(5, 20)])])]);
    assert_eq!(joined.lost(), [(8, 1, 2), (9, 1, 4)]);
    assert_eq!(joined.ledger.report().streams[0].dropped, BTreeMap::from([(Reason::Full, 16)]));
}

#[test]
fn a_run_that_may_have_begun_just_before_it_came_begins_with_what_was_seen_first() {
    // What the broker had kept is from before the gateway's process, whose first results went before.
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 100, &[])])]);
    joined.gets(8, [3, 5]);
    assert_eq!(joined.lost(), [(8, 4, 4)]);
    // Of another one nothing came: it may all have gone before, until the gateway told of it.
    joined.tells(vec![stream("s", 0, &[(7, 100, &[]), (8, 5, &[]), (9, 50, &[full(10, 20)])])]);
    assert_eq!(joined.lost(), [(8, 4, 4)]);
    assert!(joined.ledger.report().streams[0].dropped.is_empty());
    joined.passes().tells(vec![stream("s", 0, &[(8, 5, &[]), (9, 52, &[])])]);
    assert_eq!(joined.lost(), [(8, 4, 4), (9, 51, 52)]);
}

#[test]
fn a_run_that_is_not_named_is_new_only_where_it_would_have_been_named() {
    let streams = |count: usize| (0..count).map(|n| stream(&format!("other-{n}"), 0, &[(n as u64, 5, &[])])).collect();
    let begins_with_1 = |count: usize, omitted: u64| {
        let mut joined = Joined { ledger: Ledger::new(false), now: Instant::now() };
        tell(&mut joined.ledger, streams(count), omitted, true, joined.now);
        joined.passes().gets(7, [50]);
        joined.lost() == [(7, 1, 49)]
    };
    assert!(begins_with_1(0, 0));
    assert!(begins_with_1(6, 0));
    assert!(!begins_with_1(7, 0), "with one of the gateway's events that may have been all that it lists");
    assert!(!begins_with_1(2, 1), "some found no room");
}

#[test]
fn the_next_run_of_a_stream_is_new_though_the_gateway_lists_only_the_last_few() {
    let many: Vec<_> = (0..8).map(|n| stream(&format!("other-{n}"), 0, &[(n, 5, &[])])).collect();
    let mut joined = Joined::to(many.clone());
    // Run 7 was there before, and is this stream's newest one.
    joined.tells(many.clone()).gets(7, [50, 51]);
    assert!(joined.lost().is_empty());
    joined.gets(8, [2]);
    assert_eq!(joined.lost(), [(8, 1, 1)]);
}

#[test]
fn a_run_that_the_gateway_stops_listing_is_judged_to_the_last_that_came() {
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 100, &[])])]);
    joined.passes().tells(vec![stream("s", 0, &[(7, 102, &[])])]).gets(7, [101, 102, 104]);
    assert!(joined.lost().is_empty(), "103 may wait");
    let many: Vec<_> = (0..8).map(|n| stream(&format!("other-{n}"), 0, &[(n, 5, &[])])).collect();
    joined.tells(many);
    assert_eq!(joined.lost(), [(7, 103, 103)]);
}

#[test]
fn a_run_that_goes_unlisted_while_it_joins_begins_with_what_came_first() {
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 100, &[])])]);
    let many: Vec<_> = (0..8).map(|n| stream(&format!("other-{n}"), 0, &[(n, 5, &[])])).collect();
    joined.tells(many).gets(7, [104]).passes().tells(vec![stream("s", 0, &[(7, 105, &[])])]);
    assert_eq!(joined.lost(), [(7, 105, 105)], "101 to 103 may have gone before");
}

#[test]
fn what_was_dropped_before_it_came_is_not_counted() {
    let range = [full(1, 60)];
    let mut joined = Joined::to(vec![stream("s", 0, &[(7, 50, &range)])]);
    joined.passes().gets(7, 61..=70).tells(vec![stream("s", 0, &[(7, 70, &range)])]);
    assert_eq!(row(&joined.ledger), (10, 0, 0, 10, 0));
    let from_start = Ledger { from_start: true, ..joined.ledger };
    assert_eq!(row(&from_start), (10, 0, 0, 60, 0));
}

#[test]
fn of_what_a_broker_gives_again_nothing_is_concluded() {
    let kept = vec![stream("s", 0, &[(7, 100, &[])])];
    let mut joined = Joined::to(kept.clone());
    tell(&mut joined.ledger, kept, 0, true, joined.now);
    joined.gets(8, [3]).tells(vec![stream("s", 0, &[(7, 104, &[]), (8, 3, &[])])]);
    assert!(joined.lost().is_empty());
}

#[test]
fn a_run_as_long_as_can_be_is_lost_and_counted() {
    let mut joined = Joined::to(Vec::new());
    joined.passes().tells(vec![stream("s", 0, &[(7, u64::MAX, &[]), (8, u64::MAX, &[])])]);
    assert_eq!(joined.ledger.report().streams[0].lost, u64::MAX);
}

#[test]
fn a_range_that_nobody_can_mean_is_unreadable_and_takes_no_memory() {
    let mut ledger = Ledger::new(true);
    results(&mut ledger, [1]);
    for (first, last, every) in [(1, u64::MAX, 2), (5, 4, 1), (0, 7, 1)] {
        ledger.take(RESULTS, content_type::JSON, &dropped(first, last, every).to_json(), false, Instant::now());
    }
    let report = ledger.report();
    assert_eq!((report.unreadable, report.is_complete()), (3, false));
}

#[test]
fn without_a_result_nothing_is_proved() {
    let mut ledger = Ledger::new(false);
    assert!(!ledger.report().is_complete());
    delivery(&mut ledger, 0, 5, &[], true);
    let report = ledger.report();
    assert!(!report.is_complete(), "a gateway alone is no result");
    assert!(report.text().ends_with("no result has come\n"), "{}", report.text());
}

#[test]
fn what_does_not_say_what_it_is_is_told_by_how_it_begins() {
    let range = dropped(1, 5, 1);
    let mut item = Vec::new();
    binary::write_dropped(&range, &mut item);
    // An item of 123 bytes, whose length begins as JSON does.
    let long = Dropped { id: "i".repeat(123 - item.len() + range.id.len()), ..range.clone() };
    let mut long_item = Vec::new();
    binary::write_dropped(&long, &mut long_item);
    let mut batch = Vec::new();
    binary::push_framed(&long_item, &mut batch);
    assert_eq!(batch[0], b'{');
    for message in [item, batch, range.to_json(), [range.to_json(), range.to_json()].join(&b'\n')] {
        let mut ledger = Ledger::new(true);
        ledger.take(RESULTS, "", &message, false, Instant::now());
        assert_eq!((row(&ledger), ledger.unreadable), ((0, 0, 0, 5, 0), 0));
    }
}

#[test]
fn batches_are_taken_apart_and_what_is_no_result_is_counted() {
    let mut ledger = Ledger::new(false);
    let lines = "{\"type\":\"result\",\"id\":\"g/p/s/0000000000000007-1\"}\n{\"type\":\"news\"}\nnoise\n";
    ledger.take(RESULTS, content_type::NDJSON, lines.as_bytes(), false, Instant::now());
    assert_eq!((row(&ledger), ledger.unreadable), ((1, 0, 0, 0, 0), 2));
}
