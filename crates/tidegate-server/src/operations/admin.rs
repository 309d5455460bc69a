//! `tidegate.v1.AdminService`: the [`Controls`] over gRPC.

use std::net::SocketAddr;

use prost::Message as _;
use tidegate::{
    ClientId, PublishStream, Reason, limits_in_force,
    proto::{
        self, DisconnectClientRequest, DisconnectClientResponse, DrainRequest, DrainResponse,
        GetServerRequest, GetServerResponse, ListPublishStreamsRequest, ListPublishStreamsResponse,
        ListSubscriptionsRequest, ListSubscriptionsResponse, Statistics, SubscriptionOrder,
        admin_service_server,
    },
};
use tonic::{Request, Response, Status};

use super::controls::{Controls, ServerStats, SubscriptionState};
use crate::network::listener::PeerAddress;

/// The number of subscriptions on a page if the request does not say.
const DEFAULT_PAGE_SIZE: u32 = 100;

/// The most subscriptions on a page, whatever the request says.
const MAX_PAGE_SIZE: u32 = 1_000;

/// The bytes after which a page ends, whatever its size is to be. A subscription may have 1,024 filters of 256 bytes, and
/// a client of gRPC refuses a message of more than 4 MiB.
const PAGE_BYTES: usize = 2 << 20;

/// The implementation of the generated service.
#[derive(Debug, Clone)]
pub(crate) struct Admin(pub(crate) Controls);

/// A position in the list of subscriptions, as page tokens hold it. The derived order is by the value and, among
/// equals, by the id, which the hub counts up: the older subscription comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    /// The value that the list is ordered by, the greatest first.
    value: std::cmp::Reverse<u64>,
    id: u64,
}

#[tonic::async_trait]
impl admin_service_server::AdminService for Admin {
    async fn get_server(
        &self,
        _: Request<GetServerRequest>,
    ) -> Result<Response<GetServerResponse>, Status> {
        let position = self.0.hub().position();
        let stats = self.0.stats();
        Ok(Response::new(GetServerResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            position: Some(proto::Position {
                epoch: position.epoch,
                sequence: position.sequence,
            }),
            started: Some(self.0.started().into()),
            ready: stats.is_ready,
            statistics: Some(statistics(&stats)),
        }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let request = request.into_inner();
        let order = SubscriptionOrder::try_from(request.order_by)
            .map_err(|unknown| Reason::InvalidRequest.in_field("order_by", unknown.to_string()))?;
        let after = Cursor::of_token(&request.page_token)?;
        let mut states = self.0.subscriptions();
        if !request.client_id.is_empty() {
            states.retain(|state| state.info.client_id.as_str() == request.client_id);
        }
        Ok(Response::new(page(
            states,
            order,
            after,
            page_size(request.page_size),
        )))
    }

    async fn list_publish_streams(
        &self,
        request: Request<ListPublishStreamsRequest>,
    ) -> Result<Response<ListPublishStreamsResponse>, Status> {
        let request = request.into_inner();
        let after = match &*request.page_token {
            "" => None,
            token => Some(token.parse().map_err(|_| bad_page_token())?),
        };
        let streams = self.0.publish_streams();
        let total = streams.len() as u64;
        let size = page_size(request.page_size);
        // In the order of their identities.
        let mut rest = streams
            .into_iter()
            .filter(|stream| after.is_none_or(|after: u64| stream.id > after));
        let page: Vec<_> = rest.by_ref().take(size).collect();
        let last = page.last().filter(|_| rest.next().is_some());
        Ok(Response::new(ListPublishStreamsResponse {
            next_page_token: last.map(|last| last.id.to_string()).unwrap_or_default(),
            publish_streams: page.iter().map(publish_stream).collect(),
            total,
        }))
    }

    async fn disconnect_client(
        &self,
        request: Request<DisconnectClientRequest>,
    ) -> Result<Response<DisconnectClientResponse>, Status> {
        let client = ClientId::new(&request.get_ref().client_id)
            .map_err(|error| Reason::InvalidClientId.in_field("client_id", error.to_string()))?;
        let disconnected = self.0.disconnect(&client);
        tracing::info!(%client, disconnected, "an operator disconnected a client");
        Ok(Response::new(DisconnectClientResponse {
            disconnected: u32::try_from(disconnected).unwrap_or(u32::MAX),
        }))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let began = self.0.drain();
        Ok(Response::new(DrainResponse { began }))
    }
}

fn page_size(asked: u32) -> usize {
    let size = match asked {
        0 => DEFAULT_PAGE_SIZE,
        size => size.min(MAX_PAGE_SIZE),
    };
    size as usize
}

/// The page of `states` after a cursor, in `order`.
fn page(
    states: Vec<SubscriptionState>,
    order: SubscriptionOrder,
    after: Option<Cursor>,
    size: usize,
) -> ListSubscriptionsResponse {
    let total = states.len() as u64;
    let mut ordered: Vec<_> = states
        .into_iter()
        .map(|state| (Cursor::of(&state, order), state))
        .filter(|(cursor, _)| after.is_none_or(|after| *cursor > after))
        .collect();
    ordered.sort_unstable_by_key(|(cursor, _)| *cursor);
    let (mut subscriptions, mut bytes, mut last) = (Vec::new(), 0, None);
    let mut rest = ordered.into_iter().peekable();
    while let Some((cursor, state)) =
        rest.next_if(|_| subscriptions.len() < size && bytes < PAGE_BYTES)
    {
        let state = to_proto(state);
        bytes += state.encoded_len();
        subscriptions.push(state);
        last = Some(cursor);
    }
    let is_last = rest.peek().is_none();
    ListSubscriptionsResponse {
        next_page_token: last
            .filter(|_| !is_last)
            .map(Cursor::token)
            .unwrap_or_default(),
        subscriptions,
        total,
    }
}

// ===== impl Cursor =====

impl Cursor {
    fn of(state: &SubscriptionState, order: SubscriptionOrder) -> Self {
        let value = match order {
            SubscriptionOrder::Unspecified | SubscriptionOrder::Since => 0,
            SubscriptionOrder::Backlog => state.info.backlog,
            SubscriptionOrder::Lag => u64::try_from(state.lag.as_millis()).unwrap_or(u64::MAX),
            SubscriptionOrder::Losses => state.info.lost + state.info.pending_loss,
        };
        Self {
            value: std::cmp::Reverse(value),
            id: state.info.id,
        }
    }

    fn token(self) -> String {
        format!("{}:{}", self.value.0, self.id)
    }

    fn of_token(token: &str) -> Result<Option<Self>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        let cursor = token.split_once(':').and_then(|(value, id)| {
            Some(Self {
                value: std::cmp::Reverse(value.parse().ok()?),
                id: id.parse().ok()?,
            })
        });
        cursor.map(Some).ok_or_else(bad_page_token)
    }
}

fn bad_page_token() -> Status {
    let problem = "must be next_page_token of the previous page, unchanged";
    Reason::InvalidRequest.in_field("page_token", problem)
}

fn publish_stream(stream: &PublishStream) -> proto::PublishStreamState {
    let address = stream.address.map(in_words);
    proto::PublishStreamState {
        publish_stream_id: stream.id.to_string(),
        principal: stream.principal.as_deref().unwrap_or_default().into(),
        address: address.unwrap_or_default(),
        since: Some(stream.since.into()),
        requests: stream.requests,
        events: stream.events,
        unread_bytes: stream.unread_bytes,
        unread_for: stream.unread_for.and_then(|time| time.try_into().ok()),
    }
}

fn to_proto(state: SubscriptionState) -> proto::SubscriptionState {
    let info = state.info;
    proto::SubscriptionState {
        subscription_id: info.id.to_string(),
        client_id: info.client_id.to_string(),
        principal: info.principal.as_deref().unwrap_or_default().into(),
        address: state.address.map(in_words).unwrap_or_default(),
        filters: state.filters.iter().map(ToString::to_string).collect(),
        limits: Some(limits_in_force(&state.limits)),
        since: Some(state.since.into()),
        next_index: state.next_index,
        backlog: info.backlog - info.pending_loss - info.pending_conflation,
        lag: state.lag.try_into().ok(),
        delivered_events: info.handed_off,
        lost_events: info.lost,
        conflated_events: info.conflated,
        stalled: info.is_stalled,
        pending_lost_events: info.pending_loss,
        pending_conflated_events: info.pending_conflation,
    }
}

fn in_words(address: SocketAddr) -> String {
    PeerAddress(address).to_string()
}

fn statistics(stats: &ServerStats) -> Statistics {
    let hub = &stats.hub;
    Statistics {
        published_events: hub.published,
        matched_deliveries: hub.matched,
        replayed_events: hub.replayed,
        delivered_events: hub.handed_off,
        lost_overflow: hub.overflowed,
        lost_conflated: hub.conflated,
        lost_evicted: hub.evicted,
        abandoned_events: hub.abandoned,
        subscriptions: hub.subscriptions,
        stalled_subscriptions: hub.stalled,
        clients: hub.clients as u64,
        feeds: hub.feeds as u64,
        history_events: hub.history_events as u64,
        history_bytes: hub.history_bytes,
        retained_bytes: hub.retained_bytes,
        memory_budget_bytes: stats.memory_budget,
        connections: stats.connections.open as u64,
        refused_connections: stats.connections.refused + stats.connections.refused_by_address,
        quota_refusals: stats.quotas.iter().map(|count| count.refused).sum(),
        pending_lost_events: stats.pending_loss,
        quota_observed: stats.quotas.iter().map(|count| count.observed).sum(),
    }
}
