//! Settings (RFC 9113, section 6.5).

use crate::{
    config::Config,
    error::{Code, Error},
    frame,
};

/// Size of a window of which nobody has said anything (RFC 9113, section 6.9.2).
pub(crate) const DEFAULT_WINDOW: i64 = 65_535;

/// Largest size of a window (RFC 9113, section 6.9.1).
pub(crate) const LARGEST_WINDOW: i64 = (1 << 31) - 1;

const HEADER_TABLE_SIZE: u16 = 0x1;
const ENABLE_PUSH: u16 = 0x2;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
const MAX_FRAME_SIZE: u16 = 0x5;
const MAX_HEADER_LIST_SIZE: u16 = 0x6;

/// The settings of a peer that matter here. The size of its frames does not: none of ours is longer than what every peer
/// takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The smallest size of its HPACK table that it named, which has to be acknowledged even if it grew again.
    pub(crate) header_table_size: Option<u32>,
    pub(crate) initial_window_size: Option<u32>,
}

impl Settings {
    /// Reads the payload of SETTINGS, in their order.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, Error> {
        let mut settings = Self::default();
        let (entries, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Error::size("the length of SETTINGS is no multiple of 6"));
        }
        for [a, b, value @ ..] in entries {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                HEADER_TABLE_SIZE => {
                    let smallest = settings.header_table_size.unwrap_or(u32::MAX);
                    settings.header_table_size = Some(smallest.min(value));
                }
                ENABLE_PUSH if value > 1 => {
                    return Err(Error::protocol("ENABLE_PUSH is neither 0 nor 1"));
                }
                INITIAL_WINDOW_SIZE if i64::from(value) > LARGEST_WINDOW => {
                    let reason = "INITIAL_WINDOW_SIZE is above 2,147,483,647";
                    return Err(Error::new(Code::FLOW_CONTROL_ERROR, reason));
                }
                INITIAL_WINDOW_SIZE => settings.initial_window_size = Some(value),
                MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    let reason = "MAX_FRAME_SIZE is not from 16,384 to 16,777,215";
                    return Err(Error::protocol(reason));
                }
                _ => {}
            }
        }
        Ok(settings)
    }

    /// Puts ours.
    pub(crate) fn put_ours(out: &mut Vec<u8>, config: &Config) {
        let settings = [
            (MAX_CONCURRENT_STREAMS, config.max_concurrent_streams),
            (INITIAL_WINDOW_SIZE, stream_window(config) as u32),
            (MAX_HEADER_LIST_SIZE, config.max_header_list_size),
        ];
        frame::put_settings(out, &settings);
    }
}

/// Window of the connection. Settings cannot make it smaller than it is at first.
pub(crate) fn connection_window(config: &Config) -> i64 {
    i64::from(config.connection_window).clamp(DEFAULT_WINDOW, LARGEST_WINDOW)
}

/// Window of a stream by our settings.
pub(crate) fn stream_window(config: &Config) -> i64 {
    i64::from(config.stream_window).min(LARGEST_WINDOW)
}
