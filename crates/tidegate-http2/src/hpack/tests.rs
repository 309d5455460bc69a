//! Blocks of RFC 7541, appendix C, and what the encoder writes, decoded again.

use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::{error::InvalidBlock, *};

type Fields = Vec<(String, String)>;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, InvalidBlock> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = Vec::new();
    decoder.decode(block, |field| {
        fields.push((text(field.name), text(field.value)));
        Ok::<_, InvalidBlock>(())
    })?;
    Ok(fields)
}

fn fields(expected: &[(&str, &str)]) -> Fields {
    expected
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Sections C.3 and C.4: three requests, without and with Huffman codes.
#[test]
fn requests_of_the_rfc() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let huffman = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    let expected = [
        fields(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
        ]),
        fields(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
            ("cache-control", "no-cache"),
        ]),
        fields(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ]),
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new();
        for (block, expected) in blocks.iter().zip(&expected) {
            assert_eq!(decoded(&mut decoder, &bytes(block)).unwrap(), *expected);
        }
    }
}

/// Sections C.5 and C.6: three responses with a table of 256 bytes, in which fields are evicted.
#[test]
fn responses_of_the_rfc() {
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 54\
         6e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f\
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b\
         2076 6572 7369 6f6e 3d31",
    ];
    let huffman = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7\
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335\
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    let location = ("location", "https://www.example.com");
    let expected = [
        fields(&[
            (":status", "302"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            location,
        ]),
        fields(&[
            (":status", "307"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            location,
        ]),
        fields(&[
            (":status", "200"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
            location,
            ("content-encoding", "gzip"),
            (
                "set-cookie",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ]),
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new();
        // The size of the table, 256.
        assert_eq!(decoded(&mut decoder, &bytes("3fe1 01")).unwrap(), []);
        for (block, expected) in blocks.iter().zip(&expected) {
            assert_eq!(decoded(&mut decoder, &bytes(block)).unwrap(), *expected);
        }
    }
}

/// Section C.2: fields by each of the representations.
#[test]
fn fields_of_the_rfc() {
    for (block, field, is_sensitive, is_added) in [
        (
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            ("custom-key", "custom-header"),
            false,
            true,
        ),
        (
            "040c 2f73 616d 706c 652f 7061 7468",
            (":path", "/sample/path"),
            false,
            false,
        ),
        (
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            ("password", "secret"),
            true,
            false,
        ),
        ("82", (":method", "GET"), false, false),
    ] {
        let mut decoder = Decoder::new();
        decoder
            .decode(&bytes(block), |found| {
                assert_eq!(found.is_sensitive, is_sensitive);
                Ok::<_, InvalidBlock>(())
            })
            .unwrap();
        assert_eq!(
            decoded(&mut Decoder::new(), &bytes(block)).unwrap(),
            fields(&[field])
        );
        // Whether the first index behind the static table names it.
        assert_eq!(decoded(&mut decoder, &bytes("be")).is_ok(), is_added);
    }
}

#[test]
fn block_that_breaks_a_rule_is_refused() {
    for (block, rule) in [
        ("80", "index 0"),
        ("be", "index of an empty table"),
        ("3fe2 1f", "size above the settings"),
        ("8220", "size behind a field"),
        ("4001", "name that is cut"),
        ("0001 7805 61", "value that is cut"),
        ("00", "no name"),
        ("0f", "integer that is cut"),
    ] {
        assert_eq!(
            decoded(&mut Decoder::new(), &bytes(block)),
            Err(InvalidBlock),
            "{rule}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            let _ = decoded(&mut decoder, &block);
        }
    }

    #[test]
    fn encoded_fields_are_decoded(
        status in 100..1_000_u16,
        list in proptest::collection::vec(("[a-z][a-z0-9-]{0,30}", "[ -~]{0,200}", any::<bool>()), 0..10),
        peer_tables in proptest::collection::vec(0..10_000_u32, 0..3),
    ) {
        let mut encoder = Encoder::default();
        for bytes in peer_tables {
            encoder.set_peer_table(bytes);
        }
        let mut headers = HeaderMap::new();
        for (name, value, is_sensitive) in &list {
            let mut value = HeaderValue::from_str(value).unwrap();
            value.set_sensitive(*is_sensitive);
            headers.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        let status = StatusCode::from_u16(status).unwrap();
        let block = encoder.encode(Some(status), &headers);
        let mut expected = vec![(b":status".to_vec(), status.as_str().as_bytes().to_vec(), false)];
        expected.extend(headers.iter().map(|(name, value)| {
            (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec(), value.is_sensitive())
        }));
        let mut found = Vec::new();
        Decoder::new()
            .decode(&block, |field| {
                found.push((field.name.to_vec(), field.value.to_vec(), field.is_sensitive));
                Ok::<_, InvalidBlock>(())
            })
            .unwrap();
        prop_assert_eq!(found, expected);
    }
}
