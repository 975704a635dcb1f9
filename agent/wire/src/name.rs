//! Names: what a gateway, broker, source, pipeline, model or stream may be called.

use crate::WireError;

/// Longest configured name, in bytes.
pub const NAME_MAX: usize = 48;
/// Longest stream name, in bytes.
pub const STREAM_MAX: usize = 64;

/// Checks a configured name: `[a-z0-9][a-z0-9_-]{0,47}`, and not a word that the topic tree reserves.
///
/// # Errors
/// [`WireError::Name`] with what is wrong.
pub fn check_name(name: &str) -> Result<(), WireError> {
    let reason = match name.as_bytes() {
        [] => "it is empty",
        bytes if bytes.len() > NAME_MAX => "it is longer than 48 characters",
        [first, ..] if !(first.is_ascii_lowercase() || first.is_ascii_digit()) => {
            "it must start with a lower-case letter or a digit"
        }
        bytes if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-')) => {
            "only lower-case letters, digits, '_' and '-' are allowed"
        }
        b"depot" => "'depot' is reserved for the topics of the model depot",
        _ => return Ok(()),
    };
    Err(WireError::Name { found: name.to_owned(), reason })
}

/// Checks a stream's name, one topic level as received: 1 to 64 bytes of UTF-8 without spaces, controls or MQTT's
/// separators. Capitals are allowed, because Tasmota and Shelly use them.
///
/// # Errors
/// [`WireError::Name`] with what is wrong.
pub fn check_stream(name: &str) -> Result<(), WireError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > STREAM_MAX {
        "it is longer than 64 bytes"
    } else if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "spaces and control characters are not allowed"
    } else if name.contains(['/', '+', '#']) {
        "'/', '+' and '#' are not allowed"
    } else {
        return Ok(());
    };
    Err(WireError::Name { found: name.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_bounded() {
        for good in ["a", "press-07", "0", "motor_2", &"x".repeat(48)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "_a", "Press", "a b", "a/b", "é", "depot", &"x".repeat(49)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn streams_are_topic_levels() {
        for good in ["press-3", "tasmota_8F2A", "Küche", &"x".repeat(64)] {
            assert_eq!(check_stream(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "a\u{7}", "a/b", "a+", "#", &"é".repeat(33)] {
            assert!(check_stream(bad).is_err(), "{bad}");
        }
    }
}
