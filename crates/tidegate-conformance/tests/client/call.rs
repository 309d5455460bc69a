//! A call of gRPC on h2, which reads what tonic does not: pages of proxies, details that are no base64, single bytes.

use std::{io, net::SocketAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, client};
use http::{HeaderMap, Request, StatusCode};
use prost::Message as _;
use tidegate_proto::v1::{SubscribeRequest, SubscribeResponse};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tonic::{Code, Status};

/// The responses of a call.
pub struct Responses {
    body: RecvStream,
    ready: BytesMut,
    _connection: JoinSet<()>,
}

/// The end of a call.
pub struct Ended {
    pub status: Status,
    pub kind: Kind,
}

/// A kind of end.
pub enum Kind {
    /// The server, or a proxy, said so.
    Status,
    /// The stream was reset.
    Reset,
    /// The connection broke, or nothing came.
    Broken,
}

impl Ended {
    pub fn broken(words: &str) -> Self {
        Self {
            status: Status::unavailable(words),
            kind: Kind::Broken,
        }
    }

    fn status(status: Status) -> Self {
        Self {
            status,
            kind: Kind::Status,
        }
    }
}

impl From<h2::Error> for Ended {
    fn from(error: h2::Error) -> Self {
        let code = match error.reason().filter(|_| error.is_reset()) {
            Some(Reason::REFUSED_STREAM) => Code::Unavailable,
            Some(Reason::CANCEL) => Code::Cancelled,
            Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
            Some(_) => Code::Internal,
            None => return Self::broken(&error.to_string()),
        };
        Self {
            status: Status::new(code, error.to_string()),
            kind: Kind::Reset,
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::broken(&error.to_string())
    }
}

impl Responses {
    pub async fn open(
        server: SocketAddr,
        request: &SubscribeRequest,
        token: Option<String>,
    ) -> Result<Self, Ended> {
        let (mut sender, connection) = client::handshake(TcpStream::connect(server).await?).await?;
        let mut task = JoinSet::new();
        task.spawn(async {
            // Its failure is that of the stream.
            let _ = connection.await;
        });
        let uri = format!("http://{server}/tidegate.v1.EventService/Subscribe");
        let mut head = Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            head = head.header("authorization", format!("Bearer {token}"));
        }
        let (response, mut body) = sender.send_request(head.body(()).unwrap(), false)?;
        let message = request.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let framed = [&[0], &length[..], &message].concat();
        body.send_data(Bytes::from(framed), true)?;
        let (head, body) = response.await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Ended::status(page(head.status)));
        }
        match status(head.headers) {
            Some(status) => Err(Ended::status(status)),
            None => Ok(Self {
                body,
                ready: BytesMut::new(),
                _connection: task,
            }),
        }
    }

    /// Returns the next response. None: the end, with OK or without a status. `silence` is the longest time without a
    /// byte.
    pub async fn message(&mut self, silence: Duration) -> Result<Option<SubscribeResponse>, Ended> {
        loop {
            if let Some(length) = self.ready.get(1..5) {
                let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
                if self.ready.len() >= 5 + length {
                    self.ready.advance(5);
                    let message = self.ready.split_to(length);
                    return Ok(Some(SubscribeResponse::decode(message).unwrap()));
                }
            }
            let data = timeout(silence, self.body.data()).await;
            match data.map_err(|_| Ended::broken("silence"))? {
                Some(data) => {
                    let data = data?;
                    let _ = self.body.flow_control().release_capacity(data.len());
                    self.ready.extend_from_slice(&data);
                }
                None => {
                    let trailers = self.body.trailers().await?;
                    return match trailers.and_then(status) {
                        Some(status) if status.code() != Code::Ok => Err(Ended::status(status)),
                        _ => Ok(None),
                    };
                }
            }
        }
    }
}

fn status(mut headers: HeaderMap) -> Option<Status> {
    const DETAILS: &str = "grpc-status-details-bin";

    if let Some(details) = headers.get(DETAILS) {
        let text = details.as_bytes().trim_ascii_end();
        let text = text.strip_suffix(b"=").unwrap_or(text);
        if general_purpose::STANDARD_NO_PAD.decode(text).is_err() {
            headers.remove(DETAILS);
        }
    }
    Status::from_header_map(&headers)
}

/// Status of an answer in HTTP, by gRPC's table.
fn page(status: StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("HTTP {status}"))
}
