//! Output that waits for the socket.
//!
//! Heads of frames and whatever is small are in one buffer, and chunks between them are shared: they are written from where
//! they are. An idle connection holds neither: the buffers belong to the thread and are lent to the connection that has
//! something to write.

use std::{cell::Cell, collections::VecDeque, io::IoSlice, mem};

use bytes::{Buf as _, Bytes};

/// Chunks below this are copied behind the head of their frame: one slice costs less than three.
const COPIED: usize = 1 << 10;

/// Buffers above this are not kept for the next connection of the thread.
const KEPT: usize = 128 << 10;

/// Number of bytes of heads that may stay after they were written, while more are put behind them.
const COMPACTED: usize = 16 << 10;

/// Chunks, each behind so many bytes of the heads.
type Chunks = VecDeque<(usize, Bytes)>;

/// Output of a connection, in its order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    heads: Vec<u8>,
    /// Number of bytes of the heads that were written.
    written: usize,
    chunks: Chunks,
    length: usize,
}

thread_local! {
    /// Buffers of the connection that wrote last, which are still in the processor's cache.
    static SPARE: Cell<(Vec<u8>, Chunks)> = const { Cell::new((Vec::new(), Chunks::new())) };
}

impl Output {
    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    /// Appends what `put` writes.
    pub(crate) fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        if self.length == 0 && self.heads.capacity() == 0 {
            (self.heads, self.chunks) = SPARE.take();
        }
        let before = self.heads.len();
        put(&mut self.heads);
        self.length += self.heads.len() - before;
    }

    /// Appends a chunk. A head came before it.
    pub(crate) fn put_chunk(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        if chunk.len() < COPIED {
            self.heads.extend_from_slice(&chunk);
        } else {
            self.chunks.push_back((self.heads.len(), chunk));
        }
    }

    /// Sets as many slices as there are or have room, from the first byte on, and returns their number.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let ends = self.chunks.iter().map(|(at, chunk)| (*at, &**chunk));
        let mut from = self.written;
        let pieces = ends
            .chain([(self.heads.len(), &[][..])])
            .flat_map(|(at, chunk)| [&self.heads[mem::replace(&mut from, at)..at], chunk])
            .filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Notes that this many bytes were written.
    ///
    /// # Panics
    /// When there are fewer.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        assert!(bytes <= self.length, "more was written than there is");
        self.length -= bytes;
        if self.length == 0 {
            return self.give_back();
        }
        while let Some((at, chunk)) = self.chunks.front_mut() {
            let heads = *at - self.written;
            if bytes <= heads {
                break;
            }
            bytes -= heads;
            self.written = *at;
            if bytes < chunk.len() {
                chunk.advance(bytes);
                return self.compact();
            }
            bytes -= chunk.len();
            self.chunks.pop_front();
        }
        self.written += bytes;
        self.compact();
    }

    /// Drops heads that were written, so that an output that is never empty does not grow.
    fn compact(&mut self) {
        if self.written < COMPACTED || self.written < self.heads.len() / 2 {
            return;
        }
        self.heads.drain(..self.written);
        for (at, _) in &mut self.chunks {
            *at -= self.written;
        }
        self.written = 0;
    }

    /// Gives the buffers back to the thread.
    fn give_back(&mut self) {
        self.written = 0;
        self.heads.clear();
        self.chunks.clear();
        let (heads, chunks) = (mem::take(&mut self.heads), mem::take(&mut self.chunks));
        if heads.capacity() <= KEPT {
            SPARE.set((heads, chunks));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_put_is_written_in_order(
            pieces in proptest::collection::vec((0..20_usize, 0..3_000_usize), 0..20),
            writes in proptest::collection::vec((1..5_usize, 1..4_000_usize), 1..200),
        ) {
            let mut output = Output::default();
            let (mut expected, mut written) = (Vec::new(), Vec::new());
            let mut next = 0_u8;
            let mut byte = || { next = next.wrapping_add(1); next };
            for (head, chunk) in pieces {
                let head: Vec<u8> = (0..head).map(|_| byte()).collect();
                let chunk: Vec<u8> = (0..chunk).map(|_| byte()).collect();
                expected.extend_from_slice(&head);
                expected.extend_from_slice(&chunk);
                output.put(|out| out.extend_from_slice(&head));
                output.put_chunk(chunk.into());
            }
            for (count, bytes) in writes.into_iter().cycle() {
                prop_assert_eq!(output.len(), expected.len() - written.len());
                if output.len() == 0 {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); 5];
                let count = output.slices(&mut slices[..count]);
                prop_assert!(count > 0);
                let offered: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                let taken = bytes.min(offered.len());
                written.extend_from_slice(&offered[..taken]);
                output.advance(taken);
            }
            prop_assert_eq!(written, expected);
            prop_assert_eq!(output.heads.capacity(), 0);
        }
    }

    #[test]
    fn output_that_is_never_empty_does_not_grow() {
        let mut output = Output::default();
        output.put(|out| out.extend_from_slice(&[7; 100]));
        for _ in 0..10_000 {
            output.put(|out| out.extend_from_slice(&[7; 100]));
            output.put_chunk(Bytes::from_static(&[7; 2_000]));
            output.advance(2_100);
        }
        assert_eq!(output.len(), 100);
        assert!(
            output.heads.len() <= 2 * COMPACTED,
            "{}",
            output.heads.len()
        );
    }
}
