//! The time of a response, as HTTP has it (RFC 9110, section 6.6.1).

use std::{
    cell::RefCell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;

thread_local! {
    /// The last one of this thread, and its second.
    static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
}

/// Returns the value of `date` for now. It is written once a second.
pub(super) fn now() -> Option<HeaderValue> {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    LAST.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|(of, _)| *of != second) {
            let time = UNIX_EPOCH + Duration::from_secs(second);
            let text = httpdate::fmt_http_date(time);
            *last = HeaderValue::from_str(&text)
                .ok()
                .map(|value| (second, value));
        }
        last.as_ref().map(|(_, value)| value.clone())
    })
}
