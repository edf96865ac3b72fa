//! Numbers that a store gives out, and its errors.

use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Number of a Webhook in a store: (namespace UID, name), whatever its UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HookId(pub i64);

/// Number of a Subscription in a store, by its UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SubId(pub i64);

/// An ordering key: a hash of the publisher's key. Two keys with one hash are
/// sent one after the other, which is only slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey(pub i64);

impl OrderKey {
    /// The ordering key for a publisher's key: the same in every store, so that
    /// the dispatcher need not read what it was told.
    pub fn of(key: &str) -> Self {
        let hash = Sha256::digest(key.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        Self(i64::from_le_bytes(first))
    }
}

/// Number of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AttemptId(pub i64);

/// Number of a call of `record`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RecordTicket(pub u64);

/// Number of a change of counters; begins anew with the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TallyRevision(pub u64);

/// Why the store did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The partition belongs to another process now.
    #[error("this part of the store belongs to another process now")]
    Fenced,
    /// The store failed or is closed; the process must end.
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
}
