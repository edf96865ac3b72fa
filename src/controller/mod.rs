//! The role `controller`: decides, writes every status, and makes the pods that
//! deliver. It never dials an endpoint and never writes `spec`.

pub mod arguments;
pub mod backoff;
pub mod cache;
pub mod client;
pub mod context;
pub mod deliveries;
pub mod events;
pub mod feed;
pub mod internal;
pub mod key;
pub mod leader;
pub mod made_secrets;
pub mod metrics;
pub mod mirror;
pub mod names;
pub mod pods;
pub mod pool;
pub mod prober;
pub mod run;
pub mod subscription;
pub mod text;
pub mod views;
pub mod webhook;
mod work;

pub use arguments::ControllerArguments;
pub use run::{ControllerError, run};
