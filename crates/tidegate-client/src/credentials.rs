//! The bearer token that a client sends.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use crate::Error;

/// Adds the client's token, if it has one, to each request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials(Option<Token>);

/// The source of the token.
#[derive(Clone)]
enum Token {
    Fixed(MetadataValue<Ascii>),
    /// A file that is read for each call, since another program may write a renewed token to it.
    File(PathBuf),
}

impl Credentials {
    pub(crate) fn token(token: &str) -> Result<Self, Error> {
        let value = header(token).map_err(Error::InvalidCredentials)?;
        Ok(Self(Some(Token::Fixed(value))))
    }

    pub(crate) fn token_file(path: &Path) -> Result<Self, Error> {
        let value = read(path).map_err(Error::InvalidCredentials)?;
        // What comes out of a pipe is gone then.
        Ok(Self(Some(match path.is_file() {
            true => Token::File(path.into()),
            false => Token::Fixed(value),
        })))
    }

    /// Whether the next call may send another token than the last.
    pub(crate) fn can_change(&self) -> bool {
        matches!(self.0, Some(Token::File(_)))
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let value = match &self.0 {
            None => return Ok(request),
            Some(Token::Fixed(value)) => value.clone(),
            Some(Token::File(path)) => read(path).map_err(Status::unauthenticated)?,
        };
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// Never prints the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(_) => f.write_str("Fixed"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// The largest token file in bytes. A longer token fits into no header.
const MAX_FILE: u64 = 64 * 1024;

fn read(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let failed = |problem: &str| format!("cannot use the token in {}: {problem}", path.display());
    let unreadable = |error: io::Error| failed(&error.to_string());
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed("the file is longer than 64 KiB"));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(failed("the file is UTF-16; save it as UTF-8"));
    }
    // Some editors begin a file with this mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let token = str::from_utf8(bytes).map_err(|_| failed("it is not valid UTF-8"))?;
    let token = token.trim_end();
    if token.is_empty() {
        return Err(failed("the file is empty"));
    }
    if token.contains('\n') {
        return Err(failed(
            "the file has several lines; leave the token alone in it",
        ));
    }
    header(token).map_err(|problem| failed(&problem))
}

fn header(token: &str) -> Result<MetadataValue<Ascii>, String> {
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let value = is_token
        .then(|| format!("Bearer {token}").parse().ok())
        .flatten();
    let mut value: MetadataValue<Ascii> =
        value.ok_or("the token must be printable ASCII without white space, and not empty")?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_with_each_call_and_never_shows() {
        let mut credentials = Credentials::token("secret").unwrap();
        let request = credentials.call(tonic::Request::new(())).unwrap();
        assert_eq!(
            request.metadata().get("authorization").unwrap(),
            "Bearer secret"
        );
        let shown = format!("{credentials:?} {:?}", request.metadata());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn unsendable_tokens_are_refused() {
        for bad in ["", "two words", "\u{e9}", "a\nb"] {
            let error = Credentials::token(bad).unwrap_err();
            assert!(matches!(error, Error::InvalidCredentials(_)), "{bad:?}");
        }
        assert!(Credentials::token_file(Path::new("/nowhere/token")).is_err());
    }

    #[test]
    fn token_file_is_read_as_editors_write_it_or_named() {
        let path = std::env::temp_dir().join(format!("tidegate-token-{}", std::process::id()));
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path)
        };
        for good in [
            &b"secret"[..],
            b"secret\n",
            b"secret\r\n\r\n",
            b"\xef\xbb\xbfsecret\r\n",
        ] {
            assert_eq!(read(good).unwrap(), "Bearer secret", "{good:?}");
        }
        for (bad, problem) in [
            (&b""[..], "empty"),
            (b"\xef\xbb\xbf\n", "empty"),
            (b"one\ntwo\n", "several lines"),
            (b"\xff\xfes\0", "UTF-16"),
            (b"\xe9", "UTF-8"),
            (b"two words", "white space"),
            (&[b'a'; 70_000], "64 KiB"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(problem), "{error}");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(
            super::read(Path::new("/"))
                .unwrap_err()
                .contains("directory")
        );
    }
}
