//! The plan of a round, drawn from its seed.

use std::time::Duration;

use fastrand::Rng;
use tidegate::{CHUNK_BYTES, HistoryLimits, StallPolicy, SweepRules};
use tidegate_proto::v1::{Limits, Overflow};
use tidegate_server::{Http2Config, ServerConfig};

use crate::{check::Rules, engine};

/// The most bytes of an ordinary event that is larger than a chunk.
const LARGER_EVENT: u64 = 64 << 10;

/// The settings of a server, such that each rare condition occurs in some round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// A history that is long enough for clients that come back soon.
    LongHistory,
    /// A history of a moment: positions expire, and the publishers overtake replays.
    ShortHistory,
    /// No history: a client loses the events while it is away, and at the end nothing may be held.
    NoHistory,
    /// A memory budget that is exceeded.
    SmallBudget,
    /// A short stall timeout: the server soon closes clients that do not read.
    ShortPatience,
}

/// The plan of a round.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) server: ServerConfig,
    pub(crate) rules: Rules,
    /// The most bytes that events may hold.
    pub(crate) memory_bound: u64,
    /// The most bytes of an event.
    pub(crate) largest_event: usize,
    pub(crate) clients: Vec<ClientPlan>,
}

/// The plan of one client.
#[derive(Debug, Clone)]
pub(crate) struct ClientPlan {
    pub(crate) name: String,
    pub(crate) behavior: Behavior,
    pub(crate) filters: Vec<String>,
    pub(crate) limits: Limits,
    /// The least time between releases, in milliseconds; 0 for none.
    pub(crate) min_interval: u32,
    pub(crate) seed: u64,
}

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behavior {
    /// Reads, on a connection without faults.
    Healthy,
    /// Reads, and rests after each response.
    Slow,
    /// Stops reading for a while now and then.
    Stalling,
    /// Vanishes without a close and never returns. Another client comes instead.
    Vanishing,
    /// Ends its stream now and then, and resumes.
    Reconnecting,
    /// Resumes while its old stream is open, and so takes over from it.
    TakingOver,
    /// Reads through the proxy, and resumes when that breaks the connection.
    Faulted,
    /// Conflates, with more time between releases than between heartbeats. Rests within a release, and resumes from a
    /// heartbeat now and then.
    Conflating,
    /// Replays from an old position, or the newest events, and is gone soon after. Another client comes instead.
    Replaying,
    /// Reads large events through a link that takes seconds for each.
    SlowLink,
}

/// How a client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Direct,
    Faulty,
    Slow,
}

/// How many clients there are of each behavior, at scale 1.
const POPULATION: [(Behavior, usize); 10] = [
    (Behavior::Healthy, 8),
    (Behavior::Slow, 3),
    (Behavior::Stalling, 3),
    (Behavior::Vanishing, 2),
    (Behavior::Reconnecting, 3),
    (Behavior::TakingOver, 2),
    (Behavior::Faulted, 7),
    (Behavior::Conflating, 3),
    (Behavior::Replaying, 2),
    (Behavior::SlowLink, 2),
];

/// Clients of a round at scale 1.
pub(super) const CLIENTS: usize = {
    let (mut sum, mut i) = (0, 0);
    while i < POPULATION.len() {
        sum += POPULATION[i].1;
        i += 1;
    }
    sum
};

impl Scenario {
    const ALL: [Self; 5] = [
        Self::LongHistory,
        Self::ShortHistory,
        Self::NoHistory,
        Self::SmallBudget,
        Self::ShortPatience,
    ];

    /// The scenario of the round with this seed: the seed's remainder.
    pub(crate) const fn of(seed: u64) -> Self {
        Self::ALL[(seed % Self::ALL.len() as u64) as usize]
    }

    const fn budget(self) -> u64 {
        match self {
            Self::SmallBudget => 2 << 20,
            _ => 256 << 20,
        }
    }

    /// The most bytes of an event: as large as may be, but not a good part of the budget.
    const fn largest_event(self) -> usize {
        match self {
            Self::SmallBudget => 128 << 10,
            _ => 1_000_000,
        }
    }

    pub(crate) const fn history(self) -> usize {
        match self {
            Self::ShortHistory => 1_500,
            Self::NoHistory => 0,
            _ => 400_000,
        }
    }

    fn sweep(self) -> SweepRules {
        match self {
            Self::ShortPatience => SweepRules {
                stall_timeout: Some(Duration::from_millis(500)),
                on_stall: StallPolicy::Close,
                reset_grace: Duration::from_millis(300),
            },
            _ => SweepRules::default(),
        }
    }
}

impl Plan {
    /// The plan of the round with this seed.
    pub(crate) fn new(seed: u64, scale: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let scenario = Scenario::of(seed);
        let server = ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            history: HistoryLimits {
                max_events: scenario.history(),
                max_bytes: 1 << 30,
                max_age: Duration::from_secs(3_600),
            },
            memory_budget: Some(scenario.budget()),
            sweep: scenario.sweep(),
            http2: Http2Config {
                engine: engine(),
                // Half-open connections and clients that do not read are found while the round goes on.
                keep_alive_interval: Duration::from_secs(2),
                keep_alive_timeout: Duration::from_secs(2),
                ..Http2Config::default()
            },
            drain_timeout: Duration::from_secs(2),
            ..ServerConfig::default()
        };
        let may_evict = scenario == Scenario::SmallBudget;
        let rules = Rules {
            history_events: (!may_evict).then_some(scenario.history() as u64),
            may_evict,
        };
        let clients: Vec<_> = POPULATION
            .iter()
            .flat_map(|(behavior, count)| std::iter::repeat_n(*behavior, count * scale))
            .enumerate()
            .map(|(number, behavior)| ClientPlan::new(number, behavior, &mut rng))
            .collect();
        // Beside the budget, each stream holds the chunk or the larger event that is being handed over. A client may
        // have several streams of which the server has not noticed the end.
        let streams = clients.len() as u64 * 4;
        let slow_links = clients
            .iter()
            .filter(|client| client.behavior == Behavior::SlowLink);
        let large = slow_links.count() as u64 * scenario.largest_event() as u64;
        Self {
            server,
            rules,
            memory_bound: scenario.budget() + large + streams * (LARGER_EVENT + CHUNK_BYTES as u64),
            largest_event: scenario.largest_event(),
            clients,
        }
    }
}

impl ClientPlan {
    fn new(number: usize, behavior: Behavior, rng: &mut Rng) -> Self {
        let overflow = match behavior {
            Behavior::Healthy | Behavior::SlowLink => Overflow::DropOldest,
            Behavior::Conflating => Overflow::Conflate,
            _ => match rng.u32(0..10) {
                0..5 => Overflow::DropOldest,
                5..8 => Overflow::Conflate,
                _ => Overflow::Disconnect,
            },
        };
        let limits = match behavior {
            Behavior::Healthy => Limits {
                max_events: 65_536,
                max_bytes: 64 << 20,
                overflow: overflow.into(),
            },
            // More than there are keys, so that few survivors are dropped.
            Behavior::Conflating => Limits {
                max_events: 1 << rng.u32(9..15),
                max_bytes: 8 << 20,
                overflow: overflow.into(),
            },
            _ => Limits {
                max_events: 1 << rng.u32(4..15),
                max_bytes: 1 << rng.u32(15..23),
                overflow: overflow.into(),
            },
        };
        Self {
            name: format!("c{number}"),
            behavior,
            // The first client gets every event, so that its records show which unanswered batches were stored.
            filters: match (number, behavior) {
                (0, _) => vec![">".into()],
                // Many topics, so that a release is more than a window.
                (_, Behavior::Conflating) => match rng.bool() {
                    true => vec![">".into()],
                    false => vec!["*.*.x".into(), "a0.>".into()],
                },
                (_, Behavior::SlowLink) => vec![format!("{LARGE}.>"), "a0.i0.x".into()],
                _ => filters(rng),
            },
            limits,
            min_interval: match (behavior, rng.u32(0..4)) {
                (Behavior::Conflating, _) => rng.u32(1_500..2_800),
                (Behavior::Healthy, _) => 0,
                (_, 0) => rng.u32(10..500),
                _ => 0,
            },
            seed: rng.u64(..),
        }
    }
}

impl Behavior {
    pub(crate) const fn is_healthy(self) -> bool {
        matches!(self, Self::Healthy)
    }

    pub(crate) const fn link(self) -> Link {
        match self {
            Self::Faulted | Self::Vanishing => Link::Faulty,
            Self::SlowLink => Link::Slow,
            _ => Link::Direct,
        }
    }
}

/// Topics: `area.item.kind`.
pub(crate) const AREAS: u32 = 4;
pub(crate) const ITEMS: u32 = 8;
pub(crate) const KINDS: [&str; 2] = ["x", "y"];

/// The area of events of up to a megabyte.
pub(crate) const LARGE: &str = "large";

/// Filters of every sort: all, one level, overlapping, literal.
pub(crate) fn filters(rng: &mut Rng) -> Vec<String> {
    let area = rng.u32(0..AREAS);
    let item = rng.u32(0..ITEMS);
    match rng.u32(0..8) {
        0..2 => vec![">".into()],
        2 => vec![format!("a{area}.>")],
        3 => vec![format!("*.i{item}.*"), format!("a{area}.*.x")],
        4 => vec!["*.*.x".into()],
        5 => (0..ITEMS)
            .step_by(2)
            .map(|item| format!("a{area}.i{item}.y"))
            .collect(),
        6 => vec![
            format!("a{area}.i{item}.x"),
            format!("a{area}.i{item}.>"),
            "a0.>".into(),
        ],
        _ => vec!["a1.*.*".into(), "a2.>".into(), "*.i3.x".into()],
    }
}
