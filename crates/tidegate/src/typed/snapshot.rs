//! A snapshot of the application's state, sent before what follows it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tidegate_core::Position;
use tonic::Status;

use super::{shared::Shared, value::Value};

/// The state of the application at a position: what a new subscriber is sent first. Live follows from there.
///
/// It must contain the effect of every event up to its position, and of none after. For that, the application
/// publishes while it holds the lock of its state, and takes the snapshot under the same lock:
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

/// What makes the snapshot, given where the subscription began.
pub(super) type Load<T> = Box<dyn FnOnce(Position) -> Loading<T> + Send>;

/// How far the snapshot of a subscription has come.
pub(super) enum Stage<T> {
    Loading(Loading<T>),
    Sending(Values<T>),
}

/// What a poll of the stage came to.
pub(super) enum Step<T> {
    /// The snapshot is there, at this position; its values come next.
    Loaded(Position),
    Value(Shared<T>),
    Failed(Status),
    Done,
}

impl<T: Value> Snapshot<T> {
    /// The state at `position`, as the values that tell it. Those that are [`Shared`] already are encoded
    /// once for all who are sent them.
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
