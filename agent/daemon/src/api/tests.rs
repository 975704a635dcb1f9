//! The server on a real socket, asked by raw bytes and by the client of `limpet status`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use limpet_wire::message::{ModelPhase, OutboxFigures, PipelineFigures, Quantiles};
use limpet_wire::result::Clock;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::{Unanswered, ask};
use super::infer::{Datatype, InferOutput, TensorData, TensorMetadata};
use super::report::{
    BudgetStatus, LinkState, LinkStatus, ModelStatus, PipelineState, PipelineStatus, StreamStatus, WorkerStatus,
};
use super::server::{Limits, serve, serve_within};
use super::socket::Socket;
use super::*;
use crate::config::Class;

/// A test that takes longer hangs.
const LONG: Duration = Duration::from_secs(20);
/// Time enough for what must not happen.
const SHORT: Duration = Duration::from_millis(100);

fn figures(windows: u64, outcomes: &[(&str, u64)], stages: &[(&str, [u64; 3])]) -> PipelineFigures {
    let quantiles = |[p50, p99, max]: [u64; 3]| Quantiles { p50, p99, max };
    PipelineFigures {
        windows,
        outcomes: outcomes.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect(),
        latency_us: stages.iter().map(|(stage, times)| ((*stage).to_owned(), quantiles(*times))).collect(),
        ..PipelineFigures::default()
    }
}

/// What an agent with a pipeline that serves and one that is refused would say.
pub fn report() -> StatusReport {
    let total = ("total", [412, 1_860, 12_000]);
    let press_3 = figures(
        1_204_110,
        &[("result", 1_204_101), ("expired", 3), ("replaced", 6)],
        &[("wait", [20, 60, 120]), ("compute", [212, 255, 2_100]), total],
    );
    StatusReport {
        gateway: "press-07".into(),
        agent: "0.1.0".into(),
        uptime_s: 273_600,
        clock: Clock::Synced,
        budget: BudgetStatus {
            cpu: 1.5,
            cpu_admitted: 0.82,
            memory_bytes: 96 << 20,
            memory_admitted_bytes: 25_690_112,
            memory_loaded_bytes: 19_084_083,
        },
        workers: vec![
            WorkerStatus {
                number: 0,
                cpu_share_admitted: 0.61,
                queued: 2,
                running: Some("keyword-spotting/press-3".into()),
            },
            WorkerStatus { number: 1, cpu_share_admitted: 0.21, queued: 0, running: None },
        ],
        models: vec![
            ModelStatus {
                name: "keyword-spotting".into(),
                version: "1.2.0".into(),
                state: ModelPhase::Active,
                engine: Some("tflite".into()),
                variant: Some("int8".into()),
                reduced: false,
                memory_bytes: Some(6_606_028),
                loaded: true,
                pinned: true,
                p50_us: Some(212),
                p99_us: Some(255),
                failure: None,
            },
            ModelStatus {
                name: "people".into(),
                version: "0.4.1".into(),
                state: ModelPhase::Failed,
                engine: None,
                variant: None,
                reduced: false,
                memory_bytes: None,
                loaded: false,
                pinned: false,
                p50_us: None,
                p99_us: None,
                failure: Some("nmae 0.61 is over 0.25".into()),
            },
        ],
        configuration: None,
        sources: BTreeMap::new(),
        pipelines: vec![
            PipelineStatus {
                name: "keyword-spotting".into(),
                class: Class::Realtime,
                deadline_ms: 20.0,
                state: PipelineState::Serving,
                refusal: None,
                figures: PipelineFigures {
                    late: 2,
                    batches: [(1, 1_204_100), (2, 1)].into(),
                    ..figures(
                        1_204_113,
                        &[("result", 1_204_101), ("expired", 3), ("replaced", 9)],
                        &[("wait", [20, 60, 120]), ("compute", [212, 255, 2_100]), total],
                    )
                },
                streams: vec![
                    StreamStatus { name: "press-3".into(), figures: press_3 },
                    StreamStatus { name: "press-4".into(), figures: figures(3, &[("replaced", 3)], &[]) },
                ],
            },
            PipelineStatus {
                name: "people".into(),
                class: Class::Analytic,
                deadline_ms: 10_000.0,
                state: PipelineState::Refused,
                refusal: Some("model people 0.4.1 gives other outputs".into()),
                figures: PipelineFigures::default(),
                streams: Vec::new(),
            },
        ],
        pressure: None,
        outbox: OutboxFigures {
            live: 3,
            stored: 48_210,
            stored_bytes: 9_650_000,
            delivered: 1_204_101,
            dropped: 12,
            ..OutboxFigures::default()
        },
        links: vec![
            LinkStatus { broker: "local".into(), state: LinkState::Up, why: None },
            LinkStatus { broker: "uplink".into(), state: LinkState::Down, why: None },
        ],
    }
}

/// A backend whose models do what their names say.
struct Named {
    /// What was asked, as it arrives.
    asked: mpsc::UnboundedSender<InferRequest>,
    /// Each permit lets one request to the model `gate` go on.
    gate: Arc<Semaphore>,
    /// Told when a request to the model `gate` is dropped unanswered.
    dropped: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

/// Every model, and whether it can be asked.
const MODELS: [(&str, ModelPhase); 10] = [
    ("double", ModelPhase::Active),
    ("big", ModelPhase::Trial),
    ("full", ModelPhase::Active),
    ("late", ModelPhase::Active),
    ("broken", ModelPhase::Active),
    ("vanished", ModelPhase::Active),
    ("choosy", ModelPhase::Active),
    ("gate", ModelPhase::Active),
    ("refused", ModelPhase::Failed),
    ("coming", ModelPhase::Proving),
];

struct TellDrop(Arc<Mutex<Option<oneshot::Sender<()>>>>);

impl Drop for TellDrop {
    fn drop(&mut self) {
        if let Some(tell) = self.0.lock().unwrap().take() {
            let _ = tell.send(());
        }
    }
}

impl Backend for Named {
    fn diagnose(self: Arc<Self>) -> Pin<Box<dyn Future<Output = Diagnosis> + Send>> {
        Box::pin(async { Diagnosis { gateway: "g".into(), running: true, findings: Vec::new() } })
    }

    fn reload(&self) {}

    fn results(&self, pipeline: &str, _wanted: &Wanted) -> Result<Vec<Vec<u8>>, Vec<String>> {
        Err(vec![pipeline.to_owned()])
    }

    fn status(&self) -> StatusReport {
        report()
    }

    fn models(&self) -> Vec<Arc<ModelMetadata>> {
        let tensor = |name: &str| TensorMetadata { name: name.into(), datatype: Datatype::Fp32, shape: vec![-1, 2] };
        let model = |(name, phase): (&str, ModelPhase)| ModelMetadata {
            number: 0,
            name: name.into(),
            versions: vec!["1.0.0".into()],
            platform: "onnx_onnxv1".into(),
            inputs: vec![tensor("x")],
            outputs: vec![tensor("y")],
            phase,
        };
        MODELS.into_iter().map(model).map(Arc::new).collect()
    }

    fn infer(&self, request: InferRequest) -> Inference {
        self.asked.send(request.clone()).unwrap();
        let (gate, dropped) = (Arc::clone(&self.gate), Arc::clone(&self.dropped));
        Box::pin(async move {
            let name = request.model;
            let TensorData::F32(x) = &request.inputs[0].1 else { panic!("parsed by the metadata") };
            let (shape, y) = match &*name {
                "full" => return Err(InferError::QueueFull(name)),
                "late" => return Err(InferError::Expired(name)),
                "broken" => return Err(InferError::Failed("tract failed to run: no".into())),
                "choosy" => return Err(InferError::Bad("model 'choosy' takes 3 rows at most".into())),
                "vanished" => return Err(InferError::UnknownModel(name)),
                "big" => (vec![1 << 20], vec![0.123_456_79; 1 << 20]),
                "gate" => {
                    let tell = TellDrop(dropped);
                    gate.acquire().await.unwrap().forget();
                    tell.0.lock().unwrap().take();
                    (vec![request.rows, 2], x.clone())
                }
                _ => (vec![request.rows, 2], x.iter().map(|x| 2.0 * x).collect()),
            };
            let outputs = vec![InferOutput { name: "y".into(), shape, data: TensorData::F32(y) }];
            Ok(InferResponse { model: name, version: "1.0.0".into(), outputs })
        })
    }
}

/// A server on a socket of its own.
struct Server {
    _run: TempDir,
    path: PathBuf,
    asked: mpsc::UnboundedReceiver<InferRequest>,
    gate: Arc<Semaphore>,
    dropped: oneshot::Receiver<()>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

fn start(limits: Option<Limits>) -> Server {
    let run = tempfile::tempdir().unwrap();
    let socket = Socket::bind(run.path()).unwrap();
    let path = socket.path().to_owned();
    let (asking, asked) = mpsc::unbounded_channel();
    let (tell, dropped) = oneshot::channel();
    let gate = Arc::new(Semaphore::new(0));
    let backend = Named { asked: asking, gate: Arc::clone(&gate), dropped: Arc::new(Mutex::new(Some(tell))) };
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { _ = stopped.await };
    let served = match limits {
        Some(limits) => tokio::spawn(serve_within(socket, Arc::new(backend), shutdown, limits)),
        None => tokio::spawn(serve(socket, Arc::new(backend), shutdown)),
    };
    Server { _run: run, path, asked, gate, dropped, stop, served }
}

impl Server {
    async fn next_asked(&mut self) -> InferRequest {
        timeout(LONG, self.asked.recv()).await.expect("the backend is asked").unwrap()
    }
}

/// A response as it came.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    async fn read(stream: &mut UnixStream) -> Self {
        let mut all = Vec::new();
        timeout(LONG, stream.read_to_end(&mut all)).await.expect("the server ends the connection").unwrap();
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(all[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: all[end + 4..].to_vec() }
    }

    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_slice(&self.body).unwrap()
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error in words").to_owned()
    }
}

async fn open(path: &Path, request: &str) -> UnixStream {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn send(path: &Path, method: &str, target: &str, headers: &str, body: &str) -> Answer {
    let head = format!("{method} {target} HTTP/1.1\r\nhost: limpet\r\nconnection: close\r\n{headers}");
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    Answer::read(&mut open(path, &request).await).await
}

fn rows(data: &Value) -> String {
    let rows = data.as_array().unwrap().len();
    json!({ "inputs": [{ "name": "x", "shape": [rows, 2], "datatype": "FP32", "data": data }] }).to_string()
}

/// The bytes of a request to a model, on a connection that closes.
fn infer_request(model: &str) -> String {
    let body = rows(&json!([[1, 2]]));
    let length = body.len();
    format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nhost: limpet\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_status_comes_as_it_was_given() {
    let server = start(None);
    let answer = ask(&server.path, LONG).await.unwrap();
    let json: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((&json["v"], &json["type"]), (&json!(1), &json!("status-report")));
    assert_eq!(json["pipelines"][0]["batches"], json!({ "1": 1_204_100, "2": 1 }));
    assert_eq!(json["pipelines"][0]["latency_us"]["total"]["p99"], 1_860);
    assert_eq!(json["pipelines"][1]["state"], "refused");
    assert_eq!(serde_json::from_slice::<StatusReport>(&answer).unwrap(), report());
}

#[tokio::test]
async fn the_socket_goes_with_a_stop_that_lets_requests_end() {
    let mut server = start(None);
    let mut stream = open(&server.path, &infer_request("gate")).await;
    server.next_asked().await;
    server.stop.send(()).unwrap();
    let gone = async {
        while server.path.exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, gone).await.expect("the socket is removed while the request is under way");
    server.gate.add_permits(1);
    let answer = Answer::read(&mut stream).await;
    assert_eq!(answer.status, 200);
    timeout(LONG, server.served).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut server = start(Some(Limits { grace: SHORT, ..Limits::default() }));
    let _stream = open(&server.path, &infer_request("gate")).await;
    server.next_asked().await;
    server.stop.send(()).unwrap();
    timeout(LONG, server.served).await.expect("it ends").unwrap();
    timeout(LONG, server.dropped).await.expect("the inference is given up").unwrap();
}

#[tokio::test]
async fn rows_are_inferred_and_answered() {
    let mut server = start(None);
    let answer = send(&server.path, "POST", "/v2/models/double/infer", "", &rows(&json!([[1, 2], [3, 4.5]]))).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    let expected = json!({
        "model_name": "double", "model_version": "1.0.0",
        "outputs": [{ "name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2.0, 4.0, 6.0, 9.0] }],
    });
    assert_eq!(answer.json(), expected);
    let asked = server.next_asked().await;
    assert_eq!((asked.rows, asked.deadline), (2, Duration::from_secs(10)));
}

#[tokio::test]
async fn large_bodies_are_read_and_written_whole() {
    let server = start(None);
    let many = |count: u32| rows(&json!((0..count).map(|row| [row, row + 1]).collect::<Vec<_>>()));
    let body = many(256) + &" ".repeat(1 << 20);
    let answer = send(&server.path, "POST", "/v2/models/double/infer", "", &body).await;
    assert_eq!(answer.json()["outputs"][0]["data"][511], 512.0);
    let answer = send(&server.path, "POST", "/v2/models/double/infer", "", &many(257)).await;
    assert_eq!(answer.status, 400, "{}", answer.head);
    let answer = send(&server.path, "POST", "/v2/models/big/infer", "", &rows(&json!([[1, 2]]))).await;
    assert_eq!(answer.json()["outputs"][0]["data"].as_array().unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn the_protocol_describes_server_and_models() {
    let server = start(None);
    for path in ["/v2", "/v2/"] {
        let answer = send(&server.path, "GET", path, "", "").await;
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(answer.json(), json!({ "name": "limpet", "version": version, "extensions": ["parameters"] }));
    }
    assert_eq!(send(&server.path, "GET", "/v2/health/live", "", "").await.json(), json!({ "live": true }));
    let ready = send(&server.path, "GET", "/v2/health/ready", "", "").await;
    assert_eq!((ready.status, ready.json()), (503, json!({ "ready": false })), "a model is being proved");
    let model = send(&server.path, "GET", "/v2/models/double", "", "").await;
    let expected = json!({
        "name": "double", "versions": ["1.0.0"], "platform": "onnx_onnxv1",
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [-1, 2] }],
        "outputs": [{ "name": "y", "datatype": "FP32", "shape": [-1, 2] }],
    });
    assert_eq!((model.status, model.json()), (200, expected));
}

#[tokio::test]
async fn every_error_has_its_code_and_says_why() {
    let server = start(None);
    let good = rows(&json!([[1, 2]]));
    let realtime = good.replacen('{', r#"{"parameters":{"class":"realtime"},"#, 1);
    let infer = |model: &str| format!("/v2/models/{model}/infer");
    for (method, target, headers, body, status, why) in [
        ("POST", &*infer("nope"), "", &*good, 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope", "", "", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/%ff", "", "", 404, "UTF-8"),
        ("GET", "/v3", "", "", 404, "no such path; there are /v1/status"),
        ("GET", &*infer("double"), "", "", 405, "POST for infer"),
        ("DELETE", "/v1/status", "", "", 405, "GET for all others"),
        ("POST", &*infer("double"), "", "", 400, "EOF while parsing"),
        ("POST", &*infer("double"), "", "{\"inputs\":", 400, "the body is no inference request in JSON"),
        ("POST", &*infer("double"), "", "{}", 400, "missing field `inputs`"),
        ("POST", &*infer("double"), "content-encoding: gzip\r\n", &*good, 415, "send the body as it is"),
        ("POST", &*infer("double"), "Inference-Header-Content-Length: 9\r\n", &*good, 400, "as JSON only"),
        ("POST", &*infer("double"), "", &*realtime, 403, "no rate was admitted for realtime work"),
        ("POST", &*infer("refused"), "", &*good, 503, "model 'refused' is not ready: it failed"),
        ("POST", &*infer("coming"), "", &*good, 503, "model 'coming' is not ready: it is being proved"),
        ("POST", &*infer("full"), "", &*good, 503, "Exceeds maximum queue size"),
        ("POST", &*infer("late"), "", &*good, 503, "Request timeout expired"),
        ("POST", &*infer("broken"), "", &*good, 500, "tract failed to run: no"),
        ("POST", &*infer("choosy"), "", &*good, 400, "takes 3 rows at most"),
        ("POST", &*infer("vanished"), "", &*good, 404, "Request for unknown model: 'vanished'"),
    ] {
        let answer = send(&server.path, method, target, headers, body).await;
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.head);
        assert!(answer.error().contains(why), "{method} {target}: {}", answer.error());
        assert_eq!(answer.head.contains("retry-after: 1"), status == 503, "{}", answer.head);
        assert_eq!(answer.head.contains("accept-encoding: identity"), status == 415, "{}", answer.head);
    }
}

#[tokio::test]
async fn an_oversized_body_is_refused_before_it_is_sent() {
    let server = start(None);
    let head = "POST /v2/models/double/infer HTTP/1.1\r\nhost: limpet\r\ncontent-length: 16777217\r\n\r\n";
    let answer = Answer::read(&mut open(&server.path, head).await).await;
    assert_eq!(
        (answer.status, &*answer.error()),
        (413, "the body is larger than 16777216 bytes; send fewer rows at a time")
    );
}

#[tokio::test]
async fn an_oversized_body_of_unknown_length_is_refused_on_the_way() {
    let server = start(Some(Limits { body: 1000, ..Limits::default() }));
    let head = "POST /v2/models/double/infer HTTP/1.1\r\nhost: limpet\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    let answer = Answer::read(&mut open(&server.path, &(head.to_owned() + &chunk.repeat(3))).await).await;
    assert_eq!(answer.status, 413, "{}", answer.head);
    // What fits is read to its end, and the room is free again.
    let body = rows(&json!([[1, 2]]));
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = head.replace("chunked", "chunked\r\nconnection: close");
    let answer = Answer::read(&mut open(&server.path, &(head + &chunks)).await).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
}

#[tokio::test]
async fn a_client_that_does_not_go_on_is_cut_off() {
    let server = start(Some(Limits { patience: SHORT, connections: 1, ..Limits::default() }));
    // No head at all, and half a head. The next client is served after each, though there is one place only.
    for half in ["", "GET /v1/status HTTP/1.1\r\nhost:"] {
        let mut stuck = open(&server.path, half).await;
        ask(&server.path, LONG).await.expect("the place is free again");
        let mut rest = Vec::new();
        timeout(LONG, stuck.read_to_end(&mut rest)).await.expect("it is cut off").unwrap();
    }
    let half = infer_request("double").replace("connection: close\r\n", "");
    let answer = Answer::read(&mut open(&server.path, &half[..half.len() - 1]).await).await;
    assert_eq!((answer.status, &*answer.error()), (408, "the body did not come within 0.1 s"));
    // One that asks for more than the system buffers, and takes nothing of it.
    let stuck = open(&server.path, &infer_request("big")).await;
    ask(&server.path, LONG).await.expect("the place is free again");
    drop(stuck);
}

#[tokio::test]
async fn bodies_under_way_share_their_room() {
    let request = infer_request("double");
    let length = request.len() - request.find("\r\n\r\n").unwrap() - 4;
    let mut server = start(Some(Limits { body: length + 1, ..Limits::default() }));
    let first = open(&server.path, &request[..request.len() - 1]).await;
    let mut second = open(&server.path, &request).await;
    assert!(timeout(SHORT, server.asked.recv()).await.is_err(), "the second waits for room");
    drop(first);
    server.next_asked().await;
    assert_eq!(Answer::read(&mut second).await.status, 200);
}

#[tokio::test]
async fn no_more_clients_are_served_at_a_time_than_the_limit() {
    let mut server = start(Some(Limits { connections: 2, ..Limits::default() }));
    let request = infer_request("gate");
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(open(&server.path, &request).await);
    }
    server.next_asked().await;
    server.next_asked().await;
    assert!(timeout(SHORT, server.asked.recv()).await.is_err(), "the third waits");
    server.gate.add_permits(1);
    server.next_asked().await;
    server.gate.add_permits(2);
    for mut stream in streams {
        assert_eq!(Answer::read(&mut stream).await.status, 200);
    }
}

#[tokio::test]
async fn an_inference_is_given_up_when_its_client_goes_away() {
    let mut server = start(None);
    let stream = open(&server.path, &infer_request("gate")).await;
    server.next_asked().await;
    drop(stream);
    timeout(LONG, server.dropped).await.expect("the inference is dropped").unwrap();
}

#[tokio::test]
async fn a_client_without_an_agent_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = super::socket::path(folder.path());
    let missing = ask(&path, LONG).await.unwrap_err();
    assert!(missing.to_string().contains("is limpet running?"), "{missing}");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let late = ask(&path, SHORT).await.unwrap_err();
    assert!(matches!(late, Unanswered::Late(..)), "{late}");
    assert!(late.to_string().contains("does not answer within 100ms"), "{late}");
    drop(listener);
    let dead = ask(&path, LONG).await.unwrap_err();
    assert!(dead.to_string().contains("nobody listens at"), "{dead}");
}
