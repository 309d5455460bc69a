//! The tables of fields that a block may name by number (RFC 7541, section 2.3).

use std::collections::VecDeque;

use super::{TABLE_BYTES, error::InvalidBlock};

/// Size of a field in the dynamic table besides its bytes (RFC 7541, section 4.1).
const ENTRY_BYTES: usize = 32;

/// Fields that both ends know (RFC 7541, appendix A).
pub(super) static STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The table that the peer's encoder fills. Empty, it holds no memory.
///
/// The bytes of its fields lie one behind the other, the oldest first. With numbers of 16 bits for their places, a field
/// takes 6 bytes besides: less than the 32 that it counts.
#[derive(Debug)]
pub(super) struct DynamicTable {
    /// Names and values. Those before `begin` belong to fields that were evicted.
    bytes: Vec<u8>,
    begin: usize,
    /// The oldest is the first.
    entries: VecDeque<Entry>,
    /// Sum of what its fields count.
    size: usize,
    max_size: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u16,
    name: u16,
    value: u16,
}

impl Entry {
    fn bytes(self) -> usize {
        usize::from(self.name) + usize::from(self.value)
    }
}

impl DynamicTable {
    pub(super) const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            begin: 0,
            entries: VecDeque::new(),
            size: 0,
            max_size: TABLE_BYTES,
        }
    }

    /// Returns name and value of the field with this index, which begins behind the static table.
    fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let place = self.entries.len().checked_sub(index + 1)?;
        let entry = self.entries[place];
        let (_, from) = self.bytes.split_at(usize::from(entry.at));
        let (name, behind) = from.split_at(usize::from(entry.name));
        Some((name, &behind[..usize::from(entry.value)]))
    }

    /// Sets the largest size. Fields that have no room any more are evicted.
    ///
    /// # Errors
    /// When it is above what the settings allow (RFC 7541, section 6.3).
    pub(super) fn resize(&mut self, max_size: usize) -> Result<(), InvalidBlock> {
        if max_size > TABLE_BYTES {
            return Err(InvalidBlock);
        }
        self.max_size = max_size;
        self.evict(max_size);
        Ok(())
    }

    /// Adds a field, for which others are evicted. One that is larger than the table leaves it empty (RFC 7541, section 4.4).
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) {
        let bytes = name.len() + value.len();
        let size = bytes + ENTRY_BYTES;
        self.evict(self.max_size.saturating_sub(size));
        if size > self.max_size {
            return;
        }
        if self.bytes.len() + bytes > 2 * TABLE_BYTES {
            self.compact();
        }
        let needed = self.bytes.len() + bytes;
        if needed > self.bytes.capacity() {
            // A power of two up to the most that there is, which doubling any other size would go beyond.
            let room = needed.next_power_of_two();
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        self.entries.push_back(Entry {
            at: self.bytes.len() as u16,
            name: name.len() as u16,
            value: value.len() as u16,
        });
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.size += size;
    }

    /// Evicts the oldest fields until the others count no more than `size`.
    fn evict(&mut self, size: usize) {
        while self.size > size
            && let Some(entry) = self.entries.pop_front()
        {
            self.begin += entry.bytes();
            self.size -= entry.bytes() + ENTRY_BYTES;
        }
        if self.entries.is_empty() {
            self.bytes.clear();
            self.begin = 0;
        }
    }

    /// Moves the fields to the front of the bytes. There are 4,096 bytes of them at most, and as many were added since the
    /// last time.
    fn compact(&mut self) {
        self.bytes.drain(..self.begin);
        for entry in &mut self.entries {
            entry.at -= self.begin as u16;
        }
        self.begin = 0;
    }
}

/// Returns name and value of the field with this index, in the static table or behind it (RFC 7541, section 2.3.3).
pub(super) fn find(dynamic: &DynamicTable, index: usize) -> Result<(&[u8], &[u8]), InvalidBlock> {
    let index = index.checked_sub(1).ok_or(InvalidBlock)?;
    match STATIC.get(index) {
        Some((name, value)) => Ok((name.as_bytes(), value.as_bytes())),
        None => dynamic.get(index - STATIC.len()).ok_or(InvalidBlock),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The table as RFC 7541 describes it.
    #[derive(Default)]
    struct Model(VecDeque<(Vec<u8>, Vec<u8>)>);

    impl Model {
        fn evict(&mut self, size: usize) {
            while self
                .0
                .iter()
                .map(|(name, value)| name.len() + value.len() + 32)
                .sum::<usize>()
                > size
            {
                self.0.pop_back();
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(Vec<u8>, Vec<u8>),
        Resize(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (vec(any::<u8>(), 0..100), vec(any::<u8>(), 0..900)).prop_map(|(name, value)| Step::Add(name, value)),
            1 => vec(any::<u8>(), 4_000..4_200).prop_map(|name| Step::Add(name, Vec::new())),
            1 => (0..TABLE_BYTES).prop_map(Step::Resize),
            1 => Just(Step::Resize(TABLE_BYTES)),
        ]
    }

    proptest! {
        #[test]
        fn table_is_that_of_the_rfc(steps in vec(step(), 0..200)) {
            let mut table = DynamicTable::new();
            let (mut model, mut max_size) = (Model::default(), TABLE_BYTES);
            for step in steps {
                match step {
                    Step::Resize(size) => {
                        max_size = size;
                        model.evict(size);
                        table.resize(size).unwrap();
                    }
                    Step::Add(name, value) => {
                        table.add(&name, &value);
                        let size = name.len() + value.len() + 32;
                        model.evict(max_size.saturating_sub(size));
                        if size <= max_size {
                            model.0.push_front((name, value));
                        }
                    }
                }
                prop_assert!(table.bytes.capacity() <= 2 * TABLE_BYTES);
                for (index, (name, value)) in model.0.iter().enumerate() {
                    prop_assert_eq!(find(&table, 62 + index).unwrap(), (&**name, &**value));
                }
                prop_assert!(find(&table, 62 + model.0.len()).is_err());
            }
        }
    }

    #[test]
    fn index_of_no_field_and_size_above_the_settings_are_refused() {
        let mut table = DynamicTable::new();
        assert!(find(&table, 0).is_err());
        assert_eq!(find(&table, 61).unwrap().0, b"www-authenticate");
        assert!(find(&table, 62).is_err());
        assert!(table.resize(TABLE_BYTES + 1).is_err());
    }
}
