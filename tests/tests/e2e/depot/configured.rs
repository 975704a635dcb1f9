//! Signed configurations: checked, admitted, put in effect, watched and taken back.

use std::time::Duration;

use super::hold::until;
use super::*;

/// The name of the target for this gateway.
const OWN: &str = "config.gw";

/// Sources and pipelines alone: the pipeline `name` hears `plant/{stream}/NAME`.
fn text(name: &str, model: &str, pipeline: &str) -> String {
    let any = Package::loudness();
    let text = sound(&any, "").replace(&any.display(), model);
    let text = text.replace("\"sound\"", &format!("\"{name}\"")).replace("/level\"", &format!("/{name}\""));
    format!("{text}{pipeline}")
}

/// The gateway's own file, with the trial of signed configurations.
fn file(broker: &Broker, depot: &Depot, trial: &str) -> String {
    let config = config(depot, SHORT).replace("[depot]\n", &format!("[depot]\ntrial = \"{trial}\"\n"));
    format!("{}{config}", local(broker))
}

/// An agent that serves version 1.0.0 of its model by its own file.
fn serving(trial: &str) -> (Depot, Bench) {
    let broker = Broker::start();
    let depot = Depot::on(&broker);
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let agent = Agent::start_in(Home::empty(), &file(&broker, &depot, trial));
    let mut bench = Bench { broker, client, agent };
    depot.publish(&Package::loudness());
    answers(&mut bench, "sound");
    (depot, bench)
}

/// Signs a configuration for the gateway of the tests.
#[track_caller]
fn configure(depot: &Depot, text: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("line.toml");
    std::fs::write(&path, text).expect("the disk has room");
    depot.run(&["configure", program::text_of(&path), "--gateway", GATEWAY]).expect_code(0);
}

/// The next event of a kind, and what it says.
#[track_caller]
fn said(bench: &mut Bench, kind: &str) -> String {
    let topic = uplink("event");
    let of_kind = |message: &Message| message.topic == topic && message.json()["kind"] == kind;
    let event = bench.client.wait_for(kind, of_kind).json();
    event["message"].as_str().expect("every event says something").to_owned()
}

/// Sends windows to the topic of a pipeline until it has answered: the agent may begin again meanwhile. Gives the version that
/// answered.
#[track_caller]
fn answers(bench: &mut Bench, name: &str) -> String {
    answers_to(bench, name, HOP)
}

/// The same, with so many samples in a message.
#[track_caller]
fn answers_to(bench: &mut Bench, name: &str, samples_each: usize) -> String {
    let (topic, result) =
        (format!("plant/a/{}", if name == "sound" { "level" } else { name }), uplink(&format!("result/{name}/a")));
    // What was answered before is no answer.
    bench.client.came_on(&result);
    for sequence in 0..1000 {
        bench.client.send(&topic, samples(sequence, &vec![0.1; samples_each]));
        if let Some(answer) = bench.client.try_wait_for(Duration::from_millis(50), |message| message.topic == result) {
            return answer.json()["version"].as_str().expect("every result names it").to_owned();
        }
    }
    panic!("{name} does not answer");
}

/// Sends windows to the topic of the file's source from a sequence number on, until an event comes; gives what it says.
#[track_caller]
fn flows_until(bench: &mut Bench, sequence: &mut u32, kind: &str) -> Value {
    let topic = uplink("event");
    for _ in 0..4000 {
        bench.client.send("plant/a/level", samples(*sequence, &[0.1; HOP]));
        *sequence += 1;
        let of_kind = |m: &Message| m.topic == topic && m.json()["kind"] == kind;
        if let Some(event) = bench.client.try_wait_for(Duration::from_millis(10), of_kind) {
            return event.json()["message"].clone();
        }
    }
    panic!("no {kind}");
}

fn shown(bench: &Bench) -> Value {
    bench.agent.wait_for_status("the configuration", |status| {
        let shown = status["configuration"].clone();
        (!shown.is_null()).then_some(shown)
    })
}

#[test]
fn a_signed_configuration_takes_the_place_of_the_files_pipelines_without_another_process() {
    let (depot, mut bench) = serving("2s");
    let pid = bench.agent.pid();
    configure(&depot, &text("noise", "loudness@*", SHORT));
    assert_says(&said(&mut bench, "configuration-activated").into(), &[OWN, "checked and admitted"]);
    answers(&mut bench, "noise");
    assert_says(&said(&mut bench, "configuration-passed").into(), &[OWN, "passed its trial"]);
    assert_eq!(bench.agent.pid(), pid);
    let state = shown(&bench);
    assert_eq!((&state["name"], &state["state"]), (&OWN.into(), &"active".into()));
    // Whoever checks sees what is in effect, and where it comes from.
    let config = bench.agent.home().path().join("limpet.toml");
    let checked = program::run("limpet", &["check", "--config", program::text_of(&config)]).expect_code(0);
    assert!(checked.stdout.contains("config.gw:") && checked.stdout.contains("noise"), "{}", checked.stdout);
    // After a power cut it is in effect at once, without a broker's word.
    let home = bench.agent.kill();
    bench.agent = Agent::start_in(home, &file(&bench.broker, &depot, "2s"));
    answers(&mut bench, "noise");
    // And the file is in effect again when its publisher takes it away.
    depot.run(&["configure", "--remove", "--gateway", GATEWAY]).expect_code(0);
    assert_says(&said(&mut bench, "configuration-activated").into(), &["the file alone"]);
    answers(&mut bench, "sound");
}

#[test]
fn a_configuration_that_cannot_work_is_rejected_once_with_its_line_and_the_one_before_stays() {
    let (depot, mut bench) = serving("2s");
    for (wrong, words) in [
        (text("noise", "loudness@*", "dedline = \"1s\"\n"), &["config.gw:15", "dedline", "deadline"][..]),
        (
            text("noise", "loudness@*", "deadline = \"1ns\"\n").replacen("deadline = \"30s\"\n", "", 1),
            &["config.gw:14", "pipeline.noise.deadline", "refused", "1 ns"],
        ),
        (
            text("noise", "loudness@*", "").replace("\"local\"", "\"nowhere\""),
            &["config.gw:3", "source.level.broker", "nowhere", "local"],
        ),
        (
            format!("{}[budget]\ncpu = 64\n", text("noise", "loudness@*", "")),
            &["config.gw:16", "budget.cpu", "64", "cores"],
        ),
    ] {
        configure(&depot, &wrong);
        let why = said(&mut bench, "configuration-rejected");
        assert_says(&why.clone().into(), &[OWN, "is rejected, the file alone stays in effect"]);
        assert_says(&why.into(), words);
        answers(&mut bench, "sound");
    }
    let state = shown(&bench);
    assert_eq!(state["name"], "file");
    assert_says(&state["failure"], &[OWN, "budget.cpu"]);
    // Not examined again by the next process; one that is good is.
    let (_, home, _) = bench.agent.stop();
    bench.agent = Agent::start_in(home, &file(&bench.broker, &depot, "2s"));
    answers(&mut bench, "sound");
    configure(&depot, &text("noise", "loudness@*", SHORT));
    said(&mut bench, "configuration-activated");
    answers(&mut bench, "noise");
    assert!(bench.agent.log_with(&["is rejected"]).is_empty());
}

#[test]
fn a_configuration_waits_until_the_models_that_it_names_are_here_and_proved() {
    let (depot, mut bench) = serving("2s");
    configure(&depot, &text("noise", "hum@^1", SHORT));
    let why = said(&mut bench, "configuration-waits");
    assert_says(
        &why.into(),
        &["config.gw (", "waits, the file alone stays in effect", "hum", "no version of it is listed"],
    );
    answers(&mut bench, "sound");
    let hum = Package::loudness_of("1.0.0", 0.0);
    hum.edit("name = \"loudness\"", "name = \"hum\"");
    depot.publish(&hum);
    said(&mut bench, "configuration-activated");
    answers(&mut bench, "noise");
    let record = bench.agent.home().record("hum").expect("it serves");
    assert_eq!(record["active"]["version"], "1.0.0");
}

#[test]
fn a_configuration_that_names_a_newer_version_gets_it_with_its_pipelines_and_not_before() {
    let (depot, mut bench) = serving("2s");
    let (_, home, _) = bench.agent.stop();
    let file = file(&bench.broker, &depot, "2s").replace("loudness@*", "loudness@^1");
    bench.agent = Agent::start_in(home, &file);
    answers(&mut bench, "sound");
    depot.publish(&Package::loudness_of("2.0.0", 0.01));
    configure(&depot, &text("noise", "loudness@^2", SHORT));
    said(&mut bench, "configuration-activated");
    event_of(&mut bench.client, "model-activated", "2.0.0");
    assert_eq!(answers(&mut bench, "noise"), "2.0.0");
    on_record(&bench, "loudness", "2.0.0");
    let log = bench.agent.log();
    let first = |words: &str| log.iter().position(|line| line.contains(words)).expect("it was said");
    assert!(first("takes effect") < first("serving model=\"loudness\" version=\"2.0.0\""), "{}", log.join("\n"));
}

/// Waits until this version is the one on record.
#[track_caller]
fn on_record(bench: &Bench, model: &str, version: &str) {
    let home = bench.agent.home();
    until("the record", || (home.record(model)?["active"]["version"] == version).then_some(()));
}

/// [`text`] for samples of two channels.
fn of_two_channels(name: &str, model: &str) -> String {
    text(name, model, SHORT).replace("type = \"f32\"", "type = \"f32\", channels = 2")
}

/// An agent whose own file takes any version that fits one channel, and a newer version that wants two.
fn with_a_version_of_two_channels(trial: &str) -> (Depot, Bench) {
    let (depot, mut bench) = serving(trial);
    depot.publish(&Package::of_two_channels("2.0.0"));
    let rejected = event_of(&mut bench.client, "model-rejected", "2.0.0");
    assert_says(&rejected["message"], &["1.0.0 goes on", "2 channels"]);
    (depot, bench)
}

#[test]
fn configurations_go_from_a_version_to_another_that_takes_other_samples_and_back() {
    let (depot, mut bench) = with_a_version_of_two_channels("1s");
    configure(&depot, &of_two_channels("noise", "loudness@*"));
    said(&mut bench, "configuration-activated");
    assert_eq!(answers_to(&mut bench, "noise", 2 * HOP), "2.0.0");
    on_record(&bench, "loudness", "2.0.0");
    // The range of the next one has room for the version that serves, and its source has not.
    configure(&depot, &text("hum", "loudness@*", SHORT));
    said(&mut bench, "configuration-activated");
    assert_eq!(answers(&mut bench, "hum"), "1.0.0");
}

#[test]
fn a_configuration_that_is_taken_back_takes_the_version_with_it_that_only_it_can_run() {
    let (depot, mut bench) = with_a_version_of_two_channels("4s");
    let mut sequence = 100_000;
    configure(&depot, &of_two_channels("sound", "loudness@^2").replace("\"level\"", "\"axle\""));
    flows_until(&mut bench, &mut sequence, "configuration-activated");
    event_of(&mut bench.client, "model-activated", "2.0.0");
    let back = flows_until(&mut bench, &mut sequence, "configuration-rolled-back");
    assert_says(&back, &["the file alone is in effect again"]);
    assert_eq!(answers(&mut bench, "sound"), "1.0.0");
    on_record(&bench, "loudness", "1.0.0");
}

#[test]
fn a_configuration_that_is_taken_back_leaves_a_trial_where_it_was() {
    let (depot, mut bench) = serving("4s");
    let (_, home, _) = bench.agent.stop();
    let long = "trial = { windows = 5000, time = \"10m\", shadow_cpu = 1.0 }\n";
    bench.agent = Agent::start_in(home, &file(&bench.broker, &depot, "4s").replace(SHORT, long));
    depot.publish(&Package::loudness_of("1.1.0", 0.01));
    event_of(&mut bench.client, "model-activated", "1.1.0");
    depot.publish(&Package::of_two_channels("2.0.0"));
    event_of(&mut bench.client, "model-rejected", "2.0.0");
    let mut sequence = 100_000;
    configure(&depot, &of_two_channels("sound", "loudness@*").replace("\"level\"", "\"axle\""));
    flows_until(&mut bench, &mut sequence, "configuration-activated");
    event_of(&mut bench.client, "model-activated", "2.0.0");
    flows_until(&mut bench, &mut sequence, "configuration-rolled-back");
    assert_eq!(answers(&mut bench, "sound"), "1.1.0");
    on_record(&bench, "loudness", "1.1.0");
    let record = bench.agent.home().record("loudness").expect("it serves");
    assert_eq!(record["trial"]["package"], record["active"]["package"], "it is on trial");
    assert_eq!(record["previous"][0]["version"], "1.0.0");
}

/// A text with one more pipeline on its source, for the model `hum`.
fn with_hum(text: &str, model: &str) -> String {
    let pipeline = &text[text.find("[[pipeline]]").expect("it has one")..];
    let name = pipeline.split('"').nth(1).expect("it has a name");
    format!("{text}{}", pipeline.replacen(&format!("\"{name}\""), "\"hum\"", 1).replace("\"loudness@*\"", model))
}

#[test]
fn two_models_of_one_source_change_together() {
    let (depot, mut bench) = serving("1s");
    let (_, home, _) = bench.agent.stop();
    bench.agent = Agent::start_in(home, &with_hum(&file(&bench.broker, &depot, "1s"), "\"hum@*\""));
    for (version, of) in [("1.0.0", Package::loudness_of("1.0.0", 0.0)), ("2.0.0", Package::of_two_channels("2.0.0"))] {
        of.edit("name = \"loudness\"", "name = \"hum\"");
        depot.publish(&of);
        let (topic, kind) = (uplink("event"), if version == "1.0.0" { "model-activated" } else { "model-rejected" });
        bench.client.wait_for("what becomes of it", |m| {
            let told = (m.topic == topic).then(|| m.json());
            told.is_some_and(|told| told["kind"] == kind && told["model"] == "hum" && told["version"] == version)
        });
    }
    depot.publish(&Package::of_two_channels("2.0.0"));
    event_of(&mut bench.client, "model-rejected", "2.0.0");
    configure(&depot, &with_hum(&of_two_channels("noise", "loudness@*"), "\"hum@*\""));
    said(&mut bench, "configuration-activated");
    assert_eq!(answers_to(&mut bench, "noise", 2 * HOP), "2.0.0");
    on_record(&bench, "loudness", "2.0.0");
    on_record(&bench, "hum", "2.0.0");
}

#[test]
fn what_a_configuration_would_bring_is_dropped_when_that_is_rejected() {
    let (depot, mut bench) = serving("2s");
    let (hum, odd) = (Package::loudness_of("1.0.0", 0.0), Package::loudness_of("1.0.0", 0.0));
    hum.edit("name = \"loudness\"", "name = \"hum\"");
    odd.edit("name = \"loudness\"", "name = \"odd\"");
    depot.publish(&hum);
    let both = |second: &str| format!("{}{}", text("noise", "hum@*", SHORT), second);
    configure(
        &depot,
        &both(
            &text("more", "odd@*", SHORT)
                .replace("\"level\"", "\"more\"")
                .replace("deadline = \"30s\"", "deadline = \"1us\""),
        ),
    );
    said(&mut bench, "configuration-waits");
    let index = bench.agent.home().state().join("depot/indexes/hum-1.0.0.index");
    assert!(index.is_file(), "it was fetched");
    depot.publish(&odd);
    said(&mut bench, "configuration-rejected");
    bench.agent.wait_for_status("nothing of it is kept", |_| (!index.exists()).then_some(()));
    assert_eq!(answers(&mut bench, "sound"), "1.0.0");
}

#[test]
fn a_configuration_that_listens_where_nothing_comes_is_taken_back() {
    let (depot, mut bench) = serving("4s");
    let mut sequence = 100_000;
    // The plant goes on as it did; only the topic is another.
    let wrong = text("sound", "loudness@*", SHORT).replace("\"level\"", "\"axle\"");
    configure(&depot, &wrong);
    flows_until(&mut bench, &mut sequence, "configuration-activated");
    let back = flows_until(&mut bench, &mut sequence, "configuration-rolled-back");
    assert_says(
        &back,
        &["config.gw (", "was taken back, the file alone is in effect again", "had no", "came in as long before"],
    );
    answers(&mut bench, "sound");
}

#[test]
fn a_configuration_under_which_nothing_can_be_read_is_taken_back_and_not_tried_again() {
    let (depot, mut bench) = serving("8s");
    let wrong = text("sound", "loudness@*", SHORT);
    let wrong = wrong.replace("/sound\"", "/level\"").replace("codec = { raw", "codec = { json = {} }\n#");
    configure(&depot, &wrong);
    said(&mut bench, "configuration-activated");
    bench.broker.wait_subscribed("plant/+/level");
    let (topic, mut sequence) = (uplink("event"), 0);
    let back = loop {
        bench.client.send("plant/a/level", samples(sequence, &[0.1; HOP]));
        sequence += 1;
        assert!(sequence < 2000, "it is not taken back");
        let back = |m: &Message| m.topic == topic && m.json()["kind"] == "configuration-rolled-back";
        if let Some(back) = bench.client.try_wait_for(Duration::from_millis(20), back) {
            break back.json()["message"].clone();
        }
    };
    assert_says(
        &back,
        &[
            "config.gw (",
            "was taken back, the file alone is in effect again",
            "messages of source level could not be read",
        ],
    );
    answers(&mut bench, "sound");
    let state = shown(&bench);
    assert_eq!((&state["name"], &state["state"]), (&"file".into(), &"active".into()));
    assert_says(&state["failure"], &[OWN, "could not be read"]);
    bench.agent.reload();
    answers(&mut bench, "sound");
    assert_eq!(shown(&bench)["name"], "file");
}

#[test]
fn an_agent_that_does_not_stay_up_under_a_configuration_goes_back_to_the_one_before() {
    let (depot, mut bench) = serving("8s");
    configure(&depot, &text("noise", "loudness@*", SHORT));
    said(&mut bench, "configuration-activated");
    answers(&mut bench, "noise");
    let file = file(&bench.broker, &depot, "8s");
    for _ in 0..2 {
        let home = bench.agent.kill();
        bench.agent = Agent::start_in(home, &file);
        answers(&mut bench, "noise");
    }
    let home = bench.agent.kill();
    bench.agent = Agent::start_in(home, &file);
    let back = said(&mut bench, "configuration-rolled-back");
    assert_says(
        &back.into(),
        &["config.gw (", "was taken back", "3 starts of the agent under it ended without being told to"],
    );
    answers(&mut bench, "sound");
}

#[test]
fn a_file_that_no_longer_goes_with_the_configuration_takes_effect_alone() {
    let (depot, mut bench) = serving("2s");
    configure(&depot, &text("noise", "loudness@*", SHORT));
    said(&mut bench, "configuration-activated");
    answers(&mut bench, "noise");
    let (_, home, _) = bench.agent.stop();
    let file = file(&bench.broker, &depot, "2s").replace("\"local\"", "\"plant\"");
    let file = file.replace("[broker.local]", "[broker.plant]");
    bench.agent = Agent::start_in(home, &file);
    let back = said(&mut bench, "configuration-rolled-back");
    assert_says(&back.into(), &["config.gw (", "was taken back, the file alone is in effect again", "local", "plant"]);
    answers(&mut bench, "sound");
}

#[test]
fn a_configuration_for_a_label_comes_from_a_folder_with_the_models_that_it_names() {
    let depot = Depot::in_folder();
    depot.publish(&Package::loudness());
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("line.toml");
    std::fs::write(&path, text("noise", "loudness@*", SHORT)).expect("the disk has room");
    depot.run(&["configure", program::text_of(&path), "--label", "line=3"]).expect_code(0);
    let home = Home::empty();
    let trust = format!("[depot]\ntrial = \"2s\"\nroot = \"{}\"\njitter = \"0s\"\n", depot.root().display());
    // A file without any pipeline: what the gateway does is its publisher's affair.
    let file = format!("labels = {{ line = \"3\" }}\n{}{trust}", local(&broker));
    let config = home.write(&file);
    let content = depot.content();
    let arguments = ["depot", "import", program::text_of(&content), "--config", program::text_of(&config)];
    let said = program::run("limpet", &arguments).expect_code(0).stdout;
    assert!(said.contains("config.line=3: is here") && said.contains("loudness 1.0.0:"), "{said}");
    let agent = Agent::start_in(home, &file);
    let mut bench = Bench { broker, client, agent };
    answers(&mut bench, "noise");
    assert_eq!(shown(&bench)["name"], "config.line=3");
}

#[test]
fn folders_alone_bring_a_configuration_and_take_it_back_with_the_versions_that_fit() {
    let depot = Depot::in_folder();
    depot.publish(&Package::loudness());
    depot.publish(&Package::of_two_channels("2.0.0"));
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/gw/#"]);
    let file = file(&broker, &depot, "1s");
    let home = Home::empty();
    let config = home.write(&file);
    let import = || {
        let content = depot.content();
        let arguments = ["depot", "import", program::text_of(&content), "--config", program::text_of(&config)];
        program::run("limpet", &arguments).expect_code(0).stdout
    };
    let said_of_it = import();
    assert!(said_of_it.contains("loudness 2.0.0 does not fit"), "{said_of_it}");
    assert!(said_of_it.contains("loudness 1.0.0: 1 of 1 chunks were copied"), "{said_of_it}");
    let mut bench = Bench { broker, client, agent: Agent::start_in(home, &file) };
    assert_eq!(answers(&mut bench, "sound"), "1.0.0");
    configure(&depot, &of_two_channels("noise", "loudness@*"));
    import();
    assert_eq!(answers_to(&mut bench, "noise", 2 * HOP), "2.0.0");
    for sequence in 2000..2100 {
        bench.client.publish("plant/a/noise", samples(sequence, &[0.1; 2 * HOP]));
    }
    said(&mut bench, "configuration-passed");
    depot.run(&["configure", "--remove", "--gateway", GATEWAY]).expect_code(0);
    import();
    assert_eq!(answers(&mut bench, "sound"), "1.0.0");
}

#[test]
fn a_configuration_whose_pipeline_gives_no_answers_is_taken_back_with_its_version() {
    let (depot, mut bench) = serving("8s");
    let (_, home, _) = bench.agent.stop();
    let file = file(&bench.broker, &depot, "8s").replace("loudness@*", "loudness@^1");
    bench.agent = Agent::start_in(home, &file);
    answers(&mut bench, "sound");
    // It passes its proof, and has no answer for what is quiet.
    depot.publish(&Package::undefined("2.0.0"));
    configure(&depot, &text("noise", "loudness@^2", SHORT));
    said(&mut bench, "configuration-activated");
    bench.broker.wait_subscribed("plant/+/noise");
    let (topic, mut sequence) = (uplink("event"), 0);
    let back = loop {
        bench.client.send("plant/a/noise", samples(sequence, &[(sequence % 30) as f32 / 100.0; HOP]));
        sequence += 1;
        assert!(sequence < 4000, "it is not taken back");
        let back = |m: &Message| m.topic == topic && m.json()["kind"] == "configuration-rolled-back";
        if let Some(back) = bench.client.try_wait_for(Duration::from_millis(10), back) {
            break back.json()["message"].clone();
        }
    };
    assert_says(&back, &["config.gw (", "was taken back", "windows of pipeline noise have no answer"]);
    answers(&mut bench, "sound");
    bench.agent.wait_for_status("the version of the file's range", |status| serves(status, "1.0.0"));
}

#[test]
fn a_configuration_goes_back_to_the_last_one_that_passed_its_trial() {
    let (depot, mut bench) = serving("3s");
    configure(&depot, &text("first", "loudness@*", SHORT));
    said(&mut bench, "configuration-activated");
    answers(&mut bench, "first");
    said(&mut bench, "configuration-passed");
    configure(&depot, &text("second", "loudness@*", SHORT));
    said(&mut bench, "configuration-activated");
    answers(&mut bench, "second");
    // Under the third nothing can be read. It takes its place about when the trial of the second would end.
    let wrong = text("third", "loudness@*", SHORT).replace("codec = { raw", "codec = { json = {} }\n#");
    configure(&depot, &wrong);
    said(&mut bench, "configuration-activated");
    let events = bench.client.came_on(&uplink("event"));
    let passed = events.iter().any(|event| event.json()["kind"] == "configuration-passed");
    bench.broker.wait_subscribed("plant/+/third");
    let topic = uplink("event");
    let taken_back = |m: &Message| m.topic == topic && m.json()["kind"] == "configuration-rolled-back";
    let back = (0..2000).find_map(|sequence| {
        bench.client.send("plant/a/third", samples(sequence, &[0.1; HOP]));
        bench.client.try_wait_for(Duration::from_millis(20), taken_back)
    });
    let back = back.expect("it is taken back").json()["message"].clone();
    assert_says(&back, &["was taken back, config.gw (", "is in effect again", "could not be read"]);
    // What was still on trial itself is nothing to go back to.
    answers(&mut bench, if passed { "second" } else { "first" });
}

#[test]
fn an_agent_that_is_killed_the_moment_a_configuration_takes_effect_comes_back_with_it() {
    let (depot, mut bench) = serving("2s");
    configure(&depot, &text("noise", "loudness@*", SHORT));
    // On record by then; whether this process has begun again already makes no difference.
    said(&mut bench, "configuration-activated");
    let home = bench.agent.kill();
    bench.agent = Agent::start_in(home, &file(&bench.broker, &depot, "2s"));
    answers(&mut bench, "noise");
    assert_says(&said(&mut bench, "configuration-passed").into(), &[OWN, "passed its trial"]);
}

#[test]
fn a_configuration_that_listens_at_a_broker_that_was_never_there_is_taken_back() {
    let (depot, mut bench) = serving("4s");
    let (_, home, _) = bench.agent.stop();
    // A port of which nobody has heard: the listener is gone again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let spare = format!("[uplink]\nbroker = \"local\"\n[broker.spare]\nurl = \"mqtt://127.0.0.1:{port}\"\n");
    let file = file(&bench.broker, &depot, "4s").replacen("[broker.local]", &format!("{spare}[broker.local]"), 1);
    bench.agent = Agent::start_in(home, &file);
    answers(&mut bench, "sound");
    let mut sequence = 100_000;
    let wrong = text("sound", "loudness@*", SHORT).replace("broker = \"local\"", "broker = \"spare\"");
    configure(&depot, &wrong);
    flows_until(&mut bench, &mut sequence, "configuration-activated");
    let back = flows_until(&mut bench, &mut sequence, "configuration-rolled-back");
    assert_says(&back, &["config.gw (", "was taken back, the file alone is in effect again", "came in as long before"]);
    answers(&mut bench, "sound");
}
