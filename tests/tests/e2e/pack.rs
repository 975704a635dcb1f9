//! What a publisher's machine finds out before anything goes out: graphs against their golden vectors.

use limpet_tests::program::{self, Outcome};
use limpet_tests::{Depot, Package};

use crate::assert_says;

/// A package whose graph is not the one that its golden outputs were recorded of.
fn wrong() -> Package {
    let wrong = Package::loudness_of("2.0.0", 0.3);
    wrong.put("golden.safetensors", &std::fs::read(Package::loudness().file("golden.safetensors")).unwrap());
    wrong
}

fn pack(package: &Package, more: &[&str]) -> (Outcome, bool) {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("m.limpet");
    let arguments = ["pack", program::text_of(package.path()), "--output", program::text_of(&file)];
    let outcome = program::run("limpet-lab", &[&arguments, more].concat());
    (outcome, file.exists())
}

#[test]
fn a_package_that_gives_its_golden_outputs_is_packed_without_a_word_of_warning() {
    let (outcome, written) = pack(&Package::loudness(), &[]);
    let outcome = outcome.expect_code(0);
    assert!(written && outcome.stderr.is_empty() && !outcome.stdout.contains("not run"), "{outcome:?}");
}

#[test]
fn a_package_whose_golden_outputs_are_wrong_is_neither_packed_nor_published() {
    let expected = ["f32.onnx failed on tract", "NMAE", "vector ", "element ", " is ", " and should be "];
    let (outcome, written) = pack(&wrong(), &[]);
    outcome.expect_code(1).expect_complaint(&expected);
    assert!(!written);
    let depot = Depot::in_folder();
    let package = wrong();
    depot.run(&["publish", program::text_of(package.path())]).expect_code(1).expect_complaint(&expected);
    let listed = depot.run(&["list"]).expect_code(0).stdout;
    assert_says(&listed.into(), &["nothing was published yet"]);
}

#[test]
fn a_file_that_was_packed_without_running_its_graphs_is_run_before_it_is_published() {
    let out = tempfile::tempdir().unwrap();
    let publish = |package: &Package, name: &str| {
        let file = out.path().join(name);
        let file = program::text_of(&file);
        let arguments = ["pack", program::text_of(package.path()), "--output", file, "--no-prove"];
        program::run("limpet-lab", &arguments).expect_code(0);
        let depot = Depot::in_folder();
        let outcome = depot.run(&["publish", file]);
        let listed = depot.run(&["list"]).expect_code(0).stdout;
        // Whoever knows better says so.
        let unproved = depot.run(&["publish", file, "--no-prove"]).expect_code(0);
        assert!(unproved.stdout.contains("; not run: f32.onnx"), "{unproved:?}");
        (outcome, listed)
    };
    let (refused, listed) = publish(&wrong(), "wrong.limpet");
    refused.expect_code(1).expect_complaint(&["f32.onnx failed on tract", "NMAE", " and should be "]);
    assert_says(&listed.into(), &["nothing was published yet"]);
    let (right, listed) = publish(&Package::loudness(), "right.limpet");
    let right = right.expect_code(0);
    assert!(!right.stderr.contains("warning") && !right.stdout.contains("not run"), "{right:?}");
    assert_says(&listed.into(), &["loudness"]);
}

#[test]
fn what_was_not_run_is_said_in_a_warning_and_in_the_last_line() {
    let package = wrong();
    let (outcome, written) = pack(&package, &["--no-prove"]);
    let outcome = outcome.expect_code(0);
    assert!(written && outcome.stderr.contains("warning: --no-prove: no graph was run"), "{outcome:?}");
    assert!(outcome.stdout.trim_end().ends_with("; not run: f32.onnx"), "{outcome:?}");
    let depot = Depot::in_folder();
    let outcome = depot.run(&["publish", program::text_of(package.path()), "--no-prove"]).expect_code(0);
    assert!(outcome.stderr.contains("warning: --no-prove: no graph was run"), "{outcome:?}");
    assert!(
        outcome.stdout.contains("loudness 2.0.0 is published, for 100 % of stable; not run: f32.onnx"),
        "{outcome:?}"
    );
}
