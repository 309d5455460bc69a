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

#[test]
fn several_subscriptions_of_one_client_id_end_and_leave_in_any_order() {
    let hub = hub(ClientIdPolicy::Several);
    let mut all: Vec<_> = (0..5)
        .map(|_| subscribe(&hub, None).unwrap())
        .map(Some)
        .collect();
    // From the middle, from both ends: the rest is still there, and the id in use.
    for gone in [2, 0, 4] {
        all[gone] = None;
        assert_eq!(hub.stats().clients, 1);
        assert_eq!(
            subscribe(&hub, Some("bob")).err(),
            Some(SubscribeError::ClientIdTaken)
        );
    }
    let id = ClientId::new("c").unwrap();
    assert_eq!(hub.disconnect(&id), 2);
    for subscription in all.iter_mut().flatten() {
        assert_eq!(
            poll(subscription),
            Poll::Ready(Err(CloseReason::Disconnected))
        );
    }
    drop(all);
    assert_eq!((hub.stats().clients, hub.disconnect(&id)), (0, 0));
}

/// The time of `enter` beside the time of the same with client ids of their own. It grew with the holders of the id.
#[test]
fn one_client_id_may_have_thousands_of_subscriptions_at_no_more_cost_each() {
    const SUBSCRIPTIONS: usize = 20_000;
    let time = |own_ids: bool| {
        let hub = hub(ClientIdPolicy::Several);
        let begun = Instant::now();
        let all: Vec<_> = (0..SUBSCRIPTIONS)
            .map(|i| {
                let id = if own_ids { format!("c{i}") } else { "c".into() };
                let id = ClientId::new(&id).unwrap();
                let options = SubscribeOptions::new(id, vec![Filter::everything()]);
                hub.subscribe(options, Instant::now()).unwrap()
            })
            .collect();
        drop(all);
        begun.elapsed()
    };
    let (each_its_own, one) = (time(true), time(false));
    assert!(
        one < each_its_own * 3,
        "{one:?} with one id, {each_its_own:?} with {SUBSCRIPTIONS}"
    );
}
