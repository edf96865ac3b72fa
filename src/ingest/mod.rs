//! Takes events in over HTTP: `POST /v1/namespaces/{namespace}/events`.
//!
//! A 202 means: on stable storage. Ingest parses and judges; it never dials and
//! never routes.

mod server;
mod settings;

pub use server::{IngestApi, IngestMetrics, IngestParts, serve};
pub use settings::{Authentication, EventRate, IngestSettings, OUTAGE_GRACE_DEFAULT};
