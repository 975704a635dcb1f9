//! The log: standard error, as text or JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts it. Called once, before anything is logged.
pub fn start(log: Log) {
    let level = format!("{:?}", log.level).to_lowercase();
    // The MQTT client logs what its caller handles: refused publications, lost connections.
    let filter = EnvFilter::new(format!("{level},rumqttc=off"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}
