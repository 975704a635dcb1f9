use std::path::Path;

use super::*;

/// The example of the format's description, word for word.
const EXAMPLE: &str = r#"
format = 1                        # a reader refuses a higher one by name
requires = "limpet >= 0.1"

[model]
name = "wakeword"
version = "2.1.0"                 # semver, without build metadata (`+` is not allowed in topics)
task = "classification"           # classification | anomaly | regression
summary = "Hears the word marvin"
license = "Apache-2.0"

[[variant]]                       # the device proves them all and keeps the fastest that passes
file = "int8.tflite"
[[variant]]
file = "int8-qdq.onnx"

[[input]]                         # one table per graph input
kind = "series"                   # series | image | features | quantized
tensor = "input_1"                # may be left out if the graph has one input
rate_hz = 16000
channels = [{ name = "audio", unit = "full scale", min = -1.0, max = 1.0 }]
window = { frames = 30, hop = 1 } # in front-end frames; without a front end: samples
front_end = [                     # samples → features, in order
  { pre_emphasis = 0.96875 },
  { frame = { length = 1024, hop = 512, window = "hamming_symmetric" } },
  { power_spectrum = { divide_by = 1024 } },
  { mel = { bands = 40, low_hz = 0, high_hz = 8000 } },
  { log10 = { scale = 10.0, offset = 52.0, divide = 64.0, clip = [0.0, 1.0] } },
]

[decision]
output = "Identity"               # may be left out if the graph has one output
activation = "none"               # none | softmax | sigmoid, if the graph ends in logits
score = "value"                   # value | reconstruction_mse (anomaly: mean squared difference from the features)
trigger = { label = "marvin", above = 0.8, for = 3, quiet = "1s" }

[proof]
top1_agreement = 1.0              # classification only; a tie for the best class is a disagreement
nmae = 0.25
features_nmae = 0.001

[budget]
latency_p99 = "5ms"               # session alone, on the device that runs it
memory = "8MiB"
"#;

fn parse(text: &str) -> Result<Manifest, String> {
    Manifest::parse(Path::new("pkg/model.toml"), text).map_err(|error| error.to_string())
}

/// The example with one text replaced by another.
fn with(from: &str, to: &str) -> Result<Manifest, String> {
    assert!(EXAMPLE.contains(from), "{from}");
    parse(&EXAMPLE.replacen(from, to, 1))
}

#[track_caller]
fn refused(found: Result<Manifest, String>, expected: &[&str]) {
    let sentence = found.expect_err("this manifest makes no sense");
    assert!(sentence.starts_with("pkg/model.toml"), "{sentence}");
    for part in expected {
        assert!(sentence.contains(part), "`{part}` is not in: {sentence}");
    }
}

#[test]
fn the_example_means_what_its_comments_say() {
    let manifest = parse(EXAMPLE).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.version.to_string().as_str()), ("wakeword", "2.1.0"));
    assert_eq!(manifest.task, Task::Classification);
    assert_eq!(manifest.variants[1].format, Format::Onnx);
    let InputKind::Series(series) = &manifest.inputs[0].kind else { panic!("a series") };
    assert_eq!(series.front_end().unwrap().feature_shape(), [30, 1, 40]);
    let trigger = manifest.decision.trigger.unwrap();
    assert_eq!((trigger.windows, trigger.quiet), (3, std::time::Duration::from_secs(1)));
    assert_eq!(manifest.limits, Limits { top1_agreement: 1.0, nmae: 0.25, features_nmae: 0.001 });
    assert_eq!(manifest.budget.memory, Some(8 << 20));
    assert_eq!(manifest.budget.latency_p99, Some(std::time::Duration::from_millis(5)));
}

#[test]
fn a_newer_format_is_refused_by_name_whatever_else_it_holds() {
    refused(with("format = 1 ", "format = 2\nunheard_of = 1 "), &["`format`: 2 is newer than 1", "update the agent"]);
    refused(with("format = 1 ", "formt = 1 "), &["`format`: is missing"]);
}

#[test]
fn a_newer_agent_can_be_required() {
    refused(with("limpet >= 0.1", "limpet >= 99"), &["`requires`", "limpet >=99", "update the agent"]);
    refused(with("limpet >= 0.1", "barnacle >= 1"), &["`requires`", "\"limpet >= 0.1\""]);
}

#[test]
fn unknown_keys_and_words_are_answered_with_the_nearest() {
    refused(with("latency_p99 =", "latency ="), &["line", "unknown key `latency` in [budget]", "`latency_p99`?"]);
    refused(with("kind = \"series\"", "kind = \"serie\""), &["`input[0].kind`", "did you mean `series`?"]);
    refused(with("\"classification\"  ", "\"classify\"  "), &["`model.task`", "did you mean `classification`?"]);
    refused(with("divide_by", "divide"), &["unknown key `divide`", "`divide_by`?"]);
}

#[test]
fn reserved_words_are_refused_as_reserved() {
    refused(with("[budget]", "[state]\nx = 1\n[budget]"), &["`state`", "reserved"]);
    refused(with("\"classification\"  ", "\"detection\"  "), &["`model.task`", "reserved"]);
}

#[test]
fn names_and_versions_fit_into_topics() {
    refused(with("\"wakeword\"", "\"Wake Word\""), &["`model.name`", "'Wake Word'"]);
    refused(with("\"2.1.0\"", "\"2.1.0+x1\""), &["`model.version`", "leave out \"+x1\""]);
    refused(with("\"2.1.0\"", "\"2.1\""), &["`model.version`", "\"2.1\" is not a semantic version"]);
}

#[test]
fn files_stay_in_the_package() {
    for bad in ["../int8.tflite", "/int8.tflite", "a/int8.tflite", "..", "", ".tflite", "in\\u0007t8.tflite"] {
        refused(with("\"int8.tflite\"", &format!("\"{bad}\"")), &["`variant[0].file`"]);
    }
    refused(with("\"int8.tflite\"", "\"int8.pb\""), &["\"int8.pb\" is neither .tflite nor .onnx"]);
    refused(with("\"int8-qdq.onnx\"", "\"int8.tflite\""), &["`variant[1].file`", "named twice"]);
}

#[test]
fn a_reduced_variant_may_have_limits_of_its_own() {
    let manifest =
        with("file = \"int8-qdq.onnx\"", "file = \"tiny.onnx\"\nrole = \"reduced\"\n[variant.proof]\nnmae = 0.5")
            .unwrap();
    assert_eq!(manifest.variants[1].role, Role::Reduced);
    assert_eq!(manifest.variants[1].limits, Limits { nmae: 0.5, ..Limits::PACKAGE });
    let only = EXAMPLE.replace("file = \"int8-qdq.onnx\"", "file = \"b.onnx\"\nrole = \"reduced\"");
    refused(parse(&only.replace("file = \"int8.tflite\"", "file = \"a.onnx\"\nrole = \"reduced\"")), &["only reduced"]);
}

#[test]
fn keys_that_belong_to_another_kind_are_errors() {
    refused(with("rate_hz", "resize = { width = 9, height = 9 }\nrate_hz"), &["`input[0].resize`", "kind \"image\""]);
    refused(with("kind = \"series\"", "kind = \"features\""), &["`input[0].rate_hz`", "kind \"series\""]);
    refused(with("rate_hz = 16000", ""), &["`input[0].rate_hz`: is missing"]);
}

#[test]
fn a_front_end_that_cannot_be_built_is_refused() {
    refused(with("bands = 40", "bands = 0"), &["`input[0].front_end`", "mel"]);
    refused(with("frames = 30", "frames = 0"), &["`input[0].front_end`"]);
    refused(with("rate_hz = 16000", "rate_hz = nan"), &["`input[0].rate_hz`"]);
    refused(with("min = -1.0", "min = 2.0"), &["`input[0].channels[0]`", "below `max`"]);
}

#[test]
fn several_inputs_each_name_their_tensor() {
    let two = EXAMPLE.replace("[decision]", "[[input]]\nkind = \"features\"\n[decision]");
    refused(parse(&two), &["`input[1]`", "`tensor` is missing"]);
    let same = EXAMPLE.replace("[decision]", "[[input]]\nkind = \"features\"\ntensor = \"input_1\"\n[decision]");
    refused(parse(&same), &["`input[1].tensor`", "another input"]);
    let two = EXAMPLE.replace("[decision]", "[[input]]\nkind = \"quantized\"\ntensor = \"b\"\n[decision]");
    assert_eq!(parse(&two).unwrap().inputs[1].kind, InputKind::Quantized);
}

#[test]
fn a_decision_fits_its_task() {
    let anomaly = |decision: &str| {
        let start = EXAMPLE.find("[decision]").unwrap();
        parse(&(EXAMPLE[..start].replace("\"classification\"  ", "\"anomaly\"  ") + "[decision]\n" + decision))
    };
    let manifest = anomaly("score = \"reconstruction_mse\"\ntrigger = { above = 12.5, quiet = \"1m\" }").unwrap();
    assert_eq!(manifest.decision.threshold, Some(12.5));
    assert_eq!(manifest.decision.trigger.unwrap().windows, 1);
    refused(anomaly("trigger = { label = \"x\", above = 1.0 }"), &["`decision.trigger.label`", "no labels"]);
    refused(anomaly("activation = \"softmax\""), &["`decision.activation`"]);
    refused(anomaly("trigger = { above = nan }"), &["`decision.trigger.above`", "finite"]);
    refused(anomaly("[proof]\ntop1_agreement = 1.0"), &["`proof.top1_agreement`", "anomaly"]);
    refused(with("label = \"marvin\", ", ""), &["`decision.trigger.label`: is missing"]);
    refused(with("for = 3", "for = 0"), &["`decision.trigger.for`"]);
    refused(with("quiet = \"1s\"", "quiet = 1"), &["1 has no unit"]);
    refused(with("\"value\"   ", "\"reconstruction_mse\"   "), &["`decision.score`", "classification"]);
}

#[test]
fn limits_that_let_everything_pass_are_refused() {
    refused(with("\nnmae = 0.25", "\nnmae = 1.0"), &["`proof.nmae`", "below 1"]);
    refused(with("top1_agreement = 1.0", "top1_agreement = 0"), &["`proof.top1_agreement`", "above 0"]);
}

#[test]
fn calibration_constants_lie_in_their_range() {
    let with_constant = |constant: &str| parse(&format!("{EXAMPLE}\n[calibration]\ngain = {constant}\n"));
    let manifest = with_constant("{ default = 1.0, range = [0.5, 2.0] }").unwrap();
    assert_eq!(manifest.calibration["gain"], Constant { default: 1.0, range: [0.5, 2.0] });
    refused(with_constant("{ default = 3.0, range = [0.5, 2.0] }"), &["`calibration.gain`", "[0.5, 2]"]);
}

proptest::proptest! {
    #[test]
    fn noise_is_refused_without_a_panic(noise: String, at in 0usize..EXAMPLE.len(), cut in 1usize..40, with: String) {
        let _ = parse(&noise);
        let boundary = |mut at: usize| {
            while !EXAMPLE.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (start, end) = (boundary(at), boundary((at + cut).min(EXAMPLE.len())));
        let _ = parse(&format!("{}{with}{}", &EXAMPLE[..start], &EXAMPLE[end..]));
    }
}
