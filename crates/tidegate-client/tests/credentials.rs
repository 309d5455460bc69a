//! Subscriptions whose token the server no longer accepts.

mod support;

use std::{fs, path::Path};

use support::*;
use tidegate_client::{Client, ClientBuilder, Code, Error, Status, Subscription, Update};

fn builder(server: &FakeServer) -> ClientBuilder {
    Client::builder(format!("http://{}", server.address))
}

fn expired() -> Status {
    Status::unauthenticated("the credentials have expired")
}

/// Returns a subscription that has begun, at position 5, and whose credentials have then expired.
async fn subscribe_until_expired(server: &mut FakeServer, client: &Client) -> Subscription {
    let mut subscription = client.subscribe(options());
    let (stream, update) = tokio::join!(
        async { server.subscribe_call().await.begin(5).await },
        subscription.next()
    );
    assert!(
        matches!(update, Some(Ok(Update::Subscribed(_)))),
        "{update:?}"
    );
    stream.send(Err(expired())).await.unwrap();
    subscription
}

#[tokio::test]
async fn subscription_resumes_with_the_renewed_token_of_the_file() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("renewed-token");
    fs::write(&path, "first\n").unwrap();
    let mut server = FakeServer::start().await;
    let client = builder(&server).token_file(&path).connect_lazy().unwrap();
    let mut subscription = subscribe_until_expired(&mut server, &client).await;
    let update = subscription.next().await.unwrap().unwrap();
    let Update::Reconnecting { status, .. } = update else {
        panic!("{update:?}");
    };
    assert_eq!(status.code(), Code::Unauthenticated);

    let (resumed_after, error) = tokio::join!(
        async {
            let call = server.subscribe_call().await;
            let resumed_after = call.resume_after();
            call.refuse(expired());
            resumed_after
        },
        subscription.next()
    );
    assert_eq!(resumed_after, Some(at(5)));
    assert!(
        matches!(error, Some(Err(Error::Unauthenticated(_)))),
        "{error:?}"
    );
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn subscription_with_a_fixed_token_ends_when_it_is_refused() {
    let mut server = FakeServer::start().await;
    let client = builder(&server).token("fixed").connect_lazy().unwrap();
    let mut subscription = subscribe_until_expired(&mut server, &client).await;
    let error = subscription.next().await;
    assert!(
        matches!(error, Some(Err(Error::Unauthenticated(_)))),
        "{error:?}"
    );
}
