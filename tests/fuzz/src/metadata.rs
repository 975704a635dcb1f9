//! What a depot sends as metadata, through everything that a gateway does with it.
//!
//! Input: a byte that says which role it is for (modulo 6: root, targets, rollout, snapshot, timestamp, and the rollout's
//! state), and whether the bytes after it come as they are (bit 7 off) or are what whoever has that role's keys signs (bit 7
//! on; of targets with the publisher's own delegation, if bit 6 is on too).
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use limpet_depot::clock::Clock;
use limpet_depot::publish::forge::Forge;
use limpet_depot::publish::{Home, KeyRing, PublishError, Role, Set, init};
use limpet_depot::remote::Remote;
use limpet_depot::trust::{Trust, Trusted, Update};
use limpet_wire::depot::Name;

/// A publisher's first set, and a gateway that knows its root.
struct World {
    folder: tempfile::TempDir,
    forge: Forge,
    /// What is trusted where nobody changed anything.
    good: Trusted,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let none = |path: &Path| Err(PublishError::Refused(format!("{}: no passphrase", path.display())));
        let ring = KeyRing::new(&folder.path().join("keys"), None, Box::new(none));
        init(&ring, &Default::default(), None, None, now()).expect("a first set can be signed");
        let set = Set::load(&Home::open(ring.folder()).expect("it is there")).expect("it is whole");
        let forge = Forge::of(&set, &ring).expect("its keys are there");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("tokio starts");
        let root = folder.path().join("keys/root.json");
        let mut trust = Trust::open(&folder.path().join("good"), &root, now()).expect("the root is good");
        let updated = runtime.block_on(trust.update(Arc::new(forge.depot()), clock));
        assert_eq!(updated.expect("the first set is good"), Update::New);
        let good = trust.trusted().expect("it is trusted").clone();
        Self { folder, forge, good, runtime }
    }

    /// A gateway that has never seen a depot.
    fn open(&self) -> Trust {
        let state = self.state();
        let _ = std::fs::remove_dir_all(&state);
        Trust::open(&state, &self.folder.path().join("keys/root.json"), now()).expect("the root is good")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("gateway")
    }
}

fn now() -> Timestamp {
    "2026-12-01T00:00:00Z".parse().expect("a time")
}

fn clock() -> Clock {
    Clock { now: now(), right: true }
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::new)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let world = world();
    let role = Role::ALL.get(usize::from(kind & 0x3f) % 6).copied();
    let signed = kind & 0x80 != 0;
    let mut forge = world.forge.clone();
    let depot = match (role, signed) {
        (None, _) => {
            forge.state = bytes.to_vec().into();
            forge.depot()
        }
        (Some(role), false) => {
            let mut depot = forge.depot();
            let name = depot.name_of(role).expect("the first set has all");
            depot.objects.insert(name, bytes.to_vec().into());
            depot
        }
        (Some(role), true) => {
            let Ok(value) = serde_json::from_slice(bytes) else { return };
            if role == Role::Root {
                let keys = forge.signers[&Role::Root].clone();
                forge.root(|root| *root = value, &keys).depot()
            } else {
                let delegations = forge.signed[&Role::Targets]["delegations"].clone();
                let mut forge = forge.edit(role, |signed| *signed = value);
                if kind & 0x40 != 0 && role == Role::Targets && forge.signed[&role].is_object() {
                    forge = forge.edit(role, |signed| signed["delegations"] = delegations);
                }
                forge.depot()
            }
        }
    };
    let mut trust = world.open();
    let depot: Arc<dyn Remote> = Arc::new(depot);
    match world.runtime.block_on(trust.update(depot, clock)) {
        Err(error) => {
            assert!(trust.trusted().is_none(), "what is refused is not trusted");
            assert!(error.to_string().contains("what runs goes on"), "{error}");
        }
        Ok(_) => {
            let trusted = trust.trusted().expect("it was taken over");
            if role.is_some() && !signed {
                assert_eq!(*trusted, world.good, "nobody without keys changes anything");
            }
            for (name, target) in &trusted.targets {
                assert!(Name::target(target.sha256, name).is_some(), "{name:?} cannot stand in a path");
            }
            let again = Trust::open(&world.state(), &world.folder.path().join("keys/root.json"), now());
            let again = again.expect("the root is good");
            assert!(again.trusted() == Some(trusted) && again.warnings().is_empty(), "{:?}", again.warnings());
        }
    }
});
