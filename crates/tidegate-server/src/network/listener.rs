//! The sockets that the server listens on: TCP, or a file for peers on the same machine.

use std::{
    fmt, io,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use tidegate_transport::{Acceptor, Http2Config};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use super::local::{LocalListener, LocalStream, check_path};

/// Address of every peer that connects through the file of a socket: they have none of their own, and count as one. No peer
/// on a network has it.
pub(crate) const LOCAL_PEER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// The address of a peer in words: `unix` for those that come through the file of a socket. `{:#}` leaves out the port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// An address to listen on. It is read from `127.0.0.1:50051`, `[::]:50051` or `unix:/run/tidegate.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenAddress {
    /// An address and a port. Port 0 takes a free port.
    Tcp(SocketAddr),
    /// The path of a socket's file, which the server makes, and removes when it ends. It has at most 107 bytes.
    Unix(PathBuf),
}

/// The listener of a server.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(Acceptor),
    Unix(LocalListener),
}

/// A connection of either kind: TCP, or through the file of a socket.
pub(crate) type Socket = Either<TcpStream, LocalStream>;

// ===== impl PeerAddress =====

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            LOCAL_PEER => f.write_str("unix"),
            address if f.alternate() => address.ip().fmt(f),
            address => address.fmt(f),
        }
    }
}

// ===== impl ListenAddress =====

impl ListenAddress {
    /// Whether only peers on this machine reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<([u8; 4], u16)> for ListenAddress {
    fn from(address: ([u8; 4], u16)) -> Self {
        Self::Tcp(address.into())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix("unix:") else {
            let address = text.parse().map_err(|_| {
                "write it as ADDRESS:PORT, such as 127.0.0.1:50051 or [::]:50051, or as unix:PATH"
            });
            return Ok(Self::Tcp(address?));
        };
        // The form that URLs have: nothing between the slashes, and then the path.
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') {
            return Err("write the whole path, such as unix:/run/tidegate.sock".into());
        }
        let path = PathBuf::from(path);
        check_path(&path)?;
        Ok(Self::Unix(path))
    }
}

// ===== impl Listener =====

impl Listener {
    pub(crate) async fn bind(address: &ListenAddress, backlog: Option<u32>) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let listener = tidegate_transport::listen(*address, backlog)?;
                Ok(Self::Tcp(Acceptor::new(listener)))
            }
            ListenAddress::Unix(path) => Ok(Self::Unix(LocalListener::bind(path).await?)),
        }
    }

    /// Waits for the next connection, and adds it and those that are there already to `batch`. Cancel safe.
    pub(crate) async fn accept_batch(&mut self, batch: &mut Vec<(Socket, SocketAddr)>) {
        match self {
            Self::Tcp(acceptor) => {
                let mut accepted = Vec::new();
                acceptor.accept_batch(&mut accepted).await;
                // Nothing is awaited from here on, so what was accepted is not lost.
                let sockets = accepted.into_iter();
                batch.extend(sockets.map(|(stream, peer)| (Either::Left(stream), peer)));
            }
            Self::Unix(listener) => {
                batch.push((Either::Right(listener.accept().await), LOCAL_PEER))
            }
        }
    }
}

// ===== Sockets =====

/// Sets the options of a TCP socket. Others have none of these.
pub(crate) fn set_options(socket: &Socket, config: &Http2Config) -> io::Result<()> {
    match socket {
        Either::Left(stream) => config.set_socket_options(stream),
        Either::Right(_) => Ok(()),
    }
}

/// Closes with a reset, where there is such a thing.
pub(crate) fn reset(socket: Socket) {
    if let Either::Left(stream) = socket {
        // It leaves no state in the kernel. If the option cannot be set, the socket closes normally.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn path_that_no_socket_can_have_is_refused_where_it_is_read() {
        let read = |path: &str| format!("unix:{path}").parse::<ListenAddress>();
        let longest = format!("/{}", "x".repeat(106));
        // The operating system agrees.
        std::os::unix::net::SocketAddr::from_pathname(&longest).unwrap();
        assert_eq!(
            read(&longest),
            Ok(ListenAddress::Unix(longest.clone().into()))
        );
        let longer = format!("{longest}x");
        std::os::unix::net::SocketAddr::from_pathname(&longer).unwrap_err();
        let said = read(&longer).unwrap_err();
        assert!(said.contains("108 bytes"), "{said}");
        // Bytes are counted, and not characters.
        let said = read(&format!("/{}", "é".repeat(60))).unwrap_err();
        assert!(said.contains("121 bytes"), "{said}");
        assert!(read("/run/a\0b").unwrap_err().contains("zero byte"));
        for folder in ["/", "///", "/run/", "///run/", "/run/.", "/run/.."] {
            let said = read(folder).unwrap_err();
            assert!(said.contains("that of a folder"), "{folder}: {said}");
        }
        assert!(read("/run/.socket").is_ok() && read("/run/../socket").is_ok());
    }
}
