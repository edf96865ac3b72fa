//! Dialects: the names of headers, the payloads and the signatures that a family
//! of receivers expects. Bodies are in [`payload`]. A signature is data ([`scheme::Scheme`]); one signer and one
//! authenticator serve all of them. This module never does I/O and reads no clock.
//!
//! | dialect | signature |
//! |---|---|
//! | `StandardWebhooks` | `webhook-id`, `webhook-timestamp`, `webhook-signature: v1,<base64>` over `id.timestamp.body`; one item per key |
//! | `Improvado` | `X-Improvado-Signature: <hex>` over the body; the id as `X-Improvado-Idempotency-Key` |
//! | `Analytics` | `X-Webhook-Signature: sha256=<hex>` over the body |
//! | `Impira` | `impira-signature: <hex>` over the body |
//! | `CloudEvents` | none: the specification has no signature, so requests go out unsigned |
//!
//! All are HMAC-SHA256. During rotation requests are signed with both keys. A
//! header with room for one signature only carries the current key's, and the
//! previous key's goes into `<header>-Previous`: two values in the header that
//! a receiver compares as a whole would fit neither key.

pub mod keys;
pub mod payload;
pub mod scheme;
pub mod sign;

pub use payload::{Payload, Shape, Unrenderable, render};

pub use keys::{KeyError, SigningKey, SigningKeys};
