//! Integration tests that need no cluster, in one binary: linking is what
//! costs the time.
#![allow(missing_docs, reason = "tests are named as sentences")]

mod crds;
mod tidy;
