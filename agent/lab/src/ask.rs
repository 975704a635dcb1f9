//! `limpet-lab ask`: closed-loop clients of an agent's local socket.
//!
//! Each client has a connection and a thread of its own, asks `POST /v2/models/NAME/infer` with one row as JSON, waits
//! for the answer and asks again. What it measures is what a program beside the agent would see: writing the request,
//! waiting in the agent, the inference, and reading the answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use limpet_runtime::Moment;
use serde::{Deserialize, Serialize};

use crate::latency::{Quantiles, Times};
use crate::{unavailable, usage};

/// An answer that takes longer ends the run with an error.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most answers of which it is told when they were asked for, the slowest of each client.
const TOLD: usize = 32;
/// Largest body that is read.
const LARGEST: usize = 16 << 20;

#[derive(clap::Args)]
pub struct AskArgs {
    /// The agent's socket
    #[arg(long, value_name = "PATH", default_value = "/run/limpet/limpet.sock")]
    socket: PathBuf,
    /// The model to ask; it has one input, of integers
    #[arg(long)]
    model: String,
    /// Rows in the model's own integers, one after the other; they are asked in turn
    #[arg(long, value_name = "FILE")]
    payload: PathBuf,
    /// Clients at the same time
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Deadline of a request in microseconds; the agent's own without it
    #[arg(long, value_name = "US")]
    timeout_us: Option<u64>,
    /// How long to measure
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long to ask before measuring, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    warm_up: f64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What a run found.
#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    clients: usize,
    /// Requests that were answered with 200.
    answered: u64,
    per_second: f64,
    /// From before writing the request to having read the answer, of those.
    trip_us: Option<Quantiles>,
    /// Other answers, by status.
    refused: BTreeMap<u16, u64>,
    /// The slowest of each client, the slowest first.
    longest: Vec<Long>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Long {
    /// When it was asked for, in nanoseconds of CLOCK_BOOTTIME.
    asked_ns: u64,
    us: f64,
}

/// Runs `limpet-lab ask`.
pub fn run(args: &AskArgs) -> anyhow::Result<()> {
    for (name, value, least) in [("--seconds", args.seconds, f64::MIN_POSITIVE), ("--warm-up", args.warm_up, 0.0)] {
        if !(least..1e6).contains(&value) {
            return Err(usage(format!("{name} {value}: expected a number of seconds")));
        }
    }
    if args.clients == 0 {
        return Err(usage("--clients must be at least 1"));
    }
    let report = measure(args)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).context("writing the report")?);
    } else {
        println!("{} answers, {:.0} a second from {} clients", report.answered, report.per_second, report.clients);
        if let Some(trip) = &report.trip_us {
            println!("request to answer  p50 {:.0} µs · p99 {:.0} µs · max {:.0} µs", trip.p50, trip.p99, trip.max);
        }
        for (status, count) in &report.refused {
            println!("{count} answers with status {status}");
        }
    }
    if report.answered == 0 {
        bail!("no request was answered with 200");
    }
    Ok(())
}

fn measure(args: &AskArgs) -> anyhow::Result<Report> {
    let requests = requests(args)?;
    let start = Barrier::new(args.clients);
    let (warm_up, measured) = (Duration::from_secs_f64(args.warm_up), Duration::from_secs_f64(args.seconds));
    let found: Vec<anyhow::Result<Found>> = thread::scope(|scope| {
        let ask = |client: usize| {
            let (requests, start) = (&requests, &start);
            scope.spawn(move || {
                let connection = Connection::open(&args.socket);
                start.wait();
                ask_on(connection?, requests, client, warm_up, measured)
            })
        };
        let threads: Vec<_> = (0..args.clients).map(ask).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|found| found.unwrap_or_else(|_| bail!("a client panicked"))).collect()
    });
    let mut all = Found::default();
    for found in found {
        all.add(found?);
    }
    all.longest.sort_by(|one, other| other.us.total_cmp(&one.us));
    let answered = all.times.count();
    Ok(Report {
        seconds: args.seconds,
        clients: args.clients,
        answered,
        per_second: answered as f64 / args.seconds,
        trip_us: all.times.quantiles(),
        refused: all.refused,
        longest: all.longest,
    })
}

/// What of a model's metadata is needed to ask it.
#[derive(Deserialize)]
struct Metadata {
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

/// One request for each row of the payload, ready to be written.
fn requests(args: &AskArgs) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut connection = Connection::open(&args.socket)?;
    let path = format!("/v2/models/{}", args.model);
    let (status, body) = connection.ask(format!("GET {path} HTTP/1.1\r\nHost: limpet\r\n\r\n").as_bytes())?;
    if status != 200 {
        return Err(unavailable(format!("{path}: {status}: {}", String::from_utf8_lossy(&body))));
    }
    let model: Metadata = serde_json::from_slice(&body).with_context(|| format!("reading the answer to {path}"))?;
    let [input] = &*model.inputs else { bail!("model {} has {} inputs, not one", args.model, model.inputs.len()) };
    let signed = match &*input.datatype {
        "INT8" => true,
        "UINT8" => false,
        other => bail!("model {} takes {other}, not INT8 or UINT8", args.model),
    };
    let shape: Vec<i64> = std::iter::once(1).chain(input.shape.iter().skip(1).copied()).collect();
    let size: i64 = shape.iter().product();
    let payload = std::fs::read(&args.payload).with_context(|| format!("reading {}", args.payload.display()))?;
    let size = usize::try_from(size).ok().filter(|size| *size > 0 && !payload.is_empty() && payload.len() % size == 0);
    let Some(size) = size else {
        return Err(usage(format!("the payload file has {} bytes, which are no rows of {shape:?}", payload.len())));
    };
    let request = |row: &[u8]| {
        let data: Vec<i16> =
            row.iter().map(|&byte| if signed { i16::from(byte as i8) } else { i16::from(byte) }).collect();
        let parameters = args.timeout_us.map_or(serde_json::json!({}), |us| serde_json::json!({ "timeout": us }));
        let body = serde_json::json!({
            "inputs": [{ "name": input.name, "shape": shape, "datatype": input.datatype, "data": data }],
            "parameters": parameters,
        })
        .to_string();
        let head = format!(
            "POST {path}/infer HTTP/1.1\r\nHost: limpet\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.into_bytes(), body.into_bytes()].concat()
    };
    Ok(payload.chunks(size).map(request).collect())
}

struct Found {
    times: Times,
    refused: BTreeMap<u16, u64>,
    longest: Vec<Long>,
}

impl Default for Found {
    fn default() -> Self {
        Self { times: Times::new(), refused: BTreeMap::new(), longest: Vec::new() }
    }
}

impl Found {
    fn add(&mut self, other: Self) {
        self.times.add(&other.times);
        self.longest.extend(other.longest);
        for (status, count) in other.refused {
            *self.refused.entry(status).or_default() += count;
        }
    }

    fn answer(&mut self, status: u16, asked: Moment, took: Duration) {
        if status != 200 {
            *self.refused.entry(status).or_default() += 1;
            return;
        }
        self.times.record(took);
        let us = took.as_secs_f64() * 1e6;
        if self.longest.len() < TOLD || self.longest.last().is_some_and(|last| last.us < us) {
            let at = self.longest.partition_point(|other| other.us >= us);
            self.longest.truncate(TOLD - 1);
            self.longest.insert(at, Long { asked_ns: asked.0, us });
        }
    }
}

fn ask_on(
    mut connection: Connection,
    requests: &[Vec<u8>],
    client: usize,
    warm_up: Duration,
    measured: Duration,
) -> anyhow::Result<Found> {
    let begin = Instant::now() + warm_up;
    let end = begin + measured;
    let mut found = Found::default();
    for request in requests.iter().cycle().skip(client) {
        let (asked, start) = (Moment::now(), Instant::now());
        if start >= end {
            break;
        }
        let (status, _) = connection.ask(request)?;
        if start >= begin {
            found.answer(status, asked, start.elapsed());
        }
    }
    Ok(found)
}

/// One HTTP/1.1 connection, one request at a time.
struct Connection {
    stream: BufReader<UnixStream>,
    line: String,
}

impl Connection {
    fn open(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .map_err(|error| unavailable(format!("{}: {error}; is the agent running?", socket.display())))?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit on the connection")?;
        Ok(Self { stream: BufReader::new(stream), line: String::new() })
    }

    /// Sends a request and reads its answer: the status and the body.
    fn ask(&mut self, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        self.stream.get_mut().write_all(request).context("writing a request")?;
        read_answer(&mut self.stream, &mut self.line)
    }
}

fn read_answer(stream: &mut impl BufRead, line: &mut String) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut next_line = |line: &mut String| -> anyhow::Result<()> {
        line.clear();
        if stream.read_line(line).context("reading an answer")? == 0 {
            bail!("the agent closed the connection");
        }
        Ok(())
    };
    next_line(line)?;
    let status = line.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("'{}' is no status line", line.trim_end()))?;
    let mut length = 0;
    loop {
        next_line(line)?;
        let field = line.trim_end();
        if field.is_empty() {
            break;
        }
        if let Some((name, value)) = field.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().with_context(|| format!("'{field}'"))?;
        }
    }
    if length > LARGEST {
        bail!("an answer of {length} bytes is longer than any that was asked for");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("reading an answer's body")?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_after_the_other() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        let (mut stream, mut line) = (BufReader::new(&text[..]), String::new());
        assert_eq!(read_answer(&mut stream, &mut line).unwrap(), (200, b"{}".to_vec()));
        assert_eq!(read_answer(&mut stream, &mut line).unwrap(), (503, vec![]));
        assert!(read_answer(&mut stream, &mut line).unwrap_err().to_string().contains("closed the connection"));
    }

    #[test]
    fn refusals_are_counted_and_never_timed() {
        let mut found = Found::default();
        for (status, us) in [(200, 10), (503, 1), (200, 30), (200, 20)] {
            found.answer(status, Moment(us), Duration::from_micros(us));
        }
        assert_eq!((found.times.count(), found.refused[&503]), (3, 1));
        assert_eq!(found.longest.iter().map(|long| long.asked_ns).collect::<Vec<_>>(), [30, 20, 10]);
    }
}
