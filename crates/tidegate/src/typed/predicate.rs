//! Subscribing by what a value is.

use tidegate_core::Predicate as CorePredicate;

use super::{shared::EncodedValue, value::Value};

/// A test of values, for subscriptions that want only those that pass.
///
/// Make it once and give clones of it to all subscriptions that want the same: it is run once for each event,
/// whatever their number. Two that were made apart are two predicates, whatever they do. When history is
/// replayed it may be run again. It must always give the same answer for one value, and must not block.
///
/// ```
/// # use tidegate::typed::{Hub, Predicate};
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # pub struct Order { #[prost(uint64, tag = "1")] amount: u64 }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let hub = Hub::<Order>::new();
/// let large = Predicate::new(|order: &Order| order.amount > 1_000);
/// let one = hub.subscribe().matching(&large).ignore_losses().open()?;
/// let other = hub.subscribe().matching(&large).ignore_losses().open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Predicate<T>(CorePredicate<EncodedValue<T>>);

impl<T: Value> Predicate<T> {
    /// Makes a predicate.
    pub fn new(test: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        Self(CorePredicate::new(move |body: &EncodedValue<T>| {
            test(body.value())
        }))
    }

    pub(super) fn core(&self) -> CorePredicate<EncodedValue<T>> {
        self.0.clone()
    }
}

impl<T> Clone for Predicate<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
