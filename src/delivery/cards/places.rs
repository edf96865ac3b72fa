//! How many cards there are and may be. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{delivery::directory::HookInfo, event::Pos, store::HookId};

/// Cards of one namespace at most: a kind holds some 1,500 objects well.
pub const CARDS_PER_NAMESPACE_MAX: usize = 1_000;
/// Cards of a pool at most: a cluster holds some 10,000 objects of a kind well.
pub const CARDS_MAX: usize = 5_000;

/// A card that stands in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) hook: HookId,
    pub(super) pos: Pos,
}

/// The cards that stand, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Places {
    cards: BTreeMap<(Arc<str>, String), Standing>,
    by_hook: HashMap<HookId, usize>,
    by_namespace: HashMap<Arc<str>, usize>,
}

impl Places {
    /// Whether there is room for one more card of this Webhook.
    pub(super) fn has_room(&self, hook: &HookInfo) -> bool {
        let of_hook = self.by_hook.get(&hook.id).copied().unwrap_or(0);
        let of_namespace = self.by_namespace.get(&hook.namespace).copied().unwrap_or(0);
        of_hook < usize::from(hook.settings.cards_max)
            && of_namespace < CARDS_PER_NAMESPACE_MAX
            && self.cards.len() < CARDS_MAX
    }

    /// A card stands.
    pub(super) fn take(&mut self, namespace: &Arc<str>, name: String, standing: Standing) {
        let hook = standing.hook;
        if self.cards.insert((Arc::clone(namespace), name), standing).is_none() {
            *self.by_hook.entry(hook).or_default() += 1;
            *self.by_namespace.entry(Arc::clone(namespace)).or_default() += 1;
        }
    }

    /// A card stands no more; whose it was, if it was known.
    pub(super) fn leave(&mut self, namespace: &str, name: &str) -> Option<Standing> {
        let standing = self.cards.remove(&(Arc::from(namespace), name.to_owned()))?;
        count_down(&mut self.by_hook, &standing.hook);
        count_down(&mut self.by_namespace, namespace);
        Some(standing)
    }

    /// Whether a card of this name stands.
    pub(super) fn contains(&self, namespace: &Arc<str>, name: &str) -> bool {
        self.cards.contains_key(&(Arc::clone(namespace), name.to_owned()))
    }

    /// All cards.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &str, &Standing)> {
        self.cards.iter().map(|((namespace, name), standing)| (namespace, name.as_str(), standing))
    }

    /// Cards of a Webhook.
    pub(super) fn of_hook(&self, hook: HookId) -> usize {
        self.by_hook.get(&hook).copied().unwrap_or(0)
    }

    /// Webhooks that have cards.
    pub(super) fn hooks(&self) -> Vec<HookId> {
        let mut hooks: Vec<_> = self.by_hook.keys().copied().collect();
        hooks.sort_unstable();
        hooks
    }

    /// All cards.
    pub(super) fn len(&self) -> usize {
        self.cards.len()
    }
}

fn count_down<K, Q>(counts: &mut HashMap<K, usize>, key: &Q)
where
    K: std::borrow::Borrow<Q> + std::hash::Hash + Eq,
    Q: std::hash::Hash + Eq + ?Sized,
{
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::cards::card::tests::hook;

    #[test]
    fn each_limit_holds_exactly_and_a_card_that_goes_makes_room() {
        let mut places = Places::default();
        let one = hook(1, "orders");
        let standing = |hook: i64, pos| Standing { hook: HookId(hook), pos: Pos(pos) };
        for n in 0..100 {
            assert!(places.has_room(&one), "{n}");
            places.take(&one.namespace, format!("orders-{n}"), standing(1, n));
        }
        assert!(!places.has_room(&one));
        // The same card twice is one card.
        places.take(&one.namespace, "orders-0".to_owned(), standing(1, 0));
        assert_eq!((places.len(), places.of_hook(HookId(1))), (100, 100));
        for n in 100..1_000_u64 {
            let id = i64::try_from(n / 100 + 1).unwrap();
            assert!(places.has_room(&hook(id, "other")));
            places.take(&one.namespace, format!("other-{n}"), standing(id, n));
        }
        assert!(!places.has_room(&hook(99, "last")), "the namespace is full");
        let elsewhere = HookInfo { namespace: "elsewhere".into(), ..hook(99, "last") };
        assert!(places.has_room(&elsewhere));
        assert_eq!(places.leave("shop", "orders-7"), Some(standing(1, 7)));
        assert_eq!(places.leave("shop", "orders-7"), None);
        assert!(places.has_room(&one));
    }

    #[test]
    fn a_pool_has_at_most_so_many_cards() {
        let mut places = Places::default();
        for n in 0..CARDS_MAX {
            let namespace: Arc<str> = format!("ns-{}", n / 500).into();
            let hook = HookInfo { namespace: Arc::clone(&namespace), ..hook(i64::try_from(n / 50).unwrap(), "w") };
            assert!(places.has_room(&hook), "{n}");
            places.take(&namespace, format!("w-{n}"), Standing { hook: hook.id, pos: Pos(n as u64) });
        }
        assert!(!places.has_room(&HookInfo { namespace: "fresh".into(), ..hook(-1, "w") }));
    }
}
