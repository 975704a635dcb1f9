//! Turns an error of the TOML reader into one sentence for the person who wrote the file.
//!
//! It says file, line, column and table, and for an unknown key the nearest known one. The known keys come from the
//! reader's own message ("unknown field `x`, expected one of `a`, `b`"), which a test pins, so there is no second list
//! of keys that could go stale.

use std::ops::Range;
use std::path::Path;

/// One sentence that says where in `text`, the content of `path`, reading stopped, what was found and what was
/// expected.
pub fn describe(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let place = error.span().map(|span| Place::of(text, &span));
    let at = match &place {
        Some(place) => format!("{}, line {}, column {}", path.display(), place.line, place.column),
        None => path.display().to_string(),
    };
    let table = place.as_ref().and_then(|place| place.table.as_deref());
    let message = sentence(error.message());
    if let Some((unknown, known)) = unknown_word(&message, "unknown field `") {
        let table = table.map_or(String::new(), |table| format!(" in {table}"));
        return format!("{at}: unknown key `{unknown}`{table}; {}", suggestion(&unknown, &known));
    }
    let key = place.as_ref().and_then(|place| place.key.as_deref());
    let whose = match (key, table) {
        (Some(key), Some(table)) => format!("`{key}` in {table}: "),
        (Some(key), None) => format!("`{key}`: "),
        (None, Some(table)) => format!("{table}: "),
        (None, None) => String::new(),
    };
    if let Some((unknown, known)) = unknown_word(&message, "unknown variant `") {
        return format!("{at}: {whose}unknown word `{unknown}`; {}", suggestion(&unknown, &known));
    }
    format!("{at}: {whose}{message}")
}

/// "did you mean …", or the known words where none is near.
pub fn suggestion<S: AsRef<str>>(unknown: &str, known: &[S]) -> String {
    let nearest = known
        .iter()
        .map(|word| (strsim::jaro_winkler(unknown, word.as_ref()), word.as_ref()))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        None => "no keys are known here".to_owned(),
        // Below this the two words share hardly a letter, and a guess would mislead.
        Some((likeness, word)) if likeness >= 0.7 => format!("did you mean `{word}`?"),
        Some((_, word)) => {
            let all: Vec<String> = known.iter().map(|word| format!("`{}`", word.as_ref())).collect();
            format!("known here: {}; the nearest is `{word}`", all.join(", "))
        }
    }
}

/// Where a span starts, for people.
struct Place {
    line: usize,
    column: usize,
    /// The header of the table that it is in, as written: `[budget]` or `[[input]]`.
    table: Option<String>,
    /// The key whose value starts there.
    key: Option<String>,
}

impl Place {
    fn of(text: &str, span: &Range<usize>) -> Self {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let on_line = &before[line_start..];
        let table = before[..line_start]
            .lines()
            .rev()
            .map(str::trim_start)
            .find(|line| line.starts_with('['))
            .and_then(|line| Some(line[..=line.rfind(']')?].to_owned()));
        let key = on_line.trim_end().strip_suffix('=').map(|left| {
            let left = left.trim_end();
            let word = left.rfind(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.')));
            left[word.map_or(0, |at| at + left[at..].chars().next().map_or(1, char::len_utf8))..].to_owned()
        });
        Self {
            line: before.matches('\n').count() + 1,
            column: on_line.chars().count() + 1,
            table,
            key: key.filter(|key| !key.is_empty()),
        }
    }
}

/// The reader's message on one line.
fn sentence(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The unknown word and the known ones, from "unknown field `x`, expected one of `a`, `b`".
fn unknown_word(message: &str, start: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix(start)?;
    let (unknown, rest) = match rest.rsplit_once("`, expected ") {
        Some((unknown, rest)) => (unknown, rest),
        None => (rest.strip_suffix("`, there are no fields")?, ""),
    };
    let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    // The greedy split above would cut inside the list if a listed word held the separator; no key does.
    Some((unknown.to_owned(), known))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct File {
        format: u32,
        budget: Option<Budget>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Budget {
        latency_p99: Option<String>,
        memory: Option<String>,
        task: Option<Task>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Task {
        Classification,
        Anomaly,
    }

    fn describe_error(text: &str) -> String {
        let error = toml::from_str::<File>(text).unwrap_err();
        describe(Path::new("model.toml"), text, &error)
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_known_one() {
        assert_eq!(
            describe_error("format = 1\n\n[budget]\nlatency = \"5ms\"\n"),
            "model.toml, line 4, column 1: unknown key `latency` in [budget]; did you mean `latency_p99`?"
        );
        assert_eq!(
            describe_error("format = 1\nzzz = 2"),
            "model.toml, line 2, column 1: unknown key `zzz`; known here: `format`, `budget`; the nearest is `budget`"
        );
    }

    #[test]
    fn an_unknown_word_is_answered_with_the_nearest_known_one() {
        assert_eq!(
            describe_error("format = 1\n[budget]\ntask = \"anomalie\""),
            "model.toml, line 3, column 8: `task` in [budget]: unknown word `anomalie`; did you mean `anomaly`?"
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_key_and_table() {
        assert_eq!(
            describe_error("format = 1\nbudget = { memory = 8 }"),
            "model.toml, line 2, column 21: `memory`: invalid type: integer `8`, expected a string"
        );
        assert_eq!(
            describe_error("format = \"one\""),
            "model.toml, line 1, column 10: `format`: invalid type: string \"one\", expected u32"
        );
    }

    #[test]
    fn broken_toml_is_one_line() {
        let text = describe_error("format = 1\n[budget\n");
        assert!(text.starts_with("model.toml, line 2") && !text.contains('\n'), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn noise_is_described_without_a_panic(text in "[\\[\\]a-z_=\"{}0-9.é\n ]{0,80}") {
            if let Err(error) = toml::from_str::<File>(&text) {
                let sentence = describe(Path::new("x"), &text, &error);
                assert!(!sentence.contains('\n'), "{sentence}");
            }
        }
    }
}
