//! Posthorn: a Kubernetes operator that sends webhooks.
//!
//! `ARCHITECTURE.md` has the map. Modules have levels and import only from
//! lower ones; `tests/it/tidy.rs` holds that.

pub mod access;
pub mod api;
pub mod cli;
pub mod controller;
pub mod delivery;
pub mod dialect;
pub mod dispatch;
pub mod egress;
pub mod event;
pub mod inbox;
pub mod ingest;
pub mod policy;
pub mod routing;
pub mod runtime;
pub mod secrets;
pub mod store;
pub mod verify;
pub mod wire;
