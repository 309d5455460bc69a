//! Files of scenarios, read and checked: a scenario that is read can be played as it says.

use crate::{
    messages::gap_reason,
    scenario::{End, Expect, Scenario, ScenarioError, Step, Stream, bytes_of},
    status::reset_code,
};

/// Field of a file with several cases: a table of words for each.
const CASES: &str = "case";

/// Word of a case that names it.
const CASE_NAME: &str = "name";

/// Longest time in a scenario.
const MAX_MS: u64 = 3_600_000;

/// Bytes of the largest event.
const MAX_EVENT: usize = 16 << 20;

impl Scenario {
    /// Reads a file, which has one scenario, or one for each of its cases.
    ///
    /// # Errors
    /// The first fault of the file.
    pub fn read(name: &str, text: &str) -> Result<Vec<Self>, ScenarioError> {
        let error = |problem: String| ScenarioError {
            name: name.into(),
            problem,
        };
        let table: toml::Table = text
            .parse()
            .map_err(|fault: toml::de::Error| error(fault.to_string()))?;
        let Some(cases) = table.get(CASES) else {
            let scenario = toml::from_str(text);
            let scenario = scenario.map_err(|fault| error(fault.to_string()))?;
            return Ok(vec![Self::checked(name, scenario)?]);
        };
        let cases: Vec<toml::Table> = cases
            .clone()
            .try_into()
            .map_err(|fault: toml::de::Error| error(format!("case: {fault}")))?;
        let scenarios = cases.iter().map(|words| {
            let case = words.get(CASE_NAME).and_then(toml::Value::as_str);
            let case = case.ok_or_else(|| error("a case has no `name`".into()))?;
            let name = format!("{name}/{case}");
            let error = |problem: String| ScenarioError {
                name: name.clone(),
                problem,
            };
            let mut table = table.clone();
            table.remove(CASES);
            let mut table = toml::Value::Table(table);
            substitute(&mut table, words).map_err(error)?;
            let scenario: Self = table
                .try_into()
                .map_err(|fault: toml::de::Error| error(fault.to_string()))?;
            Self::checked(&name, scenario)
        });
        scenarios.collect()
    }

    fn checked(name: &str, mut scenario: Self) -> Result<Self, ScenarioError> {
        scenario.name = name.into();
        scenario.check().map_err(|problem| ScenarioError {
            name: name.into(),
            problem,
        })?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), String> {
        if self.streams.is_empty() {
            return Err("it has no `stream`".into());
        }
        check_time(self.quiet_ms)?;
        let last = self.streams.len() - 1;
        for (number, stream) in self.streams.iter().enumerate() {
            let checked = stream
                .check_place(number == 0, number == last)
                .and_then(|()| stream.check_times())
                .and_then(|()| stream.play.iter().try_for_each(|step| step.check(self)))
                .and_then(|()| stream.end.as_ref().map_or(Ok(()), End::check));
            checked.map_err(|problem| format!("stream {}: {problem}", number + 1))?;
        }
        Ok(())
    }
}

impl Stream {
    fn check_place(&self, is_first: bool, is_last: bool) -> Result<(), String> {
        let is_repeated = self.repeat > 1 || self.repeat_ms.is_some();
        let is_begun = matches!(self.play.first(), None | Some(Step::Subscribed(_)));
        let is_broken = |step: &Step| matches!(step, Step::Batch(batch) if batch.is_broken);
        let problem = match &self.end {
            _ if !is_first && self.expect.resume_after.is_none() => {
                "`expect` needs a `resume_after`"
            }
            _ if is_first && self.optional => "the first stream cannot be `optional`",
            _ if self.repeat == 0 => "`repeat` is at least 1",
            _ if self.at_most.is_some() != self.repeat_ms.is_some() => {
                "`at_most` goes with `repeat_ms`"
            }
            _ if !is_begun && !self.play.iter().any(is_broken) => {
                "`play` must begin with `subscribed`"
            }
            None if !is_last => "it needs an `end`, since another follows",
            None if is_repeated => "a stream that is repeated needs an `end`",
            Some(End::Left(_)) if is_last => "a stream must follow, which the client opens instead",
            Some(End::Http(_)) if !self.play.is_empty() => {
                "an answer in HTTP goes with a stream that plays nothing"
            }
            Some(End::Complaint) if !is_last => "no stream can follow a `complaint`",
            _ => return Ok(()),
        };
        Err(problem.into())
    }

    fn check_times(&self) -> Result<(), String> {
        let Expect {
            after_ms,
            within_ms,
            ..
        } = self.expect;
        check_time(within_ms)?;
        check_time(self.repeat_ms.unwrap_or_default())?;
        match after_ms < within_ms {
            true => Ok(()),
            false => Err("`within_ms` must be longer than `after_ms`".into()),
        }
    }
}

impl Step {
    fn check(&self, scenario: &Scenario) -> Result<(), String> {
        match self {
            Self::Message(digits) | Self::Bytes(digits) => bytes_of(digits).map(drop),
            Self::Batch(batch) if batch.events.is_empty() => Err("a batch has no event".into()),
            Self::Batch(batch) => {
                let payloads = batch.events.iter();
                let mut payloads = payloads.filter_map(|event| event.payload_hex.as_ref());
                payloads.try_for_each(|digits| bytes_of(digits).map(drop))
            }
            Self::Events(sequences) if sequences.is_empty() => Err("a batch has no event".into()),
            Self::Gap(gap) => gap_reason(&gap.reason).map(drop),
            Self::GoingAway(going_away) => {
                check_time(going_away.reconnect_after_ms.unwrap_or_default())
            }
            Self::WaitMs(ms) => check_time(*ms),
            Self::SlowEvent(event) if event.bytes > MAX_EVENT => {
                Err(format!("an event has at most {MAX_EVENT} bytes"))
            }
            Self::SlowEvent(event) => check_time(event.over_ms),
            Self::Token(_) if scenario.client.token.is_none() => {
                Err("a client whose token changes needs a first `token`".into())
            }
            _ => Ok(()),
        }
    }
}

impl End {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Status(status) => {
                check_time(
                    status
                        .retry_ms
                        .or(status.details_retry_ms)
                        .unwrap_or_default(),
                )?;
                status.trailers().map(drop)
            }
            Self::Http(http) => http.head().map(drop),
            Self::Reset(code) | Self::Goaway(code) => reset_code(code).map(drop),
            Self::Left(left) => check_time(left.within_ms),
            Self::Cut | Self::NoTrailers | Self::Complaint => Ok(()),
        }
    }
}

/// Refuses a time that no scenario needs and that no clock may hold.
fn check_time(ms: u64) -> Result<(), String> {
    match ms <= MAX_MS {
        true => Ok(()),
        false => Err(format!("{ms} ms are longer than an hour")),
    }
}

/// Puts the words of a case in their places: a text that is `${word}` becomes the value of the word, whatever it is, and
/// in a longer text the value must be a text too.
fn substitute(value: &mut toml::Value, words: &toml::Table) -> Result<(), String> {
    match value {
        toml::Value::Table(table) => {
            let values = table.iter_mut().map(|(_, value)| value);
            values
                .into_iter()
                .try_for_each(|value| substitute(value, words))
        }
        toml::Value::Array(values) => values
            .iter_mut()
            .try_for_each(|value| substitute(value, words)),
        toml::Value::String(text) => {
            let whole = text
                .strip_prefix("${")
                .and_then(|text| text.strip_suffix('}'));
            if let Some(word) = whole.and_then(|word| words.get(word)) {
                *value = word.clone();
                return Ok(());
            }
            for (word, value) in words {
                if let Some(value) = value.as_str() {
                    *text = text.replace(&format!("${{{word}}}"), value);
                }
            }
            match text.contains("${") {
                true => Err(format!(
                    "{text:?} has a word that the case does not have as a text"
                )),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
