//! Bisection over numbers.

/// Returns the first number above `with` for which `holds` is false, given that it is true for `with`, false for `without`, and
/// false for all behind the first. Neither of the two is asked.
pub(crate) fn first_without(mut with: u64, mut without: u64, holds: impl Fn(u64) -> bool) -> u64 {
    while with + 1 < without {
        let middle = with + (without - with) / 2;
        if holds(middle) {
            with = middle;
        } else {
            without = middle;
        }
    }
    without
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_that_does_not_hold_is_found() {
        for first in 1..=10 {
            assert_eq!(first_without(0, 10, |number| number < first), first);
        }
        assert_eq!(first_without(7, 8, |_| unreachable!()), 8);
    }
}
