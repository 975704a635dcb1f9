//! Clocks and ends: freeze attacks, gateways without a clock, publishers whose clock is wrong.

use super::*;

const YEARS: [&str; 2] = ["1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z"];

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A role's metadata ends at a time.
fn ends(forge: Forge, role: Role, end: Timestamp) -> Forge {
    let end = end.to_string();
    if role == Role::Root {
        let by = forge.signers[&Role::Root].clone();
        return forge.root(|root| root["expires"] = end.into(), &by);
    }
    forge.edit(role, |signed| signed["expires"] = end.into())
}

/// The timestamp says that it was signed at a time, and ends at another.
fn issued(forge: Forge, issued: Timestamp, end: Timestamp) -> Forge {
    ends(forge, Role::Timestamp, end).edit(Role::Timestamp, |signed| {
        signed["limpet"]["issued"] = issued.to_string().into();
    })
}

#[test]
fn indefinite_freeze_attack_what_has_expired_is_refused_even_if_it_was_trusted() {
    let world = World::new();
    let late = now() + SignedDuration::from_hours(24 * 20);
    let error = world.update_from(&world.depot(), late).unwrap_err();
    assert!(matches!(error, TrustError::Expired { role: "timestamp", .. }), "{error}");
    world.update().unwrap();
    let error = world.update_from(&world.depot(), late).unwrap_err();
    assert!(matches!(error, TrustError::Expired { role: "timestamp", .. }), "{error}");
}

#[test]
fn indefinite_freeze_attack_every_role_has_an_end_of_its_own() {
    let second = now() + SignedDuration::from_secs(1);
    for expired in Role::ALL {
        for known in [true, false] {
            // An expired root is followed all the same, so each case has a gateway of its own.
            let world = World::new();
            if known {
                world.update().unwrap();
            }
            let error = world.take(ends(world.forge().onward(), expired, now()).depot()).unwrap_err();
            let TrustError::Expired { role, expired: end, judged, .. } = &error else { panic!("{error}") };
            assert_eq!((*role, *end, judged.time, judged.by), (expired.name(), now(), now(), By::Clock));
            let text = error.to_string();
            assert!(text.contains("by the clock") && text.contains("what runs goes on"), "{text}");
            let world = World::new();
            assert_eq!(world.take(ends(world.forge(), expired, second).depot()).unwrap(), Update::New);
        }
    }
}

#[test]
fn indefinite_freeze_attack_a_root_that_has_expired_is_followed_to_the_one_that_has_not() {
    let world = World::new();
    world.update().unwrap();
    let expired = ends(world.forge().onward(), Role::Root, now());
    let error = world.take(expired.depot()).unwrap_err();
    assert!(matches!(error, TrustError::Expired { role: "root", .. }), "{error}");
    let next = ends(expired, Role::Root, now() + SignedDuration::from_secs(1));
    assert_eq!(world.take(next.depot()).unwrap(), Update::New);
    assert_eq!(world.open().trusted().unwrap().versions.root, 3);
}

#[test]
fn without_a_clock_ends_are_judged_by_the_newest_signed_time_and_that_is_said() {
    for year in YEARS {
        let clock = Clock { now: at(year), right: false };
        for role in Role::ALL {
            let world = World::new();
            world.update().unwrap();
            let depot = ends(world.forge().onward(), role, now()).depot();
            let error = world.update_with(Arc::new(depot), clock).unwrap_err();
            let TrustError::Expired { role: found, judged, .. } = &error else { panic!("{error}") };
            assert_eq!((*found, judged.time, judged.by), (role.name(), now(), By::Floor));
            assert!(error.to_string().contains("by the newest signed time known"), "{error}");
        }
    }
}

#[test]
fn a_clock_of_1970_refuses_nothing_good_and_one_of_2100_that_nobody_set_neither() {
    let [past, future] = YEARS;
    for (year, right) in [(past, false), (past, true), (future, false)] {
        let clock = Clock { now: at(year), right };
        let world = World::new();
        let remote = || Arc::new(Folder::new(&world.depot()));
        assert_eq!(world.update_with(remote(), clock).unwrap(), Update::New, "{year} {right}");
        assert_eq!(world.update_with(remote(), clock).unwrap(), Update::Same, "{year} {right}");
        world.publish("1.1.0", 2);
        assert_eq!(world.update_with(remote(), clock).unwrap(), Update::New, "{year} {right}");
        let judged = world.open().judge(clock);
        assert_eq!((judged.time, judged.by), (now(), By::Floor), "{year} {right}");
    }
}

#[test]
fn a_clock_of_2100_that_is_right_finds_everything_expired_and_what_is_trusted_stays() {
    let world = World::new();
    let future = at(YEARS[1]);
    let error = world.update_from(&world.depot(), future).unwrap_err();
    assert!(matches!(error, TrustError::Expired { .. }), "{error}");
    world.update().unwrap();
    let trusted = world.open().trusted().cloned();
    for _ in 0..2 {
        let error = world.update_from(&world.depot(), future).unwrap_err();
        assert!(matches!(error, TrustError::Expired { .. }), "{error}");
        assert!(error.to_string().contains("what runs goes on"), "{error}");
        assert!(trusted.is_some() && world.open().trusted() == trusted.as_ref());
        world.publish("1.1.0", 2);
    }
    assert_eq!(world.open().floor(), now(), "a clock never moves what is known of time");
    assert_eq!(world.update().unwrap(), Update::New);
}

#[test]
fn what_says_that_it_is_from_the_future_is_refused_where_the_time_is_known() {
    let hours = SignedDuration::from_hours;
    let of = |ahead| {
        let world = World::new();
        let forge = issued(world.forge(), now() + ahead, now() + hours(24 * 14));
        world.take(forge.depot()).map_err(|error| error.to_string())
    };
    assert_eq!(of(hours(24)), Ok(Update::New));
    let error = of(hours(24) + SignedDuration::from_secs(1)).unwrap_err();
    assert!(error.contains("meta") || error.contains("timestamp"), "{error}");
    assert!(
        error.contains("issued at 2026-12-02T00:00:01Z, more than a day from now, 2026-12-01T00:00:00Z"),
        "{error}"
    );
    // A clock that is behind what was signed before knows nothing, whatever the kernel says of it.
    let world = World::new();
    world.update().unwrap();
    let behind = Clock { now: now() - SignedDuration::from_secs(1), right: true };
    let forge = issued(world.forge().onward(), now() + hours(48), now() + hours(24 * 14));
    assert_eq!(world.update_with(Arc::new(forge.depot()), behind).unwrap(), Update::New);
    assert_eq!(world.open().floor(), now() + hours(48));
}

#[test]
fn a_timestamp_that_was_issued_after_its_own_end_is_refused_by_every_clock() {
    let later = now() + SignedDuration::from_secs(1);
    for clock in [
        Clock { now: now(), right: true },
        Clock { now: now(), right: false },
        Clock { now: at(YEARS[0]), right: true },
        Clock { now: at(YEARS[1]), right: false },
    ] {
        let world = World::new();
        let error = world.update_with(Arc::new(issued(world.forge(), later, now()).depot()), clock).unwrap_err();
        let TrustError::Refused { object, reason, .. } = &error else { panic!("{clock:?}: {error}") };
        assert!(object == "timestamp" && reason.contains("after its end at 2026-12-01T00:00:00Z"), "{error}");
        assert_eq!(world.open().floor(), built(), "what was refused says nothing of time");
    }
}

#[test]
fn an_issued_that_is_no_time_is_refused() {
    for text in ["", "yesterday", "2026-13-01T00:00:00Z", "-99999-01-01T00:00:00Z"] {
        let world = World::new();
        let forge = world.forge().edit(Role::Timestamp, |signed| signed["limpet"]["issued"] = text.into());
        let error = world.take(forge.depot()).unwrap_err();
        assert!(matches!(&error, TrustError::Refused { object, .. } if object == "timestamp"), "{text}: {error}");
    }
}

#[test]
fn fast_forward_attack_on_time_is_over_once_the_timestamp_has_another_key() {
    let (far, unknown) = (at("2090-01-01T00:00:00Z"), Clock { now: at(YEARS[0]), right: false });
    let world = World::new();
    world.update().unwrap();
    let good = world.forge();
    // Whoever has the timestamp's key moves the time of a gateway without a clock beyond the end of everything else.
    let mut forge = good.clone().onward();
    for role in [Role::Targets, Role::Rollout, Role::Snapshot] {
        forge = ends(forge, role, far + SignedDuration::from_hours(24));
    }
    let root_keys = forge.signers[&Role::Root].clone();
    forge = forge.root(|root| root["expires"] = "2091-01-01T00:00:00Z".into(), &root_keys);
    let forge = issued(forge, far, far + SignedDuration::from_hours(24));
    assert_eq!(world.update_with(Arc::new(forge.depot()), unknown).unwrap(), Update::New);
    assert_eq!(world.open().floor(), far);
    let error = world.update_with(Arc::new(good.clone().onward().onward().depot()), unknown).unwrap_err();
    assert!(matches!(error, TrustError::Refused { .. }), "the chain of roots is behind: {error}");
    let mut same_keys = good.clone().onward().onward();
    same_keys.roots = forge.roots.clone();
    let error = world.update_with(Arc::new(same_keys.depot()), unknown).unwrap_err();
    assert!(matches!(error, TrustError::Expired { .. }), "{error}");
    let rotated = same_keys.with_keys(&[Role::Timestamp], &root_keys, &Signer::stranger());
    assert_eq!(world.update_with(Arc::new(rotated.depot()), unknown).unwrap(), Update::New);
    assert_eq!(world.open().floor(), now(), "time is what the new key says");
}
