//! What a depot holds, by name: metadata, targets and chunks.
//!
//! A depot is a set of named objects, the same on a broker (retained messages under `<prefix>/depot/`) and in a folder.
//! No message is larger than [`MESSAGE_MAX`]; an object that is goes out as [`Parts`], the list of the chunks that it was
//! cut into. An [`Index`] says of which chunks a package consists. Neither is trusted by itself: an index is a target
//! whose digest stands in signed metadata, and whatever parts make up is verified as the object that it stands for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::WireError;

/// Largest payload of one message of a depot, in bytes: what AWS IoT takes at most is 128 KiB.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// Longest name of a target, in bytes.
const TARGET_NAME_MAX: usize = 200;

/// A SHA-256.
pub type Sha256 = [u8; 32];

/// The name of an object: what follows `<prefix>/depot/` in its topic, and its path in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// `meta/roots`: the whole chain of root metadata, a JSON array in the order of their versions.
    Roots,
    /// `meta/timestamp`.
    Timestamp,
    /// `meta/<version>.<role>`: snapshot, targets, or a delegated role.
    Metadata {
        /// Version of the metadata.
        version: u64,
        /// `snapshot`, `targets` or `rollout`.
        role: String,
    },
    /// `target/<sha256>.<name>`.
    Target {
        /// Of its content.
        sha256: Sha256,
        /// `<model>-<version>.index`, `config.<gateway or label>` or `rollout.json`.
        name: String,
    },
    /// `chunk/<sha256>`, of the stored bytes.
    Chunk(Sha256),
}

impl Name {
    /// A target, if its name can stand in a topic and in a path: no separators, no wildcards, no dots alone.
    pub fn target(sha256: Sha256, name: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-=".contains(c);
        let good =
            !name.is_empty() && name.len() <= TARGET_NAME_MAX && !name.starts_with('.') && name.chars().all(fits);
        good.then(|| Self::Target { sha256, name: name.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Roots => f.write_str("meta/roots"),
            Self::Timestamp => f.write_str("meta/timestamp"),
            Self::Metadata { version, role } => write!(f, "meta/{version}.{role}"),
            Self::Target { sha256, name } => write!(f, "target/{}.{name}", Hex(sha256)),
            Self::Chunk(sha256) => write!(f, "chunk/{}", Hex(sha256)),
        }
    }
}

impl FromStr for Name {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let form = "meta/…, target/<sha256>.<name> or chunk/<sha256>";
        let unknown = || WireError::Id { found: text.chars().take(100).collect(), form };
        let (kind, rest) = text.split_once('/').ok_or_else(unknown)?;
        let name = match (kind, rest) {
            ("meta", "roots") => Some(Self::Roots),
            ("meta", "timestamp") => Some(Self::Timestamp),
            ("meta", other) => other.split_once('.').and_then(|(version, role)| {
                let plain = !role.is_empty() && role.len() <= 48 && role.bytes().all(|b| b.is_ascii_lowercase());
                let version = version.parse().ok().filter(|parsed: &u64| parsed.to_string() == version)?;
                plain.then(|| Self::Metadata { version, role: role.to_owned() })
            }),
            ("target", other) => {
                other.split_once('.').and_then(|(sha256, name)| Self::target(parse_hex(sha256)?, name))
            }
            ("chunk", sha256) => parse_hex(sha256).map(Self::Chunk),
            _ => None,
        };
        name.ok_or_else(unknown)
    }
}

/// Shows a digest as lower-case hexadecimal digits.
pub struct Hex<'a>(pub &'a Sha256);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Name of the target that is the index of a version.
pub fn index_name(model: &str, version: &str) -> String {
    format!("{model}-{version}.index")
}

/// Reads a digest from 64 lower-case hexadecimal digits.
pub fn parse_hex(text: &str) -> Option<Sha256> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

/// Type byte of an index, and of a list of parts.
const INDEX: u8 = 2;
const PARTS: u8 = 3;
/// Newest version of each.
const INDEX_VERSION: u8 = 1;
const PARTS_VERSION: u8 = 1;

/// Of which chunks a package consists: the canonical uncompressed tar, cut by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Name of the model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Digest of the package: of the tar that the chunks make up.
    pub package: Sha256,
    /// In the order of the tar.
    pub chunks: Vec<ChunkRef>,
}

/// One chunk of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// Digest of its bytes of the tar.
    pub raw: Sha256,
    /// How many those are.
    pub raw_len: u32,
    /// Digest of what is stored: the same, compressed.
    pub stored: Sha256,
    /// How many bytes are stored.
    pub stored_len: u32,
}

impl Index {
    /// Bytes of the tar.
    pub fn raw_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.raw_len)).sum()
    }

    /// Bytes of all chunks as stored, each counted once.
    pub fn stored_bytes(&self) -> u64 {
        let chunks: BTreeMap<&Sha256, u32> = self.chunks.iter().map(|c| (&c.stored, c.stored_len)).collect();
        chunks.values().map(|length| u64::from(*length)).sum()
    }

    /// As an object of the depot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let index = IndexV1 {
            model: &self.model,
            version: &self.version,
            package: self.package,
            chunks: self.chunks.iter().map(|c| (c.raw, c.raw_len, c.stored, c.stored_len)).collect(),
        };
        write(INDEX, INDEX_VERSION, &index)
    }

    /// Reads an index.
    ///
    /// # Errors
    /// [`WireError`] if it is none, of a newer version, damaged, or followed by more bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let index: IndexV1<'_> = read(INDEX, INDEX_VERSION, bytes)?;
        let chunk = |(raw, raw_len, stored, stored_len)| ChunkRef { raw, raw_len, stored, stored_len };
        Ok(Self {
            model: index.model.to_owned(),
            version: index.version.to_owned(),
            package: index.package,
            chunks: index.chunks.into_iter().map(chunk).collect(),
        })
    }
}

/// What stands in the place of an object that is too large for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Digest and length of each chunk, in order; the chunks are the object's own bytes, not compressed.
    pub parts: Vec<(Sha256, u32)>,
}

impl Parts {
    /// Bytes of the object.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// Whether a message is a list of parts rather than an object: metadata starts with a brace or a bracket, an index
    /// with another type byte.
    pub fn is(message: &[u8]) -> bool {
        message.first() == Some(&PARTS)
    }

    /// As a message of the depot.
    pub fn to_bytes(&self) -> Vec<u8> {
        write(PARTS, PARTS_VERSION, &PartsV1 { parts: self.parts.clone() })
    }

    /// Reads a list of parts.
    ///
    /// # Errors
    /// [`WireError`] as for [`Index::from_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let parts: PartsV1 = read(PARTS, PARTS_VERSION, bytes)?;
        Ok(Self { parts: parts.parts })
    }
}

#[derive(Serialize, Deserialize)]
struct IndexV1<'a> {
    model: &'a str,
    version: &'a str,
    package: Sha256,
    /// raw, raw length, stored, stored length
    chunks: Vec<(Sha256, u32, Sha256, u32)>,
}

#[derive(Serialize, Deserialize)]
struct PartsV1 {
    parts: Vec<(Sha256, u32)>,
}

fn write<T: Serialize>(kind: u8, version: u8, value: &T) -> Vec<u8> {
    let mut out = vec![kind, version];
    postcard::to_io(value, &mut out).expect("writing plain values into memory cannot fail");
    out
}

fn read<'a, T: Deserialize<'a>>(kind: u8, known: u8, bytes: &'a [u8]) -> Result<T, WireError> {
    match bytes {
        [found, ..] if *found != kind => Err(WireError::Type(found.to_string())),
        [_, found, ..] if *found > known => Err(WireError::Version { found: *found, known }),
        [_, version, payload @ ..] if *version == known => match postcard::take_from_bytes(payload) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(WireError::Payload(format!("{} bytes follow it", rest.len()))),
            Err(error) => Err(WireError::Payload(error.to_string())),
        },
        _ => Err(WireError::Payload(format!("{} bytes are too few, or its version is none", bytes.len()))),
    }
}

/// Who gets which version: the signed target `rollout/state.json`, version 1.
///
/// Times are RFC 3339.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// By model, then by version.
    pub models: BTreeMap<String, BTreeMap<String, Release>>,
}

impl crate::message::Message for Rollout {
    const TYPE: &'static str = "rollout";
}

/// Who gets one version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Channels that carry it.
    pub channels: Vec<String>,
    /// Share of the gateways that get it, 0 to 100.
    pub percent: f64,
    /// Decides, with the gateway's id, which ones those are.
    pub salt: String,
    /// Only gateways with all of these labels get it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Nobody takes it before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// Nobody takes it after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// Nobody takes it any more; who has it keeps it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub halted: bool,
    /// Nobody takes it any more; who has it goes back to an older one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
}

/// What the publisher says of a target beside its digest: the target's `custom` in signed metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// Name of the model, if it is an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Version of the model, if it is an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Bytes of all its chunks as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What the publisher signs beside TUF's own fields: in timestamp and targets metadata, under the key `limpet`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// When the metadata was signed, RFC 3339: no clock that is right is before that. In the timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<String>,
    /// Base URL (https) from which chunks may be had instead: `<url>/chunk/<sha256>`. In the targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Message as _;

    /// Version 1 of each as it was published. If one fails, make a version 2 instead of changing it.
    const INDEX_V1: &str = include_str!("../tests/index-v1.hex");
    const PARTS_V1: &str = include_str!("../tests/parts-v1.hex");
    const ROLLOUT_V1: &str = include_str!("../tests/rollout-v1.json");

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn golden(text: &str) -> String {
        text.split_whitespace().collect()
    }

    fn index() -> Index {
        let chunk = |n: u8, raw_len, stored_len| ChunkRef { raw: [n; 32], raw_len, stored: [!n; 32], stored_len };
        Index {
            model: "motor-health".into(),
            version: "2.1.0-rc.1".into(),
            package: [0xab; 32],
            chunks: vec![chunk(1, 16_384, 9_000), chunk(2, 65_280, 127), chunk(1, 16_384, 9_000)],
        }
    }

    fn parts() -> Parts {
        Parts { parts: vec![([1; 32], 65_536), ([2; 32], 200)] }
    }

    fn rollout() -> Rollout {
        let plain = Release {
            channels: vec!["stable".into()],
            percent: 100.0,
            salt: "6f1d".into(),
            labels: BTreeMap::new(),
            not_before: None,
            not_after: None,
            halted: false,
            withdrawn: true,
        };
        let full = Release {
            channels: vec!["beta".into(), "stable".into()],
            percent: 2.5,
            labels: [("line".to_owned(), "3".to_owned())].into(),
            not_before: Some("2026-11-23T10:15:02Z".into()),
            not_after: Some("2027-01-01T00:00:00Z".into()),
            halted: true,
            withdrawn: false,
            ..plain.clone()
        };
        let versions = [("2.0.0".to_owned(), plain), ("2.1.0-rc.1".to_owned(), full)].into();
        Rollout { models: [("motor-health".to_owned(), versions)].into() }
    }

    #[test]
    fn version_1_is_frozen() {
        assert_eq!(hex(&index().to_bytes()), golden(INDEX_V1));
        assert_eq!(hex(&parts().to_bytes()), golden(PARTS_V1));
        let json: serde_json::Value = serde_json::from_slice(&rollout().to_json()).unwrap();
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(ROLLOUT_V1).unwrap());
    }

    #[test]
    fn everything_reads_back() {
        assert_eq!(Index::from_bytes(&index().to_bytes()), Ok(index()));
        assert_eq!(Parts::from_bytes(&parts().to_bytes()), Ok(parts()));
        assert_eq!(serde_json::from_str::<Rollout>(ROLLOUT_V1).unwrap(), rollout());
        assert_eq!((index().raw_bytes(), index().stored_bytes(), parts().bytes()), (98_048, 9_127, 65_736));
    }

    #[test]
    fn a_reader_of_a_rollout_ignores_keys_that_it_does_not_know() {
        let mut json: serde_json::Value = serde_json::from_str(ROLLOUT_V1).unwrap();
        json["later"] = 1.into();
        json["models"]["motor-health"]["2.0.0"]["later"] = 1.into();
        assert_eq!(serde_json::from_value::<Rollout>(json).unwrap(), rollout());
    }

    #[test]
    fn another_type_a_newer_version_and_bytes_after_the_end_are_refused() {
        let good = index().to_bytes();
        let with = |at: usize, byte| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Index::from_bytes(&bytes).unwrap_err()
        };
        assert_eq!(with(0, 3), WireError::Type("3".into()));
        assert_eq!(with(1, 2), WireError::Version { found: 2, known: 1 });
        assert!(matches!(with(1, 0), WireError::Payload(_)));
        assert_eq!(Parts::from_bytes(&good), Err(WireError::Type("2".into())));
        let longer = [&good[..], b"x"].concat();
        assert_eq!(Index::from_bytes(&longer), Err(WireError::Payload("1 bytes follow it".into())));
        for cut in 0..good.len() {
            assert!(Index::from_bytes(&good[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Parts::is(&parts().to_bytes()));
        assert!(!Parts::is(&good) && !Parts::is(b"{}") && !Parts::is(b"[]") && !Parts::is(b""));
    }

    #[test]
    fn an_index_that_claims_more_chunks_than_it_has_is_refused_before_memory_is_taken_for_them() {
        let mut bytes = Index { chunks: Vec::new(), ..index() }.to_bytes();
        assert_eq!(bytes.pop(), Some(0), "the number of chunks comes last");
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert!(Index::from_bytes(&bytes).is_err());
    }

    #[test]
    fn names_read_back_and_lead_nowhere_else() {
        let digest = "0123456789abcdef".repeat(4);
        for good in [
            "meta/roots".to_owned(),
            "meta/timestamp".to_owned(),
            "meta/7.snapshot".to_owned(),
            "meta/18446744073709551615.targets".to_owned(),
            format!("target/{digest}.motor-health-2.1.0-rc.1.index"),
            format!("target/{digest}.config.line=3"),
            format!("target/{digest}.rollout.json"),
            format!("chunk/{digest}"),
        ] {
            assert_eq!(good.parse::<Name>().map(|name| name.to_string()), Ok(good));
        }
        let upper = digest.to_uppercase();
        for bad in [
            String::new(),
            "meta".to_owned(),
            "meta/".to_owned(),
            "meta/root".to_owned(),
            "meta/07.targets".to_owned(),
            "meta/+7.targets".to_owned(),
            "meta/-1.targets".to_owned(),
            "meta/18446744073709551616.targets".to_owned(),
            "meta/1.Targets".to_owned(),
            "meta/1.".to_owned(),
            format!("meta/1.{}", "a".repeat(49)),
            "meta/1.a/b".to_owned(),
            "meta/../roots".to_owned(),
            format!("chunk/{upper}"),
            format!("chunk/{}", &digest[1..]),
            format!("chunk/{digest}0"),
            format!("chunk/../{digest}"),
            format!("/chunk/{digest}"),
            format!("target/{digest}"),
            format!("target/{digest}."),
            format!("target/{digest}..."),
            format!("target/{digest}..hidden"),
            format!("target/{digest}.a/b"),
            format!("target/{digest}.a+"),
            format!("target/{digest}.#"),
            format!("target/{digest}.{}", "a".repeat(201)),
            format!("target/{upper}.a"),
            format!("other/{digest}"),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert_eq!(Name::target([0; 32], "../x"), None);
    }

    #[test]
    fn a_refused_name_is_not_shown_in_full() {
        let error = "x".repeat(10_000).parse::<Name>().unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }

    proptest! {
        #[test]
        fn any_index_and_any_parts_read_back(
            model: String, version: String, package: [u8; 32], chunks: Vec<([u8; 32], u32, [u8; 32], u32)>,
            parts: Vec<([u8; 32], u32)>,
        ) {
            let chunk = |(raw, raw_len, stored, stored_len)| ChunkRef { raw, raw_len, stored, stored_len };
            let index = Index { model, version, package, chunks: chunks.into_iter().map(chunk).collect() };
            prop_assert_eq!(Index::from_bytes(&index.to_bytes()), Ok(index));
            let parts = Parts { parts };
            prop_assert_eq!(Parts::from_bytes(&parts.to_bytes()), Ok(parts));
        }

        #[test]
        fn digests_read_back(digest: [u8; 32]) {
            prop_assert_eq!(parse_hex(&Hex(&digest).to_string()), Some(digest));
        }

        #[test]
        fn noise_never_panics(bytes: Vec<u8>, text: String) {
            let _ = Index::from_bytes(&bytes);
            let _ = Index::from_bytes(&[&[INDEX, INDEX_VERSION], &bytes[..]].concat());
            let _ = Parts::from_bytes(&[&[PARTS, PARTS_VERSION], &bytes[..]].concat());
            let _ = text.parse::<Name>();
        }
    }
}
