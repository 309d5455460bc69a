//! Tokens that were found good, and from where.
//!
//! Beyond the rate of bad credentials from an address only such are looked at from there: whoever shares the address
//! with an attacker keeps what it has, over new connections too, and the attacker gets no more guesses than the rate.

use std::{
    collections::HashSet,
    mem,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{address::network_of, digest::Digest};

/// How many are remembered at least; at most it is twice as many, of some 64 bytes each.
const MOST: usize = 16_384;

/// Tokens that were found good. Those that were not used for longest are forgotten first.
#[derive(Debug, Default)]
pub(crate) struct FoundGood(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<(IpAddr, Digest)>,
    old: HashSet<(IpAddr, Digest)>,
}

impl FoundGood {
    pub(crate) fn has(&self, address: IpAddr, token: Digest) -> bool {
        let key = (network_of(address), token);
        let generations = self.generations();
        generations.young.contains(&key) || generations.old.contains(&key)
    }

    pub(crate) fn add(&self, address: IpAddr, token: Digest) {
        let mut generations = self.generations();
        if generations.young.len() >= MOST {
            generations.old = mem::take(&mut generations.young);
        }
        generations.young.insert((network_of(address), token));
    }

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
    fn a_token_is_known_from_where_it_was_good_and_the_number_is_bounded() {
        let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let found_good = FoundGood::default();
        found_good.add(here, token(0));
        assert!(found_good.has(here, token(0)) && !found_good.has(there, token(0)));
        for i in 1..=2 * MOST {
            found_good.add(here, token(i));
        }
        assert!(!found_good.has(here, token(0)) && found_good.has(here, token(2 * MOST)));
        let generations = found_good.generations();
        assert!(generations.young.len() + generations.old.len() <= 2 * MOST);
        drop(generations);
        found_good.remove(here, token(2 * MOST));
        assert!(!found_good.has(here, token(2 * MOST)));
    }
}
