//! Verification: prove that an endpoint wants our events.
//!
//! [`challenge`] builds the request of a handshake and judges the answer,
//! [`state`] decides when to ask and what the answer means for the Webhook,
//! [`fingerprint`] makes the result unforgeable, [`conditions`] tells it to
//! users and GitOps tools. All of it is pure: no I/O, no clock, no chance.

pub mod challenge;
pub mod conditions;
pub mod fingerprint;
mod methods;
pub mod state;
