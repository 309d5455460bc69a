//! The table of all settings, in the order of the example file.

use super::{
    forms::{
        Address, Boolean, ClientIds, Count, Engine, File, Form, Headers, Heartbeat, KernelTime,
        List, Listen, Log, Message, NonZero, NonZeroSize, NonZeroTime, OnStall, OrAuto, OrNone,
        Requirement, Size, Size32, Text, Time, TimeOrNone, Window,
    },
    setting::{Configuration, Setting},
};

/// A reload changes the setting.
const RELOADS: bool = true;
/// A change of the setting needs a restart.
const RESTARTS: bool = false;

/// A row: key, kind of value, form, field of [`Configuration`], whether a reload changes it, help.
macro_rules! rows {
    ($($key:literal, $value_name:literal, $form:ty, $($place:ident).+, $reloads:expr, $about:literal;)+) => {
        &[$(Setting {
            key: $key,
            value_name: $value_name,
            about: $about,
            reloads: $reloads,
            get: |configuration: &Configuration| <$form as Form<_>>::write(&configuration.$($place).+),
            set: |configuration: &mut Configuration, text: &str| {
                configuration.$($place).+ = <$form as Form<_>>::read(text)?;
                Ok(())
            },
        }),+]
    };
}

/// Every setting, those of one section together.
pub static SETTINGS: &[Setting] = rows! {
    "listen", "ADDRESS", Listen, server.listen, RESTARTS,
    "Address to listen on, or unix:PATH for the file of a socket. Port 0 takes a free port. The server makes the file with the \
     permissions that its umask leaves, replaces one that nobody listens on, and removes it at the end.";

    "http", "ADDRESS", OrNone<Address>, server.http, RESTARTS,
    "Address of a listener that serves /metrics, /healthz and /readyz over HTTP, to anyone who reaches it. none means \
     no such listener.";

    "admin", "BOOL", OrAuto<Boolean>, server.admin, RESTARTS,
    "Whether to serve tidegate.v1.AdminService, which `tidegate clients`, `publishers`, `kick` and `stats` call. Where \
     callers must prove who they are, they need a rule with admin = true for it. auto serves it if callers must prove \
     who they are, or if `listen` is a loopback address or the file of a socket.";

    "log", "FILTER", Log, log, RELOADS,
    "Filter of the log: error, warn, info, debug or trace, also by module, as in warn,tidegate=debug. The environment \
     variable RUST_LOG wins if it is set.";

    "client_ids", "POLICY", ClientIds, server.client_ids, RESTARTS,
    "Policy for a client id that is in use and subscribes again. takeover: the newest stream takes over and the old \
     one ends. reject: the newest stream is refused. several: a client may have several streams.";

    "heartbeat", "DURATION", Heartbeat, server.service.heartbeat_interval, RESTARTS,
    "Silence after which a stream gets a heartbeat, unless its client asks for another interval. From 1s to 1h.";

    "drain_timeout", "DURATION", Time, server.drain_timeout, RELOADS,
    "Time that connections have to end in a drain. Then the server cuts them.";

    "reconnect_spread", "DURATION", Time, server.service.reconnect_spread, RESTARTS,
    "Longest delay after which a drain asks clients to come back. Each client gets a delay between zero and this, so \
     that they do not all come at once.";

    "memory_budget", "SIZE", OrAuto<NonZeroSize>, server.memory_budget, RESTARTS,
    "Memory that events may hold, in history and for clients that are behind. Over the budget the oldest events are \
     evicted, and a client that had not seen them gets a gap. Half of it is for large events that streams are in the \
     middle of; over that, the streams that have taken the longest are reset. auto is a quarter of the machine's \
     memory, or of the least limit of the process and its control groups if that is less.";

    "filter_budget", "SIZE", OrAuto<NonZeroSize>, server.filter_budget, RESTARTS,
    "Memory that the filters of all subscriptions may hold, besides memory_budget. Over it subscriptions with new \
     filters are refused. auto is a quarter of memory_budget.";

    "stall_timeout", "DURATION", TimeOrNone, server.sweep.stall_timeout, RELOADS,
    "Time after which a client that has events to read and takes no byte is stalled. none means never.";

    "on_stall", "POLICY", OnStall, server.sweep.on_stall, RELOADS,
    "Action on a stalled client. park: its stream stays, and holds its place and the backlog that its limits admit. \
     close: its stream ends. A client with the overflow policy disconnect is always closed.";

    "reset_grace", "DURATION", NonZeroTime, server.sweep.reset_grace, RELOADS,
    "Time that a client may take no byte once its stream has ended. Then the server resets the stream.";

    "connections.max", "N", OrAuto<NonZero>, server.max_connections, RESTARTS,
    "Maximum number of connections at once. The server resets further ones as they come, and refuses to start if the \
     process may not open as many files and 32 more. auto is as many as the process may open, less 32.";

    "connections.max_per_address", "N", OrNone<NonZero>, server.max_connections_per_address, RESTARTS,
    "Maximum number of connections at once from one address: an IPv4 address, or the first 64 bits of an IPv6 \
     address. Leave it at none behind a proxy.";

    "connections.backlog", "N", OrAuto<NonZero>, server.backlog, RESTARTS,
    "Maximum number of connections that wait in the kernel until the server accepts them. Beyond it the kernel drops \
     what comes, and clients try again after a second or more. auto is as many as the kernel allows, \
     net.core.somaxconn on Linux; what is beyond that is lowered to it.";

    "connections.max_age", "DURATION", TimeOrNone, server.max_connection_age, RESTARTS,
    "Maximum age of a connection, give or take a tenth. Then its streams are told where to resume and the connection \
     ends, so that clients behind a load balancer find new servers. none means no limit.";

    "connections.max_age_grace", "DURATION", NonZeroTime, server.max_connection_age_grace, RESTARTS,
    "Time that a connection has to end when it has reached its maximum age. Then the server cuts it.";

    "tls.certificate", "FILE", OrNone<File>, security.tls.certificate, RESTARTS,
    "File with the certificate chain in PEM, the server's own certificate first. The server reads this file and all \
     others of TLS and credentials again when they change.";

    "tls.key", "FILE", OrNone<File>, security.tls.key, RESTARTS,
    "File with the private key of the certificate in PEM.";

    "tls.client_ca", "FILE", OrNone<File>, security.tls.client_ca, RESTARTS,
    "File with certificates in PEM of the authorities that clients' certificates may come from. The principal of a \
     client is the first URI or DNS name of its certificate, else its common name.";

    "tls.client_crls", "FILE...", List<File>, security.tls.client_crls, RESTARTS,
    "Files with revocation lists in PEM for clients' certificates. Once there is a list, every authority in the chain \
     of a client's certificate needs one, or the client is refused.";

    "tls.client_auth", "WHEN", Requirement, security.tls.client_auth, RESTARTS,
    "Whether clients must show a certificate. required: without one there is no connection. optional: without one \
     calls need a token.";

    "auth.tokens", "FILE", OrNone<File>, security.tokens, RESTARTS,
    "File with the hashes of bearer tokens, in lines as `tidegate token` prints them.";

    "auth.rules", "FILE", OrNone<File>, security.rules, RESTARTS,
    "File with rules in TOML, which say what principals may do. With credentials of any kind, every call that no rule \
     allows is denied.";

    "auth.insecure", "BOOL", Boolean, security.insecure, RESTARTS,
    "Whether to accept credentials without TLS on an address other than loopback. Anyone on the path can read and use \
     them.";

    "auth.jwt.issuer", "ISSUER", OrNone<Text>, security.jwt.issuer, RESTARTS,
    "Issuer of the JSON Web Tokens to accept: their claim `iss`.";

    "auth.jwt.audience", "AUDIENCE", OrNone<Text>, security.jwt.audience, RESTARTS,
    "Audience of the JSON Web Tokens to accept: their claim `aud` must name it.";

    "auth.jwt.public_keys", "FILE...", List<File>, security.jwt.public_keys, RESTARTS,
    "Files with public keys in PEM that JSON Web Tokens may be signed with: RSA (RS256), P-256 (ES256) or Ed25519 \
     (EdDSA).";

    "auth.jwt.secrets", "FILE...", List<File>, security.jwt.secrets, RESTARTS,
    "Files with shared secrets of at least 32 bytes that JSON Web Tokens may be signed with (HS256).";

    "auth.jwt.key_sets", "FILE|URL...", List<Text>, security.jwt.key_sets, RESTARTS,
    "JSON Web Key Sets with keys that JSON Web Tokens may be signed with: files, or https:// addresses that the \
     server fetches them from.";

    "auth.jwt.key_set_ca", "FILE", OrNone<File>, security.jwt.key_set_ca, RESTARTS,
    "File with certificates in PEM of the authorities that the certificates of key sets' addresses may come from. \
     none means the authorities that the system trusts.";

    "auth.jwt.key_set_refresh_interval", "DURATION", NonZeroTime, security.jwt.key_set_refresh_interval, RESTARTS,
    "Interval at which the server fetches the key sets at addresses. A token with an unknown key makes it fetch too, \
     at most every 10 s.";

    "auth.jwt.key_set_max_age", "DURATION", TimeOrNone, security.jwt.key_set_max_age, RESTARTS,
    "Time for which the server trusts the keys of a set at an address after the last fetch that worked. Then it \
     refuses tokens that they signed, and ends the streams of those tokens. none means forever.";

    "auth.jwt.leeway", "DURATION", Time, security.jwt.leeway, RESTARTS,
    "Greatest difference to allow between the issuer's clock and this machine's.";

    "history.events", "N", Count, server.history.max_events, RELOADS,
    "Maximum number of events in history. An event leaves history when any one limit is reached. 0 turns history off.";

    "history.bytes", "SIZE", Size, server.history.max_bytes, RELOADS,
    "Maximum number of bytes in history.";

    "history.age", "DURATION", Time, server.history.max_age, RELOADS,
    "Maximum age of an event in history.";

    "limits.request_timeout", "DURATION", NonZeroTime, server.service.request_timeout, RESTARTS,
    "Time that a Subscribe or Publish call has to send its request.";

    "limits.max_filters", "N", NonZero, server.service.max_filters, RESTARTS,
    "Maximum number of filters in one subscription.";

    "limits.max_filter_work", "N", NonZero, server.max_filter_work, RESTARTS,
    "Most work that the filters of one subscription may add to the search for the subscriptions of an event: places \
     of the search, each a token of a filter that begins like the topic. Filters that people write cost less than 20, \
     whatever their number; many wildcards in the same places cost much.";

    "limits.max_publish_events", "N", NonZero, server.service.publish.max_events, RESTARTS,
    "Maximum number of events in one publish request.";

    "limits.max_publish_attributes", "N", NonZero, server.service.publish.max_attributes, RESTARTS,
    "Maximum number of attributes in one publish, summed over its events.";

    "limits.max_publish_bytes", "SIZE", Message, server.service.publish.max_batch_bytes, RESTARTS,
    "Maximum size of one publish request: its events, encoded. At most 1 GiB.";

    "limits.max_event_bytes", "SIZE", Message, server.service.publish.max_event_bytes, RESTARTS,
    "Maximum size of one event: encoded, with topic, key and attributes. Beyond 4,194,270 bytes, clients need a higher \
     limit on messages than gRPC's default of 4 MiB, or they fail at such an event again and again.";

    "quotas.observe_only", "BOOL", Boolean, server.quotas.observe_only, RELOADS,
    "Whether the server only counts and logs uses beyond a quota, and lets them pass. It holds for \
     connections.max_per_address too.";

    "quotas.address.subscriptions", "N", OrNone<NonZero>, server.quotas.address.subscriptions, RELOADS,
    "Maximum number of subscriptions at once from one address.";

    "quotas.address.filters", "N", OrNone<NonZero>, server.quotas.address.filters, RELOADS,
    "Maximum number of distinct filters in all subscriptions from one address together.";

    "quotas.address.filter_work", "N", OrNone<NonZero>, server.quotas.address.filter_work, RELOADS,
    "Maximum number of nodes that the filters of all subscriptions from one address together may make the server visit \
     for each event. Every distinct set of filters counts once, and filters without * do not count. Behind a proxy, \
     set it for all clients together, or to none.";

    "quotas.address.filter_bytes", "SIZE", OrNone<NonZeroSize>, server.quotas.address.filter_bytes, RELOADS,
    "Maximum size of what the server keeps for the filters of all subscriptions from one address together: about 1 KiB \
     for each distinct filter, and 200 bytes for each further subscription that has it. Behind a proxy, set it for all \
     clients together, or to none.";

    "quotas.address.publish_events", "N", OrNone<NonZero>, server.quotas.address.publish_events, RELOADS,
    "Maximum number of events that one address may publish in a second.";

    "quotas.address.publish_bytes", "SIZE", OrNone<NonZeroSize>, server.quotas.address.publish_bytes, RELOADS,
    "Maximum number of bytes that one address may publish in a second.";

    "quotas.address.auth_failures", "N", OrNone<NonZero>, server.quotas.address_auth_failures, RELOADS,
    "Maximum number of bad credentials from one address that the server checks in a second. Beyond it, credentials \
     that were not accepted from there before are refused unchecked. Behind a proxy, set it to the rate for all \
     clients together, or to none.";

    "quotas.principal.connections", "N", OrNone<NonZero>, server.quotas.principal_connections, RELOADS,
    "Maximum number of connections at once of one principal, from all addresses together. A connection belongs to the \
     first principal whose credentials are accepted on it.";

    "quotas.principal.subscriptions", "N", OrNone<NonZero>, server.quotas.principal.subscriptions, RELOADS,
    "Maximum number of subscriptions at once of one principal, from all addresses together.";

    "quotas.principal.filters", "N", OrNone<NonZero>, server.quotas.principal.filters, RELOADS,
    "Maximum number of distinct filters in all subscriptions of one principal together.";

    "quotas.principal.filter_work", "N", OrNone<NonZero>, server.quotas.principal.filter_work, RELOADS,
    "Maximum number of nodes that the filters of all subscriptions of one principal together may make the server visit \
     for each event. Every distinct set of filters counts once, and filters without * do not count.";

    "quotas.principal.filter_bytes", "SIZE", OrNone<NonZeroSize>, server.quotas.principal.filter_bytes, RELOADS,
    "Maximum size of what the server keeps for the filters of all subscriptions of one principal together: about 1 KiB \
     for each distinct filter, and 200 bytes for each further subscription that has it.";

    "quotas.principal.publish_events", "N", OrNone<NonZero>, server.quotas.principal.publish_events, RELOADS,
    "Maximum number of events that one principal may publish in a second.";

    "quotas.principal.publish_bytes", "SIZE", OrNone<NonZeroSize>, server.quotas.principal.publish_bytes, RELOADS,
    "Maximum number of bytes that one principal may publish in a second.";

    "http2.engine", "ENGINE", Engine, server.http2.engine, RESTARTS,
    "Engine of HTTP/2: tidegate, or hyper. hyper is a fallback for two releases, and takes more processor time and \
     memory. If something works with it alone, please report that.";

    "http2.max_concurrent_streams", "N", NonZero, server.http2.max_concurrent_streams, RESTARTS,
    "Maximum number of calls open at once on one connection.";

    "http2.max_pending_accept_reset_streams", "N", Count, server.http2.max_pending_accept_reset_streams, RESTARTS,
    "Maximum number of calls, in 10 s, that a peer cancels before they were answered, or that are refused, malformed or \
     too large in their headers. Beyond it the connection ends. Leave it high for a proxy, which cancels the calls of all \
     its users. hyper counts those that are cancelled.";

    "http2.max_local_error_reset_streams", "N", Count, server.http2.max_local_error_reset_streams, RESTARTS,
    "Maximum number of calls in progress that the server resets because their peer broke a rule of HTTP/2, in 10 s. \
     Beyond it the connection ends.";

    "http2.max_header_list_size", "SIZE", Headers, server.http2.max_header_list_size, RESTARTS,
    "Maximum size of a request's headers: names, values, and 32 bytes for each field. Requests with more are refused; more \
     than four times it, or a block of more than twice it, ends the connection. At least 1 KiB.";

    "http2.stream_window", "SIZE", Window, server.http2.stream_window, RESTARTS,
    "Number of bytes that a peer may send on one stream before the server has read them.";

    "http2.connection_window", "SIZE", Window, server.http2.connection_window, RESTARTS,
    "Number of bytes that a peer may send on one connection before the server has read them.";

    "http2.max_send_buffer", "SIZE", Size32, server.http2.max_send_buffer, RESTARTS,
    "Number of bytes that a connection may have buffered for sending. Less than 16 KiB counts as that. They can no longer be \
     dropped when the client turns out to be slow. With hyper, those of a stream, and less is less.";

    "http2.preface_timeout", "DURATION", NonZeroTime, server.http2.preface_timeout, RESTARTS,
    "Time that a new connection has for its TLS handshake, if there is TLS, and for the preface of HTTP/2.";

    "http2.keep_alive_interval", "DURATION", NonZeroTime, server.http2.keep_alive_interval, RESTARTS,
    "Silence after which the server pings the peer.";

    "http2.keep_alive_timeout", "DURATION", NonZeroTime, server.http2.keep_alive_timeout, RESTARTS,
    "Time that a peer may stay silent after a ping. Then the connection ends. It begins anew whenever a peer that was slow \
     reads something.";

    "http2.tcp_user_timeout", "DURATION", KernelTime, server.http2.tcp_user_timeout, RESTARTS,
    "Time that sent bytes may stay unacknowledged. Then the kernel ends the connection. From 1ms to 596h.";

    "http2.write_timeout", "DURATION", NonZeroTime, server.http2.write_timeout, RESTARTS,
    "Time that a write to the socket may make no progress. Then the server ends the connection.";

    "http2.tcp_notsent_lowat", "SIZE", Size32, server.http2.tcp_notsent_lowat, RESTARTS,
    "Number of bytes that the kernel may hold unsent for a connection before it asks the server for no more.";
};

impl Setting {
    /// The setting with this key; `None` if there is none.
    #[must_use]
    pub fn of(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }
}
