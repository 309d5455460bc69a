//! The jobs as a program: `jobs serve`, `jobs watch`, `jobs run build 100`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is a program for the terminal"
)]

use std::{error::Error, net::SocketAddr};

use clap::{Parser, Subcommand};
use tidegate_example_jobs::{
    proto::{Position, Progress, RunRequest, WatchRequest, jobs_client::JobsClient},
    serve,
};
use tokio::{net::TcpListener, time};
use tonic::{Code, Status};

/// Progress of many jobs, step by step.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server, until it is interrupted.
    Serve {
        /// Address to listen on; port 0 stands for any free port.
        #[arg(long, default_value = "127.0.0.1:50061")]
        listen: SocketAddr,
    },
    /// Print every step of a job, or of all jobs. Resumes when the stream breaks.
    Watch {
        /// Name of the job. Without it, all jobs.
        #[arg(default_value = "")]
        job: String,
        /// Position to resume after, as EPOCH:SEQUENCE.
        #[arg(long, value_parser = position)]
        after: Option<Position>,
        /// URL of the server.
        #[arg(long, default_value = "http://127.0.0.1:50061")]
        server: String,
    },
    /// Run a job.
    Run {
        /// Name of the job.
        job: String,
        /// Number of its steps.
        steps: u32,
        /// URL of the server.
        #[arg(long, default_value = "http://127.0.0.1:50061")]
        server: String,
    },
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    match Cli::parse().command {
        Command::Serve { listen } => {
            let listener = TcpListener::bind(listen).await?;
            println!("listening on {}", listener.local_addr()?);
            let signal = async { _ = tokio::signal::ctrl_c().await };
            serve(listener, signal).await
        }
        Command::Watch { job, after, server } => watch(job, after, server).await,
        Command::Run { job, steps, server } => {
            let mut client = JobsClient::connect(server).await?;
            client.run(RunRequest { job, steps }).await?;
            Ok(())
        }
    }
}

fn position(text: &str) -> Result<Position, Box<dyn Error + Send + Sync>> {
    let (epoch, sequence) = text.split_once(':').ok_or("EPOCH:SEQUENCE")?;
    Ok(Position {
        epoch: epoch.parse()?,
        sequence: sequence.parse()?,
    })
}

async fn watch(
    job: String,
    mut resume_after: Option<Position>,
    server: String,
) -> Result<(), Box<dyn Error>> {
    loop {
        let status = watch_once(&job, &mut resume_after, &server).await;
        let Err(status) = status else { return Ok(()) };
        match status.code() {
            // Too slow, or the server or the connection is gone. No step is lost: the next stream resumes here.
            Code::ResourceExhausted | Code::Unavailable => {
                eprintln!("resuming: {}", status.message());
                time::sleep(time::Duration::from_millis(100)).await;
            }
            _ => return Err(status.into()),
        }
    }
}

/// Watches until the stream ends, and keeps the position to resume after.
async fn watch_once(
    job: &str,
    resume_after: &mut Option<Position>,
    server: &str,
) -> Result<(), Status> {
    let client = JobsClient::connect(server.to_owned()).await;
    let mut client = client.map_err(|e| Status::unavailable(e.to_string()))?;
    let request = WatchRequest {
        job: job.into(),
        resume_after: *resume_after,
    };
    let mut steps = client.watch(request).await?.into_inner();
    while let Some(step) = steps.message().await? {
        let Progress {
            job,
            done,
            steps,
            sequence,
            epoch,
        } = step;
        match steps {
            0 => println!("from {epoch}:{sequence}"),
            steps => println!("{job} {done}/{steps} at {epoch}:{sequence}"),
        }
        *resume_after = Some(Position { epoch, sequence });
    }
    Ok(())
}
