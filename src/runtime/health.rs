//! Whether this process is ready for work, as a list of named parts.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Why a part is not ready before it said anything.
const STARTING: &str = "starting";

/// The readiness of a process: ready when every part that was named is. Clones
/// share their state. Name every part before the server starts; else the process
/// counts as ready before the last part is known.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Name → why it is not ready; none if it is.
    parts: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// The handle of one part. The part is not ready until it says so.
#[derive(Clone, Debug)]
pub struct ComponentHealth {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Names a part that must be ready for the process to be.
    pub fn component(&self, name: &'static str) -> ComponentHealth {
        self.lock().insert(name, Some(STARTING.to_owned()));
        ComponentHealth { name, health: self.clone() }
    }

    /// What is not ready, one line a part; none if everything is.
    pub fn unready(&self) -> Option<String> {
        let mut text = String::new();
        for (name, reason) in self.lock().iter() {
            if let Some(reason) = reason {
                // Writing into a String cannot fail.
                writeln!(text, "{name}: {reason}").ok();
            }
        }
        (!text.is_empty()).then_some(text)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        // Every change is a single insert: what a panicked thread left is whole.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ComponentHealth {
    /// The part works.
    pub fn ready(&self) {
        self.health.lock().insert(self.name, None);
    }

    /// The part does not work. The reason is shown to everyone who can reach
    /// `/readyz`: no secrets in it.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.health.lock().insert(self.name, Some(reason.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_every_part_is_and_says_which_is_not() {
        let health = Health::default();
        let (index, tls) = (health.component("index"), health.component("tls"));
        assert_eq!(health.unready().as_deref(), Some("index: starting\ntls: starting\n"));
        index.ready();
        tls.not_ready("no certificate");
        assert_eq!(health.unready().as_deref(), Some("tls: no certificate\n"));
        tls.ready();
        assert_eq!(health.unready(), None);
        index.not_ready("gone");
        assert_eq!(health.unready().as_deref(), Some("index: gone\n"));
    }
}
