//! What the link takes, settles and gives back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keep::GONE_MOST;
use super::{Back, Batch, Book, Boot, Custody, Held, Lane, LaneId, Live, Number, Placed, ROW, Take, Taken};
use crate::config::OutboxOrder;
use crate::link::outgoing::Room;

impl Book {
    /// The link is up.
    pub fn connected(&mut self) {
        self.parked.clear();
        self.congested |= !self.live_heads.is_empty();
    }

    /// A lane is left alone until then. What was read of it makes room for others.
    pub fn park(&mut self, lane: LaneId, until: Instant) {
        self.parked.insert(lane, until);
        self.unload(lane);
    }

    /// The broker takes what is in this lane. Says whether it had been left alone.
    pub fn unpark(&mut self, lane: LaneId) -> bool {
        self.parked.remove(&lane).is_some()
    }

    /// What to send next.
    pub fn take(&mut self, now: Instant, room: Room) -> Take {
        self.judge_congestion(room);
        if room.in_flight >= room.places {
            return Take::Wait(None);
        }
        let mut wake: Option<Instant> = None;
        let mut earlier = |at: Instant| wake = Some(wake.map_or(at, |w| w.min(at)));
        let back = self.next_back(now, &mut earlier);
        let backlog = self.lanes_with_unread(now).next().is_some() || !self.back_heads.is_empty();
        // A quarter of the places is for the backlog, or live results that come as fast as places get free would keep it
        // waiting for ever. Where there are too few for that, the two take turns.
        let kept_free = match self.rules.order {
            OutboxOrder::LiveFirst if !backlog => 0,
            OutboxOrder::LiveFirst if room.places >= 4 => (room.places / 4).saturating_sub(self.back_messages),
            OutboxOrder::LiveFirst => usize::from(!self.last_was_back && back.is_some()),
            OutboxOrder::BacklogFirst => 0,
        };
        let live = match (self.rules.order, back) {
            (OutboxOrder::BacklogFirst, Some(_)) => None,
            _ if room.in_flight + kept_free >= room.places => None,
            _ => self.next_live(now, room, &mut earlier),
        };
        self.last_was_back = live.is_none();
        match (live, back) {
            (Some(lane), _) => Take::Batch(self.take_live(lane, room)),
            (None, Some(lane)) => Take::Batch(self.take_back(lane, now, room)),
            (None, None) => Take::Wait(wake),
        }
    }

    /// Live results are congested while they wait and every place is taken. It is over when none waits and most places
    /// are free again; without that distance a busy link would go back and forth between single results, which fill the
    /// places, and batches.
    fn judge_congestion(&mut self, room: Room) {
        if self.live_heads.is_empty() {
            self.congested &= room.in_flight * 4 >= room.places;
        } else {
            self.congested |= room.in_flight >= room.places;
        }
    }

    /// The lane whose backlog goes next.
    fn next_back(&self, now: Instant, earlier: &mut impl FnMut(Instant)) -> Option<LaneId> {
        if self.back_heads.is_empty() {
            return None;
        }
        if let Some(from) = self.drain_from.filter(|from| *from > now) {
            earlier(from);
            return None;
        }
        self.back_heads.iter().map(|(_, lane)| *lane).find(|lane| match self.is_parked(*lane, now) {
            Some(until) => {
                earlier(until);
                false
            }
            None => true,
        })
    }

    /// The lane whose live items go next.
    fn next_live(&self, now: Instant, room: Room, earlier: &mut impl FnMut(Instant)) -> Option<LaneId> {
        let mut heads = self.live_heads.iter().map(|(_, lane)| *lane);
        heads.find(|id| {
            let lane = &self.lanes[id];
            if let Some(until) = self.is_parked(*id, now) {
                earlier(until);
                return false;
            }
            // Where the disk takes no deletion, nothing more is read, and what is new waits for nothing.
            let reads = self.gone.len() < GONE_MOST;
            if self.rules.order == OutboxOrder::BacklogFirst && lane.has_backlog() && reads {
                return false;
            }
            // Not before the disk has it; but a disk that says no stops no link that works.
            if self.rules.each && self.retry.is_none() && self.has_disk {
                return false;
            }
            let (max, delay) = self.company(lane, room);
            let due = lane.live.front().map_or(now, |front| front.since + delay);
            if lane.live.len() < max && due > now {
                earlier(due);
                return false;
            }
            true
        })
    }

    /// How many live items of a lane make a message, and how long the first waits for the others.
    fn company(&self, lane: &Lane, room: Room) -> (usize, Duration) {
        match lane.packing {
            None => (1, Duration::ZERO),
            Some(_) if self.congested || room.hurry => (usize::MAX, Duration::ZERO),
            Some(packing) => (packing.max.max(1), packing.delay),
        }
    }

    fn take_live(&mut self, id: LaneId, room: Room) -> Batch {
        let lane = &self.lanes[&id];
        let (max, ratio) = (self.company(lane, room).0, lane.ratio);
        let taken = self.edit_live(id, |live| {
            let sizes = live.iter().map(|live| live.payload.len());
            let (count, _) = fitting(sizes.take(max), ratio, room.bytes);
            live.drain(..count).collect::<Vec<_>>()
        });
        let item = |live: &Live| Taken { number: live.number, payload: Arc::clone(&live.payload), boot: Boot::This };
        let items: Vec<Taken> = taken.iter().map(item).collect();
        self.hand.extend(taken.into_iter().map(|live| (live.number, (id, Held::Live(live)))));
        self.batch(id, items, false)
    }

    fn take_back(&mut self, id: LaneId, now: Instant, room: Room) -> Batch {
        let lane = &self.lanes[&id];
        // Events go one by one: each has its id as a property, and a reader of events expects one in a message.
        let (max, ratio) = (if lane.packing.is_none() { 1 } else { usize::MAX }, lane.ratio);
        let (items, bytes) = self.edit_back(id, |back| {
            let sizes = back.iter().map(|back| back.payload.len());
            let (count, bytes) = fitting(sizes.take(max), ratio, room.bytes);
            let item = |Back { number, payload, boot }| Taken { number, payload, boot };
            (back.drain(..count).map(item).collect::<Vec<_>>(), bytes)
        });
        for item in &items {
            let stored = item.payload.len() as u64;
            self.back_bytes -= stored;
            self.hand.insert(item.number, (id, Held::Back(stored + ROW)));
        }
        self.lanes.get_mut(&id).expect("it had items").back_in_hand += items.len();
        self.back_messages += 1;
        // At most a second is saved up, so that a pause is not followed by a flood.
        let pause = Duration::from_secs_f32(bytes / self.rules.drain_rate.max(1) as f32);
        let earliest = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        let from = self.drain_from.unwrap_or(earliest).max(earliest);
        self.drain_from = Some(from + pause);
        self.batch(id, items, true)
    }

    fn batch(&self, id: LaneId, items: Vec<Taken>, backlog: bool) -> Batch {
        let lane = &self.lanes[&id];
        let numbers = items.iter().map(|item| item.number).collect();
        let custody = Custody { lane: id, backlog, numbers };
        Batch { custody, items, key: lane.key.clone(), packing: lane.packing }
    }

    /// A message of a lane had so many bytes for so many stored.
    pub fn learn_ratio(&mut self, lane: LaneId, sent: usize, stored: usize) {
        if let Some(lane) = self.lanes.get_mut(&lane)
            && stored > 0
        {
            // Rather above than below: what does not fit has to go back.
            lane.ratio = (sent as f32 / stored as f32 * 1.02).max(lane.ratio * 0.9);
        }
    }

    /// These items are done with: the broker has them, or they were given up. Gives those that were not in the database
    /// nor on their way there.
    pub fn settle(&mut self, custody: &Custody, now: Instant) -> Vec<Number> {
        self.back_messages -= usize::from(custody.backlog && !custody.numbers.is_empty());
        let mut closed = Vec::new();
        for number in &custody.numbers {
            let Some((id, held)) = self.hand.remove(number) else { continue };
            match held {
                Held::Live(live) => {
                    self.forget_live(&live.payload);
                    if live.committing {
                        self.orphans.insert(*number, id);
                    }
                    closed.push(*number);
                }
                Held::Back(bytes) => {
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.back_in_hand -= 1;
                    }
                    self.gone.insert(*number, Placed { number: *number, lane: id, bytes });
                    self.gone_since.get_or_insert(now);
                }
            }
        }
        closed
    }

    /// Items come back to where they stood: the link is gone, or the broker refused them.
    pub fn give_back(&mut self, custody: Custody) {
        self.back_messages -= usize::from(custody.backlog && !custody.numbers.is_empty());
        self.return_items(&custody.numbers);
    }

    /// The last items of a message did not fit into it.
    pub fn give_back_some(&mut self, custody: &mut Custody, keep: usize) {
        let back = custody.numbers.split_off(keep.min(custody.numbers.len()));
        if keep == 0 {
            self.back_messages -= usize::from(custody.backlog && !back.is_empty());
        }
        self.return_items(&back);
    }

    fn return_items(&mut self, numbers: &[Number]) {
        for number in numbers.iter().rev() {
            let Some((id, held)) = self.hand.remove(number) else { continue };
            match held {
                Held::Live(item) => {
                    self.edit_live(id, |live| {
                        let at = live.partition_point(|other| other.number < item.number);
                        live.insert(at, item);
                    });
                    self.congested = true;
                }
                Held::Back(_) => {
                    self.lanes.get_mut(&id).expect("lanes with items in hand stay").back_in_hand -= 1;
                    self.add_unread(id, *number);
                }
            }
        }
    }
}

/// How many of these stored items, of so many bytes each, fit into a message, at least one; and about how many bytes it
/// then has.
fn fitting(sizes: impl Iterator<Item = usize>, ratio: f32, most: usize) -> (usize, f32) {
    let (mut count, mut bytes) = (0, 0.0);
    for size in sizes {
        let more = size as f32 * ratio;
        if count > 0 && bytes + more > most as f32 {
            break;
        }
        bytes += more;
        count += 1;
    }
    (count, bytes)
}
