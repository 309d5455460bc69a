//! A hash map that grows in pieces.
//!
//! A hash map that has no room left moves all of its entries, which under a lock is a wait for everybody that grows with the
//! number of entries. This one has a single table while it is small, and then 64, each of which grows by itself.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    mem,
};

/// How many tables a large map has.
const TABLES: usize = 64;

/// How many entries the single table may have before the map is divided. To move them takes 0.1 ms at 100 ns each. An
/// estimate.
const MAX_SINGLE: usize = 1_024;

/// A map of keys to values. See [the module](self).
#[derive(Debug)]
pub(crate) struct Shards<K, V> {
    /// One table, or as many as [`TABLES`].
    tables: Vec<HashMap<K, V>>,
    /// The hasher that decides the table of a key; each table hashes anew.
    hasher: RandomState,
    /// How many entries there are.
    len: usize,
}

impl<K: Hash + Eq, V> Shards<K, V> {
    /// An empty map.
    pub(crate) fn new() -> Self {
        Self {
            // Exactly one: most maps stay small.
            tables: Vec::from([HashMap::new()]),
            hasher: RandomState::new(),
            len: 0,
        }
    }

    /// How many entries there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The value of `key`.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.tables[self.table(key)].get(key)
    }

    /// The key that is equal to `key`.
    pub(crate) fn get_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        let entry = self.tables[self.table(key)].get_key_value(key);
        entry.map(|(key, _)| key)
    }

    /// As [`get`](Self::get), to change it.
    pub(crate) fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let table = self.table(key);
        self.tables[table].get_mut(key)
    }

    /// Adds an entry, whose key is not there.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.len == MAX_SINGLE && self.tables.len() == 1 {
            self.divide();
        }
        let table = self.table(&key);
        self.tables[table].insert(key, value);
        self.len += 1;
    }

    /// Removes an entry, and gives memory back if few are left.
    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
    {
        let at = self.table(key);
        let table = &mut self.tables[at];
        let removed = table.remove_entry(key)?;
        self.len -= 1;
        // At an eighth and not at once: a table whose size goes up and down does not move its entries each time.
        if table.len() < table.capacity() / 8 {
            table.shrink_to_fit();
        }
        if self.len == 0 {
            self.tables = Vec::from([HashMap::new()]);
        }
        Some(removed)
    }

    /// All entries, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.tables.iter().flatten()
    }

    /// Makes the tables of a large map.
    fn divide(&mut self) {
        let single = mem::replace(
            &mut self.tables,
            (0..TABLES).map(|_| HashMap::new()).collect(),
        );
        for (key, value) in single.into_iter().flatten() {
            let table = self.table(&key);
            self.tables[table].insert(key, value);
        }
    }

    /// The table of a key.
    fn table<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        if self.tables.len() == 1 {
            return 0;
        }
        // A remainder of 64 is a number of that size.
        (self.hasher.hash_one(key) % TABLES as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_is_a_map_of_any_size() {
        let mut shards = Shards::new();
        let mut map = BTreeMap::new();
        for i in 0..4_000u64 {
            shards.insert(i, i * 2);
            map.insert(i, i * 2);
            if i % 3 == 0 {
                assert_eq!(
                    shards.remove(&(i / 2)).is_some(),
                    map.remove(&(i / 2)).is_some()
                );
            }
        }
        assert_eq!(shards.len(), map.len());
        assert_eq!(shards.tables.len(), TABLES);
        assert!(shards.iter().collect::<BTreeMap<_, _>>() == map.iter().collect());
        for i in 0..4_000 {
            assert_eq!(shards.get(&i), map.get(&i));
            assert_eq!(shards.remove(&i), map.remove(&i).map(|value| (i, value)));
        }
        assert_eq!((shards.len(), shards.tables.len()), (0, 1));
    }
}
