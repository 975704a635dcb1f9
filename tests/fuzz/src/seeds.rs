//! Writes what the fuzz targets start from, made of a real package: `fuzz-seeds PACKAGE OUT`, one folder for each target.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use limpet_agent::outbox::ring::Ring;
use limpet_depot::publish::forge::Forge;
use limpet_depot::publish::{Home, KeyRing, PublishError, Publisher, ReleaseChange, Role, Set, init};
use limpet_depot::remote::Folder;
use limpet_depot::{Package, chunk};
use limpet_wire::binary;
use limpet_wire::depot::{Name, Parts};
use limpet_wire::dropped::{Dropped, Origin, Reason};
use limpet_wire::id::Serial;
use limpet_wire::result::{Captured, Clock, LatencyUs, ResultRecord, Span, Verdict};

/// A gray picture of 2 by 2 pixels.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x02\0\0\0\x02\x08\0\0\0\0W\xddR\xf8\
    \0\0\0\x0eIDATx\xdac\x10h`h\xf8\0\0\x04F\x02\x01@\x13\x9e`\0\0\0\0IEND\xaeB`\x82";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [package, out] = &arguments[..] else {
        eprintln!("fuzz-seeds: expected the folder of a package and a folder to write to");
        return ExitCode::from(64);
    };
    match write(Path::new(package), Path::new(out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz-seeds: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(package: &Path, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let package = &Package::open(package)?;
    let (index, cuts) = chunk::cut(package, &HashMap::new())?;
    let seed = |target: &str, name: &str, bytes: &[u8]| -> io::Result<()> {
        let folder = out.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };

    let mut short = index.clone();
    short.chunks.truncate(3);
    seed("index", "index", &short.to_bytes())?;
    let parts = Parts { parts: short.chunks.iter().map(|chunk| (chunk.raw, chunk.raw_len)).collect() };
    seed("index", "parts", &parts.to_bytes())?;
    let target = Name::target(index.package, &format!("{}-{}.index", index.model, index.version));
    let metadata = Name::Metadata { version: 7, role: "targets".to_owned() };
    let names = [Some(Name::Roots), Some(Name::Timestamp), Some(metadata), target, Some(Name::Chunk(index.package))];
    for (number, name) in names.into_iter().flatten().enumerate() {
        seed("index", &format!("name-{number}"), name.to_string().as_bytes())?;
    }

    seed("command", "status", b"status\nlimpet/1/g/reply/me\n{\"session\":\"5e55\"}")?;
    seed("command", "logs", b"logs\nlimpet/1/g/reply/me\n{\"session\":\"5e55\",\"lines\":7}")?;
    let of = Some(Origin { pipeline: "p".to_owned(), stream: "s".to_owned() });
    let (id, gateway, reason) = ("g/event/0000000000000001-1".to_owned(), "g".to_owned(), Reason::Full);
    let mut dropped = Vec::new();
    binary::write_dropped(&Dropped { id, gateway, of, run: 7, first: 1, last: 9, every: 1, reason }, &mut dropped);
    seed("stored", "dropped", &dropped)?;
    seed("items", "dropped", &dropped)?;
    let [classes, anomaly] = results().map(|record| {
        let mut item = Vec::new();
        binary::write_result(&record, &mut item);
        item
    });
    seed("stored", "result", &classes)?;
    seed("items", "result", &anomaly)?;
    let mut batch = Vec::new();
    [&classes, &dropped, &anomaly].into_iter().for_each(|item| binary::push_framed(item, &mut batch));
    seed("items", "batch", &batch)?;
    seed("stored", "event", br#"{"v":1,"type":"event","id":"g/event/0000000000000001-1","kind":"x","message":"y"}"#)?;
    let rings = out.join("ring");
    let (mut ring, _) = Ring::open(&rings, 1 << 20)?;
    (1..=3).for_each(|number| _ = ring.append(number, 7, &dropped));
    ring.settle(&[1, 3])?;
    for segment in std::fs::read_dir(&rings)? {
        seed("segment", "segment", &std::fs::read(segment?.path())?)?;
    }
    std::fs::remove_dir_all(&rings)?;
    for (codec, payload) in [
        (0, &[1; 26][..]),
        (1, &[0; 8]),
        (2, br#"{"x":[1,2],"a":[{"v":3}],"t":"2026-11-27T10:00:00Z"}"#),
        (3, b"[[1,2],[3,4]]"),
        (4, b"1,2\n3,4"),
    ] {
        seed("samples", &format!("codec-{codec}"), &[&[codec], payload].concat())?;
    }
    for (reader, payload) in [
        (0, &[1; 20][..]),
        (1, &[1; 20]),
        (2, br#"{"w":[1,-2,3,4,5,6,7,8,9,10,11,12],"t":"2026-11-27T10:00:00Z"}"#),
        (3, &[0; 48]),
        (4, br#"{"w":[1,2.5,3,4,5,6,7,8,9,10,11,12]}"#),
        (5, b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12"),
        (6, PNG),
        (7, &jpeg()),
        (8, &[7; 12]),
    ] {
        seed("window", &format!("reader-{reader}"), &[&[reader], payload].concat())?;
    }
    // Two channels that speak in turn; three of which one falls behind and is missed.
    seed("join", "in-turn", &[8, 0, 1, 1, 0, 0, 5, 1, 1, 0, 5, 1, 0])?;
    seed("join", "behind", &[1, 0, 9, 1, 0, 0x80, 0, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0x40, 2, 0, 2, 1])?;

    // The shortest say as much as the longest, and change faster.
    let mut cuts: Vec<_> = cuts.iter().collect();
    cuts.sort_by_key(|cut| cut.stored.len());
    for (number, cut) in cuts.iter().take(4).enumerate() {
        let length = cut.reference.raw_len.to_le_bytes();
        let bytes = [&[3], &cut.reference.raw[..], &length, &cut.stored].concat();
        seed("chunk", &format!("chunk-{number}"), &bytes)?;
    }

    let small = out.join("package");
    shorten(package, &small)?;
    seed("archive", "tar", &Package::open(&small)?.tar())?;
    seed("archive", "manifest", package.manifest_text().as_bytes())?;

    let forge = published(package, &out.join("depot"))?;
    let whole = forge.depot();
    for (number, role) in (0u8..).zip(Role::ALL) {
        let bytes = whole.name_of(role).map(|name| whole.objects[&name].clone()).unwrap_or_default();
        seed("metadata", &format!("{}-raw", role.name()), &[&[number], &bytes[..]].concat())?;
        let signed = forge.signed.get(&role).unwrap_or(&forge.roots[0]["signed"]).to_string();
        // As it is signed; for root that is the next version.
        let signed = if role == Role::Root { signed.replace("\"version\":1", "\"version\":2") } else { signed };
        seed("metadata", &format!("{}-signed", role.name()), &[&[0xc0 | number], signed.as_bytes()].concat())?;
    }
    seed("metadata", "state", &[&[5], &forge.state[..]].concat())?;
    Ok(())
}

/// A result of each kind that a decision gives most.
fn results() -> [ResultRecord; 2] {
    let labels = ["a", "b"].map(str::to_owned);
    let classes = ResultRecord {
        serial: Some(Serial { run: 7, seq: 1 }),
        gateway: "g".into(),
        pipeline: "p".into(),
        stream: "s".into(),
        model: "m".into(),
        version: "1.0.0".into(),
        engine: "tract".into(),
        variant: "f32.onnx".into(),
        captured: Captured::Utc(1_795_773_600_000_000_000),
        clock: Clock::Synced,
        window: Span { first: 0, last: 9 },
        filled: 0,
        verdict: Verdict::Class { best: 1, labels: labels.into(), scores: vec![0.25, 0.75] },
        trigger: false,
        latency: LatencyUs { wait: 1, features: 2, queue: 3, compute: 4, decide: 5 },
        late: false,
        tag: Some(9),
    };
    let verdict = Verdict::Anomaly { score: 1.5, threshold: Some(1.0) };
    let anomaly = ResultRecord {
        serial: None,
        captured: Captured::Boottime(7),
        clock: Clock::Unsynced,
        verdict,
        ..classes.clone()
    };
    [classes, anomaly]
}

/// A gray picture of 8 by 8 pixels: baseline, with a table of one code each.
fn jpeg() -> Vec<u8> {
    let table = |class| [&[0xff, 0xc4, 0, 20, class, 1], &[0; 16][..]].concat();
    [
        b"\xff\xd8\xff\xdb\0\x43\0",
        &[1; 64][..],
        b"\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0",
        &table(0),
        &table(0x10),
        b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\x3f\xff\xd9",
    ]
    .concat()
}

/// What a publisher signs that has published a package.
fn published(package: &Package, folder: &Path) -> Result<Forge, Box<dyn std::error::Error>> {
    let depot = folder.join("content");
    std::fs::create_dir_all(&depot)?;
    let none = |path: &Path| Err(PublishError::Refused(format!("{}: no passphrase", path.display())));
    let ring = KeyRing::new(&folder.join("keys"), None, Box::new(none));
    let now: Timestamp = "2026-12-01T00:00:00Z".parse()?;
    init(&ring, &Default::default(), None, None, now)?;
    let shelf = Folder::new(&depot);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut publisher = Publisher::open(&shelf, &ring, now, std::time::Duration::from_secs(5), &())?;
    runtime.block_on(publisher.publish(std::slice::from_ref(package), &ReleaseChange::default()))?;
    drop(publisher);
    Ok(Forge::of(&Set::load(&Home::open(ring.folder())?)?, &ring)?)
}

/// The same package with the beginning of every file alone, but for those that are read as text: an archive's form does
/// not depend on how much is in it, and a short one is changed faster.
fn shorten(package: &Package, out: &Path) -> io::Result<()> {
    std::fs::create_dir_all(out)?;
    for entry in std::fs::read_dir(package.path())? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let bytes = std::fs::read(&path)?;
        let is_text = path.extension().is_some_and(|extension| extension == "toml" || extension == "txt");
        let length = if is_text { bytes.len() } else { bytes.len().min(64) };
        std::fs::write(out.join(name), &bytes[..length])?;
    }
    Ok(())
}
