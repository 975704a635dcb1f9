//! The status report as text for people.
//!
//! A table that is wider than the terminal is cut between columns: the rest follows as a table of its own, which begins
//! with the same names. So nothing wraps, and no figure is left out.

use limpet_runtime::Stage;
use limpet_wire::message::{ModelPhase, OutboxFigures, PipelineFigures, Quantiles};
use limpet_wire::result::Clock;

use super::report::{LinkState, PipelineState, StatusReport};
use crate::config::Class;
use crate::console::plain;

/// The whole report, for a terminal of so many columns; with a table of streams and one of their stages if `streams`.
pub fn render(report: &StatusReport, width: usize, streams: bool) -> String {
    let mut text = head(report);
    let mut add = |part: String| {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    };
    add(pipelines(report).text(width));
    if streams {
        let (outcomes, stages) = stream_tables(report);
        add(outcomes.text(width));
        add(stages.text(width));
    }
    add(models(report).text(width));
    add(troubles(report));
    text
}

fn head(report: &StatusReport) -> String {
    let clock = match report.clock {
        Clock::Synced => "synced",
        Clock::Unsynced => "unsynced",
        Clock::Corrected => "corrected",
    };
    let budget = &report.budget;
    let shares: Vec<String> = report.workers.iter().map(|worker| format!("{:.2}", worker.cpu_share_admitted)).collect();
    let workers = match shares.len() {
        0 => String::new(),
        1 => format!("; 1 worker: {}", shares[0]),
        count => format!("; {count} workers: {}", shares.join(", ")),
    };
    let links: Vec<String> = report
        .links
        .iter()
        .map(|link| {
            let state = match link.state {
                LinkState::Up => "up",
                LinkState::Down => "down",
            };
            format!("{} {state}", plain(&link.broker))
        })
        .collect();
    let configuration = report.configuration.as_ref().map_or_else(String::new, |configuration| {
        let digest = configuration.sha256.get(..12).unwrap_or_default();
        let what = format!("{} {digest}", plain(&configuration.name));
        format!("config    {}, {}\n", what.trim_end(), configuration.state.word())
    });
    format!(
        "limpet {} on {}, up {}, clock {clock}\n\
         cpu       {:.2} of {:.2} cores admitted{workers}\n\
         memory    {} of {} MiB admitted, {} taken\n\
         pressure  {}\n\
         links     {}\n\
         outbox    {}\n\
         {configuration}",
        plain(&report.agent),
        plain(&report.gateway),
        uptime(report.uptime_s),
        budget.cpu_admitted,
        budget.cpu,
        mebibytes(budget.memory_admitted_bytes),
        mebibytes(budget.memory_bytes),
        mebibytes(budget.memory_loaded_bytes),
        plain(report.pressure.as_deref().unwrap_or("none")),
        if links.is_empty() { "none".to_owned() } else { links.join(", ") },
        outbox(&report.outbox),
    )
}

/// What waits, where, and what was thrown away.
fn outbox(figures: &OutboxFigures) -> String {
    let dropped = if figures.dropped > 0 { format!(", {} dropped", figures.dropped) } else { String::new() };
    format!(
        "{} in memory, {} on disk ({} MiB); {} delivered{dropped}",
        figures.live,
        figures.stored,
        mebibytes(figures.stored_bytes),
        figures.delivered
    )
}

/// Outcomes beside `result`, as words and as titles at once.
const LOST: [&str; 5] = ["expired", "replaced", "rejected", "invalid", "failed"];

fn outcome(figures: &PipelineFigures, word: &str) -> String {
    figures.outcomes.get(word).copied().unwrap_or(0).to_string()
}

fn pipelines(report: &StatusReport) -> Table {
    let mut table = Table::new(1, &["pipeline", "class"], &["deadline", "streams", "windows", "results", "late"]);
    table.right(&LOST);
    table.right(&["p50", "p99", "batch"]);
    for pipeline in &report.pipelines {
        let figures = &pipeline.figures;
        let class = match pipeline.class {
            Class::Realtime => "realtime",
            Class::Analytic => "analytic",
        };
        let total = figures.latency_us.get(Stage::Total.word());
        let mut row = vec![
            pipeline.name.clone(),
            class.to_owned(),
            deadline(pipeline.deadline_ms),
            pipeline.streams.len().to_string(),
            figures.windows.to_string(),
            outcome(figures, "result"),
            figures.late.to_string(),
        ];
        row.extend(LOST.iter().map(|word| outcome(figures, word)));
        row.push(or_dash(total.map(|total| micros(total.p50))));
        row.push(or_dash(total.map(|total| micros(total.p99))));
        // Windows by the size of their batch: a batch of n is n of them.
        let windows: u64 = figures.batches.values().sum();
        let runs: f64 = figures.batches.iter().map(|(size, windows)| *windows as f64 / f64::from(*size)).sum();
        row.push(or_dash((windows > 0).then(|| format!("{:.1}", windows as f64 / runs))));
        table.rows.push(row);
    }
    table
}

fn stream_tables(report: &StatusReport) -> (Table, Table) {
    let mut outcomes = Table::new(2, &["pipeline", "stream"], &["windows", "results"]);
    outcomes.right(&LOST);
    let mut stages = Table::new(3, &["pipeline", "stream", "stage"], &["p50", "p99", "max"]);
    for pipeline in &report.pipelines {
        for stream in &pipeline.streams {
            let figures = &stream.figures;
            let names = [pipeline.name.clone(), stream.name.clone()];
            let mut row = names.to_vec();
            row.extend([figures.windows.to_string(), outcome(figures, "result")]);
            row.extend(LOST.iter().map(|word| outcome(figures, word)));
            outcomes.rows.push(row);
            for stage in Stage::ALL {
                if let Some(Quantiles { p50, p99, max }) = figures.latency_us.get(stage.word()) {
                    let mut row = names.to_vec();
                    row.extend([stage.word().to_owned(), micros(*p50), micros(*p99), micros(*max)]);
                    stages.rows.push(row);
                }
            }
        }
    }
    (outcomes, stages)
}

fn models(report: &StatusReport) -> Table {
    let mut table = Table::new(1, &["model", "version", "state", "engine", "variant"], &["MiB"]);
    table.left(&["loaded"]);
    table.right(&["p50", "p99"]);
    for model in &report.models {
        let state = match model.state {
            ModelPhase::Fetching => "fetching",
            ModelPhase::Proving => "proving",
            ModelPhase::Shadow => "shadow",
            ModelPhase::Trial => "trial",
            ModelPhase::Active => "active",
            ModelPhase::Withdrawn => "withdrawn",
            ModelPhase::Failed => "failed",
        };
        let variant = model
            .variant
            .as_ref()
            .map(|variant| if model.reduced { format!("{variant} (reduced)") } else { variant.clone() });
        let loaded = match (model.loaded, model.pinned) {
            (true, true) => "pinned",
            (true, false) => "yes",
            (false, _) => "no",
        };
        table.rows.push(vec![
            model.name.clone(),
            model.version.clone(),
            state.to_owned(),
            or_dash(model.engine.clone()),
            or_dash(variant),
            or_dash(model.memory_bytes.map(mebibytes)),
            loaded.to_owned(),
            or_dash(model.p50_us.map(micros)),
            or_dash(model.p99_us.map(micros)),
        ]);
    }
    table
}

/// What does not serve, and why: a line each.
fn troubles(report: &StatusReport) -> String {
    let mut text = String::new();
    for pipeline in &report.pipelines {
        let state = match pipeline.state {
            PipelineState::Serving => continue,
            PipelineState::Loading => "is loading",
            PipelineState::Refused => "is refused",
            PipelineState::Waiting => "waits",
        };
        text += &sentence(&format!("pipeline {} {state}", pipeline.name), pipeline.refusal.as_deref());
    }
    if let Some(failure) = report.configuration.as_ref().and_then(|configuration| configuration.failure.as_deref()) {
        text += &sentence("signed configuration", Some(failure));
    }
    for model in report.models.iter().filter(|model| model.failure.is_some()) {
        text += &sentence(&format!("model {} {}", model.name, model.version), model.failure.as_deref());
    }
    text
}

fn sentence(what: &str, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("{}: {}\n", plain(what), plain(why)),
        None => format!("{}\n", plain(what)),
    }
}

/// Columns under titles.
pub(super) struct Table {
    /// Columns at the beginning that name a row.
    keys: usize,
    /// Titles, and whether the column is aligned to the right.
    columns: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(keys: usize, left: &[&'static str], right: &[&'static str]) -> Self {
        let mut table = Self { keys, columns: Vec::new(), rows: Vec::new() };
        table.left(left);
        table.right(right);
        table
    }

    fn left(&mut self, titles: &[&'static str]) {
        self.columns.extend(titles.iter().map(|title| (*title, false)));
    }

    fn right(&mut self, titles: &[&'static str]) {
        self.columns.extend(titles.iter().map(|title| (*title, true)));
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Nothing if there are no rows.
    pub(super) fn text(mut self, width: usize) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        self.rows.iter_mut().flatten().for_each(|cell| *cell = plain(cell));
        let length = |index: usize| {
            let cells = self.rows.iter().map(|row| row[index].chars().count());
            cells.chain([self.columns[index].0.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(length).collect();
        let keys: usize = widths[..self.keys].iter().map(|width| width + GAP).sum();
        let mut parts = Vec::new();
        let mut rest = self.keys..self.columns.len();
        while !rest.is_empty() {
            let mut used = keys;
            let mut end = rest.start;
            // At least one column a table, however narrow the terminal.
            while end < rest.end && (end == rest.start || used + widths[end] <= width) {
                used += widths[end] + GAP;
                end += 1;
            }
            parts.push(self.part((0..self.keys).chain(rest.start..end), &widths));
            rest.start = end;
        }
        parts.join("\n")
    }

    fn part(&self, columns: impl Iterator<Item = usize> + Clone, widths: &[usize]) -> String {
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for index in columns.clone() {
                let (cell, width) = (&row[index], widths[index]);
                if self.columns[index].1 {
                    line += &format!("{cell:>width$}");
                } else {
                    line += &format!("{cell:<width$}");
                }
                line += "  ";
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Spaces between two columns.
const GAP: usize = 2;

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// A deadline in the unit that a person would choose.
fn deadline(ms: f64) -> String {
    if ms >= 1000.0 {
        format!("{}s", ms / 1000.0)
    } else if ms >= 1.0 {
        format!("{ms}ms")
    } else {
        format!("{}µs", ms * 1000.0)
    }
}

/// Microseconds to three digits.
fn micros(us: u64) -> String {
    let ms = us as f64 / 1e3;
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..9_995 => format!("{ms:.2}ms"),
        9_995..99_950 => format!("{ms:.1}ms"),
        99_950..999_500 => format!("{ms:.0}ms"),
        999_500..9_995_000 => format!("{:.2}s", ms / 1e3),
        _ => format!("{:.1}s", ms / 1e3),
    }
}

fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::report;

    #[test]
    fn the_report_fits_a_terminal_of_80_columns() {
        let text = render(&report(), 80, false);
        let expected = "\
limpet 0.1.0 on press-07, up 3 d 4 h, clock synced
cpu       0.82 of 1.50 cores admitted; 2 workers: 0.61, 0.21
memory    24.5 of 96.0 MiB admitted, 18.2 taken
pressure  none
links     local up, uplink down
outbox    3 in memory, 48210 on disk (9.2 MiB); 1204101 delivered, 12 dropped

pipeline          class     deadline  streams  windows  results  late  expired
keyword-spotting  realtime      20ms        2  1204113  1204101     2        3
people            analytic       10s        0        0        0     0        0

pipeline          replaced  rejected  invalid  failed    p50     p99  batch
keyword-spotting         9         0        0       0  412µs  1.86ms    1.0
people                   0         0        0       0      -       -      -

model             version  state   engine  variant  MiB  loaded    p50    p99
keyword-spotting  1.2.0    active  tflite  int8     6.3  pinned  212µs  255µs
people            0.4.1    failed  -       -          -  no          -      -

pipeline people is refused: model people 0.4.1 gives other outputs
model people 0.4.1: nmae 0.61 is over 0.25
";
        assert_eq!(text, expected);
        assert!(text.lines().take_while(|line| !line.contains("refused")).all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_wide_terminal_and_a_file_get_one_table() {
        let text = render(&report(), usize::MAX, false);
        let line = text.lines().find(|line| line.starts_with("keyword-spotting")).unwrap();
        assert_eq!(
            line,
            "keyword-spotting  realtime      20ms        2  1204113  1204101     2        3         9         0        0       0  412µs  1.86ms    1.0"
        );
        assert_eq!(text.matches("\npipeline  ").count(), 1);
    }

    #[test]
    fn streams_and_their_stages_have_tables_of_their_own() {
        let text = render(&report(), 80, true);
        let expected = "
pipeline          stream   windows  results  expired  replaced  rejected
keyword-spotting  press-3  1204110  1204101        3         6         0
keyword-spotting  press-4        3        0        0         3         0

pipeline          stream   invalid  failed
keyword-spotting  press-3        0       0
keyword-spotting  press-4        0       0

pipeline          stream   stage      p50     p99     max
keyword-spotting  press-3  wait      20µs    60µs   120µs
keyword-spotting  press-3  compute  212µs   255µs  2.10ms
keyword-spotting  press-3  total    412µs  1.86ms  12.0ms

model ";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn one_column_a_table_is_the_least() {
        let text = render(&report(), 1, false);
        assert!(text.contains("\npipeline          class\nkeyword-spotting  realtime\n"), "{text}");
        assert!(text.contains("\npipeline          batch\nkeyword-spotting    1.0\n"), "{text}");
    }

    #[test]
    fn what_came_from_a_network_does_not_steer_the_terminal() {
        let mut report = report();
        report.pipelines[0].streams[0].name = "a\x1b[2Jb".into();
        report.models[1].failure = Some("two\nlines\x07".into());
        let text = render(&report, 80, true);
        assert!(!text.contains(['\x1b', '\x07']) && text.contains("two lines \n"), "{text:?}");
    }

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let shown: Vec<String> =
            [0, 999, 1_000, 9_994, 9_995, 99_949, 99_950, 999_499, 999_500, 12_340_000].map(micros).into();
        let expected = ["0µs", "999µs", "1.00ms", "9.99ms", "10.0ms", "99.9ms", "100ms", "999ms", "1.00s", "12.3s"];
        assert_eq!(shown, expected);
        assert_eq!([0.5, 1.0, 20.0, 1500.0].map(deadline), ["500µs", "1ms", "20ms", "1.5s"]);
        assert_eq!([59, 60, 3_660, 273_600].map(uptime), ["59 s", "1 min", "1 h 1 min", "3 d 4 h"]);
    }
}
