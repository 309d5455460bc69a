//! The server side of HTTP/2 (RFC 9113), without I/O, for responses that are long streams.
//!
//! Bytes of the peer go [in](Connection::receive), [`Event`]s come out, and so do the slices [to write](Connection::output)
//! and the time at which to [look again](Connection::timeout). There is no socket, no clock, no task and no lock: whoever
//! drives it brings them. `tidegate-transport` does so on tokio.
//!
//! ```
//! use std::{io::IoSlice, sync::Arc, time::Instant};
//!
//! use http::{HeaderMap, StatusCode};
//! use tidegate_http2::{Config, Connection, Error, Event, Room, StreamId, StreamState};
//!
//! /// State of each stream.
//! struct Call;
//!
//! impl StreamState for Call {
//!     fn sent(&mut self, _bytes: usize) {}
//! }
//!
//! /// Says hello and ends the response, if the stream has room for it now. Otherwise it has a turn later.
//! fn say_hello(http2: &mut Connection<Call>, stream: StreamId) {
//!     if http2.room(stream) != Room::Later {
//!         http2.send(stream, "hello".into());
//!         http2.finish(stream, None);
//!     }
//! }
//!
//! /// Takes what has come and answers each call. Returns what is to be written.
//! fn answer(http2: &mut Connection<Call>, mut input: &[u8]) -> Result<Vec<u8>, Error> {
//!     http2.set_now(Instant::now());
//!     while let Some(event) = http2.receive(&mut input)? {
//!         let Event::Request { stream, .. } = event else { continue };
//!         http2.accept(stream, Call);
//!         http2.respond(stream, StatusCode::OK, &HeaderMap::new(), false);
//!         say_hello(http2, stream);
//!     }
//!     while let Some(stream) = http2.next_turn() {
//!         say_hello(http2, stream);
//!     }
//!     let mut slices = [IoSlice::new(&[]); 16];
//!     let count = http2.output(&mut slices);
//!     let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
//!     http2.advance(bytes.len());
//!     Ok(bytes)
//! }
//!
//! let config = Arc::new(Config::default());
//! let mut http2 = Connection::<Call>::new(config, Instant::now());
//! let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
//! // `:method: GET`, `:scheme: http`, `:path: /`
//! let headers = [0, 0, 3, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84];
//! let answer = answer(&mut http2, &[&settings[..], &headers].concat())?;
//! assert!(answer.windows(5).any(|bytes| bytes == b"hello"));
//! # Ok::<_, Error>(())
//! ```
//!
//! # Beside h2
//! * **Idle.** A connection without work has no buffers. h2 kept 20 KiB for one (decision 0037 of the project).
//! * **Copies.** A chunk of 1 KiB or more goes to the socket from where it lies, shared by any number of streams.
//! * **Pull.** A body is asked only when its bytes leave now, so newer data can replace older until then.
//! * **Endings.** Trailers need no window: a peer that does not read still learns its status, unless data is held.
//! * **Shared connections.** Budgets last 10 s, and late frames of ended calls cost nothing.
//!
//! Take hyper or h2 for clients, HTTP/1.1, push or tunnels. `tidegate-transport` serves any tower service with this crate.
//!
//! # A turn
//! In this order, and again from its beginning:
//!
//! 1. [`set_now`](Connection::set_now), and [`on_timeout`](Connection::on_timeout) if its time has come;
//! 2. [`receive`](Connection::receive) until it returns `None`, while the connection [wants input](Connection::wants_input);
//! 3. data of the streams that [`next_turn`](Connection::next_turn) returns, and of those that have something new, if they
//!    have [room](Connection::room);
//! 4. [`output`](Connection::output) into the socket, and [`advance`](Connection::advance);
//! 5. the end, when [`is_over`](Connection::is_over) and the output is written; otherwise another turn at once if the
//!    connection [has turns](Connection::has_turns), and a wait for the socket and for [`timeout`](Connection::timeout) if not.
//!
//! # Pull
//! A stream is asked for data while its window, the connection's window and the output have [room](Connection::room).
//! One without room has its [turn](Connection::next_turn) when there is some, and streams have their turns one after the
//! other. So nothing is buffered for a peer that does not read, except what was sent beyond its room.
//! Of the streams that wait, each sends 16 KiB before the others have their turns, and a turn that a window or the output cuts
//! off goes on before others begin. So of two streams that always have something, none is ever ahead by more than 32 KiB,
//! whatever the windows that the peer opens.
//!
//! # Requests behind their response
//! A peer that goes on with a request whose response is complete has 5 s for it, and 1 MiB, which is thrown away as it comes:
//! some clients look at a response only when their request is sent. Then it is told by RST_STREAM with `NO_ERROR` that no more
//! is wanted. The oldest is told at once when half of [`Config::max_concurrent_streams`] are such requests: for the peer they
//! are streams like others.
//!
//! # Idle
//! A connection on which nothing happens has no buffer: what waits for the socket is in buffers that the thread lends. Of the
//! input a frame is kept that has come in part, up to 16 KiB of it, and a header block in several frames, up to twice
//! [`Config::max_header_list_size`], and 16 KiB at least: with the defaults 48 KiB in all, and what an allocator adds. Either has to be complete within
//! 10 s, or the peer is given up. DATA is not kept here, however slowly it comes. The table for header compression holds what
//! its peer put there: 4 KiB, in up to 9 KiB of memory.
//!
//! # Attacks
//! Work that costs the server more than its peer has a [budget](Config) for 10 s, never one for the life of a connection: a
//! proxy's carries the calls of many users. Header lists are measured while they are decoded, and what has no room is not
//! kept. Calls that end here while their bodies are under way cost nothing: what still comes for them is ignored.
//!
//! # Errors
//! Breaches that concern the connection end it with [`Error`], and GOAWAY is in the output. Those of a stream reset it, and
//! are an [`Event::Reset`].
//!
//! # Not included
//! Push, tunnels by CONNECT, upgrades from HTTP/1.1, and the side of a client. Priorities are read and ignored (RFC 9113,
//! section 5.3.2).
//!
//! * The request of CONNECT is an event like any other. A status from 200 to 299 would say that there is a tunnel (RFC 9110,
//!   section 9.3.6), so answer it with another. `tidegate-transport` does so, with 501.
//! * No `100 (Continue)` is ever sent. Clients that wait for one wait a while, and send their body all the same (RFC 9110,
//!   section 10.1.1).

mod budget;
mod config;
mod connection;
mod error;
mod frame;
mod handle;
mod hpack;
mod output;
mod request;
mod settings;
mod stream;
mod unended;

pub use crate::{
    config::Config,
    connection::{Connection, Event, PREFACE, Room, StreamState, TimedOut},
    error::{Code, Error},
    handle::{StreamControl, StreamHandle},
    stream::StreamId,
};
