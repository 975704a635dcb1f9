//! Who signs what: arbitrary software, thresholds, compromised keys, delegations, and the chain of roots.

use serde_json::{Value, json};

use super::*;
use crate::publish::forge::give;

/// A change of what is signed.
type Edit = fn(&mut Value);

/// All roles but root, whose documents every update reads.
const BELOW: [Role; 4] = [Role::Timestamp, Role::Snapshot, Role::Targets, Role::Rollout];

/// That a document of a role was refused for its signatures.
fn assert_unsigned(outcome: Result<Update, TrustError>, role: Role, what: &str) {
    let error = outcome.expect_err(what);
    let TrustError::Signature { object, .. } = &error else { panic!("{what}: {error}") };
    // `tough` calls whatever a delegation leads to by the kind of its metadata.
    let names = [role.name(), if role == Role::Rollout { "targets" } else { role.name() }];
    assert!(names.iter().any(|name| object.contains(name)), "{what}: {error}");
    assert!(error.to_string().contains("what runs goes on"), "{error}");
}

#[test]
fn arbitrary_software_attack_a_whole_depot_of_a_stranger_is_refused() {
    let (world, stranger) = (World::new(), World::new());
    world.update().unwrap();
    let error = world.update_from(&stranger.depot(), now()).unwrap_err();
    assert!(matches!(error, TrustError::Signature { .. }), "{error}");
    let mixed = world.copy();
    for role in ["snapshot", "targets", "rollout"] {
        fs::copy(newest(&stranger.depot(), role), newest(mixed.path(), role)).unwrap();
    }
    fs::copy(stranger.depot().join("meta/timestamp"), mixed.path().join("meta/timestamp")).unwrap();
    let error = world.update_from(mixed.path(), now()).unwrap_err();
    assert!(matches!(error, TrustError::Signature { .. }), "{error}");
}

#[test]
fn arbitrary_software_attack_a_role_that_a_stranger_signed_is_refused_role_by_role() {
    for known in [true, false] {
        let world = World::new();
        if known {
            world.update().unwrap();
        }
        let owner = &world.forge().signers[&Role::Root][0];
        for signers in [vec![], vec![Signer::stranger()], vec![Signer::stranger().in_the_name_of(owner)]] {
            let what = format!("root by {} strangers, known: {known}", signers.len());
            assert_unsigned(world.take(world.forge().onward().root(|_| {}, &signers).depot()), Role::Root, &what);
        }
        for role in BELOW {
            let forge = world.forge().onward();
            let (owner, stranger) = (forge.signers[&role][0].clone(), Signer::stranger());
            let forged = stranger.in_the_name_of(&owner);
            for signers in [vec![], vec![stranger.clone()], vec![forged.clone()], vec![stranger, forged]] {
                let what = format!("{role:?} by {} strangers, known: {known}", signers.len());
                assert_unsigned(world.take(forge.clone().signed_by(role, signers).depot()), role, &what);
            }
            // Beside a good signature, others neither help nor harm.
            let both = [owner, Signer::stranger()];
            let outcome = world.take(forge.signed_by(role, both).depot());
            assert_eq!(outcome.unwrap(), Update::New, "{role:?}");
            world.forget();
            if known {
                world.update().unwrap();
            }
        }
    }
}

#[test]
fn key_compromise_a_key_of_one_role_signs_no_other() {
    let world = World::new();
    let forge = world.forge();
    for role in BELOW {
        for thief in Role::ALL.into_iter().filter(|thief| *thief != role) {
            let keys = forge.signers[&thief].clone();
            let owner = &forge.signers[&role][0];
            let renamed = vec![keys[0].in_the_name_of(owner)];
            for signers in [keys, renamed] {
                let forged = forge.clone().signed_by(role, signers);
                assert_unsigned(world.take(forged.depot()), role, &format!("{role:?} by the keys of {thief:?}"));
            }
        }
    }
    for thief in BELOW {
        let next = forge.clone().root(|_| {}, &forge.signers[&thief]);
        assert_unsigned(world.take(next.depot()), Role::Root, &format!("root by the keys of {thief:?}"));
    }
    assert_eq!(world.take(forge.depot()).unwrap(), Update::New);
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
fn key_compromise_every_role_recovers_by_new_keys_and_the_old_ones_sign_nothing_more() {
    for role in Role::ALL {
        let world = World::new();
        world.update().unwrap();
        let stolen = world.forge().signers[&role].clone();
        world.rotate(&[role]);
        assert_eq!(world.update().unwrap(), Update::New, "{role:?}");
        let forge = world.forge().onward();
        let forged = match role {
            Role::Root => forge.root(|_| {}, &stolen),
            _ => forge.signed_by(role, stolen),
        };
        assert_unsigned(world.take(forged.depot()), role, &format!("{role:?} by its old key"));
    }
}

#[test]
fn a_threshold_that_is_not_reached_is_refused_and_a_key_counts_once() {
    for role in BELOW {
        let world = World::with(&[(role, RoleKeys { count: 3, threshold: 2 })].into());
        let forge = world.forge();
        let keys = forge.signers[&role].clone();
        let [one, two, three] = &keys[..] else { panic!("{} keys", keys.len()) };
        let again = one.in_the_name_of(two);
        let few = [
            vec![],
            vec![one.clone()],
            vec![one.clone(), one.clone()],
            vec![one.clone(), one.clone(), one.clone()],
            vec![one.clone(), again.clone()],
            vec![one.clone(), again, one.in_the_name_of(three)],
            vec![one.clone(), Signer::stranger()],
            vec![one.clone(), Signer::stranger().in_the_name_of(two)],
        ];
        for (number, signers) in few.into_iter().enumerate() {
            let outcome = world.take(forge.clone().signed_by(role, signers).depot());
            let error = outcome.expect_err(&format!("{role:?}, case {number}"));
            let refused = matches!(error, TrustError::Signature { .. } | TrustError::Refused { .. });
            assert!(refused, "{role:?}, case {number}: {error}");
        }
        for pair in [[one, two], [two, three], [three, one]] {
            world.forget();
            let signers: Vec<Signer> = pair.into_iter().cloned().collect();
            assert_eq!(world.take(forge.clone().signed_by(role, signers).depot()).unwrap(), Update::New);
        }
    }
}

#[test]
fn a_threshold_of_root_counts_for_the_old_root_and_for_the_new() {
    let world = World::with(&[(Role::Root, RoleKeys { count: 3, threshold: 2 })].into());
    let forge = world.forge();
    let old = forge.signers[&Role::Root].clone();
    let fresh: Vec<Signer> = (0..2).map(|_| Signer::stranger()).collect();
    let replace = |root: &mut Value| {
        for key in &fresh {
            give(root, "root", key);
        }
        root["roles"]["root"] =
            json!({"keyids": fresh.iter().map(|key| key.public().0).collect::<Vec<_>>(), "threshold": 2});
    };
    let signed_by = |keys: &[&Signer]| {
        let keys: Vec<Signer> = keys.iter().map(|key| (*key).clone()).collect();
        world.take(forge.clone().root(replace, &keys).depot())
    };
    for (what, keys) in [
        ("by one old key", vec![&old[0], &fresh[0], &fresh[1]]),
        ("by one new key", vec![&old[0], &old[1], &fresh[0]]),
        ("by one old key twice", vec![&old[0], &old[0], &fresh[0], &fresh[1]]),
        ("by the old keys", vec![&old[0], &old[1], &old[2]]),
        ("by the new keys", vec![&fresh[0], &fresh[1]]),
    ] {
        let error = signed_by(&keys).expect_err(what);
        assert!(matches!(error, TrustError::Signature { .. } | TrustError::Refused { .. }), "{what}: {error}");
        assert!(world.open().root.contains("\"version\":1"), "{what}: the old root stays");
    }
    assert_eq!(signed_by(&[&old[2], &old[0], &fresh[1], &fresh[0]]).unwrap(), Update::New);
}

#[test]
fn a_key_that_is_listed_under_an_id_that_is_not_its_own_is_refused() {
    let world = World::new();
    let forge = world.forge();
    let (root_keys, owner, stranger) =
        (forge.signers[&Role::Root].clone(), forge.signers[&Role::Timestamp][0].clone(), Signer::stranger());
    let forged = forge.root(|root| root["keys"][owner.public().0] = stranger.public().1, &root_keys[..0]);
    let error = world.take(forged.depot()).unwrap_err();
    assert!(matches!(error, TrustError::Refused { .. }), "{error}");
}

#[test]
fn the_rollout_role_may_not_name_a_target_outside_of_its_paths() {
    for path in
        ["m-1.0.0.index", "config.press-7", "rollouts/state.json", "rollout", "x/rollout/state.json", "../rollout/x"]
    {
        let world = World::new();
        let forged = world.forge().edit(Role::Rollout, |signed| {
            let target = signed["targets"]["rollout/state.json"].clone();
            signed["targets"][path] = target;
        });
        let error = world.take(forged.depot()).unwrap_err();
        assert!(matches!(error, TrustError::Refused { .. }), "{path}: {error}");
    }
}

#[test]
fn the_rollout_role_may_not_delegate_further() {
    let world = World::new();
    let (id, key) = Signer::stranger().public();
    let forge = world.forge().edit(Role::Rollout, |signed| {
        signed["delegations"] = json!({
            "keys": {&id: key},
            "roles": [{"name": "mine", "keyids": [id], "threshold": 1, "paths": ["rollout/*"], "terminating": false}],
        });
    });
    let forge = forge.edit(Role::Snapshot, |signed| signed["meta"]["mine.json"] = json!({"version": 1}));
    let depot = Arc::new(forge.depot());
    let remote: Arc<dyn Remote> = Arc::<Depot>::clone(&depot);
    let error = world.update_with(remote, Clock { now: now(), right: true }).unwrap_err();
    assert!(matches!(error, TrustError::Refused { .. }), "{error}");
    // It leads nowhere: not even what it names is asked for.
    let asked = depot.asked();
    assert!(asked.iter().all(|name| !name.to_string().contains("mine")), "{asked:?}");
}

#[test]
fn targets_delegate_to_the_rollout_role_alone_and_for_its_paths_alone() {
    let role = |signed: &mut Value, edit: Edit| edit(&mut signed["delegations"]["roles"]);
    let edits: [(&str, Edit); 6] = [
        ("no role", |roles| *roles = json!([])),
        ("another name", |roles| roles[0]["name"] = "rollin".into()),
        ("all paths", |roles| roles[0]["paths"] = json!(["*"])),
        ("one more path", |roles| roles[0]["paths"] = json!(["rollout/*", "*.index"])),
        ("paths by hash", |roles| {
            roles[0].as_object_mut().unwrap().remove("paths");
            roles[0]["path_hash_prefixes"] = json!(["0"]);
        }),
        ("a second role", |roles| {
            let mut second = roles[0].clone();
            second["name"] = "second".into();
            roles.as_array_mut().unwrap().push(second);
        }),
    ];
    for (what, edit) in edits {
        let world = World::new();
        let forged = world.forge().edit(Role::Targets, |signed| role(signed, edit));
        let error = world.take(forged.depot()).expect_err(what);
        assert!(matches!(error, TrustError::Refused { .. }), "{what}: {error}");
    }
}

#[test]
fn root_rotation_is_followed_over_several_steps_and_a_chain_with_a_gap_is_refused() {
    let world = World::new();
    world.update().unwrap();
    world.rotate(&[Role::Timestamp, Role::Snapshot]);
    world.rotate(&[Role::Root, Role::Targets]);
    let roots = fs::read_to_string(world.depot().join("meta/roots")).unwrap();
    let documents: Vec<Value> = serde_json::from_str(&roots).unwrap();
    assert_eq!(documents.len(), 3);
    for left in [vec![0, 2], vec![2], vec![1, 0, 2], vec![0, 0, 1, 2], vec![0, 1, 1, 2], vec![]] {
        let copy = world.copy();
        let some: Vec<_> = left.iter().map(|index: &usize| documents[*index].clone()).collect();
        fs::write(copy.path().join("meta/roots"), serde_json::to_vec(&some).unwrap()).unwrap();
        let error = world.update_from(copy.path(), now()).unwrap_err();
        assert!(matches!(&error, TrustError::Refused { object, .. } if object == "meta/roots"), "{left:?}: {error}");
        assert_eq!(world.open().trusted().unwrap().versions.root, 1);
    }
    assert_eq!(world.update().unwrap(), Update::New);
    assert_eq!(world.open().trusted().unwrap().versions.root, 3);
}

#[test]
fn a_root_that_the_old_keys_or_the_new_keys_did_not_sign_is_refused() {
    let world = World::new();
    world.update().unwrap();
    let (forge, fresh) = (world.forge().onward(), Signer::stranger());
    let old = forge.signers[&Role::Root].clone();
    let replace = |root: &mut Value| give(root, "root", &fresh);
    for (what, by) in [("old", &old[..]), ("new", std::slice::from_ref(&fresh)), ("nobody", &[])] {
        assert_unsigned(world.take(forge.clone().root(replace, by).depot()), Role::Root, what);
    }
    let both = [old[0].clone(), fresh.clone()];
    let next = forge.root(replace, &both);
    assert_eq!(world.take(next.depot()).unwrap(), Update::New);
    // What the old key signs now leads nowhere, even from the same place in the chain.
    let fork = next.clone().onward().root(|_| {}, &old);
    assert_unsigned(world.take(fork.depot()), Role::Root, "the dismissed key goes on");
    let on = next.onward().root(|_| {}, &[fresh]);
    assert_eq!(world.take(on.depot()).unwrap(), Update::New);
    assert_eq!(world.open().trusted().unwrap().versions.root, 3);
}

#[test]
fn another_root_of_a_version_that_is_trusted_changes_nothing() {
    let world = World::new();
    let (forge, thief) = (world.forge(), Signer::stranger());
    let root_keys = forge.signers[&Role::Root].clone();
    let good = forge.clone().root(|_| {}, &root_keys);
    assert_eq!(world.take(good.depot()).unwrap(), Update::New);
    let fork = forge.onward().with_keys(&BELOW[..3], &root_keys, &thief);
    let error = world.take(fork.depot()).unwrap_err();
    assert!(matches!(&error, TrustError::Signature { object, .. } if object == "timestamp"), "{error}");
}

#[test]
fn a_root_that_lacks_what_a_gateway_needs_is_refused() {
    let edits: [(&str, Edit); 4] = [
        ("no keys for timestamp", |root| _ = root["roles"].as_object_mut().unwrap().remove("timestamp")),
        ("a threshold of nothing", |root| root["roles"]["timestamp"]["threshold"] = 0.into()),
        ("files without versions", |root| root["consistent_snapshot"] = false.into()),
        ("a version too far", |root| root["version"] = (VERSION_MAX + 1).into()),
    ];
    for (what, edit) in edits {
        let world = World::new();
        let forge = world.forge();
        let root_keys = forge.signers[&Role::Root].clone();
        let error = world.take(forge.root(edit, &root_keys).depot()).expect_err(what);
        assert!(matches!(error, TrustError::Refused { .. }), "{what}: {error}");
        assert!(world.open().root.contains("\"version\":1"), "{what}: the old root stays");
    }
}

#[test]
fn a_newer_root_of_the_owner_whose_keys_signed_the_set_too_leaves_it_trusted() {
    let world = World::new();
    world.publish("1.1.0", 2);
    let old = world.copy();
    world.publish("1.2.0", 3);
    world.update().unwrap();
    let trusted = world.open().trusted().cloned().unwrap();
    world.rotate(&[Role::Root]);
    // The owner installs the second root by hand.
    let root = serde_json::to_vec(&world.forge().roots[1]).unwrap();
    fs::write(world.gateway.path().join("root.json"), root).unwrap();
    let trust = world.open();
    let now_trusted = trust.trusted().unwrap();
    assert_eq!((&now_trusted.targets, &now_trusted.rollout), (&trusted.targets, &trusted.rollout));
    assert_eq!((now_trusted.versions.root, trust.warnings().len()), (2, 0));
    // And it still guards against what is older.
    let roots = world.depot().join("meta/roots");
    fs::copy(roots, old.path().join("meta/roots")).unwrap();
    let error = world.update_from(old.path(), now()).unwrap_err();
    assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
    world.publish("1.3.0", 4);
    assert_eq!(world.update().unwrap(), Update::New);
}
