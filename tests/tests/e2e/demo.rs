//! The demo: what a newcomer sees first.

use limpet_tests::{program, root};

#[test]
fn the_demo_sees_the_fault_come_and_go_and_exits_with_zero() {
    let model = root().join("models/motor-health");
    let arguments = ["demo", "--seconds", "30", "--plain", "--model", program::text_of(&model)];
    let shown = program::run("limpet-lab", &arguments).expect_code(0).stdout;
    // The results as they came, then the summary.
    for word in ["healthy", "bearing"] {
        assert!(shown.contains(word), "no {word} in:\n{shown}");
    }
}

#[test]
fn a_demo_too_short_to_judge_is_usage() {
    program::run("limpet-lab", &["demo", "--seconds", "1"]).expect_code(64).expect_complaint(&["20"]);
}
