//! The Open Inference Protocol, version 2: its JSON, without input or output.
//!
//! A tensor's data is a flat or nested array of numbers, row-major. The first dimension of every tensor is the batch:
//! −1 in a model's metadata, n ≥ 1 in a request, which becomes n rows. Numbers that the datatype does not hold are
//! refused, never wrapped or rounded to fit.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::http::StatusCode;
use limpet_engine::{ElementType, TensorSpec};
use limpet_wire::message::ModelPhase;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// The deadline of a request that names none.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most rows in one request: a worker takes them in between two jobs.
const ROWS: usize = 256;
/// The longest that a request may name.
const LONGEST: Duration = Duration::from_secs(600);

/// Type of a tensor's elements, as the protocol calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Datatype {
    /// 32-bit float.
    Fp32,
    /// Signed 8-bit integer.
    Int8,
    /// Unsigned 8-bit integer.
    Uint8,
}

impl Datatype {
    fn parse(text: &str) -> Option<Self> {
        [Self::Fp32, Self::Int8, Self::Uint8].into_iter().find(|datatype| datatype.to_string() == text)
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "FP32",
            Self::Int8 => "INT8",
            Self::Uint8 => "UINT8",
        })
    }
}

impl From<ElementType> for Datatype {
    fn from(element: ElementType) -> Self {
        match element {
            ElementType::F32 => Self::Fp32,
            ElementType::I8 => Self::Int8,
            ElementType::U8 => Self::Uint8,
        }
    }
}

/// A model as `GET /v2/models/NAME` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelMetadata {
    /// Its name.
    pub name: String,
    /// Its versions that can be asked.
    pub versions: Vec<String>,
    /// Project and format, such as `onnx_onnxv1`; for information.
    pub platform: String,
    /// Its inputs; empty until its graph is known.
    pub inputs: Vec<TensorMetadata>,
    /// Its outputs; empty until its graph is known.
    pub outputs: Vec<TensorMetadata>,
    /// Tells this very version from others of its name.
    #[serde(skip)]
    pub number: u32,
    /// What it is doing: it can be asked while it is `active` or in `trial`.
    #[serde(skip)]
    pub phase: ModelPhase,
}

/// A tensor in a model's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorMetadata {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub datatype: Datatype,
    /// Its dimensions: −1 for the batch, then those of one row.
    pub shape: Vec<i64>,
}

impl TensorMetadata {
    /// Of a graph's input or output, whatever batch it was loaded for.
    pub fn of(spec: &TensorSpec) -> Self {
        let row = spec.shape.iter().skip(1).map(|dimension| *dimension as i64);
        Self { name: spec.name.clone(), datatype: spec.element.into(), shape: std::iter::once(-1).chain(row).collect() }
    }
}

/// Elements of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Signed 8-bit integers.
    I8(Vec<i8>),
    /// Unsigned 8-bit integers.
    U8(Vec<u8>),
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    fn datatype(&self) -> Datatype {
        match self {
            Self::F32(_) => Datatype::Fp32,
            Self::I8(_) => Datatype::Int8,
            Self::U8(_) => Datatype::Uint8,
        }
    }
}

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// Name of the model.
    pub model: String,
    /// The version that it was read for, as its metadata numbers it.
    pub number: u32,
    /// Name and elements of every input, in the model's order.
    pub inputs: Vec<(String, TensorData)>,
    /// Rows in each of them, at least 1.
    pub rows: usize,
    /// Time from now after which nobody wants the answer.
    pub deadline: Duration,
}

/// What a model answers.
#[derive(Debug, Clone, PartialEq)]
pub struct InferResponse {
    /// Name of the model.
    pub model: String,
    /// The version that answered.
    pub version: String,
    /// All outputs of all rows.
    pub outputs: Vec<InferOutput>,
}

/// One output of all rows.
#[derive(Debug, Clone, PartialEq)]
pub struct InferOutput {
    /// Its name.
    pub name: String,
    /// Dimensions, the rows first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData,
}

/// Why a model does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// There is no such model: 404.
    #[error("Request for unknown model: '{0}' is not found")]
    UnknownModel(String),
    /// It cannot be asked now: 503.
    #[error("model '{model}' is not ready: {reason}")]
    NotReady {
        /// The model.
        model: String,
        /// What it is doing, or why it failed.
        reason: String,
    },
    /// The request does not fit the model: 400.
    #[error("{0}")]
    Bad(String),
    /// Too many requests wait for it: 503.
    #[error("Exceeds maximum queue size: too many requests wait for model '{0}'; try again later")]
    QueueFull(String),
    /// It could not be started in time: 503.
    #[error(
        "Request timeout expired: model '{0}' could not answer in time; try again later, or raise the parameter timeout (in µs)"
    )]
    Expired(String),
    /// It was run and failed: 500.
    #[error("{0}")]
    Failed(String),
}

impl From<InferError> for Refusal {
    fn from(error: InferError) -> Self {
        let status = match &error {
            InferError::UnknownModel(_) => StatusCode::NOT_FOUND,
            InferError::Bad(_) => StatusCode::BAD_REQUEST,
            InferError::NotReady { .. } | InferError::QueueFull(_) | InferError::Expired(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            InferError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// How a request wants to be answered.
#[derive(Debug, PartialEq)]
pub struct Wanted {
    /// To be repeated in the answer.
    id: Option<String>,
    /// The outputs wanted, in this order; none: all.
    outputs: Option<Vec<String>>,
}

// Objects of the protocol. What is not named here may be there and means nothing to this server, as it allows.

#[derive(Deserialize)]
struct RequestBody {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<InputBody>,
    outputs: Option<Vec<WantedBody>>,
}

#[derive(Deserialize, Default)]
struct Parameters {
    /// In microseconds.
    timeout: Option<u64>,
    class: Option<String>,
    #[serde(default)]
    binary_data_output: bool,
}

#[derive(Deserialize)]
struct InputBody {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    data: Option<Numbers>,
}

#[derive(Deserialize)]
struct WantedBody {
    name: String,
    #[serde(default)]
    parameters: WantedParameters,
}

#[derive(Deserialize, Default)]
struct WantedParameters {
    #[serde(default)]
    binary_data: bool,
    classification: Option<IgnoredAny>,
}

#[derive(Serialize)]
struct ResponseBody<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<OutputBody<'a>>,
}

#[derive(Serialize)]
struct OutputBody<'a> {
    name: &'a str,
    datatype: Datatype,
    shape: &'a [usize],
    data: &'a TensorData,
}

/// Reads a request, which fits its model then, and how it wants to be answered.
///
/// # Errors
/// What does not fit, naming the tensor: 400; 403 for realtime work.
pub fn parse(model: &ModelMetadata, body: &[u8]) -> Result<(InferRequest, Wanted), Refusal> {
    let body: RequestBody = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad(format!("the body is no inference request in JSON: {error}")))?;
    match body.parameters.class.as_deref() {
        None | Some("analytic") => {}
        Some("realtime") => {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "parameter class: over this socket no rate was admitted for realtime work; ask with \"class\": \"analytic\", or configure a [[pipeline]] with class = \"realtime\"",
            ));
        }
        Some(other) => {
            return Err(Refusal::bad(format!("parameter class: '{other}' does not exist; this server takes analytic")));
        }
    }
    // 0 is no timeout of one's own.
    let deadline = body.parameters.timeout.filter(|us| *us > 0).map_or(TIMEOUT, Duration::from_micros);
    if deadline > LONGEST {
        let most = LONGEST.as_micros();
        return Err(Refusal::bad(format!("parameter timeout: {} µs are more than {most}", deadline.as_micros())));
    }
    let (inputs, rows) = inputs(model, body.inputs)?;
    let outputs = outputs(model, body.outputs.unwrap_or_default(), body.parameters.binary_data_output)?;
    let request = InferRequest { model: model.name.clone(), number: model.number, inputs, rows, deadline };
    Ok((request, Wanted { id: body.id, outputs }))
}

/// The inputs in the model's order, and the number of rows.
fn inputs(model: &ModelMetadata, mut given: Vec<InputBody>) -> Result<(Vec<(String, TensorData)>, usize), Refusal> {
    let known = |name: &str| model.inputs.iter().any(|spec| spec.name == name);
    if let Some(input) = given.iter().find(|input| !known(&input.name)) {
        let names = names(&model.inputs);
        return Err(Refusal::bad(format!(
            "unexpected inference input '{}' for model '{}', which takes {names}",
            input.name, model.name
        )));
    }
    let mut rows = None;
    let mut inputs = Vec::with_capacity(model.inputs.len());
    for spec in &model.inputs {
        let Some(position) = given.iter().position(|input| input.name == spec.name) else {
            return Err(Refusal::bad(format!("input '{}' of model '{}' is missing", spec.name, model.name)));
        };
        let (data, own) = tensor(spec, &model.name, given.swap_remove(position))?;
        if let Some(rows) = rows.replace(own)
            && rows != own
        {
            return Err(Refusal::bad(format!(
                "input '{}' has a batch of {own}, the one before it {rows}; all must have the same",
                spec.name
            )));
        }
        inputs.push((spec.name.clone(), data));
    }
    if let Some(twice) = given.first() {
        return Err(Refusal::bad(format!("input '{}' is there twice", twice.name)));
    }
    let rows = rows.ok_or_else(|| Refusal::bad(format!("model '{}' has no inputs that could be asked", model.name)))?;
    if rows > ROWS {
        return Err(Refusal::bad(format!("a batch of {rows}; at most {ROWS} rows go into one request, send several")));
    }
    Ok((inputs, rows))
}

/// The elements of one input, and its number of rows.
fn tensor(spec: &TensorMetadata, model: &str, given: InputBody) -> Result<(TensorData, usize), Refusal> {
    let name = &spec.name;
    let Some(datatype) = Datatype::parse(&given.datatype) else {
        return Err(Refusal::bad(format!(
            "invalid datatype for input {name}: '{}'; this server takes FP32, INT8 and UINT8",
            given.datatype
        )));
    };
    if datatype != spec.datatype {
        return Err(Refusal::bad(format!(
            "inference input '{name}' data-type is '{datatype}', but model '{model}' expects '{}'",
            spec.datatype
        )));
    }
    let row = spec.shape.get(1..).unwrap_or_default();
    let batch = given.shape.first().copied().unwrap_or(0);
    let fits = given.shape.len() == spec.shape.len()
        && batch > 0
        && given.shape[1..].iter().zip(row).all(|(found, expected)| i64::try_from(*found) == Ok(*expected));
    if !fits {
        return Err(Refusal::bad(format!(
            "unexpected shape for input '{name}' for model '{model}'. Expected {}, got {}; -1 is the batch, 1 or more",
            list(&spec.shape),
            list(&given.shape)
        )));
    }
    let Some(numbers) = given.data else {
        return Err(Refusal::bad(format!(
            "input '{name}' has no data; this version takes tensors as JSON only, not in binary"
        )));
    };
    let elements = given.shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
    let shaped = numbers.dims.len() == 1 || numbers.dims == given.shape;
    if elements != Some(numbers.values.len() as u64) || !shaped {
        return Err(Refusal::bad(format!(
            "input '{name}': Shape does not match true shape of 'data' field: {} against {}",
            list(&given.shape),
            list(&numbers.dims)
        )));
    }
    // There is at least one element a row, so the number of rows is that of something in memory.
    Ok((numbers.into_tensor(name, datatype)?, batch as usize))
}

/// The names of the wanted outputs, or none for all.
fn outputs(model: &ModelMetadata, wanted: Vec<WantedBody>, binary: bool) -> Result<Option<Vec<String>>, Refusal> {
    if binary || wanted.iter().any(|output| output.parameters.binary_data) {
        return Err(Refusal::bad(
            "outputs as binary data are wanted, but this version gives JSON only; set binary_data and binary_data_output to false",
        ));
    }
    for (index, output) in wanted.iter().enumerate() {
        let (name, model_name) = (&output.name, &model.name);
        if !model.outputs.iter().any(|spec| spec.name == *name) {
            let names = names(&model.outputs);
            return Err(Refusal::bad(format!(
                "unexpected inference output '{name}' for model '{model_name}', which gives {names}"
            )));
        }
        if output.parameters.classification.is_some() {
            return Err(Refusal::bad(format!("output '{name}': this version knows no classification; leave it out")));
        }
        if wanted[..index].iter().any(|before| before.name == *name) {
            return Err(Refusal::bad(format!("output '{name}' is wanted twice")));
        }
    }
    Ok((!wanted.is_empty()).then(|| wanted.into_iter().map(|output| output.name).collect()))
}

impl Wanted {
    /// The answer as JSON.
    ///
    /// # Errors
    /// 500 if an output is missing or holds what is no number.
    pub fn answer(&self, response: &InferResponse) -> Result<Vec<u8>, Refusal> {
        let failed = |why: String| {
            Refusal::from(InferError::Failed(format!("model '{}' {}: {why}", response.model, response.version)))
        };
        let find = |name: &String| {
            let found = response.outputs.iter().find(|output| output.name == *name);
            found.ok_or_else(|| failed(format!("output '{name}' is missing in what it gave")))
        };
        let chosen: Vec<&InferOutput> = match &self.outputs {
            Some(names) => names.iter().map(find).collect::<Result<_, _>>()?,
            None => response.outputs.iter().collect(),
        };
        for output in &chosen {
            if let TensorData::F32(values) = &output.data
                && let Some(index) = values.iter().position(|value| !value.is_finite())
            {
                let (name, value) = (&output.name, values[index]);
                return Err(failed(format!("element {index} of output '{name}' is {value}, no finite number")));
            }
        }
        let outputs = chosen.into_iter().map(|output| OutputBody {
            name: &output.name,
            datatype: output.data.datatype(),
            shape: &output.shape,
            data: &output.data,
        });
        let body = ResponseBody {
            model_name: &response.model,
            model_version: &response.version,
            id: self.id.as_deref(),
            outputs: outputs.collect(),
        };
        Ok(serde_json::to_vec(&body).expect("writing plain values into memory cannot fail"))
    }
}

/// `[-1,49,10,1]`, and no more of it than a person reads.
fn list<T: fmt::Display>(dimensions: &[T]) -> String {
    let shown: Vec<String> = dimensions.iter().take(16).map(T::to_string).collect();
    format!("[{}{}]", shown.join(","), if dimensions.len() > shown.len() { ",…" } else { "" })
}

fn names(tensors: &[TensorMetadata]) -> String {
    let names: Vec<String> = tensors.iter().map(|tensor| format!("'{}'", tensor.name)).collect();
    names.join(", ")
}

/// A flat or nested array of numbers. Four bytes an element: what the datatypes hold, they hold as `f32` exactly, and
/// the first that is not whole is remembered before it is rounded.
#[derive(Default)]
struct Numbers {
    values: Vec<f32>,
    /// Lengths of the arrays, outermost first.
    dims: Vec<u64>,
    /// Depth at which the numbers stand.
    leaf: Option<usize>,
    /// Position and value of the first number that is not whole.
    fraction: Option<(usize, f64)>,
}

/// The length of an array whose end was not seen yet.
const OPEN: u64 = u64::MAX;

impl Numbers {
    fn push(&mut self, depth: usize, value: f64) -> Result<(), &'static str> {
        if depth == 0 {
            return Err("data must be an array");
        }
        if *self.leaf.get_or_insert(depth) != depth {
            return Err("data must be nested to the same depth everywhere");
        }
        if value.fract() != 0.0 && self.fraction.is_none() {
            self.fraction = Some((self.values.len(), value));
        }
        self.values.push(value as f32);
        Ok(())
    }

    fn close(&mut self, depth: usize, length: u64) -> Result<(), &'static str> {
        if self.dims.len() <= depth {
            self.dims.resize(depth + 1, OPEN);
        }
        match std::mem::replace(&mut self.dims[depth], length) {
            before if before == OPEN || before == length => Ok(()),
            _ => Err("nested arrays in data must have the same length"),
        }
    }

    fn into_tensor(self, input: &str, datatype: Datatype) -> Result<TensorData, Refusal> {
        let misfit = |index: usize, value: f64, holds: &str| {
            Refusal::bad(format!("input '{input}': element {index} is {value}, but {datatype} holds {holds}"))
        };
        let within = |range: RangeInclusive<f32>, holds: &str| {
            if let Some((index, value)) = self.fraction {
                return Err(misfit(index, value, holds));
            }
            match self.values.iter().position(|value| !range.contains(value)) {
                Some(index) => Err(misfit(index, self.values[index].into(), holds)),
                None => Ok(()),
            }
        };
        match datatype {
            Datatype::Fp32 => match self.values.iter().position(|value| !value.is_finite()) {
                Some(index) => Err(misfit(index, self.values[index].into(), "numbers to ±3.4e38")),
                None => Ok(TensorData::F32(self.values)),
            },
            Datatype::Int8 => {
                within(-128.0..=127.0, "whole numbers from -128 to 127")?;
                Ok(TensorData::I8(self.values.iter().map(|value| *value as i8).collect()))
            }
            Datatype::Uint8 => {
                within(0.0..=255.0, "whole numbers from 0 to 255")?;
                Ok(TensorData::U8(self.values.iter().map(|value| *value as u8).collect()))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut numbers = Self::default();
        Level { numbers: &mut numbers, depth: 0 }.deserialize(deserializer)?;
        Ok(numbers)
    }
}

/// A number or an array inside `depth` arrays.
struct Level<'a> {
    numbers: &'a mut Numbers,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers in one array or in nested ones")
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.numbers.push(self.depth, value).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        let mut length = 0;
        while array.next_element_seed(Level { numbers: self.numbers, depth: self.depth + 1 })?.is_some() {
            length += 1;
        }
        self.numbers.close(self.depth, length).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(name: &str, datatype: Datatype, row: &[i64]) -> TensorMetadata {
        TensorMetadata { name: name.into(), datatype, shape: [&[-1], row].concat() }
    }

    fn model() -> ModelMetadata {
        ModelMetadata {
            number: 7,
            name: "m".into(),
            versions: vec!["1.2.0".into()],
            platform: "onnx_onnxv1".into(),
            inputs: vec![spec("x", Datatype::Fp32, &[2, 2]), spec("k", Datatype::Int8, &[1])],
            outputs: vec![spec("y", Datatype::Fp32, &[2]), spec("z", Datatype::Uint8, &[1])],
            phase: ModelPhase::Active,
        }
    }

    fn body() -> Value {
        json!({
            "id": "7",
            "inputs": [
                { "name": "k", "shape": [2, 1], "datatype": "INT8", "data": [-128, 127.0] },
                { "name": "x", "shape": [2, 2, 2], "datatype": "FP32", "data": [[[1, 2.5], [-3, 4]], [[5, 6], [7, 8e3]]] },
            ],
            "parameters": { "timeout": 250_000, "class": "analytic", "priority": 3 },
        })
    }

    fn ask(body: &Value) -> Result<(InferRequest, Wanted), Refusal> {
        parse(&model(), &serde_json::to_vec(body).unwrap())
    }

    /// The message of what is refused with 400 after `path` was replaced.
    fn refused(path: &str, value: Value) -> String {
        let mut body = body();
        *body.pointer_mut(path).unwrap() = value;
        let refusal = ask(&body).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{}", refusal.message);
        refusal.message
    }

    #[test]
    fn a_request_comes_in_the_models_order_with_its_rows() {
        let asked = ask(&body()).unwrap();
        let expected = InferRequest {
            model: "m".into(),
            number: 7,
            inputs: vec![
                ("x".into(), TensorData::F32(vec![1.0, 2.5, -3.0, 4.0, 5.0, 6.0, 7.0, 8e3])),
                ("k".into(), TensorData::I8(vec![-128, 127])),
            ],
            rows: 2,
            deadline: Duration::from_millis(250),
        };
        assert_eq!(asked.0, expected);
        // Flat data is the same.
        let mut flat = body();
        flat["inputs"][1]["data"] = json!([1, 2.5, -3, 4, 5, 6, 7, 8e3]);
        assert_eq!(ask(&flat).unwrap(), asked);
        flat.as_object_mut().unwrap().remove("parameters");
        assert_eq!(ask(&flat).unwrap().0.deadline, TIMEOUT);
    }

    #[test]
    fn numbers_that_the_datatype_does_not_hold_are_refused() {
        let data = "/inputs/0/data";
        let holds = "but INT8 holds whole numbers from -128 to 127";
        assert_eq!(refused(data, json!([0, 128])), format!("input 'k': element 1 is 128, {holds}"));
        assert_eq!(refused(data, json!([-129, 0])), format!("input 'k': element 0 is -129, {holds}"));
        assert_eq!(refused(data, json!([0, 0.5])), format!("input 'k': element 1 is 0.5, {holds}"));
        let almost = 127.000_000_001;
        assert_eq!(refused(data, json!([almost, 0])), format!("input 'k': element 0 is {almost}, {holds}"));
        assert!(refused("/inputs/1/data/0/0/0", json!(1e39)).contains("FP32 holds numbers to"));
    }

    #[test]
    fn shapes_and_data_must_agree() {
        let shape = "unexpected shape for input 'x' for model 'm'. Expected [-1,2,2], got ";
        for (wrong, shown) in [(json!([2, 4]), "[2,4]"), (json!([0, 2, 2]), "[0,2,2]"), (json!([]), "[]")] {
            let message = refused("/inputs/1/shape", wrong);
            assert!(message.starts_with(&format!("{shape}{shown}")), "{message}");
        }
        let huge = refused("/inputs/1/shape", json!([u64::MAX, 2, 2]));
        assert!(huge.contains("Shape does not match true shape of 'data' field"), "{huge}");
        for wrong in [json!([1, 2, 3]), json!([[1, 2, 3, 4], [5, 6, 7, 8]]), json!([]), json!([[], []])] {
            let message = refused("/inputs/1/data", wrong);
            assert!(message.starts_with("input 'x': Shape does not match true shape of 'data' field"), "{message}");
        }
        for (wrong, why) in [
            (json!([[1, 2], [3]]), "the same length"),
            (json!([[1], 2]), "the same depth"),
            (json!(5), "data must be an array"),
            (json!(["1"]), "expected numbers"),
            (json!([null]), "expected numbers"),
        ] {
            let message = refused("/inputs/1/data", wrong);
            assert!(message.starts_with("the body is no inference request") && message.contains(why), "{message}");
        }
        let deep = "[".repeat(5000);
        let text = format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32","data":{deep}"#);
        assert!(parse(&model(), text.as_bytes()).unwrap_err().message.contains("recursion limit"));
    }

    #[test]
    fn names_types_and_batches_must_fit_the_model() {
        assert_eq!(
            refused("/inputs/1/name", json!("foo")),
            "unexpected inference input 'foo' for model 'm', which takes 'x', 'k'"
        );
        assert!(refused("/inputs/1/datatype", json!("FLOAT")).starts_with("invalid datatype for input x: 'FLOAT'"));
        assert_eq!(
            refused("/inputs/1/datatype", json!("INT8")),
            "inference input 'x' data-type is 'INT8', but model 'm' expects 'FP32'"
        );
        let one = json!({ "name": "k", "shape": [1, 1], "datatype": "INT8", "data": [1] });
        assert!(refused("/inputs/0", one.clone()).starts_with("input 'k' has a batch of 1, the one before it 2"));
        assert_eq!(refused("/inputs", json!([one])), "input 'x' of model 'm' is missing");
        let mut twice = body();
        let again = twice["inputs"][0].clone();
        twice["inputs"].as_array_mut().unwrap().push(again);
        assert_eq!(ask(&twice).unwrap_err().message, "input 'k' is there twice");
        assert!(refused("/id", json!(7)).contains("invalid type: integer `7`, expected a string"));
    }

    #[test]
    fn parameters_that_cannot_be_met_are_refused() {
        assert!(refused("/parameters/class", json!("batch")).contains("'batch' does not exist"));
        assert!(refused("/parameters/timeout", json!(600_000_001)).contains("are more than 600000000"));
        assert!(refused("/parameters/timeout", json!("1s")).contains("invalid type"));
        assert!(refused("/parameters", json!({ "binary_data_output": true })).contains("JSON only"));
        let mut body = body();
        body["parameters"]["class"] = json!("realtime");
        let refusal = ask(&body).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        assert!(refusal.message.contains("no rate was admitted"), "{}", refusal.message);
        for (wrong, why) in [
            (json!([{ "name": "nope" }]), "unexpected inference output 'nope' for model 'm', which gives 'y', 'z'"),
            (json!([{ "name": "y", "parameters": { "binary_data": true } }]), "JSON only"),
            (json!([{ "name": "y", "parameters": { "classification": 3 } }]), "no classification"),
            (json!([{ "name": "y" }, { "name": "y" }]), "output 'y' is wanted twice"),
        ] {
            assert!(ask(&wanting(wrong)).unwrap_err().message.contains(why), "{why}");
        }
    }

    fn wanting(outputs: Value) -> Value {
        let mut body = body();
        body["outputs"] = outputs;
        body
    }

    fn response(y: f32) -> InferResponse {
        let output = |name: &str, shape: &[usize], data| InferOutput { name: name.into(), shape: shape.into(), data };
        InferResponse {
            model: "m".into(),
            version: "1.2.0".into(),
            outputs: vec![
                output("y", &[2, 2], TensorData::F32(vec![0.1, y, 3.0, 4.0])),
                output("z", &[2, 1], TensorData::U8(vec![0, 255])),
            ],
        }
    }

    #[test]
    fn an_answer_has_the_wanted_outputs_in_the_wanted_order() {
        let answer = |body: &Value| -> Value {
            serde_json::from_slice(&ask(body).unwrap().1.answer(&response(2.0)).unwrap()).unwrap()
        };
        let z = json!({ "name": "z", "datatype": "UINT8", "shape": [2, 1], "data": [0, 255] });
        let all = answer(&body());
        assert_eq!(
            (&all["model_name"], &all["model_version"], &all["id"]),
            (&json!("m"), &json!("1.2.0"), &json!("7"))
        );
        assert_eq!(all["outputs"][0]["name"], "y");
        assert_eq!(all["outputs"][1], z);
        let only = answer(&wanting(json!([{ "name": "z", "parameters": { "binary_data": false } }])));
        assert_eq!(only["outputs"], json!([z]));
        let text = String::from_utf8(ask(&body()).unwrap().1.answer(&response(2.0)).unwrap()).unwrap();
        assert!(text.contains("[0.1,2.0,3.0,4.0]"), "floats as short as they are exact: {text}");
    }

    #[test]
    fn an_output_that_is_no_number_is_an_error() {
        let refusal = ask(&body()).unwrap().1.answer(&response(f32::NAN)).unwrap_err();
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(refusal.message, "model 'm' 1.2.0: element 1 of output 'y' is NaN, no finite number");
    }

    #[test]
    fn metadata_leaves_the_batch_open() {
        let tensor =
            TensorSpec { name: "x".into(), element: ElementType::U8, shape: vec![8, 49, 10], quantization: None };
        assert_eq!(
            serde_json::to_value(TensorMetadata::of(&tensor)).unwrap(),
            json!({ "name": "x", "datatype": "UINT8", "shape": [-1, 49, 10] })
        );
    }
}
