//! `Subscribe`, from a request to a stream, in four stages.
//!
//! 1. *Read*: the message arrives in time and keeps every rule that can be checked without the hub.
//! 2. *Admit*: the caller's rights allow the subscription, and then its quotas do.
//! 3. *Begin*: the hub opens the subscription, and everyone who may end it learns of it.
//! 4. *Stream*: the subscription becomes the body of the response.
//!
//! A call that is refused in one stage leaves no trace in the later ones: the gate does not count an invalid
//! request, and a caller that is not admitted does not take over a client id.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};
use http_body::Body;
use tidegate_core::{Filter, Hub, SubscribeOptions, Subscription};
use tidegate_http2::StreamHandle;
use tidegate_proto::v1::SubscribeRequest;
use tokio::{
    task::coop::consume_budget,
    time::{self, timeout_at},
};
use tonic::Status;

use super::{
    access::{Access, AccessWatch, Scope, caller},
    body::ResponseBody,
    calls::Calls,
    config::ServiceConfig,
    convert::{self, Intervals, SubscribeParameters},
    deadline,
    drainer::{Drainer, Registrations, Timing},
    gate::{Caller, HeldPermit},
    messages::Messages,
    wire::Encoded,
};
use crate::{
    chunks::{ChunkStats, Sharing},
    pace::Pacer,
    reason::Reason,
    status::{not_subscribed, reconnect_delay, request_timed_out},
    stream,
};

/// Path of the method.
pub(super) const SUBSCRIBE: &str = "/tidegate.v1.EventService/Subscribe";

/// Size limit of a request, which is a client id and filters: 1,024 of the longest filters take 272 KiB.
const MAX_REQUEST_BYTES: usize = 512 << 10;

/// Filters of a subscription that take one unit of the budget of a task. With 256 filters or more, which may need a
/// millisecond to prepare and register, it is the only one of its turn.
const FILTERS_PER_UNIT: usize = 2;

/// Opener of the subscriptions of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Subscriber {
    hub: Hub<Encoded>,
    /// Source of the chunks that its subscriptions share.
    sharing: Arc<Sharing>,
    /// Pace of their replays.
    pacer: Arc<Pacer>,
    config: Arc<ServiceConfig>,
}

/// A subscription that may begin: rights and quotas allow it.
struct Admitted {
    options: SubscribeOptions,
    permit: HeldPermit,
    /// Access of its caller and the rights that it needs, where callers authenticate.
    rights: Option<(Access, Scope)>,
}

impl Subscriber {
    pub(super) fn new(hub: Hub<Encoded>, config: ServiceConfig) -> Self {
        Self {
            hub,
            sharing: Arc::new(Sharing::new()),
            pacer: Arc::default(),
            config: Arc::new(config),
        }
    }

    pub(super) const fn hub(&self) -> &Hub<Encoded> {
        &self.hub
    }

    pub(super) fn chunk_stats(&self) -> ChunkStats {
        self.sharing.stats()
    }

    /// Answers one call. Its stream ends with the calls of its connection.
    pub(super) async fn call<B>(
        self,
        request: http::Request<B>,
        calls: Option<Calls>,
    ) -> http::Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.subscribe(request, calls).await {
            Ok(drainer) => {
                let mut response = http::Response::new(ResponseBody::Subscription(drainer));
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                response
            }
            Err(status) => status.into_http(),
        }
    }

    async fn subscribe<B>(
        &self,
        request: http::Request<B>,
        calls: Option<Calls>,
    ) -> Result<Drainer, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let deadline = deadline::from_headers(request.headers())?;
        let access = request.extensions().get::<Access>().cloned();
        let caller = caller(request.extensions());
        let handle = request.extensions().get::<StreamHandle>().cloned();
        let mut parameters = self.read(request, deadline).await?;
        parameters.options.transport = handle.clone().map(stream::transport);
        take_turn_for(&parameters.options.filters).await;
        let intervals = parameters.intervals;
        let admitted = self.admit(access, &caller, parameters)?;
        let begun = self.begin(admitted, calls.as_ref())?;
        Ok(self.stream(begun, handle, intervals, deadline))
    }

    /// Reads the one message of the call, and checks it.
    async fn read<B>(
        &self,
        request: http::Request<B>,
        deadline: Option<time::Instant>,
    ) -> Result<SubscribeParameters, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let read_by = time::Instant::now() + self.config.request_timeout;
        let read_by = deadline.map_or(read_by, |deadline| deadline.min(read_by));
        let message = read_message(request, Arc::clone(&self.config));
        let message = timeout_at(read_by, message)
            .await
            .map_err(|_| request_timed_out())??;
        convert::subscribe_request(&message, &self.config)
    }

    /// Checks the caller's rights, takes a permit of the gate, and notes the principal for takeovers.
    fn admit(
        &self,
        access: Option<Access>,
        caller: &Caller,
        parameters: SubscribeParameters,
    ) -> Result<Admitted, Status> {
        let (mut options, gives_id) = (parameters.options, parameters.gives_id);
        let rights = match access {
            None => None,
            Some(access) => {
                if !gives_id {
                    options.client_id = access.new_client_id()?;
                }
                let scope = Scope::of(&options, gives_id);
                access.check_subscribe(&scope)?;
                options.principal = Some(Arc::clone(access.principal()));
                Some((access, scope))
            }
        };
        // After the rights: a subscription that is not allowed is not counted.
        let gate = self.config.gate.as_ref();
        let permit = gate.map(|gate| gate.subscribe(caller, &options));
        Ok(Admitted {
            options,
            permit: HeldPermit::new(permit.transpose()?),
            rights,
        })
    }

    /// Opens the subscription, and registers it with those who count it or may end it.
    fn begin(
        &self,
        mut admitted: Admitted,
        calls: Option<&Calls>,
    ) -> Result<(Subscription<Encoded>, Registrations), Status> {
        let filters = admitted.options.filters.len();
        let subscription = self
            .hub
            .subscribe(admitted.options, Instant::now())
            .map_err(not_subscribed)?;
        let id = subscription.id();
        admitted.permit.begun(id, subscription.limits());
        // After the hub, which gives the identity. If the calls were ended or the rights withdrawn in the
        // meantime, both notice it here and end the subscription at once.
        let registrations = Registrations {
            permit: admitted.permit,
            filters,
            _enrolled: calls.map(|calls| calls.enroll(id)),
            _watch: admitted
                .rights
                .map(|(access, scope)| AccessWatch::new(&access, scope, self.hub.clone(), id)),
        };
        Ok((subscription, registrations))
    }

    /// Makes the subscription the body of the response.
    fn stream(
        &self,
        (subscription, registrations): (Subscription<Encoded>, Registrations),
        handle: Option<StreamHandle>,
        intervals: Intervals,
        deadline: Option<time::Instant>,
    ) -> Drainer {
        let timing = Timing {
            intervals,
            reconnect_after: reconnect_delay(subscription.id(), self.config.reconnect_spread),
            deadline,
        };
        Drainer::new(
            subscription,
            Arc::clone(&self.sharing),
            Arc::clone(&self.pacer),
            registrations,
            handle,
            timing,
        )
    }
}

/// Charges a subscription with many filters to the budget of its task, which has 128 units for a turn of all the streams
/// of a connection. A hundred subscriptions that come at once would be one turn of a second otherwise.
async fn take_turn_for(filters: &[Filter]) {
    // Finding the groups of 500 filters takes up to a millisecond, under no lock.
    for _ in 0..filters.len() / FILTERS_PER_UNIT {
        consume_budget().await;
    }
}

/// Reads the one message of a `Subscribe` call. What follows it is nobody's business: the stream belongs to the first.
async fn read_message<B>(
    request: http::Request<B>,
    config: Arc<ServiceConfig>,
) -> Result<SubscribeRequest, Status>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let (body, reason) = (Box::pin(body), Reason::InvalidRequest);
    let mut messages = Messages::of(&parts.headers, body, config, MAX_REQUEST_BYTES, reason)?;
    let message: Option<SubscribeRequest> = messages.next().await?;
    message.ok_or_else(|| Reason::InvalidRequest.status("the call carries no SubscribeRequest"))
}
