//! Which Webhook wants which event: the index of a delivery pod.
//!
//! [`index`] is pure: objects go in, matches and a feed of changes come out.
//! [`watch`] brings the objects from the API server.

pub mod index;
pub mod watch;
