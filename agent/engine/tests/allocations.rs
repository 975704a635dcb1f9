//! A run allocates nothing that the library does not itself allocate.
//!
//! The counter sees what Rust code allocates on this thread. TensorFlow Lite allocates in C++, out of its sight, so
//! its sessions must count zero. tract allocates the result of every operator, so its sessions are compared with the
//! bare library on the same file.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Golden, load, readers, root, run};
use limpet_engine::{Session, read_real, write_real};
use tract_onnx::prelude::*;

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counter is a thread-local cell without destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from it.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above; `pointer` came from it.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted(work: impl FnOnce()) -> usize {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

/// Writes every input, runs, and reads every output, as a pipeline does.
fn turn(session: &mut dyn Session, real: &[Vec<f32>], out: &mut Vec<f32>) {
    for (index, values) in real.iter().enumerate() {
        write_real(session, index, values).unwrap();
    }
    session.run().unwrap();
    for index in 0..session.outputs().len() {
        read_real(session, index, out).unwrap();
    }
}

fn zeros(session: &dyn Session) -> Vec<Vec<f32>> {
    session.inputs().iter().map(|input| vec![0.0; input.elements()]).collect()
}

#[test]
#[cfg(feature = "tflite")]
fn a_tflite_run_allocates_nothing() {
    let path = root().join("agent/engine/tests/data/dual-tflite-int8-int8-edges.tflite");
    let mut session = load(&*readers(&path)[0], &path, 1).unwrap();
    let real = zeros(&*session);
    let mut out = Vec::with_capacity(64);
    turn(&mut *session, &real, &mut out);
    let count = counted(|| {
        for _ in 0..100 {
            turn(&mut *session, &real, &mut out);
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn a_tract_run_allocates_what_tract_does() {
    let path = root().join("agent/engine/tests/data/dual-tf2onnx-int8-int8-edges.onnx");
    let mut session = load(&*readers(&path)[0], &path, 1).unwrap();
    let real = zeros(&*session);
    let mut out = Vec::with_capacity(64);
    turn(&mut *session, &real, &mut out);
    let ours = counted(|| turn(&mut *session, &real, &mut out));

    let plan = tract_onnx::onnx().model_for_path(&path).unwrap().into_optimized().unwrap().into_runnable().unwrap();
    let mut state = plan.spawn().unwrap();
    let inputs: Vec<TValue> =
        session.inputs().iter().map(|input| Tensor::zero::<i8>(&input.shape).unwrap().into()).collect();
    drop(state.run(inputs.iter().cloned().collect()).unwrap());
    let bare = counted(|| drop(state.run(inputs.iter().cloned().collect()).unwrap()));
    println!("allocations a run: {ours} in a session, {bare} in bare tract");
    // Their plans differ a little: ours keeps each Softmax that bare tract folds (wrongly) into a table, and joins
    // operators that bare tract keeps.
    const STEPS: usize = 2 * 2 * 3;
    assert!(ours <= bare + STEPS, "{ours} allocations in a session, {bare} in bare tract");
    assert!(bare > 0, "the counter counts");
}

#[test]
fn the_committed_graphs_are_right_on_their_engines() {
    for file in ["dual-tflite-int8-int8-edges", "dual-tf2onnx-int8-int8-edges"] {
        let data = root().join("agent/engine/tests/data");
        let extension = if file.contains("tflite") { "tflite" } else { "onnx" };
        let path = data.join(format!("{file}.{extension}"));
        let golden = Golden::read(&data.join(format!("{file}.golden.safetensors")));
        for engine in readers(&path) {
            let mut session = load(&*engine, &path, 1).unwrap();
            assert_eq!((session.inputs().len(), session.outputs().len()), (2, 2));
            let given = run(&mut *session, &golden).unwrap();
            for (given, spec) in given.iter().zip(session.outputs()) {
                let want = golden.of("output", &spec.name).unwrap().numbers();
                let given = given.numbers();
                assert!(limpet_engine::golden::nmae(&given, &want, golden.vectors) < 0.05);
                assert_eq!(limpet_engine::golden::top1_agreement(&given, &want, golden.vectors), 1.0);
                assert!(spec.quantization.is_some());
            }
        }
    }
}
