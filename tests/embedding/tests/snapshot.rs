//! Snapshots that join live events without a loss or a repeat, and predicates.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tidegate::{
    Limits,
    typed::{Error, Hub, Predicate, Publication, Snapshot},
};
use tidegate_embedding_tests::{missed, on, proto::ServerEvent, text, within_patience};
use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

/// A number that only grows. Each growth is published.
#[derive(Clone)]
struct Counter {
    hub: Hub<ServerEvent>,
    count: Arc<Mutex<u64>>,
}

impl Counter {
    fn new() -> Self {
        Self {
            hub: Hub::new(),
            count: Arc::default(),
        }
    }

    fn grow(&self) -> Result<(), Error> {
        let mut count = self.count.lock().unwrap();
        *count += 1;
        self.hub.publish(on("count", &count.to_string()))?;
        Ok(())
    }

    fn snapshot(&self) -> Snapshot<ServerEvent> {
        let count = self.count.lock().unwrap();
        Snapshot::new(self.hub.position(), [text(format!("{count} so far"))])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn between_a_snapshot_and_live_nothing_is_lost_or_repeated() {
    const TOTAL: u64 = 20_000;
    let counter = Counter::new();
    let growing = tokio::task::spawn_blocking({
        let counter = counter.clone();
        move || (0..TOTAL).for_each(|_| counter.grow().unwrap())
    });
    let mut readers = Vec::new();
    for _ in 0..50 {
        let snapshot = counter.clone();
        let limits = Limits {
            max_events: TOTAL.try_into().unwrap(),
            ..Limits::default()
        };
        let mut subscription = counter
            .hub
            .subscribe()
            .limits(limits)
            .snapshot(move |_| async move { Ok(snapshot.snapshot()) })
            .fail_on_loss(|gap| Status::data_loss(format!("{gap:?}")))
            .open()
            .unwrap();
        readers.push(tokio::spawn(async move {
            let first = subscription.next().await.unwrap().unwrap().text.clone();
            let mut count: u64 = first.strip_suffix(" so far").unwrap().parse().unwrap();
            while count < TOTAL {
                let next = subscription.next().await.unwrap().unwrap();
                count += 1;
                assert_eq!(next.text, count.to_string());
            }
        }));
        tokio::task::yield_now().await;
    }
    for reader in readers {
        within_patience(reader).await.unwrap();
    }
    growing.await.unwrap();
}

#[tokio::test]
async fn losses_count_only_from_the_snapshot_on() {
    let counter = Counter::new();
    let (loaded, loading) = oneshot::channel();
    let limits = Limits {
        max_events: 2.try_into().unwrap(),
        ..Limits::default()
    };
    let mut subscription = counter
        .hub
        .subscribe()
        .client_id("anna")
        .limits(limits)
        .snapshot(|_| async { Ok(loading.await.unwrap()) })
        .on_loss(|gap| Some(missed(gap.count)))
        .open()
        .unwrap();
    for _ in 0..2 {
        counter.grow().unwrap();
    }
    // An event for one client alone, which is not in the snapshot.
    counter.hub.send("anna", text("hello")).unwrap();
    assert!(loaded.send(counter.snapshot()).is_ok());
    assert_eq!(subscription.next().await.unwrap().unwrap().text, "2 so far");
    assert_eq!(subscription.next().await.unwrap().unwrap().text, "hello");
    for _ in 0..5 {
        counter.grow().unwrap();
    }
    assert_eq!(*subscription.next().await.unwrap().unwrap(), missed(3));
    assert_eq!(subscription.next().await.unwrap().unwrap().text, "6");
    assert_eq!(subscription.next().await.unwrap().unwrap().text, "7");
}

#[tokio::test]
async fn a_snapshot_that_fails_or_is_too_old_ends_the_stream() {
    let hub = Hub::<ServerEvent>::new();
    let failed = hub
        .subscribe()
        .snapshot(|_| async { Err(Status::unavailable("no database")) });
    let mut failed = failed.ignore_losses().open().unwrap();
    let status = failed.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(failed.next().await.is_none());

    let old = hub.position();
    hub.publish(text("1")).unwrap();
    let too_old = hub
        .subscribe()
        .snapshot(move |_| async move { Ok(Snapshot::new(old, [text("0")])) });
    let mut too_old = too_old.ignore_losses().open().unwrap();
    let status = too_old.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Internal);
}

#[tokio::test]
async fn a_stream_ends_with_its_hub_while_its_snapshot_loads() {
    let hub = Hub::<ServerEvent>::new();
    let waiting = hub
        .subscribe()
        .snapshot(|_| std::future::pending::<Result<Snapshot<ServerEvent>, Status>>());
    let mut waiting = waiting.ignore_losses().open().unwrap();
    let reading = tokio::spawn(async move { waiting.next().await });
    tokio::task::yield_now().await;
    hub.close();
    let status = within_patience(reading).await.unwrap().unwrap();
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn predicate_runs_once_per_event_for_any_number_of_subscribers() {
    let hub = Hub::<ServerEvent>::new();
    let runs = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&runs);
    let is_even = Predicate::new(move |event: &ServerEvent| {
        counting.fetch_add(1, Relaxed);
        event
            .text
            .parse::<u64>()
            .is_ok_and(|number| number % 2 == 0)
    });
    let subscribe = |client: &str| {
        let subscribe = hub.subscribe().client_id(client).matching(&is_even);
        subscribe.on_loss(|gap| Some(missed(gap.count)))
    };
    let mut subscriptions = Vec::new();
    for i in 0..20 {
        subscriptions.push(subscribe(&format!("c{i}")).open().unwrap());
    }
    let mut all = hub.subscribe().ignore_losses().open().unwrap();
    for number in 1..=10 {
        let published = hub.publish(text(number.to_string())).unwrap();
        let matched = if number % 2 == 0 { 21 } else { 1 };
        assert_eq!(published.matched, matched);
    }
    assert_eq!(runs.load(Relaxed), 10);
    hub.send("c0", text("for c0, whatever it is")).unwrap();
    for number in 1..=10 {
        let event = all.next().await.unwrap().unwrap();
        assert_eq!(event.text, number.to_string());
    }
    for subscription in &mut subscriptions {
        for number in [2, 4, 6, 8, 10] {
            let event = subscription.next().await.unwrap().unwrap();
            assert_eq!(event.text, number.to_string());
        }
    }
    let direct = subscriptions[0].next().await.unwrap().unwrap();
    assert_eq!(direct.text, "for c0, whatever it is");
    drop(subscriptions);
    let before = runs.load(Relaxed);
    hub.publish(text("12")).unwrap();
    assert_eq!(runs.load(Relaxed), before, "nobody has it any more");
}

#[tokio::test]
async fn events_rejected_by_a_predicate_are_no_backlog_and_no_loss() {
    let hub = Hub::<ServerEvent>::new();
    let is_long = Predicate::new(|event: &ServerEvent| event.text.len() > 1);
    let limits = Limits {
        max_events: 3.try_into().unwrap(),
        ..Limits::default()
    };
    let subscribe = hub.subscribe().matching(&is_long).limits(limits);
    let mut subscription = subscribe
        .on_loss(|gap| Some(missed(gap.count)))
        .open()
        .unwrap();
    for number in 1..=15 {
        hub.publish(text(number.to_string())).unwrap();
    }
    assert_eq!(subscription.backlog(), 6);
    assert_eq!(*subscription.next().await.unwrap().unwrap(), missed(3));
    for number in 13..=15 {
        let event = subscription.next().await.unwrap().unwrap();
        assert_eq!(event.text, number.to_string());
    }
    // The predicate applies to history too.
    let replayed = hub.subscribe().matching(&is_long);
    let replayed = replayed.start(tidegate::Start::Last(2));
    let mut replayed = replayed.ignore_losses().open().unwrap();
    for number in 14..=15 {
        let event = replayed.next().await.unwrap().unwrap();
        assert_eq!(event.text, number.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn subscription_with_a_new_predicate_misses_nothing() {
    const TOTAL: u64 = 20_000;
    // The publisher may run to its end before this task runs again.
    let limits = Limits {
        max_events: TOTAL.try_into().unwrap(),
        ..Limits::default()
    };
    let hub = Hub::<ServerEvent>::new();
    let publishing = tokio::task::spawn_blocking({
        let hub = hub.clone();
        move || {
            for number in 1..=TOTAL {
                hub.publish(Publication::new(text(number.to_string())))
                    .unwrap();
            }
        }
    });
    for _ in 0..200 {
        let everything = Predicate::new(|_: &ServerEvent| true);
        let subscribe = hub.subscribe().matching(&everything);
        let mut subscription = subscribe
            .limits(limits)
            .fail_on_loss(|gap| Status::data_loss(format!("{gap:?}")))
            .open()
            .unwrap();
        let first = subscription.began_at().sequence + 1;
        if first > TOTAL {
            break;
        }
        let event = within_patience(subscription.next()).await.unwrap().unwrap();
        assert_eq!(event.position().unwrap().sequence, first);
    }
    publishing.await.unwrap();
}
