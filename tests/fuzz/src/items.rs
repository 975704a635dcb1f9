//! Results as postcard, one after the other, each by itself or after its length, as a subscription gives them.
#![no_main]

use limpet_wire::binary::{self, Item};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    loop {
        let before = rest;
        let item = match binary::take(&mut rest) {
            Ok(Some(item)) => item,
            Ok(None) => {
                assert_eq!(rest, before, "what may go on is not taken");
                break;
            }
            Err(_) => break,
        };
        let length = before.len() - rest.len();
        assert!(length > 0 && before.ends_with(rest), "what is taken is taken off the front");
        let mut cut = &before[..length - 1];
        assert!(matches!(binary::take(&mut cut), Ok(None)), "an item that is cut is no damage");
        // Compared as bytes, where a number that is none equals itself.
        let (written, mut again) = (bytes_of(&item), Vec::new());
        binary::push_framed(&written, &mut again);
        let mut framed = &again[..];
        let read = binary::take(&mut framed).expect("what was read writes and reads back").expect("it is whole");
        assert!(framed.is_empty() && bytes_of(&read) == written);
    }
});

fn bytes_of(item: &Item) -> Vec<u8> {
    let mut bytes = Vec::new();
    match item {
        Item::Result(record) => binary::write_result(record, &mut bytes),
        Item::Dropped(dropped) => binary::write_dropped(dropped, &mut bytes),
    }
    bytes
}
