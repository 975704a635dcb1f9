//! Marks for a harness that judges the agent (`limpet-lab chaos`): which results were decided, and which were stored.
//!
//! If `LIMPET_MARKS` names a FIFO, two lines go into it for each published result:
//!
//! ```text
//! decided PIPELINE/STREAM/RUN-SEQ     before anything of it is stored
//! stored PIPELINE/STREAM/RUN-SEQ      after the ring, or the disk, has it
//! ```
//!
//! They share no code with what they judge: each is one write(2) of a few bytes, which a pipe takes whole or not at all, and
//! which a process that is killed afterwards cannot take back. Without the variable nothing is written.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::OnceLock;

use limpet_wire::id::Serial;

use crate::outbox::item::LaneKey;

/// The environment variable that names the FIFO.
const VARIABLE: &str = "LIMPET_MARKS";

static MARKS: OnceLock<Option<File>> = OnceLock::new();

/// Opens the FIFO, if one is named.
pub fn open() {
    MARKS.get_or_init(|| {
        let path = std::env::var_os(VARIABLE)?;
        // Without a reader this fails at once, where it would wait for one otherwise.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().write(true).custom_flags(flags).open(&path).and_then(|file| {
            if !file.metadata()?.file_type().is_fifo() {
                return Err(std::io::Error::other("it is no FIFO"));
            }
            // From here on a pipe that is full holds the agent up, rather than lose a mark.
            rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())?;
            Ok(file)
        });
        opened
            .map_err(|error| tracing::error!(path = %path.display(), %error, "{VARIABLE} cannot be opened, and no marks are left"))
            .ok()
    });
}

/// Whether anybody wants marks.
pub fn are_wanted() -> bool {
    matches!(MARKS.get(), Some(Some(_)))
}

/// A result was decided, and is about to be stored.
pub fn decided(key: &LaneKey, serial: Option<Serial>) {
    leave("decided", key, serial);
}

/// The ring or the disk has it.
pub fn stored(key: &LaneKey, serial: Option<Serial>) {
    leave("stored", key, serial);
}

fn leave(what: &str, key: &LaneKey, serial: Option<Serial>) {
    let (Some(Some(file)), LaneKey::Results(..), Some(serial)) = (MARKS.get(), key, serial) else { return };
    let line = format!("{what} {key}/{serial}\n");
    let mut file = file;
    // A harness that has gone judges nothing any more.
    _ = file.write_all(line.as_bytes());
}
