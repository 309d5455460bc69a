//! The server.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidegate::{
    Overflow,
    typed::{Error, Hub, Publication, Shared, Snapshot, Subscription},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::proto::{
    SetRequest, SetResponse, Tick, WatchRequest,
    ticker_server::{Ticker, TickerServer},
};

#[derive(Clone)]
struct TickerService {
    hub: Hub<Tick>,
    /// The newest price of each symbol. Prices are published under this lock, so that under it the position of
    /// the hub is that of the prices.
    prices: Arc<Mutex<BTreeMap<String, Shared<Tick>>>>,
}

impl TickerService {
    fn set(&self, ticks: Vec<Tick>) -> Result<(), Error> {
        let mut prices = self.prices();
        let published = ticks.iter().map(|tick| {
            Publication::new(tick.clone())
                .topic(topic(&tick.symbol))
                .key(&*tick.symbol)
        });
        self.hub.publish_all(published)?;
        for tick in ticks {
            prices.insert(tick.symbol.clone(), tick.into());
        }
        Ok(())
    }

    fn snapshot(&self, symbols: &[String]) -> Snapshot<Tick> {
        let prices = self.prices();
        let wanted = prices
            .values()
            .filter(|tick| symbols.is_empty() || symbols.contains(&tick.symbol));
        Snapshot::new(self.hub.position(), wanted.cloned().collect::<Vec<_>>())
    }

    fn prices(&self) -> MutexGuard<'_, BTreeMap<String, Shared<Tick>>> {
        self.prices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Ticker for TickerService {
    type WatchStream = Subscription<Tick>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let symbols = request.into_inner().symbols;
        let service = self.clone();
        let subscription = self
            .hub
            .subscribe()
            .topics(symbols.iter().map(|symbol| topic(symbol)))
            .overflow(Overflow::Conflate)
            .snapshot(async move |_| Ok(service.snapshot(&symbols)))
            // Of more symbols than the limits hold, some would be missing.
            .fail_on_loss(|_| Status::data_loss("too slow for so many symbols; start over"))
            .open()?;
        Ok(Response::new(subscription))
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        Self::set(self, request.into_inner().ticks)?;
        Ok(Response::new(SetResponse {}))
    }
}

fn topic(symbol: &str) -> String {
    format!("prices.{symbol}")
}

/// Serves until `signal`, and then ends every stream in good order.
///
/// # Errors
/// When the server fails, or has not ended ten seconds after the signal.
pub async fn serve(
    listener: TcpListener,
    signal: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::new();
    let service = TickerServer::new(TickerService {
        hub: hub.clone(),
        prices: Arc::default(),
    });
    let grace = Duration::from_secs(10);
    let served = hub.serve_until(signal, grace, |shutdown| {
        Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown)
    });
    Ok(served.await??)
}
