//! Which streams of a connection are to be polled, and who wakes its task.
//!
//! Each stream has a waker of its own, so that a turn polls those only that were woken. The first of them wakes the task, and
//! what comes while a turn is under way is found by that turn, or at its end.
//!
//! The transport and the timer wake the connection itself, which is a [`Waker`] too. It learns in its next turn that there
//! may be something to read, and in turns without that it asks neither of the two.
//!
//! No wake-up is lost. The list of a connection is under one lock: a waker sees either a turn that has yet to look at it, or
//! none, and then it wakes the task. Of a stream, every wake-up and every beginning of a poll changes the same atomic: one of
//! the two comes first, and a poll that comes second sees all that was done before the wake-up. A plain store at the beginning
//! of a poll would not do: it can become visible when the poll is over. loom goes through the interleavings, below.

use std::{
    collections::VecDeque,
    mem,
    task::{Wake, Waker},
};

use tidegate_http2::StreamId;

use self::sync::{AtomicU8, Mutex, MutexGuard, Ordering::AcqRel};

/// Locks and atomics: those of the standard library, or of loom when the models are checked (`--cfg tidegate_loom`).
mod sync {
    #[cfg(all(test, tidegate_loom))]
    pub(super) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    };
    #[cfg(not(all(test, tidegate_loom)))]
    pub(super) use std::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    };
}

/// Whether a stream is to be polled.
const WOKEN: u8 = 1;

/// Whether it is in the list of its connection, where it is once at most.
const LISTED: u8 = 2;

/// The wake-ups of one connection.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    streams: VecDeque<StreamId>,
    /// Whether a turn is under way or asked for: it finds what is added.
    has_turn: bool,
    /// Whether the transport or the timer woke the connection since its last turn began.
    is_ready: bool,
    task: Option<Waker>,
}

/// The wake-ups of one stream.
#[derive(Debug)]
pub(super) struct Woken(AtomicU8);

impl Woken {
    /// That of a stream which its connection has listed.
    pub(super) fn listed() -> Self {
        Self(AtomicU8::new(WOKEN | LISTED))
    }

    /// Has the stream polled, in the turn that is under way or else in one that is asked for here.
    pub(super) fn wake(&self, stream: StreamId, wakes: &Wakes) {
        if self.0.fetch_or(WOKEN | LISTED, AcqRel) & LISTED == 0 {
            wakes.wake(stream);
        }
    }

    /// Notes that the stream is about to be polled: whatever wakes it from here on has it polled again.
    pub(super) fn begin_poll(&self) {
        self.0.fetch_and(!WOKEN, AcqRel);
    }

    /// Notes that the stream was taken from the list. Returns whether it is to be polled, which begins with that: it may have
    /// been polled since it was woken.
    pub(super) fn take(&self) -> bool {
        self.0.swap(0, AcqRel) & WOKEN != 0
    }
}

impl Wakes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake(&self, stream: StreamId) {
        self.wake_with(|state| state.streams.push_back(stream));
    }

    /// Asks for a turn, unless one is under way.
    pub(super) fn wake_connection(&self) {
        self.wake_with(|_| {});
    }

    /// Asks for a turn that reads.
    pub(super) fn wake_reader(&self) {
        self.wake_with(|state| state.is_ready = true);
    }

    fn wake_with(&self, note: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        note(&mut state);
        if mem::replace(&mut state.has_turn, true) {
            return;
        }
        let task = state.task.clone();
        // The runtime takes locks of its own.
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Begins a turn of the task with this waker. Returns whether the transport or the timer has woken it since the last one
    /// began.
    pub(super) fn begin_turn(&self, task: &Waker) -> bool {
        let mut state = self.lock();
        state.has_turn = true;
        if !state
            .task
            .as_ref()
            .is_some_and(|known| known.will_wake(task))
        {
            state.task = Some(task.clone());
        }
        mem::take(&mut state.is_ready)
    }

    /// Moves the streams that were woken to the back of `streams`.
    pub(super) fn take(&self, streams: &mut VecDeque<StreamId>) {
        streams.append(&mut self.lock().streams);
    }

    /// Ends a turn. Returns whether there is more to do, or streams were woken since they were last taken, or the connection
    /// itself since the turn began: then another turn is asked for, and the caller wakes the task.
    pub(super) fn end_turn(&self, has_more: bool) -> bool {
        let mut state = self.lock();
        state.has_turn = has_more || state.is_ready || !state.streams.is_empty();
        state.has_turn
    }

    /// Forgets the task, which has ended: whoever has a waker of a stream still would keep its memory.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.streams = VecDeque::new();
        let task = state.task.take();
        // The runtime takes locks of its own.
        drop(state);
        drop(task);
    }
}

impl Wake for Wakes {
    fn wake(self: std::sync::Arc<Self>) {
        self.wake_reader();
    }

    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        self.wake_reader();
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    impl Wakes {
        fn listed(&self) -> usize {
            self.lock().streams.len()
        }
    }

    #[test]
    fn stream_is_listed_once_however_often_it_is_woken_and_polled() {
        let (wakes, task) = (Wakes::default(), Arc::new(Task::default()));
        let (stream, woken) = (stream(1), Woken::listed());
        wakes.begin_turn(&Waker::from(Arc::clone(&task)));
        assert!(woken.take());
        assert!(!wakes.end_turn(false));
        for _ in 0..1_000_000 {
            woken.wake(stream, &wakes);
        }
        assert_eq!((wakes.listed(), task.0.load(SeqCst)), (1, 1));
        for _ in 0..1_000 {
            // It has its turns, in which it wakes itself.
            wakes.begin_turn(&Waker::from(Arc::clone(&task)));
            woken.begin_poll();
            woken.wake(stream, &wakes);
            assert!(wakes.end_turn(false));
        }
        assert_eq!((wakes.listed(), task.0.load(SeqCst)), (1, 1));
        let mut streams = VecDeque::new();
        wakes.take(&mut streams);
        assert_eq!(streams, [stream]);
        // It was polled since it was woken.
        woken.begin_poll();
        assert!(!woken.take());
        assert!(!wakes.end_turn(false));
        woken.wake(stream, &wakes);
        assert_eq!((wakes.listed(), task.0.load(SeqCst)), (1, 2));
    }
}

#[cfg(test)]
fn stream(id: u8) -> StreamId {
    use std::{sync::Arc, time::Instant};

    struct Nothing;
    impl tidegate_http2::StreamState for Nothing {
        fn sent(&mut self, _: usize) {}
    }
    let mut http2 = tidegate_http2::Connection::<Nothing>::new(Arc::default(), Instant::now());
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [0, 0, 3, 1, 5, 0, 0, 0, id, 0x82, 0x86, 0x84];
    let bytes = [&settings[..], &headers].concat();
    match http2.receive(&mut &*bytes) {
        Ok(Some(tidegate_http2::Event::Request { stream, .. })) => stream,
        other => panic!("{}", other.is_ok()),
    }
}

/// Every interleaving, up to three preemptions. A lost wake-up shows as a deadlock: `block_on` waits forever.
#[cfg(all(test, tidegate_loom))]
mod loom_tests {
    use std::{future::poll_fn, task::Poll};

    use loom::{
        future::block_on,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        },
        thread,
    };

    use super::*;

    /// A stream, and what it is woken for. The order of memory is that of the wake-up alone.
    struct Stream {
        id: StreamId,
        woken: Woken,
        is_done: AtomicBool,
        polls: AtomicUsize,
    }

    impl Stream {
        fn new(id: u8) -> Self {
            Self {
                id: super::stream(id),
                woken: Woken::listed(),
                is_done: AtomicBool::new(false),
                polls: AtomicUsize::new(0),
            }
        }
    }

    fn check(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// Serves streams until all of them are done, as the task of a connection does: those that were woken are polled, and the
    /// first has room again in each turn.
    fn serve(wakes: &Wakes, streams: &[Arc<Stream>], turn_of: Option<&Arc<Stream>>) {
        let mut woken: VecDeque<StreamId> = streams.iter().map(|stream| stream.id).collect();
        let mut done = vec![false; streams.len()];
        block_on(poll_fn(|cx| {
            wakes.begin_turn(cx.waker());
            wakes.take(&mut woken);
            while let Some(id) = woken.pop_front() {
                let at = streams.iter().position(|stream| stream.id == id).unwrap();
                if streams[at].woken.take() {
                    streams[at].polls.fetch_add(1, Relaxed);
                    done[at] |= streams[at].is_done.load(Relaxed);
                }
            }
            if let Some(stream) = turn_of {
                stream.woken.begin_poll();
                done[0] |= stream.is_done.load(Relaxed);
            }
            if wakes.end_turn(false) {
                cx.waker().wake_by_ref();
            }
            if done.iter().all(|done| *done) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
    }

    fn finish(stream: &Arc<Stream>, wakes: &Arc<Wakes>) -> thread::JoinHandle<()> {
        let (stream, wakes) = (Arc::clone(stream), Arc::clone(wakes));
        thread::spawn(move || {
            stream.is_done.store(true, Relaxed);
            stream.woken.wake(stream.id, &wakes);
        })
    }

    #[test]
    fn loom_wake_up_is_never_lost() {
        check(|| {
            let wakes = Arc::new(Wakes::default());
            let stream = Arc::new(Stream::new(1));
            let waker = finish(&stream, &wakes);
            serve(&wakes, &[Arc::clone(&stream)], None);
            waker.join().unwrap();
            // Once when it began, and once when it was woken.
            assert!(stream.polls.load(Relaxed) <= 2);
        });
    }

    #[test]
    fn loom_wake_up_of_one_of_two_streams_is_never_lost() {
        check(|| {
            let wakes = Arc::new(Wakes::default());
            let streams = [Arc::new(Stream::new(1)), Arc::new(Stream::new(3))];
            let wakers = [finish(&streams[0], &wakes), finish(&streams[1], &wakes)];
            serve(&wakes, &streams, None);
            for waker in wakers {
                waker.join().unwrap();
            }
        });
    }

    #[test]
    fn loom_wake_up_is_never_lost_to_a_turn() {
        check(|| {
            let wakes = Arc::new(Wakes::default());
            let stream = Arc::new(Stream::new(1));
            let waker = finish(&stream, &wakes);
            serve(&wakes, &[Arc::clone(&stream)], Some(&stream));
            waker.join().unwrap();
        });
    }

    /// As a connection reads: it asks the transport only when that has woken it since it last had nothing.
    #[test]
    fn loom_wake_up_of_the_transport_is_never_lost() {
        check(|| {
            let wakes = Arc::new(Wakes::default());
            let bytes = Arc::new(AtomicUsize::new(0));
            let peer = {
                let (wakes, bytes) = (Arc::clone(&wakes), Arc::clone(&bytes));
                thread::spawn(move || {
                    for _ in 0..2 {
                        bytes.fetch_add(1, Relaxed);
                        wakes.wake_reader();
                    }
                })
            };
            let (mut may_read, mut read) = (true, 0);
            block_on(poll_fn(|cx| {
                may_read |= wakes.begin_turn(cx.waker());
                let has_read = may_read && {
                    let arrived = bytes.swap(0, Relaxed);
                    read += arrived;
                    arrived > 0
                };
                may_read = has_read;
                if wakes.end_turn(has_read) {
                    cx.waker().wake_by_ref();
                }
                if read == 2 {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
            peer.join().unwrap();
        });
    }

    #[test]
    fn loom_wake_ups_of_one_stream_are_one() {
        check(|| {
            let wakes = Arc::new(Wakes::default());
            let stream = Arc::new(Stream::new(1));
            stream.woken.take();
            let wakers = [finish(&stream, &wakes), finish(&stream, &wakes)];
            for waker in wakers {
                waker.join().unwrap();
            }
            assert_eq!(wakes.lock().streams.len(), 1);
        });
    }
}
