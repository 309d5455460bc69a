//! Clients that break one rule each, and the scenario that must notice it.
//!
//! A scenario that no client can fail proves nothing, so each has a fault here.

mod client;

use std::{collections::BTreeSet, net::SocketAddr};

use client::{
    Client,
    Fault::{self, *},
};
use futures_util::{StreamExt as _, stream};
use tidegate_conformance::{Player, Scenario, Verdict, output, scenarios};

/// Clients that run at once. Most of them wait.
const JOBS: usize = 24;

/// The faults that each scenario, or each case of a file, must notice.
const NOTICED: &[(&str, &[Fault])] = &[
    (
        "back-off-grows/opened",
        &[NeverGrows, GrowsOnlyWhileRefused],
    ),
    ("back-off-grows/refused", &[NeverGrows]),
    ("back-off-is-random", &[HasNoJitter]),
    ("client-id-taken", &[StopsWithoutAWord]),
    ("credentials-are-kept", &[DropsToken, StopsAtUnavailable]),
    (
        "credentials-are-refused",
        &[InsistsOnCredentials, StopsWithSuccess],
    ),
    (
        "credentials-are-renewed",
        &[ReadsTokenOnce, InsistsOnCredentials],
    ),
    ("delay-in-the-details", &[IgnoresDetails]),
    (
        "delay-of-going-away/going-away-alone",
        &[IgnoresGoingAwayDelay],
    ),
    (
        "delay-of-going-away/going-away-is-longer",
        &[IgnoresGoingAwayDelay, TakesShorterDelay],
    ),
    (
        "delay-of-going-away/status-is-longer",
        &[IgnoresDelays, TakesShorterDelay],
    ),
    ("delay-of-the-server", &[IgnoresDelays]),
    ("delay-of-the-server/trailer-alone", &[IgnoresTrailers]),
    ("delay-that-cannot-be-read", &[StopsAtUnreadableDelays]),
    ("details-that-cannot-be-read", &[StopsAtUnavailable]),
    (
        "details-that-cannot-be-read/no-protobuf",
        &[StopsAtUnreadableDetails],
    ),
    ("event-in-full", &[DropsKeys, MangledPayloads, TellsTwice]),
    (
        "gap-in-its-place",
        &[
            SwallowsGaps,
            TellsGapsLate,
            SubtractsSequences,
            CountsUnknownAsOne,
        ],
    ),
    (
        "gap-of-unknown-reason",
        &[IgnoresUnknownReasons, StopsAtUnknownReasons],
    ),
    ("heartbeats-keep-a-stream", &[TiresOfHeartbeats]),
    (
        "index-as-documented",
        &[CarriesIndexOver, SubtractsSequences],
    ),
    ("index-broken", &[IgnoresIndex]),
    ("position-ahead", &[KeepsPositionAhead]),
    ("position-batch", &[KeepsPositionAtBatch, OpensTwoStreams]),
    ("position-caught-up", &[KeepsPositionAtCaughtUp]),
    ("position-epoch-changed", &[KeepsEpochAtGap]),
    ("position-gap", &[KeepsPositionAtGap]),
    ("position-gap-conflated", &[MovesPositionAtConflated]),
    ("position-gap-expired", &[KeepsPositionAtGap]),
    (
        "position-going-away",
        &[KeepsPositionAtGoingAway, TakesOlderGoingAway],
    ),
    (
        "position-going-away-of-another-epoch",
        &[TakesGoingAwayOfAnotherEpoch],
    ),
    ("position-half-event", &[SkipsAnEventAfterABreak]),
    (
        "position-heartbeat",
        &[KeepsPositionAtHeartbeat, TakesOlderHeartbeat],
    ),
    ("position-large-numbers", &[CutsSequences]),
    (
        "position-live-start",
        &[StopsAtUnavailable, SkipsAnEventAfterABreak],
    ),
    (
        "position-nothing-settled",
        &[ResumesAfterZero, TakesPositionWhileUnsettled],
    ),
    ("position-replay-start", &[TakesHeadOfReplay]),
    ("position-resume-start", &[TakesHeadOfReplay]),
    ("reason-in-the-details", &[IgnoresDetails]),
    ("reason-in-the-trailer", &[IgnoresTrailers]),
    ("reason-of-another-domain", &[IgnoresDomains]),
    ("request-is-repeated", &[ForgetsFilters, ForgetsChosenId]),
    ("request-keeps-the-assigned-id", &[ForgetsAssignedId]),
    (
        "response-of-unknown-kind",
        &[StopsAtUnknownResponses, CountsUnknownResponses],
    ),
    (
        "resume-after-a-broken-connection/cut",
        &[StopsAtBrokenConnections],
    ),
    (
        "resume-after-a-broken-connection",
        &[SkipsAnEventAfterABreak],
    ),
    ("resume-after-a-code/CANCELLED", &[StopsAtResets]),
    ("resume-after-a-code/DEADLINE_EXCEEDED", &[StopsAtResets]),
    ("resume-after-a-code/INTERNAL", &[StopsAtResets]),
    ("resume-after-a-code/RESOURCE_EXHAUSTED", &[StopsAtCalm]),
    ("resume-after-a-code/UNAVAILABLE", &[StopsAtUnavailable]),
    ("resume-after-a-code/UNKNOWN", &[StopsAtResets]),
    (
        "resume-after-a-code/a-code-that-does-not-exist",
        &[StopsAtResets],
    ),
    ("resume-after-a-page", &[StopsAtUnavailable]),
    ("resume-after-a-reason", &[DecidesByCode]),
    ("resume-after-a-refusal", &[StopsAtUnavailable, StopsAtCalm]),
    ("resume-after-a-reset", &[StopsAtResets]),
    ("resume-after-ok", &[StopsAtOk]),
    ("resume-over-a-new-connection", &[IgnoresGoingAwayDelay]),
    ("silence-is-noticed", &[TiresAfterTwoIntervals]),
    ("silence-is-noticed/after-an-event", &[NeverTires]),
    ("silence-of-a-slow-link", &[TiresOfSlowEvents]),
    ("stop-at-a-code", &[NeverStops, StopsWithoutAWord]),
    ("stop-at-a-code/ABORTED", &[ReconnectsAfterAborted]),
    ("stop-at-a-page", &[NeverStops]),
    ("stop-at-a-reason", &[NeverStops, DecidesByCode]),
    ("stop-at-a-refusal", &[NeverStops, StopsWithSuccess]),
    ("stop-at-an-ended-stream", &[NeverStops]),
    (
        "stop-at-an-ended-stream/DISCONNECTED",
        &[ReconnectsAfterAborted],
    ),
    (
        "stop-at-an-ended-stream/TAKEN_OVER",
        &[ReconnectsAfterAborted],
    ),
];

/// Scenarios of a file, or the one case that is named.
fn named<'a>(all: &'a [Scenario], name: &str) -> Vec<&'a Scenario> {
    all.iter()
        .filter(|scenario| scenario.is_named(name))
        .collect()
}

async fn play(scenario: &Scenario, fault: Option<Fault>) -> Verdict {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let player = Player::bind(scenario, any).await.unwrap();
    let (sender, receiver) = output();
    let token_file = player.token_file().map(Into::into);
    let client = Client::new(
        player.address(),
        &scenario.client,
        token_file,
        fault,
        sender,
    );
    let run = tokio::spawn(client.run());
    let verdict = player.play_and_read(receiver).await;
    run.abort();
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_breaks_no_rule_passes() {
    let all = scenarios();
    let runs = stream::iter(&all).map(|scenario| play(scenario, None));
    let mut runs = runs.buffer_unordered(JOBS);
    let mut failed = Vec::new();
    while let Some(verdict) = runs.next().await {
        if !verdict.is_passed() {
            failed.push(verdict.to_string());
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_notices_the_fault_that_it_is_for() {
    let all = scenarios();
    let runs = NOTICED.iter().flat_map(|(name, faults)| {
        let scenarios = named(&all, name);
        scenarios
            .into_iter()
            .flat_map(|scenario| faults.iter().map(move |fault| (scenario, *fault)))
    });
    let runs = stream::iter(runs).map(async |(scenario, fault)| {
        // Waits are measured, and a busy machine adds to them by chance.
        let attempts = if fault == HasNoJitter { 5 } else { 1 };
        let mut verdict = play(scenario, Some(fault)).await;
        for _ in 1..attempts {
            if verdict.is_passed() {
                verdict = play(scenario, Some(fault)).await;
            }
        }
        (fault, verdict)
    });
    let mut runs = runs.buffer_unordered(JOBS);
    let mut unnoticed = Vec::new();
    while let Some((fault, verdict)) = runs.next().await {
        if verdict.is_passed() {
            unnoticed.push(format!("{fault:?}: {verdict:?}"));
        }
    }
    assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
}

/// A wrong line says more than what the client does after it.
#[tokio::test]
async fn wrong_line_during_a_silence_is_what_is_told() {
    let all = scenarios();
    let [scenario] = named(&all, "silence-is-noticed/after-an-event")[..] else {
        panic!("it is one case");
    };
    let verdict = play(scenario, Some(TellsTwice)).await;
    let [problem] = &verdict.problems[..] else {
        panic!("{verdict}");
    };
    assert!(!problem.seen.contains("still there"), "{verdict}");
    assert!(problem.seen.contains("101"), "{verdict}");
}

#[test]
fn every_scenario_has_a_fault_to_notice() {
    let all = scenarios();
    let listed: BTreeSet<_> = NOTICED
        .iter()
        .flat_map(|(name, _)| {
            let scenarios = named(&all, name);
            assert!(!scenarios.is_empty(), "{name} is no scenario");
            scenarios.into_iter().map(|scenario| &scenario.name)
        })
        .collect();
    let missing: Vec<_> = all
        .iter()
        .filter(|scenario| !listed.contains(&scenario.name))
        .collect();
    let missing: Vec<_> = missing.iter().map(|scenario| &scenario.name).collect();
    assert!(missing.is_empty(), "no client fails {missing:?}");
}
