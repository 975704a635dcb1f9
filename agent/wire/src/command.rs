//! Commands to a gateway, and its answers.
//!
//! A command goes to `<prefix>/<gateway>/cmd/<verb>`, not retained, with an MQTT 5 response topic under
//! `<prefix>/<gateway>/reply/` and correlation data; the answer goes there with the same correlation data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::message::Message;

/// What can be asked of a gateway. None of them changes anything there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// What it is doing: the report of its local socket.
    Status,
    /// The last lines of its log.
    Logs,
    /// What its doctor finds.
    Diagnose,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Status, Self::Logs, Self::Diagnose];

    /// The last level of its topic.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Logs => "logs",
            Self::Diagnose => "diagnose",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Verb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|verb| verb.name() == text);
        found.ok_or_else(|| format!("'{text}' is no command; expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A command. Keys that it does not know are ignored by who reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The `session` of the gateway's current `status`: a command of another connection's time is none of this one.
    pub session: String,
    /// How many lines of the log.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lines: Option<u32>,
}

impl Message for Command {
    const TYPE: &'static str = "command";
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The command's verb, as its topic said it.
    pub command: String,
    /// The gateway.
    pub gateway: String,
    /// What was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub answer: Option<Value>,
    /// Why it is refused, or failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl Message for Answer {
    const TYPE: &'static str = "answer";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_the_last_level_of_a_topic() {
        for verb in Verb::ALL {
            assert_eq!(verb.name().parse(), Ok(verb));
        }
        assert!("reboot".parse::<Verb>().unwrap_err().contains("expected one of status, logs, diagnose"));
    }

    #[test]
    fn a_command_says_its_session_and_keys_that_nobody_knows_are_ignored() {
        let command = Command { session: "5e55".into(), lines: Some(20) };
        assert_eq!(command.to_json(), br#"{"v":1,"type":"command","session":"5e55","lines":20}"#);
        let read: Command = serde_json::from_str(r#"{"session":"x","sudo":true}"#).unwrap();
        assert_eq!(read, Command { session: "x".into(), lines: None });
    }
}
