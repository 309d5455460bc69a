//! Integers with a prefix (RFC 7541, section 5.1).

use super::error::InvalidBlock;

/// Integers above this are refused: nothing that is decoded here counts or measures as much.
const MAX: usize = 1 << 24;

/// Takes an integer from the front of `bytes`. The low `prefix` bits of the first byte begin it, and the others are
/// ignored.
pub(super) fn take(bytes: &mut &[u8], prefix: u32) -> Result<usize, InvalidBlock> {
    let (first, mut rest) = bytes.split_first().ok_or(InvalidBlock)?;
    let full = (1 << prefix) - 1;
    let mut value = usize::from(*first) & full;
    if value == full {
        let mut shift = 0;
        loop {
            let (byte, behind) = rest.split_first().ok_or(InvalidBlock)?;
            rest = behind;
            value += usize::from(byte & 0x7f) << shift;
            // Bytes that add nothing could go on forever.
            if value > MAX || shift > 21 {
                return Err(InvalidBlock);
            }
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
        }
    }
    *bytes = rest;
    Ok(value)
}

/// Appends an integer whose first byte has `pattern` in the bits above its `prefix`.
pub(super) fn put(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let full = (1_usize << prefix) - 1;
    if value < full {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of RFC 7541, section C.1.
    #[test]
    fn examples_of_the_rfc() {
        for (coded, prefix, value) in [
            (&[0b1010_1010][..], 5, 10),
            (&[0b0001_1111, 0b1001_1010, 0b0000_1010], 5, 1_337),
            (&[0b0010_1010], 8, 42),
        ] {
            let mut rest = coded;
            assert_eq!(take(&mut rest, prefix).unwrap(), value);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn integer_that_is_cut_or_too_large_is_refused() {
        for coded in [
            &[][..],
            &[0xff],
            &[0xff, 0x80],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f],
            &[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
        ] {
            assert!(take(&mut &*coded, 7).is_err(), "{coded:?}");
        }
    }

    proptest! {
        #[test]
        fn integer_is_taken_as_it_was_put(value in 0..=MAX, prefix in 1..=8_u32) {
            let mut coded = Vec::new();
            put(&mut coded, 0, prefix, value);
            coded.push(7);
            let mut rest = &*coded;
            prop_assert_eq!(take(&mut rest, prefix).unwrap(), value);
            prop_assert_eq!(rest, [7]);
        }
    }
}
