//! The main job: ten seconds of real speech as a microphone would send them, and a trigger for each time that the word
//! is spoken. Needs the reference material.

use std::f64::consts::PI;
use std::path::Path;

use limpet_tests::agent::Home;
use limpet_tests::package::{Tensor, write_safetensors};
use limpet_tests::{Agent, Broker, Client, Package, program, shared};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{local, uplink};

const RATE_HZ: f64 = 16_000.0;
const FRAME: usize = 1024;
const HOP: usize = 512;
const BANDS: usize = 40;
const FRAMES: usize = 30;
/// Samples that one window needs.
const WINDOW: usize = FRAME + (FRAMES - 1) * HOP;

/// When the word is spoken, in seconds; a trigger may come up to 0.8 s after its end.
const WORDS: [(f64, f64); 3] = [(1.0, 1.65), (4.0, 4.76), (7.0, 7.36)];
const SLACK: f64 = 0.8;

const MANIFEST: &str = r#"format = 1
requires = "limpet >= 0.1"
[model]
name = "wakeword"
version = "2.1.0"
task = "classification"
summary = "Hears the word marvin"
license = "Apache-2.0"
[[variant]]
file = "VARIANT"
[[input]]
kind = "series"
rate_hz = 16000
channels = [{ name = "audio", unit = "full scale", min = -1.0, max = 1.0 }]
window = { frames = 30, hop = 1 }
front_end = [
  { pre_emphasis = 0.96875 },
  { frame = { length = 1024, hop = 512, window = "hamming_symmetric" } },
  { power_spectrum = { divide_by = 1024 } },
  { mel = { bands = 40, low_hz = 0, high_hz = 8000 } },
  { log10 = { scale = 10.0, offset = 52.0, divide = 64.0, clip = [0.0, 1.0] } },
]
[decision]
trigger = { label = "marvin", above = 0.8, for = 3QUIET }
"#;

/// Windows of the recording that are golden, by their first frame: the word, and other sounds. The reference gives the
/// same answer to them from rest as in the middle of the recording.
const MARVIN: [usize; 6] = [13, 17, 20, 24, 28, 32];
const OTHER: [usize; 6] = [134, 138, 142, 146, 177, 182];
/// Loud noise is the model's third class. TensorFlow Lite's reference kernels give these answers to it, whatever the
/// noise.
const NOISE_ANSWER: [i8; 3] = [-128, 127, -128];
const NOISES: u64 = 5;

/// The front end of the manifest in the plainest arithmetic there is: a Fourier transform by its definition, in f64,
/// from rest. `samples` in full scale; gives frames of [`BANDS`] features.
fn features(samples: &[f64]) -> Vec<f32> {
    let emphasized: Vec<f64> =
        (0..samples.len()).map(|at| samples[at] - if at == 0 { 0.0 } else { 0.96875 * samples[at - 1] }).collect();
    let turn = |step: usize| 2.0 * PI * (step % FRAME) as f64 / FRAME as f64;
    let (cosines, sines): (Vec<f64>, Vec<f64>) = (0..FRAME).map(|step| (turn(step).cos(), turn(step).sin())).unzip();
    let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
    let edge = |band: usize| mel(8000.0) * band as f64 / (BANDS + 1) as f64;
    let mut out = Vec::new();
    for start in (0..=emphasized.len() - FRAME).step_by(HOP) {
        let window = |at: usize| 0.54 - 0.46 * (2.0 * PI * at as f64 / (FRAME - 1) as f64).cos();
        let frame: Vec<f64> = (0..FRAME).map(|at| emphasized[start + at] * window(at)).collect();
        let power: Vec<f64> = (0..=FRAME / 2)
            .map(|bin| {
                let part = |table: &[f64]| -> f64 {
                    frame.iter().enumerate().map(|(at, value)| value * table[at * bin % FRAME]).sum()
                };
                (part(&cosines).powi(2) + part(&sines).powi(2)) / FRAME as f64
            })
            .collect();
        for band in 0..BANDS {
            let (low, center, high) = (edge(band), edge(band + 1), edge(band + 2));
            let energy: f64 = (1..power.len())
                .map(|bin| {
                    let at = mel(bin as f64 * RATE_HZ / FRAME as f64);
                    let weight = ((at - low) / (center - low)).min((high - at) / (high - center)).max(0.0);
                    weight * power[bin]
                })
                .sum();
            out.push((((10.0 * (energy + 1e-30).log10() + 52.0) / 64.0).clamp(0.0, 1.0)) as f32);
        }
    }
    out
}

/// White noise at a quarter of full scale.
fn noise(seed: u64) -> Vec<i16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((state >> 33) as f64 / f64::from(1_u32 << 31) * 2.0 - 1.0) * 8000.0).round() as i16
    };
    (0..WINDOW).map(|_| next()).collect()
}

fn full_scale(samples: &[i16]) -> Vec<f64> {
    samples.iter().map(|sample| f64::from(*sample) / 32768.0).collect()
}

/// The first channel of the recording.
fn recording(wav: &Path) -> Vec<i16> {
    let mut reader = hound::WavReader::open(wav).expect("the recording is there");
    let channels = usize::from(reader.spec().channels);
    reader.samples::<i16>().step_by(channels).map(|sample| sample.expect("it is whole")).collect()
}

/// The model with one variant, packaged; none if the reference material is not there.
fn package(variant: &str, quiet: &str) -> Option<Package> {
    let graph =
        std::fs::read(shared(&format!("models/mlperf-tiny/streaming-wakeword/{variant}"))?).expect("it is there");
    let samples = recording(&shared("wakeword/short_wav_easy10s.wav")?);
    let expected = std::fs::read(shared("wakeword/short_wav_easy10s.expected.safetensors")?).expect("it is there");
    let expected = SafeTensors::deserialize(&expected).expect("it is whole");
    let answers = expected.tensor("output").expect("it holds the outputs").data();

    let mut vectors: Vec<(Vec<i16>, [i8; 3])> = Vec::new();
    for frame in MARVIN.into_iter().chain(OTHER) {
        let answer = [0, 1, 2].map(|class| answers[3 * frame + class].cast_signed());
        vectors.push((samples[frame * HOP..frame * HOP + WINDOW].to_vec(), answer));
    }
    vectors.extend((1..=NOISES).map(|seed| (noise(seed), NOISE_ANSWER)));
    let count = vectors.len();
    let raw: Vec<f32> = vectors.iter().flat_map(|(s, _)| full_scale(s).into_iter().map(|v| v as f32)).collect();
    let features: Vec<f32> = vectors.iter().flat_map(|(samples, _)| features(&full_scale(samples))).collect();
    let output: Vec<i8> = vectors.iter().flat_map(|(_, answer)| *answer).collect();

    let manifest = MANIFEST.replace("VARIANT", variant).replace("QUIET", quiet);
    let package = Package::new(&manifest, &[(variant, &graph), ("labels.txt", b"marvin\nsilence\nother\n")]);
    write_safetensors(
        &package.file("golden.safetensors"),
        &[
            ("samples", Tensor::f32(&[count, WINDOW], &raw)),
            ("features", Tensor::f32(&[count, FRAMES, BANDS], &features)),
            ("output", Tensor::i8(&[count, 3], &output)),
        ],
        &[("output_scale", "0.00390625"), ("output_zero_point", "-128")],
    );
    Some(package)
}

/// Plays the recording through a real broker, with the one variant that `engine` takes, and judges the triggers.
fn three_words_are_three_triggers(variant: &str, engine: &str) {
    // The recording is played as fast as it is taken, so capture times say nothing and quiet time must not count.
    let Some(package) = package(variant, "") else { return };
    let samples = recording(&shared("wakeword/short_wav_easy10s.wav").expect("it was there"));
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    let config = format!(
        r#"{}
[[source]]
name = "microphone"
broker = "local"
topic = "room/{{stream}}/audio"
codec = {{ raw = {{ type = "i16" }} }}
scale = ["1/32768"]
max_gap = "1h"
[[pipeline]]
name = "marvin"
source = "microphone"
model = "{}"
deadline = "1m"
queue = {{ depth = 1000, policy = "reject" }}
publish = "every"
"#,
        local(&broker),
        package.display()
    );
    let agent = Agent::start_in(Home::empty(), &config);
    let model = agent.wait_for_model(&mut client, "wakeword", "active");
    assert_eq!((&model["engine"], &model["variant"]), (&engine.into(), &variant.into()));
    broker.wait_subscribed("room/+/audio");
    for message in samples.chunks(HOP) {
        let payload: Vec<u8> = message.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        client.publish("room/hall/audio", payload);
    }
    let windows = (samples.len() - WINDOW) / HOP + 1;
    let topic = uplink("result/marvin/hall");
    let mut results: Vec<Value> = Vec::new();
    while results.len() < windows {
        results.extend(client.wait_on(&topic).json_lines());
    }
    let firsts: Vec<u64> = results.iter().filter_map(|result| result["window"]["first"].as_u64()).collect();
    let expected: Vec<u64> = (0..windows as u64).map(|window| window * HOP as u64).collect();
    assert_eq!(firsts, expected, "every window, once and in order");
    assert!(results.iter().all(|result| result["engine"] == engine && result["variant"] == variant));
    let triggers: Vec<f64> = results
        .iter()
        .filter(|result| result["trigger"] == true)
        .map(|result| result["window"]["last"].as_f64().expect("an index is a number") / RATE_HZ)
        .collect();
    assert_eq!(triggers.len(), WORDS.len(), "one trigger a word and no other: {triggers:?}");
    for (trigger, (start, end)) in triggers.iter().zip(WORDS) {
        assert!((start..=end + SLACK).contains(trigger), "{trigger} s for the word at {start} to {end} s");
    }
}

#[test]
fn three_words_are_three_triggers_on_tflite() {
    three_words_are_three_triggers("int8.tflite", "tflite");
}

#[test]
fn three_words_are_three_triggers_on_tract() {
    three_words_are_three_triggers("int8-qdq.onnx", "tract");
}

#[test]
fn a_recording_can_be_tried_without_a_broker() {
    let Some(package) = package("int8.tflite", ", quiet = \"1s\"") else { return };
    let wav = shared("wakeword/short_wav_easy10s.wav").expect("it was there");
    let (package, wav) = (program::text_of(package.path()).to_owned(), program::text_of(&wav).to_owned());
    let try_with = |expectations: &[&str]| {
        let mut arguments = vec!["try", &package, &wav, "--json"];
        expectations.iter().for_each(|expectation| arguments.extend(["--expect", expectation]));
        program::run("limpet", &arguments)
    };
    let all = ["1.0-2.45:marvin", "4.0-5.56:marvin", "7.0-8.16:marvin"];
    let played = try_with(&all).expect_code(0);
    let results: Vec<Value> =
        played.stdout.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(results.iter().filter(|result| result["trigger"] == true).count(), 3);
    // Two of three are not enough, and neither is a word that nobody spoke.
    try_with(&all[..2]).expect_code(1).expect_complaint(&["not expected"]);
    let more: Vec<&str> = all.iter().copied().chain(["8.5-9.5:marvin"]).collect();
    try_with(&more).expect_code(1).expect_complaint(&["8.5", "did not come"]);
}

#[test]
fn the_plain_front_end_of_this_test_is_the_references() {
    let (Some(wav), Some(expected)) =
        (shared("wakeword/short_wav_easy10s.wav"), shared("wakeword/short_wav_easy10s.expected.safetensors"))
    else {
        return;
    };
    let samples = recording(&wav);
    let found = features(&full_scale(&samples[..WINDOW]));
    let expected = std::fs::read(expected).expect("it is there");
    let expected = SafeTensors::deserialize(&expected).expect("it is whole");
    let bytes = expected.tensor("features").expect("it holds the features").data();
    for (at, (found, expected)) in found.iter().zip(bytes.chunks_exact(4)).enumerate() {
        let expected = f32::from_le_bytes(expected.try_into().expect("four bytes"));
        assert!((found - expected).abs() < 1e-4, "feature {at}: {found}, expected {expected}");
    }
}
