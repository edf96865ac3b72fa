//! Decisions without I/O: values in (time and chance among them), values out.

pub mod delivery;
pub mod egress;
pub mod sending;
