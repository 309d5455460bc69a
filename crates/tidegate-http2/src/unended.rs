//! Requests that go on behind their response.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

/// Requests whose response is complete and which are not, by their streams.
///
/// A peer may have many of them, and each of its frames looks for one: what a frame or a call costs here grows with the
/// logarithm of their number.
#[derive(Debug, Default)]
pub(crate) struct Unended {
    requests: BTreeMap<u32, Request>,
    /// Their streams in the order in which their times are over. The first is one of them. Others may have ended, but not most.
    order: VecDeque<u32>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Request {
    /// Time by which the peer has to end it.
    due: Instant,
    /// Number of bytes that are still thrown away.
    pub(crate) left: u32,
    /// Bytes that were, and whose window the peer was not given back.
    pub(crate) unannounced: u32,
}

impl Unended {
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Adds one whose time is over behind that of the others.
    pub(crate) fn add(&mut self, stream: u32, due: Instant, left: u32) {
        // So seldom that each addition pays for it.
        if self.order.len() > 2 * self.requests.len() + 16 {
            self.order.retain(|id| self.requests.contains_key(id));
        }
        let request = Request {
            due,
            left,
            unannounced: 0,
        };
        self.requests.insert(stream, request);
        self.order.push_back(stream);
    }

    pub(crate) fn get_mut(&mut self, stream: u32) -> Option<&mut Request> {
        self.requests.get_mut(&stream)
    }

    /// Returns when the first of their times is over.
    pub(crate) fn due(&self) -> Option<Instant> {
        let first = self.order.front()?;
        self.requests.get(first).map(|request| request.due)
    }

    /// Removes the one whose time is over first, and returns its stream.
    pub(crate) fn take_first(&mut self) -> Option<u32> {
        let stream = *self.order.front()?;
        self.remove(stream);
        Some(stream)
    }

    /// Removes one that has ended, or of which no more is wanted.
    pub(crate) fn remove(&mut self, stream: u32) {
        self.requests.remove(&stream);
        while let Some(first) = self.order.front()
            && !self.requests.contains_key(first)
        {
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Add,
        TakeFirst,
        Remove(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Add),
            1 => Just(Step::TakeFirst),
            2 => any::<usize>().prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn first_is_the_oldest_that_is_left(steps in proptest::collection::vec(step(), 0..300)) {
            let began = Instant::now();
            let (mut unended, mut model) = (Unended::default(), VecDeque::new());
            for (stream, step) in (0..).zip(steps) {
                let due = began + Duration::from_secs(u64::from(stream));
                match step {
                    Step::Add => {
                        unended.add(stream, due, 1);
                        model.push_back((stream, due));
                    }
                    Step::TakeFirst => {
                        prop_assert_eq!(unended.take_first(), model.pop_front().map(|(stream, _)| stream));
                    }
                    Step::Remove(at) if !model.is_empty() => {
                        let (stream, _) = model.remove(at % model.len()).unwrap();
                        unended.remove(stream);
                        prop_assert!(unended.get_mut(stream).is_none());
                    }
                    Step::Remove(_) => {}
                }
                prop_assert_eq!(unended.len(), model.len());
                prop_assert_eq!(unended.due(), model.front().map(|(_, due)| *due));
            }
        }
    }

    /// However many come and go behind one that stays.
    #[test]
    fn those_that_have_ended_leave_nothing() {
        let mut unended = Unended::default();
        let due = Instant::now();
        for stream in 0..10_000 {
            unended.add(stream, due, 1);
            if stream > 0 {
                unended.remove(stream);
            }
            assert!(unended.order.len() <= 20, "{}", unended.order.len());
        }
        unended.remove(0);
        assert_eq!(unended.order.len(), 0);
    }
}
