//! New connections to a server, with the settings and credentials of a client.

use std::future::Future;

use tidegate_proto::v1::{
    SubscribeRequest, SubscribeResponse, admin_service_client::AdminServiceClient,
    event_service_client::EventServiceClient,
};
use tonic::{
    Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::credentials::Credentials;

/// The event service, with credentials added to each call.
pub(crate) type EventService = EventServiceClient<InterceptedService<Channel, Credentials>>;

/// The admin service, with credentials added to each call.
pub(crate) type AdminService = AdminServiceClient<InterceptedService<Channel, Credentials>>;

/// Opens connections to one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    /// Opens connections. All settings are applied to it.
    pub(crate) endpoint: Endpoint,
    pub(crate) credentials: Credentials,
    /// The largest message that is accepted from the server.
    pub(crate) max_message_bytes: usize,
}

impl Connector {
    /// Returns a new connection, which connects on first use, and again after it has broken.
    pub(crate) fn connect_lazy(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// Returns the event service on a connection.
    pub(crate) fn event_service(&self, channel: Channel) -> EventService {
        EventServiceClient::with_interceptor(channel, self.credentials.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }

    /// Returns the admin service on a connection.
    pub(crate) fn admin_service(&self, channel: Channel) -> AdminService {
        AdminServiceClient::with_interceptor(channel, self.credentials.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }

    /// Opens a `Subscribe` stream on a new connection. So each attempt resolves the name again, and none uses a
    /// connection whose peer has vanished silently.
    pub(crate) fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> impl Future<Output = Result<Streaming<SubscribeResponse>, Status>> + Send + 'static {
        let mut service = self.event_service(self.connect_lazy());
        async move { Ok(service.subscribe(request).await?.into_inner()) }
    }

    /// Whether the token may have been renewed since the server accepted it.
    pub(crate) fn may_have_new_token(&self) -> bool {
        self.credentials.can_change()
    }
}
