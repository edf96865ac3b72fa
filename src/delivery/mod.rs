//! The role `delivery`: a pod of a DeliveryPool. It holds the index of its pool,
//! sends the probes that the controller asks for, and tells the controller what
//! it has.
//!
//! It takes events in, keeps them in its store, and delivers them. To the API
//! server it writes TokenReviews and SubjectAccessReviews, DeadLetters and the
//! status of Replays; it dials nothing but through [`crate::egress`].

mod arguments;
mod board;
pub mod cards;
pub mod directory;
mod egress_policy;
mod hooks;
pub mod internal_api;
mod kept_pool;
mod limits;
mod metrics;
pub mod probe;
pub mod registrar;
pub mod replay;
mod run;
pub mod sender;
pub mod slots;
mod store_folder;

pub use arguments::DeliveryArguments;
pub use run::{GRACE, INTERNAL_CONNECTIONS_MAX, RunError, run};
