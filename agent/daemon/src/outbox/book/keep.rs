//! What the keeper is to do, and what came of it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Back, Book, Boot, Held, LaneId, LaneRows, Live, Number, Payload, Placed, ROW, ReadRow, Row, Work};
use crate::config::DropPolicy;
use crate::outbox::item;

/// What is read ahead of the link, in stored bytes: some batches of [`crate::link::outgoing::BATCH_BYTES`].
const WINDOW: u64 = 256 << 10;
/// Rows that wait to be deleted before they are deleted without waiting for the interval to pass.
const GONE: usize = 4096;
/// Rows that wait to be deleted beyond which no more are read: the disk does not take the deletion.
pub(super) const GONE_MOST: usize = 8 * GONE;
/// How often rows are looked at that may have waited too long.
const LOOK_AT_AGE: Duration = Duration::from_secs(60);
/// How long writing to the database is left alone after it failed: twice as long each time, up to [`RETRY_MOST`].
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// See [`RETRY`].
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Stored bytes of one transaction, at least one row: a disk that is slow delays nothing else for long.
const TRANSACTION: u64 = 4 << 20;
/// The same, and how many rows are deleted, after a transaction failed: a disk that is full wears out by what is written to
/// it in vain.
pub(super) const PROBE: u64 = 16 << 10;
/// See [`PROBE`].
const PROBE_GONE: usize = 64;
/// How long dropping is left alone after it made no room.
const DROP_AGAIN: Duration = Duration::from_secs(10);
/// Dropping makes room for more than the one item that found none: this share of all.
const SLACK: u64 = 32;

impl Book {
    /// What the keeper is to do now. Between two commits there is time for something else, however much is stored.
    pub fn work(&mut self, now: Instant) -> Work {
        let mut wake: Option<Instant> = None;
        let mut earlier = |at: Instant| wake = Some(wake.map_or(at, |w| w.min(at)));
        let mut work = None;
        if std::mem::take(&mut self.wrote_last) {
            work = self.dropping(now, &mut earlier).or_else(|| self.reading(now, &mut earlier));
        }
        work = work
            .or_else(|| self.writing(now, &mut earlier))
            .or_else(|| self.dropping(now, &mut earlier))
            .or_else(|| self.reading(now, &mut earlier));
        self.wrote_last = matches!(work, Some(Work::Write { .. }));
        work.unwrap_or(Work::Rest(wake))
    }

    /// Rows that are due to be committed or deleted.
    fn writing(&mut self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<Work> {
        if let Some(retry) = self.retry.filter(|retry| *retry > now) {
            earlier(retry);
            return None;
        }
        let patience = self.rules.commit_interval;
        let all = self.flush || self.rules.each || self.is_pressed();
        let oldest = self.oldest_live();
        let due = oldest.is_some_and(|since| all || since + patience <= now);
        let until = if all { None } else { now.checked_sub(patience) };
        let rows = if due { self.rows_to_commit(until) } else { Vec::new() };
        let gone_due = self.gone_since.map(|since| since + patience);
        let delete = self.gone.len() >= GONE || self.flush || gone_due.is_some_and(|due| due <= now);
        if !rows.is_empty() || delete && !self.gone.is_empty() {
            let most = if self.failures > 0 { PROBE_GONE } else { usize::MAX };
            let numbers: Vec<Number> = self.gone.keys().take(most).copied().collect();
            let gone: Vec<Placed> = numbers.iter().filter_map(|number| self.gone.remove(number)).collect();
            self.gone_since = self.gone_since.filter(|_| !self.gone.is_empty());
            self.deleting = gone.iter().map(|row| row.number).collect();
            return Some(Work::Write { rows, gone });
        }
        self.flush = false;
        if let Some(since) = oldest {
            // Looked at four times in an interval, so that one commit takes what came within a quarter of it.
            earlier((since + patience).max(now + patience / 4));
        }
        gone_due.into_iter().for_each(earlier);
        None
    }

    /// Rows that are too many, or too old.
    fn dropping(&mut self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<Work> {
        if self.retry.is_some_and(|retry| retry > now) {
            return None;
        }
        if self.stored_bytes > self.rules.max_bytes
            && self.drop_from.is_none_or(|from| from <= now)
            && let Some((lanes, policy)) = self.greediest()
        {
            lanes.iter().for_each(|lane| self.unload(*lane));
            let over = self.stored_bytes - self.rules.max_bytes;
            return Some(Work::Drop { lanes, policy, bytes: over + self.rules.max_bytes / SLACK });
        }
        if self.stored > 0 {
            let due = *self.look_at_age.get_or_insert(now);
            if due <= now {
                self.look_at_age = Some(now + LOOK_AT_AGE);
                let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
                lanes.into_iter().for_each(|lane| self.unload(lane));
                return Some(Work::DropOld);
            }
            earlier(due);
        }
        None
    }

    /// Old rows were dropped, and there may be more.
    pub fn look_at_age_again(&mut self) {
        self.look_at_age = None;
    }

    /// Rows that are to be at hand.
    fn reading(&mut self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<Work> {
        // What is acknowledged and cannot be deleted is remembered, and there is a limit to that.
        if self.reading || self.back_bytes >= WINDOW / 2 || self.gone.len() >= GONE_MOST {
            return None;
        }
        if let Some(retry) = self.read_retry.filter(|retry| *retry > now) {
            earlier(retry);
            return None;
        }
        let lanes: BTreeSet<LaneId> = self.lanes_with_unread(now).map(|(id, _)| id).collect();
        if let Some(from) = lanes.iter().map(|id| self.lanes[id].unread_from).min() {
            self.reading = true;
            return Some(Work::Read { from, lanes, bytes: WINDOW - self.back_bytes });
        }
        // A lane that is left alone is read when its time has come.
        let unread = |id: &LaneId| self.lanes.get(id).is_some_and(|lane| lane.unread > 0);
        let parked = self.parked.iter().filter(|(id, until)| **until > now && unread(id));
        parked.for_each(|(_, until)| earlier(*until));
        None
    }

    /// Since when the oldest live item waits that is not about to be committed.
    fn oldest_live(&self) -> Option<Instant> {
        let waiting = self
            .live_heads
            .iter()
            .filter_map(|(_, id)| self.lanes[id].live.iter().find(|live| !live.committing).map(|live| live.since));
        let held = self.hand.values().filter_map(|(_, held)| match held {
            Held::Live(live) if !live.committing => Some(live.since),
            _ => None,
        });
        waiting.chain(held).min()
    }

    /// Every live item, waiting or in hand, with its lane.
    fn every_live(&mut self) -> impl Iterator<Item = (LaneId, &mut Live)> {
        let waiting = self.lanes.iter_mut().flat_map(|(id, lane)| lane.live.iter_mut().map(|live| (*id, live)));
        let held = self.hand.values_mut().filter_map(|(id, held)| match held {
            Held::Live(live) => Some((*id, live)),
            Held::Back(_) => None,
        });
        waiting.chain(held)
    }

    /// Live items that wait since before `until`, or all, as rows: the first of them, as many as one transaction holds. They
    /// are being committed from now on.
    fn rows_to_commit(&mut self, until: Option<Instant>) -> Vec<Row> {
        let most = if self.failures > 0 { PROBE } else { TRANSACTION };
        let mut due: Vec<(LaneId, &mut Live)> = self
            .every_live()
            .filter(|(_, live)| !live.committing && until.is_none_or(|until| live.since <= until))
            .collect();
        due.sort_unstable_by_key(|(_, live)| live.number);
        let mut bytes = 0;
        let fits = |(_, live): &(LaneId, &mut Live)| {
            let first = bytes == 0;
            bytes += live.payload.len() as u64;
            first || bytes <= most
        };
        let row = |(lane, live): (LaneId, &mut Live)| {
            live.committing = true;
            Row { number: live.number, lane, at: live.at, payload: Arc::clone(&live.payload) }
        };
        due.into_iter().take_while(fits).map(row).collect()
    }

    /// The rows are in the database, and those that were gone are not. Gives those that the ring need not hold any more.
    pub fn written(&mut self, rows: &[Row], gone: &[Placed], now: Instant) -> Vec<Number> {
        (self.retry, self.failures) = (None, 0);
        for row in gone {
            self.deleting.remove(&row.number);
            self.forget_row(*row);
        }
        let mut closed = Vec::with_capacity(rows.len());
        let mut waited = BTreeSet::new();
        for row in rows {
            let placed = self.count_row(row);
            if self.orphans.remove(&row.number).is_some() {
                self.gone.insert(row.number, placed);
                self.gone_since.get_or_insert(now);
                continue;
            }
            closed.push(row.number);
            self.forget_live(&row.payload);
            match self.hand.get_mut(&row.number) {
                Some((_, held)) => {
                    *held = Held::Back(placed.bytes);
                    self.lanes.get_mut(&row.lane).expect("it has the row").back_in_hand += 1;
                }
                None => {
                    waited.insert(row.lane);
                    let lane = &self.lanes[&row.lane];
                    let last = lane.back.back().map(|back| back.number);
                    if lane.unread == 0 && self.back_bytes < WINDOW && last.is_none_or(|last| last < row.number) {
                        // It need not be read to be at hand.
                        self.back_bytes += row.payload.len() as u64;
                        let (number, payload) = (row.number, Arc::clone(&row.payload));
                        self.edit_back(row.lane, |back| back.push_back(Back { number, payload, boot: Boot::This }));
                    } else {
                        self.add_unread(row.lane, row.number);
                    }
                }
            }
        }
        for id in waited {
            self.edit_live(id, |live| live.retain(|live| !live.committing));
        }
        closed
    }

    /// A row is in the database.
    fn count_row(&mut self, row: &Row) -> Placed {
        let bytes = row.payload.len() as u64 + ROW;
        let lane = self.lanes.get_mut(&row.lane).expect("lanes of rows that are written stay");
        lane.rows += 1;
        lane.row_bytes += bytes;
        self.stored += 1;
        self.stored_bytes += bytes;
        Placed { number: row.number, lane: row.lane, bytes }
    }

    /// A row that was not in memory is not in the database any more.
    fn forget_unread(&mut self, row: Placed) {
        self.forget_row(row);
        if let Some(lane) = self.lanes.get_mut(&row.lane) {
            lane.unread = lane.unread.saturating_sub(1);
        }
    }

    fn forget_row(&mut self, row: Placed) {
        // What the database says of its lanes may be damaged, so nothing here is trusted to be exact.
        if let Some(lane) = self.lanes.get_mut(&row.lane) {
            lane.rows = lane.rows.saturating_sub(1);
            lane.row_bytes = lane.row_bytes.saturating_sub(row.bytes);
        }
        self.stored = self.stored.saturating_sub(1);
        self.stored_bytes = self.stored_bytes.saturating_sub(row.bytes);
    }

    /// The write failed: what was to be committed is live as before, and what was to be deleted still is to be.
    pub fn not_written(&mut self, gone: Vec<Placed>, now: Instant) {
        self.retry = Some(now + (RETRY * (1 << self.failures.min(5))).min(RETRY_MOST));
        self.failures += 1;
        self.flush = false;
        self.deleting.clear();
        self.gone.extend(gone.into_iter().map(|row| (row.number, row)));
        self.gone_since = self.gone_since.or(Some(now)).filter(|_| !self.gone.is_empty());
        // They were settled, and never came into the database.
        self.orphans.clear();
        self.every_live().for_each(|(_, live)| live.committing = false);
    }

    /// Rows were read: all of `lanes` from where it was asked up to `upto`, or to the end. Gives how many rows should be
    /// there and are not.
    pub fn read(&mut self, lanes: &BTreeSet<LaneId>, rows: Vec<ReadRow>, from: Number, upto: Option<Number>) -> u64 {
        (self.reading, self.read_retry) = (false, None);
        let mut missing = 0;
        for row in rows {
            let free = self.is_free(row.number);
            let Some(lane) = self.lanes.get_mut(&row.lane).filter(|lane| free && lane.unread > 0) else { continue };
            // Something came back to before where this read began: that is read first.
            if lane.unread_from < from || row.number < lane.unread_from {
                continue;
            }
            lane.unread -= 1;
            lane.unread_from = row.number + 1;
            self.back_bytes += row.payload.len() as u64;
            let ReadRow { number, lane, payload, boot } = row;
            self.edit_back(lane, |back| back.push_back(Back { number, payload, boot }));
        }
        for id in lanes {
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            if lane.unread_from < from {
                continue;
            }
            match upto {
                Some(upto) => lane.unread_from = lane.unread_from.max(upto + 1),
                // Or it would be asked for again and again.
                None => missing += std::mem::take(&mut lane.unread),
            }
        }
        missing
    }

    /// Making room failed.
    pub fn not_dropped(&mut self, now: Instant) {
        self.drop_from = Some(now + DROP_AGAIN);
    }

    /// Reading failed.
    pub fn not_read(&mut self, now: Instant) {
        self.reading = false;
        self.read_retry = Some(now + RETRY);
    }

    /// The lanes of the pipeline that holds the most, and its policy: of it is dropped when the database holds too much, so
    /// that one that floods does not push out what others have to say.
    fn greediest(&self) -> Option<(BTreeSet<LaneId>, DropPolicy)> {
        let mut held: HashMap<Option<&str>, (u64, DropPolicy, BTreeSet<LaneId>)> = HashMap::new();
        for (id, lane) in &self.lanes {
            let entry = held.entry(lane.key.pipeline()).or_insert((0, lane.policy, BTreeSet::new()));
            entry.0 += lane.row_bytes;
            entry.2.insert(*id);
        }
        let (_, policy, lanes) = held.into_values().max_by_key(|(bytes, ..)| *bytes)?;
        Some((lanes, policy))
    }

    /// Whether a row is nobody's yet: not in hand, and not gone anyway.
    pub fn is_free(&self, number: Number) -> bool {
        !(self.hand.contains_key(&number) || self.gone.contains_key(&number) || self.deleting.contains(&number))
    }

    /// Rows were dropped from the database. Range records of them were committed in the same transaction.
    pub fn dropped(&mut self, rows: &[Placed], records: &[Row], now: Instant) {
        let before = self.stored_bytes;
        rows.iter().for_each(|row| self.forget_unread(*row));
        for record in records {
            if !self.lanes.contains_key(&record.lane) {
                // It was empty, and forgotten meanwhile.
                let Ok(label) = item::label(&record.payload) else { continue };
                self.open_lane(record.lane, &label.lane);
            }
            self.count_row(record);
            self.add_unread(record.lane, record.number);
        }
        if self.stored_bytes >= before {
            // What is left is in hand, or says what was dropped.
            self.drop_from = Some(now + DROP_AGAIN);
        }
    }

    /// Drops live items that wait, so that there is room where neither ring nor database take more: of the pipeline that
    /// holds the most, by its policy. Gives what was dropped.
    pub fn drop_live(&mut self) -> Vec<(Number, Payload)> {
        let mut held: HashMap<Option<Arc<str>>, (u64, DropPolicy, Vec<LaneId>)> = HashMap::new();
        for (_, id) in &self.live_heads {
            let lane = &self.lanes[id];
            let bytes: u64 =
                lane.live.iter().filter(|live| !live.committing).map(|live| live.payload.len() as u64).sum();
            let entry = held.entry(lane.key.pipeline().map(Into::into)).or_insert((0, lane.policy, Vec::new()));
            entry.0 += bytes;
            entry.2.push(*id);
        }
        let Some((bytes, policy, lanes)) = held.into_values().max_by_key(|(bytes, ..)| *bytes) else {
            return Vec::new();
        };
        let enough = (self.rules.ring / SLACK).min(bytes);
        let mut candidates: Vec<(Number, LaneId, u64)> = Vec::new();
        for id in &lanes {
            let live = self.lanes[id].live.iter().filter(|live| !live.committing);
            candidates.extend(live.map(|live| (live.number, *id, live.payload.len() as u64)));
        }
        candidates.sort_unstable();
        if policy == DropPolicy::DropNewest {
            candidates.reverse();
        }
        let (mut freed, mut chosen) = (0, HashSet::new());
        for (number, _, bytes) in &candidates {
            if freed >= enough {
                break;
            }
            freed += bytes;
            chosen.insert(*number);
        }
        lanes.into_iter().flat_map(|id| self.remove_live(id, &chosen)).map(|live| (live.number, live.payload)).collect()
    }

    /// Takes waiting items out of what is live in a lane.
    fn remove_live(&mut self, id: LaneId, numbers: &HashSet<Number>) -> Vec<Live> {
        let removed: Vec<Live> = self.edit_live(id, |live| {
            let (removed, kept) = std::mem::take(live).into_iter().partition(|live| numbers.contains(&live.number));
            *live = kept;
            Vec::from_iter::<VecDeque<Live>>(removed)
        });
        removed.iter().for_each(|live| self.forget_live(&live.payload));
        removed
    }

    /// Whether all that was acknowledged when the last write began has left the database with it.
    pub fn deletes_all(&self) -> bool {
        self.gone.is_empty()
    }

    /// Whether the database holds nothing that was acknowledged: what the ring says of that is needed no more.
    pub fn is_absorbed(&self) -> bool {
        self.gone.is_empty() && self.deleting.is_empty() && self.orphans.is_empty()
    }

    /// Live items, waiting or in hand, by their numbers: each with the boot time at which it was stored, and what it says.
    pub fn live_items(&self) -> Vec<(Number, u64, Payload)> {
        let waiting = self.lanes.values().flat_map(|lane| &lane.live);
        let held = self.hand.values().filter_map(|(_, held)| match held {
            Held::Live(live) => Some(live),
            Held::Back(_) => None,
        });
        let item = |live: &Live| (live.number, live.at, Arc::clone(&live.payload));
        let mut items: Vec<_> = waiting.chain(held).map(item).collect();
        items.sort_unstable_by_key(|(number, ..)| *number);
        items
    }

    /// These items, which were live a moment ago, turn out to be in the database that was adopted just now, as the last
    /// process had committed them: they are there, and not live. Gives those that the ring need not hold any more.
    pub fn already_stored(&mut self, rows: &[Placed], now: Instant) -> Vec<Number> {
        let numbers: HashSet<Number> = rows.iter().map(|row| row.number).collect();
        let lanes: Vec<LaneId> = self.live_heads.iter().map(|(_, id)| *id).collect();
        let waited = lanes.into_iter().flat_map(|id| self.remove_live(id, &numbers)).map(|live| live.number);
        let mut moved: HashSet<Number> = waited.collect();
        for row in rows.iter().filter(|row| !moved.contains(&row.number)).copied().collect::<Vec<_>>() {
            if let Some((id, held)) = self.hand.get_mut(&row.number) {
                let Held::Live(live) = held else { continue };
                let payload = Arc::clone(&live.payload);
                // From now on it is the row's lane that it belongs to, and it is not unread there.
                (*id, *held) = (row.lane, Held::Back(row.bytes));
                self.forget_live(&payload);
                if let Some(lane) = self.lanes.get_mut(&row.lane) {
                    lane.back_in_hand += 1;
                    lane.unread = lane.unread.saturating_sub(1);
                }
                moved.insert(row.number);
            } else {
                // It was settled meanwhile.
                self.settled_before(&[row], now);
            }
        }
        moved.into_iter().collect()
    }

    /// Whether there is a database now.
    pub fn has_disk(&mut self, has: bool) {
        self.has_disk = has;
    }

    /// How long an item may wait.
    pub fn max_age(&self) -> Duration {
        self.rules.max_age
    }

    /// What was acknowledged and is still to be deleted.
    pub fn gone(&self) -> HashSet<Number> {
        self.gone.keys().chain(&self.deleting).chain(self.orphans.keys()).copied().collect()
    }

    /// The last process had settled these rows, and could not delete them any more. Nothing was read of them yet.
    pub fn settled_before(&mut self, rows: &[Placed], now: Instant) {
        for row in rows {
            if let Some(lane) = self.lanes.get_mut(&row.lane) {
                lane.unread = lane.unread.saturating_sub(1);
            }
            self.gone.insert(row.number, *row);
            self.gone_since.get_or_insert(now);
        }
    }

    /// The database was damaged, and a new one holds these lanes, with numbers up to `last`. What was in the old one is
    /// gone from here too, in hand or not; what is in hand of it may be sent twice.
    pub fn restart_database(&mut self, stored: Vec<LaneRows>, last: Number) {
        self.gone.clear();
        self.gone_since = None;
        self.reading = false;
        (self.retry, self.failures) = (None, 0);
        self.back_heads.clear();
        self.back_bytes = 0;
        self.hand.retain(|_, (_, held)| matches!(held, Held::Live(_)));
        for lane in self.lanes.values_mut() {
            lane.back.clear();
            (lane.unread, lane.back_in_hand, lane.rows, lane.row_bytes) = (0, 0, 0, 0);
        }
        (self.stored, self.stored_bytes) = (0, 0);
        self.adopt(stored, last);
    }

    /// There is a database with these lanes, and numbers up to `last`.
    pub fn adopt(&mut self, stored: Vec<LaneRows>, last: Number) {
        self.next_number = self.next_number.max(last + 1);
        for LaneRows { id, key, rows, bytes } in stored {
            if let Some(other) =
                self.by_key.get(&key).copied().filter(|other| *other != id && self.lanes[other].rows == 0)
            {
                self.renumber_lane(other, id);
            }
            let lane = self.open_lane(id, &key);
            (lane.rows, lane.row_bytes) = (rows, bytes);
            (lane.unread, lane.unread_from) = (rows, 0);
            self.stored += rows;
            self.stored_bytes += bytes;
        }
    }
}
