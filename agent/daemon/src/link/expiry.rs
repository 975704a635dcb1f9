//! When the certificates end that a link needs.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::tls;
use crate::config::Broker;

/// From how long before its end on a certificate is warned of.
pub const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The end of what a file holds: of a chain, that of the certificate that ends first; of several authorities, that of the
/// one that ends last, since one may be there to take the place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The key of the configuration.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// When.
    pub at: Timestamp,
}

impl Expiry {
    /// One sentence if that is soon, or was; with what to do.
    pub fn warning(&self, now: Timestamp) -> Option<(String, &'static str)> {
        let left = self.at.duration_since(now);
        let (key, path) = (self.key, self.path.display());
        if left > SOON {
            return None;
        }
        let todo = "renew it; the new file is read at the next connection, without a restart";
        let days = left.as_hours() / 24;
        Some(match left.is_positive() {
            true => (format!("{key} {path} holds a certificate that ends in {days} days, at {}", self.at), todo),
            false => (format!("{key} {path} holds a certificate that ended at {}", self.at), todo),
        })
    }
}

/// The ends of all files of a broker's TLS, as far as there are any.
pub fn of(broker: &Broker) -> Vec<Result<Expiry, String>> {
    if !broker.url.iter().any(|url| url.scheme.is_secure()) {
        return Vec::new();
    }
    let files = [("ca_file", &broker.ca_file), ("cert_file", &broker.cert_file)];
    files.into_iter().filter_map(|(key, path)| Some(end_of(key, path.as_deref()?))).collect()
}

fn end_of(key: &'static str, path: &Path) -> Result<Expiry, String> {
    let mut ends = Vec::new();
    for certificate in tls::certificates(key, path)? {
        let none = |why: &dyn std::fmt::Display| {
            format!("{key} {} holds a certificate that is none ({why}); get another one", path.display())
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| none(&error))?;
        // What never ends says the last second of the year 9999, which is beyond any time zone's.
        ends.push(Timestamp::from_second(parsed.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX));
    }
    let end = if key == "ca_file" { ends.into_iter().max() } else { ends.into_iter().min() };
    end.map(|at| Expiry { key, path: path.to_owned(), at }).ok_or_else(|| format!("{key} {} is empty", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_warned_of_thirty_days_before() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let ends =
            |text: &str| Expiry { key: "cert_file", path: "/c.pem".into(), at: text.parse().unwrap() }.warning(now);
        assert_eq!(ends("2026-12-28T12:00:00Z"), None);
        assert!(
            ends("2026-12-20T13:00:00Z")
                .unwrap()
                .0
                .contains("cert_file /c.pem holds a certificate that ends in 23 days")
        );
        assert!(ends("2026-11-20T12:00:00Z").unwrap().0.contains("ended at 2026-11-20T12:00:00Z"));
    }
}
