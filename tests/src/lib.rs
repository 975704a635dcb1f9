//! The harness of the end-to-end tests: real brokers, the real binaries, and packages small enough to know by heart.
//!
//! Nothing here links the agent: it is started as a child, spoken to through a broker, and judged by what a user of
//! it would see. Waiting is always for an event with a limit ([`LIMIT`]), never for a time.
//!
//! Environment: `LIMPET_BIN_DIR` names the folder with `limpet` and `limpet-lab` (default: the one above the running
//! test), `LIMPET_SHARED` the reference material (default: `../shared` beside the checkout), `LIMPET_SOAK=1` runs the
//! long suites in full.

#![forbid(unsafe_code)]

pub mod agent;
pub mod broker;
pub mod client;
pub mod clock;
pub mod depot;
pub mod disk;
pub mod forge;
pub mod graph;
mod lines;
pub mod local;
pub mod manager;
pub mod objects;
pub mod package;
pub mod program;
pub mod proxy;
pub mod random;
pub mod sieve;
pub mod web;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use agent::Agent;
pub use broker::Broker;
pub use client::{Client, Message};
pub use clock::Clock;
pub use depot::Depot;
pub use disk::SmallDisk;
pub use objects::{Carrier, Objects};
pub use package::Package;
pub use proxy::Proxy;
pub use random::Random;
pub use sieve::Sieve;

/// How long anything may take before a test gives up. Generous, since a slow machine is no bug; whatever is waited for
/// ends the wait at once.
pub const LIMIT: Duration = Duration::from_secs(45);

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The reference material beside the checkout, or none, with a line that says so, if it is not there.
pub fn shared(path: &str) -> Option<PathBuf> {
    let base = std::env::var_os("LIMPET_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let found = base.join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: needs ../shared/{path}");
    None
}

/// How many times something random or destructive is repeated: `full` in a soak, a tenth of it (at least one)
/// otherwise.
pub fn repeats(full: usize) -> usize {
    if std::env::var_os("LIMPET_SOAK").is_some_and(|value| value == "1") { full } else { (full / 10).max(1) }
}

/// Seed of everything random: `LIMPET_SEED`, or a fixed one, so that a run can be repeated.
pub fn seed() -> u64 {
    std::env::var("LIMPET_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_124)
}
