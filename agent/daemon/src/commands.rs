//! Commands over MQTT: what a gateway answers to whoever its broker lets ask.
//!
//! None is there unless the configuration names it (`uplink.commands`), and none changes anything: whoever can send one
//! learns what the agent says of itself, and no more. A command is refused if the broker had kept it, if it does not carry
//! the `session` of this very connection, if its answer would go anywhere but under the gateway's own `reply/`, or if it
//! came before: each correlation data is answered once.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use limpet_wire::command::{Answer, Command, Verb};
use limpet_wire::message::Message as _;
use limpet_wire::topic::Topics;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::api::Backend;
use crate::link::Received;
use crate::link::client::Reply;
use crate::link::outgoing::{Body, Fleeting, Outgoing};
use crate::logging;

/// Correlation data that is remembered, the newest: a repeat comes soon, or it carries another session.
const REMEMBERED: usize = 256;
/// Longest correlation data.
const CORRELATION: usize = 128;
/// Longest command.
const COMMAND: usize = 4096;
/// Longest answer.
const LONGEST: usize = 64 << 10;
/// Seconds after which nobody waits for an answer any more.
const EXPIRY_S: u32 = 60;
/// Longest topic of a command or of its answer.
const TOPIC: usize = 512;
/// Refusals are answered no more often than this: an answer takes a place in flight that results need.
const BETWEEN_REFUSALS: Duration = Duration::from_secs(1);
/// Refusals are logged no more often than this.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);
/// Commands that wait for their answer at most.
const WAITING: usize = 4;
/// Lines of a log where no number was asked for, and at most.
const LINES: u32 = 100;
/// See [`LINES`].
pub const LINES_MOST: u32 = 500;

/// A command that is to be answered.
#[derive(Debug)]
pub struct Order {
    /// The last level of its topic.
    pub name: String,
    /// What is asked, or why it is refused.
    pub asked: Result<Asked, String>,
    /// Where the answer goes.
    pub reply: Reply,
    /// One of those that wait, until this is dropped.
    pub place: Place,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The command.
    pub verb: Verb,
    /// How many lines of the log.
    pub lines: u32,
}

/// A place among the commands that wait.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Takes commands in.
#[derive(Debug)]
pub struct Commands {
    /// What topics of commands and of answers start with.
    prefix: String,
    replies: String,
    enabled: BTreeSet<Verb>,
    seen: Mutex<VecDeque<Bytes>>,
    warned: Mutex<Option<Instant>>,
    refused: Mutex<Option<Instant>>,
    waiting: Arc<AtomicUsize>,
    orders: UnboundedSender<Order>,
}

impl Commands {
    /// Takes those that are enabled; `orders` gets what is to be answered.
    pub fn new(topics: &Topics, enabled: BTreeSet<Verb>, orders: UnboundedSender<Order>) -> Self {
        Self {
            prefix: topics.commands(),
            replies: topics.replies(),
            enabled,
            seen: Mutex::default(),
            warned: Mutex::default(),
            refused: Mutex::default(),
            waiting: Arc::default(),
            orders,
        }
    }

    /// The filters to subscribe to: of those that are enabled, and no others.
    pub fn filters(&self) -> Vec<String> {
        self.enabled.iter().map(|verb| format!("{}{verb}", self.prefix)).collect()
    }

    /// Takes a message, if it is a command. `session` is that of this connection.
    pub fn takes(&self, message: &Received<'_>, session: &str) -> bool {
        let Some(name) = message.topic.strip_prefix(&self.prefix) else { return false };
        let reply = match self.reply(message) {
            Ok(reply) => reply,
            Err(why) => {
                self.warn(name, &format!("{why}; nobody is told"));
                return true;
            }
        };
        let Some(place) = self.place() else {
            // No answer either: whoever floods this topic is to cost nothing more than reading it.
            self.warn(name, &format!("{WAITING} commands wait for their answers already"));
            return true;
        };
        let asked = match self.judge(name, message, &reply, session) {
            Ok(asked) => Ok(asked),
            Err(why) => {
                self.warn(name, &why);
                if !self.may_refuse() {
                    return true;
                }
                Err(why)
            }
        };
        // Whoever answers is there for as long as the link.
        let _ = self.orders.send(Order { name: name.to_owned(), asked, reply, place });
        true
    }

    /// Where an answer may go.
    fn reply(&self, message: &Received<'_>) -> Result<Reply, String> {
        // Before anything else: an answer to what the broker kept would go out on each connection.
        if message.retained {
            return Err("it is retained; publish commands without retain, and remove this one".to_owned());
        }
        let reply = message.reply.as_ref().ok_or("it has no response topic; set MQTT 5's Response Topic")?;
        let wild = reply.topic.contains(['+', '#', '\0']);
        let length = reply.topic.len();
        if !reply.topic.starts_with(&self.replies) || length == self.replies.len() || length > TOPIC || wild {
            return Err(format!("its response topic is not one under {}, of {TOPIC} bytes at most", self.replies));
        }
        if message.payload.len() > COMMAND {
            return Err(format!("it has more than {COMMAND} bytes"));
        }
        if message.topic.len() > TOPIC {
            return Err(format!("its topic has more than {TOPIC} bytes"));
        }
        let again = self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(&reply.correlation);
        if again {
            return Err("its correlation data came before; each is answered once".to_owned());
        }
        if reply.correlation.is_empty() || reply.correlation.len() > CORRELATION {
            return Err(format!("it has no correlation data, or more than {CORRELATION} bytes of it"));
        }
        // A copy of its own: what came is a part of the whole packet, however large.
        let correlation = Bytes::copy_from_slice(&reply.correlation);
        Ok(Reply { topic: reply.topic.clone(), correlation })
    }

    /// Whether a refusal may be answered by now: not each of a flood.
    fn may_refuse(&self) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let may = refused.is_none_or(|at| now.duration_since(at) >= BETWEEN_REFUSALS);
        if may {
            *refused = Some(now);
        }
        may
    }

    /// Says why a command is refused, but not for each of a flood.
    fn warn(&self, name: &str, why: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if warned.is_none_or(|at| now.duration_since(at) >= BETWEEN_WARNINGS) {
            *warned = Some(now);
            tracing::warn!(command = name, "a command is refused: {why}");
        }
    }

    fn place(&self) -> Option<Place> {
        let taken = self.waiting.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&self.waiting));
        (taken < WAITING).then_some(place)
    }

    fn judge(&self, name: &str, message: &Received<'_>, reply: &Reply, session: &str) -> Result<Asked, String> {
        let verb: Verb = name.parse()?;
        if !self.enabled.contains(&verb) {
            return Err(format!("{verb} is not enabled on this gateway; add it to uplink.commands"));
        }
        let command: Command = serde_json::from_slice(&message.payload)
            .map_err(|error| format!("it is no command ({error}); expected such as {{\"session\":\"…\"}}"))?;
        if command.session != session {
            return Err("its session is not that of this connection; take it from the gateway's status".to_owned());
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(reply.correlation.clone());
        Ok(Asked { verb, lines: command.lines.unwrap_or(LINES).min(LINES_MOST) })
    }
}

/// Answers commands until the links end. `secrets` are not for anybody's eyes, whatever was logged.
pub async fn answer(
    mut orders: UnboundedReceiver<Order>,
    backend: Arc<dyn Backend>,
    uplink: Arc<Outgoing>,
    gateway: String,
    secrets: impl Fn() -> Vec<String> + Clone + Send + 'static,
) {
    while let Some(Order { name, asked, reply, place }) = orders.recv().await {
        let outcome = match asked {
            Ok(Asked { verb, lines }) => {
                tracing::info!(command = %verb, to = reply.topic, "answering a command");
                carry_out(verb, lines, &backend).await
            }
            Err(why) => Err(why),
        };
        let (answer, error) = outcome.map_or_else(|why| (None, Some(why)), |answer| (Some(answer), None));
        let mut answer = Answer { command: name, gateway: gateway.clone(), answer, error };
        let secrets = tokio::task::spawn_blocking(secrets.clone()).await.unwrap_or_default();
        answer.answer.iter_mut().for_each(|answer| redact(answer, &secrets));
        let mut json = answer.to_json();
        if json.len() > LONGEST {
            // Streams are what there may be thousands of.
            answer.answer.iter_mut().for_each(without_streams);
            json = answer.to_json();
        }
        if json.len() > LONGEST {
            let error = format!(
                "the answer has {} bytes, and {LONGEST} are sent at most; ask at the gateway itself",
                json.len()
            );
            json = Answer { answer: None, error: Some(error), ..answer }.to_json();
        }
        uplink.offer_fleeting(Fleeting {
            topic: reply.topic,
            body: Body::Json(json),
            at_least_once: true,
            expiry_s: Some(EXPIRY_S),
            correlation: Some(reply.correlation),
        });
        drop(place);
    }
}

async fn carry_out(verb: Verb, lines: u32, backend: &Arc<dyn Backend>) -> Result<Value, String> {
    match verb {
        Verb::Status => {
            let backend = Arc::clone(backend);
            let status = tokio::task::spawn_blocking(move || serde_json::to_value(backend.status())).await;
            status.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        }
        Verb::Logs => {
            let lines = logging::last_lines(lines as usize);
            // The newest, as many as an answer holds.
            let mut bytes = 0;
            let fits = |line: &&String| {
                bytes += serde_json::to_string(line).map_or(0, |json| json.len() + 1);
                bytes < LONGEST - 1024
            };
            let mut newest: Vec<&String> = lines.iter().rev().take_while(fits).collect();
            newest.reverse();
            Ok(json!({ "lines": newest }))
        }
        Verb::Diagnose => serde_json::to_value(Arc::clone(backend).diagnose().await).map_err(|error| error.to_string()),
    }
}

/// Takes the entries of streams out of a status.
fn without_streams(status: &mut Value) {
    let pipelines = status.get_mut("pipelines").and_then(Value::as_array_mut);
    pipelines.into_iter().flatten().for_each(|pipeline| pipeline["streams"] = json!([]));
}

/// Takes secrets out of all texts, the longest first: one may begin with another. None is ever logged; a broker may repeat
/// one in what it says.
fn redact(value: &mut Value, secrets: &[String]) {
    match value {
        Value::String(text) => {
            let mut secrets: Vec<&str> =
                secrets.iter().map(String::as_str).filter(|secret| !secret.is_empty()).collect();
            secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
            // A line that was cut, up to the last character that is whole, may end in the middle of one.
            if text.len() + char::MAX.len_utf8() > crate::logging::LONGEST {
                let kept = secrets.iter().map(|secret| without_beginning_of(text, secret)).min();
                text.truncate(kept.unwrap_or(text.len()));
            }
            for secret in secrets {
                *text = text.replace(secret, "…");
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| redact(value, secrets)),
        Value::Object(members) => members.values_mut().for_each(|value| redact(value, secrets)),
        _ => {}
    }
}

/// How long a text is without the beginning of a secret at its end.
fn without_beginning_of(text: &str, secret: &str) -> usize {
    let mut beginnings = secret.char_indices().rev().map(|(at, _)| &secret[..at]);
    // The last is the empty one, with which every text ends.
    let found = beginnings.find(|beginning| text.ends_with(beginning));
    text.len() - found.map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "5e55101";

    fn commands() -> (Commands, tokio::sync::mpsc::UnboundedReceiver<Order>) {
        let (orders, ordered) = tokio::sync::mpsc::unbounded_channel();
        let topics = Topics::new("limpet/1", "g");
        (Commands::new(&topics, [Verb::Status, Verb::Logs].into(), orders), ordered)
    }

    fn message<'a>(topic: &'a str, payload: &'static str, reply: Option<(&str, &'static str)>) -> Received<'a> {
        let reply =
            reply.map(|(topic, data)| Reply { topic: topic.into(), correlation: Bytes::from_static(data.as_bytes()) });
        Received { topic, payload: Bytes::from_static(payload.as_bytes()), retained: false, reply }
    }

    const GOOD: &str = r#"{"session":"5e55101","lines":7}"#;
    const TO: Option<(&str, &str)> = Some(("limpet/1/g/reply/me", "1"));

    #[test]
    fn a_command_is_taken_once_and_what_is_no_command_is_left_to_others() {
        let (commands, mut ordered) = commands();
        assert_eq!(commands.filters(), ["limpet/1/g/cmd/status", "limpet/1/g/cmd/logs"]);
        assert!(!commands.takes(&message("limpet/1/g/status", GOOD, TO), SESSION));
        assert!(commands.takes(&message("limpet/1/g/cmd/logs", GOOD, TO), SESSION));
        let order = ordered.try_recv().unwrap();
        assert_eq!(order.asked, Ok(Asked { verb: Verb::Logs, lines: 7 }));
        assert_eq!(order.reply.topic, "limpet/1/g/reply/me");
        assert!(commands.takes(&message("limpet/1/g/cmd/logs", GOOD, TO), SESSION));
        assert!(ordered.try_recv().is_err(), "its correlation data came before");
    }

    #[test]
    fn what_is_wrong_is_answered_where_it_can_be_and_by_its_name() {
        let (commands, mut ordered) = commands();
        for (topic, payload, words) in [
            ("limpet/1/g/cmd/reboot", GOOD, "'reboot' is no command"),
            ("limpet/1/g/cmd/diagnose", GOOD, "diagnose is not enabled on this gateway"),
            ("limpet/1/g/cmd/../status", GOOD, "is no command"),
            ("limpet/1/g/cmd/status", "{}", "missing field `session`"),
            ("limpet/1/g/cmd/status", "\u{0}", "it is no command"),
            ("limpet/1/g/cmd/status", r#"{"session":"old"}"#, "not that of this connection"),
        ] {
            *commands.refused.lock().unwrap() = None;
            assert!(commands.takes(&message(topic, payload, TO), SESSION));
            let why = ordered.try_recv().unwrap().asked.unwrap_err();
            assert!(why.contains(words), "{topic}: {why}");
        }
        // But not each of a flood is told.
        assert!(commands.takes(&message("limpet/1/g/cmd/status", "{}", TO), SESSION) && ordered.try_recv().is_err());
    }

    #[test]
    fn an_answer_goes_nowhere_but_under_the_gateways_own_replies() {
        let (commands, mut ordered) = commands();
        let long: &'static str = "x".repeat(CORRELATION + 1).leak();
        for reply in [
            None,
            Some(("limpet/1/g/status", "1")),
            Some(("limpet/1/h/reply/x", "1")),
            Some(("limpet/1/g/reply/", "1")),
            Some(("limpet/1/g/reply/#", "1")),
            Some(("limpet/1/g/reply/me", "")),
            Some(("limpet/1/g/reply/me", long)),
        ] {
            assert!(commands.takes(&message("limpet/1/g/cmd/status", GOOD, reply), SESSION));
            assert!(ordered.try_recv().is_err(), "{reply:?}");
        }
        let kept = Received { retained: true, ..message("limpet/1/g/cmd/status", GOOD, TO) };
        assert!(commands.takes(&kept, SESSION) && ordered.try_recv().is_err());
    }

    #[test]
    fn secrets_are_taken_out_of_lines() {
        let secrets = ["hunter2".to_owned(), String::new()];
        let mut said = json!({ "lines": ["user said hunter2, hunter2!", "nothing"], "why": "hunter2", "n": 2 });
        redact(&mut said, &secrets);
        assert_eq!(said, json!({ "lines": ["user said …, …!", "nothing"], "why": "…", "n": 2 }));

        // One that begins as another, and one in whose middle a line was cut.
        let secrets = ["plant-07".to_owned(), "plant-07-2026".to_owned()];
        let cut = format!("{}plant-07-20", "x".repeat(crate::logging::LONGEST - 11));
        let mut said = json!(["now plant-07-2026, then plant-07", cut]);
        redact(&mut said, &secrets);
        assert_eq!(said, json!(["now …, then …", "x".repeat(crate::logging::LONGEST - 11)]));
    }

    #[test]
    fn those_that_wait_are_few() {
        let (commands, mut ordered) = commands();
        let send = |data: &'static str| {
            commands.takes(&message("limpet/1/g/cmd/status", GOOD, Some(("limpet/1/g/reply/me", data))), SESSION)
        };
        ["1", "2", "3", "4", "5"].into_iter().for_each(|data| assert!(send(data)));
        let waiting: Vec<Order> = std::iter::from_fn(|| ordered.try_recv().ok()).collect();
        assert_eq!(waiting.iter().filter(|order| order.asked.is_ok()).count(), WAITING);
        drop(waiting);
        assert!(send("6") && ordered.try_recv().unwrap().asked.is_ok());
    }
}
