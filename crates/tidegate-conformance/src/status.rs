//! Endings, as trailers, answers and frames carry them.

use std::{collections::HashMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::scenario::{CodeName, HttpEnd, StatusEnd};

/// Codes of gRPC, each at its number.
pub(crate) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Returns the code of HTTP/2 of this name.
pub(crate) fn reset_code(name: &str) -> Result<Reason, String> {
    let mut reasons = (0..=13).map(Reason::from);
    let reason = reasons.find(|reason| format!("{reason:?}") == name);
    reason.ok_or_else(|| format!("{name:?} is no code of HTTP/2: write one such as CANCEL"))
}

impl CodeName {
    /// Returns the number of the code.
    pub(crate) fn number(&self) -> Result<i32, String> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Name(name) => {
                let number = CODES.iter().position(|code| code == name);
                let number = number.ok_or_else(|| {
                    format!(
                        "{name:?} is no code of gRPC: write one such as UNAVAILABLE, or its number"
                    )
                })?;
                Ok(i32::try_from(number).expect("there are 17"))
            }
        }
    }

    /// Returns the name of the code, or its number if it has none.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Number(number) => usize::try_from(*number)
                .ok()
                .and_then(|number| CODES.get(number))
                .map_or_else(|| number.to_string(), ToString::to_string),
        }
    }
}

impl StatusEnd {
    /// Returns the trailers.
    pub(crate) fn trailers(&self) -> Result<HeaderMap, String> {
        let code = self.code.number()?;
        let mut trailers = vec![
            ("grpc-status".to_owned(), code.to_string()),
            ("grpc-message".to_owned(), self.message.clone()),
        ];
        if let Some(details) = self.details(code) {
            let text = BASE64_STANDARD_NO_PAD.encode(details);
            trailers.push(("grpc-status-details-bin".to_owned(), text));
        }
        let reason = self.trailer_reason.as_ref().or(self.reason.as_ref());
        if let Some(reason) = reason {
            trailers.push(("tidegate-reason".to_owned(), reason.clone()));
        }
        if let Some(delay) = self.retry_ms {
            trailers.push(("tidegate-retry-after-ms".to_owned(), delay.to_string()));
        }
        let own = self.trailers.clone().into_iter();
        let mut map = HeaderMap::new();
        for (name, value) in trailers.into_iter().chain(own) {
            let name: HeaderName = name
                .parse()
                .map_err(|_| format!("{name:?} is no trailer"))?;
            let value = HeaderValue::from_str(&value)
                .map_err(|_| format!("{value:?} is no value of a trailer"))?;
            map.insert(name, value);
        }
        Ok(map)
    }

    /// Returns the encoded `google.rpc.Status`, if the status has any details.
    fn details(&self, code: i32) -> Option<Vec<u8>> {
        let reason = self.details_reason.as_ref().or(self.reason.as_ref());
        let delay = self.details_retry_ms.or(self.retry_ms);
        if reason.is_none() && delay.is_none() {
            return None;
        }
        let mut details = ErrorDetails::new();
        if let Some(reason) = reason {
            details.set_error_info(reason, &self.details_domain, HashMap::new());
        }
        if let Some(delay) = delay {
            details.set_retry_info(Some(Duration::from_millis(delay)));
        }
        let status = tonic::Status::with_error_details(Code::from(code), &self.message, details);
        Some(status.details().to_vec())
    }

    /// Returns the reason that counts: that of the details if they are of Tidegate, or else that of the trailer.
    pub(crate) fn stated_reason(&self) -> Option<&str> {
        let details = self.details_reason.as_ref().or(self.reason.as_ref());
        let of_trailer = self.trailer_reason.as_ref().or(self.reason.as_ref());
        details
            .filter(|_| self.details_domain == "tidegate")
            .or(of_trailer)
            .map(String::as_str)
    }

    /// Returns a line for people.
    pub(crate) fn told(&self) -> String {
        let mut told = self.code.name();
        for (name, value) in [
            ("reason", self.reason.clone()),
            ("reason in details", self.details_reason.clone()),
            ("reason in trailer", self.trailer_reason.clone()),
            (
                "retry after ms",
                self.retry_ms.map(|delay| delay.to_string()),
            ),
            (
                "retry after ms in details",
                self.details_retry_ms.map(|delay| delay.to_string()),
            ),
        ] {
            if let Some(value) = value {
                told.push_str(&format!(", {name} {value}"));
            }
        }
        for (name, value) in &self.trailers {
            told.push_str(&format!(", {name}: {value}"));
        }
        told
    }
}

impl HttpEnd {
    /// Returns the answer without its page.
    pub(crate) fn head(&self) -> Result<Response<()>, String> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        response
            .body(())
            .map_err(|error| format!("no answer of HTTP: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_numbers() {
        for (number, name) in CODES.iter().enumerate() {
            let number = i32::try_from(number).unwrap();
            let code = format!("{:?}", Code::from(number)).to_uppercase();
            assert_eq!(code, name.replace('_', ""));
            assert_eq!(CodeName::Name((*name).into()).number(), Ok(number));
        }
    }

    #[test]
    fn details_are_those_that_tonic_reads() {
        let end: StatusEnd =
            toml::from_str("code = 'UNAVAILABLE'\nreason = 'STALLED'\nretry_ms = 250").unwrap();
        let trailers = end.trailers().unwrap();
        let status = tonic::Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.get_details_error_info().unwrap().reason, "STALLED");
        let delay = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_millis(250)));
        assert_eq!(trailers["tidegate-reason"], "STALLED");
        assert_eq!(trailers["tidegate-retry-after-ms"], "250");
    }
}
