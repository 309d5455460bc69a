//! Arguments of the commands that connect to a server.

use clap::Args;
use tidegate_client::Client;

use crate::{exit::Failure, security::CredentialArgs};

/// The server to connect to, and the credentials for it.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// URL of the server, or unix:PATH.
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
    /// Returns a client for the server; its first call connects.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.credentials.client(&self.server)
    }
}

/// Parses a URL; `host:port` means `http://host:port`, and `unix:` and a path is the file of a socket.
fn server_url(text: &str) -> Result<String, String> {
    match text {
        "" => Err("write it as http://HOST:PORT".into()),
        url if url.contains("://") || url.starts_with("unix:") => Ok(url.into()),
        authority => Ok(format!("http://{authority}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_may_be_left_out() {
        assert_eq!(server_url("host:1"), Ok("http://host:1".into()));
        for whole in ["http://host:1", "unix:/run/tidegate.sock"] {
            assert_eq!(server_url(whole), Ok(whole.into()));
        }
        assert!(server_url("").is_err());
    }
}
