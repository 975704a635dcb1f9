//! Sessions of one graph are independent of each other and of the graph, and right for every batch.

mod common;

use common::{Golden, readers, root, run};
use limpet_engine::{Format, LoadOptions};

fn with_batch(batch: usize) -> LoadOptions {
    LoadOptions { batch, threads: 1 }
}

#[test]
fn sessions_of_a_graph_live_on_without_it_and_do_not_meet() {
    for file in ["dual-tflite-int8-int8-edges.tflite", "dual-tf2onnx-int8-int8-edges.onnx"] {
        let path = root().join("agent/engine/tests/data").join(file);
        let golden = Golden::read(&path.with_extension("golden.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        for engine in readers(&path) {
            let graph = engine.open(Format::of(&path).unwrap(), &bytes).unwrap();
            // The other file folds its batch into a fixed Reshape, and may be refused for it.
            let batched = graph.session(with_batch(2));
            assert!(batched.is_ok() || file.ends_with(".onnx"), "{file}");
            let mut sessions = vec![graph.session(with_batch(1)).unwrap(), graph.session(with_batch(1)).unwrap()];
            sessions.extend(batched.ok());
            drop(graph);
            let alone =
                run(&mut *engine.load(Format::of(&path).unwrap(), &bytes, with_batch(1)).unwrap(), &golden).unwrap();
            std::thread::scope(|scope| {
                for session in &mut sessions {
                    scope.spawn(|| {
                        let given = run(&mut **session, &golden).unwrap();
                        let even = |values: &common::Values| {
                            let whole = golden.vectors - golden.vectors % 2;
                            values.numbers()[..values.len() / golden.vectors * whole].to_vec()
                        };
                        // A batch of two leaves out an odd last vector.
                        for (given, alone) in given.iter().zip(&alone) {
                            let given = if given.len() == alone.len() { even(given) } else { given.numbers() };
                            assert_eq!(given, even(alone), "{file} on {}", engine.name());
                        }
                    });
                }
            });
        }
    }
}
