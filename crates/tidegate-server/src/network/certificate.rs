//! The server's own certificate, as its clients will look at it.
//!
//! rustls takes almost any certificate for a server, and leaves it to clients to refuse it. They do so one by one, with
//! errors that nobody reads. So what they look at is looked at here first: faults that no client forgives are errors,
//! and those that only some forgive are warnings.

use std::path::Path;

use rustls::{Error as TlsError, InconsistentKeys, pki_types::CertificateDer, sign::SigningKey};
use x509_parser::{asn1_rs::Oid, prelude::*, public_key::PublicKey};

use super::expiry::Validity;
use crate::files::SecurityError;

/// The least bits of an RSA key. rustls takes no shorter one, and clients refuse them.
const MIN_RSA_BITS: usize = 2_048;

/// The most bits of an RSA key that the cryptography of the server takes.
const MAX_RSA_BITS: usize = 8_192;

/// The curves of keys that the cryptography of the server takes: P-256, P-384 and P-521.
const GOOD_CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];

/// The most authorities of a file that are named. A file may have all those of a system.
const MAX_NAMED: usize = 3;

/// The end of a command that makes a certificate which every client takes.
const GOOD: &str = "`openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 90 -subj /CN=NAME \
                    -addext subjectAltName=DNS:NAME -addext basicConstraints=critical,CA:FALSE -keyout KEY -out \
                    CERTIFICATE` makes one";

/// The findings about a certificate chain that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Examined {
    /// The faults for which some clients refuse it.
    pub(crate) warnings: Vec<String>,
    /// The times between which the server's own certificate is valid.
    pub(crate) validity: Validity,
}

/// Looks at a chain, the server's own certificate first.
///
/// # Errors
/// When no client would take it.
pub(crate) fn examine(
    path: &Path,
    chain: &[CertificateDer<'_>],
) -> Result<Examined, SecurityError> {
    let invalid = |problem: String| SecurityError::invalid(path, problem);
    let mut parsed = Vec::with_capacity(chain.len());
    for (i, certificate) in chain.iter().enumerate() {
        let certificate = X509Certificate::from_der(certificate).map_err(|error| {
            invalid(format!(
                "certificate {} of the file cannot be read: {error}",
                i + 1
            ))
        })?;
        parsed.push(certificate.1);
    }
    let (own, others) = parsed
        .split_first()
        .ok_or_else(|| invalid("has no certificate".into()))?;
    if own.version() == X509Version::V1 {
        return Err(invalid(format!(
            "the certificate is of X.509 version 1, which has no names that clients look at, and which they refuse: make \
             another one; {GOOD}"
        )));
    }
    let mut warnings = own_faults(own);
    warnings.extend(chain_faults(&parsed));
    warnings.extend(others.iter().enumerate().filter_map(|(i, other)| {
        let period = Validity::of(other).unless_valid()?;
        Some(format!(
            "certificate {} of the file is valid {period} only, and clients that need it for the chain refuse it",
            i + 2
        ))
    }));
    Ok(Examined {
        warnings,
        validity: Validity::of(own),
    })
}

/// The faults of the server's own certificate.
fn own_faults(own: &X509Certificate<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    if own.is_ca() {
        faults.push(format!(
            "the certificate is that of an authority (CA:TRUE), as `openssl req -x509` makes it by itself, and many \
             clients refuse it as a server's own, Tidegate's among them: make one with \
             `-addext basicConstraints=critical,CA:FALSE`; {GOOD}"
        ));
    }
    let names = own.subject_alternative_name().ok().flatten();
    let has_name = names.is_some_and(|names| {
        let mut names = names.value.general_names.iter();
        names.any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
    });
    if !has_name {
        faults.push(
            "the certificate names no host in `subjectAltName`, and clients look at no other name: make it with \
             `-addext subjectAltName=DNS:NAME`, or `IP:ADDRESS`"
                .into(),
        );
    }
    let uses = own.extended_key_usage().ok().flatten();
    if uses.is_some_and(|uses| !(uses.value.server_auth || uses.value.any)) {
        faults.push(
            "the certificate is not for servers: its `extendedKeyUsage` has no `serverAuth`, so clients refuse it".into(),
        );
    }
    let uses = own.key_usage().ok().flatten();
    if uses.is_some_and(|uses| !uses.value.digital_signature()) {
        faults.push(
            "the key of the certificate is not for signatures: its `keyUsage` has no `digitalSignature`, so clients \
             refuse it"
                .into(),
        );
    }
    faults
}

/// The faults of a chain as a whole.
fn chain_faults(chain: &[X509Certificate<'_>]) -> Vec<String> {
    let mut faults = Vec::new();
    for (i, certificate) in chain.iter().enumerate() {
        let number = i + 1;
        // Nobody verifies the signature of an authority that is trusted already.
        let is_root = i > 0 && certificate.subject() == certificate.issuer();
        if is_weak(&certificate.signature_algorithm.algorithm) && !is_root {
            faults.push(format!(
                "certificate {number} of the file is signed with SHA-1 or MD5, which clients refuse: have it signed with \
                 SHA-256"
            ));
        }
        if let Some(next) = chain.get(number)
            && certificate.issuer() != next.subject()
        {
            faults.push(format!(
                "the chain is out of order: certificate {} of the file, {:?}, has not issued certificate {number}, \
                 {:?}; each has to stand before that of its issuer, {:?}",
                number + 1,
                next.subject().to_string(),
                certificate.subject().to_string(),
                certificate.issuer().to_string(),
            ));
        }
    }
    faults
}

fn is_weak(signature: &Oid<'_>) -> bool {
    const WEAK: [&str; 5] = [
        // MD5 and SHA-1 with RSA.
        "1.2.840.113549.1.1.4",
        "1.2.840.113549.1.1.5",
        "1.3.14.3.2.29",
        // SHA-1 with DSA and with ECDSA.
        "1.2.840.10040.4.3",
        "1.2.840.10045.4.1",
    ];
    WEAK.contains(&&signature.to_id_string()[..])
}

/// The faults of the file of authorities whose text is `pem`, which is taken in spite of them.
///
/// Verifiers look at the dates of what authorities sign, and not at their own. Nor do they look at whether what they are
/// told to trust is an authority at all.
pub(crate) fn authority_faults(pem: &[u8], authorities: &[CertificateDer<'_>]) -> Vec<String> {
    let parsed = authorities
        .iter()
        .map(|authority| Some(X509Certificate::from_der(authority).ok()?.1));
    let parsed: Vec<_> = parsed.collect();
    let numbered = || {
        let numbered = parsed.iter().zip(1..);
        numbered.filter_map(|(authority, number)| Some((number, authority.as_ref()?)))
    };
    let expired = numbered().filter_map(|(number, authority): (usize, _)| {
        let period = Validity::of(authority).unless_valid()?;
        Some(format!(
            "certificate {number} of the file, of the authority {:?}, is valid {period} only; the certificates that it \
             signed are accepted all the same",
            authority.subject().to_string()
        ))
    });
    let mut faults = few(
        expired.collect(),
        "authorities of the file are not valid now",
    );
    // Version 1 has no word for it, and old authorities are of it.
    let no_authorities = numbered().filter(|(_, certificate)| {
        certificate.version() != X509Version::V1 && !certificate.is_ca()
    });
    let no_authorities = no_authorities.map(|(number, certificate)| {
        let subject = certificate.subject().to_string();
        match certificate.subject() == certificate.issuer() {
            true => format!(
                "certificate {number} of the file, {subject:?}, is not marked as that of an authority (CA:TRUE): it \
                 vouches for itself, and its owner may sign others that are accepted. Is it the right file?"
            ),
            false => format!(
                "certificate {number} of the file, {subject:?}, is not marked as that of an authority (CA:TRUE), and not \
                 even this certificate is accepted by it: name the file of its issuer, {:?}",
                certificate.issuer().to_string()
            ),
        }
    });
    faults.extend(few(
        no_authorities.collect(),
        "certificates of the file are not marked as those of authorities",
    ));
    if super::pem::has_private_key(pem) {
        faults.push(
            "the file has a private key beside the certificates, which is not needed to check what it signed: keep the \
             certificates alone in it, and the key where nobody else reads it"
                .into(),
        );
    }
    faults
}

/// The first of these notices, and the number of the others.
fn few(mut notices: Vec<String>, others: &str) -> Vec<String> {
    if notices.len() > MAX_NAMED {
        let more = notices.len() - MAX_NAMED;
        notices.truncate(MAX_NAMED);
        notices.push(format!("{more} more {others}"));
    }
    notices
}

/// Checks that `key` belongs to the first certificate of a chain, whose file is at `path`.
pub(crate) fn check_key(
    path: &Path,
    chain: &[CertificateDer<'_>],
    key: &dyn SigningKey,
    key_path: &Path,
) -> Result<(), SecurityError> {
    // A provider that does not say cannot be asked.
    let Some(public) = key.public_key() else {
        return Ok(());
    };
    let is_of = |certificate: &CertificateDer<'_>| {
        X509Certificate::from_der(certificate)
            .is_ok_and(|(_, certificate)| certificate.public_key().raw == public.as_ref())
    };
    let problem = match chain.iter().position(is_of) {
        Some(0) => return Ok(()),
        Some(i) => format!(
            "the chain is out of order: the key in {} is that of certificate {} of the file, which has to be the first",
            key_path.display(),
            i + 1
        ),
        None => format!(
            "does not match the key in {0}: it is the key of another certificate. `openssl pkey -in {0} -pubout` and \
             `openssl x509 -in {1} -noout -pubkey` show both keys",
            key_path.display(),
            path.display()
        ),
    };
    Err(SecurityError::invalid(path, problem))
}

/// The words for a private key that the cryptography of the server does not take. The certificate says what kind it is.
pub(crate) fn unusable_key(chain: &[CertificateDer<'_>], error: &TlsError) -> String {
    let kind = chain.first().and_then(|certificate| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        kind_of(certificate.public_key())
    });
    let kind = kind.unwrap_or_else(|| match error {
        TlsError::General(error) => format!("the key cannot be used: {error}"),
        error => format!("the key cannot be used: {error}"),
    });
    format!(
        "{kind}: use one of RSA with {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, of ECDSA on P-256, P-384 or P-521, or of \
         Ed25519"
    )
}

/// The kind of a key, if it is one that cannot be used.
fn kind_of(key: &SubjectPublicKeyInfo<'_>) -> Option<String> {
    match key.parsed().ok()? {
        // The size counts whole bytes, with a zero before the first bit.
        PublicKey::RSA(rsa) if rsa.key_size() < MIN_RSA_BITS || rsa.key_size() > MAX_RSA_BITS => {
            Some(format!(
                "its certificate has a key of RSA with {} bits",
                rsa.key_size()
            ))
        }
        PublicKey::EC(_) => {
            let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
            // Where these are no fault, the key is another one than that of the certificate.
            (!GOOD_CURVES.contains(&&curve.to_id_string()[..])).then_some(())?;
            Some(format!(
                "its certificate has a key on the elliptic curve {curve}"
            ))
        }
        PublicKey::DSA(_) => Some("its certificate has a key of DSA".into()),
        _ => None,
    }
}

/// The words for a certificate that rustls does not take, after [`examine`] and [`check_key`] have.
pub(crate) fn unusable(error: &TlsError) -> String {
    match error {
        TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "does not match its key".into()
        }
        error => format!("cannot be used by a server: {error}"),
    }
}
