//! One trial of a peer with a workload: starts a server for each load, and ends it.

use std::time::Duration;

use tidegate_bench::{
    Cut, Environment, Error, Figures, Idle, IdleMemory, Load, Pace, Plan, Session, Shape, Storm,
    Wave,
};

use crate::{
    amount::Amount,
    peer::{Launching, Peer, Serving},
};

/// The most events that the publisher is ahead of the slowest subscriber, flat out: half of the 1,024 that tidegate and
/// the baselines let a subscriber be behind, so that no server has to drop.
pub(crate) const AHEAD: u64 = 512;

/// A peer, and what its servers are started with.
pub(crate) struct Trial<'a> {
    pub(crate) peer: Peer,
    /// The number of the round, from 1.
    pub(crate) round: u32,
    pub(crate) amount: &'a Amount,
    pub(crate) launching: &'a Launching,
    /// The conditions of the first trial, for the document.
    pub(crate) environment: &'a mut Option<Environment>,
}

/// A load on one topic, and the settings of its server.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) connections: usize,
    /// Connections among them that read nothing.
    pub(crate) stalled_connections: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) pace: Pace,
    /// Flat out, the most events that the publisher is ahead of the slowest subscriber.
    pub(crate) ahead: Option<u64>,
    /// Whether the benchmark's threads never sleep.
    pub(crate) awake: bool,
    pub(crate) serving: Serving,
}

// ===== impl Trial =====

impl Trial<'_> {
    /// Measures a load.
    pub(crate) async fn run(&mut self, run: Run) -> Result<Figures, Error> {
        let session = self.begin(run.serving).await?;
        let measured = self.measure(run, &session).await;
        session.end().await;
        measured
    }

    /// Measures two loads. Their order alternates from round to round, so that a drift of the machine affects both
    /// alike.
    pub(crate) async fn pair(&mut self, one: Run, other: Run) -> Result<[Figures; 2], Error> {
        if self.round % 2 == 1 {
            let first = self.run(one).await?;
            return Ok([first, self.run(other).await?]);
        }
        let first = self.run(other).await?;
        Ok([self.run(one).await?, first])
    }

    /// Measures the memory of idle subscribers.
    pub(crate) async fn idle(&mut self) -> Result<IdleMemory, Error> {
        let idle = Idle {
            connections: self.amount.idle_connections,
            streams_per_connection: 1,
            shape: Shape::Literal,
            duration: Duration::from_secs_f64(self.amount.warm_up),
        };
        let session = self.begin(Serving::default()).await?;
        let memory = self.peer.idle(&idle, &session).await;
        session.end().await;
        memory
    }

    /// Measures a storm of clients. Returns the three waves.
    pub(crate) async fn storm(&mut self) -> Result<[Wave; 3], Error> {
        let storm = Storm {
            clients: self.amount.storm_clients,
            missed: 10,
            cut: Cut::Connections,
        };
        let session = self.begin(Serving::default()).await?;
        let waves = self.peer.storm(&storm, &session).await;
        session.end().await;
        waves
    }

    async fn begin(&mut self, serving: Serving) -> Result<Session, Error> {
        let session = self.launching.begin(self.peer, serving).await?;
        self.environment
            .get_or_insert_with(|| session.environment().clone());
        Ok(session)
    }

    async fn measure(&self, run: Run, session: &Session) -> Result<Figures, Error> {
        let load = Load {
            plan: Plan::new(Shape::Literal, run.connections, 1, "bench")?,
            streams_per_connection: 1,
            stalled_connections: run.stalled_connections,
            publishers: 1,
            pace: run.pace,
            ahead: run.ahead,
            batch: 64,
            payload_bytes: run.payload_bytes,
            warm_up: Duration::from_secs_f64(self.amount.warm_up),
            duration: Duration::from_secs_f64(self.amount.seconds),
            threads: session.environment().client_threads,
            awake: run.awake,
        };
        let measured = self.peer.run(load, session).await?;
        Ok(Figures::new(
            &measured,
            session.environment(),
            run.connections,
        ))
    }
}
