//! An engine whose graphs are words, so that a test can have one that crashes, hangs or lies.

use limpet_engine::{
    ElementType, Engine, EngineError, Format, Graph, Library, LoadOptions, Session, TensorMut, TensorRef, TensorSpec,
};

/// Elements of the one input and the one output.
pub const ELEMENTS: usize = 3;

/// Reads any file; its content is one of the words below.
pub struct Toy;

struct ToyGraph {
    word: String,
}

struct ToySession {
    word: String,
    batch: usize,
    specs: [TensorSpec; 2],
    input: Vec<f32>,
    output: Vec<f32>,
}

impl Engine for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn reads(&self, _: Format) -> bool {
        true
    }

    fn library(&self) -> Library {
        Library { version: "1".to_owned(), sha256: None }
    }

    fn open(&self, _: Format, graph: &[u8]) -> Result<Box<dyn Graph>, EngineError> {
        let word = String::from_utf8_lossy(graph).into_owned();
        match word.as_str() {
            "aborts loading" => std::process::abort(),
            "panics loading" => panic!("operator 7 has no shape"),
            "hangs" => hang(),
            "refused" => return refuse("there is no operator Foo"),
            "allocates" => drop(std::hint::black_box(vec![1u8; 1 << 30])),
            _ => {}
        }
        println!("what a library prints to standard output");
        Ok(Box::new(ToyGraph { word }))
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn refuse<T>(reason: &str) -> Result<T, EngineError> {
    Err(EngineError::Refused { engine: "toy", reason: reason.to_owned() })
}

impl Graph for ToyGraph {
    fn session(&self, LoadOptions { batch, .. }: LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        match (self.word.as_str(), batch) {
            ("takes no batch", 2..) => return refuse("a Reshape is fixed"),
            ("takes a batch of 2", 4..) => return refuse("it is too large"),
            ("aborts in a batch of 4", 4..) => std::process::abort(),
            ("panics in a batch of 4", 4..) => panic!("no kernel for 4 rows"),
            ("hangs in a batch of 4", 4..) => hang(),
            _ => {}
        }
        // What does not grow in a batch of this size, as of a graph that folds it into another axis.
        let held = if self.word == "keeps its shape" { 1 } else { batch };
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            element: ElementType::F32,
            shape: vec![held, ELEMENTS],
            quantization: None,
        };
        let zeros = vec![0.0; held * ELEMENTS];
        let (word, specs) = (self.word.clone(), [spec("in"), spec("out")]);
        Ok(Box::new(ToySession { word, batch, specs, input: zeros.clone(), output: zeros }))
    }
}

/// Works for so many steps, on the CPU.
fn work(steps: usize) {
    for step in 0..steps {
        std::hint::black_box(step);
    }
}

/// Steps of a run where a test looks at times: some tens of microseconds.
const STEPS: usize = 50_000;

impl Session for ToySession {
    fn inputs(&self) -> &[TensorSpec] {
        &self.specs[..1]
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.specs[1..]
    }

    fn input_mut(&mut self, _: usize) -> TensorMut<'_> {
        TensorMut::F32(&mut self.input)
    }

    fn run(&mut self) -> Result<(), EngineError> {
        self.output.copy_from_slice(&self.input);
        match self.word.as_str() {
            // Leaves out the first element, as a graph would that lost a layer.
            "wrong" => self.output.rotate_left(1),
            "wrong in a batch of 4" if self.batch == 4 => self.output.rotate_left(ELEMENTS),
            // All of a run's time is the same for any batch; or each window takes longer in one.
            "takes a batch of 2"
            | "aborts in a batch of 4"
            | "panics in a batch of 4"
            | "hangs in a batch of 4"
            | "wrong in a batch of 4"
            | "gains in batches" => work(STEPS),
            // A batch of 2 takes the time of one of 4, two and a half times that of a single window; more than 4 lose.
            "computes four at once" => {
                let tiles = self.batch.div_ceil(4);
                work(if self.batch == 1 { STEPS } else { STEPS * 5 / 2 * tiles * tiles });
            }
            "loses in batches" => work(STEPS * self.batch * self.batch),
            "halves" => self.output.iter_mut().for_each(|value| *value *= 0.5),
            "nearly halves" => self.output.iter_mut().for_each(|value| *value *= 0.49),
            "constant" => self.output.fill(0.5),
            "not finite" => self.output[1] = f32::NAN,
            "sleeps" => std::thread::sleep(std::time::Duration::from_millis(100)),
            "aborts running" => std::process::abort(),
            "fails running" => {
                return Err(EngineError::Run { engine: "toy", reason: "the arena is full".to_owned() });
            }
            _ => {}
        }
        Ok(())
    }

    fn output(&self, _: usize) -> TensorRef<'_> {
        TensorRef::F32(&self.output)
    }
}
