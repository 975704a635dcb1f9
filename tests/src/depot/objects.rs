//! The objects of a depot one by one, for tests that put them on a broker themselves.
//!
//! A depot in a folder has the same objects as one at a broker, as files. So a test can publish into a folder, carry the
//! objects to a broker as a publisher would, change what it likes on the way, and put the true ones there later.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::PubAckReason;

use super::Depot;
use crate::{Broker, Client, program};

/// Topics of a depot, up to the names of its objects.
pub const TOPICS: &str = "limpet/1/depot/";

/// Objects of a depot: what each name holds.
pub type Objects = BTreeMap<String, Vec<u8>>;

impl Depot {
    /// A new depot on a broker that wants to know who it is.
    ///
    /// # Panics
    /// If `limpet-lab depot init` fails.
    #[track_caller]
    pub fn on_as(broker: &Broker, user: &str, password_file: &Path) -> Self {
        let broker = ["--broker".to_owned(), broker.url(), "--patience".to_owned(), "1".to_owned()];
        let login = ["--username", user, "--password-file", program::text_of(password_file)].map(str::to_owned);
        Self::at([broker, login].concat())
    }

    /// A command of the publisher, ready to start.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::command("limpet-lab");
        command.arg("depot").args(arguments).args(&self.place).arg("--keys").arg(self.keys());
        command
    }

    /// The folder with the keys.
    pub fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    /// Everything in the folder that is the depot.
    pub fn objects(&self) -> Objects {
        let mut objects = Objects::new();
        for kind in ["chunk", "target", "meta"] {
            for entry in std::fs::read_dir(self.content().join(kind)).into_iter().flatten().map_while(Result::ok) {
                let name = entry.file_name().into_string().expect("names of objects are plain");
                // What is being written has a name that no object has.
                if !name.starts_with('.') {
                    objects.insert(format!("{kind}/{name}"), std::fs::read(entry.path()).expect("it is there"));
                }
            }
        }
        objects
    }
}

/// Objects of `new` that `old` has not, or has with another content.
pub fn fresh(old: &Objects, new: &Objects) -> Objects {
    let changed = new.iter().filter(|(name, content)| old.get(*name) != Some(content));
    changed.map(|(name, content)| (name.clone(), content.clone())).collect()
}

/// The name of the one object that starts and ends so; of metadata the newest.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn name_of(objects: &Objects, start: &str, end: &str) -> String {
    let version = |name: &str| -> u64 {
        let number = name.strip_prefix("meta/").and_then(|rest| rest.split('.').next());
        number.and_then(|number| number.parse().ok()).unwrap_or_default()
    };
    let names = objects.keys().filter(|name| name.starts_with(start) && name.ends_with(end));
    let newest = names.max_by_key(|name| version(name));
    newest.unwrap_or_else(|| panic!("no {start}…{end} among {:?}", objects.keys())).clone()
}

/// Puts objects on a broker in the order of a publisher: chunks, targets, metadata, and the timestamp last.
///
/// # Panics
/// If the broker refuses one.
#[track_caller]
pub fn carry(client: &mut Client, objects: &Objects) {
    let place = |name: &str| match name.split_once('/') {
        Some(("chunk", _)) => 0,
        Some(("target", _)) => 1,
        Some(("meta", "timestamp")) => 3,
        _ => 2,
    };
    let mut names: Vec<&String> = objects.keys().collect();
    names.sort_by_key(|name| place(name));
    names.into_iter().for_each(|name| put(client, name, objects[name].clone()));
}

/// Puts one object on a broker; one without content takes it away.
///
/// # Panics
/// If the broker refuses it.
#[track_caller]
pub fn put(client: &mut Client, name: &str, content: Vec<u8>) {
    let reason = client.publish_with(&format!("{TOPICS}{name}"), true, content);
    let taken = matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
    assert!(taken, "{name} was refused: {reason:?}");
}

/// Chunks that the broker at a port keeps, if they are few enough for its queue.
///
/// # Panics
/// If the broker does not answer.
#[track_caller]
pub fn chunks_on(port: u16) -> Objects {
    let mut client = Client::connect_to(port, None).expect("the broker lets everybody in");
    client.subscribe(&[&format!("{TOPICS}chunk/+"), "limpet/1/fence"]);
    // What is kept comes before what is published later.
    client.publish("limpet/1/fence", "fence");
    client.wait_on("limpet/1/fence");
    let mut chunks = Objects::new();
    while let Some(message) = client.try_wait_for(Duration::ZERO, |message| message.topic.starts_with(TOPICS)) {
        chunks.insert(message.topic[TOPICS.len()..].to_owned(), message.payload);
    }
    chunks
}
