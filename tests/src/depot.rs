//! A depot and its publisher: `limpet-lab depot` with keys of its own.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::{self, Outcome, Running};
use crate::{Broker, Package};

/// Where a depot in a folder has its messages.
const CONTENT: &str = "depot";

/// A publisher, and the place that it publishes to.
pub struct Depot {
    folder: TempDir,
    place: Vec<String>,
}

impl Depot {
    /// A new depot on a broker.
    ///
    /// # Panics
    /// If `limpet-lab depot init` fails.
    #[track_caller]
    pub fn on(broker: &Broker) -> Self {
        Self::through(&broker.url())
    }

    /// A new depot on the broker at the other end of a wire.
    ///
    /// # Panics
    /// If `limpet-lab depot init` fails.
    #[track_caller]
    pub fn through(url: &str) -> Self {
        Self::at(|_| vec!["--broker".into(), url.to_owned(), "--patience".into(), "1".into()])
    }

    /// A new depot on a broker, by a user with a password.
    ///
    /// # Panics
    /// If `limpet-lab depot init` fails.
    #[track_caller]
    pub fn on_as(broker: &Broker, user: &str, password: &str) -> Self {
        Self::at(|folder| {
            let file = folder.join("password");
            std::fs::write(&file, password).expect("a temporary file can be written");
            let login =
                ["--broker", &broker.url(), "--patience", "1", "--username", user, "--password-file", text(&file)];
            login.map(str::to_owned).to_vec()
        })
    }

    /// A new depot in a folder of its own.
    ///
    /// # Panics
    /// If `limpet-lab depot init` fails.
    #[track_caller]
    pub fn in_folder() -> Self {
        Self::at(|folder| vec!["--to".into(), folder.join(CONTENT).display().to_string()])
    }

    #[track_caller]
    fn at(place: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let depot = Self { place: place(folder.path()), folder };
        depot.run(&["init", "--no-passphrase"]).expect_code(0);
        // A gateway has a copy: the publisher's file changes with its keys.
        std::fs::copy(depot.keys().join("root.json"), depot.root()).expect("a temporary file can be copied");
        depot
    }

    /// Where the messages are, if it is a folder.
    pub fn content(&self) -> PathBuf {
        self.folder.path().join(CONTENT)
    }

    /// The root metadata that was installed on the gateways when the depot was made.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.json")
    }

    /// The folder of its keys.
    pub fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    /// Runs a command of the publisher.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.start(arguments).end()
    }

    /// Starts a command of the publisher.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut all = vec!["depot".to_owned()];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        all.extend(self.place.iter().cloned());
        all.extend(["--keys".to_owned(), self.keys().display().to_string()]);
        Running::start("limpet-lab", &all, &[])
    }

    /// Starts to publish a package on the channel `stable`. Its graphs are not run before: what is wrong is for the gateway
    /// to find.
    pub fn start_publishing(&self, package: &Package) -> Running {
        self.start(&["publish", text(package.path()), "--channel", "stable", "--no-prove"])
    }

    /// Publishes a package on the channel `stable`, and gives what the command printed.
    #[track_caller]
    pub fn publish(&self, package: &Package) -> Outcome {
        self.start_publishing(package).end().expect_code(0)
    }
}

fn text(path: &Path) -> &str {
    program::text_of(path)
}
