use std::fs;

use proptest::prelude::*;

use super::*;
use crate::package::{CARD, GOLDEN};

/// A package that opens; nothing looks into its graph.
pub(crate) fn package(version: &str, graph: &[u8]) -> Package {
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "format = 1\n[model]\nname = \"m\"\nversion = \"{version}\"\ntask = \"regression\"\n[[variant]]\nfile = \
         \"a.onnx\"\n[[input]]\nkind = \"features\"\n"
    );
    let files = [("model.toml", manifest.as_bytes()), ("a.onnx", graph), (GOLDEN, b"vectors"), (CARD, b"# Card\n")];
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    Package::open(folder.path()).unwrap()
}

/// Bytes that do not compress, different for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn reference(raw: &[u8], stored: &[u8]) -> ChunkRef {
    ChunkRef {
        raw: Digest::of(raw).0,
        raw_len: raw.len() as u32,
        stored: Digest::of(stored).0,
        stored_len: stored.len() as u32,
    }
}

/// The digests that a publisher remembers of its indexes.
fn known(index: &Index) -> HashMap<Sha256, (Sha256, u32)> {
    index.chunks.iter().map(|chunk| (chunk.raw, (chunk.stored, chunk.stored_len))).collect()
}

fn moved(cuts: &[Cut]) -> usize {
    cuts.iter().map(|cut| cut.stored.len()).sum()
}

#[test]
fn chunks_in_order_are_the_canonical_tar() {
    let package = package("1.0.0", &noise(1, 300_000));
    let (index, cuts) = cut(&package, &HashMap::new()).unwrap();
    assert_eq!((index.model.as_str(), index.version.as_str(), index.package), ("m", "1.0.0", package.digest().0));
    let stored: HashMap<_, _> = cuts.iter().map(|cut| (cut.reference.stored, &cut.stored)).collect();
    let tar: Vec<u8> = index.chunks.iter().flat_map(|chunk| expand(chunk, stored[&chunk.stored]).unwrap()).collect();
    assert_eq!(Digest::of(&tar), package.digest());
    assert_eq!(index.raw_bytes(), tar.len() as u64);
}

#[test]
fn a_message_holds_every_chunk_even_if_it_does_not_compress() {
    // Zeros have no place to cut at, so their chunks are as long as they get; noise does not compress.
    for graph in [vec![0; 300_000], noise(2, 2_000_000)] {
        let (index, cuts) = cut(&package("1.0.0", &graph), &HashMap::new()).unwrap();
        assert!(cuts.iter().all(|cut| cut.stored.len() <= MESSAGE_MAX));
        let (last, others) = index.chunks.split_last().unwrap();
        assert!(last.raw_len as usize <= RAW_MAX);
        assert!(others.iter().all(|chunk| (RAW_MIN..=RAW_MAX).contains(&(chunk.raw_len as usize))));
    }
    let longest = noise(3, RAW_MAX);
    assert!(zstd::bulk::compress(&longest, ZSTD_LEVEL).unwrap().len() <= MESSAGE_MAX);
}

#[test]
fn what_occurs_twice_is_stored_once() {
    let (index, cuts) = cut(&package("1.0.0", &vec![0; 500_000]), &HashMap::new()).unwrap();
    assert!(cuts.len() < index.chunks.len(), "{} of {}", cuts.len(), index.chunks.len());
    assert_eq!(index.stored_bytes(), moved(&cuts) as u64);
}

#[test]
fn a_change_of_a_tenth_moves_a_third_at_most_and_no_change_moves_nothing() {
    let graph = noise(4, 350_000);
    let (index, cuts) = cut(&package("1.0.0", &graph), &HashMap::new()).unwrap();
    let whole = moved(&cuts);
    let known = known(&index);
    for place in 0..10 {
        let mut changed = graph.clone();
        changed[place * 35_000..][..35_000].copy_from_slice(&noise(100 + place as u64, 35_000));
        let (_, cuts) = cut(&package("1.0.1", &changed), &known).unwrap();
        let share = moved(&cuts) as f64 / whole as f64;
        println!("change of 10 % at {place}/10: {:.1} % of the stored bytes move", share * 100.0);
        assert!(share <= 0.35, "{share} at {place}");
    }
    let (again, cuts) = cut(&package("1.0.0", &graph), &known).unwrap();
    assert_eq!((again, moved(&cuts)), (index, 0));
}

#[test]
fn a_known_chunk_keeps_the_form_that_it_was_published_in() {
    // As another version of zstd might have stored it.
    let package = package("1.0.0", &[7; 100_000]);
    let (index, _) = cut(&package, &HashMap::new()).unwrap();
    let known = index.chunks.iter().map(|chunk| (chunk.raw, ([9; 32], 77))).collect();
    let (index, cuts) = cut(&package, &known).unwrap();
    assert!(index.chunks.iter().all(|chunk| (chunk.stored, chunk.stored_len) == ([9; 32], 77)));
    assert!(cuts.iter().all(|cut| cut.stored.is_empty()));
}

#[test]
fn what_is_not_the_chunk_that_the_index_names_is_refused() {
    let raw = b"some bytes of a tar, some bytes of a tar".as_slice();
    let stored = zstd::bulk::compress(raw, 3).unwrap();
    let good = reference(raw, &stored);
    assert_eq!(expand(&good, &stored).unwrap(), raw);

    let other = zstd::bulk::compress(b"some bytes of another tar, some bytes of", 3).unwrap();
    let swapped = ChunkRef { stored: Digest::of(&other).0, stored_len: other.len() as u32, ..good };
    for (what, reference, stored, expected) in [
        ("truncated", good, &stored[..stored.len() - 1], "bytes; expected"),
        ("followed by more", good, &[&stored[..], b"x"].concat(), "bytes; expected"),
        ("swapped with another", good, &[&stored[..stored.len() - 1], b"x"].concat(), "is damaged: its SHA-256 is"),
        ("swapped by the index too", swapped, &other, "decompresses to other bytes"),
        ("shorter than the index says", ChunkRef { raw_len: 41, ..good }, &stored, "decompresses to 40 bytes"),
        ("longer than the index says", ChunkRef { raw_len: 39, ..good }, &stored, "does not decompress to 39"),
        ("not compressed", reference(raw, raw), raw, "does not decompress"),
        ("of no bytes", ChunkRef { raw_len: 0, ..good }, &stored, "expected 1 to"),
        ("too large", ChunkRef { raw_len: RAW_MAX as u32 + 1, ..good }, &stored, "expected 1 to"),
        ("too large as stored", ChunkRef { stored_len: u32::MAX, ..good }, &stored, "expected 1 to 65536"),
    ] {
        let error = expand(&reference, stored).expect_err(what);
        assert!(error.contains(expected), "{what}: {error}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let raw = noise(5, 200);
    let stored = zstd::bulk::compress(&raw, 3).unwrap();
    let good = reference(&raw, &stored);
    for bit in 0..stored.len() * 8 {
        let mut flipped = stored.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(expand(&good, &flipped).unwrap_err().contains("is damaged"), "bit {bit}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    #[test]
    fn a_package_of_any_size_comes_back(seed: u64, length in 0usize..200_000, zeros in 0usize..100_000) {
        let graph = [noise(seed, length), vec![0; zeros], noise(seed, length / 2)].concat();
        let package = package("1.0.0", &graph);
        let (index, cuts) = cut(&package, &HashMap::new()).unwrap();
        let stored: HashMap<_, _> = cuts.iter().map(|cut| (cut.reference.stored, &cut.stored)).collect();
        let tar: Vec<u8> = index.chunks.iter().flat_map(|c| expand(c, stored[&c.stored]).unwrap()).collect();
        let back = Package::from_tar(package.path(), tar.as_slice()).unwrap();
        prop_assert_eq!(back.digest(), package.digest());
        prop_assert_eq!(back.graph("a.onnx"), graph.as_slice());
    }

    #[test]
    fn noise_is_refused_without_a_panic(bytes: Vec<u8>, raw_len: u32, raw: [u8; 32]) {
        let reference = ChunkRef { raw, raw_len, ..reference(&[], &bytes) };
        prop_assert!(expand(&reference, &bytes).is_err());
    }
}
