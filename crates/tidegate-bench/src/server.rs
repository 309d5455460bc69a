//! The server under load: one that is running already, or a child process of the benchmark.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, uri::Authority};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
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

/// How long a server may take to announce its address, or to accept a connection there.
const STARTUP: Duration = Duration::from_secs(10);

/// Open files of a process that are not connections to or of clients, with room to spare.
const SPARE_FILES: usize = 64;

/// A program that serves, and how to start it.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The path of the program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The address that it will listen on. `None`: it announces it in its first line, `listening on ADDRESS`.
    address: Option<SocketAddr>,
    /// The cores that it is held to. `None`: those of the benchmark.
    pub cores: Option<Cores>,
    /// The certificate that its arguments name, if it speaks TLS.
    certificate: Option<Arc<MadeCertificate>>,
}

/// A server under load.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// Host and port, as in the header `Host`.
    authority: String,
    /// The header `authorization` of each call.
    authorization: Option<HeaderValue>,
    /// The connector for TLS, if it speaks TLS.
    tls: Option<Tls>,
    /// The files of its certificate, if that was made for it. They live as long as the server.
    _certificate: Option<Arc<MadeCertificate>>,
    /// Its process id, if known.
    pid: Option<u32>,
    /// How it was started, if it is a child.
    launch: Option<Launch>,
    /// The child, which is killed on drop, and its output, which stays open so that the child can write to it.
    child: Option<(Child, Option<BufReader<ChildStdout>>)>,
}

// ===== impl Launch =====

impl Launch {
    /// Describes a program that announces its address in its first line.
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

    /// Describes `tidegate serve`, by the `program` tidegate, on a free port. The quotas on the filters of an address are off,
    /// because a benchmark is one address with the filters of thousands of clients.
    pub fn tidegate(program: impl Into<PathBuf>) -> Self {
        let arguments = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--quotas-address-filter-work",
            "none",
            "--quotas-address-filter-bytes",
            "none",
        ];
        Self::new(program, arguments)
    }

    /// Sets the address, for a program that does not announce it.
    #[must_use]
    pub const fn listening_at(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Makes a certificate for 127.0.0.1, and passes its files to the program by the options `certificate` and `key`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the files cannot be written.
    pub fn with_tls(mut self, certificate: &str, key: &str) -> Result<Self, Error> {
        let made = MadeCertificate::new("127.0.0.1")?;
        let files = [(certificate, made.certificate()), (key, made.key())];
        for (option, file) in files {
            self.arguments.extend([option.into(), file.into()]);
        }
        self.certificate = Some(Arc::new(made));
        Ok(self)
    }

    /// Starts the program and waits, for at most 10 s, until it listens.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] if it does not start, ends, or does not listen in time.
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
            (None, None) => return Err(self.failed("its output cannot be read")),
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
            launch: Some(self.clone()),
            child: Some((child, output)),
        })
    }

    async fn announced(&self, output: &mut BufReader<ChildStdout>) -> Result<SocketAddr, Error> {
        let mut line = String::new();
        let read = timeout(STARTUP, output.read_line(&mut line)).await;
        match read {
            Err(_) => return Err(self.failed("it has not announced its address after 10 s")),
            Ok(Err(error)) => return Err(self.failed(error.to_string())),
            Ok(Ok(0)) => return Err(self.failed("it ended at once; its messages are above")),
            Ok(Ok(_)) => {}
        }
        let address = line.trim().strip_prefix("listening on ");
        address
            .and_then(|address| address.parse().ok())
            .ok_or_else(|| {
                self.failed(format!(
                    "its first line must be `listening on ADDRESS`, but is {line:?}"
                ))
            })
    }

    /// Waits until `address` accepts connections, for servers that do not announce it.
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
            () = tokio::time::sleep(STARTUP) => Err(self.failed(format!("it does not listen on {address} after 10 s"))),
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
    /// Finds a running server. Without `pid`, its processor time and memory are unknown.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the URL is malformed or there is no such process, [`Error::Connect`] if the host is
    /// unknown, and [`Error::Credentials`] if the credentials cannot be used.
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
                "there is no process {pid} on this machine; `pgrep tidegate` prints the id of a server"
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
            launch: None,
            child: None,
        })
    }

    /// Returns the header `authorization` of each call.
    pub(crate) const fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Returns the connector for TLS, if the server speaks TLS.
    pub(crate) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Returns the address that the server listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns host and port of the server, as in the header `Host`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns its process id, if known.
    #[must_use]
    pub const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Whether the benchmark started the server.
    #[must_use]
    pub const fn is_child(&self) -> bool {
        self.child.is_some()
    }

    /// Returns the cores that the server may use, if its process is known.
    #[must_use]
    pub fn cores(&self) -> Option<Cores> {
        usage::allowed_cores(self.pid?)
    }

    /// Returns the processor time that the server has used, if its process is known.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the process has ended.
    pub fn cpu_time(&self) -> Result<Option<usage::CpuTime>, Error> {
        self.pid.map(usage::CpuTime::of).transpose()
    }

    /// Returns its resident memory in bytes, if its process is known.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the process has ended.
    pub fn resident_bytes(&self) -> Result<Option<u64>, Error> {
        self.pid.map(usage::resident_bytes).transpose()
    }

    /// Kills a child, as a crash would, and starts another of it, at an address of its own. Any other server cannot be
    /// restarted.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it is no child, and as for [`Launch::start`].
    pub(crate) async fn restart(&self) -> Result<Self, Error> {
        let (Some(launch), Some(pid)) = (&self.launch, self.pid) else {
            return Err(Error::Invalid(
                "only a server that the benchmark has started can be restarted; leave out --server"
                    .into(),
            ));
        };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::KILL)
                .map_err(|error| Error::system("cannot kill the server")(error.into()))?;
        }
        launch.start().await
    }

    /// Kills a child, and waits until it has ended; leaves any other server running.
    pub async fn stop(mut self) {
        if let Some((child, _)) = &mut self.child {
            // This fails if the child has ended by itself.
            let _ = child.kill().await;
        }
    }
}

/// Returns the value of the header `authorization` for a token.
fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let value = is_token.then(|| HeaderValue::try_from(format!("Bearer {token}")).ok());
    let mut value = value.flatten().ok_or_else(|| {
        Error::credentials("the token must be printable ASCII without white space, and not empty")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns `host:port` of a URL, and whether it is one for TLS.
fn authority(url: &str) -> Result<(Authority, bool), Error> {
    let invalid = || {
        Error::Invalid(format!(
            "{url:?} is not the URL of a server; write it as http://HOST:PORT or https://HOST:PORT"
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

/// Checks that this process, and with it its children, may open `connections` connections.
///
/// # Errors
///
/// [`Error::Invalid`] if it may open too few files.
pub(crate) fn check_open_files(connections: usize) -> Result<(), Error> {
    let needed = connections.saturating_add(SPARE_FILES);
    let allowed = getrlimit(Resource::Nofile).current;
    let allowed = allowed.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    });
    if allowed < needed {
        return Err(Error::Invalid(format!(
            "{connections} connections need {needed} open files, and {allowed} are allowed; raise the limit with \
             `ulimit -Hn {needed}`, or use fewer"
        )));
    }
    Ok(())
}

/// Raises the limit on open files of this process, and of its children, to the maximum that the system allows.
fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // If the system refuses, the first connection beyond the limit fails with an error that says so.
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
