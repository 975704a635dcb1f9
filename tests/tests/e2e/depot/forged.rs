//! What is signed with the right keys and must not be taken all the same: a publisher whose machine was broken into.

use limpet_tests::forge::{Forge, cut, sha256, tar_of};
use limpet_tests::{Message, Objects, Package, program};
use limpet_wire::depot::{ChunkRef, Hex, Index};
use serde_json::json;
use tar::EntryType;

use super::damage::{AT_ONCE, Carried};
use super::event_of;
use crate::swap::Flow;
use crate::{assert_says, uplink};

/// Entries that no archive of a package may have, and what is said of them.
const ENTRIES: [(&str, EntryType, &str); 9] = [
    ("../escape.onnx", EntryType::Regular, "../escape.onnx"),
    ("/tmp/escape.onnx", EntryType::Regular, "/tmp/escape.onnx"),
    ("sub/escape.onnx", EntryType::Regular, "sub/escape.onnx"),
    ("..", EntryType::Regular, ".."),
    ("link.onnx", EntryType::Symlink, "plain files only"),
    ("hard.onnx", EntryType::Link, "plain files only"),
    ("device.onnx", EntryType::Char, "plain files only"),
    ("pipe.onnx", EntryType::Fifo, "plain files only"),
    ("folder.onnx", EntryType::Directory, "plain files only"),
];

/// The next version that nobody has used.
struct Versions(u32);

impl Versions {
    fn next(&mut self) -> String {
        self.0 += 1;
        format!("1.{}.0", self.0)
    }
}

/// Sends a forged set, and waits until an event of a kind says all of `words`.
#[track_caller]
fn refused(carried: &mut Carried, forge: &mut Forge, kind: &str, words: &[&str]) {
    forge.sign().send(&mut carried.bench.client);
    let topic = uplink("event");
    let about = |m: &Message| {
        let told = (m.topic == topic).then(|| m.json()).filter(|told| told["kind"] == kind);
        told.and_then(|told| Some(told["message"].as_str()?.contains(words[0]))).unwrap_or(false)
    };
    let told = carried.bench.client.wait_for(words[0], about).json();
    assert_says(&told["message"], words);
    assert_says(&told["message"], &["what runs goes on"]);
}

/// A publication of an index that the gateway must not take, and the words that refuse it.
#[track_caller]
fn refused_index(carried: &mut Carried, forge: &mut Forge, version: &str, index: &[u8], chunks: &Objects, why: &str) {
    forge.publish("loudness", version, index, chunks);
    refused(carried, forge, "model-rejected", &[version, why]);
}

#[test]
fn an_index_that_leads_out_lies_or_claims_too_much_is_rejected_and_leaves_nothing() {
    let mut carried = Carried::start(AT_ONCE);
    let mut flow = Flow::start(&mut carried.bench, &[("1.0.0", 0.0), ("9.0.0", 0.0)]);
    let mut forge = Forge::of(&carried.depot);
    let mut versions = Versions(0);
    let tar = tar_of(&[("model.toml", EntryType::Regular, b"format = 1")]);
    let chunk = |raw_len, stored_len| ChunkRef { raw: [1; 32], raw_len, stored: [2; 32], stored_len };
    let index = |version: &str, chunks: Vec<ChunkRef>| {
        Index { model: "loudness".into(), version: version.into(), package: [3; 32], chunks }.to_bytes()
    };
    let none = Objects::default();

    // Names of somewhere else, inside an index whose own name is a good one.
    for (model, found) in [("../../escape", "../../escape"), ("/tmp/escape", "/tmp/escape"), ("other", "other")] {
        let version = versions.next();
        let (lying, chunks) = cut(model, &version, &tar);
        refused_index(&mut carried, &mut forge, &version, &lying.to_bytes(), &chunks, found);
    }
    let version = versions.next();
    let (lying, chunks) = cut("loudness", "../../escape", &tar);
    refused_index(&mut carried, &mut forge, &version, &lying.to_bytes(), &chunks, "../../escape");
    // More than there may be, of everything.
    for (chunks, why) in [
        (Vec::new(), "names 0 chunks"),
        (vec![chunk(65_000, 100); 5000], "its chunks make up 325000000 bytes"),
        (vec![chunk(1 << 20, 100)], "claims to hold 1048576 bytes"),
        (vec![chunk(100, 1 << 20)], "claims to have 1048576 bytes"),
        (vec![chunk(0, 100)], "claims to hold 0 bytes"),
        (vec![chunk(100, 100), chunk(101, 100)], "twice, with different content"),
    ] {
        let version = versions.next();
        let index = index(&version, chunks);
        refused_index(&mut carried, &mut forge, &version, &index, &none, why);
    }
    // No index, one of a newer form, and one with something behind it.
    let version = versions.next();
    let good = index(&version, vec![chunk(100, 100)]);
    let newer = [&[good[0], 200][..], &good[2..]].concat();
    refused_index(&mut carried, &mut forge, &version, &newer, &none, "200");
    let version = versions.next();
    let longer = [&index(&version, vec![chunk(100, 100)])[..], b"more"].concat();
    refused_index(&mut carried, &mut forge, &version, &longer, &none, "4 bytes follow");
    let version = versions.next();
    refused_index(&mut carried, &mut forge, &version, b"{}", &none, "type");

    // Names in the signed metadata itself: nothing of such a set is trusted.
    for (name, custom, why) in [
        (
            "../../escape.index",
            json!({"bytes": 1}),
            "\"../../escape.index\": the name cannot stand in a topic and in a path",
        ),
        ("a+b.index", json!({"bytes": 1}), "\"a+b.index\": the name cannot stand in a topic and in a path"),
        ("x.index", json!({"model": "../escape", "version": "1.0.0"}), "../escape"),
        ("x.index", json!({"model": "loudness", "version": "1.0.0/../.."}), "1.0.0/../.."),
    ] {
        let mut forged = forge.clone();
        forged.list(name, b"x", &custom);
        refused(&mut carried, &mut forged, "depot-refused", &[why, "target"]);
        forge.signed = forged.signed;
        forge.role("targets")["targets"].as_object_mut().expect("targets are a map").remove(name);
    }

    flow.until(&mut carried.bench, "1.0.0", 5);
    ends_with_a_good_version(&mut carried, &mut forge);
    flow.until(&mut carried.bench, "9.0.0", 5);
}

#[test]
fn a_package_that_is_none_or_leads_out_or_swells_is_rejected_by_publisher_and_gateway_and_leaves_nothing() {
    let mut carried = Carried::start(AT_ONCE);
    let mut flow = Flow::start(&mut carried.bench, &[("1.0.0", 0.0), ("9.0.0", 0.0)]);
    let mut forge = Forge::of(&carried.depot);
    let mut versions = Versions(0);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let before = Objects::of(&carried.depot.content());
    for (name, kind, why) in ENTRIES {
        let bytes: &[u8] = if kind == EntryType::Regular { b"graph" } else { b"" };
        let tar = tar_of(&[(name, kind, bytes), ("model.toml", EntryType::Regular, b"format = 1")]);
        // The publisher's own command refuses it before anything is sent…
        let file = folder.path().join("evil.limpet");
        std::fs::write(&file, zstd::encode_all(tar.as_slice(), 3).unwrap()).unwrap();
        let outcome = carried.depot.run(&["publish", program::text_of(&file), "--channel", "stable"]);
        assert_ne!(outcome.code, Some(0));
        outcome.expect_complaint(&["evil.limpet", why]);
        assert_eq!(Objects::of(&carried.depot.content()), before, "nothing of it was sent");
        // …and where somebody signs it by other means, the gateway does.
        let version = versions.next();
        let (index, chunks) = cut("loudness", &version, &tar);
        refused_index(&mut carried, &mut forge, &version, &index.to_bytes(), &chunks, why);
    }

    // A chunk that swells beyond what its index says, and one that is no zstd.
    let zeros = vec![0; 64 << 10];
    for (stored, why) in [
        (zstd::bulk::compress(&zeros, 19).unwrap(), "does not decompress to 100 bytes"),
        (b"no frame at all".to_vec(), "does not decompress to 100 bytes"),
        (zstd::bulk::compress(&[7; 100], 3).unwrap(), "decompresses to other bytes"),
    ] {
        let version = versions.next();
        let digest = sha256(&stored);
        let lying =
            ChunkRef { raw: sha256(&zeros[..100]), raw_len: 100, stored: digest, stored_len: stored.len() as u32 };
        let index = Index { model: "loudness".into(), version: version.clone(), package: [3; 32], chunks: vec![lying] };
        let mut chunks = Objects::default();
        chunks.put(&format!("chunk/{}", Hex(&digest)), stored);
        refused_index(&mut carried, &mut forge, &version, &index.to_bytes(), &chunks, why);
    }
    // Every chunk is right, and together they are nothing, or something else than the index says.
    let version = versions.next();
    let (index, chunks) = cut("loudness", &version, &[0x55; 5000]);
    refused_index(&mut carried, &mut forge, &version, &index.to_bytes(), &chunks, "no package");
    let genuine = genuine_tar(&carried);
    let version = versions.next();
    let (mut index, chunks) = cut("loudness", &version, &genuine);
    refused_index(&mut carried, &mut forge, &version, &index.to_bytes(), &chunks, "1.0.0");
    index.version = versions.next();
    index.package = [9; 32];
    let version = index.version.clone();
    refused_index(&mut carried, &mut forge, &version, &index.to_bytes(), &chunks, "make up the package");

    flow.until(&mut carried.bench, "1.0.0", 5);
    ends_with_a_good_version(&mut carried, &mut forge);
    flow.until(&mut carried.bench, "9.0.0", 5);
}

/// The tar of the package that the depot has, put together from its chunks.
fn genuine_tar(carried: &Carried) -> Vec<u8> {
    let objects = Objects::of(&carried.depot.content());
    let index = Index::from_bytes(objects.get(objects.names(".index")[0])).expect("it is one");
    let raw = |chunk: &ChunkRef| {
        let stored = objects.get(&format!("chunk/{}", Hex(&chunk.stored))).to_vec();
        zstd::bulk::decompress(&stored, chunk.raw_len as usize).expect("it was compressed")
    };
    index.chunks.iter().flat_map(raw).collect()
}

/// After all that a good version is taken, no file lies where one was meant to be put, and the store is whole.
#[track_caller]
fn ends_with_a_good_version(carried: &mut Carried, forge: &mut Forge) {
    carried.depot.publish(&Package::loudness_of("9.0.0", 0.0));
    let waiting = carried.carrier.waiting();
    let mut good = Forge::of(&carried.depot);
    for role in ["targets", "rollout", "snapshot", "timestamp"] {
        good.role(role)["version"] = forge.role(role)["version"].clone();
    }
    waiting.in_order().into_iter().filter(|(name, _)| !name.starts_with("meta/")).for_each(|(name, bytes)| {
        limpet_tests::objects::send(&mut carried.bench.client, name, bytes);
    });
    good.sign().send(&mut carried.bench.client);
    event_of(&mut carried.bench.client, "model-activated", "9.0.0");
    let home = carried.bench.agent.home();
    let mut folders = vec![home.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the agent's folder can be read").map_while(Result::ok) {
            let name = entry.file_name().into_string().expect("the agent's files have plain names");
            assert!(!name.contains("escape"), "{}", entry.path().display());
            let kind = entry.file_type().expect("it can be asked");
            assert!(!kind.is_symlink(), "{}", entry.path().display());
            if kind.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    assert!(!std::path::Path::new("/tmp/escape.onnx").exists() && !std::path::Path::new("/tmp/escape").exists());
    // What belonged to versions that were rejected goes when the good one has settled.
    let config = home.path().join("limpet.toml");
    let check = || program::run("limpet", &["store", "check", "--config", program::text_of(&config)]);
    carried.bench.agent.wait_for_status("a store that is whole", |_| (check().code == Some(0)).then_some(()));
}
