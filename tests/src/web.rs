//! A web server with the chunks of a depot: HTTPS with a certificate of an authority of its own, Range requests, and the
//! manners of servers that are not as they should be.

use std::io::{BufRead as _, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use crate::LIMIT;
use crate::depot::Depot;

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Right,
    /// It has nothing.
    Empty,
    /// It sends as many other bytes.
    Other,
    /// It sends on to a server without TLS, which would have it.
    Plain,
    /// It ends every transfer from the start half-way, and answers Range requests.
    Broken,
    /// It fails.
    Failing,
    /// Its certificate is another authority's.
    Stranger,
}

/// A request that came: the path, and from which byte on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The path.
    pub path: String,
    /// The first byte of a Range request.
    pub from: Option<usize>,
}

/// The server. Its threads end with the process.
pub struct Web {
    port: u16,
    folder: TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    content: PathBuf,
    manner: Mutex<Manner>,
    asked: Mutex<Vec<Asked>>,
    /// With the right certificate, and with a stranger's.
    tls: [Arc<ServerConfig>; 2],
    /// A server without TLS that has the same.
    plain: u16,
    asked_plainly: Mutex<usize>,
}

impl Web {
    /// A server of what a depot in a folder has, under `/depot/`.
    ///
    /// # Panics
    /// If there is no free port, or no certificate can be made.
    pub fn of(depot: &Depot) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (authority, right) = certified();
        let (_, strange) = certified();
        std::fs::write(folder.path().join("authority.pem"), authority).expect("a temporary file can be written");
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has free ports");
        let port = |listener: &TcpListener| listener.local_addr().expect("a bound socket has an address").port();
        let (secure, plain) = (listen(), listen());
        let shared = Arc::new(Shared {
            content: depot.content(),
            manner: Mutex::new(Manner::Right),
            asked: Mutex::default(),
            tls: [right, strange],
            plain: port(&plain),
            asked_plainly: Mutex::default(),
        });
        let web = Self { port: port(&secure), folder, shared: Arc::clone(&shared) };
        let for_plain = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in plain.incoming().map_while(Result::ok) {
                *for_plain.asked_plainly.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                serve(&for_plain, stream, Manner::Right);
            }
        });
        thread::spawn(move || {
            for stream in secure.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.accept(stream));
            }
        });
        web
    }

    /// The base URL of the depot.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/depot", self.port)
    }

    /// The certificate of its authority, as PEM.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// From now on it answers like this.
    pub fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Requests that came since this was last asked.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Connections without TLS that came.
    pub fn asked_plainly(&self) -> usize {
        *self.shared.asked_plainly.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, stream: TcpStream) {
        // Only the latency suffers if it is refused; a client that is silent for so long is gone.
        let _ = (stream.set_nodelay(true), stream.set_read_timeout(Some(LIMIT)));
        let manner = self.manner();
        let config = Arc::clone(&self.tls[usize::from(manner == Manner::Stranger)]);
        let connection = ServerConnection::new(config).expect("the configuration was made for it");
        serve(self, StreamOwned::new(connection, stream), manner);
    }
}

/// The certificate of a new authority as PEM, and a configuration with one of its for the loopback interface.
fn certified() -> (String, Arc<ServerConfig>) {
    let made = || -> Result<_, rcgen::Error> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let own = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
        Ok((issuer.pem(), own.der().clone(), key.serialize_der()))
    };
    let (pem, certificate, key) = made().expect("certificates can be made");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key).into())
        .expect("the key is that of the certificate");
    (pem, Arc::new(config))
}

/// Answers the requests on one connection, until it ends.
fn serve(shared: &Shared, stream: impl std::io::Read + Write, at_first: Manner) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            // A client that has what it wants goes.
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let asked = Asked {
            path: head.split(' ').nth(1).unwrap_or_default().to_owned(),
            from: head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                let range = name.eq_ignore_ascii_case("range").then(|| value.strip_prefix("bytes="))??;
                range.trim_end_matches('-').parse().ok()
            }),
        };
        shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        let manner = if at_first == Manner::Right { shared.manner() } else { at_first };
        let (head, body, ends) = answer(shared, manner, &asked);
        let stream = reader.get_mut();
        let sent = write!(stream, "HTTP/1.1 {head}\r\n\r\n").and_then(|()| stream.write_all(&body));
        if sent.and_then(|()| stream.flush()).is_err() || ends {
            return;
        }
    }
}

/// Head and body of an answer, and whether the connection ends with it.
fn answer(shared: &Shared, manner: Manner, asked: &Asked) -> (String, Vec<u8>, bool) {
    let nothing = |head: &str| (format!("{head}\r\nContent-Length: 0"), Vec::new(), false);
    let whole = match asked.path.strip_prefix("/depot/chunk/").filter(|digest| !digest.contains(['/', '.'])) {
        Some(digest) => std::fs::read(shared.content.join("chunk").join(Path::new(digest))).ok(),
        None => None,
    };
    let Some(mut whole) = whole else { return nothing("404 Not Found") };
    match manner {
        Manner::Empty => return nothing("404 Not Found"),
        Manner::Failing => return nothing("503 Service Unavailable"),
        Manner::Plain => {
            let location = format!("Location: http://127.0.0.1:{}{}", shared.plain, asked.path);
            return nothing(&format!("302 Found\r\n{location}"));
        }
        Manner::Other => whole.iter_mut().for_each(|byte| *byte ^= 0x55),
        Manner::Right | Manner::Broken | Manner::Stranger => {}
    }
    let length = whole.len();
    match asked.from {
        Some(from) if from < length => {
            let range = format!("Content-Range: bytes {from}-{}/{length}", length - 1);
            let body = whole.split_off(from);
            (format!("206 Partial Content\r\n{range}\r\nContent-Length: {}", body.len()), body, false)
        }
        _ => {
            let ends = manner == Manner::Broken;
            whole.truncate(if ends { length / 2 } else { length });
            (format!("200 OK\r\nContent-Length: {length}"), whole, ends)
        }
    }
}
