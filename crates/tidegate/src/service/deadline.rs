//! The deadline of a call, which the client sends as `grpc-timeout`.
//!
//! It covers a subscription to its end, as gRPC means it. The timeouts of tonic and tower cover a call up to its first
//! response only.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

use crate::reason::Reason;

/// Timeout from which on there is no deadline: no stream lives for a year, and no timer has to be kept for it.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Returns when the call with these headers is to end, or `None` if its client sets no limit.
pub(super) fn from_headers(headers: &HeaderMap) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let timeout = value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
        Reason::InvalidRequest.in_field(
            "grpc-timeout",
            "must be at most 8 digits and one of H, M, S, m, u, n, such as 90S",
        )
    })?;
    Ok((timeout < NO_LIMIT).then(|| Instant::now() + timeout))
}

/// Parses a value of `grpc-timeout`: at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || number.len() > 8 {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_is_digits_and_a_unit() {
        for (text, expected) in [
            ("1S", Duration::from_secs(1)),
            ("0n", Duration::ZERO),
            ("250m", Duration::from_millis(250)),
            ("2M", Duration::from_secs(120)),
            ("7u", Duration::from_micros(7)),
            ("99999999H", Duration::from_secs(99_999_999 * 3_600)),
        ] {
            assert_eq!(parse_timeout(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "S",
            "1",
            "1s",
            "123456789S",
            "-1S",
            "+1S",
            "1 S",
            "1.5S",
            "1\u{b5}",
        ] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn timeout_beyond_a_year_sets_no_deadline() {
        let mut headers = HeaderMap::new();
        assert!(from_headers(&headers).unwrap().is_none());
        headers.insert("grpc-timeout", "99999999H".parse().unwrap());
        assert!(from_headers(&headers).unwrap().is_none());
        headers.insert("grpc-timeout", "1H".parse().unwrap());
        assert!(from_headers(&headers).unwrap().is_some());
        headers.insert("grpc-timeout", "soon".parse().unwrap());
        let refused = from_headers(&headers).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
