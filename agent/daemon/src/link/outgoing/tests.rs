//! What leaves a link, in which order, and what becomes of it when the link ends.

use super::*;
use limpet_wire::result::Verdict;

const PACKING: Packing = Packing { encoding: Encoding::Json, max: 1, delay: Duration::ZERO };
const ROOM: Room = Room { in_flight: 0, places: 8, bytes: BATCH_BYTES, largest: 1 << 20, hurry: false };

fn record(stream: &str, seq: u64) -> Arc<ResultRecord> {
    record_of("p", stream, seq)
}

fn record_of(pipeline: &str, stream: &str, seq: u64) -> Arc<ResultRecord> {
    Arc::new(item::fixture::record(pipeline, stream, seq, Verdict::Anomaly { score: 0.5, threshold: None }))
}

/// An uplink with its outbox.
struct Uplink {
    outgoing: Outgoing,
    outbox: Arc<Outbox>,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Uplink {
    type Target = Outgoing;

    fn deref(&self) -> &Outgoing {
        &self.outgoing
    }
}

impl Uplink {
    fn offer_result(&self, record: Arc<ResultRecord>) {
        self.outbox.offer_result(&record);
    }

    fn waiting(&self) -> u64 {
        self.outbox.waiting()
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.outbox.close(Instant::now() + Duration::from_secs(60));
    }
}

/// One that is not connected, and packs results so. It commits nothing while a test lasts.
fn offline(packing: Packing) -> Uplink {
    let folder = tempfile::tempdir().unwrap();
    let bell = Arc::default();
    let outbox = Outbox::for_test(folder.path(), packing, &bell);
    let outgoing = Outgoing::uplink(Topics::new("limpet/1", "g"), Arc::clone(&outbox), bell);
    Uplink { outgoing, outbox, _folder: folder }
}

fn outgoing() -> Uplink {
    packed(PACKING)
}

fn packed(packing: Packing) -> Uplink {
    let uplink = offline(packing);
    uplink.connected(1 << 20);
    uplink
}

fn send(outgoing: &Outgoing, room: Room) -> Option<Ready> {
    match outgoing.next(Instant::now(), room) {
        Next::Send(ready) => Some(*ready),
        Next::TooLarge { .. } | Next::Again | Next::Wait(_) => None,
    }
}

/// Sequence numbers in a message.
fn numbers(ready: &Ready) -> Vec<u64> {
    let lines = ready.payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| ResultRecord::from_json(line).unwrap().serial.unwrap().seq).collect()
}

#[test]
fn a_result_by_itself_is_one_object_with_its_id() {
    let outgoing = outgoing();
    outgoing.offer_result(record("s", 1));
    let ready = send(&outgoing, ROOM).unwrap();
    assert_eq!(ready.topic, "limpet/1/g/result/p/s");
    assert_eq!(ready.id.as_deref(), Some("g/p/s/0000000000000007-1"));
    assert_eq!(ready.content_type, content_type::JSON);
    assert!(ready.at_least_once && !ready.retain);
    assert!(!outgoing.is_empty(), "what is in flight is not delivered");
    outgoing.settle(&ready.topic, ready.kept.as_ref(), true);
    assert!(outgoing.is_empty());
}

#[test]
fn what_waited_for_the_link_goes_out_in_batches_per_topic() {
    let outgoing = offline(PACKING);
    for seq in 1..=3 {
        outgoing.offer_result(record("s", seq));
        outgoing.offer_result(record("t", seq));
    }
    outgoing.connected(1 << 20);
    let (first, second) = (send(&outgoing, ROOM).unwrap(), send(&outgoing, ROOM).unwrap());
    assert_eq!((numbers(&first), numbers(&second)), (vec![1, 2, 3], vec![1, 2, 3]));
    assert_eq!((first.content_type, first.id), (content_type::NDJSON, None));
}

#[test]
fn results_that_wait_for_a_place_are_a_backlog_until_most_places_are_free() {
    let outgoing = outgoing();
    let take = |in_flight: usize| {
        let ready = send(&outgoing, Room { in_flight, ..ROOM });
        ready.map(|ready| numbers(&ready))
    };
    (1..=2).for_each(|seq| outgoing.offer_result(record("s", seq)));
    assert_eq!((take(3), take(3)), (Some(vec![1]), Some(vec![2])));
    (3..=4).for_each(|seq| outgoing.offer_result(record("s", seq)));
    assert_eq!((take(8), take(7)), (None, Some(vec![3, 4])));
    (5..=6).for_each(|seq| outgoing.offer_result(record("s", seq)));
    assert_eq!((take(2), take(1)), (Some(vec![5, 6]), None));
    (7..=8).for_each(|seq| outgoing.offer_result(record("s", seq)));
    assert_eq!((take(1), take(1)), (Some(vec![7]), Some(vec![8])));
}

#[test]
fn a_batch_ends_where_the_broker_takes_no_more() {
    let outgoing = offline(PACKING);
    (1..=3).for_each(|seq| outgoing.offer_result(record("s", seq)));
    outgoing.connected(1 << 20);
    let one = {
        let mut json = Vec::new();
        record("s", 1).to_json(&mut json);
        json.len() + 1
    };
    let small = Room { bytes: 2 * one + 20, ..ROOM };
    assert_eq!(numbers(&send(&outgoing, small).unwrap()), [1, 2]);
    let one_only = Room { bytes: one, ..ROOM };
    let last = send(&outgoing, one_only).unwrap();
    assert_eq!((numbers(&last), last.id.is_some()), (vec![3], true));
}

#[test]
fn a_result_that_no_message_can_hold_is_given_up_and_named() {
    let outgoing = outgoing();
    outgoing.offer_result(record("s", 1));
    outgoing.offer_result(record("s", 2));
    let tiny = Room { bytes: 10, largest: 300, ..ROOM };
    assert!(matches!(outgoing.next(Instant::now(), tiny), Next::TooLarge { bytes, .. } if bytes > 300));
    assert_eq!((outgoing.outbox.figures().dropped, outgoing.waiting()), (1, 2));
    assert_eq!(numbers(&send(&outgoing, ROOM).unwrap()), [2]);
}

#[test]
fn a_topic_that_waits_does_not_hold_up_another_however_much_of_it_waits() {
    let outgoing = packed(Packing { max: 100_000, delay: Duration::from_secs(60), ..PACKING });
    (1..=2000).for_each(|seq| outgoing.offer_result(record("s", seq)));
    outgoing.offer_result(record_of("q", "t", 1));
    outgoing.outbox.offer_event(b"{}".to_vec());
    assert!(send(&outgoing, ROOM).unwrap().topic.ends_with("/t"));
    assert!(send(&outgoing, ROOM).unwrap().topic.ends_with("/event"));
    let none = send(&outgoing, ROOM);
    assert!(none.is_none(), "{none:?}");
}

#[test]
fn a_message_that_the_client_does_not_take_comes_back() {
    let outgoing = outgoing();
    outgoing.offer_result(record("s", 1));
    outgoing.offer_retained("models".into(), b"{}".to_vec());
    for _ in 0..2 {
        let first = send(&outgoing, ROOM).unwrap();
        assert_eq!(first.topic, "models");
        outgoing.not_taken(first);
    }
    drop(send(&outgoing, ROOM));
    let second = send(&outgoing, ROOM).unwrap();
    outgoing.not_taken(second);
    assert_eq!(numbers(&send(&outgoing, ROOM).unwrap()), [1]);
}

#[test]
fn a_local_output_with_acknowledgement_waits_for_a_place_and_others_pass_it() {
    let outgoing = outgoing();
    for at_least_once in [true, false] {
        let topic = format!("{at_least_once}");
        outgoing.offer_fleeting(Fleeting {
            topic,
            body: Body::Json(Vec::new()),
            at_least_once,
            expiry_s: None,
            correlation: None,
        });
    }
    let full = Room { in_flight: 8, ..ROOM };
    assert_eq!(send(&outgoing, full).unwrap().topic, "false");
    assert!(send(&outgoing, full).is_none());
    assert_eq!(send(&outgoing, ROOM).unwrap().topic, "true");
}

#[test]
fn a_batch_waits_for_its_company_until_it_is_full_due_or_in_a_hurry() {
    let outgoing = packed(Packing { max: 3, delay: Duration::from_secs(60), ..PACKING });
    outgoing.offer_result(record("s", 1));
    assert!(matches!(outgoing.next(Instant::now(), ROOM), Next::Wait(Some(_))));
    let due = Instant::now() + Duration::from_secs(61);
    let Next::Send(ready) = outgoing.next(due, ROOM) else { panic!("it is due") };
    assert_eq!(numbers(&ready), [1]);
    (2..=4).for_each(|seq| outgoing.offer_result(record("s", seq)));
    assert_eq!(numbers(&send(&outgoing, ROOM).unwrap()), [2, 3, 4], "it is full");
    outgoing.offer_result(record("s", 5));
    assert_eq!(numbers(&send(&outgoing, Room { hurry: true, ..ROOM }).unwrap()), [5]);
}

#[test]
fn local_outputs_go_first_even_when_nothing_else_has_a_place() {
    let outgoing = outgoing();
    outgoing.offer_result(record("s", 1));
    outgoing.offer_fleeting(Fleeting {
        topic: "alarm".into(),
        body: Body::Record(record("s", 1), Encoding::Json),
        at_least_once: false,
        expiry_s: Some(1),
        correlation: None,
    });
    let full = Room { in_flight: 8, ..ROOM };
    let ready = send(&outgoing, full).unwrap();
    assert_eq!((ready.topic.as_str(), ready.expiry_s, ready.at_least_once), ("alarm", Some(1), false));
    assert!(send(&outgoing, full).is_none());
}

#[test]
fn a_fleeting_message_without_a_link_is_counted_and_gone() {
    let outgoing = Outgoing::new(Topics::new("limpet/1", "g"));
    let body = Body::Json(Vec::new());
    outgoing.offer_fleeting(Fleeting {
        topic: "t".into(),
        body,
        at_least_once: false,
        expiry_s: None,
        correlation: None,
    });
    assert_eq!(outgoing.lock().unsent, 1);
    outgoing.connected(1 << 20);
    assert!(send(&outgoing, ROOM).is_none());
}

#[test]
fn a_refused_topic_is_left_alone_and_others_go_on() {
    let outgoing = outgoing();
    outgoing.offer_result(record("s", 1));
    let ready = send(&outgoing, ROOM).unwrap();
    assert!(outgoing.refuse(&ready.topic, "NotAuthorized", ready.kept), "news");
    assert!(!outgoing.refuse(&ready.topic, "NotAuthorized", None), "no news");
    outgoing.offer_result(record("t", 1));
    assert!(send(&outgoing, ROOM).unwrap().topic.ends_with("/t"));
    let Next::Wait(Some(again)) = outgoing.next(Instant::now(), ROOM) else { panic!("the topic is parked") };
    let Next::Send(ready) = outgoing.next(again, ROOM) else { panic!("it is tried again") };
    assert!(ready.topic.ends_with("/s"));
}

#[test]
fn the_latest_decision_replaces_the_one_before_and_goes_out_once_a_second() {
    let outgoing = outgoing();
    outgoing.offer_latest(&record("s", 1));
    outgoing.offer_latest(&record("s", 2));
    let ready = send(&outgoing, ROOM).unwrap();
    assert_eq!((ready.topic.as_str(), ready.retain), ("limpet/1/g/latest/p/s", true));
    assert_eq!(numbers(&ready), [2]);
    outgoing.offer_latest(&record("s", 3));
    let Next::Wait(Some(due)) = outgoing.next(Instant::now(), ROOM) else { panic!("not yet") };
    assert!(matches!(outgoing.next(due, ROOM), Next::Send(_)));
}

#[test]
fn a_stored_item_that_cannot_be_read_is_dropped_and_holds_nothing_up() {
    let outgoing = outgoing();
    // No postcard and no JSON: it is of another version, or of nobody.
    outgoing.outbox.offer_event(vec![0x77; 20]);
    assert!(matches!(outgoing.next(Instant::now(), ROOM), Next::Again));
    let figures = outgoing.outbox.figures();
    assert_eq!((figures.dropped, figures.delivered, outgoing.waiting()), (1, 0, 0));
    outgoing.offer_result(record("s", 1));
    assert_eq!(numbers(&send(&outgoing, ROOM).unwrap()), [1]);
}

#[test]
fn a_result_that_is_longer_than_a_batch_goes_where_the_broker_takes_it() {
    let outgoing = outgoing();
    let verdict = Verdict::Regression { values: vec![0.123_456_79; 20_000] };
    let long = crate::outbox::item::fixture::record("p", "s", 1, verdict);
    outgoing.offer_result(Arc::new(long.clone()));
    let shipped = Room { largest: 131_072, ..ROOM };
    assert!(matches!(outgoing.next(Instant::now(), shipped), Next::TooLarge { bytes, .. } if bytes > 131_072));
    assert_eq!(outgoing.outbox.figures().dropped, 1);
    outgoing.offer_result(Arc::new(long));
    let range = send(&outgoing, ROOM).unwrap();
    assert!(range.payload.len() < 1000, "the record of what was given up goes first");
    assert!(send(&outgoing, ROOM).unwrap().payload.len() > BATCH_BYTES);
}

#[test]
fn what_the_broker_would_keep_and_cannot_take_is_told_of_once_and_ends_no_connection() {
    let outgoing = outgoing();
    outgoing.offer_latest(&record("s", 1));
    outgoing.offer_retained("limpet/1/g/models".into(), vec![b' '; 5000]);
    let small = Room { largest: 300, ..ROOM };
    let mut told = Vec::new();
    let mut now = Instant::now();
    loop {
        match outgoing.next(now, small) {
            Next::TooLarge { topic, .. } => told.push(topic),
            Next::Again => {}
            Next::Send(ready) => panic!("{} bytes on {}", ready.payload.len(), ready.topic),
            Next::Wait(_) => break,
        }
    }
    assert_eq!(told.len(), 2, "{told:?}");
    outgoing.offer_latest(&record("s", 2));
    now += LATEST_EVERY;
    assert!(matches!(outgoing.next(now, small), Next::Again));
    assert!(matches!(outgoing.next(now, small), Next::Wait(_)));
    outgoing.connected(1 << 20);
    let hurry = Room { hurry: true, ..ROOM };
    let topics: Vec<String> = std::iter::from_fn(|| send(&outgoing, hurry)).map(|ready| ready.topic).collect();
    assert!(told.iter().all(|topic| topics.contains(topic)), "another broker takes them: {topics:?}");
}

#[test]
fn what_is_stored_and_dropped_is_told_in_as_much_as_the_broker_takes() {
    let outgoing = outgoing();
    (0..200).for_each(|stream| outgoing.offer_result(record(&format!("stream-{stream}"), 1)));
    outgoing.offer_delivery();
    let delivery = |largest| {
        outgoing.connected(largest);
        let room = Room { largest, ..ROOM };
        let all = std::iter::from_fn(|| send(&outgoing, room));
        all.filter(|ready| ready.topic.ends_with("/delivery")).map(|ready| ready.payload.len()).last()
    };
    let whole = delivery(1 << 20).unwrap();
    assert!(whole > 10_000, "{whole}");
    assert!((2000..=4096).contains(&delivery(4096 + OVERHEAD).unwrap()));
    assert_eq!(delivery(1 << 20), Some(whole));
}
