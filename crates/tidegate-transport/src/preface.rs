//! The connection preface (RFC 9113, section 3.4), read before an engine has the connection.
//!
//! So whoever accepts it has one timeout for the TLS handshake and the preface. hyper would wait for the preface without one,
//! and cannot end a connection in good order before it has it (hyper issue 4170). To wait for the first byte alone would not
//! do: a peer that sends half of the preface would hold its connection forever, since keep-alive begins after it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

pub(crate) use tidegate_http2::PREFACE;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// Empty SETTINGS, by which HTTP/2 begins, and GOAWAY with `PROTOCOL_ERROR` (RFC 9113, section 3.4).
const REFUSAL: [u8; 26] = [
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, // GOAWAY
    0, 0, 0, 0, 0, 0, 0, 1,
];

/// A transport whose preface was read, and which yields it once more: hyper reads it too, `tidegate-http2` does not.
/// [`read_preface`] makes it.
#[derive(Debug)]
pub struct Prefaced<T> {
    transport: T,
    /// Part of the preface that is still to be yielded.
    preface: &'static [u8],
}

/// Reads the connection preface from a transport.
///
/// It sets no timeout: give it [`Http2Config::preface_timeout`](crate::Http2Config::preface_timeout). Dropping
/// its future drops the transport, with the bytes that were read. A peer that begins with something else is told what is
/// spoken here: to a client with TLS, a connection that is closed without a word looks like that of a server that went away.
///
/// # Errors
/// When the transport ends or fails before the preface is complete, and with [`io::ErrorKind::InvalidData`]
/// when its first 24 bytes are something else.
pub async fn read_preface<T>(mut transport: T) -> io::Result<Prefaced<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut received = [0; PREFACE.len()];
    transport.read_exact(&mut received).await?;
    if received != *PREFACE {
        // Whether it arrives or not, the connection is over.
        let _ = transport.write_all(&REFUSAL).await;
        let _ = transport.flush().await;
        let problem = "the peer does not speak HTTP/2; TLS may be on at one end only";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(Prefaced {
        transport,
        preface: PREFACE,
    })
}

impl<T> Prefaced<T> {
    /// Returns the transport, whose preface was read.
    pub(crate) fn into_inner(self) -> T {
        self.transport
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefaced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.is_empty() {
            return Pin::new(&mut self.transport).poll_read(cx, buf);
        }
        let (now, later) = self
            .preface
            .split_at(self.preface.len().min(buf.remaining()));
        buf.put_slice(now);
        self.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefaced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn preface_is_read_again_in_pieces_of_any_size() {
        let (mut peer, transport) = tokio::io::duplex(1_000);
        peer.write_all(PREFACE).await.unwrap();
        peer.write_all(b"and more").await.unwrap();
        drop(peer);
        let mut prefaced = read_preface(transport).await.unwrap();
        let mut piece = [0; 10];
        prefaced.read_exact(&mut piece).await.unwrap();
        assert_eq!(piece, PREFACE[..10]);
        let mut rest = Vec::new();
        prefaced.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [&PREFACE[10..], b"and more"].concat());
    }

    #[tokio::test]
    async fn other_protocol_is_refused() {
        let (mut peer, transport) = tokio::io::duplex(1_000);
        peer.write_all(b"GET / HTTP/1.1\r\nHost: tidegate\r\n\r\n")
            .await
            .unwrap();
        let refused = read_preface(transport).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let mut told = Vec::new();
        peer.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, REFUSAL);
    }
}
