//! A subscription: one cursor in each of its feeds, merged by sequence, each event once.
//!
//! # Ordering
//! Events come in the order of their sequences. So do gaps, among themselves and with events: a gap is
//! given exactly where its events are missing.
//!
//! # Lag
//! A subscription owns no queue; its backlog is what lies in the feeds behind its cursors. When it is
//! polled and more is behind than its limits admit, its cursors jump, oldest sequence first, until the
//! rest fits, and what they jumped over is a [`Gap`]. What it is handed then equals, for any pace of
//! polling, what a private queue that drops its oldest at each push would have handed it.
//!
//! # Index
//! Each matching event has an index in the subscription, dense and from 0: events take one each, a gap
//! takes as many as its count. At any moment `index of the next = delivered + sum of gap counts`.
//!
//! # Resuming
//! [`Subscription::position`] is always safe to resume after: all up to it was handed out or counted.
//!
//! # Closing
//! When the subscription was closed, the next poll says why, and so does every poll after. What it had
//! not handed out is lost to it, and for a new subscription to resume. Dropping it frees at once
//! everything that it held.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use crate::{
    counters::add,
    event::{Event, Payload, Position},
    feed::{Ahead, Backlog, Feed, FeedState, ParkKey},
    gap::{Gap, GapReason},
    groups::FilterGroup,
    hub::{CloseReason, Shared, Start, State},
    limits::{Limits, Overflow},
    replay::{Opening, Replay, Step},
    signal::{Ready, Signal},
    topic::ClientId,
};

/// How many strides of history one poll goes through before it lets other tasks run.
const STRIDES_PER_POLL: usize = 32;

/// How much one poll may take.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The most events; at least one is taken.
    pub events: usize,
    /// The most bytes; one event is taken whatever its size.
    pub bytes: u64,
    /// What an event costs besides its own size.
    pub overhead: u64,
}

/// What one poll handed out: the gaps, then the events, then whether the replay has ended.
#[derive(Debug)]
pub struct Batch<P> {
    /// What is missing before the events, each reason once.
    pub gaps: Vec<Gap>,
    /// The index of the first of the events; the others follow without holes.
    pub first_index: u64,
    /// In sequence order.
    pub events: Vec<Arc<Event<P>>>,
    /// Set once, when the replay that was asked for is done: what follows is live.
    pub caught_up: Option<Position>,
}

/// One subscriber's place in the hub. See [the module](self).
#[derive(Debug)]
pub struct Subscription<P: Payload> {
    shared: Arc<Shared<P>>,
    parts: Parts,
    cursors: Box<[Cursor<P>]>,
    /// The cursors that have something before them, by the sequence of the first of it. While a replay
    /// goes on no cursor is here.
    ready: BinaryHeap<Reverse<(u64, u32)>>,
    /// Room for taking the ready list of the signal; empty between polls.
    arrivals: Vec<Ready>,
    replay: Option<Box<Replay>>,
    /// Said with the first poll: a gap before the first event, and the end of a replay of nothing.
    opening: Option<(Option<Gap>, Option<Position>)>,
    next_index: u64,
    /// Everything up to this sequence was handed out or counted, or did not match.
    resume_after: u64,
    /// The head of the hub when the subscription began.
    began_at: u64,
    closed: Option<CloseReason>,
}

/// What a subscription is made of, besides its feeds.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: u64,
    pub(crate) client: ClientId,
    pub(crate) limits: Limits,
    pub(crate) signal: Arc<Signal>,
}

#[derive(Debug)]
struct Cursor<P> {
    feed: Arc<Feed<P>>,
    /// The number of the first event in the feed that was not handed out.
    next: u64,
    place: Place,
}

/// Where a cursor is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Nowhere: history is being replayed, `next` only counts.
    Detached,
    /// At the end, registered for the next event.
    Parked(ParkKey),
    /// Before an event.
    Ready,
}

/// What was skipped, summed over feeds.
#[derive(Debug, Default)]
struct Skipped {
    count: u64,
    first: Option<u64>,
    last: u64,
}

/// What lies before a subscription, summed over its ready feeds.
#[derive(Debug, Default)]
struct Survey {
    events: u64,
    bytes: u64,
    /// The highest sequence that any feed evicted before it was seen; 0 if none did.
    evicted_through: u64,
}

/// Why a run over the ready feeds ended.
enum RunEnd {
    /// The room is full, or nothing up to the watermark is left.
    Done,
    /// A feed evicted what the subscription had still to see, before anything was taken.
    Overtaken,
}

// ===== impl Room =====

impl Room {
    /// Room for so many events of any size.
    #[must_use]
    pub const fn events(events: usize) -> Self {
        Self {
            events,
            bytes: u64::MAX,
            overhead: 0,
        }
    }

    /// Whether an event of `size` may be added to `events` that hold `bytes` so far.
    const fn admits(&self, events: usize, bytes: u64, size: u64) -> bool {
        events == 0
            || (events < self.events && bytes.saturating_add(size + self.overhead) <= self.bytes)
    }
}

/// What is left of a room while a batch is filled.
struct Filling<'a, P> {
    room: Room,
    bytes: u64,
    events: &'a mut Vec<Arc<Event<P>>>,
}

impl<P: Payload> Filling<'_, P> {
    /// Takes `event` unless the room is full.
    fn take(&mut self, event: &Arc<Event<P>>) -> bool {
        let admitted = self
            .room
            .admits(self.events.len(), self.bytes, event.size());
        if admitted {
            self.bytes = self.bytes.saturating_add(event.size() + self.room.overhead);
            self.events.push(Arc::clone(event));
        }
        admitted
    }
}

// ===== impl Batch =====

impl<P> Default for Batch<P> {
    fn default() -> Self {
        Self {
            gaps: Vec::new(),
            first_index: 0,
            events: Vec::new(),
            caught_up: None,
        }
    }
}

impl<P> Batch<P> {
    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.events.is_empty() && self.caught_up.is_none()
    }

    /// Takes everything out; keeps the memory.
    pub fn clear(&mut self) {
        self.gaps.clear();
        self.events.clear();
        self.caught_up = None;
    }
}

// ===== impl Subscription: outside =====

impl<P: Payload> Subscription<P> {
    /// Takes what is ready into `batch`, which is cleared first, as far as there is `room`.
    ///
    /// Ready with a batch that is not empty, or with the reason why the subscription has ended; pending
    /// when nothing is there, and then `cx` is woken when something comes. Only the last waker counts.
    ///
    /// # Errors
    /// The reason why the subscription has ended.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
        batch: &mut Batch<P>,
    ) -> Poll<Result<(), CloseReason>> {
        batch.clear();
        if let Some(reason) = self.closed {
            return Poll::Ready(Err(reason));
        }
        let polled = match self.take(cx, room, batch) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(reason) => {
                batch.clear();
                self.closed = Some(reason);
                Poll::Ready(Err(reason))
            }
        };
        self.settle(batch);
        polled
    }

    /// Where a new subscription can go on after this one: everything up to here was handed out, counted
    /// by a gap, or did not match. Moves with each poll, also with one that is pending.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.position(self.resume_after)
    }

    /// The position of the hub when the subscription began: the live head.
    #[must_use]
    pub fn began_at(&self) -> Position {
        self.shared.position(self.began_at)
    }

    /// The index of the next event or gap slot.
    #[must_use]
    pub const fn next_index(&self) -> u64 {
        self.next_index
    }

    /// The identity of this subscription within its hub, never used twice.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.parts.id
    }

    /// Who holds it.
    #[must_use]
    pub const fn client_id(&self) -> &ClientId {
        &self.parts.client
    }

    /// The limits in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// How many matching events it has still to see, those included that its limits will skip. During a
    /// replay this counts what the current round still has, and what came since.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        let live: u64 = self
            .cursors
            .iter()
            .map(|cursor| cursor.feed.lock().end() - cursor.next)
            .sum();
        live + self.replay.as_ref().map_or(0, |replay| replay.remaining())
    }
}

// ===== impl Subscription: beginning and ending =====

impl<P: Payload> Subscription<P> {
    /// Begins a subscription to `feeds`, at `head`. The caller holds the publish lock.
    pub(crate) fn begin(
        shared: Arc<Shared<P>>,
        parts: Parts,
        feeds: Vec<Arc<Feed<P>>>,
        start: Start,
        head: u64,
    ) -> Self {
        let (opening, gap, caught_up) = open(&shared, start, head);
        let mut cursors: Box<[_]> = feeds.into_iter().map(Cursor::new).collect();
        for (i, cursor) in cursors.iter_mut().enumerate() {
            let mut feed = cursor.feed.lock();
            feed.join();
            cursor.next = feed.end();
            if opening.is_none() {
                let (_, key) = feed.attach(&parts.limits, &parts.signal, index(i));
                cursor.place = Place::Parked(key);
            }
        }
        let replay = opening.map(|opening| {
            let filters = cursors
                .iter()
                .flat_map(|cursor| FilterGroup::clone(cursor.feed.filters()).to_vec());
            Box::new(Replay::new(opening, head, filters))
        });
        let resume_after = match (start, opening) {
            (Start::After(position), Some(Opening::After(_))) => position.sequence,
            (_, Some(_)) => 0,
            (_, None) => head,
        };
        shared.counters.subscriptions.fetch_add(1, Relaxed);
        Self {
            opening: (gap.is_some() || caught_up)
                .then(|| (gap, caught_up.then(|| shared.position(head)))),
            shared,
            parts,
            cursors,
            ready: BinaryHeap::new(),
            arrivals: Vec::new(),
            replay,
            next_index: 0,
            resume_after,
            began_at: head,
            closed: None,
        }
    }
}

/// What has to be replayed for `start`, and, where that is nothing, a gap to report at once and whether
/// the end of the replay is to be said.
fn open<P: Payload>(
    shared: &Shared<P>,
    start: Start,
    head: u64,
) -> (Option<Opening>, Option<Gap>, bool) {
    let history = shared.history.lock();
    let nothing_after = |sequence| sequence >= history.newest().unwrap_or(0);
    let lost = |reason, first_sequence| {
        Some(Gap {
            first_sequence,
            last_sequence: head,
            count: 0,
            reason,
            first_index: 0,
        })
    };
    match start {
        Start::Live | Start::Last(0) => (None, None, false),
        Start::Last(_) if history.len() == 0 => (None, None, true),
        Start::Last(events) => (Some(Opening::Last(events.into())), None, false),
        Start::After(position) if position.epoch != shared.epoch => {
            if history.len() == 0 {
                (None, lost(GapReason::EpochChanged, 0), true)
            } else {
                (Some(Opening::OtherEpoch), None, false)
            }
        }
        Start::After(Position { sequence, .. }) if nothing_after(sequence) => {
            let expired = history.evicted_through() > sequence;
            let gap = if expired {
                lost(GapReason::Expired, sequence + 1)
            } else {
                None
            };
            (None, gap, true)
        }
        Start::After(position) => (Some(Opening::After(position.sequence)), None, false),
    }
}

impl<P: Payload> Drop for Subscription<P> {
    fn drop(&mut self) {
        let mut unused = Vec::new();
        let mut abandoned = self.replay.as_ref().map_or(0, |replay| replay.remaining());
        for cursor in &self.cursors {
            let mut feed = cursor.feed.lock();
            abandoned += feed.end() - cursor.next;
            match cursor.place {
                Place::Detached => {}
                Place::Parked(key) => feed.detach(&self.parts.limits, cursor.next, Some(key)),
                Place::Ready => feed.detach(&self.parts.limits, cursor.next, None),
            }
            if feed.leave() {
                unused.push(Arc::clone(&cursor.feed));
            }
        }
        let Shared {
            registry, counters, ..
        } = &*self.shared;
        registry.remove(&self.parts.client, self.parts.id);
        self.shared.forget_unused(&unused);
        add(&counters.abandoned, abandoned);
        counters.subscriptions.fetch_sub(1, Relaxed);
    }
}

// ===== impl Subscription: polling =====

impl<P: Payload> Subscription<P> {
    /// Fills `batch`. Returns whether there is anything in it.
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
        batch: &mut Batch<P>,
    ) -> Result<bool, CloseReason> {
        loop {
            let Shared { committed, .. } = &*self.shared;
            let (watermark, closed) =
                self.parts
                    .signal
                    .begin_poll(cx.waker(), committed, &mut self.arrivals);
            self.absorb_arrivals();
            let nothing_left = self.ready.is_empty() && self.replay.is_none();
            if let Some(reason) = closed {
                if nothing_left && self.opening.is_none() {
                    self.resume_after = watermark;
                }
                return Err(reason);
            }
            if let Some((gap, caught_up)) = self.opening.take() {
                batch.gaps.extend(gap);
                batch.caught_up = caught_up;
                return Ok(true);
            }
            if self.replay.is_some() {
                return Ok(self.replay(cx, room, batch));
            }
            if self.take_live(watermark, room, batch)? {
                return Ok(true);
            }
            if self.ready.is_empty() {
                self.resume_after = watermark;
                return Ok(false);
            }
            // A publisher has appended beyond the watermark and is about to commit.
            self.shared.pass_through_publish_lock();
        }
    }

    /// Gives indexes to what was taken, moves the position and counts.
    fn settle(&mut self, batch: &mut Batch<P>) {
        let counters = &self.shared.counters;
        for gap in &mut batch.gaps {
            gap.first_index = self.next_index;
            self.next_index += gap.count;
            self.resume_after = self.resume_after.max(gap.last_sequence);
            if gap.reason == GapReason::Overflow {
                add(&counters.overflowed, gap.count);
            }
        }
        batch.first_index = self.next_index;
        self.next_index += batch.events.len() as u64;
        if let Some(last) = batch.events.last() {
            self.resume_after = last.sequence();
        }
        if let Some(position) = batch.caught_up {
            self.resume_after = position.sequence;
        }
        add(&counters.handed_off, batch.events.len() as u64);
    }

    fn absorb_arrivals(&mut self) {
        for Ready { cursor, head } in self.arrivals.drain(..) {
            self.cursors[cursor as usize].place = Place::Ready;
            self.ready.push(Reverse((head, cursor)));
        }
        // An idle subscription keeps no memory for it.
        if self.arrivals.capacity() > 16 {
            self.arrivals = Vec::new();
        }
    }

    /// Takes what is ready up to `watermark`. Returns whether that is anything.
    fn take_live(
        &mut self,
        watermark: u64,
        room: Room,
        batch: &mut Batch<P>,
    ) -> Result<bool, CloseReason> {
        match self.ready.peek() {
            Some(Reverse((head, _))) if *head <= watermark => {}
            _ => return Ok(false),
        }
        let mut filling = Filling {
            room,
            bytes: 0,
            events: &mut batch.events,
        };
        let skipped = if self.ready.len() == 1 {
            self.take_from_one(watermark, &mut filling)
        } else {
            self.take_merged(watermark, &mut filling)
        };
        if skipped.count > 0 {
            if self.parts.limits.overflow == Overflow::Disconnect {
                // What was skipped and taken will not be seen: it stays in the count of the abandoned.
                add(
                    &self.shared.counters.abandoned,
                    skipped.count + batch.events.len() as u64,
                );
                return Err(CloseReason::TooSlow);
            }
            batch.gaps.push(skipped.into_gap(GapReason::Overflow));
        }
        Ok(true)
    }

    /// The common case: one feed has something. Everything happens under its lock.
    fn take_from_one(&mut self, watermark: u64, filling: &mut Filling<'_, P>) -> Skipped {
        let Reverse((head, i)) = self.ready.pop().expect("one feed is ready");
        let cursor = &mut self.cursors[i as usize];
        let mut feed = cursor.feed.lock();
        let end = feed.number_after(watermark);
        let start = feed.first_that_fits(cursor.next, end, &self.parts.limits);
        let mut skipped = Skipped::default();
        skipped.add(&feed, cursor.next, start, head);
        let taken = feed
            .events(start, end)
            .take_while(|event| filling.take(event))
            .count();
        let moved = feed.advance(cursor.next, start + taken as u64, &self.parts.signal, i);
        drop(feed);
        cursor.next = start + taken as u64;
        self.place(i, moved);
        skipped
    }

    /// Several feeds have something: they are merged by sequence.
    fn take_merged(&mut self, watermark: u64, filling: &mut Filling<'_, P>) -> Skipped {
        let floor = match self.overflow_floor(watermark) {
            None if matches!(self.run(watermark, filling), RunEnd::Done) => {
                return Skipped::default();
            }
            floor => floor.unwrap_or(0),
        };
        // The losses of all feeds must be settled against one another: no publisher may evict meanwhile.
        let shared = Arc::clone(&self.shared);
        let state = shared.publish.lock();
        self.parts
            .signal
            .take_ready_while_locked(&mut self.arrivals);
        self.absorb_arrivals();
        let evicted_through = self.survey(0, state.head).evicted_through;
        let skipped = self.skip_through(floor.max(evicted_through));
        self.run(state.head, filling);
        skipped
    }

    /// What has to go: everything up to the sequence returned, so that the rest, up to `watermark`, is
    /// within the limits and complete; nothing if all of it is.
    fn overflow_floor(&self, watermark: u64) -> Option<u64> {
        let limits = &self.parts.limits;
        let all = self.survey(0, watermark);
        if limits.fits(all.events, all.bytes) {
            return (all.evicted_through > 0).then_some(all.evicted_through);
        }
        // The newest event always fits, so a floor just below the watermark is high enough.
        let (mut too_low, mut high_enough) = (0, watermark - 1);
        while too_low + 1 < high_enough {
            let middle = too_low + (high_enough - too_low) / 2;
            let rest = self.survey(middle, watermark);
            if limits.fits(rest.events, rest.bytes) {
                high_enough = middle;
            } else {
                too_low = middle;
            }
        }
        Some(high_enough)
    }

    /// What the ready feeds keep for this subscription after `floor` and up to `watermark`, and what
    /// they evicted before it was seen.
    fn survey(&self, floor: u64, watermark: u64) -> Survey {
        let mut survey = Survey::default();
        for Reverse((_, i)) in &self.ready {
            let cursor = &self.cursors[*i as usize];
            let feed = cursor.feed.lock();
            let from = cursor.next.max(feed.number_after(floor));
            let Backlog { events, bytes } =
                feed.backlog(from, feed.number_after(watermark).max(from));
            survey.events += events;
            survey.bytes += bytes;
            if feed.has_overtaken(cursor.next) {
                survey.evicted_through = survey.evicted_through.max(feed.removed_sequence());
            }
        }
        survey
    }

    /// Moves all ready cursors behind `floor`. The caller holds the publish lock.
    fn skip_through(&mut self, floor: u64) -> Skipped {
        let mut skipped = Skipped::default();
        for Reverse((head, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let to = cursor.next.max(feed.number_after(floor));
            skipped.add(&feed, cursor.next, to, head);
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            cursor.next = to;
            self.place(i, moved);
        }
        skipped
    }

    /// Takes from the ready feeds, lowest sequence first, a run of one feed at a time.
    fn run(&mut self, watermark: u64, filling: &mut Filling<'_, P>) -> RunEnd {
        loop {
            let (head, i) = match self.ready.peek() {
                Some(Reverse((head, i))) if *head <= watermark => (*head, *i),
                _ => return RunEnd::Done,
            };
            self.ready.pop();
            let next_head = self
                .ready
                .peek()
                .map_or(u64::MAX, |Reverse((head, _))| *head);
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            if feed.has_overtaken(cursor.next) {
                drop(feed);
                self.ready.push(Reverse((head, i)));
                let untouched = filling.events.is_empty();
                return if untouched {
                    RunEnd::Overtaken
                } else {
                    RunEnd::Done
                };
            }
            let end = feed.number_after(watermark.min(next_head - 1));
            let taken = feed
                .events(cursor.next, end)
                .take_while(|event| filling.take(event))
                .count();
            let to = cursor.next + taken as u64;
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            cursor.next = to;
            self.place(i, moved);
            if to < end {
                return RunEnd::Done;
            }
        }
    }

    /// Notes where a cursor is after it has moved.
    fn place(&mut self, i: u32, (ahead, parked): (Ahead, Option<ParkKey>)) {
        self.cursors[i as usize].place = parked.map_or(Place::Ready, Place::Parked);
        if let Ahead::Event(head) = ahead {
            self.ready.push(Reverse((head, i)));
        }
    }
}

// ===== impl Subscription: replaying =====

impl<P: Payload> Subscription<P> {
    /// Goes on with the replay until there is something to give. Returns whether there is; if not, the
    /// task has been woken to go on.
    fn replay(&mut self, cx: &Context<'_>, room: Room, batch: &mut Batch<P>) -> bool {
        for _ in 0..STRIDES_PER_POLL {
            let Some(replay) = &mut self.replay else {
                break;
            };
            let mut filling = Filling {
                room,
                bytes: 0,
                events: &mut batch.events,
            };
            let step = replay.step(&self.shared.history.lock(), |event| filling.take(event));
            match step {
                Step::Opened {
                    matches,
                    position,
                    gap,
                } => {
                    add(&self.shared.counters.replayed, matches);
                    self.resume_after = position;
                    batch
                        .gaps
                        .extend(gap.map(|(reason, first, last)| missing(reason, first, last, 0)));
                }
                Step::Lost { count, first, last } => {
                    add_overflow(&mut batch.gaps, count, first, last);
                }
                Step::RoundDone if batch.events.is_empty() => self.join(room, batch),
                Step::Continue | Step::RoundDone => {}
            }
            if !batch.events.is_empty() || batch.caught_up.is_some() {
                return true;
            }
        }
        if batch.is_empty() {
            cx.waker().wake_by_ref();
        }
        !batch.is_empty()
    }

    /// Joins live, with the little that came since the last round, or begins another round.
    fn join(&mut self, room: Room, batch: &mut Batch<P>) {
        let shared = Arc::clone(&self.shared);
        let state = shared.publish.lock();
        let pending: u64 = self
            .cursors
            .iter()
            .map(|cursor| cursor.feed.lock().end() - cursor.next)
            .sum();
        let replay = self.replay.as_mut().expect("a replay goes on");
        let all_taken = pending == 0 || {
            let mut filling = Filling {
                room,
                bytes: 0,
                events: &mut batch.events,
            };
            replay.read_the_rest(&shared.history.lock(), state.head, |event| {
                filling.take(event)
            })
        };
        if all_taken {
            self.replay = None;
            batch.caught_up = Some(shared.position(state.head));
            self.attach(&state);
        } else {
            batch.events.clear();
            replay.begin_round(state.head, pending);
            for cursor in &mut self.cursors {
                cursor.next = cursor.feed.lock().end();
            }
        }
    }

    /// Puts the cursors at the end of their feeds. The publish lock, which guards `_state`, is held.
    fn attach(&mut self, _state: &State<P>) {
        for (i, cursor) in self.cursors.iter_mut().enumerate() {
            let (next, key) =
                cursor
                    .feed
                    .lock()
                    .attach(&self.parts.limits, &self.parts.signal, index(i));
            cursor.next = next;
            cursor.place = Place::Parked(key);
        }
    }
}

// ===== impl Skipped =====

impl Skipped {
    /// Adds what a cursor skips that goes from `from`, where the event has the sequence `head`, to `to`.
    fn add<P: Payload>(&mut self, feed: &FeedState<P>, from: u64, to: u64, head: u64) {
        if to > from {
            self.count += to - from;
            self.first = Some(self.first.map_or(head, |first| first.min(head)));
            self.last = self.last.max(feed.sequence_before(to));
        }
    }

    fn into_gap(self, reason: GapReason) -> Gap {
        missing(
            reason,
            self.first.unwrap_or(self.last),
            self.last,
            self.count,
        )
    }
}

/// Adds a loss to what is to be told before the next event: one gap, however often history overtook.
fn add_overflow(gaps: &mut Vec<Gap>, count: u64, first: u64, last: u64) {
    match gaps
        .iter_mut()
        .find(|gap| gap.reason == GapReason::Overflow)
    {
        Some(gap) => {
            gap.count += count;
            gap.last_sequence = last;
        }
        None => gaps.push(missing(GapReason::Overflow, first, last, count)),
    }
}

/// A gap that has no index yet.
const fn missing(reason: GapReason, first_sequence: u64, last_sequence: u64, count: u64) -> Gap {
    Gap {
        first_sequence,
        last_sequence,
        count,
        reason,
        first_index: 0,
    }
}

impl<P: Payload> Cursor<P> {
    const fn new(feed: Arc<Feed<P>>) -> Self {
        Self {
            feed,
            next: 0,
            place: Place::Detached,
        }
    }
}

fn index(i: usize) -> u32 {
    u32::try_from(i).expect("a subscription has few filters")
}
