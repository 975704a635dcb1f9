//! Proofs end to end, in real child processes: this program is its own proof child, as both binaries are.

mod files;
mod toy;

use std::path::Path;
use std::time::Duration;

use files::{Folder, SCORES, flat, matmul_onnx, shared, write_golden, write_vectors};
use libtest_mimic::{Arguments, Trial};
use limpet_depot::golden::Golden;
use limpet_depot::manifest::Limits;
use limpet_depot::proof::Verdict;
use limpet_depot::{
    Batches, Choice, DepotError, Options, Package, ProofStore, Proved, Ran, Report, Row, Subject, Tuning, prove,
    run_graphs,
};
use limpet_engine::{Engine, LoadOptions};
use toy::Toy;

fn main() {
    limpet_depot::run_if_proof_child_with(|| {
        let mut engines = limpet_engine::engines();
        engines.push(Box::new(Toy));
        engines
    });
    macro_rules! trials {
        ($($test:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($test), || { $test(); Ok(()) })),*]
        };
    }
    let trials = trials![
        a_right_graph_passes_with_every_measure,
        a_package_is_proved_from_samples_to_outputs,
        features_that_differ_from_the_golden_ones_fail,
        a_wrong_graph_fails_with_its_numbers,
        an_output_that_is_not_finite_fails,
        a_graph_that_crashes_its_engine_costs_only_its_row,
        a_graph_that_hangs_is_stopped,
        a_graph_that_allocates_too_much_fails,
        what_the_engine_refuses_is_refused_with_its_reason,
        golden_vectors_that_prove_nothing_are_refused,
        a_graph_that_ignores_its_input_cannot_be_proved,
        shapes_that_do_not_fit_are_refused_with_both_numbers,
        a_budget_that_is_too_small_fails,
        a_package_goes_out_if_an_engine_gives_its_golden_outputs_whatever_the_budget,
        a_package_whose_golden_outputs_are_wrong_does_not_go_out,
        a_bare_graph_is_judged_by_its_golden_file,
        outputs_are_written_as_the_graph_gives_them,
        a_proof_is_kept_and_found_again,
        batches_are_tried_until_they_gain_nothing,
        a_batch_that_is_refused_or_wrong_ends_the_search,
        a_batch_that_ends_the_process_costs_no_more,
        batches_are_proved_when_they_are_first_wanted,
        what_holds_without_batches_is_not_lost_to_a_bad_day,
        a_reduced_variant_is_told_apart,
        the_front_end_is_timed_where_there_is_one,
        a_tuning_wins_while_it_is_valid,
        a_failure_is_kept_but_bad_days_are_forgiven,
        a_package_that_fails_is_not_served,
        folder_and_file_are_one_package,
        tract_proves_a_graph_and_refuses_a_damaged_one,
        the_reference_models_pass,
        an_anomaly_is_judged_by_its_scores_too,
        a_wakeword_is_proved_from_speech,
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn toy() -> Vec<Box<dyn Engine>> {
    vec![Box::new(Toy)]
}

fn quick() -> Options {
    Options { timing: Duration::from_millis(20), ..Options::default() }
}

fn report(folder: &Folder) -> Report {
    let package = Package::open(folder.path()).unwrap();
    prove(Subject::Package(&package), &toy(), &quick()).unwrap()
}

/// The only row of a proof of one toy graph.
fn row_of(graph: &str) -> Row {
    report(&Folder::echo(&[("a.onnx", graph.as_bytes())])).rows.remove(0)
}

fn assert_row(row: &Row, verdict: Verdict, reason: &str) {
    assert_eq!(row.verdict, verdict, "{}", row.reason);
    assert!(row.reason.contains(reason), "{}", row.reason);
    assert!(!row.reason.contains('\n'), "one sentence: {}", row.reason);
}

fn a_right_graph_passes_with_every_measure() {
    let report = report(&Folder::echo(&[("a.onnx", b"right")]));
    let row = &report.rows[0];
    assert_row(row, Verdict::Passed, "within its limits");
    assert_eq!((row.top1_agreement, row.mean_abs_error, row.nmae), (Some(1.0), Some(0.0), Some(0.0)));
    assert!(row.p50_us <= row.p99_us && row.load_ms.is_some(), "{row:?}");
    assert!(row.memory_bytes.is_some(), "Linux tells the proportional set size");
    assert_eq!(report.verdict, Verdict::Passed);
    assert_eq!(report.chosen, Some(Choice { engine: "toy".into(), variant: "a.onnx".into() }));
}

fn a_package_is_proved_from_samples_to_outputs() {
    assert_row(&report(&Folder::doubled(b"right")).rows[0], Verdict::Passed, "within its limits");
    let folder = Folder::doubled(b"right");
    folder.edit("model.toml", |manifest| manifest.replace("scale = 2.0", "scale = 1.0"));
    folder.golden(&[("samples", flat(&SCORES).iter().map(|x| x / 2.0).collect()), ("output", flat(&SCORES))]);
    // The best class is right all the same; only the values are not.
    assert_row(&report(&folder).rows[0], Verdict::Failed, "NMAE");
}

fn features_that_differ_from_the_golden_ones_fail() {
    let folder = Folder::doubled(b"right");
    let half = flat(&SCORES).iter().map(|x| x / 2.0).collect();
    let off = flat(&SCORES).iter().map(|x| x + 0.01).collect();
    folder.golden(&[("samples", half), ("features", off), ("output", flat(&SCORES))]);
    assert_row(&report(&folder).rows[0], Verdict::Failed, "the front end's features differ from the golden ones");
}

fn a_wrong_graph_fails_with_its_numbers() {
    let row = row_of("wrong");
    assert_row(&row, Verdict::Failed, "top-1 agreement 0.000 is below 1; NMAE");
    assert!(row.nmae > Some(0.25) && row.p50_us.is_some(), "{row:?}");
    assert_row(&row_of("constant"), Verdict::Failed, "top-1 agreement 0.000");
}

fn an_output_that_is_not_finite_fails() {
    assert_row(&row_of("not finite"), Verdict::Failed, "\"output\" is NaN in vector 0: not finite");
}

fn a_graph_that_crashes_its_engine_costs_only_its_row() {
    let variants: &[(&str, &[u8])] = &[
        ("loading.onnx", b"aborts loading"),
        ("running.onnx", b"aborts running"),
        ("panics.onnx", b"panics loading"),
        ("right.onnx", b"right"),
    ];
    let report = report(&Folder::echo(variants));
    assert_row(&report.rows[0], Verdict::Failed, "killed by SIGABRT while loading");
    assert_row(&report.rows[1], Verdict::Failed, "killed by SIGABRT while running");
    assert_row(&report.rows[2], Verdict::Refused, "toy gave up on it: operator 7 has no shape (");
    assert_row(&report.rows[3], Verdict::Passed, "");
    assert_eq!(report.chosen.unwrap().variant, "right.onnx");
}

fn a_graph_that_hangs_is_stopped() {
    let folder = Folder::echo(&[("a.onnx", b"hangs")]);
    let package = Package::open(folder.path()).unwrap();
    let options = Options { wall: Duration::from_secs(1), ..quick() };
    let report = prove(Subject::Package(&package), &toy(), &options).unwrap();
    assert_row(&report.rows[0], Verdict::Failed, "did not end within 1 s and was stopped");
}

fn a_graph_that_allocates_too_much_fails() {
    let folder = Folder::echo(&[("a.onnx", b"allocates")]);
    let package = Package::open(folder.path()).unwrap();
    let options = Options { data_bytes: 256 << 20, ..quick() };
    let report = prove(Subject::Package(&package), &toy(), &options).unwrap();
    assert_row(&report.rows[0], Verdict::Failed, "while loading: memory allocation of 1073741824 bytes failed");
}

fn what_the_engine_refuses_is_refused_with_its_reason() {
    assert_row(&row_of("refused"), Verdict::Refused, "toy cannot load this graph: there is no operator Foo");
    assert_row(&row_of("fails running"), Verdict::Refused, "the arena is full");
    let folder = Folder::echo(&[("a.onnx", b"right")]);
    let package = Package::open(folder.path()).unwrap();
    let report = prove(Subject::Package(&package), &[], &quick()).unwrap();
    assert_row(&report.rows[0], Verdict::Refused, "no engine of this build reads .onnx files");
    assert_eq!((report.verdict, report.chosen), (Verdict::Refused, None));
}

fn golden_vectors_that_prove_nothing_are_refused() {
    let folder = Folder::echo(&[("a.onnx", b"right")]);
    let same = flat(&[SCORES[0]; 6]);
    folder.golden(&[("input", same.clone()), ("output", same)]);
    assert_row(
        &report(&folder).rows[0],
        Verdict::Refused,
        "proves nothing: the same answer to every vector would pass",
    );
    let error = Package::open(folder.path()).unwrap().check_golden().unwrap_err().to_string();
    assert!(error.contains("proves nothing"), "{error}");
}

fn a_graph_that_ignores_its_input_cannot_be_proved() {
    // A single vector's worth of difference, and limits wide enough to hide it: zeros would pass.
    let folder = Folder::echo(&[("a.onnx", b"right")]);
    folder.edit("model.toml", |manifest| manifest.replace("classification", "regression"));
    folder.edit("model.toml", |manifest| manifest + "[proof]\nnmae = 0.99\n");
    let mut values = vec![[0.0; 3]; 9];
    values.extend([[0.1, 0.0, 0.0], [1.0, 1.0, 1.0]]);
    values.extend(vec![[1.0, 1.0, 1.0]; 9]);
    folder.golden(&[("input", flat(&values)), ("output", flat(&values))]);
    assert_row(&report(&folder).rows[0], Verdict::Refused, "an input of shuffled values would pass too");
    let error = run_graphs(&Package::open(folder.path()).unwrap(), &toy()).unwrap_err().to_string();
    assert!(error.contains("a.onnx refused on toy: ") && error.contains("would pass too"), "{error}");
}

fn shapes_that_do_not_fit_are_refused_with_both_numbers() {
    let folder = Folder::doubled(b"right");
    folder.edit("model.toml", |manifest| manifest.replace("frames = 3", "frames = 6"));
    folder.golden(&[
        ("samples", [flat(&SCORES), flat(&SCORES)].concat()),
        ("output", [flat(&SCORES), flat(&SCORES)].concat()),
    ]);
    let row = report(&folder).rows.remove(0);
    assert_row(&row, Verdict::Refused, "one window needs 6 samples of 1 channels, so 6");
    let folder = Folder::echo(&[("a.onnx", b"right")]);
    folder.write("labels.txt", b"a\nb\n");
    assert_row(&report(&folder).rows[0], Verdict::Refused, "3 values a vector and labels.txt 2 labels");
}

fn a_budget_that_is_too_small_fails() {
    // It works for a while: the time of one that does nothing may be that of reading the clock alone.
    let folder = Folder::echo(&[("a.onnx", b"gains in batches")]);
    folder.edit("model.toml", |manifest| manifest + "[budget]\nlatency_p99 = \"1ns\"\n");
    let row = report(&folder).rows.remove(0);
    assert_row(&row, Verdict::Failed, "is above the budget's latency_p99 of 1ns");
    assert_eq!(row.top1_agreement, Some(1.0), "it was right, only too slow");
}

fn prove_graph(folder: &Path, graph: &[u8], tensors: &[(&str, Vec<f32>)], options: &Options) -> Row {
    let (path, golden) = (folder.join("a.onnx"), folder.join("golden.safetensors"));
    std::fs::write(&path, graph).unwrap();
    write_golden(&golden, tensors);
    let subject = Subject::Graph { path: &path, golden: &golden, limits: Limits::GRAPH };
    prove(subject, &toy(), options).unwrap().rows.remove(0)
}

fn a_package_goes_out_if_an_engine_gives_its_golden_outputs_whatever_the_budget() {
    let folder = Folder::echo(&[("a.onnx", b"right")]);
    folder.edit("model.toml", |manifest| manifest + "[budget]\nlatency_p99 = \"1ns\"\nmemory = \"1KiB\"\n");
    let package = Package::open(folder.path()).unwrap();
    assert_row(
        &prove(Subject::Package(&package), &toy(), &quick()).unwrap().rows[0],
        Verdict::Failed,
        "is above the budget's",
    );
    let right = Ran { right: vec!["a.onnx".to_owned()], ..Ran::default() };
    assert_eq!(run_graphs(&package, &toy()).unwrap(), right);
    // To tract these bytes are no graph. One engine is enough, and the publisher is told of the other.
    let both: Vec<Box<dyn Engine>> = toy().into_iter().chain(limpet_engine::engines()).collect();
    let ran = run_graphs(&package, &both).unwrap();
    assert_eq!((&ran.right, ran.doubts.len()), (&right.right, 1));
    assert!(ran.doubts[0].starts_with("a.onnx refused on tract: "), "{ran:?}");
    let unread = vec!["a.onnx: no engine of this build reads .onnx files".to_owned()];
    assert_eq!(run_graphs(&package, &[]).unwrap(), Ran { unread, ..Ran::default() });
}

fn a_package_whose_golden_outputs_are_wrong_does_not_go_out() {
    let folder = Folder::echo(&[("a.onnx", b"right"), ("b.onnx", b"right")]);
    let mut output = flat(&SCORES);
    // Vector 4 is of another class than the graph says.
    output.swap(4 * 3, 4 * 3 + 1);
    let (is, should) = (SCORES[4], &output[12..15]);
    folder.golden(&[("input", flat(&SCORES)), ("output", output.clone())]);
    let package = Package::open(folder.path()).unwrap();
    package.check_golden().unwrap();
    let error = run_graphs(&package, &toy()).unwrap_err().to_string();
    assert!(error.starts_with(&folder.path().display().to_string()), "{error}");
    for variant in ["a.onnx failed on toy: ", "b.onnx failed on toy: "] {
        assert!(error.contains(variant), "{error}");
    }
    let best = |values: &[f32]| (0..3).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap();
    let classes = format!("vector 4 gives class {} where class {} is expected: ", best(&is), best(should));
    let elements = [0, 1].map(|at| format!("element {at} of \"output\" is {} and should be {}", is[at], should[at]));
    assert!(error.contains(&classes) && elements.iter().any(|text| error.contains(text)), "{error}");
    // One variant that is wrong is enough.
    let folder = Folder::echo(&[("a.onnx", b"right"), ("b.onnx", b"wrong")]);
    let error = run_graphs(&Package::open(folder.path()).unwrap(), &toy()).unwrap_err().to_string();
    assert!(
        error.contains("b.onnx failed on toy: top-1 agreement 0.000") && !error.contains("a.onnx failed"),
        "{error}"
    );
    let folder = Folder::echo(&[("a.onnx", b"not finite")]);
    let error = run_graphs(&Package::open(folder.path()).unwrap(), &toy()).unwrap_err().to_string();
    assert!(error.contains("is NaN in vector 0") && error.contains("is NaN and should be"), "{error}");
}

fn a_bare_graph_is_judged_by_its_golden_file() {
    let folder = tempfile::tempdir().unwrap();
    let right = [("input", flat(&SCORES)), ("output", flat(&SCORES))];
    let row = prove_graph(folder.path(), b"right", &right, &quick());
    assert_row(&row, Verdict::Passed, "within its limits");
    assert_eq!((row.variant.as_str(), row.top1_agreement), ("a.onnx", Some(1.0)));
    let named = [("input.in", flat(&SCORES)), ("output.out", flat(&SCORES))];
    assert_row(&prove_graph(folder.path(), b"right", &named, &quick()), Verdict::Passed, "");
    let other = [("input.other", flat(&SCORES)), ("output.out", flat(&SCORES))];
    let row = prove_graph(folder.path(), b"right", &other, &quick());
    assert_row(
        &row,
        Verdict::Refused,
        "expected \"input\" or \"input.in\", and it holds \"input.other\", \"output.out\"",
    );
    let (path, golden) = (folder.path().join("a.onnx"), folder.path().join("golden.safetensors"));
    std::fs::write(&golden, b"noise").unwrap();
    let subject = Subject::Graph { path: &path, golden: &golden, limits: Limits::GRAPH };
    let error = prove(subject, &toy(), &quick()).unwrap_err();
    assert!(matches!(error, DepotError::Golden { .. }), "{error}");
}

fn outputs_are_written_as_the_graph_gives_them() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = folder.path().join("outputs");
    let options = Options { outputs: Some(outputs.clone()), ..quick() };
    let named = [("input", flat(&SCORES)), ("output.out", flat(&SCORES))];
    prove_graph(folder.path(), b"wrong", &named, &options);
    let bytes = std::fs::read(outputs.join("toy.a.onnx.safetensors")).unwrap();
    let given = Golden::read("given", &bytes).unwrap();
    let tensor = given.need("output", Some("out"), false).unwrap();
    assert_eq!(tensor.shape, [6, 3]);
    let rotated: Vec<f32> = SCORES.iter().flat_map(|[a, b, c]| [*b, *c, *a]).collect();
    assert_eq!(tensor.values.real(None), Some(rotated));
}

fn a_proof_is_kept_and_found_again() {
    let state = tempfile::tempdir().unwrap();
    let folder = Folder::echo(&[("a.onnx", b"right"), ("b.tflite", b"wrong")]);
    let package = Package::open(folder.path()).unwrap();
    let store = ProofStore::new(state.path(), &toy()).unwrap();
    assert_eq!(store.choice(&package, &toy(), &quick()), None);
    let proved = store.get_or_prove(&package, &toy(), &quick()).unwrap();
    assert_eq!((proved.serving.choice.variant.as_str(), &proved.not_kept), ("a.onnx", &None));
    let mut session = proved.open_session(&package, &toy(), LoadOptions::default()).unwrap();
    session.run().unwrap();
    let again = ProofStore::new(state.path(), &toy()).unwrap();
    assert_eq!(again.choice(&package, &toy(), &quick()).unwrap().serving, proved.serving);
    // Times are never the same twice: these were not measured again.
    assert_eq!(
        again.get_or_prove(&package, &toy(), &quick()).unwrap().report.rows[1].p50_us,
        proved.report.rows[1].p50_us
    );
    folder.write("b.tflite", b"right");
    let changed = Package::open(folder.path()).unwrap();
    assert_eq!(again.choice(&changed, &toy(), &quick()), None, "another digest needs another proof");
}

fn with_batches() -> Options {
    Options { batches: true, ..quick() }
}

/// What batches of one toy graph gain.
fn batches_of(graph: &str, options: &Options) -> Batches {
    let folder = Folder::echo(&[("a.onnx", graph.as_bytes())]);
    let package = Package::open(folder.path()).unwrap();
    let mut report = prove(Subject::Package(&package), &toy(), options).unwrap();
    let row = report.rows.remove(0);
    assert_row(&row, Verdict::Passed, "within its limits");
    let batches = row.batches.expect("batches were asked for");
    let one = batches.sizes[0];
    assert_eq!((Some(one.p50_us), Some(one.p99_us), one.memory_bytes), (row.p50_us, row.p99_us, row.memory_bytes));
    assert!(batches.sizes.iter().all(|cost| cost.p50_us <= cost.p99_us && cost.runs > 0), "{batches:?}");
    batches
}

fn sizes(batches: &Batches) -> Vec<usize> {
    batches.sizes.iter().map(|cost| cost.size).collect()
}

fn batches_are_tried_until_they_gain_nothing() {
    let gains = batches_of("gains in batches", &with_batches());
    assert_eq!(sizes(&gains), [1, 2, 4, 8, 16, 32, 64]);
    assert_eq!(gains.stopped, "64 is the largest that is tried");
    let loses = batches_of("loses in batches", &with_batches());
    assert_eq!(sizes(&loses), [1]);
    let stopped = |batches: &Batches, sizes: [usize; 2], against: usize| {
        let words: Vec<&str> = batches.stopped.split(", ").collect();
        words.len() == 2
            && words.iter().zip(sizes).all(|(word, size)| {
                word.starts_with(&format!("{size} loses ")) && word.ends_with(&format!(" % against {against}"))
            })
    };
    assert!(stopped(&loses, [2, 4], 1), "{}", loses.stopped);
    // One size that does not gain is not the end.
    let tiles = batches_of("computes four at once", &with_batches());
    assert_eq!(sizes(&tiles), [1, 4]);
    assert!(stopped(&tiles, [8, 16], 4), "{}", tiles.stopped);
    assert_eq!(row_of("gains in batches").batches, None, "only where they are asked for");
}

fn a_batch_that_is_refused_or_wrong_ends_the_search() {
    let batches = batches_of("takes no batch", &with_batches());
    let stopped = "runs one by one: toy cannot load this graph: a Reshape is fixed";
    assert_eq!((sizes(&batches), batches.stopped.as_str()), (vec![1], stopped));
    let batches = batches_of("takes a batch of 2", &with_batches());
    let stopped = "4 cannot be used: toy cannot load this graph: it is too large";
    assert_eq!((sizes(&batches), batches.stopped.as_str()), (vec![1, 2], stopped));
    let batches = batches_of("keeps its shape", &with_batches());
    assert_eq!(batches.stopped, "runs one by one: its inputs become [1, 3], which is not 2 times [1, 3]");
    // Each answer is there, at the place of its neighbor.
    let batches = batches_of("wrong in a batch of 4", &with_batches());
    assert_eq!(sizes(&batches), [1, 2]);
    assert!(batches.stopped.starts_with("4 cannot be used: a batch of 4 gives other answers: top-1"), "{batches:?}");
}

fn a_batch_that_ends_the_process_costs_no_more() {
    let batches = batches_of("aborts in a batch of 4", &with_batches());
    let stopped = "4 cannot be used: killed by SIGABRT while trying a batch of 4";
    assert_eq!(sizes(&batches), [1, 2]);
    assert!(batches.stopped.starts_with(stopped), "{batches:?}");
    let batches = batches_of("panics in a batch of 4", &with_batches());
    assert_eq!(sizes(&batches), [1, 2]);
    let stopped = "4 cannot be used: ended with exit code 101 while trying a batch of 4: no kernel for 4 rows (";
    assert!(batches.stopped.starts_with(stopped), "{batches:?}");
    let options = Options { wall: Duration::from_secs(4), ..with_batches() };
    let batches = batches_of("hangs in a batch of 4", &options);
    let stopped = "4 cannot be used: did not end within 4 s and was stopped while trying a batch of 4";
    assert_eq!(sizes(&batches), [1, 2]);
    assert!(batches.stopped.starts_with(stopped), "{batches:?}");
    // Its single runs take more than half of the time.
    let batches = batches_of("sleeps", &Options { wall: Duration::from_secs(5), ..with_batches() });
    assert_eq!(batches.stopped, "2 was left out, since half of the 5 s for this proof was over");
}

fn batches_are_proved_when_they_are_first_wanted() {
    let state = tempfile::tempdir().unwrap();
    let folder = Folder::echo(&[("a.onnx", b"takes no batch"), ("b.onnx", b"wrong")]);
    let package = Package::open(folder.path()).unwrap();
    let store = ProofStore::new(state.path(), &toy()).unwrap();
    store.get_or_prove(&package, &toy(), &quick()).unwrap();
    mark_kept(state.path());
    assert_eq!(store.choice(&package, &toy(), &with_batches()), None);
    let reasons = |proved: &Proved| -> Vec<bool> {
        proved.report.rows.iter().map(|row| row.reason == "as it was kept").collect()
    };
    let proved = store.get_or_prove(&package, &toy(), &with_batches()).unwrap();
    assert_eq!(reasons(&proved), [false, true], "only what was missing was proved again");
    assert_eq!(sizes(proved.serving.batches.as_ref().unwrap()), [1]);
    let found = store.choice(&package, &toy(), &with_batches()).expect("both are kept");
    assert_eq!(found.serving, proved.serving);
    assert!(store.choice(&package, &toy(), &quick()).is_some(), "more than was asked for serves too");
}

fn what_holds_without_batches_is_not_lost_to_a_bad_day() {
    let state = tempfile::tempdir().unwrap();
    let folder = Folder::echo(&[("a.onnx", b"sleeps")]);
    let package = Package::open(folder.path()).unwrap();
    let store = ProofStore::new(state.path(), &toy()).unwrap();
    let proved = store.get_or_prove(&package, &toy(), &quick()).unwrap();
    // It needs 2 s for its single runs.
    let hurried = Options { wall: Duration::from_secs(1), ..with_batches() };
    assert_eq!(store.get_or_prove(&package, &toy(), &hurried).unwrap().serving, proved.serving);
    assert!(store.choice(&package, &toy(), &quick()).is_some(), "it is still kept");
}

fn a_reduced_variant_is_told_apart() {
    let state = tempfile::tempdir().unwrap();
    let folder = Folder::echo(&[("a.onnx", b"loses in batches"), ("small.onnx", b"right"), ("other.onnx", b"wrong")]);
    folder.edit("model.toml", |manifest| {
        let reduced = |manifest: String, file: &str| {
            let line = format!("file = \"{file}\"\n");
            manifest.replace(&line, &format!("{line}role = \"reduced\"\n"))
        };
        reduced(reduced(manifest, "small.onnx"), "other.onnx")
    });
    let package = Package::open(folder.path()).unwrap();
    let store = ProofStore::new(state.path(), &toy()).unwrap();
    let proved = store.get_or_prove(&package, &toy(), &quick()).unwrap();
    let reduced = proved.reduced.clone().expect("small.onnx passed");
    assert_eq!((proved.serving.choice.variant.as_str(), reduced.choice.variant.as_str()), ("a.onnx", "small.onnx"));
    assert!(reduced.p50_us < proved.serving.p50_us);
    for which in [&proved.serving, &reduced] {
        let graph = proved.open_graph(which, &package, &toy()).unwrap();
        graph.session(LoadOptions::default()).unwrap().run().unwrap();
    }
    assert_eq!(store.choice(&package, &toy(), &quick()).unwrap().reduced, Some(reduced));
}

fn the_front_end_is_timed_where_there_is_one() {
    let row = report(&Folder::doubled(b"right")).rows.remove(0);
    let ingest = row.ingest.expect("it has samples");
    assert!(ingest.mean_us >= 0.0 && ingest.p99_us >= 0.0 && ingest.runs > 0, "{ingest:?}");
    assert_eq!(row_of("right").ingest, None);
}

fn a_tuning_wins_while_it_is_valid() {
    let state = tempfile::tempdir().unwrap();
    let folder = Folder::echo(&[("a.onnx", b"right"), ("b.onnx", b"loses in batches"), ("c.onnx", b"wrong")]);
    let package = Package::open(folder.path()).unwrap();
    let store = ProofStore::new(state.path(), &toy()).unwrap();
    let proved = store.get_or_prove(&package, &toy(), &quick()).unwrap();
    assert_eq!((proved.serving.choice.variant.as_str(), proved.threads, proved.batch_cap), ("a.onnx", 1, None));
    let tuning = |variant: &str| Tuning {
        choice: Choice { engine: "toy".into(), variant: variant.into() },
        threads: 2,
        batch: 8,
    };
    let slower = tuning("b.onnx");
    assert_eq!(store.tuning(&package), None);
    store.keep_tuning(&package, &slower).unwrap();
    assert_eq!(store.tuning(&package), Some(slower.clone()));
    let tuned = |proved: Proved| (proved.serving.choice.variant, proved.threads, proved.batch_cap);
    let expected = ("b.onnx".to_owned(), 2, Some(8));
    assert_eq!(tuned(store.choice(&package, &toy(), &quick()).unwrap()), expected);
    assert_eq!(tuned(store.get_or_prove(&package, &toy(), &quick()).unwrap()), expected);

    // What did not pass does not serve, however it was tuned.
    store.keep_tuning(&package, &tuning("c.onnx")).unwrap();
    let untuned = ("a.onnx".to_owned(), 1, None);
    assert_eq!(tuned(store.choice(&package, &toy(), &quick()).unwrap()), untuned);
    let wrong = store.keep_tuning(&package, &tuning("d.onnx")).unwrap_err().to_string();
    assert!(wrong.contains("d.onnx on toy") && wrong.contains("no such variant"), "{wrong}");
    let zero = Tuning { batch: 0, ..slower.clone() };
    assert!(store.keep_tuning(&package, &zero).unwrap_err().to_string().contains("at least 1"));

    // Another program of this version finds it, and another CPU or library does not.
    store.keep_tuning(&package, &slower).unwrap();
    let path = state.path().join("proofs").join(format!("{}.tuning", package.digest()));
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(!kept.contains("agent"), "nothing of the program but its version: {kept}");
    for key in ["package", "library", "version", "cpu"] {
        let mut other: serde_json::Value = serde_json::from_str(&kept).unwrap();
        other[key] = "another".into();
        std::fs::write(&path, other.to_string()).unwrap();
        assert_eq!(store.tuning(&package), None, "{key}");
    }
}

/// Changes the reason in every proof that is kept.
fn mark_kept(state: &Path) {
    for entry in std::fs::read_dir(state.join("proofs")).unwrap() {
        let path = entry.unwrap().path();
        let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        if let Some(row) = kept.get_mut("row") {
            row["reason"] = "as it was kept".into();
            std::fs::write(&path, serde_json::to_vec(&kept).unwrap()).unwrap();
        }
    }
}

fn a_failure_is_kept_but_bad_days_are_forgiven() {
    let failure = |folder: &Folder| {
        let state = tempfile::tempdir().unwrap();
        let package = Package::open(folder.path()).unwrap();
        let store = ProofStore::new(state.path(), &toy()).unwrap();
        store.get_or_prove(&package, &toy(), &quick()).unwrap_err();
        mark_kept(state.path());
        store.get_or_prove(&package, &toy(), &quick()).unwrap_err().to_string()
    };
    let wrong = failure(&Folder::echo(&[("a.onnx", b"wrong")]));
    assert!(wrong.contains("as it was kept"), "{wrong}");
    let slow = Folder::echo(&[("a.onnx", b"right")]);
    slow.edit("model.toml", |manifest| manifest + "[budget]\nlatency_p99 = \"1ns\"\n");
    let slow = failure(&slow);
    assert!(slow.contains("above the budget's latency_p99"), "{slow}");
}

fn a_package_that_fails_is_not_served() {
    let state = tempfile::tempdir().unwrap();
    let folder = Folder::echo(&[("a.onnx", b"constant"), ("b.onnx", b"refused")]);
    let package = Package::open(folder.path()).unwrap();
    let store = ProofStore::new(state.path(), &toy()).unwrap();
    let error = store.get_or_prove(&package, &toy(), &quick()).unwrap_err().to_string();
    assert!(error.starts_with("echo 1.0.0: no variant passed its proof: a.onnx on toy: top-1"), "{error}");
    assert!(error.contains("b.onnx on toy: toy cannot load"), "{error}");
}

fn folder_and_file_are_one_package() {
    let folder = Folder::echo(&[("a.onnx", b"right")]);
    folder.write("train.py", b"print('not part of the model')");
    let out = folder.path().join("echo.limpet");
    let packed = Package::open(folder.path()).unwrap();
    packed.write(&out).unwrap();
    let opened = Package::open(&out).unwrap();
    assert_eq!(opened.digest(), packed.digest());
    assert_eq!(opened.manifest(), packed.manifest());
    assert_eq!(opened.labels(), packed.labels());
    let again = folder.path().join("again.limpet");
    packed.write(&again).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap(), "the same bytes every time");
    let mut damaged = std::fs::read(&out).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    std::fs::write(&again, damaged).unwrap();
    let error = Package::open(&again).unwrap_err().to_string();
    assert!(error.contains("again.limpet"), "{error}");
}

fn tract_proves_a_graph_and_refuses_a_damaged_one() {
    let swap = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]];
    let graph = matmul_onnx(swap);
    let folder = Folder::echo(&[("a.onnx", &graph), ("damaged.onnx", &graph[..graph.len() / 2])]);
    let swapped: Vec<f32> = SCORES.iter().flat_map(|[a, b, c]| [*b, *a, *c]).collect();
    folder.golden(&[("input", flat(&SCORES)), ("output", swapped)]);
    let package = Package::open(folder.path()).unwrap();
    let engines = limpet_engine::engines();
    let report = prove(Subject::Package(&package), &engines, &quick()).unwrap();
    assert_row(&report.rows[0], Verdict::Passed, "within its limits");
    assert_row(&report.rows[1], Verdict::Refused, "tract cannot load");
    folder.golden(&[("input", flat(&SCORES)), ("output", flat(&SCORES))]);
    let package = Package::open(folder.path()).unwrap();
    let report = prove(Subject::Package(&package), &engines, &quick()).unwrap();
    assert_row(&report.rows[0], Verdict::Failed, "top-1 agreement");
}

/// MLPerf Tiny's int8 models within the contract's NMAE. Of keyword-spotting's vectors one is a tie on every engine but
/// the reference kernels, and a tie is a disagreement, so agreement is held to what a bare graph is. In batches they give
/// the same.
fn the_reference_models_pass() {
    let Some(shared) = shared() else { return };
    let engines = limpet_engine::engines();
    for task in
        ["keyword-spotting", "streaming-wakeword", "anomaly-detection", "image-classification", "visual-wake-words"]
    {
        for file in ["int8.tflite", "int8-qdq.onnx"] {
            let folder = shared.join("models/mlperf-tiny").join(task);
            let (path, golden) = (folder.join(file), folder.join("int8.golden.safetensors"));
            let limits = Limits { nmae: 0.12, ..Limits::GRAPH };
            let subject = Subject::Graph { path: &path, golden: &golden, limits };
            let report = prove(subject, &engines, &with_batches()).unwrap();
            print!("{task}\n{}", report.table());
            for row in report.rows.iter().filter(|row| row.engine != "none") {
                assert_row(row, Verdict::Passed, "within its limits");
                let batches = row.batches.as_ref().expect("batches were asked for");
                assert_eq!(batches.sizes[0].size, 1);
                assert!(batches.stopped.contains(" % ") || batches.stopped.starts_with("64"), "{}", batches.stopped);
            }
        }
    }
}

fn an_anomaly_is_judged_by_its_scores_too() {
    let row = |graph: &[u8], decision| report(&Folder::anomaly(graph, decision)).rows.remove(0);
    assert_row(&row(b"halves", "threshold = 0.06"), Verdict::Passed, "within its limits");
    let nearly = row(b"nearly halves", "");
    assert_row(&nearly, Verdict::Failed, "the anomaly scores differ by");
    assert!(nearly.nmae < Some(0.25), "its outputs alone would have passed: {nearly:?}");
    // The golden scores are 0.068, 0.055, 0.068, 0.045, 0.061 and 0.045; an error raises 0.0609 to 0.0634.
    assert_row(&row(b"nearly halves", "threshold = 0.062"), Verdict::Failed, "vector 4 scores");
    let same = Folder::anomaly(b"right", "");
    same.golden(&[("input", flat(&SCORES)), ("output", flat(&SCORES))]);
    assert_row(&report(&same).rows[0], Verdict::Refused, "its anomaly scores are all 0");
}

/// The streaming wake word of MLPerf Tiny as a package: from samples of speech through the front end to the classes,
/// with the reference's features and outputs as golden ones.
fn a_wakeword_is_proved_from_speech() {
    const FRAMES: usize = 30;
    const LENGTH: usize = 1024;
    const HOP: usize = 512;
    const BANDS: usize = 40;
    const APART: usize = 12;
    let Some(shared) = shared() else { return };
    let wav = std::fs::read(shared.join("wakeword/short_wav_easy10s.wav")).unwrap();
    let data = wav.windows(4).position(|at| at == b"data").unwrap() + 8;
    // Two channels of i16; the first is the one.
    let samples: Vec<f32> =
        wav[data..].chunks_exact(4).map(|pair| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0).collect();
    let expected = std::fs::read(shared.join("wakeword/short_wav_easy10s.expected.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&expected).unwrap();
    let reals = expected.tensor("features").unwrap();
    let reals: Vec<f32> =
        reals.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    let scores = expected.tensor("output").unwrap();
    let scores: Vec<f32> = scores.data().iter().map(|byte| (f32::from(byte.cast_signed()) + 128.0) / 256.0).collect();
    let starts: Vec<usize> = (0..scores.len() / 3).step_by(APART).collect();
    let cut = |from: &[f32], unit: usize, length: usize| -> Vec<f32> {
        starts.iter().flat_map(|start| from[start * unit..start * unit + length].to_vec()).collect()
    };
    let tensors = [
        ("samples", cut(&samples, HOP, (FRAMES - 1) * HOP + LENGTH)),
        ("features", cut(&reals, BANDS, FRAMES * BANDS)),
        ("output", cut(&scores, 3, 3)),
    ];
    let folder = tempfile::tempdir().unwrap();
    let models = shared.join("models/mlperf-tiny/streaming-wakeword");
    for file in ["int8.tflite", "int8-qdq.onnx"] {
        std::fs::copy(models.join(file), folder.path().join(file)).unwrap();
    }
    write_vectors(&folder.path().join("golden.safetensors"), &tensors, Some(starts.len()));
    std::fs::write(folder.path().join("labels.txt"), "marvin\nsilence\nother\n").unwrap();
    std::fs::write(folder.path().join("model.toml"), WAKEWORD).unwrap();
    let package = Package::open(folder.path()).unwrap();
    let report = prove(Subject::Package(&package), &limpet_engine::engines(), &quick()).unwrap();
    print!("{}", report.table());
    for row in report.rows.iter().filter(|row| row.engine != "none") {
        assert_row(row, Verdict::Passed, "within its limits");
        assert_eq!(row.top1_agreement, Some(1.0));
    }
}

const WAKEWORD: &str = r#"
format = 1
[model]
name = "wakeword"
version = "1.0.0"
task = "classification"
[[variant]]
file = "int8.tflite"
[[variant]]
file = "int8-qdq.onnx"
[[input]]
kind = "series"
rate_hz = 16000
channels = [{ name = "audio", unit = "full scale", min = -1.0, max = 1.0 }]
window = { frames = 30, hop = 1 }
front_end = [
  { pre_emphasis = 0.96875 },
  { frame = { length = 1024, hop = 512, window = "hamming_symmetric" } },
  { power_spectrum = { divide_by = 1024 } },
  { mel = { bands = 40, low_hz = 0, high_hz = 8000 } },
  { log10 = { scale = 10.0, offset = 52.0, divide = 64.0, clip = [0.0, 1.0] } },
]
[decision]
trigger = { label = "marvin", above = 0.8, for = 3, quiet = "1s" }
[proof]
features_nmae = 0.001
"#;
