//! The baselines: servers as small as if written by hand for one service.
//!
//! The three on tonic speak `tidegate.v1` with one event per response, so that one lean client reads them all.

pub(crate) mod broadcast;
pub(crate) mod mpsc;
pub(crate) mod raw;
pub(crate) mod typed;

use std::{error::Error, fs, net::SocketAddr, path::PathBuf};

use tidegate_proto::v1::{
    Batch, Event, Gap, GapReason, NewEvent, PublishRequest, PublishResponse, SubscribeResponse,
    Subscribed, subscribe_response::Response,
};
use tokio::net::TcpListener;
use tonic::{
    service::Routes,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

/// Events that a slow subscriber may be behind: tidegate's default limit.
const CAPACITY: usize = 1_024;

/// Any failure: the program only prints it.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The certificate of a server that speaks TLS, and its key.
#[derive(Debug, clap::Args)]
pub(crate) struct TlsArgs {
    /// The certificate chain in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// The private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

/// Serves until killed.
async fn serve(tls: &TlsArgs, service: Routes) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(listener.local_addr()?);
    // `Server::tcp_nodelay` does not reach connections that are handed to it.
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = Server::builder();
    if let (Some(certificate), Some(key)) = (&tls.tls_certificate, &tls.tls_key) {
        let identity = Identity::from_pem(fs::read(certificate)?, fs::read(key)?);
        server = server.tls_config(ServerTlsConfig::new().identity(identity))?;
    }
    server
        .add_routes(service)
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}

/// Announces the address, for the program that started this one.
fn announce(address: SocketAddr) {
    println!("listening on {address}");
}

fn event(new: NewEvent, sequence: u64) -> Event {
    Event {
        sequence,
        topic: new.topic,
        payload: new.payload,
        key: new.key,
        attributes: new.attributes,
        time: new.time,
    }
}

fn subscribed() -> SubscribeResponse {
    response(Response::Subscribed(Subscribed::default()))
}

fn batch(event: Event, first_index: u64) -> SubscribeResponse {
    response(Response::Batch(Batch {
        events: vec![event],
        first_index,
    }))
}

fn gap(count: u64, first_index: u64) -> SubscribeResponse {
    response(Response::Gap(Gap {
        count,
        first_index,
        reason: GapReason::Overflow.into(),
        ..Gap::default()
    }))
}

const fn response(response: Response) -> SubscribeResponse {
    SubscribeResponse {
        response: Some(response),
    }
}

/// Publishes all events of a request with `each`, and answers.
fn publish(request: PublishRequest, mut each: impl FnMut(NewEvent)) -> PublishResponse {
    let count = request.events.len() as u32;
    request.events.into_iter().for_each(&mut each);
    PublishResponse {
        count,
        ..PublishResponse::default()
    }
}
