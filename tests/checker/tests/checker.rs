//! Checks the checker: a good run passes, and for each guarantee the checker detects a drainer that breaks it.
//!
//! The test makes one real run. It then records the responses of the run again through a broken drainer, which changes
//! them on the way, and the checker must name the broken guarantee.

use std::{mem, net::SocketAddr};

use tidegate::Stats;
use tidegate_checker::{
    Client, Ending, Remainder, Rules, Stream, Tally, Truth, Violation, check, check_clean_up,
    check_memory, engine,
    lean::{Batch, Event, Response},
};
use tidegate_proto::v1::{
    Gap, GapReason, Heartbeat, Limits, NewEvent, Overflow, Position, PublishRequest,
    PublishResponse, SubscribeRequest, Subscribed, event_service_client::EventServiceClient,
};
use tidegate_server::{Server, ServerConfig};
use tokio::sync::oneshot;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

/// Events in the burst, which overflows one subscription and which another conflates.
const BURST: u64 = 50;
/// Events that the overflowing subscription may be behind.
const LIMIT: u64 = 10;
/// Keys of the burst.
const KEYS: u64 = 5;

/// The responses on one stream, and its end.
#[derive(Clone)]
struct Script {
    name: &'static str,
    is_healthy: bool,
    is_complete: bool,
    request: SubscribeRequest,
    responses: Vec<Response>,
    ending: Ending,
}

/// A run: the published events, and the streams in the order healthy, overflowing, conflating, resuming.
struct Run {
    truth: Truth,
    head: u64,
    scripts: Vec<Script>,
}

const HEALTHY: usize = 0;
const OVERFLOWING: usize = 1;
const CONFLATING: usize = 2;
const RESUMING: usize = 3;

/// A broken drainer: its name, the stream, the change of the responses, and the violation to detect.
type Breakage = (
    &'static str,
    usize,
    fn(&mut Script, &[Event]),
    fn(&Violation) -> bool,
);

#[tokio::test]
async fn good_run_passes_and_each_broken_drainer_is_detected() {
    let run = Run::record().await;
    let tally = run.check(&run.scripts).unwrap();
    assert_eq!(
        tally.delivered + tally.missed["OVERFLOW"] + tally.missed["CONFLATED"],
        tally.slots()
    );
    assert_eq!((tally.streams, tally.resumed), (4, 1));
    assert_eq!(tally.endings["SHUTTING_DOWN"], 4);
    assert_eq!(tally.missed["OVERFLOW"], BURST - LIMIT);
    assert_eq!(tally.missed["CONFLATED"], BURST - KEYS);

    for (name, stream, breakage, is_named) in BREAKAGES {
        let mut scripts = run.scripts.clone();
        let events = run.events();
        breakage(&mut scripts[*stream], &events);
        scripts[*stream].number();
        let found = run.check(&scripts).expect_err(name);
        assert!(is_named(&found), "{name}: {found}");
    }
}

const BREAKAGES: &[Breakage] = &[
    (
        "two events change places",
        HEALTHY,
        |script, _| script.batch().events.swap(0, 1),
        is_order,
    ),
    (
        "an event comes twice",
        HEALTHY,
        |script, _| {
            let events = &mut script.batch().events;
            events.insert(1, events[0].clone());
        },
        is_order,
    ),
    (
        "an event is left out",
        HEALTHY,
        |script, _| _ = script.batch().events.remove(1),
        is_silent_loss,
    ),
    (
        "the last event is left out",
        HEALTHY,
        |script, _| _ = script.last_batch().events.pop(),
        is_silent_loss,
    ),
    (
        "a payload is changed",
        HEALTHY,
        |script, _| script.batch().events[1].payload = "?".into(),
        is_silent_loss,
    ),
    (
        "a gap counts one too few",
        OVERFLOWING,
        |script, _| script.gap().count -= 1,
        is_silent_loss,
    ),
    (
        "a gap counts one too many",
        OVERFLOWING,
        |script, _| script.gap().count += 1,
        is_silent_loss,
    ),
    (
        "a gap is left out",
        OVERFLOWING,
        |script, _| {
            script
                .responses
                .retain(|response| !matches!(response, Response::Gap(_)));
        },
        is_silent_loss,
    ),
    (
        "what was replaced is not counted",
        CONFLATING,
        |script, _| script.gap().count -= 1,
        is_silent_loss,
    ),
    (
        "a gap is of a reason that cannot be",
        OVERFLOWING,
        |script, _| {
            script.gap().set_reason(GapReason::Evicted);
        },
        is_silent_loss,
    ),
    (
        "a client that reads is made to miss something",
        HEALTHY,
        |script, _| {
            let events = mem::take(&mut script.batch().events);
            let gap = gap(GapReason::Overflow, &events);
            let batch = |response: &&mut Response| matches!(response, Response::Batch(batch) if batch.events.is_empty());
            *script.responses.iter_mut().find(batch).unwrap() = gap;
        },
        is_isolation,
    ),
    (
        "the newest are dropped",
        OVERFLOWING,
        |script, events| {
            let (kept, dropped) = events.split_at(1 + LIMIT as usize);
            script.set_live([batch(kept), gap(GapReason::Overflow, dropped)]);
        },
        is_freshness,
    ),
    (
        "more is dropped than must be",
        OVERFLOWING,
        |script, events| {
            let (dropped, kept) = events[1..].split_at((BURST - LIMIT) as usize + 1);
            let first = batch(&events[..1]);
            script.set_live([first, gap(GapReason::Overflow, dropped), batch(kept)]);
        },
        is_freshness,
    ),
    (
        "the newest of a key is called replaced",
        CONFLATING,
        |script, _| {
            script.last_batch().events.remove(0);
            script.gap().count += 1;
        },
        is_freshness,
    ),
    (
        "a replaced event comes instead of the newest",
        CONFLATING,
        |script, events| {
            script.last_batch().events[0] = events[(BURST - 2 * KEYS) as usize + 1].clone();
        },
        is_freshness,
    ),
    (
        "a heartbeat passes what is not counted",
        CONFLATING,
        |script, _| {
            // Only the heartbeat can reveal it: the client does not claim to have every response.
            script.is_complete = false;
            script.gap().count -= 1;
            script.last_batch().events.pop();
            script.add_heartbeat();
        },
        is_silent_loss,
    ),
    (
        "a heartbeat states less than what is counted up to it",
        CONFLATING,
        |script, _| {
            script.is_complete = false;
            script.gap().count += 1;
            script.add_heartbeat();
        },
        is_silent_loss,
    ),
    (
        "a position is left out although events are settled",
        HEALTHY,
        |script, _| {
            script
                .responses
                .push(Response::Heartbeat(Heartbeat { position: None }));
        },
        is_resume,
    ),
    (
        "a replay leaves out its first event",
        RESUMING,
        |script, _| _ = script.batch().events.remove(0),
        is_resume,
    ),
    (
        "a replay repeats an event",
        RESUMING,
        |script, events| {
            script.batch().events.insert(0, events[9].clone());
        },
        is_resume,
    ),
    (
        "a replay ends too soon",
        RESUMING,
        |script, _| {
            let end = script
                .responses
                .iter()
                .position(|response| matches!(response, Response::CaughtUp(_)));
            script.responses[1..=end.unwrap()].rotate_right(1);
        },
        is_resume,
    ),
    (
        "a history that has it all is said to have expired",
        RESUMING,
        |script, events| {
            script.batch().events.remove(0);
            let expired = Gap {
                count: 0,
                ..gap_over(GapReason::Expired, &events[10..11])
            };
            script.responses.insert(1, Response::Gap(expired));
        },
        is_resume,
    ),
    (
        "another epoch is not told",
        RESUMING,
        |script, _| {
            script.request.resume_after.as_mut().unwrap().epoch ^= 2;
        },
        is_resume,
    ),
    (
        "a stream ends as OK",
        HEALTHY,
        |script, _| script.ending = Ending::Finished,
        is_honest_ending,
    ),
    (
        "a stream breaks off",
        HEALTHY,
        |script, _| {
            script.ending = Ending::Status {
                code: Code::Internal,
                reason: None,
                position: None,
            };
        },
        is_honest_ending,
    ),
    (
        "a code and a reason do not belong together",
        HEALTHY,
        |script, _| {
            let Ending::Status { code, .. } = &mut script.ending else {
                panic!("no status")
            };
            *code = Code::Ok;
        },
        is_honest_ending,
    ),
    (
        "a drain is not announced",
        HEALTHY,
        |script, _| {
            script
                .responses
                .retain(|response| !matches!(response, Response::GoingAway(_)));
        },
        is_honest_ending,
    ),
    (
        "an ending points beyond what was delivered",
        OVERFLOWING,
        |script, _| {
            // Only the ending can reveal it: the client does not claim to have every response.
            script.is_complete = false;
            script.last_batch().events.pop();
        },
        is_honest_ending,
    ),
    (
        "an ending does not say where to resume",
        HEALTHY,
        |script, _| {
            let Ending::Status { position, .. } = &mut script.ending else {
                panic!("no status")
            };
            *position = None;
        },
        is_honest_ending,
    ),
    (
        "an ending before the first event of a replay of the last points before all of history",
        HEALTHY,
        |script, events| {
            let Some(Response::Subscribed(subscribed)) = script.responses.first_mut() else {
                panic!("not subscribed first")
            };
            let head = subscribed.position.as_mut().unwrap();
            head.sequence = events.last().unwrap().sequence;
            let beginning = Position {
                sequence: 0,
                ..*head
            };
            script.request.replay_last = 1;
            script.is_complete = false;
            script.responses.retain_mut(|response| match response {
                Response::GoingAway(going_away) => {
                    going_away.resume_after = Some(beginning);
                    true
                }
                other => matches!(other, Response::Subscribed(_)),
            });
            let Ending::Status { position, .. } = &mut script.ending else {
                panic!("no status")
            };
            *position = Some(beginning);
        },
        |violation| matches!(violation, Violation::Resume(_)),
    ),
];

/// A stream of events with the numbers 1 to 6, all of one key, of which the predicate matches 2, 4 and 6.
fn with_predicate(overflow: Overflow, delivered: &[u64], gaps: &[Gap]) -> Result<Tally, Violation> {
    let mut truth = Truth::default();
    let event = |number: u64| NewEvent {
        topic: "t.x".into(),
        payload: number.to_le_bytes().to_vec().into(),
        ..NewEvent::default()
    };
    let prepared: Vec<_> = (1..=6)
        .map(|number| truth.prepare(&event(number)))
        .collect();
    let answer = PublishResponse {
        epoch: 1,
        first_sequence: 1,
        last_sequence: 6,
        count: 6,
        ..PublishResponse::default()
    };
    truth.acknowledge(&prepared, &answer)?;
    let mut stream = Stream::new(SubscribeRequest {
        filters: vec!["t.*".into()],
        ..SubscribeRequest::default()
    });
    stream.predicate = Some(Remainder {
        divisor: 2,
        remainder: 0,
    });
    let limits = Limits {
        overflow: overflow.into(),
        ..Limits::default()
    };
    let subscribed = Subscribed {
        position: Some(Position {
            epoch: 1,
            sequence: 0,
        }),
        limits: Some(limits),
        ..Subscribed::default()
    };
    let arrived = |sequence: &u64| Event {
        sequence: *sequence,
        topic: "t.x".into(),
        payload: sequence.to_le_bytes().to_vec().into(),
        ..Event::default()
    };
    let missed: u64 = gaps.iter().map(|gap| gap.count).sum();
    let gaps = gaps.iter().map(|gap| Response::Gap(*gap));
    let batch = Response::Batch(Batch {
        events: delivered.iter().map(arrived).collect(),
        first_index: missed,
    });
    for response in [Response::Subscribed(subscribed)]
        .into_iter()
        .chain(gaps)
        .chain([batch])
    {
        stream.record(Some(&response), || 6);
    }
    stream.complete(6);
    let client = Client {
        streams: vec![stream],
        ..Client::default()
    };
    check(&truth, &[client], Rules::default())
}

#[test]
fn predicate_decides_which_events_are_wanted() {
    let all = Overflow::DropOldest;
    assert_eq!(with_predicate(all, &[2, 4, 6], &[]).unwrap().delivered, 3);
    assert!(is_silent_loss(
        &with_predicate(all, &[2, 6], &[]).unwrap_err()
    ));
    assert!(is_silent_loss(
        &with_predicate(all, &[2, 3, 4, 6], &[]).unwrap_err()
    ));
}

#[test]
fn predicate_decides_which_events_replace_others() {
    let replaced = |count| Gap {
        first_sequence: 2,
        last_sequence: 4,
        count,
        reason: GapReason::Conflated.into(),
        first_index: 0,
    };
    let newest = Overflow::Conflate;
    assert_eq!(
        with_predicate(newest, &[6], &[replaced(2)])
            .unwrap()
            .slots(),
        3
    );
    assert!(is_silent_loss(
        &with_predicate(newest, &[6], &[replaced(1)]).unwrap_err()
    ));
    assert!(is_freshness(
        &with_predicate(newest, &[4, 6], &[replaced(1)]).unwrap_err()
    ));
}

#[test]
fn memory_over_the_bound_is_detected() {
    check_memory(10, 10).unwrap();
    assert!(matches!(
        check_memory(11, 10),
        Err(Violation::BoundedMemory(_))
    ));
}

#[test]
fn leftovers_after_the_clients_are_detected() {
    check_clean_up(&Stats::default()).unwrap();
    for left in [
        Stats {
            subscriptions: 1,
            ..Stats::default()
        },
        Stats {
            clients: 1,
            ..Stats::default()
        },
        Stats {
            feeds: 1,
            ..Stats::default()
        },
        Stats {
            retained_bytes: 1,
            ..Stats::default()
        },
    ] {
        assert!(
            matches!(check_clean_up(&left), Err(Violation::CleanUp(_))),
            "{left:?}"
        );
    }
    let lost = Stats {
        matched: 2,
        handed_off: 1,
        ..Stats::default()
    };
    assert!(matches!(
        check_clean_up(&lost),
        Err(Violation::SilentLoss(_))
    ));
}

fn is_order(violation: &Violation) -> bool {
    matches!(violation, Violation::Order(_))
}

fn is_silent_loss(violation: &Violation) -> bool {
    matches!(violation, Violation::SilentLoss(_))
}

fn is_isolation(violation: &Violation) -> bool {
    matches!(violation, Violation::Isolation(_))
}

fn is_freshness(violation: &Violation) -> bool {
    matches!(violation, Violation::Freshness(_))
}

fn is_resume(violation: &Violation) -> bool {
    matches!(violation, Violation::Resume(_))
}

fn is_honest_ending(violation: &Violation) -> bool {
    matches!(violation, Violation::HonestEnding(_))
}

// ===== impl Script =====

impl Script {
    fn batches(&mut self) -> impl DoubleEndedIterator<Item = &mut Batch> {
        self.responses
            .iter_mut()
            .filter_map(|response| match response {
                Response::Batch(batch) => Some(batch),
                _ => None,
            })
    }

    /// Returns the first batch with several events.
    fn batch(&mut self) -> &mut Batch {
        self.batches().find(|batch| batch.events.len() > 1).unwrap()
    }

    fn last_batch(&mut self) -> &mut Batch {
        self.batches().next_back().unwrap()
    }

    fn gap(&mut self) -> &mut Gap {
        let gap = |response| match response {
            &mut Response::Gap(ref mut gap) => Some(gap),
            _ => None,
        };
        self.responses.iter_mut().find_map(gap).unwrap()
    }

    /// Replaces the events and gaps after `Subscribed`.
    fn set_live(&mut self, responses: impl IntoIterator<Item = Response>) {
        self.responses
            .retain(|response| !matches!(response, Response::Batch(_) | Response::Gap(_)));
        self.responses.splice(1..1, responses);
    }

    /// Adds a heartbeat at the newest event, before the end.
    fn add_heartbeat(&mut self) {
        let Some(Response::Subscribed(subscribed)) = self.responses.first() else {
            panic!("`subscribed` comes first")
        };
        let position = subscribed.position.map(|position| Position {
            sequence: BURST + 1,
            ..position
        });
        let at = self.responses.len() - 1;
        self.responses
            .insert(at, Response::Heartbeat(Heartbeat { position }));
    }

    /// Renumbers the indexes of batches and gaps, as the broken drainer would count them.
    fn number(&mut self) {
        let mut next = 0;
        for response in &mut self.responses {
            match response {
                Response::Subscribed(subscribed) => next = subscribed.next_index,
                Response::Batch(batch) => {
                    batch.first_index = next;
                    next += batch.events.len() as u64;
                }
                Response::Gap(gap) => {
                    gap.first_index = next;
                    next += gap.count;
                }
                _ => {}
            }
        }
    }

    fn record(&self, head: u64) -> Stream {
        let mut stream = Stream::new(self.request.clone());
        for response in &self.responses {
            stream.record(Some(response), || head);
        }
        stream.end(self.ending.clone());
        if self.is_complete {
            stream.complete(head);
        }
        stream
    }
}

fn batch(events: &[Event]) -> Response {
    Response::Batch(Batch {
        events: events.to_vec(),
        first_index: 0,
    })
}

fn gap(reason: GapReason, missing: &[Event]) -> Response {
    Response::Gap(gap_over(reason, missing))
}

fn gap_over(reason: GapReason, missing: &[Event]) -> Gap {
    Gap {
        first_sequence: missing[0].sequence,
        last_sequence: missing.last().unwrap().sequence,
        count: missing.len() as u64,
        reason: reason.into(),
        first_index: 0,
    }
}

// ===== impl Run =====

impl Run {
    fn check(&self, scripts: &[Script]) -> Result<Tally, Violation> {
        let client = |script: &Script| Client {
            name: script.name.into(),
            is_healthy: script.is_healthy,
            is_disturbed: false,
            streams: vec![script.record(self.head)],
        };
        let clients: Vec<_> = scripts.iter().map(client).collect();
        let rules = Rules {
            history_events: Some(10_000),
            may_evict: false,
        };
        check(&self.truth, &clients, rules)
    }

    /// Returns every published event.
    fn events(&self) -> Vec<Event> {
        let mut healthy = self.scripts[HEALTHY].clone();
        healthy
            .batches()
            .flat_map(|batch| batch.events.clone())
            .collect()
    }

    /// Publishes one event and then a burst, to three open streams and to one that resumes later, and drains the
    /// server.
    async fn record() -> Self {
        let mut config = ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            ..ServerConfig::default()
        };
        config.http2.engine = engine();
        let server = Server::bind(config).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(async { _ = stopped.await }));
        let mut publisher = connect(address).await;
        let mut truth = Truth::default();

        let request = |client_id: &str, max_events: u64, overflow: Overflow| SubscribeRequest {
            client_id: client_id.into(),
            filters: vec!["t.*".into()],
            limits: Some(Limits {
                max_events: max_events as u32,
                max_bytes: 0,
                overflow: overflow.into(),
            }),
            ..SubscribeRequest::default()
        };
        let mut open = Vec::new();
        for (name, limit, overflow) in [
            ("healthy", 0, Overflow::DropOldest),
            ("overflowing", LIMIT, Overflow::DropOldest),
            ("conflating", 0, Overflow::Conflate),
        ] {
            open.push(Open::start(address, name, request(name, limit, overflow)).await);
        }
        let event = |number: u64| NewEvent {
            topic: "t.x".into(),
            key: (number % KEYS).to_string(),
            payload: number.to_string().into(),
            ..NewEvent::default()
        };
        let mut epoch = 0;
        for batch in [vec![event(BURST)], (0..BURST).map(event).collect()] {
            let prepared: Vec<_> = batch.iter().map(|event| truth.prepare(event)).collect();
            let answer = publisher
                .publish(PublishRequest { events: batch })
                .await
                .unwrap()
                .into_inner();
            truth.acknowledge(&prepared, &answer).unwrap();
            epoch = answer.epoch;
            for open in &mut open {
                open.read_through(answer.last_sequence).await;
            }
        }
        let resuming = SubscribeRequest {
            resume_after: Some(Position {
                epoch,
                sequence: 10,
            }),
            ..request("resuming", 0, Overflow::DropOldest)
        };
        let mut resuming = Open::start(address, "resuming", resuming).await;
        resuming.read_through(BURST + 1).await;
        open.push(resuming);
        stop.send(()).unwrap();
        let mut scripts = Vec::new();
        for open in open {
            scripts.push(open.read_to_the_end().await);
        }
        served.await.unwrap();
        Self {
            truth,
            head: BURST + 1,
            scripts,
        }
    }
}

/// An open stream.
struct Open {
    script: Script,
    incoming: Streaming<tidegate_proto::v1::SubscribeResponse>,
}

impl Open {
    async fn start(address: SocketAddr, name: &'static str, request: SubscribeRequest) -> Self {
        let incoming = connect(address)
            .await
            .subscribe(request.clone())
            .await
            .unwrap()
            .into_inner();
        let script = Script {
            name,
            is_healthy: name == "healthy",
            is_complete: true,
            request,
            responses: Vec::new(),
            ending: Ending::Cancelled,
        };
        let mut open = Self { script, incoming };
        assert!(open.read().await, "`subscribed` comes first");
        open
    }

    /// Reads a response. Returns `false` at the end of the stream.
    async fn read(&mut self) -> bool {
        match self.incoming.message().await {
            Ok(Some(message)) => self.script.responses.push(message.response.unwrap().into()),
            Ok(None) => self.script.ending = Ending::Finished,
            Err(status) => self.script.ending = Ending::from(&status),
        }
        self.script.ending == Ending::Cancelled
    }

    async fn read_through(&mut self, sequence: u64) {
        let mut last = 0;
        while last < sequence && self.read().await {
            if let Some(Response::Batch(batch)) = self.script.responses.last() {
                last = batch.events.last().unwrap().sequence;
            }
        }
    }

    async fn read_to_the_end(mut self) -> Script {
        while self.read().await {}
        self.script
    }
}

async fn connect(address: SocketAddr) -> EventServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    EventServiceClient::new(endpoint.connect().await.unwrap())
}
