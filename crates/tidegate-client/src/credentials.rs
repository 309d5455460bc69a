//! The bearer token that a client sends.

use std::{
    fmt, fs,
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
        read(path).map_err(Error::InvalidCredentials)?;
        Ok(Self(Some(Token::File(path.into()))))
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

fn read(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let token = fs::read_to_string(path)
        .map_err(|error| format!("cannot read the token in {}: {error}", path.display()))?;
    header(token.trim_end())
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
}
