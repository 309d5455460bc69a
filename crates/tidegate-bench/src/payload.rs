//! The head of a benchmark's payload: the time at which the event was due, and its number.

/// Size of the head in bytes. The rest of a payload is zeros.
pub const HEAD: usize = 16;

/// The head of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The time at which the event was due, on the [`Clock`](crate::Clock) of the run, in nanoseconds. A late publisher
    /// does not change it, so that its lateness counts as latency.
    pub due: u64,
    /// The number of the event among those of its publisher, from 0.
    pub number: u64,
}

// ===== impl Head =====

impl Head {
    /// Encodes the head.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(&self.due.to_le_bytes());
        bytes[8..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// Decodes the head of `payload`. `None` if the payload is shorter than [`HEAD`].
    #[must_use]
    pub fn of(payload: &[u8]) -> Option<Self> {
        let (due, rest) = payload.split_first_chunk()?;
        let number = rest.first_chunk()?;
        Some(Self {
            due: u64::from_le_bytes(*due),
            number: u64::from_le_bytes(*number),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let head = Head {
            due: 1 << 50,
            number: 7,
        };
        let mut payload = head.to_bytes().to_vec();
        assert_eq!(Head::of(&payload), Some(head));
        payload.push(9);
        assert_eq!(Head::of(&payload), Some(head));
        assert_eq!(Head::of(&payload[..15]), None);
    }
}
