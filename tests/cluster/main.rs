//! Tests against a real Kubernetes with Posthorn installed from its chart.
//!
//! `make test-cluster` brings the cluster up, installs the chart and runs this
//! binary with `KUBECONFIG`, `KUBECTL` (a command that acts as kubectl) and
//! `HELM` set. Each test works in a namespace of its own, all run in parallel,
//! each has a time-out; a test that fails prints the state of its namespace and
//! the logs of Posthorn's pods.
#![allow(missing_docs, unreachable_pub, reason = "tests are named as sentences, and nobody links them")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test that fails should panic")]

mod admission;
mod control_plane;
mod dead_letters;
mod delivery;
mod delivery_kinds;
mod faults;
mod faulty_proxy;
mod pods;
mod pool;
mod publisher;
mod rights;
mod subscription;
mod support;
mod tools;
mod verification;
