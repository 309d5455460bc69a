//! The admin service over real sockets.

use std::time::Duration;

use tidegate::proto::{admin_service_client::AdminServiceClient, *};
use tidegate_server::{Server, ServerConfig};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::common::*;

const ADMIN: &str = "tidegate.v1.AdminService";

async fn admin(server: &Running) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(server.endpoint().connect().await.unwrap())
}

fn named(client_id: &str) -> SubscribeRequest {
    SubscribeRequest {
        client_id: client_id.into(),
        ..filters(&["t", "u.*"])
    }
}

async fn list(
    admin: &mut AdminServiceClient<Channel>,
    request: ListSubscriptionsRequest,
) -> ListSubscriptionsResponse {
    let listed = admin.list_subscriptions(request).await;
    listed.unwrap().into_inner()
}

fn ids(response: &ListSubscriptionsResponse) -> Vec<&str> {
    let subscriptions = response.subscriptions.iter();
    subscriptions
        .map(|state| state.client_id.as_str())
        .collect()
}

#[tokio::test]
async fn get_server_reports_version_position_and_statistics() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    publish(&mut client, vec![event("t", "x"), event("v", "y")])
        .await
        .unwrap();
    stream.events(1).await;
    let mut admin = admin(&server).await;
    let told = admin
        .get_server(GetServerRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.version, env!("CARGO_PKG_VERSION"));
    assert!(told.ready && told.started.is_some());
    assert_eq!(told.position.unwrap().sequence, 2);
    let statistics = told.statistics.unwrap();
    assert_eq!(statistics.published_events, 2);
    assert_eq!(statistics.delivered_events, 1);
    assert_eq!(statistics.subscriptions, 1);
    assert_eq!(statistics.connections, 2);
    assert_eq!(statistics.history_events, 2);
    assert!(statistics.memory_budget_bytes > 0);
}

#[tokio::test]
async fn list_subscriptions_reports_every_field() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let request = SubscribeRequest {
        limits: Some(Limits {
            max_events: 7,
            max_bytes: 0,
            overflow: Overflow::Conflate.into(),
        }),
        ..named("one")
    };
    let mut stream = subscribe(&mut client, request).await;
    publish(&mut client, vec![event("t", "x")]).await.unwrap();
    stream.events(1).await;
    let mut admin = admin(&server).await;
    let listed = list(&mut admin, ListSubscriptionsRequest::default()).await;
    assert_eq!((listed.total, listed.next_page_token.as_str()), (1, ""));
    let [state] = &listed.subscriptions[..] else {
        panic!("{listed:?}")
    };
    assert_eq!(state.client_id, "one");
    assert_eq!(state.subscription_id, stream.subscribed.subscription_id);
    assert_eq!(state.principal, "");
    assert!(state.address.starts_with("127.0.0.1:"), "{}", state.address);
    assert_eq!(state.filters, ["t", "u.*"]);
    let limits = state.limits.unwrap();
    assert_eq!(
        (limits.max_events, limits.overflow()),
        (7, Overflow::Conflate)
    );
    assert!(state.since.is_some());
    assert_eq!((state.next_index, state.delivered_events), (1, 1));
    assert_eq!((state.backlog, state.lost_events), (0, 0));
    assert!(!state.stalled);
    drop(stream);
    server
        .until("it has left", |stats| stats.subscriptions == 0)
        .await;
    let listed = list(&mut admin, ListSubscriptionsRequest::default()).await;
    assert_eq!(listed.total, 0);
}

#[tokio::test]
async fn pages_hold_every_subscription_once_in_order_of_age() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let mut streams = Vec::new();
    for i in 0..10 {
        streams.push(subscribe(&mut client, named(&format!("c{i}"))).await);
    }
    let mut admin = admin(&server).await;
    let (mut seen, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let request = ListSubscriptionsRequest {
            page_size: 4,
            page_token,
            ..Default::default()
        };
        let page = list(&mut admin, request).await;
        assert_eq!(page.total, 10);
        seen.extend(ids(&page).into_iter().map(ToOwned::to_owned));
        sizes.push(page.subscriptions.len());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [4, 4, 2]);
    assert_eq!(seen, (0..10).map(|i| format!("c{i}")).collect::<Vec<_>>());

    let one = ListSubscriptionsRequest {
        client_id: "c3".into(),
        ..Default::default()
    };
    assert_eq!(ids(&list(&mut admin, one).await), ["c3"]);
    let bad = ListSubscriptionsRequest {
        page_token: "x".into(),
        ..Default::default()
    };
    let status = admin.list_subscriptions(bad).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "INVALID_REQUEST")
    );
    let bad = ListSubscriptionsRequest {
        order_by: 99,
        ..Default::default()
    };
    let status = admin.list_subscriptions(bad).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_REQUEST");
}

#[tokio::test]
async fn list_subscriptions_orders_by_backlog_lag_and_losses() {
    let server = Running::start(ServerConfig::default()).await;
    let mut publisher = server.client().await;
    let limited = |id: &str, max_events| SubscribeRequest {
        limits: Some(Limits {
            max_events,
            max_bytes: 1 << 30,
            overflow: Overflow::DropOldest.into(),
        }),
        ..named(id)
    };
    // Neither reads. The second came later, and is less behind.
    let mut slow = server.client_with_small_windows().await;
    let mut behind = subscribe(&mut slow, limited("behind", 1_000)).await;
    let big = |count| {
        (0..count)
            .map(|_| event("t", vec![b'x'; 10_000]))
            .collect::<Vec<_>>()
    };
    publish(&mut publisher, big(100)).await.unwrap();
    let mut admin = admin(&server).await;
    let worst = async |admin: &mut AdminServiceClient<Channel>, order: SubscriptionOrder| {
        let request = ListSubscriptionsRequest {
            order_by: order.into(),
            ..Default::default()
        };
        list(admin, request).await.subscriptions
    };
    let lags = async || {
        let worst = worst(&mut admin, SubscriptionOrder::Lag).await;
        worst[0].lag.unwrap_or_default() != Default::default()
    };
    let pause = Duration::from_millis(10);
    assert!(comes_true(pause, lags).await, "it never lags");

    let mut late = server.client_with_small_windows().await;
    let _less = subscribe(&mut late, limited("less", 1_000)).await;
    let mut reader = server.client().await;
    let mut fresh = subscribe(&mut reader, named("fresh")).await;
    publish(&mut publisher, big(60)).await.unwrap();
    fresh.events(60).await;
    let by_backlog = worst(&mut admin, SubscriptionOrder::Backlog).await;
    let order: Vec<_> = by_backlog.iter().map(|state| &*state.client_id).collect();
    assert_eq!(order, ["behind", "less", "fresh"]);
    assert!(by_backlog[0].backlog > by_backlog[1].backlog && by_backlog[2].backlog == 0);
    let by_lag = worst(&mut admin, SubscriptionOrder::Lag).await;
    let order: Vec<_> = by_lag.iter().map(|state| &*state.client_id).collect();
    assert_eq!(order, ["behind", "less", "fresh"]);

    // It loses, and then it is nobody's worst but by losses.
    let mut lossy_client = server.client_with_small_windows().await;
    let mut lossy = subscribe(&mut lossy_client, limited("lossy", 5)).await;
    for _ in 0..5 {
        publish(&mut publisher, big(100)).await.unwrap();
    }
    while lossy.counted == 0 {
        lossy.next().await.unwrap();
    }
    let by_losses = worst(&mut admin, SubscriptionOrder::Losses).await;
    assert_eq!(by_losses[0].client_id, "lossy");
    assert!(by_losses[0].lost_events > 0);
    while behind.delivered < 100 {
        behind.next().await.unwrap();
    }
}

#[tokio::test]
async fn disconnect_client_ends_its_streams_and_tells_it_to_stay_away() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let mut kicked = subscribe(&mut client, named("kicked")).await;
    let mut other = subscribe(&mut client, named("other")).await;
    let mut admin = admin(&server).await;
    let disconnect = |id: &str| DisconnectClientRequest {
        client_id: id.into(),
    };
    let answer = admin.disconnect_client(disconnect("kicked")).await.unwrap();
    assert_eq!(answer.into_inner().disconnected, 1);
    let status = kicked.next().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Aborted, "DISCONNECTED")
    );
    let answer = admin.disconnect_client(disconnect("nobody")).await.unwrap();
    assert_eq!(answer.into_inner().disconnected, 0);
    let status = admin
        .disconnect_client(disconnect("a.b"))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "INVALID_CLIENT_ID");
    publish(&mut client, vec![event("t", "x")]).await.unwrap();
    other.events(1).await;
}

#[tokio::test]
async fn drain_drains_the_server_as_a_signal_does() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let mut stream = subscribe(&mut client, filters(&["t"])).await;
    let mut admin = admin(&server).await;
    let answer = admin.drain(DrainRequest {}).await.unwrap().into_inner();
    assert!(answer.began);
    let (going_away, status) = stream.end().await;
    assert!(going_away.is_some());
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    let report = server.drained().await;
    assert_eq!((report.streams_drained, report.streams_cut), (1, 0));
}

#[tokio::test]
async fn the_admin_service_is_served_on_loopback_or_by_setting() {
    let on = |listen: &str, admin| {
        let listen = listen.parse().unwrap();
        let config = ServerConfig {
            listen,
            admin,
            ..ServerConfig::default()
        };
        config.serves_admin()
    };
    assert!(on("127.0.0.1:0", None) && on("[::1]:0", None));
    assert!(!on("0.0.0.0:0", None) && !on("192.0.2.1:0", None));
    assert!(on("0.0.0.0:0", Some(true)) && !on("127.0.0.1:0", Some(false)));
}

#[tokio::test]
async fn an_admin_service_that_is_off_is_unknown_to_health_too() {
    for is_on in [true, false] {
        let server = Running::start(ServerConfig {
            admin: Some(is_on),
            ..ServerConfig::default()
        })
        .await;
        let answer = admin(&server).await.get_server(GetServerRequest {}).await;
        let code = answer.err().map(|status| status.code());
        assert_eq!(code, (!is_on).then_some(Code::Unimplemented));
        let mut health = HealthClient::new(server.endpoint().connect().await.unwrap());
        let request = HealthCheckRequest {
            service: ADMIN.into(),
        };
        let code = health
            .check(request)
            .await
            .err()
            .map(|status| status.code());
        assert_eq!(code, (!is_on).then_some(Code::NotFound));
        assert_eq!(reflected(&server).await.contains(&ADMIN.to_owned()), is_on);
    }
}

/// The services that reflection lists.
async fn reflected(server: &Running) -> Vec<String> {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let channel = server.endpoint().connect().await.unwrap();
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let answer = answers.unwrap().into_inner().message().await.unwrap();
    match answer.unwrap().message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// gRPC's libraries refuse messages of more than 4 MiB, and a subscription may have 256 KiB of filters.
#[tokio::test]
async fn pages_are_no_larger_than_every_client_takes() {
    let server = Running::start(ServerConfig::default()).await;
    let mut client = server.client().await;
    let mut streams = Vec::new();
    for i in 0..20 {
        // One token each, so that there are no more of them than allowed.
        let long = (0..1_024).map(|j| format!("{j:05}{}", "x".repeat(240)));
        let request = SubscribeRequest {
            client_id: format!("c{i}"),
            filters: long.collect(),
            ..Default::default()
        };
        streams.push(subscribe(&mut client, request).await);
    }
    // A client with the limit of 4 MiB.
    let mut admin = admin(&server).await;
    let (mut seen, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = ListSubscriptionsRequest {
            page_size: 1_000,
            page_token,
            ..Default::default()
        };
        let page = list(&mut admin, request).await;
        seen.extend(ids(&page).into_iter().map(ToOwned::to_owned));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (0..20).map(|i| format!("c{i}")).collect::<Vec<_>>());
    assert!((2..=4).contains(&pages), "{pages} pages");
}

#[tokio::test]
async fn a_taken_http_address_stops_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = ServerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        http: Some(taken.local_addr().unwrap()),
        ..ServerConfig::default()
    };
    let error = Server::bind(config).await.unwrap_err();
    assert!(error.to_string().contains("cannot listen on"), "{error}");
}
