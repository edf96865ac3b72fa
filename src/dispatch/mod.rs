//! The dispatcher: decides which Delivery is tried when. One queue a Webhook,
//! with its own concurrency, rate limit and circuit; fair turns between them.
//!
//! It knows no HTTP: an [`AttemptSender`] makes attempts. It knows no disk: a
//! [`crate::store::Partition`] keeps what is owed. A window of each queue is in
//! memory, the rest stays in the store.

mod asking;
mod attempt;
mod endings;
mod engine;
mod handle;
mod health;
mod hook;
mod metrics;
mod order;
mod pace;
mod questions;
mod shell;
mod turns;
mod verdict;

#[cfg(test)]
mod tests;

pub use attempt::{
    AttemptEnd, AttemptJob, AttemptReport, AttemptSender, FailureKind, HealthView, Hold, HookHealth, HookView,
};
pub use handle::DispatcherHandle;
pub use health::HealthPage;
pub use metrics::DispatchMetrics;
pub use shell::Dispatcher;
