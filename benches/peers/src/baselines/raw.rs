//! The floor: one write to each subscriber for each read from a publisher, and nothing else.
//!
//! There is no protocol but a first byte that says who connects, no filter, no queue and no runtime. A
//! subscriber that does not read stops all others.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{Failure, announce};
use crate::text::raw::{CONFIRMATION, PUBLISHER};

type Subscribers = Arc<Mutex<Vec<TcpStream>>>;

pub(crate) fn serve(write_bytes: usize) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    announce(listener.local_addr()?);
    let subscribers = Subscribers::default();
    loop {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let mut role = [0];
        socket.read_exact(&mut role)?;
        if role == PUBLISHER {
            let subscribers = subscribers.clone();
            thread::spawn(move || copy(socket, &subscribers, write_bytes));
        } else {
            socket.write_all(&CONFIRMATION)?;
            subscribers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(socket);
        }
    }
}

/// Copies until the publisher has ended.
fn copy(mut publisher: TcpStream, subscribers: &Subscribers, write_bytes: usize) -> io::Result<()> {
    let mut chunk = vec![0; write_bytes];
    loop {
        let read = publisher.read(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        let mut subscribers = subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain_mut(|subscriber| subscriber.write_all(&chunk[..read]).is_ok());
    }
}
