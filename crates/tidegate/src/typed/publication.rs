//! Publications: values with a topic and a key.

use std::sync::{Arc, LazyLock};

use tidegate_core::{ClientId, NameError, Topic};

use super::error::Error;

/// Topic of values that are published without one.
pub const DEFAULT_TOPIC: &str = "events";

static DEFAULT: LazyLock<Topic> =
    LazyLock::new(|| Topic::new(DEFAULT_TOPIC).expect("is one token"));

/// A value to publish, with a topic and a key if you give it any. [`Hub::publish`](super::Hub::publish) takes it, and a
/// bare value too.
///
/// ```
/// # use tidegate::typed::Publication;
/// let publication = Publication::new("hello".to_owned()).topic("rooms.blue").key("anna");
/// # drop(publication);
/// ```
#[must_use = "it is published by `Hub::publish`"]
#[derive(Debug, Clone)]
pub struct Publication<T> {
    value: T,
    topic: Option<Result<Topic, NameError>>,
    key: Option<Arc<str>>,
}

impl<T> Publication<T> {
    /// Makes a publication to [`DEFAULT_TOPIC`], without a key.
    pub const fn new(value: T) -> Self {
        Self {
            value,
            topic: None,
            key: None,
        }
    }

    /// Sets the topic. A name is checked when it is published; a [`Topic`] was checked before, and costs no allocation.
    /// Default: [`DEFAULT_TOPIC`].
    pub fn topic<N>(mut self, topic: N) -> Self
    where
        N: TryInto<Topic>,
        N::Error: Into<NameError>,
    {
        self.topic = Some(topic.try_into().map_err(Into::into));
        self
    }

    /// Addresses it to one client alone, whatever that client has subscribed to. This takes the place of the topic.
    pub fn to(mut self, client: &ClientId) -> Self {
        self.topic = Some(Ok(Topic::for_client(client)));
        self
    }

    /// Sets the key: the thing that the value is about, within its topic. For subscriptions with
    /// [`Overflow::Conflate`](crate::Overflow::Conflate) the newest value of each topic and key survives.
    /// Default: none, so that the newest value of the topic survives.
    pub fn key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub(super) fn into_parts(self) -> Result<(T, Topic, Option<Arc<str>>), Error> {
        let topic = self.topic.unwrap_or_else(|| Ok(DEFAULT.clone()));
        Ok((self.value, topic.map_err(Error::Topic)?, self.key))
    }
}

impl<T> From<T> for Publication<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}
