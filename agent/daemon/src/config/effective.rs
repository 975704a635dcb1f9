//! The effective configuration, as `limpet check` prints it: every key, defaults included, each with its origin.
//!
//! What is printed is itself a valid configuration that means the same. It is made from the serialized [`Config`], so a
//! key cannot be forgotten here. Passwords are not in it: they are only ever named by their file.

use std::fmt::Write;

use serde_json::Value;

use super::load::{Loaded, Origin};

/// Lists of tables that get sections of their own; other lists are values.
const SECTIONS: [&str; 3] = ["source", "pipeline", "local"];
/// The first keys of a table, in this order; others follow in alphabetical order.
const FIRST: [&str; 15] = [
    "format", "name", "gateway", "id", "broker", "uplink", "budget", "depot", "log", "source", "pipeline", "model",
    "url", "topic", "codec",
];

/// The effective configuration as TOML with comments.
pub fn effective(loaded: &Loaded) -> String {
    let tree = serde_json::to_value(&loaded.config).expect("all keys of the configuration are strings");
    let mut printer = Printer { loaded, out: String::new() };
    printer.table("", "", &tree);
    printer.out
}

struct Printer<'a> {
    loaded: &'a Loaded,
    out: String,
}

impl Printer<'_> {
    /// `section` is how the header is written, `path` how the document numbers it (`source.0`).
    fn table(&mut self, section: &str, path: &str, table: &Value) {
        let mut sections = Vec::new();
        self.keys(path, "", table, &mut sections);
        for (key, value) in sections {
            let section = join(section, &key);
            let path = join(path, &key);
            match value {
                Value::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        let _ = writeln!(self.out, "\n[[{section}]]");
                        self.table(&section, &format!("{path}.{index}"), item);
                    }
                }
                other => {
                    // A table that holds nothing but tables, such as [broker], needs no header.
                    if has_keys(other) {
                        let _ = writeln!(self.out, "\n[{section}]");
                    }
                    self.table(&section, &path, other);
                }
            }
        }
    }

    /// Prints the plain keys of a table; what needs a header of its own goes to `sections`. Tables inside a section
    /// become dotted keys, so that each of their keys can have its origin.
    fn keys<'v>(&mut self, path: &str, dotted: &str, table: &'v Value, sections: &mut Vec<(String, &'v Value)>) {
        let Value::Object(entries) = table else { return };
        let order = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
        let mut entries: Vec<(&String, &Value)> = entries.iter().collect();
        entries.sort_by_key(|(key, _)| (order(key), *key));
        for (key, value) in entries {
            let name = join(dotted, key);
            let top = path.is_empty() || path == "broker";
            match value {
                Value::Object(_) if top => sections.push((name, value)),
                Value::Array(items) if SECTIONS.contains(&key.as_str()) && !items.is_empty() => {
                    sections.push((name, value))
                }
                Value::Object(inner) if !inner.is_empty() => self.keys(path, &name, value, sections),
                _ => self.key(&join(path, &name), &name, value),
            }
        }
    }

    fn key(&mut self, path: &str, name: &str, value: &Value) {
        let origin = self.loaded.origins.of(path);
        let _ = match (value, origin) {
            (Value::Null, _) => writeln!(self.out, "# {name} is not set"),
            (value, Origin::Variable(variable)) => writeln!(self.out, "{name} = {}  # {variable}", Toml(value)),
            (value, origin) => writeln!(self.out, "{name} = {}  # {origin}", Toml(value)),
        };
    }
}

fn has_keys(table: &Value) -> bool {
    table.as_object().is_some_and(|entries| entries.is_empty() || entries.values().any(|value| !value.is_object()))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A JSON value written as TOML on one line. There is no null inside lists.
struct Toml<'a>(&'a Value);

impl std::fmt::Display for Toml<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Value::String(text) => write!(f, "{}", toml::Value::String(text.clone())),
            Value::Array(items) => {
                f.write_char('[')?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { ", " }, Toml(item))?;
                }
                f.write_char(']')
            }
            Value::Object(entries) if entries.is_empty() => f.write_str("{}"),
            Value::Object(entries) => {
                f.write_str("{ ")?;
                for (index, (key, item)) in entries.iter().enumerate() {
                    write!(f, "{}{key} = {}", if index == 0 { "" } else { ", " }, Toml(item))?;
                }
                f.write_str(" }")
            }
            other => write!(f, "{other}"),
        }
    }
}
