//! A wall clock of a test's own, for one child process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::program::{binary, text_of};

/// What a child's wall clock shows when it starts, and whether a time server is said to have set it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Seconds since 1970.
    pub shows: i64,
    /// Whether the kernel says that it is right.
    pub set: bool,
}

impl Clock {
    /// On the first of January 1970, and nobody set it: a gateway without a battery.
    pub const OF_1970: Self = Self { shows: 3600, set: false };
    /// On the first of January 2100.
    pub const OF_2100: Self = Self { shows: 4_102_444_800, set: false };

    /// The same, set by a time server.
    pub fn set(self) -> Self {
        Self { set: true, ..self }
    }

    /// The environment that gives a child this clock.
    ///
    /// # Panics
    /// If there is no C compiler, which a build of this project needs too.
    pub fn environment(self) -> [(&'static str, String); 3] {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("this machine's clock is right").as_secs();
        [
            ("LD_PRELOAD", text_of(library()).to_owned()),
            ("TEST_CLOCK_AHEAD", (self.shows - now.cast_signed()).to_string()),
            ("TEST_CLOCK_SET", u8::from(self.set).to_string()),
        ]
    }
}

/// The library that stands between the child and the C library; compiled once for all tests.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = binary("limpet").with_file_name("limpet-tests-clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&path).arg(source).arg("-ldl").status();
        assert!(compiled.is_ok_and(|status| status.success()), "cc compiles tests/src/clock.c: run scripts/setup");
        path
    })
}
