//! DeadLetter cards: a projection of the dead Deliveries in the store.
//!
//! The store is the truth; cards are capped ([`CARDS_PER_NAMESPACE_MAX`],
//! [`CARDS_MAX`], `spec.deadLetter.limit`), written slowly ([`Budget`]) and
//! counted where there is no room. A card's name is computed from its Delivery,
//! so that a card written twice is one card. Somebody who deletes a card
//! dismisses its Delivery; cards that are found missing after a gap are written
//! again. This module alone writes DeadLetters.

mod budget;
mod card;
mod keeper;
mod places;
#[cfg(test)]
pub(in crate::delivery) use card::tests as tests_support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use budget::{Budget, CARD_WRITES_BURST, CARD_WRITES_PER_SECOND};
pub use keeper::{CardKeeper, DISMISS_DELAY, WriteLabel};
pub use places::{CARDS_MAX, CARDS_PER_NAMESPACE_MAX};

use crate::{
    delivery::directory::HookInfo,
    event::Pos,
    store::{DeadRow, HookId},
};

use places::Places;

/// What others ask about cards. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Cards {
    places: Arc<Mutex<Places>>,
    store_id: Arc<str>,
    pool: Arc<str>,
}

impl Cards {
    /// No card stands yet. `store_id` makes names of two stores differ.
    pub fn new(store_id: &str, pool: &str) -> Self {
        Self { places: Arc::default(), store_id: store_id.into(), pool: pool.into() }
    }

    /// How many cards of a Webhook stand.
    pub fn of_hook(&self, hook: HookId) -> usize {
        self.places().of_hook(hook)
    }

    /// The name of a Delivery's card, whether it stands or not.
    pub fn name(&self, hook: &HookInfo, pos: Pos) -> String {
        card::name(&self.store_id, hook, pos)
    }

    /// The labels of a Delivery's card, whether it stands or not.
    pub fn labels(&self, hook: &HookInfo, row: &DeadRow) -> BTreeMap<String, String> {
        card::labels(row, hook, &self.pool)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Its methods do not panic, so what a panic elsewhere leaves is whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
