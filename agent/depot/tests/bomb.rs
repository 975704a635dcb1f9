//! A decompression bomb, in a process that may not grow.

use limpet_depot::Digest;
use limpet_depot::chunk::{RAW_MAX, expand};
use limpet_wire::depot::{ChunkRef, MESSAGE_MAX};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a bomb unpacks to, and what this process may take on top of what it has.
const BOMB: u64 = 1 << 30;
const FRAMES: usize = 16;
const MAY_GROW: u64 = 32 << 20;

/// The only test of this program, since the limit is the whole program's.
#[test]
fn a_bomb_is_refused_in_bounded_memory() {
    let stored = {
        let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("zstd starts");
        zstd.window_log(27).expect("zstd knows windows of 128 MiB");
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), BOMB / FRAMES as u64), &mut zstd)
            .expect("memory takes all");
        let frame = zstd.finish().expect("memory takes all");
        // Frames may follow each other, which makes a large bomb in little time.
        frame.repeat(FRAMES)
    };
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .expect("Linux tells")
        .split(' ')
        .next()
        .and_then(|pages| pages.parse().ok())
        .expect("the first field is the size in pages");
    let most = pages * rustix::param::page_size() as u64 + MAY_GROW;
    let hard = getrlimit(Resource::As).maximum;
    assert!(stored.len() <= MESSAGE_MAX, "or its length alone would refuse it");
    setrlimit(Resource::As, Rlimit { current: Some(most), maximum: hard }).expect("a limit may be lowered");
    assert!(Vec::<u8>::new().try_reserve_exact(2 * MAY_GROW as usize).is_err(), "the limit holds");

    for frames in [1, FRAMES] {
        let stored = &stored[..stored.len() / FRAMES * frames];
        for raw_len in [4096, RAW_MAX as u32, u32::MAX] {
            let reference =
                ChunkRef { raw: [0; 32], raw_len, stored: Digest::of(stored).0, stored_len: stored.len() as u32 };
            let error = expand(&reference, stored).expect_err("a bomb is no chunk");
            println!("{} bytes that claim to be {raw_len}: {error}", stored.len());
            assert!(!error.contains("SHA-256"), "{error}");
        }
    }
}
