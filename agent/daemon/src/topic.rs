//! Topics: the filters that sources subscribe to, and the templates that local outputs publish to.
//!
//! `{stream}` stands for one whole level and names the stream. Matching follows MQTT 5, section 4.7, and never
//! allocates, because it runs for every message received.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::ser::{Serialize, Serializer};

/// Longest topic that MQTT can carry, in bytes.
const TOPIC_MAX: usize = 65_535;
const STREAM: &str = "{stream}";
const SHARE: &str = "$share/";

/// An MQTT topic filter in which one level may be `{stream}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// As configured.
    text: Arc<str>,
    /// As subscribed: `+` in place of `{stream}`, `$share/GROUP/` included.
    mqtt: String,
    /// Where in `mqtt` the part begins that topics are matched against.
    pattern: usize,
    /// Which level of the pattern names the stream.
    stream_level: Option<usize>,
}

/// A topic to publish to, in which one level may be `{stream}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
}

/// Checks what filters and templates have in common; returns the level that is `{stream}`.
fn check_levels(text: &str) -> Result<Option<usize>, String> {
    if text.is_empty() {
        return Err("the topic is empty".into());
    }
    if text.len() > TOPIC_MAX {
        return Err(format!("the topic has {} bytes; MQTT allows {TOPIC_MAX}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("the topic holds a control character".into());
    }
    let mut stream_level = None;
    for (index, level) in text.split('/').enumerate() {
        if level == STREAM {
            if stream_level.replace(index).is_some() {
                return Err("'{stream}' stands there twice; one level names the stream".into());
            }
        } else if level.contains(['{', '}']) {
            return Err(format!(
                "'{level}' is not a topic level: the only placeholder is '{{stream}}', and it stands for one whole level"
            ));
        }
    }
    Ok(stream_level)
}

impl Filter {
    /// Reads a filter as configured, such as `plant/{stream}/vibration` or `$share/press/plant/+/image`.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pattern = match text.strip_prefix(SHARE) {
            None => 0,
            Some(rest) => match rest.split_once('/') {
                Some((group, _)) if !group.is_empty() && !group.contains(['+', '#', '{', '}']) => {
                    SHARE.len() + group.len() + 1
                }
                _ => return Err(format!("'{text}' is no shared subscription: write '$share/GROUP/FILTER'")),
            },
        };
        let stream_level = check_levels(&text[pattern..])?;
        let mut levels = text[pattern..].split('/').peekable();
        while let Some(level) = levels.next() {
            if level == "#" && levels.peek().is_some() {
                return Err(format!("'#' stands before the end of '{text}'; it can only be the last level"));
            }
            if level.len() > 1 && level.contains(['+', '#']) {
                return Err(format!("'{level}' mixes a wildcard with text; '+' and '#' stand for whole levels"));
            }
        }
        Ok(Self { text: text.into(), mqtt: text.replacen(STREAM, "+", 1), pattern, stream_level })
    }

    /// The filter to subscribe to.
    pub fn mqtt(&self) -> &str {
        &self.mqtt
    }

    /// The filter as configured.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a level names the stream. If none does, the source is one stream with the source's name.
    pub fn names_stream(&self) -> bool {
        self.stream_level.is_some()
    }

    /// Whether this is a shared subscription, which hands each message to one of several subscribers.
    pub fn is_shared(&self) -> bool {
        self.pattern != 0
    }

    /// Whether a message with this topic is received through this filter.
    pub fn matches(&self, topic: &str) -> bool {
        let pattern = &self.mqtt[self.pattern..];
        // MQTT 5, 4.7.2: a wildcard in front does not match the topics that servers keep for themselves.
        if topic.starts_with('$') && pattern.starts_with(['+', '#']) {
            return false;
        }
        let mut topic = topic.split('/');
        for level in pattern.split('/') {
            match (level, topic.next()) {
                // "sport/#" matches "sport" itself too.
                ("#", _) => return true,
                (_, None) => return false,
                ("+", Some(_)) => {}
                (wanted, Some(found)) if wanted == found => {}
                _ => return false,
            }
        }
        topic.next().is_none()
    }

    /// The topic level that names the stream, as received; `None` if the topic does not match or the filter names no
    /// stream. What may be a stream's name is for [`limpet_wire::name::check_stream`] to say.
    pub fn stream_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let level = self.stream_level?;
        if self.matches(topic) { topic.split('/').nth(level) } else { None }
    }

    /// Whether some stream's topic of `template` would be received through this filter.
    pub fn may_receive(&self, template: &Template) -> bool {
        let mut published = template.text.split('/');
        for level in self.mqtt[self.pattern..].split('/') {
            match (level, published.next()) {
                ("#", _) => return true,
                (_, None) => return false,
                ("+", Some(_)) | (_, Some(STREAM)) => {}
                (wanted, Some(found)) if wanted == found => {}
                _ => return false,
            }
        }
        published.next().is_none()
    }
}

/// Filters by their levels, each with what it is for. Finding those that match a topic takes as long as the topic has
/// levels, and not as long as there are filters.
#[derive(Debug)]
pub struct Filters<T> {
    root: Level<T>,
}

/// Filters that begin with the same levels.
#[derive(Debug)]
struct Level<T> {
    named: HashMap<Box<str>, Level<T>>,
    any: Option<Box<Level<T>>>,
    /// Of filters that end here, and of those that go on with `#`.
    here: Vec<T>,
    below: Vec<T>,
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self { named: HashMap::new(), any: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<T> Default for Filters<T> {
    fn default() -> Self {
        Self { root: Level::default() }
    }
}

impl<T> Filters<T> {
    /// Adds a filter.
    pub fn insert(&mut self, filter: &Filter, value: T) {
        let mut level = &mut self.root;
        for name in filter.mqtt[filter.pattern..].split('/') {
            match name {
                "#" => return level.below.push(value),
                "+" => level = level.any.get_or_insert_default(),
                name => level = level.named.entry(name.into()).or_default(),
            }
        }
        level.here.push(value);
    }

    /// Calls `found` with what every filter that matches a topic is for. Same rules as [`Filter::matches`].
    pub fn matching<'f>(&'f self, topic: &str, found: &mut impl FnMut(&'f T)) {
        let reserved = topic.starts_with('$');
        self.root.matching(Some(topic), !reserved, found);
    }
}

impl<T> Level<T> {
    /// `rest`: the levels of the topic that are still to be matched, none after the last.
    fn matching<'f>(&'f self, rest: Option<&str>, wild: bool, found: &mut impl FnMut(&'f T)) {
        if wild {
            self.below.iter().for_each(&mut *found);
        }
        let Some(rest) = rest else { return self.here.iter().for_each(found) };
        let (name, rest) = rest.split_once('/').map_or((rest, None), |(name, rest)| (name, Some(rest)));
        if let Some(level) = self.named.get(name) {
            level.matching(rest, true, found);
        }
        if let Some(level) = self.any.as_deref().filter(|_| wild) {
            level.matching(rest, true, found);
        }
    }
}

impl Template {
    /// Reads a template as configured, such as `plant/{stream}/alarm`.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        check_levels(text)?;
        if text.contains(['+', '#']) {
            return Err(format!("'{text}' holds a wildcard; a topic to publish to has none"));
        }
        if text.starts_with('$') {
            return Err(format!("'{text}' starts with '$'; such topics belong to the broker"));
        }
        Ok(Self { text: text.into() })
    }

    /// The topic for one stream.
    pub fn topic(&self, stream: &str) -> String {
        self.text.replacen(STREAM, stream, 1)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_stream_is_the_level_in_braces() {
        let filter = Filter::parse("plant/{stream}/vibration").unwrap();
        assert_eq!(filter.mqtt(), "plant/+/vibration");
        assert_eq!(filter.stream_of("plant/press-3/vibration"), Some("press-3"));
        assert_eq!(filter.stream_of("plant//vibration"), Some(""));
        for other in ["plant/press-3", "plant/press-3/vibration/x", "works/press-3/vibration", "plant/a/b/vibration"] {
            assert_eq!(filter.stream_of(other), None, "{other}");
        }
        let plain = Filter::parse("plant/vibration").unwrap();
        assert!(plain.matches("plant/vibration") && !plain.names_stream());
        assert_eq!(plain.stream_of("plant/vibration"), None);
    }

    #[test]
    fn a_shared_subscription_is_matched_without_its_group() {
        let filter = Filter::parse("$share/press/cam/{stream}/#").unwrap();
        assert!(filter.is_shared());
        assert_eq!(filter.mqtt(), "$share/press/cam/+/#");
        assert_eq!(filter.stream_of("cam/3/jpeg"), Some("3"));
        assert_eq!(filter.stream_of("cam/3"), Some("3"));
        assert!(!filter.matches("$share/press/cam/3/jpeg"));
    }

    #[test]
    fn wildcards_in_front_leave_the_broker_its_own_topics() {
        assert!(!Filter::parse("#").unwrap().matches("$SYS/uptime"));
        assert!(!Filter::parse("+/uptime").unwrap().matches("$SYS/uptime"));
        assert!(Filter::parse("$SYS/#").unwrap().matches("$SYS/uptime"));
    }

    #[test]
    fn bad_filters_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("a/#/b", "last level"),
            ("a/b+", "whole levels"),
            ("a/x#", "whole levels"),
            ("a/{stream}-1", "whole level"),
            ("a/{device}", "only placeholder"),
            ("{stream}/{stream}", "twice"),
            ("$share/x", "$share/GROUP/FILTER"),
            ("$share//a", "$share/GROUP/FILTER"),
            ("$share/g/", "empty"),
            ("a\0b", "control"),
        ] {
            let error = Filter::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        for text in ["a/+", "a/#", "$SYS/x", ""] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_output_that_would_come_back_as_samples_is_seen() {
        let filter = Filter::parse("plant/{stream}/#").unwrap();
        assert!(filter.may_receive(&Template::parse("plant/{stream}/alarm").unwrap()));
        assert!(!filter.may_receive(&Template::parse("alarm/{stream}").unwrap()));
        assert!(Filter::parse("a/b").unwrap().may_receive(&Template::parse("{stream}/b").unwrap()));
        assert!(!Filter::parse("a/b").unwrap().may_receive(&Template::parse("{stream}/b/c").unwrap()));
    }

    /// The rules of MQTT 5, 4.7, spelled out on lists of levels.
    fn naive(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) => true,
            ([], []) => true,
            (["+", filter @ ..], [_, topic @ ..]) => naive(filter, topic),
            ([wanted, filter @ ..], [found, topic @ ..]) => wanted == found && naive(filter, topic),
            _ => false,
        }
    }

    fn levels(choices: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
        proptest::collection::vec(proptest::sample::select(choices), 1..5)
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_rules(
            filter in levels(&["a", "b", "", "+", "$a"]), hash: bool, topic in levels(&["a", "b", "", "$a"]),
        ) {
            let mut filter = filter;
            if hash { filter.push("#"); }
            let (text, name) = (filter.join("/"), topic.join("/"));
            if text.is_empty() || name.is_empty() {
                return Ok(());
            }
            let hidden = topic[0].starts_with('$') && matches!(filter[0], "+" | "#");
            let expected = naive(&filter, &topic) && !hidden;
            prop_assert_eq!(Filter::parse(&text).unwrap().matches(&name), expected);
        }

        #[test]
        fn many_filters_are_found_as_each_of_them_matches(
            filters in proptest::collection::vec((levels(&["a", "b", "", "+", "$a"]), any::<bool>()), 0..20),
            topic in levels(&["a", "b", "", "$a"]),
        ) {
            let text = |(mut levels, hash): (Vec<&'static str>, bool)| {
                if hash { levels.push("#"); }
                levels.join("/")
            };
            let parsed = filters.into_iter().map(text).filter_map(|text| Filter::parse(&text).ok());
            let (parsed, name): (Vec<Filter>, _) = (parsed.collect(), topic.join("/"));
            let mut all = Filters::default();
            parsed.iter().enumerate().for_each(|(index, filter)| all.insert(filter, index));
            let mut found = Vec::new();
            all.matching(&name, &mut |index| found.push(*index));
            found.sort_unstable();
            let each = parsed.iter().enumerate().filter(|(_, filter)| filter.matches(&name));
            prop_assert_eq!(found, each.map(|(index, _)| index).collect::<Vec<_>>());
        }

        #[test]
        fn a_published_topic_is_received_only_where_it_was_foreseen(
            filter in levels(&["a", "b", "+", "{stream}"]), template in levels(&["a", "b", "{stream}"]), stream in "[ab]",
        ) {
            let parsed = (Filter::parse(&filter.join("/")), Template::parse(&template.join("/")));
            if let (Ok(filter), Ok(template)) = parsed && filter.matches(&template.topic(&stream)) {
                prop_assert!(filter.may_receive(&template));
            }
        }

        #[test]
        fn noise_never_panics(text in "[a/+#${}\\PC]{0,12}", topic in "\\PC{0,12}") {
            let _ = Template::parse(&text);
            if let Ok(filter) = Filter::parse(&text) {
                let _ = (filter.matches(&topic), filter.stream_of(&topic));
            }
        }
    }
}
