//! Positions as scenario files and lines of output write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, de};
use tidegate_proto::v1;

/// The epoch of a stream whose scenario names no other: the largest that a double holds, so that a client that cuts it
/// to 32 bits, or that rounds it, is noticed.
pub const EPOCH: u64 = (1 << 53) - 9;

/// The place after which a client resumes.
///
/// It is written as `EPOCH:SEQUENCE`, the epoch as 16 hexadecimal digits, like `tidegate sub --resume` takes it. In
/// scenario files an integer alone is a sequence of [`EPOCH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The sequence space that `sequence` belongs to.
    pub epoch: u64,
    /// The last sequence that is settled.
    pub sequence: u64,
}

/// A position in a scenario, or its absence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum At {
    /// No position: `"none"`.
    #[default]
    Nowhere,
    /// This one.
    Position(Position),
}

/// The positions that a request may carry: one, or any of several.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Allowed {
    /// Exactly this.
    One(At),
    /// Any of these.
    AnyOf(Vec<At>),
}

impl At {
    /// Returns the position as messages carry it.
    pub fn on_the_wire(self) -> Option<v1::Position> {
        match self {
            Self::Nowhere => None,
            Self::Position(position) => Some(position.into()),
        }
    }
}

impl From<Option<v1::Position>> for At {
    fn from(position: Option<v1::Position>) -> Self {
        position.map_or(Self::Nowhere, |position| {
            Self::Position(Position {
                epoch: position.epoch,
                sequence: position.sequence,
            })
        })
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

impl Allowed {
    /// Whether a request may carry this.
    pub fn contains(&self, at: At) -> bool {
        match self {
            Self::One(one) => *one == at,
            Self::AnyOf(all) => all.contains(&at),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(one) => one.fmt(f),
            Self::AnyOf(all) => {
                let all: Vec<_> = all.iter().map(ToString::to_string).collect();
                f.write_str(&all.join(" or "))
            }
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("none"),
            Self::Position(position) => position.fmt(f),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.epoch, self.sequence)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once(':').and_then(|(epoch, sequence)| {
            let epoch = u64::from_str_radix(epoch, 16).ok()?;
            Some((epoch, sequence.parse().ok()?))
        });
        let (epoch, sequence) = parts.ok_or_else(|| {
            format!("{text:?} is no position: write a sequence, \"EPOCH:SEQUENCE\" or \"none\"")
        })?;
        Ok(Self { epoch, sequence })
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AtVisitor)
    }
}

struct AtVisitor;

impl de::Visitor<'_> for AtVisitor {
    type Value = At;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence, \"EPOCH:SEQUENCE\" or \"none\"")
    }

    fn visit_i64<E: de::Error>(self, sequence: i64) -> Result<At, E> {
        let sequence = u64::try_from(sequence).map_err(E::custom)?;
        self.visit_u64(sequence)
    }

    fn visit_u64<E: de::Error>(self, sequence: u64) -> Result<At, E> {
        let epoch = EPOCH;
        Ok(At::Position(Position { epoch, sequence }))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<At, E> {
        match text {
            "none" => Ok(At::Nowhere),
            text => text.parse().map(At::Position).map_err(E::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_survives_a_double() {
        assert_eq!(EPOCH as f64 as u64, EPOCH);
    }

    #[test]
    fn position_is_read_as_it_is_written() {
        let position = Position {
            epoch: EPOCH,
            sequence: 17,
        };
        assert_eq!(position.to_string(), "001ffffffffffff7:17");
        assert_eq!(position.to_string().parse(), Ok(position));
        for bad in ["", "17", "x:1", "1:x", "1:-1"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
