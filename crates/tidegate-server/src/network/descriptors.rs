//! The limit on open files, of which each connection is one.

/// The files that are not connections: the standard streams, the listeners and the connections to them for HTTP, the
/// runtime's own, and the files that are read. An estimate with room to spare.
const RESERVE: usize = 32;

/// The process may open fewer files than are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooFewDescriptors {
    pub(crate) allowed: usize,
    pub(crate) needed: usize,
}

/// Raises the process's limit on open files as far as it may itself, and returns the number of connections that this
/// leaves room for: `wanted`, or as many as possible.
///
/// # Errors
/// When there is no room for `wanted`, or for any.
pub(crate) fn room_for_connections(wanted: Option<usize>) -> Result<usize, TooFewDescriptors> {
    room_within(raise_limit(), wanted)
}

fn room_within(allowed: usize, wanted: Option<usize>) -> Result<usize, TooFewDescriptors> {
    let needed = wanted.unwrap_or(1).saturating_add(RESERVE);
    if needed > allowed {
        return Err(TooFewDescriptors { allowed, needed });
    }
    Ok(wanted.unwrap_or(allowed - RESERVE))
}

/// Raises the soft limit to the hard one, and returns the limit that is in force then. The soft limit is low for the
/// sake of `select(2)`, which cannot handle descriptors above 1,023, so nothing in the process may use that.
#[cfg(unix)]
fn raise_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        // On macOS the hard limit is higher than what the kernel grants.
        Err(_) => limit.current,
    };
    allowed.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

#[cfg(not(unix))]
fn raise_limit() -> usize {
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_on_connections_needs_a_reserve_of_descriptors() {
        assert_eq!(room_within(1_024, None), Ok(992));
        assert_eq!(room_within(1_024, Some(992)), Ok(992));
        let (allowed, needed) = (1_024, 1_025);
        let too_few = TooFewDescriptors { allowed, needed };
        assert_eq!(room_within(1_024, Some(993)), Err(too_few));
        assert!(room_within(1_024, Some(usize::MAX)).is_err());
        assert_eq!(room_within(33, None), Ok(1));
        for allowed in [0, 16, 32] {
            let too_few = TooFewDescriptors {
                allowed,
                needed: 33,
            };
            assert_eq!(room_within(allowed, None), Err(too_few));
        }
        assert_eq!(room_within(usize::MAX, Some(5)), Ok(5));
    }
}
