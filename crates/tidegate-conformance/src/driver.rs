//! The program of a client, started for one scenario and ended with it.

use std::{io, net::SocketAddr, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    output::{Output, OutputSender, output},
    player::Player,
    position::At,
    scenario::Scenario,
    verdict::Verdict,
};

/// Bytes of a line of output that are looked at. A longer one is cut.
const MAX_LINE: u64 = 1 << 20;

/// Time in which the output of a program that has ended comes to its end, unless a child of it holds it open.
const DRAINING: Duration = Duration::from_secs(2);

/// Starts a program for each scenario, with the arguments of `tidegate sub`.
///
/// In the words of the command, `{server}` is the URL of the scripted server and `{address}` its host and port. The
/// other arguments take the place of the word `{arguments}`, or else follow the last one.
#[derive(Clone, Debug)]
pub struct Driver {
    words: Vec<String>,
    /// Whether its standard output is read.
    reads_output: bool,
}

/// The failure to run a program at all, which says nothing about a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The command has no word.
    #[error("there is no command: write the program of the client after `--`")]
    NoCommand,
    /// The program cannot be started.
    #[error("{program:?} cannot be started: {error}")]
    Start {
        /// The program, as given.
        program: String,
        /// The answer of the system.
        error: io::Error,
    },
    /// The client has called the server in none of the first scenarios, so its command is wrong, and not the client.
    #[error(
        "the client made no call in the first {scenarios} scenarios, so the others were left out; check its command: it must connect to the server that --server or {{address}} names"
    )]
    NoCall {
        /// Number of scenarios that were played.
        scenarios: usize,
    },
    /// The server cannot listen.
    #[error("the scripted server cannot listen at {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The answer of the system.
        error: io::Error,
    },
}

/// The processes of a client, which end with it.
#[cfg(unix)]
struct Group(Option<rustix::process::Pid>);

#[cfg(unix)]
impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(rustix::process::Pid::from_raw))
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails if nobody is left, which is well.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

impl Driver {
    /// Runs this command.
    pub fn new(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            words: words.into_iter().map(Into::into).collect(),
            reads_output: true,
        }
    }

    /// Judges the client by its requests alone, whatever it prints.
    #[must_use]
    pub fn requests_only(mut self) -> Self {
        self.reads_output = false;
        self
    }

    /// Plays a scenario to a new process of the program, and ends it.
    ///
    /// # Errors
    /// The program cannot be started, or the server cannot listen.
    pub async fn run(&self, scenario: &Scenario) -> Result<Verdict, DriverError> {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let player = Player::bind(scenario, address)
            .await
            .map_err(|error| DriverError::Listen { address, error })?;
        let words = self.command(scenario, &player);
        let (program, arguments) = words.split_first().ok_or(DriverError::NoCommand)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(match self.reads_output {
                true => Stdio::piped(),
                false => Stdio::null(),
            })
            .stderr(Stdio::piped())
            // Ended with its scenario, whatever becomes of it.
            .kill_on_drop(true);
        // And so are the processes that it starts, such as a client below a shell.
        #[cfg(unix)]
        command.process_group(0);
        let child = command.spawn().map_err(|error| DriverError::Start {
            program: program.clone(),
            error,
        })?;
        #[cfg(unix)]
        let _group = Group::of(&child);
        let (sender, receiver) = output();
        let play = async {
            match self.reads_output {
                true => player.play_and_read(receiver).await,
                false => player.play_and_watch(receiver).await,
            }
        };
        tokio::pin!(play);
        let verdict = tokio::select! {
            verdict = &mut play => verdict,
            () = watch(child, sender) => play.await,
        };
        Ok(verdict)
    }

    /// Returns the words of the command for a scenario.
    fn command(&self, scenario: &Scenario, player: &Player<'_>) -> Vec<String> {
        let address = player.address().to_string();
        let server = format!("http://{address}");
        let is_placed = |text: &str| self.words.iter().any(|word| word.contains(text));
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        if !is_placed("{server}") && !is_placed("{address}") {
            add("--server", server.clone());
        }
        if !is_placed("{arguments}") || self.reads_output {
            add("--output", "json".into());
        }
        let start = &scenario.client;
        if !start.client_id.is_empty() {
            add("--client-id", start.client_id.clone());
        }
        if let At::Position(position) = start.resume_after {
            add("--resume", position.to_string());
        }
        if start.replay_last > 0 {
            add("--replay", start.replay_last.to_string());
        }
        if let Some(seconds) = start.heartbeat_s {
            add("--heartbeat", format!("{seconds}s"));
        }
        if let Some(path) = player.token_file() {
            add("--token-file", path.display().to_string());
        }
        arguments.extend(start.filters.iter().cloned());
        let mut words = Vec::new();
        for word in &self.words {
            match word.as_str() {
                "{arguments}" => words.append(&mut arguments),
                word => words.push(
                    word.replace("{server}", &server)
                        .replace("{address}", &address),
                ),
            }
        }
        words.append(&mut arguments);
        words
    }
}

/// Hands over the output of a program, and its end.
async fn watch(mut child: Child, sender: OutputSender) {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reading = async {
        tokio::join!(
            lines(stdout, &sender, Output::Line),
            lines(stderr, &sender, Output::Words),
        )
    };
    tokio::pin!(reading);
    let status = tokio::select! {
        status = child.wait() => {
            // Its last words are in the pipes. A process that it left behind may hold them open.
            let _ = timeout(DRAINING, &mut reading).await;
            status
        }
        _ = &mut reading => child.wait().await,
    };
    let code = status.ok().and_then(|status| status.code());
    sender.send(Output::Exit(code)).await;
}

async fn lines(
    pipe: Option<impl AsyncRead + Unpin>,
    sender: &OutputSender,
    kind: fn(String) -> Output,
) {
    let Some(pipe) = pipe else { return };
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        let read = (&mut pipe)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await;
        if !matches!(read, Ok(count) if count > 0) {
            return;
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches(['\n', '\r']);
        if !line.is_empty() && !sender.send(kind(line.to_owned())).await {
            return;
        }
    }
}
