//! The position of a subscription, and the verification of the server's counts.
//!
//! The tracker keeps two numbers with different lifetimes. A reconnect resumes after the *position*: it outlives
//! streams and only moves forward, except into a new epoch. The *index* is counted anew on each stream.

use tidegate_proto::v1;

use crate::{Gap, GapReason, Position, Subscribed, Violation};

/// Follows the updates that are yielded to the user.
#[derive(Debug)]
pub(crate) struct Tracker {
    /// Everything up to here was yielded or counted by a gap. `None` before the first such statement.
    position: Option<Position>,
    /// The open stream, once it has begun.
    stream: Option<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// The epoch of the sequences on this stream.
    epoch: u64,
    /// The index of the next event, with which the next batch or gap must begin.
    next_index: u64,
    /// Whether a batch has arrived.
    has_events: bool,
}

impl Tracker {
    /// Creates a tracker that starts after `position`, if there is one.
    pub(crate) fn new(position: Option<Position>) -> Self {
        Self {
            position,
            stream: None,
        }
    }

    /// Returns the position to resume after. `None`: start as configured.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether a stream is open and has begun.
    pub(crate) fn is_subscribed(&self) -> bool {
        self.stream.is_some()
    }

    /// Records that the stream has ended. The position stays.
    pub(crate) fn end_stream(&mut self) {
        self.stream = None;
    }

    /// Records the start of a stream. `starts_live`: the request has neither a position nor a replay.
    pub(crate) fn subscribed(
        &mut self,
        subscribed: &Subscribed,
        starts_live: bool,
    ) -> Result<(), Violation> {
        if self.stream.is_some() {
            return Err(Violation::Subscribed);
        }
        let head = required(subscribed.position)?;
        // Only a live stream may resume after the head. With a replay, the head lies beyond the events to come, and a
        // stream that broke before them would skip them.
        if starts_live {
            self.position = Some(head);
        }
        self.stream = Some(Stream {
            epoch: head.epoch,
            next_index: subscribed.next_index,
            has_events: false,
        });
        Ok(())
    }

    /// Records the arrival of a batch of `count` events.
    pub(crate) fn batch(&mut self, first_index: u64, count: usize) -> Result<(), Violation> {
        let stream = self.stream_mut()?;
        stream.has_events |= count > 0;
        stream.advance_index(first_index, count as u64)
    }

    /// Records that the next event of a batch is yielded.
    pub(crate) fn event(&mut self, sequence: u64) -> Result<(), Violation> {
        // The position moves with each event, not with its batch: a reconnect in the middle of a batch must resume
        // after the event that the user has seen.
        let epoch = self.stream_mut()?.epoch;
        match self.position {
            Some(after) if after.epoch != epoch => {
                return Err(Violation::Epoch {
                    expected: after.epoch,
                    found: epoch,
                });
            }
            Some(after) if after.sequence >= sequence => {
                return Err(Violation::Order {
                    after,
                    found: sequence,
                });
            }
            _ => {}
        }
        self.position = Some(Position { epoch, sequence });
        Ok(())
    }

    /// Records that a gap is yielded. A gap whose reason is newer than this client counts like any other, and its place
    /// is that of the missing events, as the protocol demands; only whether it must have a count is not known.
    pub(crate) fn gap(&mut self, gap: &Gap) -> Result<(), Violation> {
        use GapReason::{Conflated, EpochChanged, Evicted, Expired, Overflow};

        let reason = gap.reason();
        let stream = self.stream_mut()?;
        if matches!(reason, Expired | EpochChanged) && stream.has_events {
            return Err(Violation::LateGap(reason));
        }
        if gap.count > 0 {
            stream.advance_index(gap.first_index, gap.count)?;
        } else if matches!(reason, Overflow | Conflated | Evicted) {
            return Err(Violation::UncountedGap(reason));
        }
        let end = Position {
            epoch: stream.epoch,
            sequence: gap.last_sequence,
        };
        match reason {
            // Its range may overlap the batch that follows, so resuming after its end could skip survivors. The events
            // of that batch move the position.
            Conflated => Ok(()),
            // The only way into another epoch, and the only one in which the sequence may fall.
            EpochChanged if self.position.is_none_or(|from| from.epoch != end.epoch) => {
                self.position = Some(end);
                Ok(())
            }
            _ => self.advance(end),
        }
    }

    /// Records the end of the replay. Everything up to the stated position is settled, even if nothing came.
    pub(crate) fn caught_up(
        &mut self,
        position: Option<v1::Position>,
    ) -> Result<Position, Violation> {
        let position = required(position)?;
        self.stream_mut()?;
        self.advance(position)?;
        Ok(position)
    }

    /// Records a position that the server states as safe to resume after. Returns it, unless there is none.
    ///
    /// While nothing is settled there is no such position, and one that the server states all the same is not taken:
    /// a replay of the newest few events would become one of all of history.
    pub(crate) fn position_stated(
        &mut self,
        position: Option<v1::Position>,
    ) -> Result<Option<Position>, Violation> {
        self.stream_mut()?;
        let is_settled = self.position.is_some();
        let position = position.map(Position::from).filter(|_| is_settled);
        if let Some(to) = position {
            self.advance(to)?;
        }
        Ok(position)
    }

    /// Records the position of a stream that is about to end, as [`position_stated`](Self::position_stated). One of
    /// another epoch is not taken: the gap that leads into that epoch has not come, and the next stream tells it.
    pub(crate) fn going_away(&mut self, position: Option<v1::Position>) -> Result<(), Violation> {
        self.stream_mut()?;
        let to = position.map(Position::from);
        if let (Some(to), Some(from)) = (to, self.position)
            && to.epoch == from.epoch
        {
            self.advance(to)?;
        }
        Ok(())
    }

    fn advance(&mut self, to: Position) -> Result<(), Violation> {
        match self.position {
            Some(from) if from.epoch != to.epoch => Err(Violation::Epoch {
                expected: from.epoch,
                found: to.epoch,
            }),
            // The position only moves forward: a heartbeat or a gap may state one that lies behind the last event.
            Some(from) if from.sequence >= to.sequence => Ok(()),
            _ => {
                self.position = Some(to);
                Ok(())
            }
        }
    }

    fn stream_mut(&mut self) -> Result<&mut Stream, Violation> {
        self.stream.as_mut().ok_or(Violation::Subscribed)
    }
}

impl Stream {
    fn advance_index(&mut self, first: u64, count: u64) -> Result<(), Violation> {
        if first != self.next_index {
            return Err(Violation::Index {
                expected: self.next_index,
                found: first,
            });
        }
        self.next_index = first.saturating_add(count);
        Ok(())
    }
}

fn required(position: Option<v1::Position>) -> Result<Position, Violation> {
    position
        .map(Position::from)
        .ok_or(Violation::MissingPosition)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u64 = 7;

    fn at(sequence: u64) -> Position {
        Position {
            epoch: EPOCH,
            sequence,
        }
    }

    fn subscribed(head: Position, next_index: u64) -> Subscribed {
        Subscribed {
            position: Some(head.into()),
            next_index,
            ..Default::default()
        }
    }

    fn gap(reason: GapReason, range: (u64, u64), count: u64, first_index: u64) -> Gap {
        Gap {
            first_sequence: range.0,
            last_sequence: range.1,
            count,
            reason: reason.into(),
            first_index,
        }
    }

    /// A tracker whose stream has begun: live, at sequence 10 and index 0.
    fn live() -> Tracker {
        let mut tracker = Tracker::new(None);
        tracker.subscribed(&subscribed(at(10), 0), true).unwrap();
        tracker
    }

    #[test]
    fn a_live_start_resumes_after_the_head() {
        assert_eq!(live().position(), Some(at(10)));
    }

    #[test]
    fn a_replay_resumes_as_at_first_until_something_came() {
        let mut tracker = Tracker::new(None);
        tracker.subscribed(&subscribed(at(10), 0), false).unwrap();
        assert_eq!(tracker.position(), None);
        tracker.batch(0, 1).unwrap();
        tracker.event(3).unwrap();
        assert_eq!(tracker.position(), Some(at(3)));
        tracker.caught_up(Some(at(10).into())).unwrap();
        assert_eq!(tracker.position(), Some(at(10)));
    }

    #[test]
    fn position_is_not_taken_while_nothing_is_settled() {
        let mut tracker = Tracker::new(None);
        tracker.subscribed(&subscribed(at(10), 0), false).unwrap();
        for stated in [None, Some(at(0).into()), Some(at(10).into())] {
            assert_eq!(tracker.position_stated(stated), Ok(None));
            tracker.going_away(stated).unwrap();
            assert_eq!(tracker.position(), None);
        }
        tracker.caught_up(Some(at(0).into())).unwrap();
        assert_eq!(tracker.position(), Some(at(0)));
    }

    #[test]
    fn position_is_not_replaced_by_none_or_by_an_older_one() {
        let mut tracker = live();
        let other_epoch = Position {
            epoch: 1,
            sequence: 99,
        };
        for stated in [None, Some(at(0)), Some(at(9)), Some(other_epoch)] {
            tracker.going_away(stated.map(Into::into)).unwrap();
            assert_eq!(tracker.position(), Some(at(10)));
        }
        tracker
            .gap(&gap(GapReason::EpochChanged, (0, 3), 0, 0))
            .unwrap();
        assert_eq!(tracker.position(), Some(at(10)));
        tracker.going_away(Some(at(12).into())).unwrap();
        assert_eq!(tracker.position(), Some(at(12)));
    }

    #[test]
    fn gap_with_an_unknown_reason_counts_like_any_other() {
        let unknown = |range, count, first_index| Gap {
            reason: 99,
            ..gap(GapReason::Unspecified, range, count, first_index)
        };
        let mut tracker = live();
        tracker.gap(&unknown((11, 15), 3, 0)).unwrap();
        assert_eq!(tracker.position(), Some(at(15)));
        tracker.gap(&unknown((16, 17), 0, 0)).unwrap();
        assert_eq!(tracker.position(), Some(at(17)));
        tracker.batch(3, 1).unwrap();
        assert_eq!(
            tracker.gap(&unknown((19, 20), 2, 9)),
            Err(Violation::Index {
                expected: 4,
                found: 9
            })
        );
    }

    #[test]
    fn a_resumed_stream_keeps_its_position_until_something_came() {
        let mut tracker = Tracker::new(Some(at(4)));
        tracker.subscribed(&subscribed(at(10), 0), false).unwrap();
        assert_eq!(tracker.position(), Some(at(4)));
        tracker.end_stream();
        assert_eq!(tracker.position(), Some(at(4)));
    }

    #[test]
    fn the_index_has_no_holes() {
        let mut tracker = live();
        tracker.batch(0, 2).unwrap();
        tracker
            .gap(&gap(GapReason::Overflow, (11, 15), 3, 2))
            .unwrap();
        tracker.batch(5, 1).unwrap();
        assert_eq!(
            tracker.batch(7, 1),
            Err(Violation::Index {
                expected: 6,
                found: 7
            })
        );
    }

    #[test]
    fn the_index_starts_where_the_stream_says() {
        let mut tracker = live();
        tracker.batch(0, 2).unwrap();
        tracker.end_stream();
        tracker.subscribed(&subscribed(at(10), 100), false).unwrap();
        tracker.batch(100, 1).unwrap();
    }

    #[test]
    fn events_must_be_newer_than_everything_before() {
        let mut tracker = live();
        tracker.event(11).unwrap();
        for old in [0, 10, 11] {
            assert_eq!(
                tracker.event(old),
                Err(Violation::Order {
                    after: at(11),
                    found: old
                })
            );
        }
    }

    #[test]
    fn gaps_advance_the_position_except_conflated_ones() {
        let mut tracker = live();
        tracker
            .gap(&gap(GapReason::Conflated, (11, 20), 5, 0))
            .unwrap();
        assert_eq!(tracker.position(), Some(at(10)));
        tracker.batch(5, 1).unwrap();
        tracker.event(15).unwrap();
        tracker
            .gap(&gap(GapReason::Overflow, (16, 30), 9, 6))
            .unwrap();
        assert_eq!(tracker.position(), Some(at(30)));
    }

    #[test]
    fn uncounted_gaps_are_allowed_for_some_reasons_only() {
        let mut tracker = live();
        tracker
            .gap(&gap(GapReason::Backplane, (11, 12), 0, 0))
            .unwrap();
        tracker.batch(0, 1).unwrap();
        assert_eq!(
            tracker.gap(&gap(GapReason::Overflow, (13, 14), 0, 1)),
            Err(Violation::UncountedGap(GapReason::Overflow))
        );
    }

    #[test]
    fn an_epoch_changes_only_through_its_gap() {
        let old = Position {
            epoch: 1,
            sequence: 500,
        };
        let mut tracker = Tracker::new(Some(old));
        tracker.subscribed(&subscribed(at(10), 0), false).unwrap();
        assert_eq!(
            tracker.event(1),
            Err(Violation::Epoch {
                expected: 1,
                found: EPOCH
            })
        );
        tracker
            .gap(&gap(GapReason::EpochChanged, (1, 2), 0, 0))
            .unwrap();
        assert_eq!(tracker.position(), Some(at(2)));
        tracker.event(3).unwrap();
    }

    #[test]
    fn resume_gaps_stand_only_before_the_first_event() {
        let mut tracker = Tracker::new(Some(at(2)));
        tracker.subscribed(&subscribed(at(10), 0), false).unwrap();
        let expired = gap(GapReason::Expired, (3, 5), 0, 0);
        tracker.gap(&expired).unwrap();
        assert_eq!(tracker.position(), Some(at(5)));
        tracker.batch(0, 1).unwrap();
        assert_eq!(
            tracker.gap(&expired),
            Err(Violation::LateGap(GapReason::Expired))
        );
    }

    #[test]
    fn a_stated_position_never_moves_back() {
        let mut tracker = live();
        tracker.event(20).unwrap();
        assert_eq!(
            tracker.position_stated(Some(at(15).into())),
            Ok(Some(at(15)))
        );
        assert_eq!(tracker.position(), Some(at(20)));
        assert_eq!(tracker.position_stated(None), Ok(None));
        assert_eq!(tracker.position(), Some(at(20)));
        assert_eq!(tracker.caught_up(None), Err(Violation::MissingPosition));
    }

    #[test]
    fn a_stream_begins_exactly_once() {
        let mut tracker = Tracker::new(None);
        assert_eq!(tracker.batch(0, 1), Err(Violation::Subscribed));
        assert_eq!(
            tracker.position_stated(Some(at(1).into())),
            Err(Violation::Subscribed)
        );
        let mut tracker = live();
        assert_eq!(
            tracker.subscribed(&subscribed(at(10), 0), true),
            Err(Violation::Subscribed)
        );
    }
}
