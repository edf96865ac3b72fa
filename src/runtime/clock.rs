//! The one place that reads the clocks and the random number generator.
//! Decisions get time and chance as arguments; `clippy.toml` bans the globals.

use std::time::Instant;

use k8s_openapi::jiff::Timestamp;

/// Wall time.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Monotonic time, for durations.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// A number in [0, 1) for jitter.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn chance() -> f64 {
    rand::random()
}

/// Random bytes fit for keys and challenges: a CSPRNG seeded by the system.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    rand::random()
}
