//! Faults, seen from outside one delivery pod: the real binary, the real store,
//! a double of the API server, receivers that misbehave.
//!
//! The oracle of every test: what was acknowledged to the publisher is delivered
//! in the end, or dead, or counted as discarded. Nothing else is lost, whatever
//! was killed. Each test has a short form, which `make test` runs;
//! `POSTHORN_FAULTS=full` (`make faults`) runs the long ones.

#![allow(unreachable_pub, reason = "shared by the tests of one binary")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "tests of a process: they fail by panics and measure real time"
)]

mod clock;
mod crashes;
mod deletion;
mod disk;
mod endings;
mod endpoints;
mod gate;
mod limits;
mod outage;
mod stage;
mod upgrade;

#[path = "../rig/mod.rs"]
mod rig;
