//! Links that a factory's firewall lets out: TLS, WebSocket, a proxy; and what a person is told when one does not work.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use limpet_tests::agent::Home;
use limpet_tests::broker::free_port;
use limpet_tests::program::{self, Running, text_of};
use limpet_tests::{Agent, Broker, Client, Package};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, date_time_ymd,
};

use crate::{levels, uplink};

/// An authority, as a file and as what signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no name is none too many");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = named(name);
        let key = KeyPair::generate().expect("there is randomness");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate can be made"))
    }

    /// A certificate for these names, and its key.
    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("they are names");
        params.distinguished_name = named("somebody");
        change(&mut params);
        let key = KeyPair::generate().expect("there is randomness");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate can be made");
        (certificate.pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A broker that can be reached in clear by whoever watches, and over TLS at a port of its own.
struct Secure {
    broker: Broker,
    port: u16,
    authority: Authority,
    files: tempfile::TempDir,
    package: Package,
}

impl Secure {
    /// With these lines for its listener, and a certificate that is made so.
    fn start(lines: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let authority = Authority::new("the works");
        let (certificate, key) = authority.sign(names, change);
        let port = free_port();
        let text = format!(
            "per_listener_settings true\nlistener {{port}} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n\
             listener {port} 127.0.0.1\nallow_anonymous true\ncafile {{dir}}/ca.pem\ncertfile {{dir}}/cert.pem\nkeyfile {{dir}}/key.pem\n{lines}\n"
        );
        let files = [("ca.pem", authority.pem()), ("cert.pem", certificate), ("key.pem", key)];
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let broker = Broker::start_from(&text, &files);
        Self {
            broker,
            port,
            authority,
            files: tempfile::tempdir().expect("a temporary folder can be made"),
            package: Package::scores(),
        }
    }

    /// Puts a file beside the agent's configuration, readable for its owner alone.
    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, text).expect("a temporary file can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path
    }

    fn agent(&self, url: &str, keys: &str) -> Agent {
        let config = format!("[broker.local]\nurl = \"{url}\"\n{keys}\n{}", levels(&self.package, "", ""));
        Agent::start_in(Home::proved(), &config)
    }

    fn ca(&self) -> String {
        format!("ca_file = \"{}\"\n", self.put("ca.pem", &self.authority.pem()).display())
    }

    /// The lines of a client certificate that an authority signed.
    fn client(&self, authority: &Authority) -> String {
        let (certificate, key) = authority.sign(&["press-07"], |_| {});
        let (certificate, key) = (self.put("client.pem", &certificate), self.put("client.key", &key));
        format!("cert_file = \"{}\"\nkey_file = \"{}\"\n", certificate.display(), key.display())
    }

    /// A result comes through.
    fn delivers(&self, agent: &Agent) {
        let mut client = Client::connect(&self.broker);
        client.subscribe(&["limpet/1/#"]);
        agent.wait_for_model(&mut client, "scores", "active");
        let result = client.knock("plant/a/scores", "[0.9, 0.1, 0.1]", &uplink("result/levels/a"));
        assert_eq!(result.json()["label"], "low");
    }
}

const LOCALHOST: [&str; 2] = ["localhost", "127.0.0.1"];

#[test]
fn both_sides_show_certificates_of_a_private_authority() {
    let secure = Secure::start("require_certificate true", &LOCALHOST, |_| {});
    let keys = secure.ca() + &secure.client(&secure.authority);
    let agent = secure.agent(&format!("mqtts://localhost:{}", secure.port), &keys);
    secure.delivers(&agent);
}

#[test]
fn websockets_are_spoken_in_clear_and_over_tls() {
    for secure in [false, true] {
        let broker = Secure::start("protocol websockets", &LOCALHOST, |_| {});
        if secure {
            let agent = broker.agent(&format!("wss://localhost:{}/mqtt", broker.port), &broker.ca());
            broker.delivers(&agent);
        } else {
            let port = free_port();
            let text = format!(
                "listener {{port}} 127.0.0.1\nlistener {port} 127.0.0.1\nprotocol websockets\nallow_anonymous true\nset_tcp_nodelay true\n"
            );
            let plain = Secure { broker: Broker::start_from(&text, &[]), port, ..broker };
            let agent = plain.agent(&format!("ws://127.0.0.1:{port}"), "");
            plain.delivers(&agent);
        }
    }
}

/// An HTTP proxy that lets everything through, or nothing.
fn proxy(lets: bool) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has free ports");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for mut near in listener.incoming().map_while(Result::ok) {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && near.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
            let far = target
                .filter(|_| lets)
                .and_then(|target| TcpStream::connect(target.replace("localhost", "127.0.0.1")).ok());
            let Some(far) = far else {
                _ = near.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
                continue;
            };
            _ = near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
            let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be duplicated");
            let (mut near_in, mut far_out, mut far_in, mut near_out) = (clone(&near), clone(&far), far, near);
            thread::spawn(move || _ = std::io::copy(&mut near_in, &mut far_out));
            thread::spawn(move || _ = std::io::copy(&mut far_in, &mut near_out));
        }
    });
    port
}

#[test]
fn a_proxy_lets_the_link_out_or_is_named() {
    let secure = Secure::start("", &LOCALHOST, |_| {});
    let url = format!("mqtts://localhost:{}", secure.port);
    let through = |proxy: u16| format!("proxy = \"http://127.0.0.1:{proxy}\"\n{}", secure.ca());
    let agent = secure.agent(&url, &through(proxy(true)));
    secure.delivers(&agent);
    let closed = proxy(false);
    let agent = secure.agent(&url, &through(closed));
    agent.wait_for_log(&[
        "cannot connect",
        &format!("the proxy http://127.0.0.1:{closed} does not let it through"),
        "CONNECT",
    ]);
}

#[test]
fn what_is_wrong_with_a_certificate_is_said_and_where_and_what_to_do() {
    let good = Secure::start("require_certificate true", &LOCALHOST, |_| {});
    let url = format!("mqtts://localhost:{}", good.port);
    let stranger = Authority::new("somebody else");
    let said = |agent: Agent, words: &[&str]| {
        agent.wait_for_log(&[&["ERROR", "cannot connect"], words].concat());
    };
    said(good.agent(&url, &good.ca()), &["asks for a client certificate", "set cert_file and key_file"]);
    let keys = good.ca() + &good.client(&stranger);
    said(
        good.agent(&url, &keys),
        &["refuses cert_file", "client.pem", "have it signed by an authority that the broker trusts"],
    );
    let foreign = good.put("foreign.pem", &stranger.pem());
    let keys = format!("ca_file = \"{}\"\n", foreign.display());
    said(good.agent(&url, &keys), &["signed by nobody in ca_file", "foreign.pem"]);
    let agent = good.agent(&format!("mqtts://localhost:{}", good.broker.port()), &good.ca());
    agent.wait_for_log(&["cannot connect", "in the middle of TLS", "does it speak TLS at mqtts://localhost"]);
    let agent = good.agent(&format!("mqtt://localhost:{}", good.port), "");
    agent.wait_for_log(&["cannot connect", "before it had accepted it; does it want TLS"]);
    // A key that others can read is not used.
    let keys = good.ca() + &good.client(&good.authority);
    fs::set_permissions(good.files.path().join("client.key"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    said(
        good.agent(&url, &keys),
        &["key_file", "client.key", "can be read or changed by others (mode 644", "chmod 600"],
    );
    good.put("client.key", "no key");
    said(good.agent(&url, &keys), &["key_file", "client.key", "holds no private key in PEM"]);

    let elsewhere = Secure::start("", &["broker.example.com"], |_| {});
    let agent = elsewhere.agent(&format!("mqtts://localhost:{}", elsewhere.port), &elsewhere.ca());
    said(agent, &["certificate is not for 'localhost'", "write the name into url that it is for"]);
    let old = Secure::start("", &LOCALHOST, |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let agent = old.agent(&format!("mqtts://localhost:{}", old.port), &old.ca());
    said(
        agent,
        &["broker's certificate has expired by this gateway's clock", "renew it at the broker, or set the clock"],
    );
}

#[test]
fn results_are_audited_over_tls_by_who_knows_the_authority() {
    let secure = Secure::start("require_certificate true", &LOCALHOST, |_| {});
    let url = format!("mqtts://localhost:{}", secure.port);
    let agent = secure.agent(&url, &(secure.ca() + &secure.client(&secure.authority)));
    secure.delivers(&agent);
    let file = |name: &str| secure.files.path().join(name);
    let (certificate, key) = (file("client.pem"), file("client.key"));
    let arguments = |ca: &Path| {
        let files = ["--ca-file", text_of(ca), "--cert-file", text_of(&certificate), "--key-file", text_of(&key)];
        let fixed = ["audit", "--broker", &url, "--until-quiet", "11", "--json"];
        [&fixed[..], &files[..]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let audit = Running::start("limpet-lab", &arguments(&file("ca.pem")), &[]);
    secure.broker.wait_subscribed("limpet/1/+/result/#");
    Client::connect(&secure.broker).publish("plant/a/scores", "[0.9, 0.1, 0.1]");
    let report: serde_json::Value =
        serde_json::from_str(&audit.end().expect_code(0).stdout).expect("the report is one object");
    assert!(report["streams"][0]["received"].as_u64() >= Some(1), "{report}");

    let foreign = secure.put("foreign.pem", &Authority::new("somebody else").pem());
    let refused = program::run("limpet-lab", &arguments(&foreign)).expect_code(69);
    refused.expect_complaint(&["the broker's certificate is signed by nobody in --ca-file", "foreign.pem"]);
}

#[test]
fn a_depot_is_published_and_watched_over_tls_and_a_broker_measured() {
    let secure = Secure::start("require_certificate true", &LOCALHOST, |_| {});
    let (url, keys) = (format!("mqtts://localhost:{}", secure.port), secure.files.path().join("keys"));
    let (certificate, key) = secure.authority.sign(&["publisher"], |_| {});
    let (certificate, key) = (secure.put("client.pem", &certificate), secure.put("client.key", &key));
    let lab = |arguments: &[&str], ca: &Path| {
        let files = ["--ca-file", text_of(ca), "--cert-file", text_of(&certificate), "--key-file", text_of(&key)];
        program::run("limpet-lab", &[arguments, &["--broker", &url], &files].concat())
    };
    let (ca, keys) = (secure.put("ca.pem", &secure.authority.pem()), text_of(&keys));
    lab(&["depot", "init", "--no-passphrase", "--patience", "1", "--keys", keys], &ca).expect_code(0);
    let package = secure.package.display();
    lab(&["depot", "publish", &package, "--no-prove", "--keys", keys], &ca).expect_code(0);
    let listed = lab(&["depot", "list", "--json", "--keys", keys], &ca).expect_code(0);
    assert!(listed.stdout.contains("\"scores\""), "{}", listed.stdout);
    lab(&["depot", "status", "--once"], &ca).expect_code(0);
    let measured = lab(&["load", "--echo", "--seconds", "0.2", "--warm-up", "0", "--json"], &ca).expect_code(0);
    let measured: serde_json::Value = serde_json::from_str(&measured.stdout).expect("the report is one object");
    assert_eq!(measured["lost"], 0, "{measured}");

    let foreign = secure.put("foreign.pem", &Authority::new("somebody else").pem());
    for arguments in [&["depot", "list", "--keys", keys][..], &["depot", "status", "--once"], &["load", "--echo"]] {
        let refused = lab(arguments, &foreign).expect_code(69);
        refused.expect_complaint(&["the broker's certificate is signed by nobody in --ca-file", "foreign.pem"]);
    }
}

#[test]
fn files_that_are_put_right_are_taken_up_without_a_restart() {
    let secure = Secure::start("", &LOCALHOST, |_| {});
    let file = secure.put("later.pem", &Authority::new("the wrong one").pem());
    let agent =
        secure.agent(&format!("mqtts://localhost:{}", secure.port), &format!("ca_file = \"{}\"\n", file.display()));
    agent.wait_for_log(&["cannot connect", "signed by nobody in ca_file"]);
    secure.put("later.pem", &secure.authority.pem());
    secure.delivers(&agent);
}
