//! The static Huffman code (RFC 7541, section 5.2).
//!
//! The code is canonical: among codes of one length, a greater symbol has the next code, and shorter codes come first. So
//! the lengths of appendix B say everything, and the tables are made of them when this is compiled.

use super::error::InvalidBlock;

/// Symbol that ends a string. It is never sent as a whole, only its beginning as padding.
const END: u16 = 256;

/// Length of the longest code.
const LONGEST: usize = 30;

/// Codes up to this length are looked up at once.
const SHORT: usize = 8;

/// Length of each symbol's code, in bits (RFC 7541, appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Tables that decode the code.
struct Tables {
    /// Symbol and length of the short code that begins with these eight bits. Length 0: the code is longer.
    short: [(u8, u8); 1 << SHORT],
    /// For each length, the first window of 32 bits that no code of this length or a shorter one begins.
    bounds: [u64; LONGEST + 1],
    /// For each length, its first code.
    first: [u32; LONGEST + 1],
    /// For each length, the place of its first code's symbol.
    places: [u16; LONGEST + 1],
    /// The symbols in the order of their codes.
    symbols: [u16; LENGTHS.len()],
}

static TABLES: Tables = Tables::new();

impl Tables {
    const fn new() -> Self {
        let mut tables = Self {
            short: [(0, 0); 1 << SHORT],
            bounds: [0; LONGEST + 1],
            first: [0; LONGEST + 1],
            places: [0; LONGEST + 1],
            symbols: [0; LENGTHS.len()],
        };
        let (mut code, mut place, mut length) = (0_u32, 0, 1);
        while length <= LONGEST {
            tables.first[length] = code;
            tables.places[length] = place as u16;
            let mut symbol = 0;
            while symbol < LENGTHS.len() {
                if LENGTHS[symbol] as usize == length {
                    tables.symbols[place] = symbol as u16;
                    tables.add_short(symbol, length, code);
                    place += 1;
                    code += 1;
                }
                symbol += 1;
            }
            tables.bounds[length] = (code as u64) << (32 - length);
            code <<= 1;
            length += 1;
        }
        tables
    }

    const fn add_short(&mut self, symbol: usize, length: usize, code: u32) {
        if length > SHORT {
            return;
        }
        let free = SHORT - length;
        let mut low = 0;
        while low < 1 << free {
            self.short[(code << free | low) as usize] = (symbol as u8, length as u8);
            low += 1;
        }
    }

    /// Returns the symbol whose code begins a window of 32 bits, and the code's length.
    #[inline]
    fn find(&self, window: u32) -> (u16, u32) {
        let (symbol, length) = self.short[(window >> (32 - SHORT)) as usize];
        if length > 0 {
            return (u16::from(symbol), u32::from(length));
        }
        let mut length = SHORT + 1;
        // The bound of the longest is beyond every window.
        while u64::from(window) >= self.bounds[length] {
            length += 1;
        }
        let code = window >> (32 - length);
        let place = self.places[length] as usize + (code - self.first[length]) as usize;
        (self.symbols[place], length as u32)
    }
}

/// Appends the decoded string, which is at most 8/5 as long as the coded one.
///
/// # Errors
/// When padding is longer than seven bits or not the beginning of the symbol that ends a string, or when that symbol is in
/// the string (RFC 7541, section 5.2).
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), InvalidBlock> {
    let mut rest = coded.iter();
    // The next bits, from the highest on, and how many they are.
    let (mut bits, mut count) = (0_u64, 0_u32);
    loop {
        while count <= 56
            && let Some(byte) = rest.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        // Behind the end there are ones, so that padding begins the symbol that ends a string.
        let behind = u32::MAX.checked_shr(count).unwrap_or(0);
        let window = (bits >> 32) as u32 | behind;
        let (symbol, length) = TABLES.find(window);
        if length > count {
            let is_padding = count < 8 && window == u32::MAX;
            return if is_padding {
                Ok(())
            } else {
                Err(InvalidBlock)
            };
        }
        if symbol == END {
            return Err(InvalidBlock);
        }
        out.push(symbol as u8);
        bits <<= length;
        count -= length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Codes by the definition of the code, one bit after the other.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for symbol in text {
            let (code, length) = code(usize::from(*symbol));
            bits.extend((0..length).rev().map(|at| code >> at & 1));
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        bits.chunks(8)
            .map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | *bit as u8))
            .collect()
    }

    fn code(symbol: usize) -> (u32, u32) {
        let length = usize::from(LENGTHS[symbol]);
        let place = TABLES
            .symbols
            .iter()
            .position(|found| usize::from(*found) == symbol);
        let code = TABLES.first[length] as usize + place.unwrap() - TABLES.places[length] as usize;
        (code as u32, length as u32)
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, InvalidBlock> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    /// Some codes of RFC 7541, appendix B.
    #[test]
    fn codes_are_those_of_the_rfc() {
        for (symbol, expected) in [
            (usize::from(b'0'), (0x0, 5)),
            (usize::from(b'a'), (0x3, 5)),
            (usize::from(b' '), (0x14, 6)),
            (usize::from(b'Z'), (0xfd, 8)),
            (usize::from(b'!'), (0x3f8, 10)),
            (0, (0x1ff8, 13)),
            (usize::from(b'\\'), (0x7fff0, 19)),
            (220, (0xfff_fffd, 28)),
            (usize::from(b'\n'), (0x3fff_fffc, 30)),
            (usize::from(END), (0x3fff_ffff, 30)),
        ] {
            assert_eq!(code(symbol), expected, "{symbol}");
        }
    }

    /// Strings of RFC 7541, sections C.4 and C.6.
    #[test]
    fn strings_of_the_rfc() {
        for (coded, text) in [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (
                &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf],
                "custom-value",
            ),
            (&[0x64, 0x02], "302"),
            (
                &[
                    0x9d, 0x29, 0xad, 0x17, 0x18, 0x63, 0xc7, 0x8f, 0x0b, 0x97, 0xc8, 0xe9, 0xae,
                    0x82, 0xae, 0x43, 0xd3,
                ],
                "https://www.example.com",
            ),
        ] {
            assert_eq!(decoded(coded).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn padding_that_is_too_long_or_wrong_is_refused() {
        for coded in [
            // Eight bits and more of padding.
            &[0xff][..],
            &[0x1f, 0xff],
            // Zeros.
            &[0x18],
            // A code that is cut.
            &[0xff, 0xfe],
            // The symbol that ends a string.
            &[0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(decoded(coded).is_err(), "{coded:?}");
        }
        assert_eq!(decoded(&[]).unwrap(), b"");
        assert_eq!(decoded(&[0x1f]).unwrap(), b"a");
    }

    proptest! {
        #[test]
        fn every_string_is_decoded(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let coded = encode(&text);
            prop_assert!(text.len() * 5 <= coded.len() * 8);
            prop_assert_eq!(decoded(&coded).unwrap(), text);
        }
    }
}
