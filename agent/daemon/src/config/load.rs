//! From text to a checked [`Config`], with the origin of every key.
//!
//! The file is parsed into a tree whose nodes carry their place in the text. Environment variables are put into that
//! same tree with places beyond the end of the text, so that every later error and every printed value finds its origin
//! in one way, whether it came from a line or from a variable.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::file::File;
use super::{Config, FORMAT, resolve};

/// What every variable of the configuration starts with.
pub const PREFIX: &str = "LIMPET_";

/// Variables with that prefix that are no configuration: what the tests of the project are told, and where marks go
/// ([`crate::marks`]). Anything else with the prefix must be a key, or it is a typing error.
const NO_CONFIGURATION: [&str; 8] = [
    "LIMPET_SHARED",
    "LIMPET_ZOO",
    "LIMPET_BLESS",
    "LIMPET_BIN_DIR",
    "LIMPET_SOAK",
    "LIMPET_SEED",
    // What limpet-lab is told on a machine that publishes as well.
    "LIMPET_DEPOT_PASSPHRASE",
    "LIMPET_MARKS",
];
/// The same for all variables that start so: what the agent tells the child process that proves a package.
const NO_CONFIGURATION_PREFIX: &str = "LIMPET_PROOF_";

/// The tables that variables can reach, and their keys, for suggestions. `[broker]` holds tables by name.
pub(super) const TABLES: [(&str, &[&str]); 9] = [
    ("gateway", &["id", "labels", "run", "state"]),
    (
        "broker",
        &[
            "url",
            "client_id",
            "username",
            "password_file",
            "ca_file",
            "cert_file",
            "key_file",
            "proxy",
            "keep_alive",
            "mqtt",
            "resume",
        ],
    ),
    ("uplink", &["broker", "commands", "prefix"]),
    ("budget", &["cpu", "memory"]),
    ("runtime", &["affinity", "fifo_priority", "lock_memory", "hang_limit"]),
    ("pressure", &["temperature_c", "cpu", "frequency", "sustain", "recover", "root"]),
    (
        "outbox",
        &[
            "commit_interval",
            "durability",
            "max_bytes",
            "max_age",
            "ring",
            "policy",
            "order",
            "drain_rate",
            "history",
            "history_results",
        ],
    ),
    ("depot", &["root", "channel", "keep", "rate", "disk", "jitter", "refresh", "trial", "ca_file"]),
    ("log", &["format", "level"]),
];

/// Why there is no configuration. Every variant ends `limpet` with exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; name an existing file with --config")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It was read, and is wrong: one line per problem.
    #[error("{}", lines(.0))]
    Problems(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands; for a key that is missing, where the table stands that lacks it.
    pub origin: Origin,
    /// The key, such as `source.vibration.scale`; empty if it is about the file.
    pub key: String,
    /// What was found, what was expected, and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The file as a whole.
    File(String),
    /// A line of the file, counted from 1.
    Line(String, usize),
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file) => f.write_str(file),
            Self::Line(file, line) => write!(f, "{file}:{line}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// What a configuration depends on besides its file.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// Name of this host, the default of `gateway.id`.
    pub host_name: Option<String>,
}

impl Surroundings {
    /// Those of this process. Values that are not UTF-8 are taken with replacement characters, which no key accepts.
    pub fn of_this_process() -> Self {
        let variables = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        Self { variables, host_name: sysinfo::System::host_name().ok() }
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// A configuration and where each of its values comes from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    pub(super) origins: Origins,
}

impl Loaded {
    /// A problem with `key` of `[[list]]` number `index` that only shows later, such as when the model is opened: with
    /// the same place and form as those that are found here. `list` is `source` or `pipeline`, and `index` that in
    /// [`Config`].
    pub fn problem(&self, list: &str, index: usize, key: &str, text: impl Into<String>) -> Problem {
        let name = match list {
            "source" => self.config.sources.get(index).map(|source| &source.name),
            _ => self.config.pipelines.get(index).map(|pipeline| &pipeline.name),
        };
        let shown = name.map_or_else(|| format!("{list}[{index}].{key}"), |name| format!("{list}.{name}.{key}"));
        Problem { origin: self.origins.nearest(&format!("{list}.{index}.{key}")), key: shown, text: text.into() }
    }

    /// The same with a key of a table, such as `budget.cpu`.
    pub fn problem_with(&self, key: &str, text: impl Into<String>) -> Problem {
        Problem { origin: self.origins.nearest(key), key: key.to_owned(), text: text.into() }
    }
}

/// A signed configuration: tables that take the place of those of the file.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// What it is called in messages, such as `config.press-07`.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// The keys that a signed configuration may replace.
const REPLACED: [&str; 3] = ["source", "pipeline", "budget"];

/// Places of all keys that were set.
#[derive(Debug, Clone)]
pub(super) struct Origins {
    file: String,
    /// Offsets at which lines start.
    line_starts: Vec<usize>,
    text_len: usize,
    /// Variable `n` has the place `text_len + 1 + n`, up to [`VARIABLES_MAX`].
    variables: Vec<String>,
    /// Name of the signed configuration and the places at which its lines start, beyond those of variables.
    overlay: Option<(String, Vec<usize>)>,
    /// Place by path, such as `source.0.scale`.
    places: BTreeMap<String, usize>,
}

impl Origins {
    fn new(file: &Path, text: &str) -> Self {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let (variables, places) = (Vec::new(), BTreeMap::new());
        Self { file: name, line_starts, text_len: text.len(), variables, overlay: None, places }
    }

    fn at(&self, place: usize) -> Origin {
        if let Some((name, starts)) = &self.overlay
            && starts.first().is_some_and(|first| *first <= place)
        {
            return Origin::Line(name.clone(), starts.partition_point(|start| *start <= place));
        }
        match place.checked_sub(self.text_len + 1) {
            Some(variable) => match self.variables.get(variable) {
                Some(name) => Origin::Variable(name.clone()),
                None => self.whole_file(),
            },
            None => Origin::Line(self.file.clone(), self.line_starts.partition_point(|start| *start <= place)),
        }
    }

    fn whole_file(&self) -> Origin {
        Origin::File(self.file.clone())
    }

    /// Where the value at `path` comes from.
    pub(super) fn of(&self, path: &str) -> Origin {
        self.places.get(path).map_or(Origin::Default, |place| self.at(*place))
    }

    /// Where somebody would look for `path`: at itself, or at the table that should hold it.
    pub(super) fn nearest(&self, path: &str) -> Origin {
        let mut path = path;
        loop {
            match (self.places.get(path), path.rfind('.')) {
                (Some(place), _) => return self.at(*place),
                (None, Some(dot)) => path = &path[..dot],
                (None, None) => return self.whole_file(),
            }
        }
    }

    fn collect(&mut self, path: &str, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => {
                for (key, value) in table {
                    let path = join(path, key.get_ref());
                    self.places.insert(path.clone(), key.span().start);
                    self.collect(&path, value.get_ref());
                }
            }
            DeValue::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    let path = join(path, &index.to_string());
                    self.places.insert(path.clone(), value.span().start);
                    self.collect(&path, value.get_ref());
                }
            }
            _ => {}
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Reads a file, with the tables of a signed configuration in the place of its own; see [`parse`].
///
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path, surroundings: &Surroundings, overlay: Option<Overlay<'_>>) -> Result<Loaded, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    // Relative paths in the file are relative to it, so the agent may be started from anywhere.
    let path = std::path::absolute(path).map_err(read)?;
    parse(&text, &path, surroundings, overlay)
}

/// Variables that there may be places for.
const VARIABLES_MAX: usize = 1 << 16;

/// Reads the text of a configuration. `path` is where the text comes from: its last part stands in messages and origins,
/// its folder is what relative paths start from.
///
/// # Errors
/// [`ConfigError::Problems`] with everything that is wrong.
pub fn parse(
    text: &str,
    path: &Path,
    surroundings: &Surroundings,
    overlay: Option<Overlay<'_>>,
) -> Result<Loaded, ConfigError> {
    let mut origins = Origins::new(path, text);
    let mut document = DeTable::parse(text).map_err(|error| {
        let origin = error.span().map_or(origins.whole_file(), |span| origins.at(span.start.min(text.len())));
        let text = format!("this is no TOML: {}", error.message());
        ConfigError::Problems(vec![Problem { origin, key: String::new(), text }])
    })?;

    check_format(document.get_ref(), &origins)?;
    // Parsed behind so many line ends, its places lie beyond all others.
    let shift = text.len() + 1 + VARIABLES_MAX;
    let shifted = overlay.map(|overlay| "\n".repeat(shift) + overlay.text);
    if let (Some(overlay), Some(shifted)) = (overlay, &shifted) {
        let starts = std::iter::once(shift).chain(overlay.text.match_indices('\n').map(|(at, _)| shift + at + 1));
        origins.overlay = Some((overlay.name.to_owned(), starts.collect()));
        lay_over(document.get_mut(), overlay.name, shifted, &origins)?;
    }
    let problems = apply_variables(document.get_mut(), surroundings, &mut origins);
    if !problems.is_empty() {
        return Err(ConfigError::Problems(problems));
    }
    let tree = DeValue::Table(document.get_ref().clone());
    origins.collect("", &tree);

    let file = File::deserialize(toml::Deserializer::from(document))
        .map_err(|error| ConfigError::Problems(vec![explain(&error, &tree, &origins)]))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let config = resolve::resolve(file, folder, surroundings, &origins).map_err(ConfigError::Problems)?;
    Ok(Loaded { config, origins })
}

/// Puts the tables of a signed configuration in the place of those of the file.
///
/// It comes over the network, so it can name no broker, no key, no identity, and no path.
fn lay_over<'i>(document: &mut DeTable<'i>, name: &str, text: &'i str, origins: &Origins) -> Result<(), ConfigError> {
    let problem = |place: Option<usize>, key: &str, text: String| {
        let origin = place.map_or(Origin::File(name.to_owned()), |place| origins.at(place));
        ConfigError::Problems(vec![Problem { origin, key: key.to_owned(), text }])
    };
    let tables = DeTable::parse(text).map_err(|error| {
        problem(error.span().map(|span| span.start), "", format!("this is no TOML: {}", error.message()))
    })?;
    check_format(tables.get_ref(), origins)?;
    for (key, value) in tables.into_inner() {
        let place = Some(key.span().start);
        if *key.get_ref() == "format" {
            continue;
        }
        if !REPLACED.contains(&&**key.get_ref()) {
            let text = "a signed configuration replaces [[source]], [[pipeline]] and [budget] only; remove it";
            return Err(problem(place, key.get_ref(), text.into()));
        }
        if let Some((place, path)) = path_in(value.get_ref()) {
            let text = format!(
                "found '{}', and a signed configuration cannot name a path; give a model of the depot, such as \"motor-health@^1\"",
                path.escape_debug()
            );
            return Err(problem(Some(place), "pipeline.model", text));
        }
        if let Some((place, program)) = foreign_program(value.get_ref(), document) {
            let text = format!(
                "found '{}', and a signed configuration starts no program that the gateway's own file does not start; put the same list there first",
                program.escape_debug()
            );
            return Err(problem(Some(place), "source.exec", text));
        }
        document.remove(&**key.get_ref());
        document.insert(key, value);
    }
    Ok(())
}

/// A model that is given by its path.
fn path_in<'v>(pipelines: &'v DeValue<'_>) -> Option<(usize, &'v str)> {
    let DeValue::Array(pipelines) = pipelines else { return None };
    let models = pipelines.iter().filter_map(|pipeline| pipeline.get_ref().as_table()?.get("model"));
    models.into_iter().find_map(|model| match model.get_ref() {
        DeValue::String(text) if text.contains('/') || text.ends_with(".limpet") => Some((model.span().start, &**text)),
        _ => None,
    })
}

/// A program of these sources, with its arguments, that none of the file's own sources starts.
fn foreign_program(sources: &DeValue<'_>, file: &DeTable<'_>) -> Option<(usize, String)> {
    let own: Vec<String> =
        file.get("source").map(|own| programs(own.get_ref())).unwrap_or_default().into_iter().map(|(_, p)| p).collect();
    programs(sources).into_iter().find(|(_, program)| !own.contains(program))
}

/// What `exec` says in each of these tables, and where.
fn programs(sources: &DeValue<'_>) -> Vec<(usize, String)> {
    let DeValue::Array(sources) = sources else { return Vec::new() };
    let programs = sources.iter().filter_map(|source| source.get_ref().as_table()?.get("exec"));
    programs.map(|program| (program.span().start, words(program.get_ref()))).collect()
}

/// A list of words as one text that no other list gives.
fn words(list: &DeValue<'_>) -> String {
    let DeValue::Array(list) = list else { return format!("{list:?}") };
    let word = |word: &Spanned<DeValue<'_>>| match word.get_ref() {
        DeValue::String(text) => format!("{text:?}"),
        other => format!("{other:?}"),
    };
    format!("[{}]", list.iter().map(word).collect::<Vec<_>>().join(", "))
}

/// A file of a later format is refused by its number, before its new keys are called unknown.
fn check_format(document: &DeTable<'_>, origins: &Origins) -> Result<(), ConfigError> {
    let Some((key, value)) = document.get_key_value("format") else { return Ok(()) };
    let DeValue::Integer(number) = value.get_ref() else { return Ok(()) };
    if number.to_string() == FORMAT.to_string() {
        return Ok(());
    }
    Err(ConfigError::Problems(vec![Problem {
        origin: origins.at(key.span().start),
        key: "format".into(),
        text: format!("found {number}, and this agent reads format {FORMAT}; upgrade the agent or convert the file"),
    }]))
}

/// Puts variables such as `LIMPET_BROKER__UPLINK__URL` into the document.
fn apply_variables<'i>(
    document: &mut DeTable<'i>,
    surroundings: &'i Surroundings,
    origins: &mut Origins,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, value) in &surroundings.variables {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if NO_CONFIGURATION.contains(&name.as_str()) || name.starts_with(NO_CONFIGURATION_PREFIX) {
            continue;
        }
        let place = origins.text_len + 1 + origins.variables.len();
        origins.variables.push(name.clone());
        if let Err(text) = set(document, name, rest, value, place..place + 1) {
            problems.push(Problem { origin: Origin::Variable(name.clone()), key: String::new(), text });
        }
    }
    problems
}

/// Sets the key that one variable names.
fn set<'i>(
    document: &mut DeTable<'i>,
    name: &str,
    rest: &str,
    value: &'i str,
    place: Range<usize>,
) -> Result<(), String> {
    let segments: Vec<&str> = rest.split("__").collect();
    let first = segments[0].to_ascii_lowercase();
    if matches!(first.as_str(), "source" | "pipeline") {
        return Err(format!("[[{first}]] is a list, and variables reach tables only; set it in the file"));
    }
    let known = TABLES.iter().any(|(table, _)| *table == first);
    if !known || segments.len() < 2 || segments.contains(&"") || *name != name.to_ascii_uppercase() {
        let nearest =
            nearest(name, &variables_of(document)).map_or(String::new(), |near| format!("; the nearest is {near}"));
        return Err(format!("no key of the configuration has this variable{nearest}; correct it or unset it"));
    }

    let mut table = document;
    let mut path = String::new();
    let mut left = &segments[..];
    loop {
        let (key, used) = find_key(table, left).map_err(|both| {
            let (one, other) = (join(&path, &both.0), join(&path, &both.1));
            format!("it means both {one} and {other}, which differ only in '-' and '_'; rename one of them")
        })?;
        path = join(&path, &key);
        left = &left[used..];
        let spanned_key: Spanned<DeString<'i>> = Spanned::new(place.clone(), key.into());
        if left.is_empty() {
            let parsed = DeValue::parse(value).map_or_else(|_| DeValue::String(value.into()), Spanned::into_inner);
            // The map keeps the first key it was given, and with it the place in the file: take it out first.
            table.remove(&**spanned_key.get_ref());
            table.insert(spanned_key, Spanned::new(place.clone(), moved(parsed, &place)));
            return Ok(());
        }
        let entry =
            table.entry(spanned_key).or_insert_with(|| Spanned::new(place.clone(), DeValue::Table(DeTable::new())));
        let DeValue::Table(inner) = entry.get_mut() else {
            return Err(format!("{path} is a value and has no keys of its own; set {path} itself"));
        };
        table = inner;
    }
}

/// The key of `table` that the first of `segments` name, and how many of them: names may hold `__` themselves, so the
/// longest that exists is taken. Where none exists, the variable adds a key.
fn find_key(table: &DeTable<'_>, segments: &[&str]) -> Result<(String, usize), (String, String)> {
    for used in (1..=segments.len()).rev() {
        let wanted = segments[..used].join("__").to_ascii_lowercase();
        let mut matching = table.keys().filter(|key| key.get_ref().to_ascii_lowercase().replace('-', "_") == wanted);
        match (matching.next(), matching.next()) {
            (Some(one), None) => return Ok((one.get_ref().to_string(), used)),
            (Some(one), Some(other)) => return Err((one.get_ref().to_string(), other.get_ref().to_string())),
            (None, _) => {}
        }
    }
    Ok((segments[0].to_ascii_lowercase(), 1))
}

/// The same value with all its places at the variable.
fn moved<'i>(value: DeValue<'i>, place: &Range<usize>) -> DeValue<'i> {
    let spanned = |value: Spanned<DeValue<'i>>| Spanned::new(place.clone(), moved(value.into_inner(), place));
    match value {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(spanned).collect()),
        DeValue::Table(table) => {
            let keys = table.into_iter();
            DeValue::Table(keys.map(|(k, v)| (Spanned::new(place.clone(), k.into_inner()), spanned(v))).collect())
        }
        other => other,
    }
}

/// Every variable that would be understood, given the brokers of the document.
fn variables_of(document: &DeTable<'_>) -> Vec<String> {
    let upper = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    let mut brokers = vec!["NAME".to_owned()];
    if let Some(DeValue::Table(table)) = document.get("broker").map(Spanned::get_ref) {
        brokers.extend(table.keys().map(|name| upper(name.get_ref())));
    }
    let mut all = Vec::new();
    for (table, keys) in TABLES {
        let table = upper(table);
        for key in keys.iter().map(|key| upper(key)) {
            if table == "BROKER" {
                all.extend(brokers.iter().map(|broker| format!("{PREFIX}{table}__{broker}__{key}")));
            } else {
                all.push(format!("{PREFIX}{table}__{key}"));
            }
        }
    }
    all
}

/// The one of `known` that is most like `found`.
pub fn nearest<'k>(found: &str, known: &'k [impl AsRef<str>]) -> Option<&'k str> {
    // Jaro-Winkler, not the edit distance: for `rate` that would prefer `name` to `rate_hz`.
    let likeness = |known: &str| strsim::jaro_winkler(found, known);
    known.iter().map(AsRef::as_ref).max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// What serde found, as a sentence for people.
fn explain(error: &toml::de::Error, tree: &DeValue<'_>, origins: &Origins) -> Problem {
    let span = error.span();
    let origin = span.as_ref().map_or(origins.whole_file(), |span| origins.at(span.start));
    let key = span.and_then(|span| key_at(tree, &span, "")).unwrap_or_default();
    let mut text = sentence(error.message());
    if let Origin::Variable(name) = &origin
        && text.contains("expected a string")
    {
        text = format!("{text}; quote it: {name}='\"…\"'");
    }
    Problem { origin, key, text }
}

/// serde's messages name Rust's notions and leave the advice out; this says the same in the words of the file.
fn sentence(message: &str) -> String {
    // The messages are those of serde's `Error` trait; tests pin each of them.
    let quoted = |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let list = |known: &[String]| known.join(", ");
    let first_line = message.lines().next().unwrap_or_default();
    if let Some(rest) = first_line.strip_prefix("unknown field ") {
        let words = quoted(rest);
        return match words.split_first() {
            Some((found, known)) if !known.is_empty() => format!(
                "unknown key '{found}'; the nearest known key is '{}' (known here: {})",
                nearest(found, known).unwrap_or_default(),
                list(known)
            ),
            _ => format!("unknown key {rest}; remove it"),
        };
    }
    if let Some(rest) = first_line.strip_prefix("unknown variant ") {
        let words = quoted(rest);
        if let Some((found, known)) = words.split_first() {
            return format!(
                "found '{found}', expected one of {}; the nearest is '{}'",
                list(known),
                nearest(found, known).unwrap_or_default()
            );
        }
    }
    if let Some(rest) = first_line.strip_prefix("missing field ") {
        return format!("the key '{}' is missing; add it", rest.trim_matches('`'));
    }
    for prefix in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some((found, expected)) = first_line.strip_prefix(prefix).and_then(|rest| rest.split_once(", expected "))
        {
            let found = found.replace('`', "");
            let expected = match expected {
                "f64" => "a number",
                "u8" | "u32" | "usize" => "a whole number that is not negative",
                "a sequence" => "a list, such as [\"x\"]",
                expected if expected.starts_with("struct ") => "a table, such as { key = value }",
                expected if expected.starts_with("string or table") => {
                    "a table with one key, such as { raw = { type = \"i16\" } }"
                }
                "a map" => "a table, such as { key = value }",
                expected => expected,
            };
            return format!("found {found}, expected {expected}");
        }
    }
    first_line.to_owned()
}

/// The path of the key or value that stands at `span`, or of the smallest one around it.
fn key_at(value: &DeValue<'_>, span: &Range<usize>, path: &str) -> Option<String> {
    let around = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    match value {
        DeValue::Table(table) => {
            // Look deeper before looking at the span of the table itself: a table's span is only its header.
            let deeper =
                table.iter().find_map(|(key, value)| key_at(value.get_ref(), span, &join(path, key.get_ref())));
            deeper.or_else(|| {
                let found = table.iter().find(|(key, value)| around(key.span()) || around(value.span()));
                found.map(|(key, _)| join(path, key.get_ref()))
            })
        }
        DeValue::Array(items) => {
            let name = |index: usize, value: &DeValue<'_>| match value {
                DeValue::Table(table) => match table.get("name").map(Spanned::get_ref) {
                    Some(DeValue::String(name)) => format!("{path}.{name}"),
                    _ => format!("{path}[{index}]"),
                },
                _ => format!("{path}[{index}]"),
            };
            let mut items = items.iter().enumerate();
            items.find_map(|(index, value)| {
                let path = name(index, value.get_ref());
                key_at(value.get_ref(), span, &path).or_else(|| around(value.span()).then_some(path))
            })
        }
        _ => None,
    }
}
