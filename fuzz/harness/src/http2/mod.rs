//! The same bytes of a peer into both engines of HTTP/2: what the peer is sent and what the service sees must be the same.

mod peer;
mod script;

use std::{
    convert::Infallible,
    fmt,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request::Parts};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tidegate_transport::{Connection, Http2Config, Http2Engine, RequestBody, read_preface};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    time::{sleep, timeout},
};
use tower::service_fn;

use self::{
    peer::Sent,
    script::{Act, script},
};
use crate::{PREFACE, runtime};

/// The most concurrent streams, more than a script has: a call that was answered is over here, and with hyper when the rest
/// of its request was read.
const STREAMS: u32 = 10_000;

/// The end of what a server does by itself, and before the first time-out. The clock is paused, and skips it.
const REST: Duration = Duration::from_millis(100);

/// Bytes of the large response, more than the windows have room for.
const LARGE: usize = 100_000;

/// Record of a service: each request in its order, and how its body ended.
type Journal = Arc<Mutex<Vec<String>>>;

/// The outcome of a script.
#[derive(Debug)]
struct Outcome {
    sent: Sent,
    seen: Vec<String>,
}

/// Compares the engines.
///
/// # Panics
/// If they differ.
pub fn http2(bytes: &[u8]) {
    let script = script(bytes);
    let [ours, theirs] =
        [Http2Engine::Tidegate, Http2Engine::Hyper].map(|engine| run(&script, engine));
    assert!(
        are_alike(&script, &ours, &theirs),
        "they differ\nours   {ours}\ntheirs {theirs}\nscript {script:#?}"
    );
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "goaway {:?}", self.sent.goaway)?;
        for (id, stream) in &self.sent.streams {
            write!(f, "; {id}: {stream:?}")?;
        }
        write!(f, "; seen {:?}", self.seen)
    }
}

fn are_alike(script: &[Act], ours: &Outcome, theirs: &Outcome) -> bool {
    let is_error = |outcome: &Outcome| outcome.sent.goaway.is_some_and(|code| code != 0);
    match (is_error(ours), is_error(theirs)) {
        // How far each came before is a matter of timing.
        (true, true) => true,
        (false, false) => {
            let [ours_sent, theirs_sent] = [ours, theirs].map(|outcome| outcome.sent.settled());
            ours_sent == theirs_sent && ours.seen == theirs.seen
        }
        // h2 ends the connection for trailers of a stream that it has forgotten.
        (false, true) => script.iter().any(|act| {
            let stream = act.trailers_of().and_then(|id| ours.sent.streams.get(&id));
            stream.is_some_and(|stream| stream.reset.is_some() || stream.has_ended)
        }),
        _ => false,
    }
}

fn run(script: &[Act], engine: Http2Engine) -> Outcome {
    let journal = Journal::default();
    let runtime = runtime();
    let seen = Arc::clone(&journal);
    let sent = runtime.block_on(async move {
        let (peer, transport) = duplex(1 << 20);
        let (mut reader, mut writer) = split(peer);
        writer.write_all(PREFACE).await.expect("there is room");
        let transport = read_preface(transport).await.expect("it was sent");
        let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
        let config = Http2Config {
            engine,
            max_concurrent_streams: STREAMS,
            ..Http2Config::default()
        };
        let serving = tokio::spawn(Connection::new(transport, service, &config));
        let reading = tokio::spawn(async move {
            let mut sent = Vec::new();
            // It fails if the connection is cut.
            _ = reader.read_to_end(&mut sent).await;
            sent
        });
        // In one piece each, which both read at once: what comes before what would be a matter of timing otherwise.
        let mut piece = Vec::new();
        for act in script {
            if let Act::Send(bytes) | Act::Trailers(_, bytes) = act {
                piece.extend_from_slice(bytes);
                continue;
            }
            // It fails if the connection has ended.
            _ = writer.write_all(&std::mem::take(&mut piece)).await;
            sleep(REST).await;
        }
        _ = writer.write_all(&piece).await;
        sleep(REST).await;
        _ = writer.shutdown().await;
        let hour = Duration::from_secs(3_600);
        let served = timeout(hour, serving)
            .await
            .expect("it ends without a peer");
        // Arbitrary bytes often end a connection with an error.
        _ = served.expect("it does not panic");
        reading.await.expect("reading does not panic")
    });
    drop(runtime);
    let seen = journal.lock().expect("nobody panics").clone();
    Outcome {
        sent: Sent::read(&sent),
        seen,
    }
}

/// A response of so many bytes, or one that never comes to its end.
struct Answer {
    left: usize,
    is_silent: bool,
    trailers: Option<HeaderMap>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left > 0 {
            let length = self.left.min(10_000);
            self.left -= length;
            return Poll::Ready(Some(Ok(Frame::data(vec![7; length].into()))));
        }
        if self.is_silent {
            return Poll::Pending;
        }
        Poll::Ready(
            self.trailers
                .take()
                .map(|trailers| Ok(Frame::trailers(trailers))),
        )
    }
}

/// Notes a request as soon as it comes: whether it is still there when it is polled is a matter of timing.
fn answer(
    request: Request<RequestBody>,
    journal: Journal,
) -> impl Future<Output = Result<Response<Answer>, Infallible>> {
    let (parts, body) = request.into_parts();
    let mut headers: Vec<_> = (parts.headers.iter())
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    headers.sort();
    let place = {
        let mut seen = journal.lock().expect("nobody panics");
        seen.push(format!("{} {} {headers:?}", parts.method, parts.uri));
        seen.len() - 1
    };
    respond(parts, body, journal, place)
}

async fn respond(
    parts: Parts,
    body: RequestBody,
    journal: Journal,
    place: usize,
) -> Result<Response<Answer>, Infallible> {
    let (left, status) = match parts.uri.path() {
        "/echo" => {
            // A service whose stream is reset may be told, or be dropped at once.
            let Some((length, trailers)) = read(body).await else {
                pending().await
            };
            journal.lock().expect("nobody panics")[place] += &format!(" {length} {trailers}");
            (length, 200)
        }
        "/now" => (5, 200),
        "/large" => (LARGE, 200),
        "/silent" => (0, 200),
        _ => (0, 404),
    };
    let is_silent = parts.uri.path() == "/silent";
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    let mut response = Response::new(Answer {
        left,
        is_silent,
        trailers: Some(trailers),
    });
    *response.status_mut() = status.try_into().expect("a status");
    Ok(response)
}

/// Reads a body: its length and its trailers, or `None` if it was cut.
async fn read(mut body: RequestBody) -> Option<(usize, String)> {
    let (mut length, mut trailers) = (0, String::new());
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) => length += data.len(),
            Err(frame) => trailers = format!("{:?}", frame.into_trailers().ok()?),
        }
    }
    Some((length, trailers))
}
