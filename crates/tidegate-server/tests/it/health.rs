//! Health checking (`grpc.health.v1`), over real sockets.

use std::time::Duration;

use tidegate_server::ServerConfig;
use tokio::{net::TcpStream, time};
use tonic::{Code, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::common::*;

fn about(service: &str) -> HealthCheckRequest {
    let service = service.into();
    HealthCheckRequest { service }
}

const SERVICE: &str = "tidegate.v1.EventService";

async fn next(watch: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    let status = time::timeout(PATIENCE, watch.message()).await.unwrap();
    status.unwrap().unwrap().status()
}

#[tokio::test]
async fn health_turns_to_not_serving_as_the_drain_begins() {
    let server = Running::start(ServerConfig::default()).await;
    let mut health = HealthClient::new(server.endpoint().connect().await.unwrap());
    for name in ["", SERVICE] {
        let answer = health.check(about(name)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let unknown = health.check(about("other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watch = health.watch(about(SERVICE)).await.unwrap().into_inner();
    let status = watch.message().await.unwrap().unwrap();
    assert_eq!(status.status(), ServingStatus::Serving);
    let report = tokio::spawn(server.stop());
    let status = watch.message().await.unwrap().unwrap();
    assert_eq!(status.status(), ServingStatus::NotServing);
    // It holds up nothing.
    let ended = watch.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    assert_eq!(report.await.unwrap().connections_cut, 0);
}

/// health.proto: "the server will send the SERVICE_UNKNOWN status", and the stream stays open.
#[tokio::test]
async fn watch_of_an_unknown_service_stays_open() {
    let server = Running::start(ServerConfig::default()).await;
    let mut health = HealthClient::new(server.endpoint().connect().await.unwrap());
    let mut watches = Vec::new();
    let long = "x".repeat(4_000);
    for name in ["other", " ", "tidegate.v1.eventservice", "\0", &long] {
        let mut watch = health.watch(about(name)).await.unwrap().into_inner();
        assert_eq!(
            next(&mut watch).await,
            ServingStatus::ServiceUnknown,
            "{name:?}"
        );
        watches.push(watch);
    }
    // There is nothing to await where nothing is to come.
    let more = time::timeout(Duration::from_millis(300), watches[0].message()).await;
    assert!(more.is_err(), "{more:?}");
    let report = tokio::spawn(server.stop());
    for mut watch in watches {
        let ended = time::timeout(PATIENCE, watch.message()).await.unwrap();
        let ended = ended.unwrap_err();
        assert_eq!(
            (ended.code(), &reason(&ended)[..]),
            (Code::Unavailable, "SHUTTING_DOWN")
        );
    }
    assert_eq!(report.await.unwrap().connections_cut, 0);
}

#[tokio::test]
async fn health_of_a_name_that_is_too_long_is_refused() {
    let server = Running::start(ServerConfig::default()).await;
    let mut health = HealthClient::new(server.endpoint().connect().await.unwrap());
    let name = "x".repeat(1 << 20);
    let check = health.check(about(&name)).await.unwrap_err();
    let watch = health.watch(about(&name)).await.unwrap_err();
    assert_eq!([check.code(), watch.code()], [Code::OutOfRange; 2]);
    let answer = health.check(about("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
}

/// Anybody may ask for health, so a request that never comes must not hold its stream.
#[tokio::test]
async fn health_waits_for_no_request_forever() {
    let mut config = ServerConfig::default();
    config.service.request_timeout = Duration::from_millis(300);
    let server = Running::start(config).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for method in ["Check", "Watch"] {
        let uri = format!("http://{}/grpc.health.v1.Health/{method}", server.address);
        let request = http::Request::post(uri).header("content-type", "application/grpc");
        let mut send = send.clone().ready().await.unwrap();
        let (response, _body) = send.send_request(request.body(()).unwrap(), false).unwrap();
        let response = time::timeout(PATIENCE, response).await;
        let response = response.expect("the call is held").unwrap();
        let code = Code::from_bytes(response.headers()["grpc-status"].as_bytes());
        assert_eq!(code, Code::DeadlineExceeded, "{method}");
    }
}
