//! The server under load: one that runs already, or a child of the benchmark.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use http::HeaderValue;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpStream, lookup_host},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{Cores, Error, usage};

/// How long a server has to say where it listens, or to answer there.
const STARTUP: Duration = Duration::from_secs(10);

/// How a program is started that serves.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where it will listen. `None`: it says so in its first line, `listening on ADDRESS`.
    pub address: Option<SocketAddr>,
    /// The cores it is held to. `None`: those of the benchmark.
    pub cores: Option<Cores>,
}

/// A server that is under load.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// As in `Host`.
    authority: String,
    /// What each call shows of who makes it.
    authorization: Option<HeaderValue>,
    /// Its process, if known.
    pid: Option<u32>,
    /// Killed when this is dropped. Its output is kept open, or it would fail to write.
    child: Option<(Child, Option<BufReader<ChildStdout>>)>,
}

// ===== impl Launch =====

impl Launch {
    /// A program that says where it listens.
    pub fn new<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            address: None,
            cores: None,
        }
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it does not start, ends, or does not listen in time.
    pub async fn start(&self) -> Result<Server, Error> {
        allow_many_connections();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .kill_on_drop(true)
            .stdin(Stdio::null());
        command.stdout(if self.address.is_some() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        let child = match &self.cores {
            Some(cores) => cores.while_held(|| command.spawn())?,
            None => command.spawn(),
        };
        let mut child = child.map_err(|error| self.failed(error.to_string()))?;
        let mut output = child.stdout.take().map(BufReader::new);
        let address = match (self.address, &mut output) {
            (Some(address), _) => self.wait_for(&mut child, address).await?,
            (None, Some(output)) => self.announced(output).await?,
            (None, None) => return Err(self.failed("its output is lost")),
        };
        Ok(Server {
            address,
            authority: address.to_string(),
            authorization: None,
            pid: child.id(),
            child: Some((child, output)),
        })
    }

    async fn announced(&self, output: &mut BufReader<ChildStdout>) -> Result<SocketAddr, Error> {
        let mut line = String::new();
        let read = timeout(STARTUP, output.read_line(&mut line)).await;
        match read {
            Err(_) => return Err(self.failed("it does not say where it listens")),
            Ok(Err(error)) => return Err(self.failed(error.to_string())),
            Ok(Ok(0)) => return Err(self.failed("it ended at once; its messages are above")),
            Ok(Ok(_)) => {}
        }
        let address = line.trim().strip_prefix("listening on ");
        address
            .and_then(|address| address.parse().ok())
            .ok_or_else(|| {
                self.failed(format!(
                    "its first line was to be `listening on ADDRESS`, and is {line:?}"
                ))
            })
    }

    /// Waits until somebody listens at `address`, for servers that do not tell.
    async fn wait_for(&self, child: &mut Child, address: SocketAddr) -> Result<SocketAddr, Error> {
        let connects = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = connects => Ok(address),
            status = child.wait() => match status {
                Ok(status) => Err(self.failed(format!("it ended at once, {status}"))),
                Err(error) => Err(self.failed(error.to_string())),
            },
            () = tokio::time::sleep(STARTUP) => Err(self.failed(format!("it does not listen at {address}"))),
        }
    }

    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Start {
            program: self.program.display().to_string(),
            reason: reason.into(),
        }
    }
}

// ===== impl Server =====

impl Server {
    /// One that runs already. Without `pid`, what it uses is not known.
    ///
    /// # Errors
    ///
    /// When the URL is not understood or its host not found, or there is no such process.
    pub async fn running(url: &str, pid: Option<u32>) -> Result<Self, Error> {
        allow_many_connections();
        let authority = authority(url)?;
        if let Some(pid) = pid
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            return Err(Error::Invalid(format!(
                "there is no process {pid} on this machine; `pgrep tidegate` finds a server's"
            )));
        }
        let connect = |reason: String| Error::Connect {
            address: authority.clone(),
            reason,
        };
        let mut found = lookup_host(authority.clone())
            .await
            .map_err(|error| connect(error.to_string()))?;
        let address = found.next().ok_or_else(|| connect("no such host".into()))?;
        Ok(Self {
            address,
            authority,
            authorization: None,
            pid,
            child: None,
        })
    }

    /// With a bearer token that each call shows.
    ///
    /// # Errors
    ///
    /// [`Error::Token`] if the token cannot be sent.
    pub fn with_token(mut self, token: &str) -> Result<Self, Error> {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| Error::Token)?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// What each call shows of who makes it.
    pub(crate) const fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name, and the port.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Its process, if known.
    #[must_use]
    pub const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Whether the benchmark started it.
    #[must_use]
    pub const fn is_child(&self) -> bool {
        self.child.is_some()
    }

    /// The cores it may use, if its process is known.
    #[must_use]
    pub fn cores(&self) -> Option<Cores> {
        usage::allowed_cores(self.pid?)
    }

    /// The processor time it has used, if its process is known.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn cpu_time(&self) -> Result<Option<usage::CpuTime>, Error> {
        self.pid.map(usage::CpuTime::of).transpose()
    }

    /// Its resident memory in bytes, if its process is known.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn resident_bytes(&self) -> Result<Option<u64>, Error> {
        self.pid.map(usage::resident_bytes).transpose()
    }

    /// Ends a child, and waits until it has; leaves another server alone.
    pub async fn stop(mut self) {
        if let Some((child, _)) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill().await;
        }
    }
}

/// `host:port` of a URL.
fn authority(url: &str) -> Result<String, Error> {
    let invalid = || {
        Error::Invalid(format!(
            "{url:?} is no server; write it as http://HOST:PORT"
        ))
    };
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err(Error::Invalid(
                "benchmarks do not speak TLS; use http://".into(),
            ));
        }
        Some(_) => return Err(invalid()),
        None => url,
    };
    let authority = rest.trim_end_matches('/');
    let uri: http::uri::Authority = authority.parse().map_err(|_| invalid())?;
    Ok(match uri.port() {
        Some(_) => authority.to_owned(),
        None => format!("{authority}:80"),
    })
}

/// Raises the number of descriptors this process, and what it starts, may have open to what is allowed.
fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where that is refused, opening the connection that is too many says so.
    let _ = setrlimit(Resource::Nofile, raised);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_its_url() {
        for (url, expected) in [
            ("http://127.0.0.1:50051", "127.0.0.1:50051"),
            ("http://[::1]:1/", "[::1]:1"),
            ("host:1", "host:1"),
            ("http://host", "host:80"),
        ] {
            assert_eq!(authority(url).unwrap(), expected);
        }
        for bad in [
            "",
            "https://host",
            "ftp://host",
            "http://a b",
            "http://host/path",
        ] {
            assert!(authority(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_start_is_explained() {
        let missing = Launch::new("/nonexistent/server", [""; 0])
            .start()
            .await
            .unwrap_err();
        assert!(
            missing.to_string().contains("/nonexistent/server"),
            "{missing}"
        );
        let ended = Launch::new("true", [""; 0]).start().await.unwrap_err();
        assert!(ended.to_string().contains("ended at once"), "{ended}");
        let other = Launch::new("echo", ["hello"]).start().await.unwrap_err();
        assert!(other.to_string().contains("hello"), "{other}");
    }

    #[tokio::test]
    async fn a_process_that_does_not_exist_is_refused() {
        let error = Server::running("127.0.0.1:1", Some(u32::MAX))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no process"), "{error}");
    }
}
