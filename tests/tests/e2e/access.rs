//! Who may do what at the broker: the access list that ships with the project, and a broker that refuses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use limpet_tests::agent::Home;
use limpet_tests::broker::passwords;
use limpet_tests::{Agent, Broker, Client, LIMIT, Package, program, repeats, root};
use rumqttc::v5::mqttbytes::v5::PubAckReason;

use crate::{levels, local, uplink};

const USERS: [(&str, &str); 5] =
    [("press-07", "g"), ("press-08", "h"), ("sensors", "s"), ("publisher", "p"), ("operator", "o")];

/// A broker as the project ships it, but for its port and its folders.
pub fn shipped() -> Broker {
    let read = |name: &str| {
        let path = root().join("config").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut text = read("mosquitto.conf");
    for (from, to) in [
        ("listener 1883 ", "listener {port} "),
        ("/etc/mosquitto/limpet.passwd\n\n", "{dir}/passwd\n\n"),
        ("/etc/mosquitto/limpet.acl\n", "{dir}/acl\n"),
        ("/var/lib/mosquitto/", "{dir}/"),
    ] {
        assert!(text.contains(from), "config/mosquitto.conf has no {from:?} any more");
        text = text.replace(from, to);
    }
    Broker::start_from(&text, &[("passwd", &passwords(&USERS)), ("acl", &read("mosquitto.acl"))])
}

pub fn client(broker: &Broker, user: &str) -> Client {
    let password = USERS.iter().find(|(name, _)| *name == user).expect("a known user").1;
    Client::connect_as(broker, Some((user, password))).expect("the password is right")
}

/// Configuration of the gateway `press-07` under the shipped list.
pub fn press(broker: &Broker, home: &Home, package: &Package) -> String {
    let password = home.path().join("password");
    std::fs::write(&password, "g\n").expect("a temporary file can be written");
    let alarm = "local = [{ broker = \"local\", topic = \"plant/{stream}/alarm\" }]";
    format!(
        "{}username = \"press-07\"\npassword_file = \"{}\"\n{}",
        local(broker),
        program::text_of(&password),
        levels(package, "", alarm).replace("plant/{stream}/scores", "plant/{stream}/vibration")
    )
}

#[test]
fn the_agent_does_its_whole_job_under_the_shipped_access_list() {
    let broker = shipped();
    let mut operator = client(&broker, "operator");
    operator.subscribe(&["limpet/1/+/#"]);
    let mut beside = client(&broker, "press-07");
    beside.subscribe(&["plant/+/alarm"]);
    let package = Package::scores();
    let home = Home::proved();
    let config = press(&broker, &home, &package);
    let agent = Agent::start_as("press-07", home, &config);
    agent.wait_for_model(&mut operator, "scores", "active");
    broker.wait_subscribed("plant/+/vibration");
    client(&broker, "sensors").publish("plant/a/vibration", "[0.1, 0.1, 0.9]");
    for topic in ["status", "result/levels/a", "latest/levels/a", "event"] {
        operator.wait_on(&format!("limpet/1/press-07/{topic}"));
    }
    assert_eq!(beside.wait_on("plant/a/alarm").json()["label"], "high");
    let (status, _, log) = agent.stop();
    assert_eq!(status.code(), Some(0));
    assert!(!log.iter().any(|line| line.contains("refuses")), "{}", log.join("\n"));
    let offline = operator.wait_for("offline", |m| m.topic.ends_with("/status") && m.json()["state"] == "offline");
    assert_eq!(offline.topic, "limpet/1/press-07/status");
}

#[test]
fn the_load_generator_measures_under_the_shipped_access_list() {
    let broker = shipped();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let password = folder.path().join("password");
    std::fs::write(&password, "g\n").expect("a temporary file can be written");
    let url = format!("mqtt://127.0.0.1:{}", broker.port());
    let asked = ["load", "--broker", &url, "--echo", "--topic", "plant/a/alarm", "--seconds", "1", "--warm-up", "0"];
    let login = ["--username", "press-07", "--password-file", program::text_of(&password), "--json"];
    let report = program::run("limpet-lab", &[&asked[..], &login[..]].concat()).expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).expect("it is JSON");
    assert!(report["received"].as_u64() > Some(50), "{report}");
    program::run("limpet-lab", &asked).expect_code(69);
}

#[test]
fn everybody_may_write_what_is_theirs_and_nothing_else() {
    let broker = shipped();
    let cases: [(&str, &[&str], &[&str]); 4] = [
        (
            "press-07",
            &[
                "limpet/1/press-07/status",
                "limpet/1/press-07/models",
                "limpet/1/press-07/result/motor/a",
                "limpet/1/press-07/latest/motor/a",
                "limpet/1/press-07/delivery",
                "limpet/1/press-07/telemetry",
                "limpet/1/press-07/event",
                "limpet/1/press-07/reply/x",
                "limpet/1/press-07/probe",
                "plant/a/alarm",
            ],
            &[
                "limpet/1/press-08/status",
                "limpet/1/press-08/result/motor/a",
                "limpet/1/press-07/cmd/status",
                "limpet/1/press-08/cmd/status",
                "limpet/1/depot/meta/timestamp",
                "plant/a/vibration",
            ],
        ),
        (
            "sensors",
            &["plant/a/vibration"],
            &["plant/a/alarm", "limpet/1/press-07/status", "limpet/1/depot/meta/roots"],
        ),
        (
            "publisher",
            &["limpet/1/depot/meta/timestamp", "limpet/1/depot/chunk/00"],
            &["limpet/1/press-07/cmd/status", "limpet/1/press-07/status", "plant/a/vibration"],
        ),
        (
            "operator",
            &["limpet/1/press-07/cmd/status"],
            &["limpet/1/press-07/status", "limpet/1/depot/meta/timestamp", "plant/a/vibration"],
        ),
    ];
    for (user, allowed, denied) in cases {
        let mut client = client(&broker, user);
        for topic in allowed {
            let reason = client.publish_with(topic, false, "x");
            assert!(!matches!(reason, PubAckReason::NotAuthorized), "{user} on {topic}");
        }
        for topic in denied {
            let reason = client.publish_with(topic, false, "x");
            assert!(matches!(reason, PubAckReason::NotAuthorized), "{user} on {topic}: {reason:?}");
        }
    }
}

#[test]
fn everybody_reads_what_is_theirs_and_nothing_else() {
    let broker = shipped();
    let cases = [
        ("press-07", "limpet/1/press-07/cmd/status", "operator", true),
        ("press-07", "limpet/1/press-08/cmd/status", "operator", false),
        ("press-07", "limpet/1/depot/chunk/00", "publisher", true),
        ("press-07", "plant/a/vibration", "sensors", true),
        ("press-08", "limpet/1/press-07/status", "press-07", false),
        ("sensors", "plant/a/vibration", "sensors", false),
        ("publisher", "limpet/1/press-07/status", "press-07", true),
        ("publisher", "limpet/1/press-07/result/motor/a", "press-07", false),
        ("operator", "limpet/1/press-07/result/motor/a", "press-07", true),
        ("operator", "plant/a/vibration", "sensors", false),
    ];
    for (reader, topic, writer, may) in cases {
        let mut reader_client = client(&broker, reader);
        // A fence that the reader surely gets: what has not come before it does not come.
        let (fence, fence_writer) = match reader {
            "press-07" => ("limpet/1/press-07/probe", "press-07"),
            "press-08" => ("limpet/1/press-08/probe", "press-08"),
            "sensors" => ("limpet/1/sensors/probe", "sensors"),
            "publisher" => ("limpet/1/depot/fence", "publisher"),
            _ => ("limpet/1/press-07/event", "press-07"),
        };
        reader_client.subscribe(&[topic, fence]);
        client(&broker, writer).publish(topic, "secret");
        client(&broker, fence_writer).publish(fence, "fence");
        reader_client.wait_on(fence);
        assert_eq!(reader_client.came_on(topic).len(), usize::from(may), "{reader} reads {topic}");
    }
}

#[test]
fn strangers_are_not_let_in() {
    let broker = shipped();
    for credentials in [None, Some(("press-07", "wrong")), Some(("stranger", "g"))] {
        assert!(Client::connect_as(&broker, credentials).is_err(), "{credentials:?}");
    }
}

#[test]
fn a_publication_that_the_broker_refuses_is_told_with_its_topic_and_kept() {
    // Everything but results.
    let acl = "topic readwrite plant/#\ntopic read limpet/#\ntopic write limpet/1/gw/status\n\
               topic write limpet/1/gw/models\ntopic write limpet/1/gw/event\n";
    let broker = Broker::start_with("allow_anonymous true\nacl_file {dir}/acl\n", &[("acl", acl)]);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let package = Package::scores();
    let mut agent = Agent::start(&format!("{}{}", local(&broker), levels(&package, "", "")));
    agent.wait_for_model(&mut client, "scores", "active");
    broker.wait_subscribed("plant/+/scores");
    client.publish("plant/a/scores", "[0.9, 0.1, 0.1]");
    agent.wait_for_log(&["ERROR", "limpet/1/gw/result/levels/a", "access list"]);
    let event = client.wait_for("the event", |message| {
        message.topic == uplink("event") && message.json()["kind"] == "publish-refused"
    });
    assert!(event.json()["message"].as_str().is_some_and(|text| text.contains("access list")));
    assert!(agent.runs());
}

/// A broker that accepts everybody and refuses every subscription: mosquitto answers "granted" to those it denies, so
/// the refusal has to come from somewhere else. Gives its port.
fn refusing_broker() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has free ports");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || refuse(stream));
        }
    });
    port
}

/// Speaks as much MQTT 5 as it takes.
fn refuse(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        let kind = byte[0];
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            stream.read_exact(&mut byte)?;
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] < 0x80 {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        match kind >> 4 {
            1 => stream.write_all(&[0x20, 3, 0, 0, 0])?,
            // PUBLISH with QoS 1: the packet id stands behind the topic.
            3 if kind & 0b110 != 0 => {
                let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                stream.write_all(&[0x40, 2, body[2 + topic], body[3 + topic]])?;
            }
            8 => {
                // Behind the packet id and the properties: filters, each with its length in front and options behind.
                let (mut at, mut count) = (3 + usize::from(body[2]), 0);
                while at < body.len() {
                    at += 3 + usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
                    count += 1;
                }
                stream.write_all(&[0x90, 3 + count, body[0], body[1], 0])?;
                stream.write_all(&vec![0x87; usize::from(count)])?;
            }
            12 => stream.write_all(&[0xd0, 0])?,
            14 => return Ok(()),
            _ => {}
        }
    }
}

#[test]
fn a_subscription_that_the_broker_refuses_is_told_with_its_topic() {
    let package = Package::scores();
    let broker = format!("[broker.local]\nurl = \"mqtt://127.0.0.1:{}\"\n", refusing_broker());
    let mut agent = Agent::start(&format!("{broker}{}", levels(&package, "", "")));
    let told = agent.wait_for_log(&["ERROR", "plant/+/scores", "access list"]);
    assert!(told.contains("local"), "it names the broker: {told}");
    assert!(agent.runs());
}

#[test]
fn a_source_that_the_broker_keeps_silent_is_told() {
    if repeats(10) == 1 {
        eprintln!("skipped: waits for a minute of silence; scripts/soak runs it");
        return;
    }
    let acl = "topic readwrite limpet/#\n";
    let broker = Broker::start_with("allow_anonymous true\nacl_file {dir}/acl\n", &[("acl", acl)]);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let package = Package::scores();
    let agent = Agent::start(&format!("{}{}", local(&broker), levels(&package, "", "")));
    agent.wait_for_model(&mut client, "scores", "active");
    let silent =
        |message: &limpet_tests::Message| message.topic == uplink("event") && message.json()["kind"] == "silent-source";
    let event = client.try_wait_for(2 * LIMIT, silent).expect("silence is told after a minute");
    assert!(event.json()["message"].as_str().is_some_and(|text| text.contains("silent since start")));
}
