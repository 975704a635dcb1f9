use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp as Moment};
use limpet_wire::depot::Name;
use tough::async_trait;

use super::config::Addressee;
use super::*;
use crate::Package;
use crate::chunk::tests::{noise, package};
use crate::remote::{Folder, Remote, Shelf, object};

const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) fn now() -> Moment {
    "2026-12-01T00:00:00Z".parse().unwrap()
}

fn no_passphrase(path: &Path) -> Result<Secret, PublishError> {
    Err(PublishError::Key { path: path.to_owned(), reason: "no passphrase is known".to_owned() })
}

fn with_passphrase(text: &'static str) -> keys::Ask {
    Box::new(move |_| Ok(Secret::new(text.to_owned())))
}

/// Keys and a depot in a folder, of which the keys of root and targets lie elsewhere.
pub(crate) struct Place {
    pub folder: tempfile::TempDir,
    pub shelf: Folder,
    ring: KeyRing,
}

impl Place {
    pub fn new() -> Self {
        Self::with(&BTreeMap::new())
    }

    pub fn with(roles: &BTreeMap<Role, RoleKeys>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("depot")).unwrap();
        let shelf = Folder::new(&folder.path().join("depot"));
        let (online, offline) = (folder.path().join("keys"), folder.path().join("away"));
        let ring = KeyRing::new(&online, Some(&offline), Box::new(no_passphrase));
        assert!(init(&ring, roles, None, None, now()).unwrap());
        Self { folder, shelf, ring }
    }

    pub fn open<'a>(&'a self, shelf: &'a dyn Shelf, at: Moment) -> Publisher<'a> {
        Publisher::open(shelf, &self.ring, at, PATIENCE, &()).unwrap()
    }

    pub fn publisher(&self) -> Publisher<'_> {
        self.open(&self.shelf, now())
    }

    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// What the publisher has signed.
    pub fn set(&self) -> Set {
        Set::load(&Home::open(self.ring.folder()).unwrap()).unwrap()
    }

    fn online_only(&self) -> KeyRing {
        KeyRing::new(self.ring.folder(), None, Box::new(no_passphrase))
    }

    /// What the client library says of the depot, starting with the first root.
    async fn loads(&self) {
        let files = tempfile::tempdir().unwrap();
        let set = self.set();
        let put = |name: String, bytes: &[u8]| std::fs::write(files.path().join(name), bytes).unwrap();
        let get = |name: Name| async move { object(&self.shelf, &name, 1 << 20).await.unwrap() };
        let roots: Vec<serde_json::Value> = serde_json::from_slice(&get(Name::Roots).await).unwrap();
        for (index, root) in roots.iter().enumerate() {
            put(format!("{}.root.json", index + 1), &serde_json::to_vec(root).unwrap());
        }
        put("timestamp.json".to_owned(), &get(Name::Timestamp).await);
        for role in [Role::Snapshot, Role::Targets, Role::Rollout] {
            let (version, name) = (set.version(role), role.name().to_owned());
            let bytes = get(Name::Metadata { version, role: name.clone() }).await;
            put(format!("{version}.{name}.json"), &bytes);
        }
        let url = url::Url::from_directory_path(files.path()).unwrap();
        let first = serde_json::to_vec(&roots[0]).unwrap();
        let repository = tough::RepositoryLoader::new(&first, url.clone(), url)
            .transport(tough::FilesystemTransport)
            .expiration_enforcement(tough::ExpirationEnforcement::Unsafe)
            .load()
            .await
            .unwrap();
        assert_eq!(repository.targets().signed.version.get(), set.version(Role::Targets));
    }

    async fn is_whole(&self) {
        let problems = self.publisher().verify().await.unwrap().problems;
        assert!(problems.is_empty(), "{problems:?}");
        self.loads().await;
    }
}

pub(crate) fn model(version: &str, seed: u64) -> Package {
    package(version, &noise(seed, 120_000))
}

#[test]
fn every_command_leaves_a_depot_that_the_client_library_loads() {
    let place = Place::new();
    run(async {
        place.publisher().settle().await.unwrap();
        place.is_whole().await;
        let done = place.publisher().publish(&[model("1.0.0", 1)], &ReleaseChange::default()).await.unwrap();
        assert!(done.chunks_sent > 3 && done.chunks_known == 0 && done.bytes_sent == done.bytes_all, "{done:?}");
        place.is_whole().await;
        let listed = place.publisher().list();
        assert_eq!((listed[0].model.as_str(), listed[0].release.as_ref().unwrap().percent), ("m", 100.0));

        let again = place.publisher().publish(&[model("1.0.0", 1)], &ReleaseChange::default()).await.unwrap();
        assert_eq!((again.chunks_sent, again.bytes_sent, again.bytes_beside), (0, 0, 0));
        let other = place.publisher().publish(&[model("1.0.0", 2)], &ReleaseChange::default()).await.unwrap_err();
        assert!(other.to_string().contains("published with another content"), "{other}");

        let five = ReleaseChange { percent: Some(5.0), ..ReleaseChange::default() };
        assert!(place.publisher().rollout("m", "1.0.0", &five).await.unwrap());
        assert!(!place.publisher().rollout("m", "1.0.0", &five).await.unwrap());
        let unknown = place.publisher().rollout("m", "3.0.0", &five).await.unwrap_err().to_string();
        assert!(unknown.contains("there is: m 1.0.0"), "{unknown}");
        place.is_whole().await;
        let line = Addressee::label("line=3").unwrap();
        assert!(place.publisher().configure(&line, Some("[budget]\n")).await.unwrap());
        assert!(place.publisher().configure(&line, None).await.unwrap());
        assert_eq!(place.publisher().refresh(false).await.unwrap(), [Role::Timestamp]);
        assert_eq!(place.publisher().refresh(true).await.unwrap().len(), 4);
        let all: BTreeSet<Role> = Role::ALL.into_iter().collect();
        let retired = place.publisher().rotate(&all, &BTreeMap::new(), None).await.unwrap();
        assert_eq!(retired.len(), 5);
        for name in retired {
            for folder in ["keys", "away"] {
                let _ = std::fs::remove_file(place.folder.path().join(folder).join(&name));
            }
        }
        assert!(place.publisher().withdraw("m", "1.0.0", true).await.unwrap());
        place.is_whole().await;

        // Nothing goes before its time, and all of it after.
        let hour = SignedDuration::from_hours(1);
        let early = place.publisher().collect(hour).await.unwrap();
        assert!(early.objects == 0 && early.waiting > 10, "{early:?}");
        let later = now() + SignedDuration::from_hours(2);
        let late = place.open(&place.shelf, later).collect(hour).await.unwrap();
        assert_eq!((late.objects, late.waiting), (early.waiting, 0));
        assert_eq!(std::fs::read_dir(place.folder.path().join("depot/chunk")).unwrap().count(), 0);
        place.is_whole().await;
    });
}

#[test]
fn what_is_gone_is_found_and_put_back_from_the_copy_and_from_the_packages() {
    let place = Place::new();
    run(async {
        let packages = [model("1.0.0", 1)];
        place.publisher().publish(&packages, &ReleaseChange::default()).await.unwrap();
        let chunks: Vec<Name> = place.publisher().set().chunks().into_keys().map(Name::Chunk).collect();
        place.shelf.remove(&chunks[0]).await.unwrap();
        place.shelf.put(&chunks[1], Bytes::from_static(b"other")).await.unwrap();
        place.shelf.remove(&Name::Roots).await.unwrap();
        place.shelf.remove(&Name::Timestamp).await.unwrap();
        let problems = place.publisher().verify().await.unwrap().problems;
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert_eq!(problems.iter().filter(|problem| problem.of.as_deref() == Some("m 1.0.0")).count(), 2);
        let silent = place.publisher().refresh(false).await.unwrap_err().to_string();
        assert!(silent.contains("depot repair"), "{silent}");
        // Without the package its chunks stay away, and so does the timestamp that would lead to them.
        assert_eq!(place.publisher().repair(&[]).await.unwrap().left.len(), 3);
        assert!(place.publisher().repair(&packages).await.unwrap().left.is_empty());
        place.is_whole().await;
    });
}

#[test]
fn thresholds_hold_and_two_of_three_keys_sign() {
    let place = Place::with(&BTreeMap::from([(Role::Targets, RoleKeys { count: 3, threshold: 2 })]));
    run(async {
        let away = || std::fs::read_dir(place.folder.path().join("away")).unwrap().map(|entry| entry.unwrap().path());
        let lose = || {
            let key = away().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("targets-")).unwrap();
            std::fs::remove_file(key).unwrap();
        };
        lose();
        place.publisher().publish(&[model("1.0.0", 1)], &ReleaseChange::default()).await.unwrap();
        place.is_whole().await;
        lose();
        let error = place.publisher().publish(&[model("1.1.0", 2)], &ReleaseChange::default()).await.unwrap_err();
        assert!(matches!(error, PublishError::KeysMissing { role: "targets", found: 1, threshold: 2, .. }), "{error}");
        place.is_whole().await;
    });
    let ring = KeyRing::new(&place.folder.path().join("other"), None, Box::new(no_passphrase));
    let roles = BTreeMap::from([(Role::Root, RoleKeys { count: 1, threshold: 2 })]);
    assert!(matches!(init(&ring, &roles, None, None, now()), Err(PublishError::Refused(_))));
}

#[test]
fn online_commands_need_no_offline_keys() {
    let place = Place::new();
    run(async {
        place.publisher().publish(&[model("1.0.0", 1)], &ReleaseChange::default()).await.unwrap();
        let ring = place.online_only();
        let open = || Publisher::open(&place.shelf, &ring, now(), PATIENCE, &()).unwrap();
        let half = ReleaseChange { percent: Some(50.0), ..ReleaseChange::default() };
        open().rollout("m", "1.0.0", &half).await.unwrap();
        open().refresh(false).await.unwrap();
        open().withdraw("m", "1.0.0", false).await.unwrap();
        open().collect(SignedDuration::ZERO).await.unwrap();
        let error = open().publish(&[model("1.1.0", 2)], &ReleaseChange::default()).await.unwrap_err().to_string();
        assert!(error.contains("--offline-keys"), "{error}");
        assert!(open().refresh(true).await.is_err());
        place.is_whole().await;
    });
}

#[test]
fn keys_are_private_encrypted_and_never_shown() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::new("correct horse".to_owned());
    let key = SigningKey::generate().unwrap();
    let path = key.write(folder.path(), "root", Some(&secret)).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    assert_eq!(SigningKey::read(&path, &with_passphrase("correct horse")).unwrap().id(), key.id());
    let error = SigningKey::read(&path, &with_passphrase("wrong")).unwrap_err().to_string();
    assert!(error.contains("does not open with this passphrase") && !error.contains("wrong"), "{error}");
    assert!(!format!("{key:?} {secret:?}").contains("horse"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = SigningKey::read(&path, &with_passphrase("correct horse")).unwrap_err().to_string();
    assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
    let plain = SigningKey::generate().unwrap().write(folder.path(), "root", None).unwrap();
    SigningKey::read(&plain, &no_passphrase).unwrap();
}

/// A shelf that fails from its n-th change on, before or after the change was made.
struct Failing<'a> {
    shelf: &'a Folder,
    left: AtomicUsize,
    after: bool,
}

impl Failing<'_> {
    async fn change(&self, name: &Name, message: Option<Bytes>) -> Result<(), RemoteError> {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let failed = left.is_err();
        if !failed || self.after && self.left.load(Ordering::Relaxed) == 0 {
            match message {
                Some(message) => self.shelf.put(name, message).await?,
                None => self.shelf.remove(name).await?,
            }
        }
        if !failed {
            return Ok(());
        }
        Err(RemoteError::Failed { place: "here".into(), name: name.clone(), reason: "the cable was pulled".into() })
    }
}

#[async_trait]
impl Remote for Failing<'_> {
    async fn message(&self, name: &Name, most: usize) -> Result<Bytes, RemoteError> {
        self.shelf.message(name, most).await
    }

    fn place(&self) -> &str {
        self.shelf.place()
    }
}

#[async_trait]
impl Shelf for Failing<'_> {
    async fn put(&self, name: &Name, message: Bytes) -> Result<(), RemoteError> {
        self.change(name, Some(message)).await
    }

    async fn remove(&self, name: &Name) -> Result<(), RemoteError> {
        self.change(name, None).await
    }
}

#[test]
fn a_command_that_ends_anywhere_is_completed_by_the_same_command() {
    for after in [false, true] {
        let place = Place::new();
        run(async {
            let mut stops = 0;
            for (version, seed) in [("1.0.0", 1), ("1.1.0", 1), ("2.0.0", 2)] {
                let package = [model(version, seed)];
                for operations in 0.. {
                    let shelf = Failing { shelf: &place.shelf, left: AtomicUsize::new(operations), after };
                    let done = place.open(&shelf, now()).publish(&package, &ReleaseChange::default()).await;
                    if done.is_ok() {
                        break;
                    }
                    stops += 1;
                }
                place.is_whole().await;
            }
            assert!(stops > 10, "{stops}");
            let everything: BTreeSet<Role> = Role::ALL.into_iter().collect();
            for operations in 0..6 {
                let shelf = Failing { shelf: &place.shelf, left: AtomicUsize::new(operations), after };
                let _ = place.open(&shelf, now()).rotate(&everything, &BTreeMap::new(), None).await;
                place.publisher().settle().await.unwrap();
                place.is_whole().await;
                let shelf = Failing { shelf: &place.shelf, left: AtomicUsize::new(operations), after };
                let _ = place.open(&shelf, now()).collect(SignedDuration::ZERO).await;
                place.is_whole().await;
            }
        });
    }
}

#[test]
fn another_publisher_is_noticed_and_can_be_followed() {
    let place = Place::new();
    run(async {
        place.publisher().settle().await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        let keys = place.folder.path().join("keys");
        assert!(std::process::Command::new("cp").arg("-r").arg(keys).arg(copy.path()).status().unwrap().success());
        place.publisher().publish(&[model("1.0.0", 1)], &ReleaseChange::default()).await.unwrap();
        let away = place.folder.path().join("away");
        let ring = KeyRing::new(&copy.path().join("keys"), Some(&away), Box::new(no_passphrase));
        let mut other = Publisher::open(&place.shelf, &ring, now(), PATIENCE, &()).unwrap();
        let error = other.refresh(false).await.unwrap_err().to_string();
        assert!(error.contains("depot adopt"), "{error}");
        assert!(other.adopt().await.unwrap());
        other.refresh(false).await.unwrap();
        // A stranger's keys change nothing.
        let ring = KeyRing::new(&copy.path().join("strange"), None, Box::new(no_passphrase));
        init(&ring, &BTreeMap::new(), None, None, now()).unwrap();
        let mut stranger = Publisher::open(&place.shelf, &ring, now(), PATIENCE, &()).unwrap();
        assert!(matches!(stranger.settle().await, Err(PublishError::Conflict { .. })));
    });
}
