//! The cause of a call that no gRPC server has answered, in words, and what to do next.
//!
//! Where a call fails before a server of gRPC had a say, tonic knows little: a page of a proxy is "an invalid compression
//! flag", a wrong port "a frame with invalid size". Here the status is made of what is known: the HTTP status of the
//! answer, the error of the socket or of TLS, and the first bytes that the peer has sent.

use std::{
    error::Error as StdError,
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use http_body::Body;
use http_body_util::BodyExt as _;
use rustls::{AlertDescription, CertificateError, Error as TlsError};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{advice::Advice, tls::NO_HTTP2};

/// Trailer with the delay before the next attempt in milliseconds, beside the rich details.
pub(crate) const RETRY_TRAILER: &str = "tidegate-retry-after-ms";

/// Bytes of a page that are read for its words.
const PAGE_BYTES: usize = 4096;

/// Time that a page has to arrive.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Characters of a page, or of a greeting, that are shown.
const SHOWN: usize = 120;

/// Bytes of a greeting that tell one protocol from another.
const TELLING: usize = 4;

/// The first bytes of a TLS record that is an alert, and of one that is a handshake.
const TLS_RECORDS: [&[u8]; 2] = [&[21, 3], &[22, 3]];

/// Cause of a status that this client has made itself.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    words: String,
    pub(crate) code: Code,
    pub(crate) advice: Advice,
    pub(crate) kind: CauseKind,
}

/// Kind of a [`Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CauseKind {
    /// No connection can be made.
    Connection,
    /// There was an answer, and none of gRPC.
    Answer,
    /// A response is larger than this client accepts.
    TooLarge,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl StdError for Cause {}

impl From<Cause> for Status {
    fn from(mut cause: Cause) -> Self {
        cause.words = escaped(&cause.words);
        let mut status = Self::new(cause.code, cause.words.clone());
        status.set_source(Arc::new(cause));
        status
    }
}

impl Cause {
    /// Returns the cause of a status, if it is one that this client has made.
    pub(crate) fn of(status: &Status) -> Option<&Self> {
        chain(status).find_map(|error| error.downcast_ref())
    }
}

/// The errors that led to `error`, itself first.
fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An I/O error that wraps another names the source of that one as its own.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

/// The beginning of tonic's words for a response beyond the limit. They carry nothing else to tell them by.
const TOO_LARGE: &str = "Error, decoded message length too large: ";

/// Makes a status of tonic's own for a response that is larger than this client accepts, if `status` is that one. Tonic
/// says `OUT_OF_RANGE`, which is a position here, and no setting.
pub(crate) fn of_large_response(status: &Status) -> Option<Status> {
    let found = status.message().strip_prefix(TOO_LARGE)?;
    // What a server says has headers with it.
    if status.code() != Code::OutOfRange || !status.metadata().is_empty() {
        return None;
    }
    let words = format!(
        "a response is larger than this client accepts ({found}): raise `max_message_bytes` of the client's builder, or \
         lower `limits.max_event_bytes` of the server"
    );
    Some(Status::from(Cause {
        words,
        code: Code::ResourceExhausted,
        // The same response would come again.
        advice: Advice::Stop,
        kind: CauseKind::TooLarge,
    }))
}

// ===== Answers =====

/// Whether a response is one of gRPC, whose own status counts.
pub(crate) fn is_grpc(status: StatusCode, headers: &HeaderMap) -> bool {
    // A status that is not OK, in the headers, is the whole answer, whatever carries it.
    let grpc_status = headers.get("grpc-status").map(|status| status.as_bytes());
    if grpc_status.is_some_and(|status| status != b"0") {
        return true;
    }
    let media_type = headers.get(header::CONTENT_TYPE);
    let rest = media_type.and_then(|media_type| {
        let media_type = media_type.to_str().ok()?;
        let name = media_type.get(..GRPC.len())?;
        name.eq_ignore_ascii_case(GRPC)
            .then(|| &media_type[GRPC.len()..])
    });
    // `application/grpc-web` is something else.
    let is_media_type = rest
        .is_some_and(|rest| matches!(rest.trim_start().bytes().next(), None | Some(b'+' | b';')));
    status == StatusCode::OK && (is_media_type || (media_type.is_none() && grpc_status.is_some()))
}

/// Media type of gRPC.
const GRPC: &str = "application/grpc";

/// Makes a status of an answer that is none of gRPC, by the HTTP status.
pub(crate) async fn of_answer<B>(status: StatusCode, headers: &HeaderMap, body: B) -> Status
where
    B: Body<Data = Bytes> + Unpin,
{
    let (code, advice) = meaning(status);
    let mut words = format!("the answer is HTTP {status}, and none of gRPC");
    if let Some(location) = header_text(headers, &header::LOCATION)
        && status.is_redirection()
    {
        words += &format!(", and points to {location}");
    }
    let is_encoded = headers.contains_key(header::CONTENT_ENCODING);
    let words_of_page = match is_encoded {
        true => String::new(),
        false => page(body).await,
    };
    if !words_of_page.is_empty() {
        words += &format!(": \"{words_of_page}\"");
    }
    words += match status.as_u16() {
        200..=299 => "; a proxy, or a server of something else, is at this address",
        300..=399 => "; redirects are not followed: use the address that it points to",
        401 => "; a proxy wants other credentials",
        403 => "; a proxy does not let this call through",
        404 | 405 | 415 => {
            "; no Tidegate server is at this address, or a proxy does not know its calls"
        }
        407 => "; a proxy wants credentials of its own",
        413 => "; a proxy limits the size of requests",
        431 => "; the headers are too large: use a shorter token",
        _ => "",
    };
    let cause = Cause {
        words,
        code,
        advice,
        kind: CauseKind::Answer,
    };
    let mut status = Status::from(cause);
    if let Some(delay) = retry_after(headers, SystemTime::now())
        && let Ok(delay) = delay.as_millis().to_string().parse()
    {
        status.metadata_mut().insert(RETRY_TRAILER, delay);
    }
    status
}

/// The code of an HTTP status, by gRPC's own table (doc/http-grpc-status-mapping.md), and the next step. The same request
/// gets the same answer again, but where the status says that the time was wrong.
fn meaning(status: StatusCode) -> (Code, Advice) {
    match status.as_u16() {
        400 => (Code::Internal, Advice::Resume),
        401 => (Code::Unauthenticated, Advice::Authenticate),
        403 => (Code::PermissionDenied, Advice::Stop),
        404 => (Code::Unimplemented, Advice::Stop),
        429 | 502 | 503 | 504 => (Code::Unavailable, Advice::Resume),
        408 | 425 => (Code::Unknown, Advice::Resume),
        300..=499 | 501 | 505 | 511 => (Code::Unknown, Advice::Stop),
        _ => (Code::Unknown, Advice::Resume),
    }
}

/// The delay in `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(shown(&String::from_utf8_lossy(
        headers.get(name)?.as_bytes(),
    )))
}

/// The first words of a page.
async fn page<B: Body<Data = Bytes> + Unpin>(mut body: B) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
            if bytes.len() >= PAGE_BYTES {
                return;
            }
        }
    };
    // What has arrived by then is enough.
    let _ = timeout(PAGE_TIMEOUT, read).await;
    bytes.truncate(PAGE_BYTES);
    words_of(&String::from_utf8_lossy(&bytes))
}

/// The text of a page without its tags, styles and scripts.
fn words_of(page: &str) -> String {
    let mut words = String::new();
    let mut rest = page;
    while let Some(begin) = rest.find('<') {
        words.push_str(&rest[..begin]);
        words.push(' ');
        let tag = &rest[begin + 1..];
        let hidden = ["style", "script", "!--"].into_iter().find(|name| {
            tag.get(..name.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(name))
        });
        let end = match hidden {
            Some("!--") => "-->",
            Some("style") => "</style",
            Some(_) => "</script",
            None => ">",
        };
        let after = tag.find(end).map(|at| &tag[at + end.len()..]);
        let Some(after) = after else {
            return shown(&words);
        };
        rest = match hidden {
            Some("style" | "script") => after.split_once('>').map_or("", |(_, rest)| rest),
            _ => after,
        };
    }
    words.push_str(rest);
    shown(&words)
}

/// The beginning of `text` on one line, without anything that could control a terminal.
fn shown(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().take(SHOWN).collect();
    let line = words.join(" ");
    let clean = |c: char| {
        if controls(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    let mut shown: String = line.chars().take(SHOWN).map(clean).collect();
    if line.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

// ===== Connections =====

/// `text` on one line, without anything that could control a terminal.
pub(crate) fn escaped(text: &str) -> String {
    let escape = |c: char| match controls(c) {
        true => c.escape_default().to_string(),
        false => c.into(),
    };
    text.chars().map(escape).collect()
}

/// Whether a character controls a terminal, or the order in which it shows what follows.
pub(crate) fn controls(c: char) -> bool {
    let reorders = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || reorders
}

/// Makes a status of a connection that failed. `greeting` has the first bytes that the peer has sent on it,
/// `plain_greeting` those without TLS, and `tls_error` what TLS said of it after the handshake.
pub(crate) fn of_connection(
    error: &(dyn StdError + 'static),
    server: &Uri,
    greeting: &[u8],
    plain_greeting: &[u8],
    tls_error: Option<&TlsError>,
) -> Status {
    let is_tls = server.scheme_str() == Some("https");
    let found = of_greeting(greeting, is_tls);
    let found = found.or_else(|| of_greeting_in_tls(plain_greeting).filter(|_| is_tls));
    let found = found.or_else(|| tls_error.map(of_tls));
    let found = found.or_else(|| of_chain(error));
    let (why, advice) = found.unwrap_or_else(|| {
        let root = chain(error).last().map(ToString::to_string);
        (root.unwrap_or_default(), Advice::Resume)
    });
    let server = server.to_string();
    let server = server.trim_end_matches('/');
    Cause {
        words: format!("no connection to {server}: {why}"),
        code: Code::Unavailable,
        advice,
        kind: CauseKind::Connection,
    }
    .into()
}

/// Tells what else than a server of HTTP/2 has answered, if it was something else.
fn of_greeting(greeting: &[u8], is_tls: bool) -> Option<(String, Advice)> {
    let is_record = TLS_RECORDS
        .iter()
        .any(|record| greeting.starts_with(record));
    // A connection that was cut early is one to try again.
    if greeting.len() < TELLING || (is_tls && is_record) {
        return None;
    }
    if is_record {
        let why = "the server speaks TLS there: use an https:// address".into();
        return Some((why, Advice::Stop));
    }
    if is_http2(greeting) {
        let why = || "the server speaks no TLS there: use an http:// address".into();
        return is_tls.then(|| (why(), Advice::Stop));
    }
    let line = shown(&String::from_utf8_lossy(greeting));
    if b"HTTP/1.".starts_with(greeting) {
        return None;
    }
    if let Some(rest) = greeting.strip_prefix(b"HTTP/1.") {
        let is_passing = is_passing(rest)?;
        let (hint, advice) = match (is_tls, is_passing) {
            (_, true) => ("", Advice::Resume),
            (true, _) => (
                ", and no TLS: use an http:// address, or the port of the server",
                Advice::Stop,
            ),
            (false, _) => (
                ": use the port of the server, or an https:// address",
                Advice::Stop,
            ),
        };
        return Some((
            format!("HTTP/1.1 is spoken there (\"{line}\"){hint}"),
            advice,
        ));
    }
    let why = format!("no HTTP/2 is spoken there, but \"{line}\": use the address of the server");
    Some((why, Advice::Stop))
}

/// Tells what else than HTTP/2 is spoken over TLS, if the peer has agreed on HTTP/2 and speaks something else.
fn of_greeting_in_tls(greeting: &[u8]) -> Option<(String, Advice)> {
    let is_cut = greeting.len() < TELLING || b"HTTP/1.".starts_with(greeting);
    if is_cut || is_http2(greeting) {
        return None;
    }
    let is_passing = match greeting.strip_prefix(b"HTTP/1.") {
        Some(rest) => is_passing(rest)?,
        None => false,
    };
    let line = shown(&String::from_utf8_lossy(greeting));
    let why = format!(
        "TLS agrees on HTTP/2 there, and then \"{line}\" is spoken: let the proxy pass HTTP/2 on, or offer it no more"
    );
    Some((
        why,
        if is_passing {
            Advice::Resume
        } else {
            Advice::Stop
        },
    ))
}

/// Whether these are first bytes of HTTP/2: a frame of settings, or one by which the server leaves at once, which is short
/// and on stream 0.
fn is_http2(greeting: &[u8]) -> bool {
    greeting[0] == 0
        && greeting
            .get(3)
            .is_none_or(|kind| matches!(kind, 4 | 6 | 7 | 8))
        && greeting.iter().take(9).skip(5).all(|byte| *byte == 0)
}

/// Whether HTTP/1.1 says that something is away for a while: a proxy in front of a server that is away may not know what
/// it was asked. `None` if the status is cut off.
fn is_passing(rest: &[u8]) -> Option<bool> {
    let status = rest.get(2..5)?;
    Some(
        [b"429", b"502", b"503", b"504"]
            .iter()
            .any(|passing| status == &passing[..]),
    )
}

/// Finds the error that says most.
fn of_chain(error: &(dyn StdError + 'static)) -> Option<(String, Advice)> {
    if let Some(tls) = chain(error).find_map(|error| error.downcast_ref()) {
        return Some(of_tls(tls));
    }
    let texts = chain(error).map(ToString::to_string);
    let texts: Vec<_> = texts.collect();
    if texts.iter().any(|text| text == NO_HTTP2) {
        let why = "the server speaks TLS, but not HTTP/2 over it: use the port of the server, or let the proxy offer \"h2\" (ALPN)";
        return Some((why.into(), Advice::Stop));
    }
    if texts.iter().any(|text| text.contains("dns error")) {
        let why = texts.last().map_or("", |text| text);
        let why = format!("its name cannot be resolved ({why}): correct the address");
        return Some((why, Advice::Resume));
    }
    let io = chain(error).filter_map(|error| error.downcast_ref::<io::Error>());
    let io = io.last();
    let kind = io.map(io::Error::kind);
    let hint = match kind? {
        io::ErrorKind::ConnectionRefused => ": start the server, or correct the address",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            ": correct the address, or the route to it"
        }
        io::ErrorKind::TimedOut => ": is a firewall in between?",
        io::ErrorKind::UnexpectedEof if texts.iter().any(|text| text.contains("handshake")) => {
            ": the server may speak no TLS there, or went away"
        }
        _ => return None,
    };
    Some((format!("{}{hint}", texts.last()?), Advice::Resume))
}

/// Tells what TLS says, and whether it may say something else another time.
fn of_tls(error: &TlsError) -> (String, Advice) {
    use AlertDescription as Alert;

    let why = match error {
        TlsError::InvalidCertificate(problem) => {
            let hint = match problem {
                CertificateError::UnknownIssuer => {
                    "no authority that this client trusts has issued it; give its certificate as the authority to trust"
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    "it is for another name; use a name that it has"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "it has expired; renew it"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "it is not valid yet; look at the clocks"
                }
                CertificateError::Revoked => "it is revoked; renew it",
                _ => "it cannot be used",
            };
            format!("the certificate of the server is not accepted: {hint} ({error})")
        }
        TlsError::AlertReceived(alert) => match alert {
            Alert::CertificateRequired => {
                "the server requires a client certificate, and none was given".into()
            }
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::DecryptError
            | Alert::AccessDenied => {
                format!("the server does not accept the client certificate ({error})")
            }
            Alert::NoApplicationProtocol => {
                "the server speaks TLS, but not HTTP/2 over it (ALPN): use the port of the server"
                    .into()
            }
            Alert::UnrecognisedName => {
                format!("the server does not know this name ({error}): correct the address")
            }
            Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => {
                format!(
                    "the server does not agree on TLS ({error}): it may require a client certificate, or older versions"
                )
            }
            _ => return (error.to_string(), Advice::Resume),
        },
        TlsError::InvalidMessage(_) => {
            format!("the server speaks no TLS there ({error}): use an http:// address")
        }
        TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol => {
            format!("the server does not agree on TLS ({error})")
        }
        _ => return (error.to_string(), Advice::Resume),
    };
    (why, Advice::Stop)
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    async fn answered(status: u16, headers: &[(HeaderName, &str)], page: &str) -> Status {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| (name.clone(), value.parse().unwrap()));
        let status = StatusCode::from_u16(status).unwrap();
        let body = Full::new(Bytes::from(page.to_owned()));
        of_answer(status, &headers.collect(), body).await
    }

    #[tokio::test]
    async fn codes_are_those_of_the_table_of_grpc() {
        for (status, code) in [
            (400, Code::Internal),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (429, Code::Unavailable),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
            (504, Code::Unavailable),
            (200, Code::Unknown),
            (301, Code::Unknown),
            (413, Code::Unknown),
            (418, Code::Unknown),
            (431, Code::Unknown),
            (500, Code::Unknown),
        ] {
            let answer = answered(status, &[], "").await;
            assert_eq!(answer.code(), code, "{status}");
            assert!(answer.message().contains(&status.to_string()), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn page_is_told_in_few_words_that_control_nothing() {
        let page = "<html><head><style>a {b: c}</style><title>403 Forbidden</title></head>\r\n\
            <!-- a > b --><body>\x1b[2Jno <b>entry</b></body></html>";
        let message = answered(403, &[], page).await.message().to_owned();
        assert!(
            message.contains("\"403 Forbidden \u{fffd}[2Jno entry\""),
            "{message}"
        );
        let long = answered(500, &[], &"word ".repeat(100_000)).await;
        assert!(long.message().len() < 300, "{long:?}");
        for odd in ["<", "a<b", "<style", "<script>x", "<!--", "\u{e9}<\u{e9}"] {
            answered(500, &[], odd).await;
        }
    }

    #[tokio::test]
    async fn delay_is_that_of_retry_after() {
        for (text, expected) in [
            ("7", Some(7_000)),
            (" 7 ", Some(7_000)),
            ("Fri, 01 Jan 1999 00:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let status = answered(503, &[(header::RETRY_AFTER, text)], "").await;
            let delay = crate::reason::retry_delay(&status);
            assert_eq!(delay, expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn answers_of_grpc_are_left_to_grpc() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect()
        };
        for (status, pairs, expected) in [
            (200, vec![("content-type", "application/grpc")], true),
            (200, vec![("content-type", "Application/gRPC+proto")], true),
            (200, vec![("content-type", "application/grpc; x=y")], true),
            (200, vec![("content-type", "application/grpc-web")], false),
            (200, vec![("content-type", "text/html")], false),
            (
                200,
                vec![("content-type", "text/html"), ("grpc-status", "0")],
                false,
            ),
            (
                200,
                vec![("content-type", "text/html"), ("grpc-status", "7")],
                true,
            ),
            (200, vec![("grpc-status", "0")], true),
            (200, vec![], false),
            (503, vec![("content-type", "application/grpc")], false),
            (
                503,
                vec![("content-type", "application/grpc"), ("grpc-status", "8")],
                true,
            ),
            (403, vec![("grpc-status", "0")], false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                is_grpc(status, &headers(&pairs)),
                expected,
                "{status} {pairs:?}"
            );
        }
    }

    #[test]
    fn greeting_tells_what_is_at_the_address() {
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
        for (greeting, is_tls, expected) in [
            (&b""[..], false, None),
            (&settings[..], false, None),
            (&settings[..], true, Some("use an http:// address")),
            (
                &[21, 3, 3, 0, 2, 2, 22],
                false,
                Some("use an https:// address"),
            ),
            (&[22, 3, 3, 0, 2, 2, 22], true, None),
            (
                b"SSH-2.0-OpenSSH_9.2\r\n",
                false,
                Some("\"SSH-2.0-OpenSSH_9.2\""),
            ),
            (
                b"SSH-2.0-OpenSSH_9.2\r\n",
                true,
                Some("\"SSH-2.0-OpenSSH_9.2\""),
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\n",
                false,
                Some("HTTP/1.1 is spoken"),
            ),
            (b"HTTP/1.1 400 Bad Request\r\n", true, Some("no TLS")),
        ] {
            let found = of_greeting(greeting, is_tls);
            let Some(expected) = expected else {
                assert_eq!(found, None);
                continue;
            };
            let (words, advice) = found.unwrap();
            assert!(words.contains(expected), "{words}");
            assert_eq!(advice, Advice::Stop);
        }
        let away = of_greeting(b"HTTP/1.1 503 Service Unavailable\r\n", false);
        assert_eq!(away.unwrap().1, Advice::Resume);
        let in_tls = of_greeting_in_tls(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        assert!(in_tls.0.contains("400 Bad Request"), "{}", in_tls.0);
        assert_eq!(in_tls.1, Advice::Stop);
        assert_eq!(of_greeting_in_tls(&settings), None);
    }

    #[test]
    fn greeting_that_was_cut_tells_nothing() {
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        for greeting in [
            &[21][..],
            &[22],
            b"S",
            b"HTTP",
            b"HTTP/1.1",
            b"HTTP/1.1 5",
            &goaway,
        ] {
            assert_eq!(of_greeting(greeting, false), None, "{greeting:?}");
            assert_eq!(of_greeting_in_tls(greeting), None, "{greeting:?}");
        }
        for greeting in [&[21][..], &[22], b"HTTP/1.1 5"] {
            assert_eq!(of_greeting(greeting, true), None, "{greeting:?}");
        }
    }
}
