//! Chunks, as they arrive, and the references that an index makes to them.
//!
//! Input: a byte that says whether the reference fits what is stored (bit 0: its digest, bit 1: its length), the raw
//! digest, the raw length (u32, little-endian), then what is stored.
#![no_main]

use limpet_depot::Digest;
use limpet_depot::chunk::{RAW_MAX, expand};
use limpet_wire::depot::{ChunkRef, MESSAGE_MAX};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((flags, rest)) = bytes.split_first() else { return };
    let Some((raw, rest)) = rest.split_first_chunk::<32>() else { return };
    let Some((raw_len, stored)) = rest.split_first_chunk::<4>() else { return };
    let raw_len = u32::from_le_bytes(*raw_len);
    let digest = if flags & 1 == 1 { Digest::of(stored).0 } else { *raw };
    let stored_len = if flags & 2 == 2 { stored.len() as u32 } else { raw_len };
    let reference = ChunkRef { raw: *raw, raw_len, stored: digest, stored_len };
    if let Ok(expanded) = expand(&reference, stored) {
        assert_eq!(Digest::of(stored).0, reference.stored);
        assert_eq!(Digest::of(&expanded).0, reference.raw);
        assert_eq!((expanded.len(), stored.len()), (raw_len as usize, stored_len as usize));
        assert!(expanded.capacity() <= RAW_MAX && stored.len() <= MESSAGE_MAX);
    }
});
