//! A small excerpt of every object of a kind, kept in step with its watch, that
//! tells which excerpts changed. Pure.

use std::collections::HashMap;

use kube::Resource;
use kube_runtime::watcher::Event;

use super::key::ObjectKey;

/// One excerpt `V` for each object of a kind.
#[derive(Debug)]
pub struct Mirror<V> {
    current: HashMap<ObjectKey, V>,
    /// Filled while the watch lists anew; what is missing in it afterwards was
    /// deleted while nobody watched.
    listing: Option<HashMap<ObjectKey, V>>,
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self { current: HashMap::new(), listing: None }
    }
}

impl<V: PartialEq> Mirror<V> {
    /// The excerpt of an object.
    pub fn get(&self, key: &ObjectKey) -> Option<&V> {
        self.current.get(key)
    }

    /// Every object and its excerpt.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &V)> {
        self.current.iter()
    }

    /// Takes in one event of the watch. Returns the objects whose excerpt changed,
    /// with what it was before: none for a new object.
    pub fn on<K: Resource>(&mut self, event: &Event<K>, excerpt: impl Fn(&K) -> V) -> Vec<(ObjectKey, Option<V>)> {
        match event {
            Event::Init => {
                self.listing = Some(HashMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listing.get_or_insert_default().insert(ObjectKey::of(object), excerpt(object));
                Vec::new()
            }
            Event::InitDone => self.swap(),
            Event::Apply(object) => self.put(ObjectKey::of(object), excerpt(object)),
            Event::Delete(object) => {
                let key = ObjectKey::of(object);
                self.current.remove(&key).map(|old| (key, Some(old))).into_iter().collect()
            }
        }
    }

    fn put(&mut self, key: ObjectKey, value: V) -> Vec<(ObjectKey, Option<V>)> {
        if self.current.get(&key) == Some(&value) {
            return Vec::new();
        }
        let old = self.current.insert(key.clone(), value);
        vec![(key, old)]
    }

    fn swap(&mut self) -> Vec<(ObjectKey, Option<V>)> {
        let Some(listed) = self.listing.take() else { return Vec::new() };
        let mut before = std::mem::replace(&mut self.current, listed);
        let mut changed = Vec::new();
        for (key, value) in &self.current {
            let old = before.remove(key);
            if old.as_ref() != Some(value) {
                changed.push((key.clone(), old));
            }
        }
        changed.extend(before.into_iter().map(|(key, old)| (key, Some(old))));
        changed
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn object(name: &str, value: &str) -> ConfigMap {
        serde_json::from_value(json!({ "metadata": { "namespace": "n", "name": name }, "data": { "v": value } }))
            .unwrap()
    }

    fn excerpt(object: &ConfigMap) -> String {
        object.data.clone().unwrap()["v"].clone()
    }

    fn feed(mirror: &mut Mirror<String>, events: Vec<Event<ConfigMap>>) -> Vec<String> {
        let mut changed: Vec<_> = events
            .iter()
            .flat_map(|e| mirror.on(e, excerpt))
            .map(|(key, old)| format!("{} was {}", key.name, old.as_deref().unwrap_or("absent")))
            .collect();
        changed.sort();
        changed
    }

    #[test]
    fn only_changed_excerpts_are_told() {
        let mut mirror = Mirror::default();
        let apply = |value| vec![Event::Apply(object("a", value))];
        assert_eq!(feed(&mut mirror, apply("1")), ["a was absent"]);
        assert!(feed(&mut mirror, apply("1")).is_empty());
        assert_eq!(feed(&mut mirror, apply("2")), ["a was 1"]);
        assert_eq!(feed(&mut mirror, vec![Event::Delete(object("a", "2"))]), ["a was 2"]);
        assert!(mirror.get(&ObjectKey::new("n", "a")).is_none());
    }

    #[test]
    fn what_was_deleted_while_nobody_watched_is_told_after_the_list() {
        let mut mirror = Mirror::default();
        feed(&mut mirror, ["a", "b", "c"].map(|n| Event::Apply(object(n, "1"))).into());
        let relist = vec![
            Event::Init,
            Event::InitApply(object("a", "1")),
            Event::InitApply(object("b", "2")),
            Event::InitApply(object("d", "1")),
            Event::InitDone,
        ];
        assert_eq!(feed(&mut mirror, relist), ["b was 1", "c was 1", "d was absent"]);
        assert_eq!(mirror.iter().count(), 3);
    }
}
