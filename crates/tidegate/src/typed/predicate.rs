//! Subscriptions by value.

use tidegate_core::Predicate as CorePredicate;

use super::{shared::EncodedValue, value::Value};

/// A test of values, for subscriptions that want only the values that pass it. Clones are the same predicate.
///
/// Make it once and use it for all subscriptions that want the same: it runs once for each event, whatever
/// their number. Two predicates that were made apart are different, even with the same code. It may run again
/// when history is replayed. It must always give the same answer for a value, and must not block.
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
    /// Makes a predicate from a test.
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
