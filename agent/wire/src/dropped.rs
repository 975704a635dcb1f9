//! Range records: what a policy threw away, so that dropped and lost are never confused.
//!
//! A range record is delivered like a result, on the topic of the results that it tells of, in the same encoding and in
//! the same messages. [`Dropped`] is written as JSON by [`Message::to_json`] and as postcard by [`crate::binary`].

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::message::Message;

/// Results or events of one run that will not come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// `<gateway>/event/<run>-<seq>`.
    pub id: String,
    /// The gateway.
    pub gateway: String,
    /// Whose results they are; none if they are events.
    #[serde(flatten)]
    pub of: Option<Origin>,
    /// Their run.
    #[serde(with = "hexadecimal")]
    pub run: u64,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// Where the backlog was thinned out: numbers that this divides were kept. 1 says that all were dropped, as does a
    /// record without it.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    pub every: u64,
    /// Why.
    pub reason: Reason,
}

/// The pipeline and the stream of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The pipeline's name.
    pub pipeline: String,
    /// The stream's name.
    pub stream: String,
}

/// Why results were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The outbox holds as much as it may.
    Full,
    /// They waited longer than they may.
    Age,
    /// Neither the ring nor the disk takes more.
    Disk,
    /// The broker takes no message as large.
    TooLarge,
    /// The database was damaged where they were.
    Damaged,
}

impl Reason {
    /// How it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Age => "age",
            Self::Disk => "disk",
            Self::TooLarge => "too-large",
            Self::Damaged => "damaged",
        }
    }
}

impl Message for Dropped {
    const TYPE: &'static str = "dropped";
}

pub(crate) fn all() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(crate) fn is_all(every: &u64) -> bool {
    *every == 1
}

/// A run as 16 hexadecimal digits, as in ids.
pub(crate) mod hexadecimal {
    use super::{Deserialize, Deserializer, Serializer};
    use serde::de::Error as _;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub fn serialize<S: Serializer>(run: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{run:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16)
            .map_err(|_| D::Error::custom(format!("'{text}' is not a run: 16 hexadecimal digits")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Dropped {
        Dropped {
            id: "press-07/event/00000000000000a1-7".into(),
            gateway: "press-07".into(),
            of: Some(Origin { pipeline: "motor".into(), stream: "press-3".into() }),
            run: 0x9f2c_61d0_4b7a_e813,
            first: 43,
            last: 60,
            every: 1,
            reason: Reason::Full,
        }
    }

    #[test]
    fn a_range_record_is_written_as_the_contract_shows_it() {
        let expected = concat!(
            r#"{"v":1,"type":"dropped","id":"press-07/event/00000000000000a1-7","gateway":"press-07","pipeline":"motor","#,
            r#""stream":"press-3","run":"9f2c61d04b7ae813","first":43,"last":60,"reason":"full"}"#
        );
        assert_eq!(String::from_utf8(example().to_json()).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Dropped>(expected).unwrap(), example());
        let events = Dropped { of: None, every: 10, ..example() };
        let text = String::from_utf8(events.to_json()).unwrap();
        assert!(!text.contains("pipeline") && text.contains(r#""every":10"#), "{text}");
        assert_eq!(serde_json::from_str::<Dropped>(&text).unwrap(), events);
    }
}
