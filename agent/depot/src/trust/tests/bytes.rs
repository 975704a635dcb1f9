//! Bytes that are too many, damaged, or cut off.

use limpet_wire::depot::{MESSAGE_MAX, Parts};

use super::*;
use crate::remote::RemoteError;

/// Every role's largest object.
const MOST: [(Role, u64); 5] = [
    (Role::Root, ROOTS_MAX),
    (Role::Timestamp, TIMESTAMP_MAX),
    (Role::Snapshot, SNAPSHOT_MAX),
    (Role::Targets, TARGETS_MAX),
    (Role::Rollout, ROLLOUT_MAX),
];

/// A list of parts that make up so many bytes.
fn parts(bytes: u64) -> Parts {
    let piece = MESSAGE_MAX as u64;
    let whole = std::iter::repeat_n(([7; 32], piece as u32), (bytes / piece) as usize);
    let rest = (!bytes.is_multiple_of(piece)).then_some(([8; 32], (bytes % piece) as u32));
    Parts { parts: whole.chain(rest).collect() }
}

#[test]
fn endless_data_attack_what_says_to_be_too_large_is_refused_before_any_of_it_is_fetched() {
    for known in [true, false] {
        let world = World::new();
        if known {
            world.update().unwrap();
        }
        for (role, most) in MOST {
            let mut depot = world.forge().onward().depot();
            let name = depot.name_of(role).unwrap();
            depot.objects.insert(name.clone(), parts(most + 1).to_bytes().into());
            let depot = Arc::new(depot);
            let remote: Arc<dyn Remote> = Arc::<Depot>::clone(&depot);
            let error = world.update_with(remote, Clock { now: now(), right: true }).unwrap_err();
            let TrustError::Remote(RemoteError::TooLarge { name: found, found: bytes, most: bound, .. }) = &error
            else {
                panic!("{role:?}: {error}")
            };
            assert_eq!((found, *bytes, *bound), (&name, most + 1, most));
            let asked = depot.asked();
            assert!(asked.iter().all(|name| !matches!(name, Name::Chunk(_))), "{role:?}: {asked:?}");
        }
    }
}

#[test]
fn endless_data_attack_a_message_above_the_size_of_messages_is_refused() {
    for (role, _) in MOST {
        let world = World::new();
        let mut depot = world.forge().depot();
        let name = depot.name_of(role).unwrap();
        let mut content = depot.objects[&name].to_vec();
        content.resize(MESSAGE_MAX + 1, b' ');
        depot.objects.insert(name, content.into());
        let error = world.take(depot).unwrap_err();
        assert!(matches!(error, TrustError::Remote(RemoteError::TooLarge { .. })), "{role:?}: {error}");
    }
}

#[test]
fn endless_data_attack_bytes_beyond_the_length_that_is_listed_are_refused() {
    for role in [Role::Snapshot, Role::Targets, Role::Rollout] {
        let world = World::new();
        let mut depot = world.forge().depot();
        let name = depot.name_of(role).unwrap();
        let mut content = depot.objects[&name].to_vec();
        content.push(b' ');
        depot.objects.insert(name, content.into());
        let error = world.take(depot).unwrap_err();
        assert!(matches!(error, TrustError::Refused { .. }), "{role:?}: {error}");
    }
    // The list of who gets what is a target: what follows it is not even read.
    let world = World::new();
    let mut depot = world.forge().depot();
    let state = depot.objects.keys().find(|name| matches!(name, Name::Target { .. })).unwrap().clone();
    let mut content = depot.objects[&state].to_vec();
    content.push(b' ');
    depot.objects.insert(state.clone(), content.into());
    let error = world.take(depot).unwrap_err();
    assert!(matches!(&error, TrustError::Remote(RemoteError::TooLarge { name, .. }) if *name == state), "{error}");
}

#[test]
fn endless_data_attack_a_rollout_state_that_is_listed_as_too_large_is_refused() {
    let world = World::new();
    let mut forge = world.forge();
    forge.state = [&forge.state[..], &vec![b' '; STATE_MAX as usize + 1 - forge.state.len()]].concat().into();
    let mut depot = forge.depot();
    let name = depot.objects.keys().find(|name| matches!(name, Name::Target { .. })).unwrap().clone();
    depot.objects.insert(name.clone(), parts(STATE_MAX + 1).to_bytes().into());
    let error = world.take(depot).unwrap_err();
    let bounded = matches!(&error, TrustError::Remote(RemoteError::TooLarge { most: STATE_MAX, .. }));
    assert!(bounded, "{error}");
}

#[test]
fn endless_data_attack_of_endless_roots_as_many_as_fit_are_followed_and_no_more() {
    let world = World::new();
    let forge = world.forge();
    let root_keys = forge.signers[&Role::Root].clone();
    let mut many = forge.clone();
    let mut bytes = 2;
    loop {
        let next = many.clone().root(|_| {}, &root_keys);
        bytes = bytes.max(2) + next.roots.last().unwrap().to_string().len() as u64 + 1;
        if bytes > ROOTS_MAX / 8 {
            break;
        }
        many = next;
    }
    // An eighth of what fits is many enough to see that each is followed, in the order in which they came.
    let last = many.roots.len() as u64;
    assert!(last > 30, "{last}");
    let mut depot = many.depot();
    let chain = depot.objects[&Name::Roots].clone();
    let pieces: Vec<Bytes> =
        (0..chain.len()).step_by(MESSAGE_MAX).map(|at| chain.slice(at..chain.len().min(at + MESSAGE_MAX))).collect();
    let list = Parts { parts: pieces.iter().map(|p| (Digest::of(p).0, p.len() as u32)).collect() };
    depot.objects.insert(Name::Roots, list.to_bytes().into());
    depot.objects.extend(pieces.into_iter().map(|piece| (Name::Chunk(Digest::of(&piece).0), piece)));
    assert_eq!(world.take(depot).unwrap(), Update::New);
    assert_eq!(world.open().trusted().unwrap().versions.root, last);
}

/// Whatever is done to one message, it is refused, or what is trusted is what was to be trusted, to the last byte that
/// counts.
fn refused_or_the_same(damages: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    let world = World::new();
    let root_keys = world.forge().signers[&Role::Root].clone();
    let forge = world.forge().root(|_| {}, &root_keys);
    assert_eq!(world.take(forge.depot()).unwrap(), Update::New);
    let good = world.open().trusted().cloned().unwrap();
    for name in forge.depot().objects.keys() {
        let (mut refused, mut same) = (0, 0);
        for damaged in damages(&forge.depot().objects[name]) {
            world.forget();
            let mut depot = forge.depot();
            depot.objects.insert(name.clone(), damaged.clone().into());
            match world.take(depot) {
                Ok(_) => {
                    let trusted = world.open().trusted().cloned().unwrap();
                    let text = String::from_utf8_lossy(&damaged);
                    assert_eq!(trusted, good, "{name}: {text}");
                    same += 1;
                }
                Err(error) => {
                    assert!(!matches!(error, TrustError::Io { .. } | TrustError::Expired { .. }), "{name}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 10 && refused > same, "{name}: {refused} were refused, {same} changed nothing");
    }
}

#[test]
fn a_flipped_byte_in_any_message_is_refused_or_changes_nothing() {
    refused_or_the_same(|content| {
        let flips = (0..content.len()).step_by(11).flat_map(|at| {
            // One bit, and another letter or digit of the same kind.
            [1 << (at % 8), 1].map(|bits| {
                let mut flipped = content.to_vec();
                flipped[at] ^= bits;
                flipped
            })
        });
        flips.collect()
    });
}

#[test]
fn a_message_that_is_cut_off_anywhere_is_refused() {
    refused_or_the_same(|content| (0..content.len()).step_by(7).map(|at| content[..at].to_vec()).collect());
}

#[test]
fn a_message_with_bytes_taken_out_put_in_or_repeated_is_refused_or_changes_nothing() {
    refused_or_the_same(|content| {
        let changes = (0..content.len()).step_by(29).flat_map(|at| {
            let (before, after) = content.split_at(at);
            [
                [before, &after[1..]].concat(),
                [before, b"0", after].concat(),
                [before, &after[..1], after].concat(),
                [before, b"\x00", after].concat(),
            ]
        });
        changes.collect()
    });
}
