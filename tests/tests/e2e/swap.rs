//! A new version in the place of the old one, by SIGHUP, while windows come in.

use std::collections::VecDeque;
use std::time::Instant;

use limpet_tests::agent::{Home, RING};
use limpet_tests::package::HOP;
use limpet_tests::{LIMIT, Message, Package};
use serde_json::{Value, json};

use crate::{Bench, assert_close, assert_says, event, feed, named, samples, uplink};

/// A stream of [`Bench::sound`] with some messages under way, every result of which is looked at.
pub struct Flow {
    /// Messages sent, and results taken.
    sent: u32,
    taken: u32,
    /// Levels of the messages whose result has not come.
    levels: VecDeque<f32>,
    /// What `loud` scores more in each version, in the order in which they may come.
    biases: VecDeque<(&'static str, f32)>,
}

impl Flow {
    /// Messages under way at a time.
    const AHEAD: usize = 8;

    pub fn start(bench: &mut Bench, biases: &[(&'static str, f32)]) -> Self {
        let mut flow = Self { sent: 0, taken: 0, levels: VecDeque::new(), biases: biases.iter().copied().collect() };
        flow.send(bench);
        // The first message completes no window.
        flow.levels.clear();
        (0..Self::AHEAD).for_each(|_| flow.send(bench));
        flow
    }

    fn send(&mut self, bench: &mut Bench) {
        let level = (self.sent % 50) as f32 / 100.0;
        bench.client.publish("plant/a/level", samples(self.sent, &[level; HOP]));
        self.sent += 1;
        self.levels.push_back(level);
    }

    /// Takes the next result: of the next window, right by its version, which never goes back. Gives the version.
    #[track_caller]
    pub fn take(&mut self, bench: &mut Bench) -> Value {
        let result = bench.heard("a");
        assert_eq!(result["window"]["first"], self.taken * HOP as u32, "every window once, in order");
        self.taken += 1;
        if result["version"] != self.biases[0].0 {
            self.biases.pop_front();
        }
        let (version, bias) = *self.biases.front().unwrap_or_else(|| panic!("no such version: {result}"));
        assert_eq!(result["version"], version);
        let level = self.levels.pop_front().expect("a result is of a message");
        assert_close(&result["scores"]["loud"], f64::from(level + bias));
        result["version"].clone()
    }

    /// Takes results, and sends as many messages, until `count` results of a version came.
    #[track_caller]
    pub fn until(&mut self, bench: &mut Bench, version: &str, count: usize) {
        let until = Instant::now() + LIMIT;
        let mut left = count;
        while left > 0 {
            assert!(Instant::now() < until, "no {count} results of version {version}");
            if self.take(bench) == version {
                left -= 1;
            }
            self.send(bench);
        }
    }
}

/// An agent that serves version 1.0.0 of [`Package::loudness`].
fn serving() -> (Package, Bench) {
    let package = Package::loudness();
    let bench = Bench::start(&crate::sound(&package, ""), "plant/+/level", "loudness");
    (package, bench)
}

#[test]
fn a_new_version_takes_over_between_two_windows_of_a_stream_that_goes_on() {
    let (package, mut bench) = serving();
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0), ("2.0.0", 0.1)]);
    flow.until(&mut bench, "1.0.0", 20);
    package.become_like(&Package::loudness_of("2.0.0", 0.1));
    bench.agent.reload();
    flow.until(&mut bench, "2.0.0", 20);
    let new = |m: &Message| {
        m.topic == uplink("event") && m.json()["kind"] == "model-activated" && m.json()["version"] == "2.0.0"
    };
    bench.client.wait_for("the event", new);
    (0..Flow::AHEAD).for_each(|_| _ = flow.take(&mut bench));
    // The old version's memory is given back.
    let status = bench.agent.wait_for_status("the end of the old version", |status| {
        (status["models"].as_array()?.len() == 1).then(|| status.clone())
    });
    assert_eq!(named(&status, "models", "loudness")["version"], "2.0.0");
    let figures = named(&status, "pipelines", "sound");
    assert_eq!((&figures["windows"], &figures["outcomes"]["result"]), (&json!(flow.taken), &json!(flow.taken)));
}

#[test]
fn a_new_version_that_fails_its_proof_is_refused_and_the_old_one_goes_on() {
    let (package, mut bench) = serving();
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0)]);
    let newer = Package::loudness_of("2.0.0", 0.3);
    let golden = std::fs::read(package.file("golden.safetensors")).expect("the package has it");
    newer.put("golden.safetensors", &golden);
    package.become_like(&newer);
    bench.agent.reload();
    let refused = event(&mut bench.client, "model-refused");
    assert_eq!((&refused["model"], &refused["pipeline"]), (&"loudness".into(), &"sound".into()));
    assert_says(&refused["message"], &["loudness 2.0.0", "f32.onnx"]);
    flow.until(&mut bench, "1.0.0", 20);
    let status = bench.agent.status();
    assert_eq!(named(&status, "pipelines", "sound")["state"], "serving");
    let models = status["models"].as_array().expect("models are a list");
    let states: Vec<_> = models.iter().map(|model| (&model["version"], &model["state"])).collect();
    assert_eq!(states, [(&json!("1.0.0"), &json!("active")), (&json!("2.0.0"), &json!("failed"))]);
}

#[test]
fn a_new_version_with_another_number_of_channels_is_refused_and_the_old_one_goes_on() {
    let (package, mut bench) = serving();
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0)]);
    package.edit("version = \"1.0.0\"", "version = \"2.0.0\"");
    package.edit("frames = 10, hop = 5", "frames = 5, hop = 5");
    package.edit("[{ name = \"level\",", "[{ name = \"x\", unit = \"full scale\" }, { name = \"y\",");
    bench.agent.reload();
    let refused = event(&mut bench.client, "model-refused");
    assert_says(&refused["message"], &["level", "2 channels", "1"]);
    flow.until(&mut bench, "1.0.0", 20);
    assert_eq!(named(&bench.agent.status(), "pipelines", "sound")["state"], "serving");
}

#[test]
fn a_package_that_is_damaged_by_its_update_is_refused_and_the_old_one_goes_on() {
    let (package, mut bench) = serving();
    let mut flow = Flow::start(&mut bench, &[("1.0.0", 0.0)]);
    package.cut("model.toml", 0.5);
    bench.agent.reload();
    let refused = event(&mut bench.client, "swap-refused");
    assert_says(&refused["message"], &["model.toml"]);
    flow.until(&mut bench, "1.0.0", 20);
}

/// A large model that serves in a budget of memory which holds no second version of it; `swap` goes into the pipeline.
fn cramped(swap: &str) -> (Package, Bench) {
    let (package, newer) = (Package::dense("cramped"), Package::dense("cramped"));
    newer.edit("version = \"1.0.0\"", "version = \"2.0.0\"");
    let home = Home::proved_with("cramped", &[(&package, ""), (&newer, "")]);
    let config = |bytes: u64| format!("[budget]\nmemory = \"{bytes}B\"\n{}", feed("cramped", &package, "", swap));
    let bench = Bench::start_in(home, &config(1 << 30), "plant/+/cramped", "cramped");
    let bytes = named(&bench.agent.status(), "models", "cramped")["memory_bytes"].as_u64().expect("it was proved");
    let mut bench = bench.restart(&config(RING + bytes * 3 / 2), "plant/+/cramped", "cramped");
    assert_eq!(bench.ask("cramped", [0.9, 0.1, 0.2])["version"], "1.0.0");
    package.become_like(&newer);
    bench.agent.reload();
    (package, bench)
}

#[test]
fn without_memory_for_both_versions_a_swap_is_refused_with_the_arithmetic() {
    let (_package, mut bench) = cramped("");
    let refused = event(&mut bench.client, "swap-refused");
    assert_eq!(refused["model"], "cramped 2.0.0");
    let words = ["do not fit together", "for the new one + ", "that are taken > budget.memory = ", "swap = \"cold\""];
    assert_says(&refused["message"], &words);
    assert_eq!(bench.ask("cramped", [0.9, 0.1, 0.2])["version"], "1.0.0");
}

#[test]
fn without_memory_for_both_versions_a_cold_swap_happens() {
    let (_package, mut bench) = cramped("swap = \"cold\"\n");
    let new = |m: &Message| {
        m.topic == uplink("event") && m.json()["kind"] == "model-activated" && m.json()["version"] == "2.0.0"
    };
    bench.client.wait_for("the new version", new);
    assert_eq!(bench.ask("cramped", [0.9, 0.1, 0.2])["version"], "2.0.0");
    let budget = &bench.agent.status()["budget"];
    assert!(budget["memory_loaded_bytes"].as_u64() <= budget["memory_bytes"].as_u64(), "{budget}");
}
