//! A depot and its publisher: `limpet-lab depot` with keys of its own.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::{self, Outcome};
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
        Self::at(|_| vec!["--broker".into(), broker.url(), "--patience".into(), "1".into()])
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
        depot
    }

    /// Where the messages are, if it is a folder.
    pub fn content(&self) -> PathBuf {
        self.folder.path().join(CONTENT)
    }

    /// The root metadata for gateways.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("keys/root.json")
    }

    /// Runs a command of the publisher.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let keys = self.folder.path().join("keys");
        let mut all = vec!["depot".to_owned()];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        all.extend(self.place.iter().cloned());
        all.extend(["--keys".to_owned(), keys.display().to_string()]);
        program::run("limpet-lab", &all)
    }

    /// Publishes a package on the channel `stable`, and gives what the command printed. Its graphs are not run before:
    /// what is wrong is for the gateway to find.
    #[track_caller]
    pub fn publish(&self, package: &Package) -> Outcome {
        self.run(&["publish", text(package.path()), "--channel", "stable", "--no-prove"]).expect_code(0)
    }
}

fn text(path: &Path) -> &str {
    program::text_of(path)
}
