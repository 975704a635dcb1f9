//! What somebody who has keys can make of a depot: every document changed at will, and signed by whom one likes. For tests
//! and fuzz targets; no program calls it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use limpet_wire::depot::{Hex, MESSAGE_MAX, Name, Sha256};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tough::schema::{Role as TufRole, Root, Snapshot, Targets, Timestamp};

use super::set::{ROLLOUT_OBJECT, ROLLOUT_PATH};
use super::{KeyRing, PublishError, Role, Set, SigningKey};
use crate::package::Digest;
use crate::remote::{Remote, RemoteError, async_trait};

/// Signs with one key, by the id that the signature is to name, which need not be the key's own.
#[derive(Debug, Clone)]
pub struct Signer {
    id: Sha256,
    key: Arc<SigningKey>,
}

impl Signer {
    /// One that nobody knows.
    ///
    /// # Panics
    /// If the system gives no random numbers.
    pub fn stranger() -> Self {
        Self::of(SigningKey::generate().expect("the system gives random numbers"))
    }

    fn of(key: SigningKey) -> Self {
        Self { id: key.id(), key: Arc::new(key) }
    }

    /// Signs with its own key in the name of another.
    pub fn in_the_name_of(&self, other: &Self) -> Self {
        Self { id: other.id, key: Arc::clone(&self.key) }
    }

    /// Its public half, as metadata lists it: id and key.
    pub fn public(&self) -> (String, Value) {
        let key = serde_json::to_value(self.key.public()).expect("a key of plain values serializes");
        (Hex(&self.id).to_string(), key)
    }
}

/// The signed parts of all documents, and who signs them.
#[derive(Debug, Clone)]
pub struct Forge {
    /// Documents with their signatures, from version 1 on.
    pub roots: Vec<Value>,
    /// What is signed, by role; not that of root.
    pub signed: BTreeMap<Role, Value>,
    /// The target `rollout/state.json`.
    pub state: Bytes,
    /// Who signs what.
    pub signers: BTreeMap<Role, Vec<Signer>>,
}

impl Forge {
    /// What a publisher has signed, with its keys.
    ///
    /// # Errors
    /// [`PublishError`] if keys are not at hand.
    ///
    /// # Panics
    /// If the set was not verified.
    pub fn of(set: &Set, ring: &KeyRing) -> Result<Self, PublishError> {
        let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("a set is verified JSON");
        let documents = [
            (Role::Timestamp, &set.timestamp.bytes),
            (Role::Snapshot, &set.snapshot.bytes),
            (Role::Targets, &set.targets.bytes),
            (Role::Rollout, &set.rollout.bytes),
        ];
        let signed = documents.into_iter().map(|(role, bytes)| (role, read(bytes)["signed"].clone())).collect();
        let mut signers = BTreeMap::new();
        for role in Role::ALL {
            let (ids, threshold) = set.keys_of(role);
            let keys = ring.signers(role.name(), &ids, threshold)?;
            signers.insert(role, keys.into_iter().map(Signer::of).collect());
        }
        let roots = set.roots.iter().map(|root| read(&root.bytes)).collect();
        Ok(Self { roots, signed, state: set.contents[ROLLOUT_PATH].clone(), signers })
    }

    /// Changes what a role signs, but for root.
    ///
    /// # Panics
    /// If it is root, which changes by [`root`](Self::root).
    pub fn edit(mut self, role: Role, edit: impl FnOnce(&mut Value)) -> Self {
        edit(self.signed.get_mut(&role).expect("root has versions"));
        self
    }

    /// Lets others sign a role.
    pub fn signed_by(mut self, role: Role, signers: impl Into<Vec<Signer>>) -> Self {
        self.signers.insert(role, signers.into());
        self
    }

    /// Sets the version of a role, but for root.
    pub fn version(self, role: Role, version: u64) -> Self {
        self.edit(role, |signed| signed["version"] = version.into())
    }

    /// The versions of all roles but root go on by one.
    pub fn onward(mut self) -> Self {
        for signed in self.signed.values_mut() {
            signed["version"] = (version_of(signed) + 1).into();
        }
        self
    }

    /// Adds the next root: the newest, changed and signed by these.
    pub fn root(mut self, edit: impl FnOnce(&mut Value), signers: &[Signer]) -> Self {
        let mut next = self.roots.last().map_or(Value::Null, |root| root["signed"].clone());
        next["version"] = (version_of(&next) + 1).into();
        edit(&mut next);
        self.roots.push(document(Role::Root, &next, signers));
        self
    }

    /// Adds the next root, in which these roles have one new key, and lets that sign them.
    pub fn with_keys(self, roles: &[Role], by: &[Signer], fresh: &Signer) -> Self {
        let forge = self.root(|root| roles.iter().for_each(|role| give(root, role.name(), fresh)), by);
        roles.iter().fold(forge, |forge, role| forge.signed_by(*role, [fresh.clone()]))
    }

    /// The depot that this is, with digests, lengths and versions set right from the bottom up. What cannot be signed,
    /// because it is no metadata, goes without signatures.
    pub fn depot(&self) -> Depot {
        let mut signed = self.signed.clone();
        let mut objects = BTreeMap::new();
        let state = Digest::of(&self.state);
        objects.insert(Name::target(state.0, ROLLOUT_OBJECT).expect("a short name"), self.state.clone());
        let rollout = signed.get_mut(&Role::Rollout);
        if let Some(target) = rollout.and_then(|signed| signed.get_mut("targets")?.get_mut(ROLLOUT_PATH))
            && target["hashes"].is_object()
        {
            target["hashes"]["sha256"] = state.to_string().into();
            target["length"] = self.state.len().into();
        }
        for role in [Role::Rollout, Role::Targets, Role::Snapshot, Role::Timestamp] {
            let bytes = Bytes::from(document(role, &signed[&role], &self.signers[&role]).to_string());
            let version = version_of(&signed[&role]);
            let above = if role == Role::Snapshot { Role::Timestamp } else { Role::Snapshot };
            let meta = signed.get_mut(&above).and_then(|signed| signed.get_mut("meta"));
            if let Some(listed) = meta.and_then(|meta| meta.get_mut(format!("{}.json", role.name()))) {
                let digest = Digest::of(&bytes).to_string();
                *listed = json!({"hashes": {"sha256": digest}, "length": bytes.len(), "version": version});
            }
            let name = match role {
                Role::Timestamp => Name::Timestamp,
                _ => Name::Metadata { version, role: role.name().to_owned() },
            };
            objects.insert(name, bytes);
        }
        objects.insert(Name::Roots, Bytes::from(Value::Array(self.roots.clone()).to_string()));
        Depot { objects, asked: Mutex::default() }
    }
}

fn version_of(signed: &Value) -> u64 {
    signed["version"].as_u64().unwrap_or(0)
}

/// Gives a role of root metadata one key.
pub fn give(root: &mut Value, role: &str, key: &Signer) {
    let (id, public) = key.public();
    root["roles"][role] = json!({"keyids": [id], "threshold": 1});
    root["keys"][id] = public;
}

/// A document of a role, signed by these; by nobody if it is no metadata of that role.
pub fn document(role: Role, signed: &Value, signers: &[Signer]) -> Value {
    fn message<T: TufRole + DeserializeOwned>(signed: &Value) -> Option<Vec<u8>> {
        T::deserialize(signed).ok()?.canonical_form().ok()
    }
    let message = match role {
        Role::Root => message::<Root>(signed),
        Role::Timestamp => message::<Timestamp>(signed),
        Role::Snapshot => message::<Snapshot>(signed),
        Role::Targets | Role::Rollout => message::<Targets>(signed),
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let signatures = message
        .iter()
        .flat_map(|message| signers.iter().map(|by| json!({"keyid": hex(&by.id), "sig": hex(&by.key.sign(message))})));
    json!({"signatures": signatures.collect::<Vec<_>>(), "signed": signed})
}

/// A depot in memory that notes what it is asked for.
#[derive(Debug)]
pub struct Depot {
    /// What there is.
    pub objects: BTreeMap<Name, Bytes>,
    asked: Mutex<Vec<Name>>,
}

impl Depot {
    /// The name under which a role's metadata is, if it is there.
    pub fn name_of(&self, role: Role) -> Option<Name> {
        let is = |name: &&Name| match (role, name) {
            (Role::Root, Name::Roots) | (Role::Timestamp, Name::Timestamp) => true,
            (_, Name::Metadata { role: of, .. }) => of == role.name(),
            _ => false,
        };
        self.objects.keys().find(is).cloned()
    }

    /// What it was asked for so far.
    pub fn asked(&self) -> Vec<Name> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Remote for Depot {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        let place = self.place().to_owned();
        let (name, most) = (name.clone(), most.min(MESSAGE_MAX));
        match self.objects.get(&name) {
            None => Err(RemoteError::Absent { place, name }),
            Some(message) if message.len() > most => {
                Err(RemoteError::TooLarge { place, name, found: message.len() as u64, most: most as u64 })
            }
            Some(message) => Ok(message.clone()),
        }
    }

    fn place(&self) -> &str {
        "the forge"
    }
}
