//! Packages as canonical tar, and manifests, as they come out of chunks.
#![no_main]

use std::path::Path;

use limpet_depot::{Digest, Manifest, Package};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let origin = Path::new("fuzz");
    if let Ok(package) = Package::from_tar(origin, bytes) {
        assert_eq!(package.digest(), Digest::of(bytes), "the digest is that of what was read");
        assert_eq!(package.tar(), bytes, "and there is one tar of a package");
        let variants = &package.manifest().variants;
        assert!(variants.iter().all(|variant| !variant.file.contains('/') && !variant.file.starts_with('.')));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(error) = Manifest::parse(origin, text)
    {
        assert!(!error.to_string().is_empty());
    }
});
