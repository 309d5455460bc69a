//! Rules: the rights of principals.
//!
//! # Deny by default
//! A topic is denied unless a rule allows it, and a rule that denies it outweighs every rule that allows it. For a
//! subscription, each filter must lie wholly within the union of the allowed patterns, and must have no topic in common
//! with a denied one.
//!
//! # Clients
//! An event for the client `c` alone has the topic `$client.c`. Publishing it needs a right like any other topic, but
//! only the patterns `$client.c` and `$client.*` contain it. A principal may use the client id `c` if it may subscribe
//! to `$client.c`. It may use the client id that is its own name without a rule, unless a rule denies it.

use serde::Deserialize;
use tidegate::{ClientId, Filter, Topic, TopicSet};

use crate::text;

/// The name in a rule that stands for all principals.
const EVERYONE: &str = "*";

/// The rights of some principals. A rule allows nothing that it does not name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Rule {
    /// The names of the principals. `*` stands for all principals. Default: none.
    pub principals: Vec<String>,
    /// The topics that they may publish to. Default: none.
    pub publish: Grant,
    /// The topics that they may subscribe to. Default: none.
    pub subscribe: Grant,
    /// Whether they may call methods for administrators: those of `tidegate.v1.AdminService`. Default: false.
    pub admin: bool,
}

/// Topics that are allowed, and topics that are denied. A topic in both is denied.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Grant {
    /// The allowed topics. Default: none.
    #[serde(deserialize_with = "patterns")]
    pub allow: TopicSet,
    /// The denied topics. Default: none.
    #[serde(deserialize_with = "patterns")]
    pub deny: TopicSet,
}

/// The rights of one principal: all rules about it together.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rights {
    publish: Grant,
    subscribe: Grant,
    admin: bool,
}

/// All rules.
#[derive(Debug, Default)]
pub(crate) struct Rules(Vec<Rule>);

/// A file of rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    #[serde(default)]
    rule: Vec<Rule>,
}

// ===== impl Rules =====

impl Rules {
    /// Parses the text of a rule file, in TOML, and appends its rules to `rules`.
    ///
    /// # Errors
    /// The fault, with its line.
    pub(crate) fn parse(text: &[u8], mut rules: Vec<Rule>) -> Result<Self, String> {
        let file: RuleFile =
            toml::from_str(text::text(text)?).map_err(|error| error.to_string())?;
        file.rule.iter().try_for_each(Rule::check)?;
        rules.extend(file.rule);
        Ok(Self(rules))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rights of `principal`.
    pub(crate) fn rights_of(&self, principal: &str) -> Rights {
        let mut rights = Rights::default();
        for rule in self.0.iter().filter(|rule| rule.is_about(principal)) {
            rights.publish.extend(&rule.publish);
            rights.subscribe.extend(&rule.subscribe);
            rights.admin |= rule.admin;
        }
        rights
    }
}

impl From<Vec<Rule>> for Rules {
    fn from(rules: Vec<Rule>) -> Self {
        Self(rules)
    }
}

impl Rule {
    /// Checks that each name may be somebody's: a slip in one makes a rule that denies nothing.
    fn check(&self) -> Result<(), String> {
        if self.principals.is_empty() {
            return Err(
                "a rule has no principals, and so is about nobody: write `principals`, with \"*\" for everybody, or \
                 take the rule away"
                    .into(),
            );
        }
        let slips = self
            .principals
            .iter()
            .find(|name| name.is_empty() || name.trim() != *name || name.contains(text::is_unseen));
        slips.map_or(Ok(()), |name| {
            Err(format!(
                "the principal {name:?} is empty, or has white space around it or characters that cannot be seen: \
                 correct it, or the rule is about nobody"
            ))
        })
    }

    fn is_about(&self, principal: &str) -> bool {
        let mut principals = self.principals.iter();
        principals.any(|named| named == principal || named == EVERYONE)
    }
}

// ===== impl Rights =====

impl Rights {
    /// Adds the rights in `other`, its denials included.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.publish.extend(&other.publish);
        self.subscribe.extend(&other.subscribe);
        self.admin |= other.admin;
    }

    pub(crate) fn may_publish(&self, topic: &Topic) -> bool {
        self.publish.allow.contains(topic) && !self.publish.deny.contains(topic)
    }

    pub(crate) fn may_subscribe(&self, filter: &Filter) -> bool {
        self.subscribe.allow.covers(filter) && !self.subscribe.deny.overlaps(filter)
    }

    /// Whether `principal` may be the client `id`.
    pub(crate) fn may_be_client(&self, principal: &str, id: &ClientId) -> bool {
        let is_allowed = id.as_str() == principal || self.subscribe.allow.contains_client(id);
        is_allowed && !self.subscribe.deny.contains_client(id)
    }

    pub(crate) fn may_administer(&self) -> bool {
        self.admin
    }
}

impl Grant {
    /// A grant of the topics that `allow` contains and `deny` does not.
    #[must_use]
    pub fn new(allow: TopicSet, deny: TopicSet) -> Self {
        Self { allow, deny }
    }

    fn extend(&mut self, other: &Self) {
        self.allow.extend(&other.allow);
        self.deny.extend(&other.deny);
    }
}

fn patterns<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<TopicSet, D::Error> {
    let patterns = Vec::<String>::deserialize(deserializer)?;
    let mut topics = TopicSet::default();
    for pattern in &patterns {
        let one = TopicSet::new([pattern])
            .map_err(|error| serde::de::Error::custom(format_args!("pattern: {error}")))?;
        topics.extend(&one);
    }
    Ok(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        [[rule]]
        principals = ["alice", "bob"]
        publish = { allow = ["orders.>", "$client.bob"], deny = ["orders.secret.>"] }
        subscribe = { allow = ["orders.*", "orders.*.>"], deny = ["orders.*.internal"] }

        [[rule]]
        principals = ["alice"]
        publish = { deny = ["orders.eu"] }
        admin = true

        [[rule]]
        principals = ["*"]
        subscribe = { allow = ["news.>", "$client.shared"] }
    "#;

    fn rights_of(principal: &str) -> Rights {
        let rules = Rules::parse(RULES.as_bytes(), Vec::new()).unwrap();
        rules.rights_of(principal)
    }

    fn publishes(principal: &str, topic: &str) -> bool {
        rights_of(principal).may_publish(&Topic::new(topic).unwrap())
    }

    fn subscribes(principal: &str, filter: &str) -> bool {
        rights_of(principal).may_subscribe(&Filter::new(filter).unwrap())
    }

    #[test]
    fn deny_wins_and_what_no_rule_allows_is_denied() {
        assert!(publishes("alice", "orders.us"));
        assert!(publishes("bob", "orders.eu"));
        assert!(!publishes("alice", "orders.eu"));
        assert!(!publishes("bob", "orders.secret.x"));
        assert!(!publishes("bob", "ordersx"));
        assert!(publishes("bob", "$client.bob"));
        assert!(!publishes("bob", "$client.alice"));
        assert!(!publishes("carol", "news.a"));
        assert!(rights_of("alice").may_administer());
        assert!(!rights_of("bob").may_administer());
    }

    #[test]
    fn a_filter_must_be_allowed_whole_and_denied_nowhere() {
        assert!(subscribes("bob", "orders.*"));
        assert!(subscribes("bob", "orders.eu.created"));
        // Allowed by two patterns together, and denied in part.
        assert!(!subscribes("bob", "orders.>"));
        assert!(!subscribes("bob", "orders.eu.*"));
        assert!(!subscribes("bob", ">"));
        assert!(subscribes("carol", "news.>"));
        assert!(!subscribes("carol", "orders.eu"));
    }

    #[test]
    fn a_client_id_belongs_to_its_principal_or_to_a_rule() {
        let may_be = |principal: &str, id: &str| {
            rights_of(principal).may_be_client(principal, &ClientId::new(id).unwrap())
        };
        assert!(may_be("carol", "carol"));
        assert!(may_be("carol", "shared"));
        assert!(!may_be("carol", "alice"));
        let rules = "rule = [{ principals = ['*'], subscribe = { deny = ['$client.*'] } }]";
        let rules = Rules::parse(rules.as_bytes(), Vec::new()).unwrap();
        assert!(
            !rules
                .rights_of("carol")
                .may_be_client("carol", &ClientId::new("carol").unwrap())
        );
    }

    #[test]
    fn a_bad_rule_file_is_refused_with_its_line() {
        for (text, problem) in [
            ("\n[[rule]]\nprincipal = ['a']", "line 3"),
            ("[[rule]]\npublish = { allow = ['a.>.b'] }", "line 2"),
            (
                "[[rule]]\npublish = { allow = ['a.>.b'] }",
                "pattern: `>` before the last token at byte 2 of \"a.>.b\"",
            ),
            ("[[rule]]\nprincipals = ['a', 'b ']", "the principal \"b \""),
            ("[[rule]]\nprincipals = ['']", "the principal \"\""),
            ("[[rule]]\nprincipals = ['a\u{200b}']", "the principal \"a"),
            ("[[rule]]\nprincipals = []\nadmin = true", "no principals"),
            ("[[rule]]\nadmin = true", "no principals"),
            ("rules = 1", "unknown field `rules`"),
            ("[[rule]]\nadmin = 'yes'", "line 2"),
        ] {
            let error = Rules::parse(text.as_bytes(), Vec::new()).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
