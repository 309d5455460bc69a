//! Positions, as a program stores them and passes them on.

use std::{fmt, str::FromStr};

use tidegate_proto::v1;

/// A place in a server's sequence of events, from which a subscription with any filters can resume.
///
/// Its text is `EPOCH:SEQUENCE`: the epoch as 16 lower-case hexadecimal digits, the sequence as a decimal number.
/// [`Display`](fmt::Display) writes exactly this form, and [`FromStr`] accepts no other.
///
/// ```
/// let position: tidegate_client::Position = "00000000000000ff:42".parse()?;
/// assert_eq!((position.epoch, position.sequence), (255, 42));
/// assert_eq!(position.to_string(), "00000000000000ff:42");
/// # Ok::<(), tidegate_client::ParsePositionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Identity of the sequence space. Sequences of different epochs cannot be compared: a restarted server counts
    /// anew.
    pub epoch: u64,
    /// The last event before this position, whether it matches or not. 0: before the first event.
    pub sequence: u64,
}

/// The text is not `EPOCH:SEQUENCE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a position is EPOCH:SEQUENCE, the epoch as 16 lower-case hexadecimal digits, the sequence as a number"
)]
pub struct ParsePositionError(());

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.epoch, self.sequence)
    }
}

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (epoch, sequence) = text.split_once(':')?;
            let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            let well_formed = epoch.len() == 16
                && epoch.bytes().all(hex)
                && sequence.bytes().all(|b| b.is_ascii_digit());
            if !well_formed {
                return None;
            }
            Some(Self {
                epoch: u64::from_str_radix(epoch, 16).ok()?,
                sequence: sequence.parse().ok()?,
            })
        };
        parse().ok_or(ParsePositionError(()))
    }
}

impl From<v1::Position> for Position {
    fn from(position: v1::Position) -> Self {
        Self {
            epoch: position.epoch,
            sequence: position.sequence,
        }
    }
}

impl From<Position> for v1::Position {
    fn from(position: Position) -> Self {
        Self {
            epoch: position.epoch,
            sequence: position.sequence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for position in [
            Position {
                epoch: 0,
                sequence: 0,
            },
            Position {
                epoch: u64::MAX,
                sequence: u64::MAX,
            },
        ] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
    }

    #[test]
    fn only_the_one_form_is_accepted() {
        for text in [
            "",
            "12",
            "ff:1",
            "0x000000000000ff:1",
            "00000000000000FF:1",
            "00000000000000ff:",
            "00000000000000ff:+1",
            "00000000000000ff:-1",
            "00000000000000ff:18446744073709551616",
            "+0000000000000ff:1",
            "00000000000000ff:1 ",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text:?}");
        }
    }
}
