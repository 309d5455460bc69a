//! Text in files: the encodings that editors and shells give it.
//!
//! A byte order mark at the beginning is passed over, as Windows' editors write it. One in the middle, where files were
//! joined, would become part of a name or hide a certificate, so it is refused with its line. UTF-16, which PowerShell
//! writes by default, is named.

/// The byte order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The text of a file, without a byte order mark at its beginning.
///
/// # Errors
/// When it is not UTF-8, or contains a NUL. The error says where, and what to do.
pub(crate) fn text(content: &[u8]) -> Result<&str, String> {
    let content = without_mark(content)?;
    let text = std::str::from_utf8(content).map_err(|error| {
        let line = line_of(content, error.valid_up_to());
        format!("line {line}: not UTF-8 text: save it as UTF-8")
    })?;
    match text.find('\0') {
        Some(place) => Err(format!(
            "line {}: contains a NUL character: is it a text file?",
            line_of(content, place)
        )),
        None => Ok(text),
    }
}

/// The text of a file whose lines are read one by one: it has a byte order mark nowhere.
///
/// # Errors
/// As [`text`], and when there is a byte order mark that is not at the beginning.
pub(crate) fn lines_of_text(content: &[u8]) -> Result<&str, String> {
    let text = text(content)?;
    without_further_marks(text.as_bytes()).map(|_| text)
}

/// The contents of a file in PEM: without a byte order mark at its beginning, or anywhere.
///
/// # Errors
/// When it is UTF-16, there is a byte order mark that is not at the beginning, or a block is indented: such a block
/// would be skipped, and a chain or a list of authorities would lack it without a word.
pub(crate) fn pem(content: &[u8]) -> Result<&[u8], String> {
    let content = without_further_marks(without_mark(content)?)?;
    let mut lines = content.split(|byte| *byte == b'\n').enumerate();
    let is_indented = |line: &[u8]| {
        let bare = line.trim_ascii_start();
        bare.len() < line.len() && bare.starts_with(b"-----BEGIN")
    };
    match lines.find(|(_, line)| is_indented(line)) {
        Some((i, _)) => Err(format!(
            "line {}: the beginning of a block is indented: remove the white space before it",
            i + 1
        )),
        None => Ok(content),
    }
}

/// `content` without a byte order mark at its beginning.
///
/// # Errors
/// When it is UTF-16.
pub(crate) fn without_mark(content: &[u8]) -> Result<&[u8], String> {
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err("is UTF-16 text: save it as UTF-8".into());
    }
    Ok(content.strip_prefix(MARK).unwrap_or(content))
}

/// Whether `content` begins with a byte order mark, of any encoding.
pub(crate) fn has_mark(content: &[u8]) -> bool {
    without_mark(content).map_or(true, |rest| rest.len() < content.len())
}

/// Whether a character shows nothing, so that two names that look alike are different.
pub(crate) fn is_unseen(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}' | '\u{feff}')
        || character.is_control()
}

fn without_further_marks(content: &[u8]) -> Result<&[u8], String> {
    let mark = content
        .windows(MARK.len())
        .position(|window| window == MARK);
    match mark {
        Some(place) => Err(format!(
            "line {}: contains a byte order mark, as where files were joined: remove it",
            line_of(content, place)
        )),
        None => Ok(content),
    }
}

/// The line of a place in a text, from 1.
fn line_of(content: &[u8], place: usize) -> usize {
    let before = &content[..place];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_mark_is_passed_over_at_the_beginning_and_named_elsewhere() {
        assert_eq!(text(b"\xef\xbb\xbfa").unwrap(), "a");
        assert_eq!(text(b"a").unwrap(), "a");
        assert_eq!(pem(b"\xef\xbb\xbfa").unwrap(), b"a");
        for joined in [&b"a\n\xef\xbb\xbfb\n"[..], b"\xef\xbb\xbfa\n\xef\xbb\xbfb"] {
            assert!(lines_of_text(joined).unwrap_err().starts_with("line 2: "));
            assert!(pem(joined).unwrap_err().starts_with("line 2: "));
        }
        assert!(has_mark(b"\xef\xbb\xbfa") && has_mark(b"\xff\xfea\0") && !has_mark(b"a"));
    }

    #[test]
    fn indented_block_is_named() {
        let one = b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        let two = [&one[..], b"  ", one].concat();
        assert!(pem(one).is_ok());
        assert!(pem(&two).unwrap_err().starts_with("line 4: "));
    }

    #[test]
    fn other_encodings_are_named() {
        for utf_16 in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a"] {
            assert!(text(utf_16).unwrap_err().contains("UTF-16"));
            assert!(pem(utf_16).unwrap_err().contains("UTF-16"));
        }
        assert!(text(b"a\nb\xe9").unwrap_err().starts_with("line 2: "));
        assert!(text(b"a\n\nb\0").unwrap_err().starts_with("line 3: "));
    }
}
