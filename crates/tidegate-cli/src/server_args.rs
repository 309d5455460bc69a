//! Arguments of the commands that connect to a server.

use clap::Args;
use tidegate_client::Client;

use crate::{
    environment,
    exit::{Exit, Failure},
    security::CredentialArgs,
};

/// The server where none is given.
const DEFAULT: &str = "http://127.0.0.1:50051";

/// The server to connect to, and the credentials for it.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// URL of the server, or unix:PATH [default: http://127.0.0.1:50051]. [env: TIDEGATE_SERVER]
    #[arg(long, value_name = "URL", value_parser = server_url)]
    server: Option<String>,

    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

impl ServerArgs {
    /// Returns a client for the server; its first call connects.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.credentials.client(&self.url()?)
    }

    /// The URL of the command line, or else of the environment.
    fn url(&self) -> Result<String, Failure> {
        if let Some(url) = &self.server {
            return Ok(url.clone());
        }
        let Some(text) = environment::text(environment::SERVER)? else {
            return Ok(DEFAULT.into());
        };
        server_url(&text).map_err(|problem| {
            let message = format!("{}: {problem}", environment::SERVER);
            Failure::new(Exit::Usage, message)
        })
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
