//! Whether certificates, keys and passwords can be used, by nobody else, and for how long.

use jiff::Timestamp;

use super::{Finding, Patient};
use crate::link::{expiry, tls};

const CHECK: &str = "certificates";

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let now = Timestamp::now();
    for (name, broker) in &patient.config.brokers {
        if let Some(path) = &broker.password_file {
            let todo = "chmod 600 it, and chown it to the user that runs the agent";
            match tls::check_permissions("password_file", path) {
                Ok(Ok(())) => {}
                Ok(Err(why)) => findings.push(Finding::warning(CHECK, format!("broker.{name}: {why}"), todo)),
                Err(error) => {
                    let found = format!("broker.{name}: password_file {}: {error}", path.display());
                    findings.push(Finding::error(CHECK, found, todo));
                }
            }
        }
        let plain = broker.url.iter().find(|url| !url.scheme.is_secure() && !url.is_loopback());
        if let Some(url) = plain.filter(|_| broker.username.is_some()) {
            let found = format!("broker.{name}: the password goes over {url} in clear");
            findings.push(Finding::warning(CHECK, found, "use mqtts:// or wss://, with ca_file"));
        }
        if !broker.url.iter().any(|url| url.scheme.is_secure()) {
            continue;
        }
        if let Err(why) = tls::client(broker) {
            findings.push(Finding::error(CHECK, format!("broker.{name}: {why}"), "put the file right"));
            continue;
        }
        for expiry in expiry::of(broker) {
            match expiry {
                Ok(expiry) => findings.push(match expiry.warning(now) {
                    Some((found, todo)) if expiry.at <= now => {
                        Finding::error(CHECK, format!("broker.{name}: {found}"), todo)
                    }
                    Some((found, todo)) => Finding::warning(CHECK, format!("broker.{name}: {found}"), todo),
                    None => {
                        let (key, path) = (expiry.key, expiry.path.display());
                        Finding::ok(CHECK, format!("broker.{name}: {key} {path} is good until {}", expiry.at))
                    }
                }),
                Err(why) => findings.push(Finding::error(CHECK, format!("broker.{name}: {why}"), "put the file right")),
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "none are needed, and no password goes over a network in clear"));
    }
    findings
}
