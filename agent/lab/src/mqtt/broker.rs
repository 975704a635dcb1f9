//! How this program reaches a broker and who it is there: in clear, or over TLS.
//!
//! The server's name is always checked; there is no way to switch that off. Files are read once, at the start.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Once};

use anyhow::Context as _;
use rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use rumqttc::v5::{ConnectionError, MqttOptions, StateError, mqttbytes};
use rumqttc::{TlsConfiguration, TlsError, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::Address;
use crate::{unavailable, usage};

/// Who connects to a broker, and who may vouch for it.
#[derive(clap::Args, Clone, Default)]
pub struct LoginArgs {
    /// User at the broker
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub username: Option<String>,
    /// File with that user's password in its first line
    #[arg(long, value_name = "FILE", requires = "username")]
    pub password_file: Option<PathBuf>,
    /// File with the certificates of those who may vouch for the broker (mqtts), in PEM; the system's without it
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File with a client certificate and those between it and its authority, in PEM
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// File with the key of that certificate, in PEM and without a passphrase
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
}

/// Where a broker listens, and whether it speaks TLS there: `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    is_secure: bool,
    at: Address,
}

/// A broker, with all that a connection to it takes.
#[derive(Clone)]
pub struct Broker {
    url: BrokerUrl,
    login: LoginArgs,
    tls: Option<Arc<ClientConfig>>,
    password: Option<String>,
}

impl BrokerUrl {
    /// Whether it never leaves this machine.
    fn is_loopback(&self) -> bool {
        let host = &self.at.host;
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl From<Address> for BrokerUrl {
    /// In clear.
    fn from(at: Address) -> Self {
        Self { is_secure: false, at }
    }
}

impl FromStr for BrokerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (is_secure, address, port) = match text.split_once("://") {
            Some(("mqtt", address)) => (false, address, 1883),
            Some(("mqtts", address)) => (true, address, 8883),
            _ => (false, "", 0),
        };
        let at = Address::at(address, port).ok_or_else(|| {
            format!("'{text}' is not a broker's address; expected mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")
        })?;
        Ok(Self { is_secure, at })
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = &self.at;
        write!(f, "{}://{host}:{port}", if self.is_secure { "mqtts" } else { "mqtt" })
    }
}

impl LoginArgs {
    /// Whether any of them is given.
    pub fn is_given(&self) -> bool {
        self.username.is_some() || self.ca_file.is_some() || self.cert_file.is_some()
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| format!("TLS does not start: {error}"))?;
        let builder = builder.with_root_certificates(self.roots()?);
        let config = match (&self.cert_file, &self.key_file) {
            (Some(cert_file), Some(key_file)) => {
                let (chain, key) = (certificates("--cert-file", cert_file)?, key(key_file)?);
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let (cert, key) = (cert_file.display(), key_file.display());
                    match error {
                        rustls::Error::InconsistentKeys(_) => format!(
                            "--cert-file {cert} and --key-file {key} do not go together; give the key that the certificate was made for"
                        ),
                        other => format!(
                            "--cert-file {cert} with --key-file {key} cannot be used ({other}); have an X.509 certificate of version 3 made"
                        ),
                    }
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }

    /// Those who may vouch for the broker.
    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        let Some(ca_file) = &self.ca_file else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(
                    "this system knows no certificate authority; install ca-certificates, or give --ca-file".into()
                );
            }
            return Ok(roots);
        };
        for certificate in certificates("--ca-file", ca_file)? {
            roots.add(certificate).map_err(|error| {
                let shown = ca_file.display();
                format!("--ca-file {shown} holds a certificate that is none ({error}); put the authority's there")
            })?;
        }
        Ok(roots)
    }
}

impl Broker {
    /// Reads what files it takes. Warns on standard error if a password would be seen on its way.
    ///
    /// # Errors
    /// A sentence that names the file that cannot be used, or the argument that does not fit.
    pub fn new(url: &BrokerUrl, login: &LoginArgs) -> anyhow::Result<Self> {
        let tls = if url.is_secure { Some(login.tls().map_err(unavailable)?) } else { None };
        if tls.is_none() && (login.ca_file.is_some() || login.cert_file.is_some()) {
            return Err(usage(format!("--ca-file, --cert-file and --key-file are for mqtts://, not for {url}")));
        }
        let password = login.password_file.as_deref().map(first_line).transpose()?;
        let broker = Self { url: url.clone(), login: login.clone(), tls, password };
        // Once, however many connections a command makes.
        static SAID: Once = Once::new();
        if broker.shows_password() {
            SAID.call_once(|| {
                eprintln!("limpet-lab: the password goes to {url} in clear over the network; use mqtts://")
            });
        }
        Ok(broker)
    }

    /// Who connects, for messages.
    pub fn user(&self) -> String {
        let username = self.login.username.as_deref();
        username.map_or("a client without a name".to_owned(), |user| format!("user '{user}'"))
    }

    /// Options for one client.
    pub fn options(&self, client_id: impl Into<String>) -> MqttOptions {
        let mut options = self.url.at.options(client_id);
        if let Some(tls) = &self.tls {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(tls))));
        }
        if let (Some(username), Some(password)) = (&self.login.username, &self.password) {
            options.set_credentials(username.clone(), password.clone());
        }
        options
    }

    fn shows_password(&self) -> bool {
        self.login.username.is_some() && !self.url.is_secure && !self.url.is_loopback()
    }

    /// Why there is no connection, and what to do if that is known.
    pub fn why(&self, error: &ConnectionError) -> String {
        let ended = matches!(
            error,
            ConnectionError::MqttState(
                StateError::Io(_)
                    | StateError::ConnectionAborted
                    | StateError::Deserialization(mqttbytes::Error::Io(_))
            )
        );
        let refused = match error {
            ConnectionError::ConnectionRefused(code)
            | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => Some(code),
            _ => None,
        };
        if let Some(ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized) = refused {
            return format!("the broker refuses {}; check --username and --password-file", self.user());
        }
        self.explain(error).unwrap_or_else(|| match ended && !self.url.is_secure {
            true => format!("{error}; does the broker want TLS there? Then give mqtts://"),
            false => error.to_string(),
        })
    }

    /// Whether there is no connection for a reason that stays until somebody changes something.
    pub fn stays_so(error: &ConnectionError) -> bool {
        matches!(
            tls_error(error),
            Some(
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::AlertReceived(_)
                    | rustls::Error::InvalidMessage(_)
            )
        )
    }

    /// What is wrong with TLS, and what to do, if that is why there is no connection.
    pub fn explain(&self, error: &ConnectionError) -> Option<String> {
        let Some(found) = tls_error(error) else {
            let url = &self.url;
            return matches!(error, ConnectionError::Tls(_)).then(|| {
                format!("TLS was ended in its middle ({error}); does the broker speak it at {url}? Give its port for TLS, or mqtt://")
            });
        };
        let host = &self.url.at.host;
        let ca = match &self.login.ca_file {
            Some(file) => format!("--ca-file {}", file.display()),
            None => "the system's authorities; give --ca-file for one of your own".to_owned(),
        };
        Some(match found {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                format!("the broker's certificate is signed by nobody in {ca}")
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => format!("the broker's certificate is not for '{host}'; give --broker the name that it is for"),
            rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                "the broker's certificate has expired by this clock; renew it at the broker, or set the clock"
                    .to_owned()
            }
            rustls::Error::InvalidCertificate(why) => {
                format!("the broker's certificate is not accepted: {why}; renew it at the broker, or set this clock")
            }
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired) if self.login.cert_file.is_none() => {
                "the broker asks for a client certificate; give --cert-file and --key-file".to_owned()
            }
            rustls::Error::AlertReceived(AlertDescription::CertificateExpired) if self.login.cert_file.is_some() => {
                "the broker says that --cert-file has expired; renew it".to_owned()
            }
            rustls::Error::AlertReceived(alert) => match &self.login.cert_file {
                Some(file) => format!(
                    "the broker refuses --cert-file {} ({alert:?}); have it signed by an authority that the broker trusts",
                    file.display()
                ),
                None => format!("the broker ended TLS: {alert:?}"),
            },
            rustls::Error::InvalidMessage(_) => {
                format!("the broker does not speak TLS at {}; give its port for TLS, or mqtt://", self.url)
            }
            other => format!("TLS with the broker failed: {other}"),
        })
    }
}

/// What a file says in its first line: a password, or a passphrase.
///
/// # Errors
/// What the system says, with the file.
pub fn first_line(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// The certificates in a file of PEM.
fn certificates(argument: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let read = fs::read(path).map_err(|error| format!("{argument} {shown} cannot be read: {error}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    let found = found.map_err(|error| format!("{argument} {shown} is no PEM ({error}); convert it"))?;
    if found.is_empty() {
        return Err(format!("{argument} {shown} holds no certificate; expected PEM, '-----BEGIN CERTIFICATE-----'"));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let read = fs::read(path).map_err(|error| format!("--key-file {shown} cannot be read: {error}"))?;
    PrivateKeyDer::from_pem_slice(&read).map_err(|error| {
        format!("--key-file {shown} holds no private key in PEM ({error}); expected '-----BEGIN PRIVATE KEY-----', without a passphrase")
    })
}

/// Why TLS said no, if it did.
fn tls_error(error: &ConnectionError) -> Option<&rustls::Error> {
    match error {
        // A TLS alert that comes with the first packets hides here, and is not among the sources of the whole.
        ConnectionError::MqttState(StateError::Deserialization(mqttbytes::Error::Io(error))) => find(error),
        ConnectionError::Tls(TlsError::Io(error)) => find(error),
        other => find(other),
    }
}

/// The TLS error in an error, however deep. What an `io::Error` carries is not its source.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    carried.and_then(|carried| find(carried)).or_else(|| find(error.source()?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[arg(long)]
        broker: BrokerUrl,
        #[command(flatten)]
        login: LoginArgs,
    }

    fn broker(more: &[&str]) -> anyhow::Result<Broker> {
        let Cli { broker, login } =
            Cli::try_parse_from([&["lab", "--broker"], more].concat()).unwrap_or_else(|error| panic!("{error}"));
        Broker::new(&broker, &login)
    }

    fn complaint(more: &[&str]) -> String {
        format!("{:#}", broker(more).err().unwrap())
    }

    #[test]
    fn each_scheme_has_its_port_and_others_are_refused() {
        assert_eq!("mqtt://broker".parse::<BrokerUrl>().unwrap().to_string(), "mqtt://broker:1883");
        assert_eq!("mqtts://broker".parse::<BrokerUrl>().unwrap().to_string(), "mqtts://broker:8883");
        assert_eq!("mqtts://broker:1".parse::<BrokerUrl>().unwrap().to_string(), "mqtts://broker:1");
        for text in [
            "broker",
            "wss://broker",
            "http://a",
            "mqtt://",
            "mqtts://",
            "mqtts://a/b",
            "mqtts://u@a",
            "mqtt://a:x",
            "mqtts://a:70000",
        ] {
            assert!(text.parse::<BrokerUrl>().unwrap_err().contains("mqtts://HOST"), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let path = file.to_str().unwrap();
        assert!(complaint(&["mqtts://a", "--ca-file", path]).starts_with(&format!("--ca-file {path} cannot be read")));
        fs::write(&file, "nothing").unwrap();
        assert!(complaint(&["mqtts://a", "--ca-file", path]).contains("holds no certificate; expected PEM"));
        assert!(complaint(&["mqtt://a", "--ca-file", path]).contains("are for mqtts://, not for mqtt://a:1883"));
        assert!(Cli::try_parse_from(["lab", "--broker", "mqtts://a", "--cert-file", path]).is_err());
    }

    #[test]
    fn a_password_is_seen_on_the_network_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "secret\n").unwrap();
        let user = ["--username", "u", "--password-file", file.to_str().unwrap()];
        let shows = |url| broker(&[&[url], &user[..]].concat()).unwrap().shows_password();
        assert!(shows("mqtt://broker") && shows("mqtt://192.0.2.1"));
        assert!(!shows("mqtts://broker") && !shows("mqtt://localhost") && !shows("mqtt://127.0.0.2:1884"));
        assert!(!broker(&["mqtt://broker"]).unwrap().shows_password());
        assert_eq!(broker(&[&["mqtt://broker"], &user[..]].concat()).unwrap().password.unwrap(), "secret");
    }
}
