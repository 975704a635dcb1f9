//! A report as text: aligned columns, numbers to the right, the reason last because it is as long as it needs to be.

use std::fmt::Write as _;

use super::{Report, Row};

const TITLES: [&str; 11] =
    ["engine", "variant", "load", "top-1", "mean abs err", "NMAE", "p50", "p99", "memory", "verdict", "why"];
/// Columns of text; the others hold numbers.
const LEFT: [usize; 4] = [0, 1, 9, 10];

pub(super) fn write(report: &Report) -> String {
    let mut lines = vec![TITLES.map(str::to_owned)];
    lines.extend(report.rows.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let written = match LEFT.contains(&column) {
                true => write!(out, "{cell:<width$}  "),
                false => write!(out, "{cell:>width$}  "),
            };
            written.expect("writing into a string cannot fail");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    match &report.chosen {
        Some(chosen) => writeln!(text, "chosen: {} on {}", chosen.variant, chosen.engine),
        None => writeln!(text, "chosen: none; no variant may serve"),
    }
    .expect("writing into a string cannot fail");
    text
}

fn cells(row: &Row) -> [String; 11] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        row.engine.clone(),
        row.variant.clone(),
        or_dash(row.load_ms.map(|ms| format!("{ms:.1} ms"))),
        or_dash(row.top1_agreement.map(|share| format!("{share:.3}"))),
        or_dash(row.mean_abs_error.map(|error| format!("{error:.3e}"))),
        or_dash(row.nmae.map(|error| format!("{error:.4}"))),
        or_dash(row.p50_us.map(|us| format!("{us:.1} µs"))),
        or_dash(row.p99_us.map(|us| format!("{us:.1} µs"))),
        or_dash(row.memory_bytes.map(|bytes| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20)))),
        row.verdict.name().to_owned(),
        row.reason.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn columns_are_aligned_and_what_is_unknown_is_a_dash() {
        let passed = Row {
            load_ms: Some(12.0),
            nmae: Some(0.0123),
            p50_us: Some(34.5),
            ..Row::without_measures("tflite", "int8.tflite", Verdict::Passed, "within its limits".into())
        };
        let refused = Row::without_measures("tract", "a.onnx", Verdict::Refused, "no such operator".into());
        let text = write(&Report::new(vec![passed, refused], |_| false, None));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "engine  variant         load  top-1  mean abs err    NMAE      p50  p99  memory  verdict  why"
        );
        assert_eq!(
            lines[1],
            "tflite  int8.tflite  12.0 ms      -             -  0.0123  34.5 µs    -       -  passed   within its limits"
        );
        assert_eq!(
            lines[2],
            "tract   a.onnx             -      -             -       -        -    -       -  refused  no such operator"
        );
        assert_eq!(lines[3], "chosen: int8.tflite on tflite");
    }
}
