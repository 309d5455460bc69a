//! A connection of a hub on a transport that fails, wherever it fails, and one that is dropped, whenever it is.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tidegate::{CloseReason, Encoded, EventService, Hub, HubConfig, ServiceConfig};
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
    },
    time::timeout,
};
use tonic::service::Routes;

use super::{
    Engine,
    tests::{DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, drive, frame},
};
use crate::service::Serve as _;

/// The way in which a transport fails.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Error,
    /// It takes no bytes, or is at its end.
    Nothing,
    /// It neither takes nor brings anything any more, and wakes nobody.
    Stuck,
}

/// A transport that moves one byte at a time, or fails from one of its operations on.
struct Faulty {
    transport: DuplexStream,
    fault: Fault,
    /// Number of operations before that.
    left: usize,
    /// Bytes that an operation moves at most.
    most: usize,
}

impl Faulty {
    fn fails(&mut self) -> Poll<Option<io::Result<usize>>> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => match self.fault {
                Fault::Error => return Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
                Fault::Nothing => return Poll::Ready(Some(Ok(0))),
                Fault::Stuck => return Poll::Pending,
            },
        }
        Poll::Ready(None)
    }
}

impl AsyncRead for Faulty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.fails() {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(failed)) => return Poll::Ready(failed.map(|_| ())),
            Poll::Ready(None) => {}
        }
        let mut part = buf.take(self.most);
        let read = Pin::new(&mut self.transport).poll_read(cx, &mut part);
        let filled = part.filled().to_vec();
        buf.put_slice(&filled);
        read
    }
}

impl AsyncWrite for Faulty {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.fails() {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(failed)) => return Poll::Ready(failed),
            Poll::Ready(None) => {}
        }
        let most = self.most.min(bytes.len());
        Pin::new(&mut self.transport).poll_write(cx, &bytes[..most])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.fails() {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
            Poll::Ready(_) => Pin::new(&mut self.transport).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.fails() {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
            Poll::Ready(_) => Pin::new(&mut self.transport).poll_shutdown(cx),
        }
    }
}

fn hub() -> (Hub<Encoded>, Routes) {
    let hub = Hub::new(HubConfig::new(1));
    let service = EventService::new(hub.clone(), ServiceConfig::default());
    (hub, Routes::new(service))
}

fn publish(hub: &Hub<Encoded>) {
    let events = (0..10).map(|_| {
        let event = tidegate::proto::NewEvent {
            topic: "t".into(),
            payload: vec![7; 3_000].into(),
            ..Default::default()
        };
        tidegate::encode(event).unwrap()
    });
    let events: Vec<_> = events.collect();
    hub.publish(events, Instant::now()).unwrap();
}

/// A call of `Subscribe` for every event.
fn subscribe(stream: u32) -> Vec<u8> {
    let path = "/tidegate.v1.EventService/Subscribe";
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend_from_slice(path.as_bytes());
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    // The filter `>`.
    let message = [0, 0, 0, 0, 3, 0x12, 1, b'>'];
    let headers = frame(HEADERS, END_HEADERS, stream, &block);
    [headers, frame(DATA, END_STREAM, stream, &message)].concat()
}

/// The acts of a peer: it greets, subscribes twice, and pings. It reads as it comes.
async fn play(peer: &mut DuplexStream, hub: &Hub<Encoded>) -> io::Result<Vec<u8>> {
    let mut received = Vec::new();
    let mut bytes = vec![0; 70_000];
    let begin = [frame(SETTINGS, 0, 0, &[]), subscribe(1), subscribe(3)].concat();
    peer.write_all(&begin).await?;
    for round in 0..3 {
        publish(hub);
        let ping = frame(PING, 0, 0, &[round; 8]);
        peer.write_all(&ping).await?;
        let answer = frame(PING, 1, 0, &[round; 8]);
        while !received.windows(answer.len()).any(|found| found == answer) {
            let length = peer.read(&mut bytes).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            received.extend_from_slice(&bytes[..length]);
        }
    }
    Ok(received)
}

/// Plays on a transport that fails. Returns what the peer received, or `None` if the transport failed before the end.
async fn run(fault: Fault, left: usize, most: usize) -> Option<Vec<u8>> {
    let (mut peer, transport) = duplex(10_000);
    let (hub, routes) = hub();
    let transport = Faulty {
        transport,
        fault,
        left,
        most,
    };
    let served = tokio::spawn(drive(Engine::new(transport, routes, Arc::default())));
    let long = Duration::from_secs(300);
    let played = timeout(long, play(&mut peer, &hub)).await;
    let played = played.unwrap_or_else(|_| panic!("{fault:?} {left}: the peer waits"));
    drop(peer);
    let served = timeout(long, served).await;
    let _ = served
        .unwrap_or_else(|_| panic!("{fault:?} {left}: the connection does not end"))
        .expect("no panic");
    assert_eq!(hub.stats().subscriptions, 0, "{fault:?} {left}");
    played.ok()
}

#[tokio::test(start_paused = true)]
async fn connection_ends_wherever_its_transport_fails() {
    for fault in [Fault::Error, Fault::Nothing, Fault::Stuck] {
        let mut left = 0;
        while run(fault, left, usize::MAX).await.is_none() {
            left += 1;
            assert!(left < 1_000, "{fault:?}: it fails always");
        }
        // The transport has seen work before it failed last.
        assert!(left > 10, "{fault:?}: {left}");
    }
}

#[tokio::test(start_paused = true)]
async fn transport_that_moves_a_byte_at_a_time_carries_a_subscription() {
    let whole = run(Fault::Error, usize::MAX, usize::MAX).await.unwrap();
    let parts = run(Fault::Error, usize::MAX, 1).await.unwrap();
    assert!(whole.len() > 10_000 && parts.len() > 10_000);
}

/// Its future is dropped between any two of its polls.
#[tokio::test(start_paused = true)]
async fn connection_may_be_dropped_at_any_time() {
    for polls in 0..30 {
        let (mut peer, transport) = duplex(2_000);
        let (hub, routes) = hub();
        let mut engine = Engine::new(transport, routes, Arc::default());
        let begin = [frame(SETTINGS, 0, 0, &[]), subscribe(1), subscribe(3)].concat();
        peer.write_all(&begin).await.unwrap();
        let mut bytes = vec![0; 500];
        for poll in 0..polls {
            let mut cx = Context::from_waker(Waker::noop());
            let ended = Pin::new(&mut engine).poll_turn(&mut cx).is_ready();
            assert!(!ended || poll > 20);
            if ended {
                break;
            }
            match poll {
                5 => publish(&hub),
                15 => Pin::new(&mut engine).graceful_shutdown(),
                20 => hub.close(CloseReason::ShuttingDown),
                _ => {}
            }
            let _ = timeout(Duration::ZERO, peer.read(&mut bytes)).await;
        }
        if (1..=20).contains(&polls) {
            assert_eq!(hub.stats().subscriptions, 2, "{polls}");
        }
        drop(engine);
        assert_eq!(hub.stats().subscriptions, 0, "{polls}");
        let mut rest = Vec::new();
        timeout(Duration::from_secs(1), peer.read_to_end(&mut rest))
            .await
            .expect("it was closed")
            .unwrap();
    }
}
