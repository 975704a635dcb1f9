//! Which results go to the uplink.

use std::time::Duration;

use limpet_runtime::Moment;
use limpet_wire::result::Verdict;

use crate::config::Publish;

/// What a pipeline publishes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PublishRule {
    /// Every result, changes, or triggers.
    pub publish: Publish,
    /// By how much a score must differ from the last published one to be a change.
    pub deadband: f32,
    /// A result is published at least this often, if at all.
    pub heartbeat: Option<Duration>,
}

/// What one stream published last.
#[derive(Debug, Clone, Default)]
pub struct PublishState {
    /// When something was published last, or the first result came.
    since: Option<Moment>,
    last: Option<Published>,
}

#[derive(Debug, Clone)]
struct Published {
    label: Option<usize>,
    values: Vec<f32>,
}

impl PublishState {
    /// Says whether a result is published, and remembers it if so. The first of a stream is a change.
    pub fn selects(&mut self, rule: &PublishRule, verdict: &Verdict, trigger: bool, now: Moment) -> bool {
        let since = *self.since.get_or_insert(now);
        let due = rule.heartbeat.is_some_and(|every| now.since(since) >= every);
        let selected = trigger
            || due
            || match rule.publish {
                Publish::Every => true,
                Publish::Triggers => false,
                Publish::Changes => self.last.as_ref().is_none_or(|last| last.differs(verdict, rule.deadband)),
            };
        if selected {
            self.since = Some(now);
            let (label, values) = essence(verdict);
            let last = self.last.get_or_insert_with(|| Published { label: None, values: Vec::new() });
            last.label = label;
            last.values.clear();
            last.values.extend_from_slice(values);
        }
        selected
    }
}

impl Published {
    fn differs(&self, verdict: &Verdict, deadband: f32) -> bool {
        let (label, values) = essence(verdict);
        label != self.label
            || values.len() != self.values.len()
            || values.iter().zip(&self.values).any(|(now, then)| (now - then).abs() > deadband)
    }
}

/// What counts as a change: the label and its score, an anomaly's score, or any value of a regression.
fn essence(verdict: &Verdict) -> (Option<usize>, &[f32]) {
    match verdict {
        Verdict::Class { best, scores, .. } => (Some(*best), scores.get(*best..=*best).unwrap_or_default()),
        Verdict::Anomaly { score, .. } => (None, std::slice::from_ref(score)),
        Verdict::Regression { values } => (None, values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(publish: Publish) -> PublishRule {
        PublishRule { publish, deadband: 0.05, heartbeat: Some(Duration::from_secs(60)) }
    }

    fn class(best: usize, score: f32) -> Verdict {
        let mut scores = vec![0.0; 3];
        scores[best] = score;
        Verdict::Class { best, labels: ["a", "b", "c"].map(String::from).into(), scores }
    }

    fn selected(rule: &PublishRule, results: &[(u64, Verdict, bool)]) -> Vec<u64> {
        let mut state = PublishState::default();
        let at = |s: u64| Moment(s * 1_000_000_000);
        results.iter().filter(|(s, v, t)| state.selects(rule, v, *t, at(*s))).map(|(s, ..)| *s).collect()
    }

    #[test]
    fn changes_are_another_label_or_a_score_beyond_the_deadband() {
        let results = [
            (0, class(0, 0.90), false),
            (1, class(0, 0.94), false),
            (2, class(0, 0.96), false),
            (3, class(1, 0.96), false),
            (4, class(1, 0.96), true),
        ];
        assert_eq!(selected(&rule(Publish::Changes), &results), [0, 2, 3, 4]);
    }

    #[test]
    fn a_slow_drift_is_a_change_once_it_has_left_the_deadband() {
        let drift: Vec<_> =
            (0..10).map(|i| (i, Verdict::Anomaly { score: i as f32 * 0.02, threshold: None }, false)).collect();
        assert_eq!(selected(&rule(Publish::Changes), &drift), [0, 3, 6, 9]);
    }

    #[test]
    fn the_heartbeat_publishes_what_does_not_change() {
        let same: Vec<_> = (0..150).map(|i| (i, class(0, 0.9), false)).collect();
        assert_eq!(selected(&rule(Publish::Changes), &same), [0, 60, 120]);
        assert_eq!(selected(&rule(Publish::Triggers), &same), [60, 120]);
    }
}
