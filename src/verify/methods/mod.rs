//! The handshakes, one file each: `request` builds what is sent, `judge` reads
//! an answer of status 2xx.

pub(super) mod answer;
pub(super) mod challenge;
pub(super) mod cloud_events;
pub(super) mod signed_challenge;
