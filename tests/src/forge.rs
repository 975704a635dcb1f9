//! Somebody who has the keys of a depot and signs what no publisher would.
//!
//! Written against the specification of TUF and what docs/delivery.md says, with no code of the publisher: whatever its
//! commands refuse to sign can be signed here.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::Ed25519KeyPair;
use limpet_wire::depot::{ChunkRef, Hex, Index, MESSAGE_MAX, Name, Parts, Sha256, index_name};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::Depot;
use crate::objects::Objects;

/// The path of the target that says who gets what.
const STATE: &str = "rollout/state.json";

/// A SHA-256.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    digest(&SHA256, bytes).as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

/// The same in hex.
pub fn hex(bytes: &[u8]) -> String {
    Hex(&sha256(bytes)).to_string()
}

/// A set that is being forged: what each role signs, to be changed at will.
#[derive(Clone)]
pub struct Forge {
    keys: std::path::PathBuf,
    /// Id of the key of each role.
    ids: BTreeMap<&'static str, String>,
    /// What `timestamp`, `snapshot`, `targets` and `rollout` sign.
    pub signed: BTreeMap<&'static str, Value>,
    /// The target that says who gets what.
    pub state: Value,
    /// Messages beside the metadata.
    beside: Objects,
}

impl Forge {
    /// Begins with what a depot in a folder has now. Its keys must not be encrypted.
    ///
    /// # Panics
    /// If it is no depot.
    pub fn of(depot: &Depot) -> Self {
        let objects = Objects::of(&depot.content());
        let read = |name: &str| -> Value {
            let document: Value = serde_json::from_slice(objects.get(name)).expect("metadata is JSON");
            document.get("signed").cloned().unwrap_or(document)
        };
        let roots = read("meta/roots");
        let root = &roots.as_array().and_then(|all| all.last()).expect("there is a root")["signed"];
        let timestamp = read("meta/timestamp");
        let named =
            |by: &Value, role: &str| read(&format!("meta/{}.{role}", by["meta"][format!("{role}.json")]["version"]));
        let snapshot = named(&timestamp, "snapshot");
        let (targets, rollout) = (named(&snapshot, "targets"), named(&snapshot, "rollout"));
        let id = |keys: &Value| keys["keyids"][0].as_str().expect("a role has a key").to_owned();
        let ids = BTreeMap::from([
            ("timestamp", id(&root["roles"]["timestamp"])),
            ("snapshot", id(&root["roles"]["snapshot"])),
            ("targets", id(&root["roles"]["targets"])),
            ("rollout", id(&targets["delegations"]["roles"][0])),
        ]);
        let digest = rollout["targets"][STATE]["hashes"]["sha256"].as_str().expect("it names the state");
        let state = read(&format!("target/{digest}.rollout.json"));
        let signed = [("timestamp", timestamp), ("snapshot", snapshot), ("targets", targets), ("rollout", rollout)];
        Self { keys: depot.keys(), ids, signed: signed.into(), state, beside: Objects::default() }
    }

    /// What a role signs.
    ///
    /// # Panics
    /// If there is no such role.
    pub fn role(&mut self, role: &str) -> &mut Value {
        self.signed.get_mut(role).expect("timestamp, snapshot, targets or rollout")
    }

    /// Lists a target in the targets metadata, with what the publisher says of it.
    pub fn list(&mut self, name: &str, bytes: &[u8], custom: &Value) {
        let digest = hex(bytes);
        let target = json!({"length": bytes.len(), "hashes": {"sha256": digest}, "custom": custom});
        self.role("targets")["targets"][name] = target;
        // What cannot be a topic can be signed, but not sent.
        let Some(object) = Name::target(sha256(bytes), name) else { return };
        if bytes.len() <= MESSAGE_MAX {
            return self.beside.put(&object.to_string(), bytes.to_vec());
        }
        let mut list = Parts { parts: Vec::new() };
        for part in bytes.chunks(MESSAGE_MAX) {
            list.parts.push((sha256(part), part.len() as u32));
            self.beside.put(&Name::Chunk(sha256(part)).to_string(), part.to_vec());
        }
        self.beside.put(&object.to_string(), list.to_bytes());
    }

    /// Lists an index under the name that it should have for a version of a model, and releases that to everybody.
    pub fn publish(&mut self, model: &str, version: &str, index: &[u8], chunks: &Objects) {
        self.list(&index_name(model, version), index, &json!({"model": model, "version": version, "bytes": 1}));
        self.state["models"][model][version] = json!({"channels": ["stable"], "percent": 100.0, "salt": "00"});
        for (name, bytes) in chunks.in_order() {
            self.beside.put(name, bytes.to_vec());
        }
    }

    /// Signs all four roles, each one version higher than the last time, and gives all messages.
    ///
    /// # Panics
    /// If the keys cannot be read.
    pub fn sign(&mut self) -> Objects {
        let mut objects = std::mem::take(&mut self.beside);
        let state = serde_json::to_vec(&self.state).expect("a value serializes");
        objects.put(&format!("target/{}.rollout.json", hex(&state)), state.clone());
        let entry = &mut self.role("rollout")["targets"][STATE];
        (entry["length"], entry["hashes"]["sha256"]) = (state.len().into(), hex(&state).into());
        for role in ["targets", "rollout", "snapshot", "timestamp"] {
            let signed = self.role(role);
            let version = signed["version"].as_u64().expect("metadata has a version") + 1;
            signed["version"] = version.into();
            let document = self.signature_of(role);
            let listed = json!({"version": version, "length": document.len(), "hashes": {"sha256": hex(&document)}});
            let above = if role == "snapshot" { "timestamp" } else { "snapshot" };
            let name = if role == "timestamp" { "meta/timestamp".to_owned() } else { format!("meta/{version}.{role}") };
            if role != "timestamp" {
                self.role(above)["meta"][format!("{role}.json")] = listed;
            }
            objects.put(&name, document);
        }
        objects
    }

    /// The document that a role signs. Its canonical form is that of a value, whose maps are sorted: metadata of a depot
    /// has neither fractions nor characters that one would write differently.
    fn signature_of(&self, role: &'static str) -> Vec<u8> {
        let id = &self.ids[role];
        let path = self.keys.join(format!("{role}-{}.pem", &id[..16]));
        let key = PrivatePkcs8KeyDer::from_pem_file(&path).expect("the key is there, and not encrypted");
        let key = Ed25519KeyPair::from_pkcs8(key.secret_pkcs8_der()).expect("it is an ed25519 key");
        let signed = &self.signed[role];
        let message = serde_json::to_vec(signed).expect("a value serializes");
        let signature: String = key.sign(&message).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        serde_json::to_vec(&json!({"signed": signed, "signatures": [{"keyid": id, "sig": signature}]}))
            .expect("a value serializes")
    }
}

/// Cuts any bytes into an index and chunks, as if they were the tar of a package.
///
/// # Panics
/// If zstd fails.
pub fn cut(model: &str, version: &str, tar: &[u8]) -> (Index, Objects) {
    let mut chunks = Objects::default();
    let mut index = Index { model: model.into(), version: version.into(), package: sha256(tar), chunks: Vec::new() };
    for raw in tar.chunks(32 << 10) {
        let stored = zstd::bulk::compress(raw, 3).expect("zstd has memory");
        index.chunks.push(ChunkRef {
            raw: sha256(raw),
            raw_len: raw.len() as u32,
            stored: sha256(&stored),
            stored_len: stored.len() as u32,
        });
        chunks.put(&format!("chunk/{}", hex(&stored)), stored);
    }
    (index, chunks)
}

/// A tar of entries: their names as they stand in the header, their kinds, and what they hold.
///
/// # Panics
/// If a name is longer than 100 bytes.
pub fn tar_of(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        // Not by way of the library, which refuses names that lead out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(*kind);
        if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
            header.set_link_name("/etc/passwd").expect("it is short");
        }
        header.set_cksum();
        tar.append(&header, *bytes).expect("memory takes everything");
    }
    tar.into_inner().expect("memory takes everything")
}
