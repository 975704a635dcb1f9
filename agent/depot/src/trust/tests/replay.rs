//! Old metadata, metadata that does not belong together, and versions that were driven up.

use super::*;

/// The roles whose metadata another document lists with its version.
const LISTED: [Role; 3] = [Role::Snapshot, Role::Targets, Role::Rollout];

/// A depot at version 10 of everything but root, and a gateway that trusts it.
fn at_ten() -> (World, Forge) {
    let world = World::new();
    let mut forge = world.forge();
    for role in [Role::Timestamp, Role::Snapshot, Role::Targets, Role::Rollout] {
        forge = forge.version(role, 10);
    }
    assert_eq!(world.take(forge.depot()).unwrap(), Update::New);
    (world, forge)
}

/// The version of a role that the gateway trusts.
fn version_of(world: &World, role: Role) -> u64 {
    let versions = world.open().trusted().unwrap().versions;
    match role {
        Role::Root => versions.root,
        Role::Timestamp => versions.timestamp,
        Role::Snapshot => versions.snapshot,
        Role::Targets => versions.targets,
        Role::Rollout => versions.rollout,
    }
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
fn rollback_attack_an_older_timestamp_is_refused() {
    let (world, forge) = at_ten();
    let error = world.take(forge.clone().version(Role::Timestamp, 9).depot()).unwrap_err();
    assert!(matches!(&error, TrustError::Rollback { object, .. } if object == "timestamp"), "{error}");
    assert_eq!(world.take(forge.version(Role::Timestamp, 11).depot()).unwrap(), Update::New);
}

#[test]
fn rollback_attack_an_older_version_of_what_a_newer_timestamp_lists_is_refused_role_by_role() {
    for role in LISTED {
        let (world, forge) = at_ten();
        // Whoever has the keys of all roles above signs them anew.
        let newer = forge.onward().onward();
        let error = world.take(newer.clone().version(role, 9).depot()).unwrap_err();
        assert!(matches!(error, TrustError::Rollback { .. }), "{role:?}: {error}");
        assert!(error.to_string().contains('9') && error.to_string().contains("10"), "{role:?}: {error}");
        assert_eq!(version_of(&world, role), 10);
        assert_eq!(world.take(newer.depot()).unwrap(), Update::New);
        assert_eq!(version_of(&world, role), 12);
    }
}

#[test]
fn rollback_attack_a_role_that_the_newer_snapshot_does_not_list_is_refused() {
    for role in [Role::Targets, Role::Rollout] {
        for known in [true, false] {
            let (world, forge) = at_ten();
            if !known {
                world.forget();
            }
            let file = format!("{}.json", role.name());
            let without = forge.onward().edit(Role::Snapshot, |signed| {
                signed["meta"].as_object_mut().unwrap().remove(&file);
            });
            let error = world.take(without.depot()).unwrap_err();
            assert!(matches!(error, TrustError::Rollback { .. } | TrustError::Refused { .. }), "{role:?}: {error}");
        }
    }
}

#[test]
fn rollback_attack_an_older_chain_of_roots_is_refused() {
    let world = World::new();
    world.update().unwrap();
    let old = world.copy();
    world.rotate(&[Role::Targets]);
    world.update().unwrap();
    fs::copy(world.depot().join("meta/timestamp"), old.path().join("meta/timestamp")).unwrap();
    let error = world.update_from(old.path(), now()).unwrap_err();
    assert!(error.to_string().contains("it ends with version 1; version 2 is trusted"), "{error}");
}

#[test]
fn rollback_attack_is_noticed_after_a_restart_and_under_a_root_that_gave_other_roles_new_keys() {
    let world = World::new();
    world.publish("1.1.0", 2);
    world.update().unwrap();
    let old = world.forge();
    world.rotate(&[Role::Root, Role::Targets, Role::Rollout]);
    world.update().unwrap();
    // Targets of the old keys would not verify; the snapshot and the timestamp still do.
    let mut forge = world.forge();
    for role in [Role::Timestamp, Role::Snapshot] {
        forge.signed.insert(role, old.signed[&role].clone());
    }
    let error = world.take(forge.depot()).unwrap_err();
    assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
}

#[test]
fn the_same_version_of_a_timestamp_with_another_content_changes_nothing() {
    let (world, forge) = at_ten();
    let trusted = world.open().trusted().cloned();
    let other = forge.version(Role::Snapshot, 11).version(Role::Targets, 11);
    assert_eq!(world.take(other.depot()).unwrap(), Update::Same);
    assert_eq!(world.open().trusted(), trusted.as_ref(), "what came first stays");
}

#[test]
fn mix_and_match_attack_metadata_of_two_sets_is_refused() {
    let world = World::new();
    let old = world.copy();
    world.publish("1.1.0", 2);
    for role in LISTED {
        let role = role.name();
        let mixed = world.copy();
        fs::copy(newest(old.path(), role), newest(mixed.path(), role)).unwrap();
        let error = world.update_from(mixed.path(), now()).unwrap_err();
        assert!(matches!(error, TrustError::Refused { .. }), "{role}: {error}");
        assert!(world.open().trusted().is_none());
    }
    assert_eq!(world.update().unwrap(), Update::New);
}

#[test]
fn mix_and_match_attack_another_document_of_the_same_version_is_refused() {
    // Signed by the right keys, of the right version, and not the one that was listed.
    for role in LISTED {
        for known in [true, false] {
            let (world, forge) = at_ten();
            if !known {
                world.forget();
            }
            let forge = forge.onward();
            let mut depot = forge.depot();
            let other = forge.edit(role, |signed| signed["expires"] = "2026-12-24T00:00:00Z".into()).depot();
            let name = depot.name_of(role).unwrap();
            depot.objects.insert(name.clone(), other.objects[&name].clone());
            let error = world.take(depot).unwrap_err();
            assert!(matches!(error, TrustError::Refused { .. }), "{role:?}: {error}");
        }
    }
}

#[test]
fn mix_and_match_attack_a_document_without_a_listed_digest_must_have_the_listed_version_and_signature() {
    for role in LISTED {
        let world = World::new();
        let above = if role == Role::Snapshot { Role::Timestamp } else { Role::Snapshot };
        let file = format!("{}.json", role.name());
        let version = world.forge().signed[&role]["version"].as_u64().unwrap();
        // TUF lets digest and length out; the version is then all that ties them together.
        let bare = |forge: Forge, listed: u64| {
            let mut depot = forge.depot();
            let mut signed: serde_json::Value =
                serde_json::from_slice(&depot.objects[&depot.name_of(above).unwrap()]).unwrap();
            signed["signed"]["meta"][&file] = serde_json::json!({"version": listed});
            let document = forge::document(above, &signed["signed"], &forge.signers[&above]);
            let bytes = serde_json::to_vec(&document).unwrap();
            let name = depot.name_of(above).unwrap();
            if above == Role::Snapshot {
                let mut timestamp = forge.signed[&Role::Timestamp].clone();
                timestamp["meta"]["snapshot.json"]["hashes"]["sha256"] = Digest::of(&bytes).to_string().into();
                timestamp["meta"]["snapshot.json"]["length"] = bytes.len().into();
                let document = forge::document(Role::Timestamp, &timestamp, &forge.signers[&Role::Timestamp]);
                depot.objects.insert(Name::Timestamp, serde_json::to_vec(&document).unwrap().into());
            }
            depot.objects.insert(name, bytes.into());
            depot
        };
        let mut other = bare(world.forge(), version + 1);
        let (old, new) =
            (other.name_of(role).unwrap(), Name::Metadata { version: version + 1, role: role.name().to_owned() });
        let content = other.objects.remove(&old).unwrap();
        other.objects.insert(new, content);
        let error = world.take(other).unwrap_err();
        assert!(matches!(error, TrustError::Refused { .. }), "{role:?}: {error}");
        let unsigned = bare(world.forge().signed_by(role, [Signer::stranger()]), version);
        let error = world.take(unsigned).unwrap_err();
        assert!(matches!(error, TrustError::Signature { .. }), "{role:?}: {error}");
        assert_eq!(world.take(bare(world.forge(), version)).unwrap(), Update::New, "{role:?}");
    }
}

#[test]
fn fast_forward_attack_is_over_once_timestamp_and_snapshot_have_other_keys() {
    let far = VERSION_MAX;
    let online = [Role::Timestamp, Role::Snapshot, Role::Rollout];
    let (world, forge) = at_ten();
    let mut attack = forge.clone();
    for role in online {
        attack = attack.version(role, far);
    }
    assert_eq!(world.take(attack.depot()).unwrap(), Update::New, "its keys are good");
    let error = world.take(forge.clone().onward().depot()).unwrap_err();
    assert!(matches!(error, TrustError::Rollback { .. }), "{error}");

    for rotated in [&[Role::Timestamp][..], &[Role::Snapshot], &[Role::Timestamp, Role::Snapshot]] {
        let saved = fs::read(world.gateway.path().join("depot/trust.json")).unwrap();
        let root_keys = forge.signers[&Role::Root].clone();
        let recovered = forge.clone().onward().with_keys(rotated, &root_keys, &Signer::stranger());
        assert_eq!(world.take(recovered.depot()).unwrap(), Update::New, "{rotated:?}");
        assert_eq!(version_of(&world, Role::Timestamp), 11);
        // The versions of before count again from here on.
        let error = world.take(recovered.version(Role::Timestamp, 10).depot()).unwrap_err();
        assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
        fs::write(world.gateway.path().join("depot/trust.json"), saved).unwrap();
    }
}

#[test]
fn fast_forward_attack_a_version_that_leaves_no_room_to_go_on_is_refused() {
    for role in [Role::Timestamp, Role::Snapshot, Role::Targets, Role::Rollout] {
        for version in [VERSION_MAX + 1, u64::MAX] {
            let (world, forge) = at_ten();
            let error = world.take(forge.onward().version(role, version).depot()).unwrap_err();
            assert!(error.to_string().contains(&format!("expected at most {VERSION_MAX}")), "{role:?}: {error}");
        }
    }
}
