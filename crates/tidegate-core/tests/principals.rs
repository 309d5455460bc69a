//! Clean-up and takeover: a client id belongs to the principal that uses it, until nobody does.

use std::{
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, ClientIdPolicy, CloseReason, Filter, Hub, HubConfig, Room, SubscribeError,
    SubscribeOptions, Subscription,
};

type Subscribed = Result<Subscription<Bytes>, SubscribeError>;

fn hub(client_ids: ClientIdPolicy) -> Hub<Bytes> {
    Hub::new(HubConfig {
        client_ids,
        ..HubConfig::new(1)
    })
}

fn subscribe(hub: &Hub<Bytes>, principal: Option<&str>) -> Subscribed {
    let id = ClientId::new("c").unwrap();
    let options = SubscribeOptions {
        principal: principal.map(Into::into),
        ..SubscribeOptions::new(id, vec![Filter::everything()])
    };
    hub.subscribe(options, Instant::now())
}

fn poll(subscription: &mut Subscription<Bytes>) -> Poll<Result<(), CloseReason>> {
    let mut cx = Context::from_waker(Waker::noop());
    subscription.poll_next(&mut cx, Room::events(1), &mut Batch::default())
}

#[test]
fn only_the_same_principal_takes_a_client_id_over() {
    for policy in [ClientIdPolicy::Takeover, ClientIdPolicy::Several] {
        let hub = hub(policy);
        let mut first = subscribe(&hub, Some("alice")).unwrap();
        for other in [Some("bob"), None] {
            let refused = subscribe(&hub, other).unwrap_err();
            assert_eq!(
                refused,
                SubscribeError::ClientIdTaken,
                "{policy:?} {other:?}"
            );
        }
        assert_eq!(poll(&mut first), Poll::Pending, "{policy:?}");

        let mut second = subscribe(&hub, Some("alice")).unwrap();
        let expected = match policy {
            ClientIdPolicy::Takeover => Poll::Ready(Err(CloseReason::TakenOver)),
            _ => Poll::Pending,
        };
        assert_eq!(poll(&mut first), expected);
        assert_eq!(poll(&mut second), Poll::Pending);
        let listed = hub.subscriptions();
        assert!(
            listed
                .iter()
                .all(|info| info.principal.as_deref() == Some("alice"))
        );

        // Nobody uses it any more: it is free for all.
        drop((first, second));
        assert!(subscribe(&hub, Some("bob")).is_ok());
    }
}

#[test]
fn without_principals_the_newest_takes_over() {
    let hub = hub(ClientIdPolicy::Takeover);
    let mut first = subscribe(&hub, None).unwrap();
    let _second = subscribe(&hub, None).unwrap();
    assert_eq!(poll(&mut first), Poll::Ready(Err(CloseReason::TakenOver)));
}
