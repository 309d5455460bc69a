//! The body of a request, whatever serves its connection.

use std::{
    error, fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{
    engine::{Cut, Incoming},
    hyper::LingeringBody,
};

/// Body of a request. If it is dropped before its end, what still comes of it is thrown away.
#[derive(Debug)]
pub struct RequestBody(Kind);

#[derive(Debug)]
enum Kind {
    Engine(Incoming),
    Hyper(LingeringBody),
}

/// The end of a request's body before it was complete: the peer has reset the stream, or the connection has ended.
#[derive(Debug)]
pub struct RequestBodyError(Cause);

#[derive(Debug)]
enum Cause {
    Engine(Cut),
    Hyper(::hyper::Error),
}

impl fmt::Display for RequestBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Engine(cut) => fmt::Display::fmt(cut, f),
            Cause::Hyper(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl error::Error for RequestBodyError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.0 {
            Cause::Engine(_) => None,
            Cause::Hyper(error) => error.source(),
        }
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self(Kind::Engine(body))
    }
}

impl From<LingeringBody> for RequestBody {
    fn from(body: LingeringBody) -> Self {
        Self(Kind::Hyper(body))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match &mut self.0 {
            Kind::Engine(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|cut| RequestBodyError(Cause::Engine(cut))),
            Kind::Hyper(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|error| RequestBodyError(Cause::Hyper(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Engine(body) => body.is_end_stream(),
            Kind::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Engine(body) => body.size_hint(),
            Kind::Hyper(body) => body.size_hint(),
        }
    }
}
