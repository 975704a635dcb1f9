//! What a manifest may say: every key in its place, every number in its range.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::Path;

use limpet_engine::Format;
use limpet_signal::Step;
use semver::{Version, VersionReq};

use super::{
    Activation, Budget, Channel, Decision, FILE_NAME, FORMAT, Image, Input, InputKind, Limits, Manifest, Role, ScoreOf,
    Series, Task, Trigger, Variant, Window, raw,
};
use crate::toml_error;
use crate::units::{ByteSize, Duration};

/// Longest file name in a package, in bytes.
const FILE_NAME_MAX: usize = 96;

/// A fault of one key: the sentence without the file.
pub(super) struct Fault(pub String);

macro_rules! fault {
    ($key:expr, $($arg:tt)*) => { Fault(format!("`{}`: {}", $key, format_args!($($arg)*))) };
}

/// Judges a manifest as read.
pub(super) fn manifest(file: raw::File) -> Result<Manifest, Fault> {
    if file.state.is_some() {
        return Err(fault!("state", "this table is reserved for a later version; take it out"));
    }
    let requires = file.requires.as_deref().map(check_requires).transpose()?;
    limpet_wire::name::check_name(&file.model.name).map_err(|error| fault!("model.name", "{error}"))?;
    let version = check_version(&file.model.version)?;
    let task = check_task(&file.model.task)?;
    let limits = check_limits("proof", &file.proof, Limits::PACKAGE, task)?;
    let variants = check_variants(file.variant, limits, task)?;
    let inputs = check_inputs(file.input)?;
    let decision = check_decision(file.decision, task)?;
    for (name, constant) in &file.calibration {
        let [low, high] = constant.range;
        if !(low <= constant.default && constant.default <= high && low.is_finite() && high.is_finite()) {
            let default = constant.default;
            return Err(fault!(
                format_args!("calibration.{name}"),
                "its default {default} does not lie in its range [{low}, {high}]"
            ));
        }
    }
    Ok(Manifest {
        requires,
        name: file.model.name,
        version,
        task,
        summary: file.model.summary,
        license: file.model.license,
        variants,
        inputs,
        decision,
        limits,
        budget: Budget {
            latency_p99: file.budget.latency_p99.map(|Duration(latency)| latency),
            memory: file.budget.memory.map(|ByteSize(bytes)| bytes),
        },
        calibration: file.calibration,
    })
}

/// Judges the format, before any other key is looked at.
pub(super) fn format(format: Option<i64>) -> Result<(), Fault> {
    match format {
        Some(FORMAT) => Ok(()),
        None => Err(fault!("format", "is missing; a manifest starts with `format = {FORMAT}`")),
        Some(found) if found > FORMAT => Err(fault!(
            "format",
            "{found} is newer than {FORMAT}, the newest manifest format that limpet {} reads; update the agent",
            env!("CARGO_PKG_VERSION")
        )),
        Some(found) => Err(fault!("format", "{found} does not exist; expected {FORMAT}")),
    }
}

fn check_requires(requires: &str) -> Result<VersionReq, Fault> {
    let range = requires.trim().strip_prefix("limpet").ok_or_else(|| {
        fault!("requires", "found \"{requires}\"; expected limpet and a version, such as \"limpet >= 0.1\"")
    })?;
    let range = VersionReq::parse(range.trim())
        .map_err(|error| fault!("requires", "\"{requires}\" holds no range of versions: {error}"))?;
    let own = Version::parse(env!("CARGO_PKG_VERSION")).expect("Cargo demands a semantic version");
    if !range.matches(&own) {
        return Err(fault!("requires", "this model needs limpet {range}, and this is limpet {own}; update the agent"));
    }
    Ok(range)
}

fn check_version(text: &str) -> Result<Version, Fault> {
    let version = Version::parse(text)
        .map_err(|error| fault!("model.version", "\"{text}\" is not a semantic version such as \"2.1.0\": {error}"))?;
    if !version.build.is_empty() {
        return Err(fault!(
            "model.version",
            "\"{text}\" has build metadata, and `+` is not allowed in topics; leave out \"+{}\"",
            version.build
        ));
    }
    Ok(version)
}

fn check_task(text: &str) -> Result<Task, Fault> {
    match text {
        "classification" => Ok(Task::Classification),
        "anomaly" => Ok(Task::Anomaly),
        "regression" => Ok(Task::Regression),
        "detection" => Err(fault!("model.task", "\"detection\" is reserved for a later version")),
        other => {
            let known = [Task::Classification, Task::Anomaly, Task::Regression].map(Task::name);
            Err(fault!("model.task", "unknown word `{other}`; {}", toml_error::suggestion(other, &known)))
        }
    }
}

fn check_limits(table: &str, raw: &raw::Proof, default: Limits, task: Task) -> Result<Limits, Fault> {
    if raw.top1_agreement.is_some() && task != Task::Classification {
        return Err(fault!(
            format_args!("{table}.top1_agreement"),
            "only a classification has a best class, and this model's task is {}",
            task.name()
        ));
    }
    let within = |key: &str, value: Option<f64>, default: f64, below: bool| match value {
        None => Ok(default),
        // An error of 1 is what the best constant answer scores, so a limit of 1 would let anything pass.
        Some(value) if value > 0.0 && (value < 1.0 || (!below && value == 1.0)) => Ok(value),
        Some(value) => {
            let upper = if below { "below" } else { "at most" };
            Err(fault!(format_args!("{table}.{key}"), "found {value}; expected a number above 0 and {upper} 1"))
        }
    };
    Ok(Limits {
        top1_agreement: within("top1_agreement", raw.top1_agreement, default.top1_agreement, false)?,
        nmae: within("nmae", raw.nmae, default.nmae, true)?,
        features_nmae: within("features_nmae", raw.features_nmae, default.features_nmae, true)?,
    })
}

/// Checks the name of a file in a package: one level, no surprises for any file system or terminal.
pub(crate) fn file_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > FILE_NAME_MAX {
        Err(format!("a file name has 1 to {FILE_NAME_MAX} characters, and this one has {}", name.len()))
    } else if name.contains(['/', '\\']) || name == ".." {
        Err(format!("\"{name}\" leads out of the package; expected the name of a file that lies beside {FILE_NAME}"))
    } else if name.starts_with('.') || !name.chars().all(plain) {
        let name = name.escape_default();
        Err(format!(
            "\"{name}\" is not a plain file name: expected letters, digits, '.', '_' and '-', and no '.' first"
        ))
    } else {
        Ok(())
    }
}

fn check_variants(raw: Vec<raw::Variant>, limits: Limits, task: Task) -> Result<Vec<Variant>, Fault> {
    let mut variants = Vec::with_capacity(raw.len());
    let mut seen = BTreeSet::new();
    for (index, variant) in raw.into_iter().enumerate() {
        let key = format!("variant[{index}]");
        file_name(&variant.file).map_err(|reason| fault!(format_args!("{key}.file"), "{reason}"))?;
        let format = Format::of(Path::new(&variant.file))
            .ok_or_else(|| fault!(format_args!("{key}.file"), "\"{}\" is neither .tflite nor .onnx", variant.file))?;
        if !seen.insert(variant.file.clone()) {
            return Err(fault!(format_args!("{key}.file"), "\"{}\" is named twice", variant.file));
        }
        let limits = check_limits(&format!("{key}.proof"), &variant.proof, limits, task)?;
        variants.push(Variant { file: variant.file, format, role: variant.role, limits });
    }
    if variants.iter().all(|variant| variant.role == Role::Reduced) {
        return Err(fault!(
            "variant",
            "expected a [[variant]] with a `file` for normal operation, and found {}",
            if variants.is_empty() { "none" } else { "only reduced ones" }
        ));
    }
    Ok(variants)
}

fn check_inputs(raw: Vec<raw::Input>) -> Result<Vec<Input>, Fault> {
    if raw.is_empty() {
        return Err(fault!("input", "expected an [[input]] for each input of the graph, and found none"));
    }
    let several = raw.len() > 1;
    let mut tensors = BTreeSet::new();
    let mut inputs = Vec::with_capacity(raw.len());
    for (index, input) in raw.into_iter().enumerate() {
        let key = format!("input[{index}]");
        match &input.tensor {
            None if several => {
                return Err(fault!(key, "`tensor` is missing; with several inputs each names the tensor it goes to"));
            }
            Some(tensor) if !tensors.insert(tensor.clone()) => {
                return Err(fault!(format_args!("{key}.tensor"), "\"{tensor}\" is named by another input too"));
            }
            _ => {}
        }
        inputs.push(check_input(&key, input)?);
    }
    Ok(inputs)
}

fn check_input(key: &str, raw: raw::Input) -> Result<Input, Fault> {
    let of_series = [
        ("rate_hz", raw.rate_hz.is_some()),
        ("channels", raw.channels.is_some()),
        ("window", raw.window.is_some()),
        ("front_end", raw.front_end.is_some()),
    ];
    let of_image = [
        ("format", raw.format.is_some()),
        ("resize", raw.resize.is_some()),
        ("crop", raw.crop.is_some()),
        ("order", raw.order.is_some()),
        ("layout", raw.layout.is_some()),
        ("mean", raw.mean.is_some()),
        ("std", raw.std.is_some()),
    ];
    let misplaced: Vec<_> = match raw.kind.as_str() {
        "series" => of_image.to_vec(),
        "image" => of_series.to_vec(),
        "features" | "quantized" => [&of_series[..], &of_image[..]].concat(),
        other => {
            let known = ["series", "image", "features", "quantized"];
            return Err(fault!(
                format_args!("{key}.kind"),
                "unknown word `{other}`; {}",
                toml_error::suggestion(other, &known)
            ));
        }
    };
    if let Some((name, _)) = misplaced.iter().find(|(_, given)| *given) {
        let owner = if of_series.iter().any(|(key, _)| key == name) { "series" } else { "image" };
        return Err(fault!(
            format_args!("{key}.{name}"),
            "belongs to inputs of kind \"{owner}\", and this one's is \"{}\"",
            raw.kind
        ));
    }
    let kind = match raw.kind.as_str() {
        "series" => InputKind::Series(check_series(key, raw.rate_hz, raw.channels, raw.window, raw.front_end)?),
        "image" => InputKind::Image(Image {
            format: raw.format.ok_or_else(|| {
                fault!(format_args!("{key}.format"), "is missing; expected \"jpeg\", \"png\", \"rgb8\" or \"gray8\"")
            })?,
            resize: raw.resize,
            crop: raw.crop,
            order: raw.order.unwrap_or_default(),
            layout: raw.layout.unwrap_or_default(),
            mean: check_colors(key, "mean", raw.mean, 0.0, |mean| mean.is_finite())?,
            std: check_colors(key, "std", raw.std, 1.0, |std| std.is_finite() && std > 0.0)?,
        }),
        "features" => InputKind::Features,
        _ => InputKind::Quantized,
    };
    Ok(Input { tensor: raw.tensor, kind })
}

fn check_colors(
    key: &str,
    name: &str,
    given: Option<Vec<f32>>,
    default: f32,
    good: impl Fn(f32) -> bool,
) -> Result<Vec<f32>, Fault> {
    let values = given.unwrap_or_else(|| vec![default]);
    if !matches!(values.len(), 1 | 3) || !values.iter().all(|value| good(*value)) {
        return Err(fault!(
            format_args!("{key}.{name}"),
            "found {values:?}; expected one number for all colors or three, one each, finite{}",
            if name == "std" { " and above 0" } else { "" }
        ));
    }
    Ok(values)
}

fn check_series(
    key: &str,
    rate_hz: Option<f64>,
    channels: Option<Vec<Channel>>,
    window: Option<Window>,
    steps: Option<Vec<Step>>,
) -> Result<Series, Fault> {
    let missing = |name: &str| fault!(format_args!("{key}.{name}"), "is missing; an input of kind \"series\" needs it");
    let rate_hz = rate_hz.ok_or_else(|| missing("rate_hz"))?;
    if !(rate_hz.is_finite() && rate_hz > 0.0) {
        return Err(fault!(format_args!("{key}.rate_hz"), "found {rate_hz}; expected samples per second, above 0"));
    }
    let channels = channels.ok_or_else(|| missing("channels"))?;
    if channels.is_empty() {
        return Err(fault!(format_args!("{key}.channels"), "the list is empty; expected one entry a channel"));
    }
    for (index, channel) in channels.iter().enumerate() {
        let key = format!("{key}.channels[{index}]");
        if channel.name.is_empty() {
            return Err(fault!(format_args!("{key}.name"), "is empty"));
        }
        if channels[..index].iter().any(|other| other.name == channel.name) {
            return Err(fault!(format_args!("{key}.name"), "\"{}\" is used twice", channel.name));
        }
        let low = channel.min.unwrap_or(f64::NEG_INFINITY);
        let high = channel.max.unwrap_or(f64::INFINITY);
        // A limit that is not a number compares as nothing, and is refused too.
        if low.partial_cmp(&high) != Some(Ordering::Less) {
            return Err(fault!(key, "`min` {low} must lie below `max` {high}"));
        }
    }
    let series = Series {
        rate_hz,
        channels,
        window: window.ok_or_else(|| missing("window"))?,
        steps: steps.unwrap_or_default(),
    };
    series.front_end().map_err(|error| fault!(format_args!("{key}.front_end"), "{error}"))?;
    Ok(series)
}

fn check_decision(raw: raw::Decision, task: Task) -> Result<Decision, Fault> {
    if raw.activation == Activation::Softmax && task != Task::Classification {
        return Err(fault!("decision.activation", "\"softmax\" needs classes, and the task is {}", task.name()));
    }
    if raw.score == ScoreOf::ReconstructionMse && task != Task::Anomaly {
        let task = task.name();
        return Err(fault!(
            "decision.score",
            "\"reconstruction_mse\" is for the task anomaly, and this one's is {task}"
        ));
    }
    if raw.score == ScoreOf::ReconstructionMse && raw.activation != Activation::None {
        return Err(fault!(
            "decision.activation",
            "a reconstruction is compared as the graph gives it; leave this out"
        ));
    }
    if raw.threshold.is_some() && task != Task::Anomaly {
        return Err(fault!("decision.threshold", "is for the task anomaly, and this one's is {}", task.name()));
    }
    let finite = |key: &str, value: f32| match value.is_finite() {
        true => Ok(value),
        false => Err(fault!(key, "found {value}; expected a finite number")),
    };
    let trigger = match raw.trigger {
        None => None,
        Some(trigger) => {
            match (task, &trigger.label) {
                (Task::Classification, None) => {
                    return Err(fault!("decision.trigger.label", "is missing; a classification triggers on a label"));
                }
                (Task::Anomaly, Some(label)) => {
                    return Err(fault!("decision.trigger.label", "found \"{label}\", but an anomaly has no labels"));
                }
                (Task::Regression, _) => {
                    return Err(fault!("decision.trigger", "a regression has no score to trigger on; leave it out"));
                }
                _ => {}
            }
            if trigger.r#for == 0 {
                return Err(fault!("decision.trigger.for", "found 0; expected a number of results, at least 1"));
            }
            Some(Trigger {
                label: trigger.label,
                above: finite("decision.trigger.above", trigger.above)?,
                windows: trigger.r#for,
                quiet: trigger.quiet.0,
            })
        }
    };
    let threshold = raw.threshold.map(|value| finite("decision.threshold", value)).transpose()?;
    let above = trigger.as_ref().filter(|_| task == Task::Anomaly).map(|trigger| trigger.above);
    Ok(Decision {
        output: raw.output,
        activation: raw.activation,
        score: raw.score,
        threshold: threshold.or(above),
        trigger,
    })
}
