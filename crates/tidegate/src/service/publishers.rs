//! The publish streams that are open, and those whose client does not read its answers.
//!
//! Each request of a `PublishStream` is answered, and the next is read when the transport takes an answer. So a client that
//! never reads them comes to a halt when the windows are full, with nothing to show for it on either side. The sweep finds
//! such streams by the bytes that leave, as it does stalled subscriptions, and resets them: a status could not pass the
//! answer that waits.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use tidegate_http2::StreamHandle;

use super::gate::Caller;

/// A publish stream that is open, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishStream {
    /// Identity, which no other publish stream of the service has or had.
    pub id: u64,
    /// Address of the connection's other end.
    pub address: Option<SocketAddr>,
    /// Principal of the call, if it has one.
    pub principal: Option<Arc<str>>,
    /// Time at which it began.
    pub since: SystemTime,
    /// Requests that were published and answered.
    pub requests: u64,
    /// Events of these requests.
    pub events: u64,
    /// Bytes of answers that the client has not taken.
    pub unread_bytes: u64,
    /// Time for which it has taken none of them, if there are any.
    pub unread_for: Option<Duration>,
}

/// Publish streams of a service. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Publishers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<HashMap<u64, Arc<Publisher>>>,
    next: AtomicU64,
    stalled: AtomicU64,
}

/// One publish stream.
#[derive(Debug)]
struct Publisher {
    caller: Caller,
    since: SystemTime,
    requests: AtomicU64,
    events: AtomicU64,
    /// Bytes of the answers that were handed to the transport.
    answered: AtomicU64,
    /// `None` where whoever serves the connection left none.
    stream: Option<StreamHandle>,
    moved: Mutex<Moved>,
}

/// The last time that a client took something, as the sweeps saw it.
#[derive(Debug)]
struct Moved {
    taken: u64,
    at: Instant,
}

/// Membership of a stream among those that are open, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct OpenStream {
    publishers: Publishers,
    id: u64,
    publisher: Arc<Publisher>,
}

// ===== impl Publishers =====

impl Publishers {
    /// Enters a stream, with its handle if there is one.
    pub(super) fn open(&self, caller: Caller, stream: Option<StreamHandle>) -> OpenStream {
        let id = self.0.next.fetch_add(1, Relaxed);
        let publisher = Arc::new(Publisher {
            caller,
            since: SystemTime::now(),
            requests: AtomicU64::new(0),
            events: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            stream,
            moved: Mutex::new(Moved {
                taken: 0,
                at: Instant::now(),
            }),
        });
        self.lock().insert(id, Arc::clone(&publisher));
        OpenStream {
            publishers: self.clone(),
            id,
            publisher,
        }
    }

    /// Resets the streams whose client took no answer for `timeout`, though there were some. Returns their number.
    pub(super) fn sweep(&self, timeout: Option<Duration>, now: Instant) -> u64 {
        let mut reset = 0;
        for (_, publisher) in self.all() {
            let unread_for = publisher.look(now);
            if let Some(stream) = &publisher.stream
                && unread_for
                    .zip(timeout)
                    .is_some_and(|(unread_for, timeout)| unread_for >= timeout)
            {
                stream.reset();
                reset += 1;
            }
        }
        self.0.stalled.fetch_add(reset, Relaxed);
        reset
    }

    /// Lists the streams, the oldest first.
    pub(super) fn list(&self, now: Instant) -> Vec<PublishStream> {
        let told = |(id, publisher): (u64, Arc<Publisher>)| PublishStream {
            id,
            address: publisher.caller.address,
            principal: publisher.caller.principal.clone(),
            since: publisher.since,
            requests: publisher.requests.load(Relaxed),
            events: publisher.events.load(Relaxed),
            unread_bytes: publisher.unread(),
            unread_for: publisher.look(now),
        };
        let mut streams: Vec<_> = self.all().into_iter().map(told).collect();
        streams.sort_unstable_by_key(|stream| stream.id);
        streams
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Number of streams that the sweep has reset.
    pub(super) fn stalled(&self) -> u64 {
        self.0.stalled.load(Relaxed)
    }

    /// A copy, so that nothing is done under the lock that each stream takes when it begins and ends.
    fn all(&self) -> Vec<(u64, Arc<Publisher>)> {
        let open = self.lock();
        open.iter()
            .map(|(id, publisher)| (*id, Arc::clone(publisher)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Publisher>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ===== impl Publisher =====

impl Publisher {
    fn unread(&self) -> u64 {
        let taken = self.stream.as_ref().map(StreamHandle::taken);
        let answered = self.answered.load(Relaxed);
        taken.map_or(0, |taken| answered.saturating_sub(taken))
    }

    /// Time for which nothing of what there is was taken. `None` if all of it was.
    fn look(&self, now: Instant) -> Option<Duration> {
        let taken = self.stream.as_ref()?.taken();
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if taken != moved.taken || taken >= self.answered.load(Relaxed) {
            *moved = Moved { taken, at: now };
            return None;
        }
        Some(now.saturating_duration_since(moved.at))
    }
}

// ===== impl OpenStream =====

impl OpenStream {
    /// Notes an answer of this many bytes to a request with this many events.
    pub(super) fn answered(&self, events: u64, bytes: usize) {
        let publisher = &self.publisher;
        publisher.requests.fetch_add(1, Relaxed);
        publisher.events.fetch_add(events, Relaxed);
        publisher.answered.fetch_add(bytes as u64, Relaxed);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.publishers.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::Recorded;

    fn is_reset(publishers: &Publishers, after: u64, begin: Instant) -> bool {
        let timeout = Some(Duration::from_secs(10));
        publishers.sweep(timeout, begin + Duration::from_secs(after)) == 1
    }

    #[test]
    fn stream_is_stalled_when_no_answer_is_taken_for_the_timeout() {
        let (publishers, begin) = (Publishers::default(), Instant::now());
        let (recorded, handle) = Recorded::new();
        let stream = publishers.open(Caller::default(), Some(handle));
        // Without an answer it may be silent forever.
        assert!(!is_reset(&publishers, 1_000, begin));
        stream.answered(3, 20);
        assert!(!is_reset(&publishers, 1_001, begin));
        recorded.taken.store(1, Relaxed);
        assert!(!is_reset(&publishers, 1_010, begin));
        assert!(!is_reset(&publishers, 1_019, begin));
        let [told] = &publishers.list(begin + Duration::from_secs(1_019))[..] else {
            panic!("it is not listed")
        };
        assert_eq!((told.requests, told.events, told.unread_bytes), (1, 3, 19));
        assert_eq!(told.unread_for, Some(Duration::from_secs(9)));
        assert!(is_reset(&publishers, 1_020, begin));
        assert_eq!(recorded.resets.load(Relaxed), 1);
        assert_eq!(publishers.stalled(), 1);
        drop(stream);
        assert_eq!(publishers.count(), 0);
    }
}
