//! Tokens that were accepted, and the addresses that they came from.
//!
//! Beyond the rate of bad credentials from an address, only its known tokens are verified. So a client that shares an
//! address with an attacker keeps its access, over new connections too, and the attacker gets no more guesses than the
//! rate.

use std::{
    collections::HashSet,
    mem,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{address::network_of, digest::Digest};

/// The tokens of one generation: at least so many are remembered, and at most twice as many, of about 64 bytes each.
const GENERATION: usize = 16_384;

/// Tokens that were accepted. Those that were verified longest ago are forgotten first.
#[derive(Debug, Default)]
pub(crate) struct KnownTokens(Mutex<Generations>);

/// Two sets, of which the old one is dropped as a whole: no token needs a time of its last use.
#[derive(Debug, Default)]
struct Generations {
    young: HashSet<(IpAddr, Digest)>,
    old: HashSet<(IpAddr, Digest)>,
}

impl KnownTokens {
    /// Whether the token was accepted from this address.
    pub(crate) fn contains(&self, address: IpAddr, token: Digest) -> bool {
        let key = (network_of(address), token);
        let generations = self.generations();
        generations.young.contains(&key) || generations.old.contains(&key)
    }

    /// Adds a token that was accepted from this address.
    pub(crate) fn insert(&self, address: IpAddr, token: Digest) {
        let mut generations = self.generations();
        if generations.young.len() >= GENERATION {
            generations.old = mem::take(&mut generations.young);
        }
        generations.young.insert((network_of(address), token));
    }

    /// Removes a token that is not accepted any more.
    pub(crate) fn remove(&self, address: IpAddr, token: Digest) {
        let key = (network_of(address), token);
        let mut generations = self.generations();
        generations.young.remove(&key);
        generations.old.remove(&key);
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(i: usize) -> Digest {
        let mut token = Digest::default();
        token[..8].copy_from_slice(&i.to_be_bytes());
        token
    }

    #[test]
    fn a_token_is_known_from_its_network_and_their_number_is_bounded() {
        let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let known_tokens = KnownTokens::default();
        known_tokens.insert(here, token(0));
        assert!(known_tokens.contains(here, token(0)) && !known_tokens.contains(there, token(0)));
        for i in 1..=2 * GENERATION {
            known_tokens.insert(here, token(i));
        }
        assert!(
            !known_tokens.contains(here, token(0))
                && known_tokens.contains(here, token(2 * GENERATION))
        );
        let generations = known_tokens.generations();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
        drop(generations);
        known_tokens.remove(here, token(2 * GENERATION));
        assert!(!known_tokens.contains(here, token(2 * GENERATION)));
    }
}
