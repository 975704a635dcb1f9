//! Chunks: how a package travels in pieces that a new version shares with the old.
//!
//! The canonical uncompressed tar is cut by its content (FastCDC: 4 KiB at least, about 16 KiB, 64 KiB at most), so that
//! a change moves the chunks around it and no others. Each chunk is compressed by itself with zstd and named by the
//! SHA-256 of what is stored. The compressed tar would not do: one changed byte changes all that follows.
//!
//! What is stored depends on the version of zstd, what was cut does not. So a chunk whose raw digest a publisher has
//! published before keeps its stored form, and a new zstd sends nothing again.

use std::collections::HashMap;

use fastcdc::v2020::FastCDC;
use limpet_wire::depot::{ChunkRef, Hex, Index, MESSAGE_MAX, Sha256};

use crate::package::{Digest, ZSTD_LEVEL};
use crate::{DepotError, Package};

/// Most bytes of a tar in one chunk. What does not compress grows by a frame around it, and still fits a message.
pub const RAW_MAX: usize = MESSAGE_MAX - 256;
/// Fewest bytes of a tar in one chunk; the last may have fewer.
pub const RAW_MIN: usize = 4 << 10;
/// What chunks have on average.
const RAW_AVERAGE: usize = 16 << 10;

/// One chunk of a package, and what to store of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Its digests and lengths.
    pub reference: ChunkRef,
    /// The bytes to store; empty if the chunk was published before.
    pub stored: Vec<u8>,
}

/// Cuts a package into an index and its chunks, each once, in the order of the tar.
///
/// `known` are the chunks that were published before, by raw digest: stored digest and stored length. They keep both and
/// come back with [`Cut::stored`] empty.
///
/// # Errors
/// [`DepotError::Io`] if zstd fails, which it does only for want of memory.
pub fn cut(package: &Package, known: &HashMap<Sha256, (Sha256, u32)>) -> Result<(Index, Vec<Cut>), DepotError> {
    let failed = || DepotError::io(package.path(), "compressed");
    let mut zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(failed())?;
    let tar = package.tar();
    let mut index = Index {
        model: package.manifest().name.clone(),
        version: package.manifest().version.to_string(),
        package: package.digest().0,
        chunks: Vec::new(),
    };
    let mut cuts = Vec::new();
    let mut seen: HashMap<Sha256, ChunkRef> = HashMap::new();
    for piece in FastCDC::new(&tar, RAW_MIN, RAW_AVERAGE, RAW_MAX) {
        let bytes = &tar[piece.offset..][..piece.length];
        let raw = Digest::of(bytes).0;
        if let Some(reference) = seen.get(&raw) {
            index.chunks.push(*reference);
            continue;
        }
        let raw_len = bytes.len() as u32;
        let cut = match known.get(&raw) {
            Some(&(stored, stored_len)) => {
                Cut { reference: ChunkRef { raw, raw_len, stored, stored_len }, stored: Vec::new() }
            }
            None => {
                let bytes = zstd.compress(bytes).map_err(failed())?;
                let (stored, stored_len) = (Digest::of(&bytes).0, bytes.len() as u32);
                Cut { reference: ChunkRef { raw, raw_len, stored, stored_len }, stored: bytes }
            }
        };
        seen.insert(raw, cut.reference);
        index.chunks.push(cut.reference);
        cuts.push(cut);
    }
    Ok((index, cuts))
}

/// What a chunk holds of the tar, verified on both sides of the decompressor.
///
/// Nothing is decompressed that is not what the index names, and never into more memory than `raw_len`, itself bounded
/// by [`RAW_MAX`]: neither a stranger nor a publisher who was deceived gets more of this device.
///
/// # Errors
/// What was found and what was expected.
pub fn expand(reference: &ChunkRef, stored: &[u8]) -> Result<Vec<u8>, String> {
    check_lengths(reference)?;
    let expected = reference.stored_len as usize;
    if stored.len() != expected {
        return Err(format!("has {} bytes; expected {expected}", stored.len()));
    }
    let found = Digest::of(stored);
    if found.0 != reference.stored {
        return Err(format!("is damaged: its SHA-256 is {found}; expected {}", Hex(&reference.stored)));
    }
    let raw_len = reference.raw_len as usize;
    // In one go into a buffer that does not grow, so a frame that claims or holds more is an error of the decompressor.
    let raw = zstd::bulk::decompress(stored, raw_len)
        .map_err(|error| format!("does not decompress to {raw_len} bytes: {error}"))?;
    if raw.len() != raw_len {
        return Err(format!("decompresses to {} bytes; expected {raw_len}", raw.len()));
    }
    let found = Digest::of(&raw);
    if found.0 != reference.raw {
        return Err(format!("decompresses to other bytes: their SHA-256 is {found}; expected {}", Hex(&reference.raw)));
    }
    Ok(raw)
}

/// Whether a chunk can be as long as an index says.
pub(crate) fn check_lengths(reference: &ChunkRef) -> Result<(), String> {
    let (raw, stored) = (reference.raw_len as usize, reference.stored_len as usize);
    if !(1..=RAW_MAX).contains(&raw) {
        return Err(format!("claims to hold {raw} bytes of a package; expected 1 to {RAW_MAX}"));
    }
    if !(1..=MESSAGE_MAX).contains(&stored) {
        return Err(format!("claims to have {stored} bytes; expected 1 to {MESSAGE_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
