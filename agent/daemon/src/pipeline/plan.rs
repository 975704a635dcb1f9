//! What the configuration and the packages together ask for, worked out once and shared by all workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use limpet_depot::manifest::{Image, InputKind};
use limpet_depot::{Options, Package};
use limpet_runtime::{Class, LanePolicy, Ledger, Overflow};
use limpet_signal::FrontEnd;

use super::input::Samples;
use super::publish::PublishRule;
use super::timing::{TimeSource, TimingRule};
use super::trigger::TriggerRule;
use crate::config::{self, Config, ModelRef, OnGap, Publish, QueuePolicy, TimeOrigin};
use crate::library::Opened;
use crate::link::outgoing::Packing;
use crate::report::SourceLedger;
use crate::topic::Template;

/// A source, with what its pipelines ask of it.
#[derive(Debug)]
pub struct SourcePlan {
    /// Its part of the configuration.
    pub config: config::Source,
    /// Samples per second, by the configuration or the models.
    pub timing: TimingRule,
    /// What it hands to its pipelines.
    pub kind: SourceKind,
    /// The pipelines that it feeds, as positions in [`Plan::pipelines`].
    pub pipelines: Vec<usize>,
    /// The most urgent class among them.
    pub class: Class,
    /// The shortest deadline among them.
    pub deadline: Duration,
    /// Whether the rate of its messages is known before the first of them.
    pub rate_declared: bool,
    /// What it received.
    pub ledger: SourceLedger,
}

impl SourcePlan {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Shortest time between two windows of a stream, where the rate is known before the first of them.
    pub fn declared_period(&self, version: &Version) -> Option<Duration> {
        let period =
            || Duration::try_from_secs_f64(version.hop() as f64 / self.timing.rate_hz).unwrap_or(Duration::MAX);
        self.rate_declared.then(period)
    }

    /// Whether a version reads what this source has been set up to give.
    ///
    /// # Errors
    /// What differs, and what to do.
    pub fn takes(&self, version: &Version) -> Result<(), String> {
        let kind = kind_of(&self.config, &version.model, &version.input).map_err(|(_, text)| text)?;
        let units = |kind: &SourceKind| match kind {
            SourceKind::Series { channels } => channels.iter().map(|channel| channel.unit.clone()).collect(),
            _ => Vec::new(),
        };
        let same = match (&kind, &self.kind) {
            (SourceKind::Series { .. }, SourceKind::Series { .. }) => units(&kind) == units(&self.kind),
            (one, other) => one == other,
        };
        if !same {
            return Err(format!(
                "source {} gives {}, but the model {} wants {}; restart the agent with a configuration that fits it",
                self.name(),
                self.kind.name(),
                version.model,
                kind.name()
            ));
        }
        match &version.input {
            InputKind::Series(series) if (series.rate_hz / self.timing.rate_hz - 1.0).abs() > 0.001 => Err(format!(
                "source {} has {} samples a second, but the model {} wants {}",
                self.name(),
                self.timing.rate_hz,
                version.model,
                series.rate_hz
            )),
            _ => Ok(()),
        }
    }

    /// What a gap does.
    pub fn on_gap(&self) -> OnGap {
        self.config.on_gap
    }
}

/// What a source's messages hold.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// Samples over time.
    Series {
        /// Channels of a sample, with their normal range, if the manifest gives one.
        channels: Vec<ChannelRange>,
    },
    /// One window of features a message.
    Features,
    /// One window in the graph's integer type a message.
    Quantized,
    /// One picture a message.
    Image(Image),
}

impl SourceKind {
    /// The word for it in a manifest.
    fn name(&self) -> String {
        match self {
            Self::Series { channels } => {
                let units: Vec<_> = channels.iter().map(|channel| channel.unit.as_str()).collect();
                format!("a series of {} channels in {}", channels.len(), units.join(", "))
            }
            Self::Features => "features".into(),
            Self::Quantized => "quantized".into(),
            Self::Image(_) => "image".into(),
        }
    }

    /// Values that make one sample.
    pub fn channels(&self) -> usize {
        match self {
            Self::Series { channels } => channels.len(),
            Self::Features | Self::Quantized | Self::Image(_) => 1,
        }
    }
}

/// A channel as the manifest describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelRange {
    /// Its unit.
    pub unit: String,
    /// Smallest and largest normal value.
    pub range: Option<(f64, f64)>,
}

/// A package as a pipeline uses it. A swap replaces this and nothing else of a pipeline.
#[derive(Debug)]
pub struct Version {
    /// The model's name.
    pub model: Arc<str>,
    /// The model's version.
    pub version: Arc<str>,
    /// What comes into the graph.
    pub input: InputKind,
    /// From samples to features; none where a message is a window.
    pub front_end: Option<FrontEnd>,
    /// When a result is a trigger.
    pub trigger: Option<TriggerRule>,
}

impl Version {
    /// Samples between two windows; 1 where a message is a window.
    pub fn hop(&self) -> u64 {
        self.front_end.as_ref().map_or(1, |front_end| front_end.samples_per_hop() as u64)
    }
}

/// How windows of a pipeline may share a run of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Most windows in one run.
    pub max: usize,
    /// How long a window may wait for others.
    pub delay: Duration,
}

/// A pipeline.
#[derive(Debug)]
pub struct PipelinePlan {
    /// Its name.
    pub name: Arc<str>,
    /// Position of its source in [`Plan::sources`].
    pub source: usize,
    /// Its package, as the configuration names it. The package itself is dropped when its sessions are made: it holds
    /// golden vectors, which may be larger than the model.
    pub package: ModelRef,
    /// The version that it starts with.
    pub version: Arc<Version>,
    /// What it gives up last.
    pub class: Class,
    /// From the capture of a window's last sample.
    pub deadline: Duration,
    /// How many windows of a stream may wait, and what happens to one more.
    pub lane: LanePolicy,
    /// How its windows may share a run.
    pub batching: Batching,
    /// Whether its model is never unloaded.
    pub pinned: bool,
    /// Whether a new version may take the place of the old one without both being loaded.
    pub swap: config::Swap,
    /// Which results go to the uplink.
    pub publish: PublishRule,
    /// How results become messages.
    pub packing: Packing,
    /// Who else hears of results.
    pub locals: Vec<LocalPlan>,
    /// What happened to its windows.
    pub ledger: Arc<Ledger>,
    /// The same, by stream, of those that are there.
    pub streams: Mutex<BTreeMap<Arc<str>, Arc<Ledger>>>,
}

impl PipelinePlan {
    fn with_lane(&self, lane: LanePolicy) -> Self {
        Self {
            name: Arc::clone(&self.name),
            source: self.source,
            package: self.package.clone(),
            version: Arc::clone(&self.version),
            class: self.class,
            deadline: Duration::MAX,
            lane,
            batching: self.batching,
            pinned: self.pinned,
            swap: self.swap,
            publish: self.publish,
            packing: self.packing,
            locals: Vec::new(),
            ledger: Arc::default(),
            streams: Mutex::default(),
        }
    }

    /// Whether its model stays loaded whatever else needs the memory: a realtime window has no time to wait for it.
    pub fn stays(&self) -> bool {
        self.pinned || self.class == Class::Realtime
    }

    /// The ledger of a stream, made when it appears.
    pub fn open_stream(&self, stream: &Arc<str>) -> Arc<Ledger> {
        let ledger = Arc::new(Ledger::within(Arc::clone(&self.ledger)));
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.insert(Arc::clone(stream), Arc::clone(&ledger));
        ledger
    }

    /// A stream is gone. What it counted stays in the pipeline's ledger.
    pub fn close_stream(&self, stream: &str) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(stream);
    }
}

/// A local output.
#[derive(Debug)]
pub struct LocalPlan {
    /// The broker it goes to.
    pub broker: Arc<str>,
    /// Its topic, by stream.
    pub topic: Template,
    /// Which results.
    pub rule: PublishRule,
    /// QoS 1 rather than 0.
    pub at_least_once: bool,
}

/// Everything that runs.
#[derive(Debug)]
pub struct Plan {
    /// In the order of the configuration.
    pub sources: Vec<Arc<SourcePlan>>,
    /// In the order of the configuration.
    pub pipelines: Vec<Arc<PipelinePlan>>,
}

/// Something that does not fit, and the key of the configuration that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// `source` or `pipeline`.
    pub list: &'static str,
    /// Position in that list.
    pub index: usize,
    /// The key.
    pub key: &'static str,
    /// What was found, what was expected, and what to do.
    pub text: String,
}

/// A key and what is wrong with its value.
pub type Wrong = (&'static str, String);

/// Packages by what the configuration says of them, each opened once.
pub type Packages = BTreeMap<ModelRef, Opened>;

impl Plan {
    /// Fits the configuration and the packages together.
    ///
    /// # Errors
    /// One sentence for each thing that does not fit: the key, what was found and what to do.
    pub fn new(config: &Config, packages: &Packages) -> Result<Self, Vec<Misfit>> {
        let mut problems = Vec::new();
        let mut pipelines = Vec::new();
        for (index, pipeline) in config.pipelines.iter().enumerate() {
            let package =
                &packages.get(&pipeline.model).expect("whoever fits a plan opened what its pipelines name").package;
            let source = config.sources.iter().position(|s| s.name == pipeline.source);
            let source = source.expect("the configuration was checked: every pipeline names a source that exists");
            match pipeline_plan(pipeline, source, package) {
                Ok(plan) => pipelines.push(Arc::new(plan)),
                Err((key, text)) => problems.push(Misfit { list: "pipeline", index, key, text }),
            }
        }
        let mut sources = Vec::new();
        for (index, source) in config.sources.iter().enumerate() {
            let fed = |(_, pipeline): &(usize, &Arc<PipelinePlan>)| pipeline.source == index;
            let fed: Vec<_> = pipelines.iter().enumerate().filter(fed).collect();
            if fed.is_empty() {
                // Either its pipelines have problems of their own, or nobody wants it.
                if !config.pipelines.iter().any(|pipeline| pipeline.source == source.name) {
                    let text = "no pipeline reads this source; remove it, or name it in one".to_owned();
                    problems.push(Misfit { list: "source", index, key: "name", text });
                }
                continue;
            }
            match source_plan(source, &fed) {
                Ok(plan) => sources.push(Arc::new(plan)),
                Err((key, text)) => problems.push(Misfit { list: "source", index, key, text }),
            }
        }
        if problems.is_empty() { Ok(Self { sources, pipelines }) } else { Err(problems) }
    }
}

impl Plan {
    /// Positions of the pipelines that name a package.
    pub fn uses_of(&self, package: &ModelRef) -> impl Iterator<Item = usize> {
        (0..self.pipelines.len()).filter(move |index| self.pipelines[*index].package == *package)
    }

    /// Most windows that any pipeline of a package runs together.
    pub fn batch_of(&self, package: &ModelRef) -> usize {
        self.uses_of(package).map(|index| self.pipelines[index].batching.max).max().unwrap_or(1)
    }

    /// How a package is proved: with batches, where a pipeline could use them.
    pub fn proof_options(&self, package: &ModelRef) -> Options {
        Options { batches: self.batch_of(package) > 1, ..Options::default() }
    }

    /// The same plan with other queues, whose windows never come too late.
    pub fn with_lanes(&self, lane: LanePolicy) -> Arc<Self> {
        let pipelines = self.pipelines.iter().map(|pipeline| Arc::new(pipeline.with_lane(lane))).collect();
        Arc::new(Self { sources: self.sources.clone(), pipelines })
    }
}

fn pipeline_plan(pipeline: &config::Pipeline, source: usize, package: &Arc<Package>) -> Result<PipelinePlan, Wrong> {
    let version = version_of(pipeline, package)?;
    let publish = PublishRule {
        publish: pipeline.publish,
        deadband: pipeline.deadband as f32,
        heartbeat: Some(pipeline.heartbeat.0).filter(|every| !every.is_zero()),
    };
    let depth = match pipeline.queue.policy {
        QueuePolicy::LatestOnly => 1,
        QueuePolicy::DropOldest | QueuePolicy::Reject => pipeline.queue.depth as usize,
    };
    let overflow = match pipeline.queue.policy {
        QueuePolicy::Reject => Overflow::Refuse,
        QueuePolicy::LatestOnly | QueuePolicy::DropOldest => Overflow::DropOldest,
    };
    Ok(PipelinePlan {
        name: pipeline.name.shared(),
        source,
        package: pipeline.model.clone(),
        version: Arc::new(version),
        class: match pipeline.class {
            config::Class::Realtime => Class::Realtime,
            config::Class::Analytic => Class::Analytic,
        },
        deadline: pipeline.deadline.0,
        lane: LanePolicy { depth, weight: usize::MAX, overflow },
        batching: Batching { max: pipeline.inference_batch.max as usize, delay: pipeline.inference_batch.delay.0 },
        pinned: pipeline.pin,
        swap: pipeline.swap,
        publish,
        packing: Packing {
            encoding: pipeline.encoding,
            max: pipeline.message_batch.max as usize,
            delay: pipeline.message_batch.delay.0,
        },
        locals: pipeline
            .local
            .iter()
            .map(|local| LocalPlan {
                broker: local.broker.shared(),
                topic: local.topic.clone(),
                // Whoever stands beside the machine wants what happens, not signs of life.
                rule: PublishRule { publish: local.on, heartbeat: None, ..publish },
                at_least_once: local.qos == 1,
            })
            .collect(),
        ledger: Arc::default(),
        streams: Mutex::default(),
    })
}

/// A package as a pipeline uses it.
///
/// # Errors
/// A key and what is wrong with its value.
pub fn version_of(pipeline: &config::Pipeline, package: &Package) -> Result<Version, Wrong> {
    let manifest = package.manifest();
    let path = &pipeline.model;
    let [input] = manifest.inputs.as_slice() else {
        let text = format!(
            "{path} has {} inputs; one source feeds one input, so only models with one can be served (limpet prove proves any)",
            manifest.inputs.len()
        );
        return Err(("model", text));
    };
    let front_end = match &input.kind {
        InputKind::Series(series) => Some(series.front_end().map_err(|error| ("model", format!("{path}: {error}")))?),
        _ => None,
    };
    let trigger = manifest.decision.trigger.as_ref().map(|trigger| TriggerRule {
        label: trigger.label.as_ref().and_then(|label| package.labels().iter().position(|l| l == label)),
        above: trigger.above,
        consecutive: trigger.windows,
        quiet: trigger.quiet,
    });
    if trigger.is_none() {
        let wants = [("publish", pipeline.publish == Publish::Triggers)];
        let local = [("local", pipeline.local.iter().any(|local| local.on == Publish::Triggers))];
        if let Some((key, _)) = wants.into_iter().chain(local).find(|(_, wants)| *wants) {
            let text = format!(
                "\"triggers\" are wanted, but {path} has none; add `trigger` to [decision] in its manifest, or say \"changes\""
            );
            return Err((key, text));
        }
    }
    Ok(Version {
        model: manifest.name.as_str().into(),
        version: manifest.version.to_string().into(),
        input: input.kind.clone(),
        front_end,
        trigger,
    })
}

fn source_plan(source: &config::Source, fed: &[(usize, &Arc<PipelinePlan>)]) -> Result<SourcePlan, Wrong> {
    let inputs = || fed.iter().map(|(_, pipeline)| (pipeline, &pipeline.version.input));
    let mut kinds = Vec::new();
    for (pipeline, kind) in inputs() {
        kinds.push((&pipeline.name, kind_of(source, &pipeline.version.model, kind)?));
    }
    let (first_name, kind) = &kinds[0];
    for (name, other) in &kinds[1..] {
        let fits = match (kind, other) {
            (SourceKind::Series { channels: one }, SourceKind::Series { channels: two }) => {
                one.iter().map(|channel| &channel.unit).eq(two.iter().map(|channel| &channel.unit))
            }
            (one, two) => one == two,
        };
        if !fits {
            let text = format!(
                "pipelines {first_name} and {name} read it differently ({} and {}); give each a source of its own",
                kind.name(),
                other.name()
            );
            return Err(("codec", text));
        }
    }
    let rates = inputs().filter_map(|(pipeline, kind)| match kind {
        InputKind::Series(series) => Some((&pipeline.name, &pipeline.version.model, series.rate_hz)),
        _ => None,
    });
    let mut rate_hz = source.rate_hz;
    for (pipeline, model, wanted) in rates {
        // Crystals differ by parts in a hundred thousand; a typing error differs by more.
        if (*rate_hz.get_or_insert(wanted) / wanted - 1.0).abs() > 0.001 {
            let text = format!(
                "found {}, but the model {model} of pipeline {pipeline} wants {wanted}; resample at the sensor, or use another model",
                rate_hz.unwrap_or(wanted)
            );
            return Err(("rate_hz", text));
        }
    }
    if source.is_shared() && fed.iter().any(|(_, pipeline)| pipeline.version.front_end.is_some()) {
        let text = "a shared subscription ($share/…) gets only some of a stream's messages, and no window can be cut from them; use a plain topic";
        return Err(("topic", text.to_owned()));
    }
    let class = fed.iter().map(|(_, pipeline)| pipeline.class).min().unwrap_or(Class::Analytic);
    let deadline = fed.iter().map(|(_, pipeline)| pipeline.deadline).min().unwrap_or(Duration::MAX);
    let plan = SourcePlan {
        timing: TimingRule {
            rate_hz: rate_hz.unwrap_or(1.0),
            time: match source.time {
                TimeOrigin::Arrival => TimeSource::Arrival,
                TimeOrigin::Payload => TimeSource::Payload { max_skew: source.max_skew.0 },
            },
            max_gap: source.max_gap.map(|gap| gap.0),
        },
        kind: kind.clone(),
        config: source.clone(),
        pipelines: fed.iter().map(|(index, _)| *index).collect(),
        class,
        deadline,
        rate_declared: rate_hz.is_some(),
        ledger: SourceLedger::default(),
    };
    if let SourceKind::Series { channels } = &plan.kind {
        let fits = Samples::new(&plan, channels.len());
        fits.map_err(|why| ("codec", format!("{why} (model {} of pipeline {first_name})", fed[0].1.version.model)))?;
    }
    Ok(plan)
}

fn kind_of(source: &config::Source, model: &str, input: &InputKind) -> Result<SourceKind, Wrong> {
    let kind = match input {
        InputKind::Series(series) => SourceKind::Series {
            channels: series
                .channels
                .iter()
                .map(|channel| ChannelRange { unit: channel.unit.clone(), range: channel.min.zip(channel.max) })
                .collect(),
        },
        InputKind::Features => SourceKind::Features,
        InputKind::Quantized => SourceKind::Quantized,
        InputKind::Image(image) => SourceKind::Image(image.clone()),
    };
    let is_image = matches!(source.codec, config::Codec::Image(_));
    if is_image != matches!(kind, SourceKind::Image(_)) {
        let text = format!("found {}, but the model {model} wants {}", source.codec.name(), input.name(),);
        return Err(("codec", text));
    }
    Ok(kind)
}
