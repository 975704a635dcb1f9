//! `limpet results`: asks the agent that runs for the last results of a pipeline, and prints them.

use std::fmt::Write as _;

use anyhow::Context as _;
use hyper::Method;
use limpet_wire::result::{Captured, ResultRecord, Verdict, rfc3339_micros};

use super::client::{PATIENCE, doubted, send, socket_path};
use super::table::Table;
use crate::cli::ResultsArgs;
use crate::{CliError, console};

/// Prints the results.
///
/// # Errors
/// [`CliError::Unavailable`] if no agent answers, [`CliError::Usage`] if it has no such pipeline: why, and what to do.
pub fn results(args: &ResultsArgs) -> Result<(), CliError> {
    let (socket, doubt) = socket_path(&args.config, args.socket.as_deref());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio does not start")?;
    let answer = runtime.block_on(send(&socket, Method::GET, &path(args), PATIENCE));
    let answer = answer.map_err(|why| doubted(why.into(), doubt))?;
    if args.json {
        let end = if answer.is_empty() { "" } else { "\n" };
        console::print(&[&answer[..], end.as_bytes()].concat())?;
        return Ok(());
    }
    let records: Result<Vec<ResultRecord>, _> =
        answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(ResultRecord::from_json).collect();
    let records = records.map_err(|error| {
        CliError::Unavailable(format!(
            "what the agent answers are no results: {error}; was it restarted since limpet was upgraded?"
        ))
    })?;
    console::print(text(args, &records).as_bytes())?;
    Ok(())
}

/// What is asked for. A name may have any characters; those that a path cannot have are escaped.
fn path(args: &ResultsArgs) -> String {
    let mut path = format!("/v1/results/{}", escaped(&args.pipeline));
    let asked = [
        ("since_s", args.since.map(|since| since.0.as_secs_f64().ceil().to_string())),
        ("stream", args.stream.as_deref().map(escaped)),
        ("last", args.last.map(|last| last.to_string())),
    ];
    for (place, (key, value)) in asked.into_iter().filter_map(|(key, value)| Some((key, value?))).enumerate() {
        _ = write!(path, "{}{key}={value}", if place == 0 { '?' } else { '&' });
    }
    path
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => escaped.push(char::from(byte)),
            _ => _ = write!(escaped, "%{byte:02X}"),
        }
    }
    escaped
}

fn text(args: &ResultsArgs, records: &[ResultRecord]) -> String {
    if records.is_empty() {
        let since =
            args.since.map_or_else(|| "since the agent started".to_owned(), |since| format!("in the last {since}"));
        let of = args.stream.as_ref().map_or_else(String::new, |stream| format!(" of stream {stream}"));
        return format!(
            "pipeline {} has published nothing{of} {since}; only what publish selects is kept, the last outbox.history_results results\n",
            args.pipeline
        );
    }
    let mut table = Table::new(2, &["captured", "stream", "result"], &["score", "total ms", "id"]);
    for record in records {
        let captured = match record.captured {
            Captured::Utc(ns) => rfc3339_micros(ns),
            Captured::Boottime(ns) => format!("{:.6} s after boot", ns as f64 / 1e9),
        };
        let mut result = match &record.verdict {
            Verdict::Class { .. } => record.verdict.label().unwrap_or_default().to_owned(),
            Verdict::Anomaly { threshold: Some(threshold), score } if score > threshold => "anomaly".to_owned(),
            Verdict::Anomaly { .. } => "usual".to_owned(),
            Verdict::Regression { values } => {
                values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(" ")
            }
        };
        for (holds, word) in [(record.trigger, ", trigger"), (record.late, ", late")] {
            result.push_str(if holds { word } else { "" });
        }
        let score = record.verdict.score().map_or_else(String::new, |score| format!("{score:.3}"));
        let serial = record.serial.map_or_else(String::new, |serial| serial.to_string());
        let total = format!("{:.1}", record.latency.total() as f64 / 1e3);
        table.row([captured, record.stream.as_ref().to_owned(), result, score, total, serial]);
    }
    table.text(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::item::fixture;

    fn args(pipeline: &str) -> ResultsArgs {
        ResultsArgs {
            pipeline: pipeline.into(),
            since: None,
            stream: None,
            last: None,
            json: false,
            config: "x".into(),
            socket: None,
        }
    }

    #[test]
    fn what_is_asked_for_fits_into_a_path() {
        assert_eq!(path(&args("motor")), "/v1/results/motor");
        let asked = ResultsArgs {
            since: Some("90s".parse().unwrap()),
            stream: Some("hall 2/press&3".into()),
            last: std::num::NonZeroUsize::new(5),
            ..args("a?b")
        };
        assert_eq!(path(&asked), "/v1/results/a%3Fb?since_s=90&stream=hall%202%2Fpress%263&last=5");
    }

    #[test]
    fn results_are_a_table_and_their_absence_is_a_sentence() {
        let mut record = fixture::record("p", "press-3", 42, Verdict::Anomaly { score: 0.75, threshold: Some(0.5) });
        record.trigger = true;
        let text = text(&args("p"), &[record]);
        for wanted in ["captured", "press-3", "anomaly, trigger", "0.750", "-42"] {
            assert!(text.contains(wanted), "{text}");
        }
        let none = super::text(&ResultsArgs { since: Some("1h".parse().unwrap()), ..args("p") }, &[]);
        assert!(none.contains("p has published nothing in the last 1h"), "{none}");
    }
}
