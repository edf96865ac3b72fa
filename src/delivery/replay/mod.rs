//! Replays: the pod of a Webhook's pool runs them and writes their status.
//!
//! The record of a run is in the store, and with it every decision; this module
//! says what a spec means, asks the store, and shows how it stands. Deleting a
//! Replay does not end its run: `spec.cancel` does.

mod plan;
mod runner;

pub use runner::ReplayRunner;
