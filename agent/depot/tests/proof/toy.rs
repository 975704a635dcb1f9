//! An engine whose graphs are words, so that a test can have one that crashes, hangs or lies.

use limpet_engine::{
    ElementType, Engine, EngineError, Format, Library, LoadOptions, Session, TensorMut, TensorRef, TensorSpec,
};

/// Elements of the one input and the one output.
pub const ELEMENTS: usize = 3;

/// Reads any file; its content is one of the words below.
pub struct Toy;

struct ToySession {
    word: String,
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

    fn load(&self, _: Format, graph: &[u8], _: LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        let word = String::from_utf8_lossy(graph).into_owned();
        match word.as_str() {
            "aborts loading" => std::process::abort(),
            "panics loading" => panic!("operator 7 has no shape"),
            "hangs" => loop {
                std::thread::park();
            },
            "refused" => {
                return Err(EngineError::Refused { engine: "toy", reason: "there is no operator Foo".to_owned() });
            }
            "allocates" => drop(std::hint::black_box(vec![1u8; 1 << 30])),
            _ => {}
        }
        println!("what a library prints to standard output");
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            element: ElementType::F32,
            shape: vec![1, ELEMENTS],
            quantization: None,
        };
        let zeros = vec![0.0; ELEMENTS];
        Ok(Box::new(ToySession { word, specs: [spec("in"), spec("out")], input: zeros.clone(), output: zeros }))
    }
}

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
            "halves" => self.output.iter_mut().for_each(|value| *value *= 0.5),
            "nearly halves" => self.output.iter_mut().for_each(|value| *value *= 0.49),
            "constant" => self.output.fill(0.5),
            "not finite" => self.output[1] = f32::NAN,
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
