//! The role `controller`: decides, writes every status, and makes the pods that
//! deliver. It never dials an endpoint and never writes `spec`.

pub mod internal;
pub mod names;
pub mod pool;

pub mod backoff;
pub mod cache;
pub mod client;
pub mod feed;
pub mod key;
pub mod leader;
pub mod metrics;
pub mod mirror;
pub mod pods;
