//! Where the server is, for the commands that speak to one.

use clap::Args;
use tidegate_client::Client;

use crate::{exit::Failure, security::CredentialArgs};

/// Where the server is, for the commands that speak to one.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server to speak to.
    #[arg(
        long,
        value_name = "URL",
        env = "TIDEGATE_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_parser = server_url
    )]
    pub(crate) server: String,

    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

impl ServerArgs {
    /// A client for the server.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.credentials.client(&self.server)
    }
}

/// Takes `host:port` for `http://host:port`.
fn server_url(text: &str) -> Result<String, String> {
    match text {
        "" => Err("write it as http://HOST:PORT".into()),
        url if url.contains("://") => Ok(url.into()),
        authority => Ok(format!("http://{authority}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_may_be_left_out() {
        assert_eq!(server_url("host:1"), Ok("http://host:1".into()));
        assert_eq!(server_url("http://host:1"), Ok("http://host:1".into()));
        assert!(server_url("").is_err());
    }
}
