//! The text of a JSON Web Token: its three parts, its header (RFC 7515) and its claims (RFC 7519).
//!
//! `jsonwebtoken` has the keys, and verifies signatures. The text is read here: that crate knows no `crit`, takes an
//! array for an object and a list for an issuer, rounds times to the second, and says little about what is wrong.
//!
//! # Unknown names
//! Header and claims may have names that are not read here, and these mean nothing to the server, with one exception:
//! names in `crit` must be understood, and none is. A name that is read may stand there once.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use super::{
    refusal::{Cause, quoted},
    rules::Rights,
};

/// The last second of the year 9999. A later time is a mistake, most often one of milliseconds for seconds, and a token
/// that expires then would be good forever.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// A token, whose signature and claims have not been looked at.
#[derive(Debug)]
pub(crate) struct Token<'a> {
    /// The name of its algorithm.
    pub(crate) algorithm: String,
    /// The name of its key.
    pub(crate) key: Option<String>,
    /// The header and the claims, as they were signed.
    pub(crate) signed: &'a str,
    pub(crate) signature: &'a str,
    claims: &'a str,
}

/// The values that the claims of a token have to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) audience: &'a str,
    pub(crate) leeway: Duration,
    pub(crate) now: SystemTime,
}

/// Claims that say what they have to.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) principal: String,
    /// The expiry, with the leeway added.
    pub(crate) expires: SystemTime,
    /// The claim `tidegate`.
    pub(crate) rights: Option<Rights>,
}

/// The fault of claims.
#[derive(Debug)]
pub(crate) enum ClaimError {
    /// The token was good, and has expired.
    Expired(Cause),
    /// Anything else.
    Invalid(Cause),
}

/// A header, as it is written. A value that is `null` is there.
#[derive(Debug, Deserialize)]
struct WrittenHeader {
    #[serde(default, deserialize_with = "present")]
    alg: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    kid: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    typ: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    crit: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    b64: Option<Value>,
}

/// Claims, as they are written. A value that is `null` is there.
#[derive(Debug, Deserialize)]
struct WrittenClaims {
    #[serde(default, deserialize_with = "present")]
    iss: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    aud: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    sub: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    iat: Option<Value>,
    tidegate: Option<Rights>,
}

// ===== impl Token =====

impl<'a> Token<'a> {
    /// Takes a token apart, and reads its header.
    ///
    /// # Errors
    /// When it is no signed token, or its header asks for what the server does not do.
    pub(crate) fn parse(token: &'a str) -> Result<Self, Cause> {
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(not_three_parts(token));
        };
        let written: WrittenHeader = object(header)
            .map_err(|problem| Cause::new("header", format!("its header is {problem}")))?;
        written.check_extensions()?;
        let of_header = |problem| Cause::new("header", format!("in its header, {problem}"));
        // The type tells an application what a token is for, and the audience does so here.
        optional_text("typ", written.typ.as_ref()).map_err(of_header)?;
        let key = optional_text("kid", written.kid.as_ref()).map_err(of_header)?;
        Ok(Self {
            algorithm: text("alg", written.alg.as_ref()).map_err(of_header)?.into(),
            key: key.map(Into::into),
            signed: &token[..header.len() + 1 + claims.len()],
            signature,
            claims,
        })
    }

    /// Reads the claims, and compares them with what they have to be. Only for a token whose signature is good: what a
    /// claim says goes into the cause.
    pub(crate) fn claims(&self, expected: &Expected<'_>) -> Result<Claims, ClaimError> {
        let invalid = |problem| ClaimError::Invalid(Cause::new("claims", problem));
        let written: WrittenClaims =
            object(self.claims).map_err(|problem| invalid(format!("its claims are {problem}")))?;
        let principal = written.principal(expected).map_err(invalid)?;
        let (expires, begins) = written.times().map_err(invalid)?;
        let at = |time: Duration| {
            // Both are less than the seconds of 10,000 years.
            SystemTime::UNIX_EPOCH + time
        };
        if begins.is_some_and(|begins| at(begins) > expected.now + expected.leeway) {
            return Err(invalid(format!(
                "its `nbf` {} is in the future; is a clock wrong?",
                shown(written.nbf.as_ref())
            )));
        }
        let expires = at(expires) + expected.leeway;
        if expires <= expected.now {
            let text = format!("its `exp` {} has passed", shown(written.exp.as_ref()));
            return Err(ClaimError::Expired(Cause::new("expired", text)));
        }
        Ok(Claims {
            principal,
            expires,
            rights: written.tidegate,
        })
    }
}

fn not_three_parts(token: &str) -> Cause {
    match token.split('.').count() {
        1 => Cause::new(
            "unknown",
            "no file lists it, and it is no JSON Web Token, which has three parts",
        ),
        5 => Cause::new(
            "form",
            "it is an encrypted JSON Web Token (JWE), and only signed ones are accepted",
        ),
        parts => Cause::new(
            "form",
            format!("it has {parts} parts, and a signed JSON Web Token has three"),
        ),
    }
}

/// Decodes a part of a token: base64url of an object of JSON.
fn object<T: DeserializeOwned>(part: &str) -> Result<T, String> {
    let json = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|error| format!("not base64url without padding: {error}"))?;
    // serde would take an array too, as the values in the order of the fields.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err("no object of JSON".into());
    }
    serde_json::from_slice(&json)
        .map_err(|error| format!("not as they have to be: {}", quoted(&error.to_string())))
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

// ===== impl WrittenHeader =====

impl WrittenHeader {
    /// Refuses a token that means something only to those who know an extension.
    fn check_extensions(&self) -> Result<(), Cause> {
        if let Some(critical) = &self.crit {
            let names = critical.as_array().map(Vec::as_slice).unwrap_or_default();
            let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
            // RFC 7515, section 4.1.11.
            let problem = match names {
                Some(names) if !names.is_empty() => format!(
                    "its header has `crit`, and the server knows none of these extensions: {}",
                    quoted(&names.join(", "))
                ),
                _ => "its header has a `crit` that is no list of names".into(),
            };
            return Err(Cause::new("crit", problem));
        }
        // RFC 7797, section 6: without `crit` it must not be there, and who signed it signed something else.
        if self.b64.as_ref().is_some_and(|b64| *b64 != true) {
            let problem = "its header has `b64`, for claims that are not in base64url";
            return Err(Cause::new("crit", problem));
        }
        Ok(())
    }
}

// ===== impl WrittenClaims =====

impl WrittenClaims {
    /// The principal, if issuer and audience are as expected.
    fn principal(&self, expected: &Expected<'_>) -> Result<String, String> {
        let principal = text("sub", self.sub.as_ref())?;
        if principal.is_empty() {
            return Err("`sub` is empty, and has to name the principal".into());
        }
        let issuer = text("iss", self.iss.as_ref())?;
        if issuer != expected.issuer {
            let (issuer, wanted) = (quoted(issuer), expected.issuer);
            return Err(format!(
                "`iss` is {issuer}, and `auth.jwt.issuer` is {wanted:?}"
            ));
        }
        let audience = self.aud.as_ref().ok_or("`aud` is missing")?;
        let audiences = match audience {
            Value::Array(audiences) => &audiences[..],
            one => std::slice::from_ref(one),
        };
        let audiences: Option<Vec<&str>> = audiences.iter().map(Value::as_str).collect();
        let audiences = audiences.ok_or("`aud` is neither a text nor a list of texts")?;
        if audiences.is_empty() {
            return Err("`aud` is an empty list".into());
        }
        if !audiences.contains(&expected.audience) {
            let (audiences, wanted) = (quoted(&audiences.join(", ")), expected.audience);
            return Err(format!(
                "`aud` is {audiences}, and `auth.jwt.audience` is {wanted:?}"
            ));
        }
        Ok(principal.into())
    }

    /// The times at which the token expires and begins to be good.
    fn times(&self) -> Result<(Duration, Option<Duration>), String> {
        let expires = date("exp", self.exp.as_ref())?.ok_or("`exp` is missing")?;
        let begins = date("nbf", self.nbf.as_ref())?;
        // Nothing depends on it, but a token that says nonsense comes from nobody who is to be trusted.
        date("iat", self.iat.as_ref())?;
        Ok((expires, begins))
    }
}

/// The text of a claim, or of a parameter of a header, that has to be there.
fn text<'a>(name: &str, value: Option<&'a Value>) -> Result<&'a str, String> {
    optional_text(name, value)?.ok_or_else(|| format!("`{name}` is missing"))
}

fn optional_text<'a>(name: &str, value: Option<&'a Value>) -> Result<Option<&'a str>, String> {
    let text = value.map(|value| value.as_str().ok_or(value)).transpose();
    text.map_err(|value| format!("`{name}` is {}, and has to be a text", shown(Some(value))))
}

/// A NumericDate (RFC 7519, section 2): seconds since 1970, which need not be whole.
fn date(name: &str, value: Option<&Value>) -> Result<Option<Duration>, String> {
    let Some(value) = value else { return Ok(None) };
    let shown = || shown(Some(value));
    let Value::Number(number) = value else {
        return Err(format!(
            "`{name}` is {}, and has to be a number of seconds since 1970",
            shown()
        ));
    };
    let time = match (number.as_u64(), number.as_f64()) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Some(seconds)) if seconds < 0.0 => {
            return Err(format!("`{name}` is {}, which is before 1970", shown()));
        }
        (None, seconds) => seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    };
    let time = time.filter(|time| *time <= LAST_SECOND);
    time.map(Some).ok_or_else(|| {
        format!(
            "`{name}` is {}, which is after the year 9999: are these milliseconds, and no seconds?",
            shown()
        )
    })
}

/// A value as it stands in the token.
fn shown(value: Option<&Value>) -> String {
    match value {
        None => "nothing".into(),
        Some(Value::String(text)) => quoted(text),
        // A number is short.
        Some(number @ Value::Number(_)) => number.to_string(),
        Some(Value::Null) => "null".into(),
        Some(Value::Bool(_)) => "true or false".into(),
        Some(Value::Array(_)) => "a list".into(),
        Some(Value::Object(_)) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_788_947_152;

    const GOOD_HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    fn encoded(header: &str, claims: &str) -> String {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        format!("{header}.{claims}.c2lnbmF0dXJl")
    }

    /// The cause for which a token with this header is refused, or its kind and text.
    fn header_refused(header: &str) -> Option<String> {
        let token = encoded(header, "{}");
        let cause = Token::parse(&token).err()?;
        Some(format!("{}: {}", cause.kind, cause.text))
    }

    fn expected(leeway: Duration) -> Expected<'static> {
        Expected {
            issuer: "me",
            audience: "you",
            leeway,
            now: SystemTime::UNIX_EPOCH + Duration::from_millis(NOW * 1_000 + 500),
        }
    }

    fn claims_of(claims: &str, leeway: Duration) -> Result<Claims, ClaimError> {
        let token = encoded(GOOD_HEADER, claims);
        Token::parse(&token).unwrap().claims(&expected(leeway))
    }

    /// The cause for which these claims are refused: those of a good token, but for the last ones.
    fn claims_refused(with: &str) -> Option<String> {
        let names = ["iss", "aud", "sub", "exp"];
        let good = [r#""me""#, r#""you""#, r#""ann""#, "9999999999"];
        let mut claims: Vec<_> = names
            .iter()
            .zip(good)
            .filter(|(name, _)| {
                !with.starts_with(&format!("\"{name}\""))
                    && !with.starts_with(&format!("no {name}"))
            })
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        claims.extend((!with.is_empty() && !with.starts_with("no ")).then(|| with.to_owned()));
        match claims_of(&format!("{{{}}}", claims.join(",")), Duration::ZERO) {
            Ok(_) => None,
            Err(ClaimError::Invalid(cause)) => Some(cause.text.into()),
            Err(ClaimError::Expired(cause)) => Some(format!("expired: {}", cause.text)),
        }
    }

    #[track_caller]
    fn refused_for(found: Option<String>, cause: &str) {
        let found = found.expect("accepted");
        assert!(found.contains(cause), "{found:?} does not say {cause:?}");
        assert!(found.len() < 400 && !found.contains('\n'), "{found}");
    }

    #[test]
    fn a_header_may_have_names_that_mean_nothing_here() {
        for header in [
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"HS256","typ":"at+jwt","cty":"x","x5t":"y","jku":"https://evil.example"}"#,
            r#"{"alg":"HS256","kid":"","b64":true}"#,
            " {\"alg\": \"HS256\"}\n",
            // Who may sign so is for the key to say.
            r#"{"alg":"none"}"#,
        ] {
            assert_eq!(header_refused(header), None, "{header}");
        }
    }

    #[test]
    fn a_header_that_cannot_be_understood_is_refused() {
        for (header, cause) in [
            (
                r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
                r#"crit: its header has `crit`, and the server knows none of these extensions: "exp""#,
            ),
            (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, "crit: "),
            (r#"{"alg":"HS256","crit":["b64"],"b64":true}"#, "crit: "),
            (r#"{"alg":"HS256","crit":["not-there"]}"#, "not-there"),
            (r#"{"alg":"HS256","crit":[]}"#, "no list of names"),
            (r#"{"alg":"HS256","crit":null}"#, "no list of names"),
            (r#"{"alg":"HS256","crit":"exp"}"#, "no list of names"),
            (r#"{"alg":"HS256","crit":{}}"#, "no list of names"),
            (r#"{"alg":"HS256","crit":[1]}"#, "no list of names"),
            (r#"{"alg":"HS256","b64":false}"#, "not in base64url"),
            (r#"{"alg":"HS256","b64":null}"#, "not in base64url"),
            (
                r#"{"alg":"HS256","typ":7}"#,
                "`typ` is 7, and has to be a text",
            ),
            (r#"{"alg":"HS256","kid":7}"#, "`kid` is 7"),
            (r#"{"alg":"HS256","kid":null}"#, "`kid` is null"),
            (r#"{"alg":"HS256","kid":["a"]}"#, "`kid` is a list"),
            (r#"{"alg":null}"#, "`alg` is null"),
            (r#"{"alg":["HS256"]}"#, "`alg` is a list"),
            (r#"{"typ":"JWT"}"#, "`alg` is missing"),
            (r#"{"alg":"none","alg":"HS256"}"#, "duplicate field `alg`"),
            (
                r#"{"alg":"HS256","crit":[],"crit":["a"]}"#,
                "duplicate field `crit`",
            ),
            (r#"["HS256"]"#, "no object"),
            ("\"HS256\"", "no object"),
            ("\u{feff}{\"alg\":\"HS256\"}", "no object"),
            ("", "no object"),
            (r#"{"alg":"HS256"} {}"#, "trailing characters"),
            (r#"{"alg":"HS256""#, "EOF"),
        ] {
            refused_for(header_refused(header), cause);
        }
        let deep = format!(
            r#"{{"alg":"HS256","typ":{}1{}}}"#,
            "[".repeat(5_000),
            "]".repeat(5_000)
        );
        refused_for(header_refused(&deep), "recursion limit");
        let long = format!(r#"{{"alg":"HS256","crit":["{}"]}}"#, "x".repeat(100_000));
        refused_for(header_refused(&long), "bytes more");
    }

    #[test]
    fn a_token_that_has_not_three_parts_is_refused() {
        for (token, cause) in [
            ("opaque", "no file lists it"),
            ("a.b", "2 parts"),
            ("a.b.c.d", "4 parts"),
            ("a.b.c.d.e", "encrypted"),
            ("a.b.c.d.e.f", "6 parts"),
            ("..", "no object"),
            ("e30=.e30.", "base64url"),
            ("e+0.e30.", "base64url"),
        ] {
            refused_for(
                Token::parse(token).err().map(|cause| cause.text.into()),
                cause,
            );
        }
    }

    #[test]
    fn times_need_not_be_whole_seconds() {
        for (expiry, is_good) in [
            ("1788947152.811", true),
            ("1788947152.5001", true),
            ("1788947152.4999", false),
            ("1788947153", true),
            ("1788947152", false),
            ("1.788947153e9", true),
            ("1.788947152E+9", false),
            ("17889471530e-1", true),
            ("253402300799", true),
            ("0", false),
            ("-0.0", false),
        ] {
            let refused = claims_refused(&format!("\"exp\":{expiry}"));
            assert_eq!(refused.is_none(), is_good, "{expiry}: {refused:?}");
        }
        for (begin, is_good) in [
            ("1788947152.4999", true),
            ("1788947152.811", false),
            ("1.7e9", true),
            ("1.8e9", false),
        ] {
            let refused = claims_refused(&format!("\"nbf\":{begin}"));
            assert_eq!(refused.is_none(), is_good, "{begin}: {refused:?}");
        }
        // Only its form counts.
        for issued in ["0", "1.8e9", "1788947152.811"] {
            assert_eq!(
                claims_refused(&format!("\"iat\":{issued}")),
                None,
                "{issued}"
            );
        }
    }

    #[test]
    fn leeway_counts_in_parts_of_a_second_too() {
        let claims = |exp: &str| format!(r#"{{"iss":"me","aud":"you","sub":"ann","exp":{exp}}}"#);
        let leeway = Duration::from_millis(700);
        let accepted = claims_of(&claims("1788947151.9"), leeway).unwrap();
        let left = accepted
            .expires
            .duration_since(expected(leeway).now)
            .unwrap();
        assert!(
            left > Duration::from_millis(99) && left < Duration::from_millis(101),
            "{left:?}"
        );
        assert!(claims_of(&claims("1788947151.7"), leeway).is_err());
    }

    #[test]
    fn times_that_are_none_are_refused() {
        for name in ["exp", "nbf", "iat"] {
            for (time, cause) in [
                ("\"1788947199\"", "has to be a number of seconds"),
                ("null", "has to be a number of seconds"),
                ("true", "has to be a number of seconds"),
                ("[1]", "has to be a number of seconds"),
                ("{}", "has to be a number of seconds"),
                ("-1", "is before 1970"),
                ("-1e300", "is before 1970"),
                ("-0.001", "is before 1970"),
                // Milliseconds.
                ("1788947152811", "are these milliseconds"),
                ("253402300800", "after the year 9999"),
                ("18446744073709551615", "after the year 9999"),
                ("18446744073709551616", "after the year 9999"),
                ("1e300", "after the year 9999"),
                ("1e400", "number out of range"),
                ("NaN", "expected value"),
                ("Infinity", "expected value"),
            ] {
                let refused = claims_refused(&format!("\"{name}\":{time}"));
                refused_for(refused, cause);
            }
        }
        refused_for(
            claims_refused("\"exp\":1788947100.5"),
            "expired: its `exp` 1788947100.5 has passed",
        );
        refused_for(
            claims_refused("\"nbf\":1788947200.5"),
            "its `nbf` 1788947200.5 is in the future",
        );
    }

    #[test]
    fn claims_that_say_something_else_are_refused() {
        assert_eq!(claims_refused(""), None);
        assert_eq!(claims_refused(r#""aud":["other","you"]"#), None);
        for (claim, cause) in [
            (
                r#""aud":"other""#,
                r#"`aud` is "other", and `auth.jwt.audience` is "you""#,
            ),
            (r#""aud":["other","another"]"#, r#""other, another""#),
            (r#""aud":[]"#, "`aud` is an empty list"),
            (r#""aud":["you",7]"#, "neither a text nor a list"),
            (r#""aud":null"#, "neither a text nor a list"),
            (r#""aud":{"you":1}"#, "neither a text nor a list"),
            ("no aud", "`aud` is missing"),
            (
                r#""iss":"other""#,
                r#"`iss` is "other", and `auth.jwt.issuer` is "me""#,
            ),
            (r#""iss":["me"]"#, "`iss` is a list"),
            ("no iss", "`iss` is missing"),
            (r#""sub":"""#, "`sub` is empty"),
            (r#""sub":7"#, "`sub` is 7"),
            ("no sub", "`sub` is missing"),
            ("no exp", "`exp` is missing"),
            (r#""tidegate":"all""#, "not as they have to be"),
            (
                r#""tidegate":{"admin":true,"admin":false}"#,
                "duplicate field `admin`",
            ),
            (r#""tidegate":{"root":true}"#, "unknown field `root`"),
            (r#""jti":1,"sub":"eve""#, "duplicate field `sub`"),
            (
                r#""exp":9999999999,"exp":9999999998"#,
                "duplicate field `exp`",
            ),
            (r#""iss":"\u001b[31m\n""#, r#"\u{1b}[31m\n"#),
        ] {
            refused_for(claims_refused(claim), cause);
        }
        let claims = format!(r#"{{"iss":"{}"}}"#, "x".repeat(100_000));
        assert!(matches!(
            claims_of(&claims, Duration::ZERO),
            Err(ClaimError::Invalid(_))
        ));
    }
}
