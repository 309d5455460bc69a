//! Looking at a server, and steering it.

use tidegate_proto::v1::{
    DisconnectClientRequest, DrainRequest, GetServerRequest, GetServerResponse,
    ListSubscriptionsRequest, SubscriptionOrder, SubscriptionState,
    admin_service_client::AdminServiceClient,
};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use crate::{Error, credentials::Credentials};

/// How many subscriptions are asked for at once.
const PAGE_SIZE: u32 = 1_000;

/// Speaks to the admin service of one server, with the credentials of its client: see
/// [`Client::admin`](crate::Client::admin). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    service: AdminServiceClient<InterceptedService<Channel, Credentials>>,
}

/// Which subscriptions to list.
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
    pub(crate) const fn new(
        service: AdminServiceClient<InterceptedService<Channel, Credentials>>,
    ) -> Self {
        Self { service }
    }

    /// What the server is, and its numbers.
    ///
    /// # Errors
    /// [`Error::Failed`] with `UNIMPLEMENTED` if the server does not serve it, and as for any call.
    pub async fn server(&mut self) -> Result<GetServerResponse, Error> {
        let answer = self.service.get_server(GetServerRequest {}).await;
        Ok(answer.map_err(Error::from_status)?.into_inner())
    }

    /// Who is subscribed, page after page. A subscription that moves while it is listed may be missing or come twice,
    /// unless the order is that of age.
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
            request.page_token = page.next_page_token;
        }
    }

    /// Ends every stream of a client. Returns how many there were.
    ///
    /// # Errors
    /// As [`server`](Self::server).
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

    /// Ends the server in good order. Returns whether no drain was under way.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub async fn drain(&mut self) -> Result<bool, Error> {
        let answer = self.service.drain(DrainRequest {}).await;
        Ok(answer.map_err(Error::from_status)?.into_inner().began)
    }
}
