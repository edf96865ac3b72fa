//! Which Webhook wants which event: the index of a delivery pod.
//!
//! [`index`] is pure: objects go in, matches and a feed of changes come out.
//! [`watch`] brings the objects from the API server. [`table`] is the form in
//! which the store routes with them.

pub mod index;
pub mod table;
pub mod watch;
