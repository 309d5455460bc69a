//! News that a sequencer outside has for a hub besides events: that there are none, that some are lost, that all begins anew.

use std::{
    mem,
    sync::atomic::Ordering::{Relaxed, Release},
};

use crate::{
    close::CloseReason,
    event::{Payload, Position},
    freed::Freed,
    publish::{PublishError, Shared, check_sequence},
    wake::wake_all,
};

impl<P: Payload> Shared<P> {
    /// Moves the head to `sequence`, without an event.
    pub(crate) fn advance(&self, sequence: u64) -> Result<(), PublishError> {
        let _appending = self.appending.lock();
        let mut state = self.publish.lock();
        state.check_open()?;
        if sequence != state.head {
            check_sequence(state.head, sequence)?;
            self.note_beginning(&mut state, sequence + 1);
            state.head = sequence;
            self.committed.store(sequence, Release);
        }
        Ok(())
    }

    /// Notes that nobody will hand over the sequences from `first` to `last`, and moves the head behind them.
    pub(crate) fn lose(&self, first: u64, last: u64) -> Result<(), PublishError> {
        let mut freed = Freed::new();
        {
            let _appending = self.appending.lock();
            let mut state = self.publish.lock();
            state.check_open()?;
            check_sequence(state.head, first)?;
            check_sequence(first - 1, last)?;
            self.note_beginning(&mut state, first);
            let evicts_through = self.history.lock().lose(first, last, &mut freed);
            if let Some(floor) = evicts_through {
                for feed in &state.holding {
                    feed.lock().evict_through(floor, &mut freed);
                }
            }
            state.head = last;
            // Before the watermark, whose Release makes it visible: whoever sees that what lies before the range is
            // complete sees the range too.
            self.losses.fetch_add(1, Relaxed);
            self.committed.store(last, Release);
        }
        // After the locks. Also those whose feeds have nothing: they are told of the range all the same.
        self.registry.wake_all();
        Ok(())
    }

    /// Ends everybody and everything of this epoch, and begins another after `after`.
    pub(crate) fn begin_epoch(&self, after: Position) -> Result<(), PublishError> {
        let (wakers, feeds, _index, _history, _late) = {
            let _appending = self.appending.lock();
            // First, as always: nobody joins feeds meanwhile.
            let mut members = self.index.lock();
            let mut state = self.publish.lock();
            state.check_open()?;
            if after.epoch == state.epoch {
                return Err(PublishError::EpochGoesOn { epoch: after.epoch });
            }
            if after.sequence == u64::MAX {
                return Err(PublishError::SequencesUsedUp);
            }
            // Before anything else changes: a poll that sees some of the new epoch finds that it has ended. Who is
            // about to begin finds another epoch under the publish lock, and starts over.
            let wakers = self.registry.end_epoch(CloseReason::EpochChanged);
            // Feeds are not shared over epochs, because they are searched by sequence. Those of this one belong to the
            // subscriptions that have ended, and go with them.
            let (index, version) = self.index.clear(&mut members);
            let late = mem::take(&mut state.late);
            // Publishers that have searched before search again.
            state.late_forgotten = version;
            let feeds = mem::take(&mut state.holding);
            for feed in &feeds {
                *feed.lock().listed_at() = None;
            }
            state.next_look = 0;
            (state.epoch, state.head, state.knows_beginning) = (after.epoch, after.sequence, true);
            let history = self.history.lock().begin_epoch(after.epoch, after.sequence);
            self.losses.fetch_add(1, Relaxed);
            self.set_position(after);
            (wakers, feeds, index, history, late)
        };
        // After the locks. What those feeds hold can reach nobody any more, however long their subscriptions stay.
        let mut freed = Freed::new();
        for feed in feeds {
            feed.lock().evict_through(u64::MAX, &mut freed);
        }
        wake_all(wakers);
        Ok(())
    }
}
