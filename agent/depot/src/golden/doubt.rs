//! Whether golden vectors tell right from wrong.
//!
//! A set that a wrong answer passes proves nothing, however many vectors it has. The wrong answers tried here need no
//! graph: the best constant, and the right scores under the wrong labels. What needs the graph, an input of zeros or a
//! shuffled one, the proof tries.
//!
//! Everything here is unchanged by scaling or shifting an output, so stored integers will do for real values.

use limpet_engine::golden::{nmae, top1_agreement};

use crate::manifest::Limits;

/// Whether an output has classes, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classes {
    /// It has none.
    None,
    /// A bare graph's output looks as if: only wholesale permutations are tried, because a class that never wins may
    /// be no class at all.
    Guessed,
    /// The manifest says so: no two of them may be exchanged unnoticed.
    Declared,
}

impl Classes {
    /// Whether there are any.
    pub fn any(self) -> bool {
        self != Self::None
    }
}

/// Whether an output that should be `golden` would pass.
pub(crate) fn passes(out: &[f32], golden: &[f32], vectors: usize, classes: Classes, limits: Limits) -> bool {
    nmae(out, golden, vectors) <= limits.nmae
        && (!classes.any() || top1_agreement(out, golden, vectors) >= limits.top1_agreement)
}

/// Why the golden values of one output would let a wrong answer pass, or none if they would not. `golden` is one
/// vector after another.
///
/// # Panics
/// If its length is no multiple of `vectors`.
pub fn proves_nothing(golden: &[f32], vectors: usize, classes: Classes, limits: Limits) -> Option<String> {
    let elements = golden.len() / vectors;
    if classes.any() {
        let own = top1_agreement(golden, golden, vectors);
        if own < limits.top1_agreement {
            return Some(format!(
                "its own best classes are ties in {:.0} % of the vectors; record vectors with a clear winner",
                (1.0 - own) * 100.0
            ));
        }
    }
    let constant = constant(golden, vectors);
    if passes(&constant, golden, vectors, classes, limits) {
        return Some(
            "the same answer to every vector would pass; record vectors whose outputs differ from each other"
                .to_owned(),
        );
    }
    let exchanged = |permutation: &[usize]| -> Vec<f32> {
        golden.chunks_exact(elements).flat_map(|vector| permutation.iter().map(|&class| vector[class])).collect()
    };
    if classes.any() && elements > 1 {
        let rotated: Vec<usize> = (0..elements).map(|class| (class + 1) % elements).collect();
        let reversed: Vec<usize> = (0..elements).rev().collect();
        if [rotated, reversed].iter().any(|order| passes(&exchanged(order), golden, vectors, classes, limits)) {
            return Some("permuted classes would pass; record at least four vectors of each class".to_owned());
        }
    }
    if classes == Classes::Declared
        && let Some((a, b)) = exchangeable(golden, vectors, &constant, limits)
    {
        return Some(format!(
            "classes {a} and {b} could be exchanged and it would pass; record at least four vectors of each"
        ));
    }
    None
}

/// The first two classes that could be exchanged and would pass. Sums instead of [`passes`] for each pair, because a
/// thousand classes have half a million pairs.
fn exchangeable(golden: &[f32], vectors: usize, constant: &[f32], limits: Limits) -> Option<(usize, usize)> {
    let elements = golden.len() / vectors;
    let mut wins = vec![0usize; elements];
    for vector in golden.chunks_exact(elements) {
        if let Some(class) = winner(vector) {
            wins[class] += 1;
        }
    }
    let won: usize = wins.iter().sum();
    let spread: f64 = golden.iter().zip(constant).map(|(g, c)| (f64::from(*g) - f64::from(*c)).abs()).sum();
    let pairs = (0..elements).flat_map(|a| (a + 1..elements).map(move |b| (a, b)));
    pairs.into_iter().find(|&(a, b)| {
        let agreement = (won - wins[a] - wins[b]) as f64 / vectors as f64;
        agreement >= limits.top1_agreement && {
            let difference = |vector: &[f32]| (f64::from(vector[a]) - f64::from(vector[b])).abs();
            let error: f64 = golden.chunks_exact(elements).map(|vector| 2.0 * difference(vector)).sum();
            error <= limits.nmae * spread
        }
    })
}

/// The one largest element, or none if it is shared.
fn winner(vector: &[f32]) -> Option<usize> {
    let (class, largest) = vector.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    (vector.iter().filter(|value| *value == largest).count() == 1).then_some(class)
}

/// The answer that knows nothing of its input and errs least: each element's median.
fn constant(golden: &[f32], vectors: usize) -> Vec<f32> {
    let elements = golden.len() / vectors;
    let medians: Vec<f32> = (0..elements)
        .map(|element| {
            let mut column: Vec<f32> = golden.iter().skip(element).step_by(elements).copied().collect();
            column.sort_unstable_by(f32::total_cmp);
            f32::midpoint(column[(vectors - 1) / 2], column[vectors / 2])
        })
        .collect();
    medians.repeat(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_hot(classes: &[usize], of: usize) -> Vec<f32> {
        classes.iter().flat_map(|&class| (0..of).map(move |other| if other == class { 0.9 } else { 0.1 })).collect()
    }

    fn verdict(golden: &[f32], vectors: usize, classes: Classes) -> Option<String> {
        proves_nothing(golden, vectors, classes, Limits::PACKAGE)
    }

    #[test]
    fn vectors_of_every_class_prove_something() {
        let golden = one_hot(&[0, 1, 2, 0, 1, 2], 3);
        assert_eq!(verdict(&golden, 6, Classes::Declared), None);
        assert_eq!(verdict(&golden, 6, Classes::None), None);
    }

    #[test]
    fn vectors_that_are_all_alike_prove_nothing() {
        for classes in [Classes::None, Classes::Guessed, Classes::Declared] {
            let reason = verdict(&one_hot(&[1, 1, 1, 1], 3), 4, classes).unwrap();
            assert!(reason.contains("same answer"), "{reason}");
        }
        assert!(verdict(&[1.0, 2.0], 1, Classes::None).is_some(), "one vector alone");
    }

    #[test]
    fn classes_that_never_win_could_be_exchanged() {
        let golden = one_hot(&[0, 1, 0, 1], 4);
        let reason = verdict(&golden, 4, Classes::Declared).unwrap();
        assert!(reason.contains("classes 2 and 3"), "{reason}");
        assert_eq!(verdict(&golden, 4, Classes::Guessed), None);
    }

    #[test]
    fn ties_for_the_best_class_are_told() {
        let reason = verdict(&[0.5, 0.5, 0.1, 0.9], 2, Classes::Declared).unwrap();
        assert!(reason.contains("ties in 50 %"), "{reason}");
    }
}
