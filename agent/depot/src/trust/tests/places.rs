//! Places that give nothing, give it slowly, or give something else than what was asked for.

use tokio::sync::Notify;

use super::*;
use crate::remote::{RemoteError, async_trait};

/// A depot that is asked for one object and never answers.
struct Silent {
    depot: Depot,
    about: Name,
    asked: Notify,
}

#[async_trait]
impl Remote for Silent {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        if *name == self.about {
            self.asked.notify_one();
            std::future::pending::<()>().await;
        }
        self.depot.message(name, most).await
    }

    fn place(&self) -> &str {
        "a slow place"
    }
}

#[test]
fn slow_retrieval_attack_an_update_that_is_given_up_at_any_object_changes_nothing_and_the_next_goes_on() {
    let clock = Clock { now: now(), right: true };
    for known in [true, false] {
        let world = World::new();
        if known {
            world.update().unwrap();
        }
        let names: Vec<Name> = world.forge().onward().depot().objects.into_keys().collect();
        for about in names {
            let depot = world.forge().onward().depot();
            // What is trusted already is not asked for again.
            if known && matches!(about, Name::Target { .. }) {
                continue;
            }
            let silent = Arc::new(Silent { depot, about: about.clone(), asked: Notify::new() });
            let mut trust = world.open();
            let before = trust.trusted().cloned();
            let remote: Arc<dyn Remote> = Arc::<Silent>::clone(&silent);
            run(async {
                tokio::select! {
                    outcome = trust.update(remote, || clock) => panic!("{about} never came: {outcome:?}"),
                    () = silent.asked.notified() => {}
                }
            });
            assert_eq!(trust.trusted(), before.as_ref(), "{about}");
            assert_eq!(world.open().trusted(), before.as_ref(), "{about}");
        }
        assert_eq!(world.take(world.forge().onward().depot()).unwrap(), Update::New);
        let scratch = world.gateway.path().join("depot").join(SCRATCH);
        assert_eq!(fs::read_dir(scratch).unwrap().count(), 0, "nothing is left behind");
    }
}

#[test]
fn malicious_mirror_attack_a_place_that_gives_nothing_or_anything_keeps_nobody_from_updating_elsewhere() {
    let world = World::new();
    world.update().unwrap();
    let newer = world.forge().onward();
    let objects = || newer.depot().objects.into_keys().filter(|name| !matches!(name, Name::Target { .. }));
    for name in objects() {
        for garbage in [None, Some(&b""[..]), Some(b"{}"), Some(b"[]"), Some(b"null"), Some(&[0; 4096])] {
            let mut depot = newer.depot();
            match garbage {
                None => depot.objects.remove(&name),
                Some(garbage) => depot.objects.insert(name.clone(), Bytes::from_static(garbage)),
            };
            let error = world.take(depot).unwrap_err();
            assert!(
                error.to_string().contains("the forge") && error.to_string().contains("what runs goes on"),
                "{error}"
            );
        }
    }
    assert_eq!(world.take(newer.depot()).unwrap(), Update::New);
}

#[test]
fn wrong_software_attack_a_target_that_says_to_be_another_model_or_version_is_refused() {
    for (key, value) in [("model", "other"), ("version", "2.0.0"), ("version", "1.0.0+build"), ("model", "../m")] {
        let world = World::new();
        let forged = world.forge().edit(Role::Targets, |signed| {
            signed["targets"]["m-1.0.0.index"]["custom"][key] = value.into();
        });
        let error = world.take(forged.depot()).unwrap_err();
        let refused = matches!(&error, TrustError::Refused { object, .. } if object == "targets");
        assert!(refused && error.to_string().contains("m-1.0.0.index"), "{key} {value}: {error}");
    }
    for name in ["../../etc/passwd", "m/1.0.0.index", "m-1.0.0.index\u{0}", "m#", ".."] {
        let world = World::new();
        let forged = world.forge().edit(Role::Targets, |signed| {
            let target = signed["targets"]["m-1.0.0.index"].clone();
            signed["targets"][name] = target;
        });
        let error = world.take(forged.depot()).unwrap_err();
        assert!(matches!(error, TrustError::Refused { .. }), "{name:?}: {error}");
    }
}
