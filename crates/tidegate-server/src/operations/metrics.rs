//! The numbers of a server as metrics for Prometheus.
//!
//! Every number is read at the scrape; only the histograms are kept in between. No label names a client, a filter or an
//! address, since each would make as many time series as there are clients: the admin service lists them.
//! `docs/metrics.md` explains each name.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{
    controls::{Controls, ServerStats},
    lags::Histograms,
    process::Process,
};
use crate::quotas::CONNECTIONS;

/// The beginning of every name.
const PREFIX: &str = "tidegate";

/// A metric and its values, each with its label.
struct Family {
    /// Without the prefix, and without the `_total` of a counter.
    name: &'static str,
    help: &'static str,
    values: Values,
}

/// The values of a metric.
enum Values {
    Counter(u64),
    /// Of a number that is no whole one.
    Seconds(f64),
    Gauge(u64),
    GaugeSeconds(f64),
    /// The name of the label, and a counter for each of its values.
    Counters(&'static str, Vec<(&'static str, u64)>),
    /// Labels of a gauge that is always 1.
    Info(Vec<(&'static str, String)>),
}

/// The collector of every metric but the histograms.
#[derive(Debug)]
struct Reader(Controls);

/// The collector of the metrics of the process.
#[derive(Debug)]
struct ProcessReader;

/// All metrics in the OpenMetrics text format, which Prometheus reads.
pub(crate) fn text(controls: &Controls) -> Result<String, fmt::Error> {
    let mut all = Registry::default();
    // By the names that they have everywhere.
    all.register_collector(Box::new(ProcessReader));
    let registry = all.sub_registry_with_prefix(PREFIX);
    let Histograms { backlog, lag } = controls.histograms();
    registry.register(
        "subscription_backlog_events",
        "Events in the backlog of each subscription, sampled once a second",
        backlog.clone(),
    );
    registry.register(
        "subscription_lag_seconds",
        "Seconds that the backlog of each subscription takes to be delivered, sampled once a second",
        lag.clone(),
    );
    registry.register_collector(Box::new(Reader(controls.clone())));
    let mut text = String::new();
    encode(&mut text, &all)?;
    Ok(text)
}

impl Collector for Reader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        families(&self.0.stats())
            .iter()
            .try_for_each(|family| family.encode(&mut encoder))
    }
}

impl Collector for ProcessReader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        process_families(&Process::read())
            .iter()
            .try_for_each(|family| family.encode(&mut encoder))
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.values {
            Values::Counter(_) | Values::Seconds(_) | Values::Counters(..) => MetricType::Counter,
            Values::Gauge(_) | Values::GaugeSeconds(_) | Values::Info(_) => MetricType::Gauge,
        };
        let mut encoder = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        match &self.values {
            Values::Counter(value) => ConstCounter::new(*value).encode(encoder),
            Values::Seconds(value) => ConstCounter::new(*value).encode(encoder),
            Values::Gauge(value) => encode_gauge(*value, encoder),
            Values::GaugeSeconds(value) => ConstGauge::new(*value).encode(encoder),
            Values::Counters(label, values) => values.iter().try_for_each(|(name, value)| {
                let labels = [(*label, *name)];
                ConstCounter::new(*value).encode(encoder.encode_family(&labels)?)
            }),
            Values::Info(labels) => encode_gauge(1, encoder.encode_family(labels)?),
        }
    }
}

fn encode_gauge(value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
}

const fn counter(name: &'static str, help: &'static str, value: u64) -> Family {
    let values = Values::Counter(value);
    Family { name, help, values }
}

const fn gauge(name: &'static str, help: &'static str, value: u64) -> Family {
    let values = Values::Gauge(value);
    Family { name, help, values }
}

fn counters(
    label: &'static str,
    name: &'static str,
    help: &'static str,
    values: impl Into<Vec<(&'static str, u64)>>,
) -> Family {
    let values = Values::Counters(label, values.into());
    Family { name, help, values }
}

/// Every metric but the histograms.
fn families(stats: &ServerStats) -> Vec<Family> {
    let mut families = server_families(stats);
    families.extend(event_families(stats));
    families.extend(subscription_families(stats));
    families.extend(quota_families(stats));
    families
}

fn server_families(stats: &ServerStats) -> Vec<Family> {
    let connections = &stats.connections;
    let refused = [
        ("full", connections.refused),
        ("address", connections.refused_by_address),
    ];
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    let expiry = stats.certificate_expiry.map(|expiry| {
        gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "Seconds from 1970 to the expiry of the server's certificate",
            u64::try_from(expiry).unwrap_or(0),
        )
    });
    let mut families = vec![
        Family {
            name: "build_info",
            help: "Always 1; the version of the server is in the label",
            values: Values::Info(version),
        },
        gauge(
            "uptime_seconds",
            "Seconds since the server started",
            stats.uptime.as_secs(),
        ),
        gauge(
            "ready",
            "1 until a drain begins, then 0",
            stats.is_ready.into(),
        ),
        gauge("connections", "Open connections", connections.open as u64),
        counter(
            "bytes_sent",
            "Bytes written to the sockets of connections, with what TLS adds",
            connections.bytes_sent,
        ),
        counter(
            "bytes_received",
            "Bytes read from the sockets of connections, with what TLS adds",
            connections.bytes_received,
        ),
        counters(
            "reason",
            "connections_refused",
            "Connections reset as they came, because the server or their address had as many as allowed",
            refused,
        ),
        counter(
            "auth_failures",
            "Calls whose credentials were missing or not accepted",
            stats.auth_failures,
        ),
        counter(
            "key_fetch_failures",
            "Failed attempts to fetch a JSON Web Key Set",
            stats.key_fetch_failures,
        ),
        counters(
            "task",
            "task_panics",
            "Panics of work in the background, which goes on",
            stats.task_panics.as_slice(),
        ),
    ];
    families.extend(stats.lost_log_lines.map(|lost| {
        counter(
            "log_lines_lost",
            "Lines of the log that were lost, because standard error took no more",
            lost,
        )
    }));
    families.extend(expiry);
    families
}

fn event_families(stats: &ServerStats) -> Vec<Family> {
    let hub = &stats.hub;
    let lost = [
        ("overflow", hub.overflowed),
        ("conflated", hub.conflated),
        ("evicted", hub.evicted),
    ];
    let gaps = [
        ("overflow", hub.gaps.overflow),
        ("conflated", hub.gaps.conflated),
        ("evicted", hub.gaps.evicted),
        ("expired", hub.gaps.expired),
        ("epoch_changed", hub.gaps.epoch_changed),
        ("backplane", hub.gaps.backplane),
    ];
    vec![
        counter("events_published", "Events published", hub.published),
        gauge(
            "publish_streams",
            "Open calls of PublishStream",
            stats.publish_streams,
        ),
        counter(
            "publish_streams_stalled",
            "Calls of PublishStream reset because their client did not read the answers",
            stats.publish_streams_stalled,
        ),
        counter(
            "deliveries_matched",
            "Matches of published events with subscriptions",
            hub.matched,
        ),
        counter(
            "deliveries_replayed",
            "Events that subscriptions asked for from history",
            hub.replayed,
        ),
        counter(
            "deliveries",
            "Events handed to the transports of subscriptions",
            hub.handed_off,
        ),
        counter(
            "chunks_shared",
            "Chunks of eight events or more that were reused from another subscription",
            stats.chunks.shared,
        ),
        counter(
            "chunks_made",
            "Chunks of eight events or more that were made",
            stats.chunks.made,
        ),
        counter(
            "deliveries_abandoned",
            "Events still undelivered when their subscription ended",
            hub.abandoned,
        ),
        counters(
            "reason",
            "events_lost",
            "Events lost to subscriptions, as gaps reported",
            lost,
        ),
        counter(
            "events_dropped",
            "Events lost to subscriptions, sampled once a second, whether they were told or not",
            stats.dropped,
        ),
        gauge(
            "events_pending_loss",
            "Events that open subscriptions have lost and were not told of, sampled once a second",
            stats.pending_loss,
        ),
        counters("reason", "gaps", "Gaps sent to subscriptions", gaps),
        gauge(
            "history_events",
            "Events in history",
            hub.history_events as u64,
        ),
        gauge(
            "history_bytes",
            "Bytes of the events in history",
            hub.history_bytes,
        ),
        gauge(
            "retained_bytes",
            "Bytes that events hold, in history and in backlogs",
            hub.retained_bytes,
        ),
        gauge(
            "filter_bytes",
            "Bytes that filters hold, about",
            hub.filter_bytes,
        ),
        gauge(
            "sending_bytes",
            "Bytes of large events that streams are sending, part of retained_bytes",
            hub.sending_bytes,
        ),
        gauge(
            "memory_budget_bytes",
            "The most bytes that events may hold",
            stats.memory_budget,
        ),
    ]
}

fn subscription_families(stats: &ServerStats) -> Vec<Family> {
    let hub = &stats.hub;
    vec![
        gauge("subscriptions", "Open subscriptions", hub.subscriptions),
        gauge(
            "subscriptions_stalled",
            "Subscriptions whose clients read nothing of their backlog",
            hub.stalled,
        ),
        gauge("clients", "Client ids in use", hub.clients as u64),
        gauge(
            "feeds",
            "Distinct filters in use, including the own topic of each client",
            hub.feeds as u64,
        ),
        counter(
            "streams_begun",
            "Streams of subscriptions that began",
            stats.streams_begun,
        ),
        counters(
            "reason",
            "streams_ended",
            "Streams of subscriptions that ended",
            stats.streams_ended.as_slice(),
        ),
        counter(
            "streams_reset",
            "Streams reset because their clients took no notice of the end, or their memory was needed",
            hub.reset,
        ),
    ]
}

fn quota_families(stats: &ServerStats) -> Vec<Family> {
    let quotas = stats.quotas.iter();
    let refused: Vec<_> = quotas
        .clone()
        .map(|count| (count.quota, count.refused))
        .collect();
    let observed: Vec<_> = quotas
        .map(|count| match count.quota {
            CONNECTIONS => (
                CONNECTIONS,
                count.observed + stats.connections.observed_by_address,
            ),
            quota => (quota, count.observed),
        })
        .collect();
    vec![
        counters(
            "quota",
            "quota_refusals",
            "Calls refused because of a quota",
            refused,
        ),
        counters(
            "quota",
            "quota_observed",
            "Calls and connections over a quota that passed, because quotas are only observed",
            observed,
        ),
    ]
}

fn process_families(process: &Process) -> Vec<Family> {
    let seconds = |name, help, value: Option<f64>| {
        let values = Values::Seconds(value?);
        Some(Family { name, help, values })
    };
    let start = process.start_seconds.map(|start| Family {
        name: "process_start_time_seconds",
        help: "The time at which the process started, in seconds since 1970",
        values: Values::GaugeSeconds(start),
    });
    let number = |name, help, value: Option<u64>| Some(gauge(name, help, value?));
    let families = [
        seconds(
            "process_cpu_seconds",
            "Processor time of the process, in user and system mode",
            process.cpu_seconds,
        ),
        number(
            "process_resident_memory_bytes",
            "Resident memory of the process",
            process.resident_bytes,
        ),
        number(
            "process_virtual_memory_bytes",
            "Virtual memory of the process",
            process.virtual_bytes,
        ),
        number(
            "process_open_fds",
            "Open file descriptors",
            process.open_fds,
        ),
        number(
            "process_max_fds",
            "The most file descriptors that the process may open",
            process.max_fds,
        ),
        number("process_threads", "Threads of the process", process.threads),
        start,
    ];
    families.into_iter().flatten().collect()
}
