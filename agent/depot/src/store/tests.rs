mod faults;

use std::io::Write as _;
use std::process::Command;

use proptest::prelude::*;
use serde_json::json;

use crate::trial::{Before, Mode, Progress};
use tar::{Builder, EntryType, Header};

use super::kept::Kept;
use super::*;
use crate::chunk::tests::{noise, package};
use crate::chunk::{Cut, cut};

pub(super) struct Home {
    pub(super) state: tempfile::TempDir,
    pub(super) store: Store,
}

pub(super) fn home() -> Home {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    Home { state, store }
}

/// A package with everything it needs to be put.
fn example(version: &str, seed: u64) -> (Index, Vec<Cut>) {
    cut(&package(version, &noise(seed, 60_000)), &HashMap::new()).unwrap()
}

impl Home {
    fn put(&self, (index, cuts): &(Index, Vec<Cut>)) {
        self.store.put_index(index).unwrap();
        for cut in cuts {
            self.store.put(&cut.reference, &cut.stored).unwrap();
        }
    }

    fn activate(&self, (index, _): &(Index, Vec<Cut>)) {
        self.store.update_record("m", |record| record.activate(installed(index), 1)).unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        let folders = self.store.folders().unwrap();
        folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path()).collect()
    }
}

fn installed(index: &Index) -> Installed {
    Installed { version: index.version.clone(), package: Hex(&index.package).to_string() }
}

#[track_caller]
fn says(error: &DepotError, expected: &[&str]) {
    let sentence = error.to_string();
    for part in expected {
        assert!(sentence.contains(part), "`{part}` is not in: {sentence}");
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// An index of any bytes as a tar, and its chunks.
fn cut_bytes(tar: &[u8]) -> (Index, Vec<Cut>) {
    let cuts: Vec<Cut> = tar
        .chunks(10_000)
        .map(|raw| {
            let stored = zstd::bulk::compress(raw, 3).unwrap();
            let reference = ChunkRef {
                raw: Digest::of(raw).0,
                raw_len: raw.len() as u32,
                stored: Digest::of(&stored).0,
                stored_len: stored.len() as u32,
            };
            Cut { reference, stored }
        })
        .collect();
    let chunks = cuts.iter().map(|cut| cut.reference).collect();
    (Index { model: "m".into(), version: "1.0.0".into(), package: Digest::of(tar).0, chunks }, cuts)
}

#[test]
fn a_package_comes_back_from_its_chunks() {
    let home = home();
    let example = example("1.0.0", 1);
    let (index, cuts) = &example;
    assert_eq!(home.store.missing(index).len(), cuts.len());
    home.put(&example);
    assert_eq!(home.store.missing(index), []);
    let package = home.store.package(&home.store.index("m", "1.0.0").unwrap().unwrap()).unwrap();
    assert_eq!(package.digest().0, index.package);
    assert_eq!(package.path(), Path::new("m 1.0.0"));
    let again = Store::open(home.state.path()).unwrap();
    assert_eq!(again.package(index).unwrap().digest().0, index.package);
    assert_eq!(home.store.index("m", "1.0.1").unwrap(), None);
}

#[test]
fn what_is_there_is_not_written_again_and_a_delivery_writes_little_more_than_the_package() {
    let home = home();
    let example = cut(&package("1.0.0", &noise(9, 350_000)), &HashMap::new()).unwrap();
    home.put(&example);
    home.activate(&example);
    let (written, whole) = (home.store.bytes_written(), example.0.raw_bytes());
    println!("{written} bytes written for a package of {whole}: {:.2} times", written as f64 / whole as f64);
    assert!(written as f64 <= 1.5 * whole as f64);
    home.put(&example);
    home.activate(&example);
    assert_eq!(home.store.bytes_written(), written);
}

#[test]
fn what_is_not_the_chunk_is_refused_and_nothing_of_it_is_kept() {
    let home = home();
    let (_, cuts) = example("1.0.0", 1);
    let before = home.files();
    let (one, other) = (&cuts[0], &cuts[1]);
    let mut flipped = one.stored.clone();
    flipped[10] ^= 1;
    for (reference, stored) in [
        (one.reference, other.stored.as_slice()),
        (one.reference, &one.stored[1..]),
        (one.reference, &flipped),
        (ChunkRef { raw: other.reference.raw, ..one.reference }, &one.stored),
        (ChunkRef { raw_len: 5000, ..one.reference }, &one.stored),
    ] {
        let error = home.store.put(&reference, stored).unwrap_err();
        assert!(matches!(error, DepotError::Chunk { .. }), "{error}");
        says(&error, &[&Hex(&reference.stored).to_string()]);
    }
    assert_eq!(home.files(), before);
}

#[test]
fn a_damaged_chunk_is_named_with_what_to_do_and_comes_back_by_a_put() {
    let home = home();
    let example = example("1.0.0", 1);
    home.put(&example);
    let (index, cuts) = &example;
    let path = home.store.chunk_path(&cuts[1].reference.stored);
    flip(&path, 5);
    for error in [home.store.chunk(&cuts[1].reference).unwrap_err(), home.store.package(index).unwrap_err()] {
        assert!(matches!(error, DepotError::Store { .. }), "{error}");
        says(&error, &[path.to_str().unwrap(), "is damaged: its SHA-256 is", "`limpet store check`"]);
    }
    home.store.put(&cuts[1].reference, &cuts[1].stored).unwrap();
    assert!(home.store.package(index).is_ok());

    fs::write(&path, &cuts[1].stored[..100]).unwrap();
    assert_eq!(home.store.missing(index), [cuts[1].reference], "what is cut short is missing");
    fs::remove_file(&path).unwrap();
    says(&home.store.package(index).unwrap_err(), &[path.to_str().unwrap(), "is not there"]);
}

#[test]
fn an_index_whose_chunks_make_up_another_package_is_refused() {
    let home = home();
    let good = example("1.0.0", 1);
    let other = example("1.0.0", 2);
    home.put(&good);
    for cut in &other.1 {
        home.store.put(&cut.reference, &cut.stored).unwrap();
    }
    let replaced = Index { chunks: other.0.chunks.clone(), ..good.0.clone() };
    says(&home.store.package(&replaced).unwrap_err(), &["the index of m 1.0.0: its chunks make up the package"]);
    let renamed = Index { version: "2.0.0".into(), ..good.0.clone() };
    says(&home.store.package(&renamed).unwrap_err(), &["the index of m 2.0.0: its chunks make up m 1.0.0"]);
    let mut swapped = good.0.clone();
    swapped.chunks.swap(1, 2);
    assert!(home.store.package(&swapped).is_err());
    let mut short = good.0.clone();
    short.chunks.pop();
    assert!(home.store.package(&short).is_err());
}

#[test]
fn an_archive_that_leads_out_or_is_no_plain_file_is_refused_as_chunks_too() {
    let entry = |path: &str, kind: EntryType| {
        let mut header = Header::new_ustar();
        let field = &mut header.as_old_mut().name;
        field[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(0);
        header.set_mode(0o644);
        header.set_entry_type(kind);
        header.set_cksum();
        let mut tar = Builder::new(Vec::new());
        tar.append(&header, &b""[..]).unwrap();
        tar.into_inner().unwrap()
    };
    let home = home();
    for (path, kind) in [
        ("../model.toml", EntryType::Regular),
        ("/etc/limpet.toml", EntryType::Regular),
        ("a/../../b", EntryType::Regular),
        ("..", EntryType::Directory),
        ("model.toml", EntryType::Symlink),
        ("model.toml", EntryType::Link),
        ("model.toml", EntryType::Char),
        ("model.toml", EntryType::Block),
        ("model.toml", EntryType::Fifo),
    ] {
        let hostile = cut_bytes(&entry(path, kind));
        home.put(&hostile);
        let error = home.store.package(&hostile.0).unwrap_err();
        assert!(matches!(error, DepotError::Package { .. }), "{path} {kind:?}: {error}");
        says(&error, &["m 1.0.0: "]);
    }
}

#[test]
fn an_index_that_names_a_path_outside_or_claims_too_much_is_refused() {
    let home = home();
    let (good, _) = example("1.0.0", 1);
    let chunk = good.chunks[0];
    let with = |edit: &dyn Fn(&mut Index)| {
        let mut index = good.clone();
        edit(&mut index);
        index
    };
    let before = home.files();
    for (index, expected) in [
        (with(&|index| index.model = "../../etc/m".into()), "is not a name"),
        (with(&|index| index.model = "/m".into()), "is not a name"),
        (with(&|index| index.version = "../1.0.0".into()), "is no version"),
        (with(&|index| index.version = "1.0.0/../../x".into()), "is no version"),
        (with(&|index| index.version = "1.0.0+build".into()), "has build metadata"),
        (with(&|index| index.version = format!("1.0.0-{}", "x".repeat(200))), "is too long"),
        (with(&|index| index.chunks.clear()), "names 0 chunks"),
        (with(&|index| index.chunks = vec![chunk; CHUNKS_MAX + 1]), "chunks; expected 1 to"),
        (with(&|index| index.chunks = vec![ChunkRef { raw_len: 65_000, ..chunk }; 5000]), "a package has at most"),
        (with(&|index| index.chunks[0].raw_len = u32::MAX), "at most"),
        (with(&|index| index.chunks[0].stored_len = u32::MAX), "expected 1 to 65536"),
        (with(&|index| index.chunks.push(ChunkRef { raw: [0; 32], ..chunk })), "twice, with different content"),
    ] {
        says(&home.store.put_index(&index).unwrap_err(), &["the index of ", expected]);
        assert!(home.store.package(&index).is_err());
    }
    assert_eq!(home.files(), before);
    assert!(home.store.index("../m", "1.0.0").is_err());
    assert!(home.store.index("m", "../1.0.0").is_err());
    assert!(home.store.record("../m").is_err());
    assert!(home.store.set_record("../m", &Record::default()).is_err());
    let active = Some(Installed { version: "../1.0.0".into(), package: "0".repeat(64) });
    assert!(home.store.set_record("m", &Record { active, ..Record::default() }).is_err());
}

#[test]
fn a_damaged_index_is_named_and_never_read_as_another() {
    let home = home();
    let example = example("1.0.0", 1);
    home.put(&example);
    let path = home.store.index_path("m", "1.0.0").unwrap();
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        flip(&path, at);
        says(&home.store.index("m", "1.0.0").unwrap_err(), &["m-1.0.0.index: is damaged", "`limpet store check`"]);
        fs::write(&path, &good).unwrap();
    }
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        assert!(home.store.index("m", "1.0.0").is_err(), "{length}");
    }
    fs::write(home.store.index_path("m", "2.0.0").unwrap(), &good).unwrap();
    says(&home.store.index("m", "2.0.0").unwrap_err(), &["m-2.0.0.index: holds the index of m 1.0.0"]);
}

fn full_record() -> Record {
    let mut record = Record::default();
    for version in ["1.0.0", "1.1.0", "2.0.0"] {
        record.activate(Installed { version: version.into(), package: "ab".repeat(32) }, 2);
    }
    let progress = Progress { windows: 7, ..Progress::new("ab".repeat(32), Mode::Trial, Before::default()) };
    let further = Progress { windows: 70, ..progress.clone() };
    record.set_trial(progress.clone(), [("one".to_owned(), progress), ("two".to_owned(), further)].into());
    let rejection = Rejection {
        version: "1.2.0".into(),
        reason: "int8.tflite on tflite: \"wrong\"\nanswers".into(),
        at: Some("2026-11-23T10:15:02Z".parse().unwrap()),
        under: Some("agent 0.1.0".into()),
    };
    record.rejected.insert("cd".repeat(32), rejection);
    record
}

#[test]
fn a_damaged_chunk_is_missing_once_its_package_was_opened() {
    let home = home();
    let (index, cuts) = example("1.0.0", 1);
    home.put(&(index.clone(), cuts.clone()));
    let [damaged, unreadable] = [&cuts[1], &cuts[2]].map(|cut| home.store.chunk_path(&cut.reference.stored));
    flip(&damaged, 20);
    assert!(home.store.missing(&index).is_empty(), "it is as long as before");
    says(&home.store.package(&index).unwrap_err(), &["is damaged"]);
    assert_eq!(home.store.missing(&index), [cuts[1].reference]);
    home.store.put(&cuts[1].reference, &cuts[1].stored).unwrap();
    home.store.package(&index).expect("it is whole again");
    // What cannot be read may be whole.
    fs::remove_file(&unreadable).unwrap();
    std::os::unix::fs::symlink(home.state.path(), &unreadable).unwrap();
    assert!(matches!(home.store.package(&index), Err(DepotError::Io { .. })));
    assert!(fs::symlink_metadata(&unreadable).is_ok(), "it was not removed");
}

#[test]
fn a_record_reads_back_and_a_model_without_one_has_an_empty_one() {
    let home = home();
    assert_eq!(home.store.record("m").unwrap(), Record::default());
    let record = full_record();
    let versions: Vec<&str> = record.previous.iter().map(|one| one.version.as_str()).collect();
    assert_eq!((record.active.as_ref().unwrap().version.as_str(), versions), ("2.0.0", vec!["1.1.0", "1.0.0"]));
    home.store.set_record("m", &record).unwrap();
    let again = Store::open(home.state.path()).unwrap();
    assert_eq!(again.record("m").unwrap(), record);
    assert_eq!(again.records().unwrap().into_keys().collect::<Vec<_>>(), ["m"]);
    assert!(again.notices().is_empty());
    let text = fs::read_to_string(home.store.models().join("m.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).expect("the file is one JSON object");
    assert_eq!((&json["v"], &json["active"]["version"]), (&json!(1), &json!("2.0.0")));
}

#[test]
fn a_version_that_serves_again_is_no_longer_previous() {
    let of = |version: &str| Installed { version: version.into(), package: "ab".repeat(32) };
    let mut record = full_record();
    record.withdrawn = true;
    record.activate(of("1.0.0"), 2);
    assert_eq!(record.active, Some(of("1.0.0")));
    assert_eq!(record.previous, [of("2.0.0"), of("1.1.0")]);
    assert!(!record.withdrawn);
    record.activate(of("3.0.0"), 1);
    assert_eq!(record.previous, [of("1.0.0")]);
}

#[test]
fn every_flipped_bit_of_a_record_is_noticed_and_its_copy_takes_its_place() {
    let home = home();
    let record = full_record();
    home.store.set_record("m", &record).unwrap();
    let main = home.store.models().join("m.json");
    let good = fs::read(&main).unwrap();
    // The line break at the end means nothing.
    for bit in 0..(good.len() - 1) * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Record::from_text(&flipped).is_err(), "bit {bit}");
    }
    for damaged in [Vec::new(), good[..good.len() / 2].to_vec(), b"{}".to_vec(), b"\xff".to_vec()] {
        fs::write(&main, damaged).unwrap();
        assert_eq!(home.store.record("m").unwrap(), record);
        let notices = home.store.notices();
        assert!(matches!(&notices[..], [one] if one.contains("m.json") && one.contains("its copy")), "{notices:?}");
        assert_eq!(fs::read(&main).unwrap(), good, "the copy is put in its place");
    }
    fs::remove_file(&main).unwrap();
    assert_eq!(home.store.record("m").unwrap(), record, "absence proves nothing");
}

#[test]
fn a_record_that_is_lost_twice_is_an_error_and_never_an_empty_one() {
    let home = home();
    let other = Record { withdrawn: true, ..Record::default() };
    home.store.set_record("m", &full_record()).unwrap();
    home.store.set_record("n", &other).unwrap();
    for name in ["m.json", "m.copy"] {
        fs::write(home.store.models().join(name), "{").unwrap();
    }
    let error = home.store.record("m").unwrap_err();
    says(&error, &["m.json", "m.copy", "backup, or remove both"]);
    assert!(home.store.update_record("m", |record| record.withdrawn = true).is_err());
    assert!(home.store.collect(&[]).is_err(), "nothing goes while it is not known what serves");
    let records = home.store.records().unwrap();
    assert!(records["m"].is_err());
    assert_eq!(records["n"].as_ref().unwrap(), &other, "and no other model suffers");
}

#[test]
fn a_record_of_a_newer_program_is_refused_and_keys_it_added_are_not() {
    let text = |json: &str| format!("{{\"sha256\":\"{}\",{}\n", Digest::of(json.as_bytes()), &json[1..]);
    let newer = Record::from_text(text(r#"{"v":2,"active":7}"#).as_bytes()).unwrap_err();
    assert!(newer.contains("version 2"), "{newer}");
    assert_eq!(Record::from_text(text(r#"{"v":1,"later":[1]}"#).as_bytes()), Ok(Record::default()));
}

#[test]
fn the_copy_is_written_for_a_version_and_not_for_every_step_of_a_trial() {
    let home = home();
    let mut record = full_record();
    home.store.set_record("m", &record).unwrap();
    let before = home.store.bytes_written();
    record.trial.as_mut().unwrap().windows = 8;
    home.store.set_record("m", &record).unwrap();
    assert_eq!(home.store.bytes_written() - before, 4096);
    record.trials.get_mut("two").unwrap().windows = 71;
    home.store.set_record("m", &record).unwrap();
    assert_eq!(home.store.bytes_written() - before, 2 * 4096);
    record.end_trial();
    home.store.set_record("m", &record).unwrap();
    assert_eq!(home.store.bytes_written() - before, 4 * 4096);
    fs::write(home.store.models().join("m.json"), "").unwrap();
    assert_eq!(home.store.record("m").unwrap(), record);
}

#[test]
fn a_record_stays_bounded() {
    let mut record = Record::default();
    for second in 0..200 {
        let at = Some(jiff::Timestamp::from_second(second).unwrap());
        let rejection = Rejection { version: "1.0.0".into(), reason: "é".repeat(5000), at, under: None };
        record.rejected.insert(Digest::of(&second.to_le_bytes()).to_string(), rejection);
    }
    let kept = Record::from_text(record.to_text().as_bytes()).unwrap();
    assert_eq!(kept.rejected.len(), REJECTED_MAX);
    assert!(kept.rejected.values().all(|one| one.at.unwrap().as_second() >= 200 - REJECTED_MAX as i64));
    assert!(kept.rejected.values().all(|one| one.reason.len() == 1000));
}

#[test]
fn what_a_power_cut_left_half_written_goes_when_the_depot_is_opened_unless_somebody_writes() {
    let home = home();
    let example = example("1.0.0", 1);
    home.put(&example);
    home.activate(&example);
    let whole = home.files();
    for folder in home.store.folders().unwrap() {
        fs::write(folder.join(".part-x1Y2z3"), "half").unwrap();
    }
    let writing = Lock::shared(&home.store.lock_path()).unwrap();
    Store::open(home.state.path()).unwrap();
    assert!(home.files().len() > whole.len(), "a temporary file may be another process's");
    drop(writing);
    Store::open(home.state.path()).unwrap();
    assert_eq!(home.files(), whole);
    assert_eq!(home.store.package(&example.0).unwrap().digest().0, example.0.package);
}

#[test]
fn a_collection_keeps_what_serves_may_serve_again_is_on_trial_or_wanted() {
    let home = home();
    let versions: Vec<_> = (0..6).map(|n| example(&format!("{n}.0.0"), n + 10)).collect();
    versions.iter().for_each(|version| home.put(version));
    home.activate(&versions[1]);
    home.activate(&versions[2]);
    let trial = Some(Progress::new(installed(&versions[3].0).package, Mode::Trial, Before::default()));
    home.store.update_record("m", |record| record.trial = trial).unwrap();
    let wanted = [("m".to_owned(), "4.0.0".to_owned()), ("m".to_owned(), "9.0.0".to_owned())];

    let hold = Store::open(home.state.path()).unwrap().hold().unwrap();
    assert_eq!(home.store.collect(&wanted).unwrap(), Collected { held: true, ..Collected::default() });
    drop(hold);
    let before = home.store.usage().unwrap();
    let collected = home.store.collect(&wanted).unwrap();
    assert_eq!(before - home.store.usage().unwrap(), collected.bytes);
    assert!(collected.files > 2);
    for (n, (index, _)) in versions.iter().enumerate() {
        let kept = (1..=4).contains(&n);
        assert_eq!(home.store.index("m", &index.version).unwrap().is_some(), kept, "{n}");
        assert_eq!(home.store.package(index).is_ok(), kept, "{n}");
    }
    assert_eq!(home.store.collect(&wanted).unwrap(), Collected::default());
}

#[test]
fn a_collection_drops_nothing_while_it_is_not_known_what_serves() {
    let home = home();
    let (active, other) = (example("1.0.0", 1), example("2.0.0", 2));
    home.put(&active);
    home.put(&other);
    home.activate(&active);
    let path = home.store.index_path("m", "1.0.0").unwrap();
    let good = fs::read(&path).unwrap();
    let before = home.files();
    flip(&path, 70);
    says(&home.store.collect(&[]).unwrap_err(), &["m-1.0.0.index"]);
    assert_eq!(home.files(), before);
    fs::remove_file(&path).unwrap();
    says(&home.store.collect(&[]).unwrap_err(), &["m-1.0.0.index", "this version serves"]);
    fs::write(&path, good).unwrap();
    home.store.collect(&[]).unwrap();
    assert!(home.store.package(&active.0).is_ok());
}

#[test]
fn a_check_finds_what_is_damaged_missing_or_stray_and_a_repair_makes_it_fetchable() {
    let home = home();
    let (one, two) = (example("1.0.0", 1), example("2.0.0", 2));
    home.put(&one);
    home.put(&two);
    home.activate(&one);
    home.activate(&two);
    let whole = home.store.check(false).unwrap();
    assert!(whole.is_whole(), "{whole:?}");
    assert_eq!(whole.chunks, (one.1.len() + two.1.len()) as u64);

    let chunk = home.store.chunk_path(&one.1[0].reference.stored);
    let gone = home.store.chunk_path(&one.1[1].reference.stored);
    let index = home.store.index_path("m", "2.0.0").unwrap();
    let copy = home.store.models().join("m.copy");
    let strays = [
        home.store.chunks().join("notes.txt"),
        chunk.parent().unwrap().join("notes.txt"),
        home.store.indexes().join("x"),
        home.store.models().join("M.json"),
    ];
    flip(&chunk, 3);
    fs::remove_file(&gone).unwrap();
    flip(&index, 3);
    flip(&copy, 90);
    for stray in &strays {
        fs::write(stray, "").unwrap();
    }
    let found = home.store.check(false).unwrap();
    let damaged: Vec<&PathBuf> = found.damaged.iter().map(|damaged| &damaged.path).collect();
    assert!([&chunk, &index, &copy].iter().all(|path| damaged.contains(path)), "{damaged:?}");
    assert!(found.damaged.iter().all(|damaged| damaged.reason.contains(damaged.path.to_str().unwrap())));
    let missing = |version: &str, chunks| Missing { model: "m".into(), version: version.into(), chunks };
    assert_eq!(found.missing, [missing("1.0.0", Some(1)), missing("2.0.0", None)]);
    assert!([0, 1, 3].iter().all(|n| found.stray.contains(&strays[*n])), "{:?}", found.stray);
    assert!(damaged.contains(&&strays[2]), "an index that is none is damaged");
    assert!(chunk.exists() && !found.repaired, "a check alone changes nothing");

    assert!(home.store.check(true).unwrap().repaired);
    assert_eq!(home.store.missing(&one.0).len(), 2);
    assert_eq!(home.store.index("m", "2.0.0").unwrap(), None);
    assert!(strays.iter().all(|stray| !stray.exists()));
    home.put(&one);
    home.put(&two);
    let whole = home.store.check(false).unwrap();
    assert!(whole.is_whole(), "{whole:?}");
    assert_eq!(home.store.record("m").unwrap().active, Some(installed(&two.0)));
}

#[test]
fn what_cannot_be_read_for_another_reason_than_damage_ends_a_check_and_is_not_removed() {
    let home = home();
    let example = example("1.0.0", 7);
    home.put(&example);
    home.activate(&example);
    let [one, other] = [0, 1].map(|at| home.store.chunk_path(&example.1[at].reference.stored));
    flip(&one, 3);
    // A folder cannot be read as a file: neither its bytes nor the disk say anything of a damage.
    fs::remove_file(&other).unwrap();
    fs::create_dir(&other).unwrap();
    for repair in [false, true] {
        says(&home.store.check(repair).unwrap_err(), &[other.to_str().unwrap(), "cannot be read"]);
        assert!(one.exists() && other.exists());
    }
    fs::remove_dir(&other).unwrap();
    let checked = home.store.check(true).unwrap();
    assert_eq!((checked.damaged.len(), checked.missing.len(), one.exists()), (1, 1, false));
    // The same of a record: its copy may be whole.
    let [main, copy] = home.store.record_paths("m").unwrap();
    flip(&main, 20);
    fs::remove_file(&copy).unwrap();
    fs::create_dir(&copy).unwrap();
    home.store.check(true).unwrap_err();
    assert!(main.exists() && copy.exists());
}

#[test]
fn a_folder_that_cannot_be_made_keeps_nobody_from_starting() {
    let home = home();
    let folder = home.store.chunks().join("a");
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "in the way").unwrap();
    let store = Store::open(home.state.path()).unwrap();
    fs::remove_file(&folder).unwrap();
    let (index, cuts) = example("1.0.0", 7);
    store.put_index(&index).unwrap();
    cuts.iter().for_each(|cut| store.put(&cut.reference, &cut.stored).unwrap());
    assert!(store.missing(&index).is_empty());
}

#[test]
fn a_repair_keeps_what_is_being_fetched() {
    let home = home();
    let (_, cuts) = example("1.0.0", 1);
    let hold = home.store.hold().unwrap();
    home.store.put(&cuts[0].reference, &cuts[0].stored).unwrap();
    home.store.check(true).unwrap();
    assert!(home.store.has(&cuts[0].reference.stored));
    drop(hold);
    home.store.check(true).unwrap();
    assert!(!home.store.has(&cuts[0].reference.stored));
}

#[test]
fn what_would_fill_the_disk_is_refused_with_the_arithmetic() {
    let disk = Disk { used: 1000, limit: 5000, free: 3000, reserve: 500 };
    assert_eq!(disk.room_for(2500), Ok(()));
    let full = disk.room_for(2501).unwrap_err();
    assert!(full.contains("2501 more bytes: its disk has 3000 left, of which 500 stay free"), "{full}");
    let limit = Disk { free: 1 << 40, ..disk }.room_for(4001).unwrap_err();
    assert!(limit.contains("it takes 1000, and `[depot] disk` allows 5000"), "{limit}");
    assert!(disk.room_for(u64::MAX).is_err());

    let home = home();
    home.put(&example("1.0.0", 1));
    let used = home.store.usage().unwrap();
    home.store.room_for(4096, used + 4096).unwrap();
    let error = home.store.room_for(4097, used + 4096).unwrap_err();
    assert!(matches!(error, DepotError::Full { .. }), "{error}");
    assert!(home.store.room_for(u64::MAX / 2, u64::MAX).is_err());
}

/// A file system of this size in a folder, gone when this is dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(bytes: u64) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},mode=0700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        match mount {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_a_clean_refusal_and_what_was_there_stays() {
    let small = match Small::mount(256 << 10) {
        Ok(small) => small,
        Err(why) => {
            // The arithmetic before a delivery is tested above; this is about what the kernel says in the middle of one.
            println!("a small file system cannot be mounted here, so ENOSPC is not tried: {why}");
            return;
        }
    };
    let store = Store::open(small.0.path()).unwrap();
    // What somebody will remove to make room.
    let log = small.0.path().join("log");
    fs::write(&log, [0; 32 << 10]).unwrap();
    let example = cut(&package("1.0.0", &noise(3, 400_000)), &HashMap::new()).unwrap();
    says(&store.room_for(400_000, u64::MAX).unwrap_err(), &["no room for 400000 more bytes"]);
    let record = full_record();
    store.set_record("m", &record).unwrap();
    store.put_index(&example.0).unwrap();
    let (mut kept, mut full) = (Vec::new(), 0);
    for cut in &example.1 {
        match store.put(&cut.reference, &cut.stored) {
            Ok(()) => kept.push(cut),
            Err(error) => {
                assert!(matches!(error, DepotError::Full { .. }), "{error}");
                says(&error, &["the disk is full"]);
                full += 1;
            }
        }
    }
    assert!(full > 0 && !kept.is_empty(), "{} kept, {full} refused", kept.len());
    // Not one byte left.
    let mut filler = fs::File::create(small.0.path().join("filler")).unwrap();
    while filler.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
    let error = store.set_record("m", &Record::default()).unwrap_err();
    assert!(matches!(error, DepotError::Full { .. }), "{error}");
    assert_eq!(store.record("m").unwrap(), record, "the old record stands");
    for cut in &kept {
        store.chunk(&cut.reference).unwrap();
    }
    for folder in store.folders().unwrap() {
        assert_eq!(files::temporary(&folder).unwrap(), Vec::<PathBuf>::new());
    }
    assert!(store.check(false).unwrap().damaged.is_empty());
    fs::remove_file(log).unwrap();
    store.set_record("m", &Record::default()).unwrap();
}

#[test]
fn a_disk_that_fills_up_between_a_record_and_its_copy_keeps_the_new_one_and_copies_it_when_there_is_room() {
    let small = match Small::mount(128 << 10) {
        Ok(small) => small,
        Err(why) => {
            println!("a small file system cannot be mounted here, so ENOSPC is not tried: {why}");
            return;
        }
    };
    let store = Store::open(small.0.path()).unwrap();
    store.set_record("m", &full_record()).unwrap();
    let [main, copy] = store.record_paths("m").unwrap();
    let mut larger = full_record();
    let rejection =
        |version: &str| Rejection { version: version.into(), reason: "x".repeat(900), at: None, under: None };
    larger.rejected = (0..20u8).map(|n| (Hex(&[n; 32]).to_string(), rejection("3.0.0"))).collect();
    // Room for the larger one, and not for a second.
    let filler = small.0.path().join("filler");
    let mut filling = fs::File::create(&filler).unwrap();
    let free = || rustix::fs::statvfs(small.0.path()).unwrap().f_bavail * 4096;
    while free() > files::on_disk(larger.to_text().len() as u64) {
        filling.write_all(&[0; 4096]).unwrap();
    }
    store.set_record("m", &larger).unwrap();
    let notices = store.notices();
    assert!(matches!(&notices[..], [one] if one.contains(copy.to_str().unwrap())), "{notices:?}");
    assert_eq!(store.record("m").unwrap(), larger);
    assert_eq!(store.notices(), [""; 0], "once is enough");
    assert_eq!(Record::from_text(&fs::read(&copy).unwrap()), Ok(full_record()), "the old copy is whole");
    drop(filling);
    fs::remove_file(filler).unwrap();
    assert_eq!(store.record("m").unwrap(), larger);
    assert!(fs::read(&main).unwrap() == fs::read(&copy).unwrap());
}

#[test]
fn deliveries_and_collections_at_once_lose_nothing() {
    let home = home();
    let versions: Vec<_> = (0..4).map(|n| example(&format!("{n}.0.0"), n % 2)).collect();
    home.put(&versions[0]);
    home.activate(&versions[0]);
    std::thread::scope(|scope| {
        for version in &versions {
            let state = home.state.path();
            scope.spawn(move || {
                // Each as a process of its own would.
                let store = Store::open(state).unwrap();
                for _ in 0..3 {
                    let _hold = store.hold().unwrap();
                    store.put_index(&version.0).unwrap();
                    for cut in &version.1 {
                        store.put(&cut.reference, &cut.stored).unwrap();
                    }
                    let model = installed(&version.0);
                    store.update_record("m", |record| record.activate(model, 8)).unwrap();
                }
            });
        }
        for _ in 0..20 {
            home.store.collect(&[]).unwrap();
            let active = home.store.record("m").unwrap().active.unwrap();
            let index = home.store.index("m", &active.version).unwrap().unwrap();
            assert_eq!(home.store.package(&index).unwrap().digest().to_string(), active.package);
        }
    });
    let record = home.store.record("m").unwrap();
    assert_eq!(record.previous.len(), 3, "no change of the record was lost");
    home.store.collect(&[]).unwrap();
    for (index, _) in &versions {
        home.store.package(index).unwrap();
    }
    assert!(home.store.check(false).unwrap().is_whole());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 16))]

    #[test]
    fn any_package_comes_back_and_any_damage_is_noticed(seed: u64, length in 0usize..100_000, at: prop::sample::Index) {
        let home = home();
        let package = package("1.0.0-rc.1", &noise(seed, length));
        let example = cut(&package, &HashMap::new()).unwrap();
        home.put(&example);
        prop_assert_eq!(home.store.package(&example.0).unwrap().digest(), package.digest());
        let path = home.store.chunk_path(&at.get(&example.1).reference.stored);
        flip(&path, at.index(fs::metadata(&path).unwrap().len() as usize));
        prop_assert_eq!(home.store.check(false).unwrap().damaged.len(), 1);
        prop_assert!(home.store.package(&example.0).is_err());
        prop_assert_eq!(home.store.missing(&example.0).len(), 1);
        home.put(&example);
        prop_assert_eq!(home.store.package(&example.0).unwrap().digest(), package.digest());
    }
}
