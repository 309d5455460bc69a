//! The table of all settings, in the order of the file.

use super::{
    forms::{
        Address, ClientIds, Count, File, Form, Heartbeat, Log, LongerThan0, OnStall, OrAuto,
        OrNone, Several, Size, Size32, Some1, SomeSize, Text, Time, TimeOrNone, Truth, WhenAsked,
        Window,
    },
    setting::{Configuration, Setting},
};

/// Whether a reload changes a setting.
const RELOADS: bool = true;
const RESTARTS: bool = false;

/// A row: key, name of the value, its form, its place in [`Configuration`], whether a reload changes it, and
/// what it is about.
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

/// Everything that can be set.
pub static SETTINGS: &[Setting] = rows! {
    "listen", "ADDRESS", Address, server.listen, RESTARTS,
    "The address to listen on. Port 0 takes a free one.";

    "http", "ADDRESS", OrNone<Address>, server.http, RESTARTS,
    "Where to answer /metrics, /healthz and /readyz over HTTP, to anyone who asks.";

    "admin", "BOOL", OrAuto<Truth>, server.admin, RESTARTS,
    "Whether tidegate.v1.AdminService is served, which `tidegate clients`, `kick` and `stats` speak to. Callers that \
     must prove who they are need a rule with admin = true for it. auto is only if they must, or `listen` is a loopback \
     address.";

    "log", "FILTER", Log, log, RELOADS,
    "What to log: error, warn, info, debug or trace, also by module, as in warn,tidegate=debug. The environment \
     variable RUST_LOG wins if it is set.";

    "client_ids", "POLICY", ClientIds, server.client_ids, RESTARTS,
    "What happens when a client id that is in use subscribes again: takeover, the newest stream takes over and the old \
     one ends; reject, the newest is refused; several, a client may hold several.";

    "heartbeat", "DURATION", Heartbeat, server.service.heartbeat_interval, RESTARTS,
    "Silence after which a stream gets a heartbeat, where the client does not say. From 1s to 1h.";

    "drain_timeout", "DURATION", Time, server.drain_timeout, RELOADS,
    "How long connections have to end in good order.";

    "reconnect_spread", "DURATION", Time, server.service.reconnect_spread, RESTARTS,
    "In a drain clients are told to come back after a delay between zero and this, so that they do not all come at once.";

    "memory_budget", "SIZE", OrAuto<Size>, server.memory_budget, RESTARTS,
    "The most memory that events may hold, in history and for clients that are behind. Beyond, the oldest go, and \
     whoever had still to see one is told. auto is a quarter of the machine's memory, or of the control group's limit \
     if that is less.";

    "stall_timeout", "DURATION", TimeOrNone, server.sweep.stall_timeout, RELOADS,
    "How long a client may leave events unread, taking none, until it is stalled. none is forever.";

    "on_stall", "POLICY", OnStall, server.sweep.close_stalled, RELOADS,
    "What happens to a stalled client: park, it stays, at the cost of its place and of what its limits admit; close, \
     its stream ends. One that asked for disconnect is always closed.";

    "reset_grace", "DURATION", LongerThan0, server.sweep.grace, RELOADS,
    "How long a stream that was ended may take no notice until it is reset.";

    "connections.max", "N", OrAuto<Some1>, server.max_connections, RESTARTS,
    "The most connections at once; beyond, they are closed as they come. The server refuses to start if it may not \
     open as many files. auto is as many as it may open.";

    "connections.max_per_address", "N", OrNone<Some1>, server.max_connections_per_address, RESTARTS,
    "The most connections at once from one address: IPv4, or the first 64 bits of IPv6. Leave it out behind a proxy.";

    "connections.max_age", "DURATION", TimeOrNone, server.max_connection_age, RESTARTS,
    "How old a connection may become, give or take a tenth. Then its streams are told where to resume and it ends, so \
     that clients behind a load balancer find servers that were added. none is forever.";

    "connections.max_age_grace", "DURATION", LongerThan0, server.max_connection_age_grace, RESTARTS,
    "How long a connection has to end when it has reached its age.";

    "tls.certificate", "FILE", OrNone<File>, security.tls.certificate, RESTARTS,
    "The certificate chain in PEM, the server's own first. This file and all others of TLS and credentials are read \
     again when they change.";

    "tls.key", "FILE", OrNone<File>, security.tls.key, RESTARTS,
    "Its private key in PEM.";

    "tls.client_ca", "FILE", OrNone<File>, security.tls.client_ca, RESTARTS,
    "Certificates in PEM of those who may vouch for clients. A client's principal is the first URI or DNS name of its \
     certificate, else its common name.";

    "tls.client_crls", "FILE...", Several<File>, security.tls.client_crls, RESTARTS,
    "Lists in PEM of client certificates that were revoked. With any, every authority in the chain of a client's \
     certificate needs one, or the client is refused.";

    "tls.client_auth", "WHEN", WhenAsked, security.tls.client_auth, RESTARTS,
    "Whether clients must show a certificate: required, without one there is no connection; optional, without one calls \
     need a token.";

    "auth.tokens", "FILE", OrNone<File>, security.tokens, RESTARTS,
    "Bearer tokens by their hashes: lines as `tidegate token` prints them.";

    "auth.rules", "FILE", OrNone<File>, security.rules, RESTARTS,
    "What principals may do, in TOML. With credentials of any kind, everything is denied that no rule allows.";

    "auth.insecure", "BOOL", Truth, security.insecure, RESTARTS,
    "Whether to take credentials without TLS from beyond this machine, for everyone between to read.";

    "auth.jwt.issuer", "ISSUER", OrNone<Text>, security.jwt.issuer, RESTARTS,
    "Who must have issued a JSON Web Token: its claim `iss`.";

    "auth.jwt.audience", "AUDIENCE", OrNone<Text>, security.jwt.audience, RESTARTS,
    "For whom a JSON Web Token must be: its claim `aud`.";

    "auth.jwt.public_keys", "FILE...", Several<File>, security.jwt.public_keys, RESTARTS,
    "Public keys in PEM that JSON Web Tokens may be signed with: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).";

    "auth.jwt.secrets", "FILE...", Several<File>, security.jwt.secrets, RESTARTS,
    "Files of shared secrets of 32 bytes or more that JSON Web Tokens may be signed with (HS256).";

    "auth.jwt.key_sets", "FILE|URL...", Several<Text>, security.jwt.key_sets, RESTARTS,
    "JSON Web Key Sets: files, or https:// addresses, which are looked at every `key_set_refresh_interval`.";

    "auth.jwt.key_set_ca", "FILE", OrNone<File>, security.jwt.key_set_ca, RESTARTS,
    "Certificates in PEM of those who may vouch for the address of a key set. none is whom the system trusts.";

    "auth.jwt.key_set_refresh_interval", "DURATION", LongerThan0, security.jwt.key_set_refresh_interval, RESTARTS,
    "How often a key set at an address is looked at. A token of an unknown key has it looked at as well, at most every \
     10 s.";

    "auth.jwt.key_set_max_age", "DURATION", TimeOrNone, security.jwt.key_set_max_age, RESTARTS,
    "How long the keys of a set at an address are trusted when it cannot be had any more. Then tokens that they signed \
     are refused, and streams of theirs end. none is forever.";

    "auth.jwt.leeway", "DURATION", Time, security.jwt.leeway, RESTARTS,
    "How far the issuer's clock may be from this one.";

    "history.events", "N", Count, server.history.max_events, RELOADS,
    "The most events in history. An event goes when any one limit is reached; 0 turns history off.";

    "history.bytes", "SIZE", Size, server.history.max_bytes, RELOADS,
    "The most bytes in history.";

    "history.age", "DURATION", Time, server.history.max_age, RELOADS,
    "The greatest age of an event in history.";

    "limits.request_timeout", "DURATION", LongerThan0, server.service.request_timeout, RESTARTS,
    "How long a call may take to send its request.";

    "limits.max_filters", "N", Count, server.service.max_filters, RESTARTS,
    "The most filters in one subscription.";

    "limits.max_publish_events", "N", Some1, server.service.publish.max_events, RESTARTS,
    "The most events in one publish.";

    "limits.max_publish_bytes", "SIZE", SomeSize, server.service.publish.max_batch_bytes, RESTARTS,
    "The most bytes in one publish: encoded events.";

    "limits.max_event_bytes", "SIZE", SomeSize, server.service.publish.max_event_bytes, RESTARTS,
    "The most bytes in one event: encoded, with topic, key and attributes.";

    "quotas.observe_only", "BOOL", Truth, server.quotas.observe_only, RELOADS,
    "Whether what is over a quota is counted and logged, but let pass. It holds for connections.max_per_address too.";

    "quotas.address.subscriptions", "N", OrNone<Some1>, server.quotas.address.subscriptions, RELOADS,
    "The most subscriptions at once from one address.";

    "quotas.address.filters", "N", OrNone<Some1>, server.quotas.address.filters, RELOADS,
    "The most distinct filters in all subscriptions from one address together.";

    "quotas.address.publish_events", "N", OrNone<Some1>, server.quotas.address.publish_events, RELOADS,
    "The most events that one address may publish in a second.";

    "quotas.address.publish_bytes", "SIZE", OrNone<SomeSize>, server.quotas.address.publish_bytes, RELOADS,
    "The most bytes that one address may publish in a second.";

    "quotas.address.auth_failures", "N", OrNone<Some1>, server.quotas.address_auth_failures, RELOADS,
    "How many bad credentials from one address are looked at in a second. Beyond, what was not found good from there \
     before is refused without a look. Where all come through one proxy, set it to what all may do together, or none.";

    "quotas.principal.connections", "N", OrNone<Some1>, server.quotas.principal_connections, RELOADS,
    "The most connections at once of one principal, whatever its addresses. A connection belongs to the first principal \
     whose credentials are accepted on it.";

    "quotas.principal.subscriptions", "N", OrNone<Some1>, server.quotas.principal.subscriptions, RELOADS,
    "The most subscriptions at once of one principal, whatever its addresses.";

    "quotas.principal.filters", "N", OrNone<Some1>, server.quotas.principal.filters, RELOADS,
    "The most distinct filters in all subscriptions of one principal together.";

    "quotas.principal.publish_events", "N", OrNone<Some1>, server.quotas.principal.publish_events, RELOADS,
    "The most events that one principal may publish in a second.";

    "quotas.principal.publish_bytes", "SIZE", OrNone<SomeSize>, server.quotas.principal.publish_bytes, RELOADS,
    "The most bytes that one principal may publish in a second.";

    "http2.max_concurrent_streams", "N", Some1, server.http2.max_concurrent_streams, RESTARTS,
    "The most calls open at once on one connection.";

    "http2.max_pending_accept_reset_streams", "N", Count, server.http2.max_pending_accept_reset_streams, RESTARTS,
    "Streams that the peer may have reset before they were accepted. Beyond, the connection ends.";

    "http2.max_local_error_reset_streams", "N", Count, server.http2.max_local_error_reset_streams, RESTARTS,
    "Streams that may be reset for faults of the peer in the life of a connection. Beyond, it ends.";

    "http2.max_header_list_size", "SIZE", Size32, server.http2.max_header_list_size, RESTARTS,
    "Bytes of a request's headers.";

    "http2.stream_window", "SIZE", Window, server.http2.stream_window, RESTARTS,
    "What a peer may send on one stream before it is read.";

    "http2.connection_window", "SIZE", Window, server.http2.connection_window, RESTARTS,
    "What a peer may send on one connection before it is read.";

    "http2.max_send_buffer", "SIZE", Size32, server.http2.max_send_buffer, RESTARTS,
    "What one stream may have buffered for sending: beyond recall when the client turns out to be slow.";

    "http2.preface_timeout", "DURATION", LongerThan0, server.http2.preface_timeout, RESTARTS,
    "How long a new connection may take to shake hands, where there is TLS, and to speak HTTP/2.";

    "http2.keep_alive_interval", "DURATION", LongerThan0, server.http2.keep_alive_interval, RESTARTS,
    "Silence after which the peer is asked for a sign of life.";

    "http2.keep_alive_timeout", "DURATION", LongerThan0, server.http2.keep_alive_timeout, RESTARTS,
    "How long it has to answer.";

    "http2.tcp_user_timeout", "DURATION", LongerThan0, server.http2.tcp_user_timeout, RESTARTS,
    "How long bytes sent may stay unacknowledged before the kernel ends the connection.";

    "http2.write_timeout", "DURATION", LongerThan0, server.http2.write_timeout, RESTARTS,
    "How long a write to the socket may make no progress before the connection is ended.";

    "http2.tcp_notsent_lowat", "SIZE", Size32, server.http2.tcp_notsent_lowat, RESTARTS,
    "Bytes that the kernel may hold unsent for a connection before it asks for no more.";
};

impl Setting {
    /// The setting with this key.
    #[must_use]
    pub fn of(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }
}
