//! What a further session of a graph takes. A program of its own, so that its memory is its own.

mod common;

use common::{at_rest, int8_graphs, readers};
use limpet_engine::{Format, LoadOptions};

fn with_batch(batch: usize) -> LoadOptions {
    LoadOptions { batch, threads: 1 }
}

/// Prints each, for the words in the engines' modules; over all graphs of an engine, the second session takes less than
/// the first with its graph.
#[test]
fn a_further_session_costs_less_than_the_first() {
    let measure = || i64::try_from(at_rest()).expect("memory in kB");
    for file in ["int8.tflite", "int8-qdq.onnx"] {
        let (mut firsts, mut seconds) = (0, 0);
        for path in int8_graphs(file) {
            let bytes = std::fs::read(&path).unwrap();
            for engine in readers(&path) {
                let format = Format::of(&path).unwrap();
                // What the library itself holds on to after its first graph.
                drop(engine.load(format, &bytes, with_batch(1)).unwrap());
                let start = measure();
                let graph = engine.open(format, &bytes).unwrap();
                let opened = measure();
                let first = graph.session(with_batch(1)).unwrap();
                let one = measure();
                let second = graph.session(with_batch(1)).unwrap();
                let two = measure();
                let eight = graph.session(with_batch(8)).unwrap();
                let batched = measure();
                println!(
                    "{} {} ({} kB): graph {} kB, session {} kB, second session {} kB, session of batch 8 {} kB",
                    engine.name(),
                    path.parent().and_then(|folder| folder.file_name()).unwrap().display(),
                    bytes.len() / 1024,
                    opened - start,
                    one - opened,
                    two - one,
                    batched - two
                );
                firsts += one - start;
                seconds += two - one;
                drop((first, second, eight));
            }
        }
        assert!(seconds < firsts, "{file}: {seconds} kB after {firsts} kB");
    }
}
