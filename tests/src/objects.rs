//! The messages of a depot, carried by hand from a folder to a broker: whole, damaged, or in the wrong order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use limpet_wire::depot::Name;

use crate::{Client, Depot};

/// Where they are on a broker.
const PREFIX: &str = "limpet/1/depot/";

/// Messages by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects(BTreeMap<String, Vec<u8>>);

impl Objects {
    /// What a folder has.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn of(folder: &Path) -> Self {
        let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().map_while(Result::ok);
        let mut objects = BTreeMap::new();
        for kind in entries(folder).filter(|entry| entry.path().is_dir()) {
            for file in entries(&kind.path()) {
                let name = format!("{}/{}", kind.file_name().display(), file.file_name().display());
                objects.insert(name, std::fs::read(file.path()).expect("a depot's files can be read"));
            }
        }
        Self(objects)
    }

    /// The message under a name.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn get(&self, name: &str) -> &[u8] {
        self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.0.keys()))
    }

    /// The names whose end is one of a kind: `.snapshot`, `.index`; or whose start is: `chunk/`.
    pub fn names(&self, kind: &str) -> Vec<&str> {
        self.0.keys().map(String::as_str).filter(|name| name.starts_with(kind) || name.ends_with(kind)).collect()
    }

    /// The name of the newest metadata of a role.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn newest(&self, role: &str) -> &str {
        let version = |name: &&str| name["meta/".len()..].split('.').next().and_then(|text| text.parse::<u64>().ok());
        let names = self.names(&format!(".{role}"));
        let metadata = names.into_iter().filter(|name| name.starts_with("meta/"));
        metadata.max_by_key(version).unwrap_or_else(|| panic!("no {role} in {:?}", self.0.keys()))
    }

    /// What is new or other than in `old`.
    pub fn since(&self, old: &Self) -> Self {
        let new = self.0.iter().filter(|(name, bytes)| old.0.get(*name) != Some(bytes));
        Self(new.map(|(name, bytes)| (name.clone(), bytes.clone())).collect())
    }

    /// Adds a message, or puts another in its place.
    pub fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.0.insert(name.to_owned(), bytes);
    }

    /// All of them in the order in which a publisher puts them: what names another comes after it.
    pub fn in_order(&self) -> Vec<(&str, &[u8])> {
        let place = |name: &str| match name.parse().expect("a depot's files have its names") {
            Name::Chunk(_) => 0,
            Name::Target { .. } => 1,
            Name::Metadata { role, .. } if role != "snapshot" => 2,
            Name::Metadata { .. } => 3,
            Name::Roots => 4,
            Name::Timestamp => 5,
        };
        let mut all: Vec<_> = self.0.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        all.sort_by_key(|(name, _)| place(name));
        all
    }

    /// Puts all of them on a broker, in that order.
    ///
    /// # Panics
    /// If the broker refuses one.
    #[track_caller]
    pub fn send(&self, client: &mut Client) {
        self.in_order().into_iter().for_each(|(name, bytes)| send(client, name, bytes));
    }
}

/// Puts one message on a broker.
///
/// # Panics
/// If the broker refuses it.
#[track_caller]
pub fn send(client: &mut Client, name: &str, bytes: &[u8]) {
    use rumqttc::v5::mqttbytes::v5::PubAckReason::{NoMatchingSubscribers, Success};
    let answer = client.publish_with(&format!("{PREFIX}{name}"), true, bytes);
    assert!(matches!(answer, Success | NoMatchingSubscribers), "{name} was refused: {answer:?}");
}

/// Carries what a publisher puts into a folder to a broker.
pub struct Carrier {
    folder: PathBuf,
    /// What the broker was given.
    there: Objects,
}

impl Carrier {
    /// For a depot in a folder, and a broker that has nothing of it.
    pub fn new(depot: &Depot) -> Self {
        Self { folder: depot.content(), there: Objects::default() }
    }

    /// What was published since, without a word to the broker.
    pub fn waiting(&self) -> Objects {
        Objects::of(&self.folder).since(&self.there)
    }

    /// Carries everything that was published since.
    #[track_caller]
    pub fn carry(&mut self, client: &mut Client) {
        self.carry_but(client, "", &[]);
    }

    /// The same, but one message arrives as something else.
    #[track_caller]
    pub fn carry_but(&mut self, client: &mut Client, name: &str, instead: &[u8]) {
        let mut waiting = self.waiting();
        self.there = Objects::of(&self.folder);
        if !name.is_empty() {
            waiting.put(name, instead.to_vec());
        }
        waiting.send(client);
    }

    /// Carries one message as it should be.
    #[track_caller]
    pub fn mend(&self, client: &mut Client, name: &str) {
        send(client, name, self.there.get(name));
    }
}
