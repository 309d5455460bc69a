//! Client ids that the server makes for clients that give none.
//!
//! Such an id is the only one that a principal may use without a rule, besides its own name, and its client gives it
//! again when it comes back, maybe to another server, or after a restart. That nobody can guess it is not enough:
//! everyone who publishes to the client, or lists clients, knows it. So the id itself says whose it is: it carries a
//! digest of its random bits and the name of its principal. The digest needs no key: to make an id fit, one would have
//! to find, and be given, a name that has 128 bits of a digest in common with another name.

use tidegate::ClientId;

use crate::digest::digest;

const PREFIX: &str = "anonymous-";

/// The digits of the random bits.
const RANDOM_DIGITS: usize = 16;

/// The id of these random bits for `principal`.
pub(super) fn make(principal: &str, random: u64) -> ClientId {
    let id = text(principal, &format!("{random:016x}"));
    ClientId::new(&id).expect("is one token of 58 bytes")
}

/// Whether `id` was made for `principal`.
pub(super) fn is_of(principal: &str, id: &ClientId) -> bool {
    let digits = id.as_str().strip_prefix(PREFIX);
    let random = digits.and_then(|digits| digits.get(..RANDOM_DIGITS));
    random.is_some_and(|random| id.as_str() == text(principal, random))
}

/// The id of random bits, which are written as `random`, for `principal`.
fn text(principal: &str, random: &str) -> String {
    let digest = digest(format!("client id {random} of {principal}").as_bytes());
    let half: [u8; 16] = digest[..16].try_into().expect("it has 32 bytes");
    format!("{PREFIX}{random}{:032x}", u128::from_be_bytes(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_id_is_of_one_principal_whatever_the_server() {
        let id = make("alice", 7);
        assert_eq!(
            id.as_str(),
            "anonymous-0000000000000007dc3c6aacdb40a68e26d4eabb14a974d8"
        );
        assert!(is_of("alice", &id));
        assert!(!is_of("bob", &id));
        for other in [
            "anonymous-0000000000000007",
            "anonymous-",
            "alice",
            "anonymous-ü000000000000007",
        ] {
            assert!(!is_of("alice", &ClientId::new(other).unwrap()), "{other}");
        }
    }
}
