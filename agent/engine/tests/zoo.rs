//! The zoo: small graphs from many tool chains (onnxruntime's quantizer, TensorFlow's converter, tf2onnx, and graphs
//! made by hand to trip a rewriter), each with golden outputs of its own tool chain's reference.
//!
//! `tests/zoo/generate.py` makes it, in `.limpet/zoo` or where `LIMPET_ZOO` says. Every case runs on every engine that
//! reads its format, and what comes out is compared with `tests/zoo/expected.toml`: `right`, or `refused: ` with the
//! reason. There is no third word: a wrong answer fails the test, whatever the table says, so that the cure or the
//! refusal comes first. `LIMPET_BLESS=1` writes the table and `docs/engines.md` anew from what was found.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use common::{Golden, Values, load, readers, root, run};
use limpet_engine::golden::{is_judgeable, nmae, top1_agreement};
use serde_json::Value;

/// What an answer must reach to be right. Engines differ where they round; wrong ones score above 0.7.
const TOP1: f64 = 0.95;
const NMAE: f64 = 0.15;

/// Case → engine → `right` or `refused: reason`.
type Table = BTreeMap<String, BTreeMap<String, String>>;

fn zoo() -> Option<(PathBuf, Vec<Value>)> {
    let folder = std::env::var_os("LIMPET_ZOO").map_or_else(|| root().join(".limpet/zoo"), PathBuf::from);
    let Ok(list) = std::fs::read_to_string(folder.join("zoo.json")) else {
        println!("skipped: needs the model zoo (scripts/setup --train makes it)");
        return None;
    };
    Some((folder, serde_json::from_str(&list).expect("zoo.json is JSON")))
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("zoo.json: a case without {key}"))
}

/// `right` or `refused: reason`; an error if the answer is wrong.
fn judge(engine: &dyn limpet_engine::Engine, path: &Path, golden: &Golden, batch: usize) -> Result<String, String> {
    let mut session = match load(engine, path, batch) {
        Ok(session) => session,
        Err(limpet_engine::EngineError::Refused { reason, .. }) => return Ok(format!("refused: {reason}")),
        Err(other) => return Err(other.to_string()),
    };
    let outputs = run(&mut *session, golden)?;
    let mut worst = String::new();
    for (given, spec) in outputs.iter().zip(session.outputs()) {
        let want = golden.of("output", &spec.name).expect("run() found it").numbers();
        let given = given.numbers();
        // A batch may leave a remainder of the golden vectors unasked.
        let vectors = golden.vectors * given.len() / want.len();
        let want = &want[..given.len()];
        let error = nmae(&given, want, vectors);
        let top1 = is_judgeable(want, vectors).then(|| top1_agreement(&given, want, vectors));
        write!(worst, " {}: NMAE {error:.4}, top-1 {top1:?};", spec.name).unwrap();
        if error > NMAE || top1.is_some_and(|top1| top1 < TOP1) {
            return Err(format!("wrong:{worst}"));
        }
    }
    println!("{:<52}{:<8}batch {batch} {worst}", path.file_name().unwrap().display(), engine.name());
    Ok("right".to_owned())
}

#[test]
fn every_graph_of_the_zoo_is_right_or_refused_as_the_table_says() {
    let Some((folder, cases)) = zoo() else { return };
    let mut found = Table::new();
    let mut wrong = Vec::new();
    for case in &cases {
        let path = folder.join(text(case, "file"));
        let golden = Golden::read(&folder.join(text(case, "golden")));
        for engine in readers(&path) {
            match judge(&*engine, &path, &golden, 1) {
                Ok(verdict) => {
                    found.entry(text(case, "name").to_owned()).or_default().insert(engine.name().to_owned(), verdict);
                }
                Err(why) => wrong.push(format!("{} on {}: {why}", text(case, "name"), engine.name())),
            }
        }
    }
    assert!(wrong.is_empty(), "wrong answers:\n{}", wrong.join("\n"));

    let table = root().join("tests/zoo/expected.toml");
    let page = root().join("docs/engines.md");
    if std::env::var_os("LIMPET_BLESS").is_some() {
        let head = "# What each engine makes of each graph of the zoo; written by LIMPET_BLESS=1, see agent/engine/tests/zoo.rs.\n\n";
        std::fs::write(&table, format!("{head}{}", toml::to_string(&found).unwrap())).unwrap();
        std::fs::write(&page, document(&cases, &found)).unwrap();
    }
    let expected: Table = toml::from_str(&std::fs::read_to_string(&table).unwrap()).expect("expected.toml");
    let mut differences = String::new();
    for (name, engines) in &found {
        for (engine, verdict) in engines {
            let said = expected.get(name).and_then(|row| row.get(engine)).map_or("nothing", String::as_str);
            if said != verdict {
                writeln!(differences, "{name} on {engine}:\n  expected {said}\n  found    {verdict}").unwrap();
            }
        }
    }
    for name in expected.keys().filter(|name| !found.contains_key(*name)) {
        writeln!(differences, "{name}: in the table and not in the zoo").unwrap();
    }
    assert!(differences.is_empty(), "tests/zoo/expected.toml differs:\n{differences}");
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(written == document(&cases, &found), "docs/engines.md is not what was found; LIMPET_BLESS=1 writes it");
}

#[test]
fn a_batch_of_three_is_right_or_refused_too() {
    let Some((folder, cases)) = zoo() else { return };
    let mut wrong = Vec::new();
    let mut right = 0;
    for case in &cases {
        let path = folder.join(text(case, "file"));
        let golden = Golden::read(&folder.join(text(case, "golden")));
        for engine in readers(&path) {
            match judge(&*engine, &path, &golden, 3) {
                Ok(verdict) if verdict == "right" => right += 1,
                Ok(refused) => println!("{} on {}: {refused}", text(case, "name"), engine.name()),
                Err(why) => wrong.push(format!("{} on {}: {why}", text(case, "name"), engine.name())),
            }
        }
    }
    assert!(wrong.is_empty(), "wrong answers:\n{}", wrong.join("\n"));
    assert!(right * 2 > cases.len(), "most graphs carry a batch: {right} of {}", cases.len());
}

/// The page on what the engines can do.
fn document(cases: &[Value], found: &Table) -> String {
    let mut page = String::from(
        "# What each engine can do\n\n\
         Limpet runs `.tflite` files on TensorFlow Lite (engine `tflite`) and `.onnx` files on tract (engine `tract`).\n\
         This page is written by `agent/engine/tests/zoo.rs` from what it found on the model zoo, and checked by it:\n\
         *right* is a top-1 agreement of at least 0.95 and an NMAE of at most 0.15 against the reference of the tool\n\
         chain that made the file (ONNX Runtime without optimizations, TFLite's reference kernels); *refused* is an\n\
         error at load with the reason given. There is nothing in between.\n\n\
         A package is proved on the device in any case, whatever this page says of its kind.\n",
    );
    let mut refusals = String::new();
    for (format, engine) in [("tflite", "tflite"), ("onnx", "tract")] {
        let cases: Vec<&Value> = cases.iter().filter(|case| text(case, "format") == format).collect();
        let verdict = |case: &Value| {
            found.get(text(case, "name")).and_then(|row| row.get(engine)).map_or("not run", String::as_str).to_owned()
        };
        let right = cases.iter().filter(|case| verdict(case) == "right").count();
        write!(page, "\n## `.{format}` on {engine}: {right} of {} right\n\n", cases.len()).unwrap();
        page.push_str(
            "| graph | made by | form | activations | weights | edges | verdict |\n|---|---|---|---|---|---|---|\n",
        );
        for case in cases {
            let verdict = verdict(case);
            writeln!(
                page,
                "| {} | {} | {} | {} | {}{} | {} | {} |",
                text(case, "name"),
                text(case, "tool_chain"),
                text(case, "form"),
                text(case, "activations"),
                text(case, "weights"),
                if case["per_channel"] == Value::Bool(true) { ", per channel" } else { "" },
                text(case, "edges"),
                if verdict == "right" { "right" } else { "refused" },
            )
            .unwrap();
            if let Some(reason) = verdict.strip_prefix("refused: ") {
                writeln!(refusals, "- **{}** on {engine}: {reason}", text(case, "name")).unwrap();
            }
        }
    }
    if !refusals.is_empty() {
        write!(page, "\n## Refused, and why\n\n{refusals}").unwrap();
    }
    page.push_str(NOTES);
    page
}

/// What the table cannot show. Each of these has a test in `agent/engine`.
const NOTES: &str = "
## Besides

- **Edges** are f32, i8 or u8 on both engines. tract takes 16-bit stored values inside a graph.
- **Batch.** A first dimension of 1, or one that is left open, takes any batch, if the graph carries it through to its
  outputs; a Reshape to a fixed shape does not, and then the batch is refused. A first dimension of another size stays
  as it is, and only a batch of 1 is accepted.
- **Recurrent layers.** A session may serve several streams, so no graph may remember what it saw before. TFLite's fused
  LSTM keeps its cells from one run to the next and the C API's binding cannot clear them: unroll it, or export its
  state as inputs and outputs. ONNX recurrent layers start every run from rest on tract; those with activations other
  than the default ones, clipping, or in reverse alone are refused, because tract does not look at these attributes.
- **Arithmetic.** A QDQ convolution runs on tract as dequantize, f32 convolution, quantize; QLinearConv and QLinearMatMul
  run on integers. The other quantized operators of ONNX Runtime's own domain are rewritten to QDQ.
- **Random numbers** in a graph (RandomNormal, Dropout in training mode) are refused like state.
- **Ties.** On keyword-spotting int8 of MLPerf Tiny, golden vector 0, XNNPACK, ONNX Runtime and tract give the two best
  classes the same value; a tie counts as a disagreement, so top-1 agreement is 47 of 48 there.
- **Messages** of the C library (`INFO: Created TensorFlow Lite XNNPACK delegate for CPU.`) go to standard error.
";

#[test]
fn golden_vectors_of_the_zoo_hold_what_they_should() {
    let Some((folder, cases)) = zoo() else { return };
    for case in &cases {
        let golden = Golden::read(&folder.join(text(case, "golden")));
        assert!(golden.vectors >= 8, "{}", text(case, "name"));
        for (name, values) in &golden.tensors {
            assert!(!matches!(values, Values::F32(v) if v.iter().any(|x| !x.is_finite())), "{name}");
        }
    }
}
