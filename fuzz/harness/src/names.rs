//! Topics, filters and client ids.

use tidegate::{ClientId, Filter, Topic};

/// Parses two lines as names of every kind, and matches them against each other.
///
/// # Panics
/// If a name differs from its text, or a match differs from the naive match of the tokens.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
    for name in [first, second] {
        if let Ok(id) = ClientId::new(name) {
            assert_eq!(id.as_str(), name);
            let own = Topic::for_client(&id);
            assert!(own.is_reserved());
            assert!(!Filter::everything().matches(&own));
        }
    }
    for (pattern, name) in [(first, second), (second, first), (first, first)] {
        let (Ok(filter), Ok(topic)) = (Filter::new(pattern), Topic::new(name)) else {
            continue;
        };
        assert_eq!((filter.as_str(), topic.as_str()), (pattern, name));
        assert_eq!(
            filter.matches(&topic),
            by_tokens(pattern, name),
            "{pattern} {name}"
        );
    }
}

/// Whether a filter matches a topic: a naive second implementation of the protocol's rules.
fn by_tokens(pattern: &str, name: &str) -> bool {
    if name.starts_with('$') && pattern.starts_with(['*', '>']) {
        return false;
    }
    let (mut wanted, mut tokens) = (pattern.split('.'), name.split('.'));
    loop {
        match (wanted.next(), tokens.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
}
