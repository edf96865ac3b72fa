//! Posthorn: a Kubernetes operator that sends webhooks.
//!
//! `ARCHITECTURE.md` has the map. Modules have levels and import only from
//! lower ones; `tests/it/tidy.rs` holds that.

pub mod api;
pub mod controller;
pub mod runtime;
pub mod wire;
