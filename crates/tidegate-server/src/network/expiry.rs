//! The expiry of the server's own certificate: said in time, and again until it is replaced.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;

/// The time before its expiry from which on a certificate is warned of. Public authorities' certificates of 90 days are
/// renewed 30 days before, so one that is still there has been forgotten.
const SOON: Duration = Duration::from_secs(14 * DAY);

/// The time from one notice to the next.
const AGAIN: Duration = Duration::from_secs(DAY);

const DAY: u64 = 24 * 3_600;

/// The times between which a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    from: i64,
    until: i64,
}

/// The words for a certificate's time, when there is something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Whether clients refuse it now.
    pub(crate) is_error: bool,
    pub(crate) text: String,
}

/// The notices that were given, so that each is repeated once a day and not more often.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// Whether the last one was of an error, and its time.
    last: Option<(bool, SystemTime)>,
}

// ===== impl Validity =====

impl Validity {
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        }
    }

    /// The expiry, in seconds since 1970.
    pub(crate) const fn until(self) -> i64 {
        self.until
    }

    /// Whether it is valid at `now`.
    pub(crate) fn contains(self, now: SystemTime) -> bool {
        (self.from..=self.until).contains(&seconds(now))
    }

    /// The notice of the server's own certificate at `now`, if there is anything to say.
    pub(crate) fn notice(self, now: SystemTime) -> Option<Notice> {
        let now = seconds(now);
        let error = |text| {
            Some(Notice {
                is_error: true,
                text,
            })
        };
        let left = self.until.saturating_sub(now);
        if now < self.from {
            return error(format!(
                "the certificate is valid from {} on only, and clients refuse it until then: is this machine's clock \
                 right?",
                date(self.from)
            ));
        }
        if left < 0 {
            return error(format!(
                "the certificate expired at {}, and clients refuse it: replace it",
                date(self.until)
            ));
        }
        let left = Duration::from_secs(left.unsigned_abs());
        (left < SOON).then(|| Notice {
            is_error: false,
            text: format!(
                "the certificate expires in {}, at {}: replace it before",
                rough(left),
                date(self.until)
            ),
        })
    }

    /// The words for its time, unless it is valid now.
    pub(crate) fn unless_valid(self) -> Option<String> {
        let is_valid = self.contains(SystemTime::now());
        (!is_valid).then(|| format!("from {} to {}", date(self.from), date(self.until)))
    }
}

// ===== impl Notices =====

impl Notices {
    /// Notes that a notice is given at `now`.
    pub(crate) fn note(&mut self, notice: &Notice, now: SystemTime) {
        self.last = Some((notice.is_error, now));
    }

    /// Whether `notice` is to be given at `now`: it is of another kind than the last one, or a day has passed. Notes it
    /// then.
    pub(crate) fn is_due(&mut self, notice: &Notice, now: SystemTime) -> bool {
        let is_known = self.last.is_some_and(|(was_error, at)| {
            // A clock that was set back says nothing about the time that has passed.
            was_error == notice.is_error && now.duration_since(at).is_ok_and(|ago| ago < AGAIN)
        });
        if !is_known {
            self.note(notice, now);
        }
        !is_known
    }
}

fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |secs| -secs),
    }
}

fn date(seconds: i64) -> String {
    // Certificates without an end have the last second of the year 9999, which is about the last that there is.
    Timestamp::from_second(seconds)
        .map_or_else(|_| format!("second {seconds}"), |at| at.to_string())
}

/// A time in its greatest unit.
fn rough(time: Duration) -> String {
    let units = [(DAY, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let seconds = time.as_secs();
    let (unit, name) = units
        .into_iter()
        .find(|(unit, _)| seconds >= *unit)
        .unwrap_or((1, "second"));
    let count = seconds / unit;
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {name}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    const VALIDITY: Validity = Validity {
        from: 1_000 * DAY as i64,
        until: 1_090 * DAY as i64,
    };

    fn notice(day: u64, second: u64) -> Option<(bool, String)> {
        let notice = VALIDITY.notice(at(day * DAY + second))?;
        Some((notice.is_error, notice.text))
    }

    #[test]
    fn a_certificate_is_warned_of_14_days_before_it_expires() {
        assert_eq!(notice(1_000, 0), None);
        assert_eq!(notice(1_076, 0), None);
        let (is_error, text) = notice(1_076, 1).unwrap();
        assert!(
            !is_error && text.contains("in 13 days, at 1972-12-26T00:00:00Z"),
            "{text}"
        );
        let (_, text) = notice(1_088, DAY - 1).unwrap();
        assert!(text.contains("in 1 day,"), "{text}");
        let (_, text) = notice(1_089, DAY - 90).unwrap();
        assert!(text.contains("in 1 minute,"), "{text}");
        let (is_error, text) = notice(1_090, 0).unwrap();
        assert!(!is_error && text.contains("in 0 seconds,"), "{text}");
        let (is_error, text) = notice(1_090, 1).unwrap();
        assert!(
            is_error && text.contains("expired at 1972-12-26T00:00:00Z"),
            "{text}"
        );
        let (is_error, text) = notice(999, DAY - 1).unwrap();
        assert!(
            is_error && text.contains("valid from 1972-09-27T00:00:00Z on"),
            "{text}"
        );
    }

    #[test]
    fn times_at_the_end_of_time_have_words() {
        for until in [i64::MIN, -1, 0, 253_402_300_799, i64::MAX] {
            let validity = Validity {
                from: i64::MIN,
                until,
            };
            let notice = validity.notice(at(1_000));
            assert_eq!(
                notice.is_some(),
                until < 1_000 + SOON.as_secs() as i64,
                "{until}"
            );
        }
        assert!(
            VALIDITY
                .notice(SystemTime::UNIX_EPOCH - Duration::from_secs(9))
                .is_some()
        );
    }

    #[test]
    fn a_notice_is_repeated_once_a_day_and_at_once_when_it_is_another() {
        let mut notices = Notices::default();
        let soon = VALIDITY.notice(at(1_080 * DAY)).unwrap();
        let over = VALIDITY.notice(at(1_091 * DAY)).unwrap();
        let start = 1_080 * DAY;
        notices.note(&soon, at(start));
        assert!(!notices.is_due(&soon, at(start + 1)));
        assert!(!notices.is_due(&soon, at(start + DAY - 1)));
        assert!(notices.is_due(&soon, at(start + DAY)));
        assert!(!notices.is_due(&soon, at(start + DAY + 1)));
        assert!(notices.is_due(&over, at(start + DAY + 2)));
        assert!(!notices.is_due(&over, at(start + DAY + 3)));
        // The clock was set back.
        assert!(notices.is_due(&over, at(start)));
    }
}
