//! What a person may write, what it becomes, and what is said about mistakes.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::load::{ConfigError, parse};
use super::*;

/// The smallest configuration that does something.
const SMALL: &str = r#"
format = 1

[gateway]
id = "press-07"

[broker.local]
url = "mqtt://127.0.0.1"

[[source]]
name = "vibration"
topic = "plant/{stream}/vibration"
codec = { raw = { type = "i16", channels = 3 } }

[[pipeline]]
name = "motor"
source = "vibration"
model = "models/motor-health"
"#;

fn surroundings(variables: &[(&str, &str)]) -> Surroundings {
    let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Surroundings { variables, host_name: None }
}

fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    parse(text, Path::new("/etc/limpet/limpet.toml"), &surroundings(variables), None)
}

fn read(text: &str) -> Result<Loaded, ConfigError> {
    read_with(text, &[])
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|error| panic!("{error}\n{text}")).config
}

/// The message about a text that must not be accepted.
fn bad(text: &str) -> String {
    match read(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error.to_string(),
    }
}

/// `SMALL` with one line after the line that contains `marker`.
fn after(marker: &str, line: &str) -> String {
    let mut text = String::new();
    for old in SMALL.lines() {
        text.push_str(old);
        text.push('\n');
        if old.contains(marker) {
            text.push_str(line);
            text.push('\n');
        }
    }
    assert!(text.contains(line), "{marker} is in the small configuration");
    text
}

fn replaced(old: &str, new: &str) -> String {
    assert!(SMALL.contains(old), "{old} is in the small configuration");
    SMALL.replace(old, new)
}

#[test]
fn the_smallest_configuration_gets_the_documented_defaults() {
    let config = good(SMALL);
    let broker = &config.brokers["local"];
    assert_eq!(broker.url, ["mqtt://127.0.0.1".parse().unwrap()]);
    assert_eq!(broker.client_id, "limpet-press-07-local");
    assert_eq!(broker.keep_alive.0, Duration::from_secs(12));
    assert_eq!((&*config.uplink.broker, config.uplink.prefix.as_str()), ("local", "limpet/1"));
    assert_eq!(config.gateway.state, Path::new("/var/lib/limpet"));
    assert_eq!(config.gateway.run, Path::new("/run/limpet"));
    assert_eq!((config.budget.cpu, config.budget.workers(), config.budget.memory), (1.0, 1, Size(96 << 20)));

    let source = &config.sources[0];
    assert_eq!(source.filters()[0].mqtt(), "plant/+/vibration");
    assert_eq!((source.time, source.on_gap, source.max_streams), (TimeOrigin::Arrival, OnGap::Reset, 16));
    assert_eq!((source.stream_idle.0.as_secs(), source.accept_retained), (600, false));

    let pipeline = &config.pipelines[0];
    assert_eq!(pipeline.model, ModelRef::Path("/etc/limpet/models/motor-health".into()));
    assert_eq!((pipeline.class, pipeline.deadline.0), (Class::Realtime, Duration::from_millis(100)));
    assert_eq!(pipeline.queue, Queue { depth: 1, policy: QueuePolicy::LatestOnly });
    assert_eq!((pipeline.publish, pipeline.deadband, pipeline.heartbeat.0.as_secs()), (Publish::Changes, 0.05, 60));
    assert_eq!(pipeline.message_batch, MessageBatch { max: 1, delay: Interval(Duration::ZERO) });
    assert_eq!((pipeline.encoding, pipeline.local.len()), (Encoding::Json, 0));
}

#[test]
fn an_analytic_pipeline_waits_longer_and_keeps_more() {
    let pipeline = &good(&after("name = \"motor\"", "class = \"analytic\"")).pipelines[0];
    assert_eq!(pipeline.deadline.0, Duration::from_secs(10));
    assert_eq!(pipeline.queue, Queue { depth: 16, policy: QueuePolicy::DropOldest });
    let kept = &good(&after("name = \"motor\"", "class = \"analytic\"\nqueue.depth = 4")).pipelines[0];
    assert_eq!(kept.queue, Queue { depth: 4, policy: QueuePolicy::DropOldest });
    let newest = "class = \"analytic\"\nqueue.policy = \"latest_only\"";
    let newest = &good(&after("name = \"motor\"", newest)).pipelines[0];
    assert_eq!(newest.queue, Queue { depth: 1, policy: QueuePolicy::LatestOnly });
}

#[test]
fn the_gateway_is_called_as_the_host_if_that_is_a_name() {
    let text = replaced("id = \"press-07\"", "");
    let with_host = |host: &str| {
        let surroundings = Surroundings { variables: vec![], host_name: Some(host.into()) };
        parse(&text, Path::new("limpet.toml"), &surroundings, None)
    };
    assert_eq!(&*with_host("edge-1").unwrap().config.gateway.id, "edge-1");
    let error = with_host("Edge.local").unwrap_err().to_string();
    assert!(error.contains("gateway.id") && error.contains("'Edge.local'"), "{error}");
}

#[test]
fn an_unknown_key_names_file_line_key_and_the_nearest() {
    let error = bad(&after("url", "keep_alve = \"3s\""));
    assert!(error.starts_with("limpet.toml:9: broker.local.keep_alve: unknown key 'keep_alve'"), "{error}");
    assert!(error.contains("nearest known key is 'keep_alive'"), "{error}");
    let error = bad(&after("name = \"vibration\"", "rate = 3200"));
    assert!(error.starts_with("limpet.toml:12: source.vibration.rate: unknown key 'rate'"), "{error}");
    assert!(error.contains("nearest known key is 'rate_hz'"), "{error}");
    let error = bad(&after("format", "outbux = 1"));
    assert!(error.contains("outbux: unknown key 'outbux'"), "{error}");
    let error = bad(&replaced("channels = 3", "chanels = 3"));
    assert!(
        error.contains("source.vibration.codec.raw.chanels: unknown key") && error.contains("'channels'"),
        "{error}"
    );
}

#[test]
fn keys_of_later_versions_are_unknown_and_a_later_format_is_refused_by_number() {
    for line in ["[api]", "[recorder]"] {
        assert!(bad(&format!("{SMALL}{line}\n")).contains("unknown key"), "{line}");
    }
    let error = bad(&format!("{}\n[new]\n", replaced("format = 1", "format = 2")));
    assert!(error.contains("limpet.toml:2: format: found 2") && error.contains("reads format 1"), "{error}");
    assert!(bad(&replaced("format = 1", "")).contains("add 'format = 1'"));
}

#[test]
fn an_outbox_has_bounds_and_pipelines_have_its_policy_unless_they_say_otherwise() {
    let outbox = |keys: &str| format!("{SMALL}[outbox]\n{keys}\n");
    let config = good(&outbox("policy = { thin = 10 }\ndurability = \"each\"\norder = \"backlog-first\""));
    assert_eq!(config.outbox.policy, DropPolicy::Thin(10));
    assert_eq!((config.outbox.durability, config.outbox.order), (Durability::Each, OutboxOrder::BacklogFirst));
    assert_eq!(config.pipelines[0].outbox_policy, DropPolicy::Thin(10));
    for (line, expected) in [
        ("commit_interval = \"1ms\"", "outbox.commit_interval: found 1ms, expected 50ms to 1m"),
        ("ring = \"1KiB\"", "outbox.ring: found 1KiB, expected 256KiB to 1GiB"),
        ("max_bytes = \"1B\"", "outbox.max_bytes: found 1B, expected at least 1MiB"),
        ("max_age = \"1s\"", "outbox.max_age: found 1s, expected at least 1m"),
        ("drain_rate = \"0B\"", "outbox.drain_rate: found 0B, expected at least 1KiB a second"),
        ("history_results = 100001", "outbox.history_results: found 100001, expected at most 100000"),
        ("policy = { thin = 1 }", "outbox.policy: found { thin = 1 }, expected 2 to 1000"),
        ("policy = \"drop\"", "outbox.policy: found 'drop'"),
        ("order = \"live\"", "outbox.order: found 'live'"),
    ] {
        let error = bad(&outbox(line));
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn wrong_types_and_words_say_what_was_expected() {
    for (marker, line, expected) in [
        (
            "name = \"motor\"",
            "deadline = 50",
            "pipeline.motor.deadline: found integer 50, expected a length of time with its unit",
        ),
        ("name = \"motor\"", "deadline = \"50\"", "'50' is not a length of time"),
        ("name = \"motor\"", "class = \"fast\"", "found 'fast', expected one of realtime, analytic"),
        ("name = \"motor\"", "local = \"x\"", "expected a list"),
        ("name = \"motor\"", "queue = 3", "expected a table"),
        ("name = \"vibration\"", "scale = [\"1/x\"]", "'1/x' is not a number or a fraction"),
        ("name = \"vibration\"", "max_streams = -1", "expected a whole number that is not negative"),
        ("url", "username = 7", "expected a string"),
        ("[broker.local]", "url = \"mqtt://x\"", "this is no TOML: duplicate key"),
    ] {
        let error = bad(&after(marker, line));
        assert!(error.contains(expected), "{line}: {error}");
    }
    let error = bad(&replaced("topic = \"plant/{stream}/vibration\"", "topic = plant"));
    assert!(error.starts_with("limpet.toml:12: this is no TOML"), "{error}");
    assert!(bad(&replaced("source = \"vibration\"\n", "")).contains("pipeline.motor: the key 'source' is missing"));
}

#[test]
fn names_are_checked_and_unique() {
    let twice = format!("{SMALL}\n[[pipeline]]\nname = \"motor\"\nsource = \"vibration\"\nmodel = \"a/b\"\n");
    assert!(bad(&twice).contains("a [[pipeline]] named 'motor' exists already"), "{}", bad(&twice));
    let twice = format!("{SMALL}\n[[source]]\nname = \"vibration\"\ntopic = \"x\"\ncodec = {{ json = {{}} }}\n");
    assert!(bad(&twice).contains("a [[source]] named 'vibration' exists already"), "{}", bad(&twice));
    assert!(bad(&replaced("name = \"motor\"", "name = \"Motor\"")).contains("pipeline[0].name"));
    assert!(bad(&replaced("broker.local", "broker.depot")).contains("reserved"));
}

#[test]
fn references_must_exist_and_the_nearest_is_named() {
    let error = bad(&replaced("source = \"vibration\"", "source = \"vibratoin\""));
    assert!(
        error.contains("pipeline.motor.source: there is no [[source]] named 'vibratoin'; the nearest is 'vibration'"),
        "{error}"
    );
    let error = bad(&after("topic =", "broker = \"locl\""));
    assert!(error.contains("source.vibration.broker: there is no [broker.locl]; the nearest is 'local'"), "{error}");
    let two = after("url", "[broker.uplink]\nurl = \"mqtt://10.0.0.1:1884\"");
    let error = bad(&two);
    assert!(error.contains("uplink.broker: not given, and there are several: 'local', 'uplink'"), "{error}");
    assert!(error.contains("source.vibration.broker: not given"), "{error}");
    assert!(bad(&replaced("[broker.local]\nurl = \"mqtt://127.0.0.1\"", "")).contains("add '[broker.local]'"));
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = after("name = \"motor\"", "deadline = \"0s\"\ndeadband = -1").replace("{stream}", "#");
    let error = bad(&text);
    assert_eq!(error.lines().count(), 3, "{error}");
    for key in ["source.vibration.topic", "pipeline.motor.deadline", "pipeline.motor.deadband"] {
        assert!(error.contains(key), "{key}: {error}");
    }
}

#[test]
fn what_this_version_cannot_do_is_said_clearly() {
    assert!(bad(&after("url", "mqtt = 3")).contains("found 3, expected 5, or 4 for MQTT 3.1.1"));
    let reboot = bad(&format!("{SMALL}[uplink]\ncommands = [\"logs\", \"reboot\"]\n"));
    assert!(
        reboot.contains("uplink.commands: 'reboot' is no command; expected one of status, logs, diagnose"),
        "{reboot}"
    );
    let old = bad(&format!("{}[uplink]\ncommands = [\"logs\"]\n", after("url", "mqtt = 4")));
    assert!(old.contains("uplink.commands: the uplink speaks MQTT 3.1.1"), "{old}");
}

const DEPOT: &str = "[depot]\nroot = \"root.json\"\n";

#[test]
fn a_model_of_the_depot_is_a_name_and_a_range() {
    let text = format!("{}{DEPOT}", replaced("models/motor-health", "motor-health@^1.2"));
    let model = good(&text).pipelines[0].model.clone();
    assert_eq!(model.to_string(), "motor-health@^1.2");
    assert!(model.depot().is_some_and(|model| model.range.matches(&"1.4.0".parse().unwrap())));
    let any = good(&format!("{}{DEPOT}", replaced("models/motor-health", "motor-health")));
    assert_eq!(any.pipelines[0].model.to_string(), "motor-health@*");
    let error = bad(&replaced("models/motor-health", "motor-health@^1"));
    assert!(error.contains("there is no [depot]") && error.contains("give a path"), "{error}");
    for (model, expected) in [("motor-health@one", "no range of versions"), ("Motor", "is not a name")] {
        let error = bad(&format!("{}{DEPOT}", replaced("models/motor-health", model)));
        assert!(error.contains(expected), "{model}: {error}");
    }
    let two = "[[pipeline]]\nname = \"second\"\nsource = \"vibration\"\nmodel = \"motor-health@^2\"\n";
    let error = bad(&format!("{}{two}{DEPOT}", replaced("models/motor-health", "motor-health@^1")));
    assert!(error.contains("a gateway runs one version of a model"), "{error}");
}

#[test]
fn a_depot_and_a_trial_have_bounds() {
    for (line, expected) in [
        ("keep = 0", "expected 1 to 16"),
        ("rate = \"1B\"", "expected at least 1KiB"),
        ("disk = \"1KiB\"", "expected at least 1MiB"),
        ("refresh = \"1s\"", "expected 10s"),
        ("trial = \"0s\"", "expected 1s to 7d"),
        ("channel = \"Not One\"", "is not a name"),
    ] {
        let error = bad(&format!("{SMALL}{DEPOT}{line}\n"));
        assert!(error.contains(expected), "{line}: {error}");
    }
    for (line, expected) in [
        ("trial.agreement = 2", "expected a share from 0 to 1"),
        ("trial = { shadow = true, shadow_cpu = 0 }", "the new version must run"),
    ] {
        let error = bad(&after("name = \"motor\"", line));
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn a_signed_configuration_replaces_three_tables_and_names_no_path() {
    let lay = |text: &str| {
        let overlay = Overlay { name: "config.press-07", text };
        parse(SMALL, Path::new("/etc/limpet/limpet.toml"), &surroundings(&[]), Some(overlay))
    };
    let loaded = lay("[budget]\ncpu = 2.5\n").unwrap();
    assert_eq!((loaded.config.budget.cpu, loaded.config.pipelines.len()), (2.5, 1));
    let broken = lay("\n[budget]\ncpu = -1\n").unwrap_err().to_string();
    assert!(broken.starts_with("config.press-07:3: budget.cpu"), "{broken}");
    let broker = lay("[broker.evil]\nurl = \"mqtt://evil\"\n").unwrap_err().to_string();
    assert!(broker.contains("config.press-07:1: broker: a signed configuration replaces"), "{broker}");
    let path = "[[pipeline]]\nname = \"motor\"\nsource = \"vibration\"\nmodel = \"/etc/passwd\"\n";
    let path = lay(path).unwrap_err().to_string();
    assert!(path.contains("config.press-07:4") && path.contains("cannot name a path"), "{path}");
}

#[test]
fn a_signed_configuration_starts_only_programs_that_the_file_starts() {
    let own = replaced("topic = \"plant/{stream}/vibration\"", "exec = [\"read\", \"a, b\"]");
    let lay = |exec: &str| {
        let text = format!(
            "[[source]]\nname = \"vibration\"\nexec = {exec}\ncodec = {{ raw = {{ type = \"i16\", channels = 3 }} }}\n"
        );
        let overlay = Overlay { name: "config.press-07", text: &text };
        parse(&own, Path::new("/etc/limpet/limpet.toml"), &surroundings(&[]), Some(overlay))
    };
    assert_eq!(
        lay("[\"read\", \"a, b\"]").unwrap().config.sources[0].program().unwrap(),
        ["read", "a, b"],
        "with other keys beside it"
    );
    for foreign in ["[\"read\", \"a\", \"b\"]", "[\"read\"]", "[\"sh\", \"-c\", \"reboot\"]", "\"reboot\""] {
        let error = lay(foreign).unwrap_err().to_string();
        let expected = "config.press-07:3: source.exec: found";
        assert!(error.starts_with(expected) && error.contains("starts no program that"), "{foreign}: {error}");
    }
}

#[test]
fn a_program_is_a_list_of_words_whose_output_can_be_cut() {
    let topic = "topic = \"plant/{stream}/vibration\"";
    let source = &good(&replaced(topic, "exec = [\"read\"]")).sources[0];
    assert_eq!((source.broker.as_ref(), source.max_streams, source.filters().len()), (None, 1, 0));
    let header = |lines: &str| {
        replaced(topic, lines).replace("channels = 3", "channels = 3, header = [{ sequence = \"u32le\" }]")
    };
    assert_eq!(good(&header("exec = [\"read\"]\nmessage = \"64B\"")).sources[0].message, Some(Size(64)));
    for (text, expected) in [
        (replaced(topic, "exec = []"), "source.vibration.exec: the list is empty"),
        (replaced(topic, "exec = [\"\"]"), "the list is empty"),
        (replaced(topic, "exec = [\"arecord -q\"]"), "there is no shell"),
        (replaced(topic, "exec = [\"./read\"]"), "expected an absolute path"),
        (replaced(topic, &format!("exec = [\"read\"]\n{topic}")), "'topic' and 'exec' exclude each other"),
        (replaced(topic, "exec = [\"read\"]\nbroker = \"local\""), "source.vibration.broker: a program"),
        (replaced(topic, "exec = [\"read\"]\nmax_streams = 2"), "a program is one stream"),
        (replaced(topic, &format!("{topic}\nmessage = \"6B\"")), "only a program's output"),
        (header("exec = [\"read\"]"), "source.vibration.message: the key is missing"),
        (header("exec = [\"read\"]\nmessage = \"65B\""), "expected 4 bytes of header and whole samples of 6 bytes"),
        (header("exec = [\"read\"]\nmessage = \"4B\""), "expected 4 bytes of header"),
        (header("exec = [\"read\"]\nmessage = \"2MiB\""), "at most 1048576 bytes"),
    ] {
        let error = bad(&text);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let codec = |codec: &str| {
        let lines = replaced(topic, "exec = [\"read\"]");
        lines.replace("codec = { raw = { type = \"i16\", channels = 3 } }", &format!("codec = {codec}"))
    };
    good(&codec("{ json = { channels = 3 } }"));
    good(&codec("{ csv = { columns = [1, 2, 3] } }"));
    assert!(bad(&codec("{ csv = { columns = [\"a\"], header = true } }")).contains("give columns by their numbers"));
    assert!(bad(&codec("{ image = {} }")).contains("pictures have no end"));
}

#[test]
fn addresses_are_read_strictly_and_passwords_never_repeated() {
    for (url, scheme, host, port, path) in [
        ("mqtt://h:1", Scheme::Mqtt, "h", 1, ""),
        ("mqtt://mqtt-1.example.com/", Scheme::Mqtt, "mqtt-1.example.com", 1883, ""),
        ("mqtt://[::1]:1884", Scheme::Mqtt, "::1", 1884, ""),
        ("mqtt://[fe80::1]", Scheme::Mqtt, "fe80::1", 1883, ""),
        ("mqtts://h", Scheme::Mqtts, "h", 8883, ""),
        ("ws://h", Scheme::Ws, "h", 80, "/"),
        ("wss://h/mqtt?x=1", Scheme::Wss, "h", 443, "/mqtt?x=1"),
        ("wss://[::1]:9001/a/b", Scheme::Wss, "::1", 9001, "/a/b"),
    ] {
        let found = &good(&replaced("mqtt://127.0.0.1", url)).brokers["local"].url[0];
        assert_eq!(*found, BrokerUrl { scheme, host: host.into(), port, path: path.into() });
        assert_eq!(found.address().parse(), Ok(found.clone()), "what is connected to reads back");
        assert!(!found.to_string().contains("x=1"), "a query may be a token");
    }
    for url in [
        "127.0.0.1:1883",
        "mqtt://",
        "mqtt://h:0",
        "mqtt://h:99999",
        "mqtt://h:+1",
        "mqtt://[::1",
        "mqtt://h/x",
        "mqtts://h/x",
        "wss://h/a b",
        "http://h",
        "mqtt://a b",
    ] {
        assert!(bad(&replaced("mqtt://127.0.0.1", url)).contains("broker.local.url"), "{url}");
    }
    for url in ["mqtt://me:secret@h", "me:secret@h"] {
        assert!(!bad(&replaced("mqtt://127.0.0.1", url)).contains("secret"), "{url}");
    }
    assert!(bad(&replaced("\"mqtt://127.0.0.1\"", "[]")).contains("the list is empty"));
}

#[test]
fn files_of_tls_need_tls_and_a_certificate_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.pem");
    std::fs::write(&file, "").unwrap();
    let file = file.display();
    let lines = |keys: &[&str]| keys.iter().map(|key| format!("{key} = \"{file}\"\n")).collect::<String>();
    let secure = |keys: &[&str]| after("url", &lines(keys)).replace("mqtt://127.0.0.1", "mqtts://127.0.0.1");
    let config = good(&secure(&["ca_file", "cert_file", "key_file"]));
    assert_eq!(config.brokers["local"].key_file.as_deref(), Some(folder.path().join("x.pem").as_path()));
    for key in ["ca_file", "cert_file", "key_file"] {
        let error = bad(&after("url", &lines(&[key])));
        assert!(error.contains(&format!("broker.local.{key}: it has no use without TLS")), "{error}");
        let error = bad(&after("url", &format!("{key} = \"no.pem\"")));
        assert!(error.contains(&format!("broker.local.{key}: there is no file /etc/limpet/no.pem")), "{error}");
    }
    assert!(
        bad(&secure(&["cert_file"]))
            .contains("broker.local.cert_file: a client certificate needs both; add 'key_file'")
    );
    assert!(
        bad(&secure(&["key_file"])).contains("broker.local.key_file: a client certificate needs both; add 'cert_file'")
    );
}

#[test]
fn a_proxy_is_an_address_of_http_with_a_port() {
    let proxy = |url: &str| after("url", &format!("proxy = \"{url}\""));
    let found = good(&proxy("http://proxy.example.com:3128")).brokers["local"].proxy.clone().unwrap();
    assert_eq!((found.host.as_str(), found.port), ("proxy.example.com", 3128));
    for (url, expected) in [
        ("proxy:3128", "is no address of an HTTP proxy"),
        ("https://proxy:3128", "is no address of an HTTP proxy"),
        ("http://proxy", "has no port"),
        ("http://me:secret@proxy:1", "a user and a password is not supported"),
    ] {
        let error = bad(&proxy(url));
        assert!(
            error.contains("broker.local.proxy") && error.contains(expected) && !error.contains("secret"),
            "{error}"
        );
    }
}

#[test]
fn a_password_file_must_exist_and_may_be_a_systemd_credential() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mqtt-password");
    std::fs::write(&file, "secret\n").unwrap();
    let text = after("url", "username = \"me\"\npassword_file = \"mqtt-password\"");
    let error = bad(&text);
    assert!(error.contains("broker.local.password_file: there is no file /etc/limpet/mqtt-password"), "{error}");

    let loaded = read_with(&text, &[("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())]).unwrap();
    let broker = &loaded.config.brokers["local"];
    assert_eq!(broker.password_file.as_deref(), Some(&*file));
    assert_eq!(broker.password().unwrap().as_deref(), Some("secret"));
    assert!(!effective(&loaded).contains("secret"));
    assert!(bad(&after("url", "password_file = \"x\"")).contains("add 'username'"));
    // Whichever a connection used is known, whatever the file says later.
    std::fs::write(&file, "changed-password").unwrap();
    broker.password().unwrap();
    std::fs::write(&file, "changed-once-more").unwrap();
    assert!(passwords().contains("changed-password") && !passwords().contains("changed-once-more"));
}

#[test]
fn a_session_that_is_resumed_needs_samples_with_their_time() {
    let error = bad(&after("url = \"mqtt://127.0.0.1\"", "resume = true"));
    assert!(error.contains("broker 'local' has resume = true") && error.contains("time = \"payload\""), "{error}");
}

#[test]
fn sources_are_checked_against_their_codec() {
    for (line, expected) in [
        ("scale = [1, 2]", "scale: found 2 values, expected 3, one per channel"),
        ("offset = [1, 2, 3, 4]", "offset: found 4 values"),
        ("scale = [0, 1, 1]", "a factor is 0"),
        ("rate_hz = 0", "rate_hz: found 0"),
        ("rate_hz = nan", "rate_hz: found NaN"),
        ("time = \"payload\"", "the codec 'raw' names no time"),
        ("accept_retained = true", "set 'time = \"payload\"'"),
        ("max_streams = 0", "max_streams: found 0"),
        ("max_gap = \"0s\"", "max_gap: found 0"),
        ("join = { topics = [\"a\", \"b\"], tolerance = \"1ms\" }", "exclude each other"),
    ] {
        let error = bad(&after("name = \"vibration\"", line));
        assert!(error.contains(expected), "{line}: {error}");
    }
    let codec = "{ raw = { type = \"i16\", channels = 3 } }";
    for (other, expected) in [
        ("{ raw = { type = \"i16\", channels = 0 } }", "found 0 channels"),
        ("{ raw = { type = \"i64\" } }", "found 'i64', expected one of i8, u8, i16, i32, f32"),
        ("{ raw = { type = \"i16\", header = [{ tag = \"u64le\" }, { tag = \"u64le\" }] } }", "stands there twice"),
        ("{ raw = { type = \"i16\", header = [{ time = \"u64le\" }] } }", "u64le ns"),
        ("{ json = { value = \"x\" } }", "write '/x'"),
        ("{ json = { value = [\"/x\"], channels = 2 } }", "leave 'channels' out"),
        ("{ csv = { columns = [] } }", "found 0 channels"),
        ("{ csv = { columns = [0] } }", "columns are counted from 1"),
        ("{ csv = { columns = [\"x\"] } }", "header = true"),
        ("{ csv = { columns = [1], separator = \".\" } }", "occurs in numbers"),
        ("{ cbor = {} }", "found 'cbor', expected one of raw, json, csv, image"),
        ("{ image = { width = 3 } }", "unknown key"),
        ("{}", "codec"),
    ] {
        let error = bad(&replaced(codec, other));
        assert!(error.contains(expected), "{other}: {error}");
    }
}

#[test]
fn joined_topics_are_the_channels() {
    let codec = "codec = { raw = { type = \"i16\", channels = 3 } }";
    let topic = "topic = \"plant/{stream}/vibration\"";
    let joined = |topics: &str, more: &str| {
        let join = format!("join = {{ topics = [{topics}], tolerance = \"2ms\" }}\n{more}");
        replaced(codec, "codec = { json = {} }").replace(topic, &join)
    };
    let config = good(&joined("\"a/{stream}/x\", \"a/{stream}/y\"", "scale = [1, 2]"));
    assert_eq!(config.sources[0].filters().len(), 2);
    for (topics, expected) in [
        ("\"a/x\"", "found 1 topics"),
        ("\"a/{stream}\", \"b\"", "to all or to none"),
        ("\"a\", \"a\"", "stands there twice"),
        ("\"a\", \"$share/g/b\"", "is shared"),
        ("\"a\", \"b/#/c\"", "last level"),
    ] {
        let error = bad(&joined(topics, ""));
        assert!(error.contains(expected), "{topics}: {error}");
    }
    assert!(bad(&joined("\"a\", \"b\"", "scale = [1]")).contains("expected 2, one per channel"));
    let two = joined("\"a\", \"b\"", "").replace("json = {}", "json = { channels = 2 }");
    assert!(bad(&two).contains("source.vibration.codec: every joined topic is one channel"));
}

#[test]
fn shared_subscriptions_are_marked_for_the_check_against_the_model() {
    assert!(good(&replaced("plant/{stream}", "$share/g/plant/{stream}")).sources[0].is_shared());
    assert!(!good(SMALL).sources[0].is_shared());
}

#[test]
fn pipelines_are_checked() {
    for (line, expected) in [
        ("deadline = \"0s\"", "deadline: found 0"),
        ("queue = { depth = 0 }", "pipeline.motor.queue.depth: found 0"),
        (
            "queue = { depth = 8 }",
            "pipeline.motor.queue.depth: found 8, but with the policy \"latest_only\", the default",
        ),
        ("queue = { depth = 8, policy = \"latest_only\" }", "one window waits"),
        ("message_batch = { max = 0 }", "message_batch.max: found 0"),
        ("message_batch = { max = 9999 }", "expected 1 to 1000"),
        ("message_batch = { max = 2, delay = \"1h\" }", "expected at most 10m"),
        ("message_batch = { delay = \"1s\" }", "nothing to wait for"),
        ("local = [{ topic = \"a/+\" }]", "pipeline.motor.local[0].topic: 'a/+' holds a wildcard"),
        ("local = [{ topic = \"a\", qos = 2 }]", "local[0].qos: found 2"),
        ("local = [{ topic = \"plant/{stream}/vibration\" }]", "results would come back as samples"),
    ] {
        let error = bad(&after("name = \"motor\"", line));
        assert!(error.contains(expected), "{line}: {error}");
    }
    let pipeline = &good(&after("name = \"motor\"", "local = [{ topic = \"plant/{stream}/alarm\" }]")).pipelines[0];
    let output = &pipeline.local[0];
    assert_eq!((&*output.broker, output.on, output.qos), ("local", Publish::Triggers, 0));
    assert_eq!(output.topic.topic("press-3"), "plant/press-3/alarm");
}

#[test]
fn variables_override_tables_and_are_named_as_origins() {
    let text = replaced("broker.local", "broker.line-1");
    let loaded = read_with(
        &text,
        &[
            ("LIMPET_BROKER__LINE_1__URL", "mqtt://10.0.0.9:1999"),
            ("LIMPET_BUDGET__CPU", "2.5"),
            ("LIMPET_LOG__LEVEL", "debug"),
            ("LIMPET_GATEWAY__LABELS", "{ site = \"lyon\" }"),
            ("LIMPET_UPLINK__PREFIX", "limpet/1"),
            ("LIMPET_SHARED", "/x"),
            ("LIMPET_PROOF_CHILD", "1"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(loaded.config.brokers["line-1"].url[0].to_string(), "mqtt://10.0.0.9:1999");
    assert_eq!((loaded.config.budget.cpu, loaded.config.log.level), (2.5, LogLevel::Debug));
    assert_eq!(loaded.config.gateway.labels["site"], "lyon");
    let printed = effective(&loaded);
    for line in [
        "url = [\"mqtt://10.0.0.9:1999\"]  # LIMPET_BROKER__LINE_1__URL",
        "cpu = 2.5  # LIMPET_BUDGET__CPU",
        "labels.site = \"lyon\"  # LIMPET_GATEWAY__LABELS",
        "id = \"press-07\"  # limpet.toml:5",
        "memory = \"96MiB\"  # default",
        "codec.raw.channels = 3  # limpet.toml:13",
        "codec.raw.header = []  # default",
        "queue.depth = 1  # default",
        "# rate_hz is not set",
    ] {
        assert!(printed.lines().any(|found| found == line), "{line} is missing in\n{printed}");
    }
}

#[test]
fn a_variable_that_means_nothing_names_the_nearest() {
    for (name, expected) in [
        ("LIMPET_LOG_LEVEL", "the nearest is LIMPET_LOG__LEVEL"),
        ("LIMPET_BUDGE__CPU", "the nearest is LIMPET_BUDGET__CPU"),
        ("LIMPET_BROKER__LOCAL__URLS", "unknown key 'urls'; the nearest known key is 'url'"),
        ("LIMPET_SOURCE__0__NAME", "is a list, and variables reach tables only"),
        ("LIMPET_log__level", "the nearest is LIMPET_LOG__LEVEL"),
        ("LIMPET_", "no key of the configuration"),
        ("LIMPET_GATEWAY__ID__X", "gateway.id is a value"),
        ("LIMPET_GATEWAY__", "no key of the configuration"),
    ] {
        let error = read_with(SMALL, &[(name, "x")]).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("environment variable {name}: ")) && error.contains(expected),
            "{name}: {error}"
        );
    }
    let error = read_with(SMALL, &[("LIMPET_GATEWAY__ID", "7")]).unwrap_err().to_string();
    assert!(error.contains("gateway.id: found integer 7, expected a string; quote it"), "{error}");
    let both = after(
        "url",
        "[broker.a-b]\nurl = \"mqtt://a\"\n[broker.a_b]\nurl = \"mqtt://b\"\n[uplink]\nbroker = \"local\"",
    );
    let error = read_with(&both, &[("LIMPET_BROKER__A_B__URL", "mqtt://c")]).unwrap_err().to_string();
    assert!(error.contains("both broker.a-b and broker.a_b"), "{error}");
}

#[test]
fn a_problem_that_shows_later_is_reported_like_those_that_show_at_once() {
    let loaded = read(SMALL).unwrap();
    let set = loaded.problem("pipeline", 0, "model", "there is no such package").to_string();
    assert_eq!(set, "limpet.toml:18: pipeline.motor.model: there is no such package");
    // A key that nobody set is looked for where its table stands.
    let unset = loaded.problem("source", 0, "rate_hz", "found none").to_string();
    assert_eq!(unset, "limpet.toml:10: source.vibration.rate_hz: found none");
}

/// Every key there is, none at its default.
const FULL: &str = include_str!("full.toml");

#[test]
fn what_is_printed_as_effective_means_the_same_when_read() {
    for text in [SMALL, FULL] {
        let loaded = read(text).unwrap_or_else(|error| panic!("{error}"));
        let printed = effective(&loaded);
        let again = read(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
        assert_eq!(again.config, loaded.config, "{printed}");
    }
}

/// The reference that ships, and its page.
const REFERENCE: &str = include_str!("../../../../config/limpet.toml");
const PAGE: &str = include_str!("../../../../docs/configuration.md");
const EXAMPLES: &str = "# ---- Other codecs";

/// The reference with its optional lines made live; those without a default only if `all`.
fn uncommented(text: &str, all: bool) -> String {
    let live = |line: &str| {
        let optional =
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['));
        match optional {
            Some(rest) if all || !rest.ends_with("# no default") => rest.to_owned(),
            _ => line.to_owned(),
        }
    };
    text.lines().map(live).collect::<Vec<_>>().join("\n")
}

/// Reads the reference where its files exist.
fn read_reference(text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    for file in ["password", "ca.pem", "press-07.pem", "press-07.key"] {
        std::fs::write(folder.path().join(file), "x").unwrap();
    }
    let variables = [("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];
    read_with(text, &variables).unwrap_or_else(|error| panic!("{error}\n{text}")).config
}

/// Every key, as a path without the names and numbers that a person chooses.
fn keys(value: &serde_json::Value, path: &str, found: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(entries) => {
            for (key, inner) in entries {
                let path = match path {
                    "broker" => "broker".to_owned(),
                    "gateway.labels" => continue,
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                found.insert(path.clone());
                keys(inner, &path, found);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, path, found)),
        _ => {}
    }
}

#[test]
fn the_reference_is_a_valid_configuration_as_shipped_and_with_every_key_live() {
    read_reference(REFERENCE);
    // A live ca_file needs an address with TLS.
    read_reference(&uncommented(REFERENCE, true).replace("mqtt://127.0.0.1:1883", "mqtts://127.0.0.1:8883"));
}

#[test]
fn the_defaults_that_the_reference_shows_are_the_defaults() {
    let (head, _) = REFERENCE.split_once(EXAMPLES).unwrap();
    let shown = uncommented(head, false);
    assert_ne!(shown, head);
    assert_eq!(read_reference(&shown), read_reference(head));
}

#[test]
fn every_key_stands_in_the_reference_and_on_its_page() {
    let (mut known, mut written) = (Default::default(), Default::default());
    keys(&serde_json::to_value(good(FULL)).unwrap(), "", &mut known);
    let reference: toml::Value = toml::from_str(&uncommented(REFERENCE, true)).unwrap();
    keys(&serde_json::to_value(reference).unwrap(), "", &mut written);
    for path in &known {
        let key = path.rsplit('.').next().unwrap();
        assert!(
            written.contains(path) || REFERENCE.contains(&format!("{{ {key} = ")),
            "{path} is not in config/limpet.toml"
        );
        assert!(
            PAGE.contains(&format!("`{key}`")) || PAGE.contains(&format!("[{key}]")),
            "{path} is not in docs/configuration.md"
        );
    }
    for path in &written {
        assert!(known.contains(path), "config/limpet.toml has {path}, which is no key");
    }
}

#[test]
fn the_variables_that_are_suggested_are_the_keys_that_exist() {
    let file = uncommented(REFERENCE, true);
    let document: toml::Table = toml::from_str(&file).unwrap();
    for (table, suggested) in load::TABLES {
        let written = match table {
            "broker" => document[table]["local"].as_table().unwrap(),
            _ => document[table].as_table().unwrap(),
        };
        for key in written.keys() {
            assert!(suggested.contains(&key.as_str()), "{table}.{key} is not suggested");
        }
    }
}

proptest! {
    #[test]
    fn a_damaged_configuration_never_panics(cut in 0usize..4000, insert in "[\\[\\]{}=\"'.a-z0-9#\n $/+-]{0,12}", drop in 0usize..40) {
        let text: String = {
            let chars: Vec<char> = FULL.chars().collect();
            let cut = cut % chars.len();
            chars[..cut].iter().copied().chain(insert.chars()).chain(chars[cut..].iter().skip(drop).copied()).collect()
        };
        if let Ok(loaded) = read(&text) {
            let printed = effective(&loaded);
            let again = read(&printed);
            prop_assert!(again.is_ok_and(|again| again.config == loaded.config), "{}", printed);
        }
    }

    #[test]
    fn noise_never_panics(text in "\\PC{0,64}") {
        let _ = read(&text);
    }

    #[test]
    fn noisy_variables_never_panic(name in "(LIMPET_)?(GATEWAY|BROKER|UPLINK|LOG|SOURCE)?_{0,2}(LOCAL|LABELS|A_B)?_{0,2}[A-Z_\\PC]{0,8}", value in "\\PC{0,24}") {
        if let Ok(loaded) = read_with(SMALL, &[(&name, &value)]) {
            let _ = effective(&loaded);
        }
    }
}
