//! Requests: the rules of their header lists (RFC 9113, sections 8.2 and 8.3).

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{self, Entry},
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::hpack::Field;

/// Whether a field is about the connection that brings it. A message of HTTP/2 with one is malformed (RFC 9113, section
/// 8.2.2).
pub(crate) fn is_of_a_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

/// A list that breaks a rule: the request is malformed, which is an error of its stream (RFC 9113, section 8.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Header list of a request, or of its trailers, as it is decoded.
#[derive(Debug)]
pub(crate) struct HeaderList {
    pseudo: Option<Pseudo>,
    fields: HeaderMap,
    cookie: Option<Cookie>,
    /// Bytes that the list may still count.
    left: usize,
    is_truncated: bool,
    is_malformed: bool,
    has_fields: bool,
}

/// A cookie, whose crumbs are one field for whoever reads it (RFC 9113, section 8.2.3). It is put together once: to add each
/// crumb to a value takes time in the square of their number.
#[derive(Debug, Default)]
struct Cookie {
    crumbs: Vec<u8>,
    is_sensitive: bool,
}

impl Cookie {
    fn add(&mut self, crumb: &[u8], is_sensitive: bool) {
        if !self.crumbs.is_empty() {
            self.crumbs.extend_from_slice(b"; ");
        }
        self.crumbs.extend_from_slice(crumb);
        self.is_sensitive |= is_sensitive;
    }

    fn into_value(self) -> Result<HeaderValue, Malformed> {
        let value = HeaderValue::from_maybe_shared(Bytes::from(self.crumbs));
        let mut value = value.map_err(|_| Malformed)?;
        value.set_sensitive(self.is_sensitive);
        Ok(value)
    }
}

/// The fields that say what is asked for.
#[derive(Debug, Default)]
struct Pseudo {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<HeaderValue>,
    path: Option<PathAndQuery>,
}

/// A request as its header list has it.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) request: Request<()>,
    pub(crate) content_length: Option<u64>,
    pub(crate) is_truncated: bool,
}

impl HeaderList {
    pub(crate) fn of_request(max_size: usize) -> Self {
        Self {
            pseudo: Some(Pseudo::default()),
            ..Self::of_trailers(max_size)
        }
    }

    pub(crate) fn of_trailers(max_size: usize) -> Self {
        Self {
            pseudo: None,
            fields: HeaderMap::new(),
            cookie: None,
            left: max_size,
            is_truncated: false,
            is_malformed: false,
            has_fields: false,
        }
    }

    /// Adds a field. One that has no room, or that comes after a fault, costs next to nothing.
    pub(crate) fn add(&mut self, field: Field<'_>) {
        if self.is_malformed {
            return;
        }
        let Some(left) = self.left.checked_sub(field.size()) else {
            // Whatever follows is left out too: a list without one of its middle fields would say something else.
            self.left = 0;
            self.is_truncated = true;
            return;
        };
        self.left = left;
        let added = match field.name.strip_prefix(b":") {
            Some(name) => self.add_pseudo(name, field.value),
            None => self.add_field(field),
        };
        self.is_malformed = added.is_err();
    }

    fn add_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        // They come before the others, and not in trailers (RFC 9113, section 8.3).
        if self.has_fields {
            return Err(Malformed);
        }
        let pseudo = self.pseudo.as_mut().ok_or(Malformed)?;
        match name {
            b"method" => set(&mut pseudo.method, Method::from_bytes(value).ok()),
            b"scheme" => set(&mut pseudo.scheme, Scheme::try_from(value).ok()),
            b"authority" => set(&mut pseudo.authority, HeaderValue::from_bytes(value).ok()),
            b"path" if value.is_empty() => Err(Malformed),
            b"path" => set(&mut pseudo.path, PathAndQuery::try_from(value).ok()),
            _ => Err(Malformed),
        }
    }

    fn add_field(&mut self, field: Field<'_>) -> Result<(), Malformed> {
        self.has_fields = true;
        // It refuses letters in upper case (RFC 9113, section 8.2.1).
        let name = HeaderName::from_lowercase(field.name).map_err(|_| Malformed)?;
        if is_of_a_connection(&name) {
            return Err(Malformed);
        }
        // The standard calls spaces around a value malformed, and clients of gRPC send them as they got them. As in HTTP/1.1,
        // they are no part of it.
        let value = without_spaces_around(field.value);
        if name == header::TE && value != b"trailers" {
            return Err(Malformed);
        }
        if name == header::COOKIE {
            self.cookie
                .get_or_insert_default()
                .add(value, field.is_sensitive);
            return Ok(());
        }
        let mut value = HeaderValue::from_bytes(value).map_err(|_| Malformed)?;
        value.set_sensitive(field.is_sensitive);
        match self.fields.try_entry(name).map_err(|_| Malformed)? {
            Entry::Occupied(mut fields) => fields.append(value),
            Entry::Vacant(place) => _ = place.try_insert(value).map_err(|_| Malformed)?,
        }
        Ok(())
    }

    /// Returns the fields that are no pseudo-headers.
    fn into_fields(mut self) -> Result<HeaderMap, Malformed> {
        if self.is_malformed {
            return Err(Malformed);
        }
        if let Some(cookie) = self.cookie {
            self.fields
                .try_insert(header::COOKIE, cookie.into_value()?)
                .map_err(|_| Malformed)?;
        }
        Ok(self.fields)
    }

    /// Returns the trailers. Nothing marks them, so without their tail they are malformed.
    pub(crate) fn into_trailers(self) -> Result<HeaderMap, Malformed> {
        if self.is_truncated {
            return Err(Malformed);
        }
        self.into_fields()
    }

    /// Returns the request.
    pub(crate) fn into_request(mut self) -> Result<Head, Malformed> {
        let pseudo = self.pseudo.take().ok_or(Malformed)?;
        let is_truncated = self.is_truncated;
        let fields = self.into_fields()?;
        let mut head = Head {
            request: Request::new(()),
            content_length: content_length(&fields)?,
            is_truncated,
        };
        let request = &mut head.request;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = fields;
        if is_truncated {
            // What is missing may have had no room.
            *request.method_mut() = pseudo.method.unwrap_or(Method::GET);
            return Ok(head);
        }
        pseudo.set(request)?;
        Ok(head)
    }
}

/// Sets what may come once, and has to be valid.
fn set<T>(place: &mut Option<T>, value: Option<T>) -> Result<(), Malformed> {
    if place.is_some() || value.is_none() {
        return Err(Malformed);
    }
    *place = value;
    Ok(())
}

/// Returns a value without the spaces and tabs around it. Other white space is malformed.
fn without_spaces_around(value: &[u8]) -> &[u8] {
    let is_of_value = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(is_of_value).unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(is_of_value)
        .map_or(begin, |last| last + 1);
    &value[begin..end]
}

fn content_length(fields: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for value in fields.get_all(header::CONTENT_LENGTH) {
        let digits = value.to_str().map_err(|_| Malformed)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Malformed);
        }
        let value = digits.parse::<u64>().map_err(|_| Malformed)?;
        if length.is_some_and(|length| length != value) {
            return Err(Malformed);
        }
        length = Some(value);
    }
    Ok(length)
}

impl Pseudo {
    /// Sets method and URI of a request (RFC 9113, section 8.3.1).
    fn set(self, request: &mut Request<()>) -> Result<(), Malformed> {
        let method = self.method.ok_or(Malformed)?;
        let authority = self.authority.filter(|authority| !authority.is_empty());
        let is_connect = method == Method::CONNECT;
        // It has an authority, and neither scheme nor path (RFC 9113, section 8.5).
        if is_connect && (self.scheme.is_some() || self.path.is_some() || authority.is_none()) {
            return Err(Malformed);
        }
        let mut uri = http::uri::Parts::default();
        if !is_connect {
            uri.scheme = Some(self.scheme.ok_or(Malformed)?);
            uri.path_and_query = Some(self.path.ok_or(Malformed)?);
        }
        *request.method_mut() = method;
        uri.authority = authority
            .as_ref()
            .and_then(|authority| Authority::try_from(authority.as_bytes()).ok());
        if uri.authority.is_none() {
            // A path of a Unix socket, a cluster of a proxy: clients send what they were told to connect to. Whoever wants it
            // finds it where HTTP/1.1 has it, in place of what was there: nobody may go by that (RFC 9113, section 8.3.1).
            uri.scheme = None;
            if let Some(authority) = authority {
                let headers = request.headers_mut();
                headers
                    .try_insert(header::HOST, authority)
                    .map_err(|_| Malformed)?;
            }
            if is_connect {
                return Ok(());
            }
        }
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Malformed)?;
        Ok(())
    }
}
