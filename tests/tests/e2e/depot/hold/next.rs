//! What comes after a version that cannot run here.

use limpet_tests::Package;

use crate::assert_says;
use crate::depot::{delivered, event_of, waiting};

#[test]
fn a_version_that_does_not_fit_its_source_is_rejected_and_the_next_one_is_taken() {
    let (depot, mut bench) = delivered("");
    depot.publish(&Package::of_two_channels("2.0.0"));
    let rejected = event_of(&mut bench.client, "model-rejected", "2.0.0");
    assert_says(&rejected["message"], &["loudness 2.0.0 is rejected", "1.0.0 goes on", "2 channels"]);
    depot.publish(&Package::loudness_of("2.1.0", 0.01));
    event_of(&mut bench.client, "model-activated", "2.1.0");
}

#[test]
fn a_first_version_that_does_not_fit_is_rejected_and_the_next_one_is_taken() {
    let (depot, mut bench) = waiting("");
    depot.publish(&Package::of_two_channels("1.0.0"));
    let rejected = event_of(&mut bench.client, "model-rejected", "1.0.0");
    assert_says(
        &rejected["message"],
        &["loudness 1.0.0 is rejected", "no version of it runs", "1 channels", "expects 2"],
    );
    depot.publish(&Package::loudness_of("1.1.0", 0.01));
    bench.agent.wait_for_model(&mut bench.client, "loudness", "active");
}
