//! Each attack that the specification of TUF names (1.5.2), against a depot that the publisher's own code signed. That of
//! extraneous dependencies has no place to begin: a package depends on nothing.

mod bytes;
mod keys;
mod places;
mod replay;
mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::SignedDuration;

use super::*;
use crate::publish::forge::{self, Depot, Forge, Signer};
use crate::publish::tests::{Place, model, now, run};
use crate::publish::{ReleaseChange, Role, RoleKeys};
use crate::remote::Folder;

/// A publisher's depot, and a gateway that trusts its first root.
struct World {
    place: Place,
    gateway: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(&BTreeMap::new())
    }

    /// A depot with version 1.0.0 of a model.
    fn with(roles: &BTreeMap<Role, RoleKeys>) -> Self {
        let (place, gateway) = (Place::with(roles), tempfile::tempdir().unwrap());
        fs::copy(place.folder.path().join("keys/root.json"), gateway.path().join("root.json")).unwrap();
        let world = Self { place, gateway };
        world.publish("1.0.0", 1);
        world
    }

    fn publish(&self, version: &str, seed: u64) {
        run(async {
            let mut publisher = self.place.publisher();
            publisher.settle().await.unwrap();
            publisher.publish(&[model(version, seed)], &ReleaseChange::default()).await.unwrap();
        });
    }

    fn rotate(&self, roles: &[Role]) {
        let roles: BTreeSet<Role> = roles.iter().copied().collect();
        run(async { self.place.publisher().rotate(&roles, &BTreeMap::new(), None).await.unwrap() });
    }

    fn depot(&self) -> PathBuf {
        self.place.folder.path().join("depot")
    }

    fn open(&self) -> Trust {
        Trust::open(self.gateway.path(), &self.gateway.path().join("root.json"), built()).unwrap()
    }

    /// Updates from a depot by a clock. What fails must change nothing, in memory and on disk.
    fn update_with(&self, remote: Arc<dyn Remote>, clock: Clock) -> Result<Update, TrustError> {
        let mut trust = self.open();
        let before = trust.trusted().cloned();
        let outcome = run(trust.update(remote, || clock));
        if outcome.is_err() {
            assert_eq!(trust.trusted(), before.as_ref(), "what fails changes nothing");
            assert_eq!(self.open().trusted(), before.as_ref());
        }
        outcome
    }

    /// Updates from a folder, at a time of a clock that is right.
    fn update_from(&self, folder: &Path, at: Timestamp) -> Result<Update, TrustError> {
        self.update_with(Arc::new(Folder::new(folder)), Clock { now: at, right: true })
    }

    /// Updates from what somebody forged.
    fn take(&self, depot: Depot) -> Result<Update, TrustError> {
        self.update_with(Arc::new(depot), Clock { now: now(), right: true })
    }

    /// What its depot has, to be changed.
    fn forge(&self) -> Forge {
        Forge::of(&self.place.set(), self.place.ring()).unwrap()
    }

    /// The gateway is as if it had never seen the depot.
    fn forget(&self) {
        let _ = fs::remove_file(self.gateway.path().join("depot/trust.json"));
    }

    fn update(&self) -> Result<Update, TrustError> {
        self.update_from(&self.depot(), now())
    }

    /// A copy of the depot as it is.
    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for kind in ["meta", "target", "chunk"] {
            fs::create_dir(copy.path().join(kind)).unwrap();
            for file in fs::read_dir(self.depot().join(kind)).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), copy.path().join(kind).join(file.file_name())).unwrap();
            }
        }
        copy
    }
}

fn built() -> Timestamp {
    "2026-11-01T00:00:00Z".parse().unwrap()
}

/// The newest file of a role in a depot.
fn newest(depot: &Path, role: &str) -> PathBuf {
    let version = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap_or(0);
    let files = fs::read_dir(depot.join("meta")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == role)).max_by_key(version).unwrap()
}

#[test]
fn a_set_that_is_signed_is_trusted_and_kept_over_a_restart() {
    let world = World::new();
    assert!(world.open().trusted().is_none());
    assert_eq!(world.update().unwrap(), Update::New);
    assert_eq!(world.update().unwrap(), Update::Same);
    let trust = world.open();
    assert!(trust.trusted().unwrap().targets.contains_key("m-1.0.0.index"));
    assert!(trust.warnings().is_empty() && trust.floor() > built());
}

#[test]
fn damaged_state_is_put_aside_with_a_warning_and_a_half_written_file_is_not_looked_at() {
    let world = World::new();
    world.update().unwrap();
    let path = world.gateway.path().join("depot/trust.json");
    fs::write(path.with_file_name("trust.json.new"), "{").unwrap();
    assert!(world.open().trusted().is_some());
    let mut content = fs::read(&path).unwrap();
    content[200] ^= 1;
    fs::write(&path, content).unwrap();
    let trust = world.open();
    assert!(trust.trusted().is_none() && trust.warnings()[0].contains("trust.json.damaged"), "{:?}", trust.warnings());
    assert_eq!(world.update().unwrap(), Update::New);
}

#[test]
fn of_two_processes_that_update_at_once_the_later_one_does_not_bring_back_older_metadata() {
    let world = World::new();
    let old = world.forge();
    let mut slow = world.open();
    // Both have read that nothing is trusted; meanwhile the other takes over what is newer.
    assert_eq!(world.take(old.clone().onward().depot()).unwrap(), Update::New);
    let clock = Clock { now: now(), right: true };
    let error = run(slow.update(Arc::new(old.depot()), || clock)).unwrap_err();
    assert!(matches!(error, TrustError::Changed { .. }), "{error}");
    assert!(slow.trusted().is_none() && error.to_string().contains("what runs goes on"), "{error}");
    let newer = old.clone().onward().onward();
    run(slow.update(Arc::new(newer.depot()), || clock)).unwrap_err();
    assert_eq!(world.open().trusted().unwrap().versions.timestamp, old.onward().signed[&Role::Timestamp]["version"]);
    assert_eq!(world.take(newer.depot()).unwrap(), Update::New);
}

#[test]
fn another_root_of_the_owner_begins_another_chain() {
    let (world, other) = (World::new(), World::new());
    world.update().unwrap();
    fs::copy(other.gateway.path().join("root.json"), world.gateway.path().join("root.json")).unwrap();
    assert!(world.open().trusted().is_none(), "what the other's keys did not sign is not trusted");
    assert_eq!(world.update_from(&other.depot(), now()).unwrap(), Update::New);
    fs::write(world.gateway.path().join("root.json"), "{}").unwrap();
    let error = Trust::open(world.gateway.path(), &world.gateway.path().join("root.json"), built()).unwrap_err();
    assert!(error.to_string().contains("root.json"), "{error}");
}
