//! `trust.json`: everything that is trusted, in one file that is replaced at once or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::set::Set;
use super::{TARGETS_MAX, TrustError};
use crate::package::Digest;
use crate::replace::fault;

/// Largest file that is read back, in bytes: quotes inside of strings take two bytes.
const FILE_MAX: u64 = 4 * TARGETS_MAX;
/// Newest version that is understood.
const VERSION: u64 = 1;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Digest of the installed root metadata that the chain started from.
    pub installed: String,
    /// Newest root metadata, where it is ahead of that of the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Newest `issued` that was ever trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<Timestamp>,
    /// Whether the owner has replaced the root metadata by one whose keys did not sign the set: it still guards against
    /// going back, but it is no longer trusted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disowned: bool,
    /// What was trusted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Set>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u64,
    r#type: String,
    /// Digest of what follows: signatures do not cover all of it.
    seal: String,
    #[serde(flatten)]
    kept: Kept,
}

/// What was found.
pub(super) enum Found {
    Nothing,
    Kept(Box<Kept>),
    Damaged(String),
}

/// Tells one file from another; that there is none, or none that can be read, from any.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Known(Option<String>);

impl Known {
    pub(super) fn of(kept: &Kept) -> Self {
        Self(Some(seal(kept)))
    }
}

fn seal(kept: &Kept) -> String {
    let bytes = serde_json::to_vec(kept).expect("writing plain values into memory cannot fail");
    Digest::of(&bytes).to_string()
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::Io { path, doing, source }
}

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("trust.json")
}

/// Reads what is kept. A file beside it that a power cut left half-written is not looked at.
pub(super) fn read(folder: &Path) -> Result<Found, TrustError> {
    let path = path(folder);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(failed(&path, "read")(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed(&path, "read"))?;
    if bytes.len() as u64 > FILE_MAX {
        return Ok(Found::Damaged(format!("it has more than {FILE_MAX} bytes")));
    }
    Ok(match serde_json::from_slice::<Envelope>(&bytes) {
        Ok(found) if found.v > VERSION => {
            Found::Damaged(format!("it is of version {}; this agent reads {VERSION}", found.v))
        }
        Ok(found) if found.r#type != "trust" => Found::Damaged(format!("its type is {:?}", found.r#type)),
        Ok(found) if found.seal != seal(&found.kept) => Found::Damaged("its digest is not that of its content".into()),
        Ok(found) => Found::Kept(Box::new(found.kept)),
        Err(error) => Found::Damaged(error.to_string()),
    })
}

/// Replaces what is kept, at once or not at all, and after that for good, unless it is no longer what was `read`: an
/// older set must never replace a newer one, whoever brings it. Gives what is to be known of it for the next time.
///
/// # Errors
/// [`TrustError`]; what was kept before stands then.
pub(super) fn write(folder: &Path, kept: &Kept, known: &Known) -> Result<Known, TrustError> {
    fs::create_dir_all(folder).map_err(failed(folder, "made"))?;
    let path = path(folder);
    // Held until the new one has its name.
    let writing = File::open(folder).map_err(failed(folder, "opened"))?;
    writing.lock().map_err(failed(folder, "locked"))?;
    let now = match read(folder)? {
        Found::Kept(kept) => Known::of(&kept),
        Found::Nothing | Found::Damaged(_) => Known::default(),
    };
    if now != *known {
        return Err(TrustError::Changed { path });
    }
    // Always the same name: however often the power fails, one file at most lies about.
    let temporary = folder.join("trust.json.new");
    let envelope = Envelope { v: VERSION, r#type: "trust".into(), seal: seal(kept), kept: kept.clone() };
    let bytes = serde_json::to_vec(&envelope).expect("writing plain values into memory cannot fail");
    let put = |bytes: &[u8]| {
        fault::step()?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        for half in [first, rest] {
            fault::step()?;
            file.write_all(half)?;
        }
        fault::step()?;
        file.sync_all()?;
        fault::step()?;
        fs::rename(&temporary, &path)?;
        fault::step()?;
        File::open(folder)?.sync_all()
    };
    let before = fs::read(&path).ok();
    let stands = || fs::read(&path).is_ok_and(|found| found == bytes);
    let Err(error) = put(&bytes) else { return Ok(Known::of(kept)) };
    if stands() {
        // It has its name, and its folder was not synced: a power cut may take it away, so it is not for good. Nobody may
        // go by it before it is, and the next try must find what this process knows of.
        _ = match &before {
            Some(before) => put(before),
            None => fault::step().and_then(|()| fs::remove_file(&path)),
        };
        // There is no way back either, so this is what the next one finds.
        if stands() {
            return Ok(Known::of(kept));
        }
    }
    Err(failed(&path, "written")(error))
}

/// Puts a damaged file aside, for whoever wants to know what happened.
pub(super) fn put_aside(folder: &Path) -> Result<PathBuf, TrustError> {
    let path = path(folder);
    let aside = folder.join("trust.json.damaged");
    fs::rename(&path, &aside).map_err(failed(&path, "put aside"))?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replace::fault::{Fault, with};

    fn kept(second: i64) -> Kept {
        let issued = Some(Timestamp::from_second(second).unwrap());
        Kept { installed: "a".repeat(64), root: Some("{}".to_owned()), issued, disowned: false, set: None }
    }

    /// What stands; none if nothing does.
    fn found(folder: &Path) -> Option<Kept> {
        match read(folder).unwrap() {
            Found::Nothing => None,
            Found::Kept(kept) => Some(*kept),
            Found::Damaged(reason) => panic!("half of something: {reason}"),
        }
    }

    #[test]
    fn a_fault_at_any_step_is_an_error_with_what_was_before_and_the_next_one_can_write() {
        for (fault, before) in [Fault::Fails, Fault::Ends].into_iter().flat_map(|f| [(f, None), (f, Some(kept(1)))]) {
            let mut steps = 0;
            loop {
                let folder = tempfile::tempdir().unwrap();
                let folder = folder.path();
                let mut known = Known::default();
                if let Some(before) = &before {
                    known = write(folder, before, &known).unwrap();
                }
                let (done, hit) = with(steps, fault, || write(folder, &kept(2), &known));
                let what = format!("{fault:?} at {steps}");
                match done {
                    Ok(now) => {
                        // Who ends after it has its name changes nothing any more.
                        assert!(!hit || fault == Fault::Ends && steps == 5, "{what}");
                        assert_eq!(found(folder), Some(kept(2)), "{what}");
                        known = now;
                    }
                    Err(error) => {
                        assert!(hit && error.to_string().contains("trust.json: cannot be written"), "{what}: {error}");
                        assert_eq!(found(folder), before, "{what}");
                    }
                }
                known = write(folder, &kept(3), &known).unwrap();
                assert_eq!((found(folder), known), (Some(kept(3)), Known::of(&kept(3))), "{what}");
                if !hit {
                    break;
                }
                steps += 1;
            }
            // Made, written in two halves, synced, renamed, and its folder synced.
            assert_eq!(steps, 6, "{fault:?}");
        }
    }
}
