//! Runs the programs of the example over real sockets.

use tidegate_embedding_tests::{Program, next};
use tidegate_example_jobs::proto::{
    Position, Progress, RunRequest, WatchRequest, jobs_client::JobsClient,
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

const JOBS: &str = env!("CARGO_BIN_EXE_jobs");

async fn run(server: &Program, job: &str, steps: &str) {
    let mut run = Program::start(JOBS, &["run", job, steps, "--server", &server.url]);
    assert!(run.ends().await.success());
}

#[tokio::test]
async fn returning_watcher_resumes_where_it_stopped() {
    let server = Program::serve(JOBS).await;
    let first = ["watch", "build", "--after", "1:0", "--server", &server.url];
    run(&server, "build", "3").await;
    run(&server, "other", "2").await;
    let mut refused = Program::start(JOBS, &first);
    assert!(!refused.ends().await.success(), "the epoch is another one");

    let mut watching = Program::start(JOBS, &["watch", "--server", &server.url]);
    let line = watching.line().await;
    let at = line.strip_prefix("from ").unwrap();
    run(&server, "build", "1").await;
    let line = watching.line().await;
    assert!(line.starts_with("build 1/1"), "{line}");
    watching.end().await;
    run(&server, "build", "3").await;
    let resumed = ["watch", "build", "--after", at, "--server", &server.url];
    let mut resumed = Program::start(JOBS, &resumed);
    for step in ["build 1/1", "build 1/3", "build 2/3", "build 3/3"] {
        let line = resumed.line().await;
        assert!(line.starts_with(step), "{line}");
    }
}

async fn connect(server: &Program) -> JobsClient<Channel> {
    // A stream's window takes 64 KiB without being read.
    let endpoint = Endpoint::from_shared(server.url.clone())
        .unwrap()
        .initial_stream_window_size(65_535);
    JobsClient::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn slow_watcher_is_disconnected_and_misses_no_step() {
    const STEPS: u32 = 50_000;
    let server = Program::serve(JOBS).await;
    let (mut slow, mut runner) = (connect(&server).await, connect(&server).await);
    let watch = |resume_after| WatchRequest {
        resume_after,
        ..WatchRequest::default()
    };
    let mut steps = slow.watch(watch(None)).await.unwrap().into_inner();
    let job = RunRequest {
        job: "long".into(),
        steps: STEPS,
    };
    runner.run(job).await.unwrap();
    let (mut seen, mut resume_after, mut resumed) = (0, None, 0);
    while seen < STEPS {
        match next(&mut steps).await {
            Ok(step) => {
                let Progress {
                    done,
                    epoch,
                    sequence,
                    ..
                } = step;
                assert!(done == seen || done == seen + 1, "{done} after {seen}");
                seen = done;
                resume_after = Some(Position { epoch, sequence });
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                resumed += 1;
                steps = slow.watch(watch(resume_after)).await.unwrap().into_inner();
            }
        }
    }
    assert!(resumed > 0, "it never was too slow");
}
