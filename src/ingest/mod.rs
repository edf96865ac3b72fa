//! Takes events in over HTTP: `POST /v1/namespaces/{namespace}/events`.
//!
//! A 202 means: on stable storage. Ingest parses and judges; it never dials and
//! never routes. Every limit is a constant of the module that holds it:
//! [`parse`] for what a request may carry, [`limits`] for what may be under way.

mod answer;
mod intake;
mod metrics;
mod openapi;
pub mod parse;
mod rate;
mod server;
mod settings;

pub use answer::{Receipt, ReceivedEvent};
pub use metrics::IngestMetrics;
pub use openapi::document as openapi_document;
pub use server::{Door, IngestApi, IngestParts, serve};
pub use settings::{Authentication, EventRate, IngestSettings, OUTAGE_GRACE_DEFAULT};

/// What may be under way, and for how long.
pub mod limits {
    pub use super::{
        intake::{BODIES_BYTES_MAX, BODIES_PER_NAMESPACE_BYTES_MAX, REQUESTS_MAX, REQUESTS_PER_NAMESPACE_MAX},
        server::{ACCEPT_TIMEOUT, BODY_TIMEOUT, CONNECTIONS_MAX, GRACE, TYPES_ASKED_MAX},
    };
}
