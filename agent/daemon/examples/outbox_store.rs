//! How many results an outbox stores while the link is down: `outbox_store FOLDER RESULTS [--streams N] [--each]`.
//!
//! Results are offered as fast as the outbox takes them without dropping any, as a worker offers them, and all of them
//! are on the disk in the end: in SQLite, synchronous=FULL. `FOLDER/state/outbox.db` then is what an agent finds that
//! starts with such a backlog. Prints one line of JSON.
//!
//! The results are those of a classification with four labels, of pipeline `motor` and streams `press-0`, `press-1`, ….

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use limpet_agent::outbox::book::{PipelineRules, Rules};
use limpet_agent::outbox::{EventIds, Outbox};
use limpet_agent::{DropPolicy, OutboxOrder, Packing};
use limpet_wire::id::Serial;
use limpet_wire::result::{Captured, Clock, LatencyUs, ResultRecord, Span, Verdict};

/// Results that may wait for a commit before this program waits for them: less than the ring holds, and more than makes it commit early.
const AHEAD: u64 = 30_000;

struct Arguments {
    folder: PathBuf,
    results: u64,
    streams: u64,
    each: bool,
}

fn arguments() -> Option<Arguments> {
    let mut words = std::env::args().skip(1);
    let (folder, results) = (words.next()?.into(), words.next()?.parse().ok()?);
    let mut found = Arguments { folder, results, streams: 10, each: false };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--streams" => found.streams = words.next()?.parse().ok().filter(|streams| *streams > 0)?,
            "--each" => found.each = true,
            _ => return None,
        }
    }
    Some(found)
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("usage: outbox_store FOLDER RESULTS [--streams N] [--each]");
        return ExitCode::from(64);
    };
    match store(&arguments) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("outbox_store: {why}");
            ExitCode::FAILURE
        }
    }
}

fn store(arguments: &Arguments) -> Result<String, String> {
    let state = arguments.folder.join("state");
    std::fs::create_dir_all(&state).map_err(|error| format!("{}: {error}", state.display()))?;
    let pipeline = PipelineRules { packing: Packing::SINGLE, policy: DropPolicy::DropOldest };
    let rules = Rules {
        commit_interval: Duration::from_secs(1),
        each: arguments.each,
        ring: 8 << 20,
        max_bytes: 4 << 30,
        max_age: Duration::from_secs(30 * 24 * 3600),
        order: OutboxOrder::LiveFirst,
        drain_rate: 16 << 20,
        history: 0,
        history_on_disk: false,
        pipelines: [("motor".into(), pipeline)].into(),
    };
    let (notices, _noticed) = tokio::sync::mpsc::unbounded_channel();
    let ids = Arc::new(EventIds::new("press-07".into()));
    let (database, ring) = (state.join("outbox.db"), arguments.folder.join("run/outbox"));
    let outbox = Outbox::start(rules, database.clone(), &ring, ids, Arc::default(), notices)
        .map_err(|error| error.to_string())?;
    let mut records: Vec<ResultRecord> = (0..arguments.streams).map(record).collect();
    let written = written_bytes();
    let start = Instant::now();
    for index in 0..arguments.results {
        let record = &mut records[(index % arguments.streams) as usize];
        record.serial.as_mut().expect("it has one").seq += 1;
        record.window = Span { first: index * 3200, last: index * 3200 + 3199 };
        outbox.offer_result(record);
        if index % 1000 == 999 {
            while outbox.figures().depth.live > AHEAD {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    if !outbox.commit_all(Instant::now() + Duration::from_secs(60)) {
        return Err("not all of it is on the disk after a minute".into());
    }
    let seconds = start.elapsed().as_secs_f64();
    let figures = outbox.figures();
    outbox.close(Instant::now() + Duration::from_secs(60));
    if figures.depth.stored != arguments.results || figures.dropped > 0 {
        return Err(format!("{} were offered: {figures:?}", arguments.results));
    }
    let size = std::fs::metadata(&database).map_or(0, |metadata| metadata.len());
    Ok(serde_json::json!({
        "results": arguments.results,
        "streams": arguments.streams,
        "seconds": seconds,
        "per_second": arguments.results as f64 / seconds,
        "stored_bytes": figures.depth.stored_bytes,
        "database_bytes": size,
        "written_bytes": written_bytes().saturating_sub(written),
    })
    .to_string())
}

fn record(stream: u64) -> ResultRecord {
    let labels: Arc<[String]> = ["healthy", "imbalance", "bearing", "looseness"].map(String::from).into();
    ResultRecord {
        serial: Some(Serial { run: 0x9f2c_61d0_4b7a_e800 + stream, seq: 0 }),
        gateway: "press-07".into(),
        pipeline: "motor".into(),
        stream: format!("press-{stream}").into(),
        model: "motor-health".into(),
        version: "2.1.0".into(),
        engine: "tflite".into(),
        variant: "int8.tflite".into(),
        captured: Captured::Utc(1_795_428_902_123_456_000),
        clock: Clock::Synced,
        window: Span { first: 0, last: 3199 },
        filled: 0,
        verdict: Verdict::Class { best: 2, labels, scores: vec![0.01, 0.0, 0.98, 0.01] },
        trigger: false,
        latency: LatencyUs { wait: 210, features: 45, queue: 12, compute: 34, decide: 1 },
        late: false,
        tag: None,
    }
}

/// Bytes that this process has had written to disks.
fn written_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let field = |line: &str| line.strip_prefix("write_bytes:")?.trim().parse().ok();
    text.lines().find_map(field).unwrap_or(0)
}
