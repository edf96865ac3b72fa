//! Ordered maps without room that nothing will need.

use std::collections::BTreeMap;

/// Builds a map anew, so that its nodes are full.
///
/// A node that was filled by rising keys (names of a listing, revisions) was
/// split in its middle and stays half empty: of 10,000 Webhooks that are some
/// megabytes. Takes time and, until it returns, memory with the entries: for the
/// end of a listing, not for each change.
pub(crate) fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    // The entries come in order, and a map of such is built from full nodes.
    *map = std::mem::take(map).into_iter().collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_map_has_what_it_had() {
        let mut map: BTreeMap<_, _> = (0..1000).map(|n| (n, n * 2)).collect();
        map.remove(&500);
        let before = map.clone();
        pack(&mut map);
        assert_eq!(map, before);
        map.insert(500, 1);
        assert_eq!((map.len(), map.get(&500)), (1000, Some(&1)));
    }
}
