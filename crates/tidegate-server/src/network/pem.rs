//! Certificates, keys and lists of revoked certificates in files, and the words for files that hold something else.
//!
//! Every tool that makes such files has forms of its own, and the same ending for all of them. So a file is not only
//! read: what cannot be used is named, with the command that makes of it what can. Nothing that looks as if it
//! counted is skipped: a block of another form, an indented one, or one without an end is an error.

use std::path::Path;

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, SubjectPublicKeyInfoDer,
    pem::PemObject,
};
use x509_parser::prelude::*;

use crate::{files::SecurityError, text};

/// The beginning of a block, before its label.
const BEGIN: &str = "-----BEGIN ";

/// The end of the line that begins a block.
const DASHES: &str = "-----";

/// The most bytes of a label. What is longer is none.
const MAX_LABEL: usize = 40;

/// The mark of a private key that is encrypted in the older way.
const ENCRYPTED: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// The contents that a file has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Certificates,
    PrivateKey,
    RevocationLists,
    PublicKey,
}

/// A block of a file: its label, and the number of its first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block<'a> {
    label: &'a str,
    line: usize,
    /// Whether nothing else is in its line. A reader of PEM sees no other.
    is_alone: bool,
}

/// The certificates in a file, at least one.
pub(crate) fn certificates(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    read(path, content, Wanted::Certificates)
}

/// The lists of revoked certificates in a file, at least one, unchecked.
pub(crate) fn lists(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, SecurityError> {
    read(path, content, Wanted::RevocationLists)
}

/// The private key in a file.
pub(crate) fn private_key(
    path: &Path,
    content: &[u8],
) -> Result<PrivateKeyDer<'static>, SecurityError> {
    one(path, read(path, content, Wanted::PrivateKey)?, |count| {
        format!("has {count} private keys: keep that of the certificate")
    })
}

/// Whether a file has a private key among other things, of whatever form.
pub(crate) fn has_private_key(content: &[u8]) -> bool {
    let mut blocks = blocks(content).into_iter();
    blocks.any(|block| block.label.ends_with("PRIVATE KEY"))
}

/// The public key in a file.
pub(crate) fn public_key(
    path: &Path,
    content: &[u8],
) -> Result<SubjectPublicKeyInfoDer<'static>, SecurityError> {
    one(path, read(path, content, Wanted::PublicKey)?, |count| {
        format!("has {count} public keys: put each into a file of its own")
    })
}

fn one<T>(
    path: &Path,
    mut found: Vec<T>,
    problem: impl FnOnce(usize) -> String,
) -> Result<T, SecurityError> {
    match found.len() {
        1 => Ok(found.remove(0)),
        count => Err(SecurityError::invalid(path, problem(count))),
    }
}

/// Every block of one kind in a file.
fn read<T: PemObject>(
    path: &Path,
    content: &[u8],
    wanted: Wanted,
) -> Result<Vec<T>, SecurityError> {
    let invalid = |problem: String| SecurityError::invalid(path, problem);
    let content = text::pem(content).map_err(invalid)?;
    let found: Result<Vec<T>, _> = T::pem_slice_iter(content).collect();
    let blocks = blocks(content);
    let count = blocks.iter().filter(|block| wanted.is(block.label)).count();
    match found {
        _ if blocks.iter().any(|block| wanted.refuses(block.label)) => {
            Err(invalid(explain(path, content, wanted)))
        }
        Ok(found) if !found.is_empty() && found.len() == count => Ok(found),
        _ => Err(invalid(explain(path, content, wanted))),
    }
}

/// The words for a file that does not hold what is wanted, or not all of it in a form that can be read.
fn explain(path: &Path, content: &[u8], wanted: Wanted) -> String {
    let blocks = blocks(content);
    match &blocks[..] {
        [] => explain_other_form(path, content, wanted),
        _ => explain_blocks(path, content, &blocks, wanted),
    }
}

// ===== impl Wanted =====

impl Wanted {
    /// Whether a block with this label is one of them.
    fn is(self, label: &str) -> bool {
        match self {
            Self::Certificates => label == "CERTIFICATE",
            Self::PrivateKey => {
                ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"].contains(&label)
            }
            Self::RevocationLists => label == "X509 CRL",
            Self::PublicKey => label == "PUBLIC KEY",
        }
    }

    /// Whether a block with this label would be missed if it were skipped beside others that are wanted.
    fn refuses(self, label: &str) -> bool {
        match self {
            Self::Certificates => [
                "TRUSTED CERTIFICATE",
                "X509 CERTIFICATE",
                "X509 CRL",
                "PKCS7",
                "CMS",
            ]
            .contains(&label),
            Self::PrivateKey => label == "ENCRYPTED PRIVATE KEY" || label == "OPENSSH PRIVATE KEY",
            Self::RevocationLists | Self::PublicKey => false,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Certificates => "certificate",
            Self::PrivateKey => "private key",
            Self::RevocationLists => "certificate revocation list",
            Self::PublicKey => "public key",
        }
    }

    /// The label of its blocks, as tools write it today.
    const fn label(self) -> &'static str {
        match self {
            Self::Certificates => "CERTIFICATE",
            Self::PrivateKey => "PRIVATE KEY",
            Self::RevocationLists => "X509 CRL",
            Self::PublicKey => "PUBLIC KEY",
        }
    }

    /// The command of openssl that writes a file of these from a file in DER.
    fn command_for_der(self, path: &Path) -> String {
        let command = match self {
            Self::Certificates => "x509",
            Self::PrivateKey => "pkey",
            Self::RevocationLists => "crl",
            Self::PublicKey => "pkey -pubin",
        };
        let path = path.display();
        format!("`openssl {command} -inform DER -in {path} -out {path}.pem`")
    }
}

/// The blocks of a file, those too that a reader of PEM would pass over.
fn blocks(content: &[u8]) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut number = 1;
    for line in content.split_inclusive(|byte| *byte == b'\n' || *byte == b'\r') {
        let text = std::str::from_utf8(line).unwrap_or_default();
        if let Some((before, rest)) = text.split_once(BEGIN) {
            let (label, rest) = rest.split_once(DASHES).unwrap_or((rest, "no end"));
            blocks.push(Block {
                // Whatever else is in the line may be the key itself.
                label: if label.len() <= MAX_LABEL { label } else { "?" },
                line: number,
                is_alone: before.is_empty() && rest.trim().is_empty(),
            });
        }
        // A line may end with both characters, and then counts by the second.
        number += usize::from(line.ends_with(b"\n"));
    }
    blocks
}

/// The words for a file with blocks.
fn explain_blocks(path: &Path, content: &[u8], blocks: &[Block<'_>], wanted: Wanted) -> String {
    let find = |is: &dyn Fn(&Block<'_>) -> bool| blocks.iter().find(|block| is(block));
    let is_encrypted = || {
        let mut windows = content.windows(ENCRYPTED.len());
        find(&|block| block.label == "ENCRYPTED PRIVATE KEY").is_some()
            || windows.any(|window| window == ENCRYPTED)
    };
    if wanted == Wanted::PrivateKey && is_encrypted() {
        let shown = path.display();
        return format!(
            "the private key is encrypted, and a server has nobody to ask for the passphrase: write it without one, \
             readable for the server alone, by `(umask 077; openssl pkey -in {shown} -out {shown}.plain)`"
        );
    }
    if let Some(block) = find(&|block| !block.is_alone) {
        return format!(
            "line {}: something else is in the line of `-----BEGIN`, such as spaces before it, or the whole block: it has \
             to be alone, and the rest in lines below it",
            block.line
        );
    }
    if let Some(block) = find(&|block| wanted.refuses(block.label)) {
        return explain_block(path, *block, wanted);
    }
    if let Some(block) = find(&|block| wanted.is(block.label)) {
        return format!(
            "the {} that begins in line {}, or one after it, is damaged: is the file whole, each block with its line \
             `-----END {}-----`?",
            wanted.name(),
            block.line,
            block.label
        );
    }
    // Parameters stand before the block that says more.
    let telling = find(&|block| !block.label.ends_with("PARAMETERS"));
    explain_block(path, *telling.unwrap_or(&blocks[0]), wanted)
}

/// The words for a block that is not what is wanted.
fn explain_block(path: &Path, block: Block<'_>, wanted: Wanted) -> String {
    let (shown, name) = (path.display(), wanted.name());
    let problem = match (block.label, wanted) {
        ("CERTIFICATE", Wanted::PublicKey) => format!(
            "a certificate, and no public key: take the key out of it by `openssl x509 -in {shown} -noout -pubkey`"
        ),
        ("TRUSTED CERTIFICATE" | "X509 CERTIFICATE", _) => format!(
            "a certificate in a form of openssl's own: write it by `openssl x509 -in {shown} -out {shown}.pem`"
        ),
        ("X509 CRL", Wanted::Certificates) => {
            "a list of revoked certificates, which has no effect here: put it into a file of `tls.client_crls`".into()
        }
        ("PKCS7" | "CMS", _) => format!(
            "certificates in PKCS#7: write them by `openssl pkcs7 -in {shown} -print_certs -out {shown}.pem`"
        ),
        ("CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST", _) => format!(
            "a request for a certificate, which an authority has yet to sign, and no {name}"
        ),
        ("OPENSSH PRIVATE KEY", _) => "a private key in the form of OpenSSH: write an RSA or ECDSA key by `ssh-keygen -p -N \
             '' -m PKCS8 -f COPY`, or make one for this server by `openssl genpkey -algorithm EC -pkeyopt \
             ec_paramgen_curve:P-256`"
            .into(),
        ("PUBLIC KEY" | "RSA PUBLIC KEY", Wanted::PrivateKey) => {
            "a public key, and no private key: that is in the file which the public one was made from".into()
        }
        ("RSA PUBLIC KEY", Wanted::PublicKey) => format!(
            "a public key in a form that only RSA has: write it by `openssl rsa -RSAPublicKey_in -in {shown} -pubout`"
        ),
        (label, Wanted::PublicKey) if label.ends_with("PRIVATE KEY") => format!(
            "a private key, which only the issuer of tokens should have: take the public key out of it by \
             `openssl pkey -in {shown} -pubout`"
        ),
        ("CERTIFICATE", Wanted::PrivateKey) => {
            "a certificate, and no private key: are the files of certificate and key swapped?".into()
        }
        (label, Wanted::Certificates) if label.ends_with("PRIVATE KEY") => {
            "a private key, and no certificate: are the files of certificate and key swapped?".into()
        }
        (label, _) if label.ends_with("PARAMETERS") => {
            format!("only parameters of a key: the {name} is missing")
        }
        (label, _) => format!("a block of the kind {label:?}, and no {name}"),
    };
    format!("line {}: {problem}", block.line)
}

/// The words for a file without any block.
fn explain_other_form(path: &Path, content: &[u8], wanted: Wanted) -> String {
    let shown = path.display();
    let name = wanted.name();
    if content.trim_ascii().is_empty() {
        return format!("is empty: a {name} in PEM has to be in it");
    }
    if is_pkcs12(content) {
        let part = match wanted {
            Wanted::PrivateKey => "-nocerts -nodes",
            _ => "-nokeys",
        };
        return format!(
            "is PKCS#12, and has to be PEM: take the {name} out of it by `openssl pkcs12 -in {shown} {part} -out \
             {shown}.pem`"
        );
    }
    if let Some((found, command)) = der(path, content) {
        let matches = match found == wanted.name() {
            true => String::new(),
            false => format!(", and no {name}"),
        };
        return format!("a {found} in DER{matches}, and has to be PEM: write it by {command}");
    }
    if content.starts_with(b"\xfe\xed\xfe\xed") {
        return format!(
            "is a key store of Java: turn it into PKCS#12 by `keytool -importkeystore -srckeystore {shown} -destkeystore \
             {shown}.p12 -deststoretype PKCS12`, and that into PEM by `openssl pkcs12`"
        );
    }
    if content.starts_with(b"PuTTY-User-Key-File") {
        return "is a key of PuTTY: a server needs one of its own, in PEM".into();
    }
    if [&b"ssh-"[..], b"ecdsa-sha2-"]
        .iter()
        .any(|start| content.starts_with(start))
    {
        return format!("is a public key of OpenSSH, and no {name} in PEM");
    }
    if is_base64_of_pem(content) {
        return format!(
            "is PEM in base64 once more, as in a manifest: decode it by `base64 -d < {shown} > {shown}.pem`"
        );
    }
    match content
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        true => format!(
            "contains no {name} in PEM, which begins with a line such as `-----BEGIN {}-----`",
            wanted.label()
        ),
        false => {
            format!("is binary data of a form that is not known here: a {name} in PEM is needed")
        }
    }
}

/// The name of the contents of a file in DER, and the command that writes it in PEM.
fn der(path: &Path, content: &[u8]) -> Option<(&'static str, String)> {
    // What all of them begin with.
    (content.first() == Some(&0x30)).then_some(())?;
    let is = |wanted: Wanted| Some((wanted.name(), wanted.command_for_der(path)));
    let shown = path.display();
    if X509Certificate::from_der(content).is_ok() {
        return is(Wanted::Certificates);
    }
    if CertificateRevocationList::from_der(content).is_ok() {
        return is(Wanted::RevocationLists);
    }
    if X509CertificationRequest::from_der(content).is_ok() {
        let command = format!("`openssl req -inform DER -in {shown} -out {shown}.pem`");
        return Some(("request for a certificate", command));
    }
    if PrivateKeyDer::try_from(content).is_ok() {
        return is(Wanted::PrivateKey);
    }
    if SubjectPublicKeyInfo::from_der(content).is_ok() {
        return is(Wanted::PublicKey);
    }
    // The identifier of PKCS#7's data that are signed.
    let signed_data = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
    let head = &content[..content.len().min(24)];
    if head
        .windows(signed_data.len())
        .any(|window| window == signed_data)
    {
        let command =
            format!("`openssl pkcs7 -inform DER -in {shown} -print_certs -out {shown}.pem`");
        return Some(("set of certificates (PKCS#7)", command));
    }
    // Those of encryption by a password: PKCS#5.
    let encrypted = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05";
    if head
        .windows(encrypted.len())
        .any(|window| window == encrypted)
    {
        let command =
            format!("`(umask 077; openssl pkcs8 -inform DER -in {shown} -out {shown}.pem)`");
        return Some(("private key, encrypted,", command));
    }
    None
}

/// Whether a file is PKCS#12: a sequence that begins with the version, 3.
fn is_pkcs12(content: &[u8]) -> bool {
    let head = &content[..content.len().min(8)];
    content.first() == Some(&0x30) && head.windows(3).any(|window| window == b"\x02\x01\x03")
}

/// Whether a file is the base64 of PEM, whose first bytes are always these.
fn is_base64_of_pem(content: &[u8]) -> bool {
    content.trim_ascii_start().starts_with(b"LS0tLS1CRUdJTi")
}
