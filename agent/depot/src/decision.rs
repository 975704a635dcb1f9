//! From what a session gave to what it means: activation, best label, score.
//!
//! Pure: the same outputs give the same verdict. The daemon and the proof share this code.

use std::sync::Arc;

use limpet_engine::TensorSpec;
use limpet_wire::result::Verdict;

use crate::DepotError;
use crate::manifest::{Activation, Manifest, ScoreOf, Task};

/// An output, a feature or a score that is infinite or not a number: the window's outcome is `invalid`.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the model gave a value that is not finite ({value}) at element {index} of its output")]
pub struct NotFinite {
    /// Index of the first such element.
    pub index: usize,
    /// What it is.
    pub value: f32,
}

/// Turns one window's output into a verdict.
#[derive(Debug, Clone)]
pub struct Decider {
    task: Task,
    activation: Activation,
    score: ScoreOf,
    threshold: Option<f32>,
    labels: Arc<[String]>,
    output: usize,
    elements: usize,
}

impl Decider {
    /// For a graph with these outputs, loaded with batch 1. `features` is how many values go into the graph for one
    /// window, which is what a reconstruction is compared with.
    ///
    /// # Errors
    /// [`DepotError::Decision`] if the manifest names an output that the graph lacks, or the number of labels or
    /// features does not fit it.
    pub fn new(
        manifest: &Manifest,
        labels: &Arc<[String]>,
        outputs: &[TensorSpec],
        features: usize,
    ) -> Result<Self, DepotError> {
        let decision = &manifest.decision;
        let names = || outputs.iter().map(|output| format!("\"{}\"", output.name)).collect::<Vec<_>>().join(", ");
        let output = match (&decision.output, outputs) {
            (None, [_]) => 0,
            (None, _) => {
                return Err(DepotError::Decision(format!(
                    "`decision.output` is missing; the graph has {} outputs, so it must name one of {}",
                    outputs.len(),
                    names()
                )));
            }
            (Some(name), _) => outputs.iter().position(|output| output.name == *name).ok_or_else(|| {
                DepotError::Decision(format!(
                    "`decision.output`: the graph has no output \"{name}\"; it has {}",
                    names()
                ))
            })?,
        };
        let spec = &outputs[output];
        let elements = spec.elements();
        let place = format!("output \"{}\" has {elements} elements", spec.name);
        let wrong = match manifest.task {
            Task::Classification if labels.len() != elements => {
                Some(format!("labels.txt has {} labels, but {place}: expected one label an element", labels.len()))
            }
            Task::Anomaly if decision.score == ScoreOf::Value && elements != 1 => Some(format!(
                "`decision.score` is \"value\", but {place}: expected one, or `score = \"reconstruction_mse\"`"
            )),
            Task::Anomaly if decision.score == ScoreOf::ReconstructionMse && elements != features => Some(format!(
                "`decision.score` is \"reconstruction_mse\", but {place} and there are {features} features: expected \
                 as many"
            )),
            _ => None,
        };
        match wrong {
            Some(wrong) => Err(DepotError::Decision(wrong)),
            None => Ok(Self {
                task: manifest.task,
                activation: decision.activation,
                score: decision.score,
                threshold: decision.threshold,
                labels: Arc::clone(labels),
                output,
                elements,
            }),
        }
    }

    /// Index of the output that it decides on.
    pub fn output(&self) -> usize {
        self.output
    }

    /// How many elements that output has for one window.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The score above which a window is an anomaly, if one is set.
    pub fn threshold(&self) -> Option<f32> {
        self.threshold
    }

    /// Whether [`Decider::decide`] looks at the features.
    pub fn needs_features(&self) -> bool {
        self.score == ScoreOf::ReconstructionMse
    }

    /// The verdict on one window. `output` holds real values (dequantized); `features` what went into the graph for
    /// it, which only a reconstruction needs. Allocates one vector at most.
    ///
    /// # Errors
    /// [`NotFinite`] if a value is not finite.
    ///
    /// # Panics
    /// If `output` does not have [`Decider::elements`] values, or a reconstruction is not given as many features.
    pub fn decide(&self, output: &[f32], features: &[f32]) -> Result<Verdict, NotFinite> {
        assert_eq!(output.len(), self.elements, "the output of one window");
        if let Some(index) = output.iter().position(|value| !value.is_finite()) {
            return Err(NotFinite { index, value: output[index] });
        }
        let verdict = match self.task {
            Task::Classification => {
                let scores = self.activate(output);
                Verdict::Class { best: best(&scores), labels: Arc::clone(&self.labels), scores }
            }
            Task::Anomaly => Verdict::Anomaly { score: self.anomaly(output, features)?, threshold: self.threshold },
            Task::Regression => Verdict::Regression { values: self.activate(output) },
        };
        Ok(verdict)
    }

    fn anomaly(&self, output: &[f32], features: &[f32]) -> Result<f32, NotFinite> {
        let score = match self.score {
            ScoreOf::Value => match self.activation {
                Activation::Sigmoid => sigmoid(output[0]),
                Activation::None | Activation::Softmax => output[0],
            },
            ScoreOf::ReconstructionMse => {
                assert_eq!(features.len(), output.len(), "a reconstruction has as many values as the features");
                let squares = output.iter().zip(features).map(|(a, b)| f64::from(a - b).powi(2));
                (squares.sum::<f64>() / output.len() as f64) as f32
            }
        };
        if score.is_finite() { Ok(score) } else { Err(NotFinite { index: 0, value: score }) }
    }

    fn activate(&self, output: &[f32]) -> Vec<f32> {
        match self.activation {
            Activation::None => output.to_vec(),
            Activation::Sigmoid => output.iter().copied().map(sigmoid).collect(),
            Activation::Softmax => {
                // Relative to the largest, so that no exponential overflows.
                let largest = output.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut scores: Vec<f32> = output.iter().map(|x| (x - largest).exp()).collect();
                let sum: f32 = scores.iter().sum();
                scores.iter_mut().for_each(|score| *score /= sum);
                scores
            }
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Index of the largest score, the first of equals.
fn best(scores: &[f32]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use limpet_engine::ElementType;

    use super::*;

    fn manifest(task: &str, decision: &str) -> Manifest {
        let text = format!(
            "format = 1\n[model]\nname = \"m\"\nversion = \"1.0.0\"\ntask = \"{task}\"\n[[variant]]\nfile = \"a.onnx\"\n\
             [[input]]\nkind = \"features\"\n[decision]\n{decision}\n"
        );
        Manifest::parse(Path::new("model.toml"), &text).unwrap()
    }

    fn spec(name: &str, elements: usize) -> TensorSpec {
        TensorSpec { name: name.into(), element: ElementType::F32, shape: vec![1, elements], quantization: None }
    }

    fn labels(labels: &[&str]) -> Arc<[String]> {
        labels.iter().map(|label| label.to_string()).collect()
    }

    fn decider(task: &str, decision: &str, names: &[&str], elements: usize) -> Decider {
        Decider::new(&manifest(task, decision), &labels(names), &[spec("out", elements)], elements).unwrap()
    }

    #[test]
    fn a_class_is_the_largest_score_and_the_first_of_equals() {
        let decider = decider("classification", "", &["a", "b", "c"], 3);
        let verdict = decider.decide(&[0.1, 0.5, 0.5], &[]).unwrap();
        assert_eq!((verdict.label(), verdict.score()), (Some("b"), Some(0.5)));
    }

    #[test]
    fn softmax_of_large_logits_neither_overflows_nor_loses_its_sum() {
        let decider = decider("classification", "activation = \"softmax\"", &["a", "b"], 2);
        let Verdict::Class { best, scores, .. } = decider.decide(&[1000.0, 1001.0], &[]).unwrap() else {
            panic!("not a class")
        };
        assert_eq!(best, 1);
        assert!((scores[1] - 0.731_058_6).abs() < 1e-6 && (scores[0] + scores[1] - 1.0).abs() < 1e-6, "{scores:?}");
    }

    #[test]
    fn a_reconstruction_is_scored_by_its_mean_squared_difference() {
        let decision = "score = \"reconstruction_mse\"\ntrigger = { above = 2.0 }";
        let decider = decider("anomaly", decision, &[], 2);
        assert!(decider.needs_features());
        assert_eq!(decider.decide(&[1.0, 2.0], &[3.0, 4.0]), Ok(Verdict::Anomaly { score: 4.0, threshold: Some(2.0) }));
    }

    #[test]
    fn a_value_that_is_not_finite_is_no_verdict() {
        for (task, decision, names) in [
            ("classification", "", &["a", "b"][..]),
            ("regression", "", &[]),
            ("anomaly", "score = \"reconstruction_mse\"", &[]),
        ] {
            let decider = decider(task, decision, names, 2);
            let error = decider.decide(&[0.0, f32::NAN], &[0.0, 0.0]).unwrap_err();
            assert_eq!(error.index, 1, "{task}");
        }
        let decider = decider("anomaly", "score = \"reconstruction_mse\"", &[], 1);
        assert!(decider.decide(&[1.0], &[f32::INFINITY]).is_err());
    }

    #[test]
    fn an_output_that_does_not_fit_is_refused_with_both_numbers() {
        let refuse = |manifest: &Manifest, names: &[&str], outputs: &[TensorSpec], features| {
            Decider::new(manifest, &labels(names), outputs, features).unwrap_err().to_string()
        };
        let classes = manifest("classification", "");
        let error = refuse(&classes, &["a", "b"], &[spec("out", 3)], 3);
        assert_eq!(error, "labels.txt has 2 labels, but output \"out\" has 3 elements: expected one label an element");
        let error = refuse(&classes, &["a", "b"], &[spec("x", 2), spec("y", 2)], 3);
        assert!(error.contains("must name one of \"x\", \"y\""), "{error}");
        let named = manifest("classification", "output = \"z\"");
        let error = refuse(&named, &["a", "b"], &[spec("x", 2)], 3);
        assert!(error.contains("no output \"z\"; it has \"x\""), "{error}");
        let error = refuse(&manifest("anomaly", ""), &[], &[spec("x", 2)], 2);
        assert!(error.contains("expected one, or"), "{error}");
        let error = refuse(&manifest("anomaly", "score = \"reconstruction_mse\""), &[], &[spec("x", 2)], 3);
        assert!(error.contains("3 features"), "{error}");
    }
}
