//! The ring: what was stored since the last commit, on tmpfs, so that it outlives the process but not the power.
//!
//! A folder of segments, each an append-only file. A segment starts with [`HEAD`] and the kernel's boot id; after it come
//! frames:
//!
//! ```text
//! length u32le | CRC-32 of what follows u32le | kind u8 | number u64le | payload (length bytes)
//! ```
//!
//! - kind 1, *item*: something stored under this number; the payload is the item as [`super::item`] writes it, after the
//!   boot time at which it was stored (u64le, nanoseconds);
//! - kind 2, *settled*: the items of these numbers are done with: `number`, and after it the distances from one to the
//!   next, as LEB128.
//!
//! Numbers only grow, so each segment holds a range of them. A segment goes when no item in it is open (all are settled,
//! or in the database), none before it is there, and whatever it settles is gone from the database too: until then a
//! restart needs it, in order not to send again what was acknowledged.
//!
//! It is written with write(2), never mapped: a full tmpfs is an error for write and a SIGBUS for a mapping. Nothing is
//! synced, since nothing here is meant to survive more than the process. A process that is killed inside write(2) leaves
//! a frame that is cut; reading ends there.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::book::{Number, Payload};

/// First bytes of a segment.
const HEAD: &[u8; 8] = b"LIMPETR\x01";
/// Bytes of the kernel's boot id, as text.
const BOOT_ID: usize = 36;
/// Bytes of a frame beside its payload.
const FRAME: usize = 4 + 4 + 1 + 8;
const ITEM: u8 = 1;
const SETTLED: u8 = 2;
/// Segments that a ring is made of, where it is full.
const SEGMENTS: u64 = 8;
/// No frame is longer: a result has some hundred bytes.
const LONGEST: usize = 1 << 24;

/// The ring of this process.
#[derive(Debug)]
pub struct Ring {
    folder: PathBuf,
    /// Most bytes in all segments.
    capacity: u64,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    /// Name of the next segment.
    next: u64,
    bytes: u64,
    boot_id: String,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    /// Its place in the order of segments.
    index: u64,
    /// Where it is written to, if it is.
    file: Option<File>,
    bytes: u64,
    /// First and last number of an item in it.
    items: Option<(Number, Number)>,
    /// Items in it that are neither settled nor in the database.
    open: u64,
}

/// What the ring of the process before held.
#[derive(Debug, Default)]
pub struct Found {
    /// Items that were not settled, by number.
    pub items: Vec<FoundItem>,
    /// Items that were, as far as they are still there: they tell of their runs.
    pub done: Vec<FoundItem>,
    /// Numbers that were settled.
    pub settled: Vec<Number>,
    /// The highest number of all, 0 if there is none.
    pub last: Number,
    /// Segments that end before their end, or are none.
    pub damaged: Vec<String>,
}

/// An item in the ring of the process before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundItem {
    /// Its number.
    pub number: Number,
    /// The boot time at which it was stored, in nanoseconds.
    pub at: u64,
    /// The item.
    pub payload: Vec<u8>,
    /// The kernel's id of the boot, if it is not this one.
    pub boot: Option<Arc<str>>,
}

/// Why the ring did not take an item.
#[derive(Debug)]
pub enum NoRoom {
    /// It is full.
    Full,
    /// The system says no: tmpfs is full, mostly.
    System(io::Error),
}

impl Ring {
    /// Opens the ring in a folder, which is made if there is none, and reads what the last process left there. What was
    /// left of another boot belongs to that boot and is read all the same: the folder was not on tmpfs then.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(folder: &Path, capacity: u64) -> io::Result<(Self, Found)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut ring = Self {
            folder: folder.to_owned(),
            capacity,
            segments: VecDeque::new(),
            next: 0,
            bytes: 0,
            boot_id: super::boot_id(),
            frame: Vec::new(),
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let index = entry.file_name().to_str().and_then(|name| name.strip_suffix(".ring")?.parse::<u64>().ok());
            names.extend(index.map(|index| (index, entry.path())));
        }
        names.sort_unstable();
        let mut found = Found::default();
        // One that was being written once more when the process was killed stands in two segments; the last one counts.
        let (mut items, mut settled) = (BTreeMap::new(), HashSet::new());
        for (index, path) in names {
            let mut bytes = Vec::new();
            File::open(&path)?.read_to_end(&mut bytes)?;
            let mut range: Option<(Number, Number)> = None;
            let boot: Option<Arc<str>> = boot_of(&bytes).filter(|boot| *boot != ring.boot_id).map(Arc::from);
            let whole = read_segment(&bytes, |frame| match frame {
                Frame::Item(mut item) => {
                    item.boot.clone_from(&boot);
                    range = Some((range.map_or(item.number, |(first, _)| first.min(item.number)), item.number));
                    found.last = found.last.max(item.number);
                    items.insert(item.number, item);
                }
                Frame::Settled(number) => {
                    found.last = found.last.max(number);
                    settled.insert(number);
                }
            });
            if let Err(why) = whole {
                found.damaged.push(format!("{}: {why}", path.display()));
            }
            ring.next = index + 1;
            ring.bytes += bytes.len() as u64;
            ring.segments.push_back(Segment {
                path,
                index,
                file: None,
                bytes: bytes.len() as u64,
                items: range,
                open: 0,
            });
        }
        let (done, items): (Vec<FoundItem>, Vec<FoundItem>) =
            items.into_values().partition(|item: &FoundItem| settled.contains(&item.number));
        found.done = done;
        for item in &items {
            ring.segment_of(item.number).expect("it was read from one").open += 1;
        }
        found.items = items;
        found.settled = settled.into_iter().collect();
        found.settled.sort_unstable();
        Ok((ring, found))
    }

    /// Writes an item.
    ///
    /// # Errors
    /// If it is full, or the system says no; then nothing of the item is in the ring.
    pub fn append(&mut self, number: Number, at: u64, payload: &[u8]) -> Result<(), NoRoom> {
        self.append_within(self.capacity, number, at, payload)
    }

    /// The same for what makes room by taking the place of others, such as a range record: a little is kept for it.
    ///
    /// # Errors
    /// As [`Ring::append`].
    pub fn append_urgent(&mut self, number: Number, at: u64, payload: &[u8]) -> Result<(), NoRoom> {
        self.append_within(self.capacity + self.capacity / SEGMENTS, number, at, payload)
    }

    fn append_within(&mut self, most: u64, number: Number, at: u64, payload: &[u8]) -> Result<(), NoRoom> {
        let length = FRAME + 8 + payload.len();
        if self.bytes + length as u64 > most {
            return Err(NoRoom::Full);
        }
        self.write_item(number, at, payload).map_err(NoRoom::System)
    }

    fn write_item(&mut self, number: Number, at: u64, payload: &[u8]) -> io::Result<()> {
        self.frame(ITEM, number, |frame| {
            frame.extend_from_slice(&at.to_le_bytes());
            frame.extend_from_slice(payload);
        });
        self.write()?;
        let segment = self.segments.back_mut().expect("there is one, or the frame was not written");
        segment.items = Some((segment.items.map_or(number, |(first, _)| first), number));
        segment.open += 1;
        Ok(())
    }

    /// Writes that these items are done with. That may go beyond the capacity by a little.
    ///
    /// # Errors
    /// What the system says; a process that is killed then sends these items once more.
    pub fn settle(&mut self, numbers: &[Number]) -> io::Result<()> {
        let Some((first, rest)) = numbers.split_first() else { return Ok(()) };
        self.frame(SETTLED, *first, |frame| {
            let mut before = *first;
            for number in rest {
                leb128(number.wrapping_sub(before), frame);
                before = *number;
            }
        });
        self.write()
    }

    /// Whether there is more in it than it may hold, by what was settled.
    pub fn is_overfull(&self) -> bool {
        self.bytes > self.capacity + self.capacity / SEGMENTS
    }

    /// Writes to a new segment all items that are open, in the order of their numbers, each with its boot time, and the
    /// numbers of settled ones that are needed still; and removes all segments before it. Gives its index.
    ///
    /// # Errors
    /// What the system says; then all that was there is there.
    pub fn rewrite(&mut self, open: &[(Number, u64, Payload)], settled: &[Number]) -> io::Result<u64> {
        self.begin_segment()?;
        let begun = self.current();
        let mut write = || {
            open.iter().try_for_each(|(number, at, payload)| self.write_item(*number, *at, payload))?;
            self.settle(settled)
        };
        if let Err(error) = write() {
            while let Some(segment) = self.segments.pop_back_if(|segment| segment.index >= begun) {
                _ = fs::remove_file(&segment.path);
                self.bytes -= segment.bytes;
            }
            return Err(error);
        }
        // From now on they are open there.
        self.segments.iter_mut().filter(|segment| segment.index < begun).for_each(|segment| segment.open = 0);
        self.trim(begun);
        Ok(begun)
    }

    /// Most bytes in all segments.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// An item is settled, or in the database.
    pub fn close(&mut self, number: Number) {
        if let Some(segment) = self.segment_of(number) {
            segment.open = segment.open.saturating_sub(1);
        }
    }

    /// Removes the segments that nothing needs any more. What was settled in segments before `absorbed` has left the
    /// database.
    pub fn trim(&mut self, absorbed: u64) {
        while let Some(oldest) = self.segments.front() {
            let written_to = self.segments.len() == 1;
            if oldest.open > 0 || oldest.index >= absorbed || written_to {
                return;
            }
            // One that stays is read again at the next start, and settled items with it.
            if let Err(error) = fs::remove_file(&oldest.path) {
                tracing::warn!(path = %oldest.path.display(), %error, "a segment of the ring cannot be removed");
            }
            self.bytes -= oldest.bytes;
            self.segments.pop_front();
        }
    }

    /// The index of the segment that is written to.
    pub fn current(&self) -> u64 {
        self.segments.back().map_or(self.next, |segment| segment.index)
    }

    /// Bytes in all segments.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn segment_of(&mut self, number: Number) -> Option<&mut Segment> {
        // Segments of which no item was written, or of settled ones alone, lie between others.
        let holds = |segment: &Segment| segment.items.is_some_and(|(first, last)| (first..=last).contains(&number));
        self.segments.iter_mut().rev().find(|segment| holds(segment))
    }

    /// Makes a frame in the buffer.
    fn frame(&mut self, kind: u8, number: Number, payload: impl FnOnce(&mut Vec<u8>)) {
        self.frame.clear();
        self.frame.extend_from_slice(&[0; 8]);
        self.frame.push(kind);
        self.frame.extend_from_slice(&number.to_le_bytes());
        payload(&mut self.frame);
        let length = u32::try_from(self.frame.len() - FRAME).expect("no item is near 4 GiB");
        self.frame[..4].copy_from_slice(&length.to_le_bytes());
        let sum = crc32fast::hash(&self.frame[8..]);
        self.frame[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Writes the frame in the buffer to the segment that is written to, or a new one if that is full.
    fn write(&mut self) -> io::Result<()> {
        let length = self.frame.len() as u64;
        let full = |segment: &Segment| segment.file.is_none() || segment.bytes + length > self.capacity / SEGMENTS;
        if self.segments.back().is_none_or(full) {
            self.begin_segment()?;
        }
        let segment = self.segments.back_mut().expect("one was begun");
        let file = segment.file.as_mut().expect("it is written to");
        if let Err(error) = file.write_all(&self.frame) {
            // Whatever was written of it would end the reading: what comes next goes to another segment.
            let _ = file.set_len(segment.bytes);
            segment.file = None;
            return Err(error);
        }
        segment.bytes += length;
        self.bytes += length;
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        if let Some(last) = self.segments.back_mut() {
            last.file = None;
        }
        let path = self.folder.join(format!("{:016}.ring", self.next));
        let mut file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
        let mut head = HEAD.to_vec();
        head.extend_from_slice(self.boot_id.as_bytes());
        head.resize(HEAD.len() + BOOT_ID, b' ');
        if let Err(error) = file.write_all(&head) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let bytes = head.len() as u64;
        self.segments.push_back(Segment { path, index: self.next, file: Some(file), bytes, items: None, open: 0 });
        self.bytes += bytes;
        self.next += 1;
        Ok(())
    }
}

enum Frame {
    Item(FoundItem),
    Settled(Number),
}

/// Reads what somebody else may have written in the place of a segment, and gives how many frames it has.
pub fn read_any(bytes: &[u8]) -> usize {
    let mut frames = 0;
    // What is wrong with the rest does not matter here.
    _ = read_segment(bytes, |_| frames += 1);
    frames
}

/// The boot under which a segment was written.
fn boot_of(bytes: &[u8]) -> Option<&str> {
    let boot = bytes.strip_prefix(HEAD)?.get(..BOOT_ID)?;
    Some(std::str::from_utf8(boot).ok()?.trim_end())
}

/// Reads frames until the end, or until one is cut or damaged.
fn read_segment(bytes: &[u8], mut each: impl FnMut(Frame)) -> Result<(), String> {
    let Some(mut rest) = bytes.strip_prefix(HEAD).and_then(|rest| rest.get(BOOT_ID..)) else {
        return Err("it is no segment of this version".into());
    };
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let cut = || format!("the frame at byte {at} is cut, {} bytes are left", rest.len());
        let (head, tail) = rest.split_at_checked(FRAME).ok_or_else(cut)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let length = word(0) as usize;
        if length > LONGEST {
            return Err(format!("the frame at byte {at} has an impossible length of {length}"));
        }
        let (payload, next) = tail.split_at_checked(length).ok_or_else(cut)?;
        if crc32fast::hash(&rest[8..FRAME + length]) != word(4) {
            return Err(format!("the frame at byte {at} is damaged"));
        }
        let number = Number::from_le_bytes(head[9..17].try_into().expect("eight bytes"));
        match (head[8], payload.split_first_chunk::<8>()) {
            (ITEM, Some((at, payload))) => {
                let at = u64::from_le_bytes(*at);
                each(Frame::Item(FoundItem { number, at, payload: payload.to_vec(), boot: None }));
            }
            (SETTLED, _) => {
                let (mut number, mut distances) = (number, payload);
                each(Frame::Settled(number));
                while let Some(distance) = take_leb128(&mut distances) {
                    number = number.wrapping_add(distance);
                    each(Frame::Settled(number));
                }
            }
            (kind, _) => return Err(format!("the frame at byte {at} is of the unknown kind {kind}")),
        }
        rest = next;
    }
    Ok(())
}

fn leb128(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_leb128(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(folder: &Path) -> (Ring, Found) {
        Ring::open(folder, 64 * 1024).unwrap()
    }

    fn item(number: Number) -> FoundItem {
        FoundItem { number, at: 7, payload: vec![number as u8; 100], boot: None }
    }

    fn put(ring: &mut Ring, number: Number) {
        let FoundItem { number, at, payload, .. } = item(number);
        ring.append(number, at, &payload).unwrap();
    }

    fn segments(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_was_not_settled_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ring, found) = open(folder.path());
        assert_eq!((found.items.len(), found.last), (0, 0));
        (1..=5).for_each(|number| put(&mut ring, number));
        ring.settle(&[2, 4, 3]).unwrap();
        drop(ring);
        let (mut ring, found) = open(folder.path());
        assert_eq!(found.items, [item(1), item(5)]);
        assert_eq!((found.settled, found.last, found.damaged), (vec![2, 3, 4], 5, vec![]));
        // And what is written now stands behind it.
        put(&mut ring, 6);
        drop(ring);
        assert_eq!(open(folder.path()).1.items, [item(1), item(5), item(6)]);
    }

    #[test]
    fn a_full_ring_says_so_and_takes_more_once_the_oldest_is_done_with() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ring, _) = open(folder.path());
        let mut last = 0;
        while ring.bytes() + 200 < 64 * 1024 {
            last += 1;
            put(&mut ring, last);
        }
        let full = segments(folder.path());
        assert!((8..=9).contains(&full), "{full} segments");
        assert!(matches!(ring.append(last + 1, 7, &[0; 200]), Err(NoRoom::Full)));
        ring.settle(&(1..=last).collect::<Vec<_>>()).unwrap();
        (1..last).for_each(|number| ring.close(number));
        ring.trim(u64::MAX);
        assert_eq!(segments(folder.path()), 2, "that of the last item, and that of what was settled");
        ring.close(last);
        ring.trim(0);
        assert_eq!(segments(folder.path()), 2, "the database still holds what it settles");
        ring.trim(u64::MAX);
        assert_eq!(segments(folder.path()), 1);
        put(&mut ring, last + 1);
        drop(ring);
        assert_eq!(open(folder.path()).1.items, [item(last + 1)]);
    }

    #[test]
    fn a_segment_of_the_process_before_goes_when_its_items_are_done_with() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ring, _) = open(folder.path());
        (1..=3).for_each(|number| put(&mut ring, number));
        ring.settle(&[1]).unwrap();
        drop(ring);
        let (mut ring, _) = open(folder.path());
        put(&mut ring, 4);
        assert_eq!(segments(folder.path()), 2);
        ring.close(2);
        ring.trim(u64::MAX);
        assert_eq!(segments(folder.path()), 2);
        ring.close(3);
        ring.trim(u64::MAX);
        assert_eq!(segments(folder.path()), 1);
    }

    #[test]
    fn what_is_settled_while_the_database_takes_no_deletion_does_not_fill_the_ring() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ring, _) = open(folder.path());
        // Rows of the database are delivered, one by one, and cannot be deleted from it.
        let gone: Vec<Number> = (1..=5000).collect();
        gone.iter().for_each(|number| ring.settle(&[*number]).unwrap());
        assert!(ring.is_overfull());
        ring.rewrite(&[], &gone).unwrap();
        assert!(ring.bytes() < 8 * 1024 && segments(folder.path()) == 1, "{} bytes", ring.bytes());
        drop(ring);
        assert_eq!(open(folder.path()).1.settled, gone);
    }

    #[test]
    fn an_item_that_nobody_takes_does_not_hold_back_all_that_came_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ring, _) = open(folder.path());
        let mut number = 0;
        while ring.append(number + 1, 7, &[1; 100]).is_ok() {
            number += 1;
            if number != 3 {
                ring.settle(&[number]).unwrap();
                ring.close(number);
            }
            ring.trim(u64::MAX);
        }
        let before: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        assert!(before.len() > 1);
        ring.rewrite(&[(3, 7, Arc::from([1; 100]))], &[]).unwrap();
        assert_eq!(segments(folder.path()), 1);
        ring.append(number + 1, 7, &[1; 100]).unwrap();
        drop(ring);
        // As if it had been killed before the segments before it were removed.
        before.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        let (mut ring, found) = open(folder.path());
        assert_eq!(found.items.iter().map(|item| item.number).collect::<Vec<_>>(), [3, number + 1]);
        ring.trim(u64::MAX);
        assert_eq!(segments(folder.path()), 1, "what was written once more is open in one place");
        ring.append(number + 2, 7, &[1; 100]).unwrap();
    }

    proptest! {
        /// A process that is killed in the middle of a write leaves all that it had written before.
        #[test]
        fn a_cut_anywhere_costs_the_frame_that_was_cut(cut in 0usize..2000) {
            let folder = tempfile::tempdir().unwrap();
            let (mut ring, _) = open(folder.path());
            (1..=10).for_each(|number| put(&mut ring, number));
            drop(ring);
            let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let cut = cut.min(bytes.len());
            fs::write(&path, &bytes[..cut]).unwrap();
            let (_, found) = open(folder.path());
            let whole = cut.saturating_sub(HEAD.len() + BOOT_ID) / (FRAME + 8 + 100);
            prop_assert_eq!(found.items, (1..=whole as u64).map(item).collect::<Vec<_>>());
        }

        #[test]
        fn damage_is_found_and_never_panics(at in 0usize..1000, value: u8) {
            let folder = tempfile::tempdir().unwrap();
            let (mut ring, _) = open(folder.path());
            (1..=5).for_each(|number| put(&mut ring, number));
            ring.settle(&[1, 300]).unwrap();
            drop(ring);
            let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let at = at % bytes.len();
            let changed = bytes[at] != value;
            bytes[at] = value;
            fs::write(&path, &bytes).unwrap();
            let (_, found) = open(folder.path());
            let in_boot_id = (HEAD.len()..HEAD.len() + BOOT_ID).contains(&at);
            prop_assert_eq!(found.damaged.is_empty(), !changed || in_boot_id);
        }
    }
}
