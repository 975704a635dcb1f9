//! What comes after a version that cannot run here.

use limpet_tests::Package;

use crate::assert_says;
use crate::depot::{delivered, event_of, waiting};

/// [`Package::loudness`] of another version which wants its samples of two channels, where the source has one.
fn of_two_channels(version: &str) -> Package {
    let package = Package::loudness_of(version, 0.0);
    package.edit("frames = 10, hop = 5", "frames = 5, hop = 5");
    package.edit("[{ name = \"level\",", "[{ name = \"x\", unit = \"full scale\" }, { name = \"y\",");
    // The golden samples are the same numbers in another shape.
    let mut golden = std::fs::read(package.file("golden.safetensors")).expect("the package has it");
    let (one, two) = (b"[16,10,1]", b"[16,5,2 ]");
    let at = golden.windows(one.len()).position(|window| window == one).expect("the samples have this shape");
    golden[at..at + two.len()].copy_from_slice(two);
    package.put("golden.safetensors", &golden);
    package
}

#[test]
fn a_version_that_does_not_fit_its_source_is_rejected_and_the_next_one_is_taken() {
    let (depot, mut bench) = delivered("");
    depot.publish(&of_two_channels("2.0.0"));
    let rejected = event_of(&mut bench.client, "model-rejected", "2.0.0");
    assert_says(&rejected["message"], &["loudness 2.0.0 is rejected", "1.0.0 goes on", "2 channels"]);
    depot.publish(&Package::loudness_of("2.1.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.1.0");
}

#[test]
fn a_first_version_that_does_not_fit_is_rejected_and_the_next_one_is_taken() {
    let (depot, mut bench) = waiting("");
    depot.publish(&of_two_channels("1.0.0"));
    let rejected = event_of(&mut bench.client, "model-rejected", "1.0.0");
    assert_says(
        &rejected["message"],
        &["loudness 1.0.0 is rejected", "no version of it runs", "1 channels", "expects 2"],
    );
    depot.publish(&Package::loudness_of("1.1.0", 0.01));
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
}
