//! `limpet-lab decode`: postcard results on standard input, JSON lines on standard output.
//!
//! Standard input is the payloads of any number of messages one behind the other, as a subscriber prints them: a
//! payload is one item, or several, each after its length. Lines come out as soon as their item is complete, so that a
//! live subscription can be watched.

use std::io::{self, BufWriter, Read, Write};

use anyhow::{Context, bail};
use limpet_wire::binary::{self, Item};
use limpet_wire::message::Message as _;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// Runs `limpet-lab decode`.
pub fn run() -> anyhow::Result<()> {
    decode(io::stdin().lock(), BufWriter::new(io::stdout().lock()))
}

fn decode(mut input: impl Read, mut output: impl Write) -> anyhow::Result<()> {
    let (mut bytes, mut offset, mut number) = (Vec::new(), 0, 1);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match input.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.context("reading standard input")?,
        };
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..read]);
        let mut rest = &bytes[..];
        let taken = take_all(&mut rest, &mut output, &mut number, offset, bytes.len());
        // What was decoded before an error is worth having.
        output.flush().context("writing to standard output")?;
        taken?;
        let consumed = bytes.len() - rest.len();
        offset += consumed;
        bytes.drain(..consumed);
        if bytes.len() > 2 * binary::ITEM_MAX {
            bail!(
                "item {number} at byte {offset} does not end; is this the output of a subscription to postcard results?"
            );
        }
    }
    if !bytes.is_empty() {
        bail!(
            "standard input ends at byte {}, inside item {number}, which starts at byte {offset}",
            offset + bytes.len()
        );
    }
    Ok(())
}

fn take_all(
    rest: &mut &[u8],
    output: &mut impl Write,
    number: &mut u64,
    offset: usize,
    length: usize,
) -> anyhow::Result<()> {
    let mut line = Vec::with_capacity(512);
    loop {
        let at = offset + length - rest.len();
        let item = binary::take(rest).with_context(|| format!("item {number} at byte {at}"))?;
        let Some(item) = item else { return Ok(()) };
        line.clear();
        match item {
            Item::Result(record) => record.to_json(&mut line),
            Item::Dropped(dropped) => line.extend_from_slice(&dropped.to_json()),
        }
        line.push(b'\n');
        output.write_all(&line).context("writing to standard output")?;
        *number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::tests::result;
    use limpet_wire::result::ResultRecord;

    fn stream(tags: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &tag in tags {
            let mut item = Vec::new();
            binary::write_result(&result(tag), &mut item);
            binary::push_framed(&item, &mut bytes);
        }
        bytes
    }

    fn tags(lines: &[u8]) -> Vec<u64> {
        let lines = std::str::from_utf8(lines).unwrap();
        lines.lines().map(|line| ResultRecord::from_json(line.as_bytes()).unwrap().tag.unwrap()).collect()
    }

    #[test]
    fn items_become_lines_in_order() {
        let mut lines = Vec::new();
        decode(&stream(&[3, 1, 2])[..], &mut lines).unwrap();
        assert_eq!(tags(&lines), [3, 1, 2]);
    }

    #[test]
    fn a_bare_item_becomes_one_line() {
        let mut lines = Vec::new();
        decode(&stream(&[9])[4..], &mut lines).unwrap();
        assert_eq!(tags(&lines), [9]);
    }

    #[test]
    fn damage_is_named_by_item_and_byte_and_what_came_before_is_kept() {
        let first = stream(&[1]).len();
        let mut bytes = stream(&[1, 2]);
        bytes[first + 4] = 99;
        let mut lines = Vec::new();
        let error = decode(&bytes[..], &mut lines).unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("item 2 at byte {first}: ")), "{error:#}");
        assert_eq!(tags(&lines), [1]);
    }

    #[test]
    fn an_input_that_is_cut_anywhere_is_an_error_that_says_where() {
        let bytes = stream(&[1, 2]);
        let second = stream(&[1]).len();
        for end in (1..bytes.len()).filter(|&end| end != second) {
            let error = decode(&bytes[..end], &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(&format!("ends at byte {end}")), "{end}: {error}");
        }
    }
}
