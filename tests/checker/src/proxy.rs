//! A TCP proxy that injects faults, drawn from a seed, or that is slow.
//!
//! Each connection has a schedule of its own, counted in bytes from the server. The schedule is therefore repeatable,
//! although the time at which the bytes come differs from run to run.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The most bytes forwarded at a time.
const CHUNK: usize = 8 << 10;

/// The rates of a slow link, in bytes per second.
const RATES: Range<u32> = 12_000..100_000;

/// The pieces that a slow link forwards in a second.
const PIECES: u32 = 20;

/// The bytes that a slow link's socket receives ahead. With the kernel's default, the link would be fast for megabytes.
const RECEIVED_AHEAD: u32 = 8 << 10;

/// A proxy. It runs until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    ends: CancellationToken,
    tasks: TaskTracker,
}

/// The number of injected faults.
#[derive(Debug, Default)]
pub struct FaultCounts {
    /// Pauses in forwarding.
    pub delays: AtomicU64,
    /// Spans of bytes that were forwarded at a low rate.
    pub throttles: AtomicU64,
    /// Connections that were reset in both directions.
    pub cuts: AtomicU64,
    /// Connections that were left open without forwarding.
    pub half_opens: AtomicU64,
    /// Bytes that were forwarded over slow links.
    pub crawled: AtomicU64,
}

/// How the bytes of a connection are forwarded.
enum Way {
    /// At once, with faults.
    Faulty(Schedule),
    /// At a rate, in bytes per second.
    Slow(u32),
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Delay(Duration),
    Throttle { bytes: usize, bytes_per_second: u32 },
    Cut,
    HalfOpen,
}

/// The end of a connection, for the proxy.
enum Fate {
    Closed,
    Cut,
    /// Both sockets stay open, and the proxy no longer reads them.
    HalfOpen,
}

/// The faults of one connection.
struct Schedule(Rng);

impl Proxy {
    /// Starts a proxy to `target` that injects faults, on a free port.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start(
        target: SocketAddr,
        seed: u64,
        counts: Arc<FaultCounts>,
    ) -> io::Result<Self> {
        let mut seeds = Rng::with_seed(seed);
        let way = move || Way::Faulty(Schedule::new(seeds.fork()));
        Self::start_with(target, way, counts).await
    }

    /// Starts a proxy to `target` that forwards some kilobytes a second to each client, on a free port.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start_slow(
        target: SocketAddr,
        seed: u64,
        counts: Arc<FaultCounts>,
    ) -> io::Result<Self> {
        let mut rng = Rng::with_seed(seed);
        Self::start_with(target, move || Way::Slow(rng.u32(RATES)), counts).await
    }

    async fn start_with(
        target: SocketAddr,
        mut way: impl FnMut() -> Way + Send + 'static,
        counts: Arc<FaultCounts>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Self {
            address: listener.local_addr()?,
            target: watch::channel(target).0,
            ends: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (target, ends, tasks) = (
            proxy.target.subscribe(),
            proxy.ends.clone(),
            proxy.tasks.clone(),
        );
        let accepting = async move {
            while let Ok((client, _)) = listener.accept().await {
                let way = way();
                let (target, counts) = (*target.borrow(), Arc::clone(&counts));
                tasks.spawn(
                    ends.clone()
                        .run_until_cancelled_owned(serve(client, target, way, counts)),
                );
            }
        };
        let until = proxy.ends.clone();
        proxy
            .tasks
            .spawn(until.run_until_cancelled_owned(accepting));
        Ok(proxy)
    }

    /// Returns the address that it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the target of connections that are accepted from now on.
    pub fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Closes every connection and accepts no more.
    pub async fn stop(&self) {
        self.ends.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

impl Schedule {
    const fn new(rng: Rng) -> Self {
        Self(rng)
    }

    /// Returns the number of bytes before the next fault, and the fault.
    fn next(&mut self) -> (usize, Fault) {
        let rng = &mut self.0;
        // Most faults come early: the start of a stream is where its replay is.
        let after = 1 << rng.u32(8..22);
        let fault = match rng.u32(0..10) {
            0..4 => Fault::Delay(Duration::from_millis(rng.u64(5..300))),
            4..6 => Fault::Throttle {
                bytes: rng.usize(16 << 10..512 << 10),
                bytes_per_second: rng.u32(100_000..2_000_000),
            },
            6..9 => Fault::Cut,
            _ => Fault::HalfOpen,
        };
        (after + rng.usize(0..after), fault)
    }
}

async fn serve(client: TcpStream, target: SocketAddr, way: Way, counts: Arc<FaultCounts>) {
    let Ok(server) = connect(target, &way).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let up = async {
        if copy(&mut from_client, &mut to_server).await.is_err() {
            return Fate::Cut;
        }
        // The client has closed its side. Pass that on, and wait until the server closes the other.
        let _ = to_server.shutdown().await;
        pending().await
    };
    let fate = tokio::select! {
        fate = down(from_server, &mut to_client, way, &counts) => fate.unwrap_or(Fate::Closed),
        fate = up => fate,
    };
    match fate {
        Fate::Closed => {}
        Fate::Cut => {
            reset(to_client.as_ref());
            reset(to_server.as_ref());
        }
        Fate::HalfOpen => pending().await,
    }
}

/// Makes the close of the socket send RST.
fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

async fn connect(target: SocketAddr, way: &Way) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Way::Slow(_) = way {
        socket.set_recv_buffer_size(RECEIVED_AHEAD)?;
    }
    socket.connect(target).await
}

async fn down(
    from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    way: Way,
    counts: &FaultCounts,
) -> io::Result<Fate> {
    match way {
        Way::Faulty(schedule) => down_with_faults(from, to, schedule, counts).await,
        Way::Slow(per_second) => down_slowly(from, to, per_second, counts).await,
    }
}

async fn down_slowly(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    per_second: u32,
    counts: &FaultCounts,
) -> io::Result<Fate> {
    let mut buffer = vec![0; (per_second / PIECES) as usize];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            to.shutdown().await?;
            return Ok(Fate::Closed);
        }
        to.write_all(&buffer[..read]).await?;
        counts.crawled.fetch_add(read as u64, Relaxed);
        sleep(Duration::from_secs(read as u64) / per_second).await;
    }
}

async fn down_with_faults(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut schedule: Schedule,
    counts: &FaultCounts,
) -> io::Result<Fate> {
    let mut buffer = vec![0; CHUNK];
    let (mut left, mut fault) = schedule.next();
    let mut throttled: Option<(usize, u32)> = None;
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            to.shutdown().await?;
            return Ok(Fate::Closed);
        }
        to.write_all(&buffer[..read]).await?;
        if let Some((bytes, per_second)) = throttled {
            sleep(Duration::from_secs(read as u64) / per_second).await;
            throttled = bytes.checked_sub(read).map(|bytes| (bytes, per_second));
        }
        left = left.saturating_sub(read);
        if left > 0 {
            continue;
        }
        match fault {
            Fault::Delay(time) => {
                counts.delays.fetch_add(1, Relaxed);
                sleep(time).await;
            }
            Fault::Throttle {
                bytes,
                bytes_per_second,
            } => {
                counts.throttles.fetch_add(1, Relaxed);
                throttled = Some((bytes, bytes_per_second));
            }
            Fault::Cut => {
                counts.cuts.fetch_add(1, Relaxed);
                return Ok(Fate::Cut);
            }
            Fault::HalfOpen => {
                counts.half_opens.fetch_add(1, Relaxed);
                return Ok(Fate::HalfOpen);
            }
        }
        (left, fault) = schedule.next();
    }
}
