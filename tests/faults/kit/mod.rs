//! Faults below the store: what the short forms in `tests/it` and the long ones
//! in `tests/faults` share. A process of its own accepts events at full speed and
//! tells which were acknowledged; something happens to it or to its disk; then
//! the store is opened again and asked for all of them.

pub mod damage;
pub mod oracle;
pub mod router;
pub mod writer;
