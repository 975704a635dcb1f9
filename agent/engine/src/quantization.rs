//! Between real numbers and a tensor's stored integers, by the tensor's own scale and zero point.
//!
//! `real = (stored − zero_point) · scale`, and back: divided by the scale, rounded half to even, offset by the zero
//! point, saturated at the ends of the integer type. That is what ONNX defines for QuantizeLinear. Not-a-number has
//! no stored value; it becomes the zero point, the stored value of zero, so callers that must notice it look before.
//!
//! The loops are written so that the compiler turns them into vector code on a baseline of SSE2 or NEON: no call, no
//! branch, no float-to-integer conversion that would have to check its range.

use crate::{ElementType, Quantization, Session, TensorMut, TensorRef};

mod sealed {
    pub trait Sealed {}
}

/// An integer type of at most 16 bits that a tensor may be stored in.
pub trait Stored: Copy + sealed::Sealed {
    /// Its lowest value.
    const LOWEST: i32;
    /// Its highest value.
    const HIGHEST: i32;

    /// The value, widened.
    fn widen(self) -> i32;

    /// The value that equals `value`, which lies between [`Stored::LOWEST`] and [`Stored::HIGHEST`].
    fn narrow(value: i32) -> Self;
}

macro_rules! stored {
    ($($t:ty),*) => { $(
        impl sealed::Sealed for $t {}
        impl Stored for $t {
            const LOWEST: i32 = <$t>::MIN as i32;
            const HIGHEST: i32 = <$t>::MAX as i32;
            #[inline]
            fn widen(self) -> i32 {
                self as i32
            }
            #[inline]
            fn narrow(value: i32) -> Self {
                value as $t
            }
        }
    )* };
}
stored!(i8, u8, i16, u16);

/// 1.5 · 2²³. A float of magnitude below 2²² that is added to it is rounded to an integer, half to even, and that
/// integer stands in the low bits of the sum: the way to round and convert without a library call where the
/// instruction set has no rounding instruction (SSE2).
const ROUNDER: f32 = 12_582_912.0;

impl Quantization {
    /// A quantization if scale and zero point can be those of a tensor of `T`: the scale positive and finite, the
    /// zero point a value of the type.
    pub fn checked<T: Stored>(scale: f32, zero_point: i32) -> Option<Self> {
        let sound = scale.is_finite() && scale > 0.0 && (T::LOWEST..=T::HIGHEST).contains(&zero_point);
        sound.then_some(Self { scale, zero_point })
    }

    /// Writes the stored values of `real` to `stored`: rounded half to even and saturated; not-a-number becomes the
    /// zero point.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn quantize<T: Stored>(self, real: &[f32], stored: &mut [T]) {
        assert_eq!(real.len(), stored.len(), "as many stored values as real ones");
        let zero = self.zero_point;
        // Saturating before rounding is the same as after it, because the bounds are integers; and it keeps the
        // value within the rounder's range (at most 2¹⁷ for 16-bit types).
        let low = (T::LOWEST - zero) as f32;
        let high = (T::HIGHEST - zero) as f32;
        for (to, &from) in stored.iter_mut().zip(real) {
            let steps = from / self.scale;
            let steps = if steps.is_nan() { 0.0 } else { steps };
            let steps = if steps > low { steps } else { low };
            let steps = if steps < high { steps } else { high };
            let rounded = (steps + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
            *to = T::narrow(rounded.wrapping_add(zero));
        }
    }

    /// Replaces each value by what is left of it after [`Quantization::quantize`] to `T` by this quantization and
    /// [`Quantization::dequantize`] by `back`: the same bits, without the stored values between.
    pub(crate) fn round_trip<T: Stored>(self, back: Self, values: &mut [f32]) {
        let low = (T::LOWEST - self.zero_point) as f32;
        let high = (T::HIGHEST - self.zero_point) as f32;
        let offset = (self.zero_point - back.zero_point) as f32;
        for value in values {
            let steps = *value / self.scale;
            let steps = if steps.is_nan() { 0.0 } else { steps };
            let steps = if steps > low { steps } else { low };
            let steps = if steps < high { steps } else { high };
            *value = ((steps + ROUNDER) - ROUNDER + offset) * back.scale;
        }
    }

    /// Writes the real values of `stored` to `real`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dequantize<T: Stored>(self, stored: &[T], real: &mut [f32]) {
        assert_eq!(real.len(), stored.len(), "as many real values as stored ones");
        for (to, &from) in real.iter_mut().zip(stored) {
            *to = (from.widen() - self.zero_point) as f32 * self.scale;
        }
    }
}

/// Real values cannot be written to, or read from, an edge of a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EdgeError {
    /// There is no such tensor.
    #[error("the graph has {available} {edge}s; there is no {edge} number {index}")]
    NoSuchTensor {
        /// `input` or `output`.
        edge: &'static str,
        /// The one that was asked for, counted from 0.
        index: usize,
        /// How many there are.
        available: usize,
    },
    /// The number of values is not that of the tensor.
    #[error("input '{tensor}' takes {expected} values and was given {found}")]
    Length {
        /// The tensor.
        tensor: String,
        /// Elements of the tensor.
        expected: usize,
        /// Values that were given.
        found: usize,
    },
    /// An integer tensor whose graph does not tell scale and zero point.
    #[error(
        "{edge} '{tensor}' holds {element} integers and the graph tells no single scale and zero point for them, so \
         real values cannot be translated; use the stored integers themselves (input kind \"quantized\")"
    )]
    Unscaled {
        /// `input` or `output`.
        edge: &'static str,
        /// The tensor.
        tensor: String,
        /// Type of its elements.
        element: ElementType,
    },
}

/// Writes real values to an input of a session: as they are where it takes floats, quantized where it takes integers.
/// Allocates nothing.
///
/// # Errors
/// [`EdgeError`] if there is no such input, if `real` has not one value per element (the whole batch counted), or if
/// an integer input has no quantization. The buffer is untouched then.
pub fn write_real(session: &mut dyn Session, input: usize, real: &[f32]) -> Result<(), EdgeError> {
    if let Some(spec) = session.inputs().get(input).filter(|spec| spec.elements() != real.len()) {
        return Err(EdgeError::Length { tensor: spec.name.clone(), expected: spec.elements(), found: real.len() });
    }
    write_real_at(session, input, 0, real)
}

/// [`write_real`] to a part of an input, from element `start` on: one row of a batch.
///
/// # Errors
/// [`EdgeError`] if there is no such input, if it has fewer elements after `start`, or if an integer input has no
/// quantization. The buffer is untouched then.
pub fn write_real_at(session: &mut dyn Session, input: usize, start: usize, real: &[f32]) -> Result<(), EdgeError> {
    let available = session.inputs().len();
    let spec = session.inputs().get(input).ok_or(EdgeError::NoSuchTensor { edge: "input", index: input, available })?;
    let left = spec.elements().saturating_sub(start);
    if left < real.len() {
        return Err(EdgeError::Length { tensor: spec.name.clone(), expected: left, found: real.len() });
    }
    let (element, quantization) = (spec.element, spec.quantization);
    if element != ElementType::F32 && quantization.is_none() {
        return Err(EdgeError::Unscaled { edge: "input", tensor: spec.name.clone(), element });
    }
    let range = start..start + real.len();
    match (session.input_mut(input), quantization) {
        (TensorMut::F32(buffer), _) => buffer[range].copy_from_slice(real),
        (TensorMut::I8(buffer), Some(quantization)) => quantization.quantize(real, &mut buffer[range]),
        (TensorMut::U8(buffer), Some(quantization)) => quantization.quantize(real, &mut buffer[range]),
        (TensorMut::I8(_) | TensorMut::U8(_), None) => unreachable!("an unscaled input was turned away above"),
    }
    Ok(())
}

/// Reads an output of a session as real values: as they are where it gives floats, dequantized where it gives
/// integers. `real` is cleared and filled; it allocates only if its capacity is too small.
///
/// # Errors
/// [`EdgeError`] if there is no such output, or if an integer output has no quantization.
pub fn read_real(session: &dyn Session, output: usize, real: &mut Vec<f32>) -> Result<(), EdgeError> {
    let available = session.outputs().len();
    let spec =
        session.outputs().get(output).ok_or(EdgeError::NoSuchTensor { edge: "output", index: output, available })?;
    let scaled = || {
        spec.quantization.ok_or_else(|| EdgeError::Unscaled {
            edge: "output",
            tensor: spec.name.clone(),
            element: spec.element,
        })
    };
    real.clear();
    match session.output(output) {
        TensorRef::F32(values) => real.extend_from_slice(values),
        TensorRef::I8(values) => {
            let quantization = scaled()?;
            real.resize(values.len(), 0.0);
            quantization.dequantize(values, real);
        }
        TensorRef::U8(values) => {
            let quantization = scaled()?;
            real.resize(values.len(), 0.0);
            quantization.dequantize(values, real);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one<T: Stored + Default>(q: Quantization, real: f32) -> i32 {
        let mut stored = [T::default()];
        q.quantize(&[real], &mut stored);
        stored[0].widen()
    }

    #[test]
    fn halves_are_rounded_to_even() {
        let q = Quantization { scale: 1.0, zero_point: 0 };
        let found: Vec<i32> = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5].map(|x| one::<i8>(q, x)).to_vec();
        assert_eq!(found, [-2, -2, 0, 0, 2, 2, 4]);
    }

    #[test]
    fn the_ends_saturate_and_not_a_number_is_zero() {
        let q = Quantization { scale: 0.1, zero_point: 100 };
        assert_eq!(one::<i8>(q, 1e30), 127);
        assert_eq!(one::<i8>(q, f32::INFINITY), 127);
        assert_eq!(one::<i8>(q, f32::NEG_INFINITY), -128);
        assert_eq!(one::<i8>(q, f32::MIN), -128);
        assert_eq!(one::<i8>(q, f32::NAN), 100);
        assert_eq!(one::<u8>(q, f32::MAX), 255);
        assert_eq!(one::<u8>(q, -1e30), 0);
        let wide = Quantization { scale: 1e-30, zero_point: 65_535 };
        assert_eq!(one::<u16>(wide, 1.0), 65_535);
        assert_eq!(one::<u16>(wide, -1.0), 0);
    }

    #[test]
    fn a_scale_or_zero_point_that_no_tensor_can_have_is_turned_away() {
        assert!(Quantization::checked::<i8>(0.5, -128).is_some());
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(Quantization::checked::<i8>(scale, 0), None);
        }
        assert_eq!(Quantization::checked::<i8>(1.0, 128), None);
        assert_eq!(Quantization::checked::<u8>(1.0, -1), None);
    }

    /// What the vector loop must equal, written the plain way.
    fn plain(real: f32, q: Quantization, lowest: i32, highest: i32) -> i32 {
        let steps = f64::from(real / q.scale);
        ((steps.round_ties_even() + f64::from(q.zero_point)).clamp(f64::from(lowest), f64::from(highest))) as i32
    }

    proptest! {
        #[test]
        fn a_stored_value_comes_back_as_itself(scale in 1e-6f32..1e3, zero in -128i32..128, stored in any::<i8>()) {
            let q = Quantization { scale, zero_point: zero };
            let mut real = [0.0];
            q.dequantize(&[stored], &mut real);
            prop_assert_eq!(one::<i8>(q, real[0]), i32::from(stored));
        }

        #[test]
        fn a_real_value_within_range_comes_back_within_half_a_step(
            scale in 1e-6f32..1e3, zero in 0i32..256, part in 0.0f64..=1.0,
        ) {
            let q = Quantization { scale, zero_point: zero };
            let (low, high) = (f64::from(-zero) * f64::from(scale), f64::from(255 - zero) * f64::from(scale));
            let value = (low + (high - low) * part) as f32;
            let mut stored = [0u8];
            q.quantize(&[value], &mut stored);
            let mut back = [0.0];
            q.dequantize(&stored, &mut back);
            let error = (f64::from(back[0]) - f64::from(value)).abs();
            prop_assert!(error <= f64::from(scale) * 0.501, "{value} came back as {}", back[0]);
        }

        #[test]
        fn a_round_trip_leaves_the_bits_that_the_two_ways_leave(
            scale in 1e-6f32..1e3, zero in 0i32..256, back_scale in 1e-6f32..1e3, back_zero in 0i32..256,
            values in proptest::collection::vec(any::<f32>(), 1..40),
        ) {
            let there = Quantization { scale, zero_point: zero };
            let back = Quantization { scale: back_scale, zero_point: back_zero };
            let mut stored = vec![0u8; values.len()];
            there.quantize(&values, &mut stored);
            let mut want = vec![0.0; values.len()];
            back.dequantize(&stored, &mut want);
            let mut found = values.clone();
            there.round_trip::<u8>(back, &mut found);
            prop_assert_eq!(
                found.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
                want.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            );
        }

        #[test]
        fn quantizing_keeps_the_order(scale in 1e-6f32..1e3, zero in -128i32..128, a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            let q = Quantization { scale, zero_point: zero };
            let (low, high) = if a <= b { (a, b) } else { (b, a) };
            prop_assert!(one::<i8>(q, low) <= one::<i8>(q, high));
        }

        #[test]
        fn the_fast_rounding_equals_the_plain_one(
            real in -1e6f32..1e6, scale in 1e-4f32..1e4, zero in -32768i32..32768,
        ) {
            let q = Quantization { scale, zero_point: zero };
            prop_assert_eq!(one::<i16>(q, real), plain(real, q, -32768, 32767));
            let q = Quantization { scale, zero_point: zero / 256 };
            prop_assert_eq!(one::<i8>(q, real), plain(real, q, -128, 127));
        }
    }
}
