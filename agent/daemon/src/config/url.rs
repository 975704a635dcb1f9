//! Addresses of brokers and of the proxy before them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// How a broker is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// MQTT over TCP.
    Mqtt,
    /// MQTT over TLS.
    Mqtts,
    /// MQTT over WebSocket.
    Ws,
    /// MQTT over WebSocket over TLS.
    Wss,
}

impl Scheme {
    const ALL: [Self; 4] = [Self::Mqtt, Self::Mqtts, Self::Ws, Self::Wss];

    /// Whether it is encrypted.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }

    /// Whether it goes over WebSocket, and so has a path.
    pub fn is_web(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }
}

/// `mqtt://HOST[:PORT]`, `mqtts://HOST[:PORT]`, `ws://HOST[:PORT][/PATH]` or `wss://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// How.
    pub scheme: Scheme,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path of the WebSocket, which begins with a slash; empty without one.
    pub path: String,
}

impl BrokerUrl {
    /// Whether it never leaves this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for BrokerUrl {
    type Err = String;

    /// Whatever is wrong with it, a password that stands in it is not repeated.
    fn from_str(url: &str) -> Result<Self, String> {
        const FORM: &str = "mqtt://HOST:PORT, mqtts://HOST:PORT, ws://HOST:PORT/PATH or wss://HOST:PORT/PATH";
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(format!("found '{}', expected {FORM}", if url.contains('@') { "…" } else { url }));
        };
        let known = Scheme::ALL.into_iter().find(|known| known.word() == scheme);
        let scheme = known.ok_or_else(|| format!("found {}://, expected {FORM}", scheme.escape_debug()))?;
        if rest.contains('@') {
            return Err(
                "user name and password do not belong into the address; use 'username' and 'password_file'".into()
            );
        }
        let wrong = |reason: &str| format!("'{}' {reason}; expected {FORM}", url.escape_debug());
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let path = match (scheme.is_web(), path) {
            (false, "" | "/") => "",
            (false, _) => return Err(wrong("has a path")),
            (true, "") => "/",
            (true, path) => path,
        };
        let printable = path.bytes().all(|b| b.is_ascii_graphic());
        let (host, port) = authority_of(authority).map_err(wrong)?;
        if !printable {
            return Err(wrong("has a path with spaces or other characters that must be escaped"));
        }
        Ok(Self { scheme, host, port: port.unwrap_or(scheme.port()), path: path.to_owned() })
    }
}

impl BrokerUrl {
    /// Host and port, as they stand in an address.
    pub fn authority(&self) -> String {
        Authority(&self.host, self.port).to_string()
    }

    /// The whole of it, as it is connected to.
    pub fn address(&self) -> String {
        format!("{}://{}{}", self.scheme.word(), Authority(&self.host, self.port), self.path)
    }
}

/// As it may be shown: a query may be a token, and is left out.
impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, query) = self.path.split_once('?').map_or((&self.path[..], ""), |(path, _)| (path, "?…"));
        write!(f, "{}://{}{path}{query}", self.scheme.word(), Authority(&self.host, self.port))
    }
}

impl Serialize for BrokerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `http://HOST:PORT`, a proxy that lets connections through by CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl FromStr for ProxyUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        const FORM: &str = "http://HOST:PORT";
        if url.contains('@') {
            return Err("a proxy that asks for a user and a password is not supported; leave them out".into());
        }
        let wrong = |reason: &str| format!("'{}' {reason}; expected {FORM}", url.escape_debug());
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong("is no address of an HTTP proxy"))?;
        let (host, port) = authority_of(rest.strip_suffix('/').unwrap_or(rest)).map_err(wrong)?;
        Ok(Self { host, port: port.ok_or_else(|| wrong("has no port"))? })
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", Authority(&self.host, self.port))
    }
}

impl Serialize for ProxyUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A host and a port as they stand in an address.
struct Authority<'a>(&'a str, u16);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The host, and the port if there is one, of `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn authority_of(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or("has no closing bracket")?;
            let address = host.parse::<std::net::Ipv6Addr>().map_err(|_| "holds no IPv6 address")?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or("has text after the bracket")?),
            };
            (address.to_string(), port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        },
    };
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || host.len() > 253 || !(host.contains(':') || host.chars().all(plain)) {
        return Err("names no host");
    }
    let digits = |port: &&str| port.bytes().all(|b| b.is_ascii_digit());
    let port = match port {
        None => None,
        Some(port) => match Some(port).filter(digits).and_then(|port| port.parse().ok()) {
            Some(port @ 1..) => Some(port),
            _ => return Err("has no port from 1 to 65535"),
        },
    };
    Ok((host, port))
}
