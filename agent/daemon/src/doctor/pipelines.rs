//! Whether pipelines run, and have anything to run on.

use super::{Finding, Patient, Probed};
use crate::api::report::PipelineState;

const CHECK: &str = "pipelines";

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let Some(status) = patient.status else { return Vec::new() };
    let mut findings = Vec::new();
    for pipeline in &status.pipelines {
        let why = pipeline.refusal.as_deref().unwrap_or("its model is on the way, being proved or being loaded");
        match pipeline.state {
            PipelineState::Serving => {}
            PipelineState::Refused => findings.push(Finding::error(
                CHECK,
                format!("{} is refused: {why}", pipeline.name),
                "change the configuration so that it fits; limpet check does the arithmetic",
            )),
            PipelineState::Loading | PipelineState::Waiting => findings.push(Finding::warning(
                CHECK,
                format!("{} does not run yet: {why}", pipeline.name),
                "wait, and look at limpet status",
            )),
        }
    }
    for (name, source) in &status.sources {
        if source.samples == 0 && source.refused.values().all(|count| *count == 0) {
            let source = patient.config.sources.iter().find(|known| *known.name == *name.as_str());
            if let Some(program) = source.and_then(|source| source.program()) {
                findings.push(Finding::warning(
                    CHECK,
                    format!("source {name} is silent since the start: its program {} wrote nothing", program[0]),
                    "look into the log for what it says; is its device there, and does a drop-in of the unit open it?",
                ));
                continue;
            }
            let away = |broker: &str| {
                let away = |(name, probed): &(String, Probed)| name == broker && matches!(probed, Probed::Away(_));
                patient.probed.iter().any(away)
            };
            findings.push(match source.and_then(|source| source.broker.as_deref()).filter(|broker| away(broker)) {
                Some(broker) => Finding::warning(
                    CHECK,
                    format!("source {name} is silent since the start: broker {broker} is not connected"),
                    "see what is said of that broker",
                ),
                None => Finding::warning(
                    CHECK,
                    format!("source {name} is silent since the start"),
                    "is the sensor on, and does the broker's access list let this gateway read it?",
                ),
            });
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} serve, and no source is silent", status.pipelines.len())));
    }
    findings
}
