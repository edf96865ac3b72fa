//! Faults below the store: the power is cut, the disk is full, a sync takes long,
//! bits flip. The writer that has to live with that is a process of its own.
//!
//! Short forms run in `make test`, the long ones with `POSTHORN_FAULTS=full`
//! (`make faults`). They need root: they mount file systems. What needs none is
//! in `tests/it/store_faults.rs`.
#![allow(missing_docs, unreachable_pub, reason = "tests are named as sentences, and nobody links them")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test that fails should panic")]
#![allow(dead_code, reason = "of the kit and the clock each binary uses a part")]

mod bits;
mod disk;
mod full;
mod power;
mod retention;
mod sync;

#[path = "../it/store/clock.rs"]
mod clock;
mod kit;

/// How often something is done: in the short form, and in the long one.
fn scaled(short: u32, long: u32) -> u32 {
    if std::env::var("POSTHORN_FAULTS").is_ok_and(|value| value == "full") { long } else { short }
}
