//! The server: who may hold what for how long, and which path does what.
//!
//! It runs on the thread of all input and output, beside the links. So everything about a client has a limit
//! ([`Limits`]): the number of connections, the bytes of a request, the bytes of all requests that are being read, and
//! the time in which a client must go on. JSON that takes long is read and written on another thread.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use limpet_wire::message::{Message as _, ModelPhase};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::Backend;
use super::infer::{self, InferError, ModelMetadata};
use super::refusal::Refusal;
use super::socket::Socket;
use crate::outbox::history::Wanted;

/// JSON of more bytes than this is not read or written on the thread of all input and output.
const SMALL: usize = 64 << 10;
/// Most bytes of a request's head.
const HEAD: usize = 64 << 10;
/// How long to wait after the system refused to accept a connection, such as for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What clients may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub(super) connections: usize,
    /// Bytes of a request's body, and of all that are being read at a time.
    pub(super) body: usize,
    /// Time for a head, for a body, until the client takes the next bytes of an answer, and between two requests.
    pub(super) patience: Duration,
    /// Time for requests under way when the agent stops.
    pub(super) grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 32, body: 16 << 20, patience: Duration::from_secs(10), grace: Duration::from_secs(2) }
    }
}

/// Serves until `shutdown` completes. Then the socket is removed, and requests under way have two seconds to end.
pub async fn serve(socket: Socket, backend: Arc<dyn Backend>, shutdown: impl Future<Output = ()>) {
    serve_within(socket, backend, shutdown, Limits::default()).await;
}

pub(super) async fn serve_within(
    socket: Socket,
    backend: Arc<dyn Backend>,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
) {
    let router = router(Arc::new(Api { backend, limits, room: Semaphore::new(limits.body) }));
    let (stop, stopping) = watch::channel(());
    // Dropped with this future, and with it every connection.
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = socket.listener().accept(), if connections.len() < limits.connections => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), limits.patience, stopping.clone()));
                }
                Err(error) => {
                    tracing::warn!(socket = %socket.path().display(), %error, "a connection cannot be accepted");
                    tokio::select! {
                        () = &mut shutdown => break,
                        () = sleep(ACCEPT_AGAIN) => {}
                    }
                }
            }
        }
    }
    drop(socket);
    // Without connections nobody listens.
    let _ = stop.send(());
    let ended = timeout(limits.grace, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!(connections = connections.len(), "requests over the local socket were cut off by the stop");
    }
}

/// Serves one client.
async fn connection(stream: UnixStream, router: Router, patience: Duration, mut stopping: watch::Receiver<()>) {
    match stream.peer_cred() {
        Ok(peer) => tracing::debug!(pid = peer.pid(), uid = peer.uid(), gid = peer.gid(), "local client"),
        Err(error) => tracing::debug!(%error, "local client, unknown to the system"),
    }
    let io = TokioIo::new(Patient { stream, patience, stalled: None });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEAD)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "local client cut off");
    }
}

/// A connection that ends if the other end takes no bytes for too long. (hyper limits only the time for a head.)
struct Patient {
    stream: UnixStream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut UnixStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.stream), cx);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What requests share.
struct Api {
    backend: Arc<dyn Backend>,
    limits: Limits,
    /// One permit a byte of the bodies that are being read.
    room: Semaphore,
}

fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/diagnosis", get(diagnosis))
        .route("/v1/results/{pipeline}", get(results))
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{name}", get(model_metadata))
        .route("/v2/models/{name}/infer", post(infer))
        .fallback(async || {
            Refusal::new(StatusCode::NOT_FOUND, "no such path; there are /v1/status, /v1/reload, /v1/diagnosis, /v1/results/PIPELINE, /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME and /v2/models/NAME/infer")
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method: POST for infer and reload, GET for all others")
        })
        .with_state(api)
}

fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

fn ok(value: &serde_json::Value) -> Response {
    json_response(StatusCode::OK, value.to_string().into_bytes())
}

async fn status(State(api): State<Arc<Api>>) -> Result<Response, Refusal> {
    // With many pipelines this takes longer than a message may wait for the thread of all input and output.
    let report = tokio::task::spawn_blocking(move || api.backend.status().to_json()).await;
    let report = report.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(json_response(StatusCode::OK, report))
}

async fn reload(State(api): State<Arc<Api>>) -> Response {
    api.backend.reload();
    json_response(StatusCode::ACCEPTED, json!({ "reloading": true }).to_string().into_bytes())
}

async fn diagnosis(State(api): State<Arc<Api>>) -> Response {
    json_response(StatusCode::OK, Arc::clone(&api.backend).diagnose().await.to_json())
}

/// What is asked of results.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultsQuery {
    since_s: Option<u64>,
    stream: Option<String>,
    last: Option<usize>,
}

async fn results(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<ResultsQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Path(name) = name.map_err(|error| Refusal::new(StatusCode::NOT_FOUND, error.body_text()))?;
    let Query(ResultsQuery { since_s, stream, last }) = query.map_err(|error| Refusal::bad(error.body_text()))?;
    let wanted = Wanted { since: since_s.map(Duration::from_secs), stream, last };
    // A hundred thousand results are more than a message may wait for the thread of all input and output.
    let found = tokio::task::spawn_blocking(move || {
        let found = api.backend.results(&name, &wanted);
        found.map(|results| results.join(&b'\n')).map_err(|names| {
            let names = names.join(", ");
            Refusal::new(StatusCode::NOT_FOUND, format!("there is no pipeline '{name}'; there are: {names}"))
        })
    });
    let found = found.await.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
    let lines = HeaderValue::from_static(limpet_wire::content_type::NDJSON);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, lines)], found).into_response())
}

async fn server_metadata() -> Response {
    ok(&json!({ "name": "limpet", "version": env!("CARGO_PKG_VERSION"), "extensions": ["parameters"] }))
}

async fn live() -> Response {
    ok(&json!({ "live": true }))
}

/// Ready is who has nothing left to prove or load. A model that failed keeps nobody waiting.
async fn ready(State(api): State<Arc<Api>>) -> Response {
    let on_the_way = |model: &Arc<ModelMetadata>| matches!(model.phase, ModelPhase::Fetching | ModelPhase::Proving);
    if api.backend.models().iter().any(on_the_way) {
        json_response(StatusCode::SERVICE_UNAVAILABLE, json!({ "ready": false }).to_string().into_bytes())
    } else {
        ok(&json!({ "ready": true }))
    }
}

async fn model_metadata(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let model = api.model(name)?;
    Ok(json_response(StatusCode::OK, serde_json::to_vec(&*model).expect("plain values are JSON")))
}

async fn infer(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let model = api.model(name)?;
    if !model.phase.serves() {
        let reason = match model.phase {
            ModelPhase::Failed => "it failed; limpet status says why",
            ModelPhase::Withdrawn => "its publisher took it back",
            _ => "it is being proved or loaded; try again later",
        };
        return Err(InferError::NotReady { model: model.name.clone(), reason: reason.into() }.into());
    }
    json_only(&headers)?;
    // The room is kept until there is an answer, so that all requests together hold so much at most.
    let (body, _room) = api.read(body).await?;
    let (request, wanted) = off_thread(body.len(), move || infer::parse(&model, &body)).await?;
    let response = api.backend.infer(request).await?;
    let elements: usize = response.outputs.iter().map(|output| output.data.len()).sum();
    let body = off_thread(elements * 4, move || wanted.answer(&response)).await?;
    Ok(json_response(StatusCode::OK, body))
}

/// Refuses bodies that are something else than JSON text.
fn json_only(headers: &HeaderMap) -> Result<(), Refusal> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let message = format!("Content-Encoding {encoding:?} is not read by this version; send the body as it is");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    if headers.contains_key("inference-header-content-length") {
        return Err(Refusal::bad(
            "Inference-Header-Content-Length announces binary tensors; this version takes tensors as JSON only",
        ));
    }
    Ok(())
}

impl Api {
    fn model(&self, name: Result<Path<String>, PathRejection>) -> Result<Arc<ModelMetadata>, Refusal> {
        // A name that is no text is that of no model.
        let name =
            name.map(|Path(name)| name).map_err(|error| Refusal::new(StatusCode::NOT_FOUND, error.body_text()))?;
        let found = self.backend.models().into_iter().find(|model| model.name == name);
        found.ok_or_else(|| InferError::UnknownModel(name).into())
    }

    /// Reads a body, and holds room for it among all that are being read.
    async fn read(&self, body: Body) -> Result<(Bytes, SemaphorePermit<'_>), Refusal> {
        let most = self.limits.body;
        let too_large = || {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {most} bytes; send fewer rows at a time"),
            )
        };
        // One that does not say its length may become as long as any.
        let announced = body.size_hint().exact().map_or(Some(most), |length| usize::try_from(length).ok());
        let announced = announced.filter(|length| *length <= most).ok_or_else(too_large)?;
        let permits = u32::try_from(announced).expect("a body's limit is far below 4 GiB");
        let room = match timeout(self.limits.patience, self.room.acquire_many(permits)).await {
            Ok(room) => room.expect("it is never closed"),
            Err(_) => {
                return Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "other requests take all the room there is for bodies; try again later",
                ));
            }
        };
        match timeout(self.limits.patience, Limited::new(body, most).collect()).await {
            Ok(Ok(body)) => Ok((body.to_bytes(), room)),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(Refusal::bad(format!("the body cannot be read: {error}"))),
            Err(_) => Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come within {} s", self.limits.patience.as_secs_f64()),
            )),
        }
    }
}

/// Does `work` about so many bytes: here if they are few.
async fn off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if bytes <= SMALL {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the agent could not read or write this body"))
    })
}
