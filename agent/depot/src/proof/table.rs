//! A report as text: aligned columns, numbers to the right, the reason last because it is as long as it needs to be.

use std::fmt::Write as _;

use super::{Batches, RUNS_FOR_P99, Report, Row};

const COLUMNS: usize = 12;
const TITLES: [&str; COLUMNS] =
    ["engine", "variant", "load", "top-1", "mean abs err", "NMAE", "p50", "p99", "memory", "batch", "verdict", "why"];
/// Columns of text; the others hold numbers.
const LEFT: [usize; 4] = [0, 1, 10, 11];
/// Left out where no row has tried any.
const BATCH: usize = 9;

pub(super) fn write(report: &Report) -> String {
    let mut lines = vec![TITLES.map(str::to_owned)];
    lines.extend(report.rows.iter().map(cells));
    let batches = report.rows.iter().any(|row| row.batches.is_some());
    let columns: Vec<usize> = (0..COLUMNS).filter(|column| batches || *column != BATCH).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for &column in &columns {
            let (cell, width) = (&line[column], width(column));
            let written = match LEFT.contains(&column) {
                true => write!(out, "{cell:<width$}  "),
                false => write!(out, "{cell:>width$}  "),
            };
            written.expect("writing into a string cannot fail");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    let mut end = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    // All variants of a package have the same.
    if let Some(cost) = report.rows.iter().find_map(|row| row.ingest) {
        let what = if cost.runs < RUNS_FOR_P99 { format!("max of {}", cost.runs) } else { "p99".to_owned() };
        end(format!("front end: mean {:.1} µs a window, {what} {:.1} µs", cost.mean_us, cost.p99_us));
    }
    match &report.chosen {
        Some(chosen) => end(format!("chosen: {} on {}", chosen.variant, chosen.engine)),
        None => end("chosen: none; no variant may serve".to_owned()),
    }
    if let Some(reduced) = &report.reduced {
        end(format!("under pressure: {} on {}", reduced.variant, reduced.engine));
    }
    text
}

fn cells(row: &Row) -> [String; COLUMNS] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let why = match &row.batches {
        Some(batches) => format!("{}; batches: {}", row.reason, batches.stopped),
        None => row.reason.clone(),
    };
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
        or_dash(row.batches.as_ref().and_then(batch)),
        row.verdict.name().to_owned(),
        why,
    ]
}

/// The largest batch, with its samples per second as a multiple of those of one by one.
fn batch(batches: &Batches) -> Option<String> {
    let (one, largest) = (batches.sizes.first()?, batches.sizes.last()?);
    let gain = one.p50_us * largest.size as f64 / largest.p50_us;
    Some(match largest.size {
        1 => "1".to_owned(),
        size => format!("{size} ×{gain:.2}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{BatchCost, IngestCost, Verdict, Wish};
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
        let text = write(&Report::new(vec![passed, refused], |_| false, Wish::default()));
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

    #[test]
    fn what_batches_gain_has_a_column_where_it_was_tried() {
        let cost =
            |size, p50_us| BatchCost { size, p50_us, mean_us: p50_us, p99_us: p50_us, runs: 9, memory_bytes: None };
        let row = |variant: &str, sizes, stopped: &str| Row {
            batches: Some(Batches { sizes, stopped: stopped.to_owned() }),
            ..Row::without_measures("toy", variant, Verdict::Passed, "within its limits".into())
        };
        let mut first = row("a.onnx", vec![cost(1, 10.0), cost(2, 14.0)], "4 gains 2 % over 2");
        first.ingest = Some(IngestCost { mean_us: 3.25, p99_us: 4.0, runs: 2000 });
        let second = row("s.onnx", vec![cost(1, 10.0)], "runs one by one: no");
        let text = write(&Report::new(vec![first, second], |variant| variant == "s.onnx", Wish::default()));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("memory    batch  verdict  why"), "{text}");
        assert!(lines[1].ends_with("-  2 ×1.43  passed   within its limits; batches: 4 gains 2 % over 2"), "{text}");
        assert!(lines[2].ends_with("-        1  passed   within its limits; batches: runs one by one: no"), "{text}");
        assert_eq!(lines[3], "front end: mean 3.2 µs a window, p99 4.0 µs");
        assert_eq!(lines[4..], ["chosen: a.onnx on toy", "under pressure: s.onnx on toy"]);
    }
}
