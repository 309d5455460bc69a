//! The job server: every step of a job is an event.

use std::{future::Future, num::NonZeroU64, time::Duration};

use tidegate::{
    HistoryLimits, Limits, Overflow, Position, SweepRules,
    typed::{Hub, Publication, Snapshot, Subscription},
};
use tokio::{net::TcpListener, time};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::proto::{
    Progress, RunRequest, RunResponse, WatchRequest,
    jobs_server::{Jobs, JobsServer},
};

struct JobsService {
    hub: Hub<Progress>,
}

#[tonic::async_trait]
impl Jobs for JobsService {
    type WatchStream = Subscription<Progress>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<RunResponse>, Status> {
        let RunRequest { job, steps } = request.into_inner();
        for done in 1..=steps {
            // A real job would work here. The hub fills in the position.
            let progress = Progress {
                job: job.clone(),
                done,
                steps,
                ..Progress::default()
            };
            self.hub
                .publish(Publication::new(progress).topic(format!("jobs.{job}")))?;
        }
        Ok(Response::new(RunResponse {}))
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { job, resume_after } = request.into_inner();
        let job = if job.is_empty() { "*".into() } else { job };
        let resume_after = resume_after.map(|position| Position {
            epoch: position.epoch,
            sequence: position.sequence,
        });
        let subscription = self
            .hub
            .subscribe()
            .topic(format!("jobs.{job}"))
            .resume_after(resume_after)
            // Gives the watcher a position, so that it can resume even if its stream ends before the first step.
            .snapshot(async |began_at| Ok(Snapshot::new(began_at, [beginning(began_at)])))
            // Steps that have left history cannot be resumed.
            .fail_on_loss(|gap| Status::data_loss(format!("steps are missing: {:?}", gap.reason)))
            .open()?;
        Ok(Response::new(subscription))
    }
}

fn beginning(Position { epoch, sequence }: Position) -> Progress {
    Progress {
        epoch,
        sequence,
        ..Progress::default()
    }
}

/// Serves until `signal`, and then ends every stream with a status and a position to resume after.
///
/// # Errors
/// If the server fails, or has not ended ten seconds after the signal.
pub async fn serve(
    listener: TcpListener,
    signal: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error>> {
    const BEHIND: NonZeroU64 = NonZeroU64::new(1_000).expect("not zero");
    let hub = Hub::builder()
        .sequence_field(4)
        .epoch_field(5)
        .limits(Limits {
            max_events: BEHIND,
            overflow: Overflow::Disconnect,
            ..Limits::default()
        })
        .history(HistoryLimits {
            max_events: 100_000,
            ..HistoryLimits::default()
        })
        .build();
    let service = JobsServer::new(JobsService { hub: hub.clone() });
    let grace = Duration::from_secs(10);
    let served = hub.serve_until(signal, grace, |shutdown| {
        Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown)
    });
    tokio::select! {
        served = served => Ok(served??),
        never = sweep(&hub) => never,
    }
}

/// Ends watchers that read nothing for a minute, even while the transport holds events for them.
async fn sweep<N>(hub: &Hub<Progress>) -> N {
    let mut interval = time::interval(Duration::from_secs(1));
    loop {
        interval.tick().await;
        hub.sweep(&SweepRules::default());
    }
}
