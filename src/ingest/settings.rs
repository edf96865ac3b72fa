//! What of ingest can be changed while it runs.

use std::time::Duration;

/// Default of [`IngestSettings::outage_grace`].
pub const OUTAGE_GRACE_DEFAULT: Duration = Duration::from_secs(5 * 60);

/// How ingest behaves; taken anew for every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngestSettings {
    /// How many events a namespace may hand in; none: as many as it likes.
    pub rate: Option<EventRate>,
    /// How long known publishers are let in while the API server is away.
    pub outage_grace: Duration,
    /// Who must say who he is.
    pub authentication: Authentication,
}

/// A rate of events with room for bursts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRate {
    /// Events a second on the average.
    pub events_per_second: u32,
    /// Events at once.
    pub burst: u32,
}

/// How publishers show who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Authentication {
    /// By a ServiceAccount token of audience `posthorn`.
    #[default]
    Token,
    /// Not at all: whoever reaches the port may publish everywhere in the pool.
    None,
}

impl Default for IngestSettings {
    fn default() -> Self {
        Self { rate: None, outage_grace: OUTAGE_GRACE_DEFAULT, authentication: Authentication::Token }
    }
}
