//! Comparing what a session gave with what a model must give.
//!
//! Pure functions on real values (dequantized, where a graph gives integers). A tensor of `vectors` vectors is one
//! slice, vector after vector; `elements = len / vectors`. Sums are kept in `f64`, so that long tensors lose nothing.

/// Classes that a bare graph's output may have to be judged by its best one.
const CLASSES: std::ops::RangeInclusive<usize> = 2..=256;

/// Normalized mean absolute error: `mean |out − golden| ÷ mean |golden − its median over the vectors, per element|`.
///
/// 0 is a perfect answer; the best constant answer, which knows nothing of its input, scores 1. A value of `out` that
/// is not finite makes the result infinite. Where golden vectors do not vary at all, an exact answer scores 0 and any
/// other is infinitely wrong.
///
/// # Panics
/// If the lengths differ, or are not a multiple of `vectors`.
pub fn nmae(out: &[f32], golden: &[f32], vectors: usize) -> f64 {
    let elements = elements(out, golden, vectors);
    if golden.is_empty() {
        return 0.0;
    }
    let error = mean_abs_error(out, golden);
    let mut column = Vec::with_capacity(vectors);
    let mut spread = 0.0;
    for element in 0..elements {
        column.clear();
        column.extend(golden.iter().skip(element).step_by(elements));
        let median = median(&mut column);
        spread += column.iter().map(|&value| (f64::from(value) - median).abs()).sum::<f64>();
    }
    spread /= golden.len() as f64;
    if error == 0.0 {
        0.0
    } else if spread > 0.0 && error.is_finite() {
        error / spread
    } else {
        f64::INFINITY
    }
}

/// `mean |out − golden|`; infinite if a value of `out` is not finite.
///
/// # Panics
/// If the lengths differ.
pub fn mean_abs_error(out: &[f32], golden: &[f32]) -> f64 {
    assert_eq!(out.len(), golden.len(), "an output has as many values as its golden one");
    if out.is_empty() {
        return 0.0;
    }
    if out.iter().any(|value| !value.is_finite()) {
        return f64::INFINITY;
    }
    let sum: f64 = out.iter().zip(golden).map(|(&o, &g)| (f64::from(o) - f64::from(g)).abs()).sum();
    sum / out.len() as f64
}

/// The part of the vectors, 0 to 1, for which `out` and `golden` have the same best class. A tie for the best, in
/// either of them, is a disagreement, and so is a vector with a value that is not a number: a graph that gives 127
/// for every class agrees with nothing.
///
/// # Panics
/// If the lengths differ, are not a multiple of `vectors`, or `vectors` is 0.
pub fn top1_agreement(out: &[f32], golden: &[f32], vectors: usize) -> f64 {
    assert!(vectors > 0, "agreement is over at least one vector");
    let elements = elements(out, golden, vectors);
    if elements == 0 {
        return 0.0;
    }
    let agreed = out
        .chunks_exact(elements)
        .zip(golden.chunks_exact(elements))
        .filter(|(o, g)| matches!((best(o), best(g)), (Some(o), Some(g)) if o == g))
        .count();
    agreed as f64 / vectors as f64
}

/// Whether the best class of a bare graph's output means anything: it has 2 to 256 elements, and no golden vector has
/// a tie for the best.
///
/// # Panics
/// If the length is not a multiple of `vectors`.
pub fn is_judgeable(golden: &[f32], vectors: usize) -> bool {
    let elements = elements(golden, golden, vectors);
    CLASSES.contains(&elements) && golden.chunks_exact(elements).all(|vector| best(vector).is_some())
}

fn elements(out: &[f32], golden: &[f32], vectors: usize) -> usize {
    assert_eq!(out.len(), golden.len(), "an output has as many values as its golden one");
    if vectors == 0 {
        assert!(golden.is_empty(), "no vectors have no values");
        return 0;
    }
    assert_eq!(golden.len() % vectors, 0, "every vector has the same number of elements");
    golden.len() / vectors
}

/// Index of the one greatest value, or none if it is shared or a value is not a number.
pub fn best(vector: &[f32]) -> Option<usize> {
    if vector.iter().any(|value| value.is_nan()) {
        return None;
    }
    let (index, &greatest) = vector.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    // Compared as numbers: −0 and +0 are a tie.
    (vector.iter().filter(|&&value| value == greatest).count() == 1).then_some(index)
}

/// The middle value; of an even number, the mean of the two in the middle. Sorts its argument.
fn median(values: &mut [f32]) -> f64 {
    values.sort_unstable_by(f32::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        f64::from(values[half])
    } else {
        f64::midpoint(f64::from(values[half - 1]), f64::from(values[half]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three vectors of two elements; medians 2 and 10; deviations 1, 0, 2 and 10, 0, 20.
    const GOLDEN: [f32; 6] = [1.0, 0.0, 2.0, 10.0, 4.0, 30.0];

    #[test]
    fn nmae_is_the_error_over_the_deviation_from_the_median() {
        // Mean deviation (1 + 0 + 2 + 10 + 0 + 20) / 6 = 5.5; mean error (0.5 + 0 + 0 + 5 + 0 + 0) / 6 = 0.9167.
        let out = [1.5, 0.0, 2.0, 15.0, 4.0, 30.0];
        let found = nmae(&out, &GOLDEN, 3);
        assert!((found - 5.5 / 33.0).abs() < 1e-12, "{found}");
        assert_eq!(nmae(&GOLDEN, &GOLDEN, 3), 0.0);
    }

    #[test]
    fn the_best_constant_answer_scores_one() {
        let out = [2.0, 10.0, 2.0, 10.0, 2.0, 10.0];
        assert!((nmae(&out, &GOLDEN, 3) - 1.0).abs() < 1e-12);
        let worse = [2.0, 11.0, 2.0, 11.0, 2.0, 11.0];
        assert!(nmae(&worse, &GOLDEN, 3) > 1.0);
    }

    #[test]
    fn an_even_number_of_vectors_takes_the_mean_of_the_middle_two() {
        let golden = [0.0, 1.0, 3.0, 10.0];
        // Median 2: deviations 2, 1, 1, 8, mean 3. The error is 3 on each.
        let out = [3.0, 4.0, 6.0, 13.0];
        assert!((nmae(&out, &golden, 4) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn golden_vectors_that_never_vary_forgive_only_the_exact_answer() {
        assert_eq!(nmae(&[5.0, 5.0], &[5.0, 5.0], 2), 0.0);
        assert_eq!(nmae(&[5.0, 5.1], &[5.0, 5.0], 2), f64::INFINITY);
    }

    #[test]
    fn an_output_that_is_not_finite_is_infinitely_wrong() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let out = [bad, 0.0, 2.0, 10.0, 4.0, 30.0];
            assert_eq!(mean_abs_error(&out, &GOLDEN), f64::INFINITY);
            assert_eq!(nmae(&out, &GOLDEN, 3), f64::INFINITY);
        }
    }

    #[test]
    fn mean_abs_error_is_the_mean_of_the_differences() {
        assert_eq!(mean_abs_error(&[1.0, -1.0, 3.0, 0.0], &[0.0, 1.0, 3.0, 1.0]), 1.0);
    }

    #[test]
    fn top1_counts_the_vectors_with_the_same_single_best() {
        let golden = [0.1, 0.9, 0.8, 0.2, 0.3, 0.7, 0.6, 0.4];
        let out = [0.2, 0.8, 0.1, 0.9, 0.0, 1.0, 0.9, 0.1];
        assert_eq!(top1_agreement(&out, &golden, 4), 0.75);
    }

    #[test]
    fn a_tie_for_the_best_agrees_with_nothing() {
        let golden = [0.1, 0.9, 0.8, 0.2];
        assert_eq!(top1_agreement(&[127.0; 4], &golden, 2), 0.0);
        assert_eq!(top1_agreement(&[0.0, -0.0, 1.0, 0.0], &golden, 2), 0.5);
        assert_eq!(top1_agreement(&[f32::NAN, 0.9, 0.8, 0.2], &golden, 2), 0.5);
    }

    #[test]
    fn classes_are_judged_only_where_each_golden_vector_has_one_winner() {
        assert!(is_judgeable(&[0.1, 0.9, 0.8, 0.2], 2));
        assert!(!is_judgeable(&[0.5, 0.5, 0.8, 0.2], 2), "a tie");
        assert!(!is_judgeable(&[0.1, 0.9], 2), "one element is no class");
        let many: Vec<f32> = (0..257).map(|v| v as f32).collect();
        assert!(!is_judgeable(&many, 1));
        assert!(is_judgeable(&many[..256], 1));
    }
}
