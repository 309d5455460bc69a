//! A snapshot of the application's state, sent before the live events that follow it.
//!
//! # Why nothing is missed
//! The subscription is registered first, at its `began_at`, and collects live events from then on. Then the snapshot is
//! loaded. It may be newer than `began_at` but not older, so every event is in the snapshot or in the subscription, and
//! those up to the snapshot's position that are in both are passed over: they are known, not lost.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tidegate_core::Position;
use tonic::Status;

use super::{shared::Shared, value::Value};

/// State of the application at a position, which a new subscriber is sent first. Live events follow from there.
///
/// It must contain the effect of every event up to its position, and of none after. To make sure of that, publish while
/// you hold the lock of your state, and take the snapshot under the same lock:
///
/// ```
/// # use std::{collections::BTreeMap, sync::Mutex};
/// # use tidegate::typed::{Error, Hub, Publication, Snapshot, Subscription};
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # pub struct Price { #[prost(string, tag = "1")] symbol: String, #[prost(uint64, tag = "2")] cents: u64 }
/// struct Prices {
///     hub: Hub<Price>,
///     latest: Mutex<BTreeMap<String, Price>>,
/// }
///
/// impl Prices {
///     fn set(&self, price: Price) -> Result<(), Error> {
///         let mut latest = self.latest.lock().unwrap();
///         self.hub.publish(price.clone())?;
///         latest.insert(price.symbol.clone(), price);
///         Ok(())
///     }
///
///     fn snapshot(&self) -> Snapshot<Price> {
///         let latest = self.latest.lock().unwrap();
///         Snapshot::new(self.hub.position(), latest.values().cloned().collect::<Vec<_>>())
///     }
/// }
/// ```
pub struct Snapshot<T> {
    position: Position,
    values: Values<T>,
}

type Values<T> = Box<dyn Iterator<Item = Shared<T>> + Send>;
type Loading<T> = Pin<Box<dyn Future<Output = Result<Snapshot<T>, Status>> + Send>>;

/// Function that loads the snapshot, given the position at which the subscription began.
pub(super) type Load<T> = Box<dyn FnOnce(Position) -> Loading<T> + Send>;

/// Progress of the snapshot of a subscription.
pub(super) enum Stage<T> {
    /// The application makes it.
    Loading(Loading<T>),
    /// Its values are sent.
    Sending(Values<T>),
}

/// Result of a poll of the stage.
pub(super) enum Step<T> {
    /// The snapshot is loaded, at this position. Its values come next.
    Loaded(Position),
    /// The next value of the snapshot.
    Value(Shared<T>),
    /// Loading failed; the status ends the stream.
    Failed(Status),
    /// Every value was sent.
    Done,
}

impl<T: Value> Snapshot<T> {
    /// Makes a snapshot of the state at `position`, [`Hub::position`](super::Hub::position) under the lock of
    /// the state. The values are sent in their order. Give [`Shared`] values if several subscribers get them:
    /// each is encoded once for all.
    ///
    /// The iterator is advanced while the stream is polled, so it must not block.
    pub fn new<I>(position: Position, values: I) -> Self
    where
        I: IntoIterator<IntoIter: Send + 'static>,
        I::Item: Into<Shared<T>> + 'static,
    {
        Self {
            position,
            values: Box::new(values.into_iter().map(Into::into)),
        }
    }
}

impl<T: Value> Stage<T> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step<T>> {
        match self {
            Self::Loading(loading) => match loading.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(status)) => Poll::Ready(Step::Failed(status)),
                Poll::Ready(Ok(Snapshot { position, values })) => {
                    *self = Self::Sending(values);
                    Poll::Ready(Step::Loaded(position))
                }
            },
            Self::Sending(values) => Poll::Ready(values.next().map_or(Step::Done, Step::Value)),
        }
    }
}

impl<T> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
