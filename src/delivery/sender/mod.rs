//! wip
pub mod gate;
