use std::fs;
use std::io::Read as _;

use super::*;

const MANIFEST: &str = "format = 1\n[model]\nname = \"m\"\nversion = \"1.0.0\"\ntask = \"classification\"\n\
                        [[variant]]\nfile = \"a.onnx\"\n[[input]]\nkind = \"features\"\n\
                        [decision]\ntrigger = { label = \"on\", above = 0.5 }\n";

/// A folder that opens. Its graph and golden vectors are not looked into by opening it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        (manifest::FILE_NAME, MANIFEST),
        ("a.onnx", "graph"),
        (GOLDEN, "vectors"),
        (LABELS, "off\r\non\n"),
        (CARD, "# Card\n"),
        ("train.py", "print()"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[track_caller]
fn refused(path: &Path, expected: &[&str]) {
    let sentence = Package::open(path).expect_err("this is no package").to_string();
    for part in expected {
        assert!(sentence.contains(part), "`{part}` is not in: {sentence}");
    }
}

#[test]
fn a_package_has_what_its_manifest_names_and_the_card() {
    let folder = folder();
    let package = Package::open(folder.path()).unwrap();
    let names: Vec<&str> = package.files.keys().map(String::as_str).collect();
    assert_eq!(names, [CARD, "a.onnx", GOLDEN, LABELS, manifest::FILE_NAME]);
    assert_eq!(package.labels()[..], ["off", "on"]);
    assert_eq!(package.graph("a.onnx"), b"graph");
}

#[test]
fn a_variants_own_golden_vectors_come_before_those_of_all() {
    let folder = folder();
    assert_eq!(Package::open(folder.path()).unwrap().golden("a.onnx"), (GOLDEN.to_owned(), &b"vectors"[..]));
    fs::write(folder.path().join("golden.a.safetensors"), "own").unwrap();
    let package = Package::open(folder.path()).unwrap();
    assert_eq!(package.golden("a.onnx"), ("golden.a.safetensors".to_owned(), &b"own"[..]));
    fs::remove_file(folder.path().join(GOLDEN)).unwrap();
    assert!(Package::open(folder.path()).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    for (name, expected) in [
        (manifest::FILE_NAME, "there is no model.toml"),
        ("a.onnx", "`variant[0].file`: there is no \"a.onnx\""),
        (GOLDEN, "expected golden.a.safetensors or golden.safetensors"),
        (LABELS, "there is no labels.txt"),
    ] {
        let folder = folder();
        fs::remove_file(folder.path().join(name)).unwrap();
        refused(folder.path(), &[expected]);
    }
    refused(Path::new("/nowhere/at/all"), &["/nowhere/at/all: cannot be read"]);
}

#[test]
fn labels_are_one_a_line_and_all_different() {
    for (labels, expected) in [
        ("", "is empty; expected one label a line"),
        ("off\n\non\n", "line 2: is empty"),
        ("on\noff\non\n", "line 3: \"on\" stands there twice"),
        ("off\nof\n", "`decision.trigger.label`: \"on\" is not in labels.txt"),
        ("off\no\u{7}n\n", "line 2: a label has at most 64 bytes and no control"),
    ] {
        let folder = folder();
        fs::write(folder.path().join(LABELS), labels).unwrap();
        refused(folder.path(), &[expected]);
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    for name in [manifest::FILE_NAME, LABELS] {
        let folder = folder();
        fs::write(folder.path().join(name), b"\xff\xfe").unwrap();
        refused(folder.path(), &[name, "is not UTF-8"]);
    }
}

#[test]
fn what_is_no_plain_file_is_refused() {
    let folder = folder();
    fs::remove_file(folder.path().join("a.onnx")).unwrap();
    fs::create_dir(folder.path().join("a.onnx")).unwrap();
    refused(folder.path(), &["a.onnx: is not a plain file"]);
    refused(&folder.path().join("train.py"), &["neither a folder with a model.toml nor a .limpet file"]);
}

/// A `.limpet` file of these bytes, compressed.
fn packed(folder: &Path, tar: &[u8]) -> PathBuf {
    let path = folder.join("x.limpet");
    fs::write(&path, zstd::encode_all(tar, 1).unwrap()).unwrap();
    path
}

#[test]
fn a_file_with_something_that_does_not_belong_is_refused() {
    let folder = folder();
    let mut files = Package::open(folder.path()).unwrap().files;
    files.insert("train.py".to_owned(), b"print()".to_vec());
    let mut tar = Vec::new();
    archive::write(&files, &mut tar).unwrap();
    refused(&packed(folder.path(), &tar), &["x.limpet: holds \"train.py\", which does not belong"]);
}

#[test]
fn a_small_file_that_unpacks_to_too_much_is_refused() {
    let folder = folder();
    let path = folder.path().join("x.limpet");
    let mut zstd = zstd::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(archive::RAW_MAX + 1), &mut zstd).unwrap();
    zstd.finish().unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 1 << 20);
    refused(&path, &["more than 256 MiB"]);
}

#[test]
fn what_replaces_a_file_replaces_it_whole() {
    let folder = folder();
    let package = Package::open(folder.path()).unwrap();
    let out = folder.path().join("m.limpet");
    fs::write(&out, "old").unwrap();
    package.write(&out).unwrap();
    let opened = Package::open(&out).unwrap();
    assert_eq!((opened.digest(), &opened.files), (package.digest(), &package.files));
    let error = package.write(Path::new("/nowhere/at/all/m.limpet")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/at/all/m.limpet: cannot be written"), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(proptest::test_runner::Config::default().cases / 4))]

    #[test]
    fn noise_is_refused_without_a_panic(noise: Vec<u8>, at: proptest::sample::Index, byte: u8) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.limpet");
        fs::write(&path, &noise).unwrap();
        assert!(Package::open(&path).is_err());
        assert!(Package::open(&packed(folder.path(), &noise)).is_err());
        let mut file = fs::read(&path).unwrap();
        let at = at.index(file.len());
        file[at] = byte;
        fs::write(&path, file).unwrap();
        assert!(Package::open(&path).is_err());
    }
}
