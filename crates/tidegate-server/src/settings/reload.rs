//! The reload of a running configuration.

use super::{setting::Configuration, table::SETTINGS};

/// The outcome of a [`reload`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys of the settings that changed, in the order of the table.
    pub changed: Vec<&'static str>,
    /// Keys of the settings that differ and need a restart. The running configuration keeps their values.
    pub needs_restart: Vec<&'static str>,
}

/// Changes every setting that reloads in `running` to its value in `next`.
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
