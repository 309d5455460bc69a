//! A server of its own for each test, on a free port, and what clients need to speak with it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses its part"
)]

use std::{net::SocketAddr, time::Duration};

use tidegate::{Encoded, Hub, Stats, proto::*};
use tidegate_server::{DrainReport, Server, ServerConfig};
use tokio::{sync::oneshot, task::JoinHandle, time};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

pub use tidegate::proto::{event_service_client::EventServiceClient, subscribe_response::Response};

/// Long enough for a loaded machine; nothing waits for it when all goes well.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Running {
    pub address: SocketAddr,
    pub hub: Hub<Encoded>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<DrainReport>,
}

pub type Client = EventServiceClient<Channel>;

/// A stream whose indexes are checked to be dense, over events and gaps.
pub struct Checked {
    stream: Streaming<SubscribeResponse>,
    pub subscribed: Subscribed,
    pub next_index: u64,
    pub delivered: u64,
    pub counted: u64,
    /// How many gaps there were.
    pub gaps: u32,
    last_sequence: u64,
}

impl Running {
    pub async fn start(config: ServerConfig) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(ServerConfig { listen, ..config })
            .await
            .unwrap();
        let (address, hub) = (server.local_addr(), server.hub().clone());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(async { _ = stopped.await }));
        Self {
            address,
            hub,
            stop,
            served,
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap()
    }

    pub async fn client(&self) -> Client {
        EventServiceClient::new(self.endpoint().connect().await.unwrap())
    }

    /// A client each of whose streams takes 64 KiB from the server before it is read, and the connection
    /// enough for many.
    pub async fn client_with_small_windows(&self) -> Client {
        let endpoint = self
            .endpoint()
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(8 << 20);
        EventServiceClient::new(endpoint.connect().await.unwrap())
    }

    pub async fn stop(self) -> DrainReport {
        self.stop.send(()).unwrap();
        time::timeout(PATIENCE, self.served)
            .await
            .expect("the server did not end")
            .unwrap()
    }

    /// Waits until the hub's numbers are as wanted. There is no event for that outside of the server.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Stats) -> bool) {
        let reached = async {
            while !wanted(&self.hub.stats()) {
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        if time::timeout(PATIENCE, reached).await.is_err() {
            panic!("{what}: {:?}", self.hub.stats());
        }
    }
}

pub fn filters(filters: &[&str]) -> SubscribeRequest {
    SubscribeRequest {
        filters: filters.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

pub fn event(topic: &str, payload: impl Into<Vec<u8>>) -> NewEvent {
    NewEvent {
        topic: topic.into(),
        payload: payload.into().into(),
        ..Default::default()
    }
}

pub async fn publish(
    client: &mut Client,
    events: Vec<NewEvent>,
) -> Result<PublishResponse, Status> {
    client
        .publish(PublishRequest { events })
        .await
        .map(tonic::Response::into_inner)
}

pub async fn subscribe(client: &mut Client, request: SubscribeRequest) -> Checked {
    let stream = client.subscribe(request).await.unwrap().into_inner();
    Checked::open(stream).await
}

impl Checked {
    async fn open(mut stream: Streaming<SubscribeResponse>) -> Self {
        let first = time::timeout(PATIENCE, stream.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let Some(Response::Subscribed(subscribed)) = first.response else {
            panic!("not subscribed first: {first:?}")
        };
        let next_index = subscribed.next_index;
        Self {
            stream,
            subscribed,
            next_index,
            delivered: 0,
            counted: 0,
            gaps: 0,
            last_sequence: 0,
        }
    }

    /// The next response, or the status that ended the stream.
    pub async fn next(&mut self) -> Result<Response, Status> {
        let message = time::timeout(PATIENCE, self.stream.message())
            .await
            .expect("nothing came")?;
        let response = message
            .expect("a stream never ends as OK")
            .response
            .expect("a response is set");
        self.check(&response);
        Ok(response)
    }

    fn check(&mut self, response: &Response) {
        self.gaps += u32::from(matches!(response, Response::Gap(_)));
        match response {
            Response::Batch(batch) => {
                assert!(!batch.events.is_empty());
                assert_eq!(batch.first_index, self.next_index, "index of a batch");
                for event in &batch.events {
                    assert!(event.sequence > self.last_sequence, "order");
                    self.last_sequence = event.sequence;
                }
                self.next_index += batch.events.len() as u64;
                self.delivered += batch.events.len() as u64;
            }
            Response::Gap(gap) if gap.count > 0 => {
                assert_eq!(gap.first_index, self.next_index, "index of a gap");
                assert!(
                    gap.first_sequence > self.last_sequence
                        && gap.last_sequence >= gap.first_sequence
                );
                self.last_sequence = gap.last_sequence;
                self.next_index += gap.count;
                self.counted += gap.count;
            }
            _ => {}
        }
    }

    /// Reads events until there are `count` of them; anything else but a heartbeat is a failure.
    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.next().await.unwrap() {
                Response::Batch(batch) => events.extend(batch.events),
                Response::Heartbeat(_) => {}
                other => panic!("expected events: {other:?}"),
            }
        }
        assert_eq!(events.len(), count);
        events
    }

    /// The status with which the stream ends, with nothing but `GoingAway` before it.
    pub async fn end(&mut self) -> (Option<GoingAway>, Status) {
        let mut going_away = None;
        loop {
            match self.next().await {
                Ok(Response::GoingAway(message)) => going_away = Some(message),
                Ok(other) => panic!("expected the end: {other:?}"),
                Err(status) => return (going_away, status),
            }
        }
    }
}

pub fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "tidegate");
    info.reason
}
