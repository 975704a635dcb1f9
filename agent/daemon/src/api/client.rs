//! `limpet status`: asks the agent that runs, and prints what it says.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use limpet_wire::VERSION;
use limpet_wire::message::Message as _;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::report::StatusReport;
use super::{socket, table};
use crate::cli::StatusArgs;
use crate::console::Reader;
use crate::{CliError, config, console};

/// The run directory of a configuration that names none.
const RUN: &str = "/run/limpet";
/// How long the agent may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const LARGEST: usize = 64 << 20;

/// Prints the status, once or again and again.
///
/// # Errors
/// [`CliError::Unavailable`] if no agent answers: why, and what to do.
pub fn status(args: &StatusArgs) -> Result<(), CliError> {
    let (path, doubt) = socket_path(&args.config, args.socket.as_deref());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    runtime.block_on(watch(args, &path)).map_err(|error| doubted(error, doubt))
}

/// Says with an error that where the agent was asked is a guess, if it is one.
pub fn doubted(error: CliError, doubt: Option<String>) -> CliError {
    match (error, doubt) {
        (CliError::Unavailable(why), Some(doubt)) => {
            CliError::Unavailable(format!("{why}\n(this path is a guess, give --socket PATH for another: {doubt})"))
        }
        (error, _) => error,
    }
}

/// Where the agent is asked, and why that is a guess if it is one: an operator need not have the right to read the
/// configuration.
pub fn socket_path(config: &Path, given: Option<&Path>) -> (PathBuf, Option<String>) {
    if let Some(path) = given {
        return (path.to_owned(), None);
    }
    match config::read(config) {
        Ok(loaded) => (socket::path(&loaded.config.gateway.run), None),
        Err(CliError::Configuration(problems)) => (socket::path(Path::new(RUN)), Some(problems.join("; "))),
        Err(other) => (socket::path(Path::new(RUN)), Some(format!("{other:?}"))),
    }
}

async fn watch(args: &StatusArgs, socket: &Path) -> Result<(), CliError> {
    let terminal = io::stdout().is_terminal();
    // The first answer decides whether there is an agent at all; one that is away later is being restarted.
    let mut text = shown(args, ask(socket, PATIENCE).await?)?;
    let Some(seconds) = args.watch else {
        console::print(text.as_bytes())?;
        return Ok(());
    };
    let mut ticks = interval(Duration::from_secs(seconds.get()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let out = match size() {
            Some((_, rows)) if terminal && !args.json => frame(&text, rows),
            _ if args.json => text,
            _ => text + "\n",
        };
        if console::print(out.as_bytes())? == Reader::Gone {
            return Ok(());
        }
        ticks.tick().await;
        text = match ask(socket, PATIENCE).await {
            Ok(answer) => shown(args, answer)?,
            Err(why) if terminal && !args.json => format!("limpet: {why}\n"),
            Err(why) => {
                console::tell(why);
                String::new()
            }
        };
    }
}

/// An answer as it is printed.
fn shown(args: &StatusArgs, answer: Bytes) -> Result<String, CliError> {
    let report = read(&answer)?;
    if args.json {
        return Ok(String::from_utf8_lossy(&answer).into_owned() + "\n");
    }
    // What is no terminal does not wrap.
    let width = size().map_or(usize::MAX, |(columns, _)| columns);
    Ok(table::render(&report, width, args.streams))
}

/// Columns and rows of the terminal, if it is one.
fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

/// Puts `text` in the place of what is on the screen, as much as fits. Nothing is switched that Ctrl-C would have to
/// switch back.
fn frame(text: &str, rows: usize) -> String {
    const HOME: &str = "\x1b[H";
    const CLEAR_LINE: &str = "\x1b[K\n";
    const CLEAR_BELOW: &str = "\x1b[J";
    let lines: Vec<&str> = text.lines().collect();
    let room = rows.saturating_sub(1).max(1);
    let mut out = HOME.to_owned();
    let shown = if lines.len() <= room { lines.len() } else { room - 1 };
    for line in &lines[..shown] {
        out += line;
        out += CLEAR_LINE;
    }
    if shown < lines.len() {
        out += &format!("… {} more lines: enlarge the window, or leave out --watch", lines.len() - shown);
        out += CLEAR_LINE;
    }
    out + CLEAR_BELOW
}

/// Reads a report.
fn read(answer: &[u8]) -> Result<StatusReport, CliError> {
    #[derive(Deserialize)]
    struct Envelope {
        v: u8,
        r#type: String,
    }
    let not_one = |why: String| {
        CliError::Unavailable(format!(
            "what the agent answers is no status report of version {VERSION}: {why}; was it restarted since limpet was upgraded?"
        ))
    };
    let envelope: Envelope = serde_json::from_slice(answer).map_err(|error| not_one(error.to_string()))?;
    if (envelope.v, &*envelope.r#type) != (VERSION, StatusReport::TYPE) {
        return Err(not_one(format!("it says version {} and type {}", envelope.v, envelope.r#type)));
    }
    serde_json::from_slice(answer).map_err(|error| not_one(error.to_string()))
}

/// Why no agent answers: one sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The socket cannot be connected to.
    #[error("{}", connect_sentence(.0, .1))]
    Connect(PathBuf, io::Error),
    /// Nothing came in time.
    #[error(
        "the agent at {0} does not answer within {1:?}; if it goes on, see journalctl -u limpet and restart it: systemctl restart limpet"
    )]
    Late(PathBuf, Duration),
    /// The connection broke.
    #[error("the agent at {0} broke off its answer: {1}; is it stopping? See journalctl -u limpet")]
    Broken(PathBuf, String),
    /// It answers with an error.
    #[error("the agent at {0} refuses: {1} {2}")]
    Refused(PathBuf, StatusCode, String),
}

impl From<Unanswered> for CliError {
    fn from(why: Unanswered) -> Self {
        match why {
            // What was asked for is not there; the agent is.
            Unanswered::Refused(_, StatusCode::NOT_FOUND, why) => Self::Usage(why),
            why => Self::Unavailable(why.to_string()),
        }
    }
}

/// What the API says in its errors.
#[derive(Deserialize)]
struct Said {
    error: String,
}

fn connect_sentence(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no {socket}; is limpet running? Start it with: systemctl start limpet")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("nobody listens at {socket}; limpet has ended. Start it with: systemctl start limpet")
        }
        io::ErrorKind::PermissionDenied => {
            let user = std::env::var("USER").unwrap_or_else(|_| "USER".to_owned());
            format!("{socket}: permission denied; be in group limpet: usermod -aG limpet {user}, then log in again")
        }
        _ => format!("{socket} cannot be connected to: {error}"),
    }
}

/// Asks for the status.
///
/// # Errors
/// Why there is no answer.
pub async fn ask(socket: &Path, patience: Duration) -> Result<Bytes, Unanswered> {
    send(socket, Method::GET, "/v1/status", patience).await
}

/// Tells the agent on this run directory to look for packages that changed. Says whether one runs there.
///
/// # Errors
/// Why one that runs does not do it.
pub fn reload(run: &Path) -> Result<bool, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    match runtime.block_on(send(&socket::path(run), Method::POST, "/v1/reload", PATIENCE)) {
        Ok(_) => Ok(true),
        Err(Unanswered::Connect(_, error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Ok(false)
        }
        Err(error) => Err(CliError::Unavailable(error.to_string())),
    }
}

/// Sends a request without a body.
pub async fn send(socket: &Path, method: Method, path: &str, patience: Duration) -> Result<Bytes, Unanswered> {
    let asked = timeout(patience, async {
        let stream = UnixStream::connect(socket).await.map_err(|error| Unanswered::Connect(socket.into(), error))?;
        let broken = |why: String| Unanswered::Broken(socket.into(), why);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
        // Ends with this function.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "limpet")
            .body(Empty::<Bytes>::new())
            .expect("a path and a header that are right");
        let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| broken(error.to_string()))?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            let said = serde_json::from_slice(&body).map(|said: Said| said.error);
            let why = said.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned());
            Err(Unanswered::Refused(socket.into(), status, why))
        }
    });
    asked.await.unwrap_or_else(|_| Err(Unanswered::Late(socket.into(), patience)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::report;

    #[test]
    fn a_frame_replaces_what_is_there_and_never_scrolls() {
        assert_eq!(frame("a\nb\n", 3), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        let cut = frame("a\nb\nc\n", 3);
        assert_eq!(cut, "\x1b[Ha\x1b[K\n… 2 more lines: enlarge the window, or leave out --watch\x1b[K\n\x1b[J");
        assert!(frame("a\nb\n", 1).starts_with("\x1b[H… 2 more lines"));
    }

    #[test]
    fn a_report_reads_back() {
        assert_eq!(read(&report().to_json()).ok(), Some(report()));
    }

    #[test]
    fn what_is_no_report_is_said() {
        for (answer, why) in [
            (&b"<html>"[..], "expected value"),
            (br#"{"v":2,"type":"status-report"}"#, "it says version 2 and type status-report"),
            (br#"{"v":1,"type":"event"}"#, "it says version 1 and type event"),
            (br#"{"v":1,"type":"status-report"}"#, "missing field"),
        ] {
            let Err(CliError::Unavailable(message)) = read(answer) else { panic!("{answer:?} is taken for a report") };
            assert!(message.contains(why) && message.contains("was it restarted"), "{message}");
        }
    }

    #[test]
    fn every_reason_says_what_to_do() {
        let sentence =
            |kind: io::ErrorKind| Unanswered::Connect("/run/limpet/limpet.sock".into(), kind.into()).to_string();
        assert!(
            sentence(io::ErrorKind::NotFound).ends_with("is limpet running? Start it with: systemctl start limpet")
        );
        assert!(sentence(io::ErrorKind::ConnectionRefused).contains("limpet has ended"));
        assert!(sentence(io::ErrorKind::PermissionDenied).contains("be in group limpet: usermod -aG limpet "));
    }
}
