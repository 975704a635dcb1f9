//! Signed configurations: what a publisher may put on gateways.
//!
//! It replaces sources, pipelines and budget, never brokers, keys, identity or paths. Whether it fits a gateway only
//! that gateway can tell; what is checked here is that it is TOML of these tables.

use limpet_wire::name::check_name;

use super::PublishError;
use crate::store::CONFIGURATION_MAX;

/// Tables that a signed configuration may have: arrays of tables, and one table.
const ARRAYS: [&str; 2] = ["source", "pipeline"];
const TABLE: &str = "budget";

/// Whom a configuration is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressee {
    /// One gateway.
    Gateway(String),
    /// All gateways with this label.
    Label(String, String),
}

impl Addressee {
    /// A gateway by its id.
    ///
    /// # Errors
    /// [`PublishError::Refused`] if no gateway can be called so.
    pub fn gateway(id: &str) -> Result<Self, PublishError> {
        check_name(id).map_err(|error| PublishError::Refused(format!("--gateway: {error}")))?;
        Ok(Self::Gateway(id.to_owned()))
    }

    /// All gateways with a label, given as `line=3`.
    ///
    /// # Errors
    /// [`PublishError::Refused`] if it has no value, or one that cannot stand in a topic.
    pub fn label(text: &str) -> Result<Self, PublishError> {
        let wrong = |reason: &str| Err(PublishError::Refused(format!("--label {text}: {reason}")));
        let Some((key, value)) = text.split_once('=') else { return wrong("expected KEY=VALUE, such as line=3") };
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if key.is_empty() || value.is_empty() || !key.chars().chain(value.chars()).all(fits) {
            return wrong(
                "a label that a configuration is for has only letters, digits, '.', '_' and '-' in key and value",
            );
        }
        Ok(Self::Label(key.to_owned(), value.to_owned()))
    }

    /// Path of the target: `config.<gateway>` or `config.<key>=<value>`.
    pub fn path(&self) -> String {
        match self {
            Self::Gateway(id) => format!("config.{id}"),
            Self::Label(key, value) => format!("config.{key}={value}"),
        }
    }
}

/// Checks the text of a configuration; `file` is its name for messages.
///
/// # Errors
/// [`PublishError::Refused`] with the line or the key.
pub fn check(file: &str, text: &str) -> Result<(), PublishError> {
    let wrong = |reason: String| Err(PublishError::Refused(format!("{file}: {reason}")));
    if text.len() > CONFIGURATION_MAX {
        return wrong(format!("has {} bytes; expected at most {CONFIGURATION_MAX}", text.len()));
    }
    let table: toml::Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            return wrong(format!("line {line}: {}", error.message()));
        }
    };
    for (key, value) in &table {
        let tables = value.as_array().is_some_and(|array| array.iter().all(toml::Value::is_table));
        match key.as_str() {
            array if ARRAYS.contains(&array) && tables => {}
            TABLE if value.is_table() => {}
            array if ARRAYS.contains(&array) => return wrong(format!("`{key}`: expected tables, [[{key}]]")),
            TABLE => return wrong(format!("`{key}`: expected a table, [{key}]")),
            _ => {
                return wrong(format!(
                    "`{key}`: a signed configuration replaces [[source]], [[pipeline]] and [budget] only; the rest belongs \
                     to the gateway's own file"
                ));
            }
        }
    }
    if table.is_empty() {
        return wrong("is empty; expected [[source]], [[pipeline]] or [budget]".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_pipelines_and_budget_may_be_replaced_and_nothing_else() {
        check("c", "[[source]]\nname = \"a\"\n[[pipeline]]\nname = \"b\"\n[budget]\ncpu = 1.0\n").unwrap();
        for text in ["[broker.up]\nurl = \"mqtt://x\"\n", "[budget]\n[gateway]\nid = \"x\"\n", "format = 1\n"] {
            let error = check("c", text).unwrap_err().to_string();
            assert!(error.contains("[[pipeline]] and [budget] only"), "{error}");
        }
        assert!(check("c", "[source]\nname = 1\n").unwrap_err().to_string().contains("[[source]]"));
        assert!(check("c", "").unwrap_err().to_string().contains("is empty"));
        let error = check("c.toml", "[budget]\n\ncpu = = 1\n").unwrap_err().to_string();
        assert!(error.starts_with("c.toml: line 3"), "{error}");
    }

    #[test]
    fn an_addressee_is_a_gateway_or_a_label_that_fits_in_a_topic() {
        assert_eq!(Addressee::gateway("press-07").unwrap().path(), "config.press-07");
        assert_eq!(Addressee::label("line=3").unwrap().path(), "config.line=3");
        assert!(Addressee::gateway("Press 7").is_err());
        for text in ["line", "line=", "=3", "a/b=c", "line=a b", "line=+"] {
            assert!(Addressee::label(text).is_err(), "{text}");
        }
    }
}
