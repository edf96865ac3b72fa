//! One delivery pod on this machine, without a cluster: the real binary as a
//! child process, a double of the API server that it watches, a receiver and a
//! publisher. For benchmarks and fault tests, which need thousands of events a
//! second, kill -9, and an API server that goes away on command.
//!
//! Everything is on loopback and ends with the value that holds it.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tools of tests and benchmarks; each uses a part"
)]

pub mod api;
pub mod objects;
pub mod pod;
pub mod publisher;
pub mod receiver;
