//! The search for the setting that a wrong name means.
//!
//! One measure serves all sources, because flags and variables are made of the same words as keys: `--max-filters` and
//! `TIDEGATE_MAX_FILTERS` both have the words of `limits.max_filters`, less one.

use strsim::osa_distance;

use super::{setting::Setting, table::SETTINGS};

impl Setting {
    /// The setting whose key has the words of `name`, or most of them, whatever stands between the words.
    #[must_use]
    pub fn nearest(name: &str) -> Option<&'static Self> {
        Self::of(nearest(name, SETTINGS.iter().map(|setting| setting.key))?)
    }
}

/// The candidate that comes nearest to `name`: it has more than half of its words, lacks the fewest of them, has the
/// fewest others, and differs in the fewest letters, in this order.
pub(super) fn nearest(
    name: &str,
    names: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let wanted = words(name);
    let by_distance = names.filter_map(|candidate| {
        let found = words(candidate);
        // Words that run together, as in `memorybudget`, match none of the candidate's.
        let lacking = match wanted.concat() == found.concat() {
            true => 0,
            false => words_without_match(&wanted, &found),
        };
        let others = words_without_match(&found, &wanted);
        let letters = osa_distance(&wanted.join("."), &found.join("."));
        (lacking * 2 < wanted.len()).then_some(((lacking, others, letters), candidate))
    });
    by_distance.min().map(|(_, candidate)| candidate)
}

/// The words of a name, in lower case.
pub(super) fn words(name: &str) -> Vec<String> {
    name.split(['.', '_', '-']).map(str::to_lowercase).collect()
}

/// The number of `words` that come near none of `others`.
fn words_without_match(words: &[String], others: &[String]) -> usize {
    let has_match = |word: &&String| others.iter().any(|other| is_near(word, other));
    words.len() - words.iter().filter(has_match).count()
}

/// Whether two words differ by no more than a slip of the keyboard, or a plural: one letter, or two that changed places,
/// in words of three to six letters, two of these in those of seven to ten.
pub(super) fn is_near(word: &str, other: &str) -> bool {
    osa_distance(word, other) <= (word.len().min(other.len()) + 1) / 4
}
