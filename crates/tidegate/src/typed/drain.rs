//! The end of a server with open streams.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{Either, select};
use tokio::{sync::oneshot, time::timeout};

use super::{hub::Hub, value::Value};

/// Signal for a server to shut down: a future that is ready when the hub has closed. See [`Hub::serve_until`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Shutdown(oneshot::Receiver<()>);

/// Error of a server that did not end within its grace period, because some peers do not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server did not end within the grace period; {subscriptions} subscriptions are left")]
#[non_exhaustive]
pub struct Unfinished {
    /// Number of subscriptions that were left.
    pub subscriptions: usize,
}

impl<T: Value> Hub<T> {
    /// Runs a server until `signal` is ready, and then ends it in good order: closes the hub, tells the server to shut
    /// down, and waits until it has ended, for at most `grace`. Returns the output of the server.
    ///
    /// tonic's shutdown alone waits until every stream has ended, and those of a hub never end by themselves.
    /// Here they end with `UNAVAILABLE`, a delay, and a position to resume from. On tonic's own server a
    /// peer that does not read cannot be told; the grace period is for those.
    ///
    /// A server that ends before the signal, as one whose address is in use does, returns at once, and the hub
    /// stays open.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::typed::Hub;
    /// use tonic::transport::Server;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = Hub::<String>::new();
    /// # let events = tidegate::Hub::new(tidegate::HubConfig::new(1));
    /// # let service = tidegate::EventService::new(events, tidegate::ServiceConfig::default());
    /// # let address = "127.0.0.1:0".parse()?;
    /// # let interrupted = async {};
    /// let server = Server::builder().add_service(service);
    /// hub.serve_until(interrupted, Duration::from_secs(10), |shutdown| {
    ///     server.serve_with_shutdown(address, shutdown)
    /// })
    /// .await??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Unfinished`] when the server has not ended within `grace`. It is dropped then, with its streams.
    pub async fn serve_until<S: Future>(
        &self,
        signal: impl Future<Output = ()>,
        grace: Duration,
        serve: impl FnOnce(Shutdown) -> S,
    ) -> Result<S::Output, Unfinished> {
        let (shutdown, closed) = oneshot::channel();
        let served = pin!(serve(Shutdown(closed)));
        let served = match select(served, pin!(signal)).await {
            Either::Left((output, _)) => return Ok(output),
            Either::Right(((), served)) => served,
        };
        self.close();
        // A server that dropped its `Shutdown` does not wait for it.
        let _ = shutdown.send(());
        timeout(grace, served).await.map_err(|_| Unfinished {
            subscriptions: self.inner.entries().len(),
        })
    }

    /// Closes the hub and waits until every subscription has gone, for at most `grace`. Returns the number of
    /// those that are left. Cancelled, it leaves the hub closed.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.close();
        // The result does not matter: the number below tells whether all have gone.
        let _ = timeout(grace, self.all_ended()).await;
        self.inner.entries().len()
    }

    async fn all_ended(&self) {
        loop {
            let mut departed = pin!(self.inner.departed.notified());
            // Registered before the look: a notification that comes in between counts. `notify_waiters` wakes
            // only those that are registered.
            departed.as_mut().enable();
            if self.inner.entries().is_empty() {
                return;
            }
            departed.await;
        }
    }
}

impl Future for Shutdown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // An error means that `serve_until` is gone, which is a reason to end as well.
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}
