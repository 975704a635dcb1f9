//! What a session costs beyond the library: `session_overhead MODEL.tflite [--runs N] [--json]`.
//!
//! Two interpreters of the same library run the same file with the same input, in turns, so that whatever the machine
//! does meanwhile meets both. The bare one copies its input, invokes, and reads its outputs' first elements through
//! the binding's own calls; the session is filled, run and read through [`limpet_engine::Session`]. The bare one's
//! output is looked up once, as a careful user would, so that no allocation of the binding's is charged to it.
//!
//! Prints p50 and p99 of both, the difference, and the processor with its instruction sets. Exit code 1 if the
//! median difference is above 2 µs.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use limpet_engine::{Engine, Format, LoadOptions, Session, TensorMut, TensorRef, Tflite};
use tflitec::interpreter::{Interpreter, Options};
use tflitec::model::Model;

/// The limit on the difference between the medians.
const LIMIT_US: f64 = 2.0;

fn main() -> ExitCode {
    let mut file = None;
    let mut runs = 20_000;
    let mut json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--json" => json = true,
            "--runs" => match arguments.next().and_then(|value| value.parse().ok()) {
                Some(value) if value > 0 => runs = value,
                _ => return usage("--runs wants a number above 0"),
            },
            _ if file.is_none() && !argument.starts_with('-') => file = Some(argument),
            _ => return usage(&format!("unknown argument '{argument}'")),
        }
    }
    let Some(file) = file else { return usage("a model file is missing") };
    let graph = match std::fs::read(&file) {
        Ok(graph) => graph,
        Err(error) => {
            eprintln!("session_overhead: {file}: {error}");
            return ExitCode::FAILURE;
        }
    };
    match measure(&graph, runs) {
        Ok(measured) => {
            measured.print(&file, json);
            if measured.difference() <= LIMIT_US { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("session_overhead: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(what: &str) -> ExitCode {
    eprintln!("session_overhead: {what}\nusage: session_overhead MODEL.tflite [--runs N] [--json]");
    ExitCode::from(64)
}

/// Microseconds of each run, sorted.
struct Measured {
    bare: Vec<f64>,
    session: Vec<f64>,
}

impl Measured {
    fn difference(&self) -> f64 {
        percentile(&self.session, 0.5) - percentile(&self.bare, 0.5)
    }

    fn print(&self, file: &str, json: bool) {
        let (bare_p50, bare_p99) = (percentile(&self.bare, 0.5), percentile(&self.bare, 0.99));
        let (p50, p99) = (percentile(&self.session, 0.5), percentile(&self.session, 0.99));
        let (cpu, sets) = processor();
        if json {
            let line = serde_json::json!({
                "model": file, "runs": self.bare.len(), "cpu": cpu, "instruction_sets": sets,
                "bare_p50_us": bare_p50, "bare_p99_us": bare_p99,
                "session_p50_us": p50, "session_p99_us": p99,
                "overhead_p50_us": self.difference(), "limit_us": LIMIT_US,
            });
            println!("{line}");
        } else {
            println!("{file}, {} runs of each in turns, on {cpu} ({sets})", self.bare.len());
            println!("bare calls  p50 {bare_p50:9.3} µs   p99 {bare_p99:9.3} µs");
            println!("session     p50 {p50:9.3} µs   p99 {p99:9.3} µs");
            println!("overhead    p50 {:9.3} µs   (limit {LIMIT_US} µs)", self.difference());
        }
    }
}

fn measure(graph: &[u8], runs: usize) -> Result<Measured, Box<dyn std::error::Error>> {
    let mut session = Tflite.load(Format::Tflite, graph, LoadOptions::default())?;
    let inputs: Vec<Vec<u8>> = session
        .inputs()
        .iter()
        .map(|input| match input.element {
            limpet_engine::ElementType::F32 => vec![0; input.elements() * 4],
            _ => (0..input.elements()).map(|index| index as u8).collect(),
        })
        .collect();

    let model = Model::from_bytes(graph)?;
    let options = Options {
        thread_count: 1,
        #[cfg(feature = "xnnpack")]
        is_xnnpack_enabled: true,
    };
    let interpreter = Interpreter::new(&model, Some(options))?;
    interpreter.allocate_tensors()?;
    interpreter.invoke()?;
    let outputs =
        (0..interpreter.output_tensor_count()).map(|index| interpreter.output(index)).collect::<Result<Vec<_>, _>>()?;

    let mut measured = Measured { bare: Vec::with_capacity(runs), session: Vec::with_capacity(runs) };
    let bare = |times: &mut Vec<f64>| -> Result<(), tflitec::Error> {
        let start = Instant::now();
        for (index, input) in inputs.iter().enumerate() {
            interpreter.copy(input, index)?;
        }
        interpreter.invoke()?;
        for output in &outputs {
            black_box(output.data::<u8>().first());
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
        Ok(())
    };
    let ours = |session: &mut dyn Session, times: &mut Vec<f64>| -> Result<(), limpet_engine::EngineError> {
        let start = Instant::now();
        for (index, input) in inputs.iter().enumerate() {
            match session.input_mut(index) {
                // All zeros in both.
                TensorMut::F32(buffer) => buffer.fill(0.0),
                TensorMut::U8(buffer) => buffer.copy_from_slice(input),
                TensorMut::I8(buffer) => {
                    for (to, from) in buffer.iter_mut().zip(input) {
                        *to = *from as i8;
                    }
                }
            }
        }
        session.run()?;
        for index in 0..session.outputs().len() {
            match session.output(index) {
                TensorRef::F32(values) => drop(black_box(values.first())),
                TensorRef::I8(values) => drop(black_box(values.first())),
                TensorRef::U8(values) => drop(black_box(values.first())),
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
        Ok(())
    };
    for run in 0..runs {
        // Neither is always the one that finds the caches as the other left them.
        if run % 2 == 0 {
            bare(&mut measured.bare)?;
            ours(&mut *session, &mut measured.session)?;
        } else {
            ours(&mut *session, &mut measured.session)?;
            bare(&mut measured.bare)?;
        }
    }
    measured.bare.sort_by(f64::total_cmp);
    measured.session.sort_by(f64::total_cmp);
    Ok(measured)
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// The processor's name, and which of the instruction sets that matter for inference it has.
fn processor() -> (String, String) {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            names.contains(&key.trim()).then(|| value.trim().to_owned())
        })
    };
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let sets: Vec<&str> =
        ["avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "neon"]
            .into_iter()
            .filter(|set| flags.split_whitespace().any(|flag| flag == *set))
            .collect();
    (field(&["model name", "Model"]).unwrap_or_else(|| "an unknown processor".to_owned()), sets.join(" "))
}
