//! Scenarios: what a client is started with, what the server plays, and what the client must do.
//!
//! A scenario is a file of TOML, which docs/conformance.md explains. Everything in it is checked when it is read, so a
//! scenario that can be played at all is played as it says.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

use crate::position::{Allowed, At};

/// Longest time that a client may take for its next step, where a stream says nothing else.
const PATIENCE_MS: u64 = 20_000;

/// A script for one run of a client.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Scenario {
    /// Name of the file, and of the case if the file has several: `stop-at-a-reason/TAKEN_OVER`.
    #[serde(skip)]
    pub name: String,
    /// The rule, in a sentence.
    pub title: String,
    /// Rows of the tables of docs/protocol.md that the scenario proves.
    #[serde(default)]
    pub covers: Covers,
    /// Abilities that the client needs besides those that follow from [`client`](Self::client).
    #[serde(default)]
    pub needs: Vec<String>,
    /// The request that the client makes.
    #[serde(default)]
    pub client: Start,
    /// The streams, one after the other. If the last one ends, the client must stop. If not, it stays open.
    #[serde(rename = "stream")]
    pub streams: Vec<Stream>,
    /// Whether the waits of the client must be random: those before each run of failures are compared.
    #[serde(default)]
    pub compare_waits: bool,
    /// Time in which a client that must stop must open no further stream.
    #[serde(default = "quiet_ms")]
    pub quiet_ms: u64,
}

/// Rows of docs/protocol.md, by the table and the first cells.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Covers {
    /// Rows of *Statuses, and what to do next*: a code and a reason, as in `UNAVAILABLE SHUTTING_DOWN`.
    #[serde(default)]
    pub statuses: Vec<String>,
    /// Rows of the table in *Positions and epochs*: the first cell without its marks.
    #[serde(default)]
    pub positions: Vec<String>,
    /// Rows of the table in *Gaps*: the reason.
    #[serde(default)]
    pub gaps: Vec<String>,
    /// Headings of docs/protocol.md whose text, outside of these tables, has the rule.
    #[serde(default)]
    pub sections: Vec<String>,
}

/// The request that a client makes at first.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Start {
    /// Topics and patterns.
    #[serde(default = "filters")]
    pub filters: Vec<String>,
    /// Client id. Empty: the server assigns one.
    #[serde(default)]
    pub client_id: String,
    /// Position to resume after.
    #[serde(default)]
    pub resume_after: At,
    /// Number of the newest events to replay.
    #[serde(default)]
    pub replay_last: u32,
    /// Interval of heartbeats to ask for, in seconds.
    #[serde(default)]
    pub heartbeat_s: Option<u32>,
    /// Bearer token, in a file that the server changes in between.
    #[serde(default)]
    pub token: Option<String>,
}

/// One call of `Subscribe`, or several that are answered alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Stream {
    /// Demands on the request.
    #[serde(default)]
    pub expect: Expect,
    /// Whether the client may stop instead of opening this stream.
    #[serde(default)]
    pub optional: bool,
    /// Number of calls in a row that are answered so.
    #[serde(default = "one")]
    pub repeat: u32,
    /// Time during which every call is answered so, instead of a number of calls.
    #[serde(default)]
    pub repeat_ms: Option<u64>,
    /// Number of calls that may come within that time.
    #[serde(default)]
    pub at_most: Option<u32>,
    /// Responses, in order.
    #[serde(default)]
    pub play: Vec<Step>,
    /// The end. None: the stream stays open.
    #[serde(default)]
    pub end: Option<End>,
}

/// The demands on a request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Expect {
    /// Its position. The first stream of a scenario needs none: it has that of the client.
    #[serde(default)]
    pub resume_after: Option<Allowed>,
    /// Its token.
    #[serde(default)]
    pub token: Option<String>,
    /// Time after the end of the stream before, at least.
    #[serde(default)]
    pub after_ms: u64,
    /// Time after the end of the stream before, at most.
    #[serde(default = "patience_ms")]
    pub within_ms: u64,
    /// Whether it must come over another connection than the stream before.
    #[serde(default)]
    pub new_connection: bool,
}

/// A response, or something else that the server does in the middle of a stream.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Step {
    /// Response `subscribed`.
    Subscribed(SubscribedStep),
    /// Batch of events with these sequences, with the index that follows.
    Events(Vec<u64>),
    /// Batch in every detail.
    Batch(BatchStep),
    /// Response `gap`.
    Gap(GapStep),
    /// Response `heartbeat` with this position.
    Heartbeat(At),
    /// Response `caught_up` with this position.
    CaughtUp(At),
    /// Response `going_away`.
    GoingAway(GoingAwayStep),
    /// Response whose kind no client knows yet.
    UnknownResponse,
    /// First half of a batch with the event of this sequence.
    HalfEvent(u64),
    /// Event whose bytes come one part after the other.
    SlowEvent(SlowEventStep),
    /// Message with these bytes, in hexadecimal, which need not be protobuf.
    Message(String),
    /// Bytes that are no gRPC message, in hexadecimal.
    Bytes(String),
    /// Wait, in milliseconds.
    WaitMs(u64),
    /// Change of the token in the file of the client.
    Token(String),
    /// Wait until the client has told of everything so far.
    Told,
}

/// Fields of `subscribed`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SubscribedStep {
    /// Newest event of the server. Its epoch is the one of the stream.
    pub head: At,
    /// Index of the first event.
    #[serde(default)]
    pub next_index: u64,
    /// Id that the server assigns to a client without one.
    #[serde(default = "assigned_id")]
    pub client_id: String,
}

/// Fields of a batch.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BatchStep {
    /// Its events.
    pub events: Vec<EventFields>,
    /// Index of the first of them. None: the one that follows.
    #[serde(default)]
    pub first_index: Option<u64>,
    /// Whether the batch breaks the protocol, so that a client need not tell of its events.
    #[serde(default)]
    pub is_broken: bool,
}

/// Fields of an event.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EventFields {
    /// Its sequence.
    pub sequence: u64,
    /// Its topic. None: one that matches the filters.
    #[serde(default)]
    pub topic: Option<String>,
    /// Its payload, as text. None: one that names the sequence.
    #[serde(default)]
    pub payload: Option<String>,
    /// Its payload in hexadecimal, for bytes that are no text.
    #[serde(default)]
    pub payload_hex: Option<String>,
    /// Its key.
    #[serde(default)]
    pub key: String,
    /// Its attributes.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// Fields of a gap.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GapStep {
    /// Name of its reason, such as `OVERFLOW`, or a number that has no name.
    pub reason: GapReasonName,
    /// First missing sequence.
    pub first: u64,
    /// Last missing sequence.
    pub last: u64,
    /// Number of missing events. 0: unknown.
    pub count: u64,
    /// Index of the first missing event. None: the one that follows.
    #[serde(default)]
    pub first_index: Option<u64>,
}

/// Reason of a gap, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum GapReasonName {
    /// A name of the protocol, without its prefix.
    Known(String),
    /// A number from a newer version of it.
    Newer(i32),
}

/// Fields of `going_away`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GoingAwayStep {
    /// Position to resume after.
    #[serde(default)]
    pub resume_after: At,
    /// Time to wait.
    #[serde(default)]
    pub reconnect_after_ms: Option<u64>,
    /// Reason, for people.
    #[serde(default)]
    pub reason: String,
}

/// An event that takes its time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SlowEventStep {
    /// Its sequence.
    pub sequence: u64,
    /// Bytes of its payload.
    pub bytes: usize,
    /// Time from the first byte to the last.
    pub over_ms: u64,
}

/// The end of a stream.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum End {
    /// Trailers with a status. A stream that has played nothing gets them instead of a response.
    Status(StatusEnd),
    /// Answer in HTTP, as a proxy gives it.
    Http(HttpEnd),
    /// `RST_STREAM` with this code of HTTP/2.
    Reset(String),
    /// `GOAWAY` with this code of HTTP/2 and the end of the connection.
    Goaway(String),
    /// The end of the connection, without a word.
    Cut,
    /// The end of the stream without trailers.
    NoTrailers,
    /// Silence, until the client leaves.
    Left(LeftEnd),
    /// A broken protocol: until the client complains.
    Complaint,
}

/// Fields of a status.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StatusEnd {
    /// Name of the code, or its number.
    pub code: CodeName,
    /// Message for people.
    #[serde(default = "message")]
    pub message: String,
    /// Reason of Tidegate, in the details and in the trailer.
    #[serde(default)]
    pub reason: Option<String>,
    /// Reason in the details alone, or another than in the trailer.
    #[serde(default)]
    pub details_reason: Option<String>,
    /// Reason in the trailer alone.
    #[serde(default)]
    pub trailer_reason: Option<String>,
    /// Domain of the reason in the details.
    #[serde(default = "domain")]
    pub details_domain: String,
    /// Delay, in the details and in the trailer.
    #[serde(default)]
    pub retry_ms: Option<u64>,
    /// Delay in the details alone.
    #[serde(default)]
    pub details_retry_ms: Option<u64>,
    /// Whether the connection ends in good order with the stream.
    #[serde(default)]
    pub goes_away: bool,
    /// Further trailers, or others instead of those that the fields above make.
    #[serde(default)]
    pub trailers: BTreeMap<String, String>,
}

/// A code of gRPC, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum CodeName {
    /// The name of a code.
    Name(String),
    /// A number, also one that is no code.
    Number(i32),
}

/// An answer of a proxy, to a stream that plays nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpEnd {
    /// Status of HTTP.
    pub status: u16,
    /// Page.
    #[serde(default)]
    pub body: String,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// The departure of a client, measured from the last byte that it got.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LeftEnd {
    /// At least so long after it.
    pub after_ms: u64,
    /// At most so long after it.
    pub within_ms: u64,
}

/// The fault of a scenario.
#[derive(Debug, thiserror::Error)]
#[error("scenario {name}: {problem}")]
#[non_exhaustive]
pub struct ScenarioError {
    /// Name of the scenario.
    pub name: String,
    /// The fault, with its line if there is one.
    pub problem: String,
}

impl Scenario {
    /// Whether `name` is the name of the scenario, or of the file that has it among its cases.
    pub fn is_named(&self, name: &str) -> bool {
        let rest = self.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Returns the abilities that a client needs, so that an author can leave out those that are not there yet.
    pub fn needs(&self) -> Vec<Ability> {
        let of_client = [
            (!self.client.client_id.is_empty(), Ability::ClientId),
            (self.client.resume_after != At::Nowhere, Ability::Resume),
            (self.client.replay_last > 0, Ability::Replay),
            (self.client.heartbeat_s.is_some(), Ability::Heartbeat),
            (self.client.token.is_some(), Ability::Token),
            (
                self.needs.iter().any(|need| need == "details"),
                Ability::Details,
            ),
        ];
        of_client
            .into_iter()
            .filter_map(|(is_needed, ability)| is_needed.then_some(ability))
            .collect()
    }
}

/// An ability of a client that not every scenario needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ability {
    /// Taking a client id.
    ClientId,
    /// Beginning at a position.
    Resume,
    /// Beginning with the newest events of history.
    Replay,
    /// Asking for an interval of heartbeats.
    Heartbeat,
    /// Reading a token from a file.
    Token,
    /// Reading the rich details of a status.
    Details,
}

impl Ability {
    /// Every ability.
    pub const ALL: [Self; 6] = [
        Self::ClientId,
        Self::Resume,
        Self::Replay,
        Self::Heartbeat,
        Self::Token,
        Self::Details,
    ];

    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientId => "client-id",
            Self::Resume => "resume",
            Self::Replay => "replay",
            Self::Heartbeat => "heartbeat",
            Self::Token => "token",
            Self::Details => "details",
        }
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Covers {
    /// Returns the places of docs/protocol.md, for people.
    pub fn rows(&self) -> Vec<String> {
        let of = |table: &'static str, rows: &[String]| -> Vec<String> {
            rows.iter().map(|row| format!("{table}: {row}")).collect()
        };
        [
            of("Statuses, and what to do next", &self.statuses),
            of("Positions and epochs", &self.positions),
            of("Gaps", &self.gaps),
            self.sections.clone(),
        ]
        .concat()
    }
}

/// Returns the bytes that hexadecimal digits stand for.
pub(crate) fn bytes_of(digits: &str) -> Result<Vec<u8>, String> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| {
        let pair = str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    pairs
        .collect::<Option<_>>()
        .ok_or_else(|| format!("{digits:?} are no bytes: write two hexadecimal digits for each"))
}

impl Default for Start {
    fn default() -> Self {
        Self {
            filters: filters(),
            client_id: String::new(),
            resume_after: At::Nowhere,
            replay_last: 0,
            heartbeat_s: None,
            token: None,
        }
    }
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            resume_after: None,
            token: None,
            after_ms: 0,
            within_ms: patience_ms(),
            new_connection: false,
        }
    }
}

fn filters() -> Vec<String> {
    vec!["conformance.>".into()]
}

fn assigned_id() -> String {
    "assigned-by-the-server".into()
}

fn message() -> String {
    "the words of the server".into()
}

fn domain() -> String {
    "tidegate".into()
}

fn one() -> u32 {
    1
}

fn quiet_ms() -> u64 {
    1500
}

fn patience_ms() -> u64 {
    PATIENCE_MS
}
