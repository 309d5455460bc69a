//! The environment variables of the commands that connect to a server.
//!
//! A flag wins over the variable of the same thing, and over one that it excludes. A variable that is set and empty counts
//! as unset, so that a line of a script can turn it off. What cannot be read is refused by name.

use std::{env, ffi::OsString, path::PathBuf};

use crate::exit::{Exit, Failure};

/// URL of the server.
pub(crate) const SERVER: &str = "TIDEGATE_SERVER";

/// Certificates of the authorities to trust.
pub(crate) const TLS_CA: &str = "TIDEGATE_TLS_CA";

/// The bearer token.
pub(crate) const TOKEN: &str = "TIDEGATE_TOKEN";

/// File with the bearer token.
pub(crate) const TOKEN_FILE: &str = "TIDEGATE_TOKEN_FILE";

/// The value of a variable that is text.
pub(crate) fn text(name: &str) -> Result<Option<String>, Failure> {
    let text = raw(name).map(OsString::into_string).transpose();
    text.map_err(|_| {
        let message =
            format!("the environment variable {name} is not valid UTF-8; set it anew, or unset it");
        Failure::new(Exit::Usage, message)
    })
}

/// The value of a variable that is a path, of any bytes.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    raw(name).map(PathBuf::from)
}

fn raw(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}
