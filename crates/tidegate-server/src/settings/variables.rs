//! The environment: its settings, and the variables that look like settings.
//!
//! Nothing that begins like a setting is passed over in silence, and what may be meant to keep the server closed is an
//! error. The exception is what orchestrators set for a service
//! named `tidegate`, or `tidegate-something`: Kubernetes sets `TIDEGATE_PORT=tcp://10.0.0.1:50051` and the like.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use super::{
    names::{is_near, words},
    setting::{Setting, VARIABLES},
    table::SETTINGS,
    written::{Origin, Problem, Written},
};

/// Reads the variables.
pub(super) fn read(
    environment: &BTreeMap<OsString, OsString>,
    written: &mut Written,
    problems: &mut Vec<Problem>,
) {
    // An empty variable is how a unit, a manifest or a shell takes one away.
    let set = environment.iter().filter(|(_, value)| !value.is_empty());
    let set: BTreeMap<_, _> = set
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .collect();
    for setting in SETTINGS {
        let variable = setting.variable();
        let Some(value) = set.get(&variable) else {
            continue;
        };
        let origin = Origin::Environment(variable);
        match value.to_str() {
            Some(text) => written.set(setting, text.to_owned(), origin, problems),
            None => {
                let message = format!(
                    "{}: the value is not UTF-8: write it in UTF-8, and rename a file whose name is not",
                    setting.key
                );
                problems.push(Problem::new(origin, message));
            }
        }
    }
    for (name, value) in &set {
        let problem = |message: String| Problem::new(Origin::Environment(name.clone()), message);
        match further(name, value) {
            Further::None => {}
            Further::Misspelled(meant) => problems.push(problem(format!(
                "there is no such setting; did you mean {}?",
                meant.variable()
            ))),
            Further::Dangerous(meant) => problems.push(problem(format!(
                "there is no such setting, and without what it is for the server may be open to anyone; did you mean \
                 {meant}? If it is for something else, unset it for the server"
            ))),
            Further::Unknown(message) => written.warn(problem(message.into())),
        }
    }
}

/// The kind of a variable.
enum Further {
    /// A setting, a variable that an orchestrator sets, or one that has nothing to do with this program.
    None,
    /// No setting, and it comes near this one.
    Misspelled(&'static Setting),
    /// No setting, and it comes near none, but it has a word of those that keep a server closed. The variable that may be
    /// meant.
    Dangerous(String),
    /// No setting, and it comes near none. The warning.
    Unknown(&'static str),
}

fn further(name: &str, value: &OsStr) -> Further {
    let Some(rest) = after_prefix(name) else {
        return Further::None;
    };
    if comes_from_an_orchestrator(name, value) {
        return Further::None;
    }
    match Setting::nearest(rest) {
        Some(setting) if setting.variable() == name => Further::None,
        Some(setting) => Further::Misspelled(setting),
        None if rest.eq_ignore_ascii_case("PORT") => Further::Unknown(
            "there is no such setting, so this is ignored: the port is part of TIDEGATE_LISTEN, such as 0.0.0.0:50051",
        ),
        None => match dangerous(rest) {
            Some(meant) => Further::Dangerous(meant),
            None => Further::Unknown(
                "there is no such setting, so this is ignored: unset it, or correct its name; \
                 docs/tidegate.example.toml has every setting",
            ),
        },
    }
}

/// The variable of the configuration file, which the program reads, and not this library.
const FILE: &str = "TIDEGATE_CONFIG";

/// The words of settings that keep a server closed, and the key of the setting that each is of; none for that of the
/// file, which may have all of them. The most telling first.
const DANGEROUS: &[(&str, Option<&str>)] = &[
    ("certificate", Some("tls.certificate")),
    ("certificates", Some("tls.certificate")),
    ("cert", Some("tls.certificate")),
    ("certs", Some("tls.certificate")),
    ("crt", Some("tls.certificate")),
    ("pem", Some("tls.certificate")),
    ("ca", Some("tls.client_ca")),
    ("cas", Some("tls.client_ca")),
    ("cacert", Some("tls.client_ca")),
    ("mtls", Some("tls.client_ca")),
    ("crl", Some("tls.client_crls")),
    ("crls", Some("tls.client_crls")),
    ("jwt", Some("auth.jwt.issuer")),
    ("jwts", Some("auth.jwt.issuer")),
    ("jwks", Some("auth.jwt.key_sets")),
    ("oidc", Some("auth.jwt.issuer")),
    ("issuer", Some("auth.jwt.issuer")),
    ("audience", Some("auth.jwt.audience")),
    ("rule", Some("auth.rules")),
    ("rules", Some("auth.rules")),
    ("acl", Some("auth.rules")),
    ("token", Some("auth.tokens")),
    ("tokens", Some("auth.tokens")),
    ("key", Some("tls.key")),
    ("keys", Some("tls.key")),
    ("tls", Some("tls.certificate")),
    ("ssl", Some("tls.certificate")),
    ("secret", Some("auth.tokens")),
    ("secrets", Some("auth.tokens")),
    ("password", Some("auth.tokens")),
    ("passwords", Some("auth.tokens")),
    ("credential", Some("auth.tokens")),
    ("credentials", Some("auth.tokens")),
    ("auth", Some("auth.tokens")),
    ("authentication", Some("auth.tokens")),
    ("authorization", Some("auth.rules")),
    ("config", None),
    ("configs", None),
    ("configuration", None),
    ("conf", None),
    ("cfg", None),
];

/// The variable that one with a word of [`DANGEROUS`] may mean.
fn dangerous(rest: &str) -> Option<String> {
    let words = words(rest);
    let has = |dangerous: &str| {
        words.iter().any(|word| {
            // Shorter words come near too much, and begin too many others.
            let is_long = dangerous.len() >= 5;
            let begins = is_long || matches!(dangerous, "tls" | "jwt" | "jwks" | "cert");
            word == dangerous
                || (begins && word.starts_with(dangerous))
                || (is_long && is_near(word, dangerous))
        })
    };
    let (_, key) = DANGEROUS.iter().find(|(word, _)| has(word))?;
    let setting = key.and_then(Setting::of);
    Some(setting.map_or_else(|| FILE.into(), Setting::variable))
}

/// The part behind the beginning that all variables have, in whatever case and with whatever behind `TIDEGATE`.
fn after_prefix(name: &str) -> Option<&str> {
    let (prefix, rest) = name.split_at_checked(VARIABLES.len())?;
    let word = VARIABLES.trim_end_matches('_');
    let is_ours =
        prefix.get(..word.len())?.eq_ignore_ascii_case(word) && prefix.ends_with(['_', '-', '.']);
    is_ours.then_some(rest)
}

/// Whether a variable is one of those that Kubernetes and Docker set for each service.
fn comes_from_an_orchestrator(name: &str, value: &OsStr) -> bool {
    let words: Vec<_> = name.split('_').skip(1).collect();
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_protocol = |word: &str| matches!(word, "TCP" | "UDP" | "SCTP");
    let ends_with_service = |words: &[&str]| {
        // The name of the port may have several words.
        let place = words
            .windows(2)
            .position(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]));
        place.is_some_and(|place| words[place + 1] == "PORT" || place + 2 == words.len())
    };
    match words[..] {
        _ if ends_with_service(&words) => true,
        [.., "PORT", number, protocol, "PROTO" | "PORT" | "ADDR"]
        | [.., "PORT", number, protocol]
            if is_number(number) && is_protocol(protocol) =>
        {
            true
        }
        // A person writes a number.
        [.., "PORT"] => value.to_str().is_some_and(|value| value.contains("://")),
        _ => false,
    }
}
