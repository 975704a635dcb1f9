//! The topic tree of the uplink.

/// Prefix of all topics where none is configured; its last level is the version of the tree.
pub const DEFAULT_PREFIX: &str = "limpet/1";

/// The topics of one gateway under one prefix. The tables of the contract say who writes and reads each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    base: String,
}

impl Topics {
    /// `prefix` without a slash at its end; `gateway` a checked name.
    pub fn new(prefix: &str, gateway: &str) -> Self {
        Self { base: format!("{prefix}/{gateway}") }
    }

    /// Whether the gateway is there: retained, and the Last Will.
    pub fn status(&self) -> String {
        format!("{}/status", self.base)
    }

    /// The models that the gateway has: retained.
    pub fn models(&self) -> String {
        format!("{}/models", self.base)
    }

    /// Results of one pipeline and stream.
    pub fn result(&self, pipeline: &str, stream: &str) -> String {
        format!("{}/result/{pipeline}/{stream}", self.base)
    }

    /// The newest decision of one pipeline and stream: retained.
    pub fn latest(&self, pipeline: &str, stream: &str) -> String {
        format!("{}/latest/{pipeline}/{stream}", self.base)
    }

    /// Figures, once a minute.
    pub fn telemetry(&self) -> String {
        format!("{}/telemetry", self.base)
    }

    /// What was stored and what was dropped: retained.
    pub fn delivery(&self) -> String {
        format!("{}/delivery", self.base)
    }

    /// What the topics of commands start with; their last level is the command.
    pub fn commands(&self) -> String {
        format!("{}/cmd/", self.base)
    }

    /// What the topics of answers to commands start with.
    pub fn replies(&self) -> String {
        format!("{}/reply/", self.base)
    }

    /// What comes back to the gateway when its doctor asks whether anything does.
    pub fn probe(&self) -> String {
        format!("{}/probe", self.base)
    }

    /// What happened.
    pub fn event(&self) -> String {
        format!("{}/event", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_as_the_contract_says() {
        let topics = Topics::new(DEFAULT_PREFIX, "press-07");
        assert_eq!(topics.status(), "limpet/1/press-07/status");
        assert_eq!(topics.result("motor", "press-3"), "limpet/1/press-07/result/motor/press-3");
        assert_eq!(topics.latest("motor", "press-3"), "limpet/1/press-07/latest/motor/press-3");
    }
}
