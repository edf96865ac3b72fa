//! Decisions without I/O: values in (time and chance among them), values out.

pub mod circuit;
pub mod delivery;
pub mod egress;
pub mod rate;
pub mod retry;
pub mod retry_after;
pub mod sending;
pub mod store_identity;
