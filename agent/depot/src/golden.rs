//! Golden vectors: recorded samples, features and outputs that a model must reproduce.
//!
//! Format: safetensors. `samples`, `features` and `output`, or `input` and `output` where there is no front end; with
//! several inputs or outputs `<kind>.<tensor>`. The first axis of each counts the vectors. Values are `f32`, `i8` or
//! `u8`; integers are as the graph has them, and where the graph tells no scale and zero point, the file's metadata
//! does (`output_scale`, `output_zero_point`, and so on, or `output.<tensor>_scale` for one of several).

mod doubt;

use std::collections::{BTreeMap, HashMap};

use limpet_engine::{ElementType, Quantization, TensorRef};
use safetensors::{Dtype, SafeTensors};

pub(crate) use self::doubt::passes;
pub use self::doubt::{Classes, proves_nothing};
use crate::DepotError;
use crate::manifest::{InputKind, Task, Variant};
use crate::package::Package;

/// Most vectors that a file may have: each costs a run in every proof.
pub const VECTORS_MAX: usize = 4096;

/// The golden vectors of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    file: String,
    vectors: usize,
    tensors: BTreeMap<String, Tensor>,
}

/// One recorded tensor, all vectors of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Dimensions; the first counts the vectors.
    pub shape: Vec<usize>,
    /// Elements, vector after vector.
    pub values: Values,
    /// Scale and zero point from the file's metadata.
    pub quantization: Option<Quantization>,
}

/// Elements of a tensor, owned.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Signed 8-bit integers.
    I8(Vec<i8>),
    /// Unsigned 8-bit integers.
    U8(Vec<u8>),
}

impl Values {
    /// None of this type.
    pub fn empty(element: ElementType) -> Self {
        match element {
            ElementType::F32 => Self::F32(Vec::new()),
            ElementType::I8 => Self::I8(Vec::new()),
            ElementType::U8 => Self::U8(Vec::new()),
        }
    }

    /// Type of the elements.
    pub fn element(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::I8(_) => ElementType::I8,
            Self::U8(_) => ElementType::U8,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends elements.
    ///
    /// # Panics
    /// If they are of another type.
    pub fn extend(&mut self, more: TensorRef<'_>) {
        match (self, more) {
            (Self::F32(values), TensorRef::F32(more)) => values.extend_from_slice(more),
            (Self::I8(values), TensorRef::I8(more)) => values.extend_from_slice(more),
            (Self::U8(values), TensorRef::U8(more)) => values.extend_from_slice(more),
            (values, _) => panic!("a tensor of {:?} does not take other elements", values.element()),
        }
    }

    /// As real numbers: floats as they are, integers by `quantization`; none if integers have none.
    pub fn real(&self, quantization: Option<Quantization>) -> Option<Vec<f32>> {
        let real = |len: usize, by: &dyn Fn(Quantization, &mut [f32])| {
            let mut real = vec![0.0; len];
            by(quantization?, &mut real);
            Some(real)
        };
        match self {
            Self::F32(values) => Some(values.clone()),
            Self::I8(values) => real(values.len(), &|quantization, real| quantization.dequantize(values, real)),
            Self::U8(values) => real(values.len(), &|quantization, real| quantization.dequantize(values, real)),
        }
    }

    /// As little-endian bytes, the way safetensors has them.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::I8(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::U8(values) => values.clone(),
        }
    }

    /// The type as safetensors calls it.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::I8(_) => Dtype::I8,
            Self::U8(_) => Dtype::U8,
        }
    }
}

impl Tensor {
    /// Elements of one vector.
    pub fn per_vector(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// As real numbers, whatever the scale: for what does not depend on it.
    fn unscaled(&self) -> Vec<f32> {
        self.values
            .real(self.quantization.or(Some(Quantization { scale: 1.0, zero_point: 0 })))
            .expect("a quantization is given")
    }
}

impl Golden {
    /// Reads a safetensors file; `file` is its name for messages.
    ///
    /// # Errors
    /// [`DepotError::Golden`] if it is damaged, empty, too large, or holds other types or values that are not finite.
    pub fn read(file: &str, bytes: &[u8]) -> Result<Self, DepotError> {
        let refuse = |reason: String| DepotError::golden(file, reason);
        let damaged = |error| refuse(format!("is damaged or no safetensors file: {error}"));
        let parsed = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let no_metadata = HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&no_metadata);
        let mut tensors = BTreeMap::new();
        let mut vectors = None;
        // Sorted, so that the same file always gets the same answer.
        let mut views: Vec<_> = parsed.iter().collect();
        views.sort_unstable_by_key(|(name, _)| *name);
        for (name, view) in views {
            let kind = name.split_once('.').map_or(name, |(kind, _)| kind);
            if !matches!(kind, "samples" | "features" | "input" | "output") {
                continue;
            }
            let count = view.shape().first().copied().unwrap_or(0);
            if count == 0 || count > VECTORS_MAX || view.data().is_empty() {
                return Err(refuse(format!(
                    "\"{name}\" has the shape {:?}; its first axis counts the vectors: expected 1 to {VECTORS_MAX}, \
                     and none of the others 0",
                    view.shape()
                )));
            }
            let (first, expected) = vectors.get_or_insert_with(|| (name.to_owned(), count));
            if *expected != count {
                return Err(refuse(format!(
                    "\"{first}\" has {expected} vectors and \"{name}\" {count}: expected as many"
                )));
            }
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => Values::F32(
                    data.chunks_exact(4)
                        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of 4 are 4 bytes")))
                        .collect(),
                ),
                Dtype::I8 => Values::I8(data.iter().map(|byte| byte.cast_signed()).collect()),
                Dtype::U8 => Values::U8(data.to_vec()),
                other => {
                    return Err(refuse(format!(
                        "\"{name}\" holds {other:?}: expected F32, or I8 or U8 as the graph has"
                    )));
                }
            };
            if let Values::F32(values) = &values
                && let Some(at) = values.iter().position(|value| !value.is_finite())
            {
                return Err(refuse(format!("\"{name}\" holds {} at element {at}: expected finite values", values[at])));
            }
            let quantization = quantization(metadata, name, kind, values.element()).map_err(refuse)?;
            let tensor = Tensor { name: name.to_owned(), shape: view.shape().to_vec(), values, quantization };
            tensors.insert(name.to_owned(), tensor);
        }
        let Some((_, vectors)) = vectors else {
            return Err(refuse("holds none of samples, features, input and output".to_owned()));
        };
        Ok(Self { file: file.to_owned(), vectors, tensors })
    }

    /// Its name for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// How many vectors there are; at least 1.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// What is recorded of `kind` for `tensor`: `kind.tensor`, or plain `kind` where the graph has only one.
    pub fn find(&self, kind: &str, tensor: Option<&str>, only: bool) -> Option<&Tensor> {
        tensor
            .and_then(|tensor| self.tensors.get(&format!("{kind}.{tensor}")))
            .or_else(|| self.tensors.get(kind).filter(|_| only))
    }

    /// What is recorded of `kind`, and must be.
    ///
    /// # Errors
    /// [`DepotError::Golden`] with what the file holds instead.
    pub fn need(&self, kind: &str, tensor: Option<&str>, only: bool) -> Result<&Tensor, DepotError> {
        self.find(kind, tensor, only).ok_or_else(|| {
            let expected = match tensor {
                Some(tensor) if only => format!("\"{kind}\" or \"{kind}.{tensor}\""),
                Some(tensor) => format!("\"{kind}.{tensor}\""),
                None => format!("\"{kind}\""),
            };
            let found: Vec<String> = self.tensors.keys().map(|name| format!("\"{name}\"")).collect();
            DepotError::golden(&self.file, format!("expected {expected}, and it holds {}", found.join(", ")))
        })
    }
}

/// Scale and zero point that the metadata gives for a tensor.
fn quantization(
    metadata: &HashMap<String, String>,
    name: &str,
    kind: &str,
    element: ElementType,
) -> Result<Option<Quantization>, String> {
    let lookup = |what: &str| {
        let own = format!("{name}_{what}");
        metadata.get(&own).or_else(|| metadata.get(&format!("{kind}_{what}"))).map(|text| (own, text))
    };
    let number = |entry: Option<(String, &String)>| match entry {
        None => Ok(None),
        Some((key, text)) => {
            text.parse::<f64>().map(Some).map_err(|_| format!("metadata \"{key}\" is \"{text}\": expected a number"))
        }
    };
    let (scale, zero_point) = (number(lookup("scale"))?, number(lookup("zero_point"))?);
    let Some(scale) = scale else { return Ok(None) };
    let (scale, zero_point) = (scale as f32, zero_point.unwrap_or(0.0) as i32);
    let checked = match element {
        ElementType::F32 => return Ok(None),
        ElementType::I8 => Quantization::checked::<i8>(scale, zero_point),
        ElementType::U8 => Quantization::checked::<u8>(scale, zero_point),
    };
    checked.map(Some).ok_or_else(|| {
        format!("metadata gives \"{name}\" the scale {scale} and the zero point {zero_point}, which no tensor can have")
    })
}

/// Checks a variant's golden vectors as far as that goes without running its graph: they can be read, fit the front
/// end, and neither a constant answer nor permuted classes would pass.
///
/// # Errors
/// [`DepotError::Golden`].
pub fn check_package(package: &Package, variant: &Variant) -> Result<Golden, DepotError> {
    let manifest = package.manifest();
    let (file, bytes) = package.golden(&variant.file);
    let golden = Golden::read(&file, bytes)?;
    let only = manifest.inputs.len() == 1;
    for input in &manifest.inputs {
        let tensor = input.tensor.as_deref();
        match &input.kind {
            InputKind::Series(series) if !series.steps.is_empty() || golden.find("samples", tensor, only).is_some() => {
                let samples = golden.need("samples", tensor, only)?;
                let front_end = series.front_end().expect("the manifest was checked by building it");
                let expected = front_end.samples_per_window() * front_end.channels();
                if samples.per_vector() != expected {
                    return Err(DepotError::golden(
                        &file,
                        format!(
                            "\"{}\" has the shape {:?}, so {} values a vector; one window needs {} samples of {} \
                             channels, so {expected}",
                            samples.name,
                            samples.shape,
                            samples.per_vector(),
                            front_end.samples_per_window(),
                            front_end.channels(),
                        ),
                    ));
                }
            }
            _ => {
                golden.need("input", tensor, only)?;
            }
        }
    }
    let decided = match &manifest.decision.output {
        Some(name) => golden.need("output", Some(name), true)?.name.clone(),
        None => golden.need("output", None, true)?.name.clone(),
    };
    let output = &golden.tensors[&decided];
    let classes = if manifest.task == Task::Classification { Classes::Declared } else { Classes::None };
    if classes.any() && output.per_vector() != package.labels().len() {
        return Err(DepotError::golden(
            &file,
            format!(
                "\"{decided}\" has {} values a vector and labels.txt {} labels: expected as many",
                output.per_vector(),
                package.labels().len()
            ),
        ));
    }
    match proves_nothing(&output.unscaled(), golden.vectors(), classes, variant.limits) {
        Some(reason) => Err(DepotError::golden(&file, format!("\"{decided}\" proves nothing: {reason}"))),
        None => Ok(golden),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn file(tensors: &[(&str, Dtype, &[usize], &[u8])], metadata: &[(&str, &str)]) -> Vec<u8> {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
        let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        safetensors::serialize(views, Some(metadata)).unwrap()
    }

    fn refuse(bytes: &[u8]) -> String {
        Golden::read("golden.safetensors", bytes).unwrap_err().to_string()
    }

    #[test]
    fn tensors_are_found_by_kind_and_by_kind_and_name() {
        let bytes = file(
            &[("input", Dtype::U8, &[2, 1], &[1, 2]), ("output.a", Dtype::I8, &[2, 2], &[1, 2, 3, 255])],
            &[("output.a_scale", "0.5"), ("output_zero_point", "-1")],
        );
        let golden = Golden::read("g", &bytes).unwrap();
        assert_eq!(golden.vectors(), 2);
        assert!(golden.find("input", Some("x"), true).is_some());
        assert!(golden.find("input", Some("x"), false).is_none());
        let output = golden.find("output", Some("a"), false).unwrap();
        assert_eq!(output.values, Values::I8(vec![1, 2, 3, -1]));
        assert_eq!(output.values.real(output.quantization), Some(vec![1.0, 1.5, 2.0, 0.0]));
        let error = golden.need("output", Some("b"), true).unwrap_err().to_string();
        assert_eq!(error, "g: expected \"output\" or \"output.b\", and it holds \"input\", \"output.a\"");
    }

    #[test]
    fn what_cannot_be_golden_is_refused_with_the_tensor() {
        let error = refuse(&file(&[("input", Dtype::I64, &[1], &[0; 8])], &[]));
        assert!(error.contains("\"input\" holds I64"), "{error}");
        let error = refuse(&file(&[("output", Dtype::F32, &[1, 1], &f32::NAN.to_le_bytes())], &[]));
        assert!(error.contains("\"output\" holds NaN at element 0"), "{error}");
        let error = refuse(&file(&[("input", Dtype::U8, &[1], &[0]), ("output", Dtype::U8, &[2], &[0, 1])], &[]));
        assert!(error.contains("\"input\" has 1 vectors and \"output\" 2"), "{error}");
        let error = refuse(&file(&[("outputs", Dtype::U8, &[1], &[0])], &[]));
        assert!(error.contains("none of samples, features, input and output"), "{error}");
        let error = refuse(&file(&[("output", Dtype::U8, &[1], &[0])], &[("output_scale", "-1")]));
        assert!(error.contains("which no tensor can have"), "{error}");
        assert!(refuse(b"noise").contains("damaged"));
    }

    proptest::proptest! {
        #[test]
        fn noise_is_refused_without_a_panic(noise: Vec<u8>, at in 0usize..150, byte: u8) {
            let _ = Golden::read("g", &noise);
            let mut bytes = file(&[("output", Dtype::F32, &[1, 2], &[0; 8])], &[("output_scale", "1")]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Golden::read("g", &bytes);
        }
    }
}
