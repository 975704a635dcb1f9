//! Each attack that the specification of TUF names (1.5.2), against a depot that the publisher's own code signed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::SignedDuration;

use super::*;
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

    /// Updates from a folder, at a time of a clock that is right.
    fn update_from(&self, folder: &Path, at: Timestamp) -> Result<Update, TrustError> {
        let mut trust = self.open();
        let before = trust.trusted().map(|trusted| trusted.versions);
        let remote: Arc<dyn Remote> = Arc::new(Folder::new(folder));
        let outcome = run(trust.update(remote, Clock { now: at, right: true }));
        if outcome.is_err() {
            assert_eq!(trust.trusted().map(|trusted| trusted.versions), before, "what fails changes nothing");
            assert_eq!(self.open().trusted().map(|trusted| trusted.versions), before);
        }
        outcome
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
fn arbitrary_software_attack_metadata_of_a_stranger_is_refused() {
    let (world, stranger) = (World::new(), World::new());
    world.update().unwrap();
    let error = world.update_from(&stranger.depot(), now()).unwrap_err();
    assert!(matches!(error, TrustError::Signature { .. } | TrustError::Refused { .. }), "{error}");
    let mixed = world.copy();
    for role in ["snapshot", "targets", "rollout"] {
        fs::copy(newest(&stranger.depot(), role), newest(mixed.path(), role)).unwrap();
    }
    fs::copy(stranger.depot().join("meta/timestamp"), mixed.path().join("meta/timestamp")).unwrap();
    let error = world.update_from(mixed.path(), now()).unwrap_err();
    assert!(matches!(error, TrustError::Signature { .. }), "{error}");
}

#[test]
fn rollback_attack_an_old_set_is_refused() {
    let world = World::new();
    world.update().unwrap();
    let old = world.copy();
    world.publish("1.1.0", 2);
    world.update().unwrap();
    let error = world.update_from(old.path(), now()).unwrap_err();
    assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
    assert!(error.to_string().contains("what runs goes on"));
}

#[test]
fn indefinite_freeze_attack_what_has_expired_is_refused_even_if_it_was_trusted() {
    let world = World::new();
    let late = now() + SignedDuration::from_hours(24 * 20);
    let error = world.update_from(&world.depot(), late).unwrap_err();
    assert!(matches!(error, TrustError::Expired { role: "timestamp", .. }), "{error}");
    world.update().unwrap();
    let error = world.update_from(&world.depot(), late).unwrap_err();
    assert!(matches!(error, TrustError::Expired { .. }), "{error}");
}

#[test]
fn a_clock_of_1970_refuses_nothing_good_and_one_of_2100_that_nobody_set_neither() {
    for (at, right) in
        [("1970-01-01T00:00:00Z", false), ("1970-01-01T00:00:00Z", true), ("2100-01-01T00:00:00Z", false)]
    {
        let world = World::new();
        let clock = Clock { now: at.parse().unwrap(), right };
        let mut trust = world.open();
        let remote: Arc<dyn Remote> = Arc::new(Folder::new(&world.depot()));
        let outcome = run(trust.update(remote, clock));
        // A clock of 1970 that is said to be right is a day and more behind the signature.
        assert_eq!(outcome.is_ok(), !(right && at.starts_with("1970")), "{at} {right}: {outcome:?}");
    }
    let world = World::new();
    let error = world.update_from(&world.depot(), "2100-01-01T00:00:00Z".parse().unwrap()).unwrap_err();
    assert!(matches!(error, TrustError::Expired { .. }), "{error}");
}

#[test]
fn endless_data_attack_what_is_too_large_is_refused() {
    let world = World::new();
    for (name, bytes) in [("roots", ROOTS_MAX), ("timestamp", TIMESTAMP_MAX)] {
        let copy = world.copy();
        let mut content = fs::read(copy.path().join("meta").join(name)).unwrap();
        content.resize(bytes as usize + 1, b' ');
        fs::write(copy.path().join("meta").join(name), content).unwrap();
        let error = world.update_from(copy.path(), now()).unwrap_err();
        assert!(matches!(error, TrustError::Remote(_)), "{name}: {error}");
    }
    let copy = world.copy();
    let targets = newest(copy.path(), "targets");
    let mut content = fs::read(&targets).unwrap();
    content.resize(content.len() + 5000, b' ');
    fs::write(&targets, content).unwrap();
    world.update_from(copy.path(), now()).unwrap_err();
}

#[test]
fn mix_and_match_attack_metadata_of_two_sets_is_refused() {
    let world = World::new();
    let old = world.copy();
    world.publish("1.1.0", 2);
    for role in ["snapshot", "targets", "rollout"] {
        let mixed = world.copy();
        fs::copy(newest(old.path(), role), newest(mixed.path(), role)).unwrap();
        world.update_from(mixed.path(), now()).unwrap_err();
    }
    assert_eq!(world.update().unwrap(), Update::New);
}

#[test]
fn root_rotation_is_followed_over_several_steps_and_a_chain_with_a_gap_is_refused() {
    let world = World::new();
    world.update().unwrap();
    world.rotate(&[Role::Timestamp, Role::Snapshot]);
    world.rotate(&[Role::Root, Role::Targets]);
    let roots = fs::read_to_string(world.depot().join("meta/roots")).unwrap();
    let documents: Vec<serde_json::Value> = serde_json::from_str(&roots).unwrap();
    assert_eq!(documents.len(), 3);
    for left in [vec![0, 2], vec![2], vec![1, 0, 2]] {
        let copy = world.copy();
        let some: Vec<_> = left.iter().map(|index| documents[*index].clone()).collect();
        fs::write(copy.path().join("meta/roots"), serde_json::to_vec(&some).unwrap()).unwrap();
        world.update_from(copy.path(), now()).unwrap_err();
    }
    assert_eq!(world.update().unwrap(), Update::New);
    assert_eq!(world.open().trusted().unwrap().versions.root, 3);
}

#[test]
fn key_compromise_a_dismissed_key_has_no_say_even_before_the_next_set_comes() {
    let world = World::new();
    world.update().unwrap();
    let old = world.copy();
    world.rotate(&[Role::Timestamp]);
    // The new root arrives with the old timestamp: whoever has the old key would like that.
    fs::copy(world.depot().join("meta/roots"), old.path().join("meta/roots")).unwrap();
    for _ in 0..2 {
        let error = world.update_from(old.path(), now()).unwrap_err();
        assert!(matches!(error, TrustError::Signature { .. }), "{error}");
    }
    assert_eq!(world.update().unwrap(), Update::New);
}

#[test]
fn a_threshold_that_is_not_reached_is_refused_and_a_signature_counts_once() {
    let world = World::with(&[(Role::Targets, RoleKeys { count: 3, threshold: 2 })].into());
    assert_eq!(world.update().unwrap(), Update::New);
    let set = world.open().kept.set.clone().unwrap();
    let mut targets: serde_json::Value = serde_json::from_str(&set.targets).unwrap();
    let signatures = targets["signatures"].as_array_mut().unwrap();
    let one = signatures[0].clone();
    for few in [vec![one.clone()], vec![one.clone(), one]] {
        targets["signatures"] = few.into();
        let fault = Set { targets: targets.to_string(), ..set.clone() }.read().unwrap_err();
        assert_eq!(fault.object, "targets");
    }
}

#[test]
fn a_flipped_bit_in_any_message_is_refused_or_changes_nothing() {
    let world = World::new();
    let good = world.update().map(|_| world.open().trusted().unwrap().versions).unwrap();
    let fresh = World { place: world.place, gateway: world.gateway };
    fs::remove_file(fresh.gateway.path().join("depot/trust.json")).unwrap();
    let messages: Vec<PathBuf> = ["meta", "target"]
        .iter()
        .flat_map(|kind| fs::read_dir(fresh.depot().join(kind)).unwrap().map(|file| file.unwrap().path()))
        .filter(|path| !path.to_str().unwrap().ends_with(".index"))
        .collect();
    for path in messages {
        let content = fs::read(&path).unwrap();
        for at in (0..content.len()).step_by(97) {
            let mut flipped = content.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, &flipped).unwrap();
            if fresh.update().is_ok() {
                assert_eq!(fresh.open().trusted().unwrap().versions, good, "{} at {at}", path.display());
                fs::remove_file(fresh.gateway.path().join("depot/trust.json")).unwrap();
            }
        }
        fs::write(&path, &content[..content.len() / 2]).unwrap();
        // Old versions of metadata are not read any more.
        if fresh.update().is_ok() {
            fs::remove_file(fresh.gateway.path().join("depot/trust.json")).unwrap();
        }
        fs::write(&path, &content).unwrap();
    }
    assert_eq!(fresh.update().unwrap(), Update::New);
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
