//! Indexes, lists of parts and names of objects, as they arrive.
#![no_main]

use limpet_depot::store::check_index;
use limpet_wire::depot::{Index, Name, Parts};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = Index::from_bytes(bytes) {
        assert_eq!(Index::from_bytes(&index.to_bytes()), Ok(index.clone()), "what was read writes and reads back");
        assert!(index.chunks.len() <= bytes.len() / 66, "an index has no chunk that is not in its bytes");
        if check_index(&index).is_ok() {
            let leads_out = |text: &str| text.contains(['/', '\\', '\0']) || text.starts_with('.');
            assert!(!leads_out(&index.model) && !leads_out(&index.version));
            assert!(index.raw_bytes() <= 256 << 20);
        }
    }
    if let Ok(parts) = Parts::from_bytes(bytes) {
        assert_eq!(Parts::from_bytes(&parts.to_bytes()), Ok(parts), "what was read writes and reads back");
        assert!(Parts::is(bytes));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(name) = text.parse::<Name>()
    {
        assert_eq!(name.to_string(), text, "an object has one name");
        assert!(text.split('/').all(|part| part != ".."), "and it leads nowhere else");
    }
});
