//! Integration tests that need no cluster, in one binary: linking is what
//! costs the time.
#![allow(missing_docs, unreachable_pub, reason = "tests are named as sentences, and nobody links them")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test that fails should panic")]

mod access;
mod chart;
mod crds;
mod egress;
mod examples;
mod fake_api;
mod fake_ingest;
#[path = "../faults/kit/mod.rs"]
mod faults_kit;
mod feed;
mod inbox;
mod index;
mod ingest;
mod internal_api;
mod plugin;
mod registrar;
mod sender;
mod store;
mod store_command;
mod store_faults;
mod table;
mod tidy;
mod watch;
