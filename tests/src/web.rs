//! A web server with TLS that serves a folder, with ranges, and breaks off in the middle when it is told to.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::LIMIT;

/// What was asked of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The path.
    pub path: String,
    /// First byte that was asked for, if it was not all of it.
    pub from: Option<usize>,
}

/// The server; it ends with the process.
pub struct Web {
    port: u16,
    certificate: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Web {
    /// Serves a folder on a free port of the loopback interface. The first answer for every file breaks off half-way.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn that_breaks_off(folder: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let made = made.expect("a certificate can be made");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has what TLS needs")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("the key belongs to the certificate");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has free ports");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let web = Self { port, certificate: made.cert.pem(), asked: Arc::default() };
        let (config, folder) = (Arc::new(config), folder.to_owned());
        let (asked, broken) = (Arc::clone(&web.asked), Arc::new(Mutex::new(BTreeSet::new())));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("the configuration is whole");
                let (folder, asked, broken) = (folder.clone(), Arc::clone(&asked), Arc::clone(&broken));
                // A client that goes away is what this server is for.
                thread::spawn(move || _ = serve(StreamOwned::new(connection, stream), &folder, &asked, &broken));
            }
        });
        web
    }

    /// Its URL, with a path.
    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// Its certificate, in PEM: it signed itself.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    stream: StreamOwned<ServerConnection, TcpStream>,
    folder: &Path,
    asked: &Mutex<Vec<Asked>>,
    broken: &Mutex<BTreeSet<PathBuf>>,
) -> std::io::Result<()> {
    stream.sock.set_read_timeout(Some(LIMIT))?;
    let mut stream = BufReader::new(stream);
    loop {
        let (mut path, mut from) = (None, None);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().map(str::to_owned);
            } else if let Some(rest) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                from = rest.split('-').next().and_then(|number| number.parse::<usize>().ok());
            }
        }
        let Some(path) = path else { return answer(&mut stream, "405 Method Not Allowed", "", &[], 0) };
        asked.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { path: path.clone(), from });
        let file = folder.join(path.trim_start_matches('/'));
        let inside = !path.contains("..");
        let Some(content) = inside.then(|| std::fs::read(&file).ok()).flatten() else {
            answer(&mut stream, "404 Not Found", "", &[], 0)?;
            continue;
        };
        let first = broken.lock().unwrap_or_else(PoisonError::into_inner).insert(file);
        let start = from.unwrap_or(0);
        if start > content.len() {
            answer(&mut stream, "416 Range Not Satisfiable", "", &[], 0)?;
            continue;
        }
        let rest = &content[start..];
        let range = format!("Content-Range: bytes {start}-{}/{}\r\n", content.len().saturating_sub(1), content.len());
        let (status, head) = if from.is_some() { ("206 Partial Content", range.as_str()) } else { ("200 OK", "") };
        let sent = if first { rest.len() / 2 } else { rest.len() };
        answer(&mut stream, status, head, &rest[..sent], rest.len())?;
        if first {
            return stream.get_ref().sock.shutdown(Shutdown::Both);
        }
    }
}

/// Answers with so much of a body of `length` bytes.
fn answer(
    stream: &mut BufReader<impl Read + Write>,
    status: &str,
    head: &str,
    body: &[u8],
    length: usize,
) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nAccept-Ranges: bytes\r\n{head}\r\n");
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}
