//! The forms of values: text and meaning of each kind.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use bytesize::ByteSize;
use jiff::SignedDuration;
use tidegate::{ClientIdPolicy, StallPolicy};
use tidegate_transport::Http2Engine;

use super::log::log_filter;
use crate::network::{listener::ListenAddress, tls::ClientAuth};

/// The separator of the values of a list, in the environment and in a flag.
pub const SEPARATOR: &str = ",";

/// A text form of a `T`. `read` gives the value back that `write` was given.
pub(super) trait Form<T> {
    /// # Errors
    /// The end of a sentence that says how to write the value.
    fn read(text: &str) -> Result<T, String>;

    fn write(value: &T) -> String;
}

/// A socket address: `127.0.0.1:50051`.
pub(super) struct Address;

/// An address, or `unix:` and a path.
pub(super) struct Listen;

/// `true` or `false`.
pub(super) struct Boolean;

/// A whole number, 0 included.
pub(super) struct Count;

/// A whole number, at least 1.
pub(super) struct NonZero;

/// A duration: `5s`, `250ms`, `1m30s`, or `0`.
pub(super) struct Time;

/// A duration longer than 0.
pub(super) struct NonZeroTime;

/// A duration from 1 s to 1 h, the range in which clients may ask for a heartbeat.
pub(super) struct Heartbeat;

/// A number of bytes: `64KiB`, `65536`.
pub(super) struct Size;

/// A number of bytes, at least 1.
pub(super) struct NonZeroSize;

/// A number of bytes from 65,535, the initial window of HTTP/2, to 2 GiB less 1, the largest (RFC 9113, section 6.9).
pub(super) struct Window;

/// A number of bytes from 1 to 4 GiB less 1.
pub(super) struct Size32;

/// A number of bytes from 1 KiB, which the headers of a call with a short token have, to 4 GiB less 1.
pub(super) struct Headers;

/// A number of bytes from 1 to 1 GiB: half of what Protocol Buffers allow a message, so that there is room around it.
pub(super) struct Message;

/// A duration from 1 ms to 596 h: the kernel takes whole milliseconds, as a signed number of 32 bits.
pub(super) struct KernelTime;

/// `none`, or a value in the form `F`.
pub(super) struct OrNone<F>(F);

/// `auto`, or a value in the form `F`.
pub(super) struct OrAuto<F>(F);

/// `none` or 0, or a duration.
pub(super) struct TimeOrNone;

/// `takeover`, `reject` or `several`.
pub(super) struct ClientIds;

/// `park` or `close`.
pub(super) struct OnStall;

/// `tidegate` or `hyper`.
pub(super) struct Engine;

/// A filter of the log, without control characters.
pub(super) struct Log;

/// A text that has no control characters, no white space around it, and is not empty.
pub(super) struct Text;

/// The path of a file.
pub(super) struct File;

/// `none`, or values in the form `F` with [`SEPARATOR`] between them.
pub(super) struct List<F>(F);

/// `required` or `optional`.
pub(super) struct Requirement;

/// The longest duration, 100 years. Far beyond it, moments that are reckoned with it could not be represented.
const MAX_DURATION: Duration = Duration::from_secs(876_000 * 3_600);

/// Reads a duration with its units, `5s`, `250ms` or `1m30s`, or `0`.
///
/// # Errors
/// A sentence on how to write it instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration = SignedDuration::from_str(text)
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or("write it with a unit, such as 5s, 250ms or 1m30s")?;
    match duration <= MAX_DURATION {
        true => Ok(duration),
        false => Err("must be at most 876000h, which is 100 years".into()),
    }
}

/// Reads a number of bytes, with a unit or without: `65536`, `64KiB`, `1.5GiB`, `10MB`.
///
/// # Errors
/// A sentence on how to write it instead.
pub fn bytes(text: &str) -> Result<u64, String> {
    let size = ByteSize::from_str(text);
    let size =
        size.map_err(|_| "write it as a number of bytes, or with a unit, such as 64KiB or 2GiB")?;
    Ok(size.as_u64())
}

impl Form<SocketAddr> for Address {
    fn read(text: &str) -> Result<SocketAddr, String> {
        let address = text.parse();
        address
            .map_err(|_| "write it as ADDRESS:PORT, such as 127.0.0.1:50051 or [::]:50051".into())
    }

    fn write(value: &SocketAddr) -> String {
        value.to_string()
    }
}

impl Form<ListenAddress> for Listen {
    fn read(text: &str) -> Result<ListenAddress, String> {
        text.parse()
    }

    fn write(value: &ListenAddress) -> String {
        value.to_string()
    }
}

impl Form<bool> for Boolean {
    fn read(text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| "must be true or false".into())
    }

    fn write(value: &bool) -> String {
        value.to_string()
    }
}

impl<T: FromStr + ToString> Form<T> for Count {
    fn read(text: &str) -> Result<T, String> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().map_err(|_| {
            let message = if is_number {
                "is too large"
            } else {
                "must be a whole number"
            };
            message.into()
        })
    }

    fn write(value: &T) -> String {
        value.to_string()
    }
}

impl<T: FromStr + ToString + PartialEq + Default> Form<T> for NonZero {
    fn read(text: &str) -> Result<T, String> {
        let value = Count::read(text)?;
        match value == T::default() {
            true => Err("must be at least 1".into()),
            false => Ok(value),
        }
    }

    fn write(value: &T) -> String {
        value.to_string()
    }
}

impl Form<Duration> for Time {
    fn read(text: &str) -> Result<Duration, String> {
        duration(text)
    }

    fn write(value: &Duration) -> String {
        let duration = SignedDuration::try_from(*value).unwrap_or(SignedDuration::MAX);
        format!("{duration:#}").replace(' ', "")
    }
}

impl Form<Duration> for NonZeroTime {
    fn read(text: &str) -> Result<Duration, String> {
        let duration = Time::read(text)?;
        match duration.is_zero() {
            true => Err("must be longer than 0".into()),
            false => Ok(duration),
        }
    }

    fn write(value: &Duration) -> String {
        Time::write(value)
    }
}

impl Form<Duration> for Heartbeat {
    fn read(text: &str) -> Result<Duration, String> {
        let interval = Time::read(text)?;
        let allowed = Duration::from_secs(1)..=Duration::from_secs(3_600);
        match allowed.contains(&interval) {
            true => Ok(interval),
            false => Err("must be from 1s to 1h".into()),
        }
    }

    fn write(value: &Duration) -> String {
        Time::write(value)
    }
}

impl Form<Option<Duration>> for TimeOrNone {
    fn read(text: &str) -> Result<Option<Duration>, String> {
        if text == "none" {
            return Ok(None);
        }
        let duration = Time::read(text).map_err(|message| format!("{message}, or none"))?;
        Ok(Some(duration).filter(|duration| !duration.is_zero()))
    }

    fn write(value: &Option<Duration>) -> String {
        value.as_ref().map_or_else(|| "none".into(), Time::write)
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Form<T> for Size {
    fn read(text: &str) -> Result<T, String> {
        T::try_from(bytes(text)?).map_err(|_| "is too large".into())
    }

    fn write(value: &T) -> String {
        let bytes = (*value).try_into().unwrap_or(u64::MAX);
        let unit = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
            .into_iter()
            .find(|(shift, _)| bytes > 0 && bytes % (1 << shift) == 0);
        match unit {
            Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
            None => bytes.to_string(),
        }
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Form<T> for NonZeroSize {
    fn read(text: &str) -> Result<T, String> {
        bounded(text, 1..=u64::MAX, "must be at least 1 byte")
    }

    fn write(value: &T) -> String {
        Size::write(value)
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Form<T> for Window {
    fn read(text: &str) -> Result<T, String> {
        bounded(
            text,
            65_535..=0x7fff_ffff,
            "must be from 65535 to 2147483647 bytes, the range of HTTP/2",
        )
    }

    fn write(value: &T) -> String {
        Size::write(value)
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Form<T> for Size32 {
    fn read(text: &str) -> Result<T, String> {
        bounded(
            text,
            1..=u64::from(u32::MAX),
            "must be from 1 byte to less than 4GiB",
        )
    }

    fn write(value: &T) -> String {
        Size::write(value)
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Form<T> for Headers {
    fn read(text: &str) -> Result<T, String> {
        bounded(
            text,
            1 << 10..=u64::from(u32::MAX),
            "must be from 1KiB to less than 4GiB",
        )
    }

    fn write(value: &T) -> String {
        Size::write(value)
    }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Form<T> for Message {
    fn read(text: &str) -> Result<T, String> {
        bounded(text, 1..=1 << 30, "must be from 1 byte to 1GiB")
    }

    fn write(value: &T) -> String {
        Size::write(value)
    }
}

impl Form<Duration> for KernelTime {
    fn read(text: &str) -> Result<Duration, String> {
        let time = Time::read(text)?;
        let allowed = Duration::from_millis(1)..=Duration::from_secs(596 * 3_600);
        match allowed.contains(&time) {
            true => Ok(time),
            false => Err("must be from 1ms to 596h, which is what the kernel takes".into()),
        }
    }

    fn write(value: &Duration) -> String {
        Time::write(value)
    }
}

/// Reads a number of bytes in a range. Outside of it the error is `message`.
fn bounded<T: TryFrom<u64> + TryInto<u64> + Copy>(
    text: &str,
    range: std::ops::RangeInclusive<u64>,
    message: &str,
) -> Result<T, String> {
    let size = Size::read(text)?;
    let is_within = range.contains(&size);
    let size = is_within.then(|| T::try_from(size).ok()).flatten();
    size.ok_or_else(|| message.into())
}

impl<T, F: Form<T>> Form<Option<T>> for OrNone<F> {
    fn read(text: &str) -> Result<Option<T>, String> {
        optional::<T, F>(text, "none")
    }

    fn write(value: &Option<T>) -> String {
        value.as_ref().map_or_else(|| "none".into(), F::write)
    }
}

impl<T, F: Form<T>> Form<Option<T>> for OrAuto<F> {
    fn read(text: &str) -> Result<Option<T>, String> {
        optional::<T, F>(text, "auto")
    }

    fn write(value: &Option<T>) -> String {
        value.as_ref().map_or_else(|| "auto".into(), F::write)
    }
}

/// Reads `word` as `None`, and all else in the form `F`.
fn optional<T, F: Form<T>>(text: &str, word: &str) -> Result<Option<T>, String> {
    if text == word {
        return Ok(None);
    }
    let value = F::read(text).map_err(|message| format!("{message}, or {word}"))?;
    Ok(Some(value))
}

impl Form<ClientIdPolicy> for ClientIds {
    fn read(text: &str) -> Result<ClientIdPolicy, String> {
        match text {
            "takeover" => Ok(ClientIdPolicy::Takeover),
            "reject" => Ok(ClientIdPolicy::Reject),
            "several" => Ok(ClientIdPolicy::Several),
            _ => Err("must be takeover, reject or several".into()),
        }
    }

    fn write(value: &ClientIdPolicy) -> String {
        let word = match value {
            ClientIdPolicy::Takeover => "takeover",
            ClientIdPolicy::Reject => "reject",
            ClientIdPolicy::Several => "several",
        };
        word.into()
    }
}

impl Form<StallPolicy> for OnStall {
    fn read(text: &str) -> Result<StallPolicy, String> {
        match text {
            "park" => Ok(StallPolicy::Park),
            "close" => Ok(StallPolicy::Close),
            _ => Err("must be park or close".into()),
        }
    }

    fn write(value: &StallPolicy) -> String {
        let word = match value {
            StallPolicy::Park => "park",
            StallPolicy::Close => "close",
        };
        word.into()
    }
}

impl Form<Http2Engine> for Engine {
    fn read(text: &str) -> Result<Http2Engine, String> {
        match text {
            "tidegate" => Ok(Http2Engine::Tidegate),
            "hyper" => Ok(Http2Engine::Hyper),
            _ => Err("must be tidegate or hyper".into()),
        }
    }

    fn write(value: &Http2Engine) -> String {
        let word = match value {
            Http2Engine::Tidegate => "tidegate",
            Http2Engine::Hyper => "hyper",
        };
        word.into()
    }
}

impl Form<String> for Log {
    fn read(text: &str) -> Result<String, String> {
        log_filter(text).map(|_| text.into())
    }

    fn write(value: &String) -> String {
        value.clone()
    }
}

impl Form<String> for Text {
    fn read(text: &str) -> Result<String, String> {
        match text {
            "" => Err("must not be empty".into()),
            text if text.contains(char::is_control) => {
                Err("must not have control characters".into())
            }
            // It comes from a file that a variable was made of, or from quotes that are set too wide.
            text if text.trim() != text => Err("must not begin or end with white space".into()),
            text => Ok(text.into()),
        }
    }

    fn write(value: &String) -> String {
        value.clone()
    }
}

impl Form<PathBuf> for File {
    fn read(text: &str) -> Result<PathBuf, String> {
        Text::read(text).map(PathBuf::from)
    }

    fn write(value: &PathBuf) -> String {
        value.display().to_string()
    }
}

impl<T, F: Form<T>> Form<Vec<T>> for List<F> {
    fn read(text: &str) -> Result<Vec<T>, String> {
        match text {
            "" | "none" => Ok(Vec::new()),
            _ => text.split(SEPARATOR).map(F::read).collect(),
        }
    }

    fn write(value: &Vec<T>) -> String {
        if value.is_empty() {
            return "none".into();
        }
        let texts: Vec<_> = value.iter().map(F::write).collect();
        texts.join(SEPARATOR)
    }
}

impl Form<ClientAuth> for Requirement {
    fn read(text: &str) -> Result<ClientAuth, String> {
        match text {
            "required" => Ok(ClientAuth::Required),
            "optional" => Ok(ClientAuth::Optional),
            _ => Err("must be required or optional".into()),
        }
    }

    fn write(value: &ClientAuth) -> String {
        let word = match value {
            ClientAuth::Required => "required",
            ClientAuth::Optional => "optional",
        };
        word.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("876000h"), Ok(MAX_DURATION));
        for bad in ["", "5", "s", "-5s", "5s ago", "1 fortnight", "876001h"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bytes_may_have_units() {
        assert_eq!(bytes("65536"), Ok(65_536));
        assert_eq!(bytes("64KiB"), Ok(64 << 10));
        assert_eq!(bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(bytes("10MB"), Ok(10_000_000));
        for bad in ["", "-1", "MiB", "5 apples"] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_are_written_as_people_do() {
        let written = |milliseconds| Time::write(&Duration::from_millis(milliseconds));
        assert_eq!(written(5_000), "5s");
        assert_eq!(written(250), "250ms");
        assert_eq!(written(90_000), "1m30s");
        assert_eq!(written(0), "0s");
        for milliseconds in [0, 1, 999, 1_001, 61_001, 3_600_000, 86_400_000] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(Time::read(&Time::write(&duration)), Ok(duration));
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit_that_is_exact() {
        assert_eq!(Size::write(&(64_u64 << 20)), "64MiB");
        assert_eq!(Size::write(&1_025_u64), "1025");
        assert_eq!(Size::write(&0_u64), "0");
        assert_eq!(<Size as Form<u64>>::read("1.5GiB"), Ok(3 << 29));
        assert!(<Window as Form<u32>>::read("2GiB").is_err());
    }

    #[test]
    fn what_is_not_bounded_has_a_word() {
        assert_eq!(
            <OrNone<NonZero> as Form<Option<usize>>>::read("none"),
            Ok(None)
        );
        let refused = <OrNone<NonZero> as Form<Option<usize>>>::read("0").unwrap_err();
        assert_eq!(refused, "must be at least 1, or none");
        assert_eq!(TimeOrNone::read("0"), Ok(None));
    }
}
