//! What goes over the wire: topics, names, ids and payloads, in JSON and postcard.
//!
//! This is version 1 of the contract. Every JSON object carries `"v"` and `"type"`; every postcard item starts with a
//! type byte and a version byte ([`binary`]). A version is frozen when it is published: its golden bytes are in
//! `tests/`, a new field means a new version, and readers keep the old ones. JSON and postcard never share a serde
//! struct, because `skip_serializing_if` would break postcard, which has no field names.
//!
//! No input or output, no clock, no MQTT.

#![forbid(unsafe_code)]

pub mod binary;
pub mod command;
pub mod depot;
pub mod dropped;
pub mod id;
pub mod message;
pub mod name;
pub mod result;
pub mod topic;

/// Version of the JSON payloads and of the topic tree.
pub const VERSION: u8 = 1;

/// MQTT content types of the payloads.
pub mod content_type {
    /// One JSON object.
    pub const JSON: &str = "application/json";
    /// JSON objects, one a line.
    pub const NDJSON: &str = "application/x-ndjson";
    /// One postcard item, or several, each after its length ([`crate::binary`]).
    pub const POSTCARD: &str = "application/vnd.limpet.postcard";
}

/// What is wrong with a payload, an id or a name from the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A configured name that is not one.
    #[error("'{found}' is not a name: {reason}")]
    Name {
        /// The text.
        found: String,
        /// What a name looks like.
        reason: &'static str,
    },
    /// An id of the wrong form.
    #[error("'{found}' is not an id of the form {form}")]
    Id {
        /// The text.
        found: String,
        /// The form it should have.
        form: &'static str,
    },
    /// A payload that ends too early, is too long or does not decode.
    #[error("payload does not decode: {0}")]
    Payload(String),
    /// A type byte or word that this version does not know.
    #[error("unknown payload type {0}")]
    Type(String),
    /// A version that is newer than this reader.
    #[error("payload version {found} is newer than {known}, the newest this program knows")]
    Version {
        /// What the payload says.
        found: u8,
        /// The newest known.
        known: u8,
    },
}
