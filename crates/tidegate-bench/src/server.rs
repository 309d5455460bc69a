//! The server under load: one that runs already, or a child of the benchmark.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, uri::Authority};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpStream, lookup_host},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{
    Cores, Credentials, Error,
    tls::{MadeCertificate, Tls},
    usage,
};

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
    address: Option<SocketAddr>,
    /// The cores it is held to. `None`: those of the benchmark.
    pub cores: Option<Cores>,
    /// What its arguments name, if it speaks TLS.
    certificate: Option<Arc<MadeCertificate>>,
}

/// A server that is under load.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// As in `Host`.
    authority: String,
    /// What each call shows of who makes it.
    authorization: Option<HeaderValue>,
    /// How to speak TLS with it, if it does.
    tls: Option<Tls>,
    /// What it reads its certificate from, if that was made for it.
    _certificate: Option<Arc<MadeCertificate>>,
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
            certificate: None,
        }
    }

    /// One that does not say where it listens.
    #[must_use]
    pub const fn listening_at(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Makes a certificate for it, which the options `certificate` and `key` name the files of. It is to listen
    /// on 127.0.0.1.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn with_tls(mut self, certificate: &str, key: &str) -> Result<Self, Error> {
        let made = MadeCertificate::new("127.0.0.1")?;
        let files = [(certificate, made.certificate()), (key, made.key())];
        for (option, file) in files {
            self.arguments.extend([option.into(), file.into()]);
        }
        self.certificate = Some(Arc::new(made));
        Ok(self)
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
        let trusted = |made: &Arc<MadeCertificate>| {
            Tls::new(
                &address.ip().to_string(),
                &Credentials::trusting(made.pem()),
            )
        };
        Ok(Server {
            address,
            authority: address.to_string(),
            authorization: None,
            tls: self.certificate.as_ref().map(trusted).transpose()?,
            _certificate: self.certificate.clone(),
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
    /// When the URL is not understood or its host not found, there is no such process, or the credentials cannot
    /// be used.
    pub async fn running(
        url: &str,
        pid: Option<u32>,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        allow_many_connections();
        let (authority, is_tls) = authority(url)?;
        if let Some(pid) = pid
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            return Err(Error::Invalid(format!(
                "there is no process {pid} on this machine; `pgrep tidegate` finds a server's"
            )));
        }
        let connect = |reason: String| Error::Connect {
            address: authority.to_string(),
            reason,
        };
        let mut found = lookup_host(authority.as_str())
            .await
            .map_err(|error| connect(error.to_string()))?;
        let address = found.next().ok_or_else(|| connect("no such host".into()))?;
        let tls = is_tls.then(|| Tls::new(authority.host(), credentials));
        Ok(Self {
            address,
            authority: authority.to_string(),
            authorization: credentials.token.as_deref().map(bearer).transpose()?,
            tls: tls.transpose()?,
            _certificate: None,
            pid,
            child: None,
        })
    }

    /// What each call shows of who makes it.
    pub(crate) const fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// How to speak TLS with it, if it does.
    pub(crate) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
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

/// The value of the header `authorization` for a token.
fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let value = is_token.then(|| HeaderValue::try_from(format!("Bearer {token}")).ok());
    let mut value = value.flatten().ok_or_else(|| {
        Error::credentials(
            "a token is printable ASCII without white space, and not empty; this one is not",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// `host:port` of a URL, and whether it speaks TLS.
fn authority(url: &str) -> Result<(Authority, bool), Error> {
    let invalid = || {
        Error::Invalid(format!(
            "{url:?} is no server; write it as http://HOST:PORT or https://HOST:PORT"
        ))
    };
    let (rest, is_tls) = match url.split_once("://") {
        Some(("http", rest)) => (rest, false),
        Some(("https", rest)) => (rest, true),
        Some(_) => return Err(invalid()),
        None => (url, false),
    };
    let rest = rest.trim_end_matches('/');
    let named: Authority = rest.parse().map_err(|_| invalid())?;
    let port = if is_tls { 443 } else { 80 };
    let authority = match named.port() {
        Some(_) => named,
        None => format!("{rest}:{port}").parse().map_err(|_| invalid())?,
    };
    Ok((authority, is_tls))
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
            ("http://127.0.0.1:50051", ("127.0.0.1:50051", false)),
            ("http://[::1]:1/", ("[::1]:1", false)),
            ("host:1", ("host:1", false)),
            ("http://host", ("host:80", false)),
            ("https://host:1", ("host:1", true)),
            ("https://host", ("host:443", true)),
        ] {
            let (authority, is_tls) = authority(url).unwrap();
            assert_eq!((authority.as_str(), is_tls), expected);
        }
        for bad in ["", "ftp://host", "http://a b", "http://host/path"] {
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
        let nothing = Credentials::default();
        let error = Server::running("127.0.0.1:1", Some(u32::MAX), &nothing)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no process"), "{error}");
    }

    #[test]
    fn a_token_never_shows() {
        assert!(!format!("{:?}", bearer("secret").unwrap()).contains("secret"));
        for bad in ["", "two words", "\u{e9}", "a\nb"] {
            assert!(bearer(bad).is_err(), "{bad:?}");
        }
    }
}
