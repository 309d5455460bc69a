//! One connection on hyper: what to fall back on, and an oracle for the tests of the engine.
//!
//! From the bottom up it is a transport whose preface was read, a timeout for writes, a buffer that makes one
//! write of a turn, and hyper. The driver polls hyper and the futures of its streams.

mod coalesce;
mod driver;
mod frames;
mod linger;
mod observed;
mod stream;
mod watch;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::{body::Incoming, server::conn::http2, service::HttpService};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_io_timeout::TimeoutStream;

pub(crate) use self::linger::LingeringBody;
use self::{
    coalesce::{Coalesced, Flusher, coalesce},
    driver::{Driver, StreamExecutor},
    linger::Lingering,
    observed::ObservedService,
    watch::{FloodLimits, Watch},
};
use crate::{
    config::Http2Config,
    preface::{PREFACE, Prefaced},
    service::{BoxError, Http2Service, Serve},
};

/// More streams than begin and are reset before h2 has them accepted: the smallest of them take 27 bytes of a read, which
/// brings 16 KiB at most.
const UNACCEPTED: usize = 1_024;

/// Transport beneath HTTP/2, with a timeout for writes. Boxed because the timer in it has to be pinned, and the
/// connection and the flusher share it.
type TimedTransport<T> = Pin<Box<TimeoutStream<Prefaced<T>>>>;

type Http2<T, S> = http2::Connection<TokioIo<Coalesced<TimedTransport<T>>>, S, StreamExecutor>;

pin_project! {
    /// A connection on hyper.
    pub(crate) struct Http2Task<T, S>
    where
        S: HttpService<Incoming>,
    {
        // First, because fields are dropped in order: a peer that sees the connection close finds its streams gone.
        driver: Driver,
        #[pin]
        http2: Http2<T, S>,
        flusher: Flusher<TimedTransport<T>>,
        // Result of the connection, while its streams are dropped.
        ended: Option<Result<(), hyper::Error>>,
    }
}

impl<T, S> Http2Task<T, ObservedService<S>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    pub(crate) fn new(transport: Prefaced<T>, service: S, config: &Http2Config) -> Self {
        let mut transport = TimeoutStream::new(transport);
        transport.set_write_timeout(Some(config.write_timeout));
        let watch = Watch::new(PREFACE.len(), flood_limits(config));
        let (transport, flusher) = coalesce(Box::pin(transport), watch);
        let (driver, streams) = Driver::new();
        let service = ObservedService {
            service: TowerToHyperService::new(service),
            lingering: Lingering::new(streams.clone(), config.max_concurrent_streams),
            streams: streams.clone(),
        };
        Self {
            http2: builder(config, streams).serve_connection(TokioIo::new(transport), service),
            flusher,
            driver,
            ended: None,
        }
    }
}

impl<T, S> Serve for Http2Task<T, ObservedService<S>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    fn poll_turn(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let task = self.project();
        if task.ended.is_none() {
            let ended = ready!(task.driver.poll(task.http2, task.flusher, cx));
            *task.ended = Some(ended);
        }
        ready!(task.driver.poll_end(cx));
        let ended = task.ended.take().expect("it was set above");
        Poll::Ready(ended.map_err(Into::into))
    }

    fn graceful_shutdown(self: Pin<&mut Self>) {
        let task = self.project();
        if task.ended.is_some() {
            return;
        }
        // It changes hyper's state and wakes nobody, so the poll that sends GOAWAY has to be scheduled.
        task.http2.graceful_shutdown();
        task.driver.schedule_connection();
    }
}

const fn flood_limits(config: &Http2Config) -> FloodLimits {
    FloodLimits {
        faults: config.max_local_error_reset_streams,
        cancellations: config.max_pending_accept_reset_streams,
    }
}

fn builder(config: &Http2Config, streams: StreamExecutor) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        // Counted in time instead, by the watch. The first has to be out of reach: it is what a read brings besides the
        // streams after which the watch pauses.
        .max_pending_accept_reset_streams(UNACCEPTED)
        .max_local_error_reset_streams(None)
        .max_header_list_size(config.max_header_list_size)
        .initial_stream_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_send_buf_size(config.max_send_buffer)
        .keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout);
    builder
}
