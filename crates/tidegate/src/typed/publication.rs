//! What is published, and where.

use std::sync::{Arc, LazyLock};

use tidegate_core::{ClientId, NameError, Topic};

use super::error::Error;

/// Where values go that are published without a topic.
pub const DEFAULT_TOPIC: &str = "events";

static DEFAULT: LazyLock<Topic> =
    LazyLock::new(|| Topic::new(DEFAULT_TOPIC).expect("is one token"));

/// A value that is about to be published: any value is one, and has a topic and a key only if it is given
/// them.
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
    /// The value, for [`DEFAULT_TOPIC`], without a key.
    pub const fn new(value: T) -> Self {
        Self {
            value,
            topic: None,
            key: None,
        }
    }

    /// Where it belongs. A name is checked when it is published; a [`Topic`] is checked already, and costs no
    /// allocation.
    pub fn topic<N>(mut self, topic: N) -> Self
    where
        N: TryInto<Topic>,
        N::Error: Into<NameError>,
    {
        self.topic = Some(topic.try_into().map_err(Into::into));
        self
    }

    /// To one client alone, whatever it has subscribed to.
    pub fn to(mut self, client: &ClientId) -> Self {
        self.topic = Some(Ok(Topic::for_client(client)));
        self
    }

    /// What it is about, within its topic: for those who ask for
    /// [`Overflow::Conflate`](crate::Overflow::Conflate), the newest value of each topic and key survives.
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
