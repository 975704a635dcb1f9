//! Standard output and standard error of the commands that end by themselves.
//!
//! Whoever reads them may stop before the end, as `head` does. That is no failure of the command: what nobody reads
//! any more is not written, and the exit code still says what the command found out.

use std::fmt::Display;
use std::io::{self, Write as _};

use anyhow::Context as _;

/// Whether somebody still reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// It was written.
    There,
    /// The other end of the pipe is closed.
    Gone,
}

/// Writes to standard output.
///
/// # Errors
/// If it cannot be written for another reason than that nobody reads it, such as a full disk.
pub fn print(text: &[u8]) -> anyhow::Result<Reader> {
    write(&mut io::stdout().lock(), text).context("standard output cannot be written")
}

fn write(out: &mut impl io::Write, text: &[u8]) -> io::Result<Reader> {
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error),
    }
}

/// Without controls: what comes from a network or a file must not steer the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Says something on standard error. There is nobody to tell if that fails.
pub fn tell(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "limpet: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        assert_eq!(write(&mut Broken(io::ErrorKind::BrokenPipe), b"x").ok(), Some(Reader::Gone));
        assert!(write(&mut Broken(io::ErrorKind::StorageFull), b"x").is_err());
        assert_eq!(write(&mut Vec::new(), b"x").ok(), Some(Reader::There));
    }
}
