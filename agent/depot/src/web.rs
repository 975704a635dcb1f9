//! Chunks from a web server: `<base URL>/chunk/<sha256>`, for fleets whose broker should not carry them.
//!
//! The base URL stands in signed metadata, and a chunk is what its digest says, so the server need not be trusted with
//! more than availability. Even so only https is spoken, with redirects to https alone, and no more is read than was
//! asked for. A transfer that breaks goes on where it ended, by a Range request, as long as the server has the same chunk
//! in mind.
//!
//! A server that does not have a chunk (404) proves nothing either: it may be a cache, or not have got it yet. That is
//! [`RemoteError::Failed`]; when to try again, or to ask the broker instead, is for whoever asks.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use limpet_wire::depot::Name;
use rustls::crypto::aws_lc_rs;
use tough::async_trait;
use ureq::Agent;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use url::Url;

use crate::package::Digest;
use crate::remote::{Remote, RemoteError};

/// Time for each of resolving the name, connecting (with TLS), and the head of the answer.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// Time in which something must come of a body.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// Time for one transfer; what came of it is kept for the next.
const TRANSFER_LIMIT: Duration = Duration::from_secs(120);
/// Transfers in a row that bring nothing.
const TRIES: u32 = 4;
/// Transfers for one chunk in all, so that a server cannot deal it out by the byte.
const TRANSFERS: u32 = 16;
/// Wait after the first of them; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Redirects in a row.
const REDIRECTS: u32 = 3;

/// Why there can be no [`Web`].
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The URL does not do.
    #[error(
        "the depot's URL for chunks is '{url}'; expected https://HOST[:PORT][/PATH], without user, query and fragment"
    )]
    Url {
        /// What was found.
        url: Url,
    },
    /// A file with certificates cannot be read.
    #[error("{path}: {reason}; expected the certificates of authorities as PEM")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system has no certificates.
    #[error(
        "this system has no certificates of authorities ({reason}); install ca-certificates, or name a file of your own"
    )]
    NoRoots {
        /// What was looked for.
        reason: String,
    },
}

/// Chunks behind a base URL. Cheap to clone; connections are kept open between chunks.
#[derive(Debug, Clone)]
pub struct Web {
    agent: Agent,
    base: String,
    first_wait: Duration,
}

impl Web {
    /// Chunks below `base`; `ca_file` has the certificates (PEM) of the authorities that are trusted, without it those of
    /// the system are. A proxy is taken from the environment (`HTTPS_PROXY`, `NO_PROXY`).
    ///
    /// # Errors
    /// [`WebError`] if the URL is not https, or there are no certificates.
    pub fn new(base: &Url, ca_file: Option<&Path>) -> Result<Self, WebError> {
        let plain = base.username().is_empty() && base.password().is_none() && base.query().is_none();
        if base.scheme() != "https" || base.host().is_none() || !plain || base.fragment().is_some() {
            // Whoever wrote a password into it need not read it in a log.
            let mut url = base.clone();
            let _ = url.set_password(None);
            return Err(WebError::Url { url });
        }
        let roots = match ca_file {
            Some(path) => roots_of(path)?,
            None => system_roots()?,
        };
        // The one provider of the program, passed on because ureq would look for one that is installed for the process.
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
            .root_certs(RootCerts::new_with_certs(&roots))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .max_redirects(REDIRECTS)
            .http_status_as_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("limpet/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(STEP_LIMIT))
            .timeout_connect(Some(STEP_LIMIT))
            .timeout_recv_response(Some(STEP_LIMIT))
            .timeout_per_read(Some(READ_LIMIT))
            .timeout_global(Some(TRANSFER_LIMIT))
            .build()
            .new_agent();
        Ok(Self { agent, base: base.as_str().trim_end_matches('/').to_owned(), first_wait: FIRST_WAIT })
    }

    fn failed(&self, name: &Name, reason: String) -> RemoteError {
        RemoteError::Failed { place: self.base.clone(), name: name.clone(), reason }
    }
}

fn roots_of(path: &Path) -> Result<Vec<Certificate<'static>>, WebError> {
    let wrong = |reason: String| WebError::File { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let mut roots = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(e.to_string()))? {
            roots.push(certificate);
        }
    }
    // One that is damaged would be left out without a word, and then no server would be trusted.
    let mut store = rustls::RootCertStore::empty();
    for root in &roots {
        store.add(root.der().into()).map_err(|e| wrong(e.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("there is no certificate in it".to_owned())) } else { Ok(roots) }
}

fn system_roots() -> Result<Vec<Certificate<'static>>, WebError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(WebError::NoRoots { reason });
    }
    Ok(found.certs.iter().map(|root| Certificate::from_der(root).to_owned()).collect())
}

#[async_trait]
impl Remote for Web {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        let Name::Chunk(sha256) = name else {
            return Err(self.failed(name, "a web server has only the chunks of a depot; ask the broker".to_owned()));
        };
        let url = format!("{}/{name}", self.base);
        let mut partial = Partial::default();
        let (mut idle, mut waited) = (0, self.first_wait);
        let mut started_anew = false;
        for transfer in 1.. {
            let before = partial.bytes.len();
            let (agent, url) = (self.agent.clone(), url.clone());
            let transferring = tokio::task::spawn_blocking(move || {
                let end = transfer_once(&agent, &url, &mut partial, most);
                (end, partial)
            });
            let end;
            (end, partial) = transferring.await.map_err(|e| self.failed(name, e.to_string()))?;
            let broken = match end {
                End::Whole => {
                    let found = Digest::of(&partial.bytes);
                    if found.0 == *sha256 {
                        return Ok(partial.bytes.into());
                    }
                    let reason = format!("{} bytes with SHA-256 {found}", partial.bytes.len());
                    if !partial.resumed || started_anew {
                        return Err(RemoteError::Damaged { place: self.base.clone(), name: name.clone(), reason });
                    }
                    // Halves of different things, perhaps; the whole in one piece is tried once.
                    started_anew = true;
                    partial = Partial::default();
                    reason
                }
                End::TooLarge(found) => {
                    let (place, name) = (self.base.clone(), name.clone());
                    return Err(RemoteError::TooLarge { place, name, found, most: most as u64 });
                }
                End::No(reason) => return Err(self.failed(name, reason)),
                End::Broken(reason) => reason,
            };
            idle = if partial.bytes.len() > before { 0 } else { idle + 1 };
            if idle == TRIES || transfer == TRANSFERS {
                let came = partial.bytes.len();
                let reason =
                    format!("{broken}; {came} bytes came in {transfer} transfers, the last {idle} brought none");
                return Err(self.failed(name, reason));
            }
            if idle <= 1 {
                waited = self.first_wait;
            }
            tokio::time::sleep(waited).await;
            waited *= 2;
        }
        unreachable!("the last transfer returns")
    }

    fn place(&self) -> &str {
        &self.base
    }
}

/// What came of a chunk.
#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Bytes of the whole, if the server said so.
    whole: Option<u64>,
    /// More than one transfer went into it.
    resumed: bool,
}

/// How a transfer ended.
enum End {
    /// The body is complete.
    Whole,
    /// More than may be: so many bytes, or at least so many.
    TooLarge(u64),
    /// The server does not give it: no use to ask again at once.
    No(String),
    /// It broke.
    Broken(String),
}

/// One request and what came of it.
fn transfer_once(agent: &Agent, url: &str, partial: &mut Partial, most: usize) -> End {
    let mut request = agent.get(url);
    if !partial.bytes.is_empty() {
        request = request.header(header::RANGE, format!("bytes={}-", partial.bytes.len()));
    }
    let mut response = match request.call() {
        Ok(response) => response,
        Err(error) => return explain(&error),
    };
    match response.status() {
        StatusCode::OK => {
            // All of it, whether or not a part was asked for.
            *partial = Partial { whole: number(&response, header::CONTENT_LENGTH), ..Partial::default() };
        }
        StatusCode::PARTIAL_CONTENT => {
            let (had, known) = (partial.bytes.len() as u64, partial.whole);
            match content_range(&response) {
                Some((from, whole)) if from == had && had > 0 && known.is_none_or(|known| known == whole) => {
                    partial.whole = Some(whole);
                    partial.resumed = true;
                }
                found => {
                    *partial = Partial::default();
                    let found = found.map_or_else(|| "no range".to_owned(), |(from, whole)| format!("{from}-/{whole}"));
                    return End::Broken(format!("the server sent another part than it was asked for ({found})"));
                }
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            *partial = Partial::default();
            return End::Broken("the server has less of it than it sent before".to_owned());
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            return End::No(format!("the server does not have it ({}); nothing is concluded", response.status()));
        }
        status if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) => {
            return End::Broken(format!("the server answers {status}"));
        }
        status => return End::No(format!("the server answers {status}; expected 200 or 206")),
    }
    if let Some(whole) = partial.whole.filter(|whole| *whole > most as u64) {
        return End::TooLarge(whole);
    }
    let room = most as u64 + 1 - partial.bytes.len() as u64;
    // What was read before an error is kept.
    let read = response.body_mut().as_reader().take(room).read_to_end(&mut partial.bytes);
    let came = partial.bytes.len() as u64;
    if came > most as u64 {
        partial.bytes.clear();
        return End::TooLarge(came);
    }
    match (read, partial.whole) {
        (Err(error), _) => End::Broken(error.to_string()),
        (Ok(_), Some(whole)) if came < whole => {
            End::Broken(format!("the connection ended after {came} of {whole} bytes"))
        }
        (Ok(_), _) => End::Whole,
    }
}

fn number<T>(response: &Response<T>, name: header::HeaderName) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.trim().parse().ok()
}

/// First byte and length of the whole of `Content-Range: bytes 100-199/200`.
fn content_range<T>(response: &Response<T>) -> Option<(u64, u64)> {
    let text = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, whole) = (from.parse().ok()?, to.parse::<u64>().ok()?, whole.parse().ok()?);
    (from <= to && to < whole).then_some((from, whole))
}

fn explain(error: &ureq::Error) -> End {
    match error {
        // A server with the wrong certificate has it a moment later too.
        ureq::Error::Rustls(error) => End::No(untrusted(error)),
        ureq::Error::Io(io) if let Some(tls) = io.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) => {
            End::No(untrusted(tls))
        }
        ureq::Error::RequireHttpsOnly(to) => {
            End::No(format!("the server sends on to '{to}', which is not https: that is not followed"))
        }
        ureq::Error::TooManyRedirects => End::No(format!("the server sends on more than {REDIRECTS} times")),
        other => End::Broken(other.to_string()),
    }
}

fn untrusted(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => format!(
            "the server's certificate is not trusted ({why}); does it belong to that name, is the clock right, and is its \
             authority one of the system's or in the file that was named?"
        ),
        other => format!("no TLS connection: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Mutex;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    /// What the server does with one request.
    enum Answer {
        /// Head (without the last empty line) and body; then it goes on listening on that connection.
        Send(String, Vec<u8>),
        /// The same, then it closes the connection without a word.
        Break(String, Vec<u8>),
    }

    struct Server {
        url: Url,
        /// Certificate of the authority.
        ca: tempfile::NamedTempFile,
        /// Heads of the requests that came.
        seen: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        /// A server on the loopback interface that gives these answers in this order.
        fn start(answers: Vec<Answer>) -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
                .unwrap();
            let ca = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(ca.path(), issuer.pem()).unwrap();
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let url = format!("https://127.0.0.1:{}/depot/", listener.local_addr().unwrap().port());
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (config, requests) = (Arc::new(config), Arc::clone(&seen));
            std::thread::spawn(move || {
                let mut answers = answers.into_iter();
                // One connection at a time, until no answer is left.
                while answers.len() > 0
                    && let Ok((tcp, _)) = listener.accept()
                {
                    tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
                    serve(tls, &mut answers, &requests);
                }
            });
            Self { url: url.parse().unwrap(), ca, seen }
        }

        fn web(&self) -> Web {
            let mut web = Web::new(&self.url, Some(self.ca.path())).unwrap();
            web.first_wait = Duration::from_millis(1);
            web
        }

        /// The Range header of each request.
        fn ranges(&self) -> Vec<Option<String>> {
            let seen = self.seen.lock().unwrap();
            let range = |head: &String| {
                let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("range: "));
                line.map(|line| line[7..].to_owned())
            };
            seen.iter().map(range).collect()
        }
    }

    fn serve(
        tls: StreamOwned<ServerConnection, std::net::TcpStream>,
        answers: &mut impl Iterator<Item = Answer>,
        requests: &Mutex<Vec<String>>,
    ) {
        let mut reader = BufReader::new(tls);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    return;
                }
            }
            requests.lock().unwrap().push(head);
            let Some(answer) = answers.next() else { return };
            let (end, head, body) = match answer {
                Answer::Send(head, body) => (false, head, body),
                Answer::Break(head, body) => (true, head, body),
            };
            let tls = reader.get_mut();
            // A client may have gone.
            let _ = tls.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes());
            let _ = tls.write_all(&body);
            let _ = tls.flush();
            if end {
                return;
            }
        }
    }

    fn content() -> (Name, Vec<u8>) {
        let bytes: Vec<u8> = (0..50_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        (Name::Chunk(Digest::of(&bytes).0), bytes)
    }

    fn ok(bytes: &[u8]) -> Answer {
        Answer::Send(format!("200 OK\r\nContent-Length: {}", bytes.len()), bytes.to_vec())
    }

    fn fetch(server: &Server, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.web().message(name, most))
    }

    #[test]
    fn a_chunk_comes_over_tls_and_the_connection_is_used_again() {
        let (name, bytes) = content();
        let server = Server::start(vec![ok(&bytes), ok(&bytes)]);
        let web = server.web();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(web.message(&name, bytes.len()).await.unwrap(), bytes);
            assert_eq!(web.message(&name, bytes.len()).await.unwrap(), bytes);
            web.message(&Name::Timestamp, 100).await.unwrap_err();
        });
        let seen = server.seen.lock().unwrap();
        assert!(seen[0].starts_with(&format!("GET /depot/{name} HTTP/1.1\r\n")), "{}", seen[0]);
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_transfer_that_breaks_goes_on_where_it_ended() {
        let (name, bytes) = content();
        let server = Server::start(vec![
            Answer::Break("200 OK\r\nContent-Length: 50000".to_owned(), bytes[..20_000].to_vec()),
            Answer::Break(
                "206 Partial Content\r\nContent-Range: bytes 20000-49999/50000\r\nContent-Length: 30000".to_owned(),
                bytes[20_000..30_000].to_vec(),
            ),
            Answer::Send("503 Service Unavailable\r\nContent-Length: 0".to_owned(), Vec::new()),
            Answer::Send(
                "206 Partial Content\r\nContent-Range: bytes 30000-49999/50000\r\nContent-Length: 20000".to_owned(),
                bytes[30_000..].to_vec(),
            ),
        ]);
        assert_eq!(fetch(&server, &name, bytes.len()).unwrap(), bytes);
        let range = |text: &str| Some(text.to_owned());
        let expected = [None, range("bytes=20000-"), range("bytes=30000-"), range("bytes=30000-")];
        assert_eq!(server.ranges(), expected);
    }

    #[test]
    fn a_server_that_ignores_the_range_or_sends_another_is_read_from_the_start() {
        let (name, bytes) = content();
        let broken = || Answer::Break("200 OK\r\nContent-Length: 50000".to_owned(), bytes[..20_000].to_vec());
        let server = Server::start(vec![broken(), ok(&bytes)]);
        assert_eq!(fetch(&server, &name, bytes.len()).unwrap(), bytes);
        for lie in ["bytes 0-29999/50000", "bytes 20000-59999/60000", "20000", "bytes 20000-19999/50000"] {
            let head = format!("206 Partial Content\r\nContent-Range: {lie}\r\nContent-Length: 30000");
            let server = Server::start(vec![broken(), Answer::Break(head, bytes[20_000..].to_vec()), ok(&bytes)]);
            assert_eq!(fetch(&server, &name, bytes.len()).unwrap(), bytes, "{lie}");
            assert_eq!(server.ranges()[2], None);
        }
    }

    #[test]
    fn halves_of_different_things_are_thrown_away_and_the_whole_is_tried_once() {
        let (name, bytes) = content();
        let server = Server::start(vec![
            Answer::Break("200 OK\r\nContent-Length: 50000".to_owned(), vec![0; 20_000]),
            Answer::Send(
                "206 Partial Content\r\nContent-Range: bytes 20000-49999/50000\r\nContent-Length: 30000".to_owned(),
                bytes[20_000..].to_vec(),
            ),
            ok(&bytes),
        ]);
        assert_eq!(fetch(&server, &name, bytes.len()).unwrap(), bytes);
    }

    #[test]
    fn another_content_than_the_digest_says_is_damaged() {
        let (name, mut bytes) = content();
        bytes[5] ^= 1;
        let server = Server::start(vec![ok(&bytes)]);
        let error = fetch(&server, &name, bytes.len()).unwrap_err();
        assert!(matches!(error, RemoteError::Damaged { .. }), "{error}");
    }

    #[test]
    fn no_more_is_read_than_was_asked_for() {
        let (name, bytes) = content();
        let chunked = [&b"C350\r\n"[..], &bytes, b"\r\n0\r\n\r\n"].concat();
        let answers = [
            ok(&bytes),
            Answer::Break("200 OK\r\nTransfer-Encoding: chunked".to_owned(), chunked),
            Answer::Break("200 OK\r\nConnection: close".to_owned(), bytes.clone()),
            Answer::Break("200 OK\r\nContent-Length: 99999999999".to_owned(), bytes[..100].to_vec()),
        ];
        for answer in answers {
            let server = Server::start(vec![answer]);
            let error = fetch(&server, &name, bytes.len() - 1).unwrap_err();
            assert!(matches!(error, RemoteError::TooLarge { .. }), "{error}");
        }
    }

    #[test]
    fn a_server_that_lies_about_the_length_ends_in_an_error_after_a_few_tries() {
        let (name, bytes) = content();
        let lie = || Answer::Break("200 OK\r\nContent-Length: 50000".to_owned(), bytes[..100].to_vec());
        // It starts at the beginning each time.
        let server = Server::start((0..8).map(|_| lie()).collect());
        let error = fetch(&server, &name, bytes.len()).unwrap_err().to_string();
        assert!(error.contains("100 bytes came in 5 transfers"), "{error}");
    }

    #[test]
    fn what_the_server_does_not_have_is_an_error_and_never_absence() {
        let (name, _) = content();
        let server = Server::start(vec![Answer::Send("404 Not Found\r\nContent-Length: 0".to_owned(), Vec::new())]);
        let error = fetch(&server, &name, 100).unwrap_err();
        assert!(matches!(&error, RemoteError::Failed { reason, .. } if reason.contains("404")), "{error}");
    }

    #[test]
    fn a_redirect_is_followed_to_https_alone() {
        let (name, bytes) = content();
        let other = Server::start(vec![ok(&bytes)]);
        let to = |url: &str| Answer::Send(format!("302 Found\r\nLocation: {url}\r\nContent-Length: 0"), Vec::new());
        let server = Server::start(vec![to("/elsewhere"), ok(&bytes)]);
        assert_eq!(fetch(&server, &name, bytes.len()).unwrap(), bytes);
        let plain = other.url.as_str().replace("https:", "http:");
        let server = Server::start(vec![to(&plain)]);
        let error = fetch(&server, &name, bytes.len()).unwrap_err().to_string();
        assert!(error.contains("not https"), "{error}");
        assert!(other.seen.lock().unwrap().is_empty());
    }

    #[test]
    fn a_server_of_another_authority_is_refused() {
        let (name, bytes) = content();
        let (server, other) = (Server::start(vec![ok(&bytes)]), Server::start(vec![ok(&bytes)]));
        let web = Web::new(&server.url, Some(other.ca.path())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(web.message(&name, bytes.len())).unwrap_err().to_string();
        assert!(error.contains("certificate is not trusted"), "{error}");
        assert!(server.seen.lock().unwrap().is_empty());
    }

    #[test]
    fn addresses_and_files_that_do_not_do_are_refused() {
        for url in ["http://h/", "http://127.0.0.1/", "ftp://h/", "https://u:p@h/", "https://h/?q", "https://h/#f"] {
            let error = Web::new(&url.parse().unwrap(), None).unwrap_err();
            assert!(matches!(error, WebError::Url { .. }), "{error}");
            assert!(!error.to_string().contains(":p@"));
        }
        let url = "https://h/".parse().unwrap();
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = Web::new(&url, Some(empty.path())).unwrap_err().to_string();
        assert!(error.contains("no certificate in it"), "{error}");
        assert!(matches!(Web::new(&url, Some(Path::new("/nowhere"))), Err(WebError::File { .. })));
    }
}
