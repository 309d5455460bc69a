//! What a reload changes of a configuration.

use super::{setting::Configuration, table::SETTINGS};

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that were changed.
    pub changed: Vec<&'static str>,
    /// Keys that differ and need a restart. The running server keeps what it has.
    pub needs_restart: Vec<&'static str>,
}

/// Changes what a reload may in `running` to what it is in `next`.
pub fn reload(running: &mut Configuration, next: &Configuration) -> Reloaded {
    let mut reloaded = Reloaded::default();
    for setting in SETTINGS {
        let wanted = (setting.get)(next);
        if (setting.get)(running) == wanted {
            continue;
        }
        if setting.reloads && (setting.set)(running, &wanted).is_ok() {
            reloaded.changed.push(setting.key);
        } else {
            reloaded.needs_restart.push(setting.key);
        }
    }
    reloaded
}
