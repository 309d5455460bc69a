//! The admin service: inspect a server, disconnect clients, drain.

use tidegate_proto::v1::{
    DisconnectClientRequest, DrainRequest, GetServerRequest, GetServerResponse,
    ListPublishStreamsRequest, ListSubscriptionsRequest, PublishStreamState, SubscriptionOrder,
    SubscriptionState,
};

use crate::{Error, Violation, connector::AdminService};

/// Subscriptions, or publish streams, per page. The most that a server returns in one response.
const PAGE_SIZE: u32 = 1_000;

/// Calls the admin service of one server, with the credentials of the client that made it:
/// [`Client::admin`](crate::Client::admin). Cheap to clone.
///
/// A server that requires authentication serves only principals whose rule says `admin = true`.
#[derive(Clone, Debug)]
pub struct Admin {
    service: AdminService,
}

/// Selects and orders the subscriptions to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Lists the worst by this measure first. Default: the oldest first.
    pub order: SubscriptionOrder,
    /// Lists only the streams of this client. Default: those of every client.
    pub client_id: Option<String>,
    /// The most subscriptions to list. Default: `None`, no limit.
    pub max_results: Option<usize>,
}

impl Admin {
    pub(crate) const fn new(service: AdminService) -> Self {
        Self { service }
    }

    /// Returns the server's version, state, position and counters.
    ///
    /// # Errors
    /// [`Error::Failed`] with `UNIMPLEMENTED` if the server does not offer the admin service,
    /// [`Error::PermissionDenied`] if the principal may not use it, and the errors of any call.
    pub async fn server(&mut self) -> Result<GetServerResponse, Error> {
        let answer = self.service.get_server(GetServerRequest {}).await;
        Ok(answer.map_err(Error::from_status)?.into_inner())
    }

    /// Lists subscriptions, in as many calls as it takes.
    ///
    /// The list is no snapshot: a subscription that changes its place in the order between two calls may be missing or
    /// come twice. Ordered by age ([`SubscriptionOrder::Since`], the default), none does.
    ///
    /// ```no_run
    /// use tidegate_client::{Client, ListOptions, SubscriptionOrder};
    ///
    /// # async fn run() -> Result<(), tidegate_client::Error> {
    /// let mut admin = Client::connect_lazy("http://127.0.0.1:50051")?.admin();
    /// let options = ListOptions {
    ///     order: SubscriptionOrder::Backlog,
    ///     max_results: Some(10),
    ///     ..ListOptions::default()
    /// };
    /// for subscription in admin.subscriptions(&options).await? {
    ///     if subscription.stalled {
    ///         let ended = admin.disconnect(&*subscription.client_id).await?;
    ///         println!("{}: {ended} streams ended", subscription.client_id);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub async fn subscriptions(
        &mut self,
        options: &ListOptions,
    ) -> Result<Vec<SubscriptionState>, Error> {
        let max_results = options.max_results.unwrap_or(usize::MAX);
        let mut request = ListSubscriptionsRequest {
            page_size: u32::try_from(max_results)
                .unwrap_or(PAGE_SIZE)
                .min(PAGE_SIZE),
            order_by: options.order.into(),
            client_id: options.client_id.clone().unwrap_or_default(),
            ..Default::default()
        };
        let mut listed = Vec::new();
        loop {
            let answer = self.service.list_subscriptions(request.clone()).await;
            let page = answer.map_err(Error::from_status)?.into_inner();
            listed.extend(page.subscriptions);
            if page.next_page_token.is_empty() || listed.len() >= max_results {
                listed.truncate(max_results);
                return Ok(listed);
            }
            // Asking for the same page again would never end.
            if page.next_page_token == request.page_token {
                return Err(Violation::Page.into());
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Lists the open calls of `PublishStream`, the oldest first, in as many calls as it takes. One that opens or ends
    /// between two of them may be missing; none comes twice.
    ///
    /// A publisher that does not read its answers has [`unread_bytes`](PublishStreamState::unread_bytes), and
    /// [`unread_for`](PublishStreamState::unread_for) is the time for which it has taken none of them.
    ///
    /// # Errors
    /// As [`server`](Self::server), with `UNIMPLEMENTED` also if the server is older than this call.
    pub async fn publish_streams(&mut self) -> Result<Vec<PublishStreamState>, Error> {
        let mut request = ListPublishStreamsRequest {
            page_size: PAGE_SIZE,
            ..Default::default()
        };
        let mut listed = Vec::new();
        loop {
            let answer = self.service.list_publish_streams(request.clone()).await;
            let page = answer.map_err(Error::from_status)?.into_inner();
            listed.extend(page.publish_streams);
            if page.next_page_token.is_empty() {
                return Ok(listed);
            }
            // Asking for the same page again would never end.
            if page.next_page_token == request.page_token {
                return Err(Violation::Page.into());
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Ends every stream of a client, with a status that tells the client not to reconnect by itself. Returns the
    /// number of streams, which is 0 if the client has none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `client_id` is no client id, and as [`server`](Self::server).
    pub async fn disconnect(&mut self, client_id: impl Into<String>) -> Result<u32, Error> {
        let request = DisconnectClientRequest {
            client_id: client_id.into(),
        };
        let answer = self.service.disconnect_client(request).await;
        Ok(answer
            .map_err(Error::from_status)?
            .into_inner()
            .disconnected)
    }

    /// Begins to drain the server: it tells every stream where to resume, and ends. Returns `false` if a drain was
    /// under way already. The call does not wait for the end of the drain.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub async fn drain(&mut self) -> Result<bool, Error> {
        let answer = self.service.drain(DrainRequest {}).await;
        Ok(answer.map_err(Error::from_status)?.into_inner().began)
    }
}
