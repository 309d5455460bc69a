//! A scenario, played to one client and judged.

use std::{
    future::{pending, poll_fn},
    io::{self, Seek as _, Write as _},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use h2::SendStream;
use http::Response;
use tempfile::NamedTempFile;
use tidegate_proto::v1::SubscribeRequest;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    listener::{Call, Control, Listener},
    messages::{self, Made, Responses},
    output::{Output, OutputReceiver},
    position::{Allowed, At},
    scenario::{End, Expect, LeftEnd, Scenario, StatusEnd, Step, Stream},
    status::reset_code,
    told::{Account, Meaning, Mistake},
    verdict::{Problem, Side, Transcript, Verdict},
};

/// Longest time that a client may take to tell of what it was sent.
const TELLING: Duration = Duration::from_secs(20);

/// Longest time until the first call of a client that somebody starts by hand.
const BY_HAND: Duration = Duration::from_secs(600);

/// Time that a client without output is given to take what it was sent.
const TAKING: Duration = Duration::from_millis(300);

/// Time for which a stream that stays open is watched.
const STAYING: Duration = Duration::from_millis(200);

/// Time in which the end of a stream may arrive later than the next call, which comes over another connection.
const OVERTAKING: Duration = Duration::from_secs(1);

/// Earliness of a client that is not counted: timers have steps of a millisecond.
const TIMER: Duration = Duration::from_millis(2);

/// Parts of an event that is sent slowly.
const PIECES: usize = 15;

/// Waits that are as close as this, or by a tenth of them, count as equal.
const EQUAL_WAITS: Duration = Duration::from_millis(30);

/// Fewest waits of a run of failures that are compared with those of another.
const COMPARED_WAITS: usize = 4;

/// Parts of an output that may be taken beyond a deadline.
const FLOOD: usize = 1000;

/// Bytes of output that are searched for the words about an ending.
const MAX_WORDS: usize = 64 * 1024;

/// Parts of a scenario that is ready to be played: its server listens, and the file of its token is there.
#[derive(Debug)]
pub struct Player<'a> {
    scenario: &'a Scenario,
    listener: Listener,
    token_file: Option<NamedTempFile>,
    output: Option<OutputReceiver>,
    /// Whether the client is judged by its output too.
    reads_lines: bool,
    /// Whether the program of the client has ended, and its exit code.
    exit: Option<Option<i32>>,
    account: Account,
    has_complained: bool,
    /// A line that the client must not have printed.
    mistake: Option<Mistake>,
    /// A call that has overtaken the end of the stream before it.
    early: Option<Box<Call>>,
    /// Calls so far.
    calls: usize,
    /// Everything that the client said, lines and words.
    words: String,
    /// Length of that at the end of the stream before.
    words_before: usize,
    transcript: Transcript,
    /// Token in the file.
    token: Option<String>,
    /// Id of the client: its own, or the one that was assigned.
    client_id: String,
    /// End of the stream before: when, over which connection.
    ended: Option<(Instant, u64)>,
    /// Waits before each call, in runs of failures.
    waits: Vec<Vec<Duration>>,
}

/// An open stream.
struct Open {
    body: SendStream<Bytes>,
    control: Control,
    responses: Responses,
    /// Moment before the last byte was sent: the client may have it at once.
    last_byte: Instant,
}

/// Outcome of a wait.
enum Happening {
    /// The time is over.
    Deadline,
    /// The client opens a stream.
    Call(Box<Call>),
    /// The client has ended the stream, or its connection.
    Left,
    /// The program of the client has ended.
    Exited,
    /// The awaited state is there.
    Done,
}

/// Outcome of a stream.
enum Played {
    /// It ended, with a status or an answer that has these words.
    Ended(Vec<String>),
    /// It is open, and stays so.
    Open,
}

type Outcome<T> = Result<T, Problem>;

impl<'a> Player<'a> {
    /// Listens at `address`; port 0 is any free one.
    ///
    /// # Errors
    /// The address cannot be used, or no file for the token can be made.
    pub async fn bind(scenario: &'a Scenario, address: SocketAddr) -> io::Result<Self> {
        let listener = Listener::bind(address).await?;
        let token = scenario.client.token.clone();
        let token_file = token.is_some().then(NamedTempFile::new).transpose()?;
        let mut player = Self {
            scenario,
            listener,
            token_file,
            output: None,
            reads_lines: false,
            exit: None,
            account: Account::default(),
            has_complained: false,
            mistake: None,
            early: None,
            calls: 0,
            words: String::new(),
            words_before: 0,
            transcript: Transcript::new(),
            token: None,
            client_id: scenario.client.client_id.clone(),
            ended: None,
            waits: vec![Vec::new()],
        };
        if let Some(token) = token {
            player.write_token(&token)?;
        }
        Ok(player)
    }

    /// Returns the address at which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Returns the file from which the client must read its token before each call.
    pub fn token_file(&self) -> Option<&Path> {
        self.token_file.as_ref().map(NamedTempFile::path)
    }

    /// Plays the scenario to the client that connects, and judges it by its calls alone.
    pub async fn play(self) -> Verdict {
        self.run().await
    }

    /// Plays the scenario to the client that connects, and judges it by its calls and its output.
    pub async fn play_and_read(mut self, output: OutputReceiver) -> Verdict {
        self.output = Some(output);
        self.reads_lines = true;
        self.run().await
    }

    /// Plays the scenario to the client that connects, and judges it by its calls alone. The output says when its program
    /// has ended, and has words for the transcript.
    pub async fn play_and_watch(mut self, output: OutputReceiver) -> Verdict {
        self.output = Some(output);
        self.run().await
    }

    async fn run(mut self) -> Verdict {
        self.transcript = Transcript::new();
        let problems = match self.play_streams().await {
            Ok(()) => Vec::new(),
            Err(problem) => vec![problem],
        };
        let seconds = self.transcript.elapsed();
        Verdict {
            name: self.scenario.name.clone(),
            title: self.scenario.title.clone(),
            rows: self.scenario.covers.rows(),
            calls: self.calls,
            problems,
            transcript: self.transcript.finish(),
            seconds,
        }
    }

    async fn play_streams(&mut self) -> Outcome<()> {
        let scenario = self.scenario;
        let mut last = Played::Open;
        let mut waiting: Option<Box<Call>> = None;
        for (number, stream) in scenario.streams.iter().enumerate() {
            let number = number + 1;
            let problem = |(expected, seen)| Problem {
                stream: number,
                expected,
                seen,
            };
            let begin = Instant::now();
            let mut count = 0;
            loop {
                let call = match waiting.take() {
                    Some(call) => call,
                    None => {
                        match self
                            .await_call(stream, last.words())
                            .await
                            .map_err(problem)?
                        {
                            Some(call) => call,
                            // It has stopped, as it may.
                            None => return Ok(()),
                        }
                    }
                };
                let is_over = stream.repeat_ms.is_some_and(|limit| {
                    count > 0 && begin.elapsed() >= Duration::from_millis(limit)
                });
                if is_over {
                    waiting = Some(call);
                    break;
                }
                count += 1;
                if let Some(most) = stream.at_most.filter(|most| count > *most) {
                    let limit = stream.repeat_ms.unwrap_or_default();
                    let expected = format!(
                        "at most {most} streams in {limit} ms, with a wait whose bound doubles with each failure and starts again only when events or heartbeats flow"
                    );
                    let seen = format!("{count} streams in {} ms", begin.elapsed().as_millis());
                    return Err(problem((expected, seen)));
                }
                last = self.play_stream(number, stream, *call).await?;
                if stream.repeat_ms.is_none() && count == stream.repeat {
                    break;
                }
            }
        }
        self.compare_waits()?;
        match last {
            Played::Open => Ok(()),
            Played::Ended(status) => {
                self.expect_stop(status.as_ref())
                    .await
                    .map_err(|(expected, seen)| Problem {
                        stream: scenario.streams.len(),
                        expected,
                        seen,
                    })
            }
        }
    }

    /// Waits for the next call. None: the client has stopped, and may.
    async fn await_call(
        &mut self,
        stream: &Stream,
        words: &[String],
    ) -> Result<Option<Box<Call>>, (String, String)> {
        let since = self.ended.map_or_else(Instant::now, |(at, _)| at);
        let limit = match (self.ended, &self.output) {
            (None, None) => BY_HAND,
            _ => Duration::from_millis(stream.expect.within_ms),
        };
        let quiet = Duration::from_millis(self.scenario.quiet_ms);
        // A client that may stop need not be waited for as long.
        let patience = match stream.optional {
            true => limit.min(quiet + Duration::from_millis(stream.expect.after_ms)),
            false => limit,
        };
        let expected = match self.ended {
            None => format!("a call of Subscribe within {} s", limit.as_secs()),
            Some(_) => {
                let position = stream.expect.resume_after.as_ref();
                let position = position.map_or_else(String::new, |position| {
                    format!(" with the position to resume after {position}")
                });
                format!(
                    "the client to come back{position} within {} s",
                    limit.as_secs()
                )
            }
        };
        let happening = self.until(None, since + patience, |_| false).await?;
        match happening {
            Happening::Call(call) => Ok(Some(call)),
            _ if stream.optional => {
                self.check_stopped(words)?;
                Ok(None)
            }
            Happening::Exited => Err((expected, self.ending_of_client())),
            _ => Err((expected, "no call".into())),
        }
    }

    async fn play_stream(&mut self, number: usize, stream: &Stream, call: Call) -> Outcome<Played> {
        let problem = |(expected, seen)| Problem {
            stream: number,
            expected,
            seen,
        };
        self.check_call(number, &stream.expect, &call)
            .map_err(problem)?;
        if let Some((at, _)) = self.ended {
            let wait = call.arrived.saturating_duration_since(at);
            self.waits.last_mut().expect("has one").push(wait);
        }
        let connection = call.connection;
        let played = match (&stream.end, stream.play.is_empty()) {
            (Some(end), true) if !matches!(end, End::Left(_) | End::Cut) => {
                self.refuse(end, call).await.map_err(problem)?
            }
            _ => {
                let mut open = open(call).map_err(|error| problem(broken(&error)))?;
                for step in &stream.play {
                    self.step(step, &mut open).await.map_err(problem)?;
                }
                self.end(stream.end.as_ref(), open).await.map_err(problem)?
            }
        };
        self.ended = Some((Instant::now(), connection));
        self.words_before = self.words.len();
        if stream.play.iter().any(Step::shows_life) {
            self.waits.push(Vec::new());
        }
        Ok(played)
    }

    // ===== The request =====

    fn check_call(
        &mut self,
        number: usize,
        expect: &Expect,
        call: &Call,
    ) -> Result<(), (String, String)> {
        self.calls += 1;
        let request = match &call.request {
            Ok(request) => request.clone(),
            Err(problem) => {
                return Err((
                    "a request of one message, not compressed".into(),
                    problem.clone(),
                ));
            }
        };
        self.note_call(call, &request);
        let start = &self.scenario.client;
        let seen = At::from(request.resume_after);
        let allowed = expect.resume_after.clone();
        let allowed = allowed.unwrap_or(Allowed::One(start.resume_after));
        if !allowed.contains(seen) {
            let expected = format!("the position to resume after to be {allowed}");
            return Err((expected, format!("resume_after {seen}")));
        }
        let replay_last = match seen {
            // It repeats the original request, unless it was told to forget its position.
            At::Nowhere if start.resume_after == At::Nowhere => start.replay_last,
            _ => 0,
        };
        let client_id = match number {
            1 => start.client_id.clone(),
            _ => self.client_id.clone(),
        };
        let interval = start.heartbeat_s.map(i64::from);
        let token = expect.token.clone().or_else(|| self.token.clone());
        let authorization = token.map(|token| format!("Bearer {token}"));
        let words = |what: &str, expected: String, seen: String| match expected == seen {
            true => Ok(()),
            false => Err((format!("{what} {expected}"), format!("{what} {seen}"))),
        };
        words(
            "filters",
            format!("{:?}", start.filters),
            format!("{:?}", request.filters),
        )?;
        words(
            "client_id",
            format!("{client_id:?}"),
            format!("{:?}", request.client_id),
        )?;
        words(
            "replay_last",
            replay_last.to_string(),
            request.replay_last.to_string(),
        )?;
        if let Some(interval) = interval {
            let seen = request.heartbeat_interval.map(|interval| interval.seconds);
            words(
                "heartbeat_interval in seconds",
                format!("{:?}", Some(interval)),
                format!("{seen:?}"),
            )?;
        }
        if authorization.is_some() {
            let seen = call.headers.get("authorization");
            let seen = seen.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            words(
                "authorization",
                format!("{authorization:?}"),
                format!("{seen:?}"),
            )?;
        }
        self.check_moment(expect, call)
    }

    fn check_moment(&self, expect: &Expect, call: &Call) -> Result<(), (String, String)> {
        let Some((ended, connection)) = self.ended else {
            return Ok(());
        };
        let wait = call.arrived.saturating_duration_since(ended);
        if wait + TIMER < Duration::from_millis(expect.after_ms) {
            let expected = format!(
                "a wait of at least {} ms, as the server asked for",
                expect.after_ms
            );
            return Err((
                expected,
                format!("the next stream after {} ms", wait.as_millis()),
            ));
        }
        if expect.new_connection && call.connection == connection {
            let expected = "the next stream over a new connection".into();
            return Err((
                expected,
                "it came over the connection of the stream before".into(),
            ));
        }
        Ok(())
    }

    fn note_call(&mut self, call: &Call, request: &SubscribeRequest) {
        let mut text = format!(
            "Subscribe over connection {}, filters {:?}, client_id {:?}, resume_after {}, replay_last {}",
            call.connection,
            request.filters,
            request.client_id,
            At::from(request.resume_after),
            request.replay_last
        );
        if call.headers.contains_key("authorization") {
            text.push_str(", with a token");
        }
        self.transcript.add(call.arrived, Side::Client, text);
    }

    // ===== The stream =====

    async fn step(&mut self, step: &Step, open: &mut Open) -> Result<(), (String, String)> {
        let made = match step {
            Step::Subscribed(subscribed) => {
                if self.client_id.is_empty() {
                    self.client_id.clone_from(&subscribed.client_id);
                }
                open.responses.subscribed(subscribed, &self.client_id)
            }
            Step::Events(sequences) => open.responses.events(sequences),
            Step::Batch(batch) => open.responses.batch(batch),
            Step::Gap(gap) => open.responses.gap(gap).map_err(wrong)?,
            Step::Heartbeat(position) => messages::heartbeat(*position),
            Step::CaughtUp(position) => messages::caught_up(*position),
            Step::GoingAway(going_away) => messages::going_away(going_away),
            Step::UnknownResponse => messages::unknown_response(),
            Step::HalfEvent(sequence) => open.responses.half_event(*sequence),
            Step::SlowEvent(event) => {
                let made = open.responses.large_event(event.sequence, event.bytes);
                return self.send_slowly(open, made, event.over_ms).await;
            }
            Step::Message(digits) => messages::message(digits).map_err(wrong)?,
            Step::Bytes(digits) => messages::raw(digits).map_err(wrong)?,
            Step::WaitMs(ms) => return self.stay(open, Duration::from_millis(*ms)).await,
            Step::Token(token) => {
                self.note(format!("changes the token of the client to {token:?}"));
                return self
                    .write_token(token)
                    .map_err(|error| wrong(error.to_string()));
            }
            Step::Told => return self.expect_told(open).await,
        };
        self.note(made.text);
        // Before it is sent: its lines may come at once.
        self.account.sent(made.told);
        send(open, made.bytes)
    }

    async fn send_slowly(
        &mut self,
        open: &mut Open,
        made: Made,
        over_ms: u64,
    ) -> Result<(), (String, String)> {
        self.note(format!(
            "{}, in {PIECES} pieces over {over_ms} ms",
            made.text
        ));
        self.account.sent(made.told);
        let pause = Duration::from_millis(over_ms) / u32::try_from(PIECES).expect("is small");
        let size = made.bytes.len().div_ceil(PIECES);
        let mut rest = made.bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(size.min(rest.len()));
            send(open, piece)?;
            self.stay(open, pause).await?;
        }
        Ok(())
    }

    /// Lets time pass, in which the client must stay.
    async fn stay(&mut self, open: &mut Open, time: Duration) -> Result<(), (String, String)> {
        let deadline = Instant::now() + time;
        let happening = self.until(Some(open), deadline, |_| false).await?;
        self.check_staying(happening, "the client to stay on the open stream")
            .await
    }

    /// Waits until the client has told of all that was sent.
    async fn expect_told(&mut self, open: &mut Open) -> Result<(), (String, String)> {
        if !self.reads_lines {
            return self.stay(open, TAKING).await;
        }
        let deadline = Instant::now() + TELLING;
        let is_told = |player: &Self| player.account.next().is_none();
        let happening = self.until(Some(open), deadline, is_told).await?;
        if let (Happening::Deadline, Some(next)) = (&happening, self.account.next()) {
            let expected = format!("the client to tell of {next}");
            return Err((
                expected,
                format!("nothing of it within {} s", TELLING.as_secs()),
            ));
        }
        let expected = match self.account.next() {
            Some(next) => format!("the client to tell of {next}, on the open stream"),
            None => "the client to stay on the open stream".into(),
        };
        self.check_staying(happening, &expected).await
    }

    async fn check_staying(
        &mut self,
        happening: Happening,
        expected: &str,
    ) -> Result<(), (String, String)> {
        match happening {
            Happening::Deadline | Happening::Done => Ok(()),
            Happening::Exited => Err((expected.into(), self.ending_of_client())),
            // The program may be about to end, and its words say why.
            Happening::Left => {
                let _ = self.until(None, Instant::now() + TAKING, |_| false).await;
                let words = self.ending_of_client();
                Err((
                    expected.into(),
                    format!("the client ended the stream; {words}"),
                ))
            }
            Happening::Call(_) => Err((
                format!("{expected}, and to open no other before it has ended"),
                "another call of Subscribe".into(),
            )),
        }
    }

    // ===== The end =====

    /// Answers a call without opening its stream.
    async fn refuse(&mut self, end: &End, mut call: Call) -> Result<Played, (String, String)> {
        match end {
            End::Status(status) => {
                self.note(format!("refuses the call with {}", status.told()));
                let mut response = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .expect("is well formed");
                response
                    .headers_mut()
                    .extend(status.trailers().map_err(wrong)?);
                call.respond
                    .send_response(response, true)
                    .map_err(|error| broken(&error))?;
                Ok(Played::Ended(words_of(status)))
            }
            End::Http(http) => {
                self.note(format!("answers with HTTP status {}", http.status));
                let response = http.head().map_err(wrong)?;
                let body = call.respond.send_response(response, http.body.is_empty());
                let mut body = body.map_err(|error| broken(&error))?;
                if !http.body.is_empty() {
                    // A client that has read the status need not wait for the page.
                    let _ = body.send_data(http.body.clone().into(), true);
                }
                Ok(Played::Ended(words_of_page(http.status)))
            }
            End::Reset(code) => {
                self.note(format!("resets the call with {code}"));
                call.respond.send_reset(reset_code(code).map_err(wrong)?);
                Ok(Played::Ended(Vec::new()))
            }
            end => {
                let open = open(call).map_err(|error| broken(&error))?;
                self.end(Some(end), open).await
            }
        }
    }

    async fn end(&mut self, end: Option<&End>, mut open: Open) -> Result<Played, (String, String)> {
        let Some(end) = end else {
            self.expect_told(&mut open).await?;
            self.stay(&mut open, STAYING).await?;
            return Ok(Played::Open);
        };
        if end.is_abrupt() {
            // It overtakes what was sent before it, in the network or in the library of the client.
            self.expect_told(&mut open).await?;
        }
        let Open { body, control, .. } = &mut open;
        match end {
            End::Status(status) => {
                self.note(format!("ends the stream with {}", status.told()));
                let trailers = status.trailers().map_err(wrong)?;
                body.send_trailers(trailers)
                    .map_err(|error| broken(&error))?;
                if status.goes_away {
                    self.note("lets the connection end with GOAWAY");
                    open.control.go_away(None).await;
                }
                return Ok(Played::Ended(words_of(status)));
            }
            End::NoTrailers => {
                self.note("ends the stream without trailers");
                body.send_data(Bytes::new(), true)
                    .map_err(|error| broken(&error))?;
            }
            End::Reset(code) => {
                self.note(format!("resets the stream with {code}"));
                body.send_reset(reset_code(code).map_err(wrong)?);
            }
            End::Goaway(code) => {
                self.note(format!("ends the connection with GOAWAY and {code}"));
                let code = reset_code(code).map_err(wrong)?;
                control.go_away(Some(code)).await;
            }
            End::Cut => {
                self.note("closes the connection");
                control.close().await;
            }
            End::Left(left) => self.expect_leaving(left, open).await?,
            End::Complaint => {
                self.expect_complaint(open).await?;
                // It may go on in any way.
                return Ok(Played::Open);
            }
            End::Http(_) => {
                return Err(wrong("an answer in HTTP needs a stream that plays nothing"));
            }
        }
        Ok(Played::Ended(Vec::new()))
    }

    /// Waits until the client leaves a silent stream.
    async fn expect_leaving(
        &mut self,
        left: &LeftEnd,
        mut open: Open,
    ) -> Result<(), (String, String)> {
        self.note("is silent");
        let since = open.last_byte;
        let (after, within) = (
            Duration::from_millis(left.after_ms),
            Duration::from_millis(left.within_ms),
        );
        let expected = format!(
            "the client to leave the silent stream, between {} and {} s after the last byte",
            after.as_secs_f64(),
            within.as_secs_f64()
        );
        let happening = self
            .until(Some(&mut open), since + within, |_| false)
            .await?;
        let silence = since.elapsed();
        match happening {
            Happening::Left if silence + TIMER >= after => {
                self.note(format!(
                    "sees the client leave after {:.3} s",
                    silence.as_secs_f64()
                ));
                Ok(())
            }
            Happening::Left => Err((
                expected,
                format!("it left after {:.3} s", silence.as_secs_f64()),
            )),
            Happening::Deadline | Happening::Done => Err((
                expected,
                format!(
                    "the client was still there after {} s",
                    within.as_secs_f64()
                ),
            )),
            other => self.check_staying(other, &expected).await,
        }
    }

    /// Waits until the client has said that the server broke the protocol.
    async fn expect_complaint(&mut self, mut open: Open) -> Result<(), (String, String)> {
        let expected = "the client to report loudly that the server broke the protocol: an exit code other than 0, or a line of the type `error`";
        let quiet = Duration::from_millis(self.scenario.quiet_ms);
        if !self.reads_lines {
            // Whether it reported anything cannot be seen.
            let _ = self
                .until(Some(&mut open), Instant::now() + TAKING, |_| false)
                .await;
            return Ok(());
        }
        let deadline = Instant::now() + TELLING.min(quiet * 4);
        let has_complained = |player: &Self| player.has_complained || player.exit.is_some();
        self.until(Some(&mut open), deadline, has_complained)
            .await?;
        if self.exit.is_none() && !self.has_complained {
            self.until(None, Instant::now() + quiet, has_complained)
                .await?;
        }
        match self.exit {
            _ if self.has_complained => Ok(()),
            Some(code) if code != Some(0) => Ok(()),
            Some(_) => Err((expected.into(), self.ending_of_client())),
            None => Err((expected.into(), "nothing of the kind".into())),
        }
    }

    /// Fails if the client opens another stream, or does not say why it stopped.
    async fn expect_stop(&mut self, words: &[String]) -> Result<(), (String, String)> {
        let quiet = Duration::from_millis(self.scenario.quiet_ms);
        let happening = self.until(None, Instant::now() + quiet, |_| false).await?;
        if let Happening::Call(call) = happening {
            let wait = self.ended.map_or(Duration::ZERO, |(at, _)| {
                call.arrived.saturating_duration_since(at)
            });
            let expected = "the client to stop, and to open no further stream by itself".into();
            return Err((
                expected,
                format!("another call of Subscribe after {} ms", wait.as_millis()),
            ));
        }
        self.check_stopped(words)
    }

    /// Fails unless the client has told why it stopped.
    fn check_stopped(&mut self, words: &[String]) -> Result<(), (String, String)> {
        if !self.reads_lines {
            return Ok(());
        }
        if self.exit == Some(Some(0)) {
            let expected = "an exit code other than 0 of a client that has stopped".into();
            return Err((expected, self.ending_of_client()));
        }
        let Some(first) = words.first() else {
            return match self.exit {
                Some(_) => Ok(()),
                None => Err((
                    "the client to come back, or to end".into(),
                    "it did neither".into(),
                )),
            };
        };
        let said = self.words[self.words_before..].to_lowercase();
        match words.iter().any(|word| said.contains(&word.to_lowercase())) {
            true => Ok(()),
            false => {
                let expected = format!(
                    "a client that stops to tell its user why: the message, the reason or the code of the status, such as {first:?}"
                );
                Err((expected, self.ending_of_client()))
            }
        }
    }

    // ===== Waiting =====

    /// Waits for whatever happens first. Takes the output of the client meanwhile, and fails if one of its lines is wrong:
    /// that says more than whatever else the client does.
    async fn until(
        &mut self,
        mut open: Option<&mut Open>,
        deadline: Instant,
        is_done: impl Fn(&Self) -> bool,
    ) -> Result<Happening, (String, String)> {
        let mut taken = 0;
        loop {
            if let Some(mistake) = self.mistake.take() {
                return Err((mistake.expected, mistake.seen));
            }
            if is_done(self) {
                return Ok(Happening::Done);
            }
            // The output goes first, so a client that floods it would put off everything else.
            if taken > FLOOD && Instant::now() >= deadline {
                return Ok(Happening::Deadline);
            }
            if let Some(call) = self.early.take().or_else(|| self.waiting_call()) {
                return Ok(self.called(open, call).await);
            }
            if self.exit.is_some() {
                return Ok(Happening::Exited);
            }
            let left = async {
                match open.as_deref_mut() {
                    Some(open) => drop(poll_fn(|cx| open.body.poll_reset(cx)).await),
                    None => pending().await,
                }
            };
            let output = async {
                match &mut self.output {
                    Some(output) => output.next().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                // The output first: it says why a client leaves.
                biased;
                output = output => match output {
                    Some((at, output)) => {
                        taken += 1;
                        self.take(at, output);
                    }
                    None => self.exit = Some(None),
                },
                () = left => return Ok(Happening::Left),
                call = self.listener.calls.recv() => self.early = call.map(Box::new),
                () = sleep_until(deadline) => return Ok(Happening::Deadline),
            }
        }
    }

    fn waiting_call(&mut self) -> Option<Box<Call>> {
        // Only where the program has ended: otherwise its output comes first.
        self.exit?;
        self.listener.calls.try_recv().ok().map(Box::new)
    }

    /// Orders a call and the end of the stream before it, which may come over two connections.
    async fn called(&mut self, open: Option<&mut Open>, call: Box<Call>) -> Happening {
        let Some(open) = open else {
            return Happening::Call(call);
        };
        let left = poll_fn(|cx| open.body.poll_reset(cx));
        match timeout(OVERTAKING, left).await {
            Ok(_) => {
                self.early = Some(call);
                Happening::Left
            }
            Err(_) => Happening::Call(call),
        }
    }

    /// Takes a part of the output of the client.
    fn take(&mut self, at: Instant, output: Output) {
        match output {
            Output::Line(line) => {
                self.transcript.add(at, Side::Output, &line);
                self.hear(&line);
                match self.account.line(&line) {
                    Ok(Meaning::Complaint) => self.has_complained = true,
                    Ok(Meaning::AsSent | Meaning::Other) => {}
                    Err(mistake) => {
                        self.mistake.get_or_insert(mistake);
                    }
                }
            }
            Output::Words(words) => {
                let text = format!("(standard error) {words}");
                self.transcript.add(at, Side::Output, text);
                self.hear(&words);
            }
            Output::Exit(code) => {
                self.transcript.add(at, Side::Output, exit_in_words(code));
                self.exit = Some(code);
            }
        }
    }

    fn hear(&mut self, words: &str) {
        if self.words.len() + words.len() < MAX_WORDS {
            self.words.push_str(words);
            self.words.push('\n');
        }
    }

    /// Returns how the program of the client has ended, with its last words.
    fn ending_of_client(&self) -> String {
        let ending = self.exit.map_or("it runs".into(), exit_in_words);
        match self.words.trim_end().lines().next_back() {
            Some(last) => format!("{ending}; its last words: {last}"),
            None => format!("{ending}, and it has said nothing"),
        }
    }

    fn note(&mut self, text: impl Into<String>) {
        self.transcript.add(Instant::now(), Side::Server, text);
    }

    fn write_token(&mut self, token: &str) -> io::Result<()> {
        let file = self.token_file.as_mut().ok_or_else(|| {
            io::Error::other("the client of a scenario that changes its token needs a `token`")
        })?;
        // In place, as an editor may do it. A client that reads it at the wrong moment finds a part of the new token, so
        // it is written while no call is under way.
        let file = file.as_file_mut();
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{token}")?;
        self.token = Some(token.into());
        Ok(())
    }

    // ===== Waits =====

    /// Fails if the waits of two runs of failures are the same, where chance must make them differ.
    fn compare_waits(&self) -> Outcome<()> {
        if !self.scenario.compare_waits {
            return Ok(());
        }
        let runs: Vec<_> = self
            .waits
            .iter()
            .filter(|run| run.len() >= COMPARED_WAITS)
            .collect();
        let [first, second, ..] = runs[..] else {
            return Ok(());
        };
        let is_equal = |(one, other): (&Duration, &Duration)| {
            one.abs_diff(*other) <= EQUAL_WAITS.max((*one).max(*other) / 10)
        };
        if !first.iter().zip(second).all(is_equal) {
            return Ok(());
        }
        let told = |run: &[Duration]| -> Vec<_> { run.iter().map(Duration::as_millis).collect() };
        Err(Problem {
            stream: 0,
            expected: "waits of a random length, so that clients which lost their connections together do not come back together".into(),
            seen: format!("two runs of failures with the same waits, in ms: {:?} and {:?}", told(first), told(second)),
        })
    }
}

impl Played {
    fn words(&self) -> &[String] {
        match self {
            Self::Ended(words) => words,
            Self::Open => &[],
        }
    }
}

impl End {
    /// Whether it may overtake what was sent before it.
    fn is_abrupt(&self) -> bool {
        matches!(
            self,
            Self::Reset(_) | Self::Goaway(_) | Self::Cut | Self::NoTrailers | Self::Left(_)
        )
    }
}

impl Step {
    /// Whether a client may take it for a sign that the server is well, and begin anew with its back-off.
    fn shows_life(&self) -> bool {
        matches!(
            self,
            Self::Events(_)
                | Self::Batch(_)
                | Self::Gap(_)
                | Self::Heartbeat(_)
                | Self::SlowEvent(_)
        )
    }
}

fn open(mut call: Call) -> Result<Open, h2::Error> {
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .expect("is well formed");
    let last_byte = Instant::now();
    Ok(Open {
        body: call.respond.send_response(response, false)?,
        control: call.control,
        responses: Responses::default(),
        last_byte,
    })
}

fn send(open: &mut Open, bytes: Bytes) -> Result<(), (String, String)> {
    open.last_byte = Instant::now();
    let sent = open.body.send_data(bytes, false);
    sent.map_err(|error| broken(&error))
}

/// Breach of a client that has broken its connection or stream.
fn broken(error: &h2::Error) -> (String, String) {
    let expected = "the client to stay on the open stream".into();
    (
        expected,
        format!("the stream or its connection broke: {error}"),
    )
}

/// Returns the words of which a client that stops at a status tells its user one.
fn words_of(status: &StatusEnd) -> Vec<String> {
    let mut words = vec![status.message.clone(), status.code.name()];
    words.extend(status.stated_reason().map(Into::into));
    words
}

/// Returns the words for an answer in HTTP: its status, and the code that gRPC reads it as.
fn words_of_page(status: u16) -> Vec<String> {
    let code = match status {
        400 => "INTERNAL",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "UNIMPLEMENTED",
        429 | 502 | 503 | 504 => "UNAVAILABLE",
        _ => "UNKNOWN",
    };
    vec![status.to_string(), code.into()]
}

/// Fault of the scenario, and not of the client.
fn wrong(problem: impl Into<String>) -> (String, String) {
    ("a scenario that can be played".into(), problem.into())
}

fn exit_in_words(code: Option<i32>) -> String {
    match code {
        Some(code) => format!("the client ended with exit code {code}"),
        None => "the client ended without an exit code".into(),
    }
}
