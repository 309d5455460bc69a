//! Subscriptions that a server refuses or ends with `RESOURCE_EXHAUSTED`.
#![cfg(target_os = "linux")]

mod child;

use std::time::{Duration, Instant};

use child::Serve;
use tidegate_client::{
    Backoff, Client, Code, Error, NewEvent, Overflow, SubscribeOptions, Subscription, Update,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

async fn next(subscription: &mut Subscription) -> Result<Update, Error> {
    let next = timeout(PATIENCE, subscription.next()).await;
    next.expect("nothing happens").expect("it has ended")
}

fn options() -> SubscribeOptions {
    SubscribeOptions::new(["t"]).backoff(Backoff {
        base: Duration::from_millis(1),
        max: Duration::from_millis(1),
    })
}

#[tokio::test]
async fn subscription_over_a_quota_is_retried_after_the_servers_delay() {
    let server = Serve::start(&["--quotas-address-subscriptions", "1"]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut holder = client.subscribe(options());
    assert!(matches!(next(&mut holder).await, Ok(Update::Subscribed(_))));

    let mut waiting = client.subscribe(options());
    let Ok(Update::Reconnecting {
        status, retry_in, ..
    }) = next(&mut waiting).await
    else {
        panic!("it does not wait")
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    // The server's delay for a quota on subscriptions, and the client's own back-off.
    let said = Duration::from_secs(10);
    assert!(
        (said..said + Duration::from_millis(1)).contains(&retry_in),
        "{retry_in:?}"
    );
    drop(holder);
    let began = Instant::now();
    assert!(matches!(
        next(&mut waiting).await,
        Ok(Update::Subscribed(_))
    ));
    assert!(
        began.elapsed() >= said - Duration::from_secs(1),
        "it came too early"
    );
}

#[tokio::test]
async fn quota_ends_a_subscription_that_does_not_reconnect() {
    let server = Serve::start(&["--quotas-address-subscriptions", "1"]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut holder = client.subscribe(options());
    assert!(matches!(next(&mut holder).await, Ok(Update::Subscribed(_))));
    let mut refused = client.subscribe(options().no_reconnect());
    let error = next(&mut refused).await.unwrap_err();
    assert!(matches!(error, Error::ResourceExhausted(_)), "{error:?}");
}

/// Subscribes with `DISCONNECT`, and falls behind by more than the limits, windows and sockets hold.
async fn fall_behind(client: &Client, options: SubscribeOptions) -> Subscription {
    let options = options.max_events(1).overflow(Overflow::Disconnect);
    let mut slow = client.subscribe(options);
    assert!(matches!(next(&mut slow).await, Ok(Update::Subscribed(_))));
    for _ in 0..EVENTS {
        let event = NewEvent {
            topic: "t".into(),
            payload: vec![0; 1 << 19].into(),
            ..NewEvent::default()
        };
        client.publish(vec![event]).await.unwrap();
    }
    slow
}

/// Events that `fall_behind` publishes. History holds them all.
const EVENTS: u64 = 64;

#[tokio::test]
async fn subscription_that_was_too_slow_resumes_and_misses_nothing() {
    let server = Serve::start(&[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut slow = fall_behind(&client, options()).await;
    let (mut events, mut ended) = (0, 0);
    while events < EVENTS {
        match next(&mut slow).await.unwrap() {
            Update::Event(_) => events += 1,
            Update::Reconnecting { status, .. } => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                ended += 1;
            }
            Update::Gap(gap) => panic!("{gap:?}"),
            _ => {}
        }
    }
    assert!(ended > 0, "it was not too slow");
}

#[tokio::test]
async fn too_slow_ends_a_subscription_that_does_not_reconnect() {
    let server = Serve::start(&[]);
    let client = Client::connect_lazy(server.url()).unwrap();
    let mut slow = fall_behind(&client, options().no_reconnect()).await;
    let error = loop {
        match next(&mut slow).await {
            Ok(update) => assert!(!matches!(update, Update::Reconnecting { .. }), "{update:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::ResourceExhausted(_)), "{error:?}");
    assert_eq!(error.reason().as_deref(), Some("TOO_SLOW"));
    assert!(slow.next().await.is_none());
}

/// A server would refuse them, one after the other at each attempt, or never be heard.
#[test]
fn intervals_out_of_range_are_faults_of_the_command_line() {
    for (flag, interval, range) in [
        ("--heartbeat", "0s", "from 1s to 1h"),
        ("--heartbeat", "999ms", "from 1s to 1h"),
        ("--heartbeat", "61m", "from 1s to 1h"),
        ("--min-interval", "61m", "at most 1h"),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(["sub", "a", flag, interval]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(range), "{said}");
    }
}
