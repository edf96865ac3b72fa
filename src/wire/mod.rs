//! What Posthorn's parts say to each other: the controller asks delivery pods
//! to probe endpoints and learns what their index holds. JSON over HTTPS.
//!
//! This module holds types only; it never does I/O.

pub mod deliveries;
pub mod index_feed;
pub mod probe;

/// Audience of the ServiceAccount tokens with which the controller calls
/// delivery pods.
pub const INTERNAL_AUDIENCE: &str = "posthorn-internal";
/// Port of the internal API in a delivery pod.
pub const INTERNAL_PORT: u16 = 8444;
/// Port of `/metrics`, `/healthz` and `/readyz` in every pod of Posthorn.
pub const HEALTH_PORT: u16 = 8081;
/// Path of the probe endpoint: POST [`probe::ProbeRequest`] → [`probe::ProbeResponse`].
pub const PROBE_PATH: &str = "/internal/v1/probe";
/// Path of the index feed: GET with [`index_feed::FeedQuery`] → [`index_feed::FeedPage`].
pub const INDEX_PATH: &str = "/internal/v1/index";
/// Path of the counters: GET → [`index_feed::Counters`].
pub const COUNTERS_PATH: &str = "/internal/v1/counters";
/// Path of what became of Deliveries: GET with [`deliveries::DeliveriesQuery`] →
/// [`deliveries::DeliveriesPage`].
pub const DELIVERIES_PATH: &str = "/internal/v1/deliveries";
/// Audience of the ServiceAccount tokens with which publishers hand in events.
pub const PUBLISH_AUDIENCE: &str = "posthorn";
/// Port of ingest in a delivery pod.
pub const INGEST_PORT: u16 = 8080;
