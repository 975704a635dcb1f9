//! What may run, by the arithmetic of admission: what does not fit is refused with its terms, and the rest goes on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use limpet_tests::agent::{Home, RING};
use limpet_tests::{LIMIT, Message, Package, program};
use serde_json::Value;

use crate::bad_configuration::is_refused;
use crate::{Bench, assert_says, event, feed, levels, named, sound, uplink};

/// An analytic pipeline whose windows run one by one.
const ANALYTIC: &str = "class = \"analytic\"\ninference_batch = { max = 1 }\n";

/// Three models that hold memory, and a home in which they were proved.
fn large() -> ([Package; 3], Home) {
    let packages = ["one", "two", "three"].map(Package::dense);
    let uses: Vec<_> = packages.iter().map(|package| (package, ANALYTIC)).collect();
    let home = Home::proved_with("large", &uses);
    (packages, home)
}

/// Bytes that a model holds, by its proof.
#[track_caller]
fn memory_of(status: &Value, model: &str) -> u64 {
    let bytes = named(status, "models", model)["memory_bytes"].as_u64();
    bytes.filter(|bytes| *bytes > 0).unwrap_or_else(|| panic!("nothing is known of the memory of {model}: {status}"))
}

/// The models that are loaded; never more than the budget has room for.
#[track_caller]
fn loaded(status: &Value) -> BTreeSet<String> {
    let budget = &status["budget"];
    assert!(budget["memory_loaded_bytes"].as_u64() <= budget["memory_bytes"].as_u64(), "{budget}");
    let models = status["models"].as_array().expect("models are a list").iter();
    let loaded: Vec<&Value> = models.filter(|model| model["loaded"] == true).collect();
    let sum: u64 = loaded.iter().filter_map(|model| model["memory_bytes"].as_u64()).sum();
    assert_eq!(budget["memory_loaded_bytes"].as_u64(), Some(RING + sum), "{status:#}");
    loaded.iter().filter_map(|model| model["name"].as_str()).map(str::to_owned).collect()
}

/// The status, once so many models serve: they come one after the other.
#[track_caller]
fn when_active(bench: &Bench, count: usize) -> Value {
    bench.agent.wait_for_status("that all models serve", |status| {
        let models = status["models"].as_array()?.iter();
        (models.filter(|model| model["state"] == "active").count() == count).then(|| status.clone())
    })
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_pipeline_that_does_not_fit_is_refused_with_the_arithmetic_and_the_other_serves() {
    let (scores, loudness) = (Package::scores(), Package::loudness());
    let config = format!(
        "[budget]\ncpu = 0.5\n{}{}",
        sound(&loudness, "max_streams = 65536\nrate_hz = 100"),
        levels(&scores, "", "")
    );
    let mut bench = Bench::start(&config, "plant/+/scores", "scores");
    let refused = event(&mut bench.client, "pipeline-refused");
    assert_eq!(refused["pipeline"], "sound");
    let terms =
        ["Σ mean C ÷ T = ", " cores is above budget.cpu = 0.5: ", "sound: infer 65536 × ", "level: ingest 65536 × "];
    assert_says(&refused["message"], &terms);

    let path = bench.agent.home().path().join("limpet.toml");
    let path = program::text_of(&path);
    let printed = program::run("limpet", &["status", "--json", "--config", path]).expect_code(0).stdout;
    let status: Value = serde_json::from_str(printed.trim_end()).expect("it is one object");
    let sound = named(&status, "pipelines", "sound");
    assert_eq!((&sound["state"], &sound["refusal"]), (&"refused".into(), &refused["message"]));
    assert_eq!(named(&status, "pipelines", "levels")["state"], "serving");
    let table = program::run("limpet", &["status", "--config", path]).expect_code(0).stdout;
    assert_says(&table.into(), &["pipeline sound is refused: Σ mean C ÷ T = "]);

    let text = std::fs::read_to_string(path).expect("it was written");
    let line = 1 + text.lines().position(|line| line == "name = \"sound\"").expect("the pipeline has a name");
    let checked = program::run("limpet", &["check", "--prove", "--config", path]).expect_code(78).expect_complaint(&[
        &format!("limpet.toml:{line}:"),
        "sound",
        terms[0],
        terms[1],
        terms[2],
        terms[3],
    ]);
    let terms =
        ["levels: infer", "scores: ingest", "# load: Σ mean C ÷ T = ", "# worker 0: ", "# memory: Σ measured = "];
    assert_says(&checked.stdout.into(), &terms);

    bench.score("a", [0.9, 0.0, 0.0]);
    assert_eq!(bench.result("a")["label"], "low", "the other goes on");
}

#[test]
fn a_deadline_shorter_than_the_measured_compute_is_refused_with_both_numbers() {
    let (slow, scores) = (Package::slow(), Package::scores());
    let home = Home::proved_with("slow", &[(&slow, "")]);
    let config = format!("{}{}", levels(&scores, "", ""), feed("slow", &slow, "", ""));
    // What was measured is longer than ten milliseconds; five of them are the jitter until that was measured.
    let (before, after) = config.rsplit_once("deadline = \"30s\"").expect("the pipeline has a deadline");
    let config = format!("{before}deadline = \"10ms\"{after}");
    let mut bench = Bench::start_in(home, &config, "plant/+/scores", "scores");
    let refused = event(&mut bench.client, "pipeline-refused");
    assert_eq!(refused["pipeline"], "slow");
    assert_says(
        &refused["message"],
        &["slow: infer takes ", " ms on this device", "of the deadline of 10 ms only 5 ms are left"],
    );
    let (state, refusal) = bench.agent.wait_for_status("the refusal", |status| {
        let slow = named(status, "pipelines", "slow");
        (slow["state"] != "loading").then(|| (slow["state"].clone(), slow["refusal"].clone()))
    });
    assert_eq!((state, refusal), ("refused".into(), refused["message"].clone()));
    bench.score("a", [0.9, 0.0, 0.0]);
    assert_eq!(bench.result("a")["label"], "low", "the other goes on");
}

#[test]
fn budgets_and_classes_that_make_no_sense_name_the_key() {
    let nobody = "[broker.local]\nurl = \"mqtt://127.0.0.1:1\"\n";
    let package = Package::scores();
    let config = format!("{nobody}{}", levels(&package, "", ""));
    for cpu in ["nan", "0", "0.0", "-1", "1e9", "inf"] {
        let found = match cpu {
            "nan" => "found NaN",
            "0" | "0.0" => "found 0,",
            "1e9" => "found 1000000000",
            other => &format!("found {other}"),
        };
        is_refused(&format!("[budget]\ncpu = {cpu}\n{config}"), &["limpet.toml:7", "budget.cpu", found, "cores"]);
    }
    is_refused(&format!("[budget]\nmemory = \"0B\"\n{config}"), &["limpet.toml:7", "budget.memory", "0B"]);
    let classless = config.replace("deadline", "class = \"urgent\"\ndeadline");
    is_refused(&classless, &["limpet.toml:", "class", "urgent", "realtime", "analytic"]);
    for priority in ["0", "100"] {
        let config = format!("[runtime]\nfifo_priority = {priority}\n{config}");
        is_refused(&config, &["limpet.toml:7", "runtime.fifo_priority", &format!("found {priority}"), "1 to 99"]);
    }
    is_refused(&format!("[runtime]\naffinity = [9000]\n{config}"), &["limpet.toml:7", "runtime.affinity", "9000"]);
}

#[test]
fn a_cpu_that_this_machine_has_not_is_named_with_those_it_has() {
    let package = Package::scores();
    let home = Home::empty();
    let path = home.write(&format!(
        "[broker.local]\nurl = \"mqtt://127.0.0.1:1\"\n[runtime]\naffinity = [0, 8000]\n{}",
        levels(&package, "", "")
    ));
    program::run("limpet", &["run", "--config", program::text_of(&path)]).expect_code(78).expect_complaint(&[
        "runtime.affinity",
        "there is no CPU 8000",
        "this machine has 0",
    ]);
}

#[test]
fn a_memory_budget_that_is_too_small_is_refused_with_the_terms() {
    let ([one, ..], home) = large();
    let scores = Package::scores();
    let config = |bytes: u64| {
        let feeds = [levels(&scores, "", ""), feed("one", &one, "", ANALYTIC)].concat();
        format!("[budget]\nmemory = \"{bytes}B\"\n{feeds}")
    };
    let bench = Bench::start_in(home, &config(1 << 30), "plant/+/one", "one");
    let status = when_active(&bench, 2);
    let room = RING + memory_of(&status, "scores") + memory_of(&status, "one") / 2;
    let mut bench = bench.restart(&config(room), "plant/+/scores", "scores");
    let refused = event(&mut bench.client, "pipeline-refused");
    assert_eq!(refused["pipeline"], "one");
    let terms = [
        "Σ measured = ",
        " MiB is above budget.memory = ",
        "outbox.ring 8.0 MiB + ",
        "scores (f32.onnx) ",
        " + ",
        "one (f32.onnx) ",
    ];
    assert_says(&refused["message"], &terms);
    bench.score("a", [0.9, 0.0, 0.0]);
    assert_eq!(bench.result("a")["label"], "low", "the other goes on");
}

/// The three large models, each fed by a pipeline of its name, with room for `room` bytes where it is given.
fn three(packages: &[Package; 3], pin: &str, room: Option<u64>) -> String {
    let names = ["one", "two", "three"];
    let feeds: String = names
        .iter()
        .zip(packages)
        .map(|(name, package)| {
            let pinned = if *name == pin { "pin = true\n" } else { "" };
            feed(name, package, "", &format!("{ANALYTIC}{pinned}"))
        })
        .collect();
    format!("[budget]\nmemory = \"{}B\"\n{feeds}", room.unwrap_or(1 << 30))
}

/// [`three`] with room for as much as `room` makes of the bytes that each takes.
#[track_caller]
fn crowded(pin: &str, room: impl Fn([u64; 3]) -> u64) -> ([Package; 3], Bench) {
    let (packages, home) = large();
    let bench = Bench::start_in(home, &three(&packages, pin, None), "plant/+/three", "three");
    let status = when_active(&bench, 3);
    assert_eq!(loaded(&status), set(&["one", "two", "three"]), "there is room for all");
    let room = RING + room(["one", "two", "three"].map(|model| memory_of(&status, model)));
    let bench = bench.restart(&three(&packages, pin, Some(room)), "plant/+/three", "three");
    when_active(&bench, 3);
    (packages, bench)
}

#[test]
fn models_that_do_not_fit_together_take_turns_least_recently_used_first() {
    let (_packages, mut bench) = crowded("", |[one, two, three]| one + two + three - one.min(two).min(three) / 2);
    for (model, there) in [
        ("one", ["one", "two"]),
        ("two", ["one", "two"]),
        ("three", ["two", "three"]),
        ("two", ["two", "three"]),
        ("one", ["one", "two"]),
        ("three", ["one", "three"]),
    ] {
        let result = bench.ask(model, [0.1, 0.8, 0.2]);
        assert_eq!((&result["pipeline"], &result["label"]), (&model.into(), &"middle".into()));
        assert_eq!(loaded(&bench.agent.status()), set(&there), "after {model}");
    }
}

#[test]
fn a_pinned_model_stays_while_others_take_turns() {
    let (_packages, mut bench) = crowded("one", |[one, two, three]| one + two + three - two.min(three) / 2);
    for round in 0..3 {
        for model in ["two", "three"] {
            let result = bench.ask(model, [0.1, 0.2, 0.7 + 0.01 * f64::from(round)]);
            assert_eq!(result["label"], "high");
            let status = bench.agent.status();
            assert_eq!(loaded(&status), set(&["one", model]), "the pinned one was used least");
            assert_eq!(named(&status, "models", "one")["pinned"], true);
        }
    }
    assert_eq!(bench.ask("one", [0.9, 0.1, 0.1])["label"], "low");
}

#[test]
fn a_start_opens_no_more_models_at_once_than_the_budget_holds() {
    let packages: Vec<(String, Package)> =
        (0..6).map(|number| format!("many{number}")).map(|name| (name.clone(), Package::dense(&name))).collect();
    let uses: Vec<_> = packages.iter().map(|(_, package)| (package, ANALYTIC)).collect();
    let home = Home::proved_with("many", &uses);
    let config = |bytes: u64| {
        let feeds: String = packages.iter().map(|(name, package)| feed(name, package, "", ANALYTIC)).collect();
        format!("[budget]\nmemory = \"{bytes}B\"\n{feeds}")
    };
    let bench = Bench::start_in(home, &config(1 << 30), "plant/+/many5", "many5");
    let status = when_active(&bench, packages.len());
    let all = bench.agent.peak_memory();
    assert_eq!(loaded(&status).len(), packages.len(), "there is room for all");
    let room = RING + packages.iter().map(|(name, _)| memory_of(&status, name)).max().unwrap_or(0);
    let bench = bench.restart(&config(room), "plant/+/many5", "many5");
    assert_eq!(loaded(&when_active(&bench, packages.len())).len(), 1);
    // What was opened only to be looked at was let go before the next.
    let (one, weights) = (bench.agent.peak_memory(), 4 * 4 * 768 * 768);
    assert!(one + 3 * weights < all, "{one} bytes at most with one model, {all} with six of {weights} each");
}

/// Windows by outcome, of a pipeline or one of its streams; they add up.
#[track_caller]
fn outcome(figures: &Value, word: &str) -> u64 {
    figures["outcomes"][word].as_u64().unwrap_or(0)
}

fn adds_up(figures: &Value) -> bool {
    let ended: u64 =
        figures["outcomes"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    figures["windows"].as_u64() == Some(ended)
}

#[test]
fn analytic_windows_run_in_batches_and_every_one_ends_in_one_outcome() {
    let package = Package::dense("batches");
    let home = Home::proved_with("batches", &[(&package, "class = \"analytic\"\n")]);
    let config = feed("batches", &package, "", "class = \"analytic\"\n").replace("depth = 1000", "depth = 64");
    let mut bench = Bench::start_in(home, &config, "plant/+/batches", "batches");
    for _ in 0..1000 {
        for stream in ["a", "b"] {
            bench.client.send(&format!("plant/{stream}/batches"), "[0.9, 0.1, 0.2]");
        }
    }
    // The last of a stream gives way to none, unless it finds no place behind the flood; then it comes again.
    let until = Instant::now() + LIMIT;
    let mut last = BTreeSet::new();
    while last.len() < 2 {
        assert!(Instant::now() < until, "the last windows gave no results");
        for stream in ["a", "b"] {
            bench.client.publish(&format!("plant/{stream}/batches"), "[0.1, 0.2, 0.9]");
            let topic = uplink(&format!("result/batches/{stream}"));
            let is_high = |m: &Message| m.json_lines().iter().any(|result| result["label"] == "high");
            let high = |m: &Message| m.topic == topic && is_high(m);
            if bench.client.try_wait_for(Duration::from_millis(200), high).is_some() {
                last.insert(stream);
            }
        }
    }
    let figures = bench.agent.wait_for_status("an outcome for every window", |status| {
        let figures = named(status, "pipelines", "batches");
        let streams = figures["streams"].as_array()?;
        (adds_up(figures) && streams.iter().all(adds_up)).then(|| figures.clone())
    });
    let streams = figures["streams"].as_array().expect("streams are a list");
    assert_eq!(streams.len(), 2, "{figures:#}");
    for word in ["result", "expired", "replaced", "rejected", "invalid", "failed"] {
        let sum: u64 = streams.iter().map(|stream| outcome(stream, word)).sum();
        assert_eq!(sum, outcome(&figures, word), "{word}: {figures:#}");
    }
    let sum = |key: &str| -> u64 { streams.iter().filter_map(|stream| stream[key].as_u64()).sum() };
    assert_eq!(figures["windows"].as_u64(), Some(sum("windows")));
    let batches = figures["batches"].as_object().expect("batches are counted by their size");
    let ran: u64 = batches.values().filter_map(Value::as_u64).sum();
    assert_eq!(ran, outcome(&figures, "result"), "{figures:#}");
    assert!(batches.keys().any(|size| size != "1"), "nothing ran in a batch: {figures:#}");

    if limpet_tests::repeats(10) == 10 {
        // It comes once a minute.
        let topic = uplink("telemetry");
        let telemetry = bench.client.try_wait_for(Duration::from_secs(90), |message| message.topic == topic);
        let telemetry = telemetry.expect("telemetry comes once a minute").json();
        let told = &telemetry["pipelines"]["batches"];
        for key in ["windows", "outcomes", "batches"] {
            assert_eq!(told[key], figures[key], "{telemetry:#}");
            for stream in streams {
                let name = stream["name"].as_str().expect("a name is text");
                assert_eq!(told["streams"][name][key], stream[key], "{telemetry:#}");
            }
        }
    }
}

#[test]
fn a_window_behind_a_long_job_expires_while_that_still_runs() {
    let (slow, scores) = (Package::slow(), Package::scores());
    let home = Home::proved_with("slow", &[(&slow, "")]);
    // Both get their window by one message; the realtime one goes first, and takes longer than the other can wait.
    let prompt = format!(
        "[[pipeline]]\nname = \"prompt\"\nsource = \"slow\"\nmodel = \"{}\"\n{ANALYTIC}deadline = \"60ms\"\n",
        scores.display()
    );
    let config = format!("{}{prompt}", feed("slow", &slow, "max_streams = 1", ""));
    let mut bench = Bench::start_in(home, &config, "plant/+/slow", "slow");
    bench.agent.wait_for_log(&["serving", "model=\"scores\""]);
    let expired = |status: &Value| outcome(named(status, "pipelines", "prompt"), "expired");
    let mut sent = 0;
    // A machine that has no time for this test shows the end of both at once.
    let seen = (0..20).any(|_| {
        bench.client.publish("plant/a/slow", "[0.1, 0.2, 0.9]");
        sent += 1;
        let running = bench.agent.wait_for_status("the end of the one that waits", |status| {
            (expired(status) == sent).then(|| status["workers"][0]["running"].clone())
        });
        assert_eq!(bench.client.wait_on(&uplink("result/slow/a")).json()["label"], "high");
        running == "slow"
    });
    assert!(seen, "no window expired before the job that it waited for was over");
    let figures = named(&bench.agent.status(), "pipelines", "prompt").clone();
    assert_eq!((outcome(&figures, "expired"), figures["windows"].as_u64()), (sent, Some(sent)), "{figures}");
}

#[test]
fn a_realtime_window_whose_message_was_late_is_not_started() {
    let (slow, scores) = (Package::slow(), Package::scores());
    let home = Home::proved_with("slow", &[(&slow, "")]);
    // A second is enough to be admitted beside the slow one. A message that was on its way for nearly as long, and then
    // waits for a run of it to end, has none of it left.
    let timed = feed("prompt", &scores, "time = \"payload\"\nmax_skew = \"1h\"\nmax_gap = \"1h\"", "")
        .replace("json = {}", "raw = { type = \"f32\", header = [{ time = \"u64le ns\" }] }")
        .replace("deadline = \"30s\"", "deadline = \"1s\"");
    let config = format!("{timed}{}", feed("slow", &slow, "max_streams = 1", ANALYTIC));
    let mut bench = Bench::start_in(home, &config, "plant/+/slow", "slow");
    bench.agent.wait_for_log(&["serving", "model=\"scores\""]);
    bench.broker.wait_subscribed("plant/+/prompt");
    let begun = Instant::now();
    // Any clock will do, as long as it goes on.
    let window = |age: Duration| -> Vec<u8> {
        let captured = Duration::from_secs(1_800_000_000) + begun.elapsed() - age;
        let values = [0.9_f32, 0.1, 0.1].into_iter().flat_map(f32::to_le_bytes);
        (captured.as_nanos() as u64).to_le_bytes().into_iter().chain(values).collect()
    };
    bench.client.publish("plant/a/prompt", window(Duration::ZERO));
    bench.client.wait_on(&uplink("result/prompt/a"));
    // Payload times go forward, so no message can be later than the first of its stream is old.
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(bench.ask("slow", [0.1, 0.2, 0.9])["label"], "high");
    }
    let late = 4;
    for _ in 0..late {
        bench.client.publish("plant/a/slow", "[0.1, 0.2, 0.9]");
        bench.agent.wait_for_status("the slow one", |status| (status["workers"][0]["running"] == "slow").then_some(()));
        bench.client.publish("plant/a/prompt", window(Duration::from_millis(990)));
        bench.client.wait_on(&uplink("result/slow/a"));
    }
    let figures = bench.agent.wait_for_status("an outcome for every window", |status| {
        let figures = named(status, "pipelines", "prompt");
        (figures["windows"] == late + 1 && adds_up(figures)).then(|| figures.clone())
    });
    assert_eq!((outcome(&figures, "result"), outcome(&figures, "expired")), (1, late), "{figures}");
    assert!(bench.client.came_on(&uplink("result/prompt/a")).is_empty());
}

#[test]
fn under_pressure_the_reduced_variant_runs_and_afterwards_the_full_one() {
    let machine = tempfile::tempdir().expect("a temporary folder can be made");
    let zone = machine.path().join("sys/class/thermal/thermal_zone0");
    std::fs::create_dir_all(&zone).expect("a temporary folder can be made");
    let degrees = |text: &str| std::fs::write(zone.join("temp"), text).expect("a temporary file can be written");
    std::fs::write(zone.join("type"), "cpu-thermal\n").expect("a temporary file can be written");
    degrees("40000\n");
    let package = Package::reducible();
    let config = format!(
        "[pressure]\nroot = \"{}\"\nsustain = \"1s\"\nrecover = \"1s\"\n{}",
        program::text_of(machine.path()),
        feed("reducible", &package, "", "")
    );
    let home = Home::proved_with("reducible", &[(&package, "")]);
    let mut bench = Bench::start_in(home, &config, "plant/+/reducible", "reducible");
    let variant = |bench: &mut Bench| bench.ask("reducible", [0.9, 0.1, 0.1])["variant"].clone();
    assert_eq!(variant(&mut bench), "f32.onnx");
    degrees("95000\n");
    let begun = event(&mut bench.client, "pressure");
    assert_says(&begun["message"], &["cpu-thermal", "95.0 °C", "80"]);
    assert_eq!(variant(&mut bench), "reduced.onnx");
    let status = bench.agent.status();
    assert_eq!(status["pressure"], begun["message"]);
    let model = named(&status, "models", "reducible");
    assert_eq!((&model["reduced"], &model["variant"]), (&true.into(), &"reduced.onnx".into()));
    degrees("40000\n");
    event(&mut bench.client, "pressure-relieved");
    assert_eq!(variant(&mut bench), "f32.onnx");
    let status = bench.agent.status();
    assert_eq!((&status["pressure"], &named(&status, "models", "reducible")["reduced"]), (&Value::Null, &false.into()));
    let figures = named(&status, "pipelines", "reducible");
    assert_eq!((outcome(figures, "result"), adds_up(figures)), (3, true), "{figures}");
}
