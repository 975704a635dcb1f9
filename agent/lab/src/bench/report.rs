//! The results as one HTML page that needs nothing else: no script, no font, no picture from anywhere.
//!
//! For each variant on each engine: latency against rate from the server scenario's sweep, and samples a second and
//! latency against batch size from the offline scenario. A line is a number of threads.

use std::fmt::Write as _;

use serde::Serialize;

use super::chart::{Axis, Chart, Scale, Series, escape, marker};
use super::machine::Machine;
use super::statistics::Tail;
use super::subject::{Inputs, NotTimed};
use super::suite::{Row, Scenario};
use super::text;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Name and version, or file.
    pub subject: String,
    /// Where the inputs came from; noise means that no answer was checked.
    pub inputs: Inputs,
    /// What it was measured on.
    pub machine: Machine,
    /// How long each scenario lasted at least, in seconds.
    pub seconds: f64,
    /// What the server scenario keeps, in microseconds.
    pub bound_us: f64,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What was not, because of its proof.
    pub not_timed: Vec<NotTimed>,
    /// What else was not measured, and why.
    pub notes: Vec<String>,
}

impl Results {
    /// Whether answers were checked, in a sentence.
    pub fn answers(&self) -> &'static str {
        match self.inputs {
            Inputs::Golden => "Inputs are the golden vectors; every session that was timed gives their outputs.",
            Inputs::Noise => {
                "Inputs are noise: whether the answers are right was not checked (give --golden FILE.safetensors)."
            }
        }
    }

    /// What was not measured and what a reader has to know, a sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let not_timed = self.not_timed.iter().map(|other| {
            let verdict = if other.failed { "failed its proof" } else { "cannot run" };
            format!("{} on {} {verdict} and is not timed: {}", other.variant, other.engine, other.reason)
        });
        let of_rows = self.rows.iter().filter_map(|row| {
            let note = row.note.as_ref()?;
            let (variant, engine, scenario) = (&row.variant, row.engine, row.scenario.name());
            Some(format!("{variant} on {engine}, {scenario} on {}: {note}", threads(row.threads)))
        });
        not_timed.chain(of_rows).chain(self.notes.iter().cloned()).collect()
    }
}

fn threads(count: usize) -> String {
    if count == 1 { "1 thread".to_owned() } else { format!("{count} threads") }
}

/// The page.
pub fn page(results: &Results) -> String {
    let mut html = String::new();
    let mut put = |text: &str| {
        html.push_str(text);
        html.push('\n');
    };
    let title = escape(&results.subject);
    put("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">");
    put("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    put(&format!(
        "<title>{title} · limpet-lab bench</title>\n<style>\n{}</style>\n</head>\n<body>",
        include_str!("report.css")
    ));
    put(&format!("<h1>{title}</h1>\n<p>{}</p>", escape(&results.machine.describe())));
    put(&format!("<p>{}</p>", escape(results.answers())));
    if let Some(warning) = results.machine.warning() {
        put(&format!("<p class=\"warning\">Warning: {}</p>", escape(&warning)));
    }
    let mut contenders: Vec<(&str, &str)> = Vec::new();
    for row in &results.rows {
        if !contenders.contains(&(row.engine, &row.variant)) {
            contenders.push((row.engine, &row.variant));
        }
    }
    put("<h2>Results</h2>");
    put(&table(results, &contenders));
    for remark in results.remarks() {
        put(&format!("<p class=\"faint\">{}</p>", escape(&remark)));
    }
    for (engine, variant) in contenders {
        let rows = |scenario| {
            let of = |row: &&Row| row.engine == engine && row.variant == variant && row.scenario == scenario;
            results.rows.iter().filter(of).collect::<Vec<_>>()
        };
        let (server, offline) = (rows(Scenario::Server), rows(Scenario::Offline));
        let mut figures = String::new();
        if server.iter().any(|row| !row.sweep.is_empty()) {
            figures.push_str(&latency_against_rate(&server, results.bound_us * 1e3));
        }
        // One size is no line.
        if offline.iter().any(|row| row.batch != offline[0].batch) {
            figures.push_str(&rate_against_batch(&offline));
            figures.push_str(&latency_against_batch(&offline));
        }
        if !figures.is_empty() {
            put(&format!("<h2>{}</h2>", heading(results, engine, variant)));
            put(&format!("<div class=\"charts\">{figures}</div>"));
        }
    }
    put("<h2>How to read this</h2>");
    put(&format!(
        "<p class=\"faint\">Scenarios and percentiles follow MLPerf Inference, each scenario for at least {} s. Single-stream: one \
         sample after the other. Multi-stream: queries of eight samples. Server: Poisson arrivals on as many sessions as \
         threads, latency counted from the scheduled time; the result is the highest rate at which 99 % are within {}. \
         Offline: all samples at once; latency is that of a batch. A percentile is an upper bound with 99 % confidence \
         (early stopping); where there are too few queries for one, the longest is given.</p>",
        results.seconds,
        text::time(results.bound_us * 1e3)
    ));
    put("</body>\n</html>");
    html
}

/// Titles that [`table`] leaves out of its columns: they are the headings of its groups.
const GROUPED: usize = 2;

fn table(results: &Results, contenders: &[(&str, &str)]) -> String {
    let mut html = "<div class=\"scroll\"><table>\n<tr>".to_owned();
    let class = |column: usize| match Row::TITLES[column] {
        title if title.ends_with(' ') => " class=\"left\"",
        "result" => " class=\"result\"",
        _ => "",
    };
    let mut put = |text: std::fmt::Arguments<'_>| html.write_fmt(text).expect("writing into a string cannot fail");
    for (column, title) in Row::TITLES.iter().enumerate().skip(GROUPED) {
        put(format_args!("<th{}>{}</th>", class(column), title.trim_end()));
    }
    put(format_args!("</tr>\n"));
    for &(engine, variant) in contenders {
        let columns = Row::TITLES.len() - GROUPED;
        put(format_args!(
            "<tr><th class=\"group\" colspan=\"{columns}\">{}</th></tr>\n",
            heading(results, engine, variant)
        ));
        for row in results.rows.iter().filter(|row| row.engine == engine && row.variant == variant) {
            put(format_args!("<tr>"));
            for (column, cell) in row.cells().iter().enumerate().skip(GROUPED) {
                put(format_args!("<td{}>{}</td>", class(column), escape(cell)));
            }
            put(format_args!("</tr>\n"));
        }
    }
    put(format_args!("</table></div>"));
    html
}

/// A variant, its engine and what that says of its kernels, as HTML.
fn heading(results: &Results, engine: &str, variant: &str) -> String {
    let row = results.rows.iter().find(|row| row.engine == engine && row.variant == variant);
    let detail = row.and_then(|row| row.detail.as_ref()).map(|detail| format!(" ({})", escape(detail)));
    format!("{} on {}{}", escape(variant), escape(engine), detail.unwrap_or_default())
}

/// A chart with its heading and legend. `lines` names each series.
fn figure(heading: &str, lines: &[String], chart: &Chart) -> String {
    let mut legend = String::new();
    for (name, series) in lines.iter().zip(&chart.series) {
        let kind = if series.dashed { " dashed" } else { "" };
        let sample = marker(series.look, 17.0, 7.0, "");
        legend.push_str(&format!(
            "<span><svg viewBox=\"0 0 34 14\" aria-hidden=\"true\"><g class=\"s{}{kind}\"><path class=\"line\" d=\"M0 7H34\"/>{sample}\
             </g></svg>{}</span>",
            series.look % 4,
            escape(name)
        ));
    }
    format!("<figure><h3>{}</h3><figcaption>{legend}</figcaption>{}</figure>\n", escape(heading), chart.svg())
}

fn latency_axis(title: &str) -> Axis {
    Axis { title: title.to_owned(), scale: Scale::Log, ticks: None, label: round_time }
}

fn rate_axis(title: &str) -> Axis {
    Axis { title: title.to_owned(), scale: Scale::Linear, ticks: None, label: short_number }
}

fn batch_axis(rows: &[&Row]) -> Axis {
    let mut ticks: Vec<usize> = rows.iter().map(|row| row.batch).collect();
    ticks.sort_unstable();
    ticks.dedup();
    let ticks = Some(ticks.into_iter().map(|batch| batch as f64).collect());
    Axis { title: "batch, samples".to_owned(), scale: Scale::Log, ticks, label: short_number }
}

fn latency_against_rate(rows: &[&Row], bound: f64) -> String {
    let (mut names, mut series) = (Vec::new(), Vec::new());
    for (look, row) in rows.iter().enumerate() {
        let told =
            |rate: f64, what: &str, ns: f64| format!("{}: {what} {}", text::rate(rate, "queries"), text::time(ns));
        let p50 = |point: &super::suite::Point| {
            let ns = point.latency.p50_us * 1e3;
            (point.rate, ns, told(point.rate, "p50", ns))
        };
        let p99 = |point: &super::suite::Point| {
            let tail = point.latency.tail.0;
            (point.rate, tail.ns() as f64, told(point.rate, &tail.name(), tail.ns() as f64))
        };
        names.push(format!("p50, {}", threads(row.threads)));
        series.push(Series { look, dashed: false, points: row.sweep.iter().map(p50).collect() });
        names.push(format!("p99, {}", threads(row.threads)));
        series.push(Series { look, dashed: true, points: row.sweep.iter().map(p99).collect() });
    }
    let chart = Chart {
        description: "Latency against the rate of arrivals in the server scenario".to_owned(),
        x: rate_axis("arrivals/s"),
        y: latency_axis("latency"),
        series,
        bound: Some((bound, format!("bound {}", round_time(bound)))),
    };
    figure("Latency against rate (server)", &names, &chart)
}

/// Rows by their number of threads.
fn by_threads<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| group[0].threads == row.threads) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

fn rate_against_batch(rows: &[&Row]) -> String {
    let (mut names, mut series) = (Vec::new(), Vec::new());
    for (look, group) in by_threads(rows).into_iter().enumerate() {
        let point = |row: &&Row| {
            let rate = row.per_second.unwrap_or_default();
            (row.batch as f64, rate, format!("batch {}: {}", row.batch, text::rate(rate, "samples")))
        };
        names.push(threads(group[0].threads));
        series.push(Series { look, dashed: false, points: group.iter().map(point).collect() });
    }
    let chart = Chart {
        description: "Samples a second against the batch size in the offline scenario".to_owned(),
        x: batch_axis(rows),
        y: rate_axis("samples/s"),
        series,
        bound: None,
    };
    figure("Throughput against batch (offline)", &names, &chart)
}

fn latency_against_batch(rows: &[&Row]) -> String {
    let (mut names, mut series) = (Vec::new(), Vec::new());
    for (look, group) in by_threads(rows).into_iter().enumerate() {
        let times = |of: fn(&super::suite::Latency) -> (String, f64)| {
            let point = |row: &&Row| {
                let (what, ns) = of(row.latency.as_ref()?);
                Some((row.batch as f64, ns, format!("batch {}: {what} {}", row.batch, text::time(ns))))
            };
            group.iter().filter_map(point).collect::<Vec<_>>()
        };
        names.push(format!("p50, {}", threads(group[0].threads)));
        series.push(Series { look, dashed: false, points: times(|latency| ("p50".to_owned(), latency.p50_us * 1e3)) });
        let estimated =
            |row: &&Row| matches!(row.latency, Some(latency) if matches!(latency.tail.0, Tail::Estimate { .. }));
        let tail = if group.iter().all(estimated) { "p99" } else { "p99 or longest" };
        names.push(format!("{tail}, {}", threads(group[0].threads)));
        let tails = times(|latency| (latency.tail.0.name(), latency.tail.0.ns() as f64));
        series.push(Series { look, dashed: true, points: tails });
    }
    let chart = Chart {
        description: "Latency of a batch against its size in the offline scenario".to_owned(),
        x: batch_axis(rows),
        y: latency_axis("latency of a batch"),
        series,
        bound: None,
    };
    figure("Latency against batch (offline)", &names, &chart)
}

/// A round time in nanoseconds without digits that say nothing: `20 ms`.
fn round_time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 999.0 => (ns, "ns"),
        ns if ns < 999e3 => (ns / 1e3, "µs"),
        ns if ns < 999e6 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    format!("{} {unit}", plain(value))
}

/// A round number: `250`, `20k`, `1.5M`.
fn short_number(number: f64) -> String {
    match number {
        number if number < 1e3 => plain(number),
        number if number < 1e6 => format!("{}k", plain(number / 1e3)),
        number => format!("{}M", plain(number / 1e6)),
    }
}

/// At most three digits behind the point, and none that are 0.
fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::statistics::Percentile;
    use super::super::suite::{Latency, Point, TailUs};
    use super::*;

    fn results() -> Results {
        let latency = |queries: usize, us: u64| Latency {
            queries,
            p50_us: us as f64 / 2.0,
            tail: TailUs(match queries < 662 {
                true => Tail::Max { ns: us * 1000, queries },
                false => Tail::Estimate { percentile: Percentile::P99, ns: us * 1000, discarded: 3 },
            }),
        };
        let row = |scenario, threads, batch, latency, per_second| Row {
            engine: "tflite",
            variant: "<a>.tflite".to_owned(),
            detail: Some("XNNPACK".to_owned()),
            scenario,
            threads,
            batch,
            latency: Some(latency),
            per_second: Some(per_second),
            sweep: Vec::new(),
            note: None,
        };
        let point = |rate: f64, us| Point { rate, latency: latency(1000, us), over: 0, kept: us < 20_000 };
        let server = Row {
            sweep: vec![point(100.0, 500), point(200.0, 900), point(400.0, 50_000)],
            ..row(Scenario::Server, 1, 1, latency(1000, 900), 200.0)
        };
        let mut rows = vec![row(Scenario::SingleStream, 1, 1, latency(50, 700), 1500.0), server];
        for threads in [1, 2] {
            rows.extend(
                [1, 8].map(|batch| row(Scenario::Offline, threads, batch, latency(900, 500), 2e3 * batch as f64)),
            );
        }
        let failed =
            NotTimed { engine: "tract".into(), variant: "b.onnx".into(), failed: true, reason: "wrong".into() };
        Results {
            subject: "m & n".to_owned(),
            inputs: Inputs::Noise,
            machine: Machine::now(),
            seconds: 5.0,
            bound_us: 20_000.0,
            rows,
            not_timed: vec![failed],
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_page_needs_nothing_else_and_says_everything() {
        let page = page(&results());
        for foreign in ["http", "<script", "<link", "<img", "@import", "url(", "src="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        for word in [
            "m &amp; n",
            "&lt;a&gt;.tflite",
            "bound 20 ms",
            "max of 50 700 µs",
            "not checked",
            "b.onnx on tract failed",
        ] {
            assert!(page.contains(word), "no {word} in {page}");
        }
        assert_eq!(page.matches("<figure>").count(), 3);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn a_tail_in_json_is_a_percentile_or_a_maximum_by_name() {
        let value = serde_json::to_value(results()).unwrap();
        let tail = &value["rows"][0]["latency"]["tail"];
        assert_eq!(*tail, serde_json::json!({ "is": "max", "us": 700.0 }));
        let tail = &value["rows"][1]["sweep"][0]["tail"];
        assert_eq!(*tail, serde_json::json!({ "is": "p99", "us": 500.0, "discarded": 3 }));
    }

    #[test]
    fn ticks_are_written_short() {
        assert_eq!([2e3, 5e6, 1e9, 2.5e6].map(round_time), ["2 µs", "5 ms", "1 s", "2.5 ms"]);
        assert_eq!([0.0, 250.0, 20e3, 1.5e6].map(short_number), ["0", "250", "20k", "1.5M"]);
    }
}
