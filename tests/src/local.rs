//! The agent's local socket, asked with nothing but what HTTP/1.1 says.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::LIMIT;

/// An answer of the agent.
#[derive(Debug)]
pub struct Answer {
    /// Its HTTP status.
    pub status: u16,
    /// What it holds.
    pub json: Value,
}

impl Answer {
    /// What an answer with this HTTP status holds.
    ///
    /// # Panics
    /// With the answer, if it has another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.json);
        self.json
    }
}

/// Asks the socket, on a connection of its own.
///
/// # Panics
/// If nobody answers, or not in JSON.
#[track_caller]
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let mut stream =
        UnixStream::connect(socket).unwrap_or_else(|error| panic!("nobody listens at {}: {error}", socket.display()));
    stream.set_read_timeout(Some(LIMIT)).expect("a socket takes a limit");
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: limpet\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).expect("the agent reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the agent answers");
    let answer = String::from_utf8(answer).expect("the agent answers in text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("no HTTP: {answer}")),
        json: serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")),
    }
}
