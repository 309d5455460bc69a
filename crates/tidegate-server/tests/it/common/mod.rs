//! A server for each test, on a free port, and clients that record what they publish and receive.

use std::{
    fmt,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tidegate::{Encoded, Hub, Stats, proto::*};
use tidegate_checker::{Client as Recorded, Ending, Rules, Stream, Truth, check, engine};
use tidegate_server::{Admission, Controls, DrainReport, Reloader, Server, ServerConfig};
use tokio::{sync::oneshot, task::JoinHandle, time};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) use tidegate::proto::{
    event_service_client::EventServiceClient, subscribe_response::Response,
};

/// Long enough for a loaded machine; nothing waits for it when all goes well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) hub: Hub<Encoded>,
    pub(crate) admission: Admission,
    pub(crate) controls: Controls,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) reloader: Reloader,
    pub(crate) journal: Journal,
    stop: oneshot::Sender<()>,
    served: JoinHandle<DrainReport>,
}

/// A client that writes down in its journal what it publishes and is sent.
#[derive(Clone)]
pub(crate) struct Client {
    inner: EventServiceClient<Channel>,
    journal: Journal,
}

/// The record of all that the clients of a test published and were sent. It is checked when its last holder is dropped.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Records>);

#[derive(Default)]
struct Records {
    hub: Option<Hub<Encoded>>,
    rules: Rules,
    truth: Mutex<Truth>,
    clients: Mutex<Vec<Recorded>>,
}

/// A stream that is recorded, and checked when the test is over; its indexes are checked as they come.
pub(crate) struct Checked {
    stream: Streaming<SubscribeResponse>,
    journal: Journal,
    record: Stream,
    /// It reads all the time, so it may miss nothing.
    pub(crate) is_healthy: bool,
    /// It may break off without a status.
    pub(crate) is_disturbed: bool,
    pub(crate) subscribed: Subscribed,
    pub(crate) next_index: u64,
    pub(crate) delivered: u64,
    pub(crate) counted: u64,
    /// The number of gaps so far.
    pub(crate) gaps: u32,
    last_sequence: u64,
}

impl Running {
    pub(crate) async fn start(config: ServerConfig) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let rules = Rules {
            history_events: config
                .memory_budget
                .is_none()
                .then_some(config.history.max_events as u64),
            may_evict: config.memory_budget.is_some(),
        };
        let mut config = ServerConfig { listen, ..config };
        config.http2.engine = engine();
        let server = Server::bind(config).await.unwrap();
        let (address, hub) = (server.local_addr(), server.hub().clone());
        let admission = server.admission().clone();
        let (controls, http) = (server.controls().clone(), server.http_addr());
        let reloader = server.reloader().clone();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(async { _ = stopped.await }));
        Self {
            address,
            journal: Journal::new(hub.clone(), rules),
            hub,
            admission,
            controls,
            http,
            reloader,
            stop,
            served,
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_over(self.endpoint().connect().await.unwrap())
    }

    pub(crate) fn client_over(&self, channel: Channel) -> Client {
        Client::new(channel, self.journal.clone())
    }

    /// A client each of whose streams takes 64 KiB from the server before it is read, and the connection
    /// enough for many.
    pub(crate) async fn client_with_small_windows(&self) -> Client {
        let endpoint = self
            .endpoint()
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(8 << 20);
        self.client_over(endpoint.connect().await.unwrap())
    }

    pub(crate) async fn stop(self) -> DrainReport {
        self.stop.send(()).unwrap();
        Self::ended(self.served).await
    }

    /// Waits for a server that was told to drain otherwise.
    pub(crate) async fn drained(self) -> DrainReport {
        Self::ended(self.served).await
    }

    async fn ended(served: JoinHandle<DrainReport>) -> DrainReport {
        time::timeout(PATIENCE, served)
            .await
            .expect("the server did not end")
            .unwrap()
    }

    /// Waits until the hub's numbers are as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Stats) -> bool) {
        until(what, || self.hub.stats(), wanted).await;
    }
}

/// Waits until the numbers of a server are as wanted. There is no event for that outside of the server.
pub(crate) async fn until<S: fmt::Debug>(
    what: &str,
    stats: impl Fn() -> S,
    wanted: impl Fn(&S) -> bool,
) {
    let pause = Duration::from_millis(1);
    if !comes_true(pause, async || wanted(&stats())).await {
        panic!("{what}: {:?}", stats());
    }
}

/// Asks until the answer is yes, with a pause between. Returns whether that came in time. For what has no event outside
/// of the server.
pub(crate) async fn comes_true(pause: Duration, mut ask: impl AsyncFnMut() -> bool) -> bool {
    let asked = async {
        while !ask().await {
            time::sleep(pause).await;
        }
    };
    time::timeout(PATIENCE, asked).await.is_ok()
}

impl Client {
    pub(crate) fn new(channel: Channel, journal: Journal) -> Self {
        Self {
            inner: EventServiceClient::new(channel),
            journal,
        }
    }
}

impl Deref for Client {
    type Target = EventServiceClient<Channel>;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}

impl Journal {
    pub(crate) fn new(hub: Hub<Encoded>, rules: Rules) -> Self {
        let mut records = Records::default();
        (records.hub, records.rules) = (Some(hub), rules);
        Self(Arc::new(records))
    }

    /// Notes what became of a batch.
    pub(crate) fn note(&self, events: &[NewEvent], answer: Option<&PublishResponse>) {
        let mut truth = self.0.truth.lock().unwrap();
        let batch: Vec<_> = events.iter().map(|event| truth.prepare(event)).collect();
        match answer {
            Some(answer) => truth.acknowledge(&batch, answer).unwrap(),
            None => truth.leave_open(batch),
        }
    }

    fn head(&self) -> u64 {
        let hub = self.0.hub.as_ref();
        hub.map_or(0, |hub| hub.position().sequence)
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let truth = self.truth.get_mut().unwrap();
        let clients = self.clients.get_mut().unwrap();
        let streams = clients.iter().flat_map(|client| &client.streams);
        let checked = truth
            .resolve(streams.flat_map(Stream::deliveries))
            .and_then(|()| check(truth, clients, self.rules));
        if let Err(violation) = checked {
            panic!("{violation}");
        }
    }
}

pub(crate) fn filters(filters: &[&str]) -> SubscribeRequest {
    SubscribeRequest {
        filters: filters.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

pub(crate) fn event(topic: &str, payload: impl Into<Vec<u8>>) -> NewEvent {
    NewEvent {
        topic: topic.into(),
        payload: payload.into().into(),
        ..Default::default()
    }
}

pub(crate) async fn publish(
    client: &mut Client,
    events: Vec<NewEvent>,
) -> Result<PublishResponse, Status> {
    let request = PublishRequest {
        events: events.clone(),
    };
    let published = client.publish(request).await;
    let answer = published.map(tonic::Response::into_inner);
    client.journal.note(&events, answer.as_ref().ok());
    answer
}

pub(crate) async fn subscribe(client: &mut Client, request: SubscribeRequest) -> Checked {
    let record = Stream::new(request.clone());
    let stream = client.subscribe(request).await.unwrap().into_inner();
    Checked::open(stream, record, client.journal.clone()).await
}

impl Checked {
    async fn open(
        mut stream: Streaming<SubscribeResponse>,
        mut record: Stream,
        journal: Journal,
    ) -> Self {
        let first = time::timeout(PATIENCE, stream.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let response = first.response.clone().map(Into::into);
        record.record(response.as_ref(), || journal.head());
        let Some(Response::Subscribed(subscribed)) = first.response else {
            panic!("not subscribed first: {first:?}")
        };
        let next_index = subscribed.next_index;
        Self {
            stream,
            journal,
            record,
            is_healthy: false,
            is_disturbed: false,
            subscribed,
            next_index,
            delivered: 0,
            counted: 0,
            gaps: 0,
            last_sequence: 0,
        }
    }

    /// The next response, or the status that ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Response, Status> {
        let message = time::timeout(PATIENCE, self.stream.message())
            .await
            .expect("nothing came")
            .inspect_err(|status| self.record.end(Ending::from(status)))?;
        let response = message
            .expect("a stream never ends as OK")
            .response
            .expect("a response is set");
        let recorded = response.clone().into();
        self.record.record(Some(&recorded), || self.journal.head());
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
    pub(crate) async fn events(&mut self, count: usize) -> Vec<Event> {
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
    pub(crate) async fn end(&mut self) -> (Option<GoingAway>, Status) {
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

impl Drop for Checked {
    fn drop(&mut self) {
        let recorded = Recorded {
            name: self.subscribed.client_id.clone(),
            is_healthy: self.is_healthy,
            is_disturbed: self.is_disturbed,
            streams: vec![std::mem::take(&mut self.record)],
        };
        self.journal.0.clients.lock().unwrap().push(recorded);
    }
}

pub(crate) fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "tidegate");
    let trailer = status.metadata().get("tidegate-reason");
    assert_eq!(trailer.unwrap(), info.reason.as_str());
    info.reason
}
