//! The clients of a typed hub, its hooks, and the end of a server, over real sockets.

use std::time::Duration;

use tidegate::{
    ClientId, ClientIdPolicy, CloseReason, Filter,
    typed::{Builder, Hub, LeaveReason},
};
use tidegate_embedding_tests::{
    Running, next, on,
    proto::{ServerEvent, WatchRequest, feed_client::FeedClient},
    text, watch, within_patience,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

async fn watch_as(
    client: &mut FeedClient<Channel>,
    id: &str,
    topic: &str,
) -> Result<Streaming<ServerEvent>, Status> {
    let request = WatchRequest {
        client_id: id.into(),
        ..watch(topic)
    };
    Ok(client.watch(request).await?.into_inner())
}

/// A hub whose hooks record their calls.
fn heard() -> (Builder<ServerEvent>, Receiver<String>) {
    let (heard, listening) = channel(100);
    let note = move |heard: &Sender<String>, what: String| heard.try_send(what).unwrap();
    let (join, leave, first, last) = (heard.clone(), heard.clone(), heard.clone(), heard);
    let builder = Hub::builder()
        .on_join(move |client| note(&join, format!("{} comes", client.client_id)))
        .on_leave(move |client| {
            let (id, reason) = (&client.client_id, client.reason);
            note(
                &leave,
                format!("{id} goes: {reason:?}, {}", client.delivered),
            );
        })
        .on_first_subscriber(move |topic| note(&first, format!("{topic} is wanted")))
        .on_last_subscriber(move |topic| note(&last, format!("{topic} is not wanted")));
    (builder, listening)
}

async fn hears(listening: &mut Receiver<String>, wanted: &[&str]) {
    for wanted in wanted {
        let heard = within_patience(listening.recv()).await.unwrap();
        assert_eq!(heard, *wanted);
    }
}

fn reason(status: &Status) -> String {
    let reason = status.get_details_error_info().unwrap().reason;
    assert_eq!(
        status.metadata().get("tidegate-reason").unwrap(),
        reason.as_str()
    );
    reason
}

#[tokio::test]
async fn hooks_report_clients_and_filters() {
    let (builder, mut listening) = heard();
    let server = Running::start(builder.build()).await;
    let mut client = server.client().await;
    let mut anna = watch_as(&mut client, "anna", "rooms.blue").await.unwrap();
    hears(&mut listening, &["anna comes", "rooms.blue is wanted"]).await;
    let bert = watch_as(&mut client, "bert", "rooms.blue").await.unwrap();
    hears(&mut listening, &["bert comes"]).await;
    assert_eq!(
        server.hub.subscribers(&Filter::new("rooms.blue").unwrap()),
        2
    );

    server.hub.publish(on("rooms.blue", "hello")).unwrap();
    assert_eq!(next(&mut anna).await.unwrap().text, "hello");
    // No event flows while the streams end.
    drop(anna);
    hears(&mut listening, &["anna goes: Dropped, 1"]).await;
    drop(bert);
    let last = ["bert goes: Dropped, 1", "rooms.blue is not wanted"];
    hears(&mut listening, &last).await;
    assert!(server.hub.clients().is_empty());
    assert_eq!(server.hub.stats().feeds, 0);
}

#[tokio::test]
async fn a_handler_can_wait_for_its_subscription_to_go() {
    let hub = Hub::<ServerEvent>::new();
    let subscription = hub.subscribe().client_id("anna").ignore_losses();
    let subscription = subscription.open().unwrap();
    let closed = tokio::spawn(subscription.closed());
    hub.publish(text("not read")).unwrap();
    drop(subscription);
    let departure = within_patience(closed).await.unwrap();
    assert_eq!(departure.reason, LeaveReason::Dropped);
    assert_eq!((departure.delivered, departure.backlog), (0, 1));
    assert_eq!(departure.position.sequence, 0);
}

#[tokio::test]
async fn the_newest_stream_of_a_client_takes_over() {
    let (builder, mut listening) = heard();
    let server = Running::start(builder.build()).await;
    let mut client = server.client().await;
    let mut old = watch_as(&mut client, "anna", "a").await.unwrap();
    hears(&mut listening, &["anna comes", "a is wanted"]).await;
    let mut new = watch_as(&mut client, "anna", "a").await.unwrap();
    let status = next(&mut old).await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::Aborted, "TAKEN_OVER")
    );
    let news = ["anna comes", "anna goes: Ended(TakenOver), 0"];
    hears(&mut listening, &news).await;
    server.hub.publish(on("a", "1")).unwrap();
    assert_eq!(next(&mut new).await.unwrap().text, "1");
}

#[tokio::test]
async fn client_id_in_use_is_refused_under_that_policy() {
    let hub = Hub::builder().client_ids(ClientIdPolicy::Reject).build();
    let server = Running::start(hub).await;
    let mut client = server.client().await;
    let old = watch_as(&mut client, "anna", "a").await.unwrap();
    let status = watch_as(&mut client, "anna", "a").await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::AlreadyExists, "CLIENT_ID_TAKEN")
    );
    drop(old);
}

#[tokio::test]
async fn client_may_have_several_streams_under_that_policy() {
    let hub = Hub::builder().client_ids(ClientIdPolicy::Several).build();
    let server = Running::start(hub).await;
    let mut client = server.client().await;
    let mut one = watch_as(&mut client, "anna", "a").await.unwrap();
    let mut other = watch_as(&mut client, "anna", "b").await.unwrap();
    assert!(server.hub.send("anna", text("both")).unwrap());
    assert_eq!(next(&mut one).await.unwrap().text, "both");
    assert_eq!(next(&mut other).await.unwrap().text, "both");
}

#[tokio::test]
async fn a_value_can_be_sent_to_one_client() {
    let server = Running::start(Hub::new()).await;
    let mut client = server.client().await;
    let mut anna = watch_as(&mut client, "anna", "a").await.unwrap();
    let mut bert = watch_as(&mut client, "bert", "a").await.unwrap();
    assert!(server.hub.send("anna", text("for anna")).unwrap());
    assert!(!server.hub.send("nobody", text("lost")).unwrap());
    server.hub.publish(on("a", "for all")).unwrap();
    assert_eq!(next(&mut anna).await.unwrap().text, "for anna");
    assert_eq!(next(&mut anna).await.unwrap().text, "for all");
    assert_eq!(next(&mut bert).await.unwrap().text, "for all");
}

#[tokio::test]
async fn a_client_can_be_disconnected_with_a_status() {
    let (builder, mut listening) = heard();
    let server = Running::start(builder.build()).await;
    let mut client = server.client().await;
    let mut anna = watch_as(&mut client, "anna", "a").await.unwrap();
    hears(&mut listening, &["anna comes", "a is wanted"]).await;
    let id = ClientId::new("anna").unwrap();
    let status = Status::permission_denied("you were banned");
    assert_eq!(server.hub.disconnect(&id, &status), 1);
    let status = next(&mut anna).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "you were banned");
    let news = ["anna goes: Ended(Disconnected), 0", "a is not wanted"];
    hears(&mut listening, &news).await;
}

#[tokio::test]
async fn subscriptions_are_listed_with_backlog_and_losses() {
    let hub = Hub::<ServerEvent>::new();
    let limits = tidegate::Limits {
        max_events: 3.try_into().unwrap(),
        ..Default::default()
    };
    let subscribe = hub.subscribe().client_id("anna").topic("a").limits(limits);
    let mut anna = subscribe.ignore_losses().open().unwrap();
    for number in 1..=5 {
        hub.publish(on("a", &number.to_string())).unwrap();
    }
    let clients = hub.clients();
    assert_eq!(clients[0].filters, [Filter::new("a").unwrap()]);
    assert_eq!((clients[0].backlog, clients[0].lost), (5, 0));
    let first = tokio_stream::StreamExt::next(&mut anna).await;
    assert_eq!(first.unwrap().unwrap().text, "3");
    let clients = hub.clients();
    assert_eq!((clients[0].backlog, clients[0].lost), (0, 2));
}

#[tokio::test]
async fn server_shutdown_tells_open_streams_where_to_resume() {
    let (builder, mut listening) = heard();
    let server = Running::start(builder.build()).await;
    let mut client = server.client().await;
    let mut anna = watch_as(&mut client, "anna", "a").await.unwrap();
    hears(&mut listening, &["anna comes", "a is wanted"]).await;
    let position = server.hub.publish(on("a", "1")).unwrap();
    assert_eq!(next(&mut anna).await.unwrap().text, "1");
    let hub = server.hub.clone();
    server.stop().await.unwrap();
    let status = next(&mut anna).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let facts = status.get_details_error_info().unwrap().metadata;
    assert_eq!(
        facts["resume_after_sequence"],
        position.last_sequence.to_string()
    );
    assert!(status.get_details_retry_info().is_some());
    let ended = LeaveReason::Ended(CloseReason::ShuttingDown);
    let news = format!("anna goes: {ended:?}, 1");
    hears(&mut listening, &[&news, "a is not wanted"]).await;
    let refused = hub.subscribe().ignore_losses().open().unwrap_err();
    assert_eq!(Status::from(refused).code(), Code::Unavailable);
    assert!(hub.publish(text("too late")).is_err());
}

#[tokio::test]
async fn peer_that_does_not_read_delays_the_end_by_at_most_the_grace() {
    let server = Running::start_with_grace(Hub::new(), Duration::from_millis(200)).await;
    let mut client = server.client_with_small_windows().await;
    let stream = watch_as(&mut client, "anna", "a").await.unwrap();
    for _ in 0..1_000 {
        let padding = vec![0; 4_096];
        let event = ServerEvent {
            padding,
            ..text("flood")
        };
        server
            .hub
            .publish(tidegate::typed::Publication::new(event).topic("a"))
            .unwrap();
    }
    let unfinished = server.stop().await.unwrap_err();
    assert_eq!(unfinished.subscriptions, 1);
    drop(stream);
}

#[tokio::test]
async fn drain_waits_for_every_stream() {
    let hub = Hub::<ServerEvent>::new();
    let mut subscription = hub.subscribe().ignore_losses().open().unwrap();
    let draining = tokio::spawn({
        let hub = hub.clone();
        async move { hub.drain(Duration::from_secs(60)).await }
    });
    let end = within_patience(tokio_stream::StreamExt::next(&mut subscription)).await;
    assert_eq!(end.unwrap().unwrap_err().code(), Code::Unavailable);
    drop(subscription);
    assert_eq!(within_patience(draining).await.unwrap(), 0);
}

#[tokio::test]
async fn panicking_hook_leaves_the_others_running() {
    let (heard, mut listening) = channel(10);
    let hub = Hub::<ServerEvent>::builder()
        .on_join(|_| panic!("a fault of the application"))
        .on_leave(move |client| heard.try_send(client.client_id.to_string()).unwrap())
        .build();
    let opening = hub.clone();
    let opened = tokio::spawn(async move {
        let subscribe = opening.subscribe().client_id("anna");
        drop(subscribe.ignore_losses().open());
    });
    assert!(within_patience(opened).await.unwrap_err().is_panic());
    assert!(hub.clients().is_empty());
    assert_eq!(hub.subscribers(&Filter::everything()), 0);
    assert_eq!(listening.try_recv().unwrap(), "anna");
}
