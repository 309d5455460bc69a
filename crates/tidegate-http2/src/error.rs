//! Errors of streams and of the connection (RFC 9113, section 5.4).

use std::{error, fmt};

/// Error code of HTTP/2 (RFC 9113, section 7). Any number is one: peers may send what nobody knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// Nothing went wrong.
    pub const NO_ERROR: Self = Self(0x0);
    /// The peer broke a rule for which there is no other code.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// Something went wrong at this end.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// The peer sent more than its window allows, or made one too large.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// Settings were not acknowledged.
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    /// A frame came for a stream that the peer had ended.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame has a length that its kind cannot have.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// Nothing was done for the stream, which may be tried again.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// The stream is not wanted any more.
    pub const CANCEL: Self = Self(0x8);
    /// A header block cannot be decoded.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The peer makes more work than it is allowed to.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
            Self::STREAM_CLOSED => "STREAM_CLOSED",
            Self::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::CANCEL => "CANCEL",
            Self::COMPRESSION_ERROR => "COMPRESSION_ERROR",
            Self(0xa) => "CONNECT_ERROR",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            Self(0xc) => "INADEQUATE_SECURITY",
            Self(0xd) => "HTTP_1_1_REQUIRED",
            Self(code) => return write!(f, "error code {code}"),
        };
        f.write_str(name)
    }
}

/// The end of a connection for a fault of its peer. The peer is told with GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    code: Code,
    reason: &'static str,
}

impl Error {
    pub(crate) const fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason }
    }

    pub(crate) const fn protocol(reason: &'static str) -> Self {
        Self::new(Code::PROTOCOL_ERROR, reason)
    }

    pub(crate) const fn size(reason: &'static str) -> Self {
        Self::new(Code::FRAME_SIZE_ERROR, reason)
    }

    pub(crate) const fn calm(reason: &'static str) -> Self {
        Self::new(Code::ENHANCE_YOUR_CALM, reason)
    }

    /// Code that the peer is told.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The fault of the peer, as it is told.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the peer broke a rule of HTTP/2: {} ({})",
            self.reason, self.code
        )
    }
}

impl error::Error for Error {}
